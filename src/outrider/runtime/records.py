"""The public record of a task and of what surrounds it: typed, flat, in the words of the documentation.

Inside, a task is four nested values with moments in microseconds; out here it is one pydantic model with
datetimes in UTC. `fields.task_fields` is the only place where the one becomes the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from outrider.core.change import AttemptEnd, WakeReason
from outrider.core.delivery import Receipt
from outrider.core.events import Message, Step
from outrider.core.ledger import FileInfo, InboxRow, KeyUse, Statistics, TranscriptRow, Worker
from outrider.core.queue import Limit, Pause, Scope, next_return, split_route, starts_out
from outrider.core.session import Grant, Session
from outrider.core.task import InputRequest, State, Task, TaskError, split_key
from outrider.core.values import Instant
from outrider.runtime.around import Around
from outrider.runtime.clock import as_datetime
from outrider.runtime.codec import decode
from outrider.runtime.fields import request_fields, task_fields
from outrider.runtime.journal import DOUBT, OUTLIVES


class Record(BaseModel):
    """What every public record has in common: it is frozen, and reads like a value."""

    # Built on first use: a program pays only for the records that it makes, not for all twenty at its start.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class RetryRecord(Record):
    """When a failed attempt is tried again. Seconds."""

    max_failures: int
    initial: float
    factor: float
    maximum: float


class TimeoutsRecord(Record):
    """The four deadlines, in seconds; None means none."""

    queue: float | None
    run: float | None
    idle: float | None
    total: float | None


class ProgressRecord(Record):
    """How far the task has come."""

    current: float
    total: float | None
    unit: str | None
    label: str | None
    steps: tuple[str, ...]


class UsageRecord(Record):
    """What models cost. `cost` in US dollars, None when no price is known."""

    requests: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost: float | None


class LinksRecord(Record):
    """Where the work goes on."""

    child_session_id: str | None
    remote_task_id: str | None
    resource_ids: tuple[str, ...]


class ArtifactRecord(Record):
    """Something the task made. `size` in bytes."""

    name: str
    type: str
    path: str | None
    url: str | None
    media_type: str | None
    size: int | None


class ErrorRecord(Record):
    """How the task failed."""

    kind: str
    message: str
    details: Any = None


class InputRequestRecord(Record):
    """A question of the task. `expected` is a JSON Schema."""

    id: str
    task_id: str
    kind: Literal["question", "approval", "auth"]
    prompt: str
    expected: Mapping[str, Any] | None
    details: Any
    status: Literal["pending", "answered", "expired", "withdrawn"]
    created_at: datetime
    deadline_at: datetime | None
    on_expiry: Literal["default", "deny", "fail", "remind"]
    default: Any
    answer: Any
    answered_by: str | None
    answered_via: str | None
    closed_at: datetime | None

    @classmethod
    def of(cls, request: InputRequest) -> InputRequestRecord:
        """The public form of a request."""
        return cls(**request_fields(request))


class CheckpointRecord(Record):
    """Where the task would resume: after this journal position, or after this iteration."""

    step: str | None
    iteration: int
    at: datetime | None


class TaskRecord(Record):
    """A task, whole; docs/lifecycle.md has its states and phases. In a list, `checkpoint` is None; see `Tasks.list`."""

    id: str
    organization_id: str
    session_id: str
    root_session_id: str
    parent_task_id: str | None
    retry_of: str | None
    kind: str
    display_name: str
    labels: Mapping[str, str]
    origin: Mapping[str, Any]

    spec: Mapping[str, Any]
    wake_policy: Literal["silent", "on_terminal", "on_activity"]
    idempotency_key: str | None
    priority: int
    concurrency_key: str | None
    needs: str | None
    debounce_key: str | None
    depends_on: tuple[str, ...]
    detached: bool
    retry: RetryRecord
    timeouts: TimeoutsRecord
    budget: Mapping[str, Any] | None
    result_schema: Mapping[str, Any] | None
    message_schema: Mapping[str, Any] | None

    state: State
    phase: str | None
    phase_reason: str | None
    state_detail: str | None
    progress: ProgressRecord | None
    input_request: InputRequestRecord | None
    input_requests: tuple[InputRequestRecord, ...]
    cancel_requested_at: datetime | None
    cancel_reason: str | None
    iterations: int
    provider: str | None
    model: str | None
    usage: UsageRecord
    links: LinksRecord

    summary: str | None
    result_path: str | None
    artifacts: tuple[ArtifactRecord, ...]
    error: ErrorRecord | None

    version: int
    attempt: int
    failures: int
    worker_id: str | None
    heartbeat_at: datetime | None
    due_at: datetime | None
    next_deadline_at: datetime | None
    checkpoint: CheckpointRecord | None

    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime

    @classmethod
    def of(
        cls,
        task: Task,
        *,
        heartbeat_at: Instant | None = None,
        checkpoint: CheckpointRecord | None = None,
        around: Around | None = None,
    ) -> TaskRecord:
        """The public form of a task. What the keywords say is read beside it, where wanted."""
        plain = task_fields(task, heartbeat_at=heartbeat_at, around=around)
        return cls(**plain, checkpoint=checkpoint)

    @property
    def is_terminal(self) -> bool:
        """Whether the task has ended."""
        return self.state.is_terminal


class AttemptRecord(Record):
    """One hold of the task by a worker."""

    attempt: int
    worker_id: str
    started_at: datetime
    ended_at: datetime | None
    ending: str | None
    error: ErrorRecord | None

    @classmethod
    def of(cls, end: AttemptEnd) -> AttemptRecord:
        """The public form of a closed attempt."""
        return cls(
            attempt=end.attempt,
            worker_id=end.worker_id,
            started_at=as_datetime(end.started_at),
            ended_at=as_datetime(end.ended_at),
            ending=end.ending,
            error=None if end.error is None else _error(end.error),
        )


class StepRecord(Record):
    """One position of the task's journal."""

    position: str
    verb: str
    attempt: int
    done: bool
    at: datetime

    @classmethod
    def of(cls, step: Step, *, has_ended: bool) -> StepRecord:
        """The public form of a journal row, of a task that has ended or not.

        What outlives its worker, as a command does, has no row of its end: it is done with the task.
        """
        return cls(
            position=step.position,
            verb=step.verb,
            attempt=step.attempt,
            done=step.done or (has_ended and step.verb == OUTLIVES),
            at=as_datetime(step.created_at),
        )


