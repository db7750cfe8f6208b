"""What callers hand to the writer: for each verb a function that makes its `Operation`.

What can fail for a reason of the caller's own (encoding) is done here, before it is handed over. Verbs that
judge by heads alone share one flush; those that read tables (`is_late`) come after it, in their own order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, assert_never

from outrider.core.change import Change
from outrider.core.delivery import Receipt, Standing
from outrider.core.events import FileWrite, Step
from outrider.core.ledger import (
    Claim,
    Claims,
    Closed,
    Committed,
    Decide,
    Described,
    Document,
    FileMark,
    GrantSet,
    InboxRow,
    IndexEntry,
    LimitRemoved,
    LimitSet,
    Order,
    OutputChunk,
    Page,
    Paused,
    Pruned,
    Reopened,
    Report,
    Resumed,
    Verdict,
    WorkerCard,
)
from outrider.core.meters import Charge, ChargeVerdict, Reserve, Settle, names_of
from outrider.core.session import Grant, NewSession, Seed, Session
from outrider.core.task import Task
from outrider.core.values import Instant
from outrider.stores.batch import Batch, Ready, Wanted, owner_of
from outrider.stores.parcel import pack
from outrider.stores.rows import LIVE, encode
from outrider.stores.statements import listed
from outrider.stores.views import session_by_id

R = TypeVar("R")

COME_AT_ONCE = 1000
"""How many timed tasks one claim makes ready at most; the rest come with the next."""

SET_ASIDE_AT_ONCE = 1000
"""How many tasks that may not start one claim looks past at most."""

NUMBER, DUE_AT, KEY, SESSION = 1, 2, 3, 4
"""Where these stand in a row of `look`; its rank comes first, so that rows sort by it."""


def _nothing(wanted: Wanted) -> None:
    """Needs nothing looked up beforehand."""


@dataclass(slots=True, eq=False)
class Operation(Generic[R]):
    """One verb, handed over. `want` names what it concerns; `run` judges, takes in, and returns the verb's result."""

    run: Callable[[Batch], R]
    want: Callable[[Wanted], None] = _nothing
    is_late: bool = False
    gates: Literal["", "read", "change"] = ""
    """What it does with limits and pauses beyond what it wants looked up."""


def create_session(new: NewSession, seed: Seed | None) -> Operation[Session]:
    """Create a session, or find the one of that id. What it begins with is copied after all writes before it."""
    encode(new.labels)

    def want(wanted: Wanted) -> None:
        wanted.sessions.add(new.id)
        if seed is not None:
            wanted.sessions.add(seed.session_id)

    def run(batch: Batch) -> Session:
        if seed is not None:
            batch.finish()
        created = batch.create_session(new, seed)
        batch.flush()
        if created is not None:
            if seed is not None:
                batch.sow(new.id, seed)
            return created
        found = session_by_id(batch.statements, new.id)
        assert found is not None
        return batch.with_counters(found)

    return Operation(run, want, is_late=seed is not None)


def commit(changes: Sequence[Change]) -> Operation[list[Verdict]]:
    """Commit Changes in their order."""
    parcels = [pack(change) for change in changes]

    def want(wanted: Wanted) -> None:
        for parcel in parcels:
            wanted.change(parcel)

    return Operation(lambda batch: batch.commit(parcels), want)


def claim(claim: Claim, decide: Decide) -> Operation[Claims]:
    """Take ready tasks; after all the writes of its transaction, so it sees them."""

    def run(batch: Batch) -> Claims:
        batch.flush()
        _resume(batch)
        routes = listed(batch.gates.gates.routes(claim.routes))
        found = _look(batch, claim, routes)
        there = batch.records(found.numbers)
        tasks = _take(batch, there, decide)
        deadline_at, opens_at = found.deadline_at, found.opens_at
        if any(task.core.next_deadline_at is not None for task in (*there, *tasks)):
            deadline_at = batch.statements.row("first_deadline")[0]
        if batch.has_written_rates:
            opens_at = batch.statements.row("first_opening")[0]
        due_at = _earliest(found.due_at, opens_at)
        return Claims(tuple(tasks), due_at, deadline_at, found.more, found.follow_ups)

    return Operation(run, is_late=True, gates="read")


def _resume(batch: Batch) -> None:
    """Let in again what was set aside in sessions that are no longer paused: some of it with each claim."""
    for number, name in batch.gates.resuming:
        if not batch.open_session(number):
            batch.statements.run("delete_pause", "session", name)
            batch.gates_changed()


@dataclass(frozen=True, slots=True)
class _Sight:
    """What a claim sees: the numbers of those it may take, in their order."""

    numbers: list[int]
    more: bool
    due_at: Instant | None
    deadline_at: Instant | None
    opens_at: Instant | None
    follow_ups: bool


