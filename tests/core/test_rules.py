"""The fifteen rules of the lifecycle, as far as the reducer keeps them.

What it cannot keep alone is tested where it is kept: that a store refuses a stale version or attempt and returns
the stored task for a key it knows (`tests/stores`), that a cancel returns a receipt, that answers are checked
against their schema and that a zombie is really stopped (`tests/runtime`).
"""

from dataclasses import fields

import pytest

from outrider.core.change import AttemptEnd
from outrider.core.errors import IllegalMove, RequestClosed, Superseded, TaskFinished
from outrider.core.events import (
    Answered,
    Asked,
    CancelRequested,
    Claimed,
    Enriched,
    Failed,
    FileWrite,
    HolderEvent,
    HolderLost,
    MessageReceived,
    Parked,
    Posted,
    Produced,
    Released,
    Rung,
    Step,
    Stopped,
    Succeeded,
    Told,
    WatchedAsked,
    WatchedEnded,
)
from outrider.core.machine import TRANSITIONS, create
from outrider.core.task import (
    Artifact,
    Live,
    NewTask,
    Retry,
    State,
    Stopping,
    TaskError,
    Timeouts,
    Usage,
    WaitForAnswer,
    WaitForMessage,
    WaitForTasks,
    WaitUntil,
)
from outrider.core.values import SECOND, evolve
from tests.core.stage import BUG, OTHER, START, TASK, WORKER, Stage, given, held, message, new, question, the

REPORT = Artifact("report", "file", path="/report.md")


def of_holder(attempt: int) -> list[HolderEvent]:
    return [
        Asked(attempt, question("late")),
        Posted(attempt, message()),
        Produced(attempt, REPORT),
        Parked(attempt, (WaitUntil(START),)),
        Released(attempt),
        Succeeded(attempt),
        Failed(attempt, BUG),
        Stopped(attempt),
    ]


def name_of(event: object) -> str:
    return type(event).__name__


# --- 1: terminal is final ----------------------------------------------------------------------------


def ended() -> list[Stage]:
    return [held().succeed(), held().fail(retryable=False), new().cancel()]


@pytest.mark.parametrize("stage", ended(), ids=lambda stage: str(stage.task.state))
@pytest.mark.parametrize("event", of_holder(1), ids=name_of)
def test_rule_01_a_late_report_on_an_ended_task_is_refused_and_the_holder_is_told(stage: Stage, event: HolderEvent):
    with pytest.raises(Superseded):
        stage.tell(event)


@pytest.mark.parametrize("stage", ended(), ids=lambda stage: str(stage.task.state))
def test_rule_01_a_late_write_of_a_client_on_an_ended_task_is_refused_with_the_reason(stage: Stage):
    with pytest.raises(TaskFinished, match=f"has ended as {stage.task.state}"):
        stage.send()
    with pytest.raises(RequestClosed):
        stage.answer()
    with pytest.raises(TaskFinished):
        stage.claim()


def test_rule_01_the_attempt_that_ended_a_task_may_enrich_it_without_moving_its_state():
    stage = held().succeed(summary="done").later().tell(Enriched(1, "all done", (REPORT,)))
    assert stage.task.state is State.SUCCEEDED
    assert (stage.task.outcome.summary, stage.task.outcome.artifacts) == ("all done", (REPORT,))
    assert (stage.last.inbox, stage.last.follow_ups) == ((), ())


def test_rule_01_an_artifact_of_the_same_name_replaces_the_earlier_one():
    newer = Artifact("report", "file", path="/newer.md")
    stage = held().tell(Produced(1, REPORT)).tell(Produced(1, Artifact("log", "file"))).tell(Produced(1, newer))
    assert stage.task.outcome.artifacts == (Artifact("log", "file"), newer)


@pytest.mark.parametrize(
    "stage",
    [
        new().cancel(),
        held().cancel().lose(),
        held(retry=Retry(max_failures=1)).lose(),
        held(timeouts=Timeouts(run=SECOND), retry=Retry(max_failures=1)).later().look().lose(),
        held().cancel().later(11 * SECOND).look(),
    ],
    ids=["never held", "lost while canceled", "lost", "lost while timed out", "forced"],
)
def test_rule_01_an_attempt_that_did_not_end_the_task_may_not_enrich_it(stage: Stage):
    assert stage.task.is_terminal
    with pytest.raises(Superseded):
        stage.tell(Enriched(1, "a zombie says"))


def test_rule_01_an_earlier_attempt_may_not_enrich_what_a_later_one_ended():
    stage = held().lose().claim().succeed()
    stage.tell(Enriched(2, "mine"))
    with pytest.raises(Superseded):
        stage.tell(Enriched(1, "mine too"))


def test_rule_01_a_live_holder_that_enriches_too_early_is_told_so_and_not_stopped():
    with pytest.raises(IllegalMove):
        held().tell(Enriched(1, "not yet"))


