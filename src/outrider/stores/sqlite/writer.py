"""What writes to the SQLite file: its transactions, and a look at what other processes wrote."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from outrider.core.errors import StoreError, StoreUnavailable
from outrider.core.ledger import Signal
from outrider.core.values import evolve
from outrider.stores.batch import Batch, Known
from outrider.stores.operations import Operation
from outrider.stores.sqlite.file import DatabaseFile
from outrider.stores.sqlite.statements import SqliteStatements
from outrider.stores.sqlite.watch import Watch
from outrider.stores.writer import GroupWriter, Handed, Ticket, work

SHORTEST_PAUSE = 0.002
LONGEST_PAUSE = 0.035
SLOWING = 1.15
"""Between looks at the database while idle, in seconds; each look without news is followed by a longer pause.

A look costs 10 us, but waking up for it 60 to 200. After the longest pause the kernel is asked to tell instead, where
it can; see `watch`.
"""

REST = 2.0
"""How long the writer rests on the kernel's word at most until it looks all the same, in seconds."""

LOOK_EVERY = 256
"""After how many commits to look at the size of the WAL."""

TOO_LONG = 64 * 1024 * 1024
"""What a WAL comes to, in bytes, only if it cannot be copied: four times what SQLite lets it grow to."""

UNREADABLE = -1


class Writer(GroupWriter):
    """Owns the writing connection."""

    def __init__(
        self,
        file: DatabaseFile,
        connection: sqlite3.Connection,
        loop: asyncio.AbstractEventLoop,
        tell: Callable[[Signal], None],
        is_heard: Callable[[], bool],
    ) -> None:
        super().__init__(loop, tell, f"the database {file.path}")
        self._file = file
        self._connection = connection
        self._statements = SqliteStatements(connection)
        self._is_heard = is_heard
        self._pause = SHORTEST_PAUSE
        self._watch: Watch | None = None
        self._is_resting = False
        self._seen = self._data_version()
        self._has_news = False
        self._known = Known()
        self._tidied = 0
        self._has_told_of_ruin = False
        self._thread.start()

    @property
    def statements(self) -> int:
        """How many statements were run."""
        return self._statements.count

    def listeners_changed(self) -> None:
        """Somebody listens now, so look at once and then in short pauses."""
        self._ring()

    def _ring(self) -> None:
        super()._ring()
        if self._is_resting and (watch := self._watch) is not None:
            watch.wake()

    # --- the thread --------------------------------------------------------------------------------------

    def _commit(self, batch: Sequence[Handed]) -> None:
        super()._commit(batch)
        self._tell_of_ruin()
        if not all(isinstance(waiter, Ticket) for _, waiter in batch):  # a lease renewed is no sign of work
            self._pause = SHORTEST_PAUSE

    def _closed(self) -> StoreUnavailable:
        return self._file.closed()

    def _ended(self) -> None:
        self._connection.close()
        if self._watch is not None:
            self._watch.close()

    def _wait(self) -> bool:
        if self._is_heard() and self._pause == LONGEST_PAUSE and self._can_watch():
            return self._rest()
        return self._bell.acquire(timeout=self._pause if self._is_heard() else -1)

    def _can_watch(self) -> bool:
        if self._watch is not None and self._watch.is_stale:
            self._watch.close()
            self._watch = None
        if self._watch is None:
            self._watch = Watch.of(Path(f"{self._file.path}-wal"))
        return self._watch is not None

    def _rest(self) -> bool:
        """Wait until the bell rings or somebody writes; whether it rang."""
        watch = self._watch
        assert watch is not None
        self._is_resting = True
        watch.drain()
        # Who rang before that rang the bell as well, and who committed is seen now; who does so later ends the wait.
        rang = self._bell.acquire(blocking=False)
        if not rang and self._data_version() == self._seen:
            came = watch.wait(REST)
            rang = self._bell.acquire(blocking=False)
            if came and not rang:
                # Who writes has not committed yet: that comes after the last write, and makes no sound.
                self._pause = SHORTEST_PAUSE
        self._is_resting = False
        return rang

    def _look(self) -> None:
        """See whether another process has committed."""
        self._tell_of_ruin()
        if self._has_foreign_news():
            self._pause = SHORTEST_PAUSE
            self._hop(self._tell, Signal(unknown=True))
        else:
            self._pause = min(self._pause * SLOWING, LONGEST_PAUSE)
            if self._pause == LONGEST_PAUSE:
                self._tidy()

    def _tell_of_ruin(self) -> None:
        """Have everybody look who waits for news: there will be none, and the look says why."""
        if self._file.is_ruined and not self._has_told_of_ruin:
            self._has_told_of_ruin = True
            self._hop(self._tell, Signal(unknown=True))

    def _tidy(self) -> None:
        """Copy the WAL into the database while nobody waits, else a transaction will have to, and its callers with it.

        Under load that happens every 4000 pages, in 10 to 30 ms.
        """
        if self._statements.count != self._tidied:
            self._tidied = self._statements.count
            with suppress(sqlite3.Error, StoreError), self._file.errors():  # who writes next is told what is wrong
                self._file.check_log()
                self._connection.execute("pragma wal_checkpoint(passive)").fetchone()

    def _has_foreign_news(self) -> bool:
        """Whether another connection has committed since this was last asked. Within a transaction, up to its begin."""
        version = self._data_version()
        if version == self._seen:
            return False
        self._known = Known()
        self._tidied = 0
        self._seen = version
        return version != UNREADABLE

    def _data_version(self) -> int:
        """A number that changes when another connection commits; our own commits leave it."""
        try:
            return int(self._connection.execute("pragma data_version").fetchone()[0])
        except sqlite3.Error:
            return UNREADABLE  # whoever writes next is told what is wrong

    def _refusal(self, error: BaseException) -> BaseException:
        """What the caller of a failed operation is told."""
        if not isinstance(error, sqlite3.Error):
            return error
        refusal = StoreError(f"the database {self._file.path} refused to write this ({error})")
        refusal.__cause__ = error
        return refusal

    def _transact(self, operations: Sequence[Operation[Any]]) -> tuple[list[Any], Signal]:
        execute = self._connection.execute
        with self._file.errors(), self._file.alone():
            self._file.check_present()
            execute("begin immediate")
            try:
                self._has_news = self._has_foreign_news() or self._has_news
                results, signal = work(Batch(self._statements, self._known), operations)
                execute("commit")
            except BaseException:
                self._known = Known()
                if self._connection.in_transaction:
                    execute("rollback")
                raise
            self.commits += 1
            if self.commits % LOOK_EVERY == 0:
                self._look_at_wal()
        return results, signal

    def _look_at_wal(self) -> None:
        """SQLite says nothing when it cannot copy the WAL at a commit, and tries again at the next: ask what is wrong.

        Nothing is lost meanwhile, but the WAL would grow until the disk is full.
        """
        with suppress(OSError):
            if os.stat(f"{self._file.path}-wal").st_size > TOO_LONG:
                with suppress(sqlite3.Error, StoreError), self._file.errors():
                    self._connection.execute("pragma wal_checkpoint(passive)").fetchone()

    def _signal(self, signal: Signal) -> Signal:
        if not self._has_news:
            return signal
        self._has_news = False
        return evolve(signal, unknown=True)
