"""However calls are reserved and settled, an account is passed by no more than calls took beyond their reservation."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outrider.core.meters import (
    NOTHING,
    Account,
    Amounts,
    Budget,
    Exhausted,
    Granted,
    Later,
    Meter,
    Reservation,
    Reserve,
    Settle,
    Tap,
    bring,
    judge,
)

BOUND = 1000
TAPS = (Tap("task:a", Budget()), Tap("session:a", Budget(tokens=BOUND)), Tap("tree:a", Budget(tokens=2 * BOUND)))

CALLS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 400), st.none() | st.integers(0, 500)), max_size=60)
"""Of whom each is, what it reserves where nothing of his is under way, and what it took where something is."""


@given(CALLS)
def test_what_is_spent_passes_a_bound_by_no_more_than_calls_took_beyond_what_they_had_reserved(
    calls: list[tuple[int, int, int | None]],
):
    meters: dict[str, Meter] = {}
    reserved: dict[int, Reservation] = {}
    beyond = 0
    for who, wanted, took in calls:
        before = [_account(meters, tap) for tap in TAPS]
        if who in reserved:
            amounts = None if took is None else Amounts(1, took)
            ruling = judge(Settle("a", 1, who, amounts, 0, TAPS), meters, reserved, holds=True)
            assert ruling.verdict == Granted()
            beyond += max(0, (took or 0) - reserved.pop(who).amounts.tokens)
        else:
            ruling = judge(Reserve("a", 1, who, Amounts(1, wanted), 0, TAPS), meters, reserved, holds=True)
            _, session, _ = before
            if session.spent.tokens + wanted > BOUND and wanted:
                assert isinstance(ruling.verdict, Exhausted)
            elif session.spent.tokens + session.held.tokens + wanted > BOUND and wanted:
                assert isinstance(ruling.verdict, Later)
            if ruling.opened is None:
                assert not ruling.meters, "refused by one, and taken down by another"
            else:
                reserved[who] = ruling.opened
        meters.update((meter.name, meter) for meter in ruling.meters)
        for tap in TAPS:
            found = _account(meters, tap)
            assert found.held.tokens == sum(each.amounts.tokens for each in reserved.values())
            assert found.budget.tokens is None or found.spent.tokens + found.held.tokens <= found.budget.tokens + beyond


def _account(meters: dict[str, Meter], tap: Tap) -> Account:
    found = meters.get(tap.account, Account(tap.account, tap.budget, 0))
    assert isinstance(found, Account)
    assert found.unknown.minus(found.spent).tokens <= NOTHING.tokens
    return found


def test_an_account_that_comes_from_elsewhere_goes_on_from_its_beginning_and_is_marked_no_second_time():
    took = Amounts(1, BOUND)
    marked = Account("tree:a", Budget(tokens=BOUND), 5, "session", took, is_marked=True)
    ruling = bring([marked], {}, now=9)
    assert (ruling.meters, ruling.marked) == ((marked,), ())
    there = Account("tree:a", Budget(tokens=4 * BOUND), 3, "session", Amounts(1, 3 * BOUND))
    ruling = bring([marked], {there.name: there}, now=9)
    (grown,) = ruling.meters
    assert isinstance(grown, Account)
    assert (grown.began_at, grown.budget, grown.spent) == (3, there.budget, took.plus(there.spent))
    assert ruling.marked == (grown,), "it was marked elsewhere, against another budget"
