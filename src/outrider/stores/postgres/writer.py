"""What writes to PostgreSQL: one connection, one transaction at a time, done again where that is safe.

A transaction whose connection broke has not been committed, unless that happened at its commit: then the database is
asked, once it is there again, whether it has the mark that each transaction leaves. So a verb that returned is
committed, and one that raised is not, whatever happened to the server in between.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import errors

from outrider.core.errors import StoreError, StoreUnavailable
from outrider.core.ledger import Signal
from outrider.stores.operations import Operation
from outrider.stores.postgres.batch import Again, Numbers, PostgresBatch
from outrider.stores.postgres.database import Database, Link
from outrider.stores.postgres.pipeline import Pipeline
from outrider.stores.postgres.statements import Cursor, PostgresStatements
from outrider.stores.writer import NOTHING, GroupWriter, Handed, work

PATIENCE = 10.0
"""For how long, in seconds, a transaction is tried while the server is away; then its callers are told."""

LONGEST_PAUSE = 1.0
"""Seconds between two attempts to connect."""

TRIES = 20
"""How often a transaction is begun anew because of others that write the same, until its callers are told."""

FORGOTTEN = 30 * 86_400 * 1_000_000
"""Microseconds after which the mark of a process that was killed is deleted."""

FAREWELL = 2.0
"""Seconds that the deletion of our own mark may take."""

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
        self._connection: Link | None = None
        self._pipeline: Pipeline | None = None
        self._statements: PostgresStatements | None = None
        self._counted = 0
        self._numbers = Numbers()
        self._id = 0
        self._number = 0
        """Of the last transaction that was begun."""
        self._thread.start()

    @property
    def id(self) -> int:
        """Under which it leaves its marks; 0 while it has written nothing."""
        return self._id

    @property
    def statements(self) -> int:
        """How many statements were run."""
        return self._counted + (self._statements.count if self._statements is not None else 0)

    # --- grouping ----------------------------------------------------------------------------------------

    def _wait(self) -> bool:
        return self._bell.acquire()

    def _look(self) -> None:
        """Nobody has to be looked for here: see `news`."""

    def _closed(self) -> StoreUnavailable:
        return self._database.closed()

    def _ended(self) -> None:
        if self._pipeline is not None and self._statements is not None and self._id:
            self._pipeline.patience = FAREWELL
            with suppress(psycopg.Error), self._pipeline:
                self._statements.run("forget_writers", self._id, time.time_ns() // 1000 - FORGOTTEN)
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
        pipeline, statements = self._connected()
        self._number += 1
        is_sent, done = False, _NOTHING_DONE
        with self._database.errors():
            try:
                with pipeline:
                    begun = self._begin(pipeline, statements)
                    batch = PostgresBatch(statements, self._numbers)
                    for operation in operations:
                        if operation.gates == "read":
                            batch.keep_gates()
                        elif operation.gates == "change":
                            batch.change_gates()
                    done = work(batch, operations)
                    begun.fetchone()  # what waits on the way may arrive at any time: from here on it is behind a lock
                    statements.run("mark", self._id, self._number, time.time_ns() // 1000)
                    is_sent = True
                    statements.count += 1
                    pipeline.say("commit")
                return done
            except BaseException as error:
                self._roll_back(pipeline)
                is_in_doubt = is_sent and isinstance(error, psycopg.Error) and self._database.is_lost(error)
                if not (is_in_doubt and self._has_been_committed()):
                    raise
                return done

    def _begin(self, pipeline: Pipeline, statements: PostgresStatements) -> Cursor:
        statements.count += pipeline.begin()
        return statements.run("lock_writer", self._id)

    def _roll_back(self, pipeline: Pipeline) -> None:
        try:
            with pipeline:  # psycopg would have all that is prepared forgotten
                pipeline.say("rollback")
        except psycopg.Error:
            self._disconnect()

    def _has_been_committed(self) -> bool:
        """What became of a transaction whose commit was not answered. Waits until that can be known."""
        pause = 0.02
        while True:
            try:
                pipeline, statements = self._connected()
                with pipeline:  # all of it is one transaction
                    statements.run("lock_writer", self._id)  # it may still be under way
                    row = statements.row("marked", self._id)
                return row is not None and row[0] == self._number
            except (psycopg.Error, StoreError):
                self._disconnect()
                if self._is_closing:
                    raise StoreUnavailable(
                        f"{self._name} went away at a commit and was closed before it came back: what was handed over "
                        "last may be there or not"
                    ) from None
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    # --- the connection ----------------------------------------------------------------------------------

    def _connected(self) -> tuple[Pipeline, PostgresStatements]:
        if self._pipeline is None or self._statements is None:
            self._connection = self._database.connect()
            self._pipeline = self._connection.ahead
            self._statements = PostgresStatements(self._pipeline)
        if not self._id:
            with self._database.errors(), self._pipeline:
                (self._id,) = self._statements.row("new_writer", time.time_ns() // 1000)
        return self._pipeline, self._statements

    def _disconnect(self) -> None:
        if self._statements is not None:
            self._counted += self._statements.count
        if self._connection is not None:
            self._connection.close()
        self._connection = self._pipeline = self._statements = None
