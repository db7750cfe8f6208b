"""`TaskContext`: all that the code of a task can say and ask, journaled so that it survives the process.

Every verb with an effect takes a journal position, its name or its ordinal; a resumed task that comes there again
gets what it got the first time. The one thing a reader would get wrong: code between the verbs is ordinary and
runs again on resume; what must not run twice belongs into a `step`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial, wraps
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast, get_args, overload

from outrider.core import events
from outrider.core.change import InboxEntry, Page
from outrider.core.errors import (
    ConnectionRequired,
    Failure,
    InvalidAnswer,
    InvalidArguments,
    InvalidPath,
    InvalidSchema,
    NotFound,
    Superseded,
    TooLarge,
)
from outrider.core.events import FileWrite, Message, Step
from outrider.core.ledger import Existing
from outrider.core.machine import result_path
from outrider.core.meters import Charge, ChargeVerdict, Lapsed, Tap, taps_of
from outrider.core.queue import split_route
from outrider.core.task import (
    Artifact,
    Effects,
    ExpiryPolicy,
    InputRequest,
    Live,
    NewTask,
    Progress,
    RequestKind,
    Task,
    WaitForAnswer,
    WaitForMessage,
    WaitForNews,
    WaitForTasks,
    WaitUntil,
)
from outrider.core.values import JSON, SECOND, Instant, JSONObject, evolve
from outrider.runtime.attempt import Attempt, Scope, check_stream, shorten, well_formed, with_totals
from outrider.runtime.clock import span
from outrider.runtime.codec import PLAIN, Shape, check_size, decode, encode, shape_for, shape_of
from outrider.runtime.connections import check_connections, lacking
from outrider.runtime.failures import revive, tell
from outrider.runtime.files import clean_path, file_content, task_of
from outrider.runtime.ids import new_id
from outrider.runtime.journal import DOUBT, FAILED, INSIDE, OUTLIVES, Journal, Position
from outrider.runtime.log import log
from outrider.runtime.options import (
    DEFAULT_OPTIONS,
    Length,
    TaskOptions,
    check_ids,
    check_lists,
    check_mappings,
    check_name,
    check_options,
    check_page,
    check_same,
    check_texts,
    check_texts_if_given,
    new_task,
    not_negative,
)
from outrider.runtime.records import FileRecord, MessageRecord, TaskRecord
from outrider.runtime.registry import check_effects, release_tool
from outrider.runtime.schemas import can_be_nested, check_schema, mismatch
from outrider.runtime.services import Services
from outrider.runtime.webhooks.hooks import create_with_webhooks
from outrider.settings import RELEASE_FAILURES, RELEASE_TIMEOUT

if TYPE_CHECKING:
    from outrider.runtime.handles import TaskHandle

T = TypeVar("T")
PART_TYPES = ("text", "data", "file")
Parts: TypeAlias = str | JSONObject | Sequence[JSONObject]
_UNSET: Any = object()
NOTHING: Mapping[str, Any] = MappingProxyType({})
Verb = TypeVar("Verb", bound=Callable[..., Coroutine[Any, Any, Any]])
PAUSE = 0.01
"""Seconds between the verbs of code that was told to leave, and goes on."""


def _verb(method: Verb) -> Verb:
    """Have a verb give way first, where its code was told to leave the attempt before.

    It raises that at once, without ever waiting: code that swallows it in a loop would block the worker's loop, and
    whatever else runs there.
    """

    @wraps(method)
    async def called(self: TaskContext | TaskFiles, *args: Any, **kwargs: Any) -> Any:
        if self._attempt.has_parted or self._attempt.is_over:
            await asyncio.sleep(PAUSE)
        return await method(self, *args, **kwargs)

    return cast(Verb, called)


class TaskContext:
    """What a task's code has of its task. One for each attempt; belongs to the worker's event loop."""

    def __init__(self, attempt: Attempt, scope: Scope | None = None, *, is_threaded: bool = False) -> None:
        self._attempt = attempt
        self._services = attempt.services
        self._scope = scope
        self._is_threaded = is_threaded

    # --- who it is -----------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The task's id."""
        return self._attempt.task_id

    @property
    def session_id(self) -> str:
        """The session that owns the task."""
        return self._attempt.record.session_id

    @property
    def attempt(self) -> int:
        """Which hold of the task this is, from 1."""
        return self._attempt.number

    @property
    def spec(self) -> JSONObject:
        """What the task was asked to do."""
        return self._attempt.record.spec

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody wants the task to stop. Its code has the cancel grace to do so."""
        return self._attempt.is_told_to_stop or self._attempt.is_over

    @property
    def is_replaying(self) -> bool:
        """Whether the code is still on ground that an earlier attempt covered."""
        return self._attempt.journal.is_replaying

    @property
    def log(self) -> Any:
        """A structured logger that names the task and the attempt. A field called `event` is logged as `event_`."""
        return log.bind(task=self.id, attempt=self.attempt)

    @property
    def files(self) -> TaskFiles:
        """The session's files."""
        return TaskFiles(self._attempt)

    def record(self) -> TaskRecord:
        """The task's record, as this attempt last saw it."""
        return TaskRecord.of(evolve(self._attempt.record, live=self._attempt.live))

    # --- what it says, at once and unjournaled -------------------------------------------------------

    def progress(
        self,
        current: float,
        total: float | None = None,
        *,
        unit: str | None = None,
        label: str | None = None,
        steps: Sequence[str] = (),
    ) -> None:
        """Say how far the task has come. Coalesced: the newest wins, at most four events a second."""
        if self._attempt.journal.is_replaying:
            return
        self._check_stop()
        check_lists(steps=steps)
        progress = Progress(
            _number(current),
            None if total is None else _number(total),
            None if unit is None else _short(unit),
            None if label is None else _short(label),
            tuple(_short(each) for each in steps),
        )
        self._attempt.update({"progress": progress}, progress=progress)

    def detail(self, text: str) -> None:
        """Say in a line what the task is doing now."""
        if self._attempt.journal.is_replaying:
            return
        self._check_stop()
        detail = shorten(well_formed(str(text)), self._services.settings.limits.detail)
        self._attempt.update({"state_detail": detail}, state_detail=detail)

    def output(self, text: str, stream: str = "stdout") -> None:
        """Print text. Kept up to the output tail, seen by followers within 50 ms.

        Raises InvalidArguments unless the name of the stream is short and plain.
        """
        check_stream(stream)
        if self._attempt.journal.is_replaying:
            return
        self._check_stop()
        self._attempt.print(stream, str(text))

    def heartbeat(self) -> None:
        """Show a sign of life to the idle timeout."""
        self._check_stop()
        self._attempt.touch()

    # --- steps ---------------------------------------------------------------------------------------

    @overload
    async def step(
        self,
        name: str,
        fn: Callable[..., Coroutine[Any, Any, T]],
        /,
        *args: Any,
        effects: Effects = "idempotent",
        **kwargs: Any,
    ) -> T: ...
    @overload
    async def step(
        self, name: str, fn: Callable[..., T], /, *args: Any, effects: Effects = "idempotent", **kwargs: Any
    ) -> T: ...

    @_verb
    async def step(
        self,
        name: str,
        fn: Callable[..., Any],
        /,
        *args: Any,
        effects: Effects = "idempotent",
        **kwargs: Any,
    ) -> Any:
        """Run `fn` and journal its result under `name`; a resumed task gets the result without running it again.

        The result is JSON (or fits the return annotation of `fn`), and what you get is what was journaled, the
        first time too. A plain function runs in a thread. A parameter called `idempotency_key` is filled in.

        With `effects="once"` the intent is written first. If the process dies between intent and result, the step
        is not repeated: a person decides (retry, skip with a value, fail), or a headless task fails as
        `interrupted`.

        Raises what `fn` raises, unjournaled, and TypeError for a result that is not JSON.
        """
        _check_step(name, fn)
        with self._at("step", name) as position:
            shape = shape_of(fn)
            begun = await self.begin_step(position, effects, shape)
            if begun is not None:
                return shape.read(begun)
            if _wants_key(fn):
                kwargs.setdefault("idempotency_key", f"{self.id}:{position.name}")
            # Verbs that `fn` uses are journaled inside the step, which stands for them once it is done. A `once` step
            # is not parked in its midst: resuming it would run it again.
            scope = Scope(position.name + INSIDE, parks=effects != "once")
            token = SCOPE.set(scope)
            try:
                with self._services.telemetry.step(self._attempt.record, position.name):
                    value, was_cancelled = await self._call(fn, args, kwargs)
            finally:
                SCOPE.reset(token)
                self._attempt.leave(scope)
            value = await self.finish_typed(position, value, shape)
            if was_cancelled:  # a thread cannot be stopped: what it did is kept, and then the code stops
                raise asyncio.CancelledError
            return value

    async def begin_step(self, position: Position, effects: Effects, shape: Shape = PLAIN) -> bytes | None:
        """Return the journaled result of a step; None, with its intent written if need be, when it is to be run."""
        check_effects(effects)
        entry = position.entry
        if entry is not None and entry.verb.endswith(FAILED):
            raise revive(entry.value or b"{}")
        if entry is not None and entry.done:
            return entry.value
        if effects == "once":
            if entry is not None:
                skipped = await self._resolve_doubt(position, entry, shape)
                if skipped is not None:
                    return skipped
            await self._write(position, None, done=False)
        return None

    async def finish_step(self, position: Position, value: object) -> bytes:
        """Journal what a step returned."""
        encoded = encode(value)
        await self._keep(position, encoded)
        return encoded

    async def finish_typed(self, position: Position, value: T, shape: Shape) -> T:
        """Journal what a step returned, and return it as a resumed task will read it."""
        encoded = encode(value)
        try:
            # Read first: what could not be read again would fail on every resume.
            typed: T = value if shape.is_as_read(value) else shape.read(encoded)
        except ValueError as error:
            raise TypeError(f"step {position.name!r} returned what its annotation does not allow: {error}") from error
        await self._keep(position, encoded)
        self._attempt.journal.read(position.name)
        return typed

    async def _keep(self, position: Position, encoded: bytes) -> None:
        limit = self._services.settings.limits.file
        if len(encoded) > limit:
            raise TooLarge.of(f"the result of step {position.name!r}", len(encoded), limit)
        await self._write(position, encoded)

    async def _resolve_doubt(
        self, position: Position, entry: Step, shape: Shape, what: str | None = None
    ) -> bytes | None:
        """A `once` step was begun and it is not known whether it happened. None means: run it again."""
        what = what or f"step {position.name!r} may or may not have happened before attempt {entry.attempt} ended"
        if self._attempt.record.input.headless:
            raise Failure(f"{what}, and it must not happen twice", kind="interrupted", details={"step": position.name})
        answer = await self._ask_at(
            f"{position.name}{DOUBT}{entry.attempt}",
            position.ordinal,
            f"{what}. Retry it, skip it with a value, or fail?",
            kind="approval",
            expected=_doubt_schema(shape),
            deadline=self._services.settings.doubt_deadline,
            on_expiry="fail",
            details={"step": position.name, "attempt": entry.attempt},
        )
        match answer["action"]:
            case "retry":
                return None
            case "skip":
                encoded = encode(answer.get("value"))
                await self._write(position, encoded)
                return encoded
            case _:
                raise Failure(f"{what}; a person chose to fail", kind="interrupted", details={"step": position.name})

    async def _call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, bool]:
        """What a function returned, and whether the code was cancelled while a thread ran it."""
        if inspect.iscoroutinefunction(fn):
            return await fn(*args, **kwargs), False
        value, was_cancelled = await run_thread(self._attempt, partial(fn, *args, **kwargs))
        return (await value if inspect.isawaitable(value) else value), was_cancelled

    # --- questions -----------------------------------------------------------------------------------

    @_verb
    async def ask(
        self,
        prompt: str,
        expected: type[T] | JSONObject | None = None,
        *,
        kind: RequestKind = "question",
        deadline: Length | None = None,
        default: Any = _UNSET,
        on_expiry: ExpiryPolicy | None = None,
        remind_every: Length | None = None,
        details: JSON = None,
        name: str | None = None,
    ) -> T:
        """Ask whoever the session answers to, and wait; the task parks meanwhile and holds no worker.

        `expected` is a type or a JSON Schema; an answer that does not fit is refused and the task never sees it.
        At the deadline: `default` (implied by giving one), `deny` (False), `fail` (`input_expired`), or `remind`,
        which keeps the question open. Without a deadline it stays open.
        """
        if on_expiry is None:
            on_expiry = "remind" if default is _UNSET else "default"
        with self._at("ask", name) as position:
            shape, schema = _expected(expected)
            answer = await self._ask_at(
                position.name,
                position.ordinal,
                prompt,
                kind=kind,
                expected=schema,
                deadline=deadline,
                default=None if default is _UNSET else default,
                on_expiry=on_expiry,
                remind_every=remind_every,
                details=details,
            )
            return cast(T, answer if shape.is_plain else shape.read(encode(answer)))

    @_verb
    async def ask_for_approval(
        self, key: str, prompt: str, details: JSON, parameters: JSONObject | None = None
    ) -> InputRequest | None:
        """Ask a person to approve something, at a position of the runtime's own; denied at the deadline.

        Returns the closed request, whose answer is a boolean, or an object of `approved` and any of `reason`,
        `arguments` and `always`; None where nobody is there to ask. `arguments` have to fit `parameters`, a JSON
        Schema, unless a question has no room for that.
        """
        if self._attempt.record.input.headless:
            return None
        with self._open():
            position = self._attempt.journal.own(key, "ask")
            return await self._request_at(
                position.name,
                position.ordinal,
                prompt,
                kind="approval",
                expected=_approval_schema(parameters, details, self._services.settings.limits.question),
                deadline=self._services.settings.approval_deadline,
                on_expiry="deny",
                remind_before=self._services.settings.approval_nudge,
                details=details,
            )

    @_verb
    async def connect(self, names: Sequence[str]) -> None:
        """See that these connections are there: ask for those that are not, and look again once that is answered.

        Raises Failure of kind `connection_required` where nobody is there to be asked, or nobody connects them.
        """
        asked = 0
        while names:
            asked += 1
            with self._open():
                position = self._attempt.journal.own(f"connect!{asked}", "ask")
                missing: list[str] = []
                if position.entry is None:
                    session = await self._services.views.session(self.session_id)
                    if session is None:
                        raise NotFound.of("session", self.session_id)
                    missing = await lacking(self._services, session, names)
                    if not missing:
                        return
                    if self._attempt.record.input.headless:
                        raise self._unconnected(missing)
                told = ", ".join(missing)
                request = await self._request_at(
                    position.name,
                    position.ordinal,
                    f"This needs to be connected first: {told}. Is it now?",
                    kind="auth",
                    expected={"type": "boolean"},
                    deadline=self._services.settings.connection_deadline,
                    on_expiry="deny",
                    remind_before=self._services.settings.approval_nudge,
                    details={"connections": missing},
                )
                if request.answer is not True:
                    details = request.details if isinstance(request.details, Mapping) else {}
                    raise self._unconnected(details.get("connections", ()))

    def _unconnected(self, names: Sequence[str]) -> Failure:
        told = ConnectionRequired.lacking(names)
        return Failure(told.message, kind="connection_required", details=told.details)

    @_verb
    async def ask_own(
        self,
        key: str,
        prompt: str,
        *,
        expected: JSONObject | None,
        details: JSON,
        deadline: Length | None,
        on_expiry: ExpiryPolicy,
        default: JSON,
    ) -> JSON:
        """Ask a question as `ask` does, at a position of the runtime's own."""
        with self._open():
            position = self._attempt.journal.own(key, "ask")
            return await self._ask_at(
                position.name,
                position.ordinal,
                prompt,
                kind="question",
                expected=expected,
                deadline=deadline,
                default=default,
                on_expiry=on_expiry,
                details=details,
            )

    async def _ask_at(self, position: str, ordinal: int, prompt: str, **how: Any) -> JSON:
        return (await self._request_at(position, ordinal, prompt, **how)).answer

    async def _request_at(
        self,
        position: str,
        ordinal: int,
        prompt: str,
        *,
        kind: RequestKind,
        expected: JSONObject | None,
        deadline: Length | None,
        on_expiry: ExpiryPolicy,
        default: object = None,
        remind_every: Length | None = None,
        remind_before: Length | None = None,
        details: JSON = None,
    ) -> InputRequest:
        """The closed request at a position, asked if it was not, waited for while it is open."""
        entry = self._attempt.journal.at(position)
        if entry is None:
            request = self._new_request(
                position, prompt, kind, expected, deadline, on_expiry, default, remind_every, remind_before, details
            )
            step = self._row(position, ordinal, "ask", encode({"request_id": request.id}))
            await self._move(events.Asked(self.attempt, request, step, self._attempt.take_live()))
            self._attempt.journal.note(step)
            request_id = request.id
        else:
            request_id = decode(entry.value or b"{}")["request_id"]

        async def look() -> InputRequest | None:
            if self._attempt.record.core.request(request_id) is not None:
                return None
            found = await self._services.views.request(request_id)
            return None if found is None or found.status == "pending" else found

        closed = await self._attempt.wait(WaitForAnswer(request_id), look)
        if closed.status == "withdrawn":
            raise Superseded(self.id, self.attempt)
        if closed.status == "expired" and closed.on_expiry == "fail":  # the task is told to stop; say why meanwhile
            raise Failure(f"nobody answered in time: {closed.prompt}", kind="input_expired")
        return closed

    def _new_request(
        self,
        position: str,
        prompt: str,
        kind: RequestKind,
        expected: JSONObject | None,
        deadline: Length | None,
        on_expiry: ExpiryPolicy,
        default: object,
        remind_every: Length | None,
        remind_before: Length | None,
        details: JSON,
    ) -> InputRequest:
        now = self._services.clock.now()
        check_texts(prompt=prompt)
        if kind not in get_args(RequestKind) or on_expiry not in get_args(ExpiryPolicy):
            raise InvalidArguments(f"no question is of kind {kind!r:.100} with on_expiry={on_expiry!r:.100}")
        if expected is not None:
            check_schema(expected)
        limit = self._services.settings.limits.question
        default, details, _ = decode(check_size("the question with its details", (default, details, expected), limit))
        if on_expiry == "default" and (problem := mismatch(default, expected)):
            raise InvalidAnswer(f"the default does not fit what is expected: {problem}")
        if on_expiry == "deny" and (problem := mismatch(False, expected)):
            raise InvalidAnswer(f"a denial, which is False, does not fit what is expected: {problem}")
        if remind_every is not None and span(remind_every) < SECOND:
            raise InvalidArguments("remind_every is a second or more")
        deadline_at = None if deadline is None else now + not_negative("deadline", deadline)
        remind_at = None
        if deadline_at is not None and remind_before is not None:
            remind_at = max(now, deadline_at - span(remind_before))
        elif remind_every is not None:
            remind_at = now + span(remind_every)
        return InputRequest(
            id=new_id("req"),
            task_id=self.id,
            kind=kind,
            prompt=shorten(prompt, self._services.settings.limits.message // 4),
            position=position,
            created_at=now,
            expected=expected,
            details=details,
            deadline_at=deadline_at,
            on_expiry=on_expiry,
            default=default,
            remind_every=None if remind_every is None else span(remind_every),
            remind_at=remind_at,
        )

    # --- time ----------------------------------------------------------------------------------------

    @_verb
    async def sleep(self, length: Length, *, name: str | None = None) -> None:
        """Sleep for a timedelta or a number of seconds. Longer sleeps park the task; the wake time is journaled."""
        with self._at("sleep", name) as position:
            if position.entry is None:
                until = self._services.clock.now() + span(length)
                await self._write(position, encode({"until": until}))
            else:
                until = decode(position.entry.value or b"{}")["until"]

            async def look() -> bool | None:
                return True if self._services.clock.now() >= until else None

            await self._attempt.wait(WaitUntil(until), look)

    # --- other tasks ---------------------------------------------------------------------------------

    @_verb
    async def spawn(
        self,
        tool: str | Callable[..., Any],
        given: Mapping[str, Any] = NOTHING,
        /,
        *,
        options: TaskOptions = DEFAULT_OPTIONS,
        kind: str = "background_tool",
        position: str | None = None,
        **arguments: Any,
    ) -> TaskHandle:
        """Start a child task of this one, in the same session. A resumed task gets the same child.

        `options.name` names the child; `position` names the journal position. For kinds other than
        `background_tool` the arguments are the spec. Arguments may be `given` as a mapping too, and those that are
        called `options`, `kind` or `position` have to be.
        """
        with self._at("spawn", position) as place:
            if place.entry is not None:
                child_id = decode(place.entry.value or b"{}")["task_id"]
                child = await self._services.views.task(child_id)
                if child is None:
                    raise NotFound.of("task", child_id)
                return self._handle(child)
            check_mappings(given=given)
            return self._handle(await self._create_child(place, tool, kind, options, {**given, **arguments}))

    async def _create_child(
        self,
        place: Position,
        tool: str | Callable[..., Any],
        kind: str,
        options: TaskOptions,
        arguments: Mapping[str, Any],
    ) -> Task:
        check_mappings(arguments=arguments)
        check_options(options, self._services.settings.limits)
        registry, parent = self._services.registry, self._attempt.record
        spec = tool_spec(tool, arguments) if kind == "background_tool" else dict(arguments)
        checked = registry.executor(kind).check(spec)
        session = await self._services.views.session(parent.session_id)
        if session is None:
            raise NotFound.of("session", parent.session_id)
        if checked.check_session is not None:
            checked.check_session(session)
        if checked.connections:
            await check_connections(self._services, session, checked.connections)
        if not options.origin and parent.input.origin:
            options = evolve(options, origin=parent.input.origin)
        new = new_task(
            kind, checked, session, options, self._services.clock.now(), self._services.settings.limits, self.id
        )
        step = self._row(place.name, place.ordinal, "spawn", encode({"task_id": new.id}))
        if self._attempt.journal.owed:
            await self._journal()
        with self._attempt.storing():
            (made,) = await create_with_webhooks(self._services, [new], [options.webhooks], steps=(step,))
        if isinstance(made, Existing):  # of an idempotency key: the journal still has to know it
            check_same(new.input, made.task.id, made.task.input)
            step = self._row(place.name, place.ordinal, "spawn", encode({"task_id": made.task.id}))
            await self._journal(step)
        self._attempt.journal.note(step)
        return made.task

    @_verb
    async def wait_for(
        self,
        tasks: Iterable[TaskHandle | str],
        *,
        any: bool = False,
        timeout: Length | None = None,
        name: str | None = None,
    ) -> list[TaskRecord]:
        """Wait until all of these tasks have ended (or one, with `any`), parked meanwhile; return their records.

        With a timeout, returns when it is over, whatever has ended by then. The records are in the order given; a
        resumed task gets those it got the first time. A task that is named twice is waited for once. Raises NotFound
        for one that does not exist, or does not any more.
        """
        return await self._wait_for(tasks, any=any, timeout=timeout, name=name)

    async def _wait_for(
        self,
        tasks: Iterable[TaskHandle | str],
        *,
        any: bool,
        timeout: Length | None,
        name: str | None = None,
        on_question: bool = False,
    ) -> list[TaskRecord]:
        check_lists(tasks=tasks)
        ids: tuple[Any, ...] = tuple(getattr(task, "id", task) for task in tasks)
        check_ids(tasks=ids)
        with self._at("wait_for", name) as position:
            if self.id in ids:
                raise InvalidArguments("a task cannot wait for itself")
            held = decode(position.entry.value or b"{}") if position.entry is not None else {}
            if "ended" in held:
                return await self._waited_for(ids, held)
            until = held.get("until")
            if timeout is not None and until is None:
                until = self._services.clock.now() + span(timeout)
                await self._write(position, encode({"until": until}), done=False)

            seen: dict[str, int] = {}

            async def look() -> list[Task] | None:
                found = {task.id: task for task in await self._services.views.tasks(ids)}
                seen.update((task.id, task.core.version) for task in found.values())
                for task_id in ids:
                    if task_id not in found:
                        raise NotFound.of("task", task_id)
                ended = sum(task.is_terminal for task in found.values())
                late = until is not None and self._services.clock.now() >= until
                asked = (request.kind for task in found.values() for request in task.core.requests)
                asks = on_question and sum(kind == "question" for kind in asked)
                if late or asks or ended == len(found) or (any and ended):
                    return [found[task_id] for task_id in ids]
                return None

            def wait() -> WaitForTasks:
                return WaitForTasks(tuple(dict.fromkeys(ids)), not any, seen=dict(seen) if on_question else None)

            found = await self._attempt.wait(wait, look, ids, until)
            records = [TaskRecord.of(task) for task in found]
            live = {record.id: record for record in records if not record.is_terminal}
            ended = [record.id for record in records if record.is_terminal]
            await self._write(position, encode({"ended": ended, "live": live} if live else {"ended": ended}))
            return records

    async def _waited_for(self, ids: Sequence[str], held: JSONObject) -> list[TaskRecord]:
        """What a wait came to when it ended: those that had ended stand as they are, the others stood like this."""
        live = {task_id: TaskRecord.model_validate(record) for task_id, record in held.get("live", {}).items()}
        ended = {task.id: TaskRecord.of(task) for task in await self._services.views.tasks(held["ended"])}
        for task_id in held["ended"]:
            if task_id not in ended:  # deleted since
                raise NotFound.of("task", task_id)
        return [live.get(task_id) or ended[task_id] for task_id in ids]

    # --- messages ------------------------------------------------------------------------------------

    @_verb
    async def post(self, content: Parts, *, in_reply_to: str | None = None, name: str | None = None) -> MessageRecord:
        """Send the session a message: text, a data object, or a list of parts. Sent once, however often resumed."""
        with self._at("post", name) as position:
            if position.entry is not None:
                return MessageRecord.model_validate_json(position.entry.value or b"{}")
            check_texts_if_given(in_reply_to=in_reply_to)
            message = Message(
                id=new_id("tmsg"),
                task_id=self.id,
                session_id=self.session_id,
                direction="outbound",
                parts=message_parts(content, self._services.settings.limits.message),
                created_at=self._services.clock.now(),
                sender=self.id,
                in_reply_to=in_reply_to,
            )
            record = MessageRecord.of(message)
            step = self._row(position.name, position.ordinal, "post", record.model_dump_json().encode())
            await self._move(events.Posted(self.attempt, message, step))
            self._attempt.journal.note(step)
            return record

    @_verb
    async def messages(
        self, *, wait: bool = True, timeout: Length | None = None, name: str | None = None
    ) -> list[MessageRecord]:
        """Return the messages that the session sent since the last call, waiting for one if there is none.

        With `wait=False`, or at the timeout, the list may be empty. A resumed task gets the same messages.
        """
        with self._at("messages", name) as position:
            held = decode(position.entry.value or b"{}") if position.entry is not None else {}
            seen, last = self._messages_before(position.ordinal)
            if "ids" in held:
                ids = held["ids"]
                taken = await self._services.views.messages(self.id, direction="inbound", after=last, limit=len(ids))
                return [MessageRecord.of(message) for message in taken if message.id in ids]
            until = self._services.clock.now() if not wait else held.get("until")
            if wait and timeout is not None and until is None:
                until = self._services.clock.now() + span(timeout)
                await self._write(position, encode({"until": until}), done=False)

            async def look() -> list[Message] | None:
                found = await self._services.views.messages(self.id, direction="inbound", after=last)
                late = until is not None and self._services.clock.now() >= until
                return list(found) if found or late else None

            found = await self._attempt.wait(WaitForMessage(seen), look, (), until)
            await self._write(position, encode({"ids": [message.id for message in found]}))
            return [MessageRecord.of(message) for message in found]

    def _messages_before(self, ordinal: int) -> tuple[int, str | None]:
        """How many messages the code took before a position, and the last of them."""
        taken = [
            message_id
            for row in self._attempt.journal.of("messages")
            if row.ordinal < ordinal
            for message_id in decode(row.value or b"{}").get("ids", ())
        ]
        return len(taken), taken[-1] if taken else None

    # --- what it holds -------------------------------------------------------------------------------

    @_verb
    async def hold(self, resource: str, resource_id: str) -> None:
        """Hold a resource: when the task has ended, however it did, the hook for `resource` is called with that id.

        Durable when it returns, so call it before the resource is taken. The hook is called at least once, by any
        worker that knows it, and again while it fails. Raises UnknownName where no such hook is registered.
        """
        check_texts(resource=resource, resource_id=resource_id)
        held = f"{resource}:{resource_id}"
        self._check_name(held)
        with self._open():
            # A position of its own, outside of the code's order: a fork, which has none of these, holds anew.
            place = self._attempt.journal.own(f"hold{DOUBT}{held}", "hold")
            if place.entry is None:
                await self._create_release(place, resource, resource_id)
            links = self._attempt.live.links
            if held not in links.resource_ids:
                self.report(links=evolve(links, resource_ids=(*links.resource_ids, held)))

    async def _create_release(self, place: Position, resource: str, resource_id: str) -> None:
        """A task that waits for the end of this one, and is nobody's child: no cancel reaches it."""
        spec = {"tool": release_tool(resource), "arguments": {"resource_id": resource_id}}
        checked = self._services.registry.executor("background_tool").check(spec)
        session = await self._services.views.session(self.session_id)
        if session is None:
            raise NotFound.of("session", self.session_id)
        options = TaskOptions(
            name=shorten(f"release {resource} {resource_id}", 120),
            depends_on=(self.id,),
            needs=checked.needs or split_route(self._attempt.record.input.route)[1],
            run_if_dependency_fails=True,
            max_failures=RELEASE_FAILURES,
            run_timeout=RELEASE_TIMEOUT,
        )
        new = new_task(
            "background_tool", checked, session, options, self._services.clock.now(), self._services.settings.limits
        )
        step = self._row(place.name, place.ordinal, "hold", encode({"task_id": new.id}))
        with self._attempt.storing():
            await self._services.lifecycle.create([new], steps=(step,))
        self._attempt.journal.note(step)

    # --- what it leaves ------------------------------------------------------------------------------

    @_verb
    async def artifact(
        self,
        name: str,
        content: bytes | str | None = None,
        *,
        type: str = "file",
        path: str | None = None,
        url: str | None = None,
        media_type: str | None = None,
        position: str | None = None,
    ) -> Artifact:
        """Leave something behind: content, kept as a file of the session, or a path or URL where it is.

        Content goes to `path`, by default a folder of the task. Raises TooLarge for content over the file limit,
        InvalidPath for a path that cannot be written: `result.json` is where the task's own result will stand.
        """
        with self._at("artifact", position) as place:
            if place.entry is not None:
                return Artifact(**decode(place.entry.value or b"{}"))
            check_texts(name=name, type=type)
            check_texts_if_given(url=url, media_type=media_type)
            file = None
            size = None
            if content is not None:
                path = _free_path(f"/.tasks/{self.id}/{name}" if path is None else path, self.id)
                file = file_write(self._attempt, path, content, media_type)
                size, media_type = len(file.content), file.media_type
            elif path is not None:
                path = clean_path(path, task_id=self.id)
            limits = self._services.settings.limits
            check_size("the description of the artifact", (name, type, url, media_type), limits.message)
            artifact = Artifact(name, type, path, url, media_type, size)
            step = self._row(place.name, place.ordinal, "artifact", encode(artifact))
            await self._move(events.Produced(self.attempt, artifact, file, step))
            self._attempt.journal.note(step)
            return artifact

    # --- for executors -------------------------------------------------------------------------------

    @property
    def services(self) -> Services:
        """The collaborators of the runtime."""
        return self._services

    @property
    def journal(self) -> Journal:
        """The journal of this attempt."""
        return self._attempt.journal

    @property
    def live(self) -> Live:
        """What the task says of itself, as of now."""
        return self._attempt.live

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The accounts that the task spends from."""
        return taps_of(self._attempt.record)

    @_verb
    async def attend(
        self, tasks: Sequence[str], *, any: bool, timeout: Length, on_question: bool
    ) -> Sequence[TaskRecord]:
        """Do as `wait_for` does, and with `on_question` until one of them asks something, too; what is for a person to
        approve is no such thing.
        """
        return await self._wait_for(tasks, any=any, timeout=timeout, on_question=on_question)

    @property
    def messages_sent(self) -> int:
        """How many messages were sent to the task, as far as this attempt knows."""
        return self._attempt.record.core.messages

    async def charge(self, charge: Charge) -> ChargeVerdict:
        """Take down a charge; raises Superseded where the attempt is over."""
        with self._attempt.storing():
            (verdict,) = await self._services.ledger.charge([charge])
        if isinstance(verdict, Lapsed):
            self._attempt.supersede()
            raise Superseded(self.id, self.attempt)
        return verdict

    async def pause(self, until: Instant) -> None:
        """Wait until a moment, parked if that is long; not journaled, so whoever calls it knows what it waits for."""
        with self._open():

            async def look() -> bool | None:
                return True if self._services.clock.now() >= until else None

            await self._attempt.wait(WaitUntil(until), look)

    @property
    def waits_for_children(self) -> bool:
        """Whether it is not over while what it has started lives."""
        return self._attempt.record.input.on_open_children == "wait"

    async def open_children(self) -> tuple[str, ...]:
        """The tasks that this one has started, which live and would be stopped with it."""
        children = await self._services.views.children(self.id)
        return tuple(child.id for child in children if not child.is_terminal and not child.input.detached)

    async def watch(self, tasks: Sequence[str], session_id: str, messages: int) -> None:
        """Wait until one of these tasks has ended, something is in the inbox of that session, which this drives, or it
        was sent more than so many messages.

        Parked where that is long; not journaled, so whoever calls it knows what it waits for.
        """
        with self._open():

            async def look() -> bool | None:
                views = self._services.views
                if self.messages_sent > messages or await views.inbox(session_id, limit=1):
                    return True
                found = await views.tasks(tasks)
                return len(found) < len(tasks) or any(task.is_terminal for task in found) or None

            beside = WaitForNews(self._attempt.record.core.rung), WaitForMessage(messages)
            await self._attempt.wait(WaitForTasks(tuple(tasks), False), look, tasks, beside=beside)

    @_verb
    async def end_of(self, task_id: str) -> Task | None:
        """Wait until a task has ended, and return it as it then stands; None for one that was deleted.

        Parked where that is long; not journaled, so whoever calls it knows what it waits for.
        """
        with self._open():

            async def look() -> tuple[Task | None] | None:
                found = await self._services.views.task(task_id)
                return (found,) if found is None or found.is_terminal else None

            (found,) = await self._attempt.wait(WaitForTasks((task_id,)), look, (task_id,))
            return found

    async def start(self, new: NewTask, position: str, entry: InboxEntry) -> Task | None:
        """Make a task, what it is to hear in the inbox of its session, and the journal row that names it, in one.

        None where there is one of its key already: nothing is written then. Raises NotFound, SessionClosed.
        """
        own = self._attempt.journal.own(position, "start")
        row = self._row(own.name, own.ordinal, own.verb, encode({"task_id": new.id}))
        with self._open(), self._attempt.storing():
            (made,) = await self._services.lifecycle.create([new], steps=(row,), inbox=(entry,))
        if isinstance(made, Existing):
            return None
        self._attempt.journal.note(row)
        return made.task

    async def remember(self, position: str, verb: str, value: bytes) -> Step:
        """Journal at a position of the executor's own what is no progress: failures go on counting."""
        own = self._attempt.journal.own(position, verb)
        row = self._row(own.name, own.ordinal, own.verb, value, done=False)
        with self._attempt.storing():
            held = all(await self._services.ledger.journal([row]))
        if not held:
            self._attempt.supersede()
            raise Superseded(self.id, self.attempt)
        self._attempt.journal.note(row, is_progress=False)
        return row

    @property
    def budget(self) -> JSONObject | None:
        """What it may spend, with what its session and its tree may; see `meters.taps_of`."""
        return self._attempt.record.input.budget

    @property
    def result_schema(self) -> JSONObject | None:
        """What a result must fit."""
        return self._attempt.record.input.result_schema

    @property
    def origin(self) -> JSONObject:
        """What the task was started by."""
        return self._attempt.record.input.origin

    @property
    def rung(self) -> int:
        """How often this turn was told that something came into its session's inbox."""
        return self._attempt.record.core.rung

    def looked(self, seen: int, *, leaves: bool) -> None:
        """Say that the inbox was looked into when the turn had been rung so often, and what was there is taken.

        Of what it `leaves` there the next turn will hear.
        """
        self._attempt.seen, self._attempt.leaves = seen, leaves

    @property
    def is_alone(self) -> bool:
        """Whether nothing but the main line of the code is under way."""
        return self._attempt.is_alone

    def within(self, scope: Scope) -> TaskContext:
        """The context for a part of the code that has an order of its own."""
        return TaskContext(self._attempt, scope)

    def busy(self) -> AbstractContextManager[None]:
        """Say that an operation is open that is no wait, so that the task does not park meanwhile."""
        return self._attempt.busy()

    def storing(self) -> AbstractContextManager[None]:
        """Say that what is raised for want of a store is no failure of the task."""
        return self._attempt.storing()

    def report(self, **live: Any) -> None:
        """Set live values, such as `links`. The log is told, or it would not fold to the record."""
        self._attempt.update(live, **live)

    def print_live(self, text: str, stream: str = "stdout") -> None:
        """Print text that the caller knows to be new, whatever the journal holds."""
        self._attempt.print(stream, text)

    async def write_own(self, position: str, verb: str, value: bytes) -> None:
        """Journal something at a position of the executor's own."""
        await self._write(self._attempt.journal.own(position, verb), value)

    async def outlive(self, position: str, value: bytes) -> Step:
        """Journal what goes on without this worker, at a position of the executor's own.

        Until a row of that position is done, a lost worker is no failure. It is no progress either: failures go on
        counting.
        """
        return await self.remember(position, OUTLIVES, value)

    async def produce(
        self, name: str, content: bytes | None = None, *, url: str | None = None, size: int | None = None
    ) -> None:
        """Leave an artifact that is not journaled: whoever does it again replaces the one of that name.

        Raises TooLarge, and InvalidPath for a name that cannot be that of a file.
        """
        file = path = media_type = None
        if content is not None:
            path = _free_path(f"/.tasks/{self.id}/artifacts/{name.lstrip('/')}", self.id)
            file = file_write(self._attempt, path, content, None)
            media_type = file.media_type
        check_size("the description of the artifact", (name, url), self._services.settings.limits.message)
        await self._move(events.Produced(self.attempt, Artifact(name, "file", path, url, media_type, size), file))

    async def append(self, page: Page) -> None:
        """Append a finished iteration to a transcript, after the one that was to be the last."""
        await self.append_last()
        await self._append(page)
        self._note_page(page)

    def end_with(self, page: Page) -> None:
        """Have a finished iteration appended in one transaction with the end of this attempt, whatever that is.

        Nothing else is written of this task before, but output and progress; see `append_last`.
        """
        self._attempt.page = page
        self._note_page(page)

    async def append_last(self) -> None:
        """Append what `end_with` kept: it was not the end, or something is to rest on it."""
        page, self._attempt.page = self._attempt.page, None
        if page is None:
            return
        try:
            await self._append(evolve(page, live=with_totals(self._attempt.live, page.live)))
        except asyncio.CancelledError:
            raise  # it was handed over by then, and is written: not once more with the end
        except BaseException:
            self._attempt.page = page
            raise

    @property
    def last_page(self) -> Page | None:
        """What `end_with` keeps."""
        return self._attempt.page

    async def _append(self, page: Page) -> None:
        with self.busy(), self.storing(), self._attempt.turning(page):
            if not await self._services.ledger.append(page):
                raise Superseded(self.id, self.attempt)

    def _note_page(self, page: Page) -> None:
        if page.forget is not None:
            self._attempt.journal.forget(page.forget)
        self._attempt.journal.has_grown = True
        for step in page.steps:
            self._attempt.journal.note(step)
        self._attempt.touch()

    # --- underneath ----------------------------------------------------------------------------------

    @contextmanager
    def _at(self, verb: str, name: str | None) -> Iterator[Position]:
        """A verb is open, at its position. What it raised there before, and the code handled, it raises again."""
        with self._open():
            position = self._enter(verb, name)
            if position.entry is not None and position.entry.verb.endswith(FAILED):
                raise revive(position.entry.value or b"{}")
            try:
                yield position
            except Exception as error:
                self._attempt.journal.failed(position, self._branch, error)
                raise
            except asyncio.CancelledError as error:
                # As by a time-out of the code's own. If it goes on, it has been here all the same.
                if verb == "step":
                    self._attempt.journal.failed(position, self._branch, error)
                raise

    def _open(self) -> AbstractContextManager[None]:
        return self._attempt.busy(SCOPE.get() or self._scope)

    def _enter(self, verb: str, name: str | None) -> Position:
        attempt, branch = self._attempt, self._branch
        scope = SCOPE.get() or self._scope
        if name is not None:
            self._check_name(name)
        position = attempt.journal.enter(
            verb, name, alone=attempt.is_alone, scope="" if scope is None else scope.name, branch=branch
        )
        if attempt.journal.has_failures:
            attempt.journal.go_on(lambda failed: attempt.has_handled(failed, branch))
        return position

    def _check_name(self, name: str) -> None:
        check_name("the name of a position", name, self._services.settings.limits.name)
        if DOUBT in name or INSIDE in name:
            raise InvalidArguments(f"the name {name!r} has {DOUBT!r} or {INSIDE!r} in it, which mark positions of ours")

    @property
    def _branch(self) -> asyncio.Task[Any] | None:
        """The asyncio task that this is called in, None for the main line of the code."""
        current = asyncio.current_task()
        return None if self._is_threaded or current is self._attempt.runner else current

    def _check_stop(self) -> None:
        self._attempt.check()

    def _row(self, position: str, ordinal: int, verb: str, value: bytes | None, done: bool = True) -> Step:
        return Step(self.id, position, ordinal, verb, self.attempt, self._services.clock.now(), value, done)

    async def _write(self, position: Position, value: bytes | None, *, done: bool = True) -> None:
        await self._journal(self._row(position.name, position.ordinal, position.verb, value, done))

    async def _journal(self, *steps: Step) -> None:
        rows = [*self._handled(), *steps]
        with self._attempt.storing():
            held = all(await self._services.ledger.journal(rows))
        if not held:
            self._attempt.supersede()
            raise Superseded(self.id, self.attempt)
        for row in rows:
            self._attempt.journal.note(row)

    def _handled(self) -> list[Step]:
        """Rows for the errors that the code has handled: it went on after them, so it must meet them again."""
        return [self._handled_row(at, error) for at, error in self._attempt.journal.owed]

    def _handled_row(self, at: Position, error: Exception | asyncio.CancelledError) -> Step:
        if isinstance(error, Exception):
            return self._row(at.name, at.ordinal, at.verb + FAILED, tell(error))
        return self._row(at.name, at.ordinal, at.verb, None, done=False)  # to be run again

    async def _move(self, event: events.HolderEvent) -> None:
        if self._attempt.journal.owed:
            await self._journal()
        with self._attempt.storing():
            moved = await self._services.lifecycle.move(self._attempt.record, event)
        self._attempt.take(moved)

    def _handle(self, task: Task) -> TaskHandle:
        from outrider.runtime.handles import TaskHandle

        return TaskHandle(self._services, task)


@dataclass(frozen=True, slots=True)
class TaskFiles:
    """The files of the task's session. Paths are absolute; what a stale attempt writes is refused."""

    _attempt: Attempt

    async def read(self, path: str) -> bytes:
        """Return a file's content. Raises NotFound."""
        attempt = self._attempt
        clean = clean_path(path, task_id=task_of(path))
        content = await attempt.services.views.file(attempt.record.session_id, clean)
        if content is None:
            raise NotFound.of("file", clean)
        return content

    async def read_text(self, path: str) -> str:
        """Return a file's content as UTF-8 text."""
        return (await self.read(path)).decode()

    @_verb
    async def write(self, path: str, content: bytes | str, media_type: str | None = None) -> str:
        """Write a file whole, replacing one that is there; return its path in normal form.

        Raises TooLarge, and InvalidPath for a path that cannot be written; see `TaskContext.artifact`.
        """
        attempt = self._attempt
        clean = _free_path(path, attempt.task_id)
        with attempt.busy(), attempt.storing():
            file = file_write(attempt, clean, content, media_type)
            if not await attempt.services.ledger.write_file(file, (attempt.task_id, attempt.number)):
                attempt.supersede()
                raise Superseded(attempt.task_id, attempt.number)
        return clean

    async def list(self, prefix: str = "/", *, after: str | None = None, limit: int = 1000) -> list[FileRecord]:
        """Return the files below a prefix, in the order of their paths, after the one of that path."""
        check_texts(prefix=prefix)
        check_texts_if_given(after=after)
        views, session_id = self._attempt.services.views, self._attempt.record.session_id
        found = await views.files(session_id, prefix=prefix, after=after, limit=check_page(limit))
        return [FileRecord.of(info) for info in found]


def file_write(attempt: Attempt, path: str, content: bytes | str, media_type: str | None) -> FileWrite:
    """Make a file of the task's. Raises InvalidArguments, TooLarge."""
    services = attempt.services
    raw, kind = file_content(path, content, media_type, services.settings.limits.file)
    return FileWrite(attempt.record.session_id, path, raw, kind, services.clock.now(), attempt.task_id)


def _free_path(path: str, task_id: str) -> str:
    """Return the normal form of a path that a task may write to. Raises InvalidPath."""
    clean = clean_path(path, task_id=task_id)
    if clean == result_path(task_id):
        raise InvalidPath(f"{clean!r} is where the task's result will stand; choose another name")
    return clean


def message_parts(content: Parts, limit: int) -> tuple[JSONObject, ...]:
    """Return content as message parts of type text, data or file. Raises InvalidArguments, TooLarge."""
    parts: tuple[Any, ...]
    if isinstance(content, str):
        parts = ({"type": "text", "text": content},)
    elif isinstance(content, Mapping):
        parts = (content if content.get("type") in PART_TYPES else {"type": "data", "data": content},)
    else:
        parts = tuple(cast("Any", content)) if isinstance(content, list | tuple) else (content,)
    if not all(isinstance(part, Mapping) and part.get("type") in PART_TYPES for part in parts):
        raise InvalidArguments("a message is text, an object, or a list of parts of type text, data or file")
    try:
        encoded = encode(parts)
    except TypeError as error:
        raise InvalidArguments(f"the message is not JSON: {error}") from None
    if len(encoded) > limit:
        raise TooLarge.of("the message", len(encoded), limit)
    return tuple(decode(encoded))


def tool_spec(tool: str | Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spec of a `background_tool`. Raises InvalidArguments."""
    check_mappings(arguments=arguments)
    return {
        "tool": tool if isinstance(tool, str) else getattr(tool, "__name__", str(tool)),
        "arguments": dict(arguments),
    }


def _number(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidArguments(f"progress takes numbers, and {value!r:.100} is none")
    return number


def _short(text: object) -> str:
    return shorten(well_formed(str(text)), 256)


def _check_step(name: object, fn: object) -> None:
    check_texts(**{"the name of a step": name})
    if not callable(fn):
        raise InvalidArguments(
            f"step {name!r:.100} is given a function and its arguments, not what it returned: {fn!r:.100}"
        )


def _expected(expected: Any) -> tuple[Shape, JSONObject | None]:
    """What a question expects, a type or a JSON Schema, as both. Raises InvalidArguments for what is neither."""
    if expected is None or isinstance(expected, Mapping):
        return PLAIN, expected
    shape = shape_for(expected)
    try:
        return shape, shape.schema() or None
    except Exception as error:  # noqa: BLE001 - pydantic's, of several families, or that of a type's own code
        raise InvalidArguments(f"{expected!r:.100} is neither a type nor a JSON Schema: {error!s:.200}") from None


def _wants_key(fn: Callable[..., Any]) -> bool:
    code = getattr(fn, "__code__", None)
    if code is not None:  # a plain function: its names are at hand
        return "idempotency_key" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    try:
        return "idempotency_key" in inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return False


SCOPE: ContextVar[Scope | None] = ContextVar("outrider_scope", default=None)
"""The inside of the step that is running, if one is."""


def _approval_schema(parameters: JSONObject | None, details: JSON, limit: int) -> JSONObject:
    """What a person may answer to an approval: arguments in place of others have to fit the tool's parameters.

    Of those any object will do where their schema is none that can stand within another, or is too large to go along.
    """
    plain = _approval({"type": "object"})
    if parameters is None or not can_be_nested(parameters):
        return plain
    arguments = {word: value for word, value in parameters.items() if word != "$defs"} | {"type": "object"}
    schema = _approval(arguments)
    if "$defs" in parameters:  # what refers to them counts from the top
        schema = {**schema, "$defs": parameters["$defs"]}
    try:
        check_schema(schema)
    except InvalidSchema:
        return plain
    return schema if len(encode((None, details, schema))) <= limit else plain


def _approval(arguments: JSONObject) -> JSONObject:
    return {
        "anyOf": [
            {"type": "boolean"},
            {
                "type": "object",
                "properties": {
                    "approved": {"type": "boolean"},
                    "reason": {"type": "string"},
                    "arguments": arguments,
                    "always": {"type": "boolean"},
                },
                "required": ["approved"],
                "additionalProperties": False,
            },
        ]
    }


def _doubt_schema(shape: Shape) -> JSONObject:
    """What a person may answer to a doubt: a value to skip with has to fit what the step returns."""
    try:
        value = shape.schema()
    except Exception:  # noqa: BLE001 - a type that has no schema cannot be checked here
        value = {}
    definitions = value.pop("$defs", None)
    schema: dict[str, JSON] = {
        "type": "object",
        "properties": {"action": {"enum": ["retry", "skip", "fail"]}, "value": value},
        "required": ["action"],
        "additionalProperties": False,
    }
    if value:
        schema["if"] = {"properties": {"action": {"const": "skip"}}}
        schema["then"] = {"required": ["value"]}
    return schema if definitions is None else {**schema, "$defs": definitions}


# --- synchronous code ----------------------------------------------------------------------------------


async def in_thread(attempt: Attempt, fn: Callable[[], T]) -> T:
    """Run a plain function in a thread of the worker, with the context of the attempt.

    A thread cannot be stopped from outside. When the attempt is told to stop, this waits for the function to
    notice (its next verb raises then); one that ends by returning has returned. Once the record has settled
    without it, the thread is abandoned.
    """
    value, _ = await run_thread(attempt, fn)
    return value


async def run_thread(attempt: Attempt, fn: Callable[[], T]) -> tuple[T, bool]:
    """`in_thread`, which also tells whether the waiting code was cancelled meanwhile."""
    # What the function raises travels as a value: a future refuses some of it, StopIteration for one.
    future = asyncio.get_running_loop().run_in_executor(attempt.pool, copy_context().run, _outcome_of, attempt, fn)
    was_cancelled = False
    attempt.threads += 1
    future.add_done_callback(attempt.thread_ended)
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            was_cancelled = True
            if attempt.is_over:
                raise
    value, error = future.result()
    if error is not None:
        raise error
    return value, was_cancelled


def _outcome_of(attempt: Attempt, fn: Callable[[], T]) -> tuple[Any, BaseException | None]:
    try:
        attempt.check()  # there may have been no thread for it until now
        return fn(), None
    except BaseException as error:  # noqa: BLE001 - raised again by who waits
        return None, error


class SyncTaskContext:
    """The same verbs for plain functions, which run in a thread: each blocks until it is done.

    When the task is told to stop, the next verb raises `asyncio.CancelledError`, and so does one that waits; once.
    """

    def __init__(self, task: TaskContext, loop: asyncio.AbstractEventLoop) -> None:
        self._task = TaskContext(task._attempt, task._scope, is_threaded=True)
        self._loop = loop
        self._is_told = False

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._task, name)
        if inspect.iscoroutinefunction(value):
            return partial(self._run, value)
        if callable(value) and inspect.ismethod(value):
            return partial(self._say, value)
        return _SyncFiles(self, value) if isinstance(value, TaskFiles) else value

    def step(self, name: str, fn: Callable[..., T], /, *args: Any, effects: Effects = "idempotent", **kwargs: Any) -> T:
        """Run `fn` in this thread and journal its result; see `TaskContext.step`."""
        _check_step(name, fn)
        shape = shape_of(fn)
        step = ExitStack()  # entered and closed on the loop, around what this thread does
        position: Position | None = None
        try:
            position, begun, scope = self._run(self._begin, step, name, effects, shape)
            if begun is not None:
                return cast(T, shape.read(begun))
            if _wants_key(fn):
                kwargs.setdefault("idempotency_key", f"{self._task.id}:{position.name}")
            token = SCOPE.set(scope)
            try:
                with self._task._services.telemetry.step(self._task._attempt.record, position.name):
                    value = fn(*args, **kwargs)
            finally:
                SCOPE.reset(token)
            return cast(T, self._wait_for(self._task.finish_typed(position, value, shape)))
        except Exception as error:
            if position is not None:
                self._task._attempt.journal.failed(position, None, error)
            raise
        finally:
            with suppress(RuntimeError):  # the loop is closed, and everything with it
                self._loop.call_soon_threadsafe(step.close)

    def spawn(self, tool: str | Callable[..., Any], given: Mapping[str, Any] = NOTHING, /, **arguments: Any) -> Any:
        """Start a child task; see `TaskContext.spawn`. The verbs of its handle block, too."""
        return _SyncHandle(self, self._run(self._task.spawn, tool, given, **arguments))

    async def _begin(
        self, step: ExitStack, name: str, effects: Effects, shape: Shape
    ) -> tuple[Position, bytes | None, Scope]:
        position = step.enter_context(self._task._at("step", name))
        begun = await self._task.begin_step(position, effects, shape)
        scope = Scope(position.name + INSIDE, parks=effects != "once")
        step.callback(self._task._attempt.leave, scope)
        return position, begun, scope

    def _say(self, verb: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self._check()
        return verb(*args, **kwargs)

    def _run(self, verb: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any) -> Any:
        self._check()

        async def call() -> Any:
            return await verb(*args, **kwargs)

        return self._wait_for(call())

    def _wait_for(self, call: Coroutine[Any, Any, Any]) -> Any:
        try:
            return asyncio.run_coroutine_threadsafe(call, self._loop).result()
        except (concurrent.futures.CancelledError, asyncio.CancelledError):
            self._is_told = True
            raise asyncio.CancelledError from None

    def _check(self) -> None:
        attempt = self._task._attempt
        attempt.check()
        if attempt.is_told_to_stop and not self._is_told:
            self._is_told = True
            raise asyncio.CancelledError


class _SyncHandle:
    def __init__(self, context: SyncTaskContext, handle: TaskHandle) -> None:
        self._context = context
        self._handle = handle

    def __repr__(self) -> str:
        return repr(self._handle)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._handle, name)
        if not inspect.iscoroutinefunction(value):
            return value

        @wraps(value)  # a step that calls it reads its result by the same annotation
        def call(*args: Any, **kwargs: Any) -> Any:
            return self._context._run(self._context._task._attempt.serve, value, *args, **kwargs)

        return call


class _SyncFiles:
    def __init__(self, context: SyncTaskContext, files: TaskFiles) -> None:
        self._context = context
        self._files = files

    def __getattr__(self, name: str) -> Any:
        return partial(self._context._run, getattr(self._files, name))
