"""What writes to PostgreSQL: one connection, one transaction at a time, done again where that is safe.

A transaction whose connection broke has not been committed, unless that happened at its commit: then the server is
asked, by the number of the transaction, once it is there again. So a verb that returned is committed, and one that
raised is not, whatever happened to the server in between.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import Connection, Cursor, errors

from outrider.core.errors import StoreError, StoreUnavailable
from outrider.core.ledger import Signal
from outrider.stores.operations import Operation
from outrider.stores.postgres.batch import Again, Numbers, PostgresBatch
from outrider.stores.postgres.database import Database
from outrider.stores.postgres.statements import PostgresStatements
from outrider.stores.writer import NOTHING, GroupWriter, Handed, work

PATIENCE = 10.0
"""For how long, in seconds, a transaction is tried while the server is away; then its callers are told."""

LONGEST_PAUSE = 1.0
"""Seconds between two attempts to connect."""

TRIES = 20
"""How often a transaction is begun anew because of others that write the same, until its callers are told."""

_COLLISIONS = (
    Again,
    errors.UniqueViolation,
    errors.NotNullViolation,
    errors.DeadlockDetected,
    errors.SerializationFailure,
)


_NOTHING_DONE: tuple[list[Any], Signal] = ([], NOTHING)


class Writer(GroupWriter):
    """Owns the writing connection. `committed` is called in its thread with what each commit concerns."""

    def __init__(
        self,
        database: Database,
        loop: asyncio.AbstractEventLoop,
        tell: Callable[[Signal], None],
        committed: Callable[[Signal], None],
    ) -> None:
        super().__init__(loop, tell, database.name)
        self._database = database
        self._committed = committed
        self._connection: Connection[Any] | None = None
        self._statements: PostgresStatements | None = None
        self._counted = 0
        self._numbers = Numbers()
        self._thread.start()

    @property
    def statements(self) -> int:
        """How many statements were run."""
        return self._counted + (self._statements.count if self._statements is not None else 0)

    # --- grouping ----------------------------------------------------------------------------------------

    def _wait(self) -> bool:
        return self._bell.acquire()

    def _look(self) -> None:
        """Nobody has to be looked for here: see `news`."""

    def _ended(self) -> None:
        self._disconnect()

    def _commit(self, batch: Sequence[Handed]) -> None:
        """Early ones share a transaction; each late one has its own, for it takes locks as it goes."""
        early = [handed for handed in batch if not handed[0].is_late]
        if early:
            super()._commit(early)
        for handed in batch:
            if handed[0].is_late:
                super()._commit([handed])

    def _refusal(self, error: BaseException) -> BaseException:
        if not isinstance(error, (psycopg.Error, Again)):
            return error
        refusal = StoreError(f"{self._name} refused to write this ({error})")
        refusal.__cause__ = error
        return refusal

    # --- transactions ------------------------------------------------------------------------------------

    def _transact(self, operations: Sequence[Operation[Any]]) -> tuple[list[Any], Signal]:
        give_up, tries, pause = time.monotonic() + PATIENCE, 0, 0.01
        while True:
            try:
                results, signal = self._attempt(operations)
            except _COLLISIONS as error:
                if isinstance(error, errors.UniqueViolation):
                    # Ours may be taken, where a database was copied into this one since it was opened.
                    self._numbers = Numbers()
                tries += 1
                if tries == TRIES:
                    raise
            except StoreUnavailable:
                if time.monotonic() + pause > give_up or self._is_closing:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self.commits += 1
                self._committed(signal)
                return results, signal

    def _attempt(self, operations: Sequence[Operation[Any]]) -> tuple[list[Any], Signal]:
        """One transaction. Raises StoreUnavailable only where nothing was committed.

        Its statements go out without waiting for the answers of those before, as far as nobody needs them: each wait
        gives up the interpreter's lock, which a busy event loop gives back late.
        """
        connection, statements = self._connected()
        number, done = 0, _NOTHING_DONE
        with self._database.errors():
            try:
                with connection.pipeline():
                    begun = self._begin(connection)
                    batch = PostgresBatch(statements, self._numbers)
                    for operation in operations:
                        if operation.gates == "read":
                            batch.keep_gates()
                        elif operation.gates == "change":
                            batch.change_gates()
                    done = work(batch, operations)
                    number = number_of(begun)
                    statements.count += 1
                    connection.execute("commit")
                return done
            except BaseException as error:
                self._roll_back(connection)
                is_in_doubt = number and isinstance(error, psycopg.Error) and self._database.is_lost(error)
                if not (is_in_doubt and self._has_been_committed(number)):
                    raise
                return done

    def _begin(self, connection: Connection[Any]) -> Cursor[Any]:
        assert self._statements is not None
        self._statements.count += 1
        connection.execute("begin")
        return connection.execute("select pg_current_xact_id()::text::bigint")

    def _roll_back(self, connection: Connection[Any]) -> None:
        try:
            connection.execute("rollback")
        except psycopg.Error:
            self._disconnect()

    def _has_been_committed(self, number: int) -> bool:
        """What became of a transaction whose commit was not answered. Waits until that can be known."""
        pause = 0.02
        while True:
            try:
                connection, _ = self._connected()
                with suppress(errors.InvalidParameterValue):  # a server that has never come to that number
                    row = connection.execute("select pg_xact_status(%s::text::xid8)", [str(number)]).fetchone()
                    status = None if row is None else row[0]
                    if status != "in progress":
                        return status == "committed"
                    time.sleep(pause)
                    continue
                return False
            except (psycopg.OperationalError, StoreUnavailable):
                self._disconnect()
                if self._is_closing:
                    raise StoreUnavailable(
                        f"{self._name} went away at a commit and was closed before it came back: what was handed over "
                        "last may be there or not"
                    ) from None
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    # --- the connection ----------------------------------------------------------------------------------

    def _connected(self) -> tuple[Connection[Any], PostgresStatements]:
        if self._connection is None or self._statements is None:
            self._connection = self._database.connect()
            self._statements = PostgresStatements(self._connection)
        return self._connection, self._statements

    def _disconnect(self) -> None:
        if self._statements is not None:
            self._counted += self._statements.count
        if self._connection is not None:
            self._connection.close()
        self._connection = self._statements = None


def number_of(begun: Cursor[Any]) -> int:
    """The number of the transaction that was begun."""
    row = begun.fetchone()
    assert row is not None
    return int(row[0])
