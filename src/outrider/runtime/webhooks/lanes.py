"""The lanes of endpoints: taking one for a while, making the deliveries that are due, and letting it go again.

A lane belongs to whoever moved its `due_at` ahead, until then. If he dies, somebody else takes it after that and makes
the same deliveries again, under the same ids. Each delivery's outcome is kept as it comes, so that little is repeated.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from outrider.core.ledger import Document
from outrider.core.values import SECOND, Instant, Span, evolve
from outrider.runtime.clock import span
from outrider.runtime.ids import new_id
from outrider.runtime.log import log
from outrider.runtime.services import Services
from outrider.runtime.webhooks.secrets import keys_of
from outrider.runtime.webhooks.sending import GONE, Outcome, Sender
from outrider.runtime.webhooks.stored import (
    LANE,
    Endpoint,
    Status,
    clear,
    deliveries_of,
    endpoint_if_there,
    moved,
    pending,
)

ATTEMPTS = 10
"""How many tries of a delivery its record shows: the last ones."""

TRIMMED = 20
"""After how many deliveries an endpoint's history is cut to its length again."""

REST = 60 * SECOND
"""How long an endpoint is left alone that could not be served at all."""

LONGEST_REST = 300.0
"""Seconds for which an endpoint is left alone, at most, that takes nothing again and again."""

SHARES = 4
"""Of how many parts of the places one organization has one: its receivers that hang hold up nobody else's webhooks."""

LEAVE = 5.0
"""Seconds that what is under way has to end when this process leaves."""


