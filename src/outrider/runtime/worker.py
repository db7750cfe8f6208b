"""A worker: claims what is due, runs it, reports, and looks after what others left.

The loop is `run`: claim while there is room, then wait for a signal or the next moment that matters. One task's
run is one sentence, `_hold`: open the attempt, perform it, settle it. A task that is made in this process while
nothing else waits is not queued first: it is claimed by the commit that makes it (`reserve`).
"""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from pathlib import Path
from typing import Any

from outrider.core import machine
from outrider.core.change import Change
from outrider.core.errors import Conflict, NotFound, OutriderError, Parked, StoreError, Superseded
from outrider.core.events import Claimed, DeadlinePassed, Failed, HolderEvent, Released
from outrider.core.ledger import Beat, Claim, Claims, Signal, WorkerCard, rise
from outrider.core.task import NewTask, Task, TaskError
from outrider.runtime.attempt import CURRENT, Attempt, contained
from outrider.runtime.clock import Bell
from outrider.runtime.collecting import collect_less_often
from outrider.runtime.context import TaskContext
from outrider.runtime.counting import keep_counting
from outrider.runtime.courtesy import Courtesy
from outrider.runtime.ending import see_through
from outrider.runtime.ids import new_id
from outrider.runtime.indexing import Indexing
from outrider.runtime.lease import LeaseThread, Lock, Watched, Will, boot_id, lock_path
from outrider.runtime.log import log, log_move
from outrider.runtime.pruning import Retention
from outrider.runtime.recovery import Recovery, has_journaled
from outrider.runtime.registry import Tending
from outrider.runtime.services import Services
from outrider.runtime.standing import Condition
from outrider.runtime.telemetry import Counted
from outrider.runtime.threads import Threads
from outrider.runtime.voice import Voice
from outrider.runtime.webhooks.duty import Webhooking

BATCH = 100
FOLLOW_UPS = 200
AGAIN = 2.0
"""Seconds after which what was told to end is told so again."""

STORE_PAUSE = 0.5
"""How long a store that does not answer is left alone, in seconds."""

