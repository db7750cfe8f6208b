"""Deleting: a task, a session with all in it, what ended long ago; and the duty of workers that does the last.

Every deletion goes in transactions of a bounded size, one after the other, the innermost first: whoever is stopped
halfway leaves whole tasks behind, and doing it again finishes it. What lives is never deleted, only refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass

from outrider.core.errors import InvalidArguments, NotEnded, NotFound, OutriderError
from outrider.core.ledger import FileMark, Pruned, TaskFilter
from outrider.core.session import Session
from outrider.core.task import LIVE_STATES, TERMINAL, State, Task
from outrider.core.values import SECOND, Instant, Span, evolve
from outrider.runtime.log import log
from outrider.runtime.retention import PIN, POLICY, Pins, Policy, drop, every
from outrider.runtime.services import Services
from outrider.runtime.webhooks.stored import mark_erased

SHARE = 0.05
"""How much of a store's time the duty takes at most: after a batch it rests for as long as makes that."""

SHARES_BEHIND = ((2, 1.0), (5, 0.5), (10, 0.25))
"""The same where that is not enough: where something was kept a half, a fifth, or a tenth longer than it should be."""

TROUBLE = "deletion of old tasks"

JUMP: Span = 3600 * SECOND
"""By how much the clock may get ahead of the time that has passed before it is doubted."""

BELIEVED: Span = 86_400 * SECOND
"""After how long it is believed all the same."""

LOOK_ANEW: Span = 600 * SECOND
"""After how long it is looked again at what was passed over: it may not be pinned any more."""

PAGE = 1000
SESSIONS = 100
"""How many sessions are looked at together, whether they are to be archived."""

MANY = 1_000_000
"""More than which nobody counts."""


async def delete_task(services: Services, task: Task) -> int:
    """Delete an ended task, and the sessions that it opened; return how many tasks went. Raises NotEnded."""
    live = [task] if not task.is_terminal else await _live_below(services, task)
    if live:
        what = f"{task.id} is {task.state}" if live == [task] else f"tasks below {task.id} live"
        raise NotEnded.of(what, [each.id for each in live], "deleted")
    return sum([gone async for gone in _prune(services, [task.id])])


async def delete_session(
    services: Services, session: Session, *, files: Collection[FileMark] | None = None
) -> AsyncIterator[int]:
    """Delete a session and the sessions below it, with all in them; yield how many tasks went with each batch.

    Raises NotEnded where a task lives, one made meanwhile included. Where `files` are given, also if one of the
    sessions has a file of its own that is not among them: that one stays, and so do those above it.
    """
    while True:
        live = await live_in(services, session)
        if live:
            raise NotEnded.of(f"tasks of {session.id} live", [each.id for each in live], "deleted")
        async for gone in _empty(services, session.id, files):
            yield gone
        pruned = await services.ledger.prune([], [session.id], files=files)
        there = None if pruned.session_ids else await services.views.session(session.id)
        if there is None:
            await _unpin(services, [session.id])
            return
        if there.created_at != session.created_at:  # somebody else deleted it, and this is another one of its id
            return
        if files is not None:
            raise NotEnded(f"a file has just come into {session.id}")


async def live_in(services: Services, session: Session) -> list[Task]:
    """The tasks of a session, and of those below it, that have not ended."""
    return [task for task, above in await _live_of_tree(services, session) if session.id in {each.id for each in above}]


async def prune_ended(
    services: Services,
    before: Instant,
    *,
    states: tuple[State, ...] | None = None,
    organization_id: str | None = None,
    session_id: str | None = None,
    kind: str | None = None,
) -> AsyncIterator[Pruned]:
    """Delete the tasks that ended before a moment and are not pinned, a batch a transaction; yield what went."""
    _check_ended(states)
    pins, since = await Pins.of(services.whole.views), 0
    while True:
        ids = await services.views.ended(
            before,
            services.settings.retention_batch,
            since=since,
            states=states,
            organization_id=organization_id,
            session_id=session_id,
            kind=kind,
        )
        if not ids:
            return
        free = await pins.without(ids)
        if free:
            pruned = await services.ledger.prune(free, now=services.clock.now())
            await _unpin(services, (*pruned.task_ids, *pruned.session_ids))
            yield pruned
        elif len(ids) < services.settings.retention_batch:
            return
        else:
            since = await _after(services, ids)


