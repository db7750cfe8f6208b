"""The app whose workers are killed: tasks that use every verb of the journal, and say in a file what they did.

The file is the truth that a database is held against: each step appends a line itself and syncs it, so a step that
ran twice has two lines, whatever the journal thinks.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from outrider import Outrider, SyncTaskContext, TaskContext, WorkerSettings
from outrider.settings import LeaseTimes

EFFECTS = "EFFECTS"
"""The environment variable that names the file."""

SHORT_LEASE = LeaseTimes(renew=0.2, cancel=2.0, end=2.5, lost=3.0)
SETTINGS = WorkerSettings(park_grace=0.02, recovery_interval=0.05, drain_timeout=5.0)

app = Outrider(SETTINGS)


def mark(task: TaskContext | SyncTaskContext, name: str, value: Any = None) -> Any:
    """Have an effect: one line, appended whole and on the disk when this returns."""
    line = f"{task.id}\t{name}\t{task.attempt}\n"
    fd = os.open(os.environ[EFFECTS], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, line.encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    return name if value is None else value


async def mark_slowly(task: TaskContext, name: str, value: Any = None, seconds: float = 0.002) -> Any:
    await asyncio.sleep(seconds / 2)
    done = mark(task, name, value)
    await asyncio.sleep(seconds / 2)
    return done


@app.tool(max_failures=1000)
async def voyage(task: TaskContext, port: str) -> dict[str, Any]:
    """Every verb, one after the other and side by side."""
    task.progress(1, 3, label="setting sail")
    task.detail(f"bound for {port}")
    task.output(f"attempt {task.attempt} sets sail\n")
    stores = await task.step("provision", mark, task, "provision", {"water": 7})
    course = await task.step("plot", mark_slowly, task, "plot", [1, 2, 3])
    sailed = await task.post({"bound": port})
    await task.files.write("/log/voyage.txt", f"bound for {port}")
    chart = await task.artifact("chart", f"chart of {port}")
    fired = await task.step("salute", mark, task, "salute", "bang", effects="once")
    first = await task.spawn("haul", weight=3)
    second = await task.spawn("haul", weight=4, position="second")
    task.progress(2, 3, label="asking")
    onward = await task.ask("Sail on?", bool)
    hauled = await task.wait_for([first, second])
    heard = await task.messages()
    await task.sleep(0.03)
    left, right = await asyncio.gather(
        task.step("port", mark_slowly, task, "port"), task.step("starboard", mark_slowly, task, "starboard")
    )
    task.progress(3, 3, label="home")
    return {
        "stores": stores,
        "course": course,
        "sailed": sailed.id,
        "chart": chart.path,
        "fired": fired,
        "children": [first.id, second.id],
        "onward": onward,
        "hauled": [record.summary for record in hauled],
        "heard": [message.parts[0]["text"] for message in heard],
        "sides": [left, right],
    }


@app.tool(max_failures=1000)
def haul(task: SyncTaskContext, weight: int) -> str:
    """The same as a plain function, in a thread."""
    task.output(f"attempt {task.attempt} hauls {weight}\n")
    lifted = task.step("lift", mark, task, "lift", weight)
    task.post(f"lifted {lifted}")
    task.sleep(0.01)
    stowed = task.step("stow", mark, task, "stow", lifted * 2, effects="once")
    return f"stowed {stowed}"


@app.tool(max_failures=1000, isolation="process")
def haul_apart(task: SyncTaskContext, weight: int) -> str:
    """The same in a process of its own."""
    return haul(task, weight)


@app.tool(max_failures=1000)
async def march(task: TaskContext, steps: int) -> list[int]:
    """Many short steps."""
    return [await task.step(f"step {n}", mark_slowly, task, f"step {n}", n) for n in range(steps)]


@app.tool
async def hold(task: TaskContext, seconds: float) -> str:
    """One long step between two short ones."""
    await task.step("before", mark, task, "before")
    await task.step("long", mark_slowly, task, "long", seconds=seconds)
    await task.step("after", mark, task, "after")
    return "held"


@app.tool
async def nap(task: TaskContext, seconds: float) -> str:
    """Sleep, with a step on either side."""
    await task.step("lie down", mark, task, "lie down")
    await task.sleep(seconds)
    await task.step("get up", mark, task, "get up")
    return "awake"


@app.tool
def stubborn(task: SyncTaskContext, seconds: float) -> str:
    """Compute in a thread without ever looking up, the first time."""
    mark(task, "begin")
    if task.attempt == 1:
        time.sleep(seconds)
    mark(task, "end")
    return "done at last"


@app.tool(max_failures=1000)
async def tick(task: TaskContext, seconds: float) -> str:
    """Note again and again that this runs: for so long the first time, and briefly when it is tried again."""
    ticks = os.open(f"{os.environ[EFFECTS]}.ticks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        end = time.monotonic() + (seconds if task.attempt == 1 else 0.1)
        while time.monotonic() < end:
            os.write(ticks, f"{task.id}\t{task.attempt}\t{time.monotonic_ns()}\n".encode())
            await asyncio.sleep(0.01)
    finally:
        os.close(ticks)
    return "ticked"


@app.tool
async def fork(task: TaskContext) -> int:
    """Leave a forked copy of the worker behind, as `multiprocessing` may."""
    child = await task.step("fork", fork_sleeper)
    await task.step("go on", mark, task, "go on")
    return int(child)


def fork_sleeper() -> int:
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    return child


@app.tool
async def block(task: TaskContext, seconds: float) -> str:
    """Hold up the event loop of its worker: the first time only, so that another attempt comes through."""
    mark(task, "block")
    if task.attempt == 1:
        time.sleep(seconds)
    return "unblocked"


def effects_in(path: Path) -> list[tuple[str, str, int]]:
    """The truth: task, step and attempt of each effect, in the order they happened."""
    if not path.exists():
        return []
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return [(task_id, name, int(attempt)) for task_id, name, attempt in rows]


def ticks_in(database: Path) -> dict[tuple[str, int], list[int]]:
    """When each attempt of a `tick` ran, by the clock of the machine that never jumps, in nanoseconds."""
    path, found = database.with_suffix(".effects.ticks"), dict[tuple[str, int], list[int]]()
    for line in path.read_text().splitlines() if path.exists() else ():
        task_id, attempt, at = line.split("\t")
        found.setdefault((task_id, int(attempt)), []).append(int(at))
    return found


def settings_of(order: Mapping[str, Any]) -> WorkerSettings:
    """The settings a worker was asked to have."""
    changes = dict(order)
    if changes.pop("short_lease", False):
        changes["lease"] = SHORT_LEASE
    return replace(SETTINGS, **changes)
