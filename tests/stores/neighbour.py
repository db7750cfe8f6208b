"""Another process that uses the same database; a program, run with a verb and the path of the database.

create PREFIX COUNT CALLERS   create tasks and print the id of each that was acknowledged
live PREFIX CALLERS           create, claim and end tasks until killed, printing what was acknowledged
claim WORKER                  claim by fives until nothing is left; print what was got
answer                        create a task for each line read; print when it was durable, by the monotonic clock
"""

from __future__ import annotations

import sys
import time
from itertools import count

import anyio
import anyio.to_thread

from outrider.stores.sqlite import SqliteLedger
from tests.stores.scene import Scene


def say(*words: object) -> None:
    print(*words, flush=True)


async def create(scene: Scene, prefix: str, tasks: str, callers: str) -> None:
    numbers = iter(range(int(tasks)))

    async def caller() -> None:
        for n in numbers:
            say((await scene.create(f"task_{prefix}_{n:05}")).id)

    async with anyio.create_task_group() as group:
        for _ in range(int(callers)):
            group.start_soon(caller)


async def live(scene: Scene, prefix: str, callers: str) -> None:
    numbers = count()

    async def caller() -> None:
        for n in numbers:
            id = f"task_{prefix}_{n:05}"
            await scene.create(id)
            say("created", id)
            for task in (await scene.claim(f"worker_{prefix}", limit=2)).tasks:
                say("claimed", task.id)
                await scene.succeed(task.id, b'{"n":1}')
                say("succeeded", task.id)

    async with anyio.create_task_group() as group:
        for _ in range(int(callers)):
            group.start_soon(caller)


async def claim(scene: Scene, worker: str) -> None:
    say("ready")
    await anyio.to_thread.run_sync(sys.stdin.readline)
    while tasks := (await scene.claim(worker, limit=5)).tasks:
        for task in tasks:
            say(task.id)


async def answer(scene: Scene) -> None:
    say("ready")
    for n in count():
        if not await anyio.to_thread.run_sync(sys.stdin.readline):
            return
        await scene.create(f"task_answer_{n:05}")
        say(time.monotonic())


async def main(*command: str) -> None:
    verb, path, *words = command
    ledger = await SqliteLedger.open(path)
    scene = Scene(ledger)
    await scene.session()
    match verb:
        case "create":
            await create(scene, *words)
        case "live":
            await live(scene, *words)
        case "claim":
            await claim(scene, *words)
        case "answer":
            await answer(scene)
        case _:
            raise ValueError(verb)
    await ledger.close()


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
