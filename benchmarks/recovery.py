"""How long work stands still when its worker is killed: 100 running tasks, `kill -9`, until the last runs again.

The survivor is a process of its own that was there before. With `--hosts 2` it believes that it is on another machine,
so it cannot see that the process is dead and has to wait for the lease, which `--lease 3` makes the shortest.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter

from benchmarks import work
from benchmarks.harness import Figures, Place, Settings, check

KEYS = ("kill_to_running_s",)


def tasks(settings: Settings) -> int:
    """What the killed worker was running; a worker holds no more at once, unless told to."""
    del settings
    return 100


async def run(place: Place) -> Figures:
    """Kill a worker and wait until its tasks run again."""
    url, book, count = place.url(), str(place.path / "book"), place.tasks
    host = "elsewhere" if place.settings.hosts == 2 else None

    if place.settings.lease is not None:
        os.environ[work.LEASE] = str(place.settings.lease)

    async def started(times: int) -> bool:
        return len(work.written_down(book)) >= count * times

    async with work.app.open(url, worker=False) as outrider, work.helpers(url, 1) as [doomed]:
        session = await outrider.sessions.create()
        held = await asyncio.gather(*(session.spawn("hold", value=value, book=book) for value in range(count)))
        await work.until(lambda: started(1), f"{count} tasks running at once")
        async with work.helpers(url, 1, host=host):
            killed = time.monotonic_ns()
            await work.kill(doomed)
            await work.until(lambda: started(2), f"{count} tasks running again")
            await asyncio.sleep(0.5)  # time enough for one that would run twice
            work.write_down(f"{book}.free", "now")
            results = await asyncio.gather(*(task.result() for task in held))
    check(list(results) == list(range(count)), "results are missing or wrong")
    runs = work.written_down(book)
    _check_runs(runs, count, doomed.pid)
    return {"kill_to_running_s": (max(int(moment) for *_, moment in runs) - killed) / 1e9}


def _check_runs(runs: list[list[str]], count: int, doomed: int) -> None:
    """Every task ran once in the process that was killed and once more, as a later attempt, in the survivor."""
    first = Counter(int(value) for value, _, pid, _ in runs if int(pid) == doomed)
    again = Counter(int(value) for value, attempt, pid, _ in runs if int(pid) != doomed and int(attempt) > 1)
    once = Counter(range(count))
    check(first == once, f"before the kill, {len(first)} tasks were started {first.total()} times")
    check(again == once, f"after the kill, {len(again)} tasks were started {again.total()} times")
    check(len(runs) == 2 * count, f"{len(runs)} starts of {count} tasks")
