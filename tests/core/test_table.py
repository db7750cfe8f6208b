"""Every state meets every event.

`GRID` is written by hand and says what comes of each event in each situation: the next state, or who is refused
and how. A new state or event fails `test_the_grid_is_complete` until it has its row or column. `ALSO` holds the
moves that take another payload than the grid's; with them, every move that the table allows is really made.
"""

from collections.abc import Callable

import pytest

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
from outrider.core.machine import TRANSITIONS, apply
from outrider.core.task import Artifact, Retry, State, Timeouts, WaitForAnswer, WaitForMessage, WaitUntil
from outrider.core.values import SECOND, evolve
from tests.core.stage import BUG, OTHER, START, Stage, held, message, new, question

LONG = START + 10_000 * SECOND
ENDS_SOON = Timeouts(total=9 * SECOND)

SITUATIONS: dict[str, Callable[[], Stage]] = {
    # queued
    "ready": new,
    "blocked": lambda: new(depends_on=(OTHER,)),
    "retrying": lambda: held().ask().fail(),
    # running
    "held": held,
    "told": lambda: held().cancel(),
    "orphan": lambda: held().lose(),
    "parked": lambda: held().park(WaitForMessage(0), WaitUntil(LONG)),
    "returned": lambda: held().succeed(open_children=(OTHER,)),
    # awaiting input
    "asking": lambda: held().ask(),
    "waiting": lambda: held().ask().park(WaitForAnswer("r1")),
    # ended
    "succeeded": lambda: held().succeed(),
    "failed": lambda: held().fail(retryable=False),
    "canceled": lambda: held().cancel().tell(Stopped(1)),
}

SAMPLES: dict[str, Event] = {
    "Claimed": Claimed("worker_b"),
    "Asked": Asked(1, question("r2")),
    "Posted": Posted(1, message()),
    "Produced": Produced(1, Artifact("report", "file")),
    "Parked": Parked(1, (WaitUntil(LONG),)),
    "Released": Released(1),
    "Succeeded": Succeeded(1, b"1"),
    "Failed": Failed(1, BUG),
    "Stopped": Stopped(1),
    "Enriched": Enriched(1, "more"),
    "HolderLost": HolderLost(1),
    "Answered": Answered("r1", "yes"),
    "MessageReceived": MessageReceived(message()),
    "Told": Told("entry_1", {"text": "hello"}),
    "Reprioritized": Reprioritized(5),
    "Debounced": Debounced({"path": "new"}, LONG),
    "CancelRequested": CancelRequested(),
    "DeadlinePassed": DeadlinePassed(),
    "WatchedEnded": WatchedEnded(OTHER, State.SUCCEEDED),
    "WatchedAsked": WatchedAsked(OTHER),
    "Rung": Rung("session_a"),
}

OUTCOMES: dict[str, State | type[BaseException]] = {
    "Q": State.QUEUED,
    "R": State.RUNNING,
    "A": State.AWAITING_INPUT,
    "S": State.SUCCEEDED,
    "F": State.FAILED,
    "C": State.CANCELED,
    "x": Superseded,
    "t": TaskFinished,
    "r": RequestClosed,
    "i": IllegalMove,
}

GRID = """
                | ready blocked retrying | held told orphan parked returned | asking waiting | succeeded failed canceled
Claimed         | R     i       i        | i    i    R      i      i        | i      i       | t         t      t
Asked           | x     x       x        | A    A    x      x      x        | A      x       | x         x      x
Posted          | x     x       x        | R    R    x      x      x        | A      x       | x         x      x
Produced        | x     x       x        | R    R    x      x      x        | A      x       | x         x      x
Parked          | x     x       x        | R    C    x      x      x        | A      x       | x         x      x
Released        | x     x       x        | R    C    x      x      x        | A      x       | x         x      x
Succeeded       | x     x       x        | S    S    x      x      x        | S      x       | x         x      x
Failed          | x     x       x        | Q    C    x      x      x        | Q      x       | x         x      x
Stopped         | x     x       x        | R    C    x      x      x        | A      x       | x         x      x
Enriched        | x     x       x        | i    i    x      x      x        | i      x       | S         F      C
HolderLost      | Q     Q       Q        | R    C    R      R      R        | A      A       | S         F      C
Answered        | r     r       Q        | r    r    r      r      r        | R      R       | r         r      r
MessageReceived | Q     Q       Q        | R    R    R      R      R        | A      A       | t         t      t
Told            | i     i       i        | i    i    i      i      i        | i      i       | t         t      t
Reprioritized   | Q     Q       Q        | R    R    R      R      R        | A      A       | t         t      t
Debounced       | i     i       i        | i    i    i      i      i        | i      i       | t         t      t
CancelRequested | C     C       C        | R    R    C      C      C        | A      C       | S         F      C
DeadlinePassed  | Q     Q       Q        | R    R    R      R      R        | A      A       | S         F      C
WatchedEnded    | Q     Q       Q        | R    R    R      R      S        | A      A       | S         F      C
WatchedAsked    | Q     Q       Q        | R    R    R      R      R        | A      A       | S         F      C
Rung            | Q     Q       Q        | R    R    R      R      R        | A      A       | t         t      t
"""