class MessageRecord(Record):
    """Text or data between a session and one of its tasks."""

    id: str
    task_id: str
    session_id: str
    direction: Literal["inbound", "outbound"]
    parts: tuple[Mapping[str, Any], ...]
    created_at: datetime
    sender: str | None
    in_reply_to: str | None

    @classmethod
    def of(cls, message: Message) -> MessageRecord:
        """The public form of a message."""
        return cls(
            id=message.id,
            task_id=message.task_id,
            session_id=message.session_id,
            direction=message.direction,
            parts=message.parts,
            created_at=as_datetime(message.created_at),
            sender=message.sender,
            in_reply_to=message.in_reply_to,
        )

    @property
    def text(self) -> str:
        """All text parts, joined."""
        return "\n".join(str(part["text"]) for part in self.parts if part.get("type") == "text")


class AccountRecord(Record):
    """What became of a budget: `spent`, of which nobody knows `unknown`, and what is `reserved` by calls under way.

    Costs in dollars. `is_marked`: the soft mark was passed, and its session told.
    """

    name: str
    budget: Mapping[str, float]
    spent: Mapping[str, float]
    reserved: Mapping[str, float]
    unknown: Mapping[str, float]
    is_marked: bool


class SpentRecord(UsageRecord):
    """What was used, as tasks reported it, and the accounts of the budgets that bound it."""

    accounts: Sequence[AccountRecord] = ()


class SessionRecord(Record):
    """A session. `last_seq` is the number of its newest event.

    It is `active` while its agent takes a turn, else `idle`; from `closed_at` on it is `closed`, also while what was in
    it then goes on to its end. `turn_id` is the turn that is taken or was taken last.
    """

    id: str
    organization_id: str
    root_session_id: str
    parent_session_id: str | None
    parent_task_id: str | None
    agent: str | None
    title: str | None
    labels: Mapping[str, str]
    status: Literal["idle", "active", "closed"]
    turn_id: str | None
    budget: Mapping[str, Any] | None
    last_seq: int
    created_at: datetime
    updated_at: datetime
    closed_at: datetime | None
    forked_from: str | None

    @classmethod
    def of(cls, session: Session, turn: Task | None) -> SessionRecord:
        """The public form of a session, with the turn that it names, if that still exists."""
        return cls(
            id=session.id,
            organization_id=session.organization_id,
            root_session_id=session.root_session_id,
            parent_session_id=session.parent_session_id,
            parent_task_id=session.parent_task_id,
            agent=session.agent,
            title=session.title,
            labels=session.labels,
            status=_status_of(session, turn),
            turn_id=session.driver_task_id,
            budget=session.budget,
            last_seq=session.last_seq,
            created_at=as_datetime(session.created_at),
            updated_at=as_datetime(session.updated_at),
            closed_at=None if session.closed_at is None else as_datetime(session.closed_at),
            forked_from=session.forked_from,
        )