# --- 2: every report carries its attempt -------------------------------------------------------------


@pytest.mark.parametrize("event", [*of_holder(1), Enriched(1, "x")], ids=name_of)
@pytest.mark.parametrize(
    "stage",
    [held().lose().claim(), held().lose(), held().fail(), held().park(WaitForMessage(0))],
    ids=["held by the next", "orphaned", "backing off", "parked"],
)
def test_rule_02_a_stale_attempt_is_superseded_whatever_it_reports(stage: Stage, event: HolderEvent):
    with pytest.raises(Superseded) as refusal:
        stage.tell(event)
    assert (refusal.value.task_id, refusal.value.attempt) == (TASK, 1)


def test_rule_02_superseded_cannot_be_swallowed_by_a_task_that_catches_exceptions():
    assert not issubclass(Superseded, Exception)


def test_rule_02_clients_need_no_attempt():
    for event in (Answered, MessageReceived, CancelRequested):
        assert "attempt" not in {field.name for field in fields(event)}


# --- 3: due_at is the whole schedule -----------------------------------------------------------------


def test_rule_03_a_new_task_is_due_at_once():
    core = new().task.core
    assert (core.due_at, core.readiness, core.state) == (START, "ready", State.QUEUED)


def test_rule_03_a_delayed_task_is_due_at_its_moment():
    core = new(not_before=START + SECOND).task.core
    assert (core.due_at, core.readiness) == (START + SECOND, "timed")


def test_rule_03_a_moment_in_the_past_means_now():
    assert new(not_before=START - SECOND).task.core.due_at == START


def test_rule_03_a_held_task_is_not_due():
    core = held().task.core
    assert (core.due_at, core.readiness, core.is_held) == (None, None, True)


def test_rule_03_a_task_may_be_claimed_by_the_change_that_makes_it_and_both_are_logged():
    asked = NewTask(TASK, given())
    made, apart = create(asked, START, Claimed(WORKER)), Stage(create(asked, START).task).claim()
    assert (made.before, made.task, made.live_changed) == (None, apart.task, True)
    assert [event.type for event in made.events] == ["task.created", "task.updated"]
    assert made.events[0] == create(asked, START).events[0]


def test_rule_03_a_claim_takes_only_what_is_due_and_nobody_holds():
    for stage in (
        held(),
        new(not_before=START + 2),
        new(depends_on=(OTHER,)),
        held().fail(),
        held().park(WaitForMessage(0)),
        held().succeed(open_children=(OTHER,)),
    ):
        with pytest.raises(IllegalMove, match="not ready to be claimed"):
            stage.claim()


def test_rule_03_time_alone_makes_a_timed_task_claimable():
    assert new(not_before=START + SECOND).later(SECOND).claim().task.core.is_held


def test_rule_03_a_failed_task_is_due_after_its_back_off():
    stage = held(retry=Retry(initial=4 * SECOND)).fail(chance=0.5)
    assert stage.task.core.due_at == stage.now + 2 * SECOND
    assert (stage.task.state, stage.task.core.readiness) == (State.QUEUED, "timed")


def test_rule_03_a_sleeping_task_is_due_when_it_wakes():
    stage = held().park(WaitUntil(START + 9 * SECOND))
    assert (stage.task.core.due_at, stage.task.core.readiness) == (START + 9 * SECOND, "timed")


def test_rule_03_an_orphaned_or_released_task_is_due_at_once():
    for stage in (held().lose(), held().tell(Released(1))):
        assert (stage.task.core.due_at, stage.task.core.readiness) == (stage.now, "ready")


@pytest.mark.parametrize(
    ("wait", "news"),
    [
        (WaitForAnswer("r1"), Answered("r1", "yes")),
        (WaitForMessage(0), MessageReceived(message())),
        (WaitForTasks((OTHER,)), WatchedEnded(OTHER, State.FAILED)),
        (WaitForTasks((OTHER, "task_c"), every=False), WatchedEnded(OTHER, State.SUCCEEDED)),
        (WaitForTasks((OTHER, "task_c"), seen={OTHER: 1, "task_c": 1}), WatchedAsked(OTHER)),
    ],
    ids=["answer", "message", "all tasks", "any task", "a question"],
)
class TestNews:
    def test_rule_03_makes_a_parked_task_due(self, wait, news):
        stage = held().ask().park(wait, WaitUntil(START + 999 * SECOND)).later().tell(news)
        assert (stage.task.core.due_at, stage.task.core.readiness) == (stage.now, "ready")
        assert stage.task.core.waits == ()

    def test_rule_03_that_came_before_the_park_makes_the_park_due(self, wait, news):
        stage = held().ask().tell(news).later()
        if isinstance(wait, WaitForTasks):
            wait = WaitForTasks(())  # the holder, or the store by a follow-up, knows which have ended
        stage.park(wait)
        assert (stage.task.core.due_at, stage.task.core.readiness) == (stage.now, "ready")

    def test_rule_03_does_not_make_a_held_task_due(self, wait, news):
        stage = held().ask().tell(news)
        assert (stage.task.core.due_at, stage.task.core.is_held) == (None, True)


