"""Graphs of LangGraph as agents: what is theirs alone, and death at every write where a graph is in the midst of it."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, TypedDict

import httpx2
import pytest
from langchain_core.language_models import BaseChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.channels import DeltaChannel
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, Send, interrupt

from outrider.agents.engine import AgentBrief, AgentFailed, AgentOutcome, ModelFailed, load_engine
from outrider.core.errors import Parked
from outrider.core.task import Usage
from tests.agents.fakes import FakeRun, Killed, Record, attempt

pytestmark = pytest.mark.anyio
ANSWERS = {"Who?": "Kim", "When?": "now", "Sure?": "yes", "Where?": "here"}


class State(MessagesState, total=False):
    log: Annotated[list[str], operator.add]


def merge(before: list[str], new: Sequence[list[str]]) -> list[str]:
    return [*before, *(each for some in new for each in some)]


class Deltas(TypedDict, total=False):
    topic: str
    log: Annotated[list[str], DeltaChannel(merge)]


class Plain(TypedDict, total=False):
    topic: str
    length: int
    text: str


def used(text: str, tokens: int) -> AIMessage:
    usage = {"input_tokens": tokens, "output_tokens": 1, "total_tokens": tokens + 1}
    return AIMessage(text, usage_metadata=usage)


def brief(graph: Any, prompt: str = "Go.", **more: Any) -> AgentBrief:
    return AgentBrief("task_1", "ses_1", 1, prompt, agent=graph, **more)


async def run(graph: Any, prompt: str = "Go.", **more: Any) -> tuple[AgentOutcome, FakeRun]:
    fake = FakeRun(Record(), answer=ANSWERS.get)
    return await attempt(load_engine("langgraph"), brief(graph, prompt, **more), fake), fake


def chain(state: Any, *nodes: Any, **compiled: Any) -> Any:
    builder = StateGraph(state)
    before = START
    for node in nodes:
        builder.add_node(node.__name__, node)
        builder.add_edge(before, node.__name__)
        before = node.__name__
    return builder.compile(**compiled)


def intricate(begun: Counter[str]) -> Any:
    """A graph with a subgraph that asks twice in one node, beside a node that asks too, and parallel sends."""

    async def inner(state: State) -> dict[str, Any]:
        begun["inner"] += 1
        return {"log": ["inner"], "messages": [used("From inside.", 10)]}

    async def ask_twice(state: State) -> dict[str, Any]:
        who, when = interrupt("Who?"), interrupt({"question": "When?", "expected": {"type": "string"}})
        begun["asked twice"] += 1
        return {"log": [f"{who} {when}"]}

    sub = StateGraph(State)
    sub.add_node("inner", inner)
    sub.add_node("ask_twice", ask_twice)
    sub.add_edge(START, "inner")
    sub.add_edge("inner", "ask_twice")
    compiled = sub.compile()

    async def under(state: State) -> dict[str, Any]:
        below = await compiled.ainvoke({"messages": state["messages"]})
        return {"log": below["log"], "messages": below["messages"]}

    async def ask(state: State) -> dict[str, Any]:
        return {"log": [str(interrupt("Sure?"))]}

    async def one(state: dict[str, Any]) -> dict[str, Any]:
        begun[f"one {state['n']}"] += 1
        return {"log": [f"one {state['n']}"]}

    async def end(state: State) -> dict[str, Any]:
        begun["end"] += 1
        return {"messages": [used(" | ".join(sorted(state["log"])), 100)]}

    graph = StateGraph(State)
    for node in (under, ask, one, end):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "under")
    graph.add_edge(START, "ask")
    graph.add_conditional_edges("under", lambda _: [Send("one", {"n": n}) for n in (1, 2, 3)], ["one"])
    graph.add_edge("one", "end")
    return graph.compile()


@pytest.mark.parametrize("stored", [False, True], ids=["before it is stored", "after it is stored"])
async def test_a_crash_at_any_write_gives_no_answer_to_another_question_and_runs_no_finished_node_again(stored):
    engine = load_engine("langgraph")
    whole = FakeRun(Record(), answer=ANSWERS.get)
    expected = await attempt(engine, brief(intricate(Counter())), whole)
    assert expected.result == "Kim now | inner | one 1 | one 2 | one 3 | yes"
    assert sorted(set(whole.questions)) == ["Sure?", "When?", "Who?"]
    assert whole.record.usage == Usage(requests=2, input_tokens=110, output_tokens=2)

    for dies_at in range(whole.writes):
        begun: Counter[str] = Counter()
        graph, record = intricate(begun), Record()
        with pytest.raises(Killed):
            await attempt(engine, brief(graph), FakeRun(record, answer=ANSWERS.get, dies_at=dies_at, stored=stored))
        again = FakeRun(record, answer=ANSWERS.get)
        outcome = await attempt(engine, replace(brief(graph), attempt=2), again)
        assert outcome == expected, dies_at
        assert (record.iterations, record.usage) == (whole.record.iterations, whole.record.usage), dies_at
        # What was in flight at the crash is done twice at most: a superstep has three nodes.
        assert max(begun.values()) <= 2, (dies_at, begun)
        assert begun.total() <= 6 + 3, (dies_at, begun)


async def test_a_subgraph_that_saves_nothing_is_run_like_any_other():
    async def first(state: State) -> dict[str, Any]:
        return {"log": ["first"]}

    async def second(state: State) -> dict[str, Any]:
        return {"messages": [used(f"{state['log'][-1]}, second", 1)]}

    graph = StateGraph(State)
    graph.add_node("below", chain(State, first, second, checkpointer=False))
    graph.add_edge(START, "below")
    assert (await run(graph.compile()))[0].result == "first, second"


async def test_a_graph_parks_on_each_question_and_goes_on_with_what_it_has():
    engine, record, begun = load_engine("langgraph"), Record(), Counter[str]()
    graph = intricate(begun)
    given: dict[str, str] = {}
    for question in ("Sure?", "Who?", "When?"):
        with pytest.raises(Parked):
            await attempt(engine, brief(graph), FakeRun(record, answer=given.get))
        given[question] = ANSWERS[question]
    outcome = await attempt(engine, brief(graph), FakeRun(record, answer=given.get))
    assert outcome.result == "Kim now | inner | one 1 | one 2 | one 3 | yes"
    assert set(begun.values()) == {1}


class DeltaMessages(TypedDict):
    messages: Annotated[
        list[Any], DeltaChannel(lambda before, new: [*before, *(each for some in new for each in some)])
    ]


@pytest.mark.parametrize("state", [MessagesState, DeltaMessages])
async def test_what_is_said_meanwhile_is_heard_once_and_never_between_a_call_and_its_result(state):
    engine = load_engine("langgraph")

    def talking(record: Record) -> tuple[Any, Counter[str]]:
        begun: Counter[str] = Counter()

        async def model(state: Any) -> dict[str, Any]:
            number = sum(isinstance(each, AIMessage) for each in state["messages"])
            if number == 1:  # right after the graph was told
                assert interrupt("Where?") == "here"
            begun["model"] += 1
            if number == 0 and not record.inbox:
                record.inbox.append("Mind the cat.")
            calls = [{"name": "look", "args": {}, "id": f"call_{number}"}] if number < 2 else []
            return {"messages": [AIMessage(f"said {number}", tool_calls=calls)]}

        async def look(state: Any) -> dict[str, Any]:
            begun["look"] += 1
            return {"messages": [ToolMessage("seen", tool_call_id=state["messages"][-1].tool_calls[0]["id"])]}

        async def write(state: Any) -> dict[str, Any]:
            return {"messages": [AIMessage(" | ".join(str(each.text) for each in state["messages"]))]}

        def whither(state: Any) -> str:
            return "look" if state["messages"][-1].tool_calls else "write"

        graph: Any = StateGraph(state)
        for node in (model, look, write):
            graph.add_node(node.__name__, node)
        graph.add_edge(START, "model")
        graph.add_conditional_edges("model", whither, ["look", "write"])
        graph.add_edge("look", "model")
        return graph.compile(), begun

    whole = FakeRun(Record(), answer=ANSWERS.get)
    graph, begun = talking(whole.record)
    expected = await attempt(engine, brief(graph), whole)
    assert expected.result == "Go. | said 0 | seen | Mind the cat. | said 1 | seen | said 2"
    assert (begun, whole.record.inbox) == ({"model": 3, "look": 2}, [])
    for dies_at in range(whole.writes):
        for stored in (False, True):
            record = Record()
            graph, begun = talking(record)
            with pytest.raises(Killed):
                await attempt(engine, brief(graph), FakeRun(record, answer=ANSWERS.get, dies_at=dies_at, stored=stored))
            outcome = await attempt(engine, replace(brief(graph), attempt=2), FakeRun(record, answer=ANSWERS.get))
            assert (outcome, record.inbox) == (expected, []), (dies_at, stored)
            assert begun.total() <= 6, (dies_at, stored)


async def test_what_was_said_in_a_turn_that_came_to_nothing_is_heard_with_the_next_prompt():
    async def repeat(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(" | ".join(str(each.text) for each in state["messages"]))]}

    graph = StateGraph(MessagesState).add_node("repeat", repeat).add_edge(START, "repeat").compile()
    record = Record(transcript=[{"said": "First."}, {"said": "Wait!", "meanwhile": True}, {"said": "Go."}])
    given = brief(graph, asked=True, before=2)
    assert (await attempt(load_engine("langgraph"), given, FakeRun(record))).result == "First. | Wait! | Go."
    again = Record(transcript=[*record.transcript, {"said": "Go."}])
    given = brief(graph, asked=True, before=len(again.transcript) - 1)
    answer = (await attempt(load_engine("langgraph"), given, FakeRun(again))).result
    assert answer == "First. | Wait! | Go. | First. | Wait! | Go. | Go."


async def test_what_a_model_takes_is_counted_even_where_its_answer_comes_into_no_state():
    class Model(BaseChatModel):
        @property
        def _llm_type(self) -> str:
            return "tiny"

        def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
            message = used("thought", 7)
            message.response_metadata = {"model_name": "tiny-1", "model_provider": "tiny"}
            return ChatResult(generations=[ChatGeneration(message=message)])

    model = Model()

    async def think(state: State) -> dict[str, Any]:
        await model.ainvoke("first")
        return {"messages": [await model.ainvoke("second")]}

    outcome, fake = await run(chain(State, think))
    assert outcome.result == "thought"
    record = fake.record
    assert record.usage == Usage(requests=2, input_tokens=14, output_tokens=2)
    assert (record.provider, record.model) == ("tiny", "tiny-1")


async def test_what_a_model_says_is_shown_as_it_comes():
    model = GenericFakeChatModel(messages=iter([AIMessage("one two three")]))

    async def speak(state: State) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    shown: list[str] = []
    fake = FakeRun(Record())
    fake.output = shown.append  # type: ignore[method-assign, assignment]  # to see what is shown, in order
    await attempt(load_engine("langgraph"), brief(chain(State, speak)), fake)
    assert [text for text in shown if text.strip()] == ["one", "two", "three"]


async def test_the_next_task_of_a_session_goes_on_with_the_thread():
    async def count(state: State) -> dict[str, Any]:
        return {"messages": [used(f"message {len(state['messages'])}", 1)]}

    graph = chain(State, count)
    first, fake = await run(graph)
    assert first.result == "message 1"
    transcript = fake.record.transcript
    second = FakeRun(Record(transcript=transcript))
    outcome = await attempt(load_engine("langgraph"), brief(graph, before=len(transcript)), second)
    assert outcome.result == "message 3"
    assert second.record.usage.requests == 1


async def test_a_channel_of_deltas_is_put_together_again_from_what_was_kept():
    def step(n: int) -> Callable[[Any], Any]:
        async def node(state: Any) -> dict[str, Any]:
            return {"log": [f"{n} after {len(state['log'])}"]}

        node.__name__ = f"step_{n}"
        return node

    graph = chain(Deltas, *[step(n) for n in range(4)])
    expected = ["0 after 0", "1 after 1", "2 after 2", "3 after 3"]
    prompt = '{"topic": "deltas"}'
    outcome, whole = await run(graph, prompt)
    assert outcome.result == {"topic": "deltas", "log": expected}
    for dies_at in range(whole.writes):
        record = Record()
        with pytest.raises(Killed):
            await attempt(load_engine("langgraph"), brief(graph, prompt), FakeRun(record, dies_at=dies_at, stored=True))
        assert await attempt(load_engine("langgraph"), brief(graph, prompt), FakeRun(record)) == outcome, dies_at


def looping(times: int, say: Callable[[int, list[Any]], list[Any]], state: Any = MessagesState) -> Any:
    """A graph of one node that is run so often; `say` returns what it writes to the messages."""

    async def node(state: Any) -> dict[str, Any]:
        return {"messages": say(len(said(state)), state["messages"])}

    def said(state: Any) -> list[AIMessage]:
        return [each for each in state["messages"] if isinstance(each, AIMessage)]

    graph: Any = StateGraph(state).add_node("node", node).add_edge(START, "node")
    return graph.add_conditional_edges("node", lambda state: "node" if len(said(state)) < times else END).compile()


async def test_a_superstep_costs_as_many_bytes_as_it_adds_however_long_the_messages_are():
    graph, record = looping(60, lambda n, _: [AIMessage(f"{n:04}" + "x" * 200)]), Record()
    with pytest.raises(Killed):
        await attempt(load_engine("langgraph"), brief(graph, max_iterations=99), FakeRun(record, dies_at=60))
    before = record.iterations
    assert 20 < before < 40
    outcome = await attempt(load_engine("langgraph"), brief(graph, max_iterations=99), FakeRun(record))
    assert outcome.result == "0059" + "x" * 200
    sizes = record.appended_bytes
    assert len(sizes) == 60
    assert max(sizes[1:]) <= 1.1 * sizes[1], "the first after a crash too"
    assert record.journaled_bytes <= 61 * sizes[1]


class Edited(TypedDict):
    messages: Annotated[list[Any], lambda _, new: new]


async def test_a_list_that_is_edited_is_put_together_again_as_it_was():
    def edit(n: int, messages: list[Any]) -> list[Any]:
        said = AIMessage(f"said {n}")
        match n:
            case 2:
                return [*messages[:-1], AIMessage("another"), said]
            case 3:
                messages[1].content = "changed in place"
                return [*messages, said]
            case 4:
                return [*messages[1:], AIMessage("more"), said]
            case 6:
                return [*messages[:3], said, said, said, said]
            case _:
                return [*messages, said]

    def end(n: int, messages: list[Any]) -> list[Any]:
        return edit(n, messages) if n < 8 else [AIMessage(" | ".join(str(each.text) for each in messages))] * 9

    graph = looping(9, end, Edited)
    outcome, whole = await run(graph)
    assert outcome.result == " | ".join(["changed in place", "another", "said 2", *["said 6"] * 4, "said 7"])
    for dies_at in range(whole.writes):
        record = Record()
        with pytest.raises(Killed):
            await attempt(load_engine("langgraph"), brief(graph), FakeRun(record, dies_at=dies_at, stored=True))
        assert await attempt(load_engine("langgraph"), brief(graph), FakeRun(record)) == outcome, dies_at


async def test_a_graph_of_the_functional_interface_runs_no_finished_task_again():
    begun: Counter[str] = Counter()

    @task
    async def double(n: int) -> int:
        begun[f"double {n}"] += 1
        return 2 * n

    @entrypoint()
    async def flow(given: dict[str, Any]) -> dict[str, Any]:
        first = await double(given["n"])
        where = interrupt("Where?")
        return {"doubled": await double(first), "where": where}

    outcome, fake = await run(flow, '{"n": 3}')
    assert outcome.result == {"doubled": 12, "where": "here"}
    assert begun == {"double 3": 1, "double 6": 1}
    assert fake.record.iterations == 1


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [('{"topic": "cats", "length": 2}', {"topic": "cats", "length": 2, "text": "cats cats"})],
)
async def test_a_graph_without_messages_takes_an_object_and_gives_one(prompt, expected):
    outcome, _ = await run(chain(Plain, repeat), prompt)
    assert outcome.result == expected


async def test_a_prompt_that_gives_a_graph_nothing_it_takes_is_rejected():
    with pytest.raises(AgentFailed, match="length") as failure:
        await run(chain(Plain, repeat), "about cats")
    assert failure.value.kind == "rejected"


async def test_what_a_graph_keeps_and_is_no_json_hinders_no_answer_and_as_one_is_in_base64():
    class Drawn(MessagesState, total=False):
        drawn: bytes

    async def draw(state: Drawn) -> dict[str, Any]:
        return {"drawn": b"\xff", "messages": [used("Drawn.", 1)]}

    assert (await run(chain(Drawn, draw)))[0].result == "Drawn."
    fake = FakeRun(Record(), mismatches=lambda result: None if result == "_w==" else "no")
    given = brief(chain(Drawn, draw), result_schema={"type": "string"})
    assert (await attempt(load_engine("langgraph"), given, fake)).result == "_w=="


@pytest.mark.parametrize("value", [object(), float("nan")])
async def test_what_no_json_or_no_checkpoint_can_hold_is_a_failure_that_no_other_attempt_would_mend(value):
    async def keep(state: Plain) -> dict[str, Any]:
        return {"text": value}

    with pytest.raises(AgentFailed, match=r"not JSON|cannot be saved") as failure:
        await run(chain(Plain, keep), '{"topic": "x", "length": 1}')
    assert (failure.value.kind, failure.value.retryable) == ("invalid_result", False)


async def test_an_answer_is_taken_from_where_the_schema_fits():
    async def answer(state: State) -> dict[str, Any]:
        return {"messages": [used('{"n": 3}', 1)]}

    fake = FakeRun(Record(), mismatches=lambda result: None if result == {"n": 3} else "no")
    given = brief(chain(State, answer), result_schema={"type": "object"})
    assert (await attempt(load_engine("langgraph"), given, fake)).result == {"n": 3}


async def test_a_graph_that_has_used_up_its_iterations_is_not_run_again_by_another_attempt():
    begun: Counter[str] = Counter()

    async def again(state: State) -> dict[str, Any]:
        begun["again"] += 1
        return {"messages": [used("Still at it.", 1)]}

    builder = StateGraph(State)
    builder.add_node("again", again)
    builder.add_edge(START, "again")
    builder.add_edge("again", "again")
    graph = builder.compile()
    record = Record()
    given = brief(graph, max_iterations=3)
    with pytest.raises(Killed):
        await attempt(load_engine("langgraph"), given, FakeRun(record, dies_at=8, stored=True))
    for _ in range(2):
        outcome = await attempt(load_engine("langgraph"), given, FakeRun(record))
        assert outcome == AgentOutcome("max_iterations", text="Still at it.")
    assert (begun["again"], record.iterations, record.usage.requests) == (3, 3, 3)


@pytest.mark.parametrize(("status", "retryable"), [(400, False), (429, True), (503, True)])
async def test_an_error_of_a_provider_says_if_to_try_again(status, retryable):
    class Refused(Exception):
        status_code = status
        response = httpx2.Response(status, headers={"Retry-After": "20"})

    async def speak(state: State) -> dict[str, Any]:
        return {"messages": [used("So far.", 1)]}

    async def refuse(state: State) -> dict[str, Any]:
        raise Refused("no more")

    with pytest.raises(ModelFailed, match="no more") as failure:
        await run(chain(State, speak, refuse))
    assert (failure.value.retryable, failure.value.partial) == (retryable, "So far.")
    assert failure.value.retry_after == 20


async def test_an_attempt_that_fails_journals_nothing_new_so_that_its_failures_are_counted():
    async def ask_and_fail(state: State) -> dict[str, Any]:
        interrupt("Where?")
        raise RuntimeError("it burst")

    graph, record = chain(State, ask_and_fail), Record()
    kept: list[set[str]] = []
    for _ in range(3):
        with pytest.raises(RuntimeError):
            await attempt(load_engine("langgraph"), brief(graph), FakeRun(record, answer=ANSWERS.get))
        kept.append(set(record.journal))
    assert kept[0] == kept[1] == kept[2]


def named(name: str, node: Any) -> Any:
    async def run_it(state: Any) -> Any:
        return await node(state)

    run_it.__name__ = name
    return run_it


async def log_plan(state: State) -> dict[str, Any]:
    return {"log": ["plan"]}


async def log_answer(state: State) -> dict[str, Any]:
    return {"log": [str(interrupt("Sure?"))]}


async def log_done(state: State) -> dict[str, Any]:
    return {"messages": [used(" ".join([*state["log"], "done"]), 1)]}


def steps(*names: str) -> tuple[Any, ...]:
    return tuple(named(name, {"p": log_plan, "a": log_answer, "d": log_done}[name[0]]) for name in names)


def planning(*names: str) -> Any:
    return chain(State, *steps(*names))


def below(*names: str, handled: bool = False) -> Any:
    """The same as a subgraph: two levels, the lower in a node that may handle whatever is raised there."""
    inner = planning(*names)

    async def lower(state: State) -> dict[str, Any]:
        try:
            return {"messages": (await inner.ainvoke({"messages": state["messages"]}))["messages"]}
        except Exception:
            if not handled:
                raise
            return {"messages": [used("half", 1)]}

    return chain(State, named("upper", chain(State, lower).ainvoke))


def joining(*, wait: str, end: str, asks: str = "ask") -> Any:
    """Two branches of different lengths, and a node that waits for both."""
    builder = StateGraph(State)
    for name, node in ((wait, log_plan), ("plan", log_plan), (asks, log_answer), (end, log_done)):
        builder.add_node(name, node)
    builder.add_edge(START, wait)
    builder.add_edge(START, "plan")
    builder.add_edge("plan", asks)
    builder.add_edge([wait, asks], end)
    return builder.compile()


def sending(name: str) -> Any:
    builder = StateGraph(State)
    builder.add_node("plan", log_plan)
    builder.add_node(name, log_answer)
    builder.add_conditional_edges("plan", lambda _: [Send(name, {})], [name])
    builder.add_edge(START, "plan")
    return builder.compile()


def beside(name: str, after: str) -> Any:
    """A node that asks beside one that ends, which says by a command what comes after it."""

    async def go(state: State) -> Any:
        return Command(update={"log": ["gone"]}, goto=after)

    builder = StateGraph(State)
    builder.add_node("ask", log_answer)
    builder.add_node(name, go, destinations=(after,))
    builder.add_node(after, log_done)
    builder.add_edge(START, "ask")
    builder.add_edge(START, name)
    return builder.compile()


def functional(name: str) -> Any:
    async def work(given: Any) -> Any:
        return interrupt("Sure?")

    work.__name__ = name
    return entrypoint()(work)


async def interrupted(old: Any, new: Any) -> AgentFailed:
    """How a task fails that the old graph left waiting, and that is answered under the new one."""
    record = Record()
    with pytest.raises(Parked):
        await attempt(load_engine("langgraph"), brief(old), FakeRun(record))
    before = (set(record.journal), record.iterations, len(record.transcript))
    again = FakeRun(record, answer=ANSWERS.get)
    with pytest.raises(AgentFailed, match="the graph has changed since this task began") as failure:
        await attempt(load_engine("langgraph"), replace(brief(new), attempt=2), again)
    assert (failure.value.kind, failure.value.retryable) == ("interrupted", False)
    kept = set(record.journal)
    assert (kept, record.iterations, len(record.transcript)) == before, kept - before[0]
    return failure.value


@pytest.mark.parametrize(
    ("old", "new", "journaled", "met"),
    [
        (planning("plan", "ask", "done"), planning("plan", "alter", "done"), "'ask'", "'alter', 'done', 'plan'"),
        (planning("plan", "ask", "done"), planning("plan", "done"), "'ask'", "'done', 'plan'"),
        (
            below("plan", "ask", "done"),
            below("plan", "alter", "done"),
            "'ask' of subgraph 'upper/lower'",
            "'alter', 'done', 'plan'",
        ),
        (
            joining(wait="w", end="end"),
            joining(wait="w", end="finish"),
            "'end' after 'w' and 'ask'",
            "'ask', 'finish', 'plan', 'w'",
        ),
        (
            joining(wait="w", end="end"),
            joining(wait="v", end="end"),
            "'end' after 'w' and 'ask'",
            "'ask', 'end', 'plan', 'v'",
        ),
        (sending("ask"), sending("alter"), "'ask'", "'alter', 'plan'"),
        (beside("go", "then"), beside("gone", "then"), "'go'", "'ask', 'gone', 'then'"),
        (beside("go", "then"), beside("go", "later"), "'then'", "'ask', 'go', 'later'"),
        (functional("work"), functional("labour"), "'work'", "'labour'"),
    ],
    ids=[
        "renamed",
        "removed",
        "in a subgraph",
        "join",
        "waited for",
        "sent",
        "beside",
        "next of one that ended",
        "entry",
    ],
)
async def test_what_comes_next_and_is_gone_from_the_graph_fails_as_interrupted_and_drops_nothing(
    old: Any, new: Any, journaled: str, met: str
):
    failure = await interrupted(old, new)
    assert failure.details == {"journaled": f"node {journaled}", "met": f"nodes {met}"}


async def test_a_node_around_a_subgraph_that_is_gone_hides_it_from_nobody():
    record = Record()
    with pytest.raises(Parked):
        await attempt(load_engine("langgraph"), brief(below("plan", "ask", "done")), FakeRun(record))
    new = below("plan", "alter", "done", handled=True)
    with pytest.raises(AgentFailed, match="'ask' of subgraph"):
        await attempt(load_engine("langgraph"), brief(new), FakeRun(record, answer=ANSWERS.get))


@pytest.mark.parametrize("graph", [planning, below])
async def test_a_node_that_has_ended_may_be_renamed_and_the_graph_goes_on(graph: Callable[..., Any]):
    record = Record()
    with pytest.raises(Parked):
        await attempt(load_engine("langgraph"), brief(graph("plan", "ask", "done")), FakeRun(record))
    again = FakeRun(record, answer=ANSWERS.get)
    outcome = await attempt(load_engine("langgraph"), brief(graph("prepare", "ask", "deliver")), again)
    assert outcome.result == "plan yes done"


async def test_what_a_former_task_left_in_the_midst_hinders_no_next_task_of_the_session():
    record = Record()
    with pytest.raises(Parked):
        await attempt(load_engine("langgraph"), brief(joining(wait="w", end="end")), FakeRun(record))
    new = joining(wait="v", end="finish", asks="alter")
    told = brief(new, before=len(record.transcript))
    second = Record(transcript=record.transcript)
    with pytest.raises(Parked):
        await attempt(load_engine("langgraph"), told, FakeRun(second))
    outcome = await attempt(load_engine("langgraph"), told, FakeRun(second, answer=ANSWERS.get))
    assert outcome.result.endswith("yes done")


@pytest.mark.parametrize("more", [{"require_approval": True}, {"tools": [object()]}])
async def test_a_graph_is_given_no_tools_and_no_approvals(more):
    with pytest.raises(AgentFailed, match="its own tools") as failure:
        await run(chain(State, repeat), **more)
    assert failure.value.kind == "rejected"


async def test_a_breakpoint_that_asks_nothing_is_rejected():
    async def speak(state: State) -> dict[str, Any]:
        return {"messages": [HumanMessage("x")]}

    builder = StateGraph(State)
    builder.add_node("speak", speak)
    builder.add_edge(START, "speak")
    with pytest.raises(AgentFailed, match="interrupt"):
        await run(builder.compile(interrupt_before=["speak"]))


async def repeat(state: Any) -> dict[str, Any]:
    return {"text": " ".join([state["topic"]] * state["length"])}
