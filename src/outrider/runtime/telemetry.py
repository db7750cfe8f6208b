"""Traces and metrics through the OpenTelemetry API, for programs that have set up an SDK; docs/telemetry.md lists them.

An SDK has to be there when the runtime is opened. Without one nothing is imported and nothing is measured: `Telemetry`
itself is silent, and `_Listening` is what takes its place. No span stays open across processes: a task's own span is
written when the task has ended, beside those of its attempts and not around them.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from weakref import WeakSet

from outrider.core import events
from outrider.core.events import Event, HolderEvent
from outrider.core.ledger import Storage, Waiting
from outrider.core.task import NewTask, State, Task, Usage
from outrider.core.values import SECOND, Instant, Span, evolve

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
    from opentelemetry.trace import Span as TraceSpan
    from opentelemetry.trace import Tracer, TracerProvider
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

NAME = "outrider"
OPERATION = "gen_ai.operation.name"
KIND, ROUTE, STATE = "outrider.task.kind", "outrider.task.route", "outrider.task.state"
TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
"""The keys of a task's `origin` that hold the trace context of whoever made it, in the form of W3C."""

COUNT_INTERVAL = 15.0
"""Seconds between two looks of a worker at how many tasks there are."""

LONGEST_MESSAGE = 500
"""Characters of an error's message on a span."""

MOST_VALUES = 100
"""How many values of one attribute are told apart in metrics, by each process; the rest count as `OTHER`."""

LONGEST_VALUE = 128
"""Characters of such a value."""

OTHER = "_OTHER"

MOMENTS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""The bounds of what is done at once if all is well: a commit, a wake, a step. In seconds."""

LENGTHS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 21600, 86400)
"""The bounds of what may take long."""

_Value: TypeAlias = "tuple[float, dict[str, str]]"
_FORM = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_ENDINGS: Mapping[type, str] = {
    events.Succeeded: "succeeded",
    events.Failed: "failed",
    events.Parked: "parked",
    events.Released: "released",
    events.Stopped: "stopped",
}


def telemetry() -> Telemetry:
    """What is to be told from now on: nothing, unless the program has set up an SDK by now."""
    global _latest
    traces = _provider("trace", "OTEL_PYTHON_TRACER_PROVIDER")
    meters = _provider("metrics", "OTEL_PYTHON_METER_PROVIDER")
    known = _latest
    if known.traces is not traces or known.meters is not meters:
        known = _latest = Telemetry() if traces is meters is None else _Listening(traces, meters)
    return known


def _provider(signal: str, variable: str) -> Any:
    """The SDK's provider; None while there is only what the API brings, which does nothing.

    Whoever set one up has imported the API, or named it in the environment; else there is no need to import it.
    """
    if f"opentelemetry.{signal}" not in sys.modules and not os.environ.get(variable):
        return None
    from opentelemetry import metrics, trace

    provider: object = trace.get_tracer_provider() if signal == "trace" else metrics.get_meter_provider()
    return None if type(provider).__module__.startswith(("opentelemetry.trace", "opentelemetry.metrics")) else provider


def trace_id(task: Task) -> str | None:
    """The trace that a task belongs to, in hexadecimal; None where its maker told none and nothing is traced."""
    told = task.input.origin.get(TRACEPARENT) if task.input.origin else None
    match = _FORM.fullmatch(told) if isinstance(told, str) else None
    if match is not None:
        return match[1]
    return None if _latest.traces is None else _ids_of(task.id)[0].hex()


def _ids_of(task_id: str) -> tuple[bytes, bytes]:
    """The trace, and the span in it that all spans of a task hang on, where its maker has told none."""
    ids = blake2b(task_id.encode(), digest_size=24).digest()
    return ids[:16], ids[16:]


@dataclass(frozen=True, slots=True)
class Counts:
    """What a store held at a moment. `parked` are those that no worker has nor is wanted for: they wait for others."""

    at: Instant
    states: Mapping[State, int]
    waiting: tuple[Waiting, ...]
    parked: int
    storage: Storage


@dataclass(eq=False)
class Counted:
    """What one worker, or who looks for want of one, has for the gauges."""

    held: Callable[[], int] | None = None
    capacity: int = 0
    counts: Counts | None = None


Hearer: TypeAlias = Literal["agent", "outside"]


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One request to a model, as metrics tell of it. `usage` is that of it alone, None where that is not known.

    `seconds` is None where nobody knows how long it took, `error` the kind of what came of it, if that was one.
    """

    model: str
    provider: str
    seconds: float | None = None
    usage: Usage | None = None
    error: str | None = None


