"""`TaskContext` in the process of an isolated tool: the same verbs, each a call to the worker, which has the journal.

Only the code of steps runs here. What is said (progress, output) goes one way; what is asked for waits for its
answer, and raises here what it raised there.
"""

from __future__ import annotations

import asyncio
import inspect
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from outrider.core.task import Artifact, Effects, RequestKind
from outrider.core.values import JSON, JSONObject
from outrider.runtime.codec import PLAIN, Shape, decode, encode, jsonable, shape_of
from outrider.runtime.failures import tell
from outrider.runtime.frames import Frame
from outrider.runtime.log import log

if TYPE_CHECKING:
    from outrider.runtime.isolated_run import Line
    from outrider.runtime.options import TaskOptions
    from outrider.runtime.records import FileRecord, MessageRecord, TaskRecord

T = TypeVar("T")
_UNSET: Any = object()


class _Context:
    """What both kinds of function have of their task without waiting."""

    def __init__(self, line: Line) -> None:
        self._line = line

    @property
    def id(self) -> str:
        """The task's id."""
        return cast(str, self._line.about["id"])

    @property
    def session_id(self) -> str:
        """The session that owns the task."""
        return cast(str, self._line.about["session_id"])

    @property
    def attempt(self) -> int:
        """Which hold of the task this is, from 1."""
        return cast(int, self._line.about["attempt"])

    @property
    def spec(self) -> JSONObject:
        """What the task was asked to do."""
        return cast(JSONObject, self._line.about["spec"])

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody wants the task to stop."""
        return self._line.is_told_to_stop

    @property
    def is_replaying(self) -> bool:
        """Whether the code is still on ground that an earlier attempt covered."""
        return self._line.is_replaying

    @property
    def log(self) -> Any:
        """A structured logger that names the task and the attempt; it writes to the worker's log."""
        return log.bind(task=self.id, attempt=self.attempt)

    def record(self) -> TaskRecord:
        """The task's record, as this attempt last saw it."""
        _, answer = self._line.call("record", {})
        return _record(answer.result())

    def progress(
        self,
        current: float,
        total: float | None = None,
        *,
        unit: str | None = None,
        label: str | None = None,
        steps: Sequence[str] = (),
    ) -> None:
        """Say how far the task has come."""
        self._say("progress", current=current, total=total, unit=unit, label=label, steps=list(steps))

    def detail(self, text: str) -> None:
        """Say in a line what the task is doing now."""
        self._say("detail", text=_clean(text))

    def output(self, text: str, stream: str = "stdout") -> None:
        """Print text."""
        from outrider.runtime.attempt import check_stream

        check_stream(stream)
        self._say("output", text=_clean(text), stream=stream)

    def heartbeat(self) -> None:
        """Show a sign of life to the idle timeout."""
        self._say("heartbeat")

    def _say(self, verb: str, /, **given: Any) -> None:
        self._line.say(verb, **given)


