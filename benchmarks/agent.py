"""Whether a long agent run gets slower or fatter as it goes: 500 iterations of a scripted model, one tool call each.

An iteration's bytes are what the process wrote between two model calls, log and database pages and all; an iteration's
time is the same span on the clock. Then a worker is killed in the 501st model call, and another goes on.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks import work
from benchmarks.harness import Figures, Place, Settings, check
from outrider import TaskContext
from outrider.agents import scripted
from outrider.agents.scripted import Call, Reply, Turn

KEYS = ("bytes_ratio", "time_ratio", "resume_ms", "bytes_per_iteration")

AROUND = 20
AGENT = "walker"


def tasks(settings: Settings) -> int:
    """The iterations."""
    return 2_000 if settings.full else 500


async def run(place: Place) -> Figures:
    """Let an agent run to its end, and another one be killed on the way."""
    samples = await _run_through(place)
    early, late = samples[:AROUND], samples[-AROUND:]
    written = _median_bytes(late), _median_bytes(early)
    return {
        "bytes_ratio": written[0] / written[1] if written[1] else None,
        "time_ratio": _median_ns(late) / _median_ns(early),
        "resume_ms": await _kill_and_resume(place),
        "bytes_per_iteration": _stored(place) / place.tasks if place.settings.store == "sqlite" else None,
    }


@dataclass(frozen=True, slots=True)
class Iteration:
    """What one iteration took."""

    bytes: int
    ns: int


@dataclass(frozen=True, slots=True)
class _Moment:
    """A model call, seen from inside the model."""

    number: int
    ns: int
    written: int


_moments: list[_Moment] = []


@work.app.tool(effects="idempotent")
async def note(task: TaskContext, number: int, book: str | None = None) -> str:
    """Return a few words about a number, and write down that it was asked."""
    if book is not None:
        work.write_down(book, f"tool {number} {task.attempt} {time.monotonic_ns()}")
    return f"noted {number}: " + "all is well, go on. " * 5


def walk(turn: Turn) -> Reply:
    """Call the tool so many times, then answer. With a book, write each model call down, and hang in the last once."""
    plan = json.loads(turn.prompt)
    iterations, book = plan["iterations"], plan.get("book")
    _moments.append(_Moment(turn.number, time.monotonic_ns(), _written()))
    if book is not None:
        work.write_down(book, f"model {turn.number} {turn.attempt} {time.monotonic_ns()}")
    if turn.number <= iterations:
        return Reply(calls=(Call("note", {"number": turn.number, "book": book}),))
    return Reply("done", delay=600.0 if book is not None and turn.attempt == 1 else 0.0)


scripted.register(AGENT, walk)
work.app.agent(AGENT, model=f"scripted:{AGENT}", tools=["note"], max_iterations=1_000_000)


async def _run_through(place: Place) -> list[Iteration]:
    # Half a window more than is asked for, so that it lies around the last iteration.
    iterations = place.tasks + AROUND // 2
    _moments.clear()
    async with work.app.open(place.url("through")) as outrider:
        session = await outrider.sessions.create()
        task = await session.spawn_agent(json.dumps({"iterations": iterations}), agent=AGENT)
        check(await task.result() == "done", "the agent did not come to its end")
    numbers = [moment.number for moment in _moments]
    check(numbers == list(range(1, iterations + 2)), f"{len(numbers)} model calls for {iterations + 1} iterations")
    return [Iteration(after.written - before.written, after.ns - before.ns) for before, after in pairwise(_moments)]


async def _kill_and_resume(place: Place) -> float:
    url, book, last = place.url("killed"), str(place.path / "book"), place.tasks + 1

    async def hangs() -> bool:
        return ["model", str(last)] in [line[:2] for line in work.written_down(book)]

    async with work.app.open(url, worker=False) as outrider, work.helpers(url, 1, serving="agent") as [doomed]:
        session = await outrider.sessions.create()
        plan = json.dumps({"iterations": place.tasks, "book": book})
        task = await session.spawn_agent(plan, agent=AGENT)
        await work.until(hangs, f"model call {last}", every=0.02)
        killed = time.monotonic_ns()
        await work.kill(doomed)
    async with work.app.open(url) as outrider:
        resumed = await outrider.task(task.id)
        check(await resumed.result() == "done", "the resumed agent did not come to its end")
    lines = work.written_down(book)
    _check_book(lines, place.tasks)
    return (int(lines[-1][3]) - killed) / 1e6


def _check_book(lines: list[list[str]], iterations: int) -> None:
    """Every model call and tool call was made once; only the model call that was killed was made again."""
    made = Counter((what, int(number)) for what, number, *_ in lines)
    expected = Counter({(what, number): 1 for what in ("model", "tool") for number in range(1, iterations + 1)})
    expected["model", iterations + 1] = 2
    check(made == expected, f"wrong calls: {list((made - expected) | (expected - made))[:5]}")
    check(lines[-1][:3] == ["model", str(iterations + 1), "2"], f"the last call was {lines[-1]}")


def _median_bytes(some: list[Iteration]) -> float:
    return statistics.median(iteration.bytes for iteration in some)


def _median_ns(some: list[Iteration]) -> float:
    return statistics.median(iteration.ns for iteration in some)


def _written() -> int:
    """The bytes that this process has handed to `write` so far."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("wchar:"):
            return int(line.split()[1])
    return 0


def _stored(place: Place) -> int:
    """What the whole run left on the disk; the store was closed."""
    return sum(os.path.getsize(path) for path in place.path.glob("through.db*"))
