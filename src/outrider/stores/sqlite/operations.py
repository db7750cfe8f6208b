"""What callers hand to the writer: for each verb a function that makes its `Operation`.

What can fail for a reason of the caller's own (encoding) is done here, before it is handed over. Verbs that
judge by heads alone share one flush; those that read tables (`is_late`) come after it, in their own order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from outrider.core.change import Change
from outrider.core.events import FileWrite, Step
from outrider.core.ledger import Claim, Claims, Committed, Decide, OutputChunk, Page, Report, Verdict, WorkerCard
from outrider.core.session import NewSession, Session
from outrider.core.task import Task
from outrider.core.values import Instant
from outrider.stores.rows import LIVE, encode
from outrider.stores.sqlite.batch import Batch, Wanted, head_of, owner_of
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
        statements = batch.statements
        statements.run("come", routes, claim.now, COME_AT_ONCE)
        by_route = statements.array("ready", routes, claim.now, claim.limit + 1)
        ready = sorted(place for places in by_route for place in places)
        more = len(ready) > claim.limit
        tasks = _take(batch, [number for _, number in ready[: claim.limit]], decide)
        batch.flush()
        due_at, deadline, follow_ups = statements.row("outlook", routes, claim.now, more)
        return Claims(tuple(tasks), due_at, deadline, more, bool(follow_ups))

    return Operation(run, is_late=True)


def _take(batch: Batch, numbers: Sequence[int], decide: Decide) -> list[Task]:
    if not numbers:
        return []
    rows = batch.statements.array("tasks_by_number", listed(numbers))
    places = {number: place for place, number in enumerate(numbers)}
    rows.sort(key=lambda row: places[row[0][0]])
    parcels, wanted = [], Wanted()
    for row in rows:
        head, task = head_of(row)
        batch.know(head)
        parcel = pack(decide(task))
        wanted.change(parcel)
        parcels.append(parcel)
    batch.load(wanted)
    return [verdict.task for verdict in batch.commit(parcels) if isinstance(verdict, Committed)]


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