class AttemptSpan:
    """The span of one attempt; this one is silent."""

    __slots__ = ()

    def settled(self, event: HolderEvent, task: Task) -> None:
        """Note how the attempt ended, and what became of the task. Without it, the task went on without the attempt."""

    def end(self) -> None:
        """The attempt is over."""


class StepSpan:
    """The span of a step; this one is silent."""

    __slots__ = ()

    def end(self, error: BaseException | None = None) -> None:
        """The step is over: it returned, raised an Exception, or was left by any other."""


class Operation:
    """The span of something that an agent does, in the words of the GenAI conventions; this one is silent."""

    __slots__ = ()

    def current(self) -> AbstractContextManager[object]:
        """What is begun in here hangs on it."""
        return _NO_SCOPE

    def tell(self, attributes: Attributes) -> None:
        """Add what is known by now. None stands for what is not."""

    def end(self, error: str | None = None) -> None:
        """It is over; `error` is the kind of what came of it, if that was one."""


Attributes: TypeAlias = "Mapping[str, str | int | float | Sequence[str] | None]"
NO_SPAN = AttemptSpan()
NO_OPERATION = Operation()
_NO_STEP = StepSpan()
_NO_SCOPE = nullcontext()


class Telemetry:
    """What there is to tell, as calls that do nothing."""

    traces: TracerProvider | None = None
    meters: MeterProvider | None = None
    is_silent = True

    def stamp(self, new: NewTask) -> NewTask:
        """A task about to be made, with the trace context that it is made in, where there is one."""
        return new

    def created(self, task: Task) -> None:
        """A task was made."""

    def moved(self, before: Task, after: Task, event: Event) -> None:
        """A transition was committed."""

    def claimed(self, task: Task, waited: Span) -> None:
        """A worker of this process took a task that had been due for so long, in microseconds."""

    def committed(self, seconds: float) -> None:
        """A commit came back after that time."""

    def lease_lost(self) -> None:
        """A worker of this process could not keep its lease."""

    def heard(self, reason: str, hearer: Hearer, waited: Span) -> None:
        """What stood in an inbox for so long was told: to an agent of ours, or to one outside."""

    def asked(self, task: Task, request: ModelRequest) -> None:
        """A request to a model was made, or failed."""

    def called(self, task: Task, tool: str, seconds: float, error: str | None) -> None:
        """An agent's task called a tool, which took so many seconds; `error` is the kind of what came of it, if any."""

    def watch(self, counted: Counted) -> Callable[[], None]:
        """Show a worker in the gauges; returns what ends it."""
        return lambda: None

    def attempt(self, task: Task) -> AttemptSpan:
        """Begin the span of an attempt and make it the current one, in the context of the calling asyncio task."""
        return NO_SPAN

    def step(self, task: Task, name: str) -> AbstractContextManager[None]:
        """A step runs in here, and its span is the current one."""
        return _NO_SCOPE

    def open_step(self, task: Task, name: str) -> StepSpan:
        """A step runs from now on, somewhere else: its span is not the current one."""
        return _NO_STEP

    def operate(
        self, operation: str, subject: str, attributes: Attributes, *, below: Operation = NO_OPERATION
    ) -> Operation:
        """An agent begins an operation: `chat` of a model, `execute_tool` of a tool, `invoke_agent` of itself.

        Its span hangs on that of another one, or on the current.
        """
        return NO_OPERATION

    def mark(self, operation: str, error: str) -> None:
        """The operation whose span is the current one comes to an error; nothing where that is another span."""


_latest = Telemetry()


