"""When a failed attempt is tried again, and who goes first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.queue import AGEING, SPACING, rank_of_new, rank_of_resumed
from outrider.core.retry import delay, exhausted
from outrider.core.task import Retry
from outrider.core.values import SECOND
from tests.core.stage import START

moments = st.integers(0, 2 * START)


@pytest.mark.parametrize(
    ("failures", "seconds"), [(1, 1), (2, 2), (3, 4), (8, 128), (9, 256), (10, 300), (50, 300), (10**9, 300)]
)
def test_the_back_off_doubles_from_a_second_to_five_minutes(failures, seconds):
    assert delay(Retry(), failures, 1.0) == seconds * SECOND


def test_the_jitter_is_full():
    assert delay(Retry(), 3, 0.0) == 0
    assert delay(Retry(), 3, 0.25) == SECOND


@given(
    st.builds(Retry, initial=st.integers(0, 10**9), factor=st.floats(0, 100), maximum=st.integers(0, 10**9)),
    st.integers(-1, 10**6),
    st.floats(-1, 2),
)
def test_a_back_off_lies_between_nothing_and_its_maximum(policy, failures, chance):
    assert 0 <= delay(policy, failures, chance) <= policy.maximum


def test_a_task_is_exhausted_at_max_failures():
    assert [exhausted(Retry(max_failures=2), failures) for failures in (0, 1, 2, 3)] == [False, False, True, True]


def test_tasks_of_one_session_go_in_the_order_they_were_made():
    first, tail = rank_of_new(START, 0, 0, START)
    second, _ = rank_of_new(START, 0, tail, START)
    assert first < second


def test_a_session_that_submits_many_queues_behind_itself_and_not_before_others():
    tail, ranks = 0, []
    for _ in range(1000):
        rank, tail = rank_of_new(START, 0, tail, START)
        ranks.append(rank)
    other, _ = rank_of_new(START + SECOND, 0, 0, START + SECOND)
    assert ranks[-1] == START + 999 * SPACING
    assert sum(rank <= other for rank in ranks) == SECOND // SPACING + 1


def test_a_point_of_priority_is_worth_ten_seconds_of_waiting():
    assert AGEING == 10 * SECOND
    urgent, _ = rank_of_new(START + 9 * SECOND, 1, 0, START + 9 * SECOND)
    patient, _ = rank_of_new(START, 0, 0, START)
    late, _ = rank_of_new(START + 11 * SECOND, 1, 0, START + 11 * SECOND)
    assert urgent < patient < late


def test_a_delayed_task_does_not_hold_up_its_session():
    rank, tail = rank_of_new(START + 99 * SECOND, 0, START, START)
    assert (rank, tail) == (START + 99 * SECOND, START)


@given(moments, st.integers(-100, 100), moments, moments)
def test_the_tail_never_moves_back(due_at, priority, tail, now):
    rank, after = rank_of_new(due_at, priority, tail, now)
    assert after >= tail
    assert rank >= due_at - priority * AGEING


@given(moments, st.integers(-100, 100))
def test_a_task_that_resumes_has_stood_in_the_queue_once(due_at, priority):
    assert rank_of_resumed(due_at, priority) == due_at - priority * AGEING