def test_rule_03_a_task_waits_on_until_all_its_tasks_have_ended():
    stage = held().park(WaitForTasks((OTHER, "task_c"))).tell(WatchedEnded(OTHER, State.SUCCEEDED))
    assert stage.task.core.due_at is None
    assert stage.tell(WatchedEnded("task_c", State.CANCELED)).task.core.due_at == stage.now


def test_rule_15_who_waits_for_a_task_hears_its_questions_whatever_its_policy_and_those_alone_who_want_to():
    stage = held(wake_policy="silent").ask()
    (told,) = stage.last.follow_ups
    assert (told.relation, told.event) == ("watchers", WatchedAsked(TASK))
    assert stage.last.inbox == ()
    assert not held(wake_policy="silent").ask(question(kind="approval")).last.follow_ups
    waiting = held().park(WaitForTasks((OTHER,), seen={OTHER: 4}))
    assert waiting.last.unasked == {OTHER: 4}
    for wait in (WaitForTasks((OTHER,)), WaitForTasks(("task_c",), seen={"task_c": 1})):
        assert held().park(wait).tell(WatchedAsked(OTHER)).task.core.due_at is None


def test_rule_03_a_park_names_the_tasks_to_watch():
    assert held().park(WaitForTasks((OTHER, "task_c")), WaitForMessage(0)).last.watches == (OTHER, "task_c")


def test_rule_03_a_message_that_was_seen_already_does_not_wake():
    stage = held().send(1).park(WaitForMessage(1))
    assert stage.task.core.due_at is None
    assert stage.send(2).task.core.due_at == stage.now


@pytest.mark.parametrize("waits", [(), (WaitUntil(START),), (WaitForAnswer("nobody asked"),)], ids=str)
def test_rule_03_a_park_with_nothing_left_to_wait_for_is_due_instead(waits):
    stage = held().park(*waits)
    assert (stage.task.core.due_at, stage.task.core.waits) == (stage.now, ())


def test_rule_03_of_several_sleeps_the_earliest_wakes():
    assert held().park(WaitUntil(START + 9 * SECOND), WaitUntil(START + 5 * SECOND)).task.core.due_at == (
        START + 5 * SECOND
    )


# --- 4: attempts and failures ------------------------------------------------------------------------


def test_rule_04_the_first_claim_is_attempt_1_and_every_later_one_counts_on():
    stage = new().claim()
    for attempt in (1, 2, 3):
        assert (stage.attempt, stage.task.core.failures) == (attempt, 0)
        stage.tell(Released(attempt)).claim()


@pytest.mark.parametrize("ending", [Released(1), Parked(1, ()), Stopped(1)], ids=name_of)
def test_rule_04_giving_a_task_back_is_no_failure(ending):
    stage = held().fail(chance=0).claim()
    assert stage.task.core.failures == 1
    stage.tell(type(ending)(2, ()) if isinstance(ending, Parked) else type(ending)(2))
    assert (stage.task.core.failures, stage.task.state) == (1, State.RUNNING)


def test_rule_04_a_lost_worker_that_its_work_outlives_is_no_failure():
    stage = held(retry=Retry(max_failures=2)).lose().claim()
    for _ in range(3):
        stage = stage.tell(HolderLost(stage.task.core.attempt, outlived=True))
        assert (stage.task.core.failures, stage.task.core.state, the(stage.last.ended).ending) == (
            1,
            State.RUNNING,
            "lost",
        )
        stage = stage.claim()


def test_rule_04_a_lost_worker_is_one_failure_and_no_back_off():
    stage = held().lose()
    assert (stage.task.core.failures, stage.task.core.readiness, stage.task.state) == (1, "ready", State.RUNNING)
    assert the(the(stage.last.ended).error).kind == "orphaned"


def test_rule_04_losing_an_earlier_attempt_changes_nothing():
    stage = held().lose().claim()
    assert stage.tell(HolderLost(1)).last.is_noop


@pytest.mark.parametrize("how", ["fail", "lose"])
def test_rule_04_at_max_failures_the_task_is_failed_for_good(how):
    stage = held(retry=Retry(max_failures=2, initial=0))
    getattr(stage, how)().claim()
    getattr(stage, how)()
    assert (stage.task.state, stage.task.core.failures, stage.attempt) == (State.FAILED, 2, 2)
    assert the(stage.task.outcome.error).kind == ("exception" if how == "fail" else "orphaned")


def test_rule_04_one_failure_is_enough_where_no_retry_is_wanted():
    assert held(retry=Retry(max_failures=1)).fail().task.state is State.FAILED
    assert held().fail(retryable=False).task.state is State.FAILED


