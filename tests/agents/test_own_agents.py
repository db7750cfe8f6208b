"""Any agent of the engine's own making runs as it is: its tools, toolsets, output type, deps and hooks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
from langgraph.graph import MessagesState, StateGraph
from pydantic import BaseModel
from pydantic_ai import Agent, FunctionToolset, ModelRetry, RunContext, TextOutput, ToolReturn
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import SkipModelRequest, ToolFailed
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from outrider import Outrider
from outrider.agents import scripted
from outrider.agents.engine import AgentBrief, AgentFailed, Approval, ToolSpec, load_engine
from outrider.agents.scripted import Call, Reply
from outrider.core.errors import Parked, Refused, UnknownName
from outrider.core.values import JSON, JSONObject
from tests.agents.fakes import FakeRun, Killed, Record, attempt, timeless

pytestmark = pytest.mark.anyio

# A class of the engine's, not a test.
TestModel.__test__ = False


class Answer(BaseModel):
    """What the agent answers with."""

    name: str
    count: int


@dataclass
class Deps:
    """What the agent's tools are given."""

    factor: int


def brief(agent: object, **more: Any) -> AgentBrief:
    return AgentBrief("task_1", "ses_1", 1, "Count them.", agent=agent, **more)


def play(name: str, *replies: Reply) -> str:
    scripted.register(name, scripted.replies(*replies))
    return f"scripted:{name}"


async def test_an_agent_keeps_its_tools_deps_instructions_and_output_type_and_is_not_changed():
    agent = Agent(TestModel(custom_output_args={"name": "x", "count": 2}), deps_type=Deps, output_type=Answer)
    seen: list[int] = []

    @agent.instructions
    def instructions(ctx: RunContext[Deps]) -> str:
        return f"Multiply by {ctx.deps.factor}."

    @agent.tool
    def multiply(ctx: RunContext[Deps], n: int) -> int:
        seen.append(ctx.deps.factor)
        return n * ctx.deps.factor

    before = (agent.model, agent.name, list(agent.toolsets), agent.root_capability)
    run = FakeRun(Record())
    outcome = await attempt(load_engine(), brief(agent, deps=Deps(3)), run)
    assert outcome.result == {"name": "x", "count": 2}
    assert seen == [3]
    assert run.record.transcript[0]["instructions"] == "Multiply by 3."
    assert (run.record.provider, run.record.model) == ("test", "test")
    assert (agent.model, agent.name, list(agent.toolsets), agent.root_capability) == before


async def test_toolsets_need_no_id_static_or_dynamic():
    ran: list[str] = []

    def one() -> str:
        ran.append("one")
        return "1"

    def two() -> str:
        ran.append("two")
        return "2"

    agent = Agent(TestModel(), toolsets=[FunctionToolset([one])])

    @agent.toolset
    def dynamic(ctx: RunContext[object]) -> FunctionToolset[object]:
        return FunctionToolset([two])

    run = FakeRun(Record())
    await attempt(load_engine(), brief(agent), run)
    assert sorted(ran) == ["one", "two"]
    assert sum("/tool/" in key for key in run.steps_run) == 2


class Lost(Exception):
    """What the MCP SDK raises of a server that is gone."""

    error = SimpleNamespace(code=-32000, message="Connection closed")


@pytest.mark.parametrize("told", [ModelRetry, ToolFailed])
async def test_a_server_that_breaks_off_is_no_fault_of_the_models_which_would_call_it_again(told):
    def drop() -> str:
        raise told("Connection closed") from Lost()

    run = FakeRun(Record())
    with pytest.raises(ConnectionError, match="a call to drop"):
        await attempt(load_engine(), brief(Agent(TestModel(), toolsets=[FunctionToolset([drop])])), run)
    assert not [key for key in run.record.journal if "/tool/" in key]


async def test_the_runtimes_tools_are_added_to_the_agents_own():
    called: list[JSON] = []

    async def given(arguments: JSONObject, call_id: str) -> JSON:
        called.append(arguments)
        return "ok"

    agent = Agent(name="mine")

    @agent.tool_plain
    def own() -> str:
        return "own"

    model = play("both", Reply(calls=(Call("own", {}), Call("given", {"n": 1}))), Reply("done"))
    tool = ToolSpec("given", "Given.", {"type": "object"}, given)
    outcome = await attempt(load_engine(), brief(agent, model=model, tools=[tool]), FakeRun(Record()))
    assert outcome.result == "done"
    assert called == [{"n": 1}]
    assert agent.model is None


async def test_a_model_of_the_tasks_replaces_the_agents_own():
    agent = Agent(TestModel())
    run = FakeRun(Record())
    assert (await attempt(load_engine(), brief(agent, model=play("instead", Reply("hi"))), run)).result == "hi"
    assert run.record.provider == "scripted"


async def test_a_result_schema_asks_a_text_agent_for_a_structured_answer():
    model = play("structured", Reply(result={"n": 1}))
    outcome = await attempt(
        load_engine(), brief(Agent(), model=model, result_schema={"type": "object"}), FakeRun(Record())
    )
    assert outcome.result == {"n": 1}


