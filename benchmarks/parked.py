"""What waiting costs: a crowd of tasks that each ask a question and park, then answers, one at a time.

The worker is a process of its own, so that its memory and its processor time at rest are its own. A task that waits is
rows and no memory: with the whole crowd there, other tasks run as fast as in an empty store.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from benchmarks import work
from benchmarks.harness import Figures, Place, Settings, check, percentile
from benchmarks.tasks import check_crowd, run_crowd
from outrider import Runtime, State, TaskHandle

KEYS = (
    "park_s",
    "rss_mb",
    "rest_cpu_percent",
    "answer_to_running_p50_ms",
    "answer_to_running_p99_ms",
    "tasks_per_s_empty",
    "tasks_per_s_parked",
    "ratio",
)

BULK = 500
ANSWERS = 1000
REST = 5.0
CROWD = 8_000
"""How many tasks run beside those that wait, and in an empty store."""


def tasks(settings: Settings) -> int:
    """The tasks that park."""
    return 100_000 if settings.full else 10_000


async def run(place: Place) -> Figures:
    """Park them all, let the worker rest, answer some, and run others beside them."""
    url = place.url()
    async with work.app.open(url, worker=False) as outrider, work.helpers(url, 1) as (worker,):
        started = time.perf_counter()
        parked = await _park(outrider, place.tasks)
        spent = time.perf_counter() - started
        await asyncio.sleep(1)
        busy, since = _processor_seconds(worker.pid), time.perf_counter()
        await asyncio.sleep(REST)
        share = (_processor_seconds(worker.pid) - busy) / (time.perf_counter() - since)
        resident = _resident_mb(worker.pid)
        lags = await _answer(parked[:: max(1, len(parked) // min(ANSWERS, len(parked)))][:ANSWERS])
    empty, beside = await _beside(place, url)
    return {
        "park_s": spent,
        "rss_mb": resident,
        "rest_cpu_percent": 100 * share,
        "answer_to_running_p50_ms": percentile(lags, 0.5),
        "answer_to_running_p99_ms": percentile(lags, 0.99),
        "tasks_per_s_empty": empty,
        "tasks_per_s_parked": beside,
        "ratio": beside / empty,
    }


async def _park(outrider: Runtime, count: int) -> list[TaskHandle]:
    session = await outrider.sessions.create()
    asking: list[TaskHandle] = []
    for first in range(0, count, BULK):
        asking += await session.spawn_many("inquire_when", [{}] * min(BULK, count - first))

    async def all_ask() -> bool:
        counts = await outrider.ledger.views.count_by_state()
        return counts[State.AWAITING_INPUT] == count and not await outrider.ledger.views.holders()

    await work.until(all_ask, f"{count} tasks parked", within=1000, every=0.1)
    return asking


async def _answer(tasks: list[TaskHandle]) -> list[float]:
    """How long it took from each answer to the next line of the task."""
    lags = []
    for number, task in enumerate(tasks):
        await asyncio.sleep(0.002)
        started = time.monotonic_ns()
        await task.answer(number)
        answered, ran = await task.result(timeout=30)
        check(answered == number, f"{task.id} was answered {number} and got {answered}")
        lags.append((ran - started) / 1e6)
    return lags


async def _beside(place: Place, url: str) -> tuple[float, float]:
    """Tasks per second in an empty store and in this one, in turns."""
    found = {}
    pair = [(place.url("empty"), "empty"), (url, "parked")]
    for address, name in pair if place.number % 2 else reversed(pair):
        async with work.app.open(address) as outrider:
            before = (await outrider.ledger.views.count_by_state())[State.AWAITING_INPUT]
            crowd = await run_crowd(outrider, CROWD, left=before)
            await check_crowd(outrider, crowd)
            found[name] = crowd.tasks_per_s
    return found["empty"], found["parked"]


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
