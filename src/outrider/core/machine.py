"""The lifecycle: one pure function, `apply(task, event, now) -> Change`, and the table of moves it obeys.

    queued ──> running <──> awaiting_input      active and interrupted
       └─────────┴───────────────┴──> succeeded | failed | canceled      terminal, for good

`TRANSITIONS` is the law: which event may meet which state, and which states may follow. A pair that is not
in it is refused in one place and leaves all as it was. No I/O, clock or chance in here: `now` is given.

The one thing a reader would get wrong: a task whose attempt is open is not settled by a cancel or a
deadline. It gets an intent (`stopping`) that its holder sees; only the holder's report, its loss, or the
end of the grace settles the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias, cast

from outrider.core import retry
from outrider.core.change import (
    AttemptEnd,
    AttemptEnding,
    Change,
    FollowUp,
    Heritage,
    InboxEntry,
    LogEvent,
    Luggage,
    Relation,
    WakeReason,
)
from outrider.core.deadlines import next_deadline, timeouts_of
from outrider.core.errors import IllegalMove, RequestClosed, Superseded, TaskFinished
from outrider.core.events import (
    EVENTS,
    HOLDER_EVENTS,
    Answered,
    Asked,
    CancelRequested,
    Claimed,
    DeadlinePassed,
    Debounced,
    Enriched,
    Event,
    Failed,
    FileWrite,
    HolderEvent,
    HolderLost,
    MessageReceived,
    Parked,
    Posted,
    Produced,
    Released,
    Reprioritized,
    Rung,
    Stopped,
    Succeeded,
    Told,
    WatchedAsked,
    WatchedEnded,
)
from outrider.core.task import (
    OUTSIDER,
    SET_ASIDE,
    TERMINAL,
    TURN,
    Core,
    InputRequest,
    Live,
    NewTask,
    Outcome,
    Readiness,
    State,
    Stopping,
    Task,
    TaskError,
    Wait,
    WaitForAnswer,
    WaitForMessage,
    WaitForNews,
    WaitForTasks,
    WaitUntil,
)
from outrider.core.values import SECOND, Instant, difference, evolve

Q, R, A = State.QUEUED, State.RUNNING, State.AWAITING_INPUT
S, F, C = State.SUCCEEDED, State.FAILED, State.CANCELED

TRANSITIONS: Mapping[State, Mapping[type[Any], frozenset[State]]] = MappingProxyType(
    {
        Q: {
            Claimed: frozenset({R, A}),
            Answered: frozenset({Q}),
            MessageReceived: frozenset({Q}),
            Told: frozenset({Q, C}),
            Reprioritized: frozenset({Q}),
            Debounced: frozenset({Q}),
            CancelRequested: frozenset({C}),
            DeadlinePassed: frozenset({Q, F}),
            WatchedEnded: frozenset({Q, F}),
            WatchedAsked: frozenset({Q}),
            Rung: frozenset({Q}),
            HolderLost: frozenset({Q}),
        },
        R: {
            Claimed: frozenset({R}),
            Asked: frozenset({A}),
            Posted: frozenset({R}),
            Produced: frozenset({R}),
            Parked: frozenset({R, Q, F, C}),
            Released: frozenset({R, Q, F, C}),
            Succeeded: frozenset({R, Q, S, F, C}),
            Failed: frozenset({Q, F, C}),
            Stopped: frozenset({R, Q, F, C}),
            HolderLost: frozenset({R, Q, F, C}),
            MessageReceived: frozenset({R}),
            Told: frozenset({R, C}),
            Reprioritized: frozenset({R}),
            CancelRequested: frozenset({R, C}),
            DeadlinePassed: frozenset({R, F, C}),
            WatchedEnded: frozenset({R, S}),
            WatchedAsked: frozenset({R}),
            Rung: frozenset({R}),
        },
        A: {
            Claimed: frozenset({A}),
            Asked: frozenset({A}),
            Posted: frozenset({A}),
            Produced: frozenset({A}),
            Parked: frozenset({A, Q, F, C}),
            Released: frozenset({A, Q, F, C}),
            Succeeded: frozenset({R, Q, S, F, C}),
            Failed: frozenset({Q, F, C}),
            Stopped: frozenset({A, Q, F, C}),
            HolderLost: frozenset({A, Q, F, C}),
            Answered: frozenset({A, R}),
            MessageReceived: frozenset({A}),
            Told: frozenset({A, C}),
            Reprioritized: frozenset({A}),
            CancelRequested: frozenset({A, C}),
            DeadlinePassed: frozenset({A, R, F, C}),
            WatchedEnded: frozenset({A}),
            WatchedAsked: frozenset({A}),
            Rung: frozenset({A}),
        },
        **{
            terminal: {
                CancelRequested: frozenset({terminal}),
                DeadlinePassed: frozenset({terminal}),
                WatchedEnded: frozenset({terminal}),
                WatchedAsked: frozenset({terminal}),
                HolderLost: frozenset({terminal}),
                Enriched: frozenset({terminal}),
            }
            for terminal in (S, F, C)
        },
    }
)
"""Which event may meet which state, and the states that may follow. Each is reached by some history."""


def create(new: NewTask, now: Instant, claim: Claimed | None = None, inbox: tuple[InboxEntry, ...] = ()) -> Change:
    """Make a task: queued, and due at once unless it is delayed or depends on others.

    With a `claim` it is held from its first moment: one Change of two transitions, each with its event. What is in
    `inbox` comes there with it.
    """
    due_at = max(now, new.not_before or now)
    core = Core(
        due_at=due_at,
        readiness="blocked" if new.input.depends_on else _readiness(due_at, now),
        blocked_by="dependency" if new.input.depends_on else None,
        dependencies=new.input.depends_on,
        version=1,
        updated_at=now,
    )
    deadline = next_deadline(new.input, core)
    if deadline is not None:
        core = evolve(core, next_deadline_at=deadline)
    task = Task(new.id, new.input, core)
    made = Change(
        task,
        before=None,
        events=(LogEvent("task.created", snapshot(task)),),
        live_changed=True,
        inbox=inbox,
        watches=new.input.depends_on,
        drives=new.input.kind == TURN,
        needs_open=new.input.parent_task_id is None,
    )
    if claim is None:
        return made
    taken = apply(task, claim, now)
    return evolve(made, task=taken.task, events=(*made.events, *taken.events))


def fork(new: NewTask, heritage: Heritage, now: Instant) -> Change:
    """Make a task that goes on from where another one had come: it begins with a journal."""
    made = create(new, now)
    core = evolve(made.task.core, messages=len(heritage.messages))
    outcome = evolve(made.task.outcome, artifacts=heritage.artifacts)
    task = Task(new.id, new.input, core, made.task.live, outcome)
    return evolve(
        made,
        task=task,
        events=(LogEvent("task.created", snapshot(task)),),
        steps=heritage.steps,
        requests=heritage.requests,
        messages=heritage.messages,
        files=heritage.files,
    )


def adopt(task: Task, heritage: Heritage, luggage: Luggage, now: Instant) -> Change:
    """Make a task that comes from another database, as it stood there. Nobody holds it, and it waits for no other.

    What was due is due; limits and pauses that held it back there say nothing here.
    """
    core = evolve(task.core, worker_id=None, attempt_started_at=None, stopping=None, updated_at=now)
    if core.due_at is not None and core.state not in TERMINAL:
        core = evolve(core, readiness=_readiness(core.due_at, now), blocked_by=None)
    core = evolve(core, next_deadline_at=next_deadline(task.input, core))
    adopted = Task(task.id, task.input, core, task.live, task.outcome)
    return Change(
        adopted,
        before=None,
        events=(LogEvent("task.created", snapshot(adopted)),),
        live_changed=True,
        steps=heritage.steps,
        requests=heritage.requests,
        messages=heritage.messages,
        files=heritage.files,
        luggage=luggage,
        needs_open=True,
    )


def apply(task: Task, event: Event, now: Instant) -> Change:
    """Decide what `event` does to `task` at `now`. The task itself is left as it was.

    Raises Superseded to a holder whose attempt is over, TaskFinished, RequestClosed or IllegalMove to
    anybody else whose event has no place in the task's state.
    """
    allowed = TRANSITIONS[task.core.state].get(type(event))
    if allowed is None:
        raise _refusal(task, event)
    if isinstance(event, HOLDER_EVENTS) and not _is_from_holder(task, event):
        raise Superseded(task.id, event.attempt)
    change = _HANDLERS[type(event)](_Draft(task, now), event).finish()
    if change.task.core.state not in allowed:  # the table and a handler disagree: a defect, never an input
        raise AssertionError(f"{type(event).__name__} led from {task.core.state} to {change.task.core.state}")
    return change


def snapshot(task: Task) -> dict[str, Any]:
    """The groups of a task whole, as `task.created` logs them."""
    return {"input": task.input, "core": task.core, "live": task.live, "outcome": task.outcome}


def _refusal(task: Task, event: Event) -> BaseException:
    if isinstance(event, HOLDER_EVENTS) and not _is_from_holder(task, event):
        return Superseded(task.id, event.attempt)
    if isinstance(event, Answered):
        return RequestClosed(f"{task.id} is {task.core.state} and has no question open")
    if task.is_terminal:
        return TaskFinished(f"{task.id} has ended as {task.core.state} and stays so")
    return IllegalMove(f"{type(event).__name__} has no meaning for {task.id}, which is {task.core.state}")


def _is_from_holder(task: Task, event: HolderEvent) -> bool:
    """The fence. Once a task has ended, it lets nobody through but the attempt that ended it, to enrich."""
    core = task.core
    if core.state in TERMINAL:
        return isinstance(event, Enriched) and core.finished_by == event.attempt
    return core.is_held and core.attempt == event.attempt


# --- the draft ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Draft:
    """A transition being written down; private to one call of `apply`."""

    before: Task
    now: Instant
    core: dict[str, Any] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    live: Live | None = None
    logged: tuple[LogEvent, ...] = ()
    inbox: tuple[InboxEntry, ...] = ()
    follow_ups: tuple[FollowUp, ...] = ()
    requests: tuple[InputRequest, ...] = ()
    active_at: Instant | None = None
    needs_open: bool = False
    leaves_news: bool = True
    """Whether a turn that ends may leave something in the inbox."""

    def get(self, name: str) -> Any:
        """A field of the core as it will be."""
        return self.core[name] if name in self.core else getattr(self.before.core, name)

    def finish(self) -> Change:
        """Write the Change. What was set to the value that it had is no change."""
        before, old = self.before, self.before.core
        core = {name: new for name, new in self.core.items() if new != getattr(old, name)}
        outcome = {name: new for name, new in self.outcome.items() if new != getattr(before.outcome, name)}
        live = {} if self.live is None else difference(before.live, self.live)
        if core or outcome or live or self.extra or self.logged or self.requests or self.inbox or self.follow_ups:
            return self._write(core, live, outcome)
        if self.active_at is not None and next_deadline(before.input, old, self.active_at) != old.next_deadline_at:
            return self._write({}, {}, {})  # a look at the clock that came early: the next one is later
        return Change(before, before=old.version, is_noop=True)

    def _write(self, core: dict[str, Any], live: dict[str, Any], outcome: dict[str, Any]) -> Change:
        before, old = self.before, self.before.core
        core["version"] = old.version + 1
        if old.blocked_by in SET_ASIDE and "readiness" not in core:
            # Its place may be free by now, which moves no version: let the next claim set it aside again.
            core.update(readiness="ready", blocked_by=None)
        if self.now != old.updated_at:
            core["updated_at"] = self.now
        new = evolve(old, **core)
        deadline = next_deadline(before.input, new, self.active_at)
        if deadline != old.next_deadline_at:
            core["next_deadline_at"] = deadline
            new = evolve(new, next_deadline_at=deadline)
        after = Task(
            before.id,
            before.input,
            new,
            self.live if live and self.live is not None else before.live,
            evolve(before.outcome, **outcome) if outcome else before.outcome,
        )
        groups = {"core": core, "live": live, "outcome": outcome}
        changed = LogEvent("task.updated", {group: fields for group, fields in groups.items() if fields})
        return Change(
            after,
            before=old.version,
            events=(changed, *self.logged),
            live_changed=bool(live),
            inbox=self.inbox,
            follow_ups=self.follow_ups,
            requests=self.requests,
            needs_open=self.needs_open,
            **self.extra,
        )

    # the small moves that handlers are told in

    def close_attempt(self, ending: AttemptEnding, error: TaskError | None = None) -> None:
        core = self.before.core
        if core.worker_id is None:
            return
        self.extra["ended"] = AttemptEnd(
            self.before.id,
            core.attempt,
            core.worker_id,
            core.attempt_started_at or core.updated_at,
            self.now,
            ending,
            error,
        )
        self.core.update(worker_id=None, attempt_started_at=None, stopping=None)

    def due(self, at: Instant) -> None:
        self.core.update(due_at=at, readiness=_readiness(at, self.now), blocked_by=None)
        if at <= self.now:
            self.core["waits"] = ()

    def not_due(self) -> None:
        self.core.update(due_at=None, readiness=None, blocked_by=None)

    def settle_state(self) -> None:
        """Running, or awaiting input while a request is pending."""
        self.core["state"] = A if self.get("requests") else R

    def close_request(self, request: InputRequest, **how: Any) -> None:
        self.core["requests"] = tuple(other for other in self.get("requests") if other.id != request.id)
        self.requests += (evolve(request, closed_at=self.now, remind_at=None, **how),)

    def end(self, state: State, error: TaskError | None = None, *, by: int | None = None) -> None:
        """Settle for good: pending questions are withdrawn, watchers, children and the session hear of it."""
        task = self.before
        for request in self.get("requests"):
            self.close_request(request, status="withdrawn")
        self.not_due()
        self.core.update(
            state=state,
            worker_id=None,
            attempt_started_at=None,
            stopping=None,
            waits=(),
            dependencies=(),
            returned=False,
            finished_at=self.now,
            finished_by=by,
        )
        self.outcome["error"] = error
        self.follow_ups += (FollowUp("watchers", task.id, WatchedEnded(task.id, state)),)
        if state is F and task.input.on_open_children != "detach":
            self.cancel_children(reason="its parent failed")
        summary = self.outcome.get("summary", task.outcome.summary)
        self.wake("terminal", {"state": state, "error": error, "summary": summary})
        if task.input.kind == TURN and self.leaves_news and (state is S or self.get("rung")):
            # One that did not succeed rings only if something came in meanwhile: what was there before, it could have
            # taken, and a turn that always fails would make the next one for ever.
            self.ring()

    def cancel_children(self, *, reason: str, by: str | None = None, include_detached: bool = False) -> None:
        relation: Relation = "children" if include_detached else "linked_children"
        event = CancelRequested(by=by or f"task:{self.before.id}", reason=reason, include_detached=include_detached)
        self.follow_ups += (FollowUp(relation, self.before.id, event),)

    def wake(self, reason: WakeReason, body: Mapping[str, Any]) -> None:
        policy = self.before.input.wake_policy
        wanted = policy == "on_activity" or (policy == "on_terminal" and reason != "message")
        if wanted:
            self.inbox += (InboxEntry(self.before.session_id, self.before.id, reason, body),)
            self.ring()

    def ring(self) -> None:
        """Have the session's agent look into the inbox."""
        session_id = self.before.session_id
        self.follow_ups += (FollowUp("session", session_id, Rung(session_id)),)


