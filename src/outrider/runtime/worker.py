"""A worker: claims what is due, runs it, reports, and looks after what others left.

The loop is `run`: claim while there is room, then wait for a signal or the next moment that matters. One task's
run is one sentence, `_hold`: open the attempt, perform it, settle it.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from pathlib import Path
from typing import Any

from outrider.core import machine
from outrider.core.errors import OutriderError, StoreError, Superseded
from outrider.core.events import Claimed, DeadlinePassed, HolderEvent
from outrider.core.ledger import Claim, Claims, Signal, WorkerCard
from outrider.core.task import Task
from outrider.runtime.attempt import CURRENT, Attempt
from outrider.runtime.clock import Bell
from outrider.runtime.context import TaskContext
from outrider.runtime.ids import new_id
from outrider.runtime.lease import LeaseThread, Lock, Watched, boot_id
from outrider.runtime.log import log
from outrider.runtime.recovery import Recovery, lock_path
from outrider.runtime.services import Services
from outrider.runtime.voice import Voice

BATCH = 100
FOLLOW_UPS = 200


class Worker:
    """Runs the tasks that its registry can run. `locks` is a folder on this machine, None where all is in memory."""

    def __init__(
        self,
        services: Services,
        *,
        locks: Path | None,
        host: str | None = None,
        on_end: Callable[[int], None] = os._exit,
    ) -> None:
        self.id = new_id("worker")
        self._services = services
        self._locks = locks
        self._host = host or socket.gethostname()
        self._on_end = on_end
        self._bell = Bell(services.clock)
        self._held: dict[str, Attempt] = {}
        self._stale: set[str] = set()
        self._look_at_all = False
        self._refreshing = False
        self._has_follow_ups = True
        self._next_look: int | None = None
        self._is_draining = False
        self._is_lost = False
        self._jobs: set[asyncio.Task[None]] = set()
        self._context = Context()
        self.abandoned = 0
        """How many attempts ignored every order to stop and still run somewhere in this process."""
        self.claims_in_flight = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs here."""
        return not self._held

    @property
    def held(self) -> int:
        """How many tasks it holds now."""
        return len(self._held)

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing will happen here before news comes or time passes."""
        return (
            self._bell.is_waited_for
            and self._voice.is_silent
            and len(self._jobs) == len(self._held)
            and all(attempt.is_at_rest for attempt in self._held.values())
        )

    def what_moves(self) -> list[str]:
        """The tasks whose code runs outside of waits, in words."""
        moving = [attempt for attempt in self._held.values() if not attempt.is_at_rest]
        return [f"{each.record.input.display_name} ({each.task_id}), attempt {each.number}" for each in moving]

    def look(self) -> None:
        """Look at everything once more, as if others might have written."""
        self._on_signal(Signal(unknown=True))

    # --- its life ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled; then drain: let steps in flight finish, hand the rest over."""
        loop = self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        threads = ThreadPoolExecutor(self._services.settings.threads, thread_name_prefix="outrider-tool")
        self._threads = threads
        restore = _follow_tasks(loop)
        self._voice = Voice(self._services)
        stop_listening = self._services.ledger.listen(self._on_signal)
        lock, lease = await self._present_itself(loop)
        helpers = [loop.create_task(self._voice.run()), loop.create_task(self._look_after_others())]
        try:
            for executor in self._services.registry.executors.values():
                await executor.prepare()
            await self._work()
        finally:
            await asyncio.shield(self._drain())
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            lease.stop()
            stop_listening()
            restore()
            try:
                await asyncio.shield(self._services.ledger.retire(self.id))
            except StoreError as error:
                log.warning("worker could not sign off", worker=self.id, reason=str(error))
            if lock is not None:
                lock.release()
            threads.shutdown(wait=False, cancel_futures=True)

    async def _present_itself(self, loop: asyncio.AbstractEventLoop) -> tuple[Lock | None, LeaseThread]:
        from outrider import __version__

        settings = self._services.settings
        lock = None if self._locks is None else Lock(lock_path(self._locks, self.id))
        card = WorkerCard(
            id=self.id,
            host=self._host,
            boot_id=boot_id(),
            pid=os.getpid(),
            started_at=self._services.clock.now(),
            routes=self._services.registry.routes(),
            version=__version__,
            concurrency=settings.concurrency,
        )
        await self._services.ledger.register(card)
        watched = Watched(loop, self._culprit, self._supersede_all, self._is_running, self._on_lost, self._on_end)
        lease = LeaseThread(self._services.ledger, self.id, settings, lock.path if lock else None, watched)
        lease.start()
        self._recovery = Recovery(self._services, self._host, card.boot_id, self._locks, self.id)
        return lock, lease

    async def _work(self) -> None:
        while not self._is_lost:
            try:
                claims = await self._claim()
                await self._look_at_the_clock(claims)
                if self._has_follow_ups or claims.follow_ups:
                    self._has_follow_ups = await self._services.lifecycle.apply_follow_ups(FOLLOW_UPS) > 0
            except StoreError as error:
                log.error("the store does not answer; trying again", reason=str(error))
                await asyncio.sleep(0.5)
                continue
            if self._has_follow_ups or (claims.more and self._room > 0):
                continue
            if claims.more:
                self._make_room()
            await self._bell.wait(_earliest(claims.next_due_at if self._room > 0 else None, claims.next_deadline_at))

    @property
    def _room(self) -> int:
        return self._services.settings.concurrency - len(self._held)

    def _make_room(self) -> None:
        """Other work is due: whoever only waits gives its place back without the usual grace."""
        for attempt in list(self._held.values()):
            attempt.park_if_idle()

    # --- claiming and running ------------------------------------------------------------------------

    async def _claim(self) -> Claims:
        registry, clock = self._services.registry, self._services.clock
        now = clock.now()
        event = Claimed(self.id)
        claim = Claim(self.id, registry.routes(), max(0, min(self._room, BATCH)), now)
        self.claims_in_flight += 1
        try:
            claims = await self._services.ledger.claim(claim, lambda task: machine.apply(task, event, now))
            for task in claims.tasks:
                self._start(task)
        finally:
            self.claims_in_flight -= 1
        return claims

    def _start(self, task: Task) -> None:
        attempt = Attempt(self._services, task, self._voice.hear, self._threads)
        self._held[task.id] = attempt
        attempt.runner = self._spawn(self._hold(attempt))

    async def _hold(self, attempt: Attempt) -> None:
        """Open the attempt, perform it, unwind what it left running, settle it."""
        CURRENT.set(attempt)
        try:
            event = await self._perform(attempt)
            attempt.is_closed = True
            await self._unwind(attempt)
            await self._settle(attempt, event)
        finally:
            self._let_go(attempt)

    async def _perform(self, attempt: Attempt) -> HolderEvent:
        try:
            if attempt.number > 1:
                attempt.open_journal(await self._services.views.steps(attempt.task_id))
            executor = self._services.registry.executor(attempt.record.input.kind)
            value = await executor.run(TaskContext(attempt))
            attempt.check()
            return attempt.succeeded(value, await self._open_children(attempt))
        except BaseException as error:  # noqa: BLE001 - whatever the code of a task raises is the task's outcome
            return attempt.conclude(error)

    async def _unwind(self, attempt: Attempt) -> None:
        """Cancel and await the asyncio tasks that the code left running; some may not want to end."""
        deadline = self._services.clock.now() + attempt.record.input.cancel_grace
        left = [task for task in attempt.tasks if not task.done()]
        while left:
            for task in left:
                task.cancel()
            done, _ = await asyncio.wait(left, timeout=0.5)
            for task in done:
                if not task.cancelled():
                    task.exception()  # retrieved, so that the loop does not complain of it
            left = [task for task in attempt.tasks if not task.done()]
            if left and (attempt.is_over or self._services.clock.now() >= deadline):
                self.abandoned += len(left)
                log.error("asyncio tasks ignore their cancellation", task=attempt.task_id, count=len(left))
                return

    async def _settle(self, attempt: Attempt, event: HolderEvent) -> None:
        """Report the end. While the store does not answer, keep trying: nobody else can, as long as this lives."""
        while True:
            try:
                if attempt.has_output:
                    await self._services.ledger.print(attempt.take_output())
                await self._services.lifecycle.move(attempt.record, event)
                return
            except Superseded:
                return
            except StoreError as error:
                log.error("the end of a task is not written yet; trying again", task=attempt.task_id, reason=str(error))
                await asyncio.sleep(0.5)

    async def _open_children(self, attempt: Attempt) -> tuple[str, ...]:
        if not attempt.journal.holds("spawn"):
            return ()
        children = await self._services.views.children(attempt.task_id)
        return tuple(child.id for child in children if not child.is_terminal and not child.input.detached)

    def _let_go(self, attempt: Attempt) -> None:
        self._voice.forget(attempt)
        if self._held.get(attempt.task_id) is attempt:
            del self._held[attempt.task_id]
        self._bell.ring()

    def _abandon(self, attempt: Attempt) -> None:
        """The record has gone on; do not wait for code that does not stop."""
        if self._held.get(attempt.task_id) is attempt:
            del self._held[attempt.task_id]
            if attempt.threads:
                self.abandoned += 1
                log.error("a thread ignores the order to stop and was abandoned", task=attempt.task_id)
            self._bell.ring()

    # --- news ----------------------------------------------------------------------------------------

    def _on_signal(self, signal: Signal) -> None:
        if signal.unknown:
            self._look_at_all = True
            self._has_follow_ups = True
            self._bell.ring()
        elif signal.ready or signal.follow_ups:
            self._has_follow_ups = self._has_follow_ups or signal.follow_ups
            self._bell.ring()
        if self._held:
            if signal.moved:
                self._stale |= signal.moved & self._held.keys()
            if (self._stale or self._look_at_all) and not self._refreshing:
                self._refreshing = True
                self._spawn(self._refresh())

    async def _refresh(self) -> None:
        """Read again what others may have written to the tasks held here."""
        try:
            while self._stale or self._look_at_all:
                ids, self._stale = self._stale & self._held.keys(), set()
                if self._look_at_all:
                    self._look_at_all = False
                    ids |= await self._moved_elsewhere()
                if not ids:
                    continue
                for task in await self._services.views.tasks(list(ids)):
                    attempt = self._held.get(task.id)
                    if attempt is not None:
                        attempt.take(task)
                        if attempt.is_over:
                            self._abandon(attempt)
        except StoreError as error:
            log.error("news could not be read", reason=str(error))
            self._look_at_all = True
        finally:
            self._refreshing = False

    async def _moved_elsewhere(self) -> set[str]:
        known = {task_id: attempt.record.core.version for task_id, attempt in self._held.items()}
        beats = {beat.task_id: beat for beat in await self._services.views.held_by(self.id)}
        return {
            task_id for task_id, version in known.items() if task_id not in beats or beats[task_id].version != version
        }

    # --- the clock, and others -----------------------------------------------------------------------

    async def _look_at_the_clock(self, claims: Claims) -> None:
        now = self._services.clock.now()
        if claims.next_deadline_at is None or claims.next_deadline_at > now:
            return
        for task in await self._services.views.overdue(now, BATCH):
            active_at = await self._services.views.active_at(task.id)
            attempt = self._held.get(task.id)
            if attempt is not None and attempt.number == task.core.attempt:
                active_at = max(active_at or 0, attempt.active_at) if attempt.touched else active_at
            try:
                await self._services.lifecycle.move(task, DeadlinePassed(active_at, random.random()))
            except OutriderError as error:
                log.warning("deadline not applied", task=task.id, reason=str(error))

    async def _look_after_others(self) -> None:
        while True:
            try:
                await self._recovery.look()
            except OutriderError as error:
                log.error("recovery failed; trying again", reason=str(error))
            await asyncio.sleep(self._services.settings.recovery_interval)

    # --- the end -------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        self._is_draining = True
        for attempt in list(self._held.values()):
            attempt.drain()
        if self._jobs:
            _, late = await asyncio.wait(self._jobs, timeout=self._services.settings.drain_timeout)
            for job in late:
                job.cancel()
            if late:
                await asyncio.wait(late, timeout=5)

    def _supersede_all(self) -> None:
        for attempt in list(self._held.values()):
            attempt.is_in_doubt = True
            attempt.supersede()

    def _is_running(self) -> bool:
        """Whether code of a task runs here; one whose end only waits to be written does no harm."""
        return any(not attempt.is_closed for attempt in self._held.values())

    def _on_lost(self) -> None:
        log.error("this worker was taken for lost; its work goes on elsewhere", worker=self.id)
        self._is_lost = True
        self._supersede_all()
        self._bell.ring()

    def _culprit(self) -> str | None:
        current = asyncio.current_task(self._loop)
        for task_id, attempt in list(self._held.items()):
            if current is attempt.runner or current in attempt.tasks:
                return task_id
        return None

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a job of the worker's own, in the worker's context, whoever's context this is called in."""
        job = self._loop.create_task(coroutine, context=self._context.copy())
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return job


def _follow_tasks(loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    """Note which asyncio tasks the code of an attempt starts, so that they can be ended with it."""
    before = loop.get_task_factory()

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> Any:
        task = before(loop, coro, **kwargs) if before is not None else asyncio.Task(coro, loop=loop, **kwargs)
        context: Context | None = kwargs.get("context")
        attempt = CURRENT.get() if context is None else context.get(CURRENT)
        if attempt is not None and isinstance(task, asyncio.Task):
            attempt.adopt(task)
        return task

    loop.set_task_factory(factory)
    return lambda: loop.set_task_factory(before)


def _earliest(*moments: int | None) -> int | None:
    return min((moment for moment in moments if moment is not None), default=None)