@pytest.mark.parametrize("how", ["fail", "lose"])
def test_rule_04_the_count_restarts_when_something_new_was_journaled(how):
    stage = held(retry=Retry(max_failures=2, initial=0))
    for _ in range(9):
        getattr(stage, how)(journaled=True).claim()
    assert (stage.task.core.failures, stage.task.state, stage.attempt) == (1, State.RUNNING, 10)


def test_rule_04_progress_that_ended_in_a_park_is_remembered():
    for give_back in (Parked(2, (), journaled=True), Released(2, journaled=True), Stopped(2, journaled=True)):
        assert held().fail(chance=0).claim().tell(give_back).task.core.failures == 0


def test_rule_04_a_question_is_something_new():
    assert held().fail(chance=0).claim().ask().task.core.failures == 0


def test_rule_04_every_closed_attempt_says_how_it_ended():
    stage = held().later().lose().claim().later().park().claim().later().succeed()
    assert [change.ended for change in stage.changes if change.ended] == [
        AttemptEnd(
            TASK,
            1,
            "worker_a",
            START + SECOND,
            START + 2 * SECOND,
            "lost",
            TaskError("orphaned", "the worker was lost during attempt 1"),
        ),
        AttemptEnd(TASK, 2, "worker_a", START + 2 * SECOND, START + 3 * SECOND, "parked"),
        AttemptEnd(TASK, 3, "worker_a", START + 3 * SECOND, START + 4 * SECOND, "succeeded"),
    ]


# --- 5: cancel ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage",
    [
        new(),
        new(not_before=START + SECOND),
        new(depends_on=(OTHER,)),
        held().fail(),
        held().lose(),
        held().park(WaitUntil(START + 999 * SECOND)),
        held().ask().park(WaitForAnswer("r1")),
        held().succeed(open_children=(OTHER,)),
    ],
    ids=["ready", "delayed", "dependent", "backing off", "orphaned", "sleeping", "asking", "returned"],
)
def test_rule_05_cancel_settles_at_once_when_no_attempt_is_open(stage: Stage):
    stage.cancel(by="ada", reason="changed my mind")
    core = stage.task.core
    assert (core.state, core.finished_at, core.finished_by) == (State.CANCELED, stage.now, None)
    assert (core.canceled_by, core.cancel_reason) == ("ada", "changed my mind")
    assert (core.due_at, core.waits, core.requests, core.next_deadline_at) == (None, (), (), None)


def test_rule_05_cancel_of_a_held_task_is_an_intent_with_a_grace():
    stage = held().cancel()
    assert (stage.task.state, stage.task.core.cancel_requested_at) == (State.RUNNING, stage.now)
    assert stage.task.core.stopping == Stopping("cancel", stage.now, stage.now + 10 * SECOND)
    assert stage.task.core.next_deadline_at == stage.now + 10 * SECOND


def test_rule_05_whoever_cancels_may_set_the_grace():
    assert held().cancel(grace=0).task.core.next_deadline_at == START + SECOND
    assert held(cancel_grace=3 * SECOND).cancel().task.core.next_deadline_at == START + 4 * SECOND


@pytest.mark.parametrize(
    "report",
    [Stopped(1), Failed(1, BUG), Released(1), Parked(1, (WaitForMessage(0),))],
    ids=name_of,
)
def test_rule_05_a_holder_that_stops_when_told_to_settles_the_task_canceled(report):
    stage = held().cancel().later().tell(report)
    assert (stage.task.state, stage.task.core.finished_by) == (State.CANCELED, 1)
    assert the(stage.last.ended).ending == "canceled"


def test_rule_05_a_holder_that_does_not_stop_is_settled_by_force_after_the_grace():
    stage = held().cancel().later(10 * SECOND - 1)
    assert stage.look().last.is_noop
    assert stage.later(1).look().task.state is State.CANCELED
    assert the(stage.last.ended).ending == "forced"
    with pytest.raises(Superseded):
        stage.succeed()


def test_rule_05_lost_work_that_was_asked_to_cancel_settles_canceled():
    stage = held().cancel().lose()
    assert (stage.task.state, stage.task.core.due_at) == (State.CANCELED, None)


def test_rule_05_the_first_cancel_stays_and_repeats_are_no_ops():
    stage = held().cancel(by="ada").later().cancel(by="bob", reason="me too")
    assert stage.last.is_noop
    assert stage.task.core.cancel_requested_at == START + SECOND
    assert stage.task.core.canceled_by == "ada"


def test_rule_05_work_that_finished_first_stays_succeeded():
    assert held().succeed().cancel().last.is_noop
    assert held().cancel().succeed().task.state is State.SUCCEEDED


def test_rule_05_a_canceled_task_is_never_overwritten():
    stage = new().cancel()
    before = stage.task
    for event in (CancelRequested(), WatchedEnded(OTHER, State.FAILED)):
        assert stage.tell(event).last.is_noop
    assert stage.look().task == before


