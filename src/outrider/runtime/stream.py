"""Reading logs and output from a cursor on: exact resume, full snapshots, news as it comes.

The log holds what changed; a reader wants records. A reader folds each task's entries as it goes, and fetches the
earlier ones of a task that it meets halfway. Each belongs to one who reads, or to all who read the same together (see
`live`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from functools import cache
from typing import Any, Protocol, TypeAlias

from outrider.core.errors import NotFound
from outrider.core.ledger import LogRow
from outrider.core.replay import Snapshot, fold, replay
from outrider.core.task import Task
from outrider.core.values import Instant
from outrider.runtime.clock import as_datetime
from outrider.runtime.codec import decode
from outrider.runtime.records import EventRecord, OutputRecord, TaskRecord
from outrider.runtime.services import Services

PAGE = 500
MOST_FOLDED = 1000
"""Of how many live tasks a reader keeps what the log said; those that it did not meet for longest are read again."""

Life: TypeAlias = tuple[str, str, Instant]
"""Which of those it is that had an id one after the other: an id is free again once what had it was deleted."""


class Lived(Protocol):
    """What says which life it is of: a session, or the input of a task."""

    @property
    def organization_id(self) -> str:
        """The organization that it belongs to."""
        ...

    @property
    def root_session_id(self) -> str:
        """The session at the top of its tree."""
        ...

    @property
    def created_at(self) -> Instant:
        """When it was made."""
        ...


def life_of(lived: Lived) -> Life:
    """The life of a session, or of the task with this input.

    What is read by an id is of the life that the id still has after that: one that is over does not come back.
    """
    return lived.organization_id, lived.root_session_id, lived.created_at


class EventReader:
    """Reads the log of one session, or what it says of one task, each later event exactly once.

    Where entries are missing since their tasks were deleted, a reader of a session is told before it goes on: by an
    event `log.trimmed` under the number of the event before, whose data say from which `first_seq` on nothing is
    missing. What the log still has before that comes after it. With `output` what was printed is in the events that
    tell of it, as far as it is kept.
    """

    def __init__(
        self, services: Services, session_id: str, *, after: int = 0, task_id: str | None = None, output: bool = False
    ) -> None:
        self._services = services
        self._session_id = session_id
        self._task_id = task_id
        self._has_output = output
        self._folds = Folds(services)
        self._first_seq = 0
        """From where on the log is whole, as far as the reader was told."""
        self.after = after
        """The number of the last event that was read."""

    async def read(self, limit: int = PAGE) -> list[EventRecord]:
        """Return the next events, none if there are no more yet."""
        rows = await self._services.views.events(self._session_id, after=self.after, limit=limit, task_id=self._task_id)
        events = [] if self._task_id is not None else await self._missing(rows)
        for row in rows:
            event = await self._folds.expand(row)
            if self._has_output and row.type == "task.output":
                event = event.model_copy(update={"data": {**event.data, **await self._printed(row.task_id, event)}})
            events.append(event)
        if rows:
            self.after = rows[-1].seq
        return events

    def folded(self, task_id: str) -> Task | None:
        """A live task as what was read last left it; None for one that was not met, or has ended."""
        return self._folds.task(task_id)

    async def follow(self, life: Life) -> AsyncIterator[EventRecord]:
        """Yield events for ever, waiting for each. Raises NotFound once the session of that life was deleted."""
        topic = self._task_id or self._session_id
        with self._services.signals.listen([topic, self._session_id]) as bell:
            while True:
                events = await self.read()
                session = await self._services.views.session(self._session_id)
                if session is None or life_of(session) != life:
                    raise NotFound.of("session", self._session_id)
                for event in events:
                    yield event
                if not events:
                    await bell.wait()

    async def _missing(self, rows: Sequence[LogRow]) -> list[EventRecord]:
        """The marker, where the log has less than was written and the reader has not been told."""
        expected, is_missing = self.after + 1, self._first_seq == 0
        for row in rows:
            is_missing = is_missing or (row.seq > expected >= self._first_seq)
            expected = row.seq + 1
        if not is_missing:
            return []
        # Read after the rows: what was trimmed in between is told too early, which is better than never.
        first = await self._services.views.first_seq(self._session_id)
        was_told, self._first_seq = self._first_seq, max(first, 1)
        if first <= max(was_told, self.after + 1):
            return []
        at = as_datetime(self._services.clock.now())
        data = {"first_seq": first}
        return [
            EventRecord(session_id=self._session_id, seq=self.after, type="log.trimmed", at=at, task_id=None, data=data)
        ]

    async def _printed(self, task_id: str | None, event: EventRecord) -> dict[str, Any]:
        """What was printed between two offsets, and how many bytes of it are not kept any more."""
        assert task_id is not None
        start, end = int(event.data["from"]), int(event.data["to"])
        reader = OutputReader(self._services, task_id, start)
        pieces: list[dict[str, str]] = []
        lost = 0
        while reader.after < end and (found := await reader.read()):
            for each in found:
                lost += max(0, min(each.next, end) - each.offset) if each.lost else 0
                if not each.lost and each.offset < end:
                    text = each.text.encode()[: end - each.offset].decode(errors="replace")
                    pieces.append({"stream": each.stream, "text": text})
        return {"pieces": pieces, "lost": lost}


class LogReader:
    """Reads the log of all sessions, or of those of one organization, in the order of positions, each entry once.

    What was deleted is not told: the log of all sessions has no numbers without gaps.
    """

    def __init__(self, services: Services, organization_id: str | None = None, *, after: int = 0) -> None:
        self._services = services
        self._organization_id = organization_id
        self._folds = Folds(services)
        self.after = after
        """The position up to which it was read."""

    async def read(self, limit: int = PAGE) -> list[tuple[int, EventRecord]]:
        """Return the next events, each with its position; none if there are no more yet.

        At most `limit`, or a page where that many entries of others came before them.
        """
        views = self._services.views
        while True:
            page = await views.log(after=self.after, limit=limit, organization_id=self._organization_id)
            events = [(row.position, await self._folds.expand(row)) for row in page.rows]
            is_all = page.next == self.after
            self.after = page.next
            if events or is_all:
                return events
            limit = max(limit, min(2 * limit, PAGE))

    def folded(self, task_id: str) -> Task | None:
        """A live task as what was read last left it; None for one that was not met, or has ended."""
        return self._folds.task(task_id)


class OutputReader:
    """Reads a task's output from a byte offset on."""

    def __init__(self, services: Services, task_id: str, start: int = 0) -> None:
        self._services = services
        self._task_id = task_id
        self.after = start
        """The offset of the byte after what was read."""

    async def read(self, limit: int = 1000) -> list[OutputRecord]:
        """Return the next pieces, none if there are no more yet; first how much is not kept any more, if so."""
        start = self.after
        output = await self._services.views.output(self._task_id, start=start, limit=limit)
        pieces: list[OutputRecord] = []
        if start < output.first:
            lost = output.first - start
            pieces.append(
                OutputRecord(task_id=self._task_id, stream="", offset=start, next=output.first, text="", lost=lost)
            )
        for row in output.rows:
            encoded = row.text.encode()
            skipped = max(0, start - row.offset)
            pieces.append(
                OutputRecord(
                    task_id=self._task_id,
                    stream=row.stream,
                    offset=row.offset + skipped,
                    next=row.offset + len(encoded),
                    text=encoded[skipped:].decode(errors="replace") if skipped else row.text,
                    at=as_datetime(row.at),
                )
            )
        self.after = max(start, output.next)
        return pieces


