"""Meters: named, durable counts of what may still be spent, asked and tried, and the rules by which they move.

An *account* (`task:ID`, `session:ID`, `tree:ROOT`) keeps a budget: a model call is reserved before it is made and
settled after it, in all accounts that it concerns or in none. A *rate* (`model:NAME`) counts the calls of the last
minute, a *line* (`line:model:NAME`) who waits for it, a *breaker* (`provider:NAME`) the failures in a row.

What one would get wrong: what is held by calls under way counts like what is spent, but only what is spent ends a task;
a call that finds no room for what others hold waits, since most calls turn out smaller than what was reserved for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, assert_never

from outrider.core.queue import LATE
from outrider.core.task import Task
from outrider.core.values import SECOND, Instant, JSONObject, Span, evolve

MILLIONTHS = 1_000_000
"""Costs are whole millionths of a US dollar: sums of floats would drift."""

SOFT_MARK = 0.8
"""The share of a budget after which its session is told, unless the budget says."""

MINUTE: Span = 60 * SECOND
SLICE: Span = 2 * SECOND
"""Calls are counted by slice; they return to a rate when all of it is a minute past."""

CROWDED: Span = 2 * SECOND
"""When to ask again for what the calls of others hold: some of those have ended by then."""

LATECOMER: Span = 10 * SECOND
"""For how long somebody is waited for who was told to ask again: he may have been killed."""

LONGEST_LINE = 1000
"""How many wait in their order; who comes after them tries his luck."""

TASK, SESSION, TREE, MODEL, LINE, PROVIDER = "task:", "session:", "tree:", "model:", "line:", "provider:"
"""How the names of meters begin."""

LIMITS = ("tokens", "cost", "requests", "iterations", "seconds")
"""What a budget may bound, as it is written."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """What calls take. `tokens` are those of input and output, `cost` is in millionths of a US dollar."""

    requests: int = 0
    tokens: int = 0
    cost: int = 0
    iterations: int = 0

    def plus(self, other: Amounts) -> Amounts:
        """Both together."""
        return Amounts(
            self.requests + other.requests,
            self.tokens + other.tokens,
            self.cost + other.cost,
            self.iterations + other.iterations,
        )

    def minus(self, other: Amounts) -> Amounts:
        """What is left without the other."""
        return Amounts(
            self.requests - other.requests,
            self.tokens - other.tokens,
            self.cost - other.cost,
            self.iterations - other.iterations,
        )

    def at_least(self, other: Amounts) -> Amounts:
        """Of each the larger."""
        return Amounts(
            max(self.requests, other.requests),
            max(self.tokens, other.tokens),
            max(self.cost, other.cost),
            max(self.iterations, other.iterations),
        )


NOTHING = Amounts()


@dataclass(frozen=True, slots=True)
class Budget:
    """What an account may spend; None for no bound. `wall` runs from its first call, `soft` is a share of each."""

    tokens: int | None = None
    cost: int | None = None
    requests: int | None = None
    iterations: int | None = None
    wall: Span | None = None
    soft: float = SOFT_MARK

    @classmethod
    def of(cls, told: JSONObject) -> Budget:
        """Read a checked one: cost in dollars, `seconds` for the wall time."""
        cost, seconds = told.get("cost"), told.get("seconds")
        return cls(
            told.get("tokens"),
            None if cost is None else round(cost * MILLIONTHS),
            told.get("requests"),
            told.get("iterations"),
            None if seconds is None else round(seconds * SECOND),
            told.get("soft", SOFT_MARK),
        )


# --- what is kept ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Account:
    """What became of a budget. `unknown` is the part of `spent` that nobody knows: of attempts that were lost."""

    name: str
    budget: Budget
    began_at: Instant
    tell: str | None = None
    """The session that hears of the soft mark."""
    spent: Amounts = NOTHING
    held: Amounts = NOTHING
    unknown: Amounts = NOTHING
    is_marked: bool = False
    """Whether the soft mark was passed, and told of."""


@dataclass(frozen=True, slots=True)
class Rate:
    """The calls of the last minute: moment of the slice, requests, tokens; oldest first."""

    name: str
    slices: tuple[tuple[Instant, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """A task that waits in a line, until when it was told to, and what its call takes of the rate."""

    task_id: str
    until: Instant
    requests: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Line:
    """Those who wait for a rate, in the order in which they came: no call waits for ever because it is a large one."""

    name: str
    places: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True)
class Breaker:
    """Whether a provider is asked: closed, open until a moment, then half open: one probe tells."""

    name: str
    failures: int = 0
    """In a row, none more than the breaker's `window` after the one before."""
    failed_at: Instant = 0
    open_until: Instant | None = None
    probe_until: Instant | None = None
    """Until when nobody else probes."""
    reason: str = ""

    @property
    def is_quiet(self) -> bool:
        """Whether a success has nothing to say to it."""
        return not self.failures and self.open_until is None