def _status_of(session: Session, turn: Task | None) -> Literal["idle", "active", "closed"]:
    if session.closed_at is not None:
        return "closed"
    return "idle" if turn is None or turn.is_terminal else "active"


class EventRecord(Record):
    """One entry of a session's log. `task` is the full record as it was then, for `task.created` and `task.updated`.

    One of type `log.trimmed` is no entry: it says that entries of deleted tasks are missing, up to `first_seq`.
    """

    session_id: str
    seq: int
    type: str
    at: datetime
    task_id: str | None
    task: TaskRecord | None = None
    data: Mapping[str, Any] = {}


class OutputRecord(Record):
    """A piece of a task's output. Offsets in bytes; `next` is where to go on. `lost` bytes before it were cut."""

    task_id: str
    stream: str
    offset: int
    next: int
    text: str
    at: datetime | None = None
    lost: int = 0


class SessionSnapshot(Record):
    """A session and those of its tasks that live, the newest first, as its events up to the number `after` left them.

    `is_cut` where more live than are shown.
    """

    after: int
    session: SessionRecord
    tasks: tuple[TaskRecord, ...]
    is_cut: bool


class TaskSnapshot(Record):
    """A task as its events up to the number `after` of its session's log left it."""

    after: int
    task: TaskRecord


class OrganizationSnapshot(Record):
    """The tasks of an organization that live, the newest first, as the log up to the position `after` left them.

    `states` counts them, the newest 1,000 of them at most. `is_cut` where more live than are shown.
    """

    after: int
    states: Mapping[State, int]
    tasks: tuple[TaskRecord, ...]
    is_cut: bool


class TranscriptRecord(Record):
    """An entry of what a session's agent has heard, said and done, numbered from 1 without gaps.

    `message` is in the form of the engine that wrote it; `task_id` is the turn, or the task, in which it was written.
    """

    session_id: str
    number: int
    task_id: str
    iteration: int
    message: Any

    @classmethod
    def of(cls, session_id: str, row: TranscriptRow) -> TranscriptRecord:
        """The public form of an entry."""
        return cls(
            session_id=session_id,
            number=row.number,
            task_id=row.task_id,
            iteration=row.iteration,
            message=decode(row.message),
        )


class FileRecord(Record):
    """A session's file. `size` in bytes."""

    session_id: str
    path: str
    media_type: str
    size: int
    created_at: datetime
    task_id: str | None

    @classmethod
    def of(cls, info: FileInfo) -> FileRecord:
        """The public form of a file."""
        return cls(
            session_id=info.session_id,
            path=info.path,
            media_type=info.media_type,
            size=info.size,
            created_at=as_datetime(info.created_at),
            task_id=info.task_id,
        )


class GrantRecord(Record):
    """A tool that needs no more approval in a session, since when, and who said so."""

    session_id: str
    tool: str
    at: datetime
    by: str | None
    via: str | None
    task_id: str | None

    @classmethod
    def of(cls, grant: Grant) -> GrantRecord:
        """The public form of a grant."""
        return cls(
            session_id=grant.session_id,
            tool=grant.tool,
            at=as_datetime(grant.at),
            by=grant.by,
            via=grant.via,
            task_id=grant.task_id,
        )