def _readiness(due_at: Instant, now: Instant) -> Readiness:
    return "timed" if due_at > now else "ready"


# --- a worker takes, reports and gives back ----------------------------------------------------------


def _claimed(draft: _Draft, event: Claimed) -> _Draft:
    core = draft.before.core
    if core.is_held or core.readiness in (None, "blocked") or core.due_at is None or core.due_at > draft.now:
        raise IllegalMove(f"{draft.before.id} is not ready to be claimed")
    first = core.started_at is None
    draft.not_due()
    draft.core.update(
        worker_id=event.worker_id,
        attempt=core.attempt if first else core.attempt + 1,
        attempt_started_at=draft.now,
        started_at=core.started_at or draft.now,
        waits=(),
    )
    draft.settle_state()
    return draft


def _asked(draft: _Draft, event: Asked) -> _Draft:
    draft.core["requests"] = (*draft.get("requests"), event.request)
    draft.core["failures"] = 0
    draft.settle_state()
    draft.live = event.live
    draft.requests += (event.request,)
    if event.step is not None:
        draft.extra["steps"] = (event.step,)
    draft.wake("question", {"request_id": event.request.id, "kind": event.request.kind, "prompt": event.request.prompt})
    if event.request.kind == "question":  # the others are for people
        draft.follow_ups += (FollowUp("watchers", draft.before.id, WatchedAsked(draft.before.id)),)
    return draft