Move = tuple[State, type, State]


def read_grid() -> dict[tuple[str, str], State | type[BaseException]]:
    """The grid as (situation, event) -> outcome."""
    heading, *rows = GRID.strip().splitlines()
    assert [word for word in heading.split() if word != "|"] == list(SITUATIONS)
    cells = {}
    for row in rows:
        name, *written = (word for word in row.split() if word != "|")
        for situation, outcome in zip(SITUATIONS, written, strict=True):
            cells[situation, name] = OUTCOMES[outcome]
    return cells


CELLS = read_grid()

Q, R, A, S, F, C = (OUTCOMES[letter] for letter in "QRASFC")


def told_to_end() -> Stage:
    """Held, and told to stop since its total time is up."""
    return held(timeouts=ENDS_SOON).later(9 * SECOND).look()


def told_to_retry(**fields: object) -> Stage:
    """Held, and told to stop since the attempt took too long."""
    return held(timeouts=Timeouts(run=SECOND), **fields).later().look()


def waiting_for(policy: str) -> Stage:
    """Parked on a question that expires by this policy, at a moment that has come."""
    request = question(on_expiry=policy, deadline_at=START + 9 * SECOND)
    return held().ask(request).park(WaitForAnswer("r1")).later(9 * SECOND)


def asking(stage: Stage) -> Stage:
    return stage.ask(question("r1"))


ALSO: list[tuple[Callable[[], Stage], Event, object]] = [
    (lambda: held().ask().fail(chance=0), Claimed("worker_b"), A),
    (lambda: new(debounce_key="build"), Debounced({"path": "new"}, LONG), Q),
    (lambda: new(timeouts=ENDS_SOON).later(9 * SECOND), DeadlinePassed(), F),
    (lambda: new(depends_on=(OTHER,)), WatchedEnded(OTHER, State.FAILED), F),
    # a session's turn
    *(
        (lambda: new(kind="turn"), Told("entry_1", {}, interrupts), C if interrupts else Q)
        for interrupts in (False, True)
    ),
    (lambda: held(kind="turn"), Told("entry_1", {}), R),
    (lambda: held(kind="turn").park(WaitUntil(LONG)), Told("entry_1", {}, interrupts=True), C),
    (lambda: held(kind="turn").ask(), Told("entry_1", {}), A),
    (lambda: held(kind="turn").ask().park(WaitForAnswer("r1")), Told("entry_1", {}, interrupts=True), C),
    (lambda: held(kind="turn").ring(), Succeeded(1, seen=0), R),
    (lambda: held(kind="turn").ring().ask(), Succeeded(1, seen=0), R),
    # running: a standing order to stop decides what a report means
    *((told_to_end, event, F) for event in (Parked(1, ()), Released(1), Failed(1, BUG), Stopped(1), HolderLost(1))),
    *((told_to_retry, event, Q) for event in (Parked(1, ()), Released(1), Failed(1, BUG), Stopped(1), HolderLost(1))),
    (lambda: told_to_end().later(10 * SECOND), DeadlinePassed(), F),
    (lambda: held().cancel().later(10 * SECOND), DeadlinePassed(), C),
    (held, Succeeded(1, open_children=(OTHER,)), R),
    (lambda: held().cancel(), Succeeded(1, open_children=(OTHER,)), C),
    (lambda: held(result_schema={}), Succeeded(1), F),
    (lambda: told_to_retry(result_schema={}), Succeeded(1), Q),
    (held, Failed(1, BUG, retryable=False), F),
    (lambda: held(retry=Retry(max_failures=1)), HolderLost(1), F),
    # awaiting input: likewise
    (lambda: held().ask().lose(), Claimed("worker_b"), A),
    *(
        (lambda: asking(told_to_end()), event, F)
        for event in (Parked(1, ()), Released(1), Failed(1, BUG), Stopped(1), HolderLost(1))
    ),
    *(
        (lambda: asking(told_to_retry()), event, Q)
        for event in (Parked(1, ()), Released(1), Failed(1, BUG), Stopped(1), HolderLost(1))
    ),
    *(
        (lambda: held().ask().cancel(), event, C)
        for event in (Parked(1, ()), Released(1), Failed(1, BUG), Stopped(1), HolderLost(1))
    ),
    (lambda: held().ask(), Succeeded(1, open_children=(OTHER,)), R),
    (lambda: held().ask().cancel(), Succeeded(1, open_children=(OTHER,)), C),
    (lambda: held(result_schema={}).ask(), Succeeded(1), F),
    (lambda: asking(told_to_retry(result_schema={})), Succeeded(1), Q),
    (lambda: held().ask(question("r1"), question("r2")), Answered("r1", "yes"), A),
    (lambda: held().ask(), CancelRequested(), A),
    (lambda: held().ask().cancel().later(10 * SECOND), DeadlinePassed(), C),
    (lambda: waiting_for("default"), DeadlinePassed(), R),
    (lambda: waiting_for("fail"), DeadlinePassed(), F),
    (lambda: waiting_for("remind"), DeadlinePassed(), A),
]


