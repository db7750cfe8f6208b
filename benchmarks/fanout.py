"""One parent with a thousand children: agents of five iterations, each of whose ends its parent's agent is told.

The parent is a session with an agent, which takes a turn whenever there is news; as many children as have ended by
then are told of in one. `children_per_s` counts from the first spawn to the turn that tells of the last of them. It is
measured with scripted models, run by the default engine, and again with functions as agents: what Outrider alone takes.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from typing import TypeAlias

from benchmarks import work
from benchmarks.harness import Figures, Place, Settings, check, resident_mb
from outrider import Runtime, TaskOptions
from outrider.agents import scripted
from outrider.agents.function import AgentContext
from outrider.agents.scripted import Call, Reply, Turn
from outrider.runtime.codec import decode

KEYS = ("children_per_s", "function_children_per_s", "wakes_lost", "wakes_doubled", "rss_mb")

Wakes: TypeAlias = Counter[str]

ITERATIONS = 5
CALLERS = 16
WAKING = TaskOptions(wake="on_terminal")
PARENT, CHILD, FUNCTION = "fan parent", "fan child", "fan function"
WAKE = re.compile(r'<task_wake task=\\?"(\w+)')


def work_through(turn: Turn) -> Reply:
    """Call a tool in each iteration but the last."""
    return Reply(calls=(Call("echo", {"value": turn.number}),)) if turn.number < ITERATIONS else Reply("done")


async def work_through_too(ctx: AgentContext) -> str:
    """Do the same as a function."""

    async def ask() -> str:
        return "call echo"

    for number in range(1, ITERATIONS):
        said = await ctx.step(f"model {number}", ask)
        result = await ctx.call("echo", {"value": number}, id=f"echo {number}")
        await ctx.append({"said": said, "result": result})
    await ctx.append({"said": "done"}, text="done")
    return "done"


scripted.register(PARENT, lambda _: Reply("heard"))
scripted.register(CHILD, work_through)
work.app.agent(PARENT, model=f"scripted:{PARENT}")
work.app.agent(CHILD, model=f"scripted:{CHILD}", tools=["echo"])
work.app.agent(FUNCTION, agent=work_through_too, tools=["echo"])


def tasks(settings: Settings) -> int:
    """How many children there are."""
    return 5000 if settings.full else 1000


async def run(place: Place) -> Figures:
    """Have all children made, run, and told of; with the one kind of agent, then with the other."""
    url = place.url()
    work.share(place.settings.workers)
    async with work.app.open(url) as outrider, work.helpers(url, place.settings.workers - 1, serving="fanout"):
        await _fan_out(outrider, CHILD, 20)  # the engines are imported by then
        rate, told = await _fan_out(outrider, CHILD, place.tasks)
        resident = resident_mb()
        function_rate, _ = await _fan_out(outrider, FUNCTION, place.tasks)
    return {
        "children_per_s": rate,
        "function_children_per_s": function_rate,
        "wakes_lost": place.tasks - len(told),
        "wakes_doubled": sum(times - 1 for times in told.values()),
        "rss_mb": resident,
    }


async def _fan_out(outrider: Runtime, agent: str, count: int) -> tuple[float, Wakes]:
    """How many children a second were made, run and told of, and how often each was told of."""
    session = await outrider.sessions.create(agent=PARENT)
    numbers = iter(range(count))
    started = time.perf_counter()

    async def spawn() -> None:
        for number in numbers:
            await session.spawn_agent(f"child {number}", agent=agent, options=WAKING)

    async def is_told() -> bool:
        return (await session.record()).status == "idle" and len(await _wakes(outrider, session.id)) == count

    await asyncio.gather(*(spawn() for _ in range(CALLERS)))
    await work.until(is_told, f"the wakes of {count} children", every=0.05)
    spent = time.perf_counter() - started
    told = await _wakes(outrider, session.id)
    check(max(told.values()) == 1, f"a child was told of {max(told.values())} times")
    check(not await session.inbox.list(), "something is left in the inbox")
    children = [task for task in await session.tasks(limit=10_000) if task.kind == "subagent"]
    check(len(children) == count, f"{len(children)} children were made")
    for child in children:
        fine = child.state == "succeeded" and child.attempt == 1 and child.iterations == ITERATIONS
        check(fine, f"{child.id} is {child.state}, attempt {child.attempt}, {child.iterations} iterations")
    return count / spent, told


async def _wakes(outrider: Runtime, session_id: str) -> Wakes:
    rows = await outrider.services.views.transcript(session_id)
    return Counter(WAKE.findall("".join(str(decode(row.message)) for row in rows)))