MOST_PASSED = 10_000
"""Of how many tasks it is remembered that news passed by; of more, that it may have of any."""


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
        self._recovery = Recovery(services, self._host, locks, self.id)
        self._courtesy = Courtesy(lambda: services.lifecycle.making, self._recovery.is_served_elsewhere)
        self._tending = [each for each in services.registry.executors.values() if isinstance(each, Tending)]
        self._held: dict[str, Attempt] = {}
        self._open: set[Attempt] = set()
        """Those of the held whose code runs; the others only wait for their end to be written."""
        self._reserved = 0
        self._routes: frozenset[str] = frozenset()
        self._is_caught_up = False
        """Whether the last claim left nothing that is due, and nothing has become due since."""
        self._has_news = False
        self._is_full = False
        self._wakes_at: int | None = None
        self._stale: dict[str, int] = {}
        """Which version others have made of tasks that are held here."""
        self._passed_by: dict[str, int] = {}
        """Which version tasks were said to have while some were on their way here, and of which nobody knew yet."""
        self._passed_all = False
        self._look_at_all = False
        self._refreshing = False
        self._has_follow_ups = True
        self._is_draining = False
        self._is_lost = False
        self._ruin: StoreError | None = None
        """Why the store will never answer again."""
        self._has_gone = False
        self._is_crowded = False
        self._jobs: set[asyncio.Task[None]] = set()
        self._strays: set[Attempt] = set()
        """Let go of, and their code may still run."""
        self._claiming: asyncio.Task[Claims] | None = None
        self._context = Context()
        self._lease: LeaseThread | None = None
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
    def abandoned(self) -> int:
        """How many attempts ignored every order to stop and still run somewhere in this process."""
        return sum(attempt.is_running for attempt in tuple(self._strays))

    @property
    def condition(self) -> Condition:
        """What it is up to."""
        if self._is_lost or self._ruin is not None:
            return "lost"
        if self._is_draining or self._has_gone:
            return "draining"
        return "working" if self._services.lifecycle.starter is self else "starting"

    @property
    def lease_age(self) -> float | None:
        """Seconds since it last renewed its lease; None before it has one."""
        return None if self._lease is None else self._lease.age

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing will happen here before news comes or time passes."""
        lost_ones = {attempt.runner for attempt in self._strays}
        return (
            self._bell.is_waited_for
            and self._voice.is_silent
            and len(self._jobs - lost_ones) == len(self._held)
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
        """Work until cancelled; then drain: let steps in flight finish, hand the rest over.

        Returns by itself when others took this worker for lost; what it held goes on elsewhere. Raises a StoreError
        that is final, once all it held has been stopped.
        """
        collect_less_often()
        loop = self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._threads = Threads(self._services.settings.threads, "outrider-tool")
        self._voice = Voice(self._services)
        # The only one that can fail comes first: nothing of it would be undone.
        lock = None if self._locks is None else Lock(lock_path(self._locks, self.id))
        restore = _follow_tasks(loop)
        stop_listening = self._services.ledger.listen(self._on_signal)
        self._services.standing.worker = self
        helpers: list[asyncio.Task[None]] = []
        try:
            self._lease = await self._present_itself(lock)
            duties: list[Callable[[], Awaitable[None]]] = [
                self._voice.run,
                self._look_after_others,
                Retention(self._services, self.id).run,
                Webhooking(self._services, self.id).run,
                Indexing(self._services, self.id, lambda: self.is_idle).run,
            ]
            if not self._services.telemetry.is_silent:
                counted = Counted(lambda: len(self._held), self._services.settings.concurrency)
                duties.append(partial(keep_counting, self._services, counted))
            helpers = [loop.create_task(self._attend_to(duty)) for duty in duties]
            for executor in self._services.registry.executors.values():
                await executor.prepare()
            self._services.lifecycle.starter = self
            await self._work()
        finally:
            self._stop_starting()
            await see_through(self._leave(lock, helpers, (stop_listening, restore)))
        if self._ruin is not None:
            raise self._ruin

    async def _leave(
        self,
        lock: Lock | None,
        helpers: list[asyncio.Task[None]],
        undo: Iterable[Callable[[], object]],
    ) -> None:
        await self._drain()
        left = set(helpers)
        while left:  # again and again: one cancellation that was forgotten on its way must not hold up the end for ever
            for helper in left:
                helper.cancel()
            _, left = await asyncio.wait(left, timeout=AGAIN)
        await asyncio.gather(*helpers, return_exceptions=True)
        for each in undo:
            each()
        self._has_gone = True
        await self._sign_off(lock)
        if self._lease is not None:
            self._lease.stop()
        if self._services.standing.worker is self:
            self._services.standing.worker = None
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _present_itself(self, lock: Lock | None) -> LeaseThread:
        from outrider import __version__

        settings = self._services.settings
        card = WorkerCard(
            id=self.id,
            host=self._host,
            boot_id=boot_id(),
            pid=os.getpid(),
            started_at=self._services.clock.now(),
            routes=self._services.registry.routes(),
            version=__version__,
            concurrency=settings.concurrency,
            lost_after=settings.lease.lost,
            app_version=self._services.registry.version,
        )
        await self._services.ledger.register(card)
        watched = Watched(self._loop, self._culprit, self._is_holding, self._on_lost, self._on_end)
        lease = LeaseThread(self._services.ledger, self.id, settings, lock.path if lock else None, watched)
        lease.start()
        return lease

    async def _sign_off(self, lock: Lock | None) -> None:
        """Give back what the store still has in this worker's name, and let it forget the worker.

        Where code ignored every order to stop, nobody may start it again while it runs. The worker then stays on
        the books, and its lock held, for as long as this process lives; a will says that nobody is to blame.
        """
        is_known = True
        try:
            strays = {attempt.task_id for attempt in self._strays if attempt.is_running}
            for beat in await self._services.views.held_by(self.id):
                if beat.task_id not in strays:
                    await self._hand_back(beat)
            if strays and not self._is_lost:
                log.error("code still runs that ignores the order to stop", worker=self.id, tasks=sorted(strays))
                if lock is not None:
                    Will(None, "the worker was told to go").write(lock.path)
                return
            await self._tend(at_once=True)
            await self._services.ledger.retire(self.id)
            is_known = False
        except OutriderError as error:
            log.warning("worker could not sign off", worker=self.id, reason=str(error))
            if self._ruin is not None and lock is not None:
                with suppress(OSError):  # without a will what it held is charged a failure, and goes on all the same
                    Will(None, "the store of its worker failed").write(lock.path)
                if self.abandoned:
                    return  # as long as it runs here nobody may start it again; the lock goes with the process
        if lock is not None:
            lock.release(leaves_it=is_known)

    async def _hand_back(self, beat: Beat) -> None:
        with suppress(NotFound, Superseded, Conflict):
            journaled = await has_journaled(self._services.views, beat)
            await self._services.lifecycle.move(beat.task_id, Released(beat.attempt, journaled))

    async def _work(self) -> None:
        while not self._is_lost:
            self._wakes_at = None  # whatever deadline is set from here on, the bell rings for it
            try:
                await self._courtesy.wait()
                claims = await self._claim()
                await self._look_at_the_clock(claims)
                if self._has_follow_ups or claims.follow_ups:
                    self._has_follow_ups = await self._services.lifecycle.apply_follow_ups(FOLLOW_UPS) > 0
            except StoreError as error:
                if self._is_ruin(error):
                    return
                self._services.troubles.met("claiming", error)
                await asyncio.sleep(STORE_PAUSE)
                continue
            self._services.troubles.over("claiming")
            if self._has_follow_ups or (claims.more and self._room > 0):
                continue
            self._is_crowded = claims.more
            if claims.more:
                self._make_room()
            self._is_full = self._room <= 0
            self._wakes_at = _earliest(None if self._is_full else claims.next_due_at, claims.next_deadline_at)
            await self._bell.wait(self._wakes_at)

    @property
    def _room(self) -> int:
        return self._services.settings.concurrency - len(self._open) - self._reserved

    def _make_room(self) -> None:
        """Other work is due: whoever only waits gives its place back without the usual grace."""
        for attempt in list(self._held.values()):
            attempt.park_if_idle()

    # --- claiming and running ------------------------------------------------------------------------

    async def _claim(self) -> Claims:
        """Take what is due.

        A claim under way is not called off with the worker: it may have been committed. `_sign_off` hands back
        what it took.
        """
        now, routes = self._services.clock.now(), self._services.registry.routes()
        event = Claimed(self.id)
        claim = Claim(self.id, routes, max(0, min(self._room, BATCH)), now)
        self._routes = frozenset(routes)
        self._has_news = False
        self.claims_in_flight += 1
        try:
            due: dict[str, Task] = {}

            def decide(task: Task) -> Change:
                due[task.id] = task
                return machine.apply(task, event, now)

            taking = self._services.ledger.claim(claim, decide)
            self._claiming = self._loop.create_task(taking)
            self._claiming.add_done_callback(_take_note)
            claims = await asyncio.shield(self._claiming)
            for task in claims.tasks:
                log_move(due[task.id], task, event)
                self._services.telemetry.claimed(task, now - (due[task.id].core.due_at or now))
                self._start(task)
        finally:
            self.claims_in_flight -= 1
        self._is_caught_up = not claims.more and not self._has_news
        return claims

    def _start(self, task: Task) -> None:
        if self._is_lost:  # a commit from before has been answered late; `_sign_off` hands back what it took
            return
        attempt = Attempt(self._services, task, self._voice.hear, self._threads, lambda: self._is_crowded)
        self._held[task.id] = attempt
        self._open.add(attempt)
        attempt.runner = self._spawn(self._hold(attempt))
        if self._is_draining:
            attempt.drain()
        version = task.core.version
        passed_by = version + 1 if self._passed_all else self._passed_by.pop(task.id, version)
        if passed_by > version:
            self._stale[task.id] = passed_by
            self._refresh_soon()

    async def _hold(self, attempt: Attempt) -> None:
        """Open the attempt, perform it, unwind what it left running, settle it."""
        CURRENT.set(attempt)
        attempt.span = self._services.telemetry.attempt(attempt.record)
        try:
            event = await self._perform(attempt)
            attempt.is_closed = True
            await _take_back_cancellation(attempt.runner)
            reason = attempt.store_error
            if reason is not None and not self._is_ruin(reason) and isinstance(event, Released):
                log.error("a task is handed back: the store does not answer", task=attempt.task_id, reason=str(reason))
                await asyncio.sleep(STORE_PAUSE)  # nobody cancels this any more: the attempt is closed
            await self._unwind(attempt)
            self._leave_room(attempt)
            if not attempt.is_left:
                await self._settle(attempt, event)
        finally:
            attempt.span.end()
            self._let_go(attempt)

    async def _perform(self, attempt: Attempt) -> HolderEvent:
        try:
            if attempt.number > 1 or attempt.record.input.retry_of is not None:  # a fork begins with a journal
                attempt.open_journal(await self._services.views.steps(attempt.task_id))
            executor = self._services.registry.executor(attempt.record.input.kind)
            value = await executor.run(TaskContext(attempt))
            attempt.check()
            if attempt.has_parted:  # the code went on after `Parked`; all that it did then will be done again
                raise Parked
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
                log.error("asyncio tasks ignore their cancellation", task=attempt.task_id, count=len(left))
                return

    async def _settle(self, attempt: Attempt, event: HolderEvent) -> None:
        """Report the end. While the store does not answer, keep trying: nobody else can, as long as this lives."""
        is_last_word, printed = False, attempt.take_output()
        while True:
            try:
                settled = await self._services.lifecycle.move(attempt.record, event, page=attempt.page, printed=printed)
                attempt.span.settled(event, settled)
                return
            except (Superseded, NotFound):  # it was settled without this attempt, and maybe deleted since
                return
            except StoreError as error:
                if self._is_ruin(error):
                    return
                log.error("the end of a task is not written yet; trying again", task=attempt.task_id, reason=str(error))
                await asyncio.sleep(STORE_PAUSE)
            except Exception as error:
                if is_last_word:
                    raise
                log.exception("the end of a task cannot be written; it fails instead", task=attempt.task_id)
                problem = TaskError("exception", f"how it ended cannot be written: {type(error).__name__}")
                event, is_last_word = Failed(attempt.number, problem, retryable=False), True
                attempt.page, printed = None, []

    async def _open_children(self, attempt: Attempt) -> tuple[str, ...]:
        if not attempt.journal.holds("spawn"):
            return ()
        children = await self._services.views.children(attempt.task_id)
        return tuple(child.id for child in children if not child.is_terminal and not child.input.detached)

    def _let_go(self, attempt: Attempt) -> None:
        self._voice.forget(attempt)
        # Its context holds the attempt, which holds the runner, which holds the context: that would wait for the
        # collector, and a third of a busy worker's time went there.
        attempt.runner = None
        self._strays.discard(attempt)
        if attempt.is_running:
            self._lose(attempt)
        self._leave_room(attempt)
        if self._held.get(attempt.task_id) is attempt:
            del self._held[attempt.task_id]

    def _abandon(self, attempt: Attempt) -> None:
        """The record has gone on; do not wait for code that does not stop."""
        if self._held.get(attempt.task_id) is attempt:
            del self._held[attempt.task_id]
            self._lose(attempt)
            self._leave_room(attempt)

    def _lose(self, attempt: Attempt) -> None:
        self._strays.add(attempt)
        if attempt.give_up_threads() > 0:
            log.error("a thread ignores the order to stop and was abandoned", task=attempt.task_id)

    def _leave_room(self, attempt: Attempt) -> None:
        """Its code has ended, or nobody waits for it any more: another may run."""
        self._open.discard(attempt)
        if self._is_full or not self._is_caught_up:
            self._bell.ring()

    # --- tasks made in this process ------------------------------------------------------------------

    def reserve(self, new: NewTask) -> Claimed | None:
        """Keep a place for a task about to be made and return its claim; None when it has to queue."""
        given = new.input
        if (
            self._courtesy.leaves(given.route)
            or not self._is_caught_up
            or self._room <= 0
            or new.not_before is not None
            or given.depends_on
            or given.concurrency_key is not None
            or given.route not in self._routes
            or asyncio.get_running_loop() is not self._loop
        ):
            return None
        self._reserved += 1
        return Claimed(self.id)

    def start(self, task: Task) -> None:
        """Run a task for which a place was kept: it is made, and claimed."""
        self._reserved -= 1
        if self._has_gone:
            log.error("a task was claimed for a worker that has gone; others will find it", task=task.id)
            return
        self._services.telemetry.claimed(task, 0)
        self._start(task)

    def release(self) -> None:
        """Give up a place: its task was not made."""
        self._reserved -= 1
        self._bell.ring()

    def look_for(self, task_ids: Sequence[str]) -> None:
        """Find out what became of tasks for which places were kept: their maker has gone without waiting."""
        if task_ids:
            self._spawn(self._look_for(task_ids))

    async def _look_for(self, task_ids: Sequence[str]) -> None:
        made = await self._read_at_last(task_ids)
        self._reserved -= len(task_ids)
        for task in made:
            if task.core.worker_id == self.id and task.id not in self._held:
                self._start(task)
        self._bell.ring()

    async def _read_at_last(self, task_ids: Sequence[str]) -> Sequence[Task]:
        while True:
            try:
                await self._services.ledger.commit(())  # what was handed over before this is settled by then
                return await self._services.views.tasks(task_ids)
            except StoreError as error:
                if self._is_ruin(error):
                    return ()
                log.error("new tasks cannot be read yet; trying again", reason=str(error))
                await asyncio.sleep(STORE_PAUSE)

    def _stop_starting(self) -> None:
        if self._services.lifecycle.starter is self:
            self._services.lifecycle.starter = None

    async def _await_reserved(self) -> None:
        """See what becomes of the places that were kept: their tasks are about to be claimed in this worker's name."""
        give_up = time.monotonic() + self._services.settings.drain_timeout
        while self._reserved and time.monotonic() < give_up:  # noqa: ASYNC110 - only this ever waits for it
            await asyncio.sleep(0.005)

    # --- news ----------------------------------------------------------------------------------------

    def _on_signal(self, signal: Signal) -> None:
        self._note_what_passes(signal)
        self._courtesy.hear(signal)
        if signal.unknown:
            self._recovery.heard()
            self._look_at_all = True
            self._has_follow_ups = self._has_news = True
            self._is_caught_up = False
            self._bell.ring()
        elif signal.ready or signal.follow_ups:
            if signal.ready:
                self._has_news, self._is_caught_up = True, False
            self._has_follow_ups = self._has_follow_ups or signal.follow_ups
            self._bell.ring()
        elif signal.deadline_at is not None and (self._wakes_at is None or signal.deadline_at < self._wakes_at):
            self._bell.ring()
        if self._held:
            rise(self._stale, {id: version for id, version in signal.moved.items() if self._is_older(id, version)})
            if self._stale or self._look_at_all:
                self._refresh_soon()

    def _note_what_passes(self, signal: Signal) -> None:
        """Remember of which tasks there was news while some are on their way here: they are not held yet."""
        if not (self.claims_in_flight or self._reserved):
            self._passed_by.clear()
            self._passed_all = False
            return
        rise(self._passed_by, signal.moved)
        if signal.unknown or len(self._passed_by) > MOST_PASSED:
            self._passed_by.clear()
            self._passed_all = True

    def _refresh_soon(self) -> None:
        if not self._refreshing:
            self._refreshing = True
            self._spawn(self._refresh())

    async def _refresh(self) -> None:
        """Read again what others may have written to the tasks held here."""
        try:
            while self._stale or self._look_at_all:
                stale, self._stale = self._stale, {}
                ids = {id for id, version in stale.items() if self._is_older(id, version)}
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
            if not self._is_ruin(error):
                log.error("news could not be read", reason=str(error))
                self._look_at_all = True
        finally:
            self._refreshing = False

    def _is_older(self, task_id: str, version: int) -> bool:
        """Whether a task is held here, and what is known of it is older than that."""
        attempt = self._held.get(task_id)
        return attempt is not None and attempt.record.core.version < version

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
                active_at = max(active_at or 0, attempt.active_at)  # what it said last may not be stored yet
            try:
                await self._services.lifecycle.move(task, DeadlinePassed(active_at))
            except OutriderError as error:
                log.warning("deadline not applied", task=task.id, reason=str(error))

    async def _attend_to(self, duty: Callable[[], Awaitable[None]]) -> None:
        """Do a duty until it says that it is over; what nobody foresaw does not end it."""
        while True:
            try:
                return await duty()
            except Exception:  # noqa: BLE001 - lost work would stay lost, and nobody would see that nobody looks
                log.exception("a duty of this worker broke; it begins anew", worker=self.id)
            await asyncio.sleep(STORE_PAUSE)

    async def _look_after_others(self) -> None:
        while True:
            try:
                await self._recovery.look()
                await self._tend()
                self._services.troubles.over("recovery")
            except OutriderError as error:
                if self._is_ruin(error):
                    return
                self._services.troubles.met("recovery", error)
            await asyncio.sleep(self._recovery.pause)

    async def _tend(self, *, at_once: bool = False) -> None:
        for executor in self._tending:
            await executor.tend(self._services, at_once=at_once)

    # --- the end -------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        self._is_draining = True
        if self._claiming is not None:
            # A commit in doubt lasts as long as the outage does. What it took is found by others, should it be there.
            await asyncio.wait([self._claiming], timeout=self._services.settings.drain_timeout)
        await self._await_reserved()
        for attempt in list(self._held.values()):
            attempt.drain()
        if self._jobs:
            _, late = await asyncio.wait(self._jobs, timeout=self._services.settings.drain_timeout)
            for job in late:
                job.cancel()
            if late:
                await asyncio.wait(late, timeout=self._services.settings.drain_grace)
        for attempt in list(self._held.values()):
            attempt.is_left = True
            attempt.supersede()
            self._abandon(attempt)
        if self._is_lost:
            await self._outlive_strays()

    async def _outlive_strays(self) -> None:
        """What this worker held runs elsewhere by now. The lease thread ends the process if it runs here as well."""
        lease = self._services.settings.lease
        give_up = time.monotonic() + 2 * (lease.end - lease.cancel)
        while self.abandoned and time.monotonic() < give_up:  # noqa: ASYNC110 - a thread's end rings no bell here
            await asyncio.sleep(0.02)

    def _is_holding(self) -> bool:
        """Whether code of a task runs here; one whose end only waits to be written does no harm."""
        return self.abandoned > 0 or any(not attempt.is_closed for attempt in tuple(self._held.values()))

    def _is_ruin(self, error: BaseException) -> bool:
        """Whether the store will never answer again. Then all work stops: nothing it does could be written any more."""
        if not isinstance(error, StoreError) or not error.is_final:
            return False
        if self._ruin is None:
            self._ruin = error
            log.error("the store has failed for good; stopping all work", worker=self.id, reason=str(error))
            self._stop_holding()
        return True

    def _on_lost(self) -> None:
        if self._has_gone:  # it signed off itself, between two beats
            return
        log.error("this worker counts as lost; its work goes on elsewhere", worker=self.id)
        self._services.telemetry.lease_lost()
        self._stop_holding()

    def _stop_holding(self) -> None:
        self._is_lost = True
        self._stop_starting()
        for attempt in list(self._held.values()):
            attempt.is_in_doubt = True
            attempt.supersede()
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