Meter: TypeAlias = Account | Rate | Line | Breaker


@dataclass(frozen=True, slots=True)
class Reservation:
    """What an open call of a held attempt may take at most."""

    task_id: str
    attempt: int
    ordinal: int
    """Counts the calls of the attempt."""
    amounts: Amounts


# --- what is asked -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tap:
    """An account that a task spends from. `budget` and `tell` are those of an account that does not exist yet."""

    account: str
    budget: Budget
    tell: str | None = None


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What a model may be asked in any minute; None for no bound."""

    name: str
    requests: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a call was counted by a rate, and as how many tokens."""

    name: str
    at: Instant
    tokens: int


@dataclass(frozen=True, slots=True)
class Reserve:
    """A holder is about to call a model: may it? Granted by all `taps` and the rate, or by none.

    `waits`: if the rate is full it will ask again, and turns to no other model meanwhile.
    """

    task_id: str
    attempt: int
    ordinal: int
    amounts: Amounts
    at: Instant
    taps: tuple[Tap, ...] = ()
    rate: RateLimit | None = None
    waits: bool = True


@dataclass(frozen=True, slots=True)
class Settle:
    """What a reserved call took; None where nobody knows, which counts as all of it."""

    task_id: str
    attempt: int
    ordinal: int
    amounts: Amounts | None
    at: Instant
    taps: tuple[Tap, ...] = ()
    slot: Slot | None = None


@dataclass(frozen=True, slots=True)
class BreakerTerms:
    """After how many failures in a row a provider is not asked, and for how long."""

    failures: int = 5
    window: Span = MINUTE
    rest: Span = 30 * SECOND


@dataclass(frozen=True, slots=True)
class Probe:
    """May an open breaker's provider be asked, to see whether it works again? One may, for a `rest` at most.

    `is_unused`: who was allowed to did not ask it, for want of something else. Another may.
    """

    provider: str
    at: Instant
    terms: BreakerTerms = BreakerTerms()
    is_unused: bool = False


@dataclass(frozen=True, slots=True)
class Heard:
    """What a provider made of a call: None if it answered, else what was wrong."""

    provider: str
    failure: str | None
    at: Instant
    terms: BreakerTerms = BreakerTerms()


Charge: TypeAlias = Reserve | Settle | Probe | Heard


