"""A process that races others on one store: `python -m tests.stores.racer STORE FOLDER ROLE [ARGUMENT…]`.

It says `ready` when the store is open, starts at the first line of its input, and then says, a JSON value a
line, what it was told. A value stands there only once the store has acknowledged it.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from outrider.core.errors import RequestClosed
from outrider.core.events import Answered
from outrider.core.ledger import Committed, Existing, Stale
from outrider.core.machine import apply
from outrider.core.meters import Account, Amounts, Budget, Exhausted, Granted, Reserve, Settle, Tap
from tests.stores.backends import BACKENDS
from tests.stores.scene import SESSION, Scene


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)


async def claim(scene: Scene, name: str) -> None:
    """Claims what is on the route in each line of its input, so many at a time, and says which ids it got of it.

    It claims from all the routes it was told of side by side.
    """
    loop, chance = asyncio.get_running_loop(), random.Random(name)

    async def empty(route: str) -> None:
        got: list[str] = []
        while tasks := (await scene.claim(name, limit=chance.randrange(1, 50), routes=[route])).tasks:
            got += [task.id for task in tasks]
        say([route, got])

    async with asyncio.TaskGroup() as group:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            group.create_task(empty(line.strip()))


async def answer(scene: Scene, name: str) -> None:
    """Answers every request `req_N` of `task_N`, and says which it won."""
    for task in await scene.views.tasks([f"task_{n}" for n in range(20)]):
        request_id = task.id.replace("task", "req")
        record = task
        while True:
            try:
                verdict = await scene.one(apply(record, Answered(request_id, name, by=name), scene.now))
            except RequestClosed:
                break
            if isinstance(verdict, Committed):
                say(request_id)
                break
            assert isinstance(verdict, Stale)
            assert verdict.current is not None
            record = verdict.current


async def create(scene: Scene, name: str, count: str) -> None:
    """Creates tasks under the keys 0 to `count`, and says for each the id that holds its key."""
    for key in range(int(count)):
        verdict = await scene.one(scene.new(f"task_{key:03}_{name}", idempotency_key=f"key_{key}"))
        assert isinstance(verdict, Committed | Existing)
        say(verdict.task.id)


async def flood(scene: Scene, name: str) -> None:
    """Creates tasks from eight callers until it is killed, and says each id once it is durable."""

    async def caller(number: int) -> None:
        turn = 0
        while True:
            id = f"task_{name}_{number}_{turn:05}"
            await scene.create(id)
            say(id)
            turn += 1

    await asyncio.gather(*(caller(number) for number in range(8)))


async def spend(scene: Scene, name: str, ceiling: str) -> None:
    """Reserves and settles from 32 callers, each for a task of its own, until the tree has spent its ceiling."""
    tap = Tap(f"tree:{SESSION}", Budget(tokens=int(ceiling)))

    async def caller(number: int) -> None:
        ordinal = 0
        while True:
            ordinal += 1
            reserve = Reserve(f"task_{name}_{number}", 1, ordinal, Amounts(1, 50), scene.now, (tap,))
            (verdict,) = await scene.ledger.charge([reserve])
            if isinstance(verdict, Exhausted):
                return
            if isinstance(verdict, Granted):
                found = (await scene.views.meters([tap.account]))[tap.account]
                assert isinstance(found, Account)
                took = Amounts(1, 10 + ordinal % 41)
                say([found.spent.tokens + found.held.tokens, took.tokens])
                settle = Settle(reserve.task_id, 1, ordinal, took, scene.now, (tap,))
                assert await scene.ledger.charge([settle]) == [Granted()]

    await asyncio.gather(*(caller(number) for number in range(32)))


ROLES: Mapping[str, Callable[..., Awaitable[None]]] = {
    "claim": claim,
    "answer": answer,
    "create": create,
    "flood": flood,
    "spend": spend,
}


async def main(store: str, folder: str, role: str, *arguments: str) -> None:
    ledger = await BACKENDS[store](Path(folder))
    say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    await ROLES[role](Scene(ledger), *arguments)
    await ledger.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