def test_rule_05_a_canceled_task_whose_code_stopped_early_for_want_of_a_result_is_canceled_not_failed():
    assert held(result_schema={"type": "string"}).cancel().succeed(None).task.state is State.CANCELED


def test_rule_05_a_canceled_task_does_not_wait_for_its_children():
    stage = held().cancel().succeed(b"7", open_children=(OTHER,))
    assert (stage.task.state, stage.task.outcome.result_path) == (State.CANCELED, f"/.tasks/{TASK}/result.json")


def test_rule_05_a_cancel_does_not_lengthen_the_grace_of_a_timeout():
    stage = held(timeouts=Timeouts(run=SECOND)).later().look()
    force_at = the(stage.task.core.stopping).force_at
    assert the(stage.later(5 * SECOND).cancel().task.core.stopping).force_at == force_at
    assert stage.tell(Stopped(1)).task.state is State.CANCELED


# --- 6: cancel cascades ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage",
    [new(), held(), held(on_open_children="detach"), new(on_open_children="detach")],
    ids=lambda stage: stage.task.state,
)
def test_rule_06_cancel_cascades_to_linked_children(stage: Stage):
    stage.cancel(by="ada", reason="over")
    assert stage.cascades == [("linked_children", CancelRequested("ada", "over"))]


@pytest.mark.parametrize("stage", [new(), held()], ids=["queued", "running"])
def test_rule_06_detached_children_are_left_unless_asked(stage: Stage):
    stage.cancel(include_detached=True)
    assert [(relation, event.include_detached) for relation, event in stage.cascades] == [("children", True)]


def test_rule_06_children_spawned_after_the_cancel_are_canceled_when_it_settles():
    for stage in (held().cancel().tell(Stopped(1)), held().cancel(grace=0).look(), held().cancel().lose()):
        assert [relation for relation, _ in stage.cascades] == ["linked_children"]


def test_rule_06_a_failed_parent_cancels_its_children_unless_they_were_let_go():
    assert held().fail(retryable=False).cascades == [
        ("linked_children", CancelRequested(f"task:{TASK}", "its parent failed"))
    ]
    assert held(on_open_children="detach").fail(retryable=False).cascades == []


def test_rule_06_a_failure_that_is_retried_leaves_the_children_alone():
    assert held().fail().cascades == []


# --- 7: an answer is a conditional write -------------------------------------------------------------


def test_rule_07_the_first_answer_wins_and_the_second_gets_a_conflict():
    stage = held().ask().answer(answer="yes")
    assert stage.last.requests[0].answer == "yes"
    before = stage.task
    with pytest.raises(RequestClosed):
        stage.answer(answer="no")
    assert stage.task == before


@pytest.mark.parametrize("stage", [new(), held(), held().ask(), held().succeed()], ids=lambda stage: stage.task.state)
def test_rule_07_an_answer_to_an_unknown_request_is_refused(stage: Stage):
    with pytest.raises(RequestClosed):
        stage.answer("r9")


def test_rule_07_with_no_request_pending_the_task_runs_again_and_is_due_if_nobody_holds_it():
    assert held().ask().answer().task.state is State.RUNNING
    stage = held().ask().park(WaitForAnswer("r1")).later().answer()
    assert (stage.task.state, stage.task.core.due_at) == (State.RUNNING, stage.now)
    stage = held().ask().park(WaitForMessage(0)).later().answer()
    assert (stage.task.state, stage.task.core.due_at) == (State.RUNNING, stage.now)


def test_rule_07_while_another_request_is_pending_the_task_awaits_input():
    stage = held().ask(question("r1"), question("r2")).answer("r1")
    assert (stage.task.state, [request.id for request in stage.task.core.requests]) == (State.AWAITING_INPUT, ["r2"])


def test_rule_07_an_answered_branch_resumes_though_another_question_is_open():
    stage = held().ask(question("r1"), question("r2")).park(WaitForAnswer("r1"), WaitForAnswer("r2")).answer("r2")
    assert (stage.task.state, stage.task.core.due_at) == (State.AWAITING_INPUT, stage.now)


def test_rule_07_an_answer_does_not_cut_a_back_off_short():
    stage = held().ask().fail()
    due_at = stage.task.core.due_at
    stage.answer()
    assert (stage.task.state, stage.task.core.due_at) == (State.QUEUED, due_at)


# --- 8: requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["question", "approval", "auth"])
def test_rule_08_a_request_is_kept_with_all_it_says(kind):
    request = question(kind=kind, expected={"type": "boolean"}, details={"tool": "rm"}, deadline_at=START + SECOND)
    stage = held().ask(request)
    assert stage.task.core.requests == (request,)
    assert stage.last.requests == (request,)


def test_rule_08_several_may_be_pending_and_the_oldest_comes_first():
    stage = held().ask(question("r2"), question("r1"))
    assert [request.id for request in stage.task.core.requests] == ["r2", "r1"]