async def read_output(
    services: Services, task_id: str, start: int = 0, *, follow: bool = True
) -> AsyncIterator[OutputRecord]:
    """Yield a task's output from a byte offset on, until all was read and, with `follow`, the task has ended."""
    reader = OutputReader(services, task_id, start)
    task = await services.views.task(task_id)
    life = None if task is None else life_of(task.input)
    with services.signals.listen([task_id]) as bell:
        while task is not None:
            is_last = task.is_terminal or not follow
            pieces = await reader.read()
            task = await services.views.task(task_id)
            if task is None or life_of(task.input) != life:
                return
            for piece in pieces:
                yield piece
            if pieces:
                continue
            if is_last:
                return
            if not task.is_terminal:
                await bell.wait()


class Folds:
    """What the log said of each task that a reader met, so far; and what it says next, as events."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._snapshots: OrderedDict[str, Snapshot | None] = OrderedDict()

    def task(self, task_id: str) -> Task | None:
        """The task as the entries so far left it; None for one that was not met, has ended, or was met long ago."""
        snapshot = self._snapshots.get(task_id)
        return None if snapshot is None else task_from(task_id, snapshot)

    async def expand(self, row: LogRow) -> EventRecord:
        """The event that an entry is, with the task's whole record. To be called for each entry in order."""
        data = decode(row.data)
        record = None
        if row.task_id is not None and row.type in ("task.created", "task.updated", "task.progress"):
            snapshot = await self._fold(row.task_id, row, data)
            if snapshot is not None and row.type != "task.progress":
                record = TaskRecord.of(task_from(row.task_id, snapshot))
        if row.task_id is not None and record is not None and record.is_terminal:
            self._snapshots.pop(row.task_id, None)
        return EventRecord(
            session_id=row.session_id,
            seq=row.seq,
            type=row.type,
            at=as_datetime(row.at),
            task_id=row.task_id,
            task=record,
            data={} if record is not None else _public(data),
        )

    async def _fold(self, task_id: str, row: LogRow, data: Any) -> Snapshot | None:
        if row.type != "task.created" and task_id not in self._snapshots:
            earlier = await self._earlier(row.session_id, task_id, row.seq)
            self._snapshots[task_id] = replay((each.type, decode(each.data)) for each in earlier)
        snapshot = self._snapshots[task_id] = fold(self._snapshots.get(task_id), row.type, data)
        self._snapshots.move_to_end(task_id)
        if len(self._snapshots) > MOST_FOLDED:
            self._snapshots.popitem(last=False)
        return snapshot

    async def _earlier(self, session_id: str, task_id: str, before: int) -> Sequence[LogRow]:
        rows: list[LogRow] = []
        after = 0
        while True:
            page = await self._services.views.events(session_id, after=after, limit=PAGE, task_id=task_id)
            rows.extend(row for row in page if row.seq < before)
            if len(page) < PAGE or page[-1].seq >= before:
                return rows
            after = page[-1].seq


def task_from(task_id: str, snapshot: Snapshot) -> Task:
    """Return the task that a folded snapshot describes."""
    task: Task = _adapter().validate_python({"id": task_id, **snapshot})
    return task


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Task)


def _public(data: Any) -> dict[str, Any]:
    return data if isinstance(data, dict) else {"value": data}