async def test_what_its_tools_return_or_raise_comes_back_the_same_from_the_journal():
    ran: list[str] = []

    def agent() -> Agent[None, str]:
        made: Agent[None, str] = Agent()

        @made.tool_plain
        def rich() -> ToolReturn[Answer]:
            ran.append("rich")
            return ToolReturn(Answer(name="a", count=1), content=["see", "this"], metadata={"k": 1})

        @made.tool_plain
        def model() -> Answer:
            ran.append("model")
            return Answer(name="b", count=2)

        @made.tool_plain
        def retry() -> str:
            ran.append("retry")
            raise ModelRetry("not like that")

        @made.tool_plain
        def sneaky() -> dict[str, str]:
            ran.append("sneaky")
            return {"kind": "tool-return", "value": "x"}

        return made

    calls = tuple(Call(name, {}) for name in ("rich", "model", "retry", "sneaky"))
    model = play("rich", Reply(calls=calls), Reply("done"))
    whole = FakeRun(Record())
    await attempt(load_engine(), brief(agent(), model=model), whole)
    for dies_at in range(whole.writes):
        ran.clear()
        record = Record()
        with pytest.raises(Killed):
            await attempt(load_engine(), brief(agent(), model=model), FakeRun(record, dies_at=dies_at, stored=True))
        journaled = len([key for key in record.journal if "/tool/" in key])
        once = list(ran)
        await attempt(load_engine(), replace(brief(agent(), model=model), attempt=2), FakeRun(record))
        assert timeless(record.transcript) == timeless(whole.record.transcript), dies_at
        assert len(ran) == (len(once) - journaled) + 4 if record.iterations == 1 else True


@pytest.mark.parametrize("value", [object(), b"\xff", 10**30])
async def test_what_its_tools_or_the_agent_return_and_is_not_json_is_a_failure_that_no_attempt_would_mend(value):
    def odd() -> Any:
        return value

    def answer(text: str) -> float:
        return math.nan

    agent: Agent[None, Any] = Agent(tools=[odd], output_type=TextOutput(answer))
    for reply, who in ((Reply(calls=(Call("odd", {}),)), "the tool odd"), (Reply("x"), "the agent")):
        with pytest.raises(AgentFailed, match=f"{who} returned what is not JSON") as failure:
            await attempt(load_engine(), brief(agent, model=play("odd", reply)), FakeRun(Record()))
        assert (failure.value.kind, failure.value.retryable) == ("invalid_result", False)


async def test_its_own_approvals_park_and_go_on_too():
    ran: list[str] = []
    agent = Agent()

    @agent.tool_plain(requires_approval=True)
    def publish(to: str) -> str:
        ran.append(to)
        return "ok"

    model = play("own approval", Reply(calls=(Call("publish", {"to": "all"}),)), Reply("done"))
    record = Record()
    with pytest.raises(Parked):
        await attempt(load_engine(), brief(agent, model=model), FakeRun(record))
    record.decisions["call_1_1"] = Approval(True)
    assert (await attempt(load_engine(), replace(brief(agent, model=model), attempt=2), FakeRun(record))).result
    assert ran == ["all"]


@pytest.mark.parametrize("gate", [True, ["publish"]])
async def test_its_tools_wait_for_an_approval_that_the_task_requires(gate: bool | list[str]):
    ran: list[str] = []
    agent = Agent()

    @agent.tool_plain
    def publish(to: str) -> str:
        ran.append(to)
        return "ok"

    model = play("required", Reply(calls=(Call("publish", {"to": "all"}),)), Reply("done"))
    record = Record()
    gated = brief(agent, model=model, require_approval=gate)
    with pytest.raises(Parked):
        await attempt(load_engine(), gated, FakeRun(record))
    assert ran == []
    record.decisions["call_1_1"] = Approval(True)
    assert (await attempt(load_engine(), replace(gated, attempt=2), FakeRun(record))).result
    assert ran == ["all"]


async def test_an_approval_required_for_a_tool_that_it_does_not_have_fails_closed():
    agent = Agent()

    @agent.tool_plain
    def publish(to: str) -> str:
        raise AssertionError("it ran")

    model = play("no such", Reply(calls=(Call("publish", {"to": "all"}),)), Reply("done"))
    with pytest.raises(UnknownName, match="publsh"):
        await attempt(load_engine(), brief(agent, model=model, require_approval=["publsh"]), FakeRun(Record()))


async def test_effects_are_read_from_its_tools_metadata_and_from_hints():
    agent = Agent()

    @agent.tool_plain(metadata={"outrider": {"effects": "once"}})
    def pay() -> str:
        return "paid"

    @agent.tool_plain(metadata={"annotations": {"destructiveHint": True}})
    def delete() -> str:
        return "gone"

    @agent.tool_plain(metadata={"annotations": {"destructiveHint": True, "idempotentHint": True}})
    def put() -> str:
        return "put"

    names = ("pay", "delete", "put")
    run = FakeRun(Record())
    model = play("effects", Reply(calls=tuple(Call(name, {}, id=name) for name in names)), Reply("done"))
    await attempt(load_engine(), brief(agent, model=model), run)
    assert [run.steps_effects[f"1/tool/{name}"] for name in names] == ["once", "once", "idempotent"]


