"""Reading, for both SQL stores. Each view is one statement, so what it returns is one moment of the database; but for
lists that go by the index (see `finder`).

A store says where a read runs, and how one reads what only it has.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from outrider.core.change import AttemptEnd, LogType
from outrider.core.errors import NotFound
from outrider.core.events import Message, Step
from outrider.core.ledger import (
    Beat,
    Document,
    Ended,
    FileInfo,
    Head,
    InboxRow,
    KeyUse,
    LogPage,
    LogRow,
    News,
    Output,
    OutputRow,
    PendingFollowUp,
    Statistics,
    Storage,
    TaskFilter,
    TranscriptRow,
    Unindexed,
    Waiting,
    Worker,
)
from outrider.core.meters import Meter
from outrider.core.queue import Gates
from outrider.core.search import says
from outrider.core.session import Grant, Session
from outrider.core.task import Direction, InputRequest, State, Task, Usage
from outrider.core.values import Instant
from outrider.stores.batch import AFTER_ANY, TASKS_FOLDER, gates_of, owner_of, spent_of, tasks_of
from outrider.stores.finder import Finder, admitted, goes_by_index, looked_at
from outrider.stores.migrate import check, known
from outrider.stores.rows import (
    STATES,
    decode,
    read_attempt,
    read_card,
    read_follow_up,
    read_message,
    read_meter,
    read_request,
    read_snapshot,
)
from outrider.stores.statements import Statements, listed

T = TypeVar("T")

FEW = 1000
"""How many tasks are looked at one by one rather than found by the index."""

SHORT = 100
"""Up to how many rows a read counts as short."""

_BELOW_SLASH = re.compile(r"[\x00-.]")


class SqlViews(ABC):
    """The views of a store with SQL."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        """`texts` are the statements by name, of which the conditions are put into others."""
        self._texts = texts

    @abstractmethod
    async def _short(self, read: Callable[[Statements], T]) -> T:
        """Read what is known to be short."""

    @abstractmethod
    async def _later(self, read: Callable[[Statements], T]) -> T:
        """Read what may return much, where nobody else is held up."""

    async def _read(self, rows: int, read: Callable[[Statements], T]) -> T:
        return await (self._short(read) if rows <= SHORT else self._later(read))

    @abstractmethod
    def _storage(self, read: Statements) -> Storage:
        """What the database takes on its disk."""

    # --- tasks -------------------------------------------------------------------------------------------

    async def task(self, task_id: str) -> Task | None:
        """The task of that id."""
        found = await self._short(lambda read: tasks_of(read.tasks("tasks_by_id", listed([task_id]))))
        return found[0] if found else None

    async def tasks(self, ids: Sequence[str]) -> Sequence[Task]:
        """The tasks of these ids that exist, in no particular order."""
        return await self._read(len(ids), lambda read: tasks_of(read.tasks("tasks_by_id", listed(ids))))

    async def keyed(self, session_id: str, keys: Sequence[str]) -> Sequence[Task]:
        """The tasks of a session that have one of these idempotency keys, in no particular order."""
        return await self._read(len(keys), lambda read: tasks_of(read.tasks("tasks_by_key", session_id, listed(keys))))

    async def task_ids(
        self, part: str, limit: int, *, organization_id: str | None = None, root_session_id: str | None = None
    ) -> Sequence[str]:
        """Ids of tasks that begin or end with `part`, in their order."""
        given = part, limit, organization_id, root_session_id
        return await self._later(lambda read: cast("list[str]", read.array("task_ids", *given)))

    async def list_tasks(self, filter: TaskFilter) -> Sequence[Task]:
        """A page in the order of ids, which is the order of creation."""
        # What goes by the index takes several reads, or has to look at all there are.
        rows = SHORT + 1 if goes_by_index(filter) else filter.limit
        found = await self._read(rows, lambda read: self._page(read, filter))
        found.sort(key=lambda task: task.id, reverse=filter.newest_first)
        return found[: filter.limit]

    async def unindexed(self, limit: int) -> Unindexed:
        """The tasks of the next `limit` log entries that the index has not taken in."""

        def read_all(read: Statements) -> Unindexed:
            (after,) = read.row("indexed")
            rows = read.array("unindexed", after, limit)
            moved = sorted({task for _, task in rows if task is not None})
            tasks = tuple(tasks_of(read.tasks("tasks_by_number", listed(moved)))) if moved else ()
            upto = max((position for position, _ in rows), default=after)
            return Unindexed(after, upto, tasks, len(rows) == limit or bool(read.array("unlisted", 1)))

        return await self._later(read_all)

    async def children(self, task_id: str) -> Sequence[Task]:
        """The tasks whose parent this is, ended ones too."""
        return await self._later(lambda read: tasks_of(read.tasks("children", task_id)))

    async def held_by(self, worker_id: str) -> Sequence[Beat]:
        """What that worker holds now."""
        return await self._short(lambda read: [Beat(*row) for row in read.array("held_by", worker_id)])

    async def holders(self) -> Mapping[str, int]:
        """How many tasks each worker holds now, by its id; those that hold any, registered or not."""
        return await self._short(lambda read: dict(read.array("holders")))

    async def active_at(self, task_id: str) -> Instant | None:
        """The newest recorded sign of life (report or appended page) of the task's current attempt, if any."""
        row = await self._short(lambda read: read.row("active_at", task_id))
        return None if row is None else row[0]

    async def overdue(self, now: Instant, limit: int) -> Sequence[Task]:
        """Tasks whose next deadline has passed, earliest first."""
        found = await self._read(limit, lambda read: tasks_of(read.tasks("overdue", now, limit)))
        return sorted(found, key=lambda task: (task.core.next_deadline_at or 0, task.id))

    async def follow_ups(self, limit: int, task_ids: Sequence[str] | None = None) -> Sequence[PendingFollowUp]:
        """Follow-ups that wait, oldest first; of these tasks only, when given."""

        def read_all(read: Statements) -> list[PendingFollowUp]:
            if task_ids is None:
                rows = read.array("follow_ups", limit)
            else:
                rows = read.array("follow_ups_of", listed(task_ids), limit)
            return [PendingFollowUp(id, task_id, read_follow_up(event)) for id, task_id, event in rows]

        return await self._read(limit, read_all)

    async def steps(self, task_id: str, *, values: bool = True) -> Sequence[Step]:
        """The task's journal, in the order it was written; without `values`, each value is None and is not read."""

        def read_all(read: Statements) -> list[Step]:
            return [
                Step(
                    task_id, position, ordinal, verb, attempt, at, None if value is None else value.encode(), bool(done)
                )
                for position, ordinal, verb, attempt, at, value, done in read.array(
                    "steps" if values else "steps_without_values", task_id
                )
            ]

        return await self._later(read_all)

    async def attempts(self, task_id: str) -> Sequence[AttemptEnd]:
        """The task's closed attempts, in order."""
        return await self._short(lambda read: [read_attempt(task_id, *row) for row in read.array("attempts", task_id)])

    async def requests(self, task_id: str) -> Sequence[InputRequest]:
        """All requests the task ever made, oldest first."""
        return await self._short(lambda read: [read_request(data) for data in read.array("requests", task_id)])

    async def request(self, request_id: str) -> InputRequest | None:
        """The request of that id, pending or closed."""
        row = await self._short(lambda read: read.row("request", request_id))
        return None if row is None else read_request(decode(row[0]))

    async def messages(
        self, task_id: str, *, direction: Direction | None = None, after: str | None = None, limit: int = 1000
    ) -> Sequence[Message]:
        """The task's thread in the order it was written, after the message of that id."""

        def read_all(read: Statements) -> list[Message]:
            return [read_message(data) for data in read.array("messages", task_id, direction, after, limit)]

        return await self._read(limit, read_all)

    async def output(self, task_id: str, *, start: int = 0, limit: int = 1000) -> Output:
        """Output from the byte offset `start` on, at most `limit` pieces, whole: the first may begin before it."""

        def read_all(read: Statements) -> Output:
            found = read.document("output", task_id, start, limit)
            if found is None:
                return Output((), 0, 0)
            first, end, pieces = found
            rows = tuple(OutputRow(stream, offset, text, at) for stream, offset, _, text, at in pieces)
            return Output(rows, first, pieces[-1][1] + pieces[-1][2] if pieces else end)

        return await self._read(limit, read_all)

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
        """Ids of tasks that ended before a moment, the longest ended first, without those that are pinned."""
        conditions: list[str] = ["finished_at < ?", self._texts["unpinned"]]
        values: list[Any] = [before]
        if since:
            conditions.append("finished_at >= ?")
            values.append(since)
        for organization in but_of:
            conditions.append("organization_id <> ?")
            values.append(organization)
        filter = TaskFilter(session_id=session_id, organization_id=organization_id, states=states, kind=kind)
        self._narrow(filter, conditions, values)
        where = " and ".join(conditions)
        return await self._later(lambda read: cast("list[str]", read.filtered("ended", where, "asc", *values, limit)))

    async def newest_ended(self, organization_id: str, place: int) -> Instant | None:
        """When the task of an organization ended that stands at this place, from 0, of its newest."""
        row = await self._later(lambda read: read.row("newest_ended", organization_id, place))
        return None if row is None else cast(int, row[0])

    async def child_sessions(self, task_ids: Sequence[str]) -> Sequence[Session]:
        """The sessions that these tasks opened, in no particular order."""
        return await self._read(
            len(task_ids), lambda read: [_session(row) for row in read.array("child_sessions", listed(task_ids))]
        )

    async def count_by_state(self) -> Mapping[State, int]:
        """How many tasks there are in each state."""
        return await self._short(lambda read: {STATES[state]: count for state, count in read.array("counts")})

    async def gates(self) -> Gates:
        """All limits and pauses."""
        return await self._short(lambda read: gates_of(*read.document("gates")))

    async def grants(self, session_ids: Sequence[str]) -> Sequence[Grant]:
        """What was said last of each tool in these sessions, by session and name."""
        rows = await self._short(lambda read: read.array("grants", listed(session_ids)))
        return [Grant(session, tool, bool(allowed), *rest) for session, tool, allowed, *rest in rows]

    async def document(self, collection: str, *, id: str | None = None, key: str | None = None) -> Document | None:
        """The document of that id, or else of that key."""
        conditions, name = ("collection = ? and id = ?", id) if id is not None else ("collection = ? and key = ?", key)
        rows = await self._short(lambda read: read.filtered("document_where", conditions, "asc", collection, name, 1))
        return _document(rows[0]) if rows else None

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
        """A page of a collection in the order of ids; the longest due first if asked."""
        conditions, values = ["collection = ?"], [collection, *([] if organization_id is None else [organization_id])]
        if organization_id is not None:
            conditions.append("organization_id = ?")
        if below:
            conditions.append("id >= ? and id < ?")
            values += [below, below + AFTER_ANY]
        if after is not None and due_by is None:
            conditions.append("id < ?" if newest_first else "id > ?")
            values.append(after)
        given: list[str | int] = [*values]
        if due_by is not None:
            conditions.append("due_at <= ?")
            given.append(due_by)
        name = "document_where" if due_by is None else "due_documents"
        direction = "desc" if newest_first else "asc"
        where = " and ".join(conditions)
        rows = await self._read(limit, lambda read: read.filtered(name, where, direction, *given, limit))
        found = [_document(row) for row in rows]
        if due_by is not None:
            return sorted(found, key=lambda each: (each.due_at or 0, each.id), reverse=newest_first)
        return sorted(found, key=lambda each: each.id, reverse=newest_first)

    async def due_at(self, collection: str) -> Instant | None:
        """When the first of a collection is due, None while none is."""
        return await self._short(lambda read: cast("Instant | None", read.row("first_due_document", collection)[0]))

    async def meters(self, names: Sequence[str]) -> Mapping[str, Meter]:
        """Those of these meters that anything was ever charged to, by name."""
        rows = await self._short(lambda read: read.array("meters", listed(names)))
        return {name: read_meter(name, state) for name, state in rows if state is not None}

    async def usage(self, session_id: str, *, tree: bool = False) -> Usage:
        """What the tasks of a session reported together; with `tree`, those of all sessions whose root it is."""
        row = await self._later(lambda read: read.row("usage_of_tree" if tree else "usage", session_id))
        requests, given, answered, cached, cost = row
        return Usage(requests or 0, given or 0, answered or 0, cached or 0, cost)

    async def ahead(self, task_id: str) -> int | None:
        """How many ready tasks of its route a claim would take before this one; None unless it is ready."""
        row = await self._later(lambda read: read.row("ahead", task_id))
        return None if row is None else cast(int, row[0])

    async def statistics(self, since: Instant) -> Statistics:
        """What waits now, and what ended since a moment. Looks at each of those: for people, not for programs."""

        def read_all(read: Statements) -> Statistics:
            states = {STATES[state]: count for state, count in read.array("counts")}
            waiting = tuple(Waiting(*row) for row in read.array("waiting"))
            ended = tuple(
                Ended(kind, STATES[state], *rest) for kind, state, *rest in read.array("ended_by_kind", since)
            )
            return Statistics(states, waiting, ended, self._storage(read))

        return await self._later(read_all)

    async def problems(self, *, deep: bool = False) -> Sequence[str]:
        """What is wrong with the database, in words; nothing if it is sound."""

        def read_all(read: Statements) -> list[str]:
            wrong = self._damage(read, deep)
            for state, count, there in read.array("miscounted"):
                wrong.append(f"the count of {state} tasks is {count}, and there are {there}")
            return wrong

        return await self._later(read_all)

    async def schema(self) -> int:
        """The number of the newest migration. Raises StoreNewer for one that this program does not know."""

        def read_all(read: Statements) -> int:
            applied = {number: rest for number, *rest in read.array("applied")}
            check(applied, known(self._dialect), "the database")
            return max(applied, default=0)

        return await self._short(read_all)

    @property
    @abstractmethod
    def _dialect(self) -> str:
        """What its migrations are kept under."""

    @abstractmethod
    def _damage(self, read: Statements, deep: bool) -> list[str]:
        """What is wrong with the files of the database."""

    async def uses(self, keys: Sequence[str] | None = None) -> Sequence[KeyUse]:
        """What becomes of these keys, or of all under which anything is held or set aside; in the order of keys."""

        def read_all(read: Statements) -> list[KeyUse]:
            found = read.array("keys_in_use") if keys is None else keys
            return [
                KeyUse(key, held, waiting, spent_of(spent))
                for key, held, waiting, spent in read.array("uses", listed(found))
            ]

        return await self._later(read_all)

    # --- sessions ----------------------------------------------------------------------------------------

    async def session(self, session_id: str) -> Session | None:
        """The session of that id."""
        return await self._short(lambda read: session_by_id(read, session_id))

    async def sessions(
        self,
        *,
        after: str | None = None,
        limit: int = 100,
        organization_id: str | None = None,
        root_session_id: str | None = None,
    ) -> Sequence[Session]:
        """Sessions newest first, after the one of that id."""
        given = after, limit, organization_id, root_session_id
        return await self._read(limit, lambda read: [_session(row) for row in read.array("sessions", *given)])

    async def events(
        self, session_id: str, *, after: int = 0, limit: int = 1000, task_id: str | None = None
    ) -> Sequence[LogRow]:
        """Log entries with a `seq` greater than `after`, in order; of one task only, when given."""

        def read_all(read: Statements) -> list[LogRow]:
            if task_id is None:
                rows = read.array("events", session_id, after, limit)
            else:
                rows = read.array("events_of_task", task_id, session_id, after, limit)
            rows.sort(key=lambda row: row[1])
            return [_log_row(session_id, row) for row in rows]

        return await self._read(limit, read_all)

    async def position(self) -> int:
        """The position of the newest log entry of all sessions, 0 if there is none."""
        return await self._short(lambda read: cast(int, read.row("position")[0]))

    async def horizon(self) -> int:
        """The highest position that may have been told of; it never falls, and no later entry is at or below it."""
        return await self._short(lambda read: cast(int, read.row("horizon")[0]))

    async def news(self, *, after: int, limit: int = 1000) -> Sequence[News]:
        """The log entries of all sessions with a position greater than `after`, in order."""
        found = await self._read(limit, lambda read: [News(*row) for row in read.array("news", after, limit)])
        return sorted(found, key=lambda each: each.position)

    async def log(self, *, after: int, limit: int = 1000, organization_id: str | None = None) -> LogPage:
        """What an organization has, or all have, among the next `limit` log entries after a position; in order."""
        rows = await self._read(limit, lambda read: read.array("log", after, limit, organization_id))
        rows.sort(key=lambda row: row[0])
        found = tuple(_log_row(session_id, (position, *rest)) for position, session_id, *rest in rows if rest[4])
        return LogPage(found, rows[-1][0] if rows else after)

    async def heads(self, session_ids: Sequence[str]) -> Mapping[str, Head]:
        """Where the logs of those of these sessions end that exist, by id."""
        rows = await self._read(len(session_ids), lambda read: read.array("heads", listed(session_ids)))
        return {session_id: Head(seq, position or 0, *whose) for session_id, seq, position, *whose in rows}

    async def first_seq(self, session_id: str) -> int:
        """The number of the oldest entry kept; 1 unless the log was trimmed."""
        row = await self._short(lambda read: read.row("first_seq", session_id))
        return 1 if row is None else cast(int, row[0])

    async def file(self, session_id: str, path: str) -> bytes | None:
        """The content of a session's file."""
        task_id, rest = owner_of(path) or (None, None)
        row = await self._short(lambda read: read.row("file", session_id, task_id, rest, path))
        return None if row is None else row[0]

    async def files(
        self, session_id: str, *, prefix: str = "/", after: str | None = None, limit: int = 1000
    ) -> Sequence[FileInfo]:
        """The session's files below a prefix, in the order of their paths, after the one of that path."""
        after = after or ""
        begin, end, (first, last) = max(prefix, after), prefix + AFTER_ANY, _owners_below(prefix, after)

        def read_all(read: Statements) -> list[FileInfo]:
            rows = read.array("files", session_id, begin, end, first, last, limit, after)
            return [FileInfo(session_id, *row) for row in rows]

        return await self._later(read_all)

    async def transcript(self, session_id: str, *, after: int = 0, limit: int = 100_000) -> Sequence[TranscriptRow]:
        """Transcript entries numbered above `after`, in order."""

        def read_all(read: Statements) -> list[TranscriptRow]:
            rows = read.array("transcript", session_id, after, limit)
            return [TranscriptRow(number, task_id, turn, message.encode()) for number, task_id, turn, message in rows]

        return await self._read(limit, read_all)

    async def last_entry(self, session_id: str, *, task_id: str | None = None, iteration: int | None = None) -> int:
        """The number of the newest transcript entry, 0 if there is none; of those of a task, and up to an iteration."""
        return await self._short(lambda read: cast(int, read.row("last_entry", session_id, task_id, iteration)[0]))

    async def inbox(self, session_id: str, *, limit: int = 100) -> Sequence[InboxRow]:
        """Entries that were not delivered for good, oldest first, whether somebody has them or not."""

        def read_all(read: Statements) -> list[InboxRow]:
            return [InboxRow(seq, session_id, *row) for seq, *row in read.array("inbox", session_id, limit)]

        return await self._read(limit, read_all)

    async def receivable_at(self, session_id: str, now: Instant) -> Instant | None:
        """When somebody can receive something: at a moment up to `now` if at once, None while there is nothing."""
        row = await self._short(lambda read: read.row("receivable_at", session_id, now))
        if row is None:
            raise NotFound.of("session", session_id)
        return cast("Instant | None", row[0])

    async def workers(self) -> Sequence[Worker]:
        """All registered workers."""
        return await self._short(
            lambda read: [Worker(read_card(card), beat, beat_at) for card, beat, beat_at in read.array("workers")]
        )

    # --- a page of tasks ---------------------------------------------------------------------------------

    def _page(self, read: Statements, filter: TaskFilter) -> list[Task]:
        """At least the page asked for, unsorted."""
        if goes_by_index(filter) and not self._is_of_few(read, filter):
            found = Finder(read, filter, lambda page, numbers: self._among(read, page, numbers)).page()
            if found is not None:
                return found
        if (text := filter.text) is None:
            return self._scan(read, filter)
        return admitted(lambda page: self._scan(read, page), looked_at(filter), lambda task: says(task, text))

    def _is_of_few(self, read: Statements, filter: TaskFilter) -> bool:
        """Whether there are so few in its session, tree or below its parent that these are looked at the sooner."""
        if filter.text is not None:
            return False
        counts = []
        if filter.session_id is not None:
            counts.append(("count_in_session", filter.session_id))
        if filter.root_session_id is not None:
            counts.append(("count_below_root", filter.root_session_id))
            counts.append(("count_in_session", filter.root_session_id))
        elif filter.parent_task_id is not None:
            counts.append(("count_of_parent", filter.parent_task_id))
        return bool(counts) and all(read.row(name, id, FEW)[0] < FEW for name, id in counts)

    def _scan(self, read: Statements, filter: TaskFilter) -> list[Task]:
        """At least the page, whatever its text. A tree is its root session and what is below: one range each."""
        if filter.root_session_id is None:
            return self._range(read, filter, [], [])
        root = filter.root_session_id
        return [
            *self._range(read, filter, [self._texts["in_session"], "root_session_id is null"], [root]),
            *self._range(read, filter, ["root_session_id = ?"], [root]),
        ]

    def _range(self, read: Statements, filter: TaskFilter, conditions: list[str], values: list[Any]) -> list[Task]:
        self._narrow(filter, conditions, values)
        states = listed([state.value for state in (State if filter.states is None else filter.states)])
        direction = "desc" if filter.newest_first else "asc"
        where = " and ".join(conditions) or "true"
        return tasks_of(read.filtered_tasks("tasks_where", where, direction, *values, filter.limit, states))

    def _among(self, read: Statements, filter: TaskFilter, numbers: Sequence[int]) -> list[Task]:
        """The page of what is among these tasks, whatever its text."""
        conditions, values = list[str](), list[Any]()
        if (root := filter.root_session_id) is not None:
            conditions.append(f"(root_session_id = ? or root_session_id is null and {self._texts['in_session']})")
            values += [root, root]
        self._narrow(filter, conditions, values)
        where = " and ".join(conditions) or "true"
        direction = "desc" if filter.newest_first else "asc"
        return tasks_of(read.filtered_tasks("tasks_among", where, direction, *values, listed(numbers), filter.limit))

    def _narrow(self, filter: TaskFilter, conditions: list[str], values: list[Any]) -> None:
        """Add the conditions of a filter on the table of tasks, and their values."""

        def add(condition: str, *given: Any) -> None:
            conditions.append(condition)
            values.extend(given)

        if filter.session_id is not None:
            add(self._texts["in_session"], filter.session_id)
        if filter.parent_task_id is not None:
            add("parent_task_id = ?", filter.parent_task_id)
        if filter.organization_id is not None:
            add("organization_id = ?", filter.organization_id)
        if filter.states is not None:
            add(self._texts["in_states"], listed([state.value for state in filter.states]))
        if filter.kind is not None:
            add("kind = ?", filter.kind)
        for name, value in filter.labels.items():
            add(self._texts["labelled"], name, value)
        if filter.created_after is not None:
            add("created_at >= ?", filter.created_after)
        if filter.created_before is not None:
            add("created_at < ?", filter.created_before)
        if filter.after is not None:
            add("id < ?" if filter.newest_first else "id > ?", filter.after)


