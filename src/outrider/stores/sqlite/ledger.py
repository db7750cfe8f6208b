"""The SQLite store: one file, any number of processes on one machine, no server."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from outrider.core.ledger import Saved
from outrider.stores import operations
from outrider.stores.ledger import SqlLedger
from outrider.stores.operations import Operation
from outrider.stores.sqlite.file import DatabaseFile
from outrider.stores.sqlite.views import SqliteViews
from outrider.stores.sqlite.writer import Writer

R = TypeVar("R")

SWITCH_INTERVAL = 0.0001
"""Seconds. See `SqliteLedger.open`."""


class SqliteLedger(SqlLedger):
    """A `Ledger` in an SQLite file. Made by `open`; verbs may be called from any event loop of the process."""

    def __init__(self, file: DatabaseFile, views: SqliteViews) -> None:
        super().__init__()
        self._file = file
        self._views = views
        self._writer: Writer

    @classmethod
    async def open(cls, path: str | Path, *, lock_timeout: float = 5.0) -> SqliteLedger:
        """Open the database at `path`, creating it and its directory where they are missing.

        Brings the schema up to date. `lock_timeout` is how long, in seconds, to wait for others who keep it
        locked. Raises a StoreError that says what is wrong with the file. Signals arrive on the running loop.

        Lowers the interpreter's switch interval to 0.1 ms if it is longer. The writing thread gives up the
        interpreter's lock at each step of a statement; beside a busy event loop it gets it back only after an
        interval, and with the default of 5 ms was seen to starve for seconds.
        """
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL))
        file = DatabaseFile(path, lock_timeout)
        connection = await asyncio.to_thread(file.open)
        ledger = cls(file, SqliteViews(file))
        ledger._writer = Writer(
            file, connection, asyncio.get_running_loop(), ledger._tell, lambda: bool(ledger._listeners)
        )
        return ledger

    @property
    def path(self) -> Path:
        """The database file, absolute."""
        return self._file.path

    @property
    def beside(self) -> Path:
        """How the paths begin of what this machine keeps beside the database: locks of workers, runs of commands."""
        return self._file.path

    @property
    def views(self) -> SqliteViews:
        """The reading half."""
        return self._views

    @property
    def counters(self) -> Mapping[str, int]:
        """`commits` and `statements` of the writer since the store was opened."""
        return {"commits": self._writer.commits, "statements": self._writer.statements}

    def renew(self, worker_id: str, timeout: float) -> bool:
        """Advance the worker's beat, waiting at most `timeout` seconds. Called from a thread, never the loop.

        False when the worker is not registered any more; raises StoreUnavailable when time ran out.
        """
        return self._writer.call(operations.renew(worker_id, time.time_ns() // 1000), timeout)

    async def save(self, path: str, *, replace: bool = False) -> Saved:
        """Write all that was committed by now into a new file; see `Savable`."""
        from outrider.stores.sqlite.backup import save  # it takes 4 ms that nobody else needs

        return await asyncio.to_thread(save, self.path, Path(path), replace=replace)

    async def _do(self, operation: Operation[R]) -> R:
        return await self._writer.submit(operation)

    def _listeners_changed(self) -> None:
        self._writer.listeners_changed()

    async def close(self) -> None:
        """Finish what was handed over and let go of the database."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        # The writer last: whoever closes last copies the WAL into the file, and readers may not.
        self._views.close()
        self._writer.close()
        self._file.close()
