"""What the gauges show of a store: looked up now and then, by workers and by who is asked for metrics without one.

A look reads every task that wants a worker, so with a hundred thousand of them it takes a while; `keep_counting` then
looks less often, and never more than a small part of the time.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from outrider.core.errors import StoreError
from outrider.runtime.services import Services
from outrider.runtime.telemetry import COUNT_INTERVAL, Counted, Counts

SHARE = 20
"""Of this much time at most one part is spent looking."""


async def look(services: Services) -> Counts:
    """Count what a store holds. Not one moment of it: what moves meanwhile may be counted twice, or not at all."""
    now, views = services.clock.now(), services.views
    told, holders = await views.statistics(now), await views.holders()
    live = sum(count for state, count in told.states.items() if not state.is_terminal)
    parked = live - sum(each.count for each in told.waiting) - sum(holders.values())
    return Counts(now, told.states, told.waiting, max(0, parked), told.storage)


async def keep_counting(services: Services, counted: Counted) -> None:
    """Show what one worker holds, and what the store does, until cancelled."""
    stop = services.telemetry.watch(counted)
    try:
        while True:
            began = time.monotonic()
            with suppress(StoreError):  # not known; the next look will tell
                counted.counts = await look(services)
            await asyncio.sleep(max(COUNT_INTERVAL, SHARE * (time.monotonic() - began)))
    finally:
        stop()
