"""What is told of agents, whichever engine runs them: spans in the GenAI conventions, and metrics without any id."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackManager
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool as graph_tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from pydantic_ai import Agent
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.models.test import TestModel

from outrider import Failure, Outrider, TaskOptions
from outrider.agents.engine import ToolError
from outrider.agents.function import AgentContext
from outrider.agents.telling import CONTENT
from outrider.core.task import Usage
from outrider.runtime.telemetry import MOST_VALUES, OTHER
from outrider.testing import Call, ModelFailure, Reply, Turn, open_test, replies, script
from tests.telemetry import Told, attributes_of, ident, listening, parent, traces

pytestmark = pytest.mark.anyio
REQUIRED = {"gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"}


@pytest.fixture
def told() -> Iterator[Told]:
    with listening() as told:
        yield told


def spans(told: Told, operation: str) -> list[ReadableSpan]:
    return [each for each in told.spans() if each.name.split()[0] == operation]


def points(told: Told, name: str) -> dict[tuple[str, ...], float]:
    """The sums of an instrument by all attributes but kind and agent."""
    found: dict[tuple[str, ...], float] = {}
    for point in told.metrics().get(name, ()):
        left_out = ("outrider.task.kind", "gen_ai.agent.name")
        key = tuple(str(value) for attribute, value in point.attributes.items() if attribute not in left_out)
        found[key] = getattr(point, "count", None) or point.value
    return found


async def told_of(app: Outrider, told: Told, **given: Any) -> Any:
    """Run an agent to its end, and return the record of its task."""
    async with open_test(app, store="memory") as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn_agent("sesame?", **given)
        await runtime.run_until_idle()
        await runtime.advance(120)
        await runtime.run_until_idle()
        return await task.record()


# --- the default engine ----------------------------------------------------------------------------------


async def test_each_try_of_each_model_is_a_span_and_what_failed_says_how(told: Told):
    script("worse", lambda turn: Reply(failure=ModelFailure(503)))
    script("better", replies(Reply("yes")))
    app = Outrider()
    app.model("scripted:better", input_price=1.0, output_price=2.0)
    record = await told_of(app, told, model=["scripted:worse", "scripted:better"])
    assert record.state == "succeeded"
    worse, better = spans(told, "chat")
    for each in (worse, better):
        assert each.kind is SpanKind.CLIENT
        assert attributes_of(each).keys() >= REQUIRED
    assert (worse.status.status_code, attributes_of(worse)["error.type"]) == (StatusCode.ERROR, "503")
    assert attributes_of(better)["gen_ai.response.model"] == "scripted:better"
    assert attributes_of(better)["gen_ai.response.finish_reasons"] == ("stop",)
    assert "error.type" not in attributes_of(better)
    assert points(told, "outrider.agent.request.duration") == {
        ("scripted:worse", "scripted", "503"): 1,
        ("scripted:better", "scripted"): 1,
    }
    tokens = points(told, "outrider.agent.tokens")
    assert tokens == {
        ("scripted:better", "scripted", "input"): record.usage.input_tokens,
        ("scripted:better", "scripted", "output"): record.usage.output_tokens,
    }
    assert points(told, "outrider.agent.cost") == {("scripted:better", "scripted"): record.usage.cost}


async def test_a_call_of_a_tool_is_a_span_that_says_what_came_of_it(told: Told):
    app, tries = Outrider(), 0

    @app.tool
    def shaky(word: str) -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise Failure("not yet", kind="out_of_luck", retryable=True)
        return word

    script("tools", replies(Reply(calls=(Call("shaky", {"word": 1}),)), Reply(calls=(Call("shaky", {"word": "a"}),))))
    app.agent("teller", model="scripted:tools", tools=["shaky"], max_iterations=3)
    await told_of(app, told, agent="teller")
    errors = [attributes_of(each).get("error.type") for each in spans(told, "execute_tool")]
    assert errors == ["ToolRetry", "out_of_luck", None]
    assert points(told, "outrider.agent.tool.duration") == {
        ("shaky", "ToolRetry"): 1,
        ("shaky", "out_of_luck"): 1,
        ("shaky",): 1,
    }
    (agent,) = {point.attributes["gen_ai.agent.name"] for point in told.metrics()["outrider.agent.tool.duration"]}
    assert agent == "teller"


@pytest.mark.parametrize("by", ["all", "agent"])
async def test_a_program_that_instruments_the_engine_itself_has_each_span_once(told: Told, by: str):
    app = Outrider()
    settings = InstrumentationSettings(include_content=True)
    agent = Agent(TestModel(custom_output_text="open sesame"), name="own")
    if by == "agent":
        agent.instrument = settings
    app.agent("own", agent)
    Agent.instrument_all(settings if by == "all" else False)
    try:
        await told_of(app, told, agent="own")
    finally:
        Agent.instrument_all(False)
    (chat,), (_,) = spans(told, "chat"), spans(told, "invoke_agent")
    assert "open sesame" in str(attributes_of(chat)["gen_ai.output.messages"])  # as it was told to
    assert points(told, "outrider.agent.request.duration") == {("test:test", "test"): 1}


@pytest.mark.parametrize("asked", [None, "true"])
async def test_what_is_said_is_told_only_if_that_is_asked_for(told: Told, monkeypatch: pytest.MonkeyPatch, asked):
    if asked:
        monkeypatch.setenv(CONTENT, asked)
    app = Outrider()

    @app.tool
    def secret(word: str) -> str:
        return word

    async def function(ctx: AgentContext) -> Any:
        return await ctx.call("secret", {"word": "sesame"})

    script("says", replies(Reply(calls=(Call("secret", {"word": "sesame"}),)), Reply("open sesame")))
    app.agent("plain", model="scripted:says", tools=["secret"])
    app.agent("function", function, tools=["secret"])
    app.agent("graph", graph_of(secret_of_graph))
    for name in ("plain", "function", "graph"):
        await told_of(app, told, agent=name)
    for operation, count in {"chat": 4, "execute_tool": 3}.items():
        found = [str(attributes_of(each)) for each in spans(told, operation)]
        assert [each for each in found if ("sesame" in each) != bool(asked)] == []
        assert len(found) == count


# --- parents ---------------------------------------------------------------------------------------------


async def test_a_child_hangs_on_the_call_of_the_tool_by_which_an_agent_started_it(told: Told):
    def boss(turn: Turn) -> Reply:
        if turn.number > 1:
            return Reply("done")
        return Reply(calls=(Call("spawn_agent", {"instructions": "help", "agent": "child", "mode": "foreground"}),))

    script("boss", boss)
    script("child", replies(Reply("helped")))
    app = Outrider()
    app.agent("boss", model="scripted:boss", delegates=True)
    app.agent("child", model="scripted:child")
    await told_of(app, told, agent="boss")
    call, _ = spans(told, "execute_tool")  # it parks in there, and comes to it again
    (child,) = [each for each in told.spans("outrider.task") if attributes_of(each)["outrider.task.name"] == "help"]
    assert parent(child) == ident(call)
    attempts = {attributes_of(each)["outrider.task.name"]: parent(each) for each in told.spans("outrider.attempt")}
    assert attempts["help"] == ident(call)
    assert len(traces(told.spans())) == 1


async def test_a_task_that_is_made_on_one_machine_and_run_on_another_is_in_one_trace(tmp_path):
    app = Outrider()

    @app.tool
    def nothing() -> None:
        pass

    url = str(tmp_path / "work.db")
    with listening() as here:
        async with app.open(url, worker=False) as runtime:
            session = await runtime.sessions.create()
            with here.traces.get_tracer("mine").start_as_current_span("mine"):
                task_id = (await session.spawn("nothing")).id
    with listening() as there:
        async with open_test(app, store="memory"):
            pass  # whatever else this process did before
        async with app.open(url) as runtime:
            await (await runtime.task(task_id)).result()
    (attempt,) = there.spans("outrider.attempt")
    assert parent(attempt) == ident(here.span("mine"))
    assert traces([attempt]) == traces([here.span("mine")])


# --- functions -------------------------------------------------------------------------------------------


async def test_an_agent_that_is_a_function_has_its_run_its_steps_and_its_tools_told(told: Told):
    app = Outrider()

    @app.tool
    def look(word: str) -> str:
        raise Failure("no", kind="blind")

    async def agent(ctx: AgentContext) -> str:
        await ctx.step("think", lambda: 1)
        with pytest.raises(Failure):
            await ctx.call("look", {"word": "x"})
        await ctx.append("said", usage=Usage(2, 30, 4, 10, 0.5), model="gpt", provider="openai")
        return "seen"

    app.agent("seer", agent, tools=["look"])
    await told_of(app, told, agent="seer")
    run = told.span("invoke_agent seer")
    step, call = told.span("outrider.step"), told.span("execute_tool look")
    assert {parent(step), parent(call)} == {ident(run)}
    assert attributes_of(call)["error.type"] == "blind"
    assert parent(run) == ident(told.span("outrider.attempt"))
    assert points(told, "outrider.agent.tool.duration") == {("look", "blind"): 1}
    assert points(told, "outrider.agent.tokens") == {
        ("gpt", "openai", "input"): 30,
        ("gpt", "openai", "cached"): 10,
        ("gpt", "openai", "output"): 4,
    }
    assert points(told, "outrider.agent.cost") == {("gpt", "openai"): 0.5}


# --- graphs ----------------------------------------------------------------------------------------------


@graph_tool
def secret_of_graph(word: str) -> str:
    """Tell a word."""
    return word


@graph_tool
def broken_of_graph(word: str) -> str:
    """Tell nothing."""
    raise ToolError("no")


def graph_of(given: Any) -> Any:
    call = {"name": given.name, "args": {"word": "sesame"}, "id": "call_1"}

    class Model(BaseChatModel):
        @property
        def _llm_type(self) -> str:
            return "tiny"

        def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
            answer = AIMessage("open sesame") if len(messages) > 1 else AIMessage("", tool_calls=[call])
            answer.usage_metadata = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
            answer.response_metadata = {"model_name": "tiny-1", "model_provider": "tiny", "finish_reason": "stop"}
            return ChatResult(generations=[ChatGeneration(message=answer)])

    model = Model()

    async def ask(state: MessagesState) -> Any:
        return {"messages": [await model.ainvoke(state["messages"])]}

    builder: Any = StateGraph(MessagesState)
    builder.add_node("ask", ask)
    builder.add_node("tools", ToolNode([given], handle_tool_errors=True))
    builder.add_edge(START, "ask")
    builder.add_conditional_edges("ask", lambda state: "tools" if state["messages"][-1].tool_calls else END)
    builder.add_edge("tools", "ask")
    return builder.compile()


async def test_a_graph_has_its_requests_and_calls_told_below_its_run(told: Told):
    app = Outrider()
    app.agent("graph", graph_of(secret_of_graph))
    record = await told_of(app, told, agent="graph")
    assert record.state == "succeeded"
    run = told.span("invoke_agent graph")
    chats, (call,) = spans(told, "chat"), spans(told, "execute_tool")
    assert {parent(each) for each in (*chats, call)} == {ident(run)}
    assert {each.kind for each in chats} == {SpanKind.CLIENT}
    assert attributes_of(chats[1])["gen_ai.usage.input_tokens"] == 7
    assert attributes_of(chats[1])["gen_ai.response.finish_reasons"] == ("stop",)
    assert attributes_of(call)["gen_ai.tool.call.id"] == "call_1"
    tokens = {point.attributes["gen_ai.token.type"]: point.value for point in told.metrics()["outrider.agent.tokens"]}
    assert (
        tokens
        == {"input": record.usage.input_tokens, "output": record.usage.output_tokens}
        == {"input": 14, "output": 4}
    )
    assert points(told, "outrider.agent.request.duration") == {("tiny-1", "tiny"): 2}
    assert points(told, "outrider.agent.tool.duration") == {("secret_of_graph",): 1}


async def test_a_graph_s_tool_that_fails_is_told_as_an_error(told: Told):
    app = Outrider()
    app.agent("graph", graph_of(broken_of_graph))
    await told_of(app, told, agent="graph")
    (call,) = spans(told, "execute_tool")
    assert attributes_of(call)["error.type"] == "ToolError"
    assert points(told, "outrider.agent.tool.duration") == {("broken_of_graph", "ToolError"): 1}


async def test_a_program_that_instruments_langchain_itself_has_no_spans_of_ours(told: Told, monkeypatch):
    init = BaseCallbackManager.__init__

    def wrapped(self: Any, *given: Any, **named: Any) -> None:
        init(self, *given, **named)

    wrapped.__wrapped__ = init  # type: ignore[attr-defined]  # as wrapt has it, with which they all do it
    monkeypatch.setattr(BaseCallbackManager, "__init__", wrapped)
    app = Outrider()
    app.agent("graph", graph_of(secret_of_graph))
    await told_of(app, told, agent="graph")
    assert spans(told, "chat") == spans(told, "execute_tool") == []
    assert sum(points(told, "outrider.agent.request.duration").values()) == 2


# --- bounds ----------------------------------------------------------------------------------------------


async def test_whatever_callers_think_up_a_metric_has_so_many_values_and_no_more(told: Told):
    app = Outrider()

    @app.tool
    def fails(kind: str) -> None:
        raise Failure("no", kind=kind)

    async with open_test(app, store="memory") as runtime:
        session = await runtime.sessions.create()
        kinds = [{"kind": f"kind_{number}" + "x" * 1000} for number in range(MOST_VALUES + 20)]
        await session.spawn_many("fails", kinds, options=TaskOptions(max_failures=1))
        await runtime.run_until_idle()
    errors = {point.attributes["error.type"]: point.value for point in told.metrics()["outrider.task.ended"]}
    assert len(errors) == MOST_VALUES + 1
    assert errors[OTHER] == 20
    assert max(map(len, errors)) <= 128
    ids = [json.dumps(dict(point.attributes)) for each in told.metrics().values() for point in each]
    assert not [each for each in ids if "task_0" in each or "session_" in each or "worker_" in each]
