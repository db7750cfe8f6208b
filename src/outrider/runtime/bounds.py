"""One organization's part of a store, or one session's tree of it: a `Ledger` and `Views` that reach no further.

What lies outside is absent, whatever verb is used: reads find nothing, lists are narrowed by the database, and writes
are refused as those to what does not exist. Isolation is decided here and nowhere else. What one would get wrong: a
client chooses ids and hands in whole documents, so nothing that a `Change` says of itself is believed; the stored
record is asked whose it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Protocol, assert_never

from outrider.core.change import AttemptEnd, Change, Page
from outrider.core.delivery import Receipt, Standing
from outrider.core.errors import AlreadyExists, Forbidden, NotFound, OutriderError
from outrider.core.events import FileWrite, Message, Step
from outrider.core.ledger import (
    Beat,
    Claim,
    Claims,
    Closed,
    Decide,
    Described,
    Document,
    Existing,
    FileInfo,
    FileMark,
    GrantSet,
    Head,
    InboxRow,
    IndexEntry,
    KeyUse,
    Ledger,
    LimitRemoved,
    LimitSet,
    Listener,
    LogPage,
    LogRow,
    News,
    Order,
    Output,
    OutputChunk,
    Paused,
    PendingFollowUp,
    Pruned,
    Reopened,
    Report,
    Resumed,
    Signal,
    Stale,
    Statistics,
    TaskFilter,
    TranscriptRow,
    Unindexed,
    Verdict,
    Views,
    Worker,
    WorkerCard,
)
from outrider.core.meters import SESSION, TASK, TREE, Charge, ChargeVerdict, Meter
from outrider.core.queue import Gates, Pause, kind_of, route_within, split_route
from outrider.core.session import Grant, NewSession, Seed, Session
from outrider.core.task import DEFAULT_ORGANIZATION, EXTERNAL, Direction, InputRequest, State, Task, Usage, split_key
from outrider.core.values import Instant

ORGANIZATIONS = "organizations"
ORGANIZATION_IDS = "organization_ids"
"""The ids that were ever given. They stay: what is found under one of them later is nobody else's."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far somebody reaches: one organization, or of that the tree below one session.

    The session is the root of its tree. An operator may also do what concerns the whole cluster: limits, pauses,
    workers, backups; he sees the tasks of his own organization and no others.
    """

    organization_id: str
    session_id: str | None = None
    is_operator: bool = False

    def hold(self, owned: Owned) -> bool:
        """Whether a session, or the input of a task, lies within."""
        return owned.organization_id == self.organization_id and self.session_id in (None, owned.root_session_id)

    def hold_key(self, key: str) -> bool:
        """Whether what becomes of a concurrency key may be told: an operator of any, others of their organization's."""
        return self.is_operator or (self.session_id is None and split_key(key)[1] == self.organization_id)

    def cover(self, other: Bounds) -> bool:
        """Whether whoever reaches this far may be given those."""
        return (
            other.organization_id == self.organization_id
            and self.session_id in (None, other.session_id)
            and other.is_operator <= self.is_operator
        )


class Owned(Protocol):
    """What says whose it is: a session, or the input of a task."""

    @property
    def organization_id(self) -> str:
        """The organization that it belongs to."""
        ...

    @property
    def root_session_id(self) -> str:
        """The session at the top of its tree."""
        ...


