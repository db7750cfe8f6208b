"""What callers hand to the writer: for each verb a function that makes its `Operation`.

What can fail for a reason of the caller's own (encoding) is done here, before it is handed over. Verbs that
judge by heads alone share one flush; those that read tables (`is_late`) come after it, in their own order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, TypeVar

from outrider.core.change import Change
from outrider.core.events import FileWrite, Step
from outrider.core.ledger import Claim, Claims, Committed, Decide, OutputChunk, Page, Report, Verdict, WorkerCard
from outrider.core.session import NewSession, Session
from outrider.core.task import Task
from outrider.core.values import Instant
from outrider.stores.rows import LIVE, encode
from outrider.stores.sqlite.batch import Batch, Wanted, owner_of
from outrider.stores.sqlite.parcel import pack
from outrider.stores.sqlite.statements import listed
from outrider.stores.sqlite.views import session_by_id

R = TypeVar("R")

COME_AT_ONCE = 1000
"""How many timed tasks one claim makes ready at most; the rest come with the next."""


def _nothing(wanted: Wanted) -> None:
    """Needs nothing looked up beforehand."""


@dataclass(slots=True, eq=False)
class Operation(Generic[R]):
    """One verb, handed over. `want` names what it concerns; `run` judges, takes in, and returns the verb's result."""

    run: Callable[[Batch], R]
    want: Callable[[Wanted], None] = _nothing
    is_late: bool = False


def create_session(new: NewSession) -> Operation[Session]:
    """Create a session, or find the one of that id."""
    encode(new.labels)

    def run(batch: Batch) -> Session:
        created = batch.create_session(new)
        if created is not None:
            return created
        batch.flush()
        found = session_by_id(batch.statements, new.id)
        assert found is not None
        return found

    return Operation(run, lambda wanted: wanted.sessions.add(new.id))


def commit(changes: Sequence[Change]) -> Operation[list[Verdict]]:
    """Commit Changes in their order."""
    parcels = [pack(change) for change in changes]

    def want(wanted: Wanted) -> None:
        for parcel in parcels:
            wanted.change(parcel)

    return Operation(lambda batch: batch.commit(parcels), want)


def claim(claim: Claim, decide: Decide) -> Operation[Claims]:
    """Take ready tasks; after all the writes of its transaction, so it sees them."""
    routes = listed(tuple(dict.fromkeys(claim.routes)))

    def run(batch: Batch) -> Claims:
        batch.flush()
        found = _look(batch, claim, routes)
        there = batch.records([number for _, number, _ in found.ready[: claim.limit]])
        tasks = _take(batch, there, decide)
        deadline_at = found.deadline_at
        if any(task.core.next_deadline_at is not None for task in (*there, *tasks)):
            deadline_at = batch.statements.row("first_deadline")[0]
        return Claims(tuple(tasks), found.due_at, deadline_at, found.more, found.follow_ups)

    return Operation(run, is_late=True)


@dataclass(frozen=True, slots=True)
class _Sight:
    """What a claim sees. `ready` holds (rank, number, due_at) in the order of claims."""

    ready: list[list[int]]
    more: bool
    due_at: Instant | None
    deadline_at: Instant | None
    follow_ups: bool


def _look(batch: Batch, claim: Claim, routes: str) -> _Sight:
    statements, limit, now = batch.statements, claim.limit, claim.now
    by_route, timed, deadline, follow_ups = statements.array("look", routes, limit + 1)
    if timed is not None and timed <= now:
        statements.run("come", routes, now, COME_AT_ONCE)
        batch.forget_timed()
        by_route, timed, deadline, follow_ups = statements.array("look", routes, limit + 1)
    ready = sorted(chain.from_iterable(by_route))
    later = None
    if any(due_at > now for _, _, due_at in ready):
        # A claim that waited in the queue finds tasks that were made after its moment. They are for the next.
        ready = sorted(chain.from_iterable(statements.array("ready_by", routes, limit + 1, now)))
        if len(ready) <= limit:  # then few are left to look through
            later = statements.row("ready_later", routes, now)[0]
    return _Sight(ready, len(ready) > limit, _earliest(timed, later), deadline, bool(follow_ups))


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


def register(card: WorkerCard) -> Operation[Any]:
    """Make a worker known."""
    data = encode(card)
    return Operation(lambda batch: batch.statements.run("upsert_worker", card.id, data, card.started_at), is_late=True)


def renew(worker_id: str, now: Instant) -> Operation[bool]:
    """Advance a worker's beat."""
    return Operation(
        lambda batch: batch.statements.run("renew_worker", now, worker_id).rowcount > 0,
        is_late=True,
    )


def retire(worker_id: str) -> Operation[Any]:
    """Forget a worker."""
    return Operation(lambda batch: batch.statements.run("delete_worker", worker_id), is_late=True)


def acknowledge(session_id: str, upto: int) -> Operation[int]:
    """Drop inbox entries that were delivered."""

    def run(batch: Batch) -> int:
        batch.flush()
        return batch.statements.run("acknowledge", session_id, upto).rowcount

    return Operation(run, is_late=True)
