"""A store, a clock moved by hand, and the real reducer between them: what every store test acts through."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio

from outrider.core.change import Change
from outrider.core.delivery import Receipt
from outrider.core.events import (
    Claimed,
    Event,
    FileWrite,
    Message,
    Parked,
    Step,
    Succeeded,
)
from outrider.core.ledger import Claim, Claims, Committed, InboxRow, Ledger, LimitSet, LogRow, Signal, Verdict, Views
from outrider.core.machine import apply, create
from outrider.core.queue import Limit
from outrider.core.session import NewSession, Session
from outrider.core.task import Input, InputRequest, NewTask, Task, Wait
from outrider.core.values import SECOND, Instant

START: Instant = 1_700_000_000 * SECOND
ROUTE = "background_tool:index"
SESSION = "session_a"
WORKER = "worker_a"


@dataclass
class Scene:
    """Acts on one store at `now`; time passes only by `later`."""

    ledger: Ledger
    now: Instant = START
    made: int = field(default=0)

    @property
    def views(self) -> Views:
        return self.ledger.views

    def later(self, span: int = SECOND) -> Instant:
        self.now += span
        return self.now

    async def session(self, id: str = SESSION, **fields: Any) -> Session:
        return await self.ledger.create_session(NewSession(id, self.now, **fields))

    def new(
        self,
        id: str,
        session_id: str = SESSION,
        *,
        not_before: Instant | None = None,
        claim: Claimed | None = None,
        **fields: Any,
    ) -> Change:
        """The creation of a task, not yet committed."""
        given = {
            "root_session_id": session_id,
            "kind": "background_tool",
            "route": ROUTE,
            "spec": {"path": "."},
            "created_at": self.now,
            **fields,
        }
        return create(NewTask(id, Input(session_id=session_id, **given), not_before), self.now, claim)

    async def create(self, id: str, session_id: str = SESSION, **fields: Any) -> Task:
        return committed(await self.one(self.new(id, session_id, **fields)))

    async def many(self, count: int, **fields: Any) -> None:
        """`task_0` and so on, in this order."""
        for n in range(count):
            await self.create(f"task_{n}", **fields)

    async def limit(self, key: str, **limit: Any) -> bool:
        return await self.ledger.control(LimitSet(Limit(key, **limit)))

    async def uses(self) -> list[tuple[str, int, int]]:
        """What becomes of each key in use: held, set aside."""
        return [(use.key, use.held, use.waiting) for use in await self.views.uses()]

    async def one(self, change: Change) -> Verdict:
        (verdict,) = await self.ledger.commit([change])
        return verdict

    async def claim(self, worker: str = WORKER, *, limit: int = 100, routes: Sequence[str] = (ROUTE,)) -> Claims:
        now = self.now
        return await self.ledger.claim(
            Claim(worker, tuple(routes), limit, now), lambda task: apply(task, Claimed(worker), now)
        )

    async def claimed_ids(self, **how: Any) -> list[str]:
        return [task.id for task in (await self.claim(**how)).tasks]

    async def running(self, id: str, session_id: str = SESSION, **fields: Any) -> Task:
        """A new task on a route of its own, held by a worker in its first attempt."""
        route = f"background_tool:{id}"
        await self.create(id, session_id, route=route, **fields)
        return await self.reclaim(id)

    async def reclaim(self, id: str, worker: str = WORKER) -> Task:
        """The task in its next attempt; it must be due, and the only one of its route."""
        route = (await self.task(id)).input.route
        (task,) = (await self.claim(worker, routes=[route])).tasks
        return task

    async def task(self, id: str) -> Task:
        task = await self.views.task(id)
        assert task is not None, id
        return task

    async def decide(self, id: str, event: Event) -> Change:
        return apply(await self.task(id), event, self.now)

    async def apply(self, id: str, event: Event) -> Task:
        """Decide on the record as it stands, and commit that."""
        return committed(await self.one(await self.decide(id, event)))

    async def succeed(self, id: str, result: bytes | None = None) -> Task:
        attempt = (await self.task(id)).core.attempt
        return await self.apply(id, Succeeded(attempt, result))

    async def park(self, id: str, *waits: Wait) -> Task:
        attempt = (await self.task(id)).core.attempt
        return await self.apply(id, Parked(attempt, waits))

    async def log(self, session_id: str = SESSION) -> list[LogRow]:
        return list(await self.views.events(session_id, limit=1_000_000))

    async def told(self, session_id: str = SESSION) -> list[tuple[str, str]]:
        """The undelivered inbox as (task, reason)."""
        return [(row.task_id, row.reason) for row in await self.views.inbox(session_id)]

    async def receive(self, seconds: float = 60, limit: int = 100, session_id: str = SESSION) -> list[InboxRow]:
        """What is received of an inbox, for a lease of that many seconds."""
        until = self.now + round(seconds * SECOND)
        return list(await self.ledger.receive(session_id, self.now, until, limit))

    async def hear(self) -> list[tuple[str, str]]:
        """All that is received, as (task, reason), and acknowledged."""
        rows = await self.receive()
        assert await self.ledger.acknowledge(SESSION, [receipt_for(row) for row in rows]) == ["good"] * len(rows)
        return [(row.task_id, row.reason) for row in rows]

    async def pending(self) -> list[tuple[str, Event]]:
        """The follow-ups that wait as (task, event)."""
        return [(one.task_id, one.event) for one in await self.views.follow_ups(1000)]

    # values with the fields that do not matter filled in

    def step(self, task_id: str, position: str, attempt: int = 1, value: bytes | None = b"1", **how: Any) -> Step:
        self.made += 1
        return Step(task_id, position, self.made, "step", attempt, self.now, value, **how)

    def file(self, path: str, content: bytes = b"content", session_id: str = SESSION) -> FileWrite:
        return FileWrite(session_id, path, content, "text/plain", self.now)

    def request(self, id: str, task_id: str, **how: Any) -> InputRequest:
        return InputRequest(id, task_id, "question", "Go on?", position=f"ask:{id}", created_at=self.now, **how)

    def message(self, id: str, task_id: str, direction: Any = "inbound", session_id: str = SESSION) -> Message:
        return Message(id, task_id, session_id, direction, ({"type": "text", "text": id},), self.now)


def receipt_for(row: InboxRow) -> Receipt:
    return Receipt(row.task_id, row.seq, row.deliveries)


def committed(verdict: Verdict) -> Task:
    assert isinstance(verdict, Committed), verdict
    return verdict.task


def data_of(row: LogRow) -> Any:
    return json.loads(row.data)


class Ear:
    """A listener that remembers. `hears` waits for a fact, not for a time."""

    def __init__(self, ledger: Ledger) -> None:
        self.signals: list[Signal] = []
        self.stop = ledger.listen(self.signals.append)

    async def hears(self, wanted: Callable[[Signal], bool]) -> Signal:
        with anyio.fail_after(10):
            while True:
                for signal in self.signals:
                    if wanted(signal):
                        return signal
                await anyio.sleep(0.001)
