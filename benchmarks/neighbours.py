"""Several processes on one store: what a second writer waits for while the first one is busy, and how soon it hears.

Another process runs tasks as fast as it can; this one commits a session at a time, and notes when it hears of commits
of the other.
"""

from __future__ import annotations

import asyncio
import time

from benchmarks import work
from benchmarks.harness import Figures, Place, Settings, check, percentile
from outrider import State

KEYS = ("write_p50_ms", "write_p95_ms", "signal_p50_ms", "signal_p95_ms", "tasks_per_s_beside")

BULK = 500
PAUSE = 0.01
SIGNALS = 200


def tasks(settings: Settings) -> int:
    """What the busy process works through."""
    return 50_000 if settings.full else 15_000


async def run(place: Place) -> Figures:
    """Write beside a busy worker; then listen to a quiet one."""
    url = place.url()
    async with work.app.open(url, worker=False) as outrider:
        session = await outrider.sessions.create()
        for first in range(0, place.tasks, BULK):
            arguments = [{"value": value} for value in range(first, min(first + BULK, place.tasks))]
            await session.spawn_many("echo", arguments)
        started = time.perf_counter()
        async with work.helpers(url, 1):
            waits = []
            while (await outrider.ledger.views.count_by_state())[State.QUEUED]:
                began = time.perf_counter()
                await outrider.sessions.create()
                waits.append((time.perf_counter() - began) * 1000)
                await asyncio.sleep(PAUSE)
            spent = time.perf_counter() - started
            lags = []
            for _ in range(SIGNALS):
                # Waits here for what is written there: the end of a task, which says when it ran.
                ran = await (await session.spawn("now")).result(timeout=30)
                lags.append((time.monotonic_ns() - ran) / 1e6)
                await asyncio.sleep(PAUSE)
    check(len(waits) > 50, f"the worker was done after {len(waits)} writes beside it: give it more --tasks")
    return {
        "write_p50_ms": percentile(waits, 0.5),
        "write_p95_ms": percentile(waits, 0.95),
        "signal_p50_ms": percentile(lags, 0.5),
        "signal_p95_ms": percentile(lags, 0.95),
        "tasks_per_s_beside": place.tasks / spent,
    }
