"""What an agent run does: iterations, tools, results, approvals, limits, and every way a model can fail."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from outrider.agents import scripted
from outrider.agents.engine import (
    AgentBrief,
    AgentFailed,
    AgentOutcome,
    Approval,
    Engine,
    Iteration,
    ModelFailed,
    ModelMisbehaved,
    ModelNotReady,
    ToolError,
    ToolRetry,
    ToolSpec,
    load_engine,
)
from outrider.agents.scripted import Call, Failure, Reply, Tokens, Turn
from outrider.core.errors import Parked, Superseded, UnknownName
from outrider.core.task import Usage
from outrider.core.values import JSON, JSONObject
from tests.agents.fakes import FakeRun, Killed, Record, attempt

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="session")
def engine() -> Engine:
    return load_engine()


@pytest.fixture
def play(request: pytest.FixtureRequest) -> Any:
    """Register a script under the test's own name and return the brief that plays it."""

    def registered(*replies: Reply, script: scripted.Script | None = None, **brief: Any) -> AgentBrief:
        name = request.node.name
        scripted.register(name, script or scripted.replies(*replies))
        return AgentBrief("task_1", "ses_1", 1, "Look at it.", model=f"scripted:{name}", **brief)

    return registered


class Bench:
    """A few tools that note their calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any], str]] = []

    def tool(self, name: str, answer: Any = "ok", **more: Any) -> ToolSpec:
        async def call(arguments: JSONObject, call_id: str) -> JSON:
            self.calls.append((name, dict(arguments), call_id))
            if isinstance(answer, BaseException):
                raise answer
            return await answer(arguments) if callable(answer) else answer

        return ToolSpec(name, f"Does {name}.", {"type": "object", "properties": {}}, call, **more)


def kinds(transcript: list[JSON]) -> list[str]:
    return [message["kind"] for message in transcript]


async def test_a_text_answer_is_one_iteration_with_the_prompt_and_the_totals(engine, play):
    brief = play(Reply("All well.", tokens=Tokens(11, 7, cached=3)), system_prompt="Be brief.")
    run = FakeRun(Record())
    outcome = await attempt(engine, brief, run)
    assert outcome == AgentOutcome("answered", result="All well.", text="All well.")
    record = run.record
    assert record.iterations == 1
    assert record.usage == Usage(requests=1, input_tokens=11, output_tokens=7, cached_tokens=3)
    assert (record.provider, record.model) == ("scripted", brief.model)
    assert kinds(record.transcript) == ["request", "response"]
    assert record.transcript[0]["parts"][-1]["content"] == "Look at it."
    assert record.transcript[0]["instructions"] == "Be brief."
    assert record.transcript[0]["conversation_id"] == "task_1"
    assert not record.journal


async def test_a_tool_call_is_an_iteration_that_ends_with_its_result(engine, play):
    bench = Bench()
    brief = play(
        Reply("Let me look.", calls=(Call("look", {"at": "it"}),)),
        Reply("Seen."),
        tools=[bench.tool("look", {"size": 3})],
        system_prompt="Be brief.",
    )
    run = FakeRun(Record())
    assert (await attempt(engine, brief, run)).result == "Seen."
    assert bench.calls == [("look", {"at": "it"}, "call_1_1")]
    assert run.steps_run == ["1/model", "1/tool/call_1_1", "2/model"]
    assert kinds(run.record.transcript) == ["request", "response", "request", "response"]
    assert run.record.transcript[2]["parts"][0]["content"] == {"size": 3}
    assert run.record.usage.requests == 2
    # The instructions are kept where they change, not in every request.
    assert [message.get("instructions") for message in run.record.transcript] == ["Be brief.", None, None, None]


async def test_the_model_sees_the_whole_conversation_however_little_the_engine_is_shown(engine, play):
    seen: list[list[JSON]] = []

    def script(turn: Turn) -> Reply:
        seen.append([result.content for result in turn.earlier()])
        return Reply("done") if turn.number == 5 else Reply(calls=(Call("count", {"n": turn.number}),))

    bench = Bench()

    async def count(arguments: JSONObject) -> JSON:
        return arguments["n"]

    await attempt(engine, play(script=script, tools=[bench.tool("count", count)]), FakeRun(Record()))
    assert seen == [[], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]


async def test_tool_calls_of_one_response_run_side_by_side_each_on_its_own_key(engine, play):
    bench, both = Bench(), asyncio.Event()
    waiting = 0

    async def meet(_: JSONObject) -> JSON:
        nonlocal waiting
        waiting += 1
        if waiting == 3:
            both.set()
        await asyncio.wait_for(both.wait(), 5)
        return waiting

    calls = (Call("meet", {}, id="a"), Call("meet", {}, id="b"), Call("meet", {}, id="c"))
    run = FakeRun(Record())
    await attempt(engine, play(Reply(calls=calls), Reply("met"), tools=[bench.tool("meet", meet)]), run)
    assert run.open_most == 3
    assert sorted(run.steps_run) == ["1/model", "1/tool/a", "1/tool/b", "1/tool/c", "2/model"]
    answered = [part["tool_call_id"] for part in run.record.transcript[2]["parts"]]
    assert answered == ["a", "b", "c"]


async def test_attempts_at_once_each_have_a_model_tools_and_a_transcript_of_their_own(engine, play):
    both = asyncio.Barrier(2)

    async def meet(_: JSONObject) -> JSON:
        async with asyncio.timeout(5), both:
            return "met"

    async def one(name: str) -> tuple[FakeRun, Bench]:
        scripted.register(name, scripted.replies(Reply(calls=(Call(name, {}),)), Reply(f"{name} is done")))
        bench, run = Bench(), FakeRun(Record())
        brief = replace(play(tools=[bench.tool(name, meet)], system_prompt=name), model=f"scripted:{name}")
        assert (await attempt(engine, brief, run)).result == f"{name} is done"
        return run, bench

    for name, (run, bench) in zip("ab", await asyncio.gather(one("a"), one("b")), strict=True):
        assert [call[0] for call in bench.calls] == [name]
        assert run.record.model == f"scripted:{name}"
        assert run.record.transcript[0]["instructions"] == name


async def test_two_calls_of_one_response_with_the_same_id_are_run_neither(engine, play):
    bench = Bench()
    calls = (Call("look", {"n": 1}, id="same"), Call("look", {"n": 2}, id="same"))
    with pytest.raises(ModelMisbehaved, match="same") as raised:
        await attempt(engine, play(Reply(calls=calls), tools=[bench.tool("look")]), FakeRun(Record()))
    assert (raised.value.kind, bench.calls) == ("no_result", [])


async def test_a_call_id_may_come_again_in_a_later_response(engine, play):
    bench = Bench()
    again = Reply(calls=(Call("look", {}, id="call_0"),))
    run = FakeRun(Record())
    await attempt(engine, play(again, again, Reply("ok"), tools=[bench.tool("look")]), run)
    assert run.steps_run == ["1/model", "1/tool/call_0", "2/model", "2/tool/call_0", "3/model"]
    assert len(bench.calls) == 2


async def test_effects_of_a_tool_reach_the_journal(engine, play):
    bench = Bench()
    run = FakeRun(Record())
    brief = play(Reply(calls=(Call("pay", {}),)), Reply("paid"), tools=[bench.tool("pay", effects="once")])
    await attempt(engine, brief, run)
    assert run.steps_effects == {"1/model": "idempotent", "1/tool/call_1_1": "once", "2/model": "idempotent"}


async def test_a_persons_value_for_a_call_whose_fate_is_unknown_is_what_the_model_reads(engine, play):
    bench = Bench()
    brief = play(Reply(calls=(Call("pay", {}),)), Reply("ok"), tools=[bench.tool("pay", effects="once")])
    record = Record()
    with pytest.raises(Killed):
        await attempt(engine, brief, FakeRun(record, dies_at=0, stored=True))
    record.journal["1/tool/call_1_1"] = {"paid": "by hand"}
    await attempt(engine, replace(brief, attempt=2), FakeRun(record))
    assert bench.calls == []
    assert record.transcript[2]["parts"][0]["content"] == {"paid": "by hand"}


async def test_a_script_may_come_with_the_task(engine):
    bench = Bench()
    script = {"replies": [{"calls": [{"tool": "look", "arguments": {}}], "repeat": 3}, {"text": "done"}]}
    brief = AgentBrief(
        "task_1", "ses_1", 1, "Go.", model={"model": "scripted", "script": script}, tools=[bench.tool("look")]
    )
    assert (await attempt(engine, brief, FakeRun(Record()))).result == "done"
    assert [call_id for *_, call_id in bench.calls] == ["call_1_1", "call_2_1", "call_3_1"]


async def test_text_is_shown_as_it_comes(engine, play):
    shown: list[str] = []
    run = FakeRun(Record())
    run.output = shown.append  # type: ignore[method-assign, assignment]  # to see what is shown, in order
    await attempt(engine, play(Reply("abcdefgh", chunks=4)), run)
    assert [text for text in shown if text.strip()] == ["ab", "cd", "ef", "gh"]


async def test_a_structured_result_is_returned_as_json(engine, play):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    run = FakeRun(Record())
    outcome = await attempt(engine, play(Reply("Here.", result={"ok": True}), result_schema=schema), run)
    assert outcome.result == {"ok": True}
    assert outcome.text == "Here."
    assert run.record.iterations == 1
    assert kinds(run.record.transcript) == ["request", "response", "request"]


@pytest.mark.parametrize(
    ("schema", "result"),
    [
        ({"type": "array", "items": {"type": "integer"}}, [1, 2]),
        ({"type": "integer"}, 0),
        ({"$ref": "#/$defs/Size", "$defs": {"Size": {"enum": ["s", "m"]}}}, "m"),
    ],
)
async def test_a_structured_result_need_not_be_an_object(engine, play, schema, result):
    outcome = await attempt(engine, play(Reply(result=result), result_schema=schema), FakeRun(Record()))
    assert outcome.result == result


async def test_a_result_that_does_not_fit_goes_back_to_the_model(engine, play):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    run = FakeRun(Record(), mismatches=lambda result: None if result["n"] > 1 else "n is too small")
    outcome = await attempt(engine, play(Reply(result={"n": 1}), Reply(result={"n": 2}), result_schema=schema), run)
    assert outcome.result == {"n": 2}
    assert run.record.iterations == 2
    assert "n is too small" in str(run.record.transcript[2])


async def test_a_result_that_never_fits_is_a_schema_mismatch(engine, play):
    schema = {"type": "object", "properties": {}}
    run = FakeRun(Record(), mismatches=lambda _: "wrong")
    with pytest.raises(ModelMisbehaved) as raised:
        await attempt(engine, play(*[Reply(result={})] * 9, result_schema=schema), run)
    assert raised.value.kind == "schema_mismatch"
    assert raised.value.message == "wrong"


async def test_no_result_where_one_was_asked_for_is_no_result(engine, play):
    with pytest.raises(ModelMisbehaved) as raised:
        await attempt(engine, play(*[Reply("words")] * 9, result_schema={"type": "object"}), FakeRun(Record()))
    assert raised.value.kind == "no_result"
    assert raised.value.partial == "words"


async def test_the_iteration_limit_is_an_outcome_of_its_own_with_what_was_said_last(engine, play):
    bench = Bench()
    brief = play(
        Reply("First.", calls=(Call("look", {}),)),
        Reply("Second.", calls=(Call("look", {}),)),
        Reply("never"),
        tools=[bench.tool("look")],
        max_iterations=2,
    )
    run = FakeRun(Record())
    outcome = await attempt(engine, brief, run)
    assert outcome == AgentOutcome("max_iterations", result=None, text="Second.")
    assert run.record.iterations == 2
    assert len(bench.calls) == 2
    assert kinds(run.record.transcript) == ["request", "response", "request", "response", "request"]
    assert AgentOutcome.from_json(outcome.to_json()) == outcome


async def test_what_a_tool_tells_the_model_is_no_error_of_the_task(engine, play):
    bench = Bench()
    brief = play(
        Reply(calls=(Call("fussy", {}), Call("broken", {}), Call("nothing", {}))),
        Reply("So be it."),
        tools=[bench.tool("fussy", ToolRetry("say please")), bench.tool("broken", ToolError("no disk"))],
    )
    run = FakeRun(Record())
    assert (await attempt(engine, brief, run)).result == "So be it."
    told = str(run.record.transcript[2])
    assert "say please" in told
    assert "no disk" in told
    assert "nothing" in told


async def test_a_model_that_never_says_please_has_misbehaved(engine, play):
    bench = Bench()
    brief = play(*[Reply(calls=(Call("fussy", {}),))] * 9, tools=[bench.tool("fussy", ToolRetry("say please"))])
    with pytest.raises(ModelMisbehaved, match=r"wrong way.*say please") as raised:
        await attempt(engine, brief, FakeRun(Record()))
    assert raised.value.kind == "no_result"
    assert not raised.value.retryable


@pytest.mark.parametrize("arguments", ["{not json", "[1]", [1], "text", "", None])
async def test_arguments_that_are_no_object_go_back_to_the_model(engine, play, arguments):
    bench = Bench()
    run = FakeRun(Record())
    brief = play(Reply(calls=(Call("look", arguments),)), Reply("sorry"), tools=[bench.tool("look")])
    assert (await attempt(engine, brief, run)).result == "sorry"


async def test_any_other_exception_of_a_tool_passes_as_it_is_and_leaves_the_iteration_open(engine, play):
    bench, failure = Bench(), KeyError("gone")
    run = FakeRun(Record())
    brief = play(
        Reply(calls=(Call("look", {}), Call("bad", {}))),
        Reply("no"),
        tools=[bench.tool("look"), bench.tool("bad", failure)],
    )
    with pytest.raises(KeyError) as raised:
        await attempt(engine, brief, run)
    assert raised.value is failure
    assert run.record.iterations == 0
    assert set(run.record.journal) >= {"1/model"}


@pytest.mark.parametrize(
    ("failure", "kind", "retryable", "status"),
    [
        (Failure(503, "busy"), "exception", True, 503),
        (Failure(429, "slow down"), "exception", True, 429),
        (Failure(400, "what?"), "exception", False, 400),
        (Failure(timeout=True, message="too slow"), "timeout", True, None),
    ],
)
async def test_a_providers_failure_says_what_it_was_and_if_to_try_again(engine, play, failure, kind, retryable, status):
    bench = Bench()
    run = FakeRun(Record())
    with pytest.raises(ModelFailed) as raised:
        await attempt(
            engine,
            play(Reply("Hm.", calls=(Call("look", {}),)), Reply(failure=failure), tools=[bench.tool("look")]),
            run,
        )
    error = raised.value
    assert (error.kind, error.retryable, error.details["status"]) == (kind, retryable, status)
    assert failure.message in error.message
    assert error.partial == "Hm."
    assert run.record.iterations == 1


async def test_a_failed_model_call_is_made_again_by_the_next_attempt_and_nothing_else_is(engine, play):
    bench = Bench()
    brief = play(Reply(calls=(Call("look", {}),)), Reply("ok", failure=Failure(attempts=1)), tools=[bench.tool("look")])
    record = Record()
    with pytest.raises(ModelFailed):
        await attempt(engine, brief, FakeRun(record))
    run = FakeRun(record)
    assert (await attempt(engine, replace(brief, attempt=2), run)).result == "ok"
    assert run.steps_run == ["2/model"]
    assert len(bench.calls) == 1


@pytest.mark.parametrize(
    ("name", "knows"),
    [
        ("scripted:nobody-at-all", ["scripted"]),
        ("no-such-model", ["scripted", "openai:NAME", "anthropic:NAME"]),
        ("nowhere:model", ["scripted", "openai:NAME"]),
    ],
)
async def test_an_unknown_model_is_refused_with_the_names_that_are_known(engine, name, knows):
    with pytest.raises(UnknownName) as raised:
        await attempt(engine, AgentBrief("task_1", "ses_1", 1, "Hi", model=name), FakeRun(Record()))
    assert raised.value.code == "unknown_model"
    assert name in raised.value.message
    for known in knows:
        assert known in raised.value.details["known"]


async def test_a_model_without_its_key_or_package_is_not_ready_and_says_what_is_missing(engine, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ModelNotReady, match="OPENAI_API_KEY"):
        await attempt(engine, AgentBrief("task_1", "ses_1", 1, "Hi", model="openai:gpt-5.2"), FakeRun(Record()))


async def test_neither_agent_nor_model_is_rejected(engine):
    with pytest.raises(AgentFailed) as raised:
        await attempt(engine, AgentBrief("task_1", "ses_1", 1, "Hi"), FakeRun(Record()))
    assert raised.value.kind == "rejected"


# Approval


async def test_a_tool_that_needs_approval_parks_before_it_runs_and_goes_on_when_approved(engine, play):
    bench = Bench()
    brief = play(
        Reply(calls=(Call("look", {}), Call("publish", {"to": "all"}))),
        Reply("Published."),
        tools=[bench.tool("look"), bench.tool("publish", requires_approval=True)],
    )
    record = Record()
    with pytest.raises(Parked):
        await attempt(engine, brief, FakeRun(record))
    assert [name for name, *_ in bench.calls] == ["look"]
    assert record.iterations == 0

    record.decisions["call_1_2"] = Approval(True)
    run = FakeRun(record)
    assert (await attempt(engine, brief, run)).result == "Published."
    assert run.asked == [("publish", {"to": "all"}, "call_1_2")]
    assert [name for name, *_ in bench.calls] == ["look", "publish"]
    assert run.steps_replayed == ["1/model", "1/tool/call_1_1"]


async def test_a_denied_tool_does_not_run_and_the_model_hears_why(engine, play):
    bench = Bench()
    brief = play(
        Reply(calls=(Call("publish", {}),)),
        Reply("As you wish."),
        tools=[bench.tool("publish", requires_approval=True)],
    )
    run = FakeRun(Record(), decide=lambda *_: Approval(False, "not on a Friday"))
    assert (await attempt(engine, brief, run)).result == "As you wish."
    assert bench.calls == []
    part = run.record.transcript[2]["parts"][0]
    assert part["outcome"] == "denied"
    assert "not on a Friday" in part["content"]


async def test_an_approver_may_change_the_arguments(engine, play):
    bench = Bench()
    brief = play(
        Reply(calls=(Call("publish", {"to": "all"}),)),
        Reply("Done."),
        tools=[bench.tool("publish", requires_approval=True)],
    )
    await attempt(engine, brief, FakeRun(Record(), decide=lambda *_: Approval(True, arguments={"to": "me"})))
    assert bench.calls == [("publish", {"to": "me"}, "call_1_1")]


async def test_anything_but_a_yes_is_a_no(engine, play):
    bench = Bench()
    brief = play(
        Reply(calls=(Call("publish", {}),)), Reply("Fine."), tools=[bench.tool("publish", requires_approval=True)]
    )
    unclear = Approval("yes")  # type: ignore[arg-type]  # an answer that is no bool
    await attempt(engine, brief, FakeRun(Record(), decide=lambda *_: unclear))
    assert bench.calls == []


async def test_all_approvals_of_a_response_are_asked_for_at_once(engine, play):
    bench = Bench()
    calls = tuple(Call("publish", {"n": n}, id=f"p{n}") for n in range(3))
    brief = play(Reply(calls=calls), Reply("ok"), tools=[bench.tool("publish", requires_approval=True)])
    record = Record()
    run = FakeRun(record)
    with pytest.raises(Parked):
        await attempt(engine, brief, run)
    assert {call_id for *_, call_id in run.asked} == {"p0", "p1", "p2"}
    record.decisions = {"p0": Approval(True), "p1": Approval(False), "p2": Approval(True)}
    await attempt(engine, brief, FakeRun(record))
    assert [arguments["n"] for _, arguments, _ in bench.calls] == [0, 2]


# What must pass through the engine untouched


@pytest.mark.parametrize("beside", [0, 2])
@pytest.mark.parametrize("thrown", [Parked(), Superseded("task_1", 1)])
async def test_what_is_no_exception_passes_bare_from_inside_a_tool(engine, play, thrown, beside):
    bench = Bench()
    calls = (Call("stop", {}), *(Call("slow", {}),) * beside)

    async def slow(_: JSONObject) -> JSON:
        await asyncio.sleep(30)

    brief = play(Reply(calls=calls), Reply("no"), tools=[bench.tool("stop", thrown), bench.tool("slow", slow)])
    with pytest.raises(type(thrown)) as raised:
        await attempt(engine, brief, FakeRun(Record()))
    assert raised.value is thrown
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert [task for task in others if "slow" in task.get_name()] == []


async def test_a_cancellation_from_outside_stops_model_and_tools(engine, play):
    stopped = asyncio.Event()
    bench, started = Bench(), asyncio.Event()

    async def slow(_: JSONObject) -> JSON:
        started.set()
        try:
            await asyncio.sleep(30)
        finally:
            stopped.set()

    brief = play(Reply(calls=(Call("slow", {}),)), Reply("no"), tools=[bench.tool("slow", slow)])
    task = asyncio.ensure_future(attempt(engine, brief, FakeRun(Record())))
    await asyncio.wait_for(started.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stopped.is_set()


@pytest.mark.parametrize("where", ["step", "append", "approve"])
async def test_an_error_of_the_runtime_is_not_taken_for_a_tools_or_a_models(engine, play, where):
    bench, broken = Bench(), OSError("disk full")
    run = FakeRun(Record(), decide=lambda *_: Approval(True))

    async def fails(*_: Any, **__: Any) -> Any:
        raise broken

    setattr(run, where, fails)
    brief = play(
        Reply(calls=(Call("publish", {}),)), Reply("no"), tools=[bench.tool("publish", requires_approval=True)]
    )
    with pytest.raises(OSError, match="disk full") as raised:
        await attempt(engine, brief, run)
    assert raised.value is broken


async def test_a_second_task_of_a_session_goes_on_from_the_first_ones_transcript(engine, play):
    brief = play(script=lambda turn: Reply(f"You asked: {turn.prompt}"))
    record = Record()
    await attempt(engine, brief, FakeRun(record))
    second = Record(transcript=record.transcript)
    outcome = await attempt(engine, replace(brief, task_id="task_2", prompt="And now?"), FakeRun(second))
    assert outcome.result == "You asked: And now?"
    assert kinds(second.transcript) == ["request", "response"] * 2
    assert second.usage.requests == 1


async def test_an_iteration_takes_no_more_work_and_no_more_bytes_late_than_early(engine, play):
    # Calls are counted, not milliseconds: these machines drift, and a call is a call.
    calls = 0
    after: list[int] = []

    def count(_frame: Any, _event: str, _argument: Any) -> None:
        nonlocal calls
        calls += 1

    class Counted(FakeRun):
        async def append(self, iteration: Iteration) -> None:
            await super().append(iteration)
            after.append(calls)

    bench = Bench()
    brief = play(script=scripted.loop(200, "look", lambda n: {"n": n}), tools=[bench.tool("look")], max_iterations=300)
    run = Counted(Record())
    sys.setprofile(count)
    try:
        await attempt(engine, brief, run)
    finally:
        sys.setprofile(None)
    work = [late - early for early, late in pairwise(after)]
    assert sum(work[180:200]) <= 1.05 * sum(work[5:25])
    sizes = run.record.appended_bytes
    assert sum(sizes[180:200]) <= 1.05 * sum(sizes[5:25])


async def test_the_engine_is_shown_only_the_last_exchange(engine, play, monkeypatch):
    from outrider.agents.pydantic_ai.durability import Durability

    lengths: list[int] = []
    before = Durability.before_model_request

    async def measured(self: Any, ctx: Any, request_context: Any) -> Any:
        result = await before(self, ctx, request_context)
        lengths.append(len(ctx.messages))
        return result

    monkeypatch.setattr(Durability, "before_model_request", measured)
    bench = Bench()
    brief = play(script=scripted.loop(20, "look", lambda n: {"n": n}), tools=[bench.tool("look")])
    await attempt(engine, brief, FakeRun(Record()))
    assert max(lengths) == 2
