"""Help for the tests of programs that use Outrider: time that stands still, and a runtime that tells when it is idle.

A test drives the runtime and waits for facts, never for seconds: `run_until_idle` returns when nothing can move
without time passing or somebody acting; `advance` lets time pass, and what falls due in it happens in order;
`crash` loses the worker as kill -9 would, and `crash_after` does so at a chosen place in a task's journal.

What a test would get wrong: the manual clock is Outrider's alone. `asyncio.sleep` in a tool still takes its time,
and `run_until_idle` waits for it; `task.sleep` takes none.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import inspect
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from itertools import count
from typing import Any, Literal, TypeAlias, cast

from outrider.agents.scripted import Call as Call
from outrider.agents.scripted import Failure as ModelFailure
from outrider.agents.scripted import Reply as Reply
from outrider.agents.scripted import Script as Script
from outrider.agents.scripted import Turn as Turn
from outrider.agents.scripted import register as script
from outrider.agents.scripted import replies as replies
from outrider.bootstrap import Outrider, open_ledger
from outrider.core.errors import StoreUnavailable, Superseded
from outrider.core.events import HolderEvent
from outrider.core.ledger import Ledger
from outrider.core.values import Instant, Span
from outrider.runtime.attempt import Attempt
from outrider.runtime.clock import Alarm, Clock, as_datetime, instant, span
from outrider.runtime.facade import Runtime
from outrider.runtime.lease import locks_of
from outrider.runtime.options import Length
from outrider.runtime.recovery import loss_of
from outrider.runtime.services import Services
from outrider.runtime.worker import Worker
from outrider.settings import WorkerSettings

__all__ = [
    "Call",
    "ManualClock",
    "ModelFailure",
    "NotIdle",
    "Reply",
    "Script",
    "TestRuntime",
    "Turn",
    "open_test",
    "replies",
    "script",
]

Store: TypeAlias = Literal["memory", "sqlite"] | str
"""A store of the test's own, or the `postgresql://` URL of a database that the test provides."""

PATIENCE = 10.0
"""How long, in real seconds, a test waits for what should happen at once."""


class ManualClock:
    """A clock that moves when it is told to. Starts at a fixed moment, so that runs repeat."""

    def __init__(self, start: datetime | None = None) -> None:
        self._now: Instant = _START if start is None else instant(start)
        self._alarms: list[tuple[Instant, int, _ManualAlarm]] = []
        self._numbers = count()

    def now(self) -> Instant:
        """The present moment in microseconds since the Unix epoch."""
        return self._now

    def passed(self) -> Span:
        """The same: nobody sets it."""
        return self._now

    @property
    def time(self) -> datetime:
        """The present moment as a datetime in UTC."""
        return as_datetime(self._now)

    @property
    def next_alarm(self) -> Instant | None:
        """When the next alarm goes off, in microseconds since the Unix epoch; None if none is set."""
        while self._alarms and self._alarms[0][2].callback is None:
            heapq.heappop(self._alarms)
        return self._alarms[0][0] if self._alarms else None

    def call_at(self, moment: Instant, callback: Callable[[], object]) -> Alarm:
        """Call back when the clock is moved to the moment or past it; for one that has come, on the next turn."""
        if moment <= self._now:
            return asyncio.get_running_loop().call_soon(callback)
        alarm = _ManualAlarm(callback)
        heapq.heappush(self._alarms, (moment, next(self._numbers), alarm))
        return alarm

    def advance(self, length: Length) -> None:
        """Move on by a timedelta or by seconds. Alarms go off in order, each at its own moment.

        What they set in motion needs turns of the loop: `TestRuntime.advance` gives it these between alarms.
        """
        self.advance_to(self._now + span(length))

    def advance_to(self, moment: Instant) -> None:
        """Move on to a moment, in microseconds since the Unix epoch. Raises ValueError for one that has passed."""
        if moment < self._now:
            raise ValueError("time does not run backwards here")
        while (due := self.next_alarm) is not None and due <= moment:
            self._now = max(self._now, due)
            _, _, alarm = heapq.heappop(self._alarms)
            callback, alarm.callback = alarm.callback, None
            if callback is not None:
                callback()
        self._now = moment