async def _after(services: Services, ids: Sequence[str]) -> Instant:
    """From when on there may be others than these, which all have to stay."""
    ends = [task.core.finished_at or 0 for task in await services.views.tasks(ids)]
    return max(ends, default=0) + 1


@dataclass(frozen=True, slots=True)
class _Looked:
    """Up to where the ended tasks of an organization were looked through, by which policy, and since when."""

    policy: Policy
    but_of: tuple[str, ...]
    since: Span
    upto: Instant = 0

    def holds(self, policy: Policy, but_of: tuple[str, ...], passed: Span) -> bool:
        return policy == self.policy and but_of == self.but_of and passed - self.since < LOOK_ANEW


async def count_ended(
    services: Services,
    before: Instant,
    *,
    states: tuple[State, ...] | None = None,
    organization_id: str | None = None,
    session_id: str | None = None,
    kind: str | None = None,
) -> int:
    """How many `prune_ended` would delete, as far as anybody counts."""
    _check_ended(states)
    ids = await services.views.ended(
        before, MANY, states=states, organization_id=organization_id, session_id=session_id, kind=kind
    )
    return len(ids)


def _check_ended(states: tuple[State, ...] | None) -> None:
    for state in states or ():
        if state not in TERMINAL:
            raise InvalidArguments(f"tasks that are {state} live, and are not pruned; cancel them first")


async def is_on_duty(services: Services, worker_id: str) -> bool:
    """Whether a worker is the one that has been there longest: it does what one does for all."""
    return min((each.card.id for each in await services.views.workers()), default="") == worker_id