class InboxRecord(Record):
    """An entry of a session's inbox. `seq` numbers it there: the same number is the same news, whoever receives it.

    `reason` and `body` say how the task was when it was written; what a client says has the reason `user`, no other.
    One that was received has the `receipt` of this delivery, and the `task` as it is by now.
    """

    seq: int
    session_id: str
    task_id: str
    reason: WakeReason
    body: Mapping[str, Any]
    created_at: datetime
    deliveries: int
    leased_until: datetime | None
    receipt: str | None = None
    task: TaskRecord | None = None

    @classmethod
    def of(cls, row: InboxRow) -> InboxRecord:
        """The public form of an inbox entry that was only looked at."""
        return cls(**_entry(row))

    @classmethod
    def received(cls, row: InboxRow, task: Task | None) -> InboxRecord:
        """The public form of an entry that was just received."""
        receipt = str(Receipt(row.task_id, row.seq, row.deliveries))
        return cls(**_entry(row), receipt=receipt, task=None if task is None else TaskRecord.of(task))


def _entry(row: InboxRow) -> dict[str, Any]:
    return {
        "seq": row.seq,
        "session_id": row.session_id,
        "task_id": row.task_id,
        "reason": row.reason,
        "body": row.body,
        "created_at": as_datetime(row.created_at),
        "deliveries": row.deliveries,
        "leased_until": _moment(row.leased_until),
    }


class ReceiptsRecord(Record):
    """What became of receipts. The `good` ones did what they were given for; the others did nothing.

    `replaced`: newer news of the task took the place of what was received, and come by themselves. `stale`: the lease
    was over and the same was received again, so that somebody else may be at it. `gone`: it was acknowledged already,
    or its task was deleted.
    """

    good: tuple[str, ...]
    replaced: tuple[str, ...]
    stale: tuple[str, ...]
    gone: tuple[str, ...]


class WorkerRecord(Record):
    """A registered worker. It `held` so many tasks when this was read, and is lost `lost_after` seconds without a beat.

    It takes only tasks that need one of its `labels`; None among them is for those that need none.

    `is_alive` is None for one of another machine, or where no file is shared: then only a `beat` that grows tells.
    """

    id: str
    host: str
    pid: int
    started_at: datetime
    concurrency: int
    routes: tuple[str, ...]
    labels: tuple[str | None, ...]
    version: str
    app_version: str
    lost_after: float
    beat: int
    beat_at: datetime
    held: int
    is_alive: bool | None

    @classmethod
    def of(cls, worker: Worker, held: int, is_alive: bool | None) -> WorkerRecord:
        """The public form of a worker."""
        card = worker.card
        return cls(
            id=card.id,
            host=card.host,
            pid=card.pid,
            started_at=as_datetime(card.started_at),
            concurrency=card.concurrency,
            routes=card.routes,
            labels=tuple(dict.fromkeys(split_route(route)[1] for route in card.routes)),
            app_version=card.app_version,
            lost_after=card.lost_after,
            version=card.version,
            beat=worker.beat,
            beat_at=as_datetime(worker.beat_at),
            held=held,
            is_alive=is_alive,
        )


class LimitRecord(Record):
    """A limit: `concurrency` tasks of a key at once, `rate` starts in any `per` seconds; None for no bound.

    Without an `organization_id` it holds wherever an organization has no limit of its own.
    """

    key: str
    concurrency: int | None
    rate: int | None
    per: float | None
    organization_id: str | None = None

    @classmethod
    def of(cls, limit: Limit) -> LimitRecord:
        """The public form of a limit."""
        per = None if limit.rate is None else limit.span / 1e6
        name, owner = split_key(limit.key)
        return cls(key=name, organization_id=owner, concurrency=limit.capacity, rate=limit.rate, per=per)


class KeyRecord(Record):
    """A concurrency key in use, with the limit that counts for it.

    `held` tasks run under it and `waiting` were set aside; `started` count against its rate, and `next_start_at` is
    when that admits more, None unless it holds any back. One without an `organization_id` is common to all: that of a
    tool, or of `org_default`.
    """

    key: str
    limit: LimitRecord
    held: int
    waiting: int
    started: int
    next_start_at: datetime | None
    organization_id: str | None = None

    @classmethod
    def of(cls, use: KeyUse, limit: Limit, now: Instant) -> KeyRecord:
        """The public form of what becomes of a key."""
        name, owner = split_key(use.key)
        return cls(
            key=name,
            organization_id=owner,
            limit=LimitRecord.of(limit),
            held=use.held,
            waiting=use.waiting,
            started=0 if limit.rate is None else starts_out(limit, use.spent, now),
            next_start_at=_moment(next_return(limit, use.spent, now)) if use.waiting else None,
        )


