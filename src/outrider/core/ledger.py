"""The seam between the rules and the databases: `Ledger` writes, `Views` reads.

What every store promises:

- A verb that returned has been committed durably. One that raised has changed nothing.
- A `Change` is committed whole or not at all: the record, its log entries, inbox entries, follow-ups, files,
  journal rows and the closed attempt. Changes handed over together may share a transaction; each still
  stands or falls alone.
- A store never decides. It compares versions and attempts, numbers the log, expands relations into task
  ids, and stores values that the reducer made.
- `seq` is gap-free within a session, from 1, in commit order. Entries of a Change are dated by the
  `updated_at` of its record, those of other verbs by the moment they were given.
- Time alone changes one thing: a `timed` task becomes `ready` at the first claim for its route once its `due_at`
  has come, and stands where the queue of the route has come to by then. And claims set aside what limits and pauses
  hold back: a `ready` task becomes `blocked` by `limit` or by `paused`, and `ready` again when its turn may have
  come. Neither moves its version or is logged, so a record and the replay of its log may differ in `readiness` and
  `blocked_by`, and only so.
- The newest `live` stands in the database, not in the record that a client read: unless `live_changed`, a
  Change leaves it as it is, whatever `task.live` says. A holder folds what it reported into the record that
  it decides on, so that the log's differences add up.
- After a commit it tells its listeners who is concerned. Such a signal may be lost; whoever waits also looks.

Failures are the `StoreError`s of `errors`. Absence is None or an empty sequence, never an error, unless a
method says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

from outrider.core.change import AttemptEnd, Change, LogType, WakeReason
from outrider.core.change import OutputChunk as OutputChunk
from outrider.core.change import OutputRow as OutputRow
from outrider.core.change import Page as Page
from outrider.core.delivery import Receipt, Standing
from outrider.core.events import FileWrite, FollowUpEvent, Message, Step
from outrider.core.meters import Charge, ChargeVerdict, Meter
from outrider.core.queue import Gates, Limit, Pause, Scope, Spent
from outrider.core.session import Grant, NewSession, Seed, Session
from outrider.core.task import Direction, InputRequest, Live, Readiness, State, Task, Usage
from outrider.core.values import Instant, JSONObject, Span

# --- what a commit says ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Committed:
    """The Change is durable. `task` is the record as it now stands."""

    task: Task


@dataclass(frozen=True, slots=True)
class Stale:
    """Somebody else was first: `current` is the record to decide on anew, None if the task is gone."""

    current: Task | None


@dataclass(frozen=True, slots=True)
class Existing:
    """A task with this id or idempotency key exists already; nothing was written."""

    task: Task


@dataclass(frozen=True, slots=True)
class Settled:
    """The follow-up that the Change answers was answered before; nothing was written."""


@dataclass(frozen=True, slots=True)
class NoSession:
    """The session of the task does not exist; nothing was written."""

    session_id: str


@dataclass(frozen=True, slots=True)
class Shut:
    """The session of the task is closed, and the Change needs it open; nothing was written."""

    session_id: str


@dataclass(frozen=True, slots=True)
class Fenced:
    """A journal row, the page or output came from an attempt that no longer holds its task; nothing was written."""

    task_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Barred:
    """A task was to be held from its first moment, and a pause or a limit forbids it; nothing was written."""


Verdict: TypeAlias = Committed | Stale | Existing | Settled | NoSession | Shut | Fenced | Barred

# --- what else is written ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker asks for up to `limit` ready tasks on the routes it serves, in the order of their rank."""

    worker_id: str
    routes: tuple[str, ...]
    limit: int
    now: Instant


@dataclass(frozen=True, slots=True)
class Claims:
    """What a worker got, and when it should look again.

    `next_due_at` is the earliest moment at which a task on the routes becomes due, `next_deadline_at` the
    earliest deadline of any task, both None when there is none; `more` tells that ready work may be left.
    """

    tasks: tuple[Task, ...]
    next_due_at: Instant | None
    next_deadline_at: Instant | None
    more: bool
    follow_ups: bool
    """Whether follow-ups wait to be applied."""


@dataclass(frozen=True, slots=True)
class LimitSet:
    """An order to `Ledger.control`: this limit holds from now on, in the place of one of that key."""

    limit: Limit


@dataclass(frozen=True, slots=True)
class LimitRemoved:
    """An order to `Ledger.control`: there is no limit of that key any more."""

    key: str


