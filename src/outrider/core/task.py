"""The task: four nested frozen values, `input`, `core`, `live` and `outcome`, and the words around it.

A transition copies only the group that it changes. `input` never changes after creation; `core` is the
lifecycle, versioned; `live` is last-write-wins and fenced by the attempt alone; `outcome` is what is left
at the end. `phase` is not stored anywhere: `phase_of` derives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeAlias

from outrider.core.values import JSON, SECOND, Instant, JSONObject, Span, quick

DEFAULT_ORGANIZATION = "org_default"

TURN = "turn"
"""The kind whose tasks are a session's agent taking a turn: of each session one at a time, one after the other."""

EXTERNAL = "external"
"""The kind whose tasks other people's programs hold, by reporting, and no worker of ours."""

OUTSIDER = "external:"
"""How the ids of these holders begin."""

OWNED = "\x01"
"""Stands in a concurrency key before the organization that it belongs to, and begins idempotency keys of our own.
No key that anybody names has it."""


class State(StrEnum):
    """The six states. Timeout, rejection and orphaning are error kinds; cancel is an intent."""

    QUEUED = "queued"
    RUNNING = "running"
    AWAITING_INPUT = "awaiting_input"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    __hash__ = str.__hash__  # that of Enum is written in Python, and every transition looks states up

    @property
    def is_terminal(self) -> bool:
        """Whether nothing can follow."""
        return self in TERMINAL


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELED})
LIVE_STATES = frozenset(State) - TERMINAL

WakePolicy: TypeAlias = Literal["silent", "on_terminal", "on_activity"]
Effects: TypeAlias = Literal["idempotent", "once"]
Readiness: TypeAlias = Literal["timed", "ready", "blocked"]
SET_ASIDE = frozenset({"limit", "paused"})
"""What a task is `blocked_by` that a claim set aside; anything else is the reducer's word."""

RequestKind: TypeAlias = Literal["question", "approval", "auth"]
ExpiryPolicy: TypeAlias = Literal["default", "deny", "fail", "remind"]
RequestStatus: TypeAlias = Literal["pending", "answered", "expired", "withdrawn"]
Direction: TypeAlias = Literal["inbound", "outbound"]
ChildPolicy: TypeAlias = Literal["wait", "cancel", "detach"]


def key_within(key: str, organization_id: str) -> str:
    """The concurrency key of that name which belongs to an organization.

    Those of `org_default`, which is the operators', are also what is common to all: what the keys of tools name.
    """
    return key if organization_id == DEFAULT_ORGANIZATION else f"{key}{OWNED}{organization_id}"


def split_key(key: str) -> tuple[str, str | None]:
    """The name of a concurrency key, and the organization that it belongs to; None for one that is common to all."""
    name, _, owner = key.partition(OWNED)
    return name, owner or None


@dataclass(frozen=True, slots=True)
class Retry:
    """When a failed attempt is tried again. Spans in microseconds; see `retry.delay`."""

    max_failures: int = 3
    initial: Span = SECOND
    factor: float = 2.0
    maximum: Span = 300 * SECOND


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The four deadlines of a task, in microseconds; None means none.

    `queue` runs from when the task is due, its dependencies ended, to the first claim, `run` over one attempt,
    `idle` since the last progress, output or heartbeat of an attempt, `total` from creation to the end.
    """

    queue: Span | None = None
    run: Span | None = None
    idle: Span | None = None
    total: Span | None = None


NO_TIMEOUTS = Timeouts()


@quick
@dataclass(frozen=True, slots=True)
class Input:
    """What was asked for. Written once, at creation."""

    session_id: str
    root_session_id: str
    kind: str
    route: str
    """What a worker must serve to run this task: the kind, or `kind:name`, with the label that it needs."""
    spec: JSONObject
    created_at: Instant
    organization_id: str = DEFAULT_ORGANIZATION
    parent_task_id: str | None = None
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    origin: JSONObject = field(default_factory=dict)
    wake_policy: WakePolicy = "silent"
    idempotency_key: str | None = None
    priority: int = 0
    concurrency_key: str | None = None
    """What it is counted under, with whose it is; see `queue.Limit` and `queue.split_key`."""
    debounce_key: str | None = None
    """Until the task has started, one more of its session with this key changes it and is no task of its own."""
    debounce_until: Instant | None = None
    """How far such a change may put it off."""
    depends_on: tuple[str, ...] = ()
    run_if_dependency_fails: bool = False
    detached: bool = False
    """A detached child is not waited for by its parent and is left by a cascading cancel."""
    headless: bool = False
    """Nobody is there to ask when it is in doubt whether an effect happened; the task fails then."""
    on_open_children: ChildPolicy = "wait"
    retry: Retry = Retry()
    timeouts: Timeouts = NO_TIMEOUTS
    cancel_grace: Span = 10 * SECOND
    budget: JSONObject | None = None
    result_schema: JSONObject | None = None
    message_schema: JSONObject | None = None
    retry_of: str | None = None
    """The task that this one repeats, when a person retried or forked it."""

    @property
    def named_idempotency_key(self) -> str | None:
        """The idempotency key as somebody named it; None for one of the runtime's own."""
        key = self.idempotency_key
        return None if key is None or key.startswith(OWNED) else key

    @property
    def key_name(self) -> str | None:
        """The name of its concurrency key, whoever that belongs to."""
        return None if self.concurrency_key is None else split_key(self.concurrency_key)[0]


