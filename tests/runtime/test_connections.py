"""Connections: nothing starts without what it needs, and who begins without it asks for it."""

from __future__ import annotations

import pytest

from outrider import Outrider, State, TaskContext, TaskOptions, WorkerSettings
from outrider.agents import scripted
from outrider.agents.scripted import Call, Reply, Turn
from outrider.core.errors import ConnectionRequired, TaskFailed, UnknownName
from outrider.core.session import Session

pytestmark = pytest.mark.anyio


class Desk:
    def __init__(self) -> None:
        self.app = Outrider(WorkerSettings(park_grace=0.0))
        self.linked: set[str] = set()

        @self.app.connection("github")
        async def github(session: Session) -> bool:
            return session.organization_id in self.linked

        @self.app.tool(connections=["github"])
        async def push() -> str:
            """Push."""
            return "pushed"

        @self.app.tool
        async def parent(task: TaskContext) -> str:
            await task.spawn("push")
            return "started"


async def test_what_lacks_a_connection_is_refused_before_there_is_a_task_and_told_to_a_model():
    desk = Desk()
    told: list[object] = []

    def boss(turn: Turn) -> Reply:
        told.extend(result.content for result in turn.results)
        match turn.number:
            case 1:
                return Reply(calls=(Call("spawn_background", {"tool": "push"}),))
            case 2:
                return Reply(calls=(Call("spawn_agent", {"instructions": "x", "agent": "pusher"}),))
            case _:
                return Reply("done")

    scripted.register("boss-connections", boss)
    desk.app.agent("boss", model="scripted:boss-connections", delegates=True)
    desk.app.agent("pusher", model="scripted", tools=["push"])
    async with desk.app.open("memory://") as runtime:
        session = await runtime.sessions.create(agent="boss")
        with pytest.raises(ConnectionRequired, match="github") as refused:
            await session.spawn("push")
        assert refused.value.details == {"connections": ["github"]}
        with pytest.raises(ConnectionRequired):
            await session.spawn_agent("Push.", agent="pusher")
        with pytest.raises(TaskFailed, match="github"):
            await (await session.spawn("parent")).result(timeout=10)
        await (await session.send("go")).result(timeout=10)
        assert all(str(each).startswith("connection_required: ") for each in told)
        assert len(told) == 2
        assert {task.kind for task in await session.tasks()} == {"turn", "background_tool"}  # the latter is the parent
        desk.linked.add("org_default")
        assert await (await session.spawn("push")).result(timeout=10) == "pushed"


async def test_a_task_that_begins_without_its_connection_asks_for_it_and_looks_again():
    desk = Desk()
    desk.linked.add("org_default")
    async with desk.app.open("memory://") as runtime:
        session = await runtime.sessions.create()
        options = TaskOptions(delay=0.1)
        late, never, alone = [
            await session.spawn("push", options=options),
            await session.spawn("push", options=options),
            await session.spawn("push", options=TaskOptions(delay=0.1, headless=True)),
        ]
        desk.linked.clear()
        record = await late.wait(timeout=10, on_question=True)
        assert (record.state, record.input_requests[0].kind) == (State.AWAITING_INPUT, "auth")
        await never.wait(timeout=10, on_question=True)  # the others have begun without it as well
        await alone.wait(timeout=10)
        first = record.input_requests[0].id
        await late.answer(True)  # which is not so
        while (await late.wait(timeout=10, on_question=True)).input_requests[0].id == first:
            pass
        desk.linked.add("org_default")
        await late.answer(True)
        assert await late.result(timeout=10) == "pushed"
        await never.answer(False)
        for task in (never, alone):
            with pytest.raises(TaskFailed) as failed:
                await task.result(timeout=10)
            assert failed.value.kind == "connection_required"


async def test_a_connection_that_nobody_has_registered_is_refused_by_name():
    app = Outrider()

    @app.tool(connections=["gitlab"])
    def push() -> None: ...

    async with app.open("memory://", worker=False) as runtime:
        with pytest.raises(UnknownName, match="gitlab"):
            await (await runtime.sessions.create()).spawn("push")
