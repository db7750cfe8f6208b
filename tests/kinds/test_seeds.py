"""Seeds: an agent that is started begins with nothing, with what its parent knew, or with its files."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from outrider import Outrider, Runtime, SessionHandle, WorkerSettings
from outrider.agents import scripted
from outrider.agents.engine import is_said
from outrider.agents.function import AgentContext
from outrider.agents.scripted import Call, Reply, Turn
from outrider.core.errors import InvalidArguments, TaskFailed
from outrider.core.session import NewSession, Seed
from outrider.runtime.codec import decode
from outrider.runtime.records import TaskRecord
from outrider.testing import open_test

pytestmark = pytest.mark.anyio


@pytest.fixture
def app() -> Outrider:
    app = Outrider(WorkerSettings(park_grace=0.02))

    @app.tool
    async def look(what: str) -> str:
        """Look something up."""
        return f"saw {what}"

    return app


def add(app: Outrider, name: str, script: Any, **more: Any) -> None:
    scripted.register(f"seeds-{name}", script)
    app.agent(name, model=f"scripted:seeds-{name}", tools=["look"], **more)


def spawn(**arguments: Any) -> Call:
    return Call("spawn_agent", {"mode": "foreground", **arguments})


async def parts(runtime: Runtime, session_id: str) -> list[tuple[str, Any]]:
    """A transcript of pydantic-ai in words: the kind of each part, and what it says or calls."""
    messages: list[Any] = [decode(row.message) for row in await runtime.services.views.transcript(session_id)]
    found = [part for message in messages for part in message["parts"]]
    return [(part["part_kind"], part.get("tool_name") or part["content"]) for part in found]


async def child_of(session: SessionHandle) -> TaskRecord:
    (child,) = [task for task in await session.tasks() if task.kind == "subagent"]
    return child


async def test_a_forked_child_knows_what_its_parent_knew_when_it_was_called_and_nothing_of_the_call(app: Outrider):
    def script(turn: Turn) -> Reply:
        if turn.prompt == "And you?":
            return Reply(f"I know of {len(turn.earlier())}: {turn.earlier()[0].content}")
        if turn.number == 1:
            return Reply("First.", calls=(Call("look", {"what": "foxes"}),))
        if turn.number == 2:
            call = Call("spawn_agent", {"instructions": "And you?", "seed": "fork", "wake": "silent"})
            return Reply("Now.", calls=(call, Call("look", {"what": "owls"})))
        return Reply("started")

    add(app, "boss", script, delegates=True)
    async with app.open("memory://") as runtime:
        session = await runtime.sessions.create(agent="boss")
        await session.write_file("/notes.txt", "one")
        await runtime.queue.pause(kind="subagent")  # so that all of the turn is there when the child begins
        assert await (await session.send("go")).result(timeout=30) == "started"
        await runtime.queue.resume(kind="subagent")
        task = await runtime.task((await child_of(session)).id)
        assert await task.result(timeout=30) == "I know of 1: saw foxes"
        child = await task.record()
        assert child.links.child_session_id is not None
        opened = await runtime.sessions.get(child.links.child_session_id)
        assert await parts(runtime, opened.id) == [
            ("user-prompt", "go"),
            ("text", "First."),
            ("tool-call", "look"),
            ("tool-return", "look"),
            ("user-prompt", "And you?"),
            ("text", "I know of 1: saw foxes"),
        ]
        record = await opened.record()
        assert (record.forked_from, record.parent_task_id) == (session.id, child.id)
        assert [file.path for file in await opened.files()] == ["/notes.txt"]
        assert child.iterations == 1


async def test_a_child_that_forks_itself_at_once_passes_on_what_it_was_told(app: Outrider):
    def script(turn: Turn) -> Reply:
        if turn.prompt == "Deeper.":
            return Reply("deep")
        return Reply("", calls=(spawn(instructions="Deeper.", seed="fork"),)) if turn.number == 1 else Reply("up")

    add(app, "digger", script, delegates=True)
    async with app.open("memory://") as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn_agent("Dig here.", agent="digger")
        assert await task.result(timeout=30) == "up"
        above = (await task.record()).links.child_session_id
        assert above is not None
        below = (await child_of(await runtime.sessions.get(above))).links.child_session_id
        assert below is not None
        told = [("user-prompt", "Dig here."), ("user-prompt", "Deeper."), ("text", "deep")]
        assert await parts(runtime, below) == told


async def test_a_function_and_a_graph_are_started_with_what_was_said_in_the_session(app: Outrider):
    from langchain_core.messages import AIMessage
    from langgraph.graph import START, MessagesState, StateGraph

    async def answer(ctx: AgentContext) -> str:
        return " ".join([*(str(each["said"]) for each in ctx.transcript if is_said(each)), ctx.prompt])

    async def speak(state: MessagesState) -> dict[str, list[AIMessage]]:
        return {"messages": [AIMessage(" ".join(str(each.text) for each in state["messages"]).upper())]}

    app.agent("plain", answer)
    app.agent("graph", StateGraph(MessagesState).add_node("speak", speak).add_edge(START, "speak").compile())
    async with app.open("memory://") as runtime:
        for name, heard in (("plain", "one two"), ("graph", "ONE ONE TWO")):
            session = await runtime.sessions.create(agent=name)
            await (await session.send("one")).result(timeout=30)
            assert await (await session.spawn_agent("two", agent=name, seed="fork")).result(timeout=30) == heard
        session = await runtime.sessions.create(agent="graph")
        with pytest.raises(TaskFailed) as refused:
            await (await session.spawn_agent("two", agent="plain", seed="fork")).result(timeout=30)
        assert (refused.value.kind, "form of its own" in refused.value.message) == ("rejected", True)
        with pytest.raises(InvalidArguments):
            await session.spawn_agent("two", agent="plain", seed="half")  # type: ignore[arg-type]  # no such seed


async def test_a_fork_that_cannot_go_on_is_refused_to_the_model(app: Outrider):
    heard: list[str] = []

    async def answer(ctx: AgentContext) -> str:
        return "never"

    def script(turn: Turn) -> Reply:
        if turn.number == 1:
            return Reply("", calls=(spawn(instructions="x", agent="plain", seed="fork"),))
        heard.extend(str(each.content) for each in turn.results)
        return Reply("I see.")

    app.agent("plain", answer)
    add(app, "boss", script, delegates=True)
    async with app.open("memory://") as runtime:
        session = await runtime.sessions.create(agent="boss")
        assert await (await session.send("go")).result(timeout=30) == "I see."
        assert "cannot go on from what 'boss' said" in heard[0]
        assert len(await session.tasks()) == 1


async def test_a_child_may_begin_with_the_files_alone(app: Outrider):
    add(app, "reader", lambda turn: Reply(f"{turn.prompt} {len(turn.earlier())}"))
    async with app.open("memory://") as runtime:
        session = await runtime.sessions.create(agent="reader")
        await session.write_file("/notes.txt", "one")
        await (await session.send("hello")).result(timeout=30)
        task = await session.spawn_agent("Read.", agent="reader", seed="files")
        assert await task.result(timeout=30) == "Read. 0"
        child = await runtime.sessions.get((await task.record()).links.child_session_id or "")
        assert [file.path for file in await child.files()] == ["/notes.txt"]
        assert await parts(runtime, child.id) == [("user-prompt", "Read."), ("text", "Read. 0")]
        assert (await child.record()).forked_from is None


@pytest.mark.parametrize("verb", ["create_session", "append"])
async def test_a_worker_that_is_killed_as_it_forks_neither_loses_nor_doubles_what_is_copied(app: Outrider, verb: str):
    add(app, "echo", lambda turn: Reply(f"heard {turn.prompt}"))
    async with open_test(app) as runtime:
        session = await runtime.sessions.create(agent="echo")
        turn = await session.send("one")
        await runtime.run_until_idle()
        assert await turn.result() == "heard one"
        (crew,) = runtime._crews
        done = asyncio.Event()

        async def kept(*given: NewSession | Seed | None) -> None:
            await getattr(runtime.services.ledger, verb)(*given)
            done.set()
            await asyncio.Event().wait()

        crew.probe.__dict__[verb] = kept
        task = await session.spawn_agent("two", agent="echo", seed="fork")
        await done.wait()
        await runtime.crash()
        await runtime.run_until_idle()
        assert await task.result() == "heard two"
        child = (await task.record()).links.child_session_id
        assert child is not None
        assert [said for _, said in await parts(runtime, child)] == ["one", "heard one", "two", "heard two"]
