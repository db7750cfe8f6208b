"""One app, opened as a `Runtime` or as a `Client` of a server on a real socket: whoever uses it cannot tell which."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeAlias

from outrider import Client, Outrider, Runtime, TaskContext, WorkerSettings
from outrider.agents import scripted
from outrider.agents.scripted import Reply, Turn
from outrider.api import create_api
from outrider.api.serving import Service, bind
from outrider.settings import ClientSettings, ServeSettings

Way: TypeAlias = Literal["runtime", "client"]
WAYS: tuple[Way, ...] = ("runtime", "client")

QUICK = ClientSettings(poll_time=0.2, patience=5.0)
"""Polls are short, so that a wait takes several."""


def app_of_tests() -> Outrider:
    """A tool for each thing that a task can do, and an agent that says back what it hears."""
    app = Outrider(WorkerSettings(park_grace=0.02, drain_timeout=0.05))

    @app.tool
    async def add(a: int, b: int = 2) -> int:
        """Add two numbers."""
        return a + b

    @app.tool
    async def chatter(task: TaskContext, lines: int = 3) -> dict[str, int]:
        """Print and progress."""
        for line in range(lines):
            task.output(f"line {line} – ünïcode\n")
            task.progress(line + 1, total=lines)
        return {"lines": lines}

    @app.tool
    async def consult(task: TaskContext, prompt: str = "Which?") -> str:
        """Ask a person."""
        return await task.ask(prompt, str)

    @app.tool
    async def fail(message: str = "no luck") -> None:
        """Fail."""
        raise ValueError(message)

    @app.tool
    async def wait_for_ever(task: TaskContext) -> None:
        """Go on until it is stopped."""
        await asyncio.Event().wait()

    @app.tool
    async def listen(task: TaskContext) -> list[str]:
        """Return the first message that comes."""
        return [message.text for message in await task.messages()]

    @app.tool
    async def in_steps(task: TaskContext, fails: bool = False) -> str:
        """Do two things, one after the other."""
        first = await task.step("first", lambda: "one")
        if fails:
            raise ValueError("asked for")
        return first + await task.step("second", lambda: " two")

    @app.tool
    async def parent(task: TaskContext) -> Any:
        """Start another, and wait for it."""
        return await (await task.spawn("wait_for_ever")).result()

    def echo(turn: Turn) -> Reply:
        return Reply(f"You said {turn.prompt}.")

    scripted.register("client-echo", echo)
    app.agent("echo", model="scripted:client-echo")
    return app


@asynccontextmanager
async def opened(way: Way, *, worker: bool = True, app: Outrider | None = None) -> AsyncIterator[Any]:
    """The app by one of the ways, over the memory store."""
    async with (app or app_of_tests()).open("memory://", worker=worker) as runtime, by(way, runtime) as found:
        yield found


@asynccontextmanager
async def by(way: Way, runtime: Runtime) -> AsyncIterator[Any]:
    """A runtime by one of the ways."""
    if way == "runtime":
        yield runtime
        return
    async with served(runtime) as url, Client(url, settings=QUICK) as client:
        yield client


@asynccontextmanager
async def served(runtime: Runtime, settings: ServeSettings | None = None, port: int = 0) -> AsyncIterator[str]:
    """A server of a runtime in this process, and its address."""
    settings = settings or ServeSettings(shutdown_timeout=1.0)
    listener = bind("127.0.0.1", port)
    service = Service(create_api(runtime, settings), listener, settings)
    job = asyncio.create_task(service.run())
    await service.has_started()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        service.end()
        await job
        listener.close()
