"""How far behind a follower is: a task prints timed lines, and another process follows them.

The lag of a line is from its print to the follower's having it in hand.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

from benchmarks import work
from benchmarks.harness import Figures, Place, Settings, check, percentile

KEYS = ("lag_p50_ms", "lag_p95_ms", "lost", "doubled")

PAUSE = 0.005


def tasks(settings: Settings) -> int:
    """The lines that are printed."""
    return 10_000 if settings.full else 1_000


async def run(place: Place) -> Figures:
    """Print lines here and count what arrives there."""
    url, count = place.url(), place.tasks
    async with work.app.open(url) as outrider:
        session = await outrider.sessions.create()
        task = await session.spawn("print_lines", lines=count, pause=PAUSE)
        follower = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.follower", url, task.id, stdout=asyncio.subprocess.PIPE
        )
        try:
            check(await task.result() == count, "the task did not print all of its lines")
            async with asyncio.timeout(30):
                said, _ = await follower.communicate()
        finally:
            await work.kill(follower)
    arrived = [(number, lag) for number, lag in json.loads(said)]
    times = Counter(number for number, _ in arrived)
    lost, doubled = count - len(times), times.total() - len(times)
    check(lost == 0 and doubled == 0, f"{lost} lines were lost, {doubled} came twice")
    check([number for number, _ in arrived] == list(range(count)), "lines came out of order")
    # The first lines were there before the follower was: they waited for it.
    lags = [lag for _, lag in arrived[count // 5 :]]
    return {"lag_p50_ms": percentile(lags, 0.5), "lag_p95_ms": percentile(lags, 0.95), "lost": lost, "doubled": doubled}