def _posted(draft: _Draft, event: Posted) -> _Draft:
    draft.extra["messages"] = (event.message,)
    if event.step is not None:
        draft.extra["steps"] = (event.step,)
    draft.logged += (LogEvent("task.message", {"message": event.message}),)
    draft.wake("message", {"message_id": event.message.id, "parts": list(event.message.parts)})
    return draft


def _produced(draft: _Draft, event: Produced) -> _Draft:
    draft.outcome["artifacts"] = _with_artifacts(draft.before.outcome, (event.artifact,))
    if event.file is not None:
        draft.extra["files"] = (event.file,)
    if event.step is not None:
        draft.extra["steps"] = (event.step,)
    return draft


def _parked(draft: _Draft, event: Parked) -> _Draft:
    draft.live = event.live
    if _stop_told(draft, event.journaled):
        return draft
    draft.close_attempt("parked")
    if event.journaled:
        draft.core["failures"] = 0
    if not event.waits or any(_is_over(wait, draft) for wait in event.waits):
        draft.due(draft.now)
    else:
        draft.core["waits"] = event.waits
        wake_at = min((wait.until for wait in event.waits if isinstance(wait, WaitUntil)), default=None)
        if wake_at is not None:
            draft.due(wake_at)
        for_tasks = [wait for wait in event.waits if isinstance(wait, WaitForTasks)]
        draft.extra["watches"] = tuple(task_id for wait in for_tasks for task_id in wait.task_ids)
        if unasked := {task_id: version for wait in for_tasks for task_id, version in (wait.seen or {}).items()}:
            draft.extra["unasked"] = unasked
    return draft