class _Listening(Telemetry):
    """Tells an SDK. One for each pair of providers, so that instruments are made once."""

    is_silent = False

    def __init__(self, traces: TracerProvider | None, meters: MeterProvider | None) -> None:
        from opentelemetry import metrics, trace

        from outrider import __version__

        self.traces, self.meters = traces, meters
        self._tracer: Tracer = trace.get_tracer(NAME, __version__, traces or trace.NoOpTracerProvider())
        meter = metrics.get_meter(NAME, __version__, meters or metrics.NoOpMeterProvider())
        self._counted: WeakSet[Counted] = WeakSet()
        self._seen: defaultdict[str, set[str]] = defaultdict(set)
        self._make_instruments(meter)
        self._make_gauges(meter)

    def _make_instruments(self, meter: Meter) -> None:
        self._created = meter.create_counter("outrider.task.created", "{task}", "Tasks made")
        self._started = meter.create_counter("outrider.task.started", "{task}", "Tasks claimed for the first time")
        self._ended = meter.create_counter("outrider.task.ended", "{task}", "Tasks ended")
        self._retried = meter.create_counter("outrider.task.retried", "{attempt}", "Failed attempts to be tried again")
        self._claims = meter.create_counter("outrider.task.claimed", "{claim}", "Claims, resumptions included")
        self._recovered = meter.create_counter("outrider.task.recovered", "{task}", "Tasks taken from lost workers")
        self._leases = meter.create_counter("outrider.lease.lost", "{lease}", "Leases that workers could not keep")
        self._tokens = meter.create_counter("outrider.agent.tokens", "{token}", "Tokens of requests to models")
        self._cost = meter.create_counter("outrider.agent.cost", "{USD}", "What these cost, where a price is known")

        def durations(name: str, description: str, bounds: Sequence[float] = LENGTHS) -> Any:
            return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=bounds)

        self._queue = durations("outrider.task.queue.duration", "From due to claimed")
        self._duration = durations("outrider.task.duration", "From creation to the end of a task")
        self._run = durations("outrider.attempt.duration", "One attempt, from its claim to its end being written")
        self._input = durations("outrider.input.duration", "From a question to its answer, expiry or withdrawal")
        self._step = durations("outrider.step.duration", "One run of a step's function")
        self._request = durations("outrider.agent.request.duration", "One request to a model")
        self._tool = durations("outrider.agent.tool.duration", "One call of a tool by an agent")
        self._wake = durations("outrider.wake.duration", "From an entry in an inbox to its being told", MOMENTS)
        self._commit = durations("outrider.commit.duration", "A commit, until it is durable", MOMENTS)

    # --- the gauges ----------------------------------------------------------------------------------

    def _make_gauges(self, meter: Meter) -> None:
        def gauge(name: str, unit: str, description: str, observe: Callable[[Counts], Iterator[_Value]]) -> None:
            """Of the store; the same from all who look at it."""
            from opentelemetry.metrics import Observation

            def observed(_: CallbackOptions) -> Iterator[Observation]:
                counts = max((each.counts for each in tuple(self._counted) if each.counts), key=_at, default=None)
                for value, attributes in observe(counts) if counts is not None else ():
                    yield Observation(value, attributes)

            meter.create_observable_gauge(name, [observed], unit, description)

        gauge("outrider.tasks", "{task}", "Tasks in the store, by state", _tasks_by_state)
        gauge("outrider.parked.tasks", "{task}", "Tasks that wait without a worker for others", _parked)
        gauge("outrider.queue.tasks", "{task}", "Tasks that want a worker, now or later", self._queued)
        gauge("outrider.queue.age", "s", "For how long the oldest ready task of a route has been due", self._ages)
        gauge("outrider.store.size", "By", "The database", _size)
        gauge("outrider.store.log.size", "By", "What stands beside a database in a file and is not yet in it", _log)
        meter.create_observable_gauge(
            "outrider.worker.held", [self._observe_held], "{task}", "Tasks that the workers of this process hold"
        )
        meter.create_observable_gauge(
            "outrider.worker.capacity", [self._observe_capacity], "{task}", "Tasks that they can run at once"
        )

    def watch(self, counted: Counted) -> Callable[[], None]:
        self._counted.add(counted)
        return lambda: self._counted.discard(counted)

    def _queued(self, counts: Counts) -> Iterator[_Value]:
        found: defaultdict[tuple[str, str], int] = defaultdict(int)
        for each in counts.waiting:
            found[self._value(ROUTE, each.route), each.readiness] += each.count
        for (route, readiness), count in found.items():
            yield count, {ROUTE: route, "outrider.queue.readiness": readiness}

    def _ages(self, counts: Counts) -> Iterator[_Value]:
        found: dict[str, Span] = {}
        for each in counts.waiting:
            if each.readiness == "ready" and each.oldest_due_at is not None:
                route = self._value(ROUTE, each.route)
                found[route] = max(found.get(route, 0), counts.at - each.oldest_due_at)
        for route, age in found.items():
            yield age / SECOND, {ROUTE: route}

    def _observe_held(self, _: CallbackOptions) -> Iterator[Observation]:
        from opentelemetry.metrics import Observation

        if workers := [each.held for each in tuple(self._counted) if each.held is not None]:
            yield Observation(sum(held() for held in workers))

    def _observe_capacity(self, _: CallbackOptions) -> Iterator[Observation]:
        from opentelemetry.metrics import Observation

        if workers := [each.capacity for each in tuple(self._counted) if each.held is not None]:
            yield Observation(sum(workers))

    # --- attributes of metrics -----------------------------------------------------------------------

    def _value(self, attribute: str, value: str) -> str:
        """A value that may be told: of one attribute there are only so many, whatever callers think up."""
        value, seen = value[:LONGEST_VALUE], self._seen[attribute]
        if value not in seen:
            if len(seen) >= MOST_VALUES:
                return OTHER
            seen.add(value)
        return value

    def _bounded(self, attributes: Mapping[str, str]) -> dict[str, str]:
        return {attribute: self._value(attribute, value) for attribute, value in attributes.items()}

    def _what(self, task: Task) -> dict[str, str]:
        """What every measurement of a task tells."""
        return self._bounded({KIND: task.input.kind, ROUTE: task.input.route})

    def _whose(self, task: Task) -> dict[str, str]:
        """What every measurement of an agent tells."""
        agent = task.input.spec.get("agent")
        return {KIND: task.input.kind, "gen_ai.agent.name": agent if isinstance(agent, str) else ""}

    # --- transitions ---------------------------------------------------------------------------------

    def stamp(self, new: NewTask) -> NewTask:
        carrier: dict[str, str] = {}
        _propagator().inject(carrier)
        if not carrier:
            return new
        # Over what a child has from its parent, whose own maker is not the child's.
        origin = {key: value for key, value in new.input.origin.items() if key not in (TRACEPARENT, TRACESTATE)}
        return evolve(new, input=evolve(new.input, origin={**origin, **carrier}))

    def created(self, task: Task) -> None:
        self._created.add(1, self._what(task))
        if task.is_terminal:
            self._end(task)

    def moved(self, before: Task, after: Task, event: Event) -> None:
        now = after.core.updated_at
        if before.core.requests:
            pending = {request.id for request in after.core.requests}
            for request in before.core.requests:
                if request.id not in pending:
                    self._input.record((now - request.created_at) / SECOND, self._what(after))
        if isinstance(event, events.HolderLost):
            self._recovered.add(1, self._what(after))
        elif (failure := _retried(before, after, event)) is not None:
            self._retried.add(1, {**self._what(after), **self._bounded({"error.type": failure})})
        if after.is_terminal and not before.is_terminal:
            self._end(after)

    def claimed(self, task: Task, waited: Span) -> None:
        what = self._what(task)
        self._claims.add(1, what)
        if task.core.attempt == 1:
            self._started.add(1, what)
        self._queue.record(max(0, waited) / SECOND, what)

    def committed(self, seconds: float) -> None:
        self._commit.record(seconds)

    def lease_lost(self) -> None:
        self._leases.add(1)

    def heard(self, reason: str, hearer: Hearer, waited: Span) -> None:
        self._wake.record(max(0, waited) / SECOND, {"outrider.wake.reason": reason, "outrider.wake.hearer": hearer})

    def asked(self, task: Task, request: ModelRequest) -> None:
        told = {"gen_ai.request.model": request.model, "gen_ai.provider.name": request.provider}
        whose = self._bounded({**self._whose(task), **told})
        if request.seconds is not None:
            failed = {} if request.error is None else self._bounded({"error.type": request.error})
            self._request.record(request.seconds, {**whose, **failed})
        if (usage := request.usage) is None:
            return
        counts = {"input": usage.input_tokens, "cached": usage.cached_tokens, "output": usage.output_tokens}
        for what, count in counts.items():
            if count > 0:
                self._tokens.add(count, {**whose, "gen_ai.token.type": what})
        if usage.cost:
            self._cost.add(usage.cost, whose)

    def called(self, task: Task, tool: str, seconds: float, error: str | None) -> None:
        told = {**self._whose(task), "gen_ai.tool.name": tool, **({} if error is None else {"error.type": error})}
        self._tool.record(seconds, self._bounded(told))

    def _end(self, task: Task) -> None:
        from opentelemetry.trace import SpanKind

        given, core, error = task.input, task.core, task.outcome.error
        end = core.finished_at or core.updated_at
        how = {STATE: str(core.state), **({} if error is None else {"error.type": error.kind})}
        measured = {**self._what(task), **self._bounded(how)}
        self._ended.add(1, measured)
        self._duration.record((end - given.created_at) / SECOND, measured)
        span = self._tracer.start_span(
            "outrider.task",
            _context_of(task),
            SpanKind.INTERNAL,
            {**_told(task), **how, "outrider.task.attempt": core.attempt},
            start_time=given.created_at * 1000,
        )
        if error is not None:
            _fail(span, error.kind, error.message)
        span.end(max(end, given.created_at) * 1000)

    # --- running code --------------------------------------------------------------------------------

    def attempt(self, task: Task) -> AttemptSpan:
        from opentelemetry import context, trace

        span = self._tracer.start_span(
            "outrider.attempt",
            _context_of(task),
            trace.SpanKind.CONSUMER,
            {
                **_told(task),
                "outrider.task.attempt": task.core.attempt,
                "outrider.worker.id": task.core.worker_id or "",
            },
        )
        # Never detached: it ends with the context of the asyncio task that runs the attempt and nothing else.
        context.attach(trace.set_span_in_context(span))
        return _LiveSpan(span, self._run, self._what(task))

    @contextmanager
    def step(self, task: Task, name: str) -> Iterator[None]:
        from opentelemetry import trace

        step = self.open_step(task, name)
        try:
            with trace.use_span(step.span, record_exception=False, set_status_on_exception=False):
                yield
        except BaseException as error:
            step.end(error)
            raise
        step.end()

    def operate(
        self, operation: str, subject: str, attributes: Attributes, *, below: Operation = NO_OPERATION
    ) -> _LiveOperation:
        from opentelemetry import trace

        span = self._tracer.start_span(
            f"{operation} {subject}".strip(),
            trace.set_span_in_context(below.span) if isinstance(below, _LiveOperation) else None,
            trace.SpanKind.CLIENT if operation == "chat" else trace.SpanKind.INTERNAL,
            {OPERATION: operation},
        )
        live = _LiveOperation(span)
        live.tell(attributes)
        return live

    def mark(self, operation: str, error: str) -> None:
        from opentelemetry import trace

        span = trace.get_current_span()
        if getattr(span, "attributes", {}).get(OPERATION) == operation:
            span.set_attribute("error.type", error)

    def open_step(self, task: Task, name: str) -> _LiveStep:
        told: dict[str, str | int] = {
            "outrider.task.id": task.id,
            "outrider.task.attempt": task.core.attempt,
            "outrider.step.name": name,
        }
        return _LiveStep(self._tracer.start_span("outrider.step", attributes=told), self._step, self._what(task))


