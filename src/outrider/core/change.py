"""What one transition writes: a value that the reducer makes and a store commits in one transaction.

A `Change` touches one task (and the journal of the task that made it). News for other tasks travels as
follow-ups: rows of the same transaction, applied afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from outrider.core.events import FileWrite, FollowUpEvent, Message, Step
from outrider.core.meters import Account
from outrider.core.task import Artifact, InputRequest, Live, Task, TaskError
from outrider.core.values import Instant, JSONObject, quick

LogType: TypeAlias = Literal[
    "session.created",
    "session.updated",
    "session.closed",
    "session.reopened",
    "task.created",
    "task.updated",
    "task.progress",
    "task.output",
    "task.message",
]
AttemptEnding: TypeAlias = Literal[
    "succeeded", "failed", "canceled", "parked", "released", "returned", "lost", "forced"
]
WakeReason: TypeAlias = Literal["terminal", "question", "message", "reminder", "user", "budget"]
Relation: TypeAlias = Literal["watchers", "children", "linked_children", "session"]


@dataclass(frozen=True, slots=True)
class LogEvent:
    """An entry for the session's log. The store gives it its `seq`.

    `data` of `task.created` holds the groups whole; of `task.updated` only the fields that changed, by group.
    """

    type: LogType
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """What a session has yet to be told. Entries of one task coalesce while undelivered.

    `task_id` is the task that it is about, or an id of its own for what a client says (`reason` user).
    """

    session_id: str
    task_id: str
    reason: WakeReason
    body: JSONObject


@dataclass(frozen=True, slots=True)
class FollowUp:
    """News for every task that stands in `relation` to `of`, expanded by the store when it writes.

    Of relation `session` it is news for the session of id `of` itself, if that has an agent: for who drives it.
    """

    relation: Relation
    of: str
    event: FollowUpEvent


@quick
@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """How one hold of a task ended."""

    task_id: str
    attempt: int
    worker_id: str
    started_at: Instant
    ended_at: Instant
    ending: AttemptEnding
    error: TaskError | None = None


@dataclass(frozen=True, slots=True)
class Heritage:
    """What a task is made with of another one's past: rows, all under its own id."""

    steps: tuple[Step, ...] = ()
    requests: tuple[InputRequest, ...] = ()
    """Closed ones."""
    messages: tuple[Message, ...] = ()
    """Those that its session had sent."""
    artifacts: tuple[Artifact, ...] = ()
    files: tuple[FileWrite, ...] = ()


@dataclass(frozen=True, slots=True)
class OutputRow:
    """A piece of a task's output. `offset` counts the bytes of the task's output before it, all streams."""

    stream: str
    offset: int
    text: str
    at: Instant


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """Text that a held task printed. The store gives it its offset.

    Pieces that lie wholly before the newest `keep` bytes of the task's output are dropped.
    """

    task_id: str
    attempt: int
    stream: str
    text: str
    at: Instant
    keep: int


@dataclass(frozen=True, slots=True)
class Luggage:
    """What a task that comes from another database brings along, beside what any creation may bring."""

    attempts: tuple[AttemptEnd, ...] = ()
    output: tuple[OutputRow, ...] = ()
    child_session_id: str | None = None
    """The session that it opened, which must be there."""
    transcript: tuple[tuple[int, bytes], ...] = ()
    """What is appended to that one's transcript: the iteration and the encoded message of each entry."""
    accounts: tuple[Account, ...] = ()
    """What it has taken, for each account that it spends from; see `meters.bring`."""


@dataclass(frozen=True, slots=True)
class Page:
    """What one finished iteration adds to a session's transcript, with the totals after it.

    Written in one transaction with `live`; it forgets the journal rows of the open iteration, which are those
    whose position starts with `forget`, and writes `steps` after that.
    """

    session_id: str
    task_id: str
    attempt: int
    iteration: int
    messages: tuple[bytes, ...]
    """Encoded JSON, one transcript entry each, in the engine's own format."""
    live: Live
    at: Instant
    forget: str | None = None
    steps: tuple[Step, ...] = ()
    takes: tuple[tuple[str, int], ...] = ()
    """What of the session's inbox its messages tell of, and is delivered with them: the task id and seq of each."""


@quick
@dataclass(frozen=True, slots=True)
class Change:
    """Everything that one transition writes.

    `before` is the version that the reducer saw, None for a creation. `live_changed` tells whether
    `task.live` is to be written, since only the holder knows its newest value. `steps` are rows of the task that
    made the Change, which must hold its task, or of a task that the Change creates. `settles` names the follow-up
    row that this Change answers: it is deleted with it, and a Change whose row is gone does nothing.
    """

    task: Task
    before: int | None
    events: tuple[LogEvent, ...] = ()
    live_changed: bool = False
    inbox: tuple[InboxEntry, ...] = ()
    follow_ups: tuple[FollowUp, ...] = ()
    watches: tuple[str, ...] = ()
    unasked: Mapping[str, int] | None = None
    """Which of these shall tell of their questions, too, and the versions in which they asked none."""
    requests: tuple[InputRequest, ...] = ()
    messages: tuple[Message, ...] = ()
    files: tuple[FileWrite, ...] = ()
    steps: tuple[Step, ...] = ()
    ended: AttemptEnd | None = None
    settles: int | None = None
    luggage: Luggage | None = None
    """With a creation only."""
    page: Page | None = None
    """With what the holder of the task reports only: the iteration that it ends with. Its totals are the task's own."""
    printed: tuple[OutputChunk, ...] = ()
    """With what the holder of the task reports only: output that was not written before."""
    drives: bool = False
    """With a creation only: the task is the one that takes its session's turn from now on."""
    needs_open: bool = False
    """It brings something into its session from outside, which a closed one does not take."""
    is_noop: bool = False
    """The event changed nothing; there is nothing to commit but the follow-up it settles."""
