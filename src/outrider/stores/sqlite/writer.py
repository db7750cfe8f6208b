"""The one thread that writes: group commit, and a look at what other processes wrote.

Whatever was handed over while the last transaction was committing goes into the next, from many callers and
many verbs, and all their replies return to the event loop in one hop. It begins when a pass of the loop has added
nothing more: a transaction costs much the same for one operation as for ten, and beside a busy loop each of its
steps has to win the interpreter's lock. If a transaction fails because of one operation, it is rolled back and each
is tried alone, so that only the culprit fails.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from outrider.core.errors import StoreError, StoreUnavailable
from outrider.core.ledger import Signal
from outrider.core.values import evolve
from outrider.stores.sqlite.batch import Batch, Known, Wanted
from outrider.stores.sqlite.file import DatabaseFile
from outrider.stores.sqlite.operations import Operation
from outrider.stores.sqlite.statements import Statements
from outrider.stores.sqlite.watch import Watch

BATCH = 500
"""How many operations one transaction takes at most."""

MOST_PASSES = 10
"""How many passes of the loop in a row may add to a transaction before it is begun."""

LINGER = 0.005
"""How long the writer waits for them at most, in seconds."""

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

NOTHING = Signal()

R = TypeVar("R")


class Ticket:
    """How a thread hears of the operation that it handed over."""

    __slots__ = ("done", "error", "result")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None


Handed: TypeAlias = "tuple[Operation[Any], asyncio.Future[Any] | Ticket]"
Reply: TypeAlias = "tuple[asyncio.Future[Any], Any, BaseException | None]"


class Writer:
    """Owns the writing connection. `tell` is called on `loop` with what each commit concerns."""

    def __init__(
        self,
        file: DatabaseFile,
        connection: sqlite3.Connection,
        loop: asyncio.AbstractEventLoop,
        tell: Callable[[Signal], None],
        is_heard: Callable[[], bool],
    ) -> None:
        self._file = file
        self._connection = connection
        self._statements = Statements(connection)
        self._loop = loop
        self._tell = tell
        self._is_heard = is_heard
        self._queue: deque[Handed] = deque()
        self._bell = threading.Lock()
        self._bell.acquire()
        self._is_idle = False
        self._is_in_pass = False
        self._submitted = 0
        self._is_closing = False
        self._has_ended = False
        self._pause = SHORTEST_PAUSE
        self._watch: Watch | None = None
        self._is_resting = False
        self._seen = 0
        self._has_news = False
        self._known = Known()
        self._tidied = 0
        self._has_told_of_ruin = False
        self.commits = 0
        self._thread = threading.Thread(target=self._run, name="outrider-writer", daemon=True)
        self._thread.start()

    @property
    def statements(self) -> int:
        """How many statements were run."""
        return self._statements.count

    # --- from other threads ------------------------------------------------------------------------------

    def submit(self, operation: Operation[R]) -> asyncio.Future[R]:
        """Hand over an operation; the future is of the running loop."""
        if self._is_closing:
            raise self._file.closed()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._queue.append((operation, future))
        if self._has_ended:
            self._refuse_rest()
        self._submitted += 1
        if not self._is_in_pass:
            self._is_in_pass = True
            loop.call_soon(self._end_pass, loop, self._submitted, MOST_PASSES)
        return future

    def _end_pass(self, loop: asyncio.AbstractEventLoop, submitted: int, passes_left: int) -> None:
        """The loop has gone through all that was to be done when `submitted` operations had been handed over."""
        if passes_left and self._submitted != submitted:
            loop.call_soon(self._end_pass, loop, self._submitted, passes_left - 1)
            return
        self._is_in_pass = False
        if self._is_idle:
            self._ring()

    def call(self, operation: Operation[R], timeout: float) -> R:
        """Hand over an operation from a thread, ahead of all others, and wait for it."""
        if self._is_closing:
            raise self._file.closed()
        ticket = Ticket()
        self._queue.appendleft((operation, ticket))
        if self._has_ended:
            self._refuse_rest()
        if self._is_idle:
            self._ring()
        if not ticket.done.wait(timeout):
            raise StoreUnavailable(f"the database {self._file.path} did not answer within {timeout:g} s")
        if ticket.error is not None:
            raise ticket.error
        result: R = ticket.result
        return result

    def close(self) -> None:
        """Finish what was handed over, then end the thread and its connection. Blocks; safe to repeat."""
        self._is_closing = True
        self._ring()
        self._thread.join()

    def listeners_changed(self) -> None:
        """Somebody listens now, so look at once and then in short pauses."""
        self._ring()

    def _ring(self) -> None:
        with suppress(RuntimeError):  # it rings already
            self._bell.release()
        if self._is_resting and (watch := self._watch) is not None:
            watch.wake()

    # --- the thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._seen = self._data_version()
        try:
            while True:
                batch = self._take()
                if not batch:
                    return
                self._commit(batch)
                if not all(isinstance(waiter, Ticket) for _, waiter in batch):  # a lease renewed is no sign of work
                    self._pause = SHORTEST_PAUSE
        finally:
            self._has_ended = True
            self._refuse_rest()
            self._connection.close()
            if self._watch is not None:
                self._watch.close()

    def _refuse_rest(self) -> None:
        """Tell those who handed something over as this ended: they had seen it open, and would wait for ever."""
        with suppress(IndexError):
            while True:
                self._reply([self._queue.popleft()], [None], self._file.closed(), NOTHING)

    def _take(self) -> list[Handed]:
        queue = self._queue
        if queue and self._is_in_pass:
            self._let_pass()
        while not queue:
            if self._is_closing:
                return []
            self._is_idle = True
            # Between the look at the queue above and this line somebody may have seen a busy writer.
            if queue:
                rang = True
            elif self._is_heard() and self._pause == LONGEST_PAUSE and self._can_watch():
                rang = self._rest()
            else:
                rang = self._bell.acquire(timeout=self._pause if self._is_heard() else -1)
            self._is_idle = False
            if not rang:
                self._look()
        return [queue.popleft() for _ in range(min(len(queue), BATCH))]

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

    def _let_pass(self) -> None:
        """Wait, not for long, until the loop has handed over all that it has."""
        self._is_idle = True
        if self._is_in_pass:  # it may have ended before it could see that somebody waits for it
            self._bell.acquire(timeout=LINGER)
        self._is_idle = False

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

    def _commit(self, batch: Sequence[Handed]) -> None:
        try:
            results, signal = self._transact([operation for operation, _ in batch])
        except StoreError as error:
            self._reply(batch, [None] * len(batch), error, NOTHING)
            self._tell_of_ruin()
        except BaseException as error:  # noqa: BLE001  # whatever one operation raises is its caller's, not the thread's
            if len(batch) == 1:
                self._reply(batch, [None], self._refusal(error), NOTHING)
                return
            for alone in batch:
                self._commit([alone])
        else:
            self._reply(batch, results, None, signal)

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
                results, signal = self._work(operations)
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

    def _work(self, operations: Sequence[Operation[Any]]) -> tuple[list[Any], Signal]:
        batch, wanted = Batch(self._statements, self._known), Wanted()
        for operation in operations:
            operation.want(wanted)
        batch.load(wanted)
        results: list[Any] = [None] * len(operations)
        late = []
        for place, operation in enumerate(operations):
            if operation.is_late:
                late.append(place)
            else:
                results[place] = operation.run(batch)
        batch.flush()
        for place in late:
            results[place] = operations[place].run(batch)
        batch.flush()
        return results, batch.signal()

    def _reply(
        self,
        batch: Sequence[Handed],
        results: Sequence[Any],
        error: BaseException | None,
        signal: Signal,
    ) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[Reply]] = {self._loop: []}
        for (_, waiter), result in zip(batch, results, strict=True):
            if isinstance(waiter, Ticket):
                waiter.result, waiter.error = result, error
                waiter.done.set()
            else:
                by_loop.setdefault(waiter.get_loop(), []).append((waiter, result, error))
        if self._has_news:
            self._has_news = False
            signal = evolve(signal, unknown=True)
        for loop, replies in by_loop.items():
            if loop is self._loop:
                if replies or signal != NOTHING:
                    self._hop(self._deliver, replies, signal)
            else:
                self._hop(_resolve, replies, loop=loop)

    def _hop(self, call: Callable[..., None], *arguments: Any, loop: asyncio.AbstractEventLoop | None = None) -> None:
        with suppress(RuntimeError):  # the loop is closed, so nobody waits any more
            (loop or self._loop).call_soon_threadsafe(call, *arguments)

    def _deliver(self, replies: Sequence[Reply], signal: Signal) -> None:
        _resolve(replies)
        if signal != NOTHING:
            self._tell(signal)


def _resolve(replies: Sequence[Reply]) -> None:
    for future, result, error in replies:
        if future.done():
            continue  # its caller was cancelled; what was written stays written
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(_again(error))


def _again(error: BaseException) -> BaseException:
    """A failure for one of several callers: raised in many places, one error would gather the tracebacks of all."""
    if not isinstance(error, StoreError):
        return error
    again = copy(error)
    again.__cause__ = error
    return again