def _released(draft: _Draft, event: Released) -> _Draft:
    draft.live = event.live
    if not _stop_told(draft, event.journaled):
        _hand_over(draft, event.journaled)
    return draft


def _succeeded(draft: _Draft, event: Succeeded) -> _Draft:
    task = draft.before
    draft.live = event.live
    draft.outcome["summary"] = event.summary
    _keep_result(draft, event.result)
    error = _misfit(task, event)
    if error is not None:
        if not _stop_told(draft, journaled=False):
            _fail_attempt(draft, error, "failed", journaled=False, chance=1.0, retryable=False)
    elif event.open_children and task.input.on_open_children != "detach":
        _wait_for_children(draft, event)
    elif event.seen is not None and task.core.rung > event.seen and task.core.cancel_requested_at is None:
        _look_again(draft)
    else:
        # One that is to stop does not look again: what it has not seen is for the next.
        draft.leaves_news = event.seen is None or event.leaves or task.core.rung > event.seen
        draft.close_attempt("succeeded")
        draft.end(S, by=event.attempt)
    return draft


def _look_again(draft: _Draft) -> None:
    """There is news that a turn has not seen, so it is not over, and what it came to is not its result."""
    draft.outcome.clear()
    draft.extra.clear()
    for request in draft.get("requests"):
        draft.close_request(request, status="withdrawn")
    draft.settle_state()
    _hand_over(draft, journaled=True)