# --- what is answered --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Granted:
    """It was taken down."""

    slot: Slot | None = None


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The account has spent what it may, or too much for this call. Nothing was taken down."""

    account: str
    limit: str
    """Which of `LIMITS`."""
    bound: int
    spent: int
    wanted: int


@dataclass(frozen=True, slots=True)
class Later:
    """Not now: ask again at `until`. Nothing was taken down but who waits."""

    meter: str
    until: Instant


@dataclass(frozen=True, slots=True)
class Lapsed:
    """The attempt does not hold its task any more, or the call was settled before. Nothing was taken down."""


ChargeVerdict: TypeAlias = Granted | Exhausted | Later | Lapsed


@dataclass(frozen=True, slots=True)
class Ruling:
    """Everything that one charge writes. `marked` are the accounts that passed their soft mark by it."""

    verdict: ChargeVerdict
    meters: tuple[Meter, ...] = ()
    opened: Reservation | None = None
    closed: tuple[Reservation, ...] = ()
    marked: tuple[Account, ...] = ()


# --- the rules ---------------------------------------------------------------------------------------


def taps_of(task: Task) -> tuple[Tap, ...]:
    """The accounts that a task spends from, by what its `budget` says of itself, its session and its tree.

    Its own is one of them wherever there is any, if need be without a bound: who moves the task has to know its part.
    """
    told, given = task.input.budget, task.input
    if not told:
        return ()
    wants_wake = given.wake_policy != "silent"
    parts = (
        (TASK + task.id, {name: told[name] for name in (*LIMITS, "soft") if name in told}, wants_wake),
        (SESSION + given.session_id, told.get("session"), True),
        (TREE + given.root_session_id, told.get("tree"), True),
    )
    tell = {SESSION: given.session_id, TREE: given.root_session_id, TASK: given.session_id}
    taps = tuple(
        Tap(name, Budget.of(part), tell[name[: name.index(":") + 1]] if is_told else None)
        for name, part, is_told in parts
        if part and any(limit in part for limit in LIMITS)
    )
    own = TASK + task.id
    return taps if not taps or taps[0].account == own else (Tap(own, Budget()), *taps)


def names_of(charge: Charge) -> tuple[str, ...]:
    """The meters that a charge may move."""
    match charge:
        case Reserve(taps=taps, rate=rate):
            return (*(tap.account for tap in taps), *(() if rate is None else (rate.name, LINE + rate.name)))
        case Settle(taps=taps, slot=slot):
            return (*(tap.account for tap in taps), *(() if slot is None else (slot.name,)))
        case Probe(provider=provider) | Heard(provider=provider):
            return (PROVIDER + provider,)
        case _:
            assert_never(charge)


def judge(charge: Charge, meters: Mapping[str, Meter], reserved: Mapping[int, Reservation], *, holds: bool) -> Ruling:
    """Decide on a charge. `reserved` are the open calls of its attempt by ordinal; `holds`: it holds its task."""
    match charge:
        case Reserve():
            return _reserve(charge, meters, reserved, holds=holds)
        case Settle():
            return _settle(charge, meters, reserved, holds=holds)
        case Probe():
            return _probe(charge, meters)
        case Heard():
            return _hear(charge, meters)
        case _:
            assert_never(charge)


def lapse(task: Task, meters: Mapping[str, Meter], reserved: Sequence[Reservation], now: Instant) -> Ruling:
    """An attempt is over: what its open calls may have taken counts as spent, and as unknown."""
    if not reserved:
        return Ruling(Granted())
    taken = NOTHING
    for reservation in reserved:
        taken = taken.plus(reservation.amounts)
    unknown = evolve(taken, iterations=0)  # what was lost is made again, and is one iteration then
    moved = [_spend(_account(meters, tap, now), taken, unknown, is_unknown=True) for tap in taps_of(task)]
    told, marked = _mark(moved, now)
    return Ruling(Granted(), told, closed=tuple(reserved), marked=marked)


def bring(brought: Sequence[Account], meters: Mapping[str, Meter], now: Instant) -> Ruling:
    """A task comes from another database: what it has taken there is spent here, too, from each of its accounts here.

    An account that is not there yet begins as it is brought.
    """
    grown = []
    for each in brought:
        found = meters.get(each.name)
        there = found if isinstance(found, Account) else evolve(each, spent=NOTHING, unknown=NOTHING)
        grown.append(evolve(there, spent=there.spent.plus(each.spent), unknown=there.unknown.plus(each.unknown)))
    told, marked = _mark(grown, now)
    return Ruling(Granted(), told, marked=marked)


def notice(account: Account) -> JSONObject:
    """What the session of an account is told at its soft mark."""
    return {
        "text": f"{account.budget.soft:.0%} or more of the budget of {account.name} is spent",
        "account": account.name,
        "budget": told_budget(account.budget),
        "spent": told_amounts(account.spent),
    }


def told_millionths(cost: float | None) -> int:
    """A cost in dollars as millionths, rounded up; nothing where none is known."""
    return 0 if cost is None else -int(-cost * MILLIONTHS // 1)


def told_budget(budget: Budget) -> dict[str, float]:
    """A budget as it is written: `Budget.of` reads it."""
    told = {
        "tokens": budget.tokens,
        "cost": None if budget.cost is None else budget.cost / MILLIONTHS,
        "requests": budget.requests,
        "iterations": budget.iterations,
        "seconds": None if budget.wall is None else budget.wall / SECOND,
        "soft": None if budget.soft == SOFT_MARK else budget.soft,
    }
    return {name: value for name, value in told.items() if value is not None}


def told_amounts(amounts: Amounts) -> dict[str, float]:
    """Amounts as people read them: the cost in dollars."""
    return {
        "tokens": amounts.tokens,
        "cost": amounts.cost / MILLIONTHS,
        "requests": amounts.requests,
        "iterations": amounts.iterations,
    }


def _reserve(
    charge: Reserve, meters: Mapping[str, Meter], reserved: Mapping[int, Reservation], *, holds: bool
) -> Ruling:
    if not holds:
        return Ruling(Lapsed())
    if charge.ordinal in reserved:
        return Ruling(Granted())  # it was asked before, and the answer was lost
    accounts = [_account(meters, tap, charge.at) for tap in charge.taps]
    for account in accounts:
        if (exhausted := _excess(account, charge)) is not None:
            return Ruling(exhausted)
    for account in accounts:
        if not _has_room(account, charge.amounts):
            return Ruling(Later(account.name, charge.at + CROWDED))
    slot: Slot | None = None
    rates: tuple[Meter, ...] = ()
    if charge.rate is not None:
        rate, line = _rate(meters, charge.rate.name), _line(meters, charge.rate.name, charge.at)
        if (until := _full_until(rate, line, charge.rate, charge)) is not None:
            return Ruling(Later(rate.name, until), (_joined(line, charge, until),))
        slot = Slot(rate.name, charge.at - charge.at % SLICE, charge.amounts.tokens)
        rates = (_counted(rate, slot.at, charge.amounts.requests, slot.tokens, charge.at),)
        if line != meters.get(line.name, line) or any(place.task_id == charge.task_id for place in line.places):
            rates = (*rates, _left(line, charge.task_id))
    taken = [evolve(account, held=account.held.plus(charge.amounts)) for account in accounts]
    told, marked = _mark(taken, charge.at)
    opened = Reservation(charge.task_id, charge.attempt, charge.ordinal, charge.amounts) if accounts else None
    return Ruling(Granted(slot), (*told, *rates), opened, marked=marked)


def _settle(charge: Settle, meters: Mapping[str, Meter], reserved: Mapping[int, Reservation], *, holds: bool) -> Ruling:
    rates: tuple[Meter, ...] = ()
    if charge.slot is not None and charge.amounts is not None:
        rate = _rate(meters, charge.slot.name)
        rates = (_counted(rate, charge.slot.at, 0, charge.amounts.tokens - charge.slot.tokens, charge.at),)
    if not charge.taps:
        return Ruling(Granted(), rates)
    reservation = reserved.get(charge.ordinal)
    if not holds or reservation is None:
        return Ruling(Lapsed(), rates)
    is_unknown = charge.amounts is None
    took = evolve(reservation.amounts, iterations=0) if charge.amounts is None else charge.amounts
    accounts = [
        _spend(_account(meters, tap, charge.at), reservation.amounts, took, is_unknown=is_unknown)
        for tap in charge.taps
    ]
    told, marked = _mark(accounts, charge.at)
    return Ruling(Granted(), (*told, *rates), closed=(reservation,), marked=marked)


def _probe(charge: Probe, meters: Mapping[str, Meter]) -> Ruling:
    breaker = _breaker(meters, charge.provider)
    if breaker.open_until is None:
        return Ruling(Granted())
    if charge.is_unused:
        return Ruling(Granted(), (evolve(breaker, probe_until=None),))
    until = max(breaker.open_until, breaker.probe_until or 0)
    if charge.at < until:
        return Ruling(Later(breaker.name, until))
    return Ruling(Granted(), (evolve(breaker, probe_until=charge.at + charge.terms.rest),))


def _hear(charge: Heard, meters: Mapping[str, Meter]) -> Ruling:
    breaker = _breaker(meters, charge.provider)
    if charge.failure is None:
        return Ruling(Granted(), () if breaker.is_quiet else (Breaker(breaker.name),))
    in_a_row = charge.at - breaker.failed_at <= charge.terms.window
    failures = breaker.failures + 1 if in_a_row else 1
    is_open = breaker.open_until is not None or failures >= charge.terms.failures
    until = charge.at + charge.terms.rest if is_open else None
    return Ruling(Granted(), (Breaker(breaker.name, failures, charge.at, until, None, charge.failure),))


# --- accounts ----------------------------------------------------------------------------------------


def _account(meters: Mapping[str, Meter], tap: Tap, now: Instant) -> Account:
    found = meters.get(tap.account)
    return found if isinstance(found, Account) else Account(tap.account, tap.budget, now, tap.tell)


def _bounds(account: Account, amounts: Amounts) -> tuple[tuple[str, int | None, int, int, int], ...]:
    """Of each limit: its name, the bound, what is spent, what is held, what `amounts` have of it."""
    budget, spent, held = account.budget, account.spent, account.held
    return (
        ("tokens", budget.tokens, spent.tokens, held.tokens, amounts.tokens),
        ("cost", budget.cost, spent.cost, held.cost, amounts.cost),
        ("requests", budget.requests, spent.requests, held.requests, amounts.requests),
        ("iterations", budget.iterations, spent.iterations, held.iterations, amounts.iterations),
    )


def _excess(account: Account, charge: Reserve) -> Exhausted | None:
    for limit, bound, spent, _, wanted in _bounds(account, charge.amounts):
        if bound is not None and wanted and spent + wanted > bound:
            return Exhausted(account.name, limit, bound, spent, wanted)
    wall, passed = account.budget.wall, charge.at - account.began_at
    if wall is not None and passed >= wall:
        return Exhausted(account.name, "seconds", wall, passed, 0)
    return None


def _has_room(account: Account, amounts: Amounts) -> bool:
    return all(
        bound is None or not wanted or spent + held + wanted <= bound
        for _, bound, spent, held, wanted in _bounds(account, amounts)
    )


def _spend(account: Account, reserved: Amounts, took: Amounts, *, is_unknown: bool) -> Account:
    return evolve(
        account,
        held=account.held.minus(reserved),
        spent=account.spent.plus(took),
        unknown=account.unknown.plus(took) if is_unknown else account.unknown,
    )


def _mark(accounts: Sequence[Account], now: Instant) -> tuple[tuple[Account, ...], tuple[Account, ...]]:
    """The accounts, those marked that have passed their soft mark; and which of them did so only now."""
    told = tuple(
        evolve(account, is_marked=True) if not account.is_marked and _is_beyond(account, now) else account
        for account in accounts
    )
    return told, tuple(new for old, new in zip(accounts, told, strict=True) if new is not old)


def _is_beyond(account: Account, now: Instant) -> bool:
    soft, wall = account.budget.soft, account.budget.wall
    if wall is not None and now - account.began_at >= soft * wall:
        return True
    return any(bound is not None and spent >= soft * bound for _, bound, spent, *_ in _bounds(account, NOTHING))


# --- rates and breakers ------------------------------------------------------------------------------


def _rate(meters: Mapping[str, Meter], name: str) -> Rate:
    found = meters.get(name)
    return found if isinstance(found, Rate) else Rate(name)


def _line(meters: Mapping[str, Meter], rate: str, now: Instant) -> Line:
    """Those who are still waited for."""
    found = meters.get(LINE + rate)
    places = found.places if isinstance(found, Line) else ()
    # Nobody is told to wait for longer than a minute: who seems to be was told so before the clock was put back.
    longest = MINUTE + SLICE + LATECOMER
    return Line(LINE + rate, tuple(each for each in places if -LATECOMER <= each.until - now <= longest))


def _joined(line: Line, charge: Reserve, until: Instant) -> Line:
    """The line with a call in it: in its place, or at the end."""
    place = Place(charge.task_id, until, charge.amounts.requests, charge.amounts.tokens)
    if any(each.task_id == charge.task_id for each in line.places):
        return Line(line.name, tuple(place if each.task_id == charge.task_id else each for each in line.places))
    return Line(line.name, (*line.places, place)) if charge.waits and len(line.places) < LONGEST_LINE else line


def _left(line: Line, task_id: str) -> Line:
    return Line(line.name, tuple(each for each in line.places if each.task_id != task_id))


def _full_until(rate: Rate, line: Line, limit: RateLimit, charge: Reserve) -> Instant | None:
    """When a call would find room, None if it does now. One that is larger than the limit has its minute alone.

    It leaves room for those ahead of it. They may still have to wait until calls of before have returned to the rate:
    then it may go first, if both find room when that has happened.
    """
    levels = _levels(rate, charge.at)
    ahead = NOTHING
    for place in line.places:
        if place.task_id == charge.task_id:
            break
        ahead = ahead.plus(Amounts(place.requests, place.tokens))
    both = ahead.plus(charge.amounts)
    if _fits(levels[0], limit, charge.amounts):
        if ahead == NOTHING:
            return None
        their_turn = next(level for level in levels if _fits(level, limit, ahead))
        if _fits(their_turn, limit, both, alone=False):
            return None
    return max(charge.at + CROWDED, next(level.at for level in levels if _fits(level, limit, both)))


@dataclass(frozen=True, slots=True)
class _Level:
    """What is left of the counted calls at a moment, if no more are made."""

    at: Instant
    requests: int
    tokens: int


def _levels(rate: Rate, now: Instant) -> list[_Level]:
    """From now on, until all has returned."""
    counted = [each for each in rate.slices if _counts(each[0], now)]
    levels = [_Level(now, sum(each[1] for each in counted), sum(each[2] for each in counted))]
    for at, requests, tokens in counted:
        levels.append(_Level(_returns_at(at), levels[-1].requests - requests, levels[-1].tokens - tokens))
    return levels


def _fits(level: _Level, limit: RateLimit, wanted: Amounts, *, alone: bool = True) -> bool:
    """Whether there is room for more then. With `alone`, an empty minute has room for whatever is wanted."""
    return all(
        bound is None or counted + more <= (max(bound, more) if alone else bound)
        for bound, counted, more in (
            (limit.requests, level.requests, wanted.requests),
            (limit.tokens, level.tokens, wanted.tokens),
        )
    )


def _counted(rate: Rate, at: Instant, requests: int, tokens: int, now: Instant) -> Rate:
    """Count what was taken in a slice, and forget the slices that returned."""
    slices = {each[0]: each for each in rate.slices if _counts(each[0], now)}
    _, asked, used = slices.get(at, (at, 0, 0))
    if _counts(at, now):
        slices[at] = (at, asked + requests, max(0, used + tokens))
    return Rate(rate.name, tuple(sorted(slices.values())))


def _counts(slice_at: Instant, now: Instant) -> bool:
    """One that lies further ahead than clocks differ was counted before the clock was put back."""
    return slice_at <= now + LATE and _returns_at(slice_at) > now


def _returns_at(slice_at: Instant) -> Instant:
    return slice_at + SLICE + MINUTE


def _breaker(meters: Mapping[str, Meter], provider: str) -> Breaker:
    found = meters.get(PROVIDER + provider)
    return found if isinstance(found, Breaker) else Breaker(PROVIDER + provider)
