"""The reference store: the seam of `core.ledger` over plain dictionaries, and the oracle of the differential tests.

Short and obviously right rather than fast. Every verb writes without awaiting anything, so it is a transaction
and the order of calls is the order of commits; only then does it let others have their turn. What could fail
(the encoding of a log entry, `decide`) comes before the first write. It keeps nothing beyond its process.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import assert_never

import orjson

from outrider.core.change import AttemptEnd, Change, FollowUp, InboxEntry, LogType, Luggage
from outrider.core.delivery import Receipt, Standing
from outrider.core.errors import NotEnded, NotFound, StoreUnavailable
from outrider.core.events import FileWrite, Message, Rung, Step, WatchedAsked, WatchedEnded
from outrider.core.ledger import (
    Barred,
    Beat,
    Claim,
    Claims,
    Closed,
    Committed,
    Decide,
    Described,
    Document,
    Ended,
    Existing,
    Fenced,
    FileInfo,
    FileMark,
    GrantSet,
    Head,
    InboxRow,
    IndexEntry,
    KeyUse,
    LimitRemoved,
    LimitSet,
    Listener,
    LogPage,
    LogRow,
    News,
    NoSession,
    Order,
    Output,
    OutputChunk,
    OutputRow,
    Page,
    Paused,
    PendingFollowUp,
    Pruned,
    Reopened,
    Report,
    Resumed,
    Settled,
    Shut,
    Signal,
    Stale,
    Statistics,
    Storage,
    TaskFilter,
    TranscriptRow,
    Unindexed,
    Verdict,
    Waiting,
    Worker,
    WorkerCard,
)
from outrider.core.meters import (
    Charge,
    ChargeVerdict,
    Meter,
    Reservation,
    Reserve,
    Ruling,
    Settle,
    bring,
    judge,
    lapse,
    notice,
)
from outrider.core.queue import (
    Gates,
    Limit,
    Lines,
    Pause,
    Scope,
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
from outrider.core.search import passes
from outrider.core.session import Grant, NewSession, Seed, Session
from outrider.core.task import Direction, InputRequest, Live, Readiness, State, Task, Usage
from outrider.core.values import Instant, difference, evolve


def wall_clock() -> Instant:
    """The present moment in microseconds since the Unix epoch."""
    return time.time_ns() // 1000


@dataclass(slots=True)
class _SessionRow:
    """A session and what only the store knows of it."""

    session: Session
    log: list[LogRow] = field(default_factory=list)
    transcript: list[TranscriptRow] = field(default_factory=list)
    inbox: dict[str, InboxRow] = field(default_factory=dict)
    inbox_seq: int = 0
    first_seq: int = 1
    files: dict[str, FileWrite] = field(default_factory=dict)

    def marks(self) -> set[FileMark]:
        """What tells its files apart."""
        return {(file.path, len(file.content), file.created_at) for file in self.files.values()}


@dataclass(slots=True)
class _TaskRow:
    """A task and what stands beside its record."""

    task: Task
    number: int
    """Counts the tasks; of two that stand at one place in the queue, the older goes first."""
    rank: int
    active_at: Instant | None = None
    steps: dict[str, Step] = field(default_factory=dict)
    attempts: list[AttemptEnd] = field(default_factory=list)
    requests: dict[str, InputRequest] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    output: list[OutputRow] = field(default_factory=list)
    printed: int = 0
    watchers: dict[str, None] = field(default_factory=dict)
    reserved: dict[int, Reservation] = field(default_factory=dict)
    """The open calls of the attempt that holds it, by ordinal."""

    @property
    def kept_from(self) -> int:
        """The offset of the oldest byte of output kept."""
        return self.output[0].offset if self.output else self.printed


@dataclass(slots=True)
class _Tables:
    """All that is stored. The indexes (`keys`, `due`, `deadlines`, `held`) repeat what the records say."""

    sessions: dict[str, _SessionRow] = field(default_factory=dict)
    tasks: dict[str, _TaskRow] = field(default_factory=dict)
    follow_ups: dict[int, PendingFollowUp] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    positions: int = 0
    numbers: int = 0
    children: dict[str, list[str]] = field(default_factory=dict)
    """By the parent, whether it still exists or not."""
    follow_up_ids: int = 0
    keys: dict[tuple[str, str], str] = field(default_factory=dict)
    due: dict[str, None] = field(default_factory=dict)
    deadlines: dict[str, Instant] = field(default_factory=dict)
    held: dict[str, None] = field(default_factory=dict)
    limits: dict[str, Limit] = field(default_factory=dict)
    pauses: dict[tuple[Scope, str], Pause] = field(default_factory=dict)
    grants: dict[tuple[str, str], Grant] = field(default_factory=dict)
    documents: dict[tuple[str, str], Document] = field(default_factory=dict)
    spent: dict[str, Spent] = field(default_factory=dict)
    meters: dict[str, Meter] = field(default_factory=dict)
    turns: dict[str, Instant] = field(default_factory=dict)
    """Where each route has come to."""
    lines: dict[tuple[str, str], Instant] = field(default_factory=dict)
    """Where the lines of organizations and sessions end, by route and `o:` or `s:` before their id."""
    is_closed: bool = False

    def check_open(self) -> None:
        if self.is_closed:
            raise StoreUnavailable("the store was closed", code="store_closed")

    def holds(self, task_id: str, attempt: int) -> bool:
        """The fence: whether that attempt holds the task now."""
        row = self.tasks.get(task_id)
        return row is not None and row.task.core.is_held and row.task.core.attempt == attempt

    @property
    def gates(self) -> Gates:
        return Gates.of(self.limits.values(), tuple(self.pauses.values()))

    def held_of(self, key: str) -> int:
        return sum(self.tasks[task_id].task.input.concurrency_key == key for task_id in self.held)

    def places(self, key: str, now: Instant) -> float:
        """How many more tasks of a key may start now."""
        limit = self.gates.limit(key)
        left = starts_left(limit, self.spent.get(key, ()), now)
        free = float("inf") if limit.capacity is None else limit.capacity - self.held_of(key)
        return max(0, min(free, float("inf") if left is None else left))

    def log(self, session_id: str, task_id: str | None, type: LogType, at: Instant, data: bytes) -> None:
        row = self.sessions[session_id]
        self.positions += 1
        seq = row.session.last_seq + 1
        row.log.append(LogRow(self.positions, session_id, seq, task_id, type, at, data))
        row.session = evolve(row.session, last_seq=seq, updated_at=max(row.session.updated_at, at))


@dataclass(slots=True)
class _News:
    """What a verb tells the listeners once it is done."""

    task_ids: set[str] = field(default_factory=set)
    moved: dict[str, int] = field(default_factory=dict)
    session_ids: set[str] = field(default_factory=set)
    ready: bool = False
    follow_ups: bool = False
    deadline_at: Instant | None = None

    def of(self, task: Task) -> None:
        self.task_ids.add(task.id)
        self.session_ids.add(task.session_id)

    def signal(self) -> Signal:
        return Signal(
            task_ids=frozenset(self.task_ids),
            moved=self.moved,
            session_ids=frozenset(self.session_ids),
            ready=self.ready,
            follow_ups=self.follow_ups,
            deadline_at=self.deadline_at,
        )


class MemoryLedger:
    """A `Ledger` that lives as long as its process. `clock` is what `renew` stamps a beat with."""

    def __init__(self, clock: Callable[[], Instant] = wall_clock) -> None:
        self._clock = clock
        self._tables = _Tables()
        self._views = MemoryViews(self._tables)
        self._listeners: dict[object, Listener] = {}
        self._workers_lock = threading.Lock()
        self._counters = {"commits": 0, "statements": 0}

    @property
    def views(self) -> MemoryViews:
        """The reading half."""
        return self._views

    @property
    def counters(self) -> Mapping[str, int]:
        """`commits` since the store was opened; `statements` stays 0, for there are none."""
        return dict(self._counters)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each commit, before the verb returns; returns what ends it."""
        key = object()
        self._listeners[key] = listener
        return lambda: self._listeners.pop(key, None) and None

    async def create_session(self, new: NewSession, seed: Seed | None = None) -> Session:
        """Create a session, or return the one of that id. Logs `session.created`."""
        self._tables.check_open()
        found = self._tables.sessions.get(new.id)
        if found is not None:
            return found.session
        source = None if seed is None else self._tables.sessions.get(seed.session_id)
        if seed is not None and (source is None or len(source.transcript) < (seed.entries or 0)):
            raise NotFound.of("session", seed.session_id)
        session = Session.of(new, seed)
        told = {"session": evolve(new, root_session_id=session.root_session_id)}
        data = _encode(told if seed is None else {**told, "seed": seed})
        row = self._tables.sessions[new.id] = _SessionRow(session)
        if seed is not None and source is not None:
            row.transcript = source.transcript[: seed.entries or 0]
            if seed.files:
                own = (file for file in source.files.values() if not self._is_of_task(file))
                row.files = {file.path: evolve(file, session_id=new.id) for file in own}
        self._tables.log(new.id, None, "session.created", new.created_at, data)
        await self._committed(_News(session_ids={new.id}))
        return self._tables.sessions[new.id].session

    def _is_of_task(self, file: FileWrite) -> bool:
        """Whether a file lies in the folder of a task of its session."""
        task_id = file.path.removeprefix("/.tasks/").partition("/")[0] if file.path.startswith("/.tasks/") else ""
        return task_id in self._tables.tasks and self._tables.tasks[task_id].task.session_id == file.session_id

    async def commit(self, changes: Sequence[Change]) -> Sequence[Verdict]:
        """Commit each Change whole or not at all, in the order given; one verdict for each."""
        self._tables.check_open()
        logs = [_encode_log(change) for change in changes]
        news = _News()
        verdicts = [self._commit_one(change, log, news) for change, log in zip(changes, logs, strict=True)]
        await self._committed(news)
        return verdicts

    async def claim(self, claim: Claim, decide: Decide) -> Claims:
        """Take ready tasks that nobody holds, committing what `decide` makes of each."""
        self._tables.check_open()
        tables, gates = self._tables, self._tables.gates
        served = frozenset(gates.routes(claim.routes))
        due = [row for row in map(tables.tasks.__getitem__, tables.due) if row.task.input.route in served]
        # A claim that waited finds tasks that were made after its moment. They are for the next.
        ready = [row for row in due if _has_come(row.task, claim.now)]
        ranks = {row.number: self._rank_of_come(row) for row in ready}
        ready.sort(key=lambda row: (ranks[row.number], row.number))
        taken, aside, more = self._walk(ready, claim, gates)
        changes = [decide(_made_ready(row.task)) for row in taken]
        logs = [_encode_log(change) for change in changes]

        for row in ready:
            row.task, row.rank = _made_ready(row.task), ranks[row.number]
        for row, reason in aside:
            row.task = evolve(row.task, core=evolve(row.task.core, readiness="blocked", blocked_by=reason))
        news = _News()
        tasks = []
        for change, log in zip(changes, logs, strict=True):
            verdict = self._commit_one(change, log, news)
            if isinstance(verdict, Committed):
                tasks.append(verdict.task)
        await self._committed(news)
        waiting = (tables.tasks[task_id].task for task_id in tables.due)
        moments = [
            task.core.due_at
            for task in waiting
            if task.core.due_at is not None and not _has_come(task, claim.now) and task.input.route in served
        ]
        return Claims(
            tasks=tuple(tasks),
            next_due_at=min([*moments, *self._returns(claim.now)], default=None),
            next_deadline_at=min(tables.deadlines.values(), default=None),
            more=more,
            follow_ups=bool(tables.follow_ups),
        )

    def _rank_of_come(self, row: _TaskRow) -> int:
        """The rank of a task that may be taken: one that was waited for stands where its route has come to."""
        core, route = row.task.core, row.task.input.route
        if core.readiness != "timed" or core.due_at is None:
            return row.rank
        return rank_of_resumed(core.due_at, row.task.priority, self._tables.turns.get(route))

    def _walk(
        self, ready: Sequence[_TaskRow], claim: Claim, gates: Gates
    ) -> tuple[list[_TaskRow], list[tuple[_TaskRow, str]], bool]:
        """Those that may start, in their order; those before that may not, with the reason; whether more may."""
        taken: list[_TaskRow] = []
        aside: list[tuple[_TaskRow, str]] = []
        places: dict[str, float] = {}
        for row in ready:
            given = row.task.input
            key = given.concurrency_key
            reason = "paused" if given.session_id in gates.sessions else None
            if reason is None and key is not None:
                left = places.setdefault(key, self._tables.places(key, claim.now))
                reason = "limit" if left < 1 else None
            if reason is not None:
                aside.append((row, reason))
            elif len(taken) == claim.limit:
                return taken, aside, True
            else:
                taken.append(row)
                if key is not None:
                    places[key] -= 1
        return taken, aside, False

    def _returns(self, now: Instant) -> Iterable[Instant]:
        """When starts return to the rates that hold tasks back."""
        tables = self._tables
        due = map(tables.tasks.__getitem__, tables.due)
        for key in {row.task.input.concurrency_key for row in due if row.task.core.blocked_by == "limit"}:
            if key is not None:
                moment = next_return(tables.gates.limit(key), tables.spent.get(key, ()), now)
                if moment is not None:
                    yield moment

    async def control(self, order: Order) -> bool:
        """Carry out an order; False if all was so already."""
        tables, news = self._tables, _News(ready=True)
        tables.check_open()
        match order:
            case LimitSet(limit):
                changed = tables.limits.get(limit.key) != limit
                tables.limits[limit.key] = limit
            case LimitRemoved(key):
                changed = tables.limits.pop(key, None) is not None
            case Paused(pause):
                changed = (pause.scope, pause.name) not in tables.pauses
                tables.pauses.setdefault((pause.scope, pause.name), pause)
            case Resumed(scope, name):
                changed = tables.pauses.pop((scope, name), None) is not None
            case Closed() | Reopened():
                news = _News()
                changed = self._open_or_close(order, news)
            case Described():
                news = _News()
                changed = self._describe(order, news)
            case GrantSet(grant):
                before = tables.grants.get((grant.session_id, grant.tool))
                changed = before is None or before.at < grant.at
                if changed:
                    tables.grants[grant.session_id, grant.tool] = grant
            case _:
                assert_never(order)
        await self._committed(news)
        return changed

    def _open_or_close(self, order: Closed | Reopened, news: _News) -> bool:
        tables, id = self._tables, order.session_id
        row = tables.sessions.get(id)
        if row is None:
            raise NotFound.of("session", id)
        if isinstance(order, Closed) == (row.session.closed_at is not None):
            return False
        if isinstance(order, Closed):
            ours = (each.task for each in tables.tasks.values() if each.task.session_id == id)
            live = sorted(task.id for task in ours if not task.is_terminal and not task.input.detached)
            if order.when_idle and live:
                raise NotEnded.of(f"tasks of {id} live", live, "closed")
        closed_at = order.at if isinstance(order, Closed) else None
        row.session = evolve(row.session, closed_at=closed_at)
        type: LogType = "session.reopened" if closed_at is None else "session.closed"
        tables.log(id, None, type, order.at, _encode({"session": {"closed_at": closed_at}}))
        if closed_at is None and row.inbox:
            self._follow_up(FollowUp("session", id, Rung(id)), news)
        news.session_ids.add(id)
        return True

    def _describe(self, order: Described, news: _News) -> bool:
        row = self._tables.sessions.get(order.session_id)
        if row is None:
            raise NotFound.of("session", order.session_id)
        changed = order.changes(row.session.title, row.session.labels)
        if not changed:
            return False
        row.session = evolve(row.session, **changed)
        self._tables.log(order.session_id, None, "session.updated", order.at, _encode({"session": changed}))
        news.session_ids.add(order.session_id)
        return True

    async def keep(self, documents: Sequence[Document], dropped: Sequence[Document] = ()) -> bool:
        """Write documents anew and drop others: all of it, or nothing and False."""
        for each in documents:
            _encode(each.data)
        tables, told = self._tables, (*documents, *dropped)
        tables.check_open()
        names = {(each.collection, each.id) for each in told}
        keys = [(each.collection, each.key) for each in documents if each.key is not None]
        taken = {(each.collection, each.key) for name, each in tables.documents.items() if name not in names}
        stands = all(
            (there.version if (there := tables.documents.get((each.collection, each.id))) else 0) == each.version
            for each in told
        )
        is_sound = len(names) == len(told) and len({*keys}) == len(keys)
        if not (is_sound and stands) or not taken.isdisjoint(keys):
            return False
        for each in dropped:
            tables.documents.pop((each.collection, each.id), None)
        for each in documents:
            kept = evolve(each, data=_plain(each.data), version=each.version + 1)
            tables.documents[each.collection, each.id] = kept
        await self._committed(_News())
        return True

    async def index(self, entries: Sequence[IndexEntry], after: int, upto: int) -> bool:
        """Do nothing: all tasks are looked at."""
        return True

    async def report(self, reports: Sequence[Report]) -> Sequence[bool]:
        """Write live values; False for each whose attempt no longer holds its task."""
        self._tables.check_open()
        deltas = [None if report.delta is None else _encode(report.delta) for report in reports]
        news = _News()
        kept = [self._report_one(report, delta, news) for report, delta in zip(reports, deltas, strict=True)]
        await self._committed(news)
        return kept

    async def journal(self, steps: Sequence[Step]) -> Sequence[bool]:
        """Write journal rows, replacing those of the same position; False for each whose attempt is over."""
        self._tables.check_open()
        kept = [self._tables.holds(step.task_id, step.attempt) for step in steps]
        written = [step for step, is_current in zip(steps, kept, strict=True) if is_current]
        self._write_steps(written)
        await self._committed(_News(task_ids={step.task_id for step in written}))
        return kept

    async def append(self, page: Page) -> bool:
        """Append a finished iteration; False, and nothing written, if the attempt is over."""
        tables = self._tables
        tables.check_open()
        if not tables.holds(page.task_id, page.attempt) or page.session_id not in tables.sessions:
            return False
        row = tables.tasks[page.task_id]
        changed = difference(row.task.live, page.live)
        data = _encode({"live": changed})
        self._turn_page(page)
        if changed:
            row.task = evolve(row.task, live=page.live)
            tables.log(row.task.session_id, row.task.id, "task.updated", page.at, data)
        row.active_at = max(row.active_at or 0, page.at)
        news = _News(session_ids={page.session_id})
        news.of(row.task)
        await self._committed(news)
        return True

    def _turn_page(self, page: Page) -> None:
        """Take in what a page holds beside the totals."""
        row, session = self._tables.tasks[page.task_id], self._tables.sessions[page.session_id]
        for message in page.messages:
            number = len(session.transcript) + 1
            session.transcript.append(TranscriptRow(number, page.task_id, page.iteration, message))
        for task_id, seq in page.takes:
            if (entry := session.inbox.get(task_id)) is not None and entry.seq == seq:
                del session.inbox[task_id]
        if page.forget is not None:
            row.steps = {position: step for position, step in row.steps.items() if not position.startswith(page.forget)}
        self._write_steps(page.steps)

    async def print(self, chunks: Sequence[OutputChunk]) -> Sequence[bool]:
        """Append output; False for each whose attempt is over."""
        self._tables.check_open()
        news = _News()
        kept = self._print(chunks, news)
        await self._committed(news)
        return kept

    async def write_file(self, file: FileWrite, fence: tuple[str, int] | None = None) -> bool:
        """Write a file whole, replacing one of that path; False if the fencing (task id, attempt) is over."""
        self._tables.check_open()
        if file.session_id not in self._tables.sessions:
            raise NotFound.of("session", file.session_id)
        if fence is not None and not self._tables.holds(*fence):
            return False
        self._write_file(file)
        await self._committed(_News(session_ids={file.session_id}))
        return True

    async def delete_file(self, session_id: str, path: str) -> bool:
        """Delete a file; False if there was none."""
        self._tables.check_open()
        row = self._tables.sessions.get(session_id)
        if row is None or row.files.pop(path, None) is None:
            return False
        await self._committed(_News(session_ids={session_id}))
        return True

    async def charge(self, charges: Sequence[Charge]) -> Sequence[ChargeVerdict]:
        """Take down each charge whole, in all meters that it concerns, or not at all."""
        self._tables.check_open()
        news = _News()
        verdicts = [self._charge_one(charge, news) for charge in charges]
        await self._committed(news)
        return verdicts

    def _charge_one(self, charge: Charge, news: _News) -> ChargeVerdict:
        meters = self._tables.meters
        if not isinstance(charge, Reserve | Settle):
            return self._rule(judge(charge, meters, {}, holds=True), None, charge.at, news)
        holds = self._tables.holds(charge.task_id, charge.attempt)
        row = self._tables.tasks[charge.task_id] if holds else None
        return self._rule(judge(charge, meters, row.reserved if row else {}, holds=holds), row, charge.at, news)

    def _rule(self, ruling: Ruling, row: _TaskRow | None, at: Instant, news: _News) -> ChargeVerdict:
        for meter in ruling.meters:
            self._tables.meters[meter.name] = meter
        if row is not None:
            for each in ruling.closed:
                del row.reserved[each.ordinal]
            if ruling.opened is not None:
                row.reserved[ruling.opened.ordinal] = ruling.opened
            for account in ruling.marked:
                if account.tell is not None and account.tell in self._tables.sessions:
                    self._tell(InboxEntry(account.tell, row.task.id, "budget", notice(account)), at)
                    news.session_ids.add(account.tell)
                    self._follow_up(FollowUp("session", account.tell, Rung(account.tell)), news)
        return ruling.verdict

    async def register(self, card: WorkerCard) -> None:
        """Make a worker known."""
        self._tables.check_open()
        with self._workers_lock:
            self._tables.workers[card.id] = Worker(card, 0, card.started_at)
        await self._committed(_News())

    def renew(self, worker_id: str, timeout: float) -> bool:
        """Advance the worker's beat. Safe from any thread.

        False when the worker is not registered any more; raises StoreUnavailable when time ran out.
        """
        self._tables.check_open()
        if not self._workers_lock.acquire(timeout=timeout):
            raise StoreUnavailable(f"the store did not answer within {timeout:g} s")
        try:
            worker = self._tables.workers.get(worker_id)
            if worker is None:
                return False
            self._tables.workers[worker_id] = Worker(worker.card, worker.beat + 1, self._clock())
            return True
        finally:
            self._workers_lock.release()

    async def retire(self, worker_id: str) -> None:
        """Forget a worker. The tasks it held must have been settled before."""
        self._tables.check_open()
        with self._workers_lock:
            self._tables.workers.pop(worker_id, None)
        await self._committed(_News())

    async def receive(self, session_id: str, now: Instant, until: Instant, limit: int) -> Sequence[InboxRow]:
        """Take the oldest entries that nobody has at `now`, and let nobody else have them before `until`."""
        self._tables.check_open()
        row = self._tables.sessions.get(session_id)
        entries = [] if row is None else sorted(row.inbox.values(), key=lambda entry: entry.seq)
        free = [entry for entry in entries if entry.leased_until is None or entry.leased_until <= now][:limit]
        taken = [replace(entry, deliveries=entry.deliveries + 1, leased_until=until) for entry in free]
        if row is not None:
            row.inbox.update((entry.task_id, entry) for entry in taken)
        await self._committed(_News())
        return taken

    async def acknowledge(
        self, session_id: str, receipts: Sequence[Receipt], until: Instant | None = None
    ) -> Sequence[Standing]:
        """Drop the entries whose receipts are good; with `until` have them kept until then instead. One answer each."""
        self._tables.check_open()
        row = self._tables.sessions.get(session_id)
        inbox = {} if row is None else row.inbox
        there = {entry.task_id: (entry.seq, entry.deliveries) for entry in inbox.values()}
        standings = [each.standing(*there.get(each.task_id, (None,))) for each in receipts]
        good = {each.task_id for each, standing in zip(receipts, standings, strict=True) if standing == "good"}
        for task_id in good:
            if until is None:
                del inbox[task_id]
            else:
                inbox[task_id] = replace(inbox[task_id], leased_until=until)
        await self._committed(_News(session_ids={session_id} if good and until is not None else set()))
        return standings

    async def prune(
        self,
        task_ids: Sequence[str],
        session_ids: Sequence[str] = (),
        *,
        now: Instant | None = None,
        files: Collection[FileMark] | None = None,
    ) -> Pruned:
        """Delete ended tasks whole, and sessions that have no task left; what lives is left as it is, silently."""
        self._tables.check_open()
        tables = self._tables
        named = dict.fromkeys(task_ids)
        ended = [id for id in named if (row := tables.tasks.get(id)) is not None and row.task.is_terminal]
        owners = [tables.tasks[id].task.session_id for id in ended]
        for task_id in ended:
            self._forget_task(task_id, now)
        gone = named.keys() - tables.tasks.keys()
        tables.follow_ups = {id: each for id, each in tables.follow_ups.items() if each.task_id not in gone}
        busy = {row.task.session_id for row in tables.tasks.values()}
        sessions = [
            id
            for id in sorted(tables.sessions.keys() - busy)
            if id in session_ids or self._is_left_over(tables.sessions[id].session, ended, owners)
        ]
        if files is not None:
            sessions = [id for id in sessions if set(files).issuperset(tables.sessions[id].marks())]
        for session_id in sessions:
            del tables.sessions[session_id]
            tables.lines = {name: place for name, place in tables.lines.items() if name[1] != f"s:{session_id}"}
            tables.pauses.pop(("session", session_id), None)
            tables.grants = {name: grant for name, grant in tables.grants.items() if name[0] != session_id}
            tables.meters.pop(f"session:{session_id}", None)
            tables.meters.pop(f"tree:{session_id}", None)
        await self._committed(_News(task_ids=set(ended), session_ids={*owners, *sessions}))
        return Pruned(tuple(ended), tuple(sessions))

    def _is_left_over(self, session: Session, ended: Sequence[str], owners: Sequence[str]) -> bool:
        """Whether a session was opened by a task that is gone, and either end of that was pruned just now."""
        opener = session.parent_task_id
        return opener is not None and opener not in self._tables.tasks and (opener in ended or session.id in owners)

    def _forget_task(self, task_id: str, now: Instant | None) -> None:
        tables = self._tables
        task = tables.tasks.pop(task_id).task
        session = tables.sessions[task.session_id]
        pruned = [entry.seq for entry in session.log if entry.task_id == task_id]
        session.log = [entry for entry in session.log if entry.task_id != task_id]
        session.first_seq = max(session.first_seq, max(pruned, default=0) + 1)
        session.inbox.pop(task_id, None)
        tables.meters.pop(f"task:{task_id}", None)
        folder = f"/.tasks/{task_id}/"
        session.files = {path: file for path, file in session.files.items() if not path.startswith(folder)}
        if task.input.idempotency_key is not None:
            del tables.keys[task.session_id, task.input.idempotency_key]
        if (parent := task.input.parent_task_id) is not None:
            tables.children[parent].remove(task_id)
            if not tables.children[parent]:
                del tables.children[parent]
        key = task.input.concurrency_key
        if now is not None and key in tables.spent and has_returned(tables.gates.limit(key), tables.spent[key], now):
            del tables.spent[key]

    async def close(self) -> None:
        """Let go of everything; whatever is called afterwards raises StoreUnavailable."""
        self._tables.is_closed = True

    # --- one Change --------------------------------------------------------------------------------------

    def _commit_one(self, change: Change, log: Sequence[bytes], news: _News) -> Verdict:
        refusal = self._refusal(change)
        if refusal is not None:
            return refusal
        if change.settles is not None:
            del self._tables.follow_ups[change.settles]
        if change.is_noop:
            return Committed(self._tables.tasks[change.task.id].task)
        if change.page is not None:
            self._turn_page(change.page)
            news.session_ids.add(change.page.session_id)
        if change.printed:
            self._print(change.printed, news)
        row = self._create(change) if change.before is None else self._update(change)
        self._write_beside(row, change, news)
        self._log(change, log)
        for entry in change.inbox:
            self._tell(entry, change.task.core.updated_at)
        for follow_up in change.follow_ups:
            self._follow_up(follow_up, news)
        for awaited in change.watches:
            self._watch(row, awaited, (change.unasked or {}).get(awaited), news)
        news.of(row.task)
        news.moved[row.task.id] = row.task.core.version
        core, key = row.task.core, row.task.input.concurrency_key
        leaves_place = key is not None and not core.is_held
        news.ready = news.ready or core.readiness in ("timed", "ready") or leaves_place
        deadlines = [each for each in (news.deadline_at, row.task.core.next_deadline_at) if each is not None]
        news.deadline_at = min(deadlines, default=None)
        return Committed(row.task)

    def _refusal(self, change: Change) -> Verdict | None:
        """The first reason not to write, in the order that the seam states."""
        tables, task = self._tables, change.task
        if change.settles is not None and change.settles not in tables.follow_ups:
            return Settled()
        for step in change.steps:
            is_its_own = change.before is None and step.task_id == task.id
            if not is_its_own and not tables.holds(step.task_id, step.attempt):
                return Fenced(step.task_id, step.attempt)
        found = tables.tasks.get(task.id)
        if change.before is not None:
            if found is None or found.task.core.version != change.before:
                return Stale(None if found is None else found.task)
            if self._is_shut(change):
                return Shut(task.session_id)
            if change.page is not None and (fenced := self._refusal_of(change.page)) is not None:
                return fenced
            over = (each for each in change.printed if not tables.holds(each.task_id, each.attempt))
            return next((Fenced(each.task_id, each.attempt) for each in over), None)
        if task.session_id not in tables.sessions:
            return NoSession(task.session_id)
        opened = None if change.luggage is None else change.luggage.child_session_id
        if opened is not None and opened not in tables.sessions:
            return NoSession(opened)
        if found is None and task.input.idempotency_key is not None:
            twin = tables.keys.get((task.session_id, task.input.idempotency_key))
            found = None if twin is None else tables.tasks[twin]
        if found is None and task.input.debounce_key is not None:
            found = next((row for row in tables.tasks.values() if _is_debounced_by(row.task, task)), None)
        if found is not None:
            return Existing(found.task)
        if self._is_shut(change):
            return Shut(task.session_id)
        return Barred() if task.core.is_held and self._bars(task) else None

    def _refusal_of(self, page: Page) -> Fenced | None:
        is_held = self._tables.holds(page.task_id, page.attempt) and page.session_id in self._tables.sessions
        return None if is_held else Fenced(page.task_id, page.attempt)

    def _is_shut(self, change: Change) -> bool:
        return change.needs_open and self._tables.sessions[change.task.session_id].session.closed_at is not None

    def _bars(self, task: Task) -> bool:
        tables, key = self._tables, task.input.concurrency_key
        if tables.gates.pause_of(task.input.kind, task.session_id) is not None:
            return True
        return key is not None and tables.places(key, task.core.updated_at) < 1

    def _create(self, change: Change) -> _TaskRow:
        tables, task = self._tables, change.task
        tables.numbers += 1
        row = tables.tasks[task.id] = _TaskRow(task, tables.numbers, self._rank_of_new(task))
        if task.input.idempotency_key is not None:
            tables.keys[task.session_id, task.input.idempotency_key] = task.id
        if task.input.parent_task_id is not None:
            tables.children.setdefault(task.input.parent_task_id, []).append(task.id)
        self._index(task)
        if task.core.is_held:
            self._count_start(task)
        if change.drives:
            session = tables.sessions[task.session_id]
            session.session = evolve(session.session, driver_task_id=task.id)
        return row

    def _count_start(self, task: Task) -> None:
        tables, key = self._tables, task.input.concurrency_key
        if key is not None and (limit := tables.gates.limit(key)).rate is not None:
            tables.spent[key] = spend(limit, tables.spent.get(key, ()), task.core.updated_at, 1)

    def _rank_of_new(self, task: Task) -> int:
        tables, given, due_at = self._tables, task.input, task.core.due_at or 0
        if task.core.readiness != "ready":  # it does not stand in the queue yet, so it moves no line
            return rank_of_resumed(due_at, given.priority, None)
        route, lines = given.route, tables.lines
        organization, session = (route, f"o:{given.organization_id}"), (route, f"s:{given.session_id}")
        before = Lines(tables.turns.get(route), lines.get(organization), lines.get(session))
        rank, after = rank_of_new(due_at, given.priority, before)
        if after.turn is not None:
            tables.turns[route] = after.turn
        for name, place in ((organization, after.organization), (session, after.session)):
            if place is not None:
                lines[name] = place
        return rank

    def _update(self, change: Change) -> _TaskRow:
        row = self._tables.tasks[change.task.id]
        old, new = row.task.core, change.task.core
        turns, route = self._tables.turns, change.task.input.route
        if new.is_held and not old.is_held:
            turns[route] = turn_after(turns.get(route), row.rank)
        if new.due_at is not None and new.due_at != old.due_at:
            at = turns.get(route) if new.readiness == "ready" else None
            row.rank = rank_of_resumed(new.due_at, change.task.priority, at)
        elif change.task.priority != row.task.priority:
            row.rank = rank_of_moved(row.rank, row.task.priority, change.task.priority)
        if new.is_held and not old.is_held:
            self._count_start(change.task)
        if new.attempt != old.attempt or (new.is_held and not old.is_held):
            row.active_at = None
        live: Live = change.task.live if change.live_changed else row.task.live
        row.task = Task(change.task.id, change.task.input, new, live, change.task.outcome)
        self._index(row.task)
        return row

    def _index(self, task: Task) -> None:
        tables, core = self._tables, task.core
        is_aside = core.readiness == "blocked" and core.blocked_by != "dependency"
        _enter(tables.due, task.id, core.readiness in ("timed", "ready") or is_aside)
        _enter(tables.held, task.id, core.is_held)
        tables.deadlines.pop(task.id, None)
        if core.next_deadline_at is not None:
            tables.deadlines[task.id] = core.next_deadline_at

    def _write_beside(self, row: _TaskRow, change: Change, news: _News) -> None:
        for request in change.requests:
            row.requests[request.id] = request
        row.messages.extend(change.messages)
        for file in change.files:
            self._write_file(file)
        self._write_steps(change.steps)
        if change.ended is not None:
            row.attempts.append(change.ended)
            at, reserved = change.task.core.updated_at, tuple(row.reserved.values())
            self._rule(lapse(change.task, self._tables.meters, reserved, at), row, at, news)
        if change.luggage is not None:
            self._unpack(row, change.luggage, news)

    def _unpack(self, row: _TaskRow, luggage: Luggage, news: _News) -> None:
        row.attempts.extend(luggage.attempts)
        row.output = list(luggage.output)
        if row.output:
            row.printed = row.output[-1].offset + _size(row.output[-1].text)
        if luggage.child_session_id is not None:
            transcript = self._tables.sessions[luggage.child_session_id].transcript
            for iteration, message in luggage.transcript:
                transcript.append(TranscriptRow(len(transcript) + 1, row.task.id, iteration, message))
        at = row.task.core.updated_at
        self._rule(bring(luggage.accounts, self._tables.meters, at), row, at, news)

    def _write_steps(self, steps: Iterable[Step]) -> None:
        for step in steps:
            self._tables.tasks[step.task_id].steps[step.position] = step

    def _write_file(self, file: FileWrite) -> None:
        self._tables.sessions[file.session_id].files[file.path] = file

    def _log(self, change: Change, log: Sequence[bytes]) -> None:
        task = change.task
        for event, data in zip(change.events, log, strict=True):
            self._tables.log(task.session_id, task.id, event.type, task.core.updated_at, data)

    def _tell(self, entry: InboxEntry, now: Instant) -> None:
        session = self._tables.sessions[entry.session_id]
        session.inbox_seq += 1
        session.inbox.pop(entry.task_id, None)
        body = orjson.loads(_encode(entry.body))  # its values are told as JSON has them, as by any other store
        session.inbox[entry.task_id] = InboxRow(
            session.inbox_seq, entry.session_id, entry.task_id, entry.reason, body, now
        )

    def _follow_up(self, follow_up: FollowUp, news: _News) -> None:
        for task_id in self._related(follow_up):
            self._pend(task_id, follow_up, news)

    def _related(self, follow_up: FollowUp) -> Sequence[str]:
        if follow_up.relation == "session":
            session = self._tables.sessions[follow_up.of].session
            return [session.id] if session.agent is not None else []
        row = self._tables.tasks.get(follow_up.of)
        if row is None:
            return ()
        if follow_up.relation == "watchers":
            watchers = tuple(row.watchers)
            if isinstance(follow_up.event, WatchedEnded):
                row.watchers.clear()
            return watchers
        children = (self._tables.tasks[task_id].task for task_id in self._tables.children.get(follow_up.of, ()))
        return [
            child.id
            for child in children
            if not child.is_terminal and (follow_up.relation == "children" or not child.input.detached)
        ]

    def _watch(self, watcher: _TaskRow, awaited: str, unasked: int | None, news: _News) -> None:
        found = self._tables.tasks.get(awaited)
        if found is None or found.task.is_terminal:
            state = State.FAILED if found is None else found.task.state
            event = WatchedEnded(awaited, state)
            self._pend(watcher.task.id, FollowUp("watchers", awaited, event), news)
        else:
            found.watchers[watcher.task.id] = None
            core = found.task.core
            if unasked is not None and core.version > unasked and core.state is State.AWAITING_INPUT:
                self._pend(watcher.task.id, FollowUp("watchers", awaited, WatchedAsked(awaited)), news)

    def _pend(self, task_id: str, follow_up: FollowUp, news: _News) -> None:
        tables = self._tables
        tables.follow_up_ids += 1
        tables.follow_ups[tables.follow_up_ids] = PendingFollowUp(tables.follow_up_ids, task_id, follow_up.event)
        news.follow_ups = True

    # --- running work ------------------------------------------------------------------------------------

    def _report_one(self, report: Report, delta: bytes | None, news: _News) -> bool:
        if not self._tables.holds(report.task_id, report.attempt):
            return False
        row = self._tables.tasks[report.task_id]
        row.active_at = max(row.active_at or 0, report.active_at)
        if report.live is not None:
            row.task = evolve(row.task, live=report.live)
        if delta is not None:
            self._tables.log(row.task.session_id, row.task.id, "task.progress", report.active_at, delta)
        news.of(row.task)
        return True

    def _print(self, chunks: Sequence[OutputChunk], news: _News) -> list[bool]:
        ends = {id: row.printed for id in {chunk.task_id for chunk in chunks} if (row := self._tables.tasks.get(id))}
        kept = [self._print_one(chunk, news) for chunk in chunks]
        self._log_output([chunk for chunk, is_kept in zip(chunks, kept, strict=True) if is_kept], ends)
        return kept

    def _print_one(self, chunk: OutputChunk, news: _News) -> bool:
        if not self._tables.holds(chunk.task_id, chunk.attempt):
            return False
        row = self._tables.tasks[chunk.task_id]
        row.output.append(OutputRow(chunk.stream, row.printed, chunk.text, chunk.at))
        row.printed += _size(chunk.text)
        tail = row.printed - chunk.keep
        row.output = [piece for piece in row.output if piece.offset + _size(piece.text) > tail]
        news.of(row.task)
        return True

    def _log_output(self, printed: Sequence[OutputChunk], ends: Mapping[str, int]) -> None:
        """One entry for each task, in the order in which they first printed, dated by its last piece."""
        for id in dict.fromkeys(chunk.task_id for chunk in printed):
            chunks = [chunk for chunk in printed if chunk.task_id == id]
            streams = {chunk.stream for chunk in chunks}
            row = self._tables.tasks[id]
            stream = streams.pop() if len(streams) == 1 else None
            data = _encode({"stream": stream, "from": ends[id], "to": row.printed})
            self._tables.log(row.task.session_id, id, "task.output", chunks[-1].at, data)

    async def _committed(self, news: _News) -> None:
        self._counters["commits"] += 1
        signal = news.signal()
        if signal != Signal():
            for listener in tuple(self._listeners.values()):
                listener(signal)
        await asyncio.sleep(0)  # as after any commit, somebody else may be first next time


