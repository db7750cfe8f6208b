"""A fleet on PostgreSQL to do harm to: the app of its workers, and the program that hands them work at a steady rate.

`python -m tests.soak.fleet ADDRESS SESSION RATE MIX` submits until SIGTERM, `steady` or `mixed` work; what is due while
the database is away is submitted afterwards. All of them write to files of `FLEET_FOLDER` what they did and were told,
by the clock of the machine that never jumps. The workers are those of the command line.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from outrider import Outrider, State, SyncTaskContext, TaskContext, TaskOptions, WorkerSettings
from outrider.core.errors import OutriderError, StoreError
from outrider.core.ledger import TaskFilter
from outrider.runtime.facade import Runtime
from tests.faults.crowd import Notes

FOLDER = "FLEET_FOLDER"
RETENTION = "FLEET_RETENTION"
"""The environment variables with the folder, and with the seconds that ended tasks are kept; for ever without it."""

TICK = 0.02
AGAIN = 0.2
"""Seconds until somebody who was refused tries again."""
SKIPPED = -1
"""The answer of the person who is asked whether a `once` step has happened."""
ONCE = "fire"

_kept = os.environ.get(RETENTION)

faulthandler.register(signal.SIGUSR1)  # who is told so writes to its log where each of its threads is

app = Outrider(
    WorkerSettings(
        park_grace=0.1,
        drain_timeout=5.0,
        retention=None if _kept is None else float(_kept),
        retention_interval=0.5,
    )
)


def note(file: str, *words: object) -> None:
    """Add a line to a file of the folder."""
    notes = _NOTES.get(file)
    if notes is None:
        notes = _NOTES[file] = Notes(Path(os.environ[FOLDER]) / file)
    notes.add(*words)


_NOTES: dict[str, Notes] = {}


def ran(task: TaskContext | SyncTaskContext) -> None:
    """Note that the code of this attempt runs now, in this process."""
    note("marks", task.id, task.attempt, time.monotonic_ns(), os.getpid())


def effect(task: TaskContext | SyncTaskContext, name: str) -> int:
    """Have an effect: a line in the book. Returns the attempt."""
    note("book", task.id, name, task.attempt)
    return task.attempt


async def slow_effect(task: TaskContext, name: str) -> int:
    await asyncio.sleep(0.01)
    attempt = effect(task, name)
    await asyncio.sleep(0.01)
    return attempt


@app.tool(max_failures=1000, backoff=0.05, backoff_max=0.5)
async def dig(task: TaskContext, seconds: float) -> None:
    """Be seen to run for a while."""
    ran(task)
    await task.step("dig", asyncio.sleep, seconds)
    ran(task)


@app.tool(max_failures=1000, backoff=0.05, backoff_max=0.5)
async def trip(task: TaskContext) -> None:
    """Steps, one of them `once`, a nap in which it parks, output, and a child."""
    ran(task)
    done = {name: await task.step(name, slow_effect, task, name) for name in ("pack", "walk")}
    task.output(f"attempt {task.attempt}\n")
    child = await task.spawn("dig", seconds=0.01)
    ran(task)
    await task.sleep(0.3)
    ran(task)
    done[ONCE] = await task.step(ONCE, slow_effect, task, ONCE, effects="once")
    await task.wait_for([child])
    done["rest"] = await task.step("rest", slow_effect, task, "rest")
    ran(task)
    note("claims", task.id, json.dumps(done))


@app.tool(max_failures=1000, backoff=0.05, backoff_max=0.5)
def haul(task: SyncTaskContext) -> None:
    """The like of it in a thread, behind a concurrency key."""
    ran(task)
    done = {name: task.step(name, effect, task, name) for name in ("lift", "carry")}
    time.sleep(0.02)
    ran(task)
    note("claims", task.id, json.dumps(done))


class Submitter:
    """Submits so many tasks a second, whatever they come to."""

    def __init__(self, runtime: Runtime, session_id: str, rate: float, mix: str) -> None:
        self._runtime = runtime
        self._session_id = session_id
        self._rate = rate
        self._mix = mix
        self._jobs: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Until told to stop, and what was due then is submitted."""
        session = await self._runtime.sessions.get(self._session_id)
        begun, made = time.monotonic(), 0
        note("acks", "began", begun)
        person = asyncio.create_task(self._be_asked())
        while not stop.is_set():
            due = int((time.monotonic() - begun) * self._rate)
            for number in range(made, due):
                job = asyncio.create_task(self._submit(session, number))
                self._jobs.add(job)
                job.add_done_callback(self._jobs.discard)
            made = max(made, due)
            await asyncio.sleep(TICK)
        while self._jobs:
            await asyncio.gather(*self._jobs)
        note("acks", "stopped", made)
        await asyncio.to_thread(sys.stdin.read)  # somebody may still be asked
        person.cancel()

    async def _submit(self, session: Any, number: int) -> None:
        # Long enough for a worker to have some in hand whenever it is killed.
        key, name, arguments = f"{number}", "dig", {"seconds": 0.3}
        given: dict[str, Any] = {"idempotency_key": key}
        if self._mix == "mixed" and number % 4 == 0:
            name, arguments = ("trip", {}) if number % 8 else ("haul", {})
            given["concurrency_key"] = None if number % 8 else f"cart {number % 3}"
        while True:
            try:
                task = await session.spawn(name, options=TaskOptions(**given), **arguments)
            except StoreError as error:
                note("acks", "refused", key, error.code)
                await asyncio.sleep(AGAIN)
            else:
                note("acks", "made", key, task.id)
                return

    async def _be_asked(self) -> None:
        """Say of each `once` step in doubt that it has happened."""
        asking = TaskFilter(states=(State.AWAITING_INPUT,), limit=100)
        while True:
            with suppress(OutriderError):  # the next look will tell
                for task in await self._runtime.tasks.list(asking):
                    with suppress(OutriderError):  # it was answered, and that was lost
                        await self._runtime.tasks.answer(task.id, {"action": "skip", "value": SKIPPED})
            await asyncio.sleep(0.5)


async def main(address: str, session_id: str, rate: str, mix: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with app.open(address, worker=False) as runtime:
        await Submitter(runtime, session_id, float(rate), mix).run(stop)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
