"""An agent that is talked to by many, and the programs that talk to it: for the proof that each word is heard once.

What a program was acknowledged it appends to a file, a line each: what it said, or the task that it started, whose end
the agent is to be told of.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import outrider.agents.pydantic_ai  # noqa: F401 - once, for all workers that are forked
from outrider import Outrider, TaskOptions, WorkerSettings
from outrider.agents import scripted
from outrider.agents.scripted import Call, Reply, Turn

app = Outrider(WorkerSettings(park_grace=0.02, recovery_interval=0.05))


@app.tool
async def ponder() -> str:
    """Give others the time to say something."""
    await asyncio.sleep(random.uniform(0, 0.05))
    return "pondered"


@app.tool(max_failures=1000, backoff=0.02, backoff_max=0.1)
async def work(word: str) -> str:
    """Do something in the background."""
    await asyncio.sleep(random.uniform(0, 0.05))
    return word


def _script(turn: Turn) -> Reply:
    if turn.number % 3:
        return Reply("Hm.", calls=(Call("ponder", {}),))
    return Reply("So be it.")


scripted.register("listener", _script)
app.agent("listener", model="scripted:listener", tools=["ponder"])


def settings_of(given: Mapping[str, Any]) -> WorkerSettings:
    return app.settings


async def speak(address: str, prefix: str, acks: Path) -> None:
    """Talk to the one session that there is until told to stop."""
    chance, number = random.Random(prefix), 0
    background = TaskOptions(wake="on_terminal")
    async with app.open(address, worker=False) as runtime:
        (record,) = await runtime.sessions.list()
        session = await runtime.sessions.get(record.id)
        while True:
            number += 1
            if chance.random() < 0.5:
                word = f"{prefix}-{number}"
                await session.send(word, steering=chance.choice(["inject", "inject", "after", "interrupt"]))
                _note(acks, f"said {word}")
            else:
                task = await session.spawn("work", word=f"{number}", options=background)
                _note(acks, f"started {task.id}")
            await asyncio.sleep(chance.uniform(0, 0.06))


def _note(acks: Path, line: str) -> None:
    fd = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)