async def keep_working(
    services: Services, *, locks: Path | None, host: str | None = None, on_end: Callable[[int], None] = os._exit
) -> None:
    """Work until cancelled. A worker that was taken for lost, after a stop or an outage, is followed by a new one.

    Raises the StoreError after which the store answers no more.
    """
    services.standing.is_wanted = True
    while True:
        worker = Worker(services, locks=locks, host=host, on_end=on_end)
        try:
            await worker.run()
        except Exception as error:  # whatever broke it, somebody has to go on with the work
            if isinstance(error, StoreError) and error.is_final:
                raise
            log.error("the worker broke; going on with another", worker=worker.id, exc_info=error)
            await asyncio.sleep(STORE_PAUSE)


def _follow_tasks(loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    """Note which asyncio tasks the code of an attempt starts, so that they can be ended with it.

    One factory for all workers of a loop; it goes when the last of them does.
    """
    factory = loop.get_task_factory()
    if not isinstance(factory, _Following):
        factory = _Following(loop, factory)
        loop.set_task_factory(factory)
    factory.users += 1
    return factory.leave


class _Following:
    """A task factory that notes whose code starts a task."""

    def __init__(self, loop: asyncio.AbstractEventLoop, before: Any) -> None:
        self._loop = loop
        self._before = before
        self.users = 0

    def __call__(self, loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> Any:
        context: Context | None = kwargs.get("context")
        attempt = CURRENT.get() if context is None else context.get(CURRENT)
        if attempt is not None and inspect.iscoroutine(coro):
            coro = contained(coro)
        before = self._before
        task = asyncio.Task(coro, loop=loop, **kwargs) if before is None else before(loop, coro, **kwargs)
        if attempt is not None and isinstance(task, asyncio.Task):
            attempt.adopt(task)
        return task

    def leave(self) -> None:
        """One worker fewer."""
        self.users -= 1
        if self.users == 0 and self._loop.get_task_factory() is self:
            self._loop.set_task_factory(self._before)


def _take_note(job: asyncio.Task[Any]) -> None:
    """Have seen how it ended: whoever waited for it may have gone."""
    if not job.cancelled():
        job.exception()


async def _take_back_cancellation(runner: asyncio.Task[None] | None) -> None:
    """Let a cancellation that was aimed at the code of a task, and came too late for its runner, go by."""
    if runner is not None and runner.cancelling():
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)


def _earliest(*moments: int | None) -> int | None:
    return min((moment for moment in moments if moment is not None), default=None)