def _misfit(task: Task, event: Succeeded) -> TaskError | None:
    if task.input.result_schema is None:
        return None
    if event.result is None:
        return TaskError("no_result", "the task returned nothing, and its result_schema asks for a result")
    return None if event.mismatch is None else TaskError("schema_mismatch", event.mismatch)


def _wait_for_children(draft: _Draft, event: Succeeded) -> None:
    """Rule 14: the result is stored, the worker is free, and the end waits for the children."""
    if draft.before.core.cancel_requested_at is not None:
        # It is not over and nobody holds it any more: what a cancel settles at once.
        _settle_canceled(draft, "canceled", by=event.attempt)
        return
    for request in draft.get("requests"):
        draft.close_request(request, status="withdrawn")
    draft.close_attempt("returned")
    draft.core.update(state=R, returned=True, waits=(WaitForTasks(event.open_children),))
    draft.extra["watches"] = event.open_children
    if draft.before.input.on_open_children == "cancel":
        draft.cancel_children(reason="its parent has returned")


def _failed(draft: _Draft, event: Failed) -> _Draft:
    draft.live = event.live
    if event.summary is not None:
        draft.outcome["summary"] = event.summary
    _keep_result(draft, event.partial)
    if _stop_told(draft, event.journaled, event.chance):
        return draft
    _fail_attempt(draft, event.error, "failed", event.journaled, event.chance, retryable=event.retryable)
    return draft


def _stopped(draft: _Draft, event: Stopped) -> _Draft:
    draft.live = event.live
    if not _stop_told(draft, event.journaled, event.chance):
        _hand_over(draft, event.journaled)  # nobody told it to stop, so it stopped for reasons of its worker
    return draft


def _enriched(draft: _Draft, event: Enriched) -> _Draft:
    if event.summary is not None:
        draft.outcome["summary"] = event.summary
    if event.artifacts:
        draft.outcome["artifacts"] = _with_artifacts(draft.before.outcome, event.artifacts)
    return draft


def _holder_lost(draft: _Draft, event: HolderLost) -> _Draft:
    core = draft.before.core
    if not core.is_held or core.attempt != event.attempt:
        return draft
    if _stop_told(draft, event.journaled, ending="lost"):
        return draft
    error = TaskError("orphaned", f"{event.reason} during attempt {event.attempt}")
    failures = core.failures if event.outlived else 1 if event.journaled else core.failures + 1
    draft.core["failures"] = failures
    draft.close_attempt("lost", error)
    if retry.exhausted(draft.before.input.retry, failures):
        draft.end(F, error)
    else:
        draft.due(draft.now)
    return draft