def test_rule_08_who_answered_from_where_and_when_is_recorded():
    closed = held().ask().later(7).answer().last.requests[0]
    assert (closed.status, closed.answered_by, closed.answered_via) == ("answered", "ada", "cli")
    assert closed.closed_at == START + SECOND + 7


@pytest.mark.parametrize("policy", ["default", "deny", "fail", "remind"])
def test_rule_08_before_its_deadline_nothing_happens_to_a_request(policy):
    stage = held().ask(question(on_expiry=policy, deadline_at=START + 9 * SECOND)).later(7 * SECOND)
    assert stage.look().last.is_noop


@pytest.mark.parametrize(("policy", "answer"), [("default", "maybe"), ("deny", False)])
def test_rule_08_at_expiry_the_policy_may_answer(policy, answer):
    request = question(on_expiry=policy, default="maybe", deadline_at=START + 9 * SECOND)
    stage = held().ask(request).park(WaitForAnswer("r1")).later(9 * SECOND).look()
    closed = stage.last.requests[0]
    assert (closed.status, closed.answer, closed.answered_by) == ("expired", answer, "policy")
    assert (stage.task.state, stage.task.core.due_at) == (State.RUNNING, stage.now)


def test_rule_08_at_expiry_the_policy_may_fail_the_task():
    request = question(on_expiry="fail", deadline_at=START + 9 * SECOND)
    stage = held().ask(request, question("r2")).park(WaitForAnswer("r1")).later(9 * SECOND).look()
    assert stage.task.state is State.FAILED
    assert the(stage.task.outcome.error).kind == "input_expired"
    assert [(closed.id, closed.status) for closed in stage.last.requests] == [("r1", "expired"), ("r2", "withdrawn")]


def test_rule_08_an_attempt_that_is_open_when_its_question_expires_is_told_to_stop_like_at_any_deadline():
    stage = held().ask(question(on_expiry="fail", deadline_at=START + 9 * SECOND)).later(9 * SECOND).look()
    assert (stage.task.state, stage.task.core.is_held) == (State.RUNNING, True)
    assert the(the(stage.task.core.stopping).error).kind == "input_expired"
    stage.tell(Stopped(1))
    assert (stage.task.state, the(stage.task.outcome.error).kind) == (State.FAILED, "input_expired")


def test_rule_08_at_expiry_the_policy_may_keep_the_request_and_remind():
    request = question(deadline_at=START + 9 * SECOND, remind_every=60 * SECOND)
    stage = held(wake_policy="on_terminal").ask(request).later(9 * SECOND).look()
    kept = stage.task.core.requests[0]
    assert (kept.status, kept.deadline_at, kept.remind_at) == ("pending", None, stage.now + 60 * SECOND)
    stage.later(60 * SECOND).look().later(60 * SECOND).look()
    assert stage.told == ["question", "reminder", "reminder", "reminder"]
    assert stage.answer().task.state is State.RUNNING


# --- 9: create is idempotent -------------------------------------------------------------------------


def test_rule_09_creating_from_the_same_payload_gives_the_same_record():
    payload = NewTask(TASK, given(idempotency_key="k"))
    assert create(payload, START) == create(payload, START)
    assert create(payload, START).before is None


# --- 10: dependencies --------------------------------------------------------------------------------


def test_rule_10_a_dependent_task_is_blocked_until_all_it_depends_on_have_succeeded():
    stage = new(depends_on=(OTHER, "task_c"))
    assert (stage.task.core.readiness, stage.task.core.blocked_by, stage.last.watches) == (
        "blocked",
        "dependency",
        (OTHER, "task_c"),
    )
    stage.later().tell(WatchedEnded(OTHER, State.SUCCEEDED))
    assert stage.task.core.readiness == "blocked"
    stage.tell(WatchedEnded("task_c", State.SUCCEEDED))
    assert (stage.task.core.readiness, stage.task.core.due_at, stage.task.core.blocked_by) == ("ready", stage.now, None)


def test_rule_10_a_delayed_dependent_still_waits_for_its_moment():
    stage = new(not_before=START + 9 * SECOND, depends_on=(OTHER,)).tell(WatchedEnded(OTHER, State.SUCCEEDED))
    assert (stage.task.core.readiness, stage.task.core.due_at) == ("timed", START + 9 * SECOND)


@pytest.mark.parametrize("how", [State.FAILED, State.CANCELED])
def test_rule_10_a_task_whose_dependency_did_not_succeed_ends_failed(how):
    stage = new(depends_on=(OTHER, "task_c")).tell(WatchedEnded(OTHER, how))
    error = the(stage.task.outcome.error)
    assert (stage.task.state, error.kind) == (State.FAILED, "dependency_failed")
    assert error.details == {"task_id": OTHER, "state": how}


