"""Tasks that do nothing, so that only Outrider's own cost is left: full record, events and attempts are written.

64 callers submit while the worker runs what is there already; half of the tasks are in one session, half over 100
sessions. `tasks_per_s` counts from the first submit to the last finish. Then 200 tasks, one at a time.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks import work
from benchmarks.harness import Figures, Place, Settings, check, percentile, resident_mb
from outrider import Runtime, SessionHandle, TaskHandle
from outrider.core.ledger import Signal, TaskFilter
from outrider.core.task import TERMINAL

KEYS = (
    "enqueue_per_s",
    "bulk_enqueue_per_s",
    "tasks_per_s",
    "start_p50_ms",
    "start_p99_ms",
    "rss_mb",
    "commits_per_task",
    "statements_per_task",
)

CALLERS = 64
SESSIONS = 100
SINGLES = 200
BULK = 500
PAGE = 1000


def tasks(settings: Settings) -> int:
    """Enough to drown the start, few enough to end in time."""
    return 100_000 if settings.full else 8_000


async def run(place: Place) -> Figures:
    """Measure the crowd, then singles, then what many at once cost to enqueue."""
    url = place.url()
    async with work.app.open(url) as outrider, work.helpers(url, place.settings.workers - 1):
        crowd = await run_crowd(outrider, place.tasks, alone=place.settings.workers == 1)
        gc.collect()
        resident = resident_mb()
        starts = await _one_at_a_time(outrider)
        await check_crowd(outrider, crowd)
    return {
        "enqueue_per_s": crowd.enqueue_per_s,
        "bulk_enqueue_per_s": await _bulk(place),
        "tasks_per_s": crowd.tasks_per_s,
        "start_p50_ms": percentile(starts, 0.5),
        "start_p99_ms": percentile(starts, 0.99),
        "rss_mb": resident,
        "commits_per_task": crowd.counted("commits"),
        "statements_per_task": crowd.counted("statements"),
    }


@dataclass(frozen=True, slots=True)
class Crowd:
    """What became of many tasks submitted at once."""

    tasks: Sequence[TaskHandle]
    sessions: Sequence[SessionHandle]
    enqueue_per_s: float
    tasks_per_s: float
    counts: Mapping[str, int] | None
    """The store's counters over the whole run; None where other processes worked too, which count for themselves."""

    def counted(self, name: str) -> float | None:
        return None if self.counts is None else self.counts[name] / len(self.tasks)


async def run_crowd(outrider: Runtime, count: int, *, alone: bool = True, left: int = 0) -> Crowd:
    """Submit `count` tasks from 64 callers and wait until the last has ended, and only `left` others live."""
    sessions = [await outrider.sessions.create() for _ in range(1 + SESSIONS)]
    submitted: dict[int, TaskHandle] = {}
    numbers = iter(range(count))
    work.ran.clear()

    async def submit() -> None:
        for number in numbers:
            session = sessions[0] if number % 2 else sessions[1 + number // 2 % SESSIONS]
            submitted[number] = await session.spawn("echo", value=number)

    async def all_ended() -> bool:
        # While it can be seen for nothing that work is left, the store is not asked.
        return (not alone or len(work.ran) == count) and await _count_live(outrider) == left

    last_commit = 0.0

    def note_commit(signal: Signal) -> None:
        nonlocal last_commit
        if signal.task_ids:
            last_commit = time.perf_counter()

    before = dict(outrider.ledger.counters)
    forget = outrider.ledger.listen(note_commit)
    started = time.perf_counter()
    await asyncio.gather(*(submit() for _ in range(CALLERS)))
    enqueued = time.perf_counter() - started
    await work.until(all_ended, f"the end of {count} tasks", every=0.005 if alone else 0.05)
    # What it takes to find out that all has ended is not the tasks' time; the commit of the last end is known here.
    spent = (last_commit if alone else time.perf_counter()) - started
    forget()
    after = outrider.ledger.counters
    counts = {name: after[name] - before[name] for name in ("commits", "statements")} if alone else None
    in_order = [submitted[number] for number in range(count)]
    return Crowd(in_order, sessions, count / enqueued, count / spent, counts)


async def check_crowd(outrider: Runtime, crowd: Crowd) -> None:
    """Check that every task ran once, gave back its argument, and has its attempt and events. Raises Lost."""
    twice = [value for value, times in work.ran.items() if times > 1]
    check(not twice, f"{len(twice)} tasks ran twice, the first {twice[:1]}")
    for first in range(0, len(crowd.tasks), CALLERS):
        some = crowd.tasks[first : first + CALLERS]
        results = await asyncio.gather(*(task.result() for task in some))
        check(results == list(range(first, first + len(some))), f"wrong results among tasks {first} and following")
    for session in crowd.sessions:
        await _check_session(outrider, session.id)
    for task in crowd.tasks[:: max(1, len(crowd.tasks) // 100)]:
        attempts = await outrider.ledger.views.attempts(task.id)
        check([attempt.attempt for attempt in attempts] == [1], f"{task.id} has the attempts {attempts}")


async def _check_session(outrider: Runtime, session_id: str) -> None:
    records, after = 0, None
    while page := await outrider.ledger.views.list_tasks(
        TaskFilter(session_id=session_id, after=after, limit=PAGE, newest_first=False)
    ):
        for record in page:
            fine = record.state == "succeeded" and record.core.attempt == 1
            check(fine, f"{record.id} is {record.state}, attempt {record.core.attempt}")
        records, after = records + len(page), page[-1].id
    seq, created = 0, 0
    while rows := await outrider.ledger.views.events(session_id, after=seq, limit=PAGE):
        check([row.seq for row in rows] == list(range(seq + 1, seq + 1 + len(rows))), f"gap in the log of {session_id}")
        seq, created = seq + len(rows), created + sum(row.type == "task.created" for row in rows)
    check(created == records, f"{session_id} has {records} tasks and {created} task.created events")


async def _count_live(outrider: Runtime) -> int:
    counts = await outrider.ledger.views.count_by_state()
    return sum(count for state, count in counts.items() if state not in TERMINAL)


async def _one_at_a_time(outrider: Runtime) -> list[float]:
    session = await outrider.sessions.create()
    spans = []
    for _ in range(SINGLES):
        await asyncio.sleep(0.005)
        started = time.monotonic_ns()
        task = await session.spawn("now")
        spans.append((await task.result() - started) / 1e6)
    return spans


async def _bulk(place: Place) -> float:
    async with work.app.open(place.url("bulk"), worker=False) as outrider:
        session = await outrider.sessions.create()
        started = time.perf_counter()
        for first in range(0, place.tasks, BULK):
            count = min(BULK, place.tasks - first)
            await session.spawn_many("echo", [{"value": value} for value in range(first, first + count)])
        spent = time.perf_counter() - started
        counts = await outrider.ledger.views.count_by_state()
        check(sum(counts.values()) == place.tasks, f"{place.tasks} tasks were enqueued, and there are {counts}")
    return place.tasks / spent