def session_by_id(read: Statements, session_id: str) -> Session | None:
    """The session of that id, on any connection."""
    row = read.row("session", session_id)
    return None if row is None else _session(row)


def _session(row: Sequence[Any]) -> Session:
    id, organization, root, parent, parent_task, agent, title, labels, driver, seq, *rest = row
    created_at, updated_at, budget, closed_at, forked_from = rest
    return Session(
        id,
        organization,
        root,
        parent,
        parent_task,
        agent,
        title,
        decode(labels),
        driver,
        seq,
        created_at,
        updated_at,
        None if budget is None else decode(budget),
        closed_at,
        forked_from,
    )


def _document(row: Sequence[Any]) -> Document:
    collection, id, data, *rest = row
    return Document(collection, id, decode(data), *rest)


def _log_row(session_id: str, row: Sequence[Any]) -> LogRow:
    position, seq, task_id, type, at, data, input = row
    encoded = read_snapshot(data, input) if type == "task.created" else data.encode()
    return LogRow(position, session_id, seq, task_id, cast(LogType, type), at, encoded)


def _owners_below(prefix: str, after: str) -> tuple[str, str]:
    """The first and the last task id whose folder may hold files below a prefix, after a path."""
    if TASKS_FOLDER.startswith(prefix):
        first, last = "", AFTER_ANY
    elif prefix.startswith(TASKS_FOLDER):
        task_id, slash, _ = prefix[len(TASKS_FOLDER) :].partition("/")
        first, last = task_id, task_id if slash else task_id + AFTER_ANY
    else:
        return AFTER_ANY, ""
    if after.startswith(TASKS_FOLDER):
        # An id comes before those that go on from it, but its folder after those that do with less than a slash.
        return max(first, _BELOW_SLASH.split(after[len(TASKS_FOLDER) :])[0].partition("/")[0]), last
    return (AFTER_ANY, "") if after > TASKS_FOLDER else (first, last)