class PauseRecord(Record):
    """What is not started. `name` is a kind or the id of a session, and empty where everything is paused."""

    scope: Scope
    name: str
    since: datetime
    by: str | None
    reason: str | None

    @classmethod
    def of(cls, pause: Pause) -> PauseRecord:
        """The public form of a pause."""
        return cls(scope=pause.scope, name=pause.name, since=as_datetime(pause.at), by=pause.by, reason=pause.reason)


class OrganizationRecord(Record):
    """An organization. Nobody is admitted to one that is suspended; what runs in it runs on.

    `org_default` is there without being made: it has neither a name of its own nor a beginning.
    """

    id: str
    name: str
    created_at: datetime | None
    suspended_at: datetime | None


class ApiKeyRecord(Record):
    """A key that programs are admitted by, without its secret, which nobody can read again.

    With a `session_id` it is good for the tree of that session alone. `used_at` is when it was last used, give or take
    a few minutes. `overlaps_until` is how long the secret that it had before its last rotation is good as well.
    """

    id: str
    organization_id: str
    name: str
    scopes: Sequence[str]
    session_id: str | None
    created_at: datetime
    created_by: str | None
    expires_at: datetime | None
    used_at: datetime | None
    revoked_at: datetime | None
    overlaps_until: datetime | None
    is_active: bool


class NewApiKeyRecord(ApiKeyRecord):
    """A key with its `token`, which is shown this once."""

    token: str = Field(repr=False)


class AuditRecord(Record):
    """An entry of an organization's audit log: who did what to which things, and what came of it.

    `actor` says who: any of `name`, `key_id`, `subject` (of a token), `via` and `address`. `hash` is over all of the
    entry, the hash of the one before it included.
    """

    organization_id: str
    number: int
    at: datetime
    actor: Mapping[str, str]
    action: str
    targets: Mapping[str, str]
    outcome: str
    request_id: str | None
    previous: str
    hash: str


class AuditVerdict(Record):
    """Whether an audit log is whole: `entries` of it were read, from `first` to `last`, which has the `head`.

    `broken_at` is the number of the first entry that is not as it was written, or that was expected and cannot be
    compared any more, and `reason` says how.
    """

    organization_id: str
    is_whole: bool
    entries: int
    first: int
    last: int
    head: str
    broken_at: int | None
    reason: str | None


class RotationRecord(Record):
    """What became of the keys of the secrets: `key_id` seals from now on, and `sealed` texts were sealed anew with it.

    `unused` are the ids of keys of the environment that nothing is sealed with any more.
    """

    key_id: str
    sealed: int
    unused: Sequence[str]


class Finding(Record):
    """Something that the doctor found. A `problem` is work that is lost, stands still or may soon; a `note` is news."""

    level: Literal["problem", "note"]
    about: Literal["database", "disk", "workers", "queue", "webhooks"]
    text: str
    advice: str


class Check(Record):
    """One thing that has to be well for a process to be of use: whether it is, and in words."""

    name: Literal["store", "schema", "worker"]
    is_well: bool
    text: str
    code: str | None = None


class Readiness(Record):
    """Whether a process can do what it is there for, by each thing that it takes."""

    is_ready: bool
    checks: tuple[Check, ...]


class Explanation(Record):
    """Why a task is where it is: sentences, the first reason first."""

    task_id: str
    state: State
    phase: str | None
    because: tuple[str, ...]


class RouteStats(Record):
    """What wants a worker on a route. `oldest_due_at` is since when the oldest of them does."""

    route: str
    readiness: str
    blocked_by: str | None
    count: int
    oldest_due_at: datetime | None


class EndStats(Record):
    """What ended in one way. Spans in seconds: `waited` from creation to start, `ran` from there to the end."""

    kind: str
    state: State
    error_kind: str | None
    count: int
    waited: float | None
    waited_most: float | None
    ran: float | None
    ran_most: float | None


