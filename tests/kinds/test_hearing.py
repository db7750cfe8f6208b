"""What an agent is told at the edges of what it does: as it ends, has waited, has answered, or is taken up again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

from outrider import Outrider, Runtime, TaskContext, TaskOptions, WorkerSettings
from outrider.agents import scripted
from outrider.agents.function import AgentContext
from outrider.agents.scripted import Call, Reply, Turn
from outrider.core.change import Page
from outrider.core.errors import IllegalMove, InvalidAnswer, InvalidArguments
from outrider.runtime import context
from outrider.settings import DelegationLimits
from tests.facts import until

pytestmark = pytest.mark.anyio

PATIENCE = 20.0


def an_app(**settings: Any) -> Outrider:
    return Outrider(WorkerSettings(park_grace=0.02, **settings))


async def test_a_last_page_that_a_stop_meets_on_its_way_is_written_once(monkeypatch, tmp_path):
    app, stops = an_app(), iter([True])
    scripted.register("long-winded", lambda _: Reply("x" * 80_000))
    app.agent("long-winded", model="scripted:long-winded")
    append = context.TaskContext._append

    async def stopped(self: TaskContext, page: Page) -> None:
        if any(step.position == "outcome!" for step in page.steps) and next(stops, False):
            asyncio.get_running_loop().call_soon(self._attempt.give_back)  # as a drain does
        await append(self, page)

    monkeypatch.setattr(context.TaskContext, "_append", stopped)
    async with app.open(f"sqlite:///{tmp_path / 'work.db'}") as outrider:
        session = await outrider.sessions.create(agent="long-winded")
        turn = await session.send("Go.")
        assert len(await turn.result(timeout=PATIENCE)) > 60_000
        rows = await outrider.services.views.transcript(session.id)
        assert [row.iteration for row in rows] == [0, 1]
        assert len(await turn.attempts()) == 2


async def test_totals_are_not_ahead_of_the_transcript_while_the_last_page_waits_to_be_written():
    app = an_app(progress_interval=0.0)
    seen: list[int] = []

    @app.tool
    async def watch(task: TaskContext) -> str:
        async def watcher() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                for n in range(3):
                    task.progress(n, 3)
                    await asyncio.sleep(0.02)
                    seen.append((await outrider.tasks.get(task.id)).live.iterations)

        watchers.append(asyncio.create_task(watcher()))
        await asyncio.sleep(0)
        return "started"

    watchers: list[asyncio.Task[None]] = []
    scripted.register("watchful", scripted.replies(Reply(calls=(Call("watch", {}),)), Reply("the answer")))
    app.agent("watchful", model="scripted:watchful", tools=["watch"])
    async with app.open("memory://") as outrider:
        session = await outrider.sessions.create(agent="watchful")
        turn = await session.send("Go.")
        assert await turn.result(timeout=PATIENCE) == "the answer"
        assert set(seen) == {1}
        assert (await turn.record()).iterations == 2


async def test_a_word_behind_more_ends_than_a_prompt_holds_is_heard_though_all_of_those_were_waited_for():
    app = an_app(delegation=DelegationLimits(live=60))
    has_waited, may_go_on = asyncio.Event(), asyncio.Event()
    heard: list[str | None] = []

    @app.tool
    async def work(n: int) -> str:
        return "y" * 2048

    async def agent(ctx: AgentContext) -> str:
        started = [
            await ctx.call("spawn_background", {"tool": "work", "arguments": {"n": n}}, id=f"start {n}")
            for n in range(40)
        ]
        ids = [each["task_id"] for each in started if isinstance(each, dict)]
        await ctx.call("wait_task", {"task_ids": ids}, id="wait")
        has_waited.set()
        await may_go_on.wait()
        heard.append(await ctx.news())
        return "done"

    app.agent("waiting", agent=agent, delegates=True)
    async with app.open("memory://") as outrider:
        session = await outrider.sessions.create(agent="waiting")
        turn = await session.send("Go.")
        await asyncio.wait_for(has_waited.wait(), PATIENCE)
        await session.send("Is anybody there?")
        may_go_on.set()
        assert await turn.result(timeout=PATIENCE) == "done"
        assert heard == ["Is anybody there?"]
        assert await session.inbox.list() == []


@pytest.mark.parametrize("wake", ["silent", "on_terminal"])
async def test_a_message_reaches_an_agent_that_has_answered_and_waits_for_what_it_started(wake):
    app, gate = an_app(), asyncio.Event()
    told: list[str] = []

    @app.tool
    async def slow() -> str:
        await gate.wait()
        return "done"

    def play(turn: Turn) -> Reply:
        told.append(turn.prompt)
        if turn.number == 1:
            return Reply(calls=(Call("spawn_background", {"tool": "slow", "wake": wake}),))
        return Reply("answered")

    scripted.register("middle", play)
    app.agent("middle", model="scripted:middle", delegates=True)
    async with app.open("memory://") as outrider:
        session = await outrider.sessions.create()
        task = await session.spawn_agent("Start it.", agent="middle")
        await until(lambda: _is_parked(outrider, task.id))
        await task.message("Are you there?")
        await until(lambda: _has_been_told(told, "Are you there?"))
        gate.set()
        assert await task.result(timeout=PATIENCE) == "answered"


async def _is_parked(outrider: Runtime, task_id: str) -> bool:
    return bool((await outrider.tasks.get(task_id)).core.waits)


async def _has_been_told(told: list[str], text: str) -> bool:
    return any(text in each for each in told)


class _State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def _said(messages: Sequence[AnyMessage]) -> str:
    return " | ".join(str(message.content) for message in messages if message.type == "human")


async def test_a_graph_that_stopped_with_news_in_hand_hears_them_and_what_came_since(monkeypatch):
    app = an_app()
    began, may_go_on = asyncio.Event(), asyncio.Event()

    async def first(state: _State) -> dict[str, Any]:
        began.set()
        await may_go_on.wait()
        return {"messages": [AIMessage("on it")]}

    async def last(state: _State) -> dict[str, Any]:
        return {"messages": [AIMessage(_said(state["messages"]))]}

    graph = StateGraph(_State)
    graph.add_node("first", first)
    graph.add_node("between", lambda state: {"messages": [AIMessage("further")]})
    graph.add_node("last", last)
    for one, other in ((START, "first"), ("first", "between"), ("between", "last"), ("last", END)):
        graph.add_edge(one, other)
    app.agent("graph", graph.compile())
    append, deaths = context.TaskContext._append, iter([True])

    async def dies(self: TaskContext, page: Page) -> None:
        await append(self, page)
        if any(step.position.endswith("news") for step in page.steps) and next(deaths, False):
            await session.send("B")
            self._attempt.give_back()  # the next attempt finds what a crash would leave
            await asyncio.sleep(0)

    monkeypatch.setattr(context.TaskContext, "_append", dies)
    async with app.open("memory://") as outrider:
        session = await outrider.sessions.create(agent="graph")
        turn = await session.send("Go.")
        await asyncio.wait_for(began.wait(), PATIENCE)
        await session.send("A")
        may_go_on.set()
        assert await turn.result(timeout=PATIENCE) == "Go. | A | B"
        assert len(await turn.attempts()) == 2


@pytest.mark.parametrize("schema", [None, {"type": "object", "properties": {"a": {"type": "integer"}}}])
async def test_what_was_reported_is_the_result_whatever_is_said_afterwards_and_only_once(schema):
    app = an_app()
    reports = tuple(Call("report_result", {"result": {"a": n}}) for n in (1, 2))
    scripted.register("reporter", scripted.replies(Reply(calls=reports), *[Reply("Goodbye.")] * 9))
    app.agent("reporter", model="scripted:reporter")
    start: dict[str, Any] = {"instructions": "Go.", "agent": "reporter"}
    if schema is not None:
        start["result_schema"] = schema
    scripted.register("boss", scripted.replies(Reply(calls=(Call("spawn_agent", start),)), *[Reply("ok")] * 3))
    app.agent("boss", model="scripted:boss", delegates=True)
    async with app.open("memory://") as outrider:
        session = await outrider.sessions.create(agent="boss")
        await (await session.send("Go.")).result(timeout=PATIENCE)
        (child,) = await outrider.tasks.list(kind="subagent")
        assert await (await outrider.task(child.id)).result(timeout=PATIENCE) == {"a": 1}
        links = (await outrider.tasks.record(child.id)).links
        rows = await outrider.services.views.transcript(links.child_session_id or "")
        said = " ".join(row.message.decode() for row in rows)
        assert said.count("a result is reported once") == 1, said


@pytest.mark.parametrize(
    ("result", "why"), [(float("nan"), "not JSON"), (10**30, "64 bits"), ("x" * 70_000, "too_large")]
)
async def test_a_report_that_could_not_be_kept_is_refused_and_another_is_taken(result, why):
    app = an_app()
    reports = [Reply(calls=(Call("report_result", {"result": each}),)) for each in (result, "short")]
    scripted.register("reporter", scripted.replies(*reports, *[Reply("Goodbye.")] * 9))
    app.agent("reporter", model="scripted:reporter")
    async with app.open("memory://") as outrider:
        session = await outrider.sessions.create()
        task = await session.spawn_agent("Go.", agent="reporter", options=TaskOptions(origin={"tool_call_id": "call"}))
        assert await task.result(timeout=PATIENCE) == "short"
        record = await task.record()
        rows = await outrider.services.views.transcript(record.links.child_session_id or "")
        assert why in " ".join(row.message.decode() for row in rows)
        assert record.attempt == 1


@pytest.mark.parametrize(
    ("bound", "kind"),
    [({"max_iterations": 3}, "max_iterations"), ({"options": {"budget": {"requests": 3}}}, "budget_exceeded")],
)
async def test_what_was_reported_is_kept_though_the_agent_comes_to_no_end(bound, kind):
    app = an_app()
    report, more = (Call("report_result", {"result": {"a": n}}) for n in (1, 2))
    scripted.register("restless", lambda turn: Reply("More.", calls=(report if turn.number == 1 else more,)))
    app.agent("restless", model="scripted:restless")
    options = TaskOptions(origin={"tool_call_id": "call"}, **bound.pop("options", {}))
    async with app.open("memory://") as outrider:
        session = await outrider.sessions.create()
        task = await session.spawn_agent("Go.", agent="restless", options=options, **bound)
        record = await task.wait(timeout=PATIENCE)
        assert record.error is not None
        assert record.error.kind == kind
        assert record.summary == '{"a":1}'
        assert await session.read_file(record.result_path or "") == b'{"a":1}'


async def test_an_agent_waits_for_a_task_no_longer_than_for_an_answer():
    app = an_app(question_deadline=0.05)

    @app.tool
    async def drift(task: TaskContext) -> None:
        await task.messages()

    start = Call("spawn_background", {"tool": "drift"})

    def waits(turn: Turn) -> Reply:
        match turn.number:
            case 1:
                return Reply(calls=(start,))
            case 2:
                wait = {"task_ids": [turn.results[0].content["task_id"]], "timeout": 3e9}
                return Reply(calls=(Call("wait_task", wait),))
            case _:
                return Reply(str(turn.results[0].content["timed_out"]))

    scripted.register("waits", waits)
    app.agent("waits", model="scripted:waits", delegates=True)
    async with app.open("memory://") as outrider:
        session = await outrider.sessions.create(agent="waits")
        assert await (await session.send("Go.")).result(timeout=PATIENCE) == "True"


async def test_a_turn_is_taken_once_and_nothing_but_words_makes_one():
    app = an_app()
    scripted.register("talker", scripted.replies(*[Reply("yes")] * 3))
    app.agent("talker", model="scripted:talker")
    async with app.open("memory://") as outrider:
        session = await outrider.sessions.create(agent="talker")
        turn = await session.send("Go.")
        await turn.result(timeout=PATIENCE)
        for wrong in (turn.retry(), turn.fork(), outrider.tasks.create(session.id, "turn", {"agent": "talker"})):
            with pytest.raises(IllegalMove):
                await wrong
        nothings: list[Any] = ["", " \n", []]
        for nothing in nothings:
            with pytest.raises(InvalidArguments):
                await session.send(nothing)
        with pytest.raises(InvalidArguments):
            await outrider.sessions.create(agent="")
        assert [task.id for task in await session.tasks()] == [turn.id]


async def test_a_function_that_does_nothing_but_append_ends_at_its_limit():
    app = an_app()

    async def endless(ctx: AgentContext) -> None:
        while True:
            await ctx.append({"said": "more"}, text="more")

    app.agent("endless", agent=endless, max_iterations=3)
    async with app.open("memory://") as outrider:
        session = await outrider.sessions.create()
        task = await session.spawn_agent("Go.", agent="endless")
        record = await task.wait(timeout=PATIENCE)
        assert record.error is not None
        assert (record.error.kind, record.iterations, record.summary) == ("max_iterations", 3, "more")


@dataclass
class Stop:
    host: str


async def test_arguments_that_an_approver_gets_wrong_are_refused_by_any_process_and_the_question_stays(tmp_path):
    app, url = an_app(), f"sqlite:///{tmp_path}/work.db"
    done: list[str] = []

    @app.tool(requires_approval=True)
    async def deploy(where: str, then: list[Stop] | None = None) -> str:
        done.append(where)
        return where

    calls = Reply(calls=(Call("deploy", {"where": "here"}),))
    scripted.register("deployer", scripted.replies(calls, Reply("done")))
    async with app.open(url) as outrider, Outrider().open(url, worker=False) as stranger:
        session = await outrider.sessions.create()
        task = await session.spawn_agent("Go.", model="scripted:deployer", tools=["deploy"])
        await task.wait(timeout=PATIENCE, on_question=True)
        for wrong, fault in (
            ({"where": 5}, r"5 is not of type 'string' \(at \$\.arguments\.where\)"),
            ({"nope": "there"}, "'where' is a required property|'nope' was unexpected"),
            ({"where": "x", "then": [{"host": 5}]}, "arguments.then"),
        ):
            for tasks in (stranger.tasks, outrider.tasks):
                with pytest.raises(InvalidAnswer, match=fault):
                    await tasks.answer(task.id, {"approved": True, "arguments": wrong})
        forms = r"taken: yes or no \(true or false\), or an object with `approved` and any .*`always`"
        with pytest.raises(InvalidAnswer, match=forms):
            await stranger.tasks.answer(task.id, "maybe")
        right = {"where": "there", "then": [{"host": "it"}]}
        await stranger.tasks.answer(task.id, {"approved": True, "arguments": right})
        await task.result(timeout=PATIENCE)
        assert done == ["there"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "description": "x" * 300_000},
        {"type": "object", "properties": {"it": {"$ref": "#/properties/other"}, "other": {}}},
        {"type": "object", "properties": {"it": {"type": "odd"}}},
    ],
)
async def test_of_a_tool_whose_schema_cannot_go_along_a_question_takes_any_arguments(parameters):
    app = an_app()

    @app.tool
    async def asker(task: TaskContext) -> Any:
        closed = await task.ask_for_approval("x!", "Approve?", {"tool": "x"}, parameters)
        return None if closed is None else closed.answer

    async with app.open("memory://") as outrider:
        task = await (await outrider.sessions.create()).spawn("asker")
        await task.wait(timeout=PATIENCE, on_question=True)
        await task.answer({"approved": True, "arguments": {"it": 5}})
        assert await task.result(timeout=PATIENCE) == {"approved": True, "arguments": {"it": 5}}
