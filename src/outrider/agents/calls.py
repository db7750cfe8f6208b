"""The model calls of one attempt: reserved before, settled after, and not made where a rate or a breaker says so.

A task without a budget, whose model has no rate, writes nothing for a call. What one would get wrong: nothing waits in
here. `Busy` unwinds the engine, whose checkpoint is the transcript, and whoever ran it waits: a task that waits for
long parks, and that it can do only where it has nothing else open.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from outrider.agents.engine import AgentFailed, Busy, ModelCall, ModelFailed, Permit
from outrider.core.ledger import Ledger
from outrider.core.meters import (
    MODEL,
    PROVIDER,
    Amounts,
    Breaker,
    BreakerTerms,
    Exhausted,
    Granted,
    Heard,
    Later,
    Probe,
    RateLimit,
    Reserve,
    Settle,
    Slot,
    told_millionths,
)
from outrider.core.task import Usage
from outrider.core.values import SECOND, Instant
from outrider.runtime.clock import span
from outrider.runtime.context import TaskContext
from outrider.runtime.registry import ModelTerms

STALE = SECOND
"""How old what is known of a breaker may be: a second's calls of a process look once."""

TROUBLE = (None, 408, 425)
"""HTTP statuses, beside those from 500 on, that say that a provider does not work; None for no answer at all."""

KINDS = {
    "tokens": "tokens",
    "cost": "of cost",
    "requests": "requests",
    "iterations": "iterations",
    "seconds": "of time",
}


class Breakers:
    """What this process last saw of the breakers of each store."""

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[Ledger, MutableMapping[str, tuple[Instant, Breaker]]] = WeakKeyDictionary()

    async def look(self, ledger: Ledger, provider: str, now: Instant) -> Breaker:
        """The breaker of a provider, as it was at most `STALE` ago."""
        seen = self._seen.setdefault(ledger, {})
        at, breaker = seen.get(provider, (None, None))
        if at is None or breaker is None or not 0 <= now - at < STALE:
            name = PROVIDER + provider
            found = (await ledger.views.meters([name])).get(name)
            breaker = found if isinstance(found, Breaker) else Breaker(name)
            seen[provider] = now, breaker
        return breaker

    def forget(self, ledger: Ledger, provider: str) -> None:
        """It was just moved."""
        self._seen.get(ledger, {}).pop(provider, None)


BREAKERS = Breakers()
"""Of this process."""


@dataclass(frozen=True, slots=True)
class Held(Permit):
    """A permit and what was reserved for it."""

    reserve: Reserve
    slot: Slot | None