class _LiveSpan(AttemptSpan):
    __slots__ = ("_began", "_ending", "_run", "_span", "_what")

    def __init__(self, span: TraceSpan, run: Any, what: Mapping[str, str]) -> None:
        self._span = span
        self._run = run
        self._what = what
        self._ending = "superseded"
        self._began = time.perf_counter()

    def settled(self, event: HolderEvent, task: Task) -> None:
        self._ending = _ENDINGS.get(type(event), "released")
        self._span.set_attribute("outrider.task.state", str(task.state))
        error = event.error if isinstance(event, events.Failed) else task.outcome.error
        if error is not None:
            self._ending = "stopped" if self._ending == "stopped" else "failed"
            _fail(self._span, error.kind, error.message)

    def end(self) -> None:
        self._span.set_attribute("outrider.attempt.ending", self._ending)
        self._span.end()
        self._run.record(time.perf_counter() - self._began, {**self._what, "outrider.attempt.ending": self._ending})


class _LiveStep(StepSpan):
    __slots__ = ("_began", "_run", "_what", "span")

    def __init__(self, span: TraceSpan, run: Any, what: Mapping[str, str]) -> None:
        self.span = span
        self._run = run
        self._what = what
        self._began = time.perf_counter()

    def end(self, error: BaseException | None = None) -> None:
        ending = "succeeded" if error is None else "failed" if isinstance(error, Exception) else "left"
        if isinstance(error, Exception):
            _fail(self.span, type(error).__name__, str(error))
        self.span.set_attribute("outrider.step.ending", ending)
        self.span.end()
        self._run.record(time.perf_counter() - self._began, {**self._what, "outrider.step.ending": ending})


