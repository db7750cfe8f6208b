"""A tool in a process of its own: what it does to itself, it does to nobody else.

The journal stays here. The child has the same verbs, and each is a call to this side; it holds nothing that its
death could lose. What a reader would get wrong: the record is never settled while the child lives. Told to stop, it
has half of the cancel grace to do so by itself and is ended by TERM, then KILL, before the grace is over.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import signal
import socket
import sys
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from contextvars import Context, copy_context
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import outrider
from outrider.core.errors import Failure, InvalidArguments, Parked
from outrider.core.values import SECOND
from outrider.runtime.attempt import Scope
from outrider.runtime.codec import Shape, decode, encode, jsonable
from outrider.runtime.context import SCOPE, TaskContext
from outrider.runtime.failures import Told, revive
from outrider.runtime.frames import Frame, error_form, error_from, pack, read_frame
from outrider.runtime.isolated import KILL, TERM
from outrider.runtime.journal import FAILED, INSIDE, Branch, Position
from outrider.runtime.log import LOGGER
from outrider.runtime.telemetry import StepSpan

if TYPE_CHECKING:
    from outrider.runtime.attempt import Attempt
    from outrider.runtime.registry import Tool

CHUNK = 65536
LAST_WORDS = 2048
"""How much of what it last wrote to stderr is told when a process dies."""
UNWIND = 5.0
"""Seconds that a process has to end once its task parks."""
AT_EASE, AT_ONCE = 0.5, 0.8
"""The parts of the time to stop after which TERM and KILL are sent."""
FLUSH = 1.0
"""Seconds to wait for the last output of a process that has ended."""


async def run_isolated(task: TaskContext, tool: Tool, arguments: Mapping[str, Any]) -> Any:
    """Run a tool in a process of its own; return its result as plain JSON.

    Raises what the tool raised, and Failure of kind `exception` if its process died.
    """
    frame = _setup(task, tool, arguments)
    async with _Child.started() as child:
        service = _Service(task, child)
        return await service.run(frame)


def importable(fn: Callable[..., Any]) -> str:
    """Return `module:qualname` of a function that another process can import.

    Raises InvalidArguments for one that is made inside another function, a method of an object, a lambda, or the
    function of a program that is no file.
    """
    name = getattr(fn, "__qualname__", None)
    module = getattr(fn, "__module__", None)
    if name is None or module is None or "<" in name or hasattr(fn, "__self__"):
        raise InvalidArguments(
            f"{name or fn!r} cannot run with isolation='process': another process can only import a function that "
            "stands at the top of a module, or in a class as a static method"
        )
    if module == "__main__":
        _main_of(sys.modules["__main__"])
    return f"{module}:{name}"


def check_importable(fn: Callable[..., Any]) -> None:
    """Raise InvalidArguments unless the name of a function leads to that function."""
    module, _, name = importable(fn).partition(":")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    while found is not None and found is not fn and hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    if found is not fn:
        raise InvalidArguments(
            f"{module}.{name} cannot run with isolation='process': that name does not lead to the registered function"
        )


def _main_of(module: ModuleType) -> Frame:
    """How another process gets at the program that is `__main__` here, as `multiprocessing` does it."""
    spec = getattr(module, "__spec__", None)
    if spec is not None:
        return {"name": spec.name}
    path = getattr(module, "__file__", None)
    if path is None:
        raise InvalidArguments(
            "a function typed into an interpreter cannot run with isolation='process'; put it into a module"
        )
    return {"path": str(Path(path).absolute())}


def _setup(task: TaskContext, tool: Tool, arguments: Mapping[str, Any]) -> Frame:
    target = importable(tool.fn)
    return {
        "target": target,
        "main": _main_of(sys.modules["__main__"]) if target.startswith("__main__:") else None,
        "path": sys.path,
        "argv": sys.argv,
        "arguments": _plain(arguments),
        "task": {"id": task.id, "session_id": task.session_id, "attempt": task.attempt, "spec": task.spec},
        "is_replaying": task.is_replaying,
        "log_level": LOGGER.getEffectiveLevel(),
    }


def _plain(arguments: Mapping[str, Any]) -> Any:
    """Arguments as JSON. The child reads them by the same annotations that made values of them here."""
    if all(type(value) in (str, int, bool, type(None)) for value in arguments.values()):
        return dict(arguments)
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(dict(arguments))


# --- the process -------------------------------------------------------------------------------------


class _Child:
    """A process, its warden, and what connects it with this one."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        life: socket.socket,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._life = life
        self.pumps: list[asyncio.Task[None]] = []
        self._last_words: deque[str] = deque()
        self.reader = reader
        self.writer = writer

    @classmethod
    @asynccontextmanager
    async def started(cls) -> AsyncIterator[_Child]:
        """A process that waits for its frame of instructions. None of it is left when this ends."""
        talk, their_talk = socket.socketpair()
        life, their_life = socket.socketpair()
        root = str(Path(outrider.__file__).parents[1])
        command = (
            f"import sys; sys.path.insert(0, {root!r}); from outrider.runtime.isolated import main; "
            f"main({their_life.fileno()}, {their_talk.fileno()})"
        )
        with ExitStack() as ours:
            ours.callback(life.close)
            ours.callback(talk.close)
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-u",
                    "-c",
                    command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    pass_fds=(their_life.fileno(), their_talk.fileno()),
                    start_new_session=True,
                    limit=CHUNK,
                )
            finally:
                their_life.close()
                their_talk.close()
            talk.setblocking(False)
            life.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=talk)
            child = cls(process, life, reader, writer)
            try:
                yield child
            finally:
                life.close()  # the warden ends all of it
                for pump in child.pumps:
                    pump.cancel()
                writer.transport.abort()
                # Shielded: whoever cancels this meanwhile must not leave a process behind unwaited for.
                await asyncio.shield(_apart(process.wait()))
                process._transport.close()  # type: ignore[attr-defined]  # somebody may still hold its pipes open

    def listen(self, hear: Callable[[str, str], None], pause: Callable[[], Awaitable[None]]) -> None:
        """Pass on what the process prints."""
        for name, stream in (("stdout", self._process.stdout), ("stderr", self._process.stderr)):
            assert stream is not None
            self.pumps.append(_apart(self._pump(name, stream, hear, pause)))

    async def _pump(
        self,
        name: str,
        stream: asyncio.StreamReader,
        hear: Callable[[str, str], None],
        pause: Callable[[], Awaitable[None]],
    ) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while True:
            raw = await stream.read(CHUNK)
            text = decoder.decode(raw, not raw)
            if text:
                hear(name, text)
                if name == "stderr":
                    self._remember(text)
            if not raw:
                return
            await pause()

    def _remember(self, text: str) -> None:
        self._last_words.append(text[-LAST_WORDS:])
        while sum(map(len, self._last_words)) - len(self._last_words[0]) >= LAST_WORDS:
            self._last_words.popleft()

    @property
    def last_words(self) -> str:
        """The end of what it wrote to stderr."""
        return "".join(self._last_words)[-LAST_WORDS:]

    def send(self, frame: Frame) -> None:
        """Say something to the process; in vain if it is gone."""
        if not self.writer.is_closing():
            self.writer.write(pack(frame))

    def end(self, how: bytes) -> None:
        """Have TERM or KILL sent to its process group."""
        with suppress(OSError):
            self._life.send(how)

    async def exited(self) -> int:
        """Wait until it has ended; return the exit code, or minus the signal's number."""
        loop = asyncio.get_running_loop()
        try:
            told = await loop.sock_recv(self._life, 4096)
        except OSError:
            told = b""
        code: int = json.loads(told)["ended"] if told else -signal.SIGKILL  # of a warden that was killed
        return code