class Retention:
    """The duty of a worker: delete what ended longer ago than the policy of its organization keeps it.

    Of all the workers the one that has been there longest does it, so that they do not get in each other's way.
    """

    def __init__(self, services: Services, own_id: str) -> None:
        self._services = services
        self._own_id = own_id
        self._ahead = self._measure()
        self._doubts_since: Span | None = None
        self._looked: dict[str | None, _Looked] = {}
        self._pins = Pins(services.views, set())
        self._archived: dict[str, str | None] = {}
        """Up to which session it has looked through those of an organization."""

    async def run(self) -> None:
        """Do it for ever."""
        while True:
            rest = self._services.settings.retention_interval
            try:
                if self.trusts_the_clock() and await is_on_duty(self._services, self._own_id):
                    rest = await self.look()
                    self._services.troubles.over(TROUBLE)
            except OutriderError as error:
                self._services.troubles.met(TROUBLE, error)
            await asyncio.sleep(rest)

    def trusts_the_clock(self) -> bool:
        """Whether the clock has gone as time has passed since this worker began: what a clock that was set wrong takes
        for old would be gone for good. A difference that has stood for a day is the truth.
        """
        ahead, now = self._measure(), self._services.clock.passed()
        if ahead - self._ahead <= JUMP:
            self._doubts_since = None
            return True
        if self._doubts_since is None:
            self._doubts_since = now
            jumped = round((ahead - self._ahead) / SECOND)
            log.warning("the clock jumped ahead; nothing old is deleted for a day, or until it is set back", by=jumped)
        if now - self._doubts_since < BELIEVED:
            return False
        self._ahead, self._doubts_since = ahead, None
        return True

    def _measure(self) -> int:
        """How far the clock is ahead of the time that has passed, in microseconds."""
        return self._services.clock.now() - self._services.clock.passed()

    async def look(self) -> float:
        """Delete one batch of each organization that has more than it keeps; return how long to rest."""
        rest = self._services.settings.retention_interval
        own = {each.id: Policy.of(each) for each in await every(self._services.views, POLICY)}
        self._pins = await Pins.of(self._services.views)
        for organization_id, policy in own.items():
            enforce = self._archive if policy.archives else self._enforce
            try:
                rest = min(rest, await enforce(policy, organization_id))
            except OutriderError as error:  # the others' turn comes all the same
                log.error("a policy could not be enforced", organization=organization_id, reason=error.message)
        age = self._services.settings.retention
        everybody_elses = Policy(None if age is None else round(age * SECOND))
        return min(rest, await self._enforce(everybody_elses, None, tuple(own)))

    async def _enforce(self, policy: Policy, organization_id: str | None, but_of: tuple[str, ...] = ()) -> float:
        services, began = self._services, time.monotonic()
        interval, batch = services.settings.retention_interval, services.settings.retention_batch
        before = await self._keeps_from(policy, organization_id)
        if before is None:
            return interval
        looked = self._looked.get(organization_id)
        if looked is None or not looked.holds(policy, but_of, services.clock.passed()):
            looked = _Looked(policy, but_of, services.clock.passed())
        ids = await services.views.ended(
            before, batch, since=looked.upto, organization_id=organization_id, but_of=but_of
        )
        free = await self._pins.without(ids)
        if not free:
            is_all = len(ids) < batch
            self._looked[organization_id] = evolve(looked, upto=before if is_all else await _after(services, ids))
            return interval if is_all else 0.0
        pruned = await services.ledger.prune(free, now=services.clock.now())
        await _unpin(services, (*pruned.task_ids, *pruned.session_ids))
        took = time.monotonic() - began
        log.info("old tasks deleted", tasks=len(pruned.task_ids), sessions=len(pruned.session_ids))
        if len(ids) < batch and not pruned.rest:
            self._looked[organization_id] = evolve(looked, upto=before)  # what is left before this moment is pinned
            return interval
        return took * (1 / await self.share(services.clock.now() - before, organization_id, but_of) - 1)

    async def _archive(self, policy: Policy, organization_id: str) -> float:
        """Archive those of a page of an organization's sessions in which nothing has happened for long."""
        from outrider.runtime.archive import Archive, place_of

        services, began = self._services, time.monotonic()
        interval = services.settings.retention_interval
        if place_of(services) is None or policy.age is None:
            return interval
        after = self._archived.get(organization_id)
        page = await services.views.sessions(organization_id=organization_id, after=after, limit=SESSIONS)
        before = services.clock.now() - policy.age
        self._archived[organization_id] = page[-1].id if page else None
        for session in page:
            is_idle = session.parent_task_id is None and session.updated_at < before
            if not is_idle or session.id in self._pins.above:
                continue
            try:
                if await is_idle_below(services, session, before):
                    await Archive(services).store(session.id, by="retention")
            except (NotEnded, NotFound):
                continue
            except OutriderError as error:
                log.error("a session could not be archived", session=session.id, reason=error.message)
        return interval if not page else (time.monotonic() - began) * (1 / SHARE - 1)

    async def _keeps_from(self, policy: Policy, organization_id: str | None) -> Instant | None:
        """The moment before which what ended goes; None where all is kept."""
        moments = [] if policy.age is None else [self._services.clock.now() - policy.age]
        if policy.count is not None and organization_id is not None:
            newest = 0 if policy.count == 0 else policy.count - 1
            first = await self._services.views.newest_ended(organization_id, newest)
            if first is not None:
                moments.append(first + (policy.count == 0))
        return max(moments, default=None)

    async def share(self, kept: Span, organization_id: str | None = None, but_of: Sequence[str] = ()) -> float:
        """How much of the time may go to it now: more where it has fallen behind, or the store would grow."""
        for part, share in SHARES_BEHIND:
            before = self._services.clock.now() - kept - kept // part
            if await self._services.views.ended(before, 1, organization_id=organization_id, but_of=but_of):
                return share
        return SHARE


