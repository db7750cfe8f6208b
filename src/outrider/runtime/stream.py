"""Reading a session's log from a cursor on: exact resume, full snapshots, news as it comes.

The log holds what changed; a reader wants records. `EventReader` folds each task's entries as it goes, and
fetches the earlier ones of a task that it meets halfway.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import cache
from typing import Any

from outrider.core.errors import NotFound
from outrider.core.ledger import LogRow
from outrider.core.replay import Snapshot, fold, replay
from outrider.core.task import Task
from outrider.runtime.clock import as_datetime
from outrider.runtime.codec import decode
from outrider.runtime.records import EventRecord, OutputRecord, TaskRecord
from outrider.runtime.services import Services

PAGE = 500


class EventReader:
    """Reads the log of one session, or what it says of one task, each later event exactly once.

    Where entries are missing since their tasks were deleted, a reader of a session is told before it goes on: by an
    event `log.trimmed` under the number of the event before, whose data say from which `first_seq` on nothing is
    missing. What the log still has before that comes after it.
    """

    def __init__(self, services: Services, session_id: str, *, after: int = 0, task_id: str | None = None) -> None:
        self._services = services
        self._session_id = session_id
        self._task_id = task_id
        self._snapshots: dict[str, Snapshot | None] = {}
        self._first_seq = 0
        """From where on the log is whole, as far as the reader was told."""
        self.after = after
        """The number of the last event that was read."""

    async def read(self, limit: int = PAGE) -> list[EventRecord]:
        """Return the next events, none if there are no more yet."""
        rows = await self._services.views.events(self._session_id, after=self.after, limit=limit, task_id=self._task_id)
        events = [] if self._task_id is not None else await self._missing(rows)
        events += [await self._expand(row) for row in rows]
        if rows:
            self.after = rows[-1].seq
        return events

    async def follow(self) -> AsyncIterator[EventRecord]:
        """Yield events for ever, waiting for each. Raises NotFound once the session was deleted."""
        topic = self._task_id or self._session_id
        with self._services.signals.listen([topic, self._session_id]) as bell:
            while True:
                events = await self.read()
                for event in events:
                    yield event
                if not events:
                    if await self._services.views.session(self._session_id) is None:
                        raise NotFound.of("session", self._session_id)
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

    async def _expand(self, row: LogRow) -> EventRecord:
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
            earlier = await self._earlier(task_id, row.seq)
            self._snapshots[task_id] = replay((each.type, decode(each.data)) for each in earlier)
        snapshot = self._snapshots[task_id] = fold(self._snapshots.get(task_id), row.type, data)
        return snapshot

    async def _earlier(self, task_id: str, before: int) -> Sequence[LogRow]:
        rows: list[LogRow] = []
        after = 0
        while True:
            page = await self._services.views.events(self._session_id, after=after, limit=PAGE, task_id=task_id)
            rows.extend(row for row in page if row.seq < before)
            if len(page) < PAGE or page[-1].seq >= before:
                return rows
            after = page[-1].seq


async def read_output(
    services: Services, task_id: str, start: int = 0, *, follow: bool = True
) -> AsyncIterator[OutputRecord]:
    """Yield a task's output from a byte offset on, until all was read and, with `follow`, the task has ended."""
    with services.signals.listen([task_id]) as bell:
        while True:
            task = await services.views.task(task_id)
            output = await services.views.output(task_id, start=start)
            if start < output.first:
                yield OutputRecord(
                    task_id=task_id, stream="", offset=start, next=output.first, text="", lost=output.first - start
                )
            for row in output.rows:
                encoded = row.text.encode()
                skipped = max(0, start - row.offset)
                yield OutputRecord(
                    task_id=task_id,
                    stream=row.stream,
                    offset=row.offset + skipped,
                    next=row.offset + len(encoded),
                    text=encoded[skipped:].decode(errors="replace") if skipped else row.text,
                    at=as_datetime(row.at),
                )
            start = max(start, output.next)
            if output.rows:
                continue
            if task is None or task.is_terminal or not follow:
                return
            await bell.wait()


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