class MemoryViews:
    """The reading half of a `MemoryLedger`."""

    def __init__(self, tables: _Tables) -> None:
        self._tables = tables

    async def task(self, task_id: str) -> Task | None:
        """The task of that id."""
        row = self._task(task_id)
        return None if row is None else row.task

    async def tasks(self, ids: Sequence[str]) -> Sequence[Task]:
        """The tasks of these ids that exist, in no particular order."""
        rows = (self._task(task_id) for task_id in dict.fromkeys(ids))
        return [row.task for row in rows if row is not None]

    async def keyed(self, session_id: str, keys: Sequence[str]) -> Sequence[Task]:
        """The tasks of a session that have one of these idempotency keys, in no particular order."""
        tables = self._open()
        found = (tables.keys.get((session_id, key)) for key in dict.fromkeys(keys))
        return [tables.tasks[task_id].task for task_id in found if task_id is not None]

    async def task_ids(
        self, part: str, limit: int, *, organization_id: str | None = None, root_session_id: str | None = None
    ) -> Sequence[str]:
        """Ids of tasks that begin or end with `part`, in their order."""
        wanted = TaskFilter(organization_id=organization_id, root_session_id=root_session_id)
        found = (id for id in self._open().tasks if id.startswith(part) or id.endswith(part))
        return sorted(id for id in found if passes(self._tables.tasks[id].task, wanted))[:limit]

    async def list_tasks(self, filter: TaskFilter) -> Sequence[Task]:
        """A page in the order of ids, which is the order of creation."""
        found = [row.task for row in self._open().tasks.values() if passes(row.task, filter)]
        found.sort(key=lambda task: task.id, reverse=filter.newest_first)
        return found[: filter.limit]

    async def unindexed(self, limit: int) -> Unindexed:
        """Nothing: all tasks are looked at."""
        return Unindexed(0, 0)

    async def children(self, task_id: str) -> Sequence[Task]:
        """The tasks whose parent this is, ended ones too."""
        return [self._tables.tasks[child].task for child in self._open().children.get(task_id, ())]

    async def held_by(self, worker_id: str) -> Sequence[Beat]:
        """What that worker holds now."""
        held = (self._open().tasks[task_id].task for task_id in self._tables.held)
        return [
            Beat(task.id, task.core.attempt, task.core.version) for task in held if task.core.worker_id == worker_id
        ]

    async def holders(self) -> Mapping[str, int]:
        """How many tasks each worker holds now, by its id; those that hold any, registered or not."""
        held = (self._open().tasks[task_id].task.core.worker_id for task_id in self._tables.held)
        return Counter(worker_id for worker_id in held if worker_id is not None)

    async def active_at(self, task_id: str) -> Instant | None:
        """The newest recorded sign of life of the task's current attempt."""
        row = self._task(task_id)
        return None if row is None else row.active_at

    async def overdue(self, now: Instant, limit: int) -> Sequence[Task]:
        """Tasks whose next deadline has passed, earliest first."""
        passed = sorted((at, task_id) for task_id, at in self._open().deadlines.items() if at <= now)
        return [self._tables.tasks[task_id].task for _, task_id in passed[:limit]]

    async def follow_ups(self, limit: int, task_ids: Sequence[str] | None = None) -> Sequence[PendingFollowUp]:
        """Follow-ups that wait, oldest first; of these tasks only, when given."""
        pending = self._open().follow_ups.values()
        return [one for one in pending if task_ids is None or one.task_id in task_ids][:limit]

    async def session(self, session_id: str) -> Session | None:
        """The session of that id."""
        row = self._session(session_id)
        return None if row is None else row.session

    async def sessions(
        self,
        *,
        after: str | None = None,
        limit: int = 100,
        organization_id: str | None = None,
        root_session_id: str | None = None,
    ) -> Sequence[Session]:
        """Sessions newest first, after the one of that id."""
        found = (
            row.session
            for id, row in self._open().sessions.items()
            if (after is None or id < after)
            and organization_id in (None, row.session.organization_id)
            and root_session_id in (None, row.session.root_session_id)
        )
        return sorted(found, key=lambda session: session.id, reverse=True)[:limit]

    async def steps(self, task_id: str, *, values: bool = True) -> Sequence[Step]:
        """The task's journal, in the order it was written; without `values`, each value is None and is not read."""
        row = self._task(task_id)
        steps = [] if row is None else list(row.steps.values())
        return steps if values else [replace(step, value=None) for step in steps]

    async def attempts(self, task_id: str) -> Sequence[AttemptEnd]:
        """The task's closed attempts, in order."""
        row = self._task(task_id)
        return [] if row is None else list(row.attempts)

    async def requests(self, task_id: str) -> Sequence[InputRequest]:
        """All requests the task ever made, oldest first."""
        row = self._task(task_id)
        return [] if row is None else list(row.requests.values())

    async def request(self, request_id: str) -> InputRequest | None:
        """The request of that id, pending or closed."""
        rows = self._open().tasks.values()
        return next((row.requests[request_id] for row in rows if request_id in row.requests), None)

    async def messages(
        self, task_id: str, *, direction: Direction | None = None, after: str | None = None, limit: int = 1000
    ) -> Sequence[Message]:
        """The task's thread in the order it was written, after the message of that id."""
        row = self._task(task_id)
        thread = [] if row is None else row.messages
        places = {message.id: place for place, message in enumerate(thread)}
        start = 0 if after is None else places.get(after, len(thread)) + 1
        return [one for one in thread[start:] if direction is None or one.direction == direction][:limit]

    async def events(
        self, session_id: str, *, after: int = 0, limit: int = 1000, task_id: str | None = None
    ) -> Sequence[LogRow]:
        """Log entries with a `seq` greater than `after`, in order; of one task only, when given."""
        row = self._session(session_id)
        later = [] if row is None else [entry for entry in row.log if entry.seq > after]
        return [entry for entry in later if task_id is None or entry.task_id == task_id][:limit]

    async def position(self) -> int:
        """The position of the newest log entry of all sessions, 0 if there is none."""
        return self._open().positions

    async def horizon(self) -> int:
        """The highest position that may have been told of; it never falls, and no later entry is at or below it."""
        return self._open().positions

    async def news(self, *, after: int, limit: int = 1000) -> Sequence[News]:
        """The log entries of all sessions with a position greater than `after`, in order."""
        later = (entry for row in self._open().sessions.values() for entry in row.log if entry.position > after)
        found = [News(entry.position, entry.session_id, entry.seq, entry.task_id) for entry in later]
        return sorted(found, key=lambda each: each.position)[:limit]

    async def log(self, *, after: int, limit: int = 1000, organization_id: str | None = None) -> LogPage:
        """What an organization has, or all have, among the next `limit` log entries after a position; in order."""
        later = [
            (entry, row.session.organization_id)
            for row in self._open().sessions.values()
            for entry in row.log
            if entry.position > after
        ]
        later = sorted(later, key=lambda each: each[0].position)[:limit]
        found = tuple(entry for entry, owner in later if organization_id in (None, owner))
        return LogPage(found, later[-1][0].position if later else after)

    async def heads(self, session_ids: Sequence[str]) -> Mapping[str, Head]:
        """Where the logs of those of these sessions end that exist, by id."""
        found = ((session_id, self._session(session_id)) for session_id in session_ids)
        return {session_id: _head(row) for session_id, row in found if row is not None}

    async def first_seq(self, session_id: str) -> int:
        """The number from which on the log is whole; 1 unless tasks were pruned."""
        row = self._session(session_id)
        return 1 if row is None else row.first_seq

    async def output(self, task_id: str, *, start: int = 0, limit: int = 1000) -> Output:
        """Output from the byte offset `start` on, at most `limit` pieces."""
        row = self._task(task_id)
        if row is None:
            return Output((), 0, 0)
        rows = [piece for piece in row.output if piece.offset + _size(piece.text) > start][:limit]
        after = rows[-1].offset + _size(rows[-1].text) if rows else row.printed
        return Output(tuple(rows), row.kept_from, after)

    async def file(self, session_id: str, path: str) -> bytes | None:
        """The content of a session's file."""
        row = self._session(session_id)
        file = None if row is None else row.files.get(path)
        return None if file is None else file.content

    async def files(
        self, session_id: str, *, prefix: str = "/", after: str | None = None, limit: int = 1000
    ) -> Sequence[FileInfo]:
        """The session's files below a prefix, in the order of their paths, after the one of that path."""
        row = self._session(session_id)
        found = [] if row is None else sorted(row.files.values(), key=lambda file: file.path)
        below = [file for file in found if file.path.startswith(prefix) and file.path > (after or "")]
        return [
            FileInfo(session_id, file.path, file.media_type, len(file.content), file.created_at, file.task_id)
            for file in below[:limit]
        ]

    async def transcript(self, session_id: str, *, after: int = 0, limit: int = 100_000) -> Sequence[TranscriptRow]:
        """Transcript entries numbered above `after`, in order."""
        row = self._session(session_id)
        return [] if row is None else row.transcript[max(after, 0) :][:limit]

    async def last_entry(self, session_id: str, *, task_id: str | None = None, iteration: int | None = None) -> int:
        """The number of the newest transcript entry, 0 if there is none; of those of a task, and up to an iteration."""
        fitting = (
            row.number
            for row in reversed(await self.transcript(session_id))
            if (task_id is None or row.task_id == task_id) and (iteration is None or row.iteration <= iteration)
        )
        return next(fitting, 0)

    async def inbox(self, session_id: str, *, limit: int = 100) -> Sequence[InboxRow]:
        """Entries that were not delivered for good, oldest first, whether somebody has them or not."""
        row = self._session(session_id)
        return [] if row is None else sorted(row.inbox.values(), key=lambda entry: entry.seq)[:limit]

    async def receivable_at(self, session_id: str, now: Instant) -> Instant | None:
        """When somebody can receive something: at a moment up to `now` if at once, None while there is nothing."""
        row = self._session(session_id)
        if row is None:
            raise NotFound.of("session", session_id)
        return min((entry.leased_until or 0 for entry in row.inbox.values()), default=None)

    async def workers(self) -> Sequence[Worker]:
        """All registered workers."""
        return list(self._open().workers.values())

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
        pinned = {id for collection, id in self._open().documents if collection == "pin"}
        wanted = TaskFilter(session_id=session_id, organization_id=organization_id, states=states, kind=kind)
        rows = self._open().tasks.values()
        found = [
            (row.task.core.finished_at, row.number, row.task.id)
            for row in rows
            if row.task.core.finished_at is not None
            and since <= row.task.core.finished_at < before
            and row.task.input.organization_id not in but_of
            and pinned.isdisjoint((row.task.id, row.task.session_id, row.task.input.root_session_id))
            and passes(row.task, wanted)
        ]
        return [id for _, _, id in sorted(found)[:limit]]

    async def newest_ended(self, organization_id: str, place: int) -> Instant | None:
        """When the task of an organization ended that stands at this place, from 0, of its newest."""
        rows = (row.task for row in self._open().tasks.values() if row.task.input.organization_id == organization_id)
        ends = sorted((at for task in rows if (at := task.core.finished_at) is not None), reverse=True)
        return ends[place] if place < len(ends) else None

    async def child_sessions(self, task_ids: Sequence[str]) -> Sequence[Session]:
        """The sessions that these tasks opened, in no particular order."""
        rows = self._open().sessions.values()
        return [row.session for row in rows if row.session.parent_task_id in task_ids]

    async def count_by_state(self) -> Mapping[State, int]:
        """How many tasks there are in each state."""
        counts = dict.fromkeys(State, 0)
        for row in self._open().tasks.values():
            counts[row.task.state] += 1
        return counts

    async def gates(self) -> Gates:
        """All limits and pauses."""
        return self._open().gates

    async def grants(self, session_ids: Sequence[str]) -> Sequence[Grant]:
        """What was said last of each tool in these sessions, by session and name."""
        found = self._open().grants
        return [found[name] for name in sorted(found) if name[0] in session_ids]

    async def document(self, collection: str, *, id: str | None = None, key: str | None = None) -> Document | None:
        """The document of that id, or else of that key."""
        documents = self._open().documents
        if id is not None:
            return documents.get((collection, id))
        of_key = (each for each in documents.values() if each.collection == collection and each.key == key)
        return None if key is None else next(of_key, None)

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
        found = [
            each
            for each in self._open().documents.values()
            if each.collection == collection
            and organization_id in (None, each.organization_id)
            and each.id.startswith(below)
            and (due_by is None or (each.due_at is not None and each.due_at <= due_by))
            and (after is None or due_by is not None or (each.id < after if newest_first else each.id > after))
        ]
        found.sort(key=lambda each: (0 if due_by is None else each.due_at or 0, each.id), reverse=newest_first)
        return found[:limit]

    async def due_at(self, collection: str) -> Instant | None:
        """When the first of a collection is due, None while none is."""
        found = (each.due_at for each in self._open().documents.values() if each.collection == collection)
        return min((moment for moment in found if moment is not None), default=None)

    async def meters(self, names: Sequence[str]) -> Mapping[str, Meter]:
        """Those of these meters that anything was ever charged to, by name."""
        return {name: meter for name in names if (meter := self._open().meters.get(name)) is not None}

    async def usage(self, session_id: str, *, tree: bool = False) -> Usage:
        """What the tasks of a session reported together; with `tree`, those of all sessions whose root it is."""
        rows = self._open().tasks.values()
        of = TaskFilter(root_session_id=session_id) if tree else TaskFilter(session_id=session_id)
        found = [row.task.live.usage for row in rows if passes(row.task, of)]
        costs = [usage.cost for usage in found if usage.cost is not None]
        return Usage(
            sum(usage.requests for usage in found),
            sum(usage.input_tokens for usage in found),
            sum(usage.output_tokens for usage in found),
            sum(usage.cached_tokens for usage in found),
            sum(costs) if costs else None,
        )

    async def ahead(self, task_id: str) -> int | None:
        """How many ready tasks of its route a claim would take before this one; None unless it is ready."""
        own = self._task(task_id)
        if own is None or own.task.core.readiness != "ready":
            return None
        rows = (row for row in self._tables.tasks.values() if row.task.core.readiness == "ready")
        route, place = own.task.input.route, (own.rank, own.number)
        return sum(row.task.input.route == route and (row.rank, row.number) < place for row in rows)

    async def statistics(self, since: Instant) -> Statistics:
        """What waits now, and what ended since a moment."""
        tasks = [row.task for row in self._open().tasks.values()]
        waiting: dict[tuple[str, Readiness, str | None], list[Task]] = {}
        ended: dict[tuple[str, State, str | None], list[Task]] = {}
        for task in tasks:
            core, error = task.core, task.outcome.error
            if core.readiness is not None:
                waiting.setdefault((task.input.route, core.readiness, core.blocked_by), []).append(task)
            if core.finished_at is not None and core.finished_at >= since:
                ended.setdefault((task.input.kind, core.state, None if error is None else error.kind), []).append(task)
        return Statistics(
            await self.count_by_state(),
            tuple(
                Waiting(*key, len(those), min((task.core.due_at for task in those if task.core.due_at), default=None))
                for key, those in sorted(waiting.items(), key=str)
            ),
            tuple(_ended(*key, those) for key, those in sorted(ended.items(), key=str)),
            Storage(0, 0, 0),
        )

    async def problems(self, *, deep: bool = False) -> Sequence[str]:
        """What is wrong with the tables: nothing, in memory."""
        self._open()
        return ()

    async def schema(self) -> int:
        """There are no migrations in memory."""
        self._open()
        return 0

    async def uses(self, keys: Sequence[str] | None = None) -> Sequence[KeyUse]:
        """What becomes of these keys, or of all under which anything is held or set aside; in the order of keys."""
        tasks = [row.task for row in self._open().tasks.values()]
        held = [task.input.concurrency_key for task in tasks if task.core.is_held]
        aside = [task.input.concurrency_key for task in tasks if task.core.blocked_by == "limit"]
        found = {key for key in (*held, *aside) if key is not None} if keys is None else set(keys)
        spent = self._tables.spent
        return [KeyUse(key, held.count(key), aside.count(key), spent.get(key, ())) for key in sorted(found)]

    def _open(self) -> _Tables:
        self._tables.check_open()
        return self._tables

    def _task(self, task_id: str) -> _TaskRow | None:
        return self._open().tasks.get(task_id)

    def _session(self, session_id: str) -> _SessionRow | None:
        return self._open().sessions.get(session_id)


