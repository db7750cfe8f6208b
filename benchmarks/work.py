"""The work that benchmarks hand off, and the worker processes that do it.

Every process of a benchmark imports this module, so that all serve the same tools. A tool that must say when it ran
returns `time.monotonic_ns()` or writes it down: on one machine, all processes read the same clock.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.harness import check
from outrider import Outrider, TaskContext
from outrider.settings import LeaseTimes, WorkerSettings

LEASE = "OUTRIDER_BENCHMARK_LEASE"
"""The variable that says after how many seconds of silence a worker counts as lost, for those started from then on."""


SHARE = "OUTRIDER_BENCHMARK_SHARE"
"""The variable that says how many tasks a worker runs at once, for those started from then on."""
FAIR_SHARE = 16
"""How many that is where several workers are to share the work of agents: one alone would take all that come."""


def _settings() -> WorkerSettings:
    lost = float(os.environ.get(LEASE, LeaseTimes().lost))
    return WorkerSettings(
        concurrency=int(os.environ.get(SHARE, WorkerSettings().concurrency)),
        lease=LeaseTimes(renew=0.2 * lost, cancel=0.6 * lost, end=0.8 * lost, lost=lost),
    )


def share(workers: int) -> None:
    """Have so many workers share the work: this process, and those that it starts."""
    if workers > 1:
        os.environ[SHARE] = str(FAIR_SHARE)
        app.settings = _settings()


app = Outrider(_settings())

ran: Counter[int] = Counter()
"""How often this process ran `echo`, by its argument."""


@app.tool(effects="idempotent")
async def echo(value: int) -> int:
    """Do nothing but return the argument."""
    ran[value] += 1
    return value


@app.tool(effects="idempotent")
async def now() -> int:
    """Return the moment at which the first line ran."""
    return time.monotonic_ns()


@app.tool(effects="idempotent")
async def walk(task: TaskContext, steps: int) -> list[int]:
    """Take so many steps, one after the other; return what each took, in nanoseconds."""
    spans = []
    for number in range(steps):
        started = time.perf_counter_ns()
        returned = await task.step(f"step-{number}", _same, number)
        spans.append(time.perf_counter_ns() - started)
        check(returned == number, f"step {number} returned {returned}")
    return spans


@app.tool(effects="idempotent")
async def inquire(task: TaskContext, questions: int) -> list[int]:
    """Ask so many questions, one after the other; return the answers."""
    return [await task.ask(f"question {number}?", int) for number in range(questions)]


@app.tool(effects="idempotent")
async def inquire_when(task: TaskContext) -> tuple[int, int]:
    """Ask a question; return the answer, and the moment at which the next line ran."""
    answer = await task.ask("go on?", int)
    return answer, time.monotonic_ns()


inside_now = most_inside = 0


@app.tool(effects="idempotent")
async def inside(value: int) -> int:
    """Return the argument, and count how many of these run at once in this process."""
    global inside_now, most_inside
    inside_now += 1
    most_inside = max(most_inside, inside_now)
    await asyncio.sleep(0)
    ran[value] += 1
    inside_now -= 1
    return value


@app.tool(effects="idempotent")
async def hold(task: TaskContext, value: int, book: str) -> int:
    """Write down that it runs, and stay until the file `BOOK.free` is there."""
    write_down(book, f"{value} {task.attempt} {os.getpid()} {time.monotonic_ns()}")
    while not written_down(f"{book}.free"):  # noqa: ASYNC110 - whoever frees it is in another process
        await asyncio.sleep(0.1)
    return value


@app.tool(effects="idempotent")
async def print_lines(task: TaskContext, lines: int, pause: float) -> int:
    """Print lines that say when they were printed."""
    for number in range(lines):
        task.output(f"{number} {time.monotonic_ns()}\n")
        await asyncio.sleep(pause)
    return lines


async def _same(value: int) -> int:
    return value


def write_down(book: str, line: str) -> None:
    """Append a line to a file, whole, whoever else writes to it."""
    to = os.open(book, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(to, f"{line}\n".encode())
    finally:
        os.close(to)


def written_down(book: str) -> list[list[str]]:
    """The words of each line of a file, none if there is no file."""
    path = Path(book)
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@asynccontextmanager
async def helpers(
    url: str, count: int, *, serving: str = "work", host: str | None = None
) -> AsyncIterator[Sequence[asyncio.subprocess.Process]]:
    """Worker processes at a store that serve what a module of this package registers; killed when left.

    With `host` they believe that they are on another machine.
    """
    processes = [await _start_worker(url, serving, host) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            await kill(process)


async def _start_worker(url: str, serving: str, host: str | None) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.worker",
        url,
        serving,
        *([] if host is None else [host]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        said = await process.stdout.readline()
    check(said == b"serving\n", f"a worker process did not start: {said!r}")
    return process


async def kill(process: asyncio.subprocess.Process) -> None:
    """End a process as a crash would, and wait until it is gone."""
    if process.returncode is None:
        process.kill()
        await process.wait()


async def until(fact: Callable[[], Awaitable[bool]], what: str, *, within: float = 120.0, every: float = 0.002) -> None:
    """Wait until the async function `fact` returns true. Raises Lost when it never does."""
    try:
        async with asyncio.timeout(within):
            while not await fact():  # noqa: ASYNC110 - the fact is a store's or another process's
                await asyncio.sleep(every)
    except TimeoutError:
        check(False, f"{what} did not come true within {within:.0f} s")