def _look(batch: Batch, claim: Claim, routes: str) -> _Sight:
    statements, now, size = batch.statements, claim.now, claim.limit + 1
    ready, timed, deadline, follow_ups, opens_at = batch.look(routes, size)
    if any(moment is not None and moment <= now for moment in (timed, opens_at)):
        batch.come(routes, now, COME_AT_ONCE)
        batch.open_rates(now)
        ready, timed, deadline, follow_ups, opens_at = batch.look(routes, size)
    later = None
    if any(row[DUE_AT] > now for row in ready):
        # A claim that waited in the queue finds tasks that were made after its moment. They are for the next.
        ready = batch.ready_by(routes, size, now)
        if len(ready) < size:  # then few are left to look through
            later = statements.row("ready_later", routes, now)[0]
    numbers, aside = _walk(batch, ready, claim)
    if aside and len(numbers) < claim.limit and len(ready) == size:
        # Those that may not start hid others that may: once more, further.
        size += SET_ASIDE_AT_ONCE
        ready = batch.ready_by(routes, size, now)
        numbers, aside = _walk(batch, ready, claim)
    for reason in ("limit", "paused"):
        if those := [row for row, why in aside if why == reason]:
            batch.set_aside(reason, [row[NUMBER] for row in those], {row[KEY] for row in those}, now)
    more = len(numbers) + len(aside) < len(ready) or len(ready) == size
    return _Sight(numbers, more, _earliest(timed, later), deadline, opens_at, bool(follow_ups))


def _walk(batch: Batch, ready: Sequence[Ready], claim: Claim) -> tuple[list[int], list[tuple[Ready, str]]]:
    """The numbers of those that may start, up to the limit of the claim, and the rows before that may not, with why."""
    paused, keys = batch.gates.paused, {row[KEY] for row in ready if row[KEY] is not None}
    if not paused and not keys:
        return [row[NUMBER] for row in ready[: claim.limit]], []
    places = batch.places(keys, claim.now)
    numbers: list[int] = []
    aside: list[tuple[Ready, str]] = []
    for row in ready:
        if len(numbers) == claim.limit:
            break
        key = row[KEY]
        if row[SESSION] in paused:
            aside.append((row, "paused"))
        elif key is None or (left := places[key]) is None:
            numbers.append(row[NUMBER])
        elif left > 0:
            numbers.append(row[NUMBER])
            places[key] = left - 1
        else:
            aside.append((row, "limit"))
    return numbers, aside


def _take(batch: Batch, there: Sequence[Task], decide: Decide) -> list[Task]:
    parcels, wanted = [pack(decide(task)) for task in there], Wanted()
    for parcel in parcels:
        wanted.change(parcel)
    batch.load(wanted)
    tasks = [verdict.task for verdict in batch.commit(parcels) if isinstance(verdict, Committed)]
    batch.flush()
    return tasks


def _earliest(*moments: Instant | None) -> Instant | None:
    return min((moment for moment in moments if moment is not None), default=None)


def report(reports: Sequence[Report]) -> Operation[list[bool]]:
    """Write live values."""
    packed = [
        (
            report,
            None if report.live is None else LIVE.write(report.live),
            None if report.delta is None else encode(report.delta),
        )
        for report in reports
    ]

    def want(wanted: Wanted) -> None:
        for report in reports:
            wanted.logging.add(report.task_id)

    return Operation(lambda batch: [batch.report(*report) for report in packed], want)


def journal(steps: Sequence[Step]) -> Operation[list[bool]]:
    """Write journal rows."""

    def want(wanted: Wanted) -> None:
        for step in steps:
            wanted.tasks.add(step.task_id)

    return Operation(lambda batch: [batch.journal(step) for step in steps], want)


def append(page: Page) -> Operation[bool]:
    """Append a finished iteration."""

    def want(wanted: Wanted) -> None:
        wanted.logging.add(page.task_id)
        wanted.sessions.add(page.session_id)

    return Operation(lambda batch: batch.append(page), want)


def print(chunks: Sequence[OutputChunk]) -> Operation[list[bool]]:
    """Append output."""

    def want(wanted: Wanted) -> None:
        for chunk in chunks:
            wanted.logging.add(chunk.task_id)

    return Operation(lambda batch: batch.print(chunks), want)


def write_file(file: FileWrite, fence: tuple[str, int] | None) -> Operation[bool]:
    """Write a file whole."""

    def want(wanted: Wanted) -> None:
        wanted.file(file)
        if fence is not None:
            wanted.tasks.add(fence[0])

    return Operation(lambda batch: batch.write_file(file, fence), want)


def delete_file(session_id: str, path: str) -> Operation[bool]:
    """Delete a file."""

    def want(wanted: Wanted) -> None:
        wanted.sessions.add(session_id)
        if (owner := owner_of(path)) is not None:
            wanted.tasks.add(owner[0])

    return Operation(lambda batch: batch.delete_file(session_id, path), want)


