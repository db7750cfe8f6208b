"""The threads that plain functions run in.

Like the standard library's pool, but for two things: a thread that was given up for lost makes room for another, and
none of them keeps the process from ending.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads(Executor):
    """Up to `limit` threads, started as they are needed."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._started = 0
        self._idle = 0
        self._is_over = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function in a thread as soon as one is free. Raises RuntimeError after `shutdown`."""
        future: Future[T] = Future()
        with self._changed:
            if self._is_over:
                raise RuntimeError("these threads have been shut down")
            self._calls.append((future, lambda: fn(*args, **kwargs)))
            if self._idle < len(self._calls) and self._started < self._limit:
                self._start()
            self._changed.notify()
        return future

    def give_up(self, count: int) -> None:
        """That many threads will not come back; allow for as many new ones."""
        with self._changed:
            self._limit += count
            for _ in range(min(count, len(self._calls))):
                self._start()

    def taken_back(self) -> None:
        """One that was given up for lost has come back."""
        with self._changed:
            self._limit -= 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; threads end as they come to rest. Nobody waits for them."""
        with self._changed:
            self._is_over = True
            if cancel_futures:
                for future, _ in self._calls:
                    future.cancel()
                self._calls.clear()
            self._changed.notify_all()

    def _start(self) -> None:
        self._started += 1
        threading.Thread(target=self._work, name=f"{self._name}_{self._started}", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._changed:
                if self._started > self._limit:
                    self._started -= 1
                    return
                self._idle += 1
                while not self._calls and not self._is_over:
                    self._changed.wait()
                self._idle -= 1
                if not self._calls:
                    return
                future, call = self._calls.popleft()
            _run(future, call)
            del future, call  # an idle thread keeps nothing of the last call alive


def _run(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - raised again by who waits
        with suppress(Exception):
            future.set_exception(error)
    else:
        future.set_result(result)
