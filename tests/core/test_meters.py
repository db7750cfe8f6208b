"""However calls are reserved and settled, an account is passed by no more than calls took beyond their reservation.

And whoever waits for a rate has its turn.
"""

from __future__ import annotations

from heapq import heappop, heappush

from hypothesis import given
from hypothesis import strategies as st

from outrider.core.meters import (
    LATECOMER,
    NOTHING,
    Account,
    Amounts,
    Budget,
    ChargeVerdict,
    Exhausted,
    Granted,
    Later,
    Line,
    Meter,
    RateLimit,
    Reservation,
    Reserve,
    Settle,
    Tap,
    bring,
    judge,
)
from outrider.core.values import SECOND

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


LIMIT = RateLimit("model:m", tokens=2000)
MINUTE = 60 * SECOND


class Callers:
    """Those who ask one rate, each again when it was told to, until it is granted."""

    def __init__(self) -> None:
        self.meters: dict[str, Meter] = {}
        self.granted: dict[str, int] = {}
        self._asking: list[tuple[int, str, int, bool]] = []

    def come(self, at: int, name: str, tokens: int, *, waits: bool = True) -> None:
        heappush(self._asking, (at, name, tokens, waits))

    def ask(self, at: int, name: str, tokens: int, *, waits: bool = True) -> ChargeVerdict:
        charge = Reserve(name, 1, 1, Amounts(1, tokens), at, (), LIMIT, waits)
        ruling = judge(charge, self.meters, {}, holds=True)
        self.meters.update((meter.name, meter) for meter in ruling.meters)
        return ruling.verdict

    def run(self) -> None:
        while self._asking:
            at, name, tokens, waits = heappop(self._asking)
            verdict = self.ask(at, name, tokens, waits=waits)
            if isinstance(verdict, Later):
                assert at < verdict.until <= at + 70 * SECOND
                self.come(verdict.until + len(name) * SECOND // 100, name, tokens, waits=waits)
            else:
                self.granted[name] = at


def test_nobody_waits_for_ever_for_a_rate_however_many_come_and_however_much_it_wants():
    callers = Callers()
    sizes = {f"small {number}": 200 for number in range(300)} | {"large": 1600, "too large": 9000}
    for number in range(300):  # a fifth more than the rate has room for
        callers.come(number * 5 * SECOND, f"small {number}", 200)
    callers.come(120 * SECOND, "large", 1600)
    callers.come(300 * SECOND, "too large", 9000)
    callers.run()
    assert callers.granted.keys() == sizes.keys()
    assert callers.granted["large"] - 120 * SECOND <= 3 * MINUTE
    assert callers.granted["too large"] - 300 * SECOND <= 6 * MINUTE
    for begin in callers.granted.values():
        within = [sizes[name] for name, at in callers.granted.items() if begin <= at < begin + MINUTE]
        assert sum(within) <= 2000 or within == [9000]
    assert max(callers.granted.values()) <= 45 * MINUTE, "the rate was not used"


def test_who_waits_and_is_gone_or_would_rather_go_elsewhere_holds_nobody_up():
    callers = Callers()
    assert isinstance(callers.ask(0, "first", 2000), Granted)
    assert isinstance(callers.ask(1, "another model's", 2000, waits=False), Later)
    gone = callers.ask(2, "gone", 1500)
    assert isinstance(gone, Later)
    behind = callers.ask(3, "behind", 1500)
    assert isinstance(behind, Later)
    # The minute is empty, and yet it is the turn of who does not come.
    assert isinstance(callers.ask(gone.until, "behind", 1500), Later)
    assert isinstance(callers.ask(gone.until, "beside", 500), Later), "it came last"
    assert isinstance(callers.ask(gone.until + LATECOMER + 1, "behind", 1500), Granted)
    assert isinstance(callers.ask(gone.until + LATECOMER + 2, "beside", 500), Granted)
    line = callers.meters["line:model:m"]
    assert isinstance(line, Line)
    assert not line.places


def test_who_finds_room_beside_all_that_wait_goes_first():
    callers = Callers()
    assert isinstance(callers.ask(0, "first", 1000), Granted)
    assert isinstance(callers.ask(1, "large", 1500), Later)
    assert isinstance(callers.ask(2, "small", 600), Later), "the large one would have to wait for it"
    assert isinstance(callers.ask(3, "smaller", 500), Later), "and so would the small one"
    alone = Callers()
    assert isinstance(alone.ask(0, "first", 1000), Granted)
    assert isinstance(alone.ask(1, "large", 1500), Later)
    assert isinstance(alone.ask(2, "smaller", 500), Granted)
