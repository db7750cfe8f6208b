"""What holds after any history: random events, from holders and zombies alike, in any order and at any time."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.core import replay
from outrider.core.change import Change
from outrider.core.deadlines import next_deadline
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
from outrider.core.machine import TRANSITIONS, apply, create
from outrider.core.task import (
    TERMINAL,
    Artifact,
    Core,
    Live,
    NewTask,
    Retry,
    State,
    Task,
    TaskError,
    Timeouts,
    WaitForAnswer,
    WaitForMessage,
    WaitForNews,
    WaitForTasks,
    WaitUntil,
    phase_of,
)
from outrider.core.values import SECOND, Instant, evolve
from tests.core import stage
from tests.core.stage import START, TASK

REFUSALS = (Superseded, TaskFinished, RequestClosed, IllegalMove)

# Few ids and short spans, so that events meet.
ids = st.sampled_from(["r1", "r2", "r3"])
others = st.sampled_from(["task_b", "task_c"])
attempts = st.integers(1, 4)
spans = st.integers(0, 20 * SECOND)
moments = spans.map(lambda span: START + span)
maybe = st.none() | spans
chances = st.floats(0, 1)
errors = st.builds(TaskError, st.sampled_from(["exception", "interrupted"]), st.just("no"))
lives = st.none() | st.builds(Live, st.none() | st.just("reading"), iterations=st.integers(0, 3))
watched = st.lists(others, unique=True).map(tuple)

inputs = st.builds(
    stage.given,
    kind=st.sampled_from(["background_tool", "turn"]),
    wake_policy=st.sampled_from(["silent", "on_terminal", "on_activity"]),
    depends_on=watched,
    run_if_dependency_fails=st.booleans(),
    on_open_children=st.sampled_from(["wait", "cancel", "detach"]),
    retry=st.builds(Retry, max_failures=st.integers(1, 4)),
    timeouts=st.just(Timeouts()) | st.builds(Timeouts, maybe, maybe, maybe, maybe),
    cancel_grace=spans,
    debounce_key=st.sampled_from([None, "build"]),
    debounce_until=st.none() | moments,
    result_schema=st.none() | st.just({"type": "object"}),
)

requests = st.builds(
    stage.question,
    ids,
    kind=st.sampled_from(["question", "approval", "auth"]),
    on_expiry=st.sampled_from(["default", "deny", "fail", "remind"]),
    deadline_at=st.none() | moments,
    remind_at=st.none() | moments,
    remind_every=st.none() | st.integers(SECOND, 20 * SECOND),
)

waits = st.one_of(
    st.builds(WaitForAnswer, ids),
    st.builds(WaitUntil, moments),
    st.builds(WaitForTasks, watched, st.booleans(), seen=st.sampled_from([None, {stage.OTHER: 1}])),
    st.builds(WaitForMessage, st.integers(0, 2)),
    st.builds(WaitForNews, st.integers(0, 2)),
)

SAMPLES: dict[type, st.SearchStrategy[Any]] = {
    Claimed: st.builds(Claimed, st.sampled_from(["worker_a", "worker_b"])),
    Asked: st.builds(Asked, attempts, requests, live=lives),
    Posted: st.builds(Posted, attempts, st.just(stage.message())),
    Produced: st.builds(Produced, attempts, st.builds(Artifact, ids, st.just("file"))),
    Parked: st.builds(Parked, attempts, st.lists(waits, max_size=3).map(tuple), st.booleans(), lives),
    Released: st.builds(Released, attempts, st.booleans(), lives),
    Succeeded: st.builds(
        Succeeded,
        attempts,
        st.none() | st.just(b"{}"),
        st.none() | st.just("done"),
        watched,
        st.none() | st.just("no"),
        seen=st.none() | st.integers(0, 2),
        leaves=st.booleans(),
    ),
    Failed: st.builds(Failed, attempts, errors, st.booleans(), chances, st.booleans()),
    Stopped: st.builds(Stopped, attempts, chances, st.booleans(), lives),
    Enriched: st.builds(Enriched, attempts, st.none() | st.just("more")),
    HolderLost: st.builds(HolderLost, attempts, st.booleans()),
    Answered: st.builds(Answered, ids, st.booleans()),
    MessageReceived: st.just(MessageReceived(stage.message())),
    Told: st.builds(Told, st.just("entry_1"), st.just({"text": "hello"}), st.booleans()),
    Reprioritized: st.builds(Reprioritized, st.integers(-2, 2)),
    Debounced: st.builds(Debounced, st.just({"path": "new"}), moments),
    CancelRequested: st.builds(
        CancelRequested, st.none() | st.just("ada"), grace=maybe, include_detached=st.booleans()
    ),
    DeadlinePassed: st.builds(DeadlinePassed, st.none() | moments),
    WatchedAsked: st.builds(WatchedAsked, others),
    WatchedEnded: st.builds(WatchedEnded, others, st.sampled_from(sorted(TERMINAL))),
    Rung: st.just(Rung("session_a")),
}

# As often as in life: a task is claimed and reported on by its holder more often than anything else.
COMMON = (Claimed, Asked, Parked, DeadlinePassed, Answered)
any_event = st.sampled_from([*EVENTS, *COMMON, *COMMON]).flatmap(lambda kind: SAMPLES[kind])


class History:
    """A task, what happened to it, and what must hold whatever it is."""

    def __init__(self, change: Change, now: Instant) -> None:
        self.now = now
        self.task = change.task
        self.snapshot = replay.fold(None, "task.created", decoded(change))
        self.active_at: Instant | None = None

    def tell(self, event: Event) -> None:
        before, copy = self.task, evolve(self.task)
        try:
            change = apply(before, event, self.now)
        except REFUSALS as refusal:
            assert before == copy
            check_refusal(before, event, refusal)
            return
        assert before == copy, "the input was changed"
        assert change == apply(before, event, self.now), "the same input gave something else"
        if isinstance(event, DeadlinePassed):
            self.active_at = event.active_at
        check_move(before, event, change, self.now)
        check_record(change.task)
        self.task = change.task
        if not change.is_noop:
            self.snapshot = replay.fold(self.snapshot, "task.updated", decoded(change))
        assert self.snapshot == orjson.loads(orjson.dumps(groups(change.task)))


@st.composite
def histories(draw: st.DrawFn) -> tuple[History, list[tuple[int, Event]]]:
    new = NewTask(TASK, draw(inputs), draw(st.none() | moments))
    events = draw(st.lists(st.tuples(st.sampled_from([0, 0, 1, SECOND, 7 * SECOND]), any_event), max_size=25))
    return History(create(new, START), START), events


def test_every_event_is_among_the_samples():
    assert set(SAMPLES) == set(EVENTS)


@settings(max_examples=400)
@given(histories(), st.data())
def test_the_law_holds_after_any_history(drawn: tuple[History, list[tuple[int, Event]]], data: st.DataObject):
    history, events = drawn
    for span, event in events:
        history.now += span
        if isinstance(event, HOLDER_EVENTS) and data.draw(st.integers(0, 5), "zombie") != 0:
            event = evolve(event, attempt=history.task.core.attempt)
        history.tell(event)


@settings(max_examples=200)
@given(histories())
def test_looking_at_the_clock_comes_to_rest(drawn: tuple[History, list[tuple[int, Event]]]):
    """A deadline that has passed is dealt with: no worker looks at the same moment again and again."""
    history, events = drawn
    for span, event in events:
        history.now += span
        current = isinstance(event, HOLDER_EVENTS)
        history.tell(evolve(event, attempt=history.task.core.attempt) if current else event)
    for _ in range(3):
        history.tell(DeadlinePassed(history.now))
    deadline = history.task.core.next_deadline_at
    assert deadline is None or deadline > history.now or no_time_at_all(history.task)


@settings(max_examples=200)
@given(inputs, st.lists(st.sampled_from(["claim", "tick", "lose", "fail", "park"]), max_size=30))
def test_a_task_that_is_kept_going_ends(input: Any, moves: list[str]):
    """Liveness: with workers and a clock, whatever else happens, a task reaches an end."""
    history = History(create(NewTask(TASK, input), START), START)
    for other in input.depends_on:
        history.tell(WatchedEnded(other, State.SUCCEEDED))
    for move in [*moves, *["claim", "done"] * 20]:
        attempt = history.task.core.attempt
        history.now += 400 * SECOND
        steps: dict[str, Event] = {
            "claim": Claimed("worker_a"),
            "tick": DeadlinePassed(history.now),
            "lose": HolderLost(attempt),
            "fail": Failed(attempt, stage.BUG),
            "park": Parked(attempt, (WaitUntil(history.now + SECOND),)),
            "done": Succeeded(attempt, b"{}"),
        }
        history.tell(steps[move])
    assert history.task.is_terminal


def check_refusal(task: Task, event: Event, refusal: BaseException) -> None:
    """Who is refused, and how."""
    core = task.core
    holds = isinstance(event, HOLDER_EVENTS) and core.is_held and core.attempt == event.attempt
    if isinstance(event, HOLDER_EVENTS) and not holds:
        assert type(refusal) is Superseded
    elif isinstance(event, Answered):
        assert type(refusal) is RequestClosed
        assert core.request(event.request_id) is None
    elif task.is_terminal:
        assert type(refusal) is TaskFinished
        assert isinstance(event, Claimed | MessageReceived | Told | Reprioritized | Debounced | Rung)
    else:
        assert type(refusal) is IllegalMove
        assert isinstance(event, Claimed | Enriched | Debounced | Told)


def check_move(before: Task, event: Event, change: Change, now: Instant) -> None:
    """What one transition may do."""
    old, new = before.core, change.task.core
    assert new.state in TRANSITIONS[old.state][type(event)]
    assert change.before == old.version
    assert change.task.input is before.input
    if change.is_noop:
        assert change == Change(before, before=old.version, is_noop=True)
        return
    assert new.version == old.version + 1
    assert new.updated_at == now
    assert [entry.type for entry in change.events][:1] == ["task.updated"]
    assert change.live_changed == (change.task.live != before.live)
    if isinstance(event, HOLDER_EVENTS) and not isinstance(event, Enriched):
        assert old.is_held
        assert event.attempt == old.attempt
    if before.is_terminal:
        assert isinstance(event, Enriched)
        assert event.attempt == old.finished_by
        assert evolve(new, version=old.version, updated_at=old.updated_at) == old
    check_attempts(event, old, new, change)
    if isinstance(event, CancelRequested):
        assert change.task.is_terminal == (not old.is_held)
    if old.cancel_requested_at is not None:
        assert new.cancel_requested_at == old.cancel_requested_at
        assert new.state in (old.state, State.CANCELED, State.SUCCEEDED, State.RUNNING, State.AWAITING_INPUT)


def check_attempts(event: Event, old: Core, new: Core, change: Change) -> None:
    """Attempts only grow, and only a claim opens one; what closes one says so."""
    opened = new.is_held and not old.is_held
    assert opened == isinstance(event, Claimed)
    first = old.started_at is None
    assert new.attempt == old.attempt + (1 if opened and not first else 0)
    assert (change.ended is not None) == (old.is_held and not new.is_held)
    if change.ended is not None:
        assert change.ended.attempt == old.attempt
    assert new.failures <= old.failures + 1
    if new.failures > old.failures:
        assert change.ended is not None
        assert change.ended.ending in ("failed", "lost")
        assert change.ended.error is not None


def check_record(task: Task) -> None:
    """What every record obeys."""
    core, given_ = task.core, task.input
    live = core.state in (State.RUNNING, State.AWAITING_INPUT)
    assert (core.state is State.AWAITING_INPUT) <= bool(core.requests)
    assert (core.state is State.RUNNING) <= (not core.requests)
    assert core.is_held == (core.attempt_started_at is not None)
    assert not core.is_held or (live and core.due_at is None and core.waits == ())
    assert (core.stopping is None) or core.is_held
    assert (core.readiness is None) == (core.due_at is None)
    assert (core.readiness == "blocked") == bool(core.dependencies)
    assert not core.returned or (core.state is State.RUNNING and not core.is_held and core.due_at is None)
    assert (core.started_at is None) <= (core.state is State.QUEUED or task.is_terminal)
    assert core.attempt >= 1
    assert 0 <= core.failures <= max(core.attempt, 1)
    assert core.failures <= given_.retry.max_failures or task.is_terminal
    assert (core.finished_at is not None) == task.is_terminal
    assert (task.outcome.error is not None) == (core.state is State.FAILED)
    assert (phase_of(task) is None) == (task.is_terminal or core.state is State.AWAITING_INPUT)
    if task.is_terminal:
        assert (core.due_at, core.worker_id, core.requests, core.waits, core.next_deadline_at) == (
            None,
            None,
            (),
            (),
            None,
        )
    elif not core.is_held:
        assert core.cancel_requested_at is None, "a cancel settles at once where no attempt is open"
        assert core.due_at is not None or core.waits, "nobody will ever wake it"
    check_deadline(task)


def check_deadline(task: Task) -> None:
    """The stored deadline is the one that would be computed, but for an idle one that a sign of life moved on."""
    computed, stored = next_deadline(task.input, task.core), task.core.next_deadline_at
    if task.input.timeouts.idle is None or not task.core.is_held:
        assert stored == computed
    else:
        assert stored is not None
        assert computed is not None
        assert stored >= computed


def no_time_at_all(task: Task) -> bool:
    """A span of 0 is always over."""
    return 0 in (task.input.timeouts.idle, task.input.timeouts.run)


def groups(task: Task) -> dict[str, Any]:
    return {"input": task.input, "core": task.core, "live": task.live, "outcome": task.outcome}


def decoded(change: Change) -> Any:
    return orjson.loads(orjson.dumps(change.events[0].data))
