"""Where the SQLite store reads.

Reads that are known to be short run right on the event loop: 20 us there against 100 us and more by way of a
thread. Those that may return much go to a small pool, each thread with a connection of its own.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from outrider.core.errors import StoreLocked
from outrider.core.ledger import Storage
from outrider.stores.sqlite.file import DatabaseFile
from outrider.stores.sqlite.statements import SqliteStatements, texts
from outrider.stores.statements import Statements
from outrider.stores.views import SqlViews

T = TypeVar("T")

READERS = 3
POOL = "outrider-reader"


class _Reader:
    """One thread's connection. Whoever closes it waits for the read under way: SQLite would crash."""

    __slots__ = ("connection", "lock", "statements")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.statements = SqliteStatements(connection)
        self.lock = threading.Lock()

    def close(self) -> None:
        with self.lock:
            self.connection.close()


class SqliteViews(SqlViews):
    """Reads on connections of its own."""

    def __init__(self, file: DatabaseFile) -> None:
        super().__init__(texts())
        self._file = file
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix=POOL)
        self._of_thread = threading.local()
        self._readers: list[_Reader] = []
        self._lock = threading.Lock()
        self._is_closed = False

    def close(self) -> None:
        """Let go of all connections. Blocks until reads under way have ended."""
        with self._lock:  # from here on there is no new one
            self._is_closed = True
        self._pool.shutdown()
        for reader in self._readers:
            reader.close()

    async def _short(self, read: Callable[[Statements], T]) -> T:
        """Read right here, which the caller knows to be short; wait for a lock elsewhere."""
        try:
            return self._now(read)
        except StoreLocked:
            return await self._later(read)

    async def _later(self, read: Callable[[Statements], T]) -> T:
        """Read in the pool."""
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._now, read)

    def _now(self, read: Callable[[Statements], T]) -> T:
        self._check_open()
        reader: _Reader | None = getattr(self._of_thread, "reader", None)
        if reader is None:
            reader = self._of_thread.reader = self._new_reader()
        with reader.lock:
            self._check_open()  # once more: another thread may have closed it just now
            with self._file.errors():
                return read(reader.statements)

    def _check_open(self) -> None:
        if self._is_closed:
            raise self._file.closed()

    def _new_reader(self) -> _Reader:
        is_pooled = threading.current_thread().name.startswith(POOL)
        with self._lock, self._file.errors():
            self._check_open()
            reader = _Reader(self._file.connect(readonly=True, timeout=None if is_pooled else 0))
            self._readers.append(reader)
        return reader

    # --- what only SQLite has ----------------------------------------------------------------------------

    @property
    def _dialect(self) -> str:
        return "sqlite"

    def _storage(self, read: Statements) -> Storage:
        pages, free, page = read.row("storage")
        return Storage(pages * page, free * page, self._file.log_size())

    def _damage(self, read: Statements, deep: bool) -> list[str]:
        found = read.texts("integrity" if deep else "quick_integrity")
        return [] if found == ["ok"] else found
