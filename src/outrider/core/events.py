"""What can happen to a task: the closed union that the reducer takes, past tense.

Three families: a holder's own reports carry its `attempt` and are refused from any other; clients' and the
runtime's duties need none; the two that a `FollowUp` may carry reach other tasks after the commit.
Moments, chance and ids are given, never drawn here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from outrider.core.task import Artifact, Direction, InputRequest, Live, State, TaskError, Wait
from outrider.core.values import JSON, Instant, JSONObject, Span, quick


@dataclass(frozen=True, slots=True)
class Message:
    """Text or data between a session and one of its tasks. `parts` are objects of type text, data or file."""

    id: str
    task_id: str
    session_id: str
    direction: Direction
    parts: tuple[JSONObject, ...]
    created_at: Instant
    sender: str | None = None
    in_reply_to: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One position of a task's journal. `value` is encoded JSON; None while only the intent is known."""

    task_id: str
    position: str
    ordinal: int
    verb: str
    attempt: int
    created_at: Instant
    value: bytes | None = None
    done: bool = True


@quick
@dataclass(frozen=True, slots=True)
class FileWrite:
    """A small file of a session, whole. `path` is absolute within the session's files."""

    session_id: str
    path: str
    content: bytes
    media_type: str
    created_at: Instant
    task_id: str | None = None


# --- from the holder ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """The task asks. `step` is the journal position that remembers which request it was."""

    attempt: int
    request: InputRequest
    step: Step | None = None
    live: Live | None = None


@dataclass(frozen=True, slots=True)
class Posted:
    """The task sends its session a message."""

    attempt: int
    message: Message
    step: Step | None = None


@dataclass(frozen=True, slots=True)
class Produced:
    """The task made an artifact, and its file where it is a small one."""

    attempt: int
    artifact: Artifact
    file: FileWrite | None = None
    step: Step | None = None


@dataclass(frozen=True, slots=True)
class Parked:
    """Everything the attempt still has open is a wait, so it gives its worker back."""

    attempt: int
    waits: tuple[Wait, ...]
    journaled: bool = False
    live: Live | None = None


@dataclass(frozen=True, slots=True)
class Released:
    """The worker hands the task over, as it shuts down or cannot go on; not the task's failure."""

    attempt: int
    journaled: bool = False
    live: Live | None = None


@quick
@dataclass(frozen=True, slots=True)
class Succeeded:
    """The task's code returned.

    `result` is encoded JSON, None when it returned nothing. `open_children` are the linked children that had
    not ended then. `mismatch` says why the result does not fit `result_schema`, when it does not.
    """

    attempt: int
    result: bytes | None = None
    summary: str | None = None
    open_children: tuple[str, ...] = ()
    mismatch: str | None = None
    live: Live | None = None
    seen: int | None = None
    """Of a turn: how often it had been rung when it last looked into the inbox, and found nothing more to take."""
    leaves: bool = False
    """Of a turn: whether it left something there that is for the turn after it."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed. `chance` in [0, 1] draws the back-off; `partial` is a result worth keeping."""

    attempt: int
    error: TaskError
    retryable: bool = True
    chance: float = 1.0
    journaled: bool = False
    partial: bytes | None = None
    summary: str | None = None
    live: Live | None = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """The holder did as it was told and stopped."""

    attempt: int
    chance: float = 1.0
    journaled: bool = False
    live: Live | None = None


@dataclass(frozen=True, slots=True)
class Enriched:
    """The attempt that ended the task adds to what is left of it, without changing how it ended."""

    attempt: int
    summary: str | None = None
    artifacts: tuple[Artifact, ...] = ()


HolderEvent: TypeAlias = Asked | Posted | Produced | Parked | Released | Succeeded | Failed | Stopped | Enriched


# --- from clients and duties -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claimed:
    """A worker takes the task."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class HolderLost:
    """The worker that held this attempt is gone."""

    attempt: int
    journaled: bool = False
    reason: str = "the worker was lost"
    outlived: bool = False
    """What the task does goes on without its worker: that is no failure."""


@dataclass(frozen=True, slots=True)
class Answered:
    """Somebody answered. The caller has checked `answer` against what the request expects."""

    request_id: str
    answer: JSON
    by: str | None = None
    via: str | None = None


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """The session sends the task a message."""

    message: Message


@dataclass(frozen=True, slots=True)
class Told:
    """A client says something to the session whose turn this is. `interrupts` ends the turn, for another one."""

    entry_id: str
    body: JSONObject
    interrupts: bool = False


@dataclass(frozen=True, slots=True)
class Reprioritized:
    """Somebody gave the task another place in the queue."""

    priority: int


@dataclass(frozen=True, slots=True)
class Debounced:
    """It was asked for once more before it had started: the newest spec counts, and a new moment."""

    spec: JSONObject
    due_at: Instant


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """A look at the clock. `active_at` is the last sign of life of the attempt, as far as it is recorded."""

    active_at: Instant | None = None


# --- what a follow-up may carry ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Somebody wants the task, and the linked children below it, to stop."""

    by: str | None = None
    reason: str | None = None
    include_detached: bool = False
    grace: Span | None = None
    """How long a holder has to stop, in microseconds; None for the task's own."""


@dataclass(frozen=True, slots=True)
class WatchedEnded:
    """A task that this one depends on or waits for has ended."""

    task_id: str
    state: State


@dataclass(frozen=True, slots=True)
class WatchedAsked:
    """A task that this one waits for asks a question, or may do so."""

    task_id: str


@dataclass(frozen=True, slots=True)
class Rung:
    """Something came into the inbox of a session: its turn shall look, or one be made."""

    session_id: str


FollowUpEvent: TypeAlias = CancelRequested | WatchedEnded | WatchedAsked | Rung

Event: TypeAlias = (
    HolderEvent
    | Claimed
    | HolderLost
    | Answered
    | MessageReceived
    | Told
    | Reprioritized
    | Debounced
    | DeadlinePassed
    | FollowUpEvent
)

HOLDER_EVENTS = (Asked, Posted, Produced, Parked, Released, Succeeded, Failed, Stopped, Enriched)
EVENTS = (
    Claimed,
    *HOLDER_EVENTS,
    HolderLost,
    Answered,
    MessageReceived,
    Told,
    Reprioritized,
    Debounced,
    CancelRequested,
    DeadlinePassed,
    WatchedEnded,
    WatchedAsked,
    Rung,
)
