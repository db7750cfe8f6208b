"""One hold of a task by this worker: what it has open, what it has to say, and how it ends.

An attempt parks only when all its open operations are waits; then every asyncio task that its code started is
cancelled and awaited before the park is committed. `Parked` and `Superseded` pass through the code of the task
as `BaseException`s; `conclude` finds them again, in whatever groups they were wrapped.
"""

from __future__ import annotations

import asyncio
import random
import threading
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from weakref import WeakKeyDictionary

from outrider.core import events
from outrider.core.change import Page
from outrider.core.errors import (
    Failure,
    InvalidArguments,
    OutriderError,
    Parked,
    Refused,
    StoreCorrupt,
    StoreFailed,
    StoreForeign,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
    StoreUnavailable,
    Superseded,
    TooLarge,
    UnknownName,
)
from outrider.core.events import HolderEvent, Step
from outrider.core.ledger import OutputChunk
from outrider.core.task import Live, Task, TaskError, Wait, WaitUntil
from outrider.core.values import JSON, Instant, evolve
from outrider.runtime.clock import Alarm, Bell, span
from outrider.runtime.codec import decode, encode
from outrider.runtime.journal import Branch, Journal, has_handled
from outrider.runtime.schemas import mismatch
from outrider.runtime.telemetry import NO_SPAN, AttemptSpan

if TYPE_CHECKING:
    from outrider.runtime.services import Services
    from outrider.runtime.threads import Threads

T = TypeVar("T")

CURRENT: ContextVar[Attempt | None] = ContextVar("outrider_attempt", default=None)
CUT = "\n[… {count:,} bytes were cut here: output came faster than it could be kept …]\n"
STORE_IS_DOWN = (StoreUnavailable, StoreFull, StoreLocked, StoreReadOnly, StoreFailed, StoreCorrupt, StoreForeign)
"""What a store raises that cannot be written now."""
LONGEST_STREAM = 64
"""Characters of a stream's name."""


class Scope:
    """The inside of an operation, such as a step: what is open in there counts in its place.

    `name` is the prefix of its journal positions. With `parks=False` the operation counts as busy whatever happens
    inside, so that the task does not park in the midst of it.
    """

    __slots__ = ("is_over", "name", "open", "parks")

    def __init__(self, name: str, *, parks: bool = True) -> None:
        self.name = name
        self.parks = parks
        self.open = 0
        """How many operations are open inside."""
        self.is_over = False


