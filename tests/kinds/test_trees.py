"""Trees of agents: what goes up and down through several levels, and what becomes of them when one has answered."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from outrider import State, TaskOptions
from outrider.agents.scripted import Call, Reply, Turn
from outrider.cli.watching import tree_of
from outrider.core.queue import NO_GATES
from outrider.core.task import Task
from outrider.kinds.process import Process
from outrider.runtime.around import Around
from outrider.runtime.trees import tasks_below
from tests.kinds.stage import Stage, calls, steps, turns, until

pytestmark = pytest.mark.anyio
_AROUND = Around((), NO_GATES)


@pytest.fixture
def stage() -> Stage:
    return Stage("memory://")


def answering(answer: Reply | None = None) -> Callable[[Turn], Reply]:
    """Start a child, wait for it, and answer what it asks: with what `answer` asks for in turn, else red."""

    def script(turn: Turn) -> Reply:
        (last,) = turn.results or (None,)
        if last is None:
            return calls("spawn_agent", instructions="x", agent="child", mode="foreground")
        task = last.content["tasks"][0] if "tasks" in last.content else None
        if task is not None and "asks" in task:
            if answer is not None:
                return answer
            return calls("message_task", task_id=task["task_id"], message="red", in_reply_to=task["asks"][0]["id"])
        if task is not None:
            return Reply(f"it said {task['result']}")
        earlier = next(each.content["tasks"][0] for each in turn.earlier() if "tasks" in each.content)
        if last.tool == "ask_parent":
            reply, request = last.content["answer"], earlier["asks"][0]["id"]
            return calls("message_task", task_id=earlier["task_id"], message=reply, in_reply_to=request)
        return calls("wait_task", task_ids=[earlier["task_id"]])

    return script


async def test_a_question_goes_up_three_levels_and_its_answer_down_again(stage):
    """The one in the middle passes it on; both wait, parked, and hear of it at once."""
    middle = answering(calls("ask_parent", question="Which colour, they ask?"))

    def play(turn: Turn) -> Reply:
        if turn.number == 1:
            return calls("spawn_agent", instructions="x", agent="leaf", mode="foreground")
        return middle(turn)

    stage.agent("leaf", steps(calls("ask_parent", question="Which colour?"), Reply("I took red.")))
    stage.agent("child", play, delegates=True)
    stage.agent("boss", answering(), delegates=True)
    async with stage.open("boss") as (runtime, session):
        turn = await session.send("go")
        assert await turn.result(timeout=15) == "it said it said I took red."
        agents = await runtime.tasks.list(root_session_id=session.id, kind="subagent")
        assert [each.state for each in agents] == [State.SUCCEEDED] * 2
        assert len({each.session_id for each in agents}) == 2
        (top,) = (tree := tree_of(await runtime.sessions.tree(session.id))).children
        assert [len(top.children), len(top.children[0].children), tree.children] == [1, 1, [top]]
        first = min(agents, key=lambda each: each.id).links.child_session_id or ""
        below = await tasks_below(runtime.services.views, first)
        assert [task.id for task in below] == [max(each.id for each in agents)]
        transcripts = [session.id, *(each.links.child_session_id or "" for each in agents)]
        for each in transcripts:
            rows = await runtime.services.views.transcript(each)
            assert b"<task_wake" not in b"".join(row.message for row in rows)
        # What they heard by waiting wakes nobody, and a started agent's session takes no turns.
        assert len(await runtime.tasks.list(root_session_id=session.id, kind="turn")) == 1


async def test_several_children_ask_at_once_and_each_gets_its_own_answer(stage):
    def boss(turn: Turn) -> Reply:
        if turn.number == 1:
            return Reply(calls=tuple(Call("spawn_agent", {"instructions": each, "agent": "child"}) for each in "abc"))
        started = [each.content["task_id"] for each in turn.earlier() if each.tool == "spawn_agent"]
        started = started or [each.content["task_id"] for each in turn.results]
        asks = [task for each in turn.results for task in each.content.get("tasks", ()) if "asks" in task]
        if asks:
            return Reply(
                calls=tuple(
                    Call(
                        "message_task",
                        {"task_id": task["task_id"], "message": task["name"], "in_reply_to": task["asks"][0]["id"]},
                    )
                    for task in asks
                )
            )
        if turn.results[0].tool == "wait_task":
            return Reply(" ".join(task["result"] for task in turn.results[0].content["tasks"]))
        return calls("wait_task", task_ids=started)

    stage.agent(
        "child",
        lambda turn: (
            calls("ask_parent", question=f"{turn.prompt}?")
            if turn.number == 1
            else Reply(f"{turn.prompt}={turn.results[0].content['answer']}")
        ),
    )
    stage.agent("boss", boss, delegates=True)
    async with stage.open("boss") as (_, session):
        assert await (await session.send("go")).result(timeout=15) == "a=a b=b c=c"


async def test_a_person_may_be_first_and_the_agent_that_comes_later_is_told(stage):
    def boss(turn: Turn) -> Reply:
        reply = answering()(turn)
        if reply.calls and reply.calls[0].tool == "message_task":
            return Reply(calls=(Call("work", {"n": 1}),))
        if turn.results and turn.results[0].tool == "work":
            (task,) = turn.earlier()[0].content["tasks"]
            return calls("message_task", task_id=task["task_id"], message="red", in_reply_to=task["asks"][0]["id"])
        is_told = turn.results and turn.results[0].tool == "message_task"
        return Reply(str(turn.results[0].content)) if is_told else reply

    stage.agent("child", steps(calls("ask_parent", question="Which?"), Reply("done")))
    stage.agent("boss", boss, delegates=True, tools=["work"])
    async with stage.open("boss") as (runtime, session):
        turn = await session.send("go")
        child = await until(runtime, lambda task: bool(task.core.requests), kind="subagent")
        await until(runtime, lambda task: task.live.iterations == 1, kind="turn")
        await runtime.tasks.answer(child.id, "blue", by="ada")
        stage.gate.set()
        assert (await turn.result(timeout=10)).startswith("request_closed")
        (request,) = await runtime.tasks.requests(child.id)
        assert (request.answer, request.answered_by) == ("blue", "ada")


async def test_an_agent_gives_no_approval_in_the_place_of_a_person_and_waits_on_for_it():
    stage = Stage("memory://", foreground_wait=0.2)

    @stage.app.tool(requires_approval=True)
    async def pay(cents: int) -> str:
        return f"paid {cents}"

    def boss(turn: Turn) -> Reply:
        reply = answering()(turn)
        if turn.results and turn.results[0].tool == "message_task":
            return Reply(str(turn.results[0].content))
        return reply

    stage.agent("child", steps(calls("pay", cents=9), Reply("done")), tools=["pay"])
    stage.agent("boss", boss, delegates=True)
    async with stage.open("boss") as (runtime, session):
        assert "for a person to give" in await (await session.send("go")).result(timeout=10)
        assert stage.said["boss"][0]["timed_out"] is True
        (child,) = await runtime.tasks.list(kind="subagent")
        assert [request.kind for request in child.input_requests] == ["approval"]


async def test_a_wait_that_takes_too_long_goes_on_and_the_end_wakes_the_agent_once_whatever_it_asked_for():
    stage = Stage("memory://", foreground_wait=0.05)

    def boss(turn: Turn) -> Reply:
        if "<task_wake" in turn.prompt:
            return Reply(turn.prompt)
        if turn.number == 1:
            return calls("spawn_agent", instructions="x", agent="child", mode="foreground", wake="silent")
        return Reply("later then")

    stage.agent("child", steps(calls("work", n=1), Reply("late")), tools=["work"])
    stage.agent("boss", boss, delegates=True)
    async with stage.open("boss") as (runtime, session):
        assert await (await session.send("go")).result(timeout=10) == "later then"
        (told,) = stage.said["boss"]
        assert (told["timed_out"], told["note"]) == (True, "it goes on in the background")
        stage.gate.set()
        woken = (await turns(runtime, session, 2))[1]
        assert woken.count("<task_wake") == 1
        assert "late" in woken
        assert len(await turns(runtime, session, 2)) == 2


async def test_an_agent_hears_what_is_sent_to_it_with_its_next_model_call_and_the_sender_is_told_the_truth(stage):
    stage.app.registry.executors["process"] = _Still()

    def child(turn: Turn) -> Reply:
        return calls("work", n=1) if turn.number == 1 else Reply("done")

    def boss(turn: Turn) -> Reply:
        match turn.number:
            case 1:
                return Reply(
                    calls=(
                        Call(
                            "spawn_agent",
                            {"instructions": "x", "agent": "child", "message_schema": {"type": "integer"}},
                        ),
                        Call("spawn_background", {"tool": "drift", "wake": "silent"}),
                        Call("spawn_background", {"command": ["true"], "wake": "silent"}),
                    )
                )
            case 2:
                ids = [each.content["task_id"] for each in turn.results]
                return Reply(
                    calls=(
                        *(Call("message_task", {"task_id": each, "message": 7}) for each in ids),
                        Call("message_task", {"task_id": ids[0], "message": "seven"}),
                    )
                )
            case _:
                return Reply("sent")

    stage.agent("child", child, tools=["work"])
    stage.agent("boss", boss, delegates=True)
    async with stage.open("boss") as (runtime, session):
        await (await session.send("go")).result(timeout=10)
        sent = stage.said["boss"][3:]
        assert [each["delivered"] for each in sent[:3]] in (["later", "yes", "no"], ["later", "later", "no"])
        assert "message_schema" in str(sent[3])
        stage.gate.set()
        task = await until(runtime, lambda each: each.is_terminal, kind="subagent")
        assert [each.parts[0]["data"] for each in await runtime.tasks.messages(task.id)] == [7]
        rows = await runtime.services.views.transcript(task.live.links.child_session_id or "")
        heard = [row.message.decode() for row in rows if b'"data' in row.message]
        assert len(heard) == 1
        for each in await session.tasks(states=(State.RUNNING, State.QUEUED)):
            await runtime.tasks.cancel(each.id)


class _Still(Process):
    """Commands that nobody runs."""

    def routes(self) -> list[str]:
        return []


async def test_an_agent_that_has_answered_waits_for_what_it_started_and_hears_of_it_or_as_it_was_told(stage):
    script = steps(calls("spawn_background", tool="work", arguments={"n": 1}), Reply("answered"))
    stage.agent("child", script, delegates=True)
    ways = ("wait", "cancel", "detach")
    stage.agent(
        "boss",
        steps(
            Reply(
                calls=tuple(
                    Call(
                        "spawn_agent",
                        {"instructions": way, "agent": "child", "on_open_children": way, "name": way, "wake": "silent"},
                    )
                    for way in ways
                )
            ),
            Reply("started"),
        ),
        delegates=True,
    )
    async with stage.open("boss") as (runtime, session):
        await (await session.send("go")).result(timeout=10)
        waiting = await until(runtime, lambda task: bool(task.core.waits) and task.input.display_name == "wait")
        record = await runtime.tasks.record(waiting.id)
        assert (record.state, record.phase, record.iterations) == (State.RUNNING, "waiting", 2)
        for way, ends in (("cancel", State.CANCELED), ("detach", State.RUNNING)):
            agent = await until(runtime, partial(_has_succeeded, way))
            (child,) = await runtime.tasks.list(parent_task_id=agent.id)
            assert child.state is ends
        stage.gate.set()
        ended = await until(runtime, lambda task: task.id == waiting.id and task.state is State.SUCCEEDED)
        assert (ended.live.iterations, ended.outcome.summary) == (3, "answered")


def _has_succeeded(name: str, task: Task) -> bool:
    return task.state is State.SUCCEEDED and task.input.display_name == name


async def test_a_turn_that_is_interrupted_or_ends_leaves_what_it_started_alone(stage):
    def boss(turn: Turn) -> Reply:
        if turn.prompt == "stop":
            return Reply("stopped")
        return (
            Reply(calls=(Call("spawn_background", {"tool": "drift", "wake": "silent"}),))
            if turn.number == 1
            else calls("work", n=1)
        )

    stage.agent("boss", boss, delegates=True, tools=["work"])
    async with stage.open("boss") as (runtime, session):
        turn = await session.send("go")
        await until(runtime, lambda task: task.live.iterations == 1, kind="turn")
        await session.send("stop", steering="interrupt")
        await until(runtime, lambda task: task.state is State.SUCCEEDED, kind="turn")
        assert (await turn.record()).state is State.CANCELED
        (drifting,) = await runtime.tasks.list(kind="background_tool")
        assert drifting.state is State.RUNNING
        await runtime.tasks.cancel(drifting.id)


async def test_a_storm_of_starts_stops_at_the_limit_of_the_tree():
    stage = Stage("memory://", live=3)
    many = tuple(Call("spawn_background", {"tool": "drift", "wake": "silent"}) for _ in range(9))
    stage.agent("boss", steps(Reply(calls=many), Reply("done")), delegates=True)
    async with stage.open("boss") as (runtime, session):
        await (await session.send("go")).result(timeout=10)
        drifting = await runtime.tasks.list(kind="background_tool")
        assert len(drifting) == 3
        assert sum("limit_reached" in str(told) for told in stage.said["boss"]) == 6
        await runtime.tasks.cancel_many([each.id for each in drifting])


async def test_agents_that_start_each_other_come_to_an_end(stage):
    def script(other: str) -> Callable[[Turn], Reply]:
        return steps(calls("spawn_agent", instructions="go", agent=other, mode="foreground"), Reply(f"not {other}"))

    stage.agent("ping", script("pong"), delegates=True)
    stage.agent("pong", script("ping"), delegates=True)
    async with stage.open("ping") as (runtime, session):
        assert await (await session.send("go")).result(timeout=10) == "not pong"
        assert len(await runtime.tasks.list(kind="subagent")) == 2
        assert "2 deep" in str(stage.said["ping"])


async def test_a_graph_is_started_by_an_agent_and_given_no_tools_to_report_with(stage):
    graph_state = pytest.importorskip("langgraph.graph")

    def reply(state: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [{"role": "assistant", "content": "drawn"}]}

    graph = graph_state.StateGraph(graph_state.MessagesState)
    graph.add_node("reply", reply)
    graph.add_edge(graph_state.START, "reply")
    stage.app.agent("graph", graph.compile())
    stage.agent(
        "boss",
        steps(calls("spawn_agent", instructions="x", agent="graph", mode="foreground"), Reply("ok")),
        delegates=True,
    )
    async with stage.open("boss") as (_, session):
        await (await session.send("go")).result(timeout=20)
        (told,) = stage.said["boss"]
        assert told["tasks"][0]["result"] == "drawn"


async def test_an_agent_that_is_parked_for_a_silent_child_hears_its_question_and_no_other_news():
    stage = Stage("memory://")
    stage.agent("child", steps(calls("work", n=1), calls("ask_parent", question="Which?"), Reply("so")), tools=["work"])

    def boss(turn: Turn) -> Reply:
        match turn.number:
            case 1:
                return calls("spawn_agent", instructions="x", agent="child", wake="silent")
            case 2:
                return calls("wait_task", task_ids=[turn.results[0].content["task_id"]])
        return Reply(str(turn.results[-1].content))

    stage.agent("boss", boss, delegates=True)
    async with stage.open("boss") as (runtime, session):
        turn = await session.send("go")
        await until(runtime, lambda task: bool(task.core.waits), kind="turn")
        news = await session.create("external", {"name": "news"}, options=TaskOptions(wake="on_terminal"))
        await news.cancel()
        await until(runtime, lambda task: task.core.rung > 0, kind="turn")
        stage.gate.set()
        told = await turn.result(timeout=10)
        assert "'prompt': 'Which?'" in told
        assert "'timed_out': False" in told
        assert [attempt.ending for attempt in await turn.attempts()] == ["parked", "succeeded"]
