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

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import END, START, MessagesState, StateGraph

import outrider.agents.langgraph
import outrider.agents.pydantic_ai  # noqa: F401 - once, for all workers that are forked
from outrider import Outrider, TaskOptions, WorkerSettings
from outrider.agents import scripted
from outrider.agents.function import AgentContext
from outrider.agents.scripted import Call, Reply, Turn

REPORT = "report"
"""What a function and a graph answer with all that they have heard."""

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


async def _function(ctx: AgentContext) -> str:
    if ctx.prompt == REPORT:
        return "\n\n".join(each["said"] for each in ctx.transcript if isinstance(each, dict))
    for number in range(3):
        await ctx.step("ponder", ponder)
        await ctx.news()
        await ctx.append(f"thought {number}")
    return "So be it."


async def _think(state: MessagesState) -> Any:
    heard = [str(each.text) for each in state["messages"] if isinstance(each, HumanMessage)]
    if heard[-1] == REPORT:
        return {"messages": [AIMessage("\n\n".join(heard))]}
    await ponder()
    return {"messages": [AIMessage("Hm.")]}


def _goes_on(state: MessagesState) -> str:
    said = [type(each) for each in state["messages"]]
    is_over = state["messages"][-2].text == REPORT or len(said) % 3 == 0
    return END if is_over else "think"


app.agent("function", _function)
_graph: Any = StateGraph(MessagesState).add_node("think", _think).add_edge(START, "think")
app.agent("langgraph", _graph.add_conditional_edges("think", _goes_on, ["think", END]).compile())


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
