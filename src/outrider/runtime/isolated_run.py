"""The tool's side of its process: import the function, run it, and say how that ended.

A plain function runs in the main thread and a coroutine function in a loop there; a thread of ours reads what the
worker says. Once the worker is gone nobody wants to know any more, and the process ends itself with its group.
"""

from __future__ import annotations

import asyncio
import faulthandler
import importlib
import logging
import os
import runpy
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import orjson

from outrider.core.errors import Failure, OutriderError, Parked
from outrider.runtime import isolated
from outrider.runtime.codec import encode
from outrider.runtime.frames import HEAD, Frame, error_form, error_from, pack
from outrider.runtime.isolated_context import INSIDE, IsolatedContext, IsolatedSyncContext
from outrider.runtime.journal import Branch, has_handled
from outrider.runtime.log import LOGGER
from outrider.runtime.registry import Tool

MAIN = "__outrider_main__"
"""What a program that was `__main__` is called here, so that its `if __name__ == "__main__"` does not run."""
TRACE = 8192
"""Characters of a traceback that are told."""


def run(fd: int) -> int:
    """Do what the worker says over this socket; return the exit code."""
    faulthandler.enable()
    line = Line(socket.socket(fileno=fd))
    setup = line.read()
    if setup is None:
        return 1
    line.begin(setup)
    end: Frame
    try:
        end = {"value": _perform(line, setup)}
    except BaseException as error:  # noqa: BLE001 - whatever the tool raises is how it ended
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end = {"error": _told(_way_out(error, line))}
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    try:
        line.send({"end": end})
    except (OutriderError, TypeError) as error:
        line.send({"end": {"error": _told(error)}})
    return 0


def _perform(line: Line, setup: Frame) -> Any:
    sys.path[:], sys.argv = setup["path"], setup["argv"]
    signal.signal(signal.SIGTERM, _on_term)
    tool = Tool.of(_find(setup), "tool")
    arguments = tool.arguments.check(setup["arguments"])
    value = _call_async(line, tool, arguments) if tool.is_async else _call(line, tool, arguments)
    try:
        return orjson.loads(encode(value))
    except TypeError as error:
        raise Failure(f"the result is not JSON: {error}", kind="invalid_result") from error


def _call(line: Line, tool: Tool, arguments: Any) -> Any:
    line.on_stop(line.cancel_calls)
    return tool.fn(IsolatedSyncContext(line), **arguments) if tool.takes_context else tool.fn(**arguments)


def _call_async(line: Line, tool: Tool, arguments: Any) -> Any:
    async def main() -> Any:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        line.on_stop(lambda: loop.call_soon_threadsafe(task.cancel))
        line.branches.follow(loop, task)
        return await (tool.fn(IsolatedContext(line), **arguments) if tool.takes_context else tool.fn(**arguments))

    return asyncio.run(main())


def _on_term(*_: object) -> None:
    """The polite word was not heard, or took too long: leave whatever runs now."""
    raise asyncio.CancelledError


def _find(setup: Frame) -> Callable[..., Any]:
    module_name, _, name = setup["target"].partition(":")
    isolated.is_importing = True
    found: Any = _main_module(setup["main"]) if setup["main"] else importlib.import_module(module_name)
    isolated.is_importing = False
    for part in name.split("."):
        found = getattr(found, part)
    function: Callable[..., Any] = found
    return function


def _main_module(main: Frame) -> ModuleType:
    """The program that was `__main__`, under another name (see `multiprocessing.spawn`)."""
    module = ModuleType(MAIN)
    sys.modules[MAIN] = sys.modules["__main__"] = module
    if "name" in main:
        content = runpy.run_module(main["name"], run_name=MAIN, alter_sys=True)
    else:
        content = runpy.run_path(main["path"], run_name=MAIN)
    module.__dict__.update(content)
    sys.modules[MAIN] = sys.modules["__main__"] = module
    return module


def _way_out(error: BaseException, line: Line) -> BaseException:
    """The error that counts: what was raised while the code was already told to go is not what ended it."""
    error = _plain(error)
    seen = set[int]()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        if isinstance(link, Parked) or (isinstance(link, asyncio.CancelledError) and line.is_told_to_stop):
            return link
        seen.add(id(link))
        link = link.__cause__ or link.__context__
    return error


def _told(error: BaseException) -> Frame:
    """An error as the worker is told of it. One that is not ours becomes a Failure that may be tried again."""
    if isinstance(error, asyncio.CancelledError | Parked):
        return error_form(error)
    trace = "".join(traceback.format_exception(error, limit=-12))[-TRACE:]
    if isinstance(error, OutriderError):
        return error_form(error, trace)
    name, text = type(error).__name__, str(error)
    message = f"{name}: {text}" if text else name
    return error_form(Failure(message[:2048], retryable=True, details={"type": name, "traceback": trace}))


