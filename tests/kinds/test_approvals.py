"""Approvals of what agents do: whom they bind to what, how long they hold, and that nothing leads around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from outrider import Outrider, Runtime, SessionHandle, State, TaskContext, TaskOptions, WorkerSettings
from outrider.agents import scripted
from outrider.agents.delegation import REPORTED
from outrider.agents.function import AgentContext
from outrider.agents.scripted import Call, Reply, Turn
from outrider.core.errors import Superseded
from outrider.core.task import InputRequest, Task
from tests.facts import until

pytestmark = pytest.mark.anyio

Script = Callable[[Turn], Reply]


class Office:
    """An app with a tool that asks before it pays, and agents that play scripts."""

    def __init__(self) -> None:
        self.app = Outrider(WorkerSettings(park_grace=0.0))
        self.paid: list[int] = []
        self.said: list[Any] = []

        @self.app.tool(requires_approval=True)
        async def pay(cents: int) -> str:
            """Pay."""
            self.paid.append(cents)
            return f"paid {cents}"

        @self.app.tool
        async def look(at: str) -> str:
            """Look."""
            return at

    def agent(self, name: str, *replies: Reply, **more: Any) -> None:
        def play(turn: Turn) -> Reply:
            self.said.extend(result.content for result in turn.results)
            return replies[min(turn.number, len(replies)) - 1]

        scripted.register(name, play)
        self.app.agent(name, model=f"scripted:{name}", **{"delegates": True, **more})

    @asynccontextmanager
    async def open(self, agent: str | None = "clerk") -> AsyncIterator[tuple[Runtime, SessionHandle]]:
        async with self.app.open("memory://") as runtime:
            yield runtime, await runtime.sessions.create(agent=agent)


@pytest.fixture
def office() -> Office:
    return Office()


def calls(tool: str, /, **arguments: Any) -> Reply:
    return Reply(calls=(Call(tool, arguments),))


def spawns(tool: str, /, **arguments: Any) -> Reply:
    return calls("spawn_background", tool=tool, arguments=arguments)


async def asked(runtime: Runtime, task_id: str, count: int = 1) -> tuple[InputRequest, ...]:
    """The questions that a task has open, once there are so many and nobody holds it."""
    async with asyncio.timeout(10):
        while True:
            task: Task = await runtime.tasks.get(task_id)
            if len(task.core.requests) == count and not task.core.is_held:
                return task.core.requests
            await asyncio.sleep(0.005)


async def below(runtime: Runtime, task_id: str) -> list[Any]:
    """The children of a task, once it has some."""
    async with asyncio.timeout(10):
        while True:
            if children := await runtime.tasks.list(parent_task_id=task_id):
                return children
            await asyncio.sleep(0.005)


async def background(session: SessionHandle) -> list[Any]:
    return [task for task in await session.tasks() if task.kind == "background_tool"]


async def test_a_tool_that_needs_an_approval_asks_before_it_detaches_and_runs_as_the_approver_has_it(office):
    office.agent("clerk", spawns("pay", cents=900), Reply("started"))
    async with office.open() as (runtime, session):
        turn = await session.send("pay")
        (request,) = await asked(runtime, turn.id)
        assert request.kind == "approval"
        assert (request.details["tool"], request.details["arguments"]) == ("pay", {"cents": 900})
        assert await background(session) == []
        assert request.expected is not None
        expected = request.expected["anyOf"][1]["properties"]["arguments"]
        assert (expected["required"], expected["additionalProperties"]) == (["cents"], False)
        await turn.answer({"approved": True, "arguments": {"cents": 9}}, by="ada")
        assert await turn.result(timeout=10) == "started"
        (task,) = await background(session)
        assert await (await runtime.task(task.id)).result(timeout=10) == "paid 9"
        assert office.paid == [9]
        (closed,) = await turn.requests()
        assert (closed.answered_by, closed.closed_at is not None) == ("ada", True)


@pytest.mark.parametrize(("earlier", "id"), [("other", "model"), ("other", "1/model"), ("x/a", "a"), ("a#2", "a")])
async def test_no_id_that_a_provider_gives_to_a_call_passes_for_one_that_was_made(office, earlier, id):
    office.agent("hasty", Reply(calls=(Call("look", {"at": "it"}, earlier), Call("pay", {"cents": 1}, id))))
    async with office.open(None) as (runtime, session):
        task = await session.spawn_agent("go", agent="hasty", tools=["look", "pay"])
        await asked(runtime, task.id)
        assert office.paid == []


async def test_a_tool_that_was_approved_may_name_a_step_as_it_likes(office):
    @office.app.tool(requires_approval=True)
    async def publish(task: TaskContext) -> str:
        return await task.step("approve", lambda: "published")

    office.agent("clerk", calls("publish"), Reply("ok"))
    async with office.open(None) as (runtime, session):
        task = await session.spawn_agent("go", agent="clerk", tools=["publish"])
        await asked(runtime, task.id)
        await task.answer(True)
        assert await task.result(timeout=10) == "ok"
        assert office.said == ["published"]


async def test_an_agent_learns_nothing_of_what_a_task_of_others_asks(office):
    office.agent("payer", calls("pay", cents=1), tools=["pay"])
    async with office.open(None) as (runtime, session):
        (request,) = await asked(runtime, (await session.spawn_agent("go", agent="payer")).id)

        def nosy(turn: Turn) -> Reply:
            match turn.number:
                case 1:
                    return spawns("look", at="it")
                case 2:
                    task_id = turn.results[0].content["task_id"]
                    return calls("message_task", task_id=task_id, message=True, in_reply_to=request.id)
                case _:
                    return Reply(str(turn.results[0].content))

        scripted.register("nosy", nosy)
        office.app.agent("nosy", model="scripted:nosy", delegates=True)
        other = await runtime.sessions.create(agent="nosy")
        answer = await (await other.send("go")).result(timeout=10)
        assert f"there is no request '{request.id}'" in answer


async def test_a_denied_start_is_told_to_the_model_and_makes_no_task(office):
    office.agent("clerk", spawns("pay", cents=900), Reply("all right"))
    async with office.open() as (runtime, session):
        turn = await session.send("pay")
        await asked(runtime, turn.id)
        await turn.answer({"approved": False, "reason": "too much"})
        assert await turn.result(timeout=10) == "all right"
        assert office.said == ["pay was not started, the call was denied: too much"]
        assert await background(session) == []


async def test_what_an_agent_must_ask_for_it_cannot_have_done_unasked_in_the_background(office):
    office.agent("clerk", spawns("look", at="till"), Reply("done"), tools=["look"], require_approval=["look"])
    async with office.open() as (runtime, session):
        turn = await session.send("look")
        (request,) = await asked(runtime, turn.id)
        assert request.details["tool"] == "look"
        await turn.answer(False)
        await turn.result(timeout=10)
        assert await background(session) == []


async def test_a_tool_that_an_agent_only_starts_can_be_named_and_starting_itself_can(office):
    """A person who was asked about the call that starts a tool is not asked about the tool again."""
    office.agent(
        "clerk", spawns("look", at="till"), spawns("pay", cents=5), Reply("done"), require_approval=["spawn_background"]
    )
    office.agent("other", spawns("look", at="till"), Reply("done"), require_approval=["look"])
    async with office.open() as (runtime, session):
        turn = await session.send("look")
        for _ in "ab":
            (request,) = await asked(runtime, turn.id)
            assert request.details["tool"] == "spawn_background"
            await turn.answer(True)
        assert await turn.result(timeout=10) == "done"
        assert len(await background(session)) == 2
        other = await (await runtime.sessions.create(agent="other")).send("look")
        (request,) = await asked(runtime, other.id)
        assert request.details["tool"] == "look"


async def test_an_agent_like_itself_has_to_ask_for_what_the_task_has_to(office):
    office.agent("clerk", Reply(""))

    def play(turn: Turn) -> Reply:
        if turn.prompt == "look":
            return calls("look", at="till") if turn.number == 1 else Reply("looked")
        return calls("spawn_agent", instructions="look") if turn.number == 1 else Reply("started")

    scripted.register("clerk", play)
    async with office.open(None) as (runtime, session):
        task = await session.spawn_agent("go", agent="clerk", tools=["look"], require_approval=["look"])
        (child,) = await below(runtime, task.id)
        (request,) = await asked(runtime, child.id)
        assert request.details["tool"] == "look"
        await runtime.tasks.answer(child.id, True)
        assert await task.result(timeout=10) == "started"


async def test_several_approvals_pend_at_once_and_each_is_answered_by_itself(office):
    both = tuple(Call("spawn_background", {"tool": "pay", "arguments": {"cents": n}}) for n in (1, 2))
    office.agent("clerk", Reply(calls=both), Reply("done"))
    async with office.open() as (runtime, session):
        turn = await session.send("pay")
        requests = await asked(runtime, turn.id, 2)
        by_cents = {each.details["arguments"]["cents"]: each.id for each in requests}
        await turn.answer(False, request_id=by_cents[1])
        await turn.answer(True, request_id=by_cents[2])
        await turn.result(timeout=10)
        (task,) = await background(session)
        assert task.spec["arguments"] == {"cents": 2}


async def test_an_approval_that_has_grown_old_before_the_call_was_made_is_asked_for_again(office):
    office.app.settings = replace(office.app.settings, approval_valid=0.0)
    office.agent("clerk", calls("pay", cents=3), Reply("done"), tools=["pay"])
    async with office.open() as (runtime, session):
        turn = await session.send("pay")
        await asked(runtime, turn.id)
        await turn.answer(True)
        await asked(runtime, turn.id)
        assert [each.status for each in await turn.requests()] == ["answered", "pending"]
        assert office.paid == []
        await turn.answer(False)  # a denial grows not old
        await turn.result(timeout=10)
        assert office.paid == []


async def test_always_lets_further_calls_of_a_session_through_and_of_the_tree_below_it_until_it_is_taken_back(office):
    office.agent("child", calls("pay", cents=3), Reply("paid"), tools=["pay"])

    def play(turn: Turn) -> Reply:
        if turn.number > 1:
            return Reply("done")
        return (
            calls("spawn_agent", instructions="x", agent="child", mode="foreground")
            if turn.prompt == "child"
            else (spawns("pay", cents=1) if turn.prompt == "spawn" else calls("pay", cents=2))
        )

    office.agent("clerk", Reply(""), tools=["pay"])
    scripted.register("clerk", play)
    async with office.open() as (runtime, session):
        first = await session.send("call")
        await asked(runtime, first.id)
        await first.answer({"approved": True, "always": True}, by="ada", via="desk")
        await first.result(timeout=10)
        (grant,) = await session.grants()
        assert (grant.tool, grant.by, grant.via, grant.task_id) == ("pay", "ada", "desk", first.id)
        for way in ("call", "spawn", "child"):
            assert await (await session.send(way)).result(timeout=10) == "done"
        await until(lambda: len(office.paid) == 4)  # one of them is paid in the background
        assert await session.revoke("pay") is True
        assert (await session.revoke("pay"), await session.grants()) == (False, [])
        again = await session.send("call")
        await asked(runtime, again.id)
        await again.answer(False)
        await again.result(timeout=10)
        assert len(office.paid) == 4


async def test_what_one_agent_was_always_granted_in_a_session_of_its_own_holds_nowhere_else(office):
    office.agent("child", calls("pay", cents=3), Reply("paid"), tools=["pay"])
    async with office.open(None) as (runtime, session):
        for _ in "ab":
            task = await session.spawn_agent("x", agent="child")
            await asked(runtime, task.id)
            await task.answer({"approved": True, "always": True})
            await task.result(timeout=10)
        assert await session.grants() == []


async def test_what_is_put_in_place_of_the_arguments_of_an_agent_s_own_tool_is_held_against_no_tool_of_its_name(office):
    async def clerk(ctx: AgentContext) -> Any:
        return (await ctx.approve("pay", {"amount": 1})).arguments

    office.app.agent("clerk", clerk)
    async with office.open(None) as (runtime, session):
        task = await session.spawn_agent("pay", agent="clerk")
        await asked(runtime, task.id)
        await task.answer({"approved": True, "arguments": {"amount": 2}})
        assert await task.result(timeout=10) == {"amount": 2}


async def test_an_approval_is_for_the_very_arguments_that_it_was_asked_for(office):
    """The agent's code comes to the same call with others by then."""
    cents = [1]

    async def clerk(ctx: AgentContext) -> Any:
        return await ctx.call("pay", {"cents": cents[0]})

    office.app.agent("clerk", clerk, tools=["pay"])
    async with office.open(None) as (runtime, session):
        task = await session.spawn_agent("pay", agent="clerk")
        await asked(runtime, task.id)
        cents[0] = 1000
        await task.answer(True)
        (request,) = await asked(runtime, task.id)
        assert request.details["arguments"] == {"cents": 1000}
        await task.answer({"approved": True, "arguments": {"cents": 2}})
        assert await task.result(timeout=10) == "paid 2"