class StatsRecord(Record):
    """A store in numbers: what there is, what waits, what ended within so many `seconds`, and its size in bytes.

    `free` and `log` are those of a file; None with a server.
    """

    seconds: float
    states: Mapping[State, int]
    ended_per_s: float
    waiting: tuple[RouteStats, ...]
    ended: tuple[EndStats, ...]
    size: int
    free: int | None
    log: int | None

    @classmethod
    def of(cls, told: Statistics, span: int) -> StatsRecord:
        """The public form of statistics over a span."""

        def seconds(length: int | None) -> float | None:
            return None if length is None else length / 1e6

        return cls(
            seconds=span / 1e6,
            states=told.states,
            ended_per_s=sum(each.count for each in told.ended) / (span / 1e6),
            waiting=tuple(
                RouteStats(
                    route=each.route,
                    readiness=each.readiness,
                    blocked_by=each.blocked_by,
                    count=each.count,
                    oldest_due_at=_moment(each.oldest_due_at),
                )
                for each in told.waiting
            ),
            ended=tuple(
                EndStats(
                    kind=each.kind,
                    state=each.state,
                    error_kind=each.error_kind,
                    count=each.count,
                    waited=seconds(each.waited),
                    waited_most=seconds(each.waited_most),
                    ran=seconds(each.ran),
                    ran_most=seconds(each.ran_most),
                )
                for each in told.ended
            ),
            size=told.storage.size,
            free=told.storage.free,
            log=told.storage.log,
        )


class CancelReceipt(Record):
    """What a cancel did: each task of the tree by name, the asked one first.

    `canceled` has ended by it, `requested` will be stopped by its holder, `left` was not touched.
    """

    task_id: str
    canceled: tuple[str, ...]
    requested: tuple[str, ...]
    left: tuple[str, ...]
    states: Mapping[str, State]

    def since(self, states: Mapping[str, State]) -> CancelReceipt:
        """The receipt as it reads later, by the states of those that were `requested`; without one it was deleted."""
        there = [each for each in self.requested if each in states]
        canceled = [each for each in there if states[each] is State.CANCELED]
        going_on = [each for each in there if not states[each].is_terminal]
        settled = {id: state for id, state in self.states.items() if id not in self.requested}
        return CancelReceipt(
            task_id=self.task_id,
            canceled=(*self.canceled, *canceled),
            requested=tuple(going_on),
            left=(*self.left, *(each for each in there if each not in canceled and each not in going_on)),
            states={**settled, **{each: states[each] for each in there}},
        )


class BulkReceipt(Record):
    """What a bulk cancel did to the tasks that it was asked for, as `CancelReceipt` says it."""

    canceled: tuple[str, ...]
    requested: tuple[str, ...]
    left: tuple[str, ...]


class RetentionRecord(Record):
    """How long an organization's ended tasks are kept, in seconds, and how many; None for no bound.

    With `archive` it is for how long its sessions are kept in which nothing happens, until they go into the archive.

    `is_own` is False where it is the settings' word, which holds for all who have no policy of their own.
    """

    organization_id: str
    age: float | None
    count: int | None
    archive: bool = False
    is_own: bool
    by: str | None = None
    at: datetime | None = None


class ArchiveRecord(Record):
    """A session in the archive: under which `key`, how large in bytes, and the SHA-256 of its file."""

    session_id: str
    organization_id: str
    key: str
    size: int
    sha256: str
    at: datetime | None
    by: str | None


class PinRecord(Record):
    """A task or session that is kept whatever the policy of its organization says."""

    id: str
    organization_id: str
    at: datetime | None
    by: str | None
    reason: str | None


class RetryReceipt(Record):
    """What a bulk retry did: the new task of each that was `retried`, and the error code of each that was `left`."""

    retried: Mapping[str, str]
    left: Mapping[str, str]


class PruneReceipt(Record):
    """How many tasks were deleted, and how many sessions that they had opened."""

    tasks: int
    sessions: int


def error_from(error: TaskError | None) -> ErrorRecord | None:
    """The public form of an error."""
    return None if error is None else _error(error)


def checkpoint_of(task: Task, steps: Sequence[Step]) -> CheckpointRecord | None:
    """Where a task would resume, read off its journal."""
    done = [step for step in steps if step.done and DOUBT not in step.position]
    if not done and not task.live.iterations:
        return None
    last = done[-1] if done else None
    return CheckpointRecord(
        step=last.position if last else None,
        iteration=task.live.iterations,
        at=_moment(last.created_at if last else task.core.updated_at),
    )


def _error(error: TaskError) -> ErrorRecord:
    return ErrorRecord(kind=error.kind, message=error.message, details=error.details)


def _fields(kind: Any, value: object) -> Any:
    return kind(**{name: getattr(value, name) for name in kind.model_fields})


def _moment(moment: Instant | None) -> datetime | None:
    return None if moment is None else as_datetime(moment)
