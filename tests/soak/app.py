"""The app of the soak: tools that use every verb, and write down what they did in a book that no database knows.

Each step appends a line to the book and returns the number of its attempt, so what the journal remembers says which
of the lines counts. Everything is set to happen often: leases are short, and what ended is deleted after seconds.
"""

from __future__ import annotations

import asyncio
import os
import time

from outrider import Outrider, SyncTaskContext, TaskContext, WorkerSettings
from outrider.agents import scripted
from outrider.agents.scripted import Call, Reply
from outrider.core.errors import Failure
from outrider.settings import LeaseTimes

BOOK = "SOAK_BOOK"
"""The environment variable that names the book."""
RETENTION = "SOAK_RETENTION"
"""The environment variable with the seconds that ended tasks are kept."""

LEASE = LeaseTimes(renew=0.5, cancel=3.0, end=4.0, lost=5.0)
ONCE = "fire"
"""The name of the steps that are `once`."""
BERTHS, MAIL, PER = 3, 10, 1.0
"""How many tasks the key `berth` admits at once, and how many starts the key `mail` in so many seconds."""
TANDEM = 2
"""How many each key that begins with `tandem:` admits."""

app = Outrider(
    WorkerSettings(
        lease=LEASE,
        park_grace=0.1,
        recovery_interval=0.1,
        drain_timeout=5.0,
        process_linger=0.3,
        retention=float(os.environ.get(RETENTION, "30")),
        retention_interval=0.5,
        retention_batch=200,
    )
)


def mark(task: TaskContext | SyncTaskContext, name: str) -> int:
    """Have an effect: one line, appended whole. Returns the attempt."""
    fd = os.open(os.environ[BOOK], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, f"{task.id}\t{name}\t{task.attempt}\n".encode())
    finally:
        os.close(fd)
    return task.attempt


async def mark_slowly(task: TaskContext, name: str, seconds: float) -> int:
    await asyncio.sleep(seconds / 2)
    attempt = mark(task, name)
    await asyncio.sleep(seconds / 2)
    return attempt


@app.tool(max_failures=1000, backoff=0.05, backoff_max=0.5)
async def noop(task: TaskContext, n: int) -> int:
    return n


@app.tool(max_failures=1000, backoff=0.05, backoff_max=0.5)
async def march(task: TaskContext, steps: int) -> dict[str, int]:
    """Steps, naps, progress and output."""
    done = {}
    for number in range(steps):
        name = f"step {number}"
        done[name] = await task.step(name, mark_slowly, task, name, 0.02)
        task.progress(number + 1, steps, unit="steps")
        task.output(f"{name} of attempt {task.attempt}\n")
        if number % 3 == 2:
            await task.sleep(0.3, name=f"nap {number}")
    return done


@app.tool(max_failures=1000, backoff=0.05, backoff_max=0.5)
def trudge(task: SyncTaskContext, steps: int) -> dict[str, int]:
    """The same as a plain function, in a thread."""
    done = {}
    for number in range(steps):
        name = f"step {number}"
        done[name] = task.step(name, mark, task, name)
        task.output(f"{name} of attempt {task.attempt}\n")
        time.sleep(0.02)
    task.sleep(0.2)
    return done


@app.tool(max_failures=1000, backoff=0.05, backoff_max=0.5, isolation="process")
def march_apart(task: SyncTaskContext, steps: int) -> dict[str, int]:
    """The same in a process of its own."""
    return trudge(task, steps)


@app.tool(max_failures=1000, backoff=0.05, backoff_max=0.5)
async def inquire(task: TaskContext, times: int) -> dict[str, int]:
    """Ask somebody in another process."""
    done = {"before": await task.step("before", mark, task, "before")}
    for number in range(times):
        assert await task.ask(f"Go on after {number}?", bool, name=f"ask {number}")
        done[f"after {number}"] = await task.step(f"after {number}", mark, task, f"after {number}")
    return done


@app.tool(max_failures=1000, backoff=0.05, backoff_max=0.5)
async def found(task: TaskContext, children: int) -> dict[str, dict[str, int]]:
    """Start a family and wait for it."""
    handles = [await task.spawn("march", steps=2, position=f"child {n}") for n in range(children)]
    handles.append(await task.spawn("inquire", times=1, position="who asks"))
    records = await task.wait_for(handles)
    assert all(record.state == "succeeded" for record in records), records
    own = await task.step("count", mark, task, "count")
    return {task.id: {"count": own}} | {handle.id: await handle.result() for handle in handles}