# --- clients -----------------------------------------------------------------------------------------


def _answered(draft: _Draft, event: Answered) -> _Draft:
    request = draft.before.core.request(event.request_id)
    if request is None:
        raise RequestClosed(f"request {event.request_id} of {draft.before.id} is not pending")
    draft.close_request(request, status="answered", answer=event.answer, answered_by=event.by, answered_via=event.via)
    _resume_after(draft, request)
    return draft


def _message_received(draft: _Draft, event: MessageReceived) -> _Draft:
    core = draft.before.core
    draft.core["messages"] = core.messages + 1
    draft.extra["messages"] = (event.message,)
    draft.logged += (LogEvent("task.message", {"message": event.message}),)
    if not core.is_held and any(isinstance(wait, WaitForMessage) and _is_over(wait, draft) for wait in core.waits):
        draft.due(draft.now)
    return draft


def _told(draft: _Draft, event: Told) -> _Draft:
    task = draft.before
    if task.input.kind != TURN:
        raise IllegalMove(f"{task.id} is no turn of a session")
    draft.inbox += (InboxEntry(task.session_id, event.entry_id, "user", event.body),)
    draft.core["rung"] = task.core.rung + 1
    draft.needs_open = True
    if event.interrupts:
        _cancel_requested(draft, CancelRequested(reason="interrupted"))
    return draft


def _reprioritized(draft: _Draft, event: Reprioritized) -> _Draft:
    if event.priority != draft.before.priority:
        draft.core["priority"] = event.priority
    return draft


def _debounced(draft: _Draft, event: Debounced) -> _Draft:
    core = draft.before.core
    if core.started_at is not None or draft.before.input.debounce_key is None:
        raise IllegalMove(f"{draft.before.id} has started; what comes now is a task of its own")
    draft.core["spec"] = event.spec
    draft.needs_open = draft.before.input.parent_task_id is None
    until = draft.before.input.debounce_until
    due_at = max(draft.now, event.due_at if until is None else min(event.due_at, until))
    if core.dependencies:
        draft.core["due_at"] = due_at
    else:
        draft.due(due_at)
    return draft


def _cancel_requested(draft: _Draft, event: CancelRequested) -> _Draft:
    task, core = draft.before, draft.before.core
    if task.is_terminal or core.cancel_requested_at is not None:
        return draft
    draft.core.update(cancel_requested_at=draft.now, cancel_reason=event.reason, canceled_by=event.by)
    draft.cancel_children(
        reason=event.reason or "its parent was canceled", by=event.by, include_detached=event.include_detached
    )
    if not core.is_held:
        draft.end(C)
        return draft
    force_at = draft.now + (task.input.cancel_grace if event.grace is None else event.grace)
    if core.stopping is not None:  # it has been told to stop already, and gets no longer for it
        force_at = min(force_at, core.stopping.force_at)
    draft.core["stopping"] = Stopping("cancel", draft.now, force_at)
    return draft


# --- clocks and other tasks --------------------------------------------------------------------------


def _deadline_passed(draft: _Draft, event: DeadlinePassed) -> _Draft:
    if draft.before.is_terminal:
        return draft
    draft.active_at = event.active_at
    if draft.before.core.stopping is not None:
        _force(draft)
    elif (timeout := _passed_timeout(draft)) is not None:
        if _is_lease(draft, timeout):
            return _holder_lost(draft, HolderLost(draft.before.core.attempt, reason="its holder did not report"))
        _stop_for(draft, timeout)
        return draft
    for request in draft.before.core.requests:
        if draft.get("state") in TERMINAL:
            break
        _look_at_request(draft, request)
    return draft


def _is_lease(draft: _Draft, timeout: TaskError) -> bool:
    """Whether an outsider held the task and let its lease run out: nobody is there to be told to stop."""
    holder = draft.before.core.worker_id or ""
    idle = isinstance(timeout.details, Mapping) and timeout.details.get("timeout") == "idle"
    return idle and holder.startswith(OUTSIDER)


def _force(draft: _Draft) -> None:
    """The grace is over and the holder has not stopped: settle without it; the fence refuses the rest."""
    stopping = draft.before.core.stopping
    if stopping is None or draft.now < stopping.force_at:
        return
    if stopping.cause == "cancel":
        _settle_canceled(draft, "forced")
    else:
        # Not retried: what ignored the stop may still be running, and nothing runs twice while it is alive.
        draft.close_attempt("forced", stopping.error)
        draft.end(F, stopping.error)