@dataclass(frozen=True, slots=True)
class Paused:
    """An order to `Ledger.control`: start nothing of this any more, until it is resumed."""

    pause: Pause


@dataclass(frozen=True, slots=True)
class Resumed:
    """An order to `Ledger.control`: the pause of that scope and name is over."""

    scope: Scope
    name: str = ""


@dataclass(frozen=True, slots=True)
class Closed:
    """An order to `Ledger.control`: this session takes nothing any more. Logs `session.closed`.

    With `when_idle` it is refused while tasks of it live that are not detached.
    """

    session_id: str
    at: Instant
    when_idle: bool = False


@dataclass(frozen=True, slots=True)
class Reopened:
    """An order to `Ledger.control`: this session is open again, and rings if its inbox is not empty.

    Logs `session.reopened`.
    """

    session_id: str
    at: Instant


@dataclass(frozen=True, slots=True)
class Described:
    """An order to `Ledger.control`: this session has another title or other labels from now on.

    None leaves the title, an empty one takes it away. Of the labels those are set that are named, or with None taken
    away. Logs `session.updated` with what changed.
    """

    session_id: str
    at: Instant
    title: str | None = None
    labels: Mapping[str, str | None] = field(default_factory=dict)

    def changes(self, title: str | None, labels: Mapping[str, str]) -> JSONObject:
        """The fields that change of a session which has this title and these labels, as they are then."""
        named = title if self.title is None else self.title or None
        kept = {name: value for name, value in {**labels, **self.labels}.items() if value is not None}
        changed: JSONObject = {} if named == title else {"title": named}
        return changed if kept == labels else {**changed, "labels": kept}


@dataclass(frozen=True, slots=True)
class GrantSet:
    """An order to `Ledger.control`: this was said of a tool. What was said later stands."""

    grant: Grant


Order: TypeAlias = LimitSet | LimitRemoved | Paused | Resumed | Closed | Reopened | Described | GrantSet


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What becomes of a `concurrency_key`: how many tasks are held, how many are set aside, what counts as started."""

    key: str
    held: int
    waiting: int
    spent: Spent


@dataclass(frozen=True, slots=True)
class Report:
    """The newest live values of a held task. `delta` goes to the log as `task.progress`, None for nothing.

    `delta` holds the fields of `live`, by name, that changed since the log last told of them. `active_at` is
    the newest sign of life, and the date of that entry; `live` None leaves the record's as it is.
    """

    task_id: str
    attempt: int
    active_at: Instant
    live: Live | None = None
    delta: JSONObject | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A small record that no task needs to run: an API key, a webhook, a policy, how far a follower has come.

    It is of a `collection` and of an organization, which is empty for what is of the whole installation. `key` is a
    second name that no other of the collection has. `version` counts how often it was written; 0 is what was never.
    """

    collection: str
    id: str
    data: JSONObject
    organization_id: str = ""
    key: str | None = None
    due_at: Instant | None = None
    version: int = 0


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A task as an index finds it: by its terms, of which that of its `state` and the `passing` may be others later."""

    task_id: str
    created_at: Instant
    state: str
    lasting: frozenset[str]
    passing: frozenset[str]


@dataclass(frozen=True, slots=True)
class Pruned:
    """What is gone. `rest` are those of the tasks named that a transaction of a sensible length did not come to."""

    task_ids: tuple[str, ...] = ()
    session_ids: tuple[str, ...] = ()
    rest: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerCard:
    """A worker as it presents itself. `boot_id` and `pid` identify its process on `host`.

    After so many seconds without a beat it is lost: by then it has ended what it does. Others go by its own word, for
    they may have been started with other settings. 0 for one of an earlier version, which does not say.
    """

    id: str
    host: str
    boot_id: str
    pid: int
    started_at: Instant
    routes: tuple[str, ...] = ()
    version: str = ""
    concurrency: int = 0
    lost_after: float = 0.0
    app_version: str = ""
    """What its app calls its own state, if it says."""


# --- what is read ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Worker:
    """A registered worker. `beat` grows while it lives; it says nothing about any clock."""

    card: WorkerCard
    beat: int
    beat_at: Instant


@dataclass(frozen=True, slots=True)
class LogRow:
    """One entry of a session's log. `data` is encoded JSON; `position` orders the whole database."""

    position: int
    session_id: str
    seq: int
    task_id: str | None
    type: LogType
    at: Instant
    data: bytes