class _LiveOperation(Operation):
    __slots__ = ("span",)

    def __init__(self, span: TraceSpan) -> None:
        self.span = span

    def current(self) -> AbstractContextManager[object]:
        from opentelemetry import trace

        return trace.use_span(self.span, record_exception=False, set_status_on_exception=False)

    def tell(self, attributes: Attributes) -> None:
        self.span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def end(self, error: str | None = None) -> None:
        if error is not None:
            _fail(self.span, error, "")  # what it says may quote what was said
        self.span.end()


def _at(counts: Counts) -> Instant:
    return counts.at


def _tasks_by_state(counts: Counts) -> Iterator[_Value]:
    for state, count in counts.states.items():
        yield count, {STATE: str(state)}


def _parked(counts: Counts) -> Iterator[_Value]:
    yield counts.parked, {}


def _size(counts: Counts) -> Iterator[_Value]:
    yield counts.storage.size, {}


def _log(counts: Counts) -> Iterator[_Value]:
    if counts.storage.log is not None:
        yield counts.storage.log, {}


def _told(task: Task) -> dict[str, str | int]:
    """What every span of a task tells of it."""
    given = task.input
    told: dict[str, str | int] = {
        "outrider.task.id": task.id,
        "outrider.task.kind": given.kind,
        "outrider.task.route": given.route,
        "outrider.task.name": given.display_name,
        "outrider.session.id": given.session_id,
    }
    if given.parent_task_id is not None:
        told["outrider.task.parent.id"] = given.parent_task_id
    return told


