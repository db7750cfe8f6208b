"""What a journaled step costs: one task of many steps for its latency, then 64 tasks side by side for the rate.

Each step is durable before the next begins.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import chain

from benchmarks import work
from benchmarks.harness import Figures, Place, Settings, check, percentile
from outrider import TaskHandle
from outrider.core.ledger import Views

KEYS = ("step_p50_ms", "steps_per_s")

STEPS = 1_000
TASKS = 64
STEPS_EACH = 100


def tasks(settings: Settings) -> int:
    """The tasks side by side."""
    return TASKS * 10 if settings.full else TASKS


async def run(place: Place) -> Figures:
    """Measure one task's steps, then those of many."""
    url = place.url()
    async with work.app.open(url) as outrider, work.helpers(url, place.settings.workers - 1):
        session = await outrider.sessions.create()
        alone = await session.spawn("walk", steps=STEPS)
        spans = await alone.result()
        started = time.perf_counter()
        many = await asyncio.gather(*(session.spawn("walk", steps=STEPS_EACH) for _ in range(place.tasks)))
        taken = await asyncio.gather(*(task.result() for task in many))
        spent = time.perf_counter() - started
        check(len(spans) == STEPS, f"the task took {len(spans)} steps")
        check(len([*chain(*taken)]) == place.tasks * STEPS_EACH, "steps are missing")
        await _check_journals(outrider.ledger.views, [alone], STEPS)
        await _check_journals(outrider.ledger.views, many, STEPS_EACH)
    return {"step_p50_ms": percentile(spans, 0.5) / 1e6, "steps_per_s": place.tasks * STEPS_EACH / spent}


async def _check_journals(views: Views, some: Sequence[TaskHandle], steps: int) -> None:
    for task in some:
        journal = [step.position for step in await views.steps(task.id) if step.done]
        check(len(set(journal)) == len(journal), f"{task.id} journaled a step twice")
        missing = {f"step-{number}" for number in range(steps)} - set(journal)
        check(not missing, f"{task.id} lost {len(missing)} steps")
