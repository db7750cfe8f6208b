"""What one transition costs when nothing shares its commit: statements, commits, and bytes written.

The figures are counted, not timed, so they are the same on every machine. A task is created, run and ended; a step is
journaled; a question is asked, the task parks, the answer wakes it; a line of output is kept. Bytes are what the
process hands to the operating system, with whole pages and the header of each: commits are dear because of those.
`..._grown` is the same where 20,000 finished tasks are already.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks import work
from benchmarks.harness import Figures, Place, Settings, check
from benchmarks.history import write_past
from outrider import Runtime

TRANSITIONS = ("task", "step", "question", "output", "task_grown")
UNITS = ("commits", "statements", "kb")
KEYS = (*(f"{what}_{unit}" for what in TRANSITIONS for unit in UNITS), "stored_bytes_per_task")

PAST = 20_000


def tasks(settings: Settings) -> int:
    """How often each transition is made."""
    return 1_000 if settings.full else 100


async def run(place: Place) -> Figures:
    """Count on an empty store, then on one with a past."""
    check(place.settings.store == "sqlite", "costs are counted for the SQLite store only")
    count, url, file = place.tasks, place.url(), place.path / "outrider.db"
    figures: dict[str, float] = {}
    async with work.app.open(url) as outrider:
        await _run_tasks(outrider, 1)
        figures |= await _costs(outrider, "task", count, lambda: _run_tasks(outrider, count))
        figures |= await _costs(outrider, "step", count, lambda: _finish(outrider, "walk", steps=count))
        figures |= await _costs(outrider, "question", count, lambda: _answer_questions(outrider, count))
        figures |= await _costs(
            outrider, "output", count, lambda: _finish(outrider, "print_lines", lines=count, pause=0.03)
        )
    before = file.stat().st_size
    async with work.app.open(url, worker=False) as outrider:
        await write_past(outrider.ledger, PAST)
    figures["stored_bytes_per_task"] = (file.stat().st_size - before) / PAST
    async with work.app.open(url) as outrider:
        await _run_tasks(outrider, 1)
        figures |= await _costs(outrider, "task_grown", count, lambda: _run_tasks(outrider, count))
    return figures


async def _costs(outrider: Runtime, what: str, count: int, act: Callable[[], Awaitable[None]]) -> dict[str, float]:
    counted, written = dict(outrider.ledger.counters), _bytes_written()
    await act()
    spent = {name: outrider.ledger.counters[name] - counted[name] for name in ("commits", "statements")}
    return {
        f"{what}_commits": spent["commits"] / count,
        f"{what}_statements": spent["statements"] / count,
        f"{what}_kb": (_bytes_written() - written) / count / 1000,
    }


async def _run_tasks(outrider: Runtime, count: int) -> None:
    session = await outrider.sessions.create()
    for number in range(count):
        task = await session.spawn("echo", value=number)
        check(await task.result() == number, f"task {number} returned something else")


async def _finish(outrider: Runtime, tool: str, **arguments: Any) -> None:
    session = await outrider.sessions.create()
    await (await session.spawn(tool, **arguments)).result()


async def _answer_questions(outrider: Runtime, count: int) -> None:
    session = await outrider.sessions.create()
    task = await session.spawn("inquire", questions=count)
    for number in range(count):
        await task.wait(on_question=True)
        await task.answer(number)
    check(await task.result() == list(range(count)), "the answers were not those given")


def _bytes_written() -> int:
    """All bytes that this process has written, Linux only."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["wchar"])