def _passed_timeout(draft: _Draft) -> TaskError | None:
    task = draft.before
    for which, moment in timeouts_of(task.input, task.core, draft.active_at):
        if draft.now >= moment:
            seconds = (getattr(task.input.timeouts, which) or 0) / SECOND
            details = {"timeout": which, "seconds": seconds}
            return TaskError("timeout", f"the {which} timeout of {seconds:g} s passed", details)
    return None


def _stop_for(draft: _Draft, error: TaskError) -> None:
    """Time is up: tell the holder to stop, or settle at once where there is none."""
    if not draft.before.core.is_held:
        draft.end(F, error)
    elif draft.get("stopping") is None:
        draft.core["stopping"] = Stopping("timeout", draft.now, draft.now + draft.before.input.cancel_grace, error)


def _look_at_request(draft: _Draft, request: InputRequest) -> None:
    now = draft.now
    if request.deadline_at is not None and now >= request.deadline_at:
        if request.on_expiry == "fail":
            error = TaskError("input_expired", f"nobody answered in time: {request.prompt}", {"request_id": request.id})
            draft.close_request(request, status="expired")
            _resume_after(draft, request)
            _stop_for(draft, error)
            return
        if request.on_expiry in ("default", "deny"):
            answer = request.default if request.on_expiry == "default" else False
            draft.close_request(request, status="expired", answer=answer, answered_by="policy")
            _resume_after(draft, request)
            return
        kept = evolve(request, deadline_at=None, remind_at=_next_reminder(request, now))
        _remind(draft, kept)
    elif request.remind_at is not None and now >= request.remind_at:
        _remind(draft, evolve(request, remind_at=_next_reminder(request, now)))


def _next_reminder(request: InputRequest, now: Instant) -> Instant | None:
    return None if request.remind_every is None else now + request.remind_every


def _remind(draft: _Draft, request: InputRequest) -> None:
    draft.core["requests"] = tuple(request if other.id == request.id else other for other in draft.get("requests"))
    draft.requests += (request,)
    draft.wake("reminder", {"request_id": request.id, "kind": request.kind, "prompt": request.prompt})


def _watched_ended(draft: _Draft, event: WatchedEnded) -> _Draft:
    if event.task_id in draft.before.core.dependencies:
        _dependency_ended(draft, event)
    waits = tuple(_without(wait, event.task_id) for wait in draft.before.core.waits)
    if waits != draft.before.core.waits:
        _waited_task_ended(draft, waits)
    return draft


def _dependency_ended(draft: _Draft, event: WatchedEnded) -> None:
    if event.state is not S and not draft.before.input.run_if_dependency_fails:
        how = "failed" if event.state is F else "was canceled"
        details = {"task_id": event.task_id, "state": str(event.state)}
        draft.end(F, TaskError("dependency_failed", f"{event.task_id}, which it depends on, {how}", details))
        return
    left = tuple(other for other in draft.before.core.dependencies if other != event.task_id)
    draft.core["dependencies"] = left
    if not left:
        draft.due(max(draft.before.core.due_at or draft.now, draft.now))


def _waited_task_ended(draft: _Draft, waits: tuple[Wait, ...]) -> None:
    core = draft.before.core
    draft.core["waits"] = waits
    if core.is_held or not any(_is_over(wait, draft) for wait in waits):
        return
    if core.returned:
        draft.end(S, by=core.attempt)
    else:
        draft.due(draft.now)


def _watched_asked(draft: _Draft, event: WatchedAsked) -> _Draft:
    core = draft.before.core
    waits = (wait for wait in core.waits if isinstance(wait, WaitForTasks) and event.task_id in wait.task_ids)
    if not core.is_held and any(wait.seen is not None for wait in waits):
        draft.due(draft.now)
    return draft


def _rung(draft: _Draft, _: Rung) -> _Draft:
    core = draft.before.core
    draft.core["rung"] = core.rung + 1
    if not core.is_held and any(isinstance(wait, WaitForNews) and _is_over(wait, draft) for wait in core.waits):
        draft.due(draft.now)
    return draft


# --- shared by several handlers ----------------------------------------------------------------------


