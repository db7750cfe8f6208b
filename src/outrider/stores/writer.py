"""The one thread that writes: group commit, for both SQL stores.

Whatever was handed over while the last transaction was committing goes into the next, from many callers and
many verbs, and all their replies return to the event loop in one hop. It begins when a pass of the loop has added
nothing more: a transaction costs much the same for one operation as for ten, and beside a busy loop each of its
steps has to win the interpreter's lock. If a transaction fails because of one operation, it is rolled back and each
is tried alone, so that only the culprit fails.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from typing import Any, TypeAlias, TypeVar

from outrider.core.errors import StoreError, StoreUnavailable
from outrider.core.ledger import Signal
from outrider.stores.batch import Batch, Wanted
from outrider.stores.operations import Operation

BATCH = 500
"""How many operations one transaction takes at most."""

MOST_PASSES = 10
"""How many passes of the loop in a row may add to a transaction before it is begun."""

LINGER = 0.005
"""How long the writer waits for them at most, in seconds."""

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


class GroupWriter(ABC):
    """Takes operations and commits them in groups. `tell` is called on `loop` with what each commit concerns.

    `name` is what errors call the store.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, tell: Callable[[Signal], None], name: str) -> None:
        self._loop = loop
        self._tell = tell
        self._name = name
        self._queue: deque[Handed] = deque()
        self._bell = threading.Lock()
        self._bell.acquire()
        self._is_idle = False
        self._is_in_pass = False
        self._submitted = 0
        self._is_closing = False
        self._has_ended = False
        self.commits = 0
        self._thread = threading.Thread(target=self._run, name="outrider-writer", daemon=True)

    # --- what a store does ---------------------------------------------------------------------------------

    @abstractmethod
    def _transact(self, operations: Sequence[Operation[Any]]) -> tuple[list[Any], Signal]:
        """Do these operations and commit: what each returns, and who is concerned."""

    @abstractmethod
    def _wait(self) -> bool:
        """Wait until somebody rings, or until it is time to look around; whether somebody rang."""

    @abstractmethod
    def _look(self) -> None:
        """Nothing was handed over for a while: look around."""

    @abstractmethod
    def _refusal(self, error: BaseException) -> BaseException:
        """What the caller of a failed operation is told."""

    @abstractmethod
    def _ended(self) -> None:
        """The thread ends: let go of what it wrote on."""

    def _signal(self, signal: Signal) -> Signal:
        """What is told of a commit, in the place of what the commit itself tells."""
        return signal

    # --- from other threads ------------------------------------------------------------------------------

    def submit(self, operation: Operation[R]) -> asyncio.Future[R]:
        """Hand over an operation; the future is of the running loop."""
        if self._is_closing:
            raise self._closed()
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
            raise self._closed()
        ticket = Ticket()
        self._queue.appendleft((operation, ticket))
        if self._has_ended:
            self._refuse_rest()
        if self._is_idle:
            self._ring()
        if not ticket.done.wait(timeout):
            raise StoreUnavailable(f"{self._name} did not answer within {timeout:g} s")
        if ticket.error is not None:
            raise ticket.error
        result: R = ticket.result
        return result

    def close(self) -> None:
        """Finish what was handed over, then end the thread and its connection. Blocks; safe to repeat."""
        self._is_closing = True
        self._ring()
        self._thread.join()

    @abstractmethod
    def _closed(self) -> StoreUnavailable:
        """What every verb raises after `close`."""

    def _ring(self) -> None:
        with suppress(RuntimeError):  # it rings already
            self._bell.release()

    # --- the thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while batch := self._take():
                self._commit(batch)
        finally:
            self._has_ended = True
            self._refuse_rest()
            self._ended()

    def _refuse_rest(self) -> None:
        """Tell those who handed something over as this ended: they had seen it open, and would wait for ever."""
        with suppress(IndexError):
            while True:
                self._reply([self._queue.popleft()], [None], self._closed(), NOTHING)

    def _take(self) -> list[Handed]:
        queue = self._queue
        if queue and self._is_in_pass:
            self._let_pass()
        while not queue:
            if self._is_closing:
                return []
            self._is_idle = True
            # Between the look at the queue above and this line somebody may have seen a busy writer.
            rang = True if queue else self._wait()
            self._is_idle = False
            if not rang:
                self._look()
        return [queue.popleft() for _ in range(min(len(queue), BATCH))]

    def _let_pass(self) -> None:
        """Wait, not for long, until the loop has handed over all that it has."""
        self._is_idle = True
        if self._is_in_pass:  # it may have ended before it could see that somebody waits for it
            self._bell.acquire(timeout=LINGER)
        self._is_idle = False

    def _commit(self, batch: Sequence[Handed]) -> None:
        try:
            results, signal = self._transact([operation for operation, _ in batch])
        except StoreError as error:
            self._reply(batch, [None] * len(batch), error, NOTHING)
        except BaseException as error:  # noqa: BLE001 - whatever one operation raises is its caller's, not the thread's
            if len(batch) == 1:
                self._reply(batch, [None], self._refusal(error), NOTHING)
                return
            for alone in batch:
                self._commit([alone])
        else:
            self._reply(batch, results, None, signal)

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
        signal = self._signal(signal)
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


def work(batch: Batch, operations: Sequence[Operation[Any]]) -> tuple[list[Any], Signal]:
    """Do these operations in one transaction: what each returns, and who is concerned."""
    wanted = Wanted()
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
    batch.finish()
    return results, batch.signal()
