"""Between records and what SQL stores keep: columns for what is searched, compact JSON for the rest.

A document leaves out every field that equals its default, and is NULL when all do; `core` leaves out also
what has a column. Decoding puts both together again, so nothing is stored twice and nothing can disagree.
Values read back equal those written, except that a tuple inside free JSON comes back as a list. So a default
of a stored class is part of the schema: changing one changes what old documents mean, and needs a migration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from operator import attrgetter
from typing import Any, Generic, TypeVar, assert_never, cast

import orjson

from outrider.core.change import AttemptEnd, AttemptEnding
from outrider.core.events import CancelRequested, FollowUpEvent, Message, Rung, WatchedAsked, WatchedEnded
from outrider.core.ledger import WorkerCard
from outrider.core.meters import (
    LINE,
    MODEL,
    PROVIDER,
    Account,
    Amounts,
    Breaker,
    Budget,
    Line,
    Meter,
    Place,
    Rate,
    Reservation,
)
from outrider.core.task import (
    Artifact,
    Core,
    Input,
    InputRequest,
    Links,
    Live,
    Outcome,
    Progress,
    Retry,
    State,
    Stopping,
    Task,
    TaskError,
    Timeouts,
    Usage,
    Wait,
    WaitForAnswer,
    WaitForMessage,
    WaitForNews,
    WaitForTasks,
    WaitUntil,
)
from outrider.core.values import JSON

V = TypeVar("V")

STATES: Mapping[str, State] = {state.value: state for state in State}

MOVED = (
    "state",
    "version",
    "attempt",
    "failures",
    "worker_id",
    "attempt_started_at",
    "due_at",
    "readiness",
    "next_deadline_at",
    "started_at",
    "finished_at",
    "finished_by",
    "updated_at",
    "blocked_by",
)
"""The fields of the core that are columns, in the order in which `moved` gives them."""

moved: Callable[[Core], tuple[Any, ...]] = attrgetter(*("state._value_" if name == "state" else name for name in MOVED))
"""The columns of a core. `_value_`, for a driver binds a plain string faster than an enum's member."""


def encode(data: object) -> str:
    """Encode to JSON text. Raises TypeError for what is not JSON."""
    return orjson.dumps(data, default=_plain).decode()


def decode(text: str | bytes) -> JSON:
    """Decode JSON."""
    return orjson.loads(text)


class Compact(Generic[V]):
    """One class as a document without its defaults. `readers` say how a field that is no plain JSON is read."""

    def __init__(
        self, kind: type[V], readers: Mapping[str, Callable[[Any], Any]] | None = None, without: Sequence[str] = ()
    ) -> None:
        every = fields(cast(Any, kind))
        kept = [field for field in every if field.name not in without]
        self._kind = kind
        self._blank = {field.name: _default(field) for field in every}
        self._names = [field.name for field in kept]
        self._defaults = tuple(_default(field) for field in kept)
        self._getter = attrgetter(*self._names)
        self._readers = dict(readers or {})

    def pack(self, value: V) -> dict[str, Any] | None:
        """The fields that differ from their defaults; None when none does."""
        values = self._getter(value)
        if values == self._defaults:
            return None
        return {
            name: value
            for name, value, default in zip(self._names, values, self._defaults, strict=True)
            if value is not default and value != default
        }

    def write(self, value: V) -> str | None:
        """The document as JSON text, None when every field has its default."""
        packed = self.pack(value)
        return None if packed is None else encode(packed)

    def read(self, data: dict[str, Any] | None, **columns: Any) -> V:
        """Make the value of a decoded document, which this call may change, and of what has columns."""
        if data is None:
            return self._kind(**columns)
        readers = self._readers
        if readers:
            for name in data.keys() & readers.keys():
                data[name] = readers[name](data[name])
        return self._kind(**data, **columns)

    def whole(self, data: Mapping[str, Any] | None, columns: Iterable[tuple[str, Any]] = ()) -> dict[str, Any]:
        """All the fields of a decoded document and of what has columns, in their order; for writing, not reading."""
        fields = self._blank.copy()
        fields.update(columns)
        if data is not None:
            fields.update(data)
        return fields