@dataclass(frozen=True, slots=True)
class InputRequest:
    """A question that a task asks. `expected` is a JSON Schema; moments in microseconds."""

    id: str
    task_id: str
    kind: RequestKind
    prompt: str
    position: str
    """The place in the task's journal that the answer fills."""
    created_at: Instant
    expected: JSONObject | None = None
    details: JSON = None
    deadline_at: Instant | None = None
    on_expiry: ExpiryPolicy = "remind"
    default: JSON = None
    remind_every: Span | None = None
    remind_at: Instant | None = None
    status: RequestStatus = "pending"
    answer: JSON = None
    answered_by: str | None = None
    answered_via: str | None = None
    closed_at: Instant | None = None


@dataclass(frozen=True, slots=True)
class WaitForAnswer:
    """Parked until the request is no longer pending."""

    request_id: str
    on: Literal["answer"] = "answer"


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Parked until a moment."""

    until: Instant
    on: Literal["time"] = "time"


@dataclass(frozen=True, slots=True)
class WaitForTasks:
    """Parked until all (or any) of these tasks have ended; holds only those that have not."""

    task_ids: tuple[str, ...]
    every: bool = True
    on: Literal["tasks"] = "tasks"
    seen: Mapping[str, int] | None = None
    """Or until one of them asks a question: their versions when none of them did; None where that is no end of it."""


@dataclass(frozen=True, slots=True)
class WaitForMessage:
    """Parked until the task has been sent more than `seen` messages."""

    seen: int
    on: Literal["message"] = "message"


@dataclass(frozen=True, slots=True)
class WaitForNews:
    """Parked until the task was told more than `seen` times that something came into the inbox of its session."""

    seen: int
    on: Literal["news"] = "news"


Wait: TypeAlias = WaitForAnswer | WaitUntil | WaitForTasks | WaitForMessage | WaitForNews


@dataclass(frozen=True, slots=True)
class TaskError:
    """How a task failed. `kind` is one of DESIGN's error kinds or a user's own."""

    kind: str
    message: str
    details: JSON = None


@dataclass(frozen=True, slots=True)
class Stopping:
    """The holder was told to stop; at `force_at` the record settles without it."""

    cause: Literal["cancel", "timeout"]
    since: Instant
    force_at: Instant
    error: TaskError | None = None


@quick
@dataclass(frozen=True, slots=True)
class Core:
    """The lifecycle. `version` grows by one with every committed change of this group or the outcome."""

    state: State = State.QUEUED
    version: int = 0
    attempt: int = 1
    """The current hold, or the next one where nobody has held the task yet. Numbered from 1."""
    failures: int = 0
    worker_id: str | None = None
    attempt_started_at: Instant | None = None
    due_at: Instant | None = None
    readiness: Readiness | None = None
    blocked_by: str | None = None
    dependencies: tuple[str, ...] = ()
    """The tasks of `depends_on` that have not ended yet."""
    waits: tuple[Wait, ...] = ()
    requests: tuple[InputRequest, ...] = ()
    """All pending requests, oldest first."""
    messages: int = 0
    """How many messages the session has sent to the task."""
    rung: int = 0
    """Of a turn, and of an agent in a session of its own: how often it was told that something came into its inbox."""
    returned: bool = False
    """The task's code has returned; only children it owns keep it running."""
    stopping: Stopping | None = None
    cancel_requested_at: Instant | None = None
    cancel_reason: str | None = None
    canceled_by: str | None = None
    next_deadline_at: Instant | None = None
    started_at: Instant | None = None
    finished_at: Instant | None = None
    finished_by: int | None = None
    """The attempt whose report ended the task; None where a client, a deadline or a lost worker did."""
    priority: int | None = None
    """What it was given after its creation; None for the one that it was created with."""
    spec: JSONObject | None = None
    """The newest spec of a debounced task; None for the one that it was created with."""
    updated_at: Instant = 0

    @property
    def is_held(self) -> bool:
        """Whether a worker has an attempt open."""
        return self.worker_id is not None

    def request(self, request_id: str) -> InputRequest | None:
        """The pending request of that id, or None."""
        return next((request for request in self.requests if request.id == request_id), None)


