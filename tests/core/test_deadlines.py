"""The four timeouts, what questions and a grace add to them, and when the next look at the clock is due."""

import pytest

from outrider.core.deadlines import next_deadline
from outrider.core.errors import Superseded
from outrider.core.events import HolderLost, Stopped, WatchedEnded
from outrider.core.task import Retry, State, Timeouts, WaitForAnswer, WaitForMessage, WaitUntil
from outrider.core.values import SECOND
from tests.core.stage import OTHER, START, Stage, held, new, question, the

SPAN = 60 * SECOND


def timed_out(stage: Stage) -> object:
    error = the(stage.task.outcome.error if stage.task.is_terminal else the(stage.task.core.stopping).error)
    assert error.kind == "timeout"
    return error.details


def test_a_task_without_deadlines_needs_no_look():
    assert new().task.core.next_deadline_at is None
    assert held().ask().look().last.is_noop


# --- queue -------------------------------------------------------------------------------------------


def test_queue_fails_a_task_that_no_worker_took():
    stage = new(timeouts=Timeouts(queue=SPAN))
    assert stage.task.core.next_deadline_at == START + SPAN
    assert stage.later(SPAN).look().task.state is State.FAILED
    assert timed_out(stage) == {"timeout": "queue", "seconds": 60.0}


def test_queue_is_over_with_the_first_claim():
    stage = new(timeouts=Timeouts(queue=SPAN)).claim()
    assert stage.task.core.next_deadline_at is None
    assert stage.fail().later(SPAN).look().last.is_noop


def test_queue_counts_from_when_a_delayed_task_is_due():
    stage = new(START + 9 * SPAN, timeouts=Timeouts(queue=SPAN))
    assert stage.task.core.next_deadline_at == START + 10 * SPAN
    assert stage.later(2 * SPAN).look().last.is_noop


def test_queue_does_not_count_while_a_task_waits_for_others():
    stage = new(timeouts=Timeouts(queue=SPAN), depends_on=(OTHER,)).later(9 * SPAN)
    assert stage.task.core.next_deadline_at is None
    assert stage.look().last.is_noop
    assert stage.tell(WatchedEnded(OTHER, State.SUCCEEDED)).task.core.next_deadline_at == stage.now + SPAN


# --- run ---------------------------------------------------------------------------------------------


def test_run_bounds_one_attempt_and_tells_its_holder_to_stop():
    stage = held(timeouts=Timeouts(run=SPAN))
    assert stage.task.core.next_deadline_at == START + SECOND + SPAN
    stage.later(SPAN).look()
    assert (stage.task.state, stage.task.core.is_held) == (State.RUNNING, True)
    assert timed_out(stage) == {"timeout": "run", "seconds": 60.0}
    assert the(stage.phase).reason == "stopping: timeout"


def test_an_attempt_that_stops_at_its_run_timeout_is_a_failure_and_tried_again():
    stage = held(timeouts=Timeouts(run=SPAN)).later(SPAN).look().tell(Stopped(1, chance=0))
    assert (stage.task.state, stage.task.core.failures) == (State.QUEUED, 1)
    assert the(the(stage.last.ended).error).kind == "timeout"
    assert stage.claim().task.core.next_deadline_at == stage.now + SPAN


def test_one_that_was_lost_while_it_should_stop_is_tried_again_likewise():
    stage = held(timeouts=Timeouts(run=SPAN)).later(SPAN).look().lose()
    assert (stage.task.state, stage.task.core.failures) == (State.QUEUED, 1)


def test_one_that_does_not_stop_fails_its_task_after_the_grace_and_is_not_tried_again():
    stage = held(timeouts=Timeouts(run=SPAN)).later(SPAN).look()
    assert stage.task.core.next_deadline_at == stage.now + 10 * SECOND
    assert stage.later(10 * SECOND - 1).look().last.is_noop
    assert stage.later(1).look().task.state is State.FAILED
    assert (the(stage.last.ended).ending, timed_out(stage)) == ("forced", {"timeout": "run", "seconds": 60.0})
    with pytest.raises(Superseded):
        stage.succeed()