class BoundedViews:
    """The reading half, within bounds."""

    def __init__(self, whole: Views, bounds: Bounds) -> None:
        self._whole = whole
        self._bounds = bounds

    # --- whose is it -------------------------------------------------------------------------------------

    async def has_task(self, task_id: str) -> bool:
        """Whether a task exists, within."""
        return await self.task(task_id) is not None

    async def has_session(self, session_id: str) -> bool:
        """Whether a session exists, within."""
        return await self.session(session_id) is not None

    async def own_tasks(self, ids: Iterable[str]) -> list[str]:
        """Those of the ids that are tasks within, in their order."""
        wanted = list(dict.fromkeys(ids))
        found = {task.id for task in await self.tasks(wanted)} if wanted else set()
        return [id for id in wanted if id in found]

    async def own_sessions(self, ids: Iterable[str]) -> list[str]:
        """Those of the ids that are sessions within, in their order."""
        return [id for id in dict.fromkeys(ids) if await self.has_session(id)]

    # --- tasks -------------------------------------------------------------------------------------------

    async def task(self, task_id: str) -> Task | None:
        """The task of that id."""
        task = await self._whole.task(task_id)
        return task if task is not None and self._bounds.hold(task.input) else None

    async def tasks(self, ids: Sequence[str]) -> Sequence[Task]:
        """The tasks of these ids that exist, in no particular order."""
        return [task for task in await self._whole.tasks(ids) if self._bounds.hold(task.input)]

    async def keyed(self, session_id: str, keys: Sequence[str]) -> Sequence[Task]:
        """The tasks of a session that have one of these idempotency keys, in no particular order."""
        return [task for task in await self._whole.keyed(session_id, keys) if self._bounds.hold(task.input)]

    async def task_ids(
        self, part: str, limit: int, *, organization_id: str | None = None, root_session_id: str | None = None
    ) -> Sequence[str]:
        """Ids of tasks that begin or end with `part`, in their order."""
        narrowed = self._narrowed(organization_id, root_session_id)
        if narrowed is None:
            return ()
        return await self._whole.task_ids(part, limit, organization_id=narrowed[0], root_session_id=narrowed[1])

    async def list_tasks(self, filter: TaskFilter) -> Sequence[Task]:
        """A page in the order of ids, which is the order of creation."""
        narrowed = self._narrowed(filter.organization_id, filter.root_session_id)
        if narrowed is None:
            return ()
        return await self._whole.list_tasks(replace(filter, organization_id=narrowed[0], root_session_id=narrowed[1]))

    async def unindexed(self, limit: int) -> Unindexed:
        """Refused: the index is of all."""
        self._refuse("what is not in the index")

    async def children(self, task_id: str) -> Sequence[Task]:
        """The tasks whose parent this is, ended ones too."""
        return [task for task in await self._whole.children(task_id) if self._bounds.hold(task.input)]

    async def held_by(self, worker_id: str) -> Sequence[Beat]:
        """Refused: a worker works for all."""
        self._refuse("what a worker holds")

    async def holders(self) -> Mapping[str, int]:
        """How many tasks each worker holds now: of all, for an explanation counts them."""
        return await self._whole.holders()

    async def active_at(self, task_id: str) -> Instant | None:
        """The newest recorded sign of life of the task's current attempt, if any."""
        return await self._whole.active_at(task_id) if await self.has_task(task_id) else None

    async def overdue(self, now: Instant, limit: int) -> Sequence[Task]:
        """Refused: deadlines are looked at for all."""
        self._refuse("what is overdue")

    async def follow_ups(self, limit: int, task_ids: Sequence[str] | None = None) -> Sequence[PendingFollowUp]:
        """Refused: they are applied for all."""
        self._refuse("follow-ups")

    async def steps(self, task_id: str, *, values: bool = True) -> Sequence[Step]:
        """The task's journal, in the order it was written."""
        return await self._whole.steps(task_id, values=values) if await self.has_task(task_id) else ()

    async def attempts(self, task_id: str) -> Sequence[AttemptEnd]:
        """The task's closed attempts, in order."""
        return await self._whole.attempts(task_id) if await self.has_task(task_id) else ()

    async def requests(self, task_id: str) -> Sequence[InputRequest]:
        """All requests the task ever made, oldest first."""
        return await self._whole.requests(task_id) if await self.has_task(task_id) else ()

    async def request(self, request_id: str) -> InputRequest | None:
        """The request of that id, pending or closed."""
        found = await self._whole.request(request_id)
        return found if found is not None and await self.has_task(found.task_id) else None

    async def messages(
        self, task_id: str, *, direction: Direction | None = None, after: str | None = None, limit: int = 1000
    ) -> Sequence[Message]:
        """The task's thread in the order it was written, after the message of that id."""
        if not await self.has_task(task_id):
            return ()
        return await self._whole.messages(task_id, direction=direction, after=after, limit=limit)

    async def output(self, task_id: str, *, start: int = 0, limit: int = 1000) -> Output:
        """Output from the byte offset `start` on."""
        if not await self.has_task(task_id):
            return Output((), 0, 0)
        return await self._whole.output(task_id, start=start, limit=limit)

    async def ahead(self, task_id: str) -> int | None:
        """How many ready tasks of its route a claim would take before this one; whosesoever they are."""
        return await self._whole.ahead(task_id) if await self.has_task(task_id) else None

    async def ended(
        self,
        before: Instant,
        limit: int,
        *,
        since: Instant = 0,
        states: tuple[State, ...] | None = None,
        organization_id: str | None = None,
        but_of: Sequence[str] = (),
        session_id: str | None = None,
        kind: str | None = None,
    ) -> Sequence[str]:
        """Ids of tasks that ended before a moment; within a tree those of its root, unless another one is named."""
        narrowed = self._narrowed(organization_id, None)
        session_id = session_id or self._bounds.session_id
        if narrowed is None or (session_id is not None and not await self.has_session(session_id)):
            return ()
        return await self._whole.ended(
            before,
            limit,
            since=since,
            states=states,
            organization_id=narrowed[0],
            but_of=but_of,
            session_id=session_id,
            kind=kind,
        )

    async def newest_ended(self, organization_id: str, place: int) -> Instant | None:
        """Refused: policies are enforced for all."""
        self._refuse("how many have ended")

    # --- sessions ----------------------------------------------------------------------------------------

    async def session(self, session_id: str) -> Session | None:
        """The session of that id."""
        session = await self._whole.session(session_id)
        return session if session is not None and self._bounds.hold(session) else None

    async def sessions(
        self,
        *,
        after: str | None = None,
        limit: int = 100,
        organization_id: str | None = None,
        root_session_id: str | None = None,
    ) -> Sequence[Session]:
        """Sessions newest first, after the one of that id."""
        narrowed = self._narrowed(organization_id, root_session_id)
        if narrowed is None:
            return ()
        return await self._whole.sessions(
            after=after, limit=limit, organization_id=narrowed[0], root_session_id=narrowed[1]
        )

    async def child_sessions(self, task_ids: Sequence[str]) -> Sequence[Session]:
        """The sessions that these tasks opened, in no particular order."""
        return [each for each in await self._whole.child_sessions(task_ids) if self._bounds.hold(each)]

    async def events(
        self, session_id: str, *, after: int = 0, limit: int = 1000, task_id: str | None = None
    ) -> Sequence[LogRow]:
        """Log entries with a `seq` greater than `after`, in order."""
        if not await self.has_session(session_id):
            return ()
        return await self._whole.events(session_id, after=after, limit=limit, task_id=task_id)

    async def position(self) -> int:
        """The position of the newest log entry of all sessions: a cursor, which says how much was written, not what."""
        return await self._whole.position()

    async def horizon(self) -> int:
        """The highest position that may have been told of."""
        return await self._whole.horizon()

    async def news(self, *, after: int, limit: int = 1000) -> Sequence[News]:
        """Refused: they are of all sessions, page by page."""
        self._refuse("the news of all sessions")

    async def log(self, *, after: int, limit: int = 1000, organization_id: str | None = None) -> LogPage:
        """What lies within, among the next `limit` log entries after a position."""
        own = self._bounds.organization_id
        page = await self._whole.log(after=after, limit=limit, organization_id=own)
        rows = () if organization_id not in (None, own) else page.rows
        if self._bounds.session_id is not None:
            sessions = set(await self.own_sessions(row.session_id for row in rows))
            rows = tuple(row for row in rows if row.session_id in sessions)
        return replace(page, rows=rows)

    async def heads(self, session_ids: Sequence[str]) -> Mapping[str, Head]:
        """Where the logs of those of these sessions end that exist, by id."""
        found = await self._whole.heads(session_ids)
        return {id: head for id, head in found.items() if self._bounds.hold(head)}

    async def first_seq(self, session_id: str) -> int:
        """The number from which on the log is whole."""
        return await self._whole.first_seq(session_id) if await self.has_session(session_id) else 1

    async def file(self, session_id: str, path: str) -> bytes | None:
        """The content of a session's file."""
        return await self._whole.file(session_id, path) if await self.has_session(session_id) else None

    async def files(
        self, session_id: str, *, prefix: str = "/", after: str | None = None, limit: int = 1000
    ) -> Sequence[FileInfo]:
        """The session's files below a prefix, in the order of their paths, after the one of that path."""
        if not await self.has_session(session_id):
            return ()
        return await self._whole.files(session_id, prefix=prefix, after=after, limit=limit)

    async def transcript(self, session_id: str, *, after: int = 0, limit: int = 100_000) -> Sequence[TranscriptRow]:
        """Transcript entries numbered above `after`, in order."""
        if not await self.has_session(session_id):
            return ()
        return await self._whole.transcript(session_id, after=after, limit=limit)

    async def last_entry(self, session_id: str, *, task_id: str | None = None, iteration: int | None = None) -> int:
        """The number of the newest transcript entry, 0 if there is none."""
        if not await self.has_session(session_id):
            return 0
        return await self._whole.last_entry(session_id, task_id=task_id, iteration=iteration)

    async def inbox(self, session_id: str, *, limit: int = 100) -> Sequence[InboxRow]:
        """Entries that were not delivered for good, oldest first."""
        return await self._whole.inbox(session_id, limit=limit) if await self.has_session(session_id) else ()

    async def receivable_at(self, session_id: str, now: Instant) -> Instant | None:
        """When somebody can receive something. Raises NotFound."""
        await self._check_session(session_id)
        return await self._whole.receivable_at(session_id, now)

    async def grants(self, session_ids: Sequence[str]) -> Sequence[Grant]:
        """What was said last of each tool in these sessions."""
        return await self._whole.grants(await self.own_sessions(session_ids))

    async def usage(self, session_id: str, *, tree: bool = False) -> Usage:
        """What the tasks of a session reported together."""
        return await self._whole.usage(session_id, tree=tree) if await self.has_session(session_id) else Usage()

    async def meters(self, names: Sequence[str]) -> Mapping[str, Meter]:
        """The accounts of these names; the rates of models and the state of providers are everybody's, and absent."""
        tasks = await self.own_tasks(name.removeprefix(TASK) for name in names if name.startswith(TASK))
        sessions = await self.own_sessions(name.partition(":")[2] for name in names if name.startswith((SESSION, TREE)))
        own = {TASK + id for id in tasks} | {begin + id for id in sessions for begin in (SESSION, TREE)}
        return await self._whole.meters([name for name in names if name in own])

    # --- documents ---------------------------------------------------------------------------------------

    def keeps(self, document: Document) -> bool:
        """Whether a document lies within. Nothing but tasks and sessions is one session's."""
        return self._bounds.session_id is None and document.organization_id == self._bounds.organization_id

    async def document(self, collection: str, *, id: str | None = None, key: str | None = None) -> Document | None:
        """The document of that id, or else of that key."""
        found = await self._whole.document(collection, id=id, key=key)
        return found if found is not None and self.keeps(found) else None

    async def documents(
        self,
        collection: str,
        *,
        organization_id: str | None = None,
        below: str = "",
        due_by: Instant | None = None,
        after: str | None = None,
        limit: int = 100,
        newest_first: bool = False,
    ) -> Sequence[Document]:
        """A page of a collection in the order of ids."""
        narrowed = self._narrowed(organization_id, None)
        if narrowed is None or self._bounds.session_id is not None:
            return ()
        return await self._whole.documents(
            collection,
            organization_id=narrowed[0],
            below=below,
            due_by=due_by,
            after=after,
            limit=limit,
            newest_first=newest_first,
        )

    async def due_at(self, collection: str) -> Instant | None:
        """Refused: what is due is done for all."""
        self._refuse("what is due")

    # --- the cluster -------------------------------------------------------------------------------------

    async def workers(self) -> Sequence[Worker]:
        """All registered workers: a task's phase says whether one serves it. The façade shows them to operators."""
        return await self._whole.workers()

    async def gates(self) -> Gates:
        """All limits and pauses: a task's phase says which holds it back. The façade shows them to operators."""
        return await self._whole.gates()

    async def uses(self, keys: Sequence[str] | None = None) -> Sequence[KeyUse]:
        """What becomes of these keys, which somebody has to know; how many wait, of keys of the organization alone."""
        if keys is None:
            self._refuse("the keys of all")
        found = await self._whole.uses(keys)
        return [each if self._bounds.hold_key(each.key) else replace(each, waiting=0) for each in found]

    async def count_by_state(self) -> Mapping[State, int]:
        """Refused: it counts all."""
        self._refuse("the number of all tasks")

    async def statistics(self, since: Instant) -> Statistics:
        """Refused: it counts all."""
        self._refuse("statistics")

    async def problems(self, *, deep: bool = False) -> Sequence[str]:
        """Refused: it reads all."""
        self._refuse("an examination of the database")

    async def schema(self) -> int:
        """The newest migration, which is no organization's own."""
        return await self._whole.schema()

    # --- how -----------------------------------------------------------------------------------------------

    def _narrowed(self, organization_id: str | None, root_session_id: str | None) -> tuple[str, str | None] | None:
        """The organization and the tree that a list goes by; None for one that has nothing within."""
        bounds = self._bounds
        if organization_id not in (None, bounds.organization_id):
            return None
        if bounds.session_id is not None and root_session_id not in (None, bounds.session_id):
            return None
        return bounds.organization_id, bounds.session_id or root_session_id

    async def _check_session(self, session_id: str) -> None:
        if not await self.has_session(session_id):
            raise NotFound.of("session", session_id)

    def _refuse(self, what: str) -> NoReturn:
        raise _for_operators(what)