@dataclass(frozen=True, slots=True)
class LogPage:
    """Entries of many sessions' logs. `next` is the position of the last that was looked at, wanted or not."""

    rows: tuple[LogRow, ...]
    next: int


@dataclass(frozen=True, slots=True)
class News:
    """That the log of a session has grown: where an entry stands, without what it says."""

    position: int
    session_id: str
    seq: int
    task_id: str | None


@dataclass(frozen=True, slots=True)
class Head:
    """Where the log of a session ends, and whose session it is."""

    seq: int
    position: int
    """That of the newest entry, 0 where it was pruned."""
    organization_id: str
    root_session_id: str


@dataclass(frozen=True, slots=True)
class Output:
    """Output from a cursor on. `first` is the offset of the oldest byte kept, `next` the cursor after `rows`."""

    rows: tuple[OutputRow, ...]
    first: int
    next: int


@dataclass(frozen=True, slots=True)
class PendingFollowUp:
    """A follow-up that waits to be applied to one task."""

    id: int
    task_id: str
    event: FollowUpEvent


@dataclass(frozen=True, slots=True)
class InboxRow:
    """An undelivered entry of a session's inbox."""

    seq: int
    session_id: str
    task_id: str
    reason: WakeReason
    body: JSONObject
    created_at: Instant
    deliveries: int = 0
    """How often it was received; the last of these is the one whose receipt is good."""
    leased_until: Instant | None = None
    """Until when nobody else receives it."""


@dataclass(frozen=True, slots=True)
class TranscriptRow:
    """One entry of a session's transcript, numbered from 1. `message` is encoded JSON."""

    number: int
    task_id: str
    iteration: int
    message: bytes


FileMark: TypeAlias = tuple[str, int, Instant]
"""What tells a file from another, and from what it was: its path, size and `created_at`."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A session's file without its content; `size` in bytes."""

    session_id: str
    path: str
    media_type: str
    size: int
    created_at: Instant
    task_id: str | None


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks to list. None means any. `after` is the id of the last task of the page before."""

    session_id: str | None = None
    root_session_id: str | None = None
    parent_task_id: str | None = None
    organization_id: str | None = None
    states: tuple[State, ...] | None = None
    kind: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    created_after: Instant | None = None
    """From this moment on."""
    created_before: Instant | None = None
    """Before this moment, and not at it."""
    text: str | None = None
    """Words that the task has, or its id; see `search.says`."""
    after: str | None = None
    limit: int = 100
    newest_first: bool = True


@dataclass(frozen=True, slots=True)
class Unindexed:
    """What an index of tasks lacks: it stands at the position `after` of the log, and with these tasks at `upto`.

    `more` tells that it lacks others yet, or has tasks that were deleted.
    """

    after: int
    upto: int
    tasks: tuple[Task, ...] = ()
    more: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many tasks of a route want a worker: in which readiness, what holds them back, and since when the oldest."""

    route: str
    readiness: Readiness
    blocked_by: str | None
    count: int
    oldest_due_at: Instant | None


@dataclass(frozen=True, slots=True)
class Ended:
    """How many tasks of a kind ended in one way, and how long they took on average and at most.

    `waited` counts from creation to the first start, `ran` from there to the end; None where none was ever started.
    """

    kind: str
    state: State
    error_kind: str | None
    count: int
    waited: Span | None
    waited_most: Span | None
    ran: Span | None
    ran_most: Span | None


@dataclass(frozen=True, slots=True)
class Storage:
    """What the database takes on its disk, in bytes. `free` of `size` is kept for what comes; `log` is beside it.

    None for what a server keeps to itself.
    """

    size: int
    free: int | None = None
    log: int | None = None


@dataclass(frozen=True, slots=True)
class Statistics:
    """What waits now, what ended since a moment, and what all of it takes."""

    states: Mapping[State, int]
    waiting: tuple[Waiting, ...]
    ended: tuple[Ended, ...]
    storage: Storage


@dataclass(frozen=True, slots=True)
class Beat:
    """What a held task's worker needs to notice: the version tells whether there is news."""

    task_id: str
    attempt: int
    version: int