def test_run_does_not_count_while_a_task_is_parked():
    stage = held(timeouts=Timeouts(run=SPAN)).park(WaitForMessage(0)).later(9 * SPAN)
    assert stage.task.core.next_deadline_at is None
    assert stage.look().last.is_noop


# --- idle --------------------------------------------------------------------------------------------


def test_idle_counts_from_the_start_of_the_attempt_while_there_is_no_sign_of_life():
    stage = held(timeouts=Timeouts(idle=SPAN))
    assert stage.task.core.next_deadline_at == START + SECOND + SPAN
    stage.later(SPAN).look()
    assert timed_out(stage) == {"timeout": "idle", "seconds": 60.0}


def test_idle_moves_on_with_every_sign_of_life():
    stage = held(timeouts=Timeouts(idle=SPAN)).later(SPAN).look(active_at=START + 50 * SECOND)
    assert (stage.task.core.next_deadline_at, stage.task.core.stopping) == (START + 50 * SECOND + SPAN, None)
    assert stage.task.core.updated_at == stage.now


@pytest.mark.parametrize("event", [WatchedEnded(OTHER, State.FAILED), HolderLost(9)], ids=["not awaited", "not held"])
def test_news_that_changes_nothing_does_not_forget_the_sign_of_life(event):
    stage = held(timeouts=Timeouts(idle=SPAN)).later(SPAN).look(active_at=START + 50 * SECOND)
    assert stage.tell(event).last.is_noop
    assert stage.task.core.next_deadline_at == START + 50 * SECOND + SPAN


def test_a_sign_of_life_of_an_earlier_attempt_does_not_count():
    stage = held(timeouts=Timeouts(idle=SPAN)).lose().later(SPAN).claim().look(active_at=START)
    assert stage.task.core.next_deadline_at == stage.now + SPAN


# --- total -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda **fields: new(**fields),
        lambda **fields: new(START + 9 * SPAN, **fields),
        lambda **fields: new(depends_on=(OTHER,), **fields),
        lambda **fields: held(**fields).fail(),
        lambda **fields: held(**fields).park(WaitUntil(START + 9 * SPAN)),
        lambda **fields: held(**fields).ask().park(WaitForAnswer("r1")),
        lambda **fields: held(**fields).succeed(open_children=(OTHER,)),
    ],
    ids=["ready", "delayed", "dependent", "backing off", "sleeping", "asking", "returned"],
)
def test_total_ends_a_task_that_nobody_holds_at_once(make):
    stage = make(timeouts=Timeouts(total=SPAN))
    assert stage.task.core.next_deadline_at == START + SPAN
    stage.now = START + SPAN
    assert stage.look().task.state is State.FAILED
    assert timed_out(stage) == {"timeout": "total", "seconds": 60.0}


def test_total_ends_a_held_task_for_good_once_it_has_stopped():
    stage = held(timeouts=Timeouts(total=SPAN)).later(SPAN).look()
    assert not stage.task.is_terminal
    assert stage.tell(Stopped(1)).task.state is State.FAILED
    assert timed_out(stage) == {"timeout": "total", "seconds": 60.0}


def test_work_that_finishes_within_the_grace_has_finished():
    assert held(timeouts=Timeouts(total=SPAN)).later(SPAN).look().succeed().task.state is State.SUCCEEDED


def test_of_several_timeouts_that_have_passed_the_gravest_counts():
    stage = held(timeouts=Timeouts(run=SECOND, idle=SECOND, total=SPAN)).later(SPAN).look()
    assert timed_out(stage) == {"timeout": "total", "seconds": 60.0}


# --- questions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked", [question(deadline_at=START + SPAN), question(remind_at=START + SPAN)], ids=["deadline", "reminder"]
)
def test_a_question_may_be_the_next_deadline_held_or_parked(asked):
    stage = held(timeouts=Timeouts(total=9 * SPAN)).ask(asked)
    assert stage.task.core.next_deadline_at == START + SPAN
    assert stage.park(WaitForAnswer("r1")).task.core.next_deadline_at == START + SPAN
    assert stage.answer().task.core.next_deadline_at == START + 9 * SPAN