class _ManualAlarm:
    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


_START = instant(datetime.fromisoformat("2030-01-01T00:00:00+00:00"))


class NotIdle(AssertionError):
    """What should have come to rest still moves; the message says what."""


@asynccontextmanager
async def open_test(
    app: Outrider,
    *,
    clock: Clock | None = None,
    store: Store = "memory",
    worker: bool = True,
    **settings: Any,
) -> AsyncIterator[TestRuntime]:
    """Open a runtime for one test, on a store of its own that is gone afterwards.

    `clock` is a new `ManualClock` unless given. The app's settings hold, but for no park grace and no pause before
    output and progress are written; `settings` overrides fields of `WorkerSettings`. On the way out the worker is
    dropped, not drained: call `drain` where that is the point.
    """
    quick = {"park_grace": 0.0, "progress_interval": 0.0, "output_interval": 0.0}
    async with AsyncExitStack() as stack:
        url = store if "://" in store else "memory://"
        if store == "sqlite":
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="outrider-test-"))
            url = f"sqlite:///{folder}/test.db"
        ledger = await open_ledger(url)
        stack.push_async_callback(ledger.close)
        chosen = replace(app.settings, **{**quick, **settings})
        runtime = TestRuntime(ledger, clock or ManualClock(), app, chosen)
        stack.push_async_callback(runtime.close)
        if worker:
            await runtime.start_worker()
        yield runtime


