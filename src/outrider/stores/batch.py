"""One transaction of many operations: look up all that they concern, judge them in order, write what is left.

Between `load` and `finish` nothing is written. The heads of the tasks and sessions concerned stand in memory
and move on with each operation, so that an operation sees what those before it did, as if each had been a
transaction of its own; then every table is written once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from operator import itemgetter
from typing import Any, TypeAlias

from outrider.core.change import AttemptEnd, FollowUp, InboxEntry, Luggage
from outrider.core.delivery import Receipt, Standing
from outrider.core.errors import NotEnded, NotFound
from outrider.core.events import FileWrite, FollowUpEvent, Rung, Step, WatchedAsked, WatchedEnded
from outrider.core.ledger import (
    Barred,
    Committed,
    Described,
    Existing,
    Fenced,
    FileMark,
    InboxRow,
    IndexEntry,
    NoSession,
    OutputChunk,
    Page,
    Pruned,
    Report,
    Settled,
    Shut,
    Signal,
    Stale,
    Verdict,
)
from outrider.core.meters import (
    Charge,
    ChargeVerdict,
    Meter,
    Reservation,
    Reserve,
    Ruling,
    Settle,
    Tap,
    bring,
    judge,
    lapse,
    notice,
    taps_of,
)
from outrider.core.queue import (
    EVERY,
    NO_GATES,
    PATIENCE,
    Gates,
    Limit,
    Lines,
    Pause,
    Spent,
    has_returned,
    next_return,
    rank_of_moved,
    rank_of_new,
    rank_of_resumed,
    spend,
    starts_left,
    turn_after,
)
from outrider.core.session import NewSession, Seed, Session
from outrider.core.task import OWNED, TERMINAL, Core, Input, State, Task, split_key
from outrider.core.values import Instant, difference, evolve
from outrider.stores.index import forget_unlisted, write_entries
from outrider.stores.parcel import Parcel
from outrider.stores.rows import (
    LIVE,
    NO_LIVE,
    REQUEST,
    STATES,
    decode,
    encode,
    read_live,
    read_meter,
    read_reservation,
    read_task,
    write_meter,
)
from outrider.stores.statements import NO_NUL, Statements, listed

Ready: TypeAlias = Sequence[Any]
"""A task that may be claimed: rank, number, due_at, concurrency key, number of its session."""

Ask: TypeAlias = Callable[[str, str, Callable[[list[Any]], None]], None]
"""Have a query run with a parameter, and what it finds taken in."""

Look: TypeAlias = "tuple[list[Ready], Instant | None, Instant | None, bool, Instant | None]"
"""The first ready tasks in their order; when the first timed one is due; the earliest deadline of any task; whether
follow-ups wait; when a start returns to a rate that holds tasks back."""

TASKS_FOLDER = "/.tasks/"
AFTER_ANY = "\U0010ffff"
"""Sorts after whatever may follow a prefix."""


@dataclass(slots=True, eq=False)
class TaskHead:
    """What a transaction knows of a task. `task` is the record once the transaction has written it."""

    number: int
    id: str
    session_id: str
    state: State
    version: int
    attempt: int
    worker_id: str | None
    due_at: Instant | None
    rank: int
    priority: int
    live: str | None
    active_at: Instant | None
    active_attempt: int | None
    is_large: bool = False
    task: Task | None = None

    def holds(self, attempt: int) -> bool:
        """Whether that attempt holds the task now."""
        return self.worker_id is not None and self.attempt == attempt

    @property
    def is_ready(self) -> bool:
        """Whether a claim will ask for it next, as far as its record is known."""
        return self.task is not None and self.task.core.readiness == "ready"


@dataclass(slots=True, eq=False)
class KeyHead:
    """What a transaction knows of a `concurrency_key`: how many tasks it holds, and what of its rate is spent."""

    held: int
    spent: Spent
    may_wait: bool = True
    """Whether tasks may have been set aside under it."""
    starts: int = 0
    """How many were started in this transaction, not yet counted in `spent`."""
    now: Instant = 0
    """When the last of them was."""
    freed_at: Instant = 0
    """When it last left a place that others may take."""

    def places(self, limit: Limit, now: Instant) -> int | None:
        """How many more may start now; None for any number."""
        left = starts_left(limit, self.spent, now)
        left = None if left is None else max(0, left - self.starts)
        if limit.capacity is None:
            return left
        free = max(0, limit.capacity - self.held)
        return free if left is None else min(free, left)


@dataclass(slots=True, eq=False)
class KnownGates:
    """The limits and pauses, and what they mean for rows: which sessions, by number, are paused or being resumed."""

    gates: Gates = NO_GATES
    paused: frozenset[int] = frozenset()
    resuming: tuple[tuple[int, str], ...] = ()


@dataclass(slots=True, eq=False)
class SessionHead:
    """What a transaction knows of a session: its counters."""

    number: int
    id: str
    seq: int
    transcript: int
    inbox: int
    updated_at: Instant
    has_agent: bool
    is_closed: bool = False
    base: tuple[int, int, int] = (0, 0, 0)
    """Where `seq`, `transcript` and `inbox` stood when they were looked up."""

    def __post_init__(self) -> None:
        self.base = (self.seq, self.transcript, self.inbox)


@dataclass(slots=True, eq=False)
class Known:
    """What one transaction knows of the database and leaves to the next, as long as nobody else has written.

    Whoever else deletes or changes rows behind these heads has to see to it that they are forgotten.
    """

    tasks: dict[str, TaskHead] = field(default_factory=dict)
    numbered: dict[int, TaskHead] = field(default_factory=dict)
    """The same by number."""
    sessions: dict[str, SessionHead] = field(default_factory=dict)
    watchers: dict[str, dict[str, None]] = field(default_factory=dict)
    numbers: list[int] | None = None
    """The newest numbers that were given to a task and a session."""
    keys: dict[str, KeyHead] = field(default_factory=dict)
    lines: dict[tuple[str, str], Instant | None] = field(default_factory=dict)
    """Where lines end, by route and whose they are; None for one that has not begun. See `turn_of`."""
    gates: KnownGates | None = None

    def tidy(self, moved: Iterable[str]) -> None:
        """Forget what is hardly ever asked for again; past a bound, all but the numbers.

        Records of tasks that wait are not kept, lest a crowd of them fills the memory, nor are large ones.
        """
        for task_id in moved:
            head = self.tasks.get(task_id)
            if head is None:  # pruned, by the very transaction that ended it
                continue
            if head.state in TERMINAL:
                self.forget(head)
            elif head.is_large or (head.worker_id is None and not head.is_ready):
                head.task = None
        if len(self.tasks) + len(self.watchers) > MOST_KNOWN:
            self.tasks.clear()
            self.numbered.clear()
            self.watchers.clear()
        if len(self.sessions) > MOST_KNOWN:
            self.sessions.clear()
        if len(self.keys) > MOST_KNOWN:
            self.keys.clear()
        if len(self.lines) > MOST_KNOWN:
            self.lines.clear()

    def forget(self, head: TaskHead) -> None:
        """Forget a task: it is hardly asked for again, or gone."""
        del self.tasks[head.id], self.numbered[head.number]
        self.watchers.pop(head.id, None)


FULL = 1 << 62
"""More than any limit admits."""

AT_NEXT_CLAIM: Instant = 0
"""A moment that has come, whatever the time is."""

AT_ONCE = 1000
"""How many tasks one transaction lets in at most, of a key and a route or of a session; the rest come later."""

MOST_KNOWN = 4000
"""How many tasks, and how many sessions, are kept in mind."""

MOST_ROWS = 600
"""How many tasks, with their rows in journals, logs and output, one transaction prunes, but for a single task that has
more: some 150 small ones, in 10 to 20 ms. A thousand were seen to hold others up for 100.
"""

MOST_LOOKED_AT = MOST_ROWS // 3
"""How many of them it looks at: few have fewer rows, and to lock and count them is not for nothing."""

_OF_TASKS = (
    "move_first_seq",
    "prune_events",
    "prune_steps",
    "prune_attempts",
    "prune_requests",
    "prune_messages",
    "prune_output",
    "prune_outputs",
    "prune_files",
    "prune_inputs",
    "prune_meters",
    "prune_passing_terms",
    "unlist",
    "prune_tasks",
)
"""The statements that delete tasks, in an order that lets each find what it looks for."""

_OF_SESSIONS = (
    "prune_session_events",
    "prune_transcript",
    "prune_session_inbox",
    "prune_pauses",
    "prune_grants",
    "prune_lines",
    "prune_session_meters",
    "prune_sessions",
)

LARGE = 8192
"""From how many characters of input on a record is read again rather than kept in mind."""


@dataclass(slots=True)
class Wanted:
    """What the operations of a batch concern, so that it can be looked up at once.

    `logging` are tasks whose session is wanted too, and may not be named otherwise.
    """

    tasks: set[str] = field(default_factory=set)
    sessions: set[str] = field(default_factory=set)
    settles: set[int] = field(default_factory=set)
    watched: set[str] = field(default_factory=set)
    parents: set[str] = field(default_factory=set)
    keys: list[tuple[str, str]] = field(default_factory=list)
    debounced: list[tuple[str, str]] = field(default_factory=list)
    concurrency: set[str] = field(default_factory=set)
    new_of: set[str] = field(default_factory=set)
    """The parents of new tasks."""
    lines: set[tuple[str, str]] = field(default_factory=set)
    is_held: bool = False
    """Whether a task is to be held from its first moment."""
    logging: set[str] = field(default_factory=set)
    meters: set[str] = field(default_factory=set)
    spending: set[str] = field(default_factory=set)
    """The tasks whose open reservations are wanted."""

    def change(self, parcel: Parcel) -> None:
        """A Change concerns its task and session, and whoever it writes rows for."""
        change = parcel.change
        task = change.task
        self.tasks.add(task.id)
        self.sessions.add(task.input.session_id)
        if change.settles is not None:
            self.settles.add(change.settles)
        if change.before is None and task.input.idempotency_key is not None:
            self.keys.append((task.input.session_id, task.input.idempotency_key))
        if change.before is None and task.input.debounce_key is not None:
            self.debounced.append((task.input.session_id, task.input.debounce_key))
        if task.input.concurrency_key is not None:
            self.concurrency.add(task.input.concurrency_key)
        if change.before is None:
            self.is_held = self.is_held or task.core.worker_id is not None
            if task.input.parent_task_id is not None:
                self.new_of.add(task.input.parent_task_id)
        self.line(task, is_new=change.before is None)
        for follow_up in change.follow_ups:
            if follow_up.relation != "session":
                (self.watched if follow_up.relation == "watchers" else self.parents).add(follow_up.of)
        self.tasks.update(change.watches)
        for step in change.steps:
            self.tasks.add(step.task_id)
        if change.page is not None:
            self.sessions.add(change.page.session_id)
        for file in change.files:
            self.file(file)
        for entry in change.inbox:
            self.sessions.add(entry.session_id)
        if change.luggage is not None:
            if change.luggage.child_session_id is not None:
                self.sessions.add(change.luggage.child_session_id)
            self.meters.update(account.name for account in change.luggage.accounts)
            self.sessions.update(account.tell for account in change.luggage.accounts if account.tell is not None)
        if change.ended is not None and task.input.budget and (taps := taps_of(task)):
            self.meters.update(tap.account for tap in taps)
            self.spend(task.id, taps)

    def line(self, task: Task, *, is_new: bool) -> None:
        """A task that is placed in the queue, or taken from it, concerns the lines of its route."""
        given, core = task.input, task.core
        if is_new and core.readiness == "ready":
            self.lines.update(lines_of(given))
        elif not is_new and (core.due_at is not None or core.worker_id is not None):
            self.lines.add(turn_of(given.route))

    def spend(self, task_id: str, taps: Iterable[Tap]) -> None:
        """What a task spends concerns what it has reserved, and who is told of soft marks."""
        self.tasks.add(task_id)
        self.spending.add(task_id)
        self.sessions.update(tap.tell for tap in taps if tap.tell is not None)

    def file(self, file: FileWrite) -> None:
        """A file concerns its session, and the task whose folder it lies in."""
        self.sessions.add(file.session_id)
        if (owner := owner_of(file.path)) is not None:
            self.tasks.add(owner[0])


def turn_of(route: str) -> tuple[str, str]:
    """What the turn of a route goes by among the lines."""
    return route, ""


def lines_of(given: Input) -> tuple[tuple[str, str], tuple[str, str], tuple[str, str]]:
    """What the lines go by that a new task stands in: the turn of its route, its organization's and its session's."""
    route = given.route
    return turn_of(route), (route, f"o:{given.organization_id}"), (route, f"s:{given.session_id}")


def owner_of(path: str) -> tuple[str, str] | None:
    """The task id and the rest of a path below a task's folder; None for any other path."""
    if not path.startswith(TASKS_FOLDER):
        return None
    task_id, _, rest = path[len(TASKS_FOLDER) :].partition("/")
    return (task_id, rest) if rest else None