def test_a_nudge_before_the_deadline_comes_once():
    request = question(kind="approval", on_expiry="deny", remind_at=START + SPAN, deadline_at=START + 2 * SPAN)
    stage = held(wake_policy="on_terminal").ask(request)
    stage.now = START + SPAN
    assert stage.look().task.core.requests[0].remind_at is None
    assert stage.last.requests[0].status == "pending"
    assert stage.task.core.next_deadline_at == START + 2 * SPAN
    assert stage.told == ["question", "reminder"]


def test_questions_that_expire_together_are_closed_together():
    requests = [question(id, on_expiry="default", deadline_at=START + SPAN) for id in ("r1", "r2")]
    stage = held().ask(*requests).park(WaitForAnswer("r1"), WaitForAnswer("r2")).later(SPAN).look()
    assert [closed.id for closed in stage.last.requests] == ["r1", "r2"]
    assert (stage.task.state, stage.task.core.due_at) == (State.RUNNING, stage.now)


def test_of_two_questions_that_fail_a_held_task_the_first_says_why():
    requests = [question(id, on_expiry="fail", deadline_at=START + SPAN) for id in ("r1", "r2")]
    stage = held().ask(*requests).later(SPAN).look()
    assert the(the(stage.task.core.stopping).error).details == {"request_id": "r1"}


def test_a_task_that_one_question_has_failed_is_not_failed_again_by_the_next():
    requests = [question(id, on_expiry="fail", deadline_at=START + SPAN) for id in ("r1", "r2")]
    stage = held(on_open_children="detach").ask(*requests).park(WaitForAnswer("r1")).later(SPAN).look()
    assert [(closed.id, closed.status) for closed in stage.last.requests] == [("r1", "expired"), ("r2", "withdrawn")]
    assert [follow_up.relation for follow_up in stage.last.follow_ups] == ["watchers"]


def test_a_question_that_expires_while_its_task_is_being_canceled_does_not_turn_the_cancel_into_a_failure():
    stage = held().ask(question(on_expiry="fail", deadline_at=START + 5 * SECOND)).cancel().later(5 * SECOND).look()
    assert the(stage.task.core.stopping).cause == "cancel"
    assert stage.tell(Stopped(1)).task.state is State.CANCELED


def test_a_question_that_expires_while_its_task_backs_off_is_answered_and_the_back_off_stays():
    request = question(on_expiry="default", deadline_at=START + 5 * SECOND)
    stage = held(retry=Retry(initial=SPAN)).ask(request).fail()
    due_at = stage.task.core.due_at
    assert stage.later(5 * SECOND).look().task.core.requests == ()
    assert (stage.task.state, stage.task.core.due_at) == (State.QUEUED, due_at)


# --- the earliest ------------------------------------------------------------------------------------


def test_the_next_deadline_is_the_earliest_of_all():
    timeouts = Timeouts(run=30 * SECOND, idle=20 * SECOND, total=40 * SECOND)
    stage = held(timeouts=timeouts).ask(question(deadline_at=START + 10 * SECOND, remind_at=START + 5 * SECOND))
    assert stage.task.core.next_deadline_at == START + 5 * SECOND
    assert stage.later(4 * SECOND).look().task.core.next_deadline_at == START + 10 * SECOND
    given, core = stage.later(5 * SECOND).look().task.input, stage.task.core
    assert core.next_deadline_at == START + 21 * SECOND
    assert next_deadline(given, core, active_at=START + 9 * SECOND) == START + 29 * SECOND
    assert next_deadline(given, core, active_at=START + 30 * SECOND) == START + 31 * SECOND


def test_while_a_holder_is_told_to_stop_only_the_end_of_its_grace_and_questions_count():
    stage = held(timeouts=Timeouts(run=SECOND, total=5 * SECOND)).later().look()
    assert stage.task.core.next_deadline_at == stage.now + 10 * SECOND


def test_an_ended_task_needs_no_look():
    stage = held(timeouts=Timeouts(total=SPAN)).ask(question(deadline_at=START + SPAN)).succeed()
    assert stage.task.core.next_deadline_at is None
    assert stage.later(SPAN).look().last.is_noop