def _default(field: Any) -> Any:
    if field.default is not MISSING:
        return field.default
    if field.default_factory is not MISSING:
        return field.default_factory()
    return MISSING


def _plain(value: object) -> object:
    """Read-only mappings, the one thing that JSON values may contain and orjson does not know."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


# --- how single fields are read ----------------------------------------------------------------------


def _maybe(read: Callable[[Any], V]) -> Callable[[Any], V | None]:
    return lambda data: None if data is None else read(data)


def _each(read: Callable[[Any], V]) -> Callable[[Any], tuple[V, ...]]:
    return lambda data: tuple(map(read, data))


def _error(data: dict[str, Any]) -> TaskError:
    return TaskError(**data)


def _stopping(data: dict[str, Any]) -> Stopping:
    error = data.pop("error", None)
    return Stopping(**data, error=None if error is None else _error(error))


def _wait(data: dict[str, Any]) -> Wait:
    match data["on"]:
        case "answer":
            return WaitForAnswer(data["request_id"])
        case "time":
            return WaitUntil(data["until"])
        case "tasks":
            return WaitForTasks(tuple(data["task_ids"]), data["every"], seen=data.get("seen"))
        case "message":
            return WaitForMessage(data["seen"])
        case "news":
            return WaitForNews(data["seen"])
        case other:
            raise ValueError(f"unknown wait {other!r}")


def _progress(data: dict[str, Any]) -> Progress:
    return Progress(**{**data, "steps": tuple(data["steps"])})


def _links(data: dict[str, Any]) -> Links:
    return Links(**{**data, "resource_ids": tuple(data["resource_ids"])})


INPUT = Compact(
    Input,
    {"depends_on": tuple, "retry": lambda data: Retry(**data), "timeouts": lambda data: Timeouts(**data)},
)
REQUEST = Compact(InputRequest)
CORE = Compact(
    Core,
    {
        "dependencies": tuple,
        "waits": _each(_wait),
        "requests": _each(lambda data: InputRequest(**data)),
        "stopping": _maybe(_stopping),
    },
    without=MOVED,
)
LIVE = Compact(
    Live, {"progress": _maybe(_progress), "usage": lambda data: Usage(**data), "links": lambda data: _links(data)}
)
OUTCOME = Compact(Outcome, {"artifacts": _each(lambda data: Artifact(**data)), "error": _maybe(_error)})

ACCOUNT = Compact(
    Account,
    {
        "budget": lambda data: Budget(**data),
        **dict.fromkeys(("spent", "held", "unknown"), lambda data: Amounts(**data)),
    },
    without=("name",),
)
BREAKER = Compact(Breaker, without=("name",))

# The very values that a new task starts with, so that `is` tells most that were never changed.
_EMPTY: Any = {field.name: field.default for field in fields(Task)}
NO_LIVE: Live = _EMPTY["live"]
NO_OUTCOME: Outcome = _EMPTY["outcome"]
GROUPS = ("input", "core", "live", "outcome")


# --- records -----------------------------------------------------------------------------------------


def read_core(columns: Sequence[Any], data: dict[str, Any] | None) -> Core:
    """Put a core together from its columns, in the order of `MOVED`, and its document."""
    named = dict(zip(MOVED, columns, strict=True))
    named["state"] = STATES[named["state"]]
    if data is not None and "blocked_by" in data:  # written by a program from before it had a column
        del named["blocked_by"]
    return CORE.read(data, **named)


def read_live(data: dict[str, Any] | None) -> Live:
    """Read a live document."""
    return NO_LIVE if data is None else LIVE.read(data)


def read_task(
    task_id: str,
    columns: Sequence[Any],
    input: dict[str, Any],
    core: dict[str, Any] | None,
    live: dict[str, Any] | None,
    outcome: dict[str, Any] | None,
) -> Task:
    """Put a task together from its id, the columns of its core and its decoded documents."""
    return Task(
        task_id,
        INPUT.read(input),
        read_core(columns, core),
        read_live(live),
        NO_OUTCOME if outcome is None else OUTCOME.read(outcome),
    )


def write_snapshot(task: Task, data: Mapping[str, Any]) -> str:
    """The data of a log entry that holds a task whole: without the input, which has a place of its own.

    Data that is not just the four groups, with the input of this task, is written as it is.
    """
    if tuple(data) != GROUPS or data["input"] is not task.input:
        return encode(data)
    *columns, blocked_by = moved(data["core"])  # the last became a column later than the others
    packed: dict[str, Any] = {"moved": columns}
    core = CORE.pack(data["core"]) or {}
    if blocked_by is not None:
        core["blocked_by"] = blocked_by
    if core:
        packed["core"] = core
    if (live := LIVE.pack(data["live"])) is not None:
        packed["live"] = live
    if (outcome := OUTCOME.pack(data["outcome"])) is not None:
        packed["outcome"] = outcome
    return encode(packed)


def read_snapshot(text: str, input: str | None) -> bytes:
    """The data of such an entry as it was given. `input` is None once the task has been deleted."""
    data = decode(text)
    if "moved" not in data:
        return text.encode()
    return orjson.dumps(
        {
            "input": None if input is None else INPUT.whole(decode(input)),
            "core": CORE.whole(data.get("core"), zip(MOVED[:-1], data["moved"], strict=True)),
            "live": LIVE.whole(data.get("live")),
            "outcome": OUTCOME.whole(data.get("outcome")),
        }
    )


def read_request(data: dict[str, Any]) -> InputRequest:
    """Read an input request."""
    return REQUEST.read(data)


def read_message(data: dict[str, Any]) -> Message:
    """Read a message."""
    return Message(**{**data, "parts": tuple(data["parts"])})


def read_follow_up(data: dict[str, Any]) -> FollowUpEvent:
    """Read what a follow-up carries."""
    if "state" in data:
        return WatchedEnded(data["task_id"], STATES[data["state"]])
    if "task_id" in data:
        return WatchedAsked(**data)
    return Rung(**data) if "session_id" in data else CancelRequested(**data)


def read_attempt(
    task_id: str, attempt: int, worker_id: str, started_at: int, ended_at: int, ending: str, error: str | None
) -> AttemptEnd:
    """Read a closed attempt; `error` is JSON text."""
    return AttemptEnd(
        task_id,
        attempt,
        worker_id,
        started_at,
        ended_at,
        cast(AttemptEnding, ending),
        None if error is None else _error(decode(error)),
    )


def write_meter(meter: Meter) -> str:
    """What is kept of a meter beside its name."""
    match meter:
        case Account():
            return ACCOUNT.write(meter) or "{}"
        case Rate():
            return encode(meter.slices)
        case Line():
            return encode([(each.task_id, each.until, each.requests, each.tokens) for each in meter.places])
        case Breaker():
            return BREAKER.write(meter) or "{}"
        case _:
            assert_never(meter)


def read_meter(name: str, data: Any) -> Meter:
    """Read a meter by its name and its decoded state."""
    if name.startswith(MODEL):
        return Rate(name, tuple((at, requests, tokens) for at, requests, tokens in data))
    if name.startswith(LINE):
        return Line(name, tuple(Place(*place) for place in data))
    if name.startswith(PROVIDER):
        return BREAKER.read(data, name=name)
    return ACCOUNT.read(data, name=name)


def read_reservation(task_id: str, attempt: int, ordinal: int, amounts: dict[str, Any]) -> Reservation:
    """Read an open reservation."""
    return Reservation(task_id, attempt, ordinal, Amounts(**amounts))


def read_card(data: dict[str, Any]) -> WorkerCard:
    """Read how a worker presented itself."""
    known = {name: value for name, value in data.items() if name in _CARD}  # a later version may say more
    return WorkerCard(**{**known, "routes": tuple(data["routes"])})


_CARD = frozenset(field.name for field in fields(WorkerCard))