class IsolatedContext(_Context):
    """What a coroutine function has of its task; see `TaskContext`."""

    @property
    def files(self) -> IsolatedFiles:
        """The session's files."""
        return IsolatedFiles(self._call)

    async def step(
        self, name: str, fn: Callable[..., Any], /, *args: Any, effects: Effects = "idempotent", **kwargs: Any
    ) -> Any:
        """Run `fn` here and journal its result there; see `TaskContext.step`."""
        shape = shape_of(fn)
        begun = await self._call("begin", name=name, effects=effects, schema=_schema(shape))
        if begun["is_done"]:
            return _read(shape, begun["value"])
        with _inside(self._line, begun["step"]):
            _fill_key(fn, kwargs, begun["key"])
            value, was_cancelled = await _run(fn, args, kwargs)
            typed, plain = _finished(name, value, shape)
        await self._call("finish", step=begun["step"], value=plain)
        if was_cancelled:  # a thread cannot be stopped: what it did is kept, and then the code stops
            raise asyncio.CancelledError
        return typed

    async def ask(self, prompt: str, expected: type[T] | JSONObject | None = None, **given: Any) -> T:
        """Ask, and wait; the task parks meanwhile, and this process ends. See `TaskContext.ask`."""
        shape, form = _question(prompt, expected, **given)
        return cast(T, _read(shape, await self._call("ask", **form)))

    async def sleep(self, length: timedelta | float, *, name: str | None = None) -> None:
        """Sleep; see `TaskContext.sleep`."""
        await self._call("sleep", length=_seconds(length), name=name)

    async def hold(self, resource: str, resource_id: str) -> None:
        """Hold a resource until the task ends; see `TaskContext.hold`."""
        await self._call("hold", resource=resource, resource_id=resource_id)

    async def spawn(
        self,
        tool: str | Callable[..., Any],
        given: Mapping[str, Any] | None = None,
        /,
        *,
        options: TaskOptions | None = None,
        kind: str = "background_tool",
        position: str | None = None,
        **arguments: Any,
    ) -> IsolatedHandle:
        """Start a child task; see `TaskContext.spawn`."""
        form = _child(tool, options, kind, position, {**(given or {}), **arguments})
        return IsolatedHandle(self._call, await self._call("spawn", **form))

    async def wait_for(
        self,
        tasks: Iterable[Any],
        *,
        any: bool = False,
        timeout: timedelta | float | None = None,
        name: str | None = None,
    ) -> list[TaskRecord]:
        """Wait until these tasks have ended; see `TaskContext.wait_for`."""
        form = {"tasks": _ids(tasks), "any": any, "timeout": _seconds(timeout), "name": name}
        return [_record(each) for each in await self._call("wait_for", **form)]

    async def post(self, content: Any, *, in_reply_to: str | None = None, name: str | None = None) -> MessageRecord:
        """Send the session a message; see `TaskContext.post`."""
        return _message(await self._call("post", content=jsonable(content), in_reply_to=in_reply_to, name=name))

    async def messages(
        self, *, wait: bool = True, timeout: timedelta | float | None = None, name: str | None = None
    ) -> list[MessageRecord]:
        """Return the messages that the session sent since the last call; see `TaskContext.messages`."""
        found = await self._call("messages", wait=wait, timeout=_seconds(timeout), name=name)
        return [_message(each) for each in found]

    async def artifact(self, name: str, content: bytes | str | None = None, **given: Any) -> Artifact:
        """Leave something behind; see `TaskContext.artifact`."""
        return Artifact(**await self._call("artifact", name=name, content=_content(content), **given))

    async def _call(self, verb: str, /, **given: Any) -> Any:
        number, answer = self._line.call(verb, given, is_kept=verb == "finish")
        try:
            return await asyncio.wrap_future(answer)
        except asyncio.CancelledError:
            self._line.drop(number)
            raise
        except Exception:
            self._line.branches.failed()
            raise


class IsolatedSyncContext(_Context):
    """What a plain function has of its task; see `SyncTaskContext`.

    When the task is told to stop, the next verb raises `asyncio.CancelledError`, and so does one that waits; once.
    """

    def __getattr__(self, name: str) -> Any:
        verb = IsolatedContext.__dict__.get(name)
        if not inspect.iscoroutinefunction(verb):
            raise AttributeError(f"a task has no {name!r}")
        return partial(_run_to_end, verb, _Blocking(self))  # those not defined below wait for their one call only

    @property
    def files(self) -> Any:
        """The session's files."""
        return _BlockingFiles(IsolatedFiles(_Blocking(self)._call))

    def step(
        self, name: str, fn: Callable[..., Any], /, *args: Any, effects: Effects = "idempotent", **kwargs: Any
    ) -> Any:
        """Run `fn` and journal its result; see `TaskContext.step`."""
        shape = shape_of(fn)
        begun = self._wait("begin", name=name, effects=effects, schema=_schema(shape))
        if begun["is_done"]:
            return _read(shape, begun["value"])
        with _inside(self._line, begun["step"]):
            _fill_key(fn, kwargs, begun["key"])
            typed, plain = _finished(name, fn(*args, **kwargs), shape)
        self._wait("finish", step=begun["step"], value=plain)
        return typed

    def spawn(self, tool: str | Callable[..., Any], given: Mapping[str, Any] | None = None, /, **arguments: Any) -> Any:
        """Start a child task; see `TaskContext.spawn`."""
        handle = _run_to_end(IsolatedContext.spawn, _Blocking(self), tool, given, **arguments)
        return _BlockingHandle(handle)

    def _say(self, verb: str, /, **given: Any) -> None:
        self._check()
        super()._say(verb, **given)

    def _wait(self, verb: str, /, **given: Any) -> Any:
        is_last = verb == "finish"  # what was done is journaled even if the task is told to stop
        if not is_last:
            self._check()
        _, answer = self._line.call(verb, given, is_kept=is_last)
        try:
            return answer.result()
        except asyncio.CancelledError:
            self._line.has_heard = True
            raise

    def _check(self) -> None:
        if self._line.is_told_to_stop and not self._line.has_heard:
            self._line.has_heard = True
            raise asyncio.CancelledError