@dataclass(frozen=True, slots=True)
class Signal:
    """Who is concerned by what was just committed. `unknown` means: another process wrote, so look.

    `task_ids` names every task that something was written for, output and journal too; `moved` those of them
    whose version moved, with the version that they have now.
    """

    task_ids: frozenset[str] = frozenset()
    moved: Mapping[str, int] = field(default_factory=dict)
    session_ids: frozenset[str] = frozenset()
    ready: bool = False
    """A task became ready, or its time to become ready changed."""
    follow_ups: bool = False
    unknown: bool = False
    foreign: bool = False
    """Another process has committed this; what is unknown comes from one as well."""
    deadline_at: Instant | None = None
    """The earliest next deadline of the tasks that moved, None if none of them has one."""


def rise(versions: dict[str, int], to: Mapping[str, int]) -> None:
    """Raise versions by task to those, where they are lower: news of two commits may come in either order."""
    for task_id, version in to.items():
        if versions.get(task_id, 0) < version:
            versions[task_id] = version


Decide: TypeAlias = Callable[[Task], Change]
"""The reducer, with the claim's event and moment filled in."""

Listener: TypeAlias = Callable[[Signal], None]
"""Called on the event loop that opened the store, after each commit."""


class Views(Protocol):
    """Named, typed queries. Each sees everything that was committed before it was called."""

    async def task(self, task_id: str) -> Task | None:
        """The task of that id."""
        ...

    async def tasks(self, ids: Sequence[str]) -> Sequence[Task]:
        """The tasks of these ids that exist, in no particular order."""
        ...

    async def keyed(self, session_id: str, keys: Sequence[str]) -> Sequence[Task]:
        """The tasks of a session that have one of these idempotency keys, in no particular order."""
        ...

    async def task_ids(
        self, part: str, limit: int, *, organization_id: str | None = None, root_session_id: str | None = None
    ) -> Sequence[str]:
        """Ids of tasks that begin or end with `part`, in their order. People type no 32 digits.

        Of one organization, or one delegation tree, only, when given.
        """
        ...

    async def list_tasks(self, filter: TaskFilter) -> Sequence[Task]:
        """A page in the order of ids, which is the order of creation; `search.passes` says which tasks are on it.

        However many there are and few of them pass, it takes no longer, as long as the index is up to date. What the
        index lacks is looked at one by one.
        """
        ...

    async def unindexed(self, limit: int) -> Unindexed:
        """The tasks of the next `limit` log entries that the index has not taken in; nothing where a store has none."""
        ...

    async def children(self, task_id: str) -> Sequence[Task]:
        """The tasks whose parent this is, ended ones too."""
        ...

    async def held_by(self, worker_id: str) -> Sequence[Beat]:
        """What that worker holds now."""
        ...

    async def holders(self) -> Mapping[str, int]:
        """How many tasks each worker holds now, by its id; those that hold any, registered or not."""
        ...

    async def active_at(self, task_id: str) -> Instant | None:
        """The newest recorded sign of life (report or appended page) of the task's current attempt, if any."""
        ...

    async def overdue(self, now: Instant, limit: int) -> Sequence[Task]:
        """Tasks whose next deadline has passed, earliest first."""
        ...

    async def follow_ups(self, limit: int, task_ids: Sequence[str] | None = None) -> Sequence[PendingFollowUp]:
        """Follow-ups that wait, oldest first; of these tasks only, when given."""
        ...

    async def session(self, session_id: str) -> Session | None:
        """The session of that id."""
        ...

    async def sessions(
        self,
        *,
        after: str | None = None,
        limit: int = 100,
        organization_id: str | None = None,
        root_session_id: str | None = None,
    ) -> Sequence[Session]:
        """Sessions newest first, after the one of that id; of one organization, or one tree, only, when given."""
        ...

    async def steps(self, task_id: str, *, values: bool = True) -> Sequence[Step]:
        """The task's journal, in the order it was written; without `values`, each value is None and is not read."""
        ...

    async def attempts(self, task_id: str) -> Sequence[AttemptEnd]:
        """The task's closed attempts, in order."""
        ...

    async def requests(self, task_id: str) -> Sequence[InputRequest]:
        """All requests the task ever made, oldest first."""
        ...

    async def request(self, request_id: str) -> InputRequest | None:
        """The request of that id, pending or closed."""
        ...

    async def messages(
        self, task_id: str, *, direction: Direction | None = None, after: str | None = None, limit: int = 1000
    ) -> Sequence[Message]:
        """The task's thread in the order it was written, after the message of that id."""
        ...

    async def events(
        self, session_id: str, *, after: int = 0, limit: int = 1000, task_id: str | None = None
    ) -> Sequence[LogRow]:
        """Log entries with a `seq` greater than `after`, in order; of one task only, when given."""
        ...

    async def position(self) -> int:
        """The position of the newest log entry of all sessions, 0 if there is none.

        It may fall where that entry is deleted.
        """
        ...

    async def horizon(self) -> int:
        """The highest position that may have been told of; it never falls, and no later entry is at or below it."""
        ...

    async def news(self, *, after: int, limit: int = 1000) -> Sequence[News]:
        """The log entries of all sessions with a position greater than `after`, in order."""
        ...

    async def log(self, *, after: int, limit: int = 1000, organization_id: str | None = None) -> LogPage:
        """What an organization has, or all have, among the next `limit` log entries after a position; in order.

        Whoever goes on from `next` misses none and gets none twice.
        """
        ...

    async def heads(self, session_ids: Sequence[str]) -> Mapping[str, Head]:
        """Where the logs of those of these sessions end that exist, by id; also what `position` does not count yet."""
        ...

    async def first_seq(self, session_id: str) -> int:
        """The number from which on the log is whole; 1 unless tasks were pruned.

        Below it the entries of tasks that still exist are all there, and those of pruned ones are missing.
        """
        ...

    async def output(self, task_id: str, *, start: int = 0, limit: int = 1000) -> Output:
        """Output from the byte offset `start` on, at most `limit` pieces, whole: the first may begin before it."""
        ...

    async def file(self, session_id: str, path: str) -> bytes | None:
        """The content of a session's file."""
        ...

    async def files(
        self, session_id: str, *, prefix: str = "/", after: str | None = None, limit: int = 1000
    ) -> Sequence[FileInfo]:
        """The session's files below a prefix, in the order of their paths, after the one of that path."""
        ...

    async def transcript(self, session_id: str, *, after: int = 0, limit: int = 100_000) -> Sequence[TranscriptRow]:
        """Transcript entries numbered above `after`, in order."""
        ...

    async def last_entry(self, session_id: str, *, task_id: str | None = None, iteration: int | None = None) -> int:
        """The number of the newest transcript entry, 0 if there is none; of those of a task, and up to an iteration."""
        ...

    async def inbox(self, session_id: str, *, limit: int = 100) -> Sequence[InboxRow]:
        """Entries that were not delivered for good, oldest first, whether somebody has them or not."""
        ...

    async def receivable_at(self, session_id: str, now: Instant) -> Instant | None:
        """When somebody can receive something: at a moment up to `now` if at once, None while there is nothing.

        Raises NotFound when there is no such session.
        """
        ...

    async def workers(self) -> Sequence[Worker]:
        """All registered workers."""
        ...

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
        """Ids of tasks that ended before a moment, the longest ended first. None means any.

        Left out are those that are pinned, alone or with their session or the root of its tree, by a document of the
        collection `pin` with that id; those of the organizations `but_of`; and those that ended before `since`, so that
        whoever has looked through those before does not do it again.
        """
        ...

    async def newest_ended(self, organization_id: str, place: int) -> Instant | None:
        """When the task ended that stands at this place, from 0, of an organization's newest; None if none does."""
        ...

    async def child_sessions(self, task_ids: Sequence[str]) -> Sequence[Session]:
        """The sessions that these tasks opened, in no particular order."""
        ...

    async def count_by_state(self) -> Mapping[State, int]:
        """How many tasks there are in each state."""
        ...

    async def gates(self) -> Gates:
        """All limits and pauses."""
        ...

    async def grants(self, session_ids: Sequence[str]) -> Sequence[Grant]:
        """What was said last of each tool in these sessions, by session and name."""
        ...

    async def document(self, collection: str, *, id: str | None = None, key: str | None = None) -> Document | None:
        """The document of that id, or else of that key."""
        ...

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
        """A page of a collection in the order of ids, of those that begin with `below`; the longest due first if asked.

        `due_by` leaves out what is not due at all, and knows no `after`: what was done is not due any more.
        """
        ...

    async def due_at(self, collection: str) -> Instant | None:
        """When the first of a collection is due, None while none is."""
        ...

    async def meters(self, names: Sequence[str]) -> Mapping[str, Meter]:
        """Those of these meters that anything was ever charged to, by name."""
        ...

    async def usage(self, session_id: str, *, tree: bool = False) -> Usage:
        """What the tasks of a session reported together; with `tree`, those of all sessions whose root it is.

        Tasks that were pruned are not among them. Looks at each task: for people, not for programs.
        """
        ...

    async def ahead(self, task_id: str) -> int | None:
        """How many ready tasks of its route a claim would take before this one; None unless it is ready."""
        ...

    async def statistics(self, since: Instant) -> Statistics:
        """What waits now, and what ended since a moment. Looks at each of those: for people, not for programs."""
        ...

    async def problems(self, *, deep: bool = False) -> Sequence[str]:
        """What is wrong with the database, in words; nothing if it is sound.

        Takes as long as reading all of it; `deep` compares every index with its table and takes longer. Raises
        InvalidArguments where a store cannot do that.
        """
        ...

    async def schema(self) -> int:
        """The number of the newest migration that was applied, 0 where there are none.

        Raises StoreNewer where a program of a later version has since made of the schema what this one does not know.
        """
        ...

    async def uses(self, keys: Sequence[str] | None = None) -> Sequence[KeyUse]:
        """What becomes of these keys, or of all under which anything is held or set aside; in the order of keys."""
        ...