@app.tool(max_failures=1000, backoff=0.05, backoff_max=0.5)
async def salute(task: TaskContext) -> int:
    """An effect that must not happen twice."""
    return await task.step(ONCE, mark, task, ONCE, effects="once")


@app.tool(max_failures=1000, backoff=0.05, backoff_max=0.5)
async def moor(task: TaskContext, seconds: float) -> dict[str, int]:
    """Take up a place behind a concurrency key."""
    return {"moored": await task.step("moored", mark_slowly, task, "moored", seconds)}


@app.tool(max_failures=1000, backoff=0.05, backoff_max=0.5)
async def write_up(task: TaskContext, size: int) -> str:
    """Leave a file of the session, and an artifact."""
    await task.files.write(f"/papers/{task.id}.txt", "x" * size)
    chart = await task.artifact("chart", "y" * size)
    assert chart.path is not None
    return chart.path


@app.tool(max_failures=1000, backoff=0.05, backoff_max=0.5)
async def converse(task: TaskContext) -> list[str]:
    """Hear messages, and reply to each, until goodbye."""
    heard: list[str] = []
    while "bye" not in heard:
        for message in await task.messages():
            heard.append(message.text)
            await task.post(f"heard {message.text}", in_reply_to=message.id, name=f"reply {len(heard)}")
    return heard


@app.tool(max_failures=1000, backoff=0.05, backoff_max=0.5)
async def drift(task: TaskContext, child: bool = False) -> None:
    """Never end; with a child that does not either."""
    await task.step("cast off", mark, task, "cast off")
    if child:
        await task.spawn("drift")
    while True:
        task.output("adrift\n")
        await asyncio.sleep(0.05)


@app.tool(max_failures=1000, backoff=0.05, backoff_max=0.5)
def drift_in_a_thread(task: SyncTaskContext) -> None:
    """The same in a thread."""
    task.step("cast off", mark, task, "cast off")
    while True:
        task.sleep(0.1)


@app.tool(max_failures=1000, backoff=0.05, backoff_max=0.5, isolation="process")
def drift_apart(task: SyncTaskContext) -> None:
    """The same in a process of its own."""
    drift_in_a_thread(task)


@app.tool(max_failures=1000, backoff=0.05, backoff_max=0.2)
async def stumble(task: TaskContext, times: int) -> int:
    """Fail so many attempts."""
    if task.attempt <= times:
        raise RuntimeError("stumbled")
    return task.attempt


@app.tool(max_failures=1000, backoff=0.05, backoff_max=0.5)
async def leak(task: TaskContext, mended: bool = False) -> dict[str, int]:
    """Fail for good after two steps, unless mended."""
    done = {name: await task.step(name, mark, task, name) for name in ("first", "second")}
    if not mended:
        raise Failure("it leaks", retryable=False)
    return done


@app.tool(max_failures=1000, backoff=0.05, backoff_max=0.5)
async def dock(task: TaskContext, name: str, fails: bool) -> str:
    """Hold a resource, which is released whether this succeeds or not."""
    await task.hold("dock", name)
    if fails:
        raise Failure("ran aground", retryable=False)
    return name


@app.resource("dock")
def leave_dock(task: SyncTaskContext, resource_id: str) -> None:
    mark(task, f"released {resource_id}")


@app.tool
async def tally(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@app.tool(requires_approval=True)
async def tally_if_allowed(a: int, b: int) -> int:
    """Add two numbers, if a person says so."""
    return a + b


def _scripted(tool: str) -> None:
    calls = tuple(Call(tool, {"a": n, "b": 1}) for n in range(2))
    scripted.register(tool, scripted.replies(Reply("Adding.\n", calls=calls), Reply("More.\n", calls=calls[:1]), DONE))
    app.agent(tool, model=f"scripted:{tool}", tools=[tool])


DONE = Reply("tallied")
for _tool in ("tally", "tally_if_allowed"):
    _scripted(_tool)