class BoundedLedger:
    """The writing half, within bounds. What a worker writes is refused: it works for all."""

    def __init__(self, whole: Ledger, bounds: Bounds) -> None:
        self._whole = whole
        self._bounds = bounds
        self._views = BoundedViews(whole.views, bounds)

    def __getattr__(self, name: str) -> Any:
        """What only some stores have: where they are kept, and their clock."""
        if name in _PLACE:
            return getattr(self._whole, name)
        raise AttributeError(name)

    @property
    def views(self) -> BoundedViews:
        """The reading half."""
        return self._views

    @property
    def counters(self) -> Mapping[str, int]:
        """`commits` and `statements` since the store was opened, for all."""
        return self._whole.counters

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each commit of anybody, which tells only that there was one."""
        return self._whole.listen(lambda _: listener(Signal(unknown=True)))

    async def create_session(self, new: NewSession, seed: Seed | None = None) -> Session:
        """Create a session, or return the one of that id.

        Raises NotFound for another organization and for what it is put below or begins with, AlreadyExists for an id
        that is taken outside, Forbidden within a tree for one that is not below its root, and in an organization that
        was suspended since somebody was admitted.
        """
        bounds, views = self._bounds, self._views
        if new.organization_id != bounds.organization_id:
            raise NotFound.of("organization", new.organization_id)
        if bounds.session_id not in (None, new.root_session_id):
            there = await views.session(new.id)
            if there is not None:
                return there
            raise Forbidden("a key of one session can make no others")
        for above in (new.root_session_id, new.parent_session_id, None if seed is None else seed.session_id):
            if above not in (None, new.id) and not await views.has_session(above):
                raise NotFound.of("session", above)
        opener = new.parent_task_id
        # One that comes from another database comes before the task that opened it.
        if opener is not None and await self._whole.views.task(opener) and not await views.has_task(opener):
            raise NotFound.of("task", opener)
        is_new = bounds.organization_id != DEFAULT_ORGANIZATION and not await views.has_session(new.id)
        session = await self._whole.create_session(new, seed)
        if not bounds.hold(session):
            raise _taken("session", new.id)
        try:
            await self._check_organization()
        except OutriderError:
            if is_new and session.created_at == new.created_at:  # else somebody else has made it
                await self._whole.prune([], [session.id], files=())
            raise
        return session

    async def _check_organization(self) -> None:
        """Raise Forbidden if the organization is suspended, NotFound if it is deleted.

        To be called after a write. Whoever deletes an organization suspends it first and looks for sessions then, so
        either they find the session that was written, or who wrote it finds the organization suspended.
        """
        id, views = self._bounds.organization_id, self._whole.views
        if id == DEFAULT_ORGANIZATION:
            return
        found = await views.document(ORGANIZATIONS, id=id)
        if found is None:  # never made, as in programs that have no need of it, or gone
            if await views.document(ORGANIZATION_IDS, id=id) is not None:
                raise NotFound.of("organization", id)
        elif found.data["suspended_at"] is not None:
            raise Forbidden(f"{id} is suspended")

    async def commit(self, changes: Sequence[Change]) -> Sequence[Verdict]:
        """Commit each Change whole or not at all. Raises NotFound, or AlreadyExists, if one reaches outside: then
        nothing is written of any.
        """
        stored = {task.id: task for task in await self._whole.views.tasks([change.task.id for change in changes])}
        for change in changes:
            await self._check(change, stored.get(change.task.id))
        verdicts = await self._whole.commit(changes)
        for verdict in verdicts:
            match verdict:
                case Existing(task=Task() as there) | Stale(current=Task() as there):
                    if not self._bounds.hold(there.input):
                        raise _taken("task", there.id)
                case _:
                    pass
        return verdicts

    async def claim(self, claim: Claim, decide: Decide) -> Claims:
        """Take tasks of kind `external`; their routes say whose they are. Raises Forbidden for others."""
        if self._bounds.session_id is not None:
            raise Forbidden("a key of one session claims no tasks, which may be of any")
        if any(kind_of(route) != EXTERNAL for route in claim.routes):
            raise _for_operators("work that workers do")
        routes = tuple(route_within(split_route(route)[0], self._bounds.organization_id) for route in claim.routes)

        def decide_within(task: Task) -> Change:
            if not self._bounds.hold(task.input):
                raise NotFound.of("task", task.id)
            return decide(task)

        return await self._whole.claim(replace(claim, routes=routes), decide_within)

    async def control(self, order: Order) -> bool:
        """Carry out what concerns a session. Raises NotFound, and Forbidden for what concerns all."""
        match order:
            case LimitSet() | LimitRemoved():
                raise _for_operators("a limit")
            case Paused(pause=Pause(scope=scope, name=session_id)) | Resumed(scope=scope, name=session_id):
                if scope != "session":
                    raise _for_operators("a pause of more than a session")
            case Closed() | Reopened() | Described():
                session_id = order.session_id
            case GrantSet():
                session_id = order.grant.session_id
            case _:
                assert_never(order)
        if not await self._views.has_session(session_id):
            raise NotFound.of("session", session_id)
        return await self._whole.control(order)

    async def report(self, reports: Sequence[Report]) -> Sequence[bool]:
        """Write live values; False for each whose attempt no longer holds its task, or whose task lies outside."""
        own = set(await self._views.own_tasks(each.task_id for each in reports))
        kept = iter(await self._whole.report([each for each in reports if each.task_id in own]))
        return [each.task_id in own and next(kept) for each in reports]

    async def print(self, chunks: Sequence[OutputChunk]) -> Sequence[bool]:
        """Append output; False for each whose attempt is over, or whose task lies outside."""
        own = set(await self._views.own_tasks(each.task_id for each in chunks))
        kept = iter(await self._whole.print([each for each in chunks if each.task_id in own]))
        return [each.task_id in own and next(kept) for each in chunks]

    async def write_file(self, file: FileWrite, fence: tuple[str, int] | None = None) -> bool:
        """Write a file whole. Raises NotFound."""
        if not await self._views.has_session(file.session_id):
            raise NotFound.of("session", file.session_id)
        return await self._whole.write_file(file, fence)

    async def delete_file(self, session_id: str, path: str) -> bool:
        """Delete a file; False if there was none."""
        return await self._views.has_session(session_id) and await self._whole.delete_file(session_id, path)

    async def receive(self, session_id: str, now: Instant, until: Instant, limit: int) -> Sequence[InboxRow]:
        """Take the oldest entries that nobody has."""
        if not await self._views.has_session(session_id):
            return ()
        return await self._whole.receive(session_id, now, until, limit)

    async def acknowledge(
        self, session_id: str, receipts: Sequence[Receipt], until: Instant | None = None
    ) -> Sequence[Standing]:
        """Drop or keep the entries whose receipts are good; outside, all are gone."""
        if not await self._views.has_session(session_id):
            return ["gone"] * len(receipts)
        return await self._whole.acknowledge(session_id, receipts, until)

    async def prune(
        self,
        task_ids: Sequence[str],
        session_ids: Sequence[str] = (),
        *,
        now: Instant | None = None,
        files: Collection[FileMark] | None = None,
    ) -> Pruned:
        """Delete ended tasks, and sessions that have no task left, of those within."""
        tasks, sessions = await self._views.own_tasks(task_ids), await self._views.own_sessions(session_ids)
        return await self._whole.prune(tasks, sessions, now=now, files=files)

    async def keep(self, documents: Sequence[Document], dropped: Sequence[Document] = ()) -> bool:
        """Write documents anew and drop others. Raises NotFound for another organization, AlreadyExists for its ids."""
        if self._bounds.session_id is not None:
            raise Forbidden("a key of one session keeps nothing but tasks")
        for each in (*documents, *dropped):
            if not self._views.keeps(each):
                raise NotFound.of("organization", each.organization_id)
            there = await self._whole.views.document(each.collection, id=each.id)
            if there is not None and not self._views.keeps(there):
                raise _taken(each.collection, each.id)
        return await self._whole.keep(documents, dropped)

    # --- what only workers write ---------------------------------------------------------------------------

    async def journal(self, steps: Sequence[Step]) -> Sequence[bool]:
        """Refused."""
        raise _for_workers()

    async def append(self, page: Page) -> bool:
        """Refused."""
        raise _for_workers()

    async def index(self, entries: Sequence[IndexEntry], after: int, upto: int) -> bool:
        """Refused."""
        raise _for_workers()

    async def charge(self, charges: Sequence[Charge]) -> Sequence[ChargeVerdict]:
        """Refused."""
        raise _for_workers()

    async def register(self, card: WorkerCard) -> None:
        """Refused."""
        raise _for_workers()

    def renew(self, worker_id: str, timeout: float) -> bool:
        """Refused."""
        raise _for_workers()

    async def retire(self, worker_id: str) -> None:
        """Refused."""
        raise _for_workers()

    async def close(self) -> None:
        """Refused: the store is everybody's."""
        raise _for_operators("the end of the store")

    # --- what a Change reaches -----------------------------------------------------------------------------

    async def _check(self, change: Change, stored: Task | None) -> None:
        """Raise NotFound, or AlreadyExists, where a Change concerns anything outside."""
        task, bounds, views = change.task, self._bounds, self._views
        given = task.input
        if stored is not None and not bounds.hold(stored.input):
            raise _taken("task", task.id) if change.before is None else NotFound.of("task", task.id)
        if change.before is not None:
            if stored is None or _place_of(stored) != _place_of(task):
                raise NotFound.of("task", task.id)
        else:
            session = await views.session(given.session_id)
            if session is None or (session.organization_id, session.root_session_id) != _place_of(task)[1:]:
                raise NotFound.of("session", given.session_id)
            if EXTERNAL in (given.kind, kind_of(given.route)) and given.route != route_within(
                split_route(given.route)[0], bounds.organization_id
            ):
                raise NotFound.of("organization", str(split_route(given.route)[1]))
        known = {task.id} | ({stored.input.parent_task_id} if stored is not None else set())
        tasks = _tasks_of(change) - known
        if missing := sorted(tasks.difference(await views.own_tasks(tasks))):
            raise NotFound.of("task", missing[0])
        for session_id in sorted(_sessions_of(change) - {given.session_id}):
            if not await views.has_session(session_id):
                raise NotFound.of("session", session_id)
        asked = set() if stored is None else {request.id for request in stored.core.requests}
        for request in (*change.requests, *task.core.requests):
            if request.id not in asked:
                there = await self._whole.views.request(request.id)
                if there is not None and there.task_id != task.id:
                    raise _taken("request", request.id)