def test_the_grid_is_complete():
    """A state or event that was added has no case yet: give it a situation or a sample, and fill its cells."""
    assert {name: type(sample).__name__ for name, sample in SAMPLES.items()} == {name: name for name in SAMPLES}
    assert set(SAMPLES) == {event.__name__ for event in EVENTS}
    assert {make().task.state for make in SITUATIONS.values()} == set(State)
    assert set(CELLS) == {(situation, event) for situation in SITUATIONS for event in SAMPLES}
    assert set(TRANSITIONS) == set(State)


@pytest.mark.parametrize(("situation", "event"), CELLS)
def test_each_event_does_in_each_situation_what_the_grid_says(situation: str, event: str):
    stage, outcome, sample = SITUATIONS[situation](), CELLS[situation, event], SAMPLES[event]
    before = stage.task
    if isinstance(outcome, State):
        assert stage.tell(sample).task.state is outcome
    else:
        with pytest.raises(outcome) as refusal:
            stage.tell(sample)
        assert refusal.type is outcome
        assert stage.task == before


@pytest.mark.parametrize("event", [event.__name__ for event in HOLDER_EVENTS])
def test_a_stale_holder_is_superseded_in_every_situation(event: str):
    for make in SITUATIONS.values():
        stage = make()
        with pytest.raises(Superseded):
            stage.tell(evolve(SAMPLES[event], attempt=7))


@pytest.mark.parametrize(("make", "event", "outcome"), ALSO, ids=lambda value: getattr(type(value), "__name__", ""))
def test_other_payloads_lead_elsewhere(make: Callable[[], Stage], event: Event, outcome: State):
    assert make().tell(event).task.state is outcome


def test_every_move_that_the_table_allows_is_made_by_some_case_and_no_other():
    made: set[Move] = set()
    for (situation, name), outcome in CELLS.items():
        if isinstance(outcome, State):
            made.add((SITUATIONS[situation]().task.state, type(SAMPLES[name]), outcome))
    for make, event, _ in ALSO:
        stage = make()
        made.add((stage.task.state, type(event), apply(stage.task, event, stage.now).task.state))
    allowed = {
        (state, event, following)
        for state, row in TRANSITIONS.items()
        for event, followings in row.items()
        for following in followings
    }
    assert made == allowed


def test_the_end_of_a_task_has_no_way_out():
    for state in State:
        if state.is_terminal:
            assert {following for row in TRANSITIONS[state].values() for following in row} == {state}