async def sessions_below(services: Services, session: Session) -> list[Session]:
    """A session and those that its tasks opened, and so on down, as they are now; none where it is gone."""
    own = await services.views.session(session.id)
    found, left = ([], []) if own is None else ([own], [own])
    while left:
        page = TaskFilter(session_id=left.pop(0).id, limit=PAGE, newest_first=False)
        while tasks := await services.views.list_tasks(page):
            opened = await services.views.child_sessions([task.id for task in tasks])
            found += opened
            left += opened
            page = evolve(page, after=tasks[-1].id)
    return found


async def is_idle_below(services: Services, session: Session, before: Instant) -> bool:
    """Whether nothing has happened since then in a session and those below it."""
    return all(each.updated_at < before for each in await sessions_below(services, session))


async def _empty(services: Services, session_id: str, files: Collection[FileMark] | None = None) -> AsyncIterator[int]:
    """Delete the ended tasks of a session, and the sessions that they opened; yield how many went with each batch."""
    page = TaskFilter(
        session_id=session_id, states=tuple(TERMINAL), limit=services.settings.retention_batch, newest_first=False
    )
    while tasks := await services.views.list_tasks(page):
        async for gone in _prune(services, [task.id for task in tasks], files):
            yield gone


async def _prune(
    services: Services, task_ids: Sequence[str], files: Collection[FileMark] | None = None
) -> AsyncIterator[int]:
    """Delete ended tasks, in the order given, after what is in the sessions that they opened; yield how many went."""
    opened = await services.views.child_sessions(task_ids)
    for session in opened:
        async for gone in _empty(services, session.id, files):
            yield gone
    await mark_erased(services.whole.ledger, task_ids, services.clock.now())
    left = task_ids
    while left:
        pruned = await services.ledger.prune(left, now=services.clock.now(), files=files)
        await _unpin(services, (*pruned.task_ids, *pruned.session_ids))
        yield len(pruned.task_ids)
        left = pruned.rest
    if files is not None:
        for session in opened:
            if await services.views.session(session.id) is not None:
                raise NotEnded(f"a file has just come into {session.id}")


async def _unpin(services: Services, gone: Collection[str]) -> None:
    """Drop the pins of what is gone: its ids are free, and another organization's task may get one of them."""
    if not gone:
        return
    whole = services.whole  # a key of one session sees no pins, and deletes what has one all the same
    for id in {each.id for each in await every(whole.views, PIN)}.intersection(gone):
        await drop(whole, PIN, id)


async def _live_below(services: Services, task: Task) -> list[Task]:
    """The live tasks in the sessions that a task opened, and below those."""
    own = await services.views.session(task.session_id)
    if own is None:
        raise NotFound.of("session", task.session_id)
    found = await _live_of_tree(services, own)
    return [each for each, above in found if task.id in {session.parent_task_id for session in above}]


async def _live_of_tree(services: Services, session: Session) -> list[tuple[Task, list[Session]]]:
    """The live tasks of a delegation tree, each with its session and those above that."""
    page = TaskFilter(root_session_id=session.root_session_id, states=tuple(LIVE_STATES), limit=PAGE)
    known: dict[str, list[Session]] = {}
    found = []
    while tasks := await services.views.list_tasks(page):
        found += [(task, await _upwards(services, task.session_id, known)) for task in tasks]
        page = evolve(page, after=tasks[-1].id)
    return found


async def _upwards(services: Services, session_id: str | None, known: dict[str, list[Session]]) -> list[Session]:
    if session_id is None:
        return []
    if session_id not in known:
        session = await services.views.session(session_id)
        above = [] if session is None else [session]
        if session is not None and session.parent_task_id is not None:  # a peer goes with nobody
            above += await _upwards(services, session.parent_session_id, known)
        known[session_id] = above
    return known[session_id]
