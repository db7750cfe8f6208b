"""When a failed attempt is tried again, and who goes first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.queue import (
    AGEING,
    GAP,
    LATE,
    PATIENCE,
    SPACING,
    Gates,
    Limit,
    Lines,
    Pause,
    Spent,
    next_return,
    rank_of_moved,
    rank_of_new,
    rank_of_resumed,
    spend,
    starts_left,
    turn_after,
)
from outrider.core.retry import delay, exhausted
from outrider.core.task import Retry
from outrider.core.values import SECOND, evolve
from tests.core.stage import START, the

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
    first, lines = rank_of_new(START, 0, Lines())
    second, _ = rank_of_new(START, 0, lines)
    assert first < second


def of_another_session(lines: Lines, *, organization: bool = False) -> Lines:
    """The lines as one finds them of whom nothing waits there."""
    return evolve(lines, session=None, organization=None if organization else lines.organization)


def test_a_session_that_submits_many_queues_behind_itself_and_not_before_others():
    lines, ranks = Lines(), []
    for _ in range(1000):
        rank, lines = rank_of_new(START, 0, lines)
        ranks.append(rank)
    assert ranks[-1] == START + 999 * SPACING
    other, _ = rank_of_new(START, 0, of_another_session(lines))
    assert sum(rank <= other for rank in ranks) == 1


@pytest.mark.parametrize("waited", [0, SECOND, 3600 * SECOND])
def test_however_late_a_route_is_who_comes_new_stands_near_its_turn(waited: int):
    lines, ranks = Lines(), []
    for _ in range(1000):
        rank, lines = rank_of_new(START, 0, lines)
        ranks.append(rank)
    lines = evolve(lines, turn=turn_after(lines.turn, ranks[300]))
    other, _ = rank_of_new(START + waited, 0, of_another_session(lines, organization=True))
    assert 0 <= sum(rank <= other for rank in ranks) - 300 <= PATIENCE // SPACING + 1
    resumed = rank_of_resumed(START + waited, 0, lines.turn)
    assert 0 <= sum(rank <= resumed for rank in ranks) - 300 <= PATIENCE // SPACING + 1


def test_sessions_of_one_organization_stand_behind_each_other_and_not_before_another_organization():
    lines, ranks = Lines(), []
    for _ in range(1000):
        rank, lines = rank_of_new(START, 0, of_another_session(lines))
        ranks.append(rank)
    assert ranks == sorted(set(ranks))
    other, _ = rank_of_new(START, 0, of_another_session(lines, organization=True))
    assert sum(rank <= other for rank in ranks) == 1


def test_who_keeps_coming_new_does_not_keep_others_from_their_turn():
    """One session with a task that waits; others come for ever, one of each, and are taken as they stand."""
    waiting, lines = rank_of_new(START, 0, Lines(session=START))
    taken = 0
    while True:
        rank, lines = rank_of_new(START, 0, of_another_session(lines))
        if rank > waiting:
            break
        lines = evolve(lines, turn=turn_after(lines.turn, rank))
        taken += 1
    assert taken <= SPACING // GAP + 1


def test_a_point_of_priority_is_worth_ten_seconds_of_waiting():
    assert AGEING == 10 * SECOND
    patient, lines = rank_of_new(START, 0, Lines())
    lines = of_another_session(lines)
    urgent, _ = rank_of_new(START + 9 * SECOND, 1, lines)
    late, _ = rank_of_new(START + 11 * SECOND, 1, lines)
    assert urgent < patient <= late


def test_what_is_more_important_goes_before_others_only_so_often():
    """A stream of more important tasks, each taken at once, comes to stand behind what waits."""
    waiting, lines = rank_of_new(START, 0, Lines())
    taken = 0
    lines = of_another_session(lines)
    while True:
        rank, lines = rank_of_new(START, 1, lines)
        if rank > waiting:
            break
        lines = evolve(lines, turn=turn_after(lines.turn, rank))
        taken += 1
    assert AGEING // SPACING <= taken + 1 <= AGEING // SPACING + 2


@given(moments, st.integers(-100, 100), st.none() | moments, st.none() | moments, st.none() | moments)
def test_lines_never_move_back(due_at, priority, turn, organization, session):
    before = Lines(turn, organization, session)
    rank, after = rank_of_new(due_at, priority, before)
    assert after.session == rank + priority * AGEING
    assert turn in (None, after.turn)
    assert the(after.session) > the(after.turn)
    assert organization is None or the(after.organization) >= organization
    assert session is None or session <= the(after.turn) or the(after.session) >= session + SPACING


@given(moments, st.integers(-100, 100))
def test_a_task_that_is_not_due_yet_holds_up_nobody(due_at, priority):
    assert rank_of_resumed(due_at, priority, None) == due_at - priority * AGEING


# --- limits and pauses -------------------------------------------------------------------------------


@given(
    st.integers(1, 5),
    st.integers(1, 500),
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 3)), min_size=1, max_size=60),
)
def test_in_no_span_wherever_it_begins_are_there_more_starts_than_the_rate(rate, span, tries):
    limit, now, starts = Limit("k", rate=rate, span=span), START, list[int]()
    spent: Spent = ()
    for pause, wanted in tries:
        now += pause
        left = the(starts_left(limit, spent, now))
        admitted = min(wanted, left)
        spent = spend(limit, spent, now, admitted)
        starts += [now] * admitted
    for begin in starts:
        assert sum(begin <= at < begin + span for at in starts) <= rate


@given(st.integers(1, 5), st.integers(1, 10**9), st.integers(0, 10**9))
def test_a_start_returns_to_the_rate_and_not_much_later_than_it_might(rate, span, at):
    limit = Limit("k", rate=rate, span=span)
    spent = spend(limit, (), START + at, rate)
    assert starts_left(limit, spent, START + at) == 0
    moment = the(next_return(limit, spent, START + at))
    assert START + at + span <= moment <= START + at + span + span // 100 + 1
    assert starts_left(limit, spent, moment) == rate
    assert spend(limit, spent, moment + span + LATE, 0) == ()


@given(
    st.integers(1, 4),
    st.sampled_from([100, SECOND, 3 * LATE]),
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 300), st.integers(1, 3)), min_size=1, max_size=60),
)
def test_claims_that_waited_for_others_and_come_late_start_no_more_than_the_rate(rate, span, tries):
    limit, clock, starts = Limit("k", rate=rate, span=span), START, list[int]()
    spent: Spent = ()
    for pause, late, wanted in tries:  # both in hundredths of a span
        clock += pause * span // 100
        now = clock - min(late * span // 100, LATE)
        admitted = min(wanted, the(starts_left(limit, spent, now)))
        spent = spend(limit, spent, now, admitted)
        starts += [now] * admitted
    for begin in starts:
        assert sum(begin <= at < begin + span for at in starts) <= rate


def test_a_clock_that_was_put_back_holds_nobody_up_for_longer_than_a_span():
    limit = Limit("k", rate=1, span=SECOND)
    spent = spend(limit, (), START + 10**6 * SECOND, 1)
    assert starts_left(limit, spent, START) == 0
    assert the(next_return(limit, spent, START)) <= START + 2 * SECOND


def test_a_rate_costs_no_more_than_its_slices_however_often_it_is_spent():
    limit = Limit("k", rate=10**6, span=100 * SECOND)
    spent: Spent = ()
    for n in range(2000):
        spent = spend(limit, spent, START + n * SECOND // 5, 3)
    assert len(spent) <= 112  # those of the span, and of the time by which a claim may be late


def test_a_key_has_its_own_limit_or_that_of_its_longest_beginning_or_admits_one_at_a_time():
    gates = Gates.of([Limit("gpu", 2), Limit("tenant:*", 3), Limit("tenant:big:*", 9), Limit("tenant:a", 4)], [])
    assert [gates.limit(key).capacity for key in ("gpu", "tenant:a", "tenant:b", "tenant:big:1", "gpus", "x")] == [
        2,
        4,
        3,
        9,
        1,
        1,
    ]
    assert Gates.of([Limit("*", 5)], []).limit("anything").capacity == 5


def test_what_is_paused_is_not_served_and_the_widest_pause_is_named():
    routes = ("background_tool:a", "background_tool:b", "subagent", "background_tool:a")
    kind, session, everything = Pause("kind", "background_tool"), Pause("session", "s"), Pause("everything")
    assert Gates.of([], [kind]).routes(routes) == ("subagent",)
    assert Gates.of([], [session]).routes(routes) == routes[:3]
    assert Gates.of([], [everything]).routes(routes) == ()
    assert Gates.of([], [kind, session]).pause_of("background_tool", "s") is kind
    assert Gates.of([], [kind, session]).pause_of("subagent", "s") is session
    assert Gates.of([], [kind, session]).pause_of("subagent", "t") is None
    assert Gates.of([], [kind, everything]).pause_of("subagent", "t") is everything


def test_a_task_of_another_priority_keeps_the_time_that_it_has_waited():
    assert rank_of_moved(rank_of_resumed(START, 1, None), 1, 4) == rank_of_resumed(START, 4, None)
