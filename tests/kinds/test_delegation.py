"""Delegation: an agent hands work off, is told of it, steers it, answers it; and what it may not do."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from outrider import State, TaskContext, TaskHandle, TaskOptions
from outrider.agents import delegation
from outrider.agents.scripted import Call, Reply, Turn
from tests.facts import until
from tests.kinds.stage import Stage, calls, steps, turns

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/work.db"


@pytest.fixture
def stage(url: str) -> Stage:
    return Stage(url)


async def test_an_agent_hands_a_tool_off_walks_away_and_is_woken_by_its_end(stage: Stage):
    def script(turn: Turn) -> Reply:
        if "<task_wake" in turn.prompt:
            return Reply(f"woken: {turn.prompt}")
        return calls("spawn_background", tool="work", arguments={"n": 3}) if turn.number == 1 else Reply("started")

    stage.agent("boss", script, delegates=True)
    async with stage.open("boss") as (runtime, session):
        first = await session.send("go")
        assert await first.result() == "started"
        (started,) = stage.said["boss"]
        (task,) = [each for each in await session.tasks() if each.kind == "background_tool"]
        assert started["task_id"] == task.id
        assert task.origin["task_id"] == first.id
        stage.gate.set()
        (last,) = (await turns(runtime, session, 2))[1:]
        assert last.startswith(f'woken: <task_wake task="{task.id}"')
        assert "did 3" in last


async def test_a_child_s_question_wakes_its_parent_whose_answer_it_gets(stage: Stage):
    stage.agent(
        "child",
        steps(
            calls("work", n=1),
            calls("ask_parent", question="Which colour?", expected={"enum": ["red", "blue"]}),
            Reply("I took it."),
        ),
        tools=["work"],
    )

    def boss(turn: Turn) -> Reply:
        asked = re.search(r'task="(task_\w+)" reason="question".*request_id=\'(\w+)\'', turn.prompt)
        if asked is not None:
            answer = {"task_id": asked[1], "message": "red", "in_reply_to": asked[2]}
            return Reply(calls=(Call("message_task", answer),)) if turn.number == 1 else Reply("answered")
        if "<task_wake" in turn.prompt:
            return Reply("it has ended")
        return calls("spawn_agent", instructions="Choose.", agent="child") if turn.number == 1 else Reply("started")

    stage.agent("boss", boss, delegates=True)
    async with stage.open("boss") as (runtime, session):
        assert await (await session.send("go")).result() == "started"
        (child,) = [task for task in await session.tasks() if task.kind == "subagent"]
        stage.gate.set()  # else the agent might hear of the question while it is saying that
        assert await (await runtime.task(child.id)).result(timeout=15) == "I took it."
        assert stage.said["child"] == ["did 1", {"answer": "red"}]
        (request,) = await (await runtime.task(child.id)).requests()
        assert request.answered_by == "agent"


async def test_an_agent_that_waits_for_what_it_started_gets_the_results_and_holds_no_worker(stage: Stage):
    def script(turn: Turn) -> Reply:
        match turn.number:
            case 1:
                return Reply(calls=tuple(Call("spawn_agent", _child(n)) for n in range(3)))
            case 2:
                ids = [result.content["task_id"] for result in turn.results]
                return calls("wait_task", task_ids=ids)
            case _:
                return Reply("all done")

    def _child(n: int) -> dict[str, Any]:
        return {"instructions": f"count {n}", "agent": "child", "wake": "silent"}

    stage.agent("child", lambda turn: Reply(f"{turn.prompt}!", delay=0.2))
    stage.agent("boss", script, delegates=True)
    async with stage.open("boss") as (_, session):
        turn = await session.send("go")
        assert await turn.result() == "all done"
        waited = stage.said["boss"][-1]
        assert waited["timed_out"] is False
        assert [task["result"] for task in waited["tasks"]] == ["count 0!", "count 1!", "count 2!"]
        assert [attempt.ending for attempt in await turn.attempts()] == ["parked", "succeeded"]


async def test_a_foreground_agent_brings_its_result_and_one_that_takes_too_long_goes_on(stage: Stage):
    stage.agent("child", lambda turn: Reply("child's answer"))
    stage.agent(
        "boss",
        steps(
            calls("spawn_agent", instructions="x", agent="child", mode="foreground", budget={"requests": "many"}),
            calls("spawn_agent", instructions="x", agent="child", mode="foreground", budget={"requests": 2}),
            Reply("ok"),
        ),
        delegates=True,
    )
    async with stage.open("boss") as (_, session):
        await (await session.send("go")).result()
        refused, brought = stage.said["boss"]
        assert "requests" in str(refused)
        assert brought["tasks"][0]["result"] == "child's answer"
        (child,) = [task for task in await session.tasks() if task.kind == "subagent"]
        assert child.budget == {"requests": 2}


async def test_what_an_agent_has_heard_by_waiting_wakes_it_no_more_and_no_model_call_is_made_again(stage: Stage):
    asked: list[int] = []
    wait = steps(calls("spawn_agent", instructions="x", agent="child", mode="foreground"), Reply("ok"))

    def boss(turn: Turn) -> Reply:
        asked.append(turn.number)
        return wait(turn)

    stage.agent("child", steps(calls("work", n=1), Reply("late")), tools=["work"])
    stage.agent("boss", boss, delegates=True)
    async with stage.open("boss") as (runtime, session):
        turn = await session.send("go")
        await until(lambda: _is_parked(turn, asked))
        stage.gate.set()
        assert await turn.result(timeout=15) == "ok"
        assert asked == [1, 2]
        assert [attempt.ending for attempt in await turn.attempts()] == ["parked", "succeeded"]
        assert b"<task_wake" not in b"".join(row.message for row in await runtime.services.views.transcript(session.id))
        assert await session.inbox.list() == []


async def _is_parked(turn: TaskHandle, asked: list[int]) -> bool:
    return bool(asked) and (await turn.record()).worker_id is None


async def test_a_result_is_reported_once_and_has_to_fit(stage: Stage):
    stage.agent(
        "child",
        steps(
            calls("report_result", result={"n": "three"}),
            calls("report_result", result={"n": 3}),
            calls("report_result", result={"n": 4}),
            Reply(result={"n": 5}),
        ),
    )
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    stage.agent(
        "boss",
        steps(
            calls("spawn_agent", instructions="x", agent="child", mode="foreground", result_schema=schema), Reply("ok")
        ),
        delegates=True,
    )
    async with stage.open("boss") as (_, session):
        await (await session.send("go")).result()
        (brought,) = stage.said["boss"]
        assert brought["tasks"][0]["result"] == {"n": 3}
        assert stage.said["child"][-2] == {"accepted": True}
        assert "limit_reached" in str(stage.said["child"][-1])


async def test_an_agent_lists_looks_at_and_cancels_what_it_started(stage: Stage):
    def script(turn: Turn) -> Reply:
        ids = [result.content["task_id"] for result in turn.earlier() if result.tool == "spawn_background"]
        match turn.number:
            case 1:
                return calls("spawn_background", tool="drift", title="adrift", wake="silent")
            case 2:
                return calls("list_tasks", state="running")
            case 3:
                return calls("get_task", task_id=ids[0])
            case 4:
                return calls("cancel_task", task_id=ids[0], reason="enough")
            case 5:
                return calls("wait_task", task_ids=ids)
            case _:
                return Reply("done")

    stage.agent("boss", script, delegates=True)
    async with stage.open("boss") as (_, session):
        await (await session.send("go")).result()
        started, listed, looked, canceled, waited = stage.said["boss"]
        assert [task["name"] for task in listed] == ["adrift"]
        assert (looked["task_id"], looked["output"], looked["asks"]) == (started["task_id"], "", [])
        assert canceled["task_id"] == started["task_id"]
        assert [task["state"] for task in waited["tasks"]] == ["canceled"]


async def test_an_agent_lists_what_it_started_however_many_turns_it_has_taken_since(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(delegation, "ROWS", 3)
    stage = Stage("memory://")

    def script(turn: Turn) -> Reply:
        match (turn.prompt, turn.number):
            case ("start", 1):
                return calls("spawn_background", tool="drift", title="adrift", wake="silent")
            case ("list", 1):
                return calls("list_tasks")
            case _:
                return Reply("hm")

    stage.agent("boss", script, delegates=True)
    async with stage.open("boss") as (_, session):
        for word in ("start", "hm", "hm", "hm", "list"):
            await (await session.send(word)).result()
        assert [task["name"] for task in stage.said["boss"][-1]] == ["adrift"]


async def test_an_agent_sees_the_newest_of_a_long_thread_and_however_much_is_told_it_does_not_fail():
    stage = Stage("memory://", live=50)

    @stage.app.tool
    async def talk(task: TaskContext, posts: int) -> dict[str, str]:
        for n in range(posts):
            await task.post(f"{n} " + "m" * 40_000, name=str(n))
        return {"long": "r" * 60_000}

    def script(turn: Turn) -> Reply:
        match turn.number:
            case 1:
                start = {"tool": "talk", "wake": "silent"}
                posts = [{"posts": 22}, *[{"posts": 0}] * 17]
                return Reply(calls=tuple(Call("spawn_background", {**start, "arguments": each}) for each in posts))
            case 2:
                return calls("wait_task", task_ids=[each.content["task_id"] for each in turn.results])
            case 3:
                return calls("get_task", task_id=turn.results[0].content["tasks"][0]["task_id"])
            case _:
                return Reply("done")

    stage.agent("boss", script, delegates=True)
    async with stage.open("boss") as (_, session):
        assert await (await session.send("go")).result(timeout=15) == "done"
        waited, looked = stage.said["boss"][-2:]
        assert len(waited["tasks"]) == 18
        assert all('{"long":"rrr' in task["result"] and "cut here" in task["result"] for task in waited["tasks"])
        assert "21 m" in str(looked["messages"][-1]["parts"])
        assert len(looked["messages"]) == 20


async def test_what_goes_too_far_or_makes_no_sense_is_refused_and_told_to_the_model(url: str):
    stage = Stage(url, depth=1, live=2)

    def script(turn: Turn) -> Reply:
        match turn.number:
            case 1:
                return Reply(calls=tuple(Call("spawn_background", {"tool": "drift", "wake": "silent"}) for _ in "ab"))
            case 2:
                return calls("spawn_background", tool="drift")
            case 3:
                return calls("get_task", task_id="task_of_somebody_else")
            case 4:
                return calls("spawn_background", tool="work", command=["true"])
            case 5:
                return calls("spawn_agent", instructions="x", agent="nobody")
            case _:
                return Reply("done")

    stage.agent("boss", script, delegates=True)
    async with stage.open("boss") as (runtime, session):
        other = await runtime.sessions.create()
        stage.gate.set()
        await other.spawn("work", n=1, options=TaskOptions(id="task_of_somebody_else"))
        assert await (await session.send("go")).result() == "done"
        told = [str(content) for content in stage.said["boss"][2:]]
        for word, content in zip(("limit_reached", "not_found", "name a tool", "nobody"), told, strict=True):
            assert word in content.lower() or word in content, (word, content)
        assert len([task for task in await session.tasks() if task.kind != "turn"]) == 2
        for task in await session.tasks(states=(State.RUNNING, State.QUEUED)):
            await runtime.tasks.cancel(task.id)


async def test_agents_start_no_agents_deeper_than_they_may(url: str):
    stage = Stage(url, depth=2)
    script = steps(calls("spawn_agent", instructions="deeper", mode="foreground"), Reply("ok"))
    stage.agent("boss", script, delegates=True)
    async with stage.open("boss") as (_, session):
        await (await session.send("go")).result()
        assert [str(content) for content in stage.said["boss"] if "2 deep" in str(content)]
        assert len([content for content in stage.said["boss"] if "tasks" in str(content)]) == 2


async def test_a_canceled_agent_takes_what_it_started_with_it(stage: Stage):
    stage.agent(
        "child",
        steps(calls("spawn_background", tool="drift"), calls("wait_task", task_ids=["?"]), Reply("never")),
        delegates=True,
    )

    def boss(turn: Turn) -> Reply:
        return calls("spawn_agent", instructions="x", agent="child") if turn.number == 1 else Reply("started")

    stage.agent("boss", boss, delegates=True)
    async with stage.open("boss") as (runtime, session):
        await (await session.send("go")).result()
        deep: list[Any] = []
        async with asyncio.timeout(10):
            while not deep:
                await asyncio.sleep(0.01)
                deep = await runtime.tasks.list(kind="background_tool", states=(State.RUNNING,))
        (child,) = [task for task in await session.tasks() if task.kind == "subagent"]
        receipt = await runtime.tasks.cancel(child.id, wait=5.0)
        assert set(receipt.states) == {child.id, deep[0].id}
        assert {str(state) for state in receipt.states.values()} == {"canceled"}