async def test_whoever_may_approve_is_reminded_before_it_is_too_late_and_the_model_told_that_it_was(office):
    office.app.settings = replace(office.app.settings, approval_deadline=0.3, approval_nudge=0.25)
    office.agent("clerk", calls("pay", cents=3), Reply("done"), tools=["pay"])
    async with office.open(None) as (runtime, session):
        task = await session.spawn_agent("pay", agent="clerk", options=TaskOptions(wake="on_terminal"))
        reasons: set[str] = set()
        async with asyncio.timeout(10):
            while (await runtime.tasks.get(task.id)).core.requests or not reasons:
                reasons |= {entry.reason for entry in await session.inbox.list()}
                await asyncio.sleep(0.01)
        assert "reminder" in reasons
        await task.result(timeout=10)
        assert office.said == ["The tool call was denied: nobody answered in time"]
        (request,) = await task.requests()
        assert (request.status, request.answered_by) == ("expired", "policy")


async def test_a_result_is_not_reported_any_more_once_the_task_has_ended(office):
    """It was canceled by force, and its code does not know yet."""
    begun, gate, refused = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @office.app.tool
    async def dawdle(task: TaskContext) -> None:
        begun.set()
        while not gate.is_set():
            with suppress(asyncio.CancelledError):
                await gate.wait()
        try:
            await task.write_own(REPORTED, "report", b"[]")
        except Superseded:
            refused.set()
            raise

    office.agent("child", calls("dawdle"), Reply("done"), tools=["dawdle"])
    async with office.open(None) as (_, session):
        task = await session.spawn_agent("x", agent="child")
        async with asyncio.timeout(10):
            await begun.wait()
        await task.cancel(grace=0.05, wait=5)
        assert (await task.record()).state is State.CANCELED
        gate.set()
        async with asyncio.timeout(10):
            await refused.wait()
        assert [step.position for step in await task.steps() if step.position == REPORTED] == []