class Batch:
    """The transaction being made. Use: `load`, the judging verbs in order, `finish`; `signal` after the commit.

    It changes what is `known` as it goes, so if the transaction fails, all of that has to be forgotten.
    """

    def __init__(self, statements: Statements, known: Known) -> None:
        self._statements = statements
        self._known = known
        self._tasks = known.tasks
        self._sessions = known.sessions
        self._watchers = known.watchers
        self._settles: set[int] = set()
        self._children: dict[str, dict[str, bool]] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._debounced: dict[tuple[str, str], str] = {}
        self._counted: dict[str, KeyHead] = {}
        self._loosened: dict[str, KeyHead] = {}
        self._has_written_rates = False
        self._moved_lines: set[tuple[str, str]] = set()
        self._output: dict[int, list[int]] = {}
        self._meters: dict[str, Meter] = {}
        self._moved_meters: set[str] = set()
        self._reserved: dict[str, dict[tuple[int, int], Reservation]] = {}
        self._opened: dict[tuple[int, int, int], Reservation] = {}
        self._closed: list[tuple[int, int, int]] = []
        self._unread: list[tuple[str, Callable[[Task | None], None]]] = []

        self._new_tasks: list[tuple[Any, ...]] = []
        self._new_inputs: list[tuple[Any, ...]] = []
        self._moved: dict[int, tuple[Any, ...]] = {}
        self._lives: dict[int, TaskHead] = {}
        self._counts: Counter[str] = Counter()
        self._new_sessions: list[tuple[Any, ...]] = []
        self._touched: dict[int, SessionHead] = {}
        self._rows: defaultdict[str, list[tuple[Any, ...]]] = defaultdict(list)
        self._settled: list[int] = []
        self._ended: list[str] = []
        self._drivers: dict[int, str] = {}
        self._needs_open: set[int] = set()
        """The sessions, by number, that must not have been closed when this is committed."""
        self._takes: list[tuple[int, str, int]] = []
        self._steps: list[tuple[int, Step]] = []
        self._forgotten: list[tuple[int, str]] = []
        self._events: list[tuple[Any, ...]] = []
        self._transcript: list[tuple[Any, ...]] = []
        self._inbox: dict[tuple[int, str], tuple[Any, ...]] = {}
        self._trims: dict[int, int] = {}

        self._task_ids: set[str] = set()
        self._versions: dict[str, int] = {}
        self._session_ids: set[str] = set()
        self._ready = False
        self._deadline_at: Instant | None = None
        self._follow_ups = False

    @property
    def statements(self) -> Statements:
        """What it runs on."""
        return self._statements

    def signal(self) -> Signal:
        """Who is concerned by what was written."""
        self._known.tidy(self._versions)
        return Signal(
            frozenset(self._task_ids),
            self._versions,
            frozenset(self._session_ids),
            self._ready,
            self._follow_ups,
            deadline_at=self._deadline_at,
        )

    @property
    def has_written_rates(self) -> bool:
        """Whether it may have moved the moment at which a start returns to a rate that holds tasks back."""
        return self._has_written_rates

    def tell(self, *, session_id: str) -> None:
        """Count a session among those concerned."""
        self._session_ids.add(session_id)

    # --- looking up --------------------------------------------------------------------------------------

    def load(self, wanted: Wanted) -> None:
        """Look up what is wanted and not known yet, one query for each kind of thing."""
        asked: list[tuple[str, str]] = []
        takers: list[Callable[[list[Any]], None]] = []

        def ask(name: str, given: str, take: Callable[[list[Any]], None]) -> None:
            asked.append((name, given))
            takers.append(take)

        if tasks := (wanted.tasks | wanted.logging) - self._tasks.keys():
            ask("task_heads", listed(tasks), self._take_tasks)
        if wanted.settles:
            ask("pending_follow_ups", listed(wanted.settles), self._settles.update)
        if wanted.concurrency:
            self._ask_keys(wanted.concurrency, ask)
        if lines := wanted.lines - self._known.lines.keys():
            self._known.lines.update((line, None) for line in lines)
            ask("lines", encode([[part.replace("\0", NO_NUL) for part in line] for line in lines]), self._take_lines)
        if wanted.meters:
            self._ask_meters(wanted.meters, ask)
        if wanted.spending:
            self._reserved.update((id, {}) for id in wanted.spending)
            ask("reservations", listed(wanted.spending), self._take_reservations)
        if sessions := wanted.sessions - self._sessions.keys():
            ask("session_heads", listed(sessions), self._take_sessions)
        if wanted.keys:
            ask("keys", encode(wanted.keys), lambda rows: self._keys.update(_by_pairs(rows)))
        if wanted.debounced:
            ask("debounced", encode(wanted.debounced), lambda rows: self._debounced.update(_by_pairs(rows)))
        if watched := wanted.watched - self._watchers.keys():
            self._watchers.update((id, {}) for id in watched)
            ask("watchers", listed(watched), self._take_watchers)
        if parents := wanted.parents - self._children.keys():
            self._children.update((id, {}) for id in parents)
            ask("live_children", listed(parents), self._take_children)
        for take, rows in zip(takers, self._statements.arrays(asked), strict=True):
            take(rows)
        sessions = {self._tasks[id].session_id for id in wanted.logging if id in self._tasks}
        if sessions := sessions - self._sessions.keys():
            self._take_sessions(self._statements.array("session_heads", listed(sessions)))

    def _take_tasks(self, rows: list[Any]) -> None:
        for number, id, session_id, state, *rest in rows:
            head = TaskHead(number, id, session_id, STATES[state], *rest)
            self._tasks[id] = self._known.numbered[number] = head

    def _take_sessions(self, rows: list[Any]) -> None:
        for row in rows:
            self._sessions[row[1]] = SessionHead(*row)

    def _take_lines(self, rows: list[Any]) -> None:
        for route, owner, place in rows:
            self._known.lines[route, owner] = place

    def _take_watchers(self, rows: list[Any]) -> None:
        for awaited, watcher in rows:
            self._watchers[awaited][watcher] = None

    def _take_children(self, rows: list[Any]) -> None:
        for parent, child, detached in rows:
            self._children[parent][child] = bool(detached)

    def _ask_meters(self, names: set[str], ask: Ask) -> None:
        ask("meters", listed(names), self._take_meters)

    def _take_meters(self, rows: list[Any]) -> None:
        self._meters.update((name, read_meter(name, state)) for name, state in rows if state is not None)

    def _take_reservations(self, rows: list[Any]) -> None:
        for task_id, attempt, ordinal, amounts in rows:
            self._reserved[task_id][attempt, ordinal] = read_reservation(task_id, attempt, ordinal, amounts)

    def load_keys(self, keys: set[str]) -> None:
        """Look up concurrency keys, and the limits and pauses with them."""
        asked: list[Any] = []
        self._ask_keys(keys, lambda *question: asked.append(question))
        for name, given, take in asked:
            take(self._statements.array(name, given))

    def _ask_keys(self, keys: set[str], ask: Ask) -> None:
        if missing := keys - self._known.keys.keys():

            def take(rows: list[Any]) -> None:
                for key, held, spent in rows:
                    self._known.keys[key] = KeyHead(held, spent_of(spent))
                for key in missing - self._known.keys.keys():
                    # One with a NUL in it, which `listed` takes away: it stays full, and holds up nobody else.
                    self._known.keys[key] = KeyHead(FULL, (), may_wait=False)

            ask("held_of_keys", listed(missing), take)

    @property
    def gates(self) -> KnownGates:
        """The limits and pauses."""
        if self._known.gates is None:
            limits, pauses = self._read_gates()
            self._known.gates = KnownGates(
                gates_of(limits, pauses),
                frozenset(session for *_, is_over, session in pauses if session is not None and not is_over),
                tuple((session or 0, name) for scope, name, *_, is_over, session in pauses if is_over),
            )
        return self._known.gates

    def _read_gates(self) -> Any:
        return self._statements.document("gates")

    def gates_changed(self) -> None:
        """Limits or pauses were written."""
        self._known.gates = None
        self._ready = True

    def look(self, routes: str, size: int) -> Look:
        """All that a claim has to know, at once."""
        by_route, timed, deadline, follow_ups, opens_at = self._statements.document("look", routes, size)
        return sorted(chain.from_iterable(by_route))[:size], timed, deadline, bool(follow_ups), opens_at

    def ready_by(self, routes: str, size: int, now: Instant) -> list[Ready]:
        """The first ready tasks of these routes that are due by a moment."""
        return sorted(chain.from_iterable(self._statements.document("ready_by", routes, size, now)))[:size]

    def records(self, numbers: Sequence[int]) -> list[Task]:
        """The tasks of these numbers, in their order. To be called when all was flushed."""
        heads = self._known.numbered
        unread = [number for number in numbers if (head := heads.get(number)) is None or head.task is None]
        if unread:
            for row in self._statements.tasks("tasks_by_number", listed(unread)):
                head, task = head_of(row)
                head = self._tasks.setdefault(head.id, head)
                head.task = task
                heads[head.number] = head
        return [self._record_of(heads[number]) for number in numbers]

    def _record_of(self, head: TaskHead) -> Task:
        assert head.task is not None
        return self._with_live(head.task, head)

    def come(self, routes: str, now: Instant, most: int) -> None:
        """Make timed tasks of these routes ready that are due, at most so many."""
        for number, rank in self._statements.run("come", PATIENCE, routes, now, most).fetchall():
            if (head := self._known.numbered.get(number)) is not None:
                head.rank, head.task = rank, None

    def _session_of(self, head: TaskHead) -> SessionHead:
        return self._sessions[head.session_id]

    def _number_task(self) -> int:
        return self._next_number(0)

    def _number_session(self) -> int:
        return self._next_number(1)

    def _next_number(self, which: int) -> int:
        if self._known.numbers is None:
            self._known.numbers = list(self._statements.row("last_numbers"))
        self._known.numbers[which] += 1
        return self._known.numbers[which]

    def _session_created(self, head: SessionHead) -> None:
        if head.id in self.gates.gates.sessions:
            self._known.gates = None  # they name it, and did not know its number

    # --- sessions ----------------------------------------------------------------------------------------

    def create_session(self, new: NewSession, seed: Seed | None) -> Session | None:
        """Create a session, which counts what it is to begin with; None if there is one of that id. Raises NotFound."""
        if new.id in self._sessions:
            return None
        if seed is not None and seed.session_id not in self._sessions:
            raise NotFound.of("session", seed.session_id)
        session = Session.of(new, seed)
        number, entries = self._number_session(), 0 if seed is None else seed.entries or 0
        head = self._sessions[new.id] = SessionHead(
            number, new.id, 1, entries, 0, new.created_at, new.agent is not None
        )
        told = {"session": evolve(new, root_session_id=session.root_session_id)}
        data = encode(told if seed is None else {**told, "seed": seed})
        self._events.append((number, 1, None, "session.created", new.created_at, data))
        self._session_created(head)
        self._new_sessions.append(
            (
                number,
                new.id,
                new.organization_id,
                session.root_session_id,
                new.parent_session_id,
                new.parent_task_id,
                new.agent,
                new.title,
                encode(new.labels),
                1,
                entries,
                0,
                new.created_at,
                new.created_at,
                None if new.budget is None else encode(new.budget),
                session.forked_from,
            )
        )
        self._session_ids.add(new.id)
        return evolve(session, last_seq=1)

    def sow(self, session_id: str, seed: Seed) -> None:
        """Copy what a session that was just written begins with. Raises NotFound where that is not there any more."""
        number, source = self._sessions[session_id].number, self._sessions[seed.session_id].number
        if seed.entries and self._statements.changed("copy_transcript", number, source, seed.entries) < seed.entries:
            raise NotFound.of("session", seed.session_id)
        if seed.files:
            self._statements.run("copy_files", -number, -source)

    def close_session(self, session_id: str, at: Instant, *, when_idle: bool) -> bool:
        """Have a session take nothing any more. To be called when all was written. Raises NotFound, NotEnded."""
        head = self._kept_session(session_id)
        if head.is_closed:
            return False
        if when_idle and (live := self._statements.array("live_in_session", head.number)):
            raise NotEnded.of(f"tasks of {session_id} live", live, "closed")
        self._statements.run("close_session", at, head.number)
        head.is_closed = True
        self._log(head, None, "session.closed", at, encode({"session": {"closed_at": at}}))
        self._session_ids.add(session_id)
        return True

    def reopen_session(self, session_id: str, at: Instant) -> bool:
        """Open a session again, and have its agent look into the inbox. Likewise. Raises NotFound."""
        head = self._kept_session(session_id)
        if not head.is_closed:
            return False
        self._statements.run("close_session", None, head.number)
        head.is_closed = False
        self._log(head, None, "session.reopened", at, encode({"session": {"closed_at": None}}))
        if self._statements.array("inbox", session_id, 1):
            self._expand(FollowUp("session", session_id, Rung(session_id)))
        self._session_ids.add(session_id)
        return True

    def describe_session(self, order: Described) -> bool:
        """Give a session another title or other labels. Likewise. Raises NotFound."""
        head = self._kept_session(order.session_id)
        title, labels = self._statements.row("description", head.number)
        before = {"title": title, "labels": decode(labels)}
        changed = order.changes(**before)
        if not changed:
            return False
        after = {**before, **changed}
        self._statements.run("describe_session", after["title"], encode(after["labels"]), head.number)
        self._log(head, None, "session.updated", order.at, encode({"session": changed}))
        self._session_ids.add(order.session_id)
        return True

    def _kept_session(self, session_id: str) -> SessionHead:
        """The head of a session that nobody else writes to until the end. Raises NotFound."""
        head = self._sessions.get(session_id)
        if head is None:
            raise NotFound.of("session", session_id)
        return head

    def with_counters(self, session: Session) -> Session:
        """A session that was read, as it is at this point."""
        head = self._sessions[session.id]
        return evolve(session, last_seq=head.seq, updated_at=head.updated_at)

    def _log(self, session: SessionHead, task: int | None, type: str, at: Instant, data: str) -> None:
        session.seq += 1
        self._events.append((session.number, session.seq, task, type, at, data))
        self._touch(session, at)

    def _touch(self, session: SessionHead, at: Instant) -> None:
        if at > session.updated_at:
            session.updated_at = at
        self._touched[session.number] = session

    # --- changes -----------------------------------------------------------------------------------------

    def commit(self, parcels: Sequence[Parcel]) -> list[Verdict]:
        """Judge Changes in order, and take in those that stand."""
        verdicts: list[Verdict] = []
        for place, parcel in enumerate(parcels):
            verdicts.append(self._commit(parcel, verdicts, place))
        return verdicts

    def _commit(self, parcel: Parcel, verdicts: list[Verdict], place: int) -> Verdict:
        change = parcel.change
        task = change.task
        if change.settles is not None and change.settles not in self._settles:
            return Settled()
        for step in change.steps:
            if change.before is None and step.task_id == task.id:
                continue
            holder = self._tasks.get(step.task_id)
            if holder is None or not holder.holds(step.attempt):
                return Fenced(step.task_id, step.attempt)
        head = self._tasks.get(task.id)
        if change.before is None:
            session = self._sessions.get(task.input.session_id)
            if session is None:
                return NoSession(task.input.session_id)
            opened = None if change.luggage is None else change.luggage.child_session_id
            if opened is not None and opened not in self._sessions:
                return NoSession(opened)
            existing = head.id if head is not None else self._keyed(task)
            if existing is not None:
                return self._with_current(existing, Existing, verdicts, place)
            if change.needs_open and session.is_closed:
                return Shut(session.id)
            if task.core.worker_id is not None and self._bars(task):
                return Barred()
            head = self._create(parcel, session)
        elif head is None:
            return Stale(None)
        elif head.version != change.before:
            return self._with_current(head.id, Stale, verdicts, place)
        elif change.is_noop:
            self._settle(change.settles)
            return Committed(self._with_live(task, head))
        elif change.needs_open and self._session_of(head).is_closed:
            return Shut(head.session_id)
        else:
            if change.page is not None and not self._turn_page(change.page):
                return Fenced(change.page.task_id, change.page.attempt)
            if change.printed and not all(self.print(change.printed)):
                return Fenced(task.id, change.printed[0].attempt)
            self._move(parcel, head)
        self._settle(change.settles)
        if change.live_changed:
            head.live = parcel.live
            if change.before is not None:
                self._lives[head.number] = head
        self._write_beside(parcel, head)
        head.task = task = self._with_live(task, head) if not change.live_changed else task
        return Committed(task)

    def _settle(self, settles: int | None) -> None:
        if settles is not None:
            self._settles.discard(settles)
            self._settled.append(settles)

    def _keyed(self, task: Task) -> str | None:
        given = task.input
        found = None
        if given.idempotency_key is not None:
            found = self._keys.get((given.session_id, given.idempotency_key))
        if found is None and given.debounce_key is not None:
            found = self._debounced.get((given.session_id, given.debounce_key))
        return found

    def _bars(self, task: Task) -> bool:
        """Whether a task may not be held from its first moment."""
        gates, key = self.gates.gates, task.input.concurrency_key
        if gates.is_paused and gates.pause_of(task.input.kind, task.session_id) is not None:
            return True
        return key is not None and self._known.keys[key].places(gates.limit(key), task.core.updated_at) == 0

    def _with_current(
        self, task_id: str, verdict: type[Stale] | type[Existing], verdicts: list[Verdict], place: int
    ) -> Verdict:
        """The verdict with the record as it is at this point: the one written here, else the stored one."""
        head = self._tasks.get(task_id)
        if head is not None and head.task is not None:
            return verdict(self._with_live(head.task, head))

        def fill(task: Task | None) -> None:
            verdicts[place] = Stale(task) if task is None else verdict(task)

        self._unread.append((task_id, fill))
        return Stale(None)

    def _with_live(self, task: Task, head: TaskHead) -> Task:
        if head.live is None and task.live is NO_LIVE:
            return task
        live = read_live(None if head.live is None else decode(head.live))
        return task if live == task.live else evolve(task, live=live)

    def _create(self, parcel: Parcel, session: SessionHead) -> TaskHead:
        task = parcel.change.task
        given, core = task.input, task.core
        number, due_at = self._number_task(), core.due_at or 0
        if core.readiness != "ready":  # it does not stand in the queue yet, so it moves no line
            rank = rank_of_resumed(due_at, given.priority, None)
        else:
            rank = self._line_up(given, due_at)
        root = given.root_session_id
        self._new_tasks.append(
            (
                number,
                task.id,
                session.number,
                given.organization_id,
                None if root == given.session_id else root,
                given.parent_task_id,
                given.kind,
                given.route,
                given.priority,
                given.concurrency_key,
                given.idempotency_key,
                given.debounce_key,
                given.detached,
                given.created_at,
                *parcel.columns,
                rank,
                parcel.core,
                parcel.outcome,
                parcel.live,
            )
        )
        self._new_inputs.append(self._input_row(number, parcel))
        self._counts[parcel.columns[0]] += 1
        if given.idempotency_key is not None:
            self._keys[given.session_id, given.idempotency_key] = task.id
        if given.debounce_key is not None and core.started_at is None:
            self._debounced[given.session_id, given.debounce_key] = task.id
        if given.concurrency_key is not None and core.worker_id is not None:
            self._count_start(given.concurrency_key, core.updated_at)
        if given.parent_task_id in self._children:
            self._children[given.parent_task_id][task.id] = given.detached
        self._watchers[task.id] = {}
        head = self._tasks[task.id] = self._known.numbered[number] = TaskHead(
            number,
            task.id,
            session.id,
            core.state,
            core.version,
            core.attempt,
            core.worker_id,
            core.due_at,
            rank,
            given.priority,
            parcel.live,
            None,
            None,
            is_large=parcel.input is not None and len(parcel.input) > LARGE,
        )
        return head

    def _line_up(self, given: Input, due_at: Instant) -> int:
        """Return the rank of a new task at the end of its lines, and let them end there."""
        known, names = self._known.lines, lines_of(given)
        rank, after = rank_of_new(due_at, given.priority, Lines(*map(known.get, names)))
        for name, place in zip(names, (after.turn, after.organization, after.session), strict=True):
            self._move_line(name, place)
        return rank

    def _move_line(self, name: tuple[str, str], place: Instant | None) -> None:
        if place != self._known.lines.get(name):
            self._known.lines[name] = place
            self._moved_lines.add(name)

    def _input_row(self, number: int, parcel: Parcel) -> tuple[Any, ...]:
        return number, parcel.input

    def _move(self, parcel: Parcel, head: TaskHead) -> None:
        task = parcel.change.task
        core = task.core
        turn = turn_of(task.input.route)
        if core.worker_id is not None and head.worker_id is None:
            self._move_line(turn, turn_after(self._known.lines.get(turn), head.rank))
        if core.due_at is not None and core.due_at != head.due_at:
            at = self._known.lines.get(turn) if core.readiness == "ready" else None
            head.rank = rank_of_resumed(core.due_at, task.priority, at)
        elif core.priority is not None and core.priority != head.priority:
            head.rank = rank_of_moved(head.rank, head.priority, core.priority)
        head.priority = task.priority
        if (key := task.input.concurrency_key) is not None:
            self._count_move(key, head, core)
        if core.state is not head.state:
            self._counts[head.state.value] -= 1
            self._counts[core.state.value] += 1
        head.state, head.version, head.attempt = core.state, core.version, core.attempt
        head.worker_id, head.due_at = core.worker_id, core.due_at
        self._moved[head.number] = (head.number, *parcel.columns, head.rank, parcel.core, parcel.outcome)

    def _count_move(self, key: str, head: TaskHead, core: Core) -> None:
        """Keep count of what a key holds. What is neither held nor ready leaves a place that others may take."""
        is_held, was_held = core.worker_id is not None, head.worker_id is not None
        if is_held and not was_held:
            self._count_start(key, core.updated_at)
        elif was_held and not is_held:
            self._known.keys[key].held -= 1
        if not is_held:
            self._loosen(key, core.updated_at)

    def _loosen(self, key: str, now: Instant) -> None:
        known = self._loosened[key] = self._known.keys[key]
        known.freed_at = now

    def _count_start(self, key: str, now: Instant) -> None:
        known = self._known.keys[key]
        known.held += 1
        if self.gates.gates.limit(key).rate is not None:
            known.starts += 1
            known.now = now
            self._counted[key] = known

    def _write_beside(self, parcel: Parcel, head: TaskHead) -> None:
        change, rows, number = parcel.change, self._rows, head.number
        core = change.task.core
        session = self._sessions[head.session_id]
        at = core.updated_at
        for type, data in parcel.events:
            self._log(session, number, type, at, data)
        for file in change.files:
            self.write_file(file)
        if change.ended is not None:
            self._end_attempt(number, change.ended)
            if change.task.input.budget:
                reserved = tuple(self._reserved.get(head.id, {}).values())
                self._rule(lapse(change.task, self._meters, reserved, at), head.id, at)
        if change.luggage is not None:
            self._unpack(head, change.luggage, at)
        for request in change.requests:
            rows["upsert_requests"].append((request.id, number, REQUEST.write(request)))
        for message in change.messages:
            rows["insert_messages"].append((message.id, number, message.direction, encode(message)))
        for step in change.steps:
            self._steps.append((self._tasks[step.task_id].number, step))
        for entry in change.inbox:
            self._tell(entry, at)
        for follow_up in change.follow_ups:
            self._expand(follow_up)
        for awaited in change.watches:
            self._watch(head.id, awaited, (change.unasked or {}).get(awaited))
        if change.drives:
            self._drivers[session.number] = head.id
        if change.needs_open:
            self._needs_open.add(session.number)
        self._task_ids.add(head.id)
        self._versions[head.id] = core.version
        self._session_ids.add(head.session_id)
        if core.readiness == "ready" or core.readiness == "timed":
            self._ready = True
        deadline = core.next_deadline_at
        if deadline is not None and (self._deadline_at is None or deadline < self._deadline_at):
            self._deadline_at = deadline

    def _end_attempt(self, number: int, ended: AttemptEnd) -> None:
        self._rows["insert_attempts"].append(
            (
                number,
                ended.attempt,
                ended.worker_id,
                ended.started_at,
                ended.ended_at,
                ended.ending,
                None if ended.error is None else encode(ended.error),
            )
        )

    def _unpack(self, head: TaskHead, luggage: Luggage, at: Instant) -> None:
        for ended in luggage.attempts:
            self._end_attempt(head.number, ended)
        end = 0
        for piece in luggage.output:
            size = len(piece.text.encode())
            end = piece.offset + size
            row = (head.number, piece.offset, size, piece.stream, piece.at, piece.text)
            self._rows["insert_output"].append(row)
        if luggage.output:
            self._rows["upsert_outputs"].append((head.number, luggage.output[0].offset, end))
        if luggage.child_session_id is not None:
            session = self._sessions[luggage.child_session_id]
            for iteration, message in luggage.transcript:
                self._append(session, head.id, iteration, message)
        self._rule(bring(luggage.accounts, self._meters, at), head.id, at)

    def _append(self, session: SessionHead, task_id: str, iteration: int, message: bytes) -> None:
        session.transcript += 1
        self._transcript.append((session.number, session.transcript, task_id, iteration, message.decode()))
        self._touched[session.number] = session

    def _tell(self, entry: InboxEntry, at: Instant) -> None:
        session = self._sessions[entry.session_id]
        session.inbox += 1
        self._touched[session.number] = session
        self._session_ids.add(session.id)
        self._inbox[session.number, entry.task_id] = (
            session.number,
            entry.task_id,
            session.inbox,
            entry.reason,
            encode(entry.body),
            at,
        )

    # --- inboxes -----------------------------------------------------------------------------------------

    def receive(self, session_id: str, now: Instant, until: Instant, limit: int) -> list[InboxRow]:
        """Take the oldest entries that nobody has. To be called when all was written."""
        self._keep_inbox(session_id)
        found = self._statements.array("receivable", session_id, now, limit)
        if found:
            self._statements.run("lease_inbox", until, session_id, listed([row[1] for row in found]))
        return [
            InboxRow(seq, session_id, task_id, reason, body, created_at, deliveries + 1, until)
            for seq, task_id, reason, body, created_at, deliveries in found
        ]

    def acknowledge(self, session_id: str, receipts: Sequence[Receipt], until: Instant | None) -> list[Standing]:
        """Drop the entries whose receipts are good, or keep them until then. To be called when all was written."""
        self._keep_inbox(session_id)
        found = self._statements.array("deliveries", session_id, listed({each.task_id for each in receipts}))
        there = {task_id: (seq, deliveries) for task_id, seq, deliveries in found}
        standings = [each.standing(*there.get(each.task_id, (None,))) for each in receipts]
        good = listed([each.task_id for each, standing in zip(receipts, standings, strict=True) if standing == "good"])
        if "good" not in standings:
            return standings
        if until is None:
            self._statements.run("delete_inbox", session_id, good)
        else:
            self._statements.run("renew_inbox", until, session_id, good)
            self._session_ids.add(session_id)  # who waits for an entry learns that it comes sooner, or later
        return standings

    def _keep_inbox(self, session_id: str) -> None:
        """Have nobody else at the inbox of a session."""

    # --- documents ---------------------------------------------------------------------------------------

    def keep(
        self,
        rows: Sequence[tuple[Any, ...]],
        expected: Mapping[tuple[str, str], int],
        keys: Mapping[tuple[str, str], str],
    ) -> bool:
        """Write documents, and drop those of which there is no row, if all stand as expected and no key is taken."""
        self._keep_documents()
        found = self._statements.array("document_versions", listed([list(name) for name in expected]))
        there = {(collection, id): version for collection, id, version in found}
        if any(there.get(name, 0) != version for name, version in expected.items()):
            return False
        if keys:
            taken = self._statements.array("document_keys", listed([list(name) for name in keys]))
            # What is written or dropped here lets go of its key.
            if any((collection, id) not in expected for collection, id in taken):
                return False
        if going := expected.keys() - {(row[0], row[1]) for row in rows}:
            self._statements.run("delete_documents", listed([list(name) for name in going]))
        if keys:
            self._statements.run("loosen_documents", listed([[row[0], row[1]] for row in rows]))
        if rows:
            self._statements.write("upsert_documents", rows)
        return True

    def _keep_documents(self) -> None:
        """Have nobody else write documents."""

    # --- the index ---------------------------------------------------------------------------------------

    def index(self, entries: Sequence[IndexEntry], after: int, upto: int) -> bool:
        """Take tasks into the index that lists go by, if it stands at `after`, and forget some that were deleted."""
        statements = self._statements
        if statements.row("lock_index")[0] != after:
            return False
        write_entries(statements, entries)
        forget_unlisted(statements)
        if upto != after:
            statements.run("move_index", upto)
        return True

    # --- meters ------------------------------------------------------------------------------------------

    def charge(self, charge: Charge) -> ChargeVerdict:
        """Take down a charge."""
        if not isinstance(charge, Reserve | Settle):
            return self._rule(judge(charge, self._meters, {}, holds=True), "", charge.at)
        of_task = self._reserved[charge.task_id].values()
        reserved = {each.ordinal: each for each in of_task if each.attempt == charge.attempt}
        holds = self._holder(charge.task_id, charge.attempt) is not None
        return self._rule(judge(charge, self._meters, reserved, holds=holds), charge.task_id, charge.at)

    def _rule(self, ruling: Ruling, task_id: str, at: Instant) -> ChargeVerdict:
        for meter in ruling.meters:
            self._meters[meter.name] = meter
            self._moved_meters.add(meter.name)
        for each in (ruling.opened, *ruling.closed):
            if each is None:
                continue
            row = (self._tasks[task_id].number, each.attempt, each.ordinal)
            if each is ruling.opened:
                self._reserved[task_id][row[1:]] = self._opened[row] = each
            else:
                del self._reserved[task_id][row[1:]]
                if self._opened.pop(row, None) is None:
                    self._closed.append(row)
        for account in ruling.marked:
            if account.tell is not None and account.tell in self._sessions:
                self._tell(InboxEntry(account.tell, task_id, "budget", notice(account)), at)
                self._expand(FollowUp("session", account.tell, Rung(account.tell)))
        return ruling.verdict

    # --- news for other tasks ----------------------------------------------------------------------------

    def _expand(self, follow_up: FollowUp) -> None:
        if follow_up.relation == "session":
            if self._sessions[follow_up.of].has_agent:
                self._pend([follow_up.of], follow_up.event)
        elif follow_up.relation == "watchers":
            if watchers := self._watchers[follow_up.of]:
                self._pend(watchers, follow_up.event)
                if isinstance(follow_up.event, WatchedEnded):
                    self._ended.append(follow_up.of)
                    self._watchers[follow_up.of] = {}
        elif children := self._children[follow_up.of]:
            self._pend(
                [
                    child
                    for child, detached in children.items()
                    if (follow_up.relation == "children" or not detached) and self._may_live(child)
                ],
                follow_up.event,
            )

    def _may_live(self, task_id: str) -> bool:
        head = self._tasks.get(task_id)
        return head is None or head.state not in TERMINAL

    def _watch(self, watcher: str, awaited: str, unasked: int | None) -> None:
        head = self._tasks.get(awaited)
        if head is None or head.state in TERMINAL:
            self._pend([watcher], WatchedEnded(awaited, State.FAILED if head is None else head.state))
            return
        self._rows["insert_watches"].append((awaited, watcher))
        if awaited in self._watchers:
            self._watchers[awaited][watcher] = None
        if unasked is not None and head.version > unasked and head.state is State.AWAITING_INPUT:
            self._pend([watcher], WatchedAsked(awaited))

    def _pend(self, task_ids: Iterable[str], event: FollowUpEvent) -> None:
        data = encode(event)
        for task_id in task_ids:
            self._rows["insert_follow_ups"].append((task_id, data))
            self._follow_ups = True

    # --- running work ------------------------------------------------------------------------------------

    def _holder(self, task_id: str, attempt: int) -> TaskHead | None:
        head = self._tasks.get(task_id)
        return head if head is not None and head.holds(attempt) else None

    def report(self, report: Report, live: str | None, delta: str | None) -> bool:
        """Write live values."""
        head = self._holder(report.task_id, report.attempt)
        if head is None:
            return False
        if report.live is not None:
            head.live = live
        self._sign(head, report.active_at)
        if delta is not None:
            self._log(self._session_of(head), head.number, "task.progress", report.active_at, delta)
        self._session_ids.add(head.session_id)
        return True

    def _sign(self, head: TaskHead, at: Instant) -> None:
        """A sign of life of the present attempt; the live values are written with it."""
        if head.active_attempt != head.attempt or head.active_at is None or at > head.active_at:
            head.active_at, head.active_attempt = at, head.attempt
        self._lives[head.number] = head
        self._task_ids.add(head.id)

    def journal(self, step: Step) -> bool:
        """Write a journal row."""
        head = self._holder(step.task_id, step.attempt)
        if head is None:
            return False
        self._steps.append((head.number, step))
        self._task_ids.add(head.id)
        return True

    def append(self, page: Page) -> bool:
        """Append a finished iteration."""
        if not self._turn_page(page):
            return False
        head = self._tasks[page.task_id]
        changed = difference(read_live(None if head.live is None else decode(head.live)), page.live)
        if changed:
            head.live = LIVE.write(page.live)
            self._log(self._session_of(head), head.number, "task.updated", page.at, encode({"live": changed}))
        self._sign(head, page.at)
        self._session_ids.add(head.session_id)
        return True

    def _turn_page(self, page: Page) -> bool:
        """Take in what a page holds beside the totals; False if the attempt is over, or the session gone."""
        head, session = self._holder(page.task_id, page.attempt), self._sessions.get(page.session_id)
        if head is None or session is None:
            return False
        for message in page.messages:
            self._append(session, page.task_id, page.iteration, message)
        self._takes.extend((session.number, *entry) for entry in page.takes)
        if page.forget is not None:
            self._forget(head.number, page.forget)
        self._steps.extend((head.number, step) for step in page.steps)
        self._session_ids.add(page.session_id)
        return True

    def _forget(self, task: int, prefix: str) -> None:
        self._steps = [
            (number, step) for number, step in self._steps if number != task or not step.position.startswith(prefix)
        ]
        self._forgotten.append((task, prefix))

    def print(self, chunks: Sequence[OutputChunk]) -> list[bool]:
        """Append output, and log how far each task has come, once."""
        kept = []
        told: dict[str, list[Any]] = {}
        self._load_ends(chunks)
        for chunk in chunks:
            head = self._holder(chunk.task_id, chunk.attempt)
            kept.append(head is not None)
            if head is None:
                continue
            ends = self._output[head.number]
            size = len(chunk.text.encode())
            start, ends[1] = ends[1], ends[1] + size
            self._rows["insert_output"].append((head.number, start, size, chunk.stream, chunk.at, chunk.text))
            self._trims[head.number] = max(self._trims.get(head.number, 0), ends[1] - chunk.keep)
            self._task_ids.add(head.id)
            self._session_ids.add(head.session_id)
            entry = told.setdefault(head.id, [head, start, set(), chunk.at])
            entry[2].add(chunk.stream)
            entry[3] = chunk.at
        for head, start, streams, at in told.values():
            stream = next(iter(streams)) if len(streams) == 1 else None
            data = encode({"stream": stream, "from": start, "to": self._output[head.number][1]})
            self._log(self._session_of(head), head.number, "task.output", at, data)
        return kept

    def _load_ends(self, chunks: Sequence[OutputChunk]) -> None:
        numbers = {self._tasks[chunk.task_id].number for chunk in chunks if chunk.task_id in self._tasks}
        if missing := numbers - self._output.keys():
            self._output.update((number, [0, 0]) for number in missing)
            for number, first, end in self._statements.array("ends_of_output", listed(missing)):
                self._output[number] = [first, end]

    # --- files -------------------------------------------------------------------------------------------

    def write_file(self, file: FileWrite, fence: tuple[str, int] | None = None) -> bool:
        """Write a file whole. Raises NotFound when there is no such session."""
        session = self._sessions.get(file.session_id)
        if session is None:
            raise NotFound.of("session", file.session_id)
        if fence is not None and self._holder(*fence) is None:
            return False
        folder, path = -session.number, file.path
        if (owner := owner_of(file.path)) is not None:
            head = self._tasks.get(owner[0])
            if head is not None and head.session_id == file.session_id:
                folder, path = head.number, owner[1]
        self._rows["upsert_files"].append(
            (folder, path, file.media_type, len(file.content), file.created_at, file.task_id, file.content)
        )
        self._session_ids.add(file.session_id)
        return True

    def delete_file(self, session_id: str, path: str) -> bool:
        """Delete a file; False if there was none."""
        session = self._sessions.get(session_id)
        if session is None:
            return False
        self.flush()
        deleted = self._statements.changed("delete_file", -session.number, path)
        if (owner := owner_of(path)) is not None:
            head = self._tasks.get(owner[0])
            if head is not None and head.session_id == session_id:
                deleted += self._statements.changed("delete_file", head.number, owner[1])
        if deleted:
            self._session_ids.add(session_id)
        return deleted > 0

    # --- pruning -----------------------------------------------------------------------------------------

    def prune(
        self,
        task_ids: Sequence[str],
        session_ids: Sequence[str],
        now: Instant | None,
        files: Collection[FileMark] | None = None,
    ) -> Pruned:
        """Delete ended tasks, and sessions without tasks. To be called when all was flushed."""
        statements = self._statements
        places = {id: place for place, id in enumerate(task_ids[:MOST_LOOKED_AT])}
        found = sorted(statements.array("prunable", listed(places.keys())), key=lambda row: places[row[1]])
        sizes = list(accumulate(row[6] for row in found))
        ended = found[: max(1, bisect_right(sizes, MOST_ROWS))]
        concerned = listed(session_ids), listed([row[1] for row in ended]), listed({row[2] for row in ended})
        self._keep_sessions(*concerned)
        if numbers := [row[0] for row in ended]:
            if now is not None:
                self._forget_rates(numbers, now)
            for name in _OF_TASKS:
                statements.run(name, listed(numbers))
        rest = [row[1] for row in found[len(ended) :]]
        statements.run("prune_follow_ups", listed(places.keys() - rest))
        rest += task_ids[MOST_LOOKED_AT:]
        untold: defaultdict[int, list[str]] = defaultdict(list)
        for _, id, session, session_id, state, is_untold, _ in ended:
            if is_untold:
                untold[session].append(id)
            self._counts[state] -= 1
            self._task_ids.add(id)
            self._session_ids.add(session_id)
            if (head := self._tasks.get(id)) is not None:
                self._known.forget(head)
        for session, ids in untold.items():
            statements.run("prune_inbox", session, listed(ids))
        empty = statements.array("empty_sessions", *concerned)
        if files is not None:
            marks = set(files)
            empty = [row for row in empty if marks.issuperset(map(tuple, statements.array("own_files", -row[0])))]
        return Pruned(
            tuple(row[1] for row in ended), self._prune_sessions(sorted(empty, key=itemgetter(1))), tuple(rest)
        )

    def _keep_sessions(self, ids: str, task_ids: str, numbers: str) -> None:
        """Have nobody else write to sessions: of these ids, opened by these tasks, or of these numbers."""

    def _forget_rates(self, numbers: Sequence[int], now: Instant) -> None:
        """Forget the starts of these tasks' keys that have all returned: of some keys no task will ever come again."""
        gates = self.gates.gates
        returned = [
            key
            for key, spent in self._statements.array("prunable_rates", listed(numbers))
            if has_returned(gates.limit(key), spent_of(spent), now)
        ]
        if returned:
            self._statements.run("prune_rates", listed(returned))

    def _prune_sessions(self, empty: Sequence[tuple[int, str]]) -> tuple[str, ...]:
        if numbers := [number for number, _ in empty]:
            for name in _OF_SESSIONS:
                self._statements.run(name, listed(numbers))
            self._statements.run("prune_files", listed([-number for number in numbers]))
            self._known.gates = None  # a pause may have gone with them
            owners = {f"s:{id}" for _, id in empty}
            for line in [line for line in self._known.lines if line[1] in owners]:
                del self._known.lines[line]
        for _, id in empty:
            self._sessions.pop(id, None)
            self._session_ids.add(id)
        return tuple(id for _, id in empty)

    # --- writing -----------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what was taken in so far, each table once. Records that verdicts tell are read just before."""
        if self._unread:
            self._read_current()
        write, rows = self._statements.write, self._rows
        if self._new_sessions:
            write("insert_sessions", self._new_sessions)
            self._new_sessions = []
        if self._new_tasks:
            write("insert_tasks", self._new_tasks)
            write("insert_inputs", self._new_inputs)
            self._new_tasks, self._new_inputs = [], []
        if self._moved:
            write("update_tasks", list(self._moved.values()))
            self._moved = {}
        if self._lives:
            write(
                "update_live",
                [(head.number, head.live, head.active_at, head.active_attempt) for head in self._lives.values()],
            )
            self._lives = {}
        if self._moved_lines:
            lines = self._known.lines
            write("upsert_lines", [(*name, lines[name]) for name in sorted(self._moved_lines)])
            self._moved_lines = set()
        self._flush_steps()
        for name, batch in rows.items():
            write(name, batch)
        rows.clear()
        if self._ended:
            self._statements.run("delete_watches", listed(self._ended))
            self._ended = []
        if self._settled:
            self._statements.run("delete_follow_ups", listed(self._settled))
            self._settled = []
        if self._trims:
            self._flush_output()
        if self._loosened or self._counted:
            self._flush_keys()
        if self._moved_meters:
            self._flush_meters()

    def finish(self) -> None:
        """Write all that is left: what many transactions want to write comes last, so that none holds it for long."""
        self.flush()
        if self._touched or self._events:
            self._write_log()
        # Their sessions have been written to, so nobody else is at them.
        if self._drivers:
            self._statements.write("update_drivers", sorted(self._drivers.items()))
            self._drivers = {}
        if self._takes:
            self._statements.write("take_inbox", self._takes)
            self._takes = []
        self._events, self._transcript = [], []
        self._inbox.clear()
        self._touched = {}
        if counts := sorted(count for count in self._counts.items() if count[1]):
            self._statements.write("update_counts", counts)
        self._counts.clear()

    def _write_log(self) -> None:
        """Write the counters of sessions, and what was numbered by them."""
        for name, rows in (
            (
                "update_sessions",
                [
                    (head.number, head.seq, head.transcript, head.inbox, head.updated_at)
                    for head in self._touched.values()
                ],
            ),
            ("insert_events", self._events),
            ("insert_transcript", self._transcript),
            ("upsert_inbox", list(self._inbox.values())),
        ):
            if rows:
                self._statements.write(name, rows)

    def _flush_steps(self) -> None:
        for task, prefix in self._forgotten:
            self._statements.run("forget_steps", task, prefix, prefix + AFTER_ANY)
        self._forgotten = []
        if self._steps:
            self._rows["upsert_steps"] = [
                (
                    number,
                    step.position,
                    step.ordinal,
                    step.verb,
                    step.attempt,
                    step.created_at,
                    step.done,
                    None if step.value is None else step.value.decode(),
                )
                for number, step in self._steps
            ]
            self._steps = []

    def _flush_meters(self) -> None:
        meters = [(name, write_meter(self._meters[name])) for name in sorted(self._moved_meters)]
        self._statements.write("upsert_meters", meters)
        self._moved_meters.clear()
        if self._opened:
            rows = [(*row, encode(each.amounts)) for row, each in self._opened.items()]
            self._statements.write("insert_reservations", rows)
            self._opened.clear()
        if self._closed:
            self._statements.run("delete_reservations", encode(self._closed))
            self._closed.clear()

    def _flush_keys(self) -> None:
        """Count what started, and let in who waits for the places that were left."""
        gates, rates = self.gates.gates, []
        for key, known in self._counted.items():
            limit = gates.limit(key)
            known.spent = spend(limit, known.spent, known.now, known.starts)
            known.starts = 0
            opens_at = next_return(limit, known.spent, known.now) if known.may_wait else None
            rates.append((key, encode(known.spent), opens_at))
        self._write_rates(rates)
        self._counted = {}
        for key, known in self._loosened.items():
            if known.may_wait:
                self.open_key(key, known.places(gates.limit(key), known.freed_at))
        self._loosened = {}

    def open_key(self, key: str, places: int | None) -> None:
        """Let the first who were set aside under a key be claimed again, as many of each route as there are places."""
        if places == 0:
            return
        most = AT_ONCE if places is None else min(places, AT_ONCE)
        opened = self._statements.run("open_key", key, most).fetchall()
        self._reopened(number for (number,) in opened)
        self._known.keys[key].may_wait = len(opened) >= most

    def open_session(self, number: int) -> bool:
        """Let tasks of a session be claimed again; whether some are left."""
        opened = self._statements.run("open_session", number, AT_ONCE).fetchall()
        self._reopened(number for (number,) in opened)
        return len(opened) == AT_ONCE

    def set_aside(self, reason: str, numbers: Sequence[int], keys: Iterable[str | None], now: Instant) -> None:
        """Take ready tasks of these keys out of the way."""
        self._statements.run("set_aside", reason, listed(numbers))
        self._forget_records(numbers)
        for key in keys:
            if key is None:
                continue
            if reason == "paused":  # it may have been let in for a place that others can take
                self._loosen(key, now)
                continue
            known = self._known.keys[key]
            known.may_wait = True
            if self.gates.gates.limit(key).rate is not None:
                known.now = now
                self._counted[key] = known

    def places(self, keys: set[str], now: Instant) -> dict[str, int | None]:
        """How many more tasks may start now under each key; None for any number."""
        self.load_keys(keys)
        gates = self.gates.gates
        return {key: self._known.keys[key].places(gates.limit(key), now) for key in keys}

    def open_rates(self, now: Instant) -> None:
        """Let in who waits for starts that have returned to the rate of their key."""
        keys = self._statements.array("opening_keys", now, AT_ONCE)
        self.load_keys(set(keys))
        rates = []
        for key in keys:
            known, limit = self._known.keys[key], self.gates.gates.limit(key)
            known.now = now
            self.open_key(key, known.places(limit, now))
            opens_at = next_return(limit, known.spent, now) if known.may_wait else None
            rates.append((key, encode(known.spent), opens_at))
        self._write_rates(rates)

    def open_limit(self, key: str) -> None:
        """A limit was changed: let in who may start by the new one."""
        name, _ = split_key(key)
        if name.endswith(EVERY):
            first, last = name[:-1], name[:-1] + AFTER_ANY
        else:
            first, last = key, key + OWNED + AFTER_ANY
        keys = self._statements.array("waiting_keys", first, last)
        self.load_keys(set(keys))
        rates = []
        for each in keys:
            known = self._known.keys[each]
            # A claim looks whether there are places and starts.
            self.open_key(each, self.gates.gates.limit(each).capacity)
            if known.spent:  # the next claim knows the time, and asks the new rate
                rates.append((each, encode(known.spent), AT_NEXT_CLAIM if known.may_wait else None))
        self._write_rates(rates)

    def _write_rates(self, rates: Sequence[tuple[str, str, Instant | None]]) -> None:
        if rates:
            self._statements.write("upsert_rates", rates)
            self._has_written_rates = True

    def _reopened(self, numbers: Iterable[int]) -> None:
        numbers = list(numbers)
        self._forget_records(numbers)
        self._ready = self._ready or bool(numbers)

    def _forget_records(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if (head := self._known.numbered.get(number)) is not None:
                head.task = None

    def _flush_output(self) -> None:
        for task, before in self._trims.items():
            ends = self._output[task]
            if before > ends[0]:
                self._statements.run("trim_output", task, before)
                first = self._statements.row("first_output", task)[0]
                ends[0] = ends[1] if first is None else first
        self._statements.write("upsert_outputs", [(task, *self._output[task]) for task in self._trims])
        self._trims = {}

    def _read_current(self) -> None:
        found = {
            task.id: task
            for task in tasks_of(self._statements.tasks("tasks_by_id", listed({id for id, _ in self._unread})))
        }
        for task_id, fill in self._unread:
            fill(found.get(task_id))
        self._unread = []


def _by_pairs(rows: Iterable[Sequence[Any]]) -> dict[tuple[str, str], str]:
    return {(session_id, key): task_id for session_id, key, task_id in rows}


def gates_of(limits: Iterable[Sequence[Any]], pauses: Iterable[Sequence[Any]]) -> Gates:
    """The limits and pauses in force, of the rows of `gates`."""
    return Gates.of([Limit(*row) for row in limits], [Pause(*row[:5]) for row in pauses if not row[5]])


def spent_of(spent: Sequence[Sequence[int]] | None) -> Spent:
    """What is spent of a rate, as it was written."""
    return tuple((at, count) for at, count in spent or ())


def tasks_of(rows: Iterable[Sequence[Any]]) -> list[Task]:
    """The tasks of rows of the form `{task}`."""
    return [
        read_task(keys[1], columns, input, core, live, outcome) for keys, columns, input, core, live, outcome in rows
    ]


def head_of(row: Sequence[Any]) -> tuple[TaskHead, Task]:
    """The head and the record of a row of the form `{task}`."""
    (number, id, session_id, rank, active_at, active_attempt, size), columns, input, core, live, outcome = row
    live_text = None if live is None else encode(live)
    task = read_task(id, columns, input, core, live, outcome)
    now = task.core
    head = TaskHead(
        number,
        id,
        session_id,
        now.state,
        now.version,
        now.attempt,
        now.worker_id,
        now.due_at,
        rank,
        task.priority,
        live_text,
        active_at,
        active_attempt,
        size > LARGE,
    )
    return head, task
