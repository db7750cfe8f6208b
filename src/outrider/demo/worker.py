"""The worker of the demonstration: an ordinary worker, whose store holds still at one moment so that it can be killed.

`python -m outrider.demo.worker` is started by `show`. It notes every journal row it wrote in a file of its own:
the check afterwards looks in there for repeats, and compares the tool's rows with the journal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outrider.bootstrap import open_ledger
from outrider.core.events import Step
from outrider.core.ledger import Ledger
from outrider.demo.app import make_app
from outrider.runtime.clock import SystemClock
from outrider.runtime.lease import locks_of
from outrider.runtime.services import Services
from outrider.runtime.worker import Worker

MID_TOOL = "mid-tool"
BETWEEN = "between a model response and its tool results"


class Witness:
    """A store that notes each journal row in a file, and holds still for ever at the awkward moment it is given."""

    def __init__(self, ledger: Ledger, notes: Path, moment: str | None) -> None:
        self._ledger = ledger
        self._notes = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._moment = moment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def journal(self, steps: Sequence[Step]) -> Sequence[bool]:
        """Write the rows; before or after, perhaps never return."""
        if self._moment == MID_TOOL and any(step.position == "measure 6" or step.position == "keep" for step in steps):
            await self._hold_still()
        written = await self._ledger.journal(steps)
        for step in steps:
            if step.done:
                self._note(step)
        second_reply = any(step.position.endswith("!2/model") for step in steps)
        if self._moment == BETWEEN and second_reply:
            await self._hold_still()
        return written

    def _note(self, step: Step) -> None:
        line = json.dumps({"task": step.task_id, "position": step.position, "attempt": step.attempt})
        os.write(self._notes, line.encode() + b"\n")
        os.fsync(self._notes)

    async def _hold_still(self) -> None:
        sys.stdout.write(f"{self._moment}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


async def work(arguments: argparse.Namespace) -> None:
    """Work until told to stop."""
    app = make_app(Path(arguments.path), arguments.model)
    ledger = await open_ledger(arguments.db)
    witness: Any = Witness(ledger, Path(arguments.notes), arguments.hold)
    services = Services.over(witness, SystemClock(), app.registry, app.settings)
    job = asyncio.create_task(Worker(services, locks=locks_of(ledger)).run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, job.cancel)
    await asyncio.gather(job, return_exceptions=True)
    services.signals.close()
    await ledger.close()


def main() -> None:
    """Read the arguments and work."""
    parser = argparse.ArgumentParser(prog="python -m outrider.demo.worker")
    for name in ("db", "path", "model", "notes"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--hold", choices=[MID_TOOL, BETWEEN])
    asyncio.run(work(parser.parse_args()))


if __name__ == "__main__":
    main()
