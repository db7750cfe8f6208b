"""Follows a task's output: `python -m benchmarks.follower URL TASK` prints the number and lag of each line, as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import time

from benchmarks.work import app


async def follow(url: str, task_id: str) -> list[tuple[int, float]]:
    """Return each line's number and its lag in milliseconds, in the order of arrival, until the task has ended."""
    arrived: list[tuple[int, float]] = []
    rest = ""
    async with app.open(url, worker=False) as outrider:
        task = await outrider.task(task_id)
        async for piece in task.output():
            now = time.monotonic_ns()
            *lines, rest = (rest + piece.text).split("\n")
            arrived += [(int(number), (now - int(at)) / 1e6) for number, at in (line.split() for line in lines)]
    return arrived


if __name__ == "__main__":
    print(json.dumps(asyncio.run(follow(*sys.argv[1:3]))))