def _plain(error: BaseException) -> BaseException:
    """The one that counts of a group: what was raised beside parking and cancelling, else those."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [_plain(each) for each in error.exceptions]
    loud = [leaf for leaf in leaves if not isinstance(leaf, asyncio.CancelledError | Parked)]
    parked = [leaf for leaf in leaves if isinstance(leaf, Parked)]
    return (loud or parked or leaves)[0]


class Line:
    """The connection with the worker. Calls may come from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._calls: dict[int, Future[Any]] = {}
        self._kept: set[int] = set()
        self._number = 0
        self._stop: Callable[[], object] | None = None
        self.is_told_to_stop = False
        self.has_heard = False
        """Whether the tool was made to hear that, by an error."""
        self.is_replaying = False
        self.about: Frame = {}
        self.branches = Branches()

    def begin(self, setup: Frame) -> None:
        """Take over what the worker says of the task, and listen from now on."""
        self.about = setup["task"]
        self.is_replaying = setup["is_replaying"]
        LOGGER.setLevel(setup["log_level"])
        LOGGER.addHandler(_Forward(self))
        threading.Thread(target=self._listen, name="outrider-line", daemon=True).start()

    def on_stop(self, stop: Callable[[], object]) -> None:
        """What to do when the task is told to stop; at once, if it was."""
        self._stop = stop
        if self.is_told_to_stop:
            stop()

    def send(self, frame: Frame) -> None:
        """Say something to the worker."""
        body = pack(frame)
        with self._sending:
            self._connection.sendall(body)

    def say(self, verb: str, /, **given: Any) -> None:
        """Say something that has no answer."""
        self.send({"say": verb, "with": given})

    def call(self, verb: str, given: Frame, *, is_kept: bool = False) -> tuple[int, Future[Any]]:
        """Call a verb over there; return the number of the call and what will hold its result.

        `is_kept`: it is to be waited for whatever happens.
        """
        where = self.branches.here()
        answer: Future[Any] = Future()
        with self._sending:
            self._number += 1
            number = self._number
            is_alone = self.branches.is_alone and not self._calls
            self._calls[number] = answer
            if is_kept:
                self._kept.add(number)
        try:
            self.send({"call": number, "verb": verb, "with": given, "is_alone": is_alone, **where})
        except BaseException:
            self._calls.pop(number, None)
            raise
        return number, answer

    def drop(self, number: int) -> None:
        """Nobody waits for that call any more."""
        if number in self._kept:
            return
        if self._calls.pop(number, None) is not None:
            self.send({"drop": number})

    def cancel_calls(self) -> None:
        """Let whoever waits for a call hear that the task was told to stop."""
        for number in set(self._calls) - self._kept:
            answer = self._calls.get(number)
            if answer is not None:
                self.drop(number)
                answer.set_exception(asyncio.CancelledError())

    def read(self) -> Frame | None:
        """Return the next frame, None at the end."""
        head = self._read(HEAD.size)
        body = None if head is None else self._read(HEAD.unpack(head)[0])
        return None if body is None else orjson.loads(body)

    def _read(self, size: int) -> bytes | None:
        parts = []
        while size:
            try:
                part = self._connection.recv(min(size, 1 << 20))
            except OSError:
                return None
            if not part:
                return None
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _listen(self) -> None:
        while (frame := self.read()) is not None:
            if "stop" in frame:
                self.is_told_to_stop = True
                if self._stop is not None:
                    self._stop()
                continue
            answer = self._calls.pop(frame["reply"], None)
            if answer is None:
                continue
            if "error" in frame:
                answer.set_exception(error_from(frame["error"], self.about["id"], self.about["attempt"]))
            else:
                self.is_replaying = frame["is_replaying"]
                answer.set_result(frame["value"])
        os.killpg(os.getpgrp(), signal.SIGKILL)


class Branches:
    """The asyncio tasks of the tool, by number: the lines of its code that the worker has to tell apart."""

    def __init__(self) -> None:
        self._main: Branch = None
        self._numbers: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()
        self._parents: WeakKeyDictionary[asyncio.Task[Any], Branch] = WeakKeyDictionary()
        self._failed: set[asyncio.Task[Any]] = set()
        self._counter = count(1)

    def follow(self, loop: asyncio.AbstractEventLoop, main: asyncio.Task[Any]) -> None:
        """Note from now on which task starts which."""
        self._main = main

        def start(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
            task = asyncio.Task(coro, loop=loop, **kwargs)
            self._parents[task] = asyncio.current_task(loop)
            return task

        loop.set_task_factory(start)

    @property
    def is_alone(self) -> bool:
        """Whether there is nothing but the main line."""
        return self._main is None or len(asyncio.all_tasks(self._main.get_loop())) == 1

    def failed(self) -> None:
        """A verb raised in this line."""
        branch = self._current()
        if branch is not None:
            self._failed.add(branch)

    def here(self) -> Frame:
        """What the worker needs to know of the line that calls, of the others, and of the step it is in."""
        place: Frame = {"inside": INSIDE.get()}
        if self._main is None:
            return place
        branch = self._current()
        handled = [each for each in self._failed if has_handled(each, branch, self._parents, self._main)]
        self._failed.difference_update(handled)
        live = [number for each, number in self._numbers.items() if not each.done()]
        return place | {
            "branch": None if branch is None else self._number(branch),
            "handled": [self._number(each) for each in handled],
            "live": live,
        }

    def _current(self) -> Branch:
        if self._main is None:
            return None
        current = asyncio.current_task()
        return None if current is self._main else current

    def _number(self, branch: asyncio.Task[Any]) -> int:
        return self._numbers.setdefault(branch, next(self._counter))


class _Forward(logging.Handler):
    """Passes what is logged here on to the log of the worker."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        self._line.say("log", level=record.levelno, message=record.getMessage())
