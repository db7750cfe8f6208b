"""The duty of whoever works on a store: follow the log, and send what becomes of it.

Any process may do it, and any number: the store sees to it that each webhook is made once and sent by one at a time.
The one on duty does it at once; the others look on, and help out with what is late. Where there is no endpoint it costs
a look at the start, and one now and then after something was written.
"""

from __future__ import annotations

import asyncio
import time

from outrider.core.errors import OutriderError, StoreError
from outrider.core.values import SECOND
from outrider.runtime.clock import span
from outrider.runtime.log import log
from outrider.runtime.services import Services
from outrider.runtime.webhooks.following import Follower
from outrider.runtime.webhooks.guard import Guard
from outrider.runtime.webhooks.lanes import Lanes
from outrider.runtime.webhooks.sending import Sender
from outrider.runtime.webhooks.stored import LANE, has_any
from outrider.runtime.webhooks.sweeping import YOUNG, sweep

CALM = 2.0
"""Seconds between two looks, at least, while there is no endpoint, or others are on duty."""

BREATH = 0.05
"""Seconds between two looks otherwise: what comes in the meantime is read in one page."""

CROWDED = 0.2
"""Seconds to wait for a place, where more is due than is sent at once."""

UNHEARD = 15.0
"""Seconds after which it is looked, though nobody was heard to write."""

SWEPT = 300.0
"""Seconds between two looks for what is left of tasks that were deleted."""


TROUBLE = "following the log for webhooks"


class Webhooking:
    """What one process does of it. `worker_id` is that of its worker, empty for a process without."""

    def __init__(self, services: Services, worker_id: str = "", sender: Sender | None = None) -> None:
        settings = services.settings
        self._services = services
        self._worker_id = worker_id
        self._follower = Follower(services)
        self._sender = sender or Sender(settings.webhooks, settings.limits.webhook_answer, Guard(settings.webhooks))
        self._lanes = Lanes(services, self._sender)
        self._news = asyncio.Event()
        self._is_on_duty = False
        self._asked_at = self._swept_at = -SWEPT
        self._sweeping: asyncio.Task[None] | None = None
        self._stood: tuple[int, float] = (-1, 0.0)
        """The position that was seen to be behind, by its version, and since when."""

    async def run(self) -> None:
        """Do it until cancelled. What is being sent then has a few seconds to come to its end."""
        if not self._services.settings.webhooks.deliver:
            return
        stop = self._services.ledger.listen(lambda _: self._news.set())
        try:
            while True:
                calm = CALM
                try:
                    calm = await self.look()
                except OutriderError as error:
                    if isinstance(error, StoreError) and error.is_final:
                        return
                    self._services.troubles.met(TROUBLE, error)
                await asyncio.sleep(calm)
        finally:
            stop()
            await self.leave()

    async def look(self) -> float:
        """Do what there is to do, wait for more, and return how long to rest before the next look, in seconds."""
        self._news.clear()
        services, settings = self._services, self._services.settings.webhooks
        if not await has_any(services.views):
            await self._hear(UNHEARD)
            return CALM
        if not await self._is_mine():
            await self._help_out()
            await self._hear(settings.takeover)
            return min(CALM, settings.takeover)
        await self._follower.catch_up()
        self._sweep()
        await self._lanes.start(services.clock.now(), self._news.set)
        services.troubles.over(TROUBLE)
        due_at = await services.views.due_at(LANE)
        wait = UNHEARD if due_at is None else (due_at - services.clock.now()) / SECOND
        if not await self._hear(min(max(wait, CROWDED), UNHEARD)):
            await self._follower.rest()
        return BREATH

    async def once(self) -> None:
        """Follow the log to its end and make all that is due now. For who drives it by hand."""
        await self.start()
        await self._lanes.join()
        while await self._services.views.documents(LANE, due_by=self._services.clock.now(), limit=1):
            await self.start()
            await self._lanes.join()

    async def start(self) -> None:
        """Follow the log to its end and begin with what is due now."""
        await self._follower.catch_up()
        await self._lanes.start(self._services.clock.now(), self._news.set)

    async def leave(self) -> None:
        """Have what is being sent come to its end within a few seconds, and let go of everything."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        await self._lanes.leave()
        await self._sender.close()

    async def _hear(self, wait: float) -> bool:
        """Wait until something was written, or that many seconds; whether it was."""
        try:
            # Not `wait_for`, which before Python 3.12 forgets a cancellation that comes together with the news.
            async with asyncio.timeout(wait):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    async def _is_mine(self) -> bool:
        """Whether this process is on duty: its worker is the one that has been there longest, or there is none."""
        if time.monotonic() - self._asked_at >= CALM:
            self._asked_at = time.monotonic()
            first = min((each.card.id for each in await self._services.views.workers()), default="")
            self._is_on_duty = first == self._worker_id
        return self._is_on_duty

    async def _help_out(self) -> None:
        """Do what whoever is on duty has not done in time: it may hang, or be of an earlier version."""
        patience = self._services.settings.webhooks.takeover
        version, is_behind = await self._follower.is_behind()
        if not is_behind or version != self._stood[0]:
            self._stood = (version if is_behind else -1, time.monotonic())
        elif time.monotonic() - self._stood[1] >= patience:
            await self._follower.catch_up()
            await self._follower.rest()
        await self._lanes.start(self._services.clock.now() - span(patience), self._news.set)

    def _sweep(self) -> None:
        """Drop what is left of tasks that were deleted, beside all else: it looks at what every endpoint was told."""
        if time.monotonic() - self._swept_at >= SWEPT and (self._sweeping is None or self._sweeping.done()):
            self._swept_at = time.monotonic()
            self._sweeping = asyncio.create_task(self._sweep_all())

    async def _sweep_all(self) -> None:
        try:
            await sweep(self._services, self._services.clock.now() - YOUNG)
        except OutriderError as error:
            log.error("what webhooks told of deleted tasks is still there; trying again", reason=error.message)