def test_rule_10_unless_it_was_told_to_run_anyway():
    stage = new(depends_on=(OTHER,), run_if_dependency_fails=True).tell(WatchedEnded(OTHER, State.FAILED))
    assert stage.task.core.readiness == "ready"


def test_rule_10_who_waits_for_a_task_hears_how_it_ended():
    for stage in (held().succeed(), held().fail(retryable=False), new().cancel()):
        heard = [follow_up.event for follow_up in stage.last.follow_ups if follow_up.relation == "watchers"]
        assert heard == [WatchedEnded(TASK, stage.task.state)]


# --- 11: results -------------------------------------------------------------------------------------

SCHEMA = {"type": "object"}


def test_rule_11_success_with_a_valid_result_is_success():
    stage = held(result_schema=SCHEMA).succeed(b"{}")
    assert stage.task.state is State.SUCCEEDED
    assert [(file.path, file.content) for file in stage.last.files] == [(f"/.tasks/{TASK}/result.json", b"{}")]


def test_rule_11_success_without_a_result_is_no_result():
    stage = held(result_schema=SCHEMA).succeed(None)
    assert (stage.task.state, the(stage.task.outcome.error).kind) == (State.FAILED, "no_result")


def test_rule_11_a_result_that_does_not_fit_is_a_schema_mismatch_that_is_kept_and_not_tried_again():
    stage = held(result_schema=SCHEMA).succeed(b"3", mismatch="3 is not an object")
    assert (stage.task.state, stage.task.core.failures) == (State.FAILED, 1)
    assert stage.task.outcome.error == TaskError("schema_mismatch", "3 is not an object")
    assert stage.last.files[0].content == b"3"


def test_rule_11_without_a_schema_nothing_is_asked_of_the_result():
    assert held().succeed(None).task.outcome.result_path is None


# --- 12: retry and fork by a person ------------------------------------------------------------------


def test_rule_12_a_repeated_task_is_a_new_one_that_names_the_old():
    repeated = create(NewTask(OTHER, given(retry_of=TASK)), START).task
    assert (repeated.id, repeated.input.retry_of, repeated.core.attempt) == (OTHER, TASK, 1)
    assert not any(
        State.QUEUED in nexts for state in State if state.is_terminal for nexts in TRANSITIONS[state].values()
    )


# --- 13: an end closes questions ---------------------------------------------------------------------


@pytest.mark.parametrize("end", ["succeed", "cancel", "timeout", "fail"])
def test_rule_13_an_end_withdraws_what_was_asked(end):
    stage = held(timeouts=Timeouts(total=9 * SECOND)).ask(question("r1"), question("r2"))
    match end:
        case "succeed":
            stage.succeed()
        case "cancel":
            stage.park(WaitForAnswer("r1")).cancel()
        case "timeout":
            stage.park(WaitForAnswer("r1")).later(9 * SECOND).look()
        case "fail":
            stage.fail(retryable=False)
    assert stage.task.is_terminal
    assert stage.task.core.requests == ()
    assert [(closed.id, closed.status) for closed in stage.last.requests] == [("r1", "withdrawn"), ("r2", "withdrawn")]


def test_rule_13_no_report_can_carry_both_an_end_and_a_request():
    for event in (Succeeded, Failed, Stopped):
        assert "request" not in {field.name for field in fields(event)}
    stage = held().succeed()
    with pytest.raises(Superseded):
        stage.ask()


# --- 14: open children -------------------------------------------------------------------------------


def test_rule_14_a_task_whose_code_returned_stays_running_with_its_result_stored_while_children_live():
    stage = held().succeed(b"7", open_children=(OTHER, "task_c"), summary="seven")
    assert (stage.task.state, stage.task.core.is_held, stage.task.core.due_at) == (State.RUNNING, False, None)
    assert (stage.last.files[0].content, stage.last.watches) == (b"7", (OTHER, "task_c"))
    assert (the(stage.last.ended).ending, stage.cascades) == ("returned", [])
    assert the(stage.phase).name == "waiting"


@pytest.mark.parametrize("how", [State.SUCCEEDED, State.FAILED, State.CANCELED])
def test_rule_14_it_succeeds_when_the_last_child_has_ended_however(how):
    stage = held(wake_policy="on_terminal").succeed(b"7", open_children=(OTHER, "task_c"), summary="seven")
    stage.tell(WatchedEnded(OTHER, how))
    assert stage.task.state is State.RUNNING
    stage.tell(WatchedEnded("task_c", how))
    assert (stage.task.state, stage.task.core.finished_by) == (State.SUCCEEDED, 1)
    assert stage.last.inbox[0].body["summary"] == "seven"


def test_rule_14_it_may_cancel_its_children_instead():
    stage = held(on_open_children="cancel").succeed(open_children=(OTHER,))
    assert stage.cascades == [("linked_children", CancelRequested(f"task:{TASK}", "its parent has returned"))]
    assert stage.task.state is State.RUNNING
    assert stage.tell(WatchedEnded(OTHER, State.CANCELED)).task.state is State.SUCCEEDED


