"""What the queue costs: tasks under the limit of a key against tasks under none, and a crowd that comes due at once."""

from __future__ import annotations

import asyncio
import time

from benchmarks import work
from benchmarks.harness import Figures, Place, Settings, check
from outrider import Runtime, State, TaskHandle, TaskOptions

KEYS = ("tasks_per_s_free", "tasks_per_s_limited", "ratio", "most_at_once", "due_started_s")

CAPACITY = 10
DUE = 10_000
BULK = 500
DELAY = 3.0


def tasks(settings: Settings) -> int:
    """The tasks under the limit, and those under none."""
    return 20_000 if settings.full else 5_000


async def run(place: Place) -> Figures:
    """Run both crowds, in turns, then let one come due."""
    found = {}
    pair = ["free", "limited"]
    for name in pair if place.number % 2 else reversed(pair):
        found[name] = await _crowd(place, name)
    return {
        "tasks_per_s_free": found["free"],
        "tasks_per_s_limited": found["limited"],
        "ratio": found["limited"] / found["free"],
        "most_at_once": work.most_inside,
        "due_started_s": await _come_due(place),
    }


async def _crowd(place: Place, name: str) -> float:
    """Tasks per second: submitted in bulk, run by the worker of this process."""
    async with work.app.open(place.url(name)) as outrider:
        session = await outrider.sessions.create()
        await outrider.queue.limit("ten", concurrency=CAPACITY)
        options = TaskOptions(concurrency_key="ten" if name == "limited" else None)
        tool = "inside" if name == "limited" else "echo"
        work.ran.clear()
        started = time.perf_counter()
        made: list[TaskHandle] = []
        for first in range(0, place.tasks, BULK):
            arguments = [{"value": value} for value in range(first, min(first + BULK, place.tasks))]
            made += await session.spawn_many(tool, arguments, options=options)
        await _ended(outrider, place.tasks)
        spent = time.perf_counter() - started
        check(all(work.ran[value] == 1 for value in range(place.tasks)), "not every task ran exactly once")
        check(work.most_inside <= CAPACITY, f"{work.most_inside} tasks of a key of {CAPACITY} ran at once")
    return place.tasks / spent


async def _ended(outrider: Runtime, count: int) -> None:
    async def all_ended() -> bool:
        return len(work.ran) == count and (await outrider.ledger.views.count_by_state())[State.SUCCEEDED] == count

    await work.until(all_ended, f"the end of {count} tasks", every=0.01)


async def _come_due(place: Place) -> float:
    """How long after their moment the last of many delayed tasks has started."""
    async with work.app.open(place.url("due")) as outrider:
        session = await outrider.sessions.create()
        work.ran.clear()
        began = time.perf_counter()
        for first in range(0, DUE, BULK):
            left = DELAY + (began - time.perf_counter())
            check(left > 0, "the machine is too slow to enqueue them before they come due")
            arguments = [{"value": value} for value in range(first, first + BULK)]
            await session.spawn_many("echo", arguments, options=TaskOptions(delay=left))
        check(not work.ran, "a delayed task started before its time")
        await asyncio.sleep(max(0.0, began + DELAY - time.perf_counter()))

        async def all_started() -> bool:
            return len(work.ran) == DUE

        await work.until(all_started, f"the start of {DUE} tasks")
        spent = time.perf_counter() - began - DELAY
        await _ended(outrider, DUE)
    return spent