def control(order: Order) -> Operation[bool]:
    """Set or remove a limit, pause or resume, and let in who may start now; or what concerns one session."""
    if isinstance(order, Closed | Reopened | Described):
        return _of_session(order)

    def run(batch: Batch) -> bool:
        batch.flush()
        match order:
            case LimitSet(limit):
                changed = batch.gates.gates.limits.get(limit.key) != limit
                batch.statements.run("upsert_limit", limit.key, limit.capacity, limit.rate, limit.span)
                batch.gates_changed()
                batch.open_limit(limit.key)
            case LimitRemoved(key):
                changed = batch.statements.changed("delete_limit", key) > 0
                batch.gates_changed()
                batch.open_limit(key)
            case Paused(pause):
                there = batch.gates.gates.pauses()
                changed = (pause.scope, pause.name) not in there
                if changed:
                    batch.statements.run("upsert_pause", pause.scope, pause.name, pause.at, pause.by, pause.reason)
                batch.gates_changed()
            case Resumed(scope, name):
                changed = (scope, name) in batch.gates.gates.pauses()
                if changed:
                    # What was set aside for a session is let in by claims, step by step; nothing is for the others.
                    batch.statements.run("end_pause" if scope == "session" else "delete_pause", scope, name)
                batch.gates_changed()
            case GrantSet(grant):
                changed = batch.statements.changed("upsert_grant", *_grant_row(grant)) > 0
            case _:
                assert_never(order)
        return changed

    return Operation(run, is_late=True) if isinstance(order, GrantSet) else Operation(run, is_late=True, gates="change")


def _grant_row(grant: Grant) -> tuple[Any, ...]:
    return (grant.session_id, grant.tool, int(grant.is_allowed), grant.at, grant.by, grant.via, grant.task_id)


def _of_session(order: Closed | Reopened | Described) -> Operation[bool]:
    def run(batch: Batch) -> bool:
        batch.finish()
        match order:
            case Closed():
                return batch.close_session(order.session_id, order.at, when_idle=order.when_idle)
            case Reopened():
                return batch.reopen_session(order.session_id, order.at)
            case Described():
                return batch.describe_session(order)
            case _:
                assert_never(order)

    return Operation(run, lambda wanted: wanted.sessions.add(order.session_id), is_late=True)


def keep(documents: Sequence[Document], dropped: Sequence[Document]) -> Operation[bool]:
    """Write documents anew and drop others."""
    rows = [
        (each.collection, each.id, each.organization_id, each.key, each.due_at, each.version + 1, encode(each.data))
        for each in documents
    ]
    expected = {(each.collection, each.id): each.version for each in (*documents, *dropped)}
    keys = {(each.collection, each.key): each.id for each in documents if each.key is not None}
    is_sound = len(expected) == len(documents) + len(dropped) and len(keys) == sum(
        each.key is not None for each in documents
    )

    def run(batch: Batch) -> bool:
        return is_sound and batch.keep(rows, expected, keys)

    return Operation(run, is_late=True)


def index(entries: Sequence[IndexEntry], after: int, upto: int) -> Operation[bool]:
    """Take tasks into the index that lists go by; after all the writes of its transaction, so it sees them."""

    def run(batch: Batch) -> bool:
        batch.finish()
        return batch.index(entries, after, upto)

    return Operation(run, is_late=True)


def charge(charges: Sequence[Charge]) -> Operation[list[ChargeVerdict]]:
    """Take down charges in their order."""

    def want(wanted: Wanted) -> None:
        for charge in charges:
            wanted.meters.update(names_of(charge))
            if isinstance(charge, Reserve | Settle):
                wanted.spend(charge.task_id, charge.taps)

    return Operation(lambda batch: [batch.charge(charge) for charge in charges], want)


def register(card: WorkerCard) -> Operation[Any]:
    """Make a worker known."""
    data = encode(card)
    return Operation(lambda batch: batch.statements.run("upsert_worker", card.id, data, card.started_at), is_late=True)


def renew(worker_id: str, now: Instant) -> Operation[bool]:
    """Advance a worker's beat."""
    return Operation(
        lambda batch: batch.statements.changed("renew_worker", now, worker_id) > 0,
        is_late=True,
    )


def retire(worker_id: str) -> Operation[Any]:
    """Forget a worker."""
    return Operation(lambda batch: batch.statements.run("delete_worker", worker_id), is_late=True)


def receive(session_id: str, now: Instant, until: Instant, limit: int) -> Operation[list[InboxRow]]:
    """Take entries of an inbox; after all the writes of its transaction, so it sees them."""

    def run(batch: Batch) -> list[InboxRow]:
        batch.finish()
        return batch.receive(session_id, now, until, limit)

    return Operation(run, is_late=True)


def acknowledge(session_id: str, receipts: Sequence[Receipt], until: Instant | None) -> Operation[list[Standing]]:
    """Drop entries of an inbox that were received, or keep them for longer."""

    def run(batch: Batch) -> list[Standing]:
        batch.finish()
        return batch.acknowledge(session_id, receipts, until)

    return Operation(run, is_late=True)


def prune(
    task_ids: Sequence[str], session_ids: Sequence[str], now: Instant | None, files: Collection[FileMark] | None
) -> Operation[Pruned]:
    """Delete ended tasks and empty sessions; after all the writes of its transaction, so it sees them."""
    tasks, sessions = tuple(dict.fromkeys(task_ids)), tuple(dict.fromkeys(session_ids))

    def run(batch: Batch) -> Pruned:
        batch.finish()
        return batch.prune(tasks, sessions, now, files)

    return Operation(run, is_late=True)
