"""The one loop by which a task is written: read, decide, commit, and again if somebody else was first.

Everybody who moves a task comes through `Lifecycle`: the façade, the context of a running task, the worker and
its duties. A caller that already holds the newest record passes it and saves the read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Protocol, assert_never

from outrider.core import machine
from outrider.core.change import Change, Heritage, InboxEntry, OutputChunk, Page
from outrider.core.errors import (
    IdempotencyConflict,
    IllegalMove,
    NotFound,
    Outdated,
    OutriderError,
    SessionClosed,
    Superseded,
    TaskFinished,
)
from outrider.core.events import Claimed, Debounced, Event, Rung, Step
from outrider.core.ledger import (
    Barred,
    Committed,
    Existing,
    Fenced,
    Ledger,
    NoSession,
    PendingFollowUp,
    Settled,
    Shut,
    Stale,
    Verdict,
    Views,
)
from outrider.core.task import NewTask, Task
from outrider.core.values import Instant, evolve
from outrider.runtime import turns
from outrider.runtime.clock import Clock
from outrider.runtime.log import log_move
from outrider.runtime.telemetry import Telemetry


class Starter(Protocol):
    """A worker of this process. What it would take next anyway, it takes with the very commit that makes it."""

    def reserve(self, new: NewTask) -> Claimed | None:
        """Keep a place for a task about to be made and return its claim; None when it has to queue."""
        ...

    def start(self, task: Task) -> None:
        """Run a task for which a place was kept: it is made, and claimed."""
        ...

    def release(self) -> None:
        """Give up a place: its task was not made."""
        ...

    def look_for(self, task_ids: Sequence[str]) -> None:
        """Find out what became of tasks for which places were kept: their maker has gone without waiting."""
        ...


class Lifecycle:
    """Creates and moves tasks."""

    def __init__(self, ledger: Ledger, clock: Clock, telemetry: Telemetry) -> None:
        self._ledger = ledger
        self._clock = clock
        self._telemetry = telemetry
        self._of: Lifecycle | None = None
        self._starter: Starter | None = None
        self._making = 0

    def over(self, ledger: Ledger) -> Lifecycle:
        """The same over a part of its store: for what clients do there. Duties are done in all of it."""
        part = Lifecycle(ledger, self._clock, self._telemetry)
        part._of = self._of or self
        return part

    @property
    def starter(self) -> Starter | None:
        """Who may take new tasks at once, if there is a worker here."""
        return self._starter if self._of is None else self._of.starter

    @starter.setter
    def starter(self, starter: Starter | None) -> None:
        self._starter = starter

    @property
    def making(self) -> int:
        """How many tasks are on their way into the store from this process."""
        return self._making if self._of is None else self._of.making

    @property
    def views(self) -> Views:
        """The reading half of the store."""
        return self._ledger.views

    def now(self) -> Instant:
        """The present moment."""
        return self._clock.now()

    async def create(
        self,
        new: Sequence[NewTask],
        steps: tuple[Step, ...] = (),
        *,
        inbox: tuple[InboxEntry, ...] = (),
        settles: Sequence[int] = (),
    ) -> Sequence[Committed | Existing]:
        """Create tasks, each whole or not at all; one that exists already is returned as it stands or was changed to.

        For a single new task: `steps` are journal rows of the task that spawns it, `inbox` is what comes into its
        session's with it, and `settles` names the follow-ups that it answers, which stay where it exists already. What
        brings something along for the inbox comes from outside, whoever makes it: a closed session does not take it.
        Raises NotFound for an unknown session, SessionClosed for a closed one, in which only its own tasks make more,
        Superseded when the spawning attempt is over.
        """
        whole = self._of or self
        whole._making += len(new)
        try:
            return await self._make(new, steps, inbox, settles)
        finally:
            whole._making -= len(new)

    async def _make(
        self, new: Sequence[NewTask], steps: tuple[Step, ...], inbox: tuple[InboxEntry, ...], settles: Sequence[int]
    ) -> Sequence[Committed | Existing]:
        now, starter = self._clock.now(), self.starter
        if not self._telemetry.is_silent:
            new = [self._telemetry.stamp(each) for each in new]
        claims = [None if starter is None else starter.reserve(each) for each in new]
        changes = [machine.create(each, now, claim, inbox) for each, claim in zip(new, claims, strict=True)]
        if steps:
            changes = [evolve(change, steps=steps, needs_open=bool(inbox)) for change in changes]
        try:
            answers = _answers(changes[0].task, settles) if settles else ()
            verdicts = (await self._commit([*changes, *answers]))[: len(changes)]
        except BaseException:
            if starter is not None:
                starter.look_for([change.task.id for change in changes if change.task.core.is_held])
            raise
        if starter is not None:
            _start(starter, changes, verdicts)
        return [await self._created(each, verdict, steps, inbox) for each, verdict in zip(new, verdicts, strict=True)]

    async def _created(
        self, new: NewTask, verdict: Verdict, steps: tuple[Step, ...], inbox: tuple[InboxEntry, ...] = ()
    ) -> Committed | Existing:
        """What became of a task to be; one that may not start at once is made to wait in the queue."""
        while True:
            match verdict:
                case Committed():
                    log_move(None, verdict.task, None)
                    self._telemetry.created(verdict.task)
                    return verdict
                case Existing():
                    debounced = await self._debounce(new, verdict.task)
                    if debounced is not None:
                        return debounced
                case NoSession():
                    raise NotFound.of("session", verdict.session_id)
                case Shut():
                    raise SessionClosed.of(verdict.session_id)
                case Fenced():
                    raise Superseded(verdict.task_id, verdict.attempt)
                case Barred():
                    pass
                case Stale() | Settled():
                    raise AssertionError(f"a creation cannot be {verdict}")
                case _:
                    assert_never(verdict)
            change = machine.create(new, self._clock.now(), inbox=inbox)
            (verdict,) = await self._commit([evolve(change, steps=steps, needs_open=bool(inbox)) if steps else change])

    async def _debounce(self, new: NewTask, there: Task) -> Committed | Existing | None:
        """Change the task that stands for this one until it starts; None when it just has.

        A task of that id or idempotency key is no such task: it is there, as it stands. Raises IdempotencyConflict
        for one of another kind or tool.
        """
        asked, given = new.input, there.input
        is_same = new.id == there.id or (asked.idempotency_key and asked.idempotency_key == given.idempotency_key)
        if is_same or asked.debounce_key is None:
            return Existing(there)
        if (asked.kind, asked.route) != (given.kind, given.route):
            raise IdempotencyConflict(
                f"debounce key {asked.debounce_key!r} stands for another task: {there.id}",
                details={"task_id": there.id},
            )
        try:
            return Committed(await self.move(there, Debounced(asked.spec, new.not_before or self._clock.now())))
        except (NotFound, TaskFinished, IllegalMove):
            return None

    async def fork(self, new: NewTask, heritage: Heritage) -> Task:
        """Create a task with what it has of another one's past, in one transaction. Raises NotFound."""
        (verdict,) = await self._ledger.commit([machine.fork(new, heritage, self._clock.now())])
        return (await self._created(new, verdict, ())).task

    async def move(
        self,
        task: Task | str,
        event: Event,
        *,
        settles: int | None = None,
        steps: tuple[Step, ...] = (),
        page: Page | None = None,
        printed: Sequence[OutputChunk] = (),
        if_version: int | Collection[int] | None = None,
    ) -> Task:
        """Apply an event to a task and commit what comes of it; return the record as it then stands.

        `page` is the iteration that the holder of the task ends with, `printed` what it had not written yet. Raises
        NotFound, whatever the reducer refuses with, and Outdated for a task that has no version of `if_version`.
        """
        current = await self._read(task) if isinstance(task, str) else task
        versions = {if_version} if isinstance(if_version, int) else if_version
        while True:
            if versions is not None and current.core.version not in versions:
                named = " or ".join(str(each) for each in sorted(versions))
                raise Outdated(
                    f"{current.id} has moved on: it has version {current.core.version} now, and not {named:.200}",
                    details={"version": current.core.version},
                )
            change = self._decide(current, event, settles, steps)
            if change is None:
                return current
            if page is not None or printed:
                change = evolve(change, page=page, printed=tuple(printed))
            (verdict,) = await self._commit([change])
            match verdict:
                case Committed():
                    self._tell(current, verdict.task, event)
                    return verdict.task
                case Stale(current=None):
                    raise NotFound.of("task", current.id)
                case Stale():
                    assert verdict.current is not None
                    current = verdict.current
                case Settled():
                    return current
                case Fenced():
                    raise Superseded(verdict.task_id, verdict.attempt)
                case Shut():
                    raise SessionClosed.of(verdict.session_id)
                case Existing() | NoSession() | Barred():
                    raise AssertionError(f"a transition cannot be {verdict}")
                case _:
                    assert_never(verdict)

    async def move_many(self, tasks: Sequence[Task], event: Event) -> list[Task]:
        """Apply one event to many tasks, in one commit where nobody is first; those that refuse it stay as they are.

        Returns the records as they then stand, in the same order; a task that is gone is left out.
        """
        changes: dict[str, Change] = {}
        found = {task.id: task for task in tasks}
        for task in found.values():
            with suppress(OutriderError):
                change = self._decide(task, event, None, ())
                if change is not None:
                    changes[task.id] = change
        for verdict, task_id in zip(await self._commit(list(changes.values())), changes, strict=True):
            match verdict:
                case Committed():
                    self._tell(found[task_id], verdict.task, event)
                    found[task_id] = verdict.task
                case Stale(current=Task() as current):
                    found[task_id] = current
                    with suppress(OutriderError):
                        found[task_id] = await self.move(current, event)
                case _:
                    del found[task_id]
        return list(found.values())

    async def apply_follow_ups(self, limit: int = 200, task_ids: Sequence[str] | None = None) -> int:
        """Apply follow-ups that wait; return how many there were. Safe to run in many processes at once."""
        if self._of is not None:
            return await self._of.apply_follow_ups(limit, task_ids)
        pending = await self._ledger.views.follow_ups(limit, task_ids)
        if not pending:
            return 0
        await self._answer_rings(pending)
        count, pending = len(pending), [each for each in pending if not isinstance(each.event, Rung)]
        if not pending:
            return count
        records = {task.id: task for task in await self._ledger.views.tasks(list({each.task_id for each in pending}))}
        by_task: dict[str, list[PendingFollowUp]] = {}
        for each in pending:
            by_task.setdefault(each.task_id, []).append(each)
        for rank in range(max(len(group) for group in by_task.values())):
            await self._apply_round([group[rank] for group in by_task.values() if rank < len(group)], records)
        return count

    async def _answer_rings(self, pending: Sequence[PendingFollowUp]) -> None:
        rings: dict[str, list[int]] = {}
        for each in pending:
            if isinstance(each.event, Rung):
                rings.setdefault(each.event.session_id, []).append(each.id)
        if rings:
            await asyncio.gather(*(turns.answer_rings(self, id, rings[id]) for id in rings))

    async def settle(self, task: Task, change: Change | None, follow_ups: Sequence[int]) -> None:
        """Commit a Change of a task, or none, that answers all of these follow-ups; nothing where it has moved on."""
        after, left = task, list(follow_ups)
        if change is not None and not change.is_noop:
            # By itself: what another one made of the record meanwhile may have the version that this one would have
            # had, and the follow-ups would be settled by it, and lost.
            (verdict,) = await self._commit([evolve(change, settles=left.pop(0) if left else None)])
            if not isinstance(verdict, Committed):
                return
            after = verdict.task
            self._tell(task, after, Rung(task.session_id))
        if left:
            await self._commit(_answers(after, left))

    async def forget(self, ids: Sequence[str]) -> None:
        """Delete the follow-ups of what is gone."""
        await self._ledger.prune(ids)

    async def _apply_round(self, pending: Sequence[PendingFollowUp], records: dict[str, Task]) -> None:
        """At most one follow-up of each task, all in one commit; those that lost a race are done singly."""
        changes: list[Change] = []
        events: list[PendingFollowUp] = []
        gone: list[str] = []
        for each in pending:
            task = records.get(each.task_id)
            if task is None:
                gone.append(each.task_id)
                continue
            change = self._decide(task, each.event, each.id, ())
            if change is not None:
                changes.append(change)
                events.append(each)
        for each, verdict in zip(events, await self._commit(changes) if changes else (), strict=True):
            match verdict:
                case Committed():
                    self._tell(records[each.task_id], verdict.task, each.event)
                    records[each.task_id] = verdict.task
                case Stale(current=Task() as current):
                    try:
                        records[each.task_id] = await self.move(current, each.event, settles=each.id)
                    except NotFound:
                        gone.append(each.task_id)
                case Stale(current=None):
                    gone.append(each.task_id)
                case _:
                    pass
        if gone:  # what waits for a task that was deleted waits for nobody
            await self.forget(gone)

    async def _commit(self, changes: Sequence[Change]) -> Sequence[Verdict]:
        if self._telemetry.is_silent:
            return await self._ledger.commit(changes)
        began = time.perf_counter()
        verdicts = await self._ledger.commit(changes)
        self._telemetry.committed(time.perf_counter() - began)
        return verdicts

    def _tell(self, before: Task, after: Task, event: Event) -> None:
        """Tell of a transition, unless only a follow-up was settled that had no meaning any more."""
        if after.core.version != before.core.version:
            log_move(before, after, event)
            self._telemetry.moved(before, after, event)

    def _decide(self, task: Task, event: Event, settles: int | None, steps: tuple[Step, ...]) -> Change | None:
        """The reducer's Change, None when there is nothing to write at all."""
        try:
            change = machine.apply(task, event, self._clock.now())
        except OutriderError:
            if settles is None:
                raise
            # A follow-up that has no meaning any more is answered by doing nothing.
            change = Change(task, before=task.core.version, is_noop=True)
        if change.is_noop and settles is None:
            return None
        if steps:
            change = evolve(change, steps=(*change.steps, *steps))
        return change if settles is None else evolve(change, settles=settles)

    async def _read(self, task_id: str) -> Task:
        task = await self._ledger.views.task(task_id)
        if task is None:
            raise NotFound.of("task", task_id)
        return task


def _answers(task: Task, follow_ups: Sequence[int]) -> list[Change]:
    """Changes that do nothing but settle these follow-ups, of a record that stands once what comes before is done."""
    return [Change(task, before=task.core.version, is_noop=True, settles=each) for each in follow_ups]


def _start(starter: Starter, changes: Sequence[Change], verdicts: Sequence[Verdict]) -> None:
    for change, verdict in zip(changes, verdicts, strict=True):
        if change.task.core.is_held:
            if isinstance(verdict, Committed):
                starter.start(verdict.task)
            else:
                starter.release()
