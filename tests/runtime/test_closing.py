"""Closing a session: nothing more comes in, what is there goes on or is canceled, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from outrider import Outrider, Runtime, SessionHandle, State, TaskContext, TaskHandle, TaskOptions, WorkerSettings
from outrider.agents import scripted
from outrider.agents.scripted import Call, Reply, Turn
from outrider.core.errors import InvalidArguments, NotEnded, NotFound, SessionClosed
from tests.facts import until

pytestmark = pytest.mark.anyio


class Stage:
    """An app whose tool stands still until the gate is open, and whose agent says back what it is told."""

    def __init__(self) -> None:
        self.app = Outrider(WorkerSettings(park_grace=0.02))
        self.gate, self.begun = asyncio.Event(), asyncio.Event()

        @self.app.tool
        async def think(task: TaskContext) -> str:
            """Think until the gate is open, then have something thought of further."""
            self.begun.set()
            await self.gate.wait()
            await task.spawn("muse")
            return "thought"

        @self.app.tool
        async def muse() -> str:
            """Come to something."""
            return "mused"

        def script(turn: Turn) -> Reply:
            if turn.prompt == "think" and turn.number == 1:
                return Reply("Hm.", calls=(Call("think", {}),))
            return Reply(f"You said {turn.prompt}.")

        scripted.register("closing", script)
        self.app.agent("echo", model="scripted:closing", tools=["think"])

    @asynccontextmanager
    async def open(self, **session: Any) -> AsyncIterator[tuple[Runtime, SessionHandle]]:
        async with self.app.open("memory://") as runtime:
            yield runtime, await runtime.sessions.create(**session)


@pytest.fixture
def stage() -> Stage:
    return Stage()


async def ended(task: TaskHandle) -> State:
    return (await task.wait(timeout=30)).state


async def test_what_lives_in_a_closed_session_runs_to_its_end_and_wakes_nobody(stage: Stage):
    async with stage.open(agent="echo") as (runtime, session):
        await (await session.send("hello")).result()
        task = await session.spawn("think", options=TaskOptions(wake="on_terminal"))
        await stage.begun.wait()
        record = await session.close()
        assert (record.status, record.closed_at is not None) == ("closed", True)
        with pytest.raises(SessionClosed):
            await session.send("anybody there?")
        with pytest.raises(SessionClosed):
            await session.spawn("muse")
        stage.gate.set()
        assert await task.result() == "thought"
        (child,) = [each for each in await session.tasks() if each.parent_task_id == task.id]
        assert await ended(await runtime.task(child.id)) is State.SUCCEEDED
        await settled(runtime)
        assert [entry.task_id for entry in await session.inbox.list()] == [task.id]
        assert sorted(each.kind for each in await session.tasks()) == ["background_tool", "background_tool", "turn"]

        assert (await session.reopen()).status in ("idle", "active")
        await until(lambda: _hears_all(session))
        turn = await session.turn()
        assert turn is not None
        assert task.id in await turn.result()


async def test_a_session_that_never_took_a_turn_hears_all_when_it_is_reopened(stage: Stage):
    async with stage.open(agent="echo") as (runtime, session):
        task = await session.spawn("muse", options=TaskOptions(wake="on_terminal", delay=3600))
        await session.close()
        await task.cancel()
        await settled(runtime)
        assert (await session.turn(), len(await session.inbox.list())) == (None, 1)
        await session.reopen()
        await until(lambda: _hears_all(session))
        turn = await session.turn()
        assert turn is not None
        assert task.id in await turn.result()


async def test_a_turn_that_is_taken_as_its_session_closes_is_finished_but_hands_nothing_off(stage: Stage):
    told: list[str] = []

    def script(turn: Turn) -> Reply:
        if turn.number == 1:
            return Reply("Hm.", calls=(Call("think", {}),))
        if turn.number == 2:
            return Reply("And now.", calls=(Call("spawn_background", {"tool": "muse"}),))
        told.extend(str(each.content) for each in turn.results)
        return Reply("Done.")

    scripted.register("closing-manager", script)
    stage.app.agent("manager", model="scripted:closing-manager", tools=["think"], delegates=True)
    async with stage.open(agent="manager") as (_, session):
        turn = await session.send("go")
        await stage.begun.wait()
        with pytest.raises(NotEnded):
            await session.close(tasks="refuse")
        assert (await session.record()).status == "active"
        await session.close()
        with pytest.raises(SessionClosed):
            await session.send("and this", steering="interrupt")
        stage.gate.set()
        assert await turn.result() == "Done."
        assert any("session_closed" in each for each in told)


async def test_closing_with_cancel_ends_the_linked_and_leaves_the_detached(stage: Stage):
    async with stage.open(agent="echo") as (_, session):
        turn = await session.send("think")
        await stage.begun.wait()
        linked = await session.spawn("muse", options=TaskOptions(delay=3600))
        detached = await session.spawn("think", options=TaskOptions(detached=True))
        await session.close()
        await session.close(tasks="cancel")
        assert await ended(turn) is State.CANCELED
        assert await ended(linked) is State.CANCELED
        stage.gate.set()
        assert await detached.result() == "thought"


async def test_the_log_tells_of_closing_once_and_a_closed_session_can_be_deleted(stage: Stage):
    async with stage.open() as (runtime, session):
        for _ in range(2):
            await session.close(tasks="refuse")
        await session.reopen()
        await session.close()
        types = []
        async for event in session.events():
            types.append(event.type)
            if len(types) == 4:
                break
        assert types == ["session.created", "session.closed", "session.reopened", "session.closed"]
        with pytest.raises(InvalidArguments):
            await session.close(tasks="kill")  # type: ignore[arg-type]  # no such way
        await session.delete()
        for act in (session.close, session.reopen):
            with pytest.raises(NotFound):
                await act()
        with pytest.raises(InvalidArguments):
            await runtime.sessions.close(5)  # type: ignore[arg-type]  # no id


async def test_nothing_is_imported_into_a_closed_session(stage: Stage):
    async with stage.open() as (runtime, session):
        task = await session.spawn("muse")
        await task.result()
        document = await task.export()
        await task.delete()
        await session.close()
        with pytest.raises(SessionClosed):
            await runtime.tasks.load(document)
        assert await session.tasks() == []
        await session.reopen()
        assert (await runtime.tasks.load(document)).id == task.id


async def settled(runtime: Runtime) -> None:
    """Wait until no follow-up is left."""

    async def is_so() -> bool:
        return not await runtime.services.views.follow_ups(1)

    await until(is_so)


async def _hears_all(session: SessionHandle) -> bool:
    return not await session.inbox.list()