class Lanes:
    """Those that this process has taken. `chance` draws from 0 to 1."""

    def __init__(self, services: Services, sender: Sender, chance: Callable[[], float] = random.random) -> None:
        self._services = services
        self._sender = sender
        self._chance = chance
        self._name = new_id("sender")
        self._taken: dict[str, asyncio.Task[None]] = {}
        self._places_of: Counter[str] = Counter()
        """How many of them each organization has."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being sent here."""
        return not self._taken

    async def start(self, due_by: Instant, on_end: Callable[[], object]) -> None:
        """Take lanes that are due since then, as many as there is room for, and go on with each by itself."""
        places = self._services.settings.webhooks.endpoints_at_once
        room = places - len(self._taken)
        if room <= 0:
            return
        limit = room + len(self._taken)
        page = await self._services.views.documents(LANE, due_by=due_by, limit=limit)
        passed_over: list[Document] = []
        for lane in page:
            owner = lane.organization_id
            if lane.id in self._taken or len(self._taken) >= places:
                continue
            if self._places_of[owner] >= max(1, places // SHARES):
                passed_over.append(lane)
                continue
            self._places_of[owner] += 1
            job = self._taken[lane.id] = asyncio.create_task(self._go_on(lane), name="outrider-webhooks")
            job.add_done_callback(partial(self._ended, lane, on_end))
        behind = [evolve(lane, due_at=due_by) for lane in passed_over if lane.due_at != due_by]
        if behind and len(page) == limit and len(self._taken) < places:
            await self._services.ledger.keep(behind)  # those of others may come after them

    def _ended(self, lane: Document, on_end: Callable[[], object], job: asyncio.Task[None]) -> None:
        self._taken.pop(lane.id)
        self._places_of[lane.organization_id] -= 1
        if not self._places_of[lane.organization_id]:
            del self._places_of[lane.organization_id]
        if not job.cancelled() and (error := job.exception()) is not None:
            log.error("a webhook's lane was left; others will go on", webhook=lane.id, exc_info=error)
        on_end()

    async def join(self) -> None:
        """Wait until nothing is being sent here."""
        while self._taken:
            await asyncio.wait(list(self._taken.values()))

    async def leave(self) -> None:
        """Let what is being sent come to its end, within a few seconds, and let go of the lanes."""
        if jobs := list(self._taken.values()):
            _, late = await asyncio.wait(jobs, timeout=LEAVE)
            for job in late:
                job.cancel()
            if late:
                await asyncio.wait(late, timeout=LEAVE)

    # --- one lane ------------------------------------------------------------------------------------

    async def _go_on(self, lane: Document) -> None:
        """Take a lane, make some of the deliveries that are due, and let it go."""
        rests_until = 0
        outcomes: list[Outcome] = []
        if not await self._claim(lane):
            return
        try:
            endpoint = await endpoint_if_there(self._services.views, lane.id)
            if endpoint is None:  # it was deleted, and its lane with it
                await clear(self._services.ledger, lane.id)
            elif endpoint.disabled is None:
                await self._deliver(endpoint, outcomes)
        except Exception as error:  # noqa: BLE001 - whatever it is, one endpoint that fails holds up no other
            rests_until = self._services.clock.now() + REST
            log.error("webhooks could not be sent; trying again", webhook=lane.id, exc_info=error)
        finally:
            await self._let_go(lane.id, outcomes, rests_until)

    async def _claim(self, lane: Document) -> bool:
        until = self._services.clock.now() + span(self._services.settings.webhooks.claim)
        return await self._services.ledger.keep([evolve(lane, data={**lane.data, "holder": self._name}, due_at=until)])

    async def _deliver(self, endpoint: Endpoint, outcomes: list[Outcome]) -> None:
        """Begin what is due in its order, and see each to its end."""
        settings, now = self._services.settings.webhooks, self._services.clock.now()
        keys = keys_of(self._services, endpoint, now)
        due = await self._services.views.documents(pending(endpoint.id), due_by=now, limit=settings.at_once)
        tries = (self._try(endpoint, keys, delivery, outcomes) for delivery in due)
        for failure in await asyncio.gather(*tries, return_exceptions=True):
            if failure is not None:
                raise failure

    async def _try(self, endpoint: Endpoint, keys: list[bytes], delivery: Document, outcomes: list[Outcome]) -> None:
        now = self._services.clock.now()
        body = await self._body(delivery)
        outcome = await self._sender.send(endpoint.url, keys, delivery.id, body, now // 1_000_000)
        outcomes.append(outcome)
        after = self._after(delivery, outcome, now)
        dropped = [] if after.collection == delivery.collection else [delivery]
        # False: somebody else took the lane for abandoned and was faster, or the endpoint was deleted.
        if await self._services.ledger.keep([after], dropped) and dropped:
            log.log(
                _LEVEL[outcome.error is None],
                "webhook delivered" if outcome.error is None else "webhook given up",
                webhook=endpoint.id,
                delivery=delivery.id,
                host=endpoint.host,
                **outcome.told(),
            )

    async def _body(self, delivery: Document) -> bytes:
        from outrider.runtime.answer_links import with_links

        return await with_links(self._services, delivery)

    def _after(self, delivery: Document, outcome: Outcome, now: Instant) -> Document:
        """The delivery as it stands after a try."""
        settings, data = self._services.settings.webhooks, delivery.data
        told = {"at": now, **outcome.told()}
        changes: dict[str, Any] = {
            "attempts": [*data["attempts"][1 - ATTEMPTS :], told],
            "tries": data.get("tries", 0) + 1,
        }
        ended = self._services.clock.now()
        if outcome.error is None:
            return moved(delivery, "delivered", {**changes, "ended_at": ended})
        changes["failures"] = data["failures"] + 1
        again = ended + span(self._pause(changes["failures"], outcome.retry_after))
        if outcome.status == GONE or again > data["began_at"] + span(settings.retry_for):
            return moved(delivery, "dead", {**changes, "ended_at": ended})
        return evolve(delivery, data={**data, **changes}, due_at=again)

    def _pause(self, failures: int, retry_after: float | None) -> float:
        """Seconds until a delivery is tried again: drawn between half of what is due and all of it."""
        settings = self._services.settings.webhooks
        longest = min(settings.first_retry * 2.0 ** min(failures - 1, 60), settings.longest_retry)
        asked = min(retry_after or 0.0, settings.longest_retry)
        return max(longest * (1 + self._chance()) / 2, asked)

    def _rest(self, rounds: int) -> Span:
        """How long an endpoint is left alone that took nothing so many times: no longer than a first try waits."""
        settings = self._services.settings.webhooks
        return span(min(settings.first_retry * 2.0 ** min(rounds - 2, 60), settings.longest_retry / 2, LONGEST_REST))

    async def _let_go(self, lane_id: str, outcomes: list[Outcome], rests_until: Instant) -> None:
        """Note how it went, and give the lane back to whoever has something to do in it next."""
        views, ledger = self._services.views, self._services.ledger
        is_noted = False
        while True:
            lane = await views.document(LANE, id=lane_id)
            if lane is None or lane.data.get("holder") != self._name:  # deleted, or taken by somebody else
                return
            now = self._services.clock.now()
            data = _noted(lane.data, outcomes, now)
            if data["rounds"]:
                rests_until = max(rests_until, now + self._rest(data["rounds"]))
            data["rests_until"] = rests_until
            if not is_noted:
                is_noted = True
                await self._judge(lane_id, data, outcomes)
            if data["untrimmed"] >= TRIMMED:
                await self._trim(lane_id)
                data["untrimmed"] = 0
            found = await endpoint_if_there(views, lane_id)
            due_at = None if found is None or found.disabled is not None else await views.due_at(pending(lane_id))
            if due_at is not None:
                due_at = max(due_at, now, rests_until)  # behind all that wait already
            if await ledger.keep([evolve(lane, data={**data, "holder": None}, due_at=due_at)]):
                return

    async def _judge(self, lane_id: str, data: dict[str, Any], outcomes: list[Outcome]) -> None:
        """Disable an endpoint that is gone for good, or has failed for long enough."""
        settings = self._services.settings.webhooks
        now = self._services.clock.now()
        if any(outcome.status == GONE for outcome in outcomes):
            await disable(self._services, lane_id, f"it answered {GONE}: it is gone for good")
        elif (
            data["failures"] >= settings.disable_failures
            and now - data["failing_since"] >= span(settings.disable_after)
            and outcomes
        ):
            days = (now - data["failing_since"]) / 86_400e6
            reason = f"nothing but failures, {data['failures']} in {days:.1f} days; the last: {outcomes[-1].error}"
            await disable(self._services, lane_id, reason)

    async def _trim(self, endpoint_id: str) -> None:
        settings = self._services.settings.webhooks
        bounds: list[tuple[Status, int]] = [("delivered", settings.history), ("dead", settings.dead_letters)]
        for status, kept in bounds:
            name = deliveries_of(endpoint_id, status)
            page = await self._services.views.documents(name, limit=kept + 2 * TRIMMED * settings.at_once)
            await self._services.ledger.keep([], page[: max(0, len(page) - kept)])


async def disable(services: Services, endpoint_id: str, reason: str) -> bool:
    """Send nothing to an endpoint any more, until it is enabled by hand; False if it was so already, or is gone."""
    while True:
        found = await endpoint_if_there(services.views, endpoint_id)
        if found is None or found.disabled is not None:
            return False
        told = {"at": services.clock.now(), "reason": reason[:500]}
        if await services.ledger.keep([found.changed(disabled=told)]):
            log.error("a webhook was disabled", webhook=endpoint_id, host=found.host, reason=told["reason"])
            return True


def _noted(data: Any, outcomes: list[Outcome], now: Instant) -> dict[str, Any]:
    """What a lane remembers of its endpoint, after these tries."""
    noted = {"failing_since": None, "failures": 0, "untrimmed": 0, "rounds": 0, **data}
    if outcomes:
        noted["rounds"] = noted["rounds"] + 1 if all(each.error is not None for each in outcomes) else 0
    for outcome in outcomes:
        noted["untrimmed"] += 1
        if outcome.error is None:
            noted["failing_since"], noted["failures"] = None, 0
        else:
            noted["failing_since"] = noted["failing_since"] or now
            noted["failures"] += 1
    return noted


_LEVEL = {True: 20, False: 40}
