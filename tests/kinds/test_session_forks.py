"""A session is forked: the copy goes on from what was said, on its own, whatever engine runs its agent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from outrider import Outrider, Runtime, SessionHandle, WorkerSettings
from outrider.agents import scripted
from outrider.agents.engine import is_said
from outrider.agents.function import AgentContext
from outrider.agents.scripted import Call, Reply, Turn
from outrider.core.errors import InvalidArguments, NotFound
from outrider.runtime.codec import decode

pytestmark = pytest.mark.anyio


@pytest.fixture
def app() -> Outrider:
    return Outrider(WorkerSettings(park_grace=0.02))


async def say(session: SessionHandle, text: str) -> Any:
    return await (await session.send(text)).result(timeout=30)


def add_echo(app: Outrider, begun: asyncio.Event, gate: asyncio.Event) -> None:
    """An agent of pydantic-ai that says how much it was told so far, and thinks at a gate when told to."""

    @app.tool
    async def think() -> str:
        """Think until the gate is open."""
        begun.set()
        await gate.wait()
        return "thought"

    def script(turn: Turn) -> Reply:
        if turn.prompt == "think" and turn.number % 3:
            return Reply("Hm.", calls=(Call("think", {}),))
        return Reply(f"{turn.prompt}, after {len(turn.earlier())} calls")

    scripted.register("forked-echo", script)
    app.agent("echo", model="scripted:forked-echo", tools=["think"])


def add_plain(app: Outrider) -> None:
    """A function that remembers what was said to it, and what it answered."""

    async def answer(ctx: AgentContext) -> str:
        said = [each["said"] if is_said(each) else each for each in ctx.transcript]
        told = " ".join(map(str, [*said, ctx.prompt]))
        await ctx.append(f"({ctx.prompt})")
        return told

    app.agent("plain", answer)


def add_graph(app: Outrider) -> None:
    """A graph that says all that was said, in capitals."""
    from langchain_core.messages import AIMessage
    from langgraph.graph import START, MessagesState, StateGraph

    async def speak(state: MessagesState) -> dict[str, list[AIMessage]]:
        return {"messages": [AIMessage(" ".join(str(each.text) for each in state["messages"]).upper())]}

    app.agent("graph", StateGraph(MessagesState).add_node("speak", speak).add_edge(START, "speak").compile())


async def prompts(runtime: Runtime, session: SessionHandle) -> list[str]:
    """What the session's transcript, of pydantic-ai, has of what users said."""
    messages: list[Any] = [decode(row.message) for row in await runtime.services.views.transcript(session.id)]
    return [part["content"] for each in messages for part in each["parts"] if part["part_kind"] == "user-prompt"]


async def test_a_fork_of_each_engine_knows_what_was_said_and_the_two_part_there(app: Outrider):
    add_plain(app)
    add_graph(app)
    add_echo(app, asyncio.Event(), asyncio.Event())
    async with app.open("memory://") as runtime:
        plain, graph, echo = [await runtime.sessions.create(agent=name) for name in ("plain", "graph", "echo")]
        for session in (plain, graph, echo):
            await say(session, "one")
        forks = [await session.fork() for session in (plain, graph, echo)]
        for session in (plain, graph, echo):
            await say(session, "apart")
        assert await say(forks[0], "two") == "one (one) two"
        assert await say(forks[1], "two") == "ONE ONE TWO"
        assert await say(forks[2], "two") == "two, after 0 calls"
        assert await prompts(runtime, forks[2]) == ["one", "two"]
        assert await say(plain, "three") == "one (one) apart (apart) three"
        assert await say(graph, "three") == "ONE ONE APART ONE ONE APART THREE"


async def test_a_fork_is_a_session_of_its_own_with_the_same_agent_labels_budget_and_files(app: Outrider):
    add_plain(app)
    async with app.open("memory://") as runtime:
        budget = {"tokens": 500}
        session = await runtime.sessions.create(agent="plain", title="a", labels={"team": "blue"}, budget=budget)
        await session.write_file("/notes.txt", "one")
        turn = await session.send("one")
        await turn.result()
        fork = await session.fork()
        record, was = await fork.record(), await session.record()
        for name in ("agent", "title", "labels", "budget", "organization_id"):
            assert getattr(record, name) == getattr(was, name)
        assert (record.forked_from, was.forked_from, record.root_session_id) == (session.id, None, fork.id)
        assert (await fork.tasks(), await fork.inbox.list(), await fork.turn()) == ([], [], None)
        assert [file.path for file in await fork.files()] == ["/notes.txt"]
        assert await fork.read_file("/notes.txt") == b"one"
        await session.close()
        assert (await (await session.fork(title="b")).record()).title == "b"
        assert (await runtime.sessions.fork(session.id, id=fork.id)).id == fork.id


async def test_a_fork_ends_where_it_is_told_to(app: Outrider):
    add_plain(app)
    async with app.open("memory://") as runtime:
        session = await runtime.sessions.create(agent="plain")
        turns = [await session.send("one")]
        await turns[0].result()
        turns.append(await session.send("two"))
        await turns[1].result()
        assert await say(await session.fork(upto=turns[0].id), "x") == "one (one) x"
        assert await say(await session.fork(upto=turns[1].id), "x") == "one (one) two (two) x"
        assert await say(await session.fork(upto=turns[1].id, iteration=0), "x") == "one (one) two x"
        for wrong in ({"upto": "task_x"}, {"iteration": 1}, {"upto": turns[0].id, "iteration": -1}):
            with pytest.raises(InvalidArguments):
                await session.fork(**wrong)
        await session.delete()
        with pytest.raises(NotFound):
            await session.fork()


async def test_a_fork_in_the_middle_of_a_turn_has_the_iterations_that_are_finished(app: Outrider):
    begun, gate = asyncio.Event(), asyncio.Event()
    add_echo(app, begun, gate)
    async with app.open("memory://") as runtime:
        session = await runtime.sessions.create(agent="echo")
        turn = await session.send("think")
        await begun.wait()
        first = await session.fork()
        begun.clear()
        gate.set()
        await begun.wait()
        await turn.result()
        second = await session.fork(upto=turn.id, iteration=1)
        assert await say(first, "and now") == "and now, after 0 calls"
        assert await say(second, "and now") == "and now, after 1 calls"
        assert await turn.result() == "think, after 2 calls"
        assert await prompts(runtime, first) == ["think", "and now"]
