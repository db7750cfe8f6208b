"""The PostgreSQL store: any number of processes, on any number of hosts."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg import Connection

from outrider.core.errors import StoreUnavailable
from outrider.stores.ledger import SqlLedger
from outrider.stores.operations import Operation
from outrider.stores.postgres.database import Database
from outrider.stores.postgres.news import News
from outrider.stores.postgres.statements import PostgresStatements
from outrider.stores.postgres.views import PostgresViews
from outrider.stores.postgres.writer import Writer

R = TypeVar("R")

SWITCH_INTERVAL = 0.0001
"""Seconds; as for the SQLite store."""


class PostgresLedger(SqlLedger):
    """A `Ledger` in a PostgreSQL database. Made by `open`; verbs may be called from any event loop of the process."""

    def __init__(self, database: Database, id: str, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._database = database
        self._id = id
        self._views = PostgresViews(database)
        self._news = News(database, loop, self._tell)
        self._writer = Writer(database, loop, self._tell, self._news.tell)
        self._lease: Connection[Any] | None = None
        self._lease_lock = threading.Lock()
        self._is_closed = False

    @classmethod
    async def open(cls, url: str) -> PostgresLedger:
        """Open the database that a `postgresql://` URL names, and bring its schema up to date.

        Raises a StoreError that says what is wrong with it, and InvalidArguments for a URL that is none. Signals arrive
        on the running loop. Lowers the interpreter's switch interval to 0.1 ms, lest the writing thread starve beside
        a busy loop.
        """
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL))
        database = Database(url)
        id = await asyncio.to_thread(database.prepare)
        return cls(database, id, asyncio.get_running_loop())

    @property
    def name(self) -> str:
        """What errors call the database."""
        return self._database.name

    @property
    def url(self) -> str:
        """The address, with what it may hold of a password."""
        return self._database.url

    @property
    def place(self) -> Path:
        """What names of this machine's own folders for the database begin with: locks, commands."""
        state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        if not os.path.isabs(state):  # a user without a home
            state = os.path.join(tempfile.gettempdir(), f"outrider-{os.getuid()}")
        return Path(state, "outrider", self._id)

    @property
    def locks(self) -> Path:
        """The folder on this machine for the locks of workers: by them the dead are told at once from the slow."""
        return Path(f"{self.place}-workers")

    @property
    def views(self) -> PostgresViews:
        """The reading half."""
        return self._views

    @property
    def counters(self) -> Mapping[str, int]:
        """`commits` and `statements` of the writer since the store was opened."""
        return {"commits": self._writer.commits, "statements": self._writer.statements}

    def renew(self, worker_id: str, timeout: float) -> bool:
        """Advance the worker's beat, waiting at most `timeout` seconds. Called from a thread, never the loop.

        False when the worker is not registered any more; raises StoreUnavailable when time ran out. It has a connection
        of its own: a long transaction holds up no lease.
        """
        if not self._lease_lock.acquire(timeout=timeout):
            raise StoreUnavailable(f"{self._database.name} did not answer within {timeout:g} s")
        try:
            if self._is_closed:
                raise self._database.closed()
            return self._renew(worker_id, timeout)
        finally:
            self._lease_lock.release()

    def _renew(self, worker_id: str, timeout: float) -> bool:
        try:
            with self._database.errors():
                if self._lease is None:
                    self._lease = self._database.connect(timeout=timeout)
                statements = PostgresStatements(self._lease)
                return statements.changed("renew_worker", time.time_ns() // 1000, worker_id) > 0
        except (psycopg.Error, StoreUnavailable):
            if self._lease is not None:
                self._lease.close()
                self._lease = None
            raise

    async def _do(self, operation: Operation[R]) -> R:
        return await self._writer.submit(operation)

    def _listeners_changed(self) -> None:
        """News come of themselves."""

    async def close(self) -> None:
        """Finish what was handed over and let go of the database."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writer.close()
        self._news.close()
        self._views.close()
        with self._lease_lock:
            self._is_closed = True
            if self._lease is not None:
                self._lease.close()
                self._lease = None
