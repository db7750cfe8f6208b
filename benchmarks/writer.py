"""Where the thread that writes spends its processor time, while the crowd of `tasks` is worked through.

Each part is counted without what it calls, on the clock of that thread alone: waiting for the disk, for the lock of
the file or for the interpreter is not in it. The clock itself is in it, with about a microsecond a statement.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from benchmarks import work
from benchmarks.harness import Figures, Place, Settings, check
from benchmarks.tasks import check_crowd, run_crowd
from outrider.stores import batch, operations
from outrider.stores import writer as group
from outrider.stores.sqlite import statements, writer

WRITES = (
    "insert_tasks",
    "insert_inputs",
    "update_tasks",
    "insert_events",
    "insert_attempts",
    "upsert_files",
    "update_sessions",
)
PARTS = ("begin", "read", "apply", *WRITES, "other_writes", "commit", "reply", "rest")
KEYS = ("us_per_task", *(f"{part}_us" for part in PARTS))
THREAD = "outrider-writer"


def tasks(settings: Settings) -> int:
    """As many as the crowd of `tasks`."""
    return 100_000 if settings.full else 8_000


async def run(place: Place) -> Figures:
    """Run the crowd with a clock around every part of the writer's work."""
    check(place.settings.store == "sqlite", "only the SQLite store has such a thread")
    spans = _Spans()
    with _measured(spans):
        async with work.app.open(place.url()) as outrider:
            await run_crowd(outrider, place.tasks // 10)
            spans.spent.clear()
            crowd = await run_crowd(outrider, place.tasks)
            spent = {part: spans.spent[part] / place.tasks / 1000 for part in PARTS}
            await check_crowd(outrider, crowd)
    return {"us_per_task": sum(spent.values()), **{f"{part}_us": us for part, us in spent.items()}}


class _Spans:
    """Nanoseconds of the writing thread by part; a part that runs within another is taken from that."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self._inner: list[int] = []

    def around(self, part: str | Callable[..., str], function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*arguments: Any) -> Any:
            if threading.current_thread().name != THREAD:
                return function(*arguments)
            self._inner.append(0)
            started = time.thread_time_ns()
            try:
                return function(*arguments)
            finally:
                spent = time.thread_time_ns() - started
                self.spent[part if isinstance(part, str) else part(*arguments)] += spent - self._inner.pop()
                if self._inner:
                    self._inner[-1] += spent

        return timed


@contextmanager
def _measured(spans: _Spans) -> Iterator[None]:
    places: list[tuple[Any, str, str | Callable[..., str]]] = [
        (writer.Writer, "__init__", "rest"),
        (group.GroupWriter, "_commit", "rest"),
        (group.GroupWriter, "_reply", "reply"),
        (writer.Writer, "_has_foreign_news", "begin"),
        (batch.Batch, "load", "read"),
        (operations, "_look", "read"),
        (batch.Batch, "commit", "apply"),
        (batch.Batch, "records", "read"),
        (statements.SqliteStatements, "write", _name_of),
    ]
    before = [getattr(owner, name) for owner, name, _ in places]
    for (owner, name, part), function in zip(places, before, strict=True):
        setattr(owner, name, _opening(spans, function) if name == "__init__" else spans.around(part, function))
    try:
        yield
    finally:
        for (owner, name, _), function in zip(places, before, strict=True):
            setattr(owner, name, function)


def _opening(spans: _Spans, original: Callable[..., None]) -> Callable[..., None]:
    def open_timed(self: writer.Writer, file: Any, connection: sqlite3.Connection, *rest: Any) -> None:
        original(self, file, _Timed(connection, spans), *rest)

    return open_timed


class _Timed:
    """A connection that times the two statements that are run on it directly."""

    def __init__(self, connection: sqlite3.Connection, spans: _Spans) -> None:
        self._connection = connection
        self._timed = {
            "commit": spans.around("commit", connection.execute),
            "begin immediate": spans.around("begin", connection.execute),
        }

    def execute(self, text: str, *parameters: Any) -> sqlite3.Cursor:
        cursor: sqlite3.Cursor = self._timed.get(text, self._connection.execute)(text, *parameters)
        return cursor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def _name_of(_: statements.SqliteStatements, name: str, __: Any) -> str:
    return name if name in WRITES else "other_writes"