class IsolatedFiles:
    """The files of the task's session; see `TaskFiles`."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    async def read(self, path: str) -> bytes:
        """Return a file's content. Raises NotFound."""
        return b64decode((await self._call("read", path=path))["base64"])

    async def read_text(self, path: str) -> str:
        """Return a file's content as UTF-8 text."""
        return (await self.read(path)).decode()

    async def write(self, path: str, content: bytes | str, media_type: str | None = None) -> str:
        """Write a file whole; return its path in normal form."""
        return cast(str, await self._call("write", path=path, content=_content(content), media_type=media_type))

    async def list(self, prefix: str = "/", *, after: str | None = None, limit: int = 1000) -> list[FileRecord]:
        """Return the files below a prefix, in the order of their paths, after the one of that path."""
        from outrider.runtime.records import FileRecord

        found = await self._call("list", prefix=prefix, after=after, limit=limit)
        return [FileRecord.model_validate(each) for each in found]


class IsolatedHandle:
    """Another task, seen from an isolated tool: what `TaskHandle` has, as far as it needs no stream."""

    def __init__(self, call: Callable[..., Any], about: Frame) -> None:
        self._call = call
        self.id: str = about["id"]
        self.session_id: str = about["session_id"]

    def __repr__(self) -> str:
        return f"<IsolatedHandle {self.id}>"

    async def record(self) -> TaskRecord:
        """Return the whole record as it stands."""
        return _record(await self._do("record"))

    async def result(self, *, timeout: timedelta | float | None = None) -> Any:
        """Wait for the end and return the result as JSON. Raises TaskFailed, TaskCanceled or WaitTimeout."""
        return await self._do("result", timeout=_seconds(timeout))

    async def wait(self, *, timeout: timedelta | float | None = None, on_question: bool = False) -> TaskRecord:
        """Wait until the task has ended. Raises WaitTimeout."""
        return _record(await self._do("wait", timeout=_seconds(timeout), on_question=on_question))

    async def answer(self, answer: JSON, **given: Any) -> TaskRecord:
        """Answer a question of the task."""
        return _record(await self._do("answer", answer=jsonable(answer), **given))

    async def message(self, content: Any, **given: Any) -> MessageRecord:
        """Send the task a message."""
        return _message(await self._do("message", content=jsonable(content), **given))

    async def cancel(self, **given: Any) -> JSONObject:
        """Cancel the task and what is below it; return the receipt."""
        lengths = {name: _seconds(given.pop(name)) for name in ("wait", "grace") if name in given}
        return cast(JSONObject, await self._do("cancel", **given, **lengths))

    async def _do(self, verb: str, **given: Any) -> Any:
        return await self._call("handle", task_id=self.id, do=verb, **given)


# --- without a loop ----------------------------------------------------------------------------------


class _Blocking:
    """An `IsolatedContext` whose calls have returned by the time they are awaited."""

    def __init__(self, context: IsolatedSyncContext) -> None:
        self._context = context

    async def _call(self, verb: str, /, **given: Any) -> Any:
        return self._context._wait(verb, **given)


class _BlockingFiles:
    def __init__(self, files: IsolatedFiles) -> None:
        self._files = files

    def __getattr__(self, name: str) -> Any:
        return partial(_run_to_end, getattr(self._files, name))


class _BlockingHandle:
    def __init__(self, handle: IsolatedHandle) -> None:
        self._handle = handle

    def __repr__(self) -> str:
        return repr(self._handle)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._handle, name)
        return partial(_run_to_end, value) if inspect.iscoroutinefunction(value) else value


