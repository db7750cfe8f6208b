"""A program at work under the shim: a worker on a database, people who ask and answer, and every acknowledgement.

`python -m tests.faults.subject ROOT {json}`. The database is ROOT/store/work.db, in a folder that it has to make. What
each verb of the store returned goes into ROOT/acks, a JSON array a line, before anybody else hears of it: so it stands
among the calls on the database where it was given. What the steps did stands in ROOT/effects.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from outrider.bootstrap import open_ledger
from outrider.core.change import Change
from outrider.core.ledger import Committed
from outrider.runtime.clock import SystemClock
from outrider.runtime.facade import Runtime
from outrider.runtime.lease import locks_of
from outrider.runtime.services import Services
from outrider.runtime.worker import keep_working
from outrider.stores.sqlite import file as store_file
from tests.crash import voyage
from tests.crash.test_kills import answer_all, set_sail

DATABASE = "store/work.db"
ACKS = "acks"
EFFECTS = "effects"


def digest(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()[:16]


class Telling:
    """A ledger that writes down what each of its verbs has acknowledged."""

    def __init__(self, ledger: Any, acks: Path) -> None:
        self._ledger = ledger
        self._fd = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def _tell(self, *lines: Sequence[Any]) -> None:
        if lines:
            os.write(self._fd, "".join(f"{json.dumps(line)}\n" for line in lines).encode())

    async def create_session(self, new: Any, seed: Any = None) -> Any:
        session = await self._ledger.create_session(new, seed)
        self._tell(["session", session.id])
        return session

    async def commit(self, changes: Sequence[Change]) -> Any:
        verdicts = await self._ledger.commit(changes)
        self._tell(
            *(
                _told_of(change, verdict)
                for change, verdict in zip(changes, verdicts, strict=True)
                if isinstance(verdict, Committed) and not change.is_noop
            )
        )
        return verdicts

    async def claim(self, claim: Any, decide: Any) -> Any:
        claims = await self._ledger.claim(claim, decide)
        self._tell(*(["task", task.id, task.core.version, task.session_id, {}] for task in claims.tasks))
        return claims

    async def report(self, reports: Any) -> Any:
        return await self._each("report", reports, lambda one: [one.task_id, one.delta is not None])

    async def journal(self, steps: Any) -> Any:
        return await self._each("journal", steps, _told_of_step)

    async def print(self, chunks: Any) -> Any:
        return await self._each("print", chunks, lambda one: [one.task_id, len(one.text.encode())])

    async def write_file(self, file: Any, fence: Any = None) -> bool:
        written: bool = await self._ledger.write_file(file, fence)
        if written:
            self._tell(["file", file.session_id, file.path, digest(file.content)])
        return written

    async def register(self, card: Any) -> None:
        await self._ledger.register(card)
        self._tell(["worker", card.id])

    async def retire(self, worker_id: str) -> None:
        self._tell(["retiring", worker_id])
        await self._ledger.retire(worker_id)

    async def _each(self, verb: str, given: Any, told: Any) -> Any:
        done = await getattr(self._ledger, verb)(given)
        self._tell(*([verb, *told(one)] for one, is_done in zip(given, done, strict=True) if is_done))
        return done


def _told_of_step(step: Any) -> list[Any]:
    return [step.task_id, step.position, step.attempt, step.done, digest(step.value)]


def _told_of(change: Change, verdict: Committed) -> list[Any]:
    beside = {
        "events": len(change.events),
        "messages": [message.id for message in change.messages],
        "requests": [[request.id, request.status] for request in change.requests],
        "files": [[file.session_id, file.path, digest(file.content)] for file in change.files],
        "steps": [_told_of_step(step) for step in change.steps],
        "ended": change.ended and [change.ended.attempt, change.ended.ending],
    }
    return ["task", verdict.task.id, verdict.task.core.version, verdict.task.session_id, beside]


async def work(root: Path, order: dict[str, Any]) -> None:
    """Go through some rounds of voyages, then close the database."""
    os.environ[voyage.EFFECTS] = str(root / EFFECTS)
    store_file._PRAGMAS += tuple(order.get("pragmas", ()))
    ledger = cast(Any, Telling(await open_ledger(str(root / DATABASE)), root / ACKS))
    services = Services.over(ledger, SystemClock(), voyage.app.registry, voyage.SETTINGS)
    job = asyncio.create_task(keep_working(services, locks=locks_of(ledger)))
    runtime = Runtime(services)
    for number in range(order.get("rounds", 1)):
        session = await runtime.sessions.create(id=f"session_{number}")
        await answer_all(runtime, [await set_sail(session) for _ in range(order.get("voyages", 3))])
        await asyncio.sleep(order.get("lull", 0))  # at rest the store copies its WAL
    if not order.get("is_cut"):
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        await ledger.close()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), json.loads(sys.argv[2])))
