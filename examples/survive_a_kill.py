"""Kills its own worker with SIGKILL in the middle of a task, and shows that the next one goes on from there.

The work is done by a process of its own, this file started as `survive_a_kill.py work`. Each step writes a line into
`steps.txt`: it really ran, in that attempt. What was finished before the kill is not done again; a step that the kill
cut in the middle may stand there twice.
"""

import asyncio
import signal
import sys
import time
from pathlib import Path

from outrider import Outrider, TaskContext

DATABASE = "sqlite:///survive.db"
NOTES = Path("steps.txt")

app = Outrider()


@app.tool
async def add_up(task: TaskContext, steps: int) -> int:
    total = 0
    for number in range(1, steps + 1):
        total += await task.step(f"add {number}", add, number, task.attempt)
        task.output(f"{number} ")
    return total


def add(number: int, attempt: int) -> int:
    time.sleep(0.2)
    with NOTES.open("a") as notes:
        notes.write(f"{number} in attempt {attempt}\n")
    return number


async def work() -> None:
    async with app.open(DATABASE):
        await asyncio.Event().wait()


async def start_worker() -> asyncio.subprocess.Process:
    worker = await asyncio.create_subprocess_exec(sys.executable, __file__, "work")
    print(f"worker {worker.pid} started")
    return worker


async def main() -> None:
    async with app.open(DATABASE, worker=False) as outrider:
        session = await outrider.sessions.create()
        task = await session.spawn(add_up, steps=10)

        worker = await start_worker()
        async for piece in task.output():
            if "4" in piece.text:
                break
        worker.send_signal(signal.SIGKILL)
        await worker.wait()
        print(f"worker {worker.pid} killed; the task is {(await task.record()).state}")

        worker = await start_worker()
        print(f"the result is {await task.result()}")
        for attempt in await task.attempts():
            print(f"attempt {attempt.attempt}: {attempt.ending}")
        worker.terminate()
        await worker.wait()


if __name__ == "__main__":
    if sys.argv[1:] == ["work"]:
        asyncio.run(work())
    else:
        NOTES.unlink(missing_ok=True)
        asyncio.run(main())
        print(NOTES.read_text(), end="")