class TestRuntime(Runtime):
    """A `Runtime` that a test can move by hand. Made by `open_test`."""

    __test__ = False  # pytest: this is not a test, whatever its name begins with

    def __init__(self, ledger: Ledger, clock: Clock, app: Outrider, settings: WorkerSettings) -> None:
        self._watch = _Watch()
        self._store = ledger
        self._app = app
        self._settings = settings
        self._crews: list[_Crew] = []
        self._dead: list[_Crew] = []
        self._writes_left: list[int] = []
        self.crashes = 0
        """How often workers were lost."""
        super().__init__(self._services_over(clock, _nothing)[0])

    @property
    def clock(self) -> ManualClock:
        """The clock, where it is a manual one."""
        assert isinstance(self.services.clock, ManualClock), "this runtime runs on another clock"
        return self.services.clock

    @property
    def writes(self) -> int:
        """How many pieces of a journal running tasks have made durable so far."""
        return self._watch.writes

    # --- time and rest -------------------------------------------------------------------------------

    async def run_until_idle(self, *, timeout: float = PATIENCE) -> None:
        """Run until nothing can move without time passing or somebody acting.

        That is: no code of a task runs outside waits (threads included), nothing is ready to be claimed, no
        follow-up waits, all that was said is written. Work whose worker crashed by `crash_after` is recovered
        first. Raises NotIdle, which names what still moves, after `timeout` real seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            if self._dead:
                await self._recover()
            effects = self._watch.effects
            for crew in self._crews:
                crew.worker.look()
            await self._rest(deadline)
            if effects == self._watch.effects and not self._dead:
                return

    async def advance(self, length: Length, *, timeout: float = PATIENCE) -> None:
        """Let time pass, a timedelta or seconds. What falls due happens in order, each at its own moment.

        `timeout`, in real seconds, is for each of the moments.
        """
        until = self.clock.now() + span(length)
        await self.run_until_idle(timeout=timeout)
        while (moment := self.clock.next_alarm) is not None and moment <= until:
            self.clock.advance_to(moment)
            await self.run_until_idle(timeout=timeout)
        self.clock.advance_to(until)
        await self.run_until_idle(timeout=timeout)

    async def until(self, fact: Callable[[], bool | Awaitable[bool]], *, timeout: float = PATIENCE) -> None:
        """Wait for a fact while things move. Raises NotIdle if it is not one after `timeout` real seconds."""
        deadline = time.monotonic() + timeout
        for turn in count():
            holds = fact()
            if await holds if inspect.isawaitable(holds) else holds:
                return
            if time.monotonic() >= deadline:
                raise NotIdle(f"not so after {timeout:g} s; {self._what_moves()}")
            await _turn(turn)

    async def _rest(self, deadline: float) -> None:
        """Return once everything was seen at rest for several turns of the loop in a row."""
        still = 0
        for turn in count():
            still = still + 1 if self._is_at_rest() else 0
            if still > _TURNS:
                return
            if time.monotonic() >= deadline:
                raise NotIdle(self._what_moves())
            await _turn(0 if still else turn)

    def _is_at_rest(self) -> bool:
        return self._watch.in_flight == 0 and all(crew.is_at_rest for crew in self._crews)

    def _what_moves(self) -> str:
        tasks = [line for crew in self._crews for line in crew.worker.what_moves()]
        return f"still moving: {'; '.join(tasks) or 'the runtime itself'} ({self._watch.in_flight} calls of the store)"

    # --- workers -------------------------------------------------------------------------------------

    async def start_worker(self) -> None:
        """Start a worker, one more if there is one."""
        services, probe = self._services_over(self.services.clock, self._on_write)
        worker = _MortalWorker(services, locks=locks_of(self._store))
        crew = _Crew(worker, services, probe, asyncio.create_task(worker.run(), name="outrider-test-worker"))
        self._crews.append(crew)
        await self.until(lambda: crew.is_at_rest or worker.held > 0)

    async def drain(self) -> None:
        """Stop all workers as SIGTERM would: steps in flight finish, the rest is handed over."""
        crews, self._crews = self._crews, []
        for crew in crews:
            crew.job.cancel()
        await asyncio.gather(*(crew.gone() for crew in crews))

    async def crash(self) -> None:
        """Lose all workers at once, as kill -9 would: nothing more is written; then recover their work with a new one.

        Code that runs in a thread cannot be killed: it goes on until its next verb, which raises.
        """
        self._kill()
        await self._recover()

    def crash_after(self, *writes: int) -> None:
        """Lose all workers as soon as running tasks have journaled that many more pieces; then again, for each number.

        `run_until_idle` recovers what they held with a new worker. `crashes` tells whether it came to it.
        """
        self._writes_left = list(writes)

    async def close(self) -> None:
        """Lose all workers and recover nothing."""
        self._kill()
        await asyncio.gather(*(crew.gone() for crew in self._dead))
        self.services.signals.close()

    def _services_over(self, clock: Clock, on_write: _OnWrite) -> tuple[Services, _Probe]:
        probe = _Probe(self._store, self._watch, on_write)
        return Services.over(cast(Ledger, probe), clock, self._app.registry, self._settings), probe

    def _on_write(self, task_id: str, attempt: int) -> None:
        if not self._writes_left:
            return
        self._writes_left[0] -= 1
        if self._writes_left[0] == 0:
            del self._writes_left[0]
            self._kill()
            raise Superseded(task_id, attempt)

    def _kill(self) -> None:
        self.crashes += 1
        for crew in self._crews:
            crew.probe.is_dead = True
            crew.worker.crash()
            crew.job.cancel()
        self._dead.extend(self._crews)
        self._crews = []

    async def _recover(self) -> None:
        dead, self._dead = self._dead, []
        views = self.services.views
        for crew in dead:
            await crew.gone()
            for beat in await views.held_by(crew.worker.id):
                await self.services.lifecycle.move(beat.task_id, await loss_of(views, beat))
            await self.services.ledger.retire(crew.worker.id)
        await self.start_worker()


_OnWrite: TypeAlias = Callable[[str, int], None]


def _nothing(task_id: str, attempt: int) -> None:
    """What clients write is no piece of a journal."""


_TURNS = 5
"""For how many turns of the loop things must have been at rest; a hand-over between two tasks takes one or two."""


async def _turn(number: int) -> None:
    """One turn of the loop; after many in vain, a breath for threads and other processes."""
    await asyncio.sleep(0 if number < 50 else 0.001)


class _Crew:
    """A worker, what it works with, and the asyncio task that it runs in."""

    def __init__(self, worker: _MortalWorker, services: Services, probe: _Probe, job: asyncio.Task[None]) -> None:
        self.worker = worker
        self.services = services
        self.probe = probe
        self.job = job

    @property
    def is_at_rest(self) -> bool:
        if self.probe.is_dead:
            return True
        if self.job.done():
            self.job.result()
        return self.worker.is_at_rest

    async def gone(self) -> None:
        await asyncio.gather(self.job, return_exceptions=True)
        self.services.signals.close()


class _MortalWorker(Worker):
    """A worker that can be lost without a word, and whose process stays."""

    _is_crashed = False

    def crash(self) -> None:
        self._is_crashed = True
        for attempt in list(self._held.values()):
            attempt.supersede()

    async def _settle(self, attempt: Attempt, event: HolderEvent) -> None:
        if not self._is_crashed:
            await super()._settle(attempt, event)

    async def _drain(self) -> None:
        if not self._is_crashed:
            await super()._drain()
        elif self._jobs:
            for job in self._jobs:
                job.cancel()
            await asyncio.wait(self._jobs, timeout=1)


class _Watch:
    """What is known of all calls of the store."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.effects = 0
        """How many calls wrote something."""
        self.writes = 0
        """How many pieces of journals were written."""


