"""Runs one agent task to its end through workers that are killed; forked, so that the engine is imported once.

`python -m tests.crash.agent_kills ENGINE FOLDER N...` kills the first worker with SIGKILL at its write N // 2: before
it for an even N, after it for an odd one. Prints `killed` or `ended` for each worker. The truth is in the file
`truth`: a line when a model or tool is called, and a line when the store has kept what it gave.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outrider import Outrider
from outrider.agents.engine import load_engine
from outrider.bootstrap import open_ledger
from outrider.core.events import Step
from outrider.core.ledger import Page
from outrider.runtime.clock import SystemClock
from outrider.runtime.lease import locks_of
from outrider.runtime.options import TaskOptions
from outrider.runtime.services import Services
from outrider.runtime.worker import Worker
from tests.agents.casts import CASTS, World
from tests.crash.crew import address_of


def make_app(engine: str, truth: Path) -> Outrider:
    app = Outrider()

    def tell(line: str) -> None:
        fd = os.open(truth, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, f"{line}\n".encode())
        os.fsync(fd)
        os.close(fd)

    cast = CASTS[engine]()
    cast.register(app, World(lambda what: tell(f"begun {what}")))

    def tell_kept(step: Step) -> None:
        tell(f"kept {step.position}")
        if (done := cast.done_by(step)) is not None:
            tell(f"done {done}")

    app.tell_kept = tell_kept  # type: ignore[attr-defined]  # the truth is kept by the store below as well
    return app


class Deadly:
    """A store that kills its process at one write."""

    def __init__(self, ledger: Any, tell_kept: Any, deadly: int | None) -> None:
        self._ledger = ledger
        self._tell_kept = tell_kept
        self._deadly = deadly
        self._writes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def _write(self, write: Any) -> Any:
        self._writes += 1
        is_deadly = self._deadly is not None and self._writes == self._deadly // 2 + 1
        if is_deadly and self._deadly is not None and self._deadly % 2 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        written = await write
        if is_deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return written

    async def journal(self, steps: Sequence[Step]) -> Any:
        return await self._write(self._keep(steps))

    async def _keep(self, steps: Sequence[Step]) -> Any:
        written = await self._ledger.journal(steps)
        for step, held in zip(steps, written, strict=True):
            if held and step.done:
                self._tell_kept(step)
        return written

    async def append(self, page: Page) -> bool:
        kept: bool = await self._write(self._ledger.append(page))
        return kept

    async def commit(self, changes: Any) -> Any:
        return await self._write(self._ledger.commit(changes))


async def work(engine: str, folder: Path, deadly: int | None) -> None:
    """Work until the task has ended."""
    app = make_app(engine, folder / "truth")
    ledger = await open_ledger(address_of(folder / "work.db"))
    store: Any = Deadly(ledger, app.tell_kept, deadly)  # type: ignore[attr-defined]  # see make_app
    services = Services.over(store, SystemClock(), app.registry, app.settings)
    job = asyncio.create_task(Worker(services, locks=locks_of(ledger)).run())
    task_id = (folder / "task").read_text()
    with services.signals.listen([task_id]) as bell:
        while True:
            task = await services.views.task(task_id)
            assert task is not None
            if task.is_terminal:
                break
            if task.core.requests:  # an effect in doubt: say that it did not happen, as the truth has it
                done = "begun send hello" in (folder / "truth").read_text().splitlines()
                answer = {"action": "skip", "value": "sent"} if done else {"action": "retry"}
                from outrider.runtime.tasks import Tasks

                await Tasks(services).answer(task_id, answer)
            await bell.wait()
    job.cancel()
    await asyncio.gather(job, return_exceptions=True)
    services.signals.close()
    await ledger.close()


async def submit(engine: str, folders: Sequence[Path]) -> None:
    for folder in folders:
        async with make_app(engine, folder / "truth").open(address_of(folder / "work.db"), worker=False) as outrider:
            session = await outrider.sessions.create()
            task = await session.spawn_agent("add, then send", agent="worker", options=TaskOptions(max_failures=10))
            (folder / "task").write_text(task.id)


def run_until_ended(engine: str, folder: Path, deadly: int | None) -> list[str]:
    fates: list[str] = []
    while not fates or fates[-1] == "killed":
        assert len(fates) < 5, fates
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(work(engine, folder, deadly if not fates else None))
            except BaseException as error:  # noqa: BLE001 - a child says why it failed and ends
                sys.stderr.write(f"{error!r}\n")
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        fates.append("killed" if os.WIFSIGNALED(status) else "ended" if status == 0 else "broken")
    return fates


def main() -> None:
    engine, folder, rounds = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    load_engine(engine)
    pid = os.fork()
    if pid == 0:
        asyncio.run(submit(engine, [folder / number for number in rounds]))
        os._exit(0)
    os.waitpid(pid, 0)
    for number in rounds:
        fates = run_until_ended(engine, folder / number, int(number))
        sys.stdout.write(f"{number} {' '.join(fates)}\n")
        sys.stdout.flush()
        if fates == ["ended"]:  # it makes no more writes than that
            break


if __name__ == "__main__":
    main()