def _stop_told(draft: _Draft, journaled: bool, chance: float = 1.0, ending: AttemptEnding | None = None) -> bool:
    """Settle as the standing order to stop says. False when there is none."""
    stopping = draft.before.core.stopping
    if stopping is None:
        return False
    if draft.before.core.cancel_requested_at is not None:
        _settle_canceled(draft, ending or "canceled", by=None if ending == "lost" else draft.before.core.attempt)
    else:
        error = stopping.error or TaskError("timeout", "the task took too long")
        _fail_attempt(draft, error, ending or "failed", journaled, chance, retryable=not _is_final(error))
    return True


def _is_final(error: TaskError) -> bool:
    """Whether another attempt would meet the same end: its time as a whole is up, or its question's."""
    if error.kind == "timeout":
        return isinstance(error.details, Mapping) and error.details.get("timeout") == "total"
    return error.kind == "input_expired"


def _settle_canceled(draft: _Draft, ending: AttemptEnding, *, by: int | None = None) -> None:
    draft.close_attempt(ending)
    draft.cancel_children(reason="its parent was canceled")  # those that came after the request to cancel
    draft.end(C, by=by)


def _hand_over(draft: _Draft, journaled: bool) -> None:
    """Give the task back unharmed: due at once, and no failure."""
    draft.close_attempt("released")
    if journaled:
        draft.core["failures"] = 0
    draft.due(draft.now)


def _fail_attempt(
    draft: _Draft, error: TaskError, ending: AttemptEnding, journaled: bool, chance: float, *, retryable: bool
) -> None:
    core, policy = draft.before.core, draft.before.input.retry
    failures = 1 if journaled else core.failures + 1
    draft.core["failures"] = failures
    draft.close_attempt(ending, error)
    if not retryable or retry.exhausted(policy, failures):
        draft.end(F, error, by=None if ending == "lost" else core.attempt)
        return
    draft.due(draft.now + retry.delay(policy, failures, chance))
    draft.core["state"] = Q


def _resume_after(draft: _Draft, request: InputRequest) -> None:
    """A request was closed: the task runs on, and is due if nobody holds it and it waited for this."""
    core = draft.before.core
    if core.state is not Q:
        draft.settle_state()
    if core.is_held:
        return
    waited = any(isinstance(wait, WaitForAnswer) and wait.request_id == request.id for wait in core.waits)
    if waited or (not draft.get("requests") and core.due_at is None):
        draft.due(draft.now)


def _is_over(wait: Wait, draft: _Draft) -> bool:
    match wait:
        case WaitForAnswer():
            return all(request.id != wait.request_id for request in draft.get("requests"))
        case WaitUntil():
            return wait.until <= draft.now
        case WaitForTasks():
            return not wait.task_ids
        case WaitForMessage():
            return cast(int, draft.get("messages")) > wait.seen
        case WaitForNews():
            return cast(int, draft.get("rung")) > wait.seen


def _without(wait: Wait, task_id: str) -> Wait:
    if not isinstance(wait, WaitForTasks) or task_id not in wait.task_ids:
        return wait
    if not wait.every:
        return evolve(wait, task_ids=())
    return evolve(wait, task_ids=tuple(other for other in wait.task_ids if other != task_id))


def result_path(task_id: str) -> str:
    """Where a task's result stands among its session's files."""
    return f"/.tasks/{task_id}/result.json"


def _keep_result(draft: _Draft, result: bytes | None) -> None:
    if result is None:
        return
    task = draft.before
    path = result_path(task.id)
    draft.outcome["result_path"] = path
    draft.extra["files"] = (FileWrite(task.session_id, path, result, "application/json", draft.now, task.id),)


def _with_artifacts(outcome: Outcome, added: tuple[Any, ...]) -> tuple[Any, ...]:
    names = {artifact.name for artifact in added}
    return (*(artifact for artifact in outcome.artifacts if artifact.name not in names), *added)


_Handler: TypeAlias = Callable[[_Draft, Any], _Draft]

_HANDLERS: Mapping[type[Any], _Handler] = {
    Claimed: _claimed,
    Asked: _asked,
    Posted: _posted,
    Produced: _produced,
    Parked: _parked,
    Released: _released,
    Succeeded: _succeeded,
    Failed: _failed,
    Stopped: _stopped,
    Enriched: _enriched,
    HolderLost: _holder_lost,
    Answered: _answered,
    MessageReceived: _message_received,
    Told: _told,
    Reprioritized: _reprioritized,
    Debounced: _debounced,
    CancelRequested: _cancel_requested,
    DeadlinePassed: _deadline_passed,
    WatchedEnded: _watched_ended,
    WatchedAsked: _watched_asked,
    Rung: _rung,
}
assert set(_HANDLERS) == set(EVENTS)