@dataclass(frozen=True, slots=True)
class Saved:
    """A backup that was made: where it is, its size in bytes, and how many tasks are in it."""

    path: str
    size: int
    tasks: int


@runtime_checkable
class Savable(Protocol):
    """A store that can be saved into a file while it is in use. One in memory, or with a server, has other ways."""

    async def save(self, path: str, *, replace: bool = False) -> Saved:
        """Write all that was committed by now into a new file, checked and durable, whole or not at all.

        Nobody waits for it. Raises InvalidArguments where the file exists already, unless `replace`.
        """
        ...


class Ledger(Protocol):
    """The writing verbs. All are safe to call from many tasks of the loop at once; that is what makes them fast.

    `report`, `journal`, `append` and `print` all write what a held attempt says, and are four all the same: each has
    rows and log entries of its own, and of a task that lies within bounds a client may `report` and `print` alone.
    """

    @property
    def views(self) -> Views:
        """The reading half."""
        ...

    @property
    def counters(self) -> Mapping[str, int]:
        """`commits` and `statements` since the store was opened."""
        ...

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each commit; returns what ends it."""
        ...

    async def create_session(self, new: NewSession, seed: Seed | None = None) -> Session:
        """Create a session, or return the one of that id. Logs `session.created`.

        With a `seed` it begins with copies of what another one has, in the same transaction. Raises NotFound where that
        one is gone, or has fewer entries.
        """
        ...

    async def commit(self, changes: Sequence[Change]) -> Sequence[Verdict]:
        """Commit each Change whole or not at all, in the order given; one verdict for each.

        Of several reasons not to write, the verdict tells the first in this order: Settled, Fenced (a row of
        `steps` comes from an attempt that does not hold its task; those of a task that the Change itself creates
        need none), NoSession (also for the session of its luggage), Existing for a creation, Stale for anything else,
        Shut, Fenced for its `page` or what it `printed`, Barred for a creation. A no-op is compared with the stored
        version like any other Change.

        A version tells records apart only among those that were committed. A Change may be decided on what
        another one before it would make of the record only if every later Change of that task rests on it too.

        Watches: who stands in `watches` hears of it by a follow-up `WatchedEnded` when that task ends, and at
        once if it has ended; a task that does not exist counts as failed.

        Rank: a creation that is ready or timed gets `rank_of_new` with its session's tail; one that is blocked
        or held, and later every record whose `due_at` moved to another moment, `rank_of_resumed`; one whose priority
        alone moved gets `rank_of_moved`. Else a task keeps its place in the queue.

        Debounce: a creation whose `debounce_key` a task of its session has that was never claimed and has not ended
        finds it as Existing.
        """
        ...

    async def claim(self, claim: Claim, decide: Decide) -> Claims:
        """Take ready tasks that nobody holds, committing what `decide` makes of each.

        First the timed tasks of the routes whose `due_at` has come become ready. Of two tasks of one rank the
        one created first goes first. No route is served whose kind is paused; what a paused session owns, and what
        the limit of its `concurrency_key` does not admit, is set aside in passing. At no moment are more tasks of a
        key held than its limit's capacity, unless that was lowered; in no span do more start than its rate.
        """
        ...

    async def control(self, order: Order) -> bool:
        """Limit, pause, resume, close, reopen, describe, grant; False if all was so already. What runs, runs on.

        Whatever needs a session open is committed before it closes, or not at all. Raises NotFound where there is no
        such session, NotEnded where it may not be closed while tasks live.
        """
        ...

    async def keep(self, documents: Sequence[Document], dropped: Sequence[Document] = ()) -> bool:
        """Write documents anew and drop others: all of it, or nothing and False.

        It is nothing where any of them is not there in the `version` that it has here, or where another document has
        its `key`. What was written has the next version.
        """
        ...

    async def index(self, entries: Sequence[IndexEntry], after: int, upto: int) -> bool:
        """Take tasks, as they were read by `unindexed`, into the index that lists go by, and forget some deleted ones.

        False, and nothing written, where the index does not stand at `after` any more: somebody else was faster.
        """
        ...

    async def report(self, reports: Sequence[Report]) -> Sequence[bool]:
        """Write live values; False for each whose attempt no longer holds its task."""
        ...

    async def journal(self, steps: Sequence[Step]) -> Sequence[bool]:
        """Write journal rows, replacing those of the same position; False for each whose attempt is over."""
        ...

    async def append(self, page: Page) -> bool:
        """Append a finished iteration; False, and nothing written, if the attempt is over.

        Of what it takes from the inbox, an entry that was written anew since it was read stays there. What it changes
        of `live` is logged as `task.updated`; the version does not move.
        """
        ...

    async def print(self, chunks: Sequence[OutputChunk]) -> Sequence[bool]:
        """Append output; False for each whose attempt is over.

        The log is told once for each task, as `task.output`: the bytes `from` and `to` that were added, and
        their `stream`, None where they are of several.
        """
        ...

    async def write_file(self, file: FileWrite, fence: tuple[str, int] | None = None) -> bool:
        """Write a file whole, replacing one of that path; False if the fencing (task id, attempt) is over.

        Raises NotFound when there is no such session.
        """
        ...

    async def delete_file(self, session_id: str, path: str) -> bool:
        """Delete a file; False if there was none."""
        ...

    async def charge(self, charges: Sequence[Charge]) -> Sequence[ChargeVerdict]:
        """Take down each charge whole, in all meters that it concerns, or not at all; see `meters.judge`.

        A meter that passes its soft mark by it tells its session, in the same transaction, once. When an attempt of a
        task with a budget ends, the Change that ends it settles what it has reserved and not settled: in full, as
        unknown.
        """
        ...

    async def register(self, card: WorkerCard) -> None:
        """Make a worker known."""
        ...

    def renew(self, worker_id: str, timeout: float) -> bool:
        """Advance the worker's beat, waiting at most `timeout` seconds. Called from a thread, never the loop.

        False when the worker is not registered any more; raises StoreUnavailable when time ran out.
        """
        ...

    async def retire(self, worker_id: str) -> None:
        """Forget a worker. The tasks it held must have been settled before."""
        ...

    async def receive(self, session_id: str, now: Instant, until: Instant, limit: int) -> Sequence[InboxRow]:
        """Take the oldest entries that nobody has at `now`, and let nobody else have them before `until`.

        What is told of a task from then on is another entry, which anybody may take. A lease is a moment and no beat:
        who holds it proves nothing by it, so a clock that is set only makes entries come again sooner or later.
        """
        ...

    async def acknowledge(
        self, session_id: str, receipts: Sequence[Receipt], until: Instant | None = None
    ) -> Sequence[Standing]:
        """Drop the entries whose receipts are good; with `until` have them kept until then instead. One answer each.

        A lease that is over does no harm as long as nobody else has received the entry since.
        """
        ...

    async def prune(
        self,
        task_ids: Sequence[str],
        session_ids: Sequence[str] = (),
        *,
        now: Instant | None = None,
        files: Collection[FileMark] | None = None,
    ) -> Pruned:
        """Delete ended tasks whole, and sessions that have no task left; what lives is left as it is, silently.

        With a task go its record, journal, attempts, requests, messages, output, files, log entries, undelivered
        wake, and the follow-ups for it, also where it was gone before. A session goes with all that it has. The
        session of a task that is gone, and that has no task left itself, goes with the last of them. Where it is known
        what time it is `now`, so do the starts of their concurrency keys that count against no rate any more. Where
        `files` are given, a session stays that has a file of its own which is not among them.

        What names a pruned task or session goes on naming it. `seq` and `position` are not given again; the
        session's `first_seq` moves beyond the newest entry that went.
        """
        ...

    async def close(self) -> None:
        """Finish what was handed over and let go of the database."""
        ...