def _encode(data: object) -> bytes:
    return orjson.dumps(data, default=_plain)


def _encode_log(change: Change) -> list[bytes]:
    return [_encode(event.data) for event in change.events]


def _plain(value: object) -> object:
    """Read-only mappings, the one thing that JSON values may contain and orjson does not know."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _ended(kind: str, state: State, error_kind: str | None, tasks: Sequence[Task]) -> Ended:
    spans = [
        (task.core.started_at - task.input.created_at, (task.core.finished_at or 0) - task.core.started_at)
        for task in tasks
        if task.core.started_at is not None
    ]
    waited, ran = [wait for wait, _ in spans], [run for _, run in spans]
    return Ended(
        kind,
        state,
        error_kind,
        len(tasks),
        sum(waited) // len(spans) if spans else None,
        max(waited, default=None),
        sum(ran) // len(spans) if spans else None,
        max(ran, default=None),
    )


def _has_come(task: Task, now: Instant) -> bool:
    return task.core.due_at is not None and task.core.due_at <= now


def _made_ready(task: Task) -> Task:
    if task.core.readiness == "ready":
        return task
    return evolve(task, core=evolve(task.core, readiness="ready", blocked_by=None))


def _is_debounced_by(task: Task, other: Task) -> bool:
    given, asked = task.input, other.input
    is_new = task.core.started_at is None and not task.is_terminal
    return is_new and (given.session_id, given.debounce_key) == (asked.session_id, asked.debounce_key)


def _enter(index: dict[str, None], key: str, belongs: bool) -> None:
    if belongs:
        index[key] = None
    else:
        index.pop(key, None)


def _head(row: _SessionRow) -> Head:
    last = row.log[-1] if row.log else None
    session = row.session
    position = last.position if last is not None and last.seq == session.last_seq else 0
    return Head(session.last_seq, position, session.organization_id, session.root_session_id)


def _size(text: str) -> int:
    return len(text.encode())