def test_rule_14_or_let_them_go():
    stage = held(on_open_children="detach").succeed(open_children=(OTHER,))
    assert (stage.task.state, stage.cascades) == (State.SUCCEEDED, [])


def test_rule_14_questions_of_code_that_returned_are_withdrawn():
    stage = held().ask().succeed(open_children=(OTHER,))
    assert (stage.task.core.requests, stage.last.requests[0].status) == ((), "withdrawn")


def test_rule_14_a_returned_task_is_never_claimed_again():
    with pytest.raises(IllegalMove):
        held().succeed(open_children=(OTHER,)).tell(Claimed("worker_b"))


# --- 15: wakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("silent", []),
        ("on_terminal", ["question", "terminal"]),
        ("on_activity", ["question", "message", "terminal"]),
    ],
)
def test_rule_15_a_question_is_news_whatever_the_wake_policy_except_silent(policy, told):
    stage = held(wake_policy=policy).ask().answer().tell(Posted(1, message())).succeed()
    assert stage.told == told


def test_rule_15_a_reminder_is_news_as_its_question_was():
    for policy, told in (("silent", []), ("on_terminal", ["question", "reminder"])):
        stage = held(wake_policy=policy).ask(question(remind_at=START + 9 * SECOND)).later(9 * SECOND).look()
        assert stage.told == told


# --- what goes with them -----------------------------------------------------------------------------


def test_the_newest_live_values_go_in_with_the_transition():
    live = Live(state_detail="reading", iterations=3, usage=Usage(requests=3))
    stage = held().succeed(live=live)
    assert (stage.task.live, stage.last.live_changed) == (live, True)
    assert stage.last.events[0].data["live"] == {"state_detail": "reading", "iterations": 3, "usage": Usage(requests=3)}


@pytest.mark.parametrize(
    "report",
    [
        Asked(1, question(), live=Live(iterations=3)),
        Parked(1, (), live=Live(iterations=3)),
        Released(1, live=Live(iterations=3)),
        Failed(1, BUG, live=Live(iterations=3)),
        Stopped(1, live=Live(iterations=3)),
    ],
    ids=name_of,
)
def test_they_go_in_with_every_report_that_carries_them(report):
    assert held().tell(report).task.live.iterations == 3


def test_live_values_that_did_not_change_are_not_written():
    stage = held().succeed(live=Live())
    assert not stage.last.live_changed
    assert "live" not in stage.last.events[0].data


def test_a_journal_row_goes_in_with_what_it_remembers():
    step = Step(TASK, "ask", 1, "ask", 1, START, b'"r1"')
    for event in (Asked(1, question(), step), Posted(1, message(), step), Produced(1, REPORT, step=step)):
        assert held().tell(event).last.steps == (step,)
        assert held().tell(evolve(event, step=None)).last.steps == ()


def test_a_small_file_goes_in_with_the_artifact_that_names_it():
    file = FileWrite("session_a", "/report.md", b"# Report", "text/markdown", START, TASK)
    assert held().tell(Produced(1, REPORT, file)).last.files == (file,)
    assert held().tell(Produced(1, REPORT)).last.files == ()


def test_messages_are_stored_and_logged_both_ways():
    for event in (Posted(1, message()), MessageReceived(message())):
        stage = held().tell(event)
        assert stage.last.messages == (message(),)
        assert [entry.type for entry in stage.last.events] == ["task.updated", "task.message"]


def test_a_failure_keeps_the_partial_result():
    stage = held().fail(partial=b"[1]", summary="half", retryable=False)
    assert (stage.last.files[0].content, stage.task.outcome.summary) == (b"[1]", "half")


def test_a_later_failure_that_says_nothing_leaves_what_an_earlier_one_kept():
    stage = held().fail(partial=b"[1]", summary="half", chance=0).claim().fail(retryable=False)
    assert (stage.task.outcome.summary, stage.task.outcome.result_path) == ("half", f"/.tasks/{TASK}/result.json")


def test_saying_what_is_known_already_changes_nothing():
    stage = held().succeed(summary="done")
    assert stage.tell(Enriched(1)).last.is_noop
    assert stage.tell(Enriched(1, "done")).last.is_noop


@pytest.mark.parametrize(("seen", "interrupts", "rings"), [(0, True, True), (1, True, False), (1, False, False)])
def test_what_a_turn_that_ended_had_not_seen_is_for_the_next_also_where_it_was_interrupted_as_it_ended(
    seen, interrupts, rings
):
    stage = held(kind="turn").tell(Told("entry_1", {}, interrupts)).succeed(seen=seen)
    assert stage.task.state is State.SUCCEEDED
    rung = [follow_up for follow_up in stage.last.follow_ups if isinstance(follow_up.event, Rung)]
    assert bool(rung) == rings