def _retried(before: Task, after: Task, event: Event) -> str | None:
    """Why an attempt has failed that is going to be followed by another, None unless it is."""
    if after.is_terminal or after.core.is_held or not before.core.is_held:
        return None
    if isinstance(event, events.Failed):
        return event.error.kind
    stopping = before.core.stopping
    if isinstance(event, events.Stopped | events.DeadlinePassed) and stopping is not None:
        return None if stopping.error is None else stopping.error.kind
    return None


def _fail(span: TraceSpan, kind: str, message: str) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR, message[:LONGEST_MESSAGE] or None)


def _context_of(task: Task) -> Context:
    """What the spans of a task hang on: the span that it was made in, else one made up from its id.

    Made up, so that all its attempts come into one trace, in whatever processes they run.
    """
    from opentelemetry import trace
    from opentelemetry.context import Context

    carrier = {key: value for key in (TRACEPARENT, TRACESTATE) if isinstance(value := task.input.origin.get(key), str)}
    found = _propagator().extract(carrier, Context())
    if trace.get_current_span(found).get_span_context().is_valid:
        return found
    trace_of, span_of = (int.from_bytes(each) for each in _ids_of(task.id))
    sampled = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    parent = trace.SpanContext(trace_of, span_of, is_remote=True, trace_flags=sampled)
    return trace.set_span_in_context(trace.NonRecordingSpan(parent), Context())


def _propagator() -> TraceContextTextMapPropagator:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()