async def test_a_fallback_is_journaled_as_the_answer_it_gave():
    asked: list[str] = []

    def down(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        from pydantic_ai.exceptions import ModelHTTPError

        asked.append("down")
        raise ModelHTTPError(503, "down")

    def up(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        asked.append("up")
        return ModelResponse(parts=[TextPart("fine")])

    agent = Agent(FallbackModel(FunctionModel(down), FunctionModel(up)))
    record = Record()
    with pytest.raises(Killed):
        await attempt(load_engine(), brief(agent), FakeRun(record, dies_at=0, stored=True))
    asked.clear()
    outcome = await attempt(load_engine(), replace(brief(agent), attempt=2), FakeRun(record))
    assert outcome.result == "fine"
    assert asked == []


async def test_an_agent_that_handles_its_own_stream_is_heard_too():
    heard: list[str] = []

    class Listener(AbstractCapability[Any]):
        @property
        def has_wrap_run_event_stream(self) -> bool:
            return True

        async def wrap_run_event_stream(self, ctx: Any, *, stream: Any) -> Any:
            async for event in stream:
                heard.append(type(event).__name__)
                yield event

    run = FakeRun(Record())
    model = play("listened", Reply("Hello there."))
    await attempt(load_engine(), brief(Agent(capabilities=[Listener()]), model=model), run)
    assert run.output_text.strip() == "Hello there."
    assert heard


async def test_a_hook_that_answers_in_the_models_place_still_makes_an_iteration():
    class Cache(AbstractCapability[Any]):
        async def wrap_model_request(self, ctx: Any, *, request_context: Any, handler: Any) -> ModelResponse:
            raise SkipModelRequest(ModelResponse(parts=[TextPart("from the cache")]))

    run = FakeRun(Record())
    agent = Agent(TestModel(), capabilities=[Cache()])
    assert (await attempt(load_engine(), brief(agent), run)).result == "from the cache"
    assert [message["kind"] for message in run.record.transcript] == ["request", "response"]
    assert run.record.iterations == 1


async def test_messages_that_a_tool_enqueues_are_in_the_transcript():
    agent = Agent()

    @agent.tool
    def remind(ctx: RunContext[object]) -> str:
        ctx.enqueue("do not forget")
        return "ok"

    run = FakeRun(Record())
    model = play("enqueue", Reply(calls=(Call("remind", {}),)), Reply("done"))
    await attempt(load_engine(), brief(agent, model=model), run)
    assert "do not forget" in str(run.record.transcript[2:])


async def test_what_is_no_agent_is_rejected():
    with pytest.raises(AgentFailed) as raised:
        await attempt(load_engine(), brief("assistant"), FakeRun(Record()))
    assert raised.value.kind == "rejected"


async def test_calls_that_it_leaves_to_others_are_rejected():
    from pydantic_ai import DeferredToolRequests
    from pydantic_ai.tools import ToolDefinition
    from pydantic_ai.toolsets import ExternalToolset

    def ask(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=[ToolCallPart("elsewhere", {})])

    agent: Agent[None, Any] = Agent(
        FunctionModel(ask),
        output_type=[str, DeferredToolRequests],
        toolsets=[ExternalToolset([ToolDefinition(name="elsewhere")])],
    )
    with pytest.raises(AgentFailed, match="elsewhere"):
        await attempt(load_engine(), brief(agent), FakeRun(Record()))


@pytest.mark.parametrize(
    ("agent", "given", "told"),
    [
        (None, {"engine": "langchain"}, "known: function, langgraph, pydantic-ai"),
        (None, {"engine": ["function"]}, "known: function, langgraph, pydantic-ai"),
        (None, {"engine": "function"}, "pass it one"),
        (None, {"deps": 1}, "deps are for an agent"),
        (None, {"delegates": "yes"}, "delegates is True or False, not 'yes'"),
        (Agent(), {"engine": "langgraph"}, "made for pydantic-ai"),
        (Agent, {}, "pydantic_ai.agent.Agent is a class"),
        (StateGraph(MessagesState), {}, "compile"),
        (object(), {}, "an agent is an Agent of pydantic-ai, a compiled graph"),
        (print, {}, "async def"),
    ],
)
def test_what_no_engine_runs_is_refused_when_it_is_registered(agent, given, told):
    app = Outrider()
    with pytest.raises(Refused, match=told):
        app.agent("odd", agent, **given)
    assert app.registry.agents == {}


async def test_an_agent_that_nobody_gave_a_model_says_where_one_is_given():
    with pytest.raises(AgentFailed, match="no model: give model= to") as raised:
        await load_engine().run(brief(Agent()), FakeRun(Record()))
    assert raised.value.kind == "rejected"