@dataclass(frozen=True, slots=True)
class Usage:
    """What models cost so far. `cost` in US dollars, None when no price is known."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the task has come; `steps` names the stages it reports, in order."""

    current: float = 0
    total: float | None = None
    unit: str | None = None
    label: str | None = None
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Links:
    """Where the work goes on. Scalars overwrite, resource ids are united."""

    child_session_id: str | None = None
    remote_task_id: str | None = None
    resource_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Live:
    """What running work says of itself. Last write wins, fenced by the attempt, not versioned."""

    state_detail: str | None = None
    progress: Progress | None = None
    iterations: int = 0
    provider: str | None = None
    model: str | None = None
    usage: Usage = Usage()
    links: Links = Links()


@dataclass(frozen=True, slots=True)
class Artifact:
    """Something the task made: a file of the session (`path`) or something elsewhere (`url`). `size` in bytes."""

    name: str
    type: str
    path: str | None = None
    url: str | None = None
    media_type: str | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the task left behind."""

    summary: str | None = None
    result_path: str | None = None
    artifacts: tuple[Artifact, ...] = ()
    error: TaskError | None = None


@quick
@dataclass(frozen=True, slots=True)
class Task:
    """One unit of background work."""

    id: str
    input: Input
    core: Core
    live: Live = Live()
    outcome: Outcome = Outcome()

    @property
    def state(self) -> State:
        """The state of the core."""
        return self.core.state

    @property
    def session_id(self) -> str:
        """The session that owns the task."""
        return self.input.session_id

    @property
    def is_terminal(self) -> bool:
        """Whether the task has ended."""
        return self.core.state in TERMINAL

    @property
    def priority(self) -> int:
        """What counts now: the higher goes first."""
        return self.input.priority if self.core.priority is None else self.core.priority

    @property
    def spec(self) -> JSONObject:
        """What counts now of what the task is to do."""
        return self.input.spec if self.core.spec is None else self.core.spec


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task that does not exist yet. The program makes the id, so that creating it twice is harmless."""

    id: str
    input: Input
    not_before: Instant | None = None


@dataclass(frozen=True, slots=True)
class Phase:
    """What a live task is doing, and why."""

    name: Literal["ready", "delayed", "backing_off", "blocked", "executing", "resuming", "sleeping", "waiting"]
    reason: str | None = None


def phase_of(task: Task, *, is_served: bool = True, paused: str | None = None, is_lost: bool = False) -> Phase | None:
    """Derive the phase of a task; None for one that awaits input or has ended.

    `is_served` says whether any worker serves its route, `paused` what of it is paused (everything, kind, session),
    `is_lost` whether its holder is dead: none of them stands in the record.
    """
    core = task.core
    if core.state is State.RUNNING and core.is_held and is_lost:
        return Phase("executing", "its worker is dead")
    if core.readiness == "ready" and paused is not None:
        return Phase("blocked" if core.state is State.QUEUED else "waiting", f"{paused} paused")
    if core.readiness == "ready" and not is_served and task.input.kind != EXTERNAL:
        return Phase("blocked" if core.state is State.QUEUED else "resuming", f"no worker serves {task.input.route}")
    if core.state is State.QUEUED:
        return _queued_phase(task)
    if core.state is State.RUNNING:
        return _running_phase(task)
    return None


def _queued_phase(task: Task) -> Phase:
    core = task.core
    if core.readiness == "blocked":
        return Phase("blocked", _block_of(task))
    if core.readiness == "timed":
        return Phase("backing_off", f"failure {core.failures}") if core.failures else Phase("delayed")
    return Phase("ready")


def _running_phase(task: Task) -> Phase:
    core = task.core
    if core.stopping is not None and core.is_held:
        return Phase("executing", f"stopping: {core.stopping.cause}")
    if core.is_held:
        return Phase("executing")
    if core.returned:
        return Phase("waiting", "children")
    if core.readiness == "ready":
        return Phase("resuming")
    if core.readiness == "blocked":
        return Phase("waiting", _block_of(task))
    others = [wait.on for wait in core.waits if not isinstance(wait, WaitUntil)]
    if others:
        return Phase("waiting", ", ".join(dict.fromkeys(others)))
    return Phase("sleeping")


def _block_of(task: Task) -> str | None:
    match task.core.blocked_by:
        case "limit":
            return f"limit of {task.input.key_name}"
        case "paused":
            return "session paused"
        case other:
            return other