def _apart(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Run something for an attempt that is none of its code, so that it does not end with it."""
    return asyncio.get_running_loop().create_task(coroutine, context=Context())


# --- serving it --------------------------------------------------------------------------------------


class _FarBranch:
    """A line of the tool's code that runs beside its main line; stands for an asyncio task over there."""

    def __init__(self) -> None:
        self.is_done = False

    def done(self) -> bool:
        """Whether it has ended, as far as the tool has told."""
        return self.is_done


class _Served(TaskContext):
    """The verbs for one call: what the tool says of the line of its code that calls takes the place of what is here."""

    def __init__(self, task: TaskContext, is_alone: bool, branch: Branch, handled: Collection[Branch]) -> None:
        super().__init__(task._attempt, task._scope)
        self._is_alone = is_alone
        self._far = branch
        self._dealt_with = handled

    def _enter(self, verb: str, name: str | None) -> Position:
        attempt, scope = self._attempt, SCOPE.get() or self._scope
        position = attempt.journal.enter(
            verb,
            name,
            alone=self._is_alone and attempt.is_alone,
            scope="" if scope is None else scope.name,
            branch=self._far,
        )
        attempt.journal.go_on(lambda failed: failed is self._far or failed in self._dealt_with)
        if position.entry is not None and position.entry.verb.endswith(FAILED):
            raise Told(position.entry.value or b"{}")  # only the tool knows the types of its errors
        return position

    @property
    def _branch(self) -> Branch:
        return self._far


@dataclass(slots=True)
class _OpenStep:
    """A step that the tool runs now."""

    position: Position
    scope: Scope
    branch: Branch
    open: ExitStack
    span: StepSpan


class _Expected(Shape):
    """What the tool says a step returns: only its schema is known here."""

    def __init__(self, schema: Frame) -> None:
        super().__init__()
        self._schema = schema


class _Service:
    """Serves one child: its calls of verbs, what it says, and its end."""

    def __init__(self, task: TaskContext, child: _Child) -> None:
        self._task = task
        self._attempt: Attempt = task._attempt
        self._child = child
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._steps: dict[int, _OpenStep] = {}
        self._branches: dict[int, _FarBranch] = {}
        self._alarms: list[asyncio.TimerHandle] = []
        self._outcome: Frame | None = None
        self._parking = False
        self._context = copy_context()

    async def run(self, setup: Frame) -> Any:
        """Let the child do its work; return its result or raise what it raised."""
        attempt, child = self._attempt, self._child
        attempt.threads += 1  # as long as it lives, code of the attempt runs
        try:
            child.listen(self._hear, self._pause)
            child.send(setup)
            code = await self._until_ended()
        finally:
            attempt.threads -= 1
            self._close()
        return self._result(code)

    async def _until_ended(self) -> int:
        """Wait for the end of the process, and see to it that there is one."""
        end = _apart(self._end())
        try:
            while not end.done():
                try:
                    await asyncio.shield(end)
                except asyncio.CancelledError:
                    if not end.done():
                        self._stop()
            code: int = end.result()
            return code
        finally:
            end.cancel()

    async def _end(self) -> int:
        """Converse until the warden says that the process has ended; what it said before counts."""
        conversation = _apart(self._converse())
        try:
            code = await self._child.exited()
            await asyncio.wait([conversation, *self._child.pumps], timeout=FLUSH)
            if conversation.done():
                conversation.result()
            return code
        finally:
            conversation.cancel()

    async def _converse(self) -> None:
        try:
            while (frame := await self._next_frame()) is not None:
                if "end" in frame:
                    self._outcome = frame["end"]
                    return
                self._hear_frame(frame)
        except BaseException:
            self._child.end(KILL)
            raise

    def _hear_frame(self, frame: Frame) -> None:
        if "say" in frame:
            self._say(frame["say"], frame.get("with", {}))
        elif "drop" in frame:
            if (call := self._calls.get(frame["drop"])) is not None:
                call.cancel()
        else:
            number = frame["call"]
            answer = self._answer(number, frame)
            self._calls[number] = asyncio.get_running_loop().create_task(answer, context=self._context.copy())

    async def _next_frame(self) -> Frame | None:
        try:
            return await read_frame(self._child.reader)
        except ValueError:  # it has written into the socket itself; it cannot be understood any more
            self._child.end(KILL)
            return None

    def _stop(self) -> None:
        """The attempt was told to stop: the process gets the same word, and then less and less time."""
        attempt = self._attempt
        if attempt.is_over:
            self._child.end(KILL)
            return
        self._child.send({"stop": True})
        stopping = attempt.record.core.stopping
        if stopping is not None:
            self._end_within((stopping.force_at - attempt.services.clock.now()) / SECOND)
        else:
            self._end_within(attempt.services.settings.drain_grace)

    def _end_within(self, seconds: float) -> None:
        """End the process in that time: TERM when half of it is gone, KILL before all of it is."""
        loop = asyncio.get_running_loop()
        for part, how in ((AT_EASE, TERM), (AT_ONCE, KILL)):
            self._alarms.append(loop.call_later(max(0.0, seconds) * part, self._child.end, how))

    def _close(self) -> None:
        for alarm in self._alarms:
            alarm.cancel()
        for call in self._calls.values():
            call.cancel()
        for step in self._steps.values():
            step.span.end(asyncio.CancelledError())
            step.open.close()
        self._steps.clear()

    def _result(self, code: int) -> Any:
        outcome = self._outcome
        if outcome is None:
            raise self._death(code)
        if "error" in outcome:
            error = error_from(outcome["error"], self._attempt.task_id, self._attempt.number)
            raise error
        return outcome["value"]

    def _death(self, code: int) -> BaseException:
        attempt = self._attempt
        if attempt.is_told_to_stop or attempt.is_over or attempt.is_draining:
            return asyncio.CancelledError()
        if self._parking:
            return Parked()
        details: dict[str, Any] = {"exit_status": code} if code >= 0 else {"signal": _signal_name(code)}
        how = f"with exit status {code}" if code >= 0 else f"by {_signal_name(code)}"
        return Failure(
            f"the process of the tool ended {how} before it returned",
            retryable=True,
            details={**details, "stderr": self._child.last_words},
        )

    # --- what it says --------------------------------------------------------------------------------

    def _hear(self, stream: str, text: str) -> None:
        if not self._attempt.journal.is_replaying and not self._attempt.is_over:
            self._attempt.print(stream, text)

    async def _pause(self) -> None:
        """A process that prints faster than is written has to wait."""
        settings = self._attempt.services.settings
        if self._attempt.output_waiting > settings.limits.output_tail // 2:
            await asyncio.sleep(settings.output_interval)

    def _say(self, verb: str, given: Frame) -> None:
        if self._attempt.is_over:
            return
        task = self._task
        match verb:
            case "progress":
                task.progress(**given)
            case "detail":
                task.detail(**given)
            case "output":
                task.output(**given)
            case "heartbeat":
                task.heartbeat()
            case "abort":
                self._abort(**given)
            case "log":
                LOGGER.log(given["level"], "%s", given["message"])
            case _:
                raise AssertionError(f"unknown word {verb}")

    # --- what it calls -------------------------------------------------------------------------------

    async def _answer(self, number: int, frame: Frame) -> None:
        try:
            task = self._served(frame)
            value = await getattr(self, f"_do_{frame['verb']}")(task, number, **frame.get("with", {}))
            reply: Frame = {"reply": number, "value": jsonable(value), "is_replaying": self._task.is_replaying}
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and self._is_ending:
                raise
            if isinstance(error, Parked) and not self._parking:
                self._parking = True
                self._end_within(UNWIND)
            reply = {"reply": number, "error": error_form(error)}
        finally:
            self._calls.pop(number, None)
        self._child.send(reply)

    def _served(self, frame: Frame) -> _Served:
        """The verbs for a call, in the line of the tool's code and inside of the step that it comes from."""
        if (inside := self._steps.get(frame.get("inside") or 0)) is not None:
            SCOPE.set(inside.scope)
        live = frame.get("live", ())
        for number, branch in self._branches.items():
            branch.is_done = number not in live
        handled = [self._branch(number) for number in frame.get("handled", ())]
        return _Served(self._task, frame["is_alone"], self._branch(frame.get("branch")), handled)

    def _branch(self, number: int | None) -> Branch:
        if number is None:
            return None
        return cast(Branch, self._branches.setdefault(number, _FarBranch()))

    @property
    def _is_ending(self) -> bool:
        return self._child.writer.is_closing()

    async def _do_begin(self, task: _Served, number: int, name: str, effects: Any, schema: Any) -> Frame:
        with ExitStack() as step:
            position = step.enter_context(task._at("step", name))
            begun = await task.begin_step(position, effects, _Expected(schema))
            if begun is not None:
                return {"value": decode(begun), "is_done": True}
            scope = Scope(position.name + INSIDE, parks=effects != "once")
            step.callback(self._attempt.leave, scope)
            span = self._task.services.telemetry.open_step(self._attempt.record, position.name)
            self._steps[number] = _OpenStep(position, scope, task._branch, step.pop_all(), span)
        return {"is_done": False, "step": number, "key": f"{self._task.id}:{position.name}"}

    async def _do_finish(self, task: _Served, _: int, step: int, value: Any) -> None:
        done = self._steps.pop(step)
        done.span.end()
        with done.open:
            await task.finish_step(done.position, value)

    def _abort(self, step: int, told: Any) -> None:
        """A step raised, or was left: the tool may deal with that and go on."""
        left = self._steps.pop(step)
        left.span.end(asyncio.CancelledError() if told is None else revive(encode(told)))
        if told is not None:
            self._attempt.journal.failed(left.position, left.branch, Told(encode(told)))
        left.open.close()

    async def _do_ask(self, task: _Served, _: int, prompt: str, expected: Any, **given: Any) -> Any:
        return await task.ask(prompt, expected, **given)

    async def _do_sleep(self, task: _Served, _: int, **given: Any) -> None:
        await task.sleep(**given)

    async def _do_hold(self, task: _Served, _: int, **given: Any) -> None:
        await task.hold(**given)

    async def _do_spawn(self, task: _Served, _: int, tool: str, options: Any, arguments: Frame, **given: Any) -> Frame:
        child = await task.spawn(tool, arguments, options=_options_from(options), **given)
        return {"id": child.id, "session_id": child.session_id}

    async def _do_wait_for(self, task: _Served, _: int, **given: Any) -> Any:
        return await task.wait_for(**given)

    async def _do_post(self, task: _Served, _: int, **given: Any) -> Any:
        return await task.post(**given)

    async def _do_messages(self, task: _Served, _: int, **given: Any) -> Any:
        return await task.messages(**given)

    async def _do_artifact(self, task: _Served, _: int, content: Any = None, **given: Any) -> Any:
        return await task.artifact(content=content_from(content), **given)

    async def _do_record(self, task: _Served, _: int) -> Any:
        return task.record()

    async def _do_read(self, task: _Served, _: int, path: str) -> Frame:
        return content_form(await task.files.read(path))

    async def _do_write(self, task: _Served, _: int, path: str, content: Frame, media_type: str | None) -> str:
        return await task.files.write(path, content_from(content) or b"", media_type)

    async def _do_list(self, task: _Served, _: int, **given: Any) -> Any:
        return await task.files.list(**given)

    async def _do_handle(self, task: _Served, _: int, /, task_id: str, do: str, **given: Any) -> Any:
        """A verb of the handle on another task."""
        from outrider.runtime.tasks import Tasks

        if do not in HANDLE_VERBS:
            raise InvalidArguments(f"a handle in an isolated tool has no {do!r}")
        handle = task._handle(await Tasks(self._attempt.services).get(task_id))
        return await getattr(handle, do)(**given)


HANDLE_VERBS = ("record", "result", "wait", "answer", "message", "cancel")


def content_form(content: bytes | str) -> Frame:
    """Return the content of a file as JSON."""
    return {"text": content} if isinstance(content, str) else {"base64": b64encode(content).decode()}


def content_from(form: Frame | None) -> bytes | str | None:
    """Return the content that a form holds."""
    if form is None:
        return None
    text: str | None = form.get("text")
    return b64decode(form["base64"]) if text is None else text


def _options_from(form: Frame | None) -> Any:
    from outrider.runtime.options import DEFAULT_OPTIONS, TaskOptions

    if form is None:
        return DEFAULT_OPTIONS
    from pydantic import TypeAdapter

    return TypeAdapter(TaskOptions).validate_python(form)


def _signal_name(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