class Attempt:
    """An open attempt. Lives on the worker's loop; `print`, `report` and `touch` may be called from threads."""

    def __init__(
        self,
        services: Services,
        task: Task,
        on_news: Callable[[Attempt], None],
        pool: Threads | None = None,
        is_crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        self.services = services
        self.record = task
        self.task_id = task.id
        self.number = task.core.attempt
        self.journal = Journal()
        self.pool = pool
        self.live: Live = task.live
        self.live_is_dirty = False
        self.delta: dict[str, Any] = {}
        self.reported_at = 0.0
        self.active_at: Instant = task.core.attempt_started_at or 0
        self.touched = False
        self.is_told_to_stop = False
        self.is_over = False
        """Superseded or abandoned: the record has gone on without this attempt."""
        self.is_in_doubt = False
        """Its worker cannot prove its lease."""
        self.is_left = False
        """Its worker had to go without it; what becomes of the task is told by the worker's end."""
        self.is_draining = False
        self.is_parking = False
        self.is_closed = False
        """Its code has ended; only the record is left to be settled."""
        self.tasks: set[asyncio.Task[Any]] = set()
        self.threads = 0
        """How many threads, or processes, run its code now."""
        self.runner: asyncio.Task[None] | None = None
        self.span: AttemptSpan = NO_SPAN
        self.has_parted = False
        """Whether its code was told to give the worker back, by `Parked`."""
        self.seen: int | None = None
        self.leaves = False
        """Of a turn: what it has seen of the inbox; see `Succeeded`."""
        self.page: Page | None = None
        """The iteration that its code ended with, to be written in one transaction with the end."""
        self.turns = 0
        """How many pages are being written, whose totals `live` does not have yet."""
        self._on_news = on_news
        self._is_crowded = is_crowded
        self._waits: dict[Bell, tuple[Wait | Callable[[], Wait], ...]] = {}
        self._parked_on: tuple[Wait, ...] = ()
        self._busy = 0
        self._alarm: Alarm | None = None
        self._output: deque[tuple[str, str, Instant]] = deque()
        self._output_bytes = 0
        self._cut = 0
        self._speaking = threading.Lock()
        self._given_up = 0
        self.store_error: BaseException | None = None
        """Why the store of this task could not be written, when it last could not."""
        self._calls: set[asyncio.Task[Any]] = set()
        """What threads wait for that does not hear by itself when the attempt is told to stop."""
        self._parents: WeakKeyDictionary[asyncio.Task[Any], asyncio.Task[Any] | None] | None = None
        """Who started each asyncio task of its code; None while it has started none."""

    def open_journal(self, steps: Sequence[Step]) -> None:
        """Take over what earlier attempts journaled."""
        self.journal = Journal(steps)

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Note an asyncio task that the code started, to be ended with the attempt."""
        self.tasks.add(task)
        if self._parents is None:
            self._parents = WeakKeyDictionary()
        self._parents[task] = asyncio.current_task()
        task.add_done_callback(self.tasks.discard)

    def has_handled(self, failed: Branch, branch: Branch) -> bool:
        """Whether a branch that goes on has dealt with an error that another one, or itself, raised."""
        return has_handled(failed, branch, self._parents or {}, self.runner)

    def thread_ended(self, thread: asyncio.Future[Any]) -> None:
        """A thread that ran its code is done, maybe long after anybody waited for it."""
        self.threads -= 1
        if self._given_up:
            self._given_up -= 1
            if self.pool is not None:
                self.pool.taken_back()
        if not thread.cancelled():
            thread.exception()  # retrieved, so that the loop does not complain of it

    async def serve(self, fn: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T:
        """Call for a thread what is no verb, until the attempt is told to stop."""
        call = asyncio.current_task()
        assert call is not None
        self._calls.add(call)
        try:
            return await fn(*args, **kwargs)
        finally:
            self._calls.discard(call)

    def give_up_threads(self) -> int:
        """Nobody waits for its threads any more; others get room instead. Returns how many were not given up before."""
        count, self._given_up = self.threads - self._given_up, self.threads
        if self.pool is not None:
            self.pool.give_up(count)
        return count

    # --- operations and waits ------------------------------------------------------------------------

    @property
    def is_alone(self) -> bool:
        """Whether nothing but the task's main line is under way."""
        return self._busy <= 1 and not self._waits and sum(not each.done() for each in self.tasks) <= self.threads

    @property
    def is_running(self) -> bool:
        """Whether any code of the attempt still runs: its main line, an asyncio task, a thread."""
        if self.threads > 0 or any(not task.done() for task in tuple(self.tasks)):
            return True
        # A runner that was cancelled before its first step has run nothing, and closes nothing.
        return not self.is_closed and (self.runner is None or not self.runner.done())

    @property
    def is_idle(self) -> bool:
        """Whether all that is open is waiting."""
        return bool(self._waits) and self._busy == 0

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing will happen before news comes or time passes."""
        return self.is_idle and not self.is_parking and all(bell.is_waited_for for bell in self._waits)

    @contextmanager
    def busy(self, scope: Scope | None = None) -> Iterator[None]:
        """An operation is open, and it is not a wait. Inside a scope it counts in the place of the scope's own."""
        self.check()
        if self.is_closed:
            raise Superseded(self.task_id, self.number)
        if self.is_parking or self.is_draining:
            self._part()
        if scope is not None and scope.parks and not scope.is_over:
            self._busy -= scope.open == 0
            scope.open += 1
        else:
            scope = None
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            if scope is not None:
                scope.open -= 1
                self._busy += scope.open == 0 and not scope.is_over
            self._consider_parking()

    @contextmanager
    def storing(self) -> Iterator[None]:
        """What is raised in here for want of a store is no failure of the task, if its code lets it pass.

        Its code may raise the like for a store of its own, which is one.
        """
        try:
            yield
        except STORE_IS_DOWN as error:
            self.store_error = error
            raise

    def leave(self, scope: Scope) -> None:
        """The operation that a scope is the inside of ends, whatever is still open in there."""
        scope.is_over = True
        self._busy += scope.open > 0

    async def wait(
        self,
        wait: Wait | Callable[[], Wait],
        look: Callable[[], Awaitable[T | None]],
        topics: Iterable[str] = (),
        until: Instant | None = None,
        beside: tuple[Wait, ...] = (),
    ) -> T:
        """Wait until `look` finds something: in memory for a while, then by parking. Called inside `busy`.

        `look` is asked again at `until` at the latest, however it is waited, and, parked, when a wait of `beside` is
        over. A `wait` may be called for as it parks, after the last look.
        """
        bell = Bell(self.services.clock)
        if isinstance(wait, WaitUntil):
            until = wait.until
        was_told = self.is_told_to_stop
        with self.services.signals.listen(topics, bell):
            # Known before the first look: news that comes during a look is looked at next.
            timed = () if until is None or isinstance(wait, WaitUntil) else (WaitUntil(until),)
            self._waits[bell] = (wait, *timed, *beside)
            try:
                while True:
                    found = await look()
                    self.check()
                    # First: what it found will be there on resume, and a branch that went on alone would be cut short.
                    if self.is_draining:
                        self._part()
                    if found is not None:
                        return found
                    self._busy -= 1
                    try:
                        self._consider_parking()
                        await bell.wait(until)
                    finally:
                        self._busy += 1
                    self.check()
                    if self.is_parking:
                        self._part()
                    if self.is_told_to_stop and not was_told:
                        raise asyncio.CancelledError
            finally:
                del self._waits[bell]

    def _part(self) -> NoReturn:
        self.has_parted = True
        raise Parked

    def check(self) -> None:
        """Raise Superseded if this attempt is over."""
        if self.is_over:
            raise Superseded(self.task_id, self.number)

    def park_if_idle(self) -> None:
        """Give the worker back now, if all that is open is waiting."""
        self._alarm = None
        if self.is_idle and not self.is_parking and not self.is_told_to_stop:
            self.is_parking = True
            self._parked_on = tuple(
                wait() if callable(wait) else wait for waits in self._waits.values() for wait in waits
            )
            self._ring()

    def _consider_parking(self) -> None:
        if not self.is_idle:
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None
        elif self._alarm is None and not self.is_parking:
            clock = self.services.clock
            grace = 0 if self._is_crowded() else span(self.services.settings.park_grace)
            self._alarm = clock.call_at(clock.now() + grace, self.park_if_idle)

    def _ring(self) -> None:
        for bell in list(self._waits):
            bell.ring()

    # --- news for it ---------------------------------------------------------------------------------

    def take(self, record: Task) -> None:
        """Take the newest record: it may be over, told to stop, answered, written to.

        One from before what is known already says nothing: it may have been read while its task was parked and claimed
        again, and be of the attempt before this.
        """
        core = record.core
        if core.version < self.record.core.version:
            return
        if core.attempt != self.number or not core.is_held:
            self.supersede()
            return
        self.record = record
        if core.stopping is not None and not self.is_told_to_stop:
            self.is_told_to_stop = True
            self._interrupt()
        self._ring()

    def supersede(self) -> None:
        """The record has gone on without this attempt: stop, and write nothing more."""
        if not self.is_over:
            self.is_over = True
            self._interrupt()
            self._ring()

    def _interrupt(self) -> None:
        if self.runner is not None and not self.is_closed:
            self.runner.cancel()
            for call in tuple(self._calls):
                call.cancel()

    def drain(self) -> None:
        """Stop where the code next comes to a verb, or waits in one, to be handed over."""
        self.is_draining = True
        self._ring()

    def give_back(self) -> None:
        """Stop at once, to be handed over."""
        self.drain()
        self._interrupt()

    # --- what it says --------------------------------------------------------------------------------

    def update(self, delta: dict[str, Any] | None = None, **live: Any) -> None:
        """Take new live values; `delta` is what the log is told of them."""
        with self._speaking:
            self.live = evolve(self.live, **live)
            self.live_is_dirty = True
            if delta:
                self.delta.update(delta)
        self.touch()

    @contextmanager
    def turning(self, page: Page) -> Iterator[None]:
        """While a page is being written. Its totals are those of the task from then on, and nothing is reported before:
        a report that was taken meanwhile is written after the page, and would take its totals back."""
        self.turns += 1
        try:
            yield
        except asyncio.CancelledError:
            self._take_totals(page)  # it was handed over by then, and is written
            raise
        else:
            self._take_totals(page)
        finally:
            self.turns -= 1

    def _take_totals(self, page: Page) -> None:
        with self._speaking:
            self.live = with_totals(self.live, page.live)

    def touch(self) -> None:
        """Show a sign of life."""
        self.active_at = self.services.clock.now()
        self.touched = True
        self._on_news(self)

    def print(self, stream: str, text: str) -> None:
        """Keep text as output, to be written within moments. Beyond the tail that is kept, the oldest is cut."""
        if not text:
            return
        text, limit = well_formed(text), self.services.settings.limits.output_tail
        with self._speaking:
            size = size_of(text)
            if size > limit:
                text = text.encode()[-limit:].decode(errors="ignore")  # without what is left of a character in two
                self._cut += size - size_of(text)
                size = size_of(text)
            self._output.append((stream, text, self.services.clock.now()))
            self._output_bytes += size
            while self._output_bytes > limit and len(self._output) > 1:
                _, dropped, _ = self._output.popleft()
                self._output_bytes -= size_of(dropped)
                self._cut += size_of(dropped)
        self.touch()

    @property
    def output_waiting(self) -> int:
        """How many bytes of output wait to be written."""
        return self._output_bytes

    def take_output(self) -> list[OutputChunk]:
        """Hand out the output that waits, neighbours of one stream joined."""
        keep = self.services.settings.limits.output_tail
        with self._speaking:
            pieces, cut = list(self._output), self._cut
            self._output.clear()
            self._output_bytes = self._cut = 0
        chunks: list[OutputChunk] = []
        parts: list[str] = []
        stream, at = "", 0
        if cut:
            stream, _, at = pieces[0]
            parts.append(CUT.format(count=cut))
        for next_stream, text, moment in pieces:
            if parts and next_stream != stream:
                chunks.append(OutputChunk(self.task_id, self.number, stream, "".join(parts), at, keep))
                parts = []
            if not parts:
                at = moment
            stream = next_stream
            parts.append(text)
        if parts:
            chunks.append(OutputChunk(self.task_id, self.number, stream, "".join(parts), at, keep))
        return chunks

    def put_back(self, chunks: Iterable[OutputChunk] = (), delta: Mapping[str, Any] | None = None) -> None:
        """Take back what could not be written, to be said again before anything newer."""
        with self._speaking:
            for chunk in chunks:
                self._output.appendleft((chunk.stream, chunk.text, chunk.at))
                self._output_bytes += size_of(chunk.text)
            if delta is not None:
                self.delta = {**delta, **self.delta}
                self.live_is_dirty = True
        self._on_news(self)

    def take_live(self) -> Live | None:
        """Hand out live values that were not written yet, None if there are none."""
        live = self.take_news()[0]
        # The totals of the last page are no live values before it is written: the one would be ahead of the transcript.
        return live if self.page is None else with_totals(live or self.live, self.page.live)

    def take_news(self) -> tuple[Live | None, dict[str, Any] | None]:
        """Hand out live values that were not written yet, and what the log is to be told of just these."""
        with self._speaking:
            if not self.live_is_dirty:
                return None, None
            self.live_is_dirty = False
            delta, self.delta = self.delta, {}
            return self.live, delta or None

    # --- how it ends ---------------------------------------------------------------------------------

    def succeeded(self, value: object, open_children: tuple[str, ...]) -> HolderEvent:
        """The code returned: what to report of it."""
        limits = self.services.settings.limits
        try:
            result = None if value is None else encode(value)
        except TypeError as error:
            return self._failure(TaskError("invalid_result", f"the result is not JSON: {error}"), retryable=False)
        if result is not None and len(result) > limits.result:
            message = f"the result has {len(result):,} bytes, more than {limits.result:,}; keep it as an artifact"
            return self._failure(TaskError("too_large", message), retryable=False)
        schema = self.record.input.result_schema
        problem = None
        if schema is not None and result is not None:
            problem = mismatch(decode(result), schema)
        summary = shorten(value, limits.summary) if isinstance(value, str) else None
        return events.Succeeded(
            self.number, result, summary, open_children, problem, self.take_live(), self.seen, self.leaves
        )

    def conclude(self, error: BaseException) -> HolderEvent:
        """The code raised: what to report of it. Of an attempt that is over, the reducer will not hear it."""
        try:
            return self._conclude(error)
        except Exception as problem:  # noqa: BLE001 - an error that cannot be told of is an end all the same
            message = f"{type(error).__name__}, which cannot be described: {type(problem).__name__}"
            return self._failure(TaskError("exception", message), retryable=True)

    def _conclude(self, error: BaseException) -> HolderEvent:
        leaves = list(_leaves(error))
        if self.is_in_doubt:
            return events.Released(self.number, self.journal.has_grown, self.take_live())
        if self.is_over or any(isinstance(leaf, Superseded) for leaf in leaves):
            return self._failure(
                TaskError("exception", "its writes were refused, as if it did not hold the task"), retryable=True
            )
        parts = self.has_parted or self.is_told_to_stop or self.is_draining
        quiet = all(_is_control(leaf) or (parts and _follows_control(leaf)) for leaf in leaves)
        if self.is_told_to_stop and (quiet or not self.is_parking):
            return events.Stopped(self.number, random.random(), self.journal.has_grown, self.take_live())
        if self.is_draining and quiet:
            return events.Released(self.number, self.journal.has_grown, self.take_live())
        if self.is_parking and quiet:
            return events.Parked(self.number, self._parked_on, self.journal.has_grown, self.take_live())
        if quiet:
            problem = TaskError("exception", "the task's code was cancelled from inside")
            return self._failure(problem, retryable=True)
        reason = next(leaf for leaf in leaves if not _is_control(leaf))
        if reason is self.store_error:  # the task has done nothing wrong, and can go on when the store can
            return events.Released(self.number, self.journal.has_grown, self.take_live())
        return self._failed(reason)

    def _failed(self, error: BaseException) -> HolderEvent:
        if isinstance(error, Exited):
            error = error.__cause__ or error
        details = {"type": type(error).__name__, "traceback": _trace(error)}
        if isinstance(error, Failure):
            limit = self.services.settings.limits.message
            problem = TaskError(error.kind, str(error), _told(error.details, limit))
            return self._failure(problem, retryable=error.retryable)
        if isinstance(error, UnknownName | Refused):
            kind = "too_large" if isinstance(error, TooLarge) else "rejected"
            problem = TaskError(kind, str(error), {"code": error.code, **details})
            return self._failure(problem, retryable=False)
        if isinstance(error, OutriderError):
            kind = getattr(error, "kind", "exception")
            told = _told(error.details, self.services.settings.limits.message)
            more = told if isinstance(told, dict) else {} if told is None else {"details": told}
            problem = TaskError(kind, str(error), {**more, "code": error.code, **details})
            return self._failure(
                problem, retryable=getattr(error, "retryable", True), partial=getattr(error, "partial", None)
            )
        message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return self._failure(TaskError("exception", shorten(message, 2048), details), retryable=True)

    def _failure(self, error: TaskError, *, retryable: bool, partial: JSON = None) -> HolderEvent:
        limits = self.services.settings.limits
        if isinstance(partial, str):
            partial = cut(partial, limits.result) or None
        kept = None if partial is None else encode(partial)
        told = partial if isinstance(partial, str) else "" if kept is None else kept.decode()
        return events.Failed(
            self.number,
            evolve(error, kind=well_formed(error.kind), message=shorten(well_formed(error.message), 8192)),
            retryable,
            random.random(),
            self.journal.has_grown,
            partial=kept,
            summary=shorten(told, limits.summary) or None,
            live=self.take_live(),
        )


@contextmanager
def belonging_to_nobody() -> Iterator[None]:
    """An asyncio task that is started in here is not ended with the attempt: others may use what it does."""
    token = CURRENT.set(None)
    try:
        yield
    finally:
        CURRENT.reset(token)


def with_totals(live: Live, page: Live) -> Live:
    """Live values as they are, with what the iterations came to by a page."""
    return evolve(live, iterations=page.iterations, usage=page.usage, provider=page.provider, model=page.model)


class Exited(BaseException):
    """Carries out of an asyncio task what would not stay an exception there: SystemExit and KeyboardInterrupt end the
    loop, and GeneratorExit closes whoever awaits the task."""


async def contained(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine so that what it raises stays within its task."""
    own = asyncio.current_task()
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        raise Exited(str(error)) from error
    except GeneratorExit as error:
        with suppress(RuntimeError):  # no loop runs, so this coroutine is really being closed
            if asyncio.current_task() is own:
                raise Exited(str(error)) from error
        raise


def well_formed(text: str) -> str:
    """Return a text that UTF-8 can hold: lone surrogates become question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def check_stream(name: object) -> None:
    """Raise InvalidArguments for what cannot name a stream of output: it has 1 to 64 characters that can be printed."""
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_STREAM or not name.isprintable():
        raise InvalidArguments(
            f"{name!r} cannot name a stream of output; a short plain name can", details={"longest": LONGEST_STREAM}
        )


def size_of(text: str) -> int:
    """Return how many bytes a text has in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def cut(text: str, limit: int) -> str:
    """As much of a text as has, written as JSON, no more bytes than the limit, with a mark where it was cut."""
    if len(encode(text)) <= limit:
        return text
    mark = f"\n[… cut here, of {len(text):,} characters]"
    fits, room = 0, limit - len(encode(mark))
    while (size := len(encode(text[:fits]))) < room and fits < len(text):
        fits += max(1, (room - size) // 6)  # no character takes more than six bytes
    while len(encode(text[:fits])) > room:
        fits -= 1
    return text[:fits] + mark


def shorten(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters, marked where it was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _is_control(error: BaseException) -> bool:
    return isinstance(error, Parked | asyncio.CancelledError)


def _follows_control(error: BaseException) -> bool:
    """Whether an error was raised while the code was already on its way out."""
    seen = set[int]()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        if _is_control(link):
            return True
        seen.add(id(link))
        link = link.__cause__ or link.__context__
    return False


def _told(details: object, limit: int) -> Any:
    """Details as JSON, or in words where they have no form in it; cut with a mark beyond the limit in bytes."""
    try:
        encoded = encode(details)
    except TypeError:
        return well_formed(repr(details)[:2048])
    return decode(encoded) if len(encoded) <= limit else cut(encoded.decode(), limit)


def _trace(error: BaseException) -> str:
    lines = traceback.format_exception(type(error), error, error.__traceback__, limit=-12)
    return shorten(well_formed("".join(lines)), 8192)