@dataclass(slots=True)
class Calls:
    """The calls of one attempt of a task."""

    task: TaskContext
    made: int = field(default=0)
    is_patient: bool = True
    """Whether it is waited for the model's rate where that is full; else another model is asked."""

    async def reserve(self, call: ModelCall) -> Permit:
        """See `AgentRun.reserve`."""
        probes = await self._ask_breaker(call)
        try:
            return await self._reserve(call)
        except (Busy, AgentFailed):
            if probes:  # the call is not made, and nobody else would find out whether the provider works
                await self.task.charge(
                    Probe(call.provider, self.task.services.clock.now(), self._terms(), is_unused=True)
                )
            raise

    async def _reserve(self, call: ModelCall) -> Permit:
        terms = self.task.services.registry.models.get(call.model)
        rate = _rate_of(terms)
        taps = self.task.taps
        if not taps and rate is None:
            return Permit(call, call.output_tokens)
        answer = call.output_tokens or self.task.services.settings.model_answer_tokens
        asked = call.input_tokens()
        cost = _price(call, terms, asked, answer)
        if cost is None and any(tap.budget.cost is not None for tap in taps):
            raise AgentFailed(
                f"no price is known for the model {call.model}, and what it may cost is bounded: give its prices with "
                "app.model",
                kind="rejected",
            )
        self.made += 1
        amounts = Amounts(1, asked + answer, told_millionths(cost), 1)
        now = self.task.services.clock.now()
        reserve = Reserve(self.task.id, self.task.attempt, self.made, amounts, now, taps, rate, self.is_patient)
        match verdict := await self.task.charge(reserve):
            case Exhausted():
                raise _exhausted(verdict)
            case Later(meter, until):
                raise Busy(f"{meter} has no room for a call to {call.model} now", until, elsewhere=meter == _name(rate))
            case Granted(slot):
                return Held(call, answer, reserve, slot)
            case _:
                raise AssertionError(f"a reservation is not answered by {verdict}")

    async def settle(self, permit: Permit, usage: Usage | None, failure: ModelFailed | None = None) -> float | None:
        """See `AgentRun.settle`."""
        call = permit.call
        await self._tell_breaker(call.provider, failure)
        terms = self.task.services.registry.models.get(call.model)
        cost = None
        if usage is not None:
            cost = usage.cost
            if cost is None or (terms is not None and terms.input_price is not None):
                cost = _price(call, terms, usage.input_tokens, usage.output_tokens)
        if not isinstance(permit, Held):
            return cost
        amounts: Amounts | None = None
        if usage is not None:
            amounts = Amounts(1, usage.input_tokens + usage.output_tokens, told_millionths(cost), 1)
        elif failure is not None and failure.status is not None:
            amounts = Amounts(1)  # the provider said no: it has done nothing that it would be paid for
        asked, now = permit.reserve, self.task.services.clock.now()
        if asked.taps or (asked.rate is not None and asked.rate.tokens is not None):
            await self.task.charge(
                Settle(asked.task_id, asked.attempt, asked.ordinal, amounts, now, asked.taps, permit.slot)
            )
        return cost

    async def _ask_breaker(self, call: ModelCall) -> bool:
        """Raise Busy where the provider is not asked. Whether this call is to find out if it works again."""
        services = self.task.services
        now = services.clock.now()
        breaker = await BREAKERS.look(services.ledger, call.provider, now)
        if breaker.open_until is None:
            return False
        verdict = await self.task.charge(Probe(call.provider, now, self._terms()))
        if isinstance(verdict, Later):
            BREAKERS.forget(services.ledger, call.provider)
            why = f"the provider {call.provider} failed {breaker.failures} times in a row: {breaker.reason}"
            raise Busy(why, verdict.until, elsewhere=True, is_broken=True)
        return True

    async def _tell_breaker(self, provider: str, failure: ModelFailed | None) -> None:
        services = self.task.services
        now = services.clock.now()
        breaker, reason = await BREAKERS.look(services.ledger, provider, now), None
        if failure is None:
            if breaker.is_quiet:
                return
        elif failure.status is not None and failure.status < 500 and failure.status not in TROUBLE:
            if breaker.open_until is None:
                return  # it did not like what it was asked, which says nothing of the failures before
            # But it answers: a probe has found out what there was to find out, and others need not wait for another.
        else:
            reason = failure.message[:200]
        await self.task.charge(Heard(provider, reason, now, self._terms()))
        BREAKERS.forget(services.ledger, provider)

    def _terms(self) -> BreakerTerms:
        settings = self.task.services.settings
        return BreakerTerms(settings.breaker_failures, rest=span(settings.breaker_rest))


def _rate_of(terms: ModelTerms | None) -> RateLimit | None:
    if terms is None or (terms.requests_per_minute is None and terms.tokens_per_minute is None):
        return None
    return RateLimit(MODEL + terms.name, terms.requests_per_minute, terms.tokens_per_minute)


def _name(rate: RateLimit | None) -> str | None:
    return None if rate is None else rate.name


def _price(call: ModelCall, terms: ModelTerms | None, asked: int, answered: int) -> float | None:
    if terms is not None and terms.input_price is not None and terms.output_price is not None:
        return (asked * terms.input_price + answered * terms.output_price) / 1_000_000
    return call.price(asked, answered)


def _exhausted(verdict: Exhausted) -> AgentFailed:
    def told(value: int) -> str:
        if verdict.limit == "cost":
            return f"${value / 1_000_000:g}"
        return f"{value / SECOND:g} s" if verdict.limit == "seconds" else f"{value:,}"

    wanted = f", and the next call may take {told(verdict.wanted)}" if verdict.wanted else ""
    return AgentFailed(
        f"the budget of {verdict.account} has {told(verdict.bound)} {KINDS[verdict.limit]}, "
        f"of which {told(verdict.spent)} are spent{wanted}",
        kind="budget_exceeded",
        details={"account": verdict.account, "limit": verdict.limit},
    )
