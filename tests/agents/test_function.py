"""Functions as agents: what their context promises beyond the contract of engines."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest

from outrider import Outrider, WorkerSettings
from outrider.agents.engine import (
    AgentBrief,
    AgentFailed,
    AgentOutcome,
    Approval,
    ToolError,
    ToolRetry,
    ToolSpec,
    load_engine,
)
from outrider.agents.function import AgentContext
from outrider.core.errors import Failure, InvalidArguments, Parked, UnknownName
from outrider.core.task import Usage
from outrider.core.values import JSON, JSONObject
from outrider.runtime.handles import TaskHandle
from tests.agents.fakes import FakeRun, Killed, Record, attempt
from tests.facts import until

pytestmark = pytest.mark.anyio
EACH = Usage(requests=1, input_tokens=10, output_tokens=5)


def brief(agent: Any, **more: Any) -> AgentBrief:
    return AgentBrief("task_1", "ses_1", 1, "Go.", agent=agent, **more)


async def run(agent: Any, fake: FakeRun | None = None, **more: Any) -> AgentOutcome:
    return await attempt(load_engine("function"), brief(agent, **more), fake or FakeRun(Record()))


def tool(name: str, answer: Any, **more: Any) -> ToolSpec:
    async def call(arguments: JSONObject, call_id: str) -> JSON:
        if isinstance(answer, Exception):
            raise answer
        return answer(arguments) if callable(answer) else answer

    return ToolSpec(name, name, {"type": "object"}, call, **more)


async def test_a_crash_at_any_write_repeats_nothing_journaled_and_shows_and_counts_the_same():
    async def look(n: int, begun: Counter[str]) -> int:
        begun[f"look {n}"] += 1
        return n

    def agent(begun: Counter[str]) -> Any:
        async def loop(ctx: AgentContext) -> str:
            for n in range(3):
                ctx.output(f"looking {n}\n")
                seen = await ctx.step("look", look, n, begun)
                await ctx.append({"seen": seen}, usage=EACH, text=f"saw {seen}")
            who = await ctx.ask("Who?", str)
            ctx.output("asked\n")
            return f"{who} saw {len(ctx.transcript)}"

        return loop

    whole = FakeRun(Record(), answer=lambda _: "Kim")
    expected = await attempt(load_engine("function"), brief(agent(Counter())), whole)
    assert expected == AgentOutcome("answered", "Kim saw 3", "Kim saw 3")
    for dies_at in range(whole.writes):
        for stored in (False, True):
            begun, record = Counter[str](), Record()
            first = FakeRun(record, answer=lambda _: "Kim", dies_at=dies_at, stored=stored)
            with pytest.raises(Killed):
                await attempt(load_engine("function"), brief(agent(begun)), first)
            kept = set(record.journal)
            second = FakeRun(record, answer=lambda _: "Kim")
            given = replace(brief(agent(begun)), attempt=2)
            assert await attempt(load_engine("function"), given, second) == expected, dies_at
            assert not kept & set(second.steps_run), dies_at
            assert begun.total() <= 4
            assert (record.usage, record.iterations) == (whole.record.usage, 3)
            assert record.transcript == [{"seen": 0}, {"seen": 1}, {"seen": 2}]
            shown = (first.output_text + second.output_text).split("\n")
            assert set(whole.output_text.split("\n")) == set(shown)
            assert len(shown) <= len(whole.output_text.split("\n")) + 1, (dies_at, shown)


async def test_what_is_said_meanwhile_is_heard_once_and_at_the_same_place_whatever_write_it_dies_at():
    def agent(record: Record) -> Any:
        async def think(n: int) -> int:
            if n == 1 and not record.transcript:
                record.inbox.append("and this")  # said while it thinks, and not for what it thought before
            return n

        async def listen(ctx: AgentContext) -> JSON:
            heard = [await ctx.news()]
            for n in (1, 2):
                await ctx.step("think", think, n)
                heard.append(await ctx.news())
                await ctx.append({"thought": n}, usage=EACH)
            return heard

        return listen

    whole = FakeRun(Record())
    expected = await attempt(load_engine("function"), brief(agent(whole.record)), whole)
    assert expected.result == [None, "and this", None]
    transcript = [{"said": "and this", "meanwhile": True}, {"thought": 1}, {"thought": 2}]
    assert whole.record.transcript == transcript
    for dies_at in range(whole.writes):
        for stored in (False, True):
            record = Record()
            first = FakeRun(record, dies_at=dies_at, stored=stored)
            with pytest.raises(Killed):
                await attempt(load_engine("function"), brief(agent(record)), first)
            is_kept = "step/think" in record.journal
            outcome = await attempt(load_engine("function"), brief(agent(record)), FakeRun(record))
            if is_kept:  # else it was said before anything was thought
                assert (outcome, record.transcript) == (expected, transcript), dies_at
            assert sum(message == transcript[0] for message in record.transcript) == 1
            assert record.inbox == []


async def nothing() -> None:
    pass


@pytest.mark.parametrize(
    ("changed", "journaled", "met"),
    [
        (lambda ctx: ctx.step("wrap", nothing), "step 'pack'", "step 'wrap'"),
        (lambda ctx: ctx.call("pack"), "step 'pack'", "tool 'pack'"),
        (lambda ctx: ctx.ask("Pack?", name="pack"), "step 'pack'", "ask 'pack'"),
        (lambda ctx: ctx.approve("pack"), "step 'pack'", "approve 'pack'"),
    ],
)
async def test_code_that_comes_to_another_position_than_before_is_interrupted_and_told_which(changed, journaled, met):
    async def old(ctx: AgentContext) -> None:
        await ctx.step("look", nothing)
        await ctx.step("pack", nothing)
        await ctx.ask("Ship it?")

    async def new(ctx: AgentContext) -> None:
        await ctx.step("look", nothing)
        await changed(ctx)
        await ctx.ask("Ship it?")

    record, tools = Record(), [tool("pack", "packed")]
    with pytest.raises(Parked):
        await run(old, FakeRun(record), tools=tools)
    fake = FakeRun(record)
    with pytest.raises(Failure) as failure:
        await run(new, fake, tools=tools)
    assert (failure.value.kind, failure.value.details) == ("interrupted", {"journaled": journaled, "met": met})
    assert (fake.steps_run, fake.asked) == ([], [])


@pytest.mark.parametrize("nth", range(2))
async def test_what_a_step_raised_and_the_function_handled_is_no_change_of_its_code(nth):
    begun: Counter[str] = Counter()

    async def burst() -> None:
        begun["burst"] += 1
        raise ValueError("it burst")

    async def hang() -> None:
        begun["hang"] += 1
        await asyncio.sleep(3600)

    async def agent(ctx: AgentContext) -> str:
        why = "nothing"
        try:
            if nth == 0:
                await ctx.step("risky", burst)
            async with asyncio.timeout(0.01):
                await ctx.step("risky", hang)
        except (ValueError, TimeoutError) as error:
            why = type(error).__name__
        await ctx.step("instead", nothing)
        await ctx.ask("Well?")
        return why

    record = Record()
    with pytest.raises(Parked):
        await run(agent, FakeRun(record))
    outcome = await run(agent, FakeRun(record, answer=lambda _: "yes"))
    assert outcome.result == ("ValueError", "TimeoutError")[nth]
    assert begun == ({"burst": 1}, {"hang": 2})[nth], "an error is raised again, what ran out of time is tried again"


async def test_the_transcript_begins_with_what_the_session_said_before_the_task():
    seen: list[list[JSON]] = []

    async def agent(ctx: AgentContext) -> None:
        seen.append(list(ctx.transcript))
        await ctx.append("new", usage=EACH)
        seen.append(list(ctx.transcript))

    record = Record(transcript=["old"])
    for _ in range(2):
        record.journal.clear()
        await attempt(load_engine("function"), brief(agent, before=1), FakeRun(record))
    assert seen == [["old"], ["old", "new"]] * 2
    assert record.transcript == ["old", "new"]


async def test_what_a_tool_says_to_the_model_is_journaled_like_a_result():
    told: list[str] = []

    async def agent(ctx: AgentContext) -> None:
        for name in ("fussy", "broken", "denied"):
            with pytest.raises((ToolRetry, ToolError)) as raised:
                await ctx.call(name)
            told.append(f"{type(raised.value).__name__}: {raised.value}")

    tools = [
        tool("fussy", ToolRetry("say please")),
        tool("broken", ToolError("no disk")),
        tool("denied", "done", requires_approval=True),
    ]
    record = Record()
    for _ in range(2):
        fake = FakeRun(record, decide=lambda *_: Approval(False, "not now"))
        await attempt(load_engine("function"), brief(agent, tools=tools), fake)
    assert told == ["ToolRetry: say please", "ToolError: no disk", "ToolError: the call was denied: not now"] * 2


async def test_a_tool_is_called_with_what_the_person_put_in_place_of_the_arguments():
    async def agent(ctx: AgentContext) -> JSON:
        return await ctx.call("pay", {"cents": 500})

    fake = FakeRun(Record(), decide=lambda *_: Approval(True, arguments={"cents": 100}))
    given = tool("pay", lambda arguments: arguments["cents"], requires_approval=True, effects="once")
    assert (await run(agent, fake, tools=[given])).result == 100
    assert fake.steps_effects["tool/pay"] == "once"


async def test_a_result_is_of_the_type_that_the_step_declares_the_first_time_too():
    @dataclass
    class Found:
        place: str

    def find() -> Found:
        return Found("here")

    find.__annotations__["return"] = Found

    async def agent(ctx: AgentContext) -> str:
        return (await ctx.step("find", find)).place

    record = Record()
    for _ in range(2):
        assert (await run(agent, FakeRun(record))).result == "here"


async def test_two_branches_that_could_not_be_told_apart_are_refused():
    async def nap() -> None:
        await asyncio.sleep(0)

    async def agent(ctx: AgentContext) -> None:
        await asyncio.gather(ctx.step("nap", nap), ctx.step("nap", nap))

    with pytest.raises(InvalidArguments, match="name of its own"):
        await run(agent)


async def test_a_name_that_could_be_taken_for_a_position_of_the_runtimes_is_refused():
    async def agent(ctx: AgentContext) -> None:
        await ctx.step("go!", nothing)

    with pytest.raises(InvalidArguments, match="marks positions of ours"):
        await run(agent)


async def test_no_step_is_begun_once_the_iterations_are_used_up_not_even_in_a_group():
    begun: Counter[str] = Counter()

    async def look() -> None:
        begun["look"] += 1

    async def agent(ctx: AgentContext) -> str:
        while True:
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.step("look", look))
            await ctx.append("again", text="Still at it.")

    record = Record()
    for _ in range(2):
        outcome = await run(agent, FakeRun(record), max_iterations=3)
        assert outcome == AgentOutcome("max_iterations", text="Still at it.")
    assert (begun["look"], record.iterations) == (3, 3)


async def test_an_agent_may_answer_in_its_last_iteration():
    async def agent(ctx: AgentContext) -> str:
        await ctx.append("all", usage=EACH)
        return "done"

    assert (await run(agent, max_iterations=1)).result == "done"


async def test_what_could_not_be_kept_ends_no_iteration_the_first_time_nor_when_it_is_come_to_again():
    refused: list[str] = []

    async def agent(ctx: AgentContext) -> int:
        for message, usage in ((float("nan"), None), ("x", Usage(requests=-1)), ("x", Usage(cost=float("nan")))):
            try:
                await ctx.append(message, usage=usage)
            except (TypeError, InvalidArguments) as error:
                refused.append(type(error).__name__)
        await ctx.append("kept")
        await ctx.ask("Go on?")
        return ctx.iterations

    given: dict[str, bool] = {}
    record = Record()
    with pytest.raises(Parked):
        await run(agent, FakeRun(record, answer=given.get))
    given["Go on?"] = True
    outcome = await run(agent, FakeRun(record, answer=given.get), iterations=1)
    assert (outcome.result, record.transcript) == (1, ["kept"])
    assert refused == ["TypeError", "InvalidArguments", "InvalidArguments"] * 2


async def test_each_iteration_is_counted_and_kept_once_though_something_is_reported_meanwhile():
    async def agent(ctx: AgentContext) -> str:
        await ctx.append("one")
        await ctx.append("two")
        await ctx.ask("Go on?")
        return "done"

    app = Outrider(WorkerSettings(park_grace=0.0))
    app.agent("agent", agent)
    async with app.open("memory://") as outrider:
        task = await (await outrider.sessions.create()).spawn_agent("Go.", agent="agent")
        await until(lambda: _parked(task))
        await task.answer(True)
        await task.result(timeout=10)
        record = await task.record()
        assert (record.iterations, record.links.child_session_id is not None) == (2, True)
        rows = await outrider.services.views.transcript(str(record.links.child_session_id))
        assert [row.message for row in rows] == [b'"one"', b'"two"']


async def _parked(task: TaskHandle) -> bool:
    record = await task.record()
    return bool(record.input_requests) and record.worker_id is None


@pytest.mark.parametrize("answer", [object(), float("nan"), 10**30])
async def test_an_answer_that_is_not_json_is_a_failure_that_no_other_attempt_would_mend(answer):
    async def agent(ctx: AgentContext) -> Any:
        await ctx.append(text="so far")
        return answer

    with pytest.raises(AgentFailed, match="not JSON") as failed:
        await run(agent)
    assert (failed.value.kind, failed.value.retryable, failed.value.partial) == ("invalid_result", False, "so far")


async def test_an_unknown_tool_is_refused_with_the_names_that_are_known():
    async def agent(ctx: AgentContext) -> None:
        await ctx.call("lok")

    with pytest.raises(UnknownName, match="look"):
        await run(agent, tools=[tool("look", 1)])
    with pytest.raises(UnknownName):
        await run(agent, require_approval=["publish"])


async def test_an_approval_is_asked_for_by_the_agent_itself():
    async def agent(ctx: AgentContext) -> bool:
        return (await ctx.approve("deploy", {"to": "all"})).granted

    record = Record()
    with pytest.raises(Parked):
        await run(agent, FakeRun(record))
    assert (await run(agent, FakeRun(record, decide=lambda *_: Approval(True)))).result is True


def test_a_function_that_would_hold_up_the_loop_is_no_agent():
    def agent(ctx: AgentContext) -> str:
        return "done"

    app = Outrider()
    with pytest.raises(InvalidArguments, match="async def"):
        app.agent("slow", agent)
    assert app.registry.agents == {}