def _run_to_end(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Run a coroutine that never really waits."""
    coroutine = fn(*args, **kwargs)
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("a call of a plain function waited")


# --- steps -------------------------------------------------------------------------------------------

INSIDE: ContextVar[int | None] = ContextVar("outrider_inside", default=None)
"""The number of the step that is running, if one is."""


@contextmanager
def _inside(line: Line, step: int) -> Iterator[None]:
    """The function of a step runs; if it raises, the worker is told, for the code may deal with that and go on."""
    token = INSIDE.set(step)
    try:
        yield
    except BaseException as error:
        told = decode(tell(error)) if isinstance(error, Exception) else None
        line.say("abort", step=step, told=told)
        if told is not None:
            line.branches.failed()
        raise
    finally:
        INSIDE.reset(token)


async def _run(fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, bool]:
    """What a function returned, a plain one in a thread, and whether the code was cancelled meanwhile."""
    if inspect.iscoroutinefunction(fn):
        return await fn(*args, **kwargs), False
    call = partial(copy_context().run, partial(fn, *args, **kwargs))
    future = asyncio.get_running_loop().run_in_executor(None, _outcome_of, call)
    was_cancelled = False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            was_cancelled = True
    value, error = future.result()
    if error is not None:
        raise error
    return (await value if inspect.isawaitable(value) else value), was_cancelled


def _outcome_of(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return call(), None
    except BaseException as error:  # noqa: BLE001 - raised again by who waits
        return None, error


def _finished(name: str, value: Any, shape: Shape) -> tuple[Any, JSON]:
    """What a step returned, as a resumed task will read it, and as JSON."""
    encoded = encode(value)
    try:
        typed = value if shape.is_as_read(value) else shape.read(encoded)
    except ValueError as error:
        raise TypeError(f"step {name!r} returned what its annotation does not allow: {error}") from error
    return typed, decode(encoded)


def _schema(shape: Shape) -> JSONObject:
    try:
        return shape.schema()
    except Exception:  # noqa: BLE001 - a type that has no schema cannot be checked over there
        return {}


# --- values on their way -------------------------------------------------------------------------------


def _question(
    prompt: str,
    expected: Any = None,
    *,
    kind: RequestKind = "question",
    deadline: timedelta | float | None = None,
    default: Any = _UNSET,
    on_expiry: str | None = None,
    remind_every: timedelta | float | None = None,
    details: JSON = None,
    name: str | None = None,
) -> tuple[Shape, Frame]:
    """What is asked, and the shape to read its answer as."""
    shape = Shape(expected) if expected is not None and not isinstance(expected, Mapping) else PLAIN
    form = {
        "prompt": prompt,
        "expected": dict(expected) if isinstance(expected, Mapping) else shape.schema() or None,
        "kind": kind,
        "deadline": _seconds(deadline),
        "on_expiry": on_expiry,
        "remind_every": _seconds(remind_every),
        "details": jsonable(details),
        "name": name,
    }
    if default is not _UNSET:
        form["default"] = jsonable(default)
    return shape, form


def _child(
    tool: str | Callable[..., Any],
    options: TaskOptions | None,
    kind: str,
    position: str | None,
    arguments: Mapping[str, Any],
) -> Frame:
    name = tool if isinstance(tool, str) else getattr(tool, "__name__", str(tool))
    return {
        "tool": name,
        "options": None if options is None else jsonable(options),
        "kind": kind,
        "position": position,
        "arguments": jsonable(dict(arguments)),
    }


def _read(shape: Shape, value: JSON) -> Any:
    return value if shape.is_plain else shape.read(encode(value))


def _fill_key(fn: Callable[..., Any], kwargs: dict[str, Any], key: str) -> None:
    from outrider.runtime.context import _wants_key

    if _wants_key(fn):
        kwargs.setdefault("idempotency_key", key)


def _seconds(length: timedelta | float | None) -> float | None:
    return length.total_seconds() if isinstance(length, timedelta) else length


def _ids(tasks: Iterable[Any]) -> list[str]:
    return [task if isinstance(task, str) else task.id for task in tasks]


def _clean(text: object) -> str:
    """Text without halves of characters, which JSON cannot hold."""
    return str(text).encode("utf-8", "replace").decode()


def _content(content: bytes | str | None) -> Frame | None:
    if content is None:
        return None
    return {"text": content} if isinstance(content, str) else {"base64": b64encode(content).decode()}


def _record(form: Frame) -> TaskRecord:
    from outrider.runtime.records import TaskRecord

    return TaskRecord.model_validate(form)


def _message(form: Frame) -> MessageRecord:
    from outrider.runtime.records import MessageRecord

    return MessageRecord.model_validate(form)
