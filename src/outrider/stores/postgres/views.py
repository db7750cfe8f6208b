"""Where the PostgreSQL store reads: in a few threads, each with a connection of its own, never on the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import psycopg
from psycopg import errors

from outrider.core.errors import InvalidArguments, StoreUnavailable
from outrider.core.ledger import Storage
from outrider.stores.postgres.database import ANSWER, Database, Link
from outrider.stores.postgres.statements import PostgresStatements, conditions
from outrider.stores.statements import Statements
from outrider.stores.views import SqlViews

T = TypeVar("T")

READERS = 4

LONG = 120.0
"""Seconds that a long read may take, of which nobody knows how much it has to look at."""


class _Reader(threading.local):
    connection: Link | None = None
    statements: PostgresStatements | None = None


class PostgresViews(SqlViews):
    """Reads on connections of its own. Each is made when it is first needed."""

    def __init__(self, database: Database) -> None:
        super().__init__(conditions())
        self._database = database
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="outrider-reader")
        self._reader = _Reader()
        self._connections: set[Link] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def close(self) -> None:
        """Let go of all connections. Blocks until reads under way have ended."""
        self._is_closed = True
        self._pool.shutdown()
        for connection in self._connections:
            connection.close()

    async def _short(self, read: Callable[[Statements], T]) -> T:
        return await self._elsewhere(read, ANSWER)

    async def _later(self, read: Callable[[Statements], T]) -> T:
        return await self._elsewhere(read, LONG)

    async def _elsewhere(self, read: Callable[[Statements], T], patience: float) -> T:
        if self._is_closed:
            raise self._database.closed()
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._read_here, read, patience)

    def _read_here(self, read: Callable[[Statements], T], patience: float) -> T:
        """Read in this thread. A connection that broke is made anew once: reading changes nothing.

        So is a read that the server ended because it and a change of the schema waited for each other.
        """
        try:
            return self._try(read, patience)
        except StoreUnavailable:
            if self._reader.connection is not None:  # the server is there, and refused
                raise
            return self._try(read, patience)
        except errors.DeadlockDetected:
            return self._try(read, patience)

    def _try(self, read: Callable[[Statements], T], patience: float) -> T:
        reader = self._reader
        if reader.connection is None or reader.statements is None:
            reader.connection = self._database.connect()
            reader.statements = PostgresStatements(reader.connection)
            with self._lock:
                self._connections.add(reader.connection)
        connection = reader.connection
        connection.patience = patience
        try:
            with self._database.errors():
                return read(reader.statements)
        finally:
            if connection.closed or connection.info.transaction_status is psycopg.pq.TransactionStatus.UNKNOWN:
                with self._lock:
                    self._connections.discard(connection)
                connection.close()
                reader.connection = reader.statements = None

    # --- what only PostgreSQL has ------------------------------------------------------------------------

    @property
    def _dialect(self) -> str:
        return "postgres"

    def _storage(self, read: Statements) -> Storage:
        return Storage(read.row("storage")[0])

    def _damage(self, read: Statements, deep: bool) -> list[str]:
        """What the server knows of, and what the extension amcheck finds. Raises InvalidArguments without that."""
        wrong = [f"the index {name} is invalid: nothing finds by it" for name in read.array("invalid_indexes")]
        if not deep:
            return wrong
        if not read.row("has_amcheck")[0]:
            raise InvalidArguments(
                "comparing indexes with their tables takes PostgreSQL's extension amcheck: a superuser makes it there "
                "with `create extension amcheck`"
            )
        for index, name in read.array("indexes"):
            try:
                read.run("compare_index", index)
            except (errors.IndexCorrupted, errors.DataCorrupted) as error:
                wrong.append(f"the index {name} is damaged: {str(error).splitlines()[0]}")
        return wrong
