"""The PostgreSQL store: any number of processes, on any number of hosts."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import psycopg

from outrider.core.errors import StoreUnavailable
from outrider.core.values import Instant
from outrider.stores.ledger import SqlLedger
from outrider.stores.operations import Operation
from outrider.stores.postgres.clock import ServerClock
from outrider.stores.postgres.database import Database, Link
from outrider.stores.postgres.news import News
from outrider.stores.postgres.statements import PostgresStatements
from outrider.stores.postgres.views import PostgresViews
from outrider.stores.postgres.writer import Writer

R = TypeVar("R")

SWITCH_INTERVAL = 0.0001
"""Seconds; as for the SQLite store."""


class PostgresLedger(SqlLedger):
    """A `Ledger` in a PostgreSQL database. Made by `open`; verbs may be called from any event loop of the process."""

    def __init__(self, database: Database, id: str, clock: ServerClock, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._database = database
        self._id = id
        self._clock = clock
        self._views = PostgresViews(database)
        self._news = News(database, clock, loop, self._tell)
        self._writer = Writer(database, loop, self._tell, self._news.tell)
        self._news.start(lambda: self._writer.id)
        self._lease: Link | None = None
        self._renewing = ThreadPoolExecutor(1, thread_name_prefix="outrider-renewal")
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
        clock = ServerClock()
        id = await asyncio.to_thread(database.prepare, clock=clock)
        return cls(database, id, clock, asyncio.get_running_loop())

    def now(self) -> Instant:
        """The server's time, by which all go who use the database."""
        return self._clock.now()

    @property
    def url(self) -> str:
        """The address, with what it may hold of a password."""
        return self._database.url

    @property
    def beside(self) -> Path:
        """How the paths begin of what this machine keeps beside the database: locks of workers, runs of commands."""
        state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        if not os.path.isabs(state):  # a user without a home
            state = os.path.join(tempfile.gettempdir(), f"outrider-{os.getuid()}")
        return Path(state, "outrider", self._id)

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
        and a thread of its own: no long transaction holds up a lease, and no link that is silent, nor a name that
        cannot be looked up, holds up the caller.
        """
        if self._is_closed:
            raise self._database.closed()
        renewal = self._renewing.submit(self._renew, worker_id, timeout)
        try:
            return renewal.result(timeout)
        except TimeoutError:
            renewal.cancel()
            raise StoreUnavailable(f"{self._database.name} did not answer within {timeout:g} s") from None

    def _renew(self, worker_id: str, timeout: float) -> bool:
        try:
            with self._database.errors():
                if self._lease is None:
                    self._lease = self._database.connect(patience=timeout, timeout=timeout)
                with self._lease.ahead as pipeline:
                    pipeline.settle_in()
                    return PostgresStatements(pipeline).changed("renew_worker", self.now(), worker_id) > 0
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
        self._is_closed = True
        self._renewing.shutdown()
        if self._lease is not None:
            self._lease.close()
            self._lease = None
