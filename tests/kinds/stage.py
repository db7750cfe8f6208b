"""A stage for agents that hand work off: an app whose agents play scripts, and the words for what they say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from outrider import Outrider, Runtime, SessionHandle, TaskContext, WorkerSettings
from outrider.agents import scripted
from outrider.agents.scripted import Call, Reply, Turn
from outrider.core.task import Task
from outrider.settings import DelegationLimits

Script = Callable[[Turn], Reply]


class Stage:
    """An app whose agents play scripts, with a tool that ends, one that waits at a gate, and one that never ends."""

    def __init__(self, url: str, **limits: Any) -> None:
        self.url = url
        self.app = Outrider(WorkerSettings(park_grace=0.02, delegation=DelegationLimits(**limits)))
        self.gate = asyncio.Event()
        self.said: dict[str, list[Any]] = {}

        @self.app.tool
        async def work(n: int) -> str:
            """Do something, once the gate is open."""
            await self.gate.wait()
            return f"did {n}"

        @self.app.tool
        async def drift(task: TaskContext) -> None:
            """Never end."""
            await task.messages()

    def agent(self, name: str, script: Script, **more: Any) -> None:
        results = self.said[name] = []

        def play(turn: Turn) -> Reply:
            results.extend(result.content for result in turn.results)
            return script(turn)

        scripted.register(name, play)
        self.app.agent(name, model=f"scripted:{name}", **more)

    @asynccontextmanager
    async def open(self, agent: str) -> AsyncIterator[tuple[Runtime, SessionHandle]]:
        async with self.app.open(self.url) as runtime:
            yield runtime, await runtime.sessions.create(agent=agent)


def steps(*replies: Reply) -> Script:
    """A script that plays these in each turn."""
    return lambda turn: replies[min(turn.number, len(replies)) - 1]


def calls(tool: str, /, **arguments: Any) -> Reply:
    return Reply(calls=(Call(tool, arguments),))


async def turns(runtime: Runtime, session: SessionHandle, count: int) -> list[Any]:
    """What the first so many turns came to, once all have ended."""
    async with asyncio.timeout(15):
        while True:
            taken = [task for task in await session.tasks() if task.kind == "turn"][::-1]
            if len(taken) >= count and all(task.is_terminal for task in taken):
                return [await (await runtime.task(task.id)).result() for task in taken]
            await asyncio.sleep(0.01)


async def until(runtime: Runtime, fits: Callable[[Task], bool], **filter: Any) -> Task:
    """The task that fits, once one does."""
    async with asyncio.timeout(10):
        while True:
            for record in await runtime.tasks.list(**filter):
                if fits(task := await runtime.tasks.get(record.id)):
                    return task
            await asyncio.sleep(0.005)