class _Probe:
    """A `Ledger` that hands all calls on and notes them. One whose process is dead refuses to."""

    def __init__(self, ledger: Ledger, watch: _Watch, on_write: _OnWrite) -> None:
        self.store = ledger
        self._watch = watch
        self._on_write = on_write
        self.views = _ViewsProbe(self)
        self.is_dead = False

    async def claim(self, *arguments: Any) -> Any:
        claims = await self.noted(self.store.claim(*arguments))
        self._watch.effects += len(claims.tasks)
        return claims

    async def commit(self, changes: Any) -> Any:
        verdicts = await self.noted(self.store.commit(changes))
        self._watch.effects += len(changes)
        self._tell([step for change in changes for step in change.steps])
        return verdicts

    async def journal(self, steps: Any) -> Any:
        kept = await self.noted(self.store.journal(steps))
        self._watch.effects += 1
        self._tell(steps)
        return kept

    async def append(self, page: Any) -> Any:
        kept = await self.noted(self.store.append(page))
        self._watch.effects += 1
        self._tell([page])
        return kept

    def renew(self, worker_id: str, timeout: float) -> bool:
        return self.is_dead or self.store.renew(worker_id, timeout)

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self.store, name)
        if not inspect.iscoroutinefunction(verb):
            return verb

        @functools.wraps(verb)
        async def call(*arguments: Any, **named: Any) -> Any:
            result = await self.noted(verb(*arguments, **named))
            self._watch.effects += 1
            return result

        return call

    async def noted(self, call: Coroutine[Any, Any, Any]) -> Any:
        if self.is_dead:
            call.close()
            raise StoreUnavailable("the process of this worker is dead")
        self._watch.in_flight += 1
        try:
            return await call
        finally:
            self._watch.in_flight -= 1

    def _tell(self, pieces: Any) -> None:
        for piece in pieces:
            self._watch.writes += 1
            self._on_write(piece.task_id, piece.attempt)


class _ViewsProbe:
    def __init__(self, probe: _Probe) -> None:
        self._probe = probe

    def __getattr__(self, name: str) -> Any:
        probe = self._probe
        verb = getattr(probe.store.views, name)

        @functools.wraps(verb)
        async def call(*arguments: Any, **named: Any) -> Any:
            return await probe.noted(verb(*arguments, **named))

        self.__dict__[name] = call
        return call