def _place_of(task: Task) -> tuple[str, str, str]:
    given = task.input
    return given.session_id, given.organization_id, given.root_session_id


def _tasks_of(change: Change) -> set[str]:
    """The other tasks that a Change touches, or has hear of it."""
    named = [*change.watches, *(each.of for each in change.follow_ups if each.relation != "session")]
    named += [each.task_id for each in change.requests] + [each.task_id for each in change.messages]
    named += [each.task_id for each in change.steps] + [each.task_id for each in change.files if each.task_id]
    named += [each.task_id for each in (change.page, change.ended, *change.printed) if each is not None]
    if change.before is None and change.task.input.parent_task_id is not None:
        named.append(change.task.input.parent_task_id)
    return set(named)


def _sessions_of(change: Change) -> set[str]:
    """The sessions that a Change writes to."""
    named = [each.of for each in change.follow_ups if each.relation == "session"]
    named += [each.session_id for each in change.inbox] + [each.session_id for each in change.messages]
    named += [each.session_id for each in change.files]
    if change.page is not None:
        named.append(change.page.session_id)
    if change.luggage is not None and change.luggage.child_session_id is not None:
        named.append(change.luggage.child_session_id)
    return set(named)


def _taken(noun: str, id: str) -> AlreadyExists:
    """Ids are one namespace: that one is taken can be seen, and nothing else of what has it."""
    return AlreadyExists(f"the id {id} of a {noun} is taken; choose another", details={noun: id})


def _for_operators(what: str) -> Forbidden:
    return Forbidden(f"{what} concerns all organizations: that needs an operator, an admin of the default one")


def _for_workers() -> Forbidden:
    return Forbidden("only a worker writes this, and it works for all organizations")


_PLACE = ("beside", "now", "path")
