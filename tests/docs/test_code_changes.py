"""Each line of the tables of docs/code-changes.md, shown: old code until it waits, a deploy, then the new code.

A test is named by the first cell of its line. Deploys are real: two apps open one database file, one after the other.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from pydantic import ValidationError

from outrider import Outrider, State, TaskContext, TaskHandle, TaskOptions, WorkerSettings
from outrider.agents import scripted
from outrider.agents.function import AgentContext
from outrider.agents.scripted import Call, Reply, Turn
from outrider.core.errors import UnknownName, WaitTimeout
from outrider.runtime.facade import Runtime
from outrider.runtime.records import TaskRecord
from outrider.testing import open_test
from tests.agents.test_openai_compatible import Provider
from tests.docs.programs import ROOT

pytestmark = pytest.mark.anyio

PAGE = (ROOT / "docs" / "code-changes.md").read_text()
SHOWN: set[str] = set()
FAIL_AT_ONCE = TaskOptions(max_failures=1)

Code = Callable[..., Any]


def shows(*lines: str) -> Callable[[Code], Code]:
    """Say which lines of the page a test shows."""
    SHOWN.update(lines)
    return lambda test: test


def test_every_line_is_shown_by_a_test_and_every_test_by_a_line():
    rows = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]
    lines = {row[0].removeprefix("| ") for row in rows if len(row) == 2} - {"what was changed"}
    assert lines == SHOWN


def test_every_test_that_is_named_exists():
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", PAGE)
    assert len(named) == 7
    for path, name in named:
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), name


# --- a deploy ----------------------------------------------------------------------------------------


@dataclass
class Shop:
    """One database, served by one version of the code after another."""

    path: Path

    @asynccontextmanager
    async def under(self, app: Outrider) -> AsyncIterator[Runtime]:
        async with app.open(str(self.path)) as outrider:
            yield outrider

    async def until_it_asks(self, old: Outrider, *answers: Any, **arguments: Any) -> str:
        """Begin a task with the old code, answer that many questions, and leave it waiting for the next."""
        async with self.under(old) as outrider:
            session = await outrider.sessions.create(id="orders")
            task = await session.spawn("work", arguments, options=FAIL_AT_ONCE)
            for answer in answers:
                await task.wait(on_question=True)
                await task.answer(answer)
            await asks(task, len(answers) + 1)
        return task.id

    async def after(self, new: Outrider, task_id: str, answer: Any = True) -> TaskRecord:
        """Answer what it waits for, and see it to its end with the new code."""
        async with self.under(new) as outrider:
            task = await outrider.task(task_id)
            await task.answer(answer)
            return await task.wait(timeout=20)

    async def changed(self, old: Code, new: Code, *answers: Any, answer: Any = True, **arguments: Any) -> TaskRecord:
        task_id = await self.until_it_asks(serving(old), *answers, **arguments)
        return await self.after(serving(new), task_id, answer)

    async def steps(self, record: TaskRecord) -> list[str]:
        async with Outrider().open(str(self.path), worker=False) as outrider:
            return [step.position for step in await outrider.tasks.steps(record.id)]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "orders.db")


def serving(work: Code | None = None, **others: Code) -> Outrider:
    app = Outrider(WorkerSettings(park_grace=0))
    for name, code in {**others, **({} if work is None else {"work": work})}.items():
        app.tool(name=name)(code)
    return app


async def asks(task: TaskHandle, nth: int) -> None:
    async for _ in task.events():
        if len(await task.requests()) == nth and (await task.record()).input_request is not None:
            return


def interrupted(record: TaskRecord) -> dict[str, str] | None:
    """What the journal has and what the code came to, where that ended the task for good."""
    assert (record.state, record.failures) == (State.FAILED, 1)
    assert record.error is not None
    assert record.error.kind == "interrupted"
    details: dict[str, str] = record.error.details
    return details


def nobody(record: TaskRecord) -> str:
    """What nobody serves."""
    assert (record.state, record.phase) == (State.RUNNING, "resuming")
    assert record.phase_reason is not None
    return record.phase_reason.removeprefix("no worker serves ")


def one() -> int:
    return 1


def two() -> int:
    return 2


async def one_two(task: TaskContext) -> str:
    got = [await task.step("one", one), await task.step("two", two)]
    await task.ask("Go on?", bool)
    return f"{got}"


# --- steps and other verbs ---------------------------------------------------------------------------


@shows("a step added after all that it has done")
async def test_what_comes_later_may_be_new(shop: Shop):
    async def new(task: TaskContext) -> str:
        got = [await task.step("one", one), await task.step("two", two)]
        await task.ask("Go on?", bool)
        return f"{[*got, await task.step('three', lambda: 3)]}"

    assert (await shop.changed(one_two, new)).summary == "[1, 2, 3]"


@shows(
    "a step added before something that it has done",
    "a step renamed",
    "a step removed, and it comes to something new",
    "another verb under the same name",
    "a question with a name put before one that it asked",
)
@pytest.mark.parametrize(
    ("positions", "journaled", "met"),
    [
        (["one", "new", "two", "ask"], "step 'two'", "step 'new'"),
        (["uno", "two", "ask"], "step 'one'", "step 'uno'"),
        (["one", "ask", "new"], "step 'two'", "step 'new'"),
        (["sleep one", "two", "ask"], "step 'one'", "sleep 'one'"),
        (["one", "two", "ask first", "ask"], "ask 'ask:1'", "ask 'first'"),
    ],
)
async def test_a_position_that_was_not_there_is_found_out(shop: Shop, positions: list[str], journaled: str, met: str):
    ran: list[str] = []

    async def new(task: TaskContext) -> None:
        for position in positions:
            match position.split():
                case ["ask", *name]:
                    await task.ask("Go on?", bool, name=next(iter(name), None))
                case ["sleep", name]:
                    await task.sleep(1, name=name)
                case _:
                    await task.step(position, ran.append, position)

    record = await shop.changed(one_two, new)
    assert interrupted(record) == {"journaled": journaled, "met": met}
    assert ran == []
    assert await shop.steps(record) == ["one", "two", "ask:1"]


async def test_what_was_interrupted_goes_on_from_a_step_as_a_new_task(shop: Shop):
    async def new(task: TaskContext) -> str:
        return f"{[await task.step('one', lambda: 100), await task.step('dos', lambda: 200)]}"

    record = await shop.changed(one_two, new)
    assert interrupted(record) == {"journaled": "step 'two'", "met": "step 'dos'"}
    async with shop.under(serving(new)) as outrider:
        task = await outrider.task(record.id)
        assert await (await task.fork(from_step="two")).result() == "[1, 200]"
        assert await (await task.retry()).result() == "[100, 200]"


@shows("a step removed, and nothing new comes")
async def test_what_the_code_does_not_come_to_any_more_is_not_missed(shop: Shop):
    async def new(task: TaskContext) -> str:
        await task.ask("Go on?", bool)
        return f"{await task.step('one', one)}"

    assert (await shop.changed(one_two, new)).summary == "1"


@shows("steps in another order")
async def test_steps_are_found_by_their_names(shop: Shop):
    def never() -> int:
        raise AssertionError("it is done")

    async def new(task: TaskContext) -> str:
        got = [await task.step("two", never), await task.step("one", never)]
        await task.ask("Go on?", bool)
        return f"{got}"

    assert (await shop.changed(one_two, new)).summary == "[2, 1]"


@shows("a question without a name put before another")
async def test_questions_without_names_are_found_by_their_number(shop: Shop):
    async def old(task: TaskContext) -> str:
        publish = await task.ask("Publish?", bool)
        await task.ask("Go on?", bool)
        return f"publish: {publish}"

    async def new(task: TaskContext) -> str:
        delete = await task.ask("Delete everything?", bool)
        publish = await task.ask("Publish?", bool)
        return f"delete: {delete}, publish: {publish}"

    assert (await shop.changed(old, new, True, answer=False)).summary == "delete: True, publish: False"


@shows("what a step does, or is given")
async def test_a_step_that_is_done_stays_done(shop: Shop):
    async def new(task: TaskContext) -> str:
        got = [await task.step("one", lambda: 100), await task.step("two", lambda times: times * 2, 7)]
        await task.ask("Go on?", bool)
        return f"{got}"

    assert (await shop.changed(one_two, new)).summary == "[1, 2]"


@shows("a step that was in flight when it was killed", '`effects="once"` taken from a step in flight')
@pytest.mark.parametrize("effects", ["idempotent", "once"])
async def test_a_step_in_flight_is_run_as_it_is_now(effects: Any):
    app, began, ran = Outrider(), asyncio.Event(), list[int]()

    async def send() -> str:
        began.set()
        await asyncio.Event().wait()
        return "sent"

    @app.tool
    async def work(task: TaskContext) -> str:
        ran.append(task.attempt)
        if task.attempt == 1:  # the code before the deploy
            return await task.step("send", send, effects=effects)
        return await task.step("send", lambda: "sent in another way")

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn(work)
        await runtime.until(began.is_set)
        await runtime.crash()
        await runtime.run_until_idle()
        assert await task.result() == "sent in another way"
        assert (ran, await task.requests()) == ([1, 2], [])


@shows("a step added to one of the branches that run side by side")
async def test_branches_may_grow(shop: Shop):
    def branching(*steps: str) -> Code:
        async def branch(task: TaskContext, name: str) -> list[str]:
            return [await task.step(f"{step} {name}", str, step) for step in steps]

        async def work(task: TaskContext) -> str:
            got = await asyncio.gather(branch(task, "left"), branch(task, "right"))
            await task.ask("Go on?", bool)
            return f"{got}"

        return work

    record = await shop.changed(branching("old"), branching("new", "old"))
    assert record.summary == "[['new', 'old'], ['new', 'old']]"


# --- values ------------------------------------------------------------------------------------------


@dataclass
class Parcel:
    order: str


@dataclass
class WeighedParcel:
    order: str
    grams: int = 500


@dataclass
class NumberedParcel:
    number: int


def pack() -> Parcel:
    return Parcel("A-17")


def pack_and_weigh() -> WeighedParcel:
    return WeighedParcel("A-17", 1200)


def pack_by_number() -> NumberedParcel:
    return NumberedParcel(17)


def packing(fn: Code) -> Code:
    async def packed(task: TaskContext) -> str:
        parcel = await task.step("pack", fn)
        await task.ask("Go on?", bool)
        return f"{parcel}"

    return packed


@shows("a step returns another type, and the journaled value fits it")
async def test_a_journaled_value_is_read_as_the_new_type(shop: Shop):
    record = await shop.changed(packing(pack), packing(pack_and_weigh))
    assert record.summary == "WeighedParcel(order='A-17', grams=500)"


@shows("a step returns another type, and the journaled value does not fit")
async def test_a_journaled_value_that_does_not_fit_is_an_exception(shop: Shop):
    record = await shop.changed(packing(pack), packing(pack_by_number))
    assert record.error is not None
    assert (record.error.kind, "NumberedParcel" in record.error.message) == ("exception", True)


@shows("a question expects another type")
@pytest.mark.parametrize(("expected", "got"), [(float, "7.0"), (list[str], None)])
async def test_an_open_question_expects_what_it_expected(shop: Shop, expected: Any, got: str | None):
    async def old(task: TaskContext) -> str:
        return f"{await task.ask('How many?', int)}"

    async def new(task: TaskContext) -> str:
        return f"{await task.ask('How many?', expected)}"

    task_id = await shop.until_it_asks(serving(old))
    async with shop.under(serving(new)) as outrider:
        (request,) = await (await outrider.task(task_id)).requests()
        assert request.expected == {"type": "integer"}
    record = await shop.after(serving(new), task_id, 7)
    assert record.summary == got
    assert (record.error and record.error.kind) == (None if got else "exception")


@shows("a tool returns another type")
async def test_a_stored_result_is_read_as_the_tool_declares_it_now(shop: Shop):
    async with shop.under(serving(pack)) as outrider:
        session = await outrider.sessions.create(id="orders")
        task_id = (await session.spawn("work")).id
        assert await (await outrider.task(task_id)).result() == Parcel("A-17")
    async with shop.under(serving(pack_and_weigh)) as outrider:
        assert await (await outrider.task(task_id)).result() == WeighedParcel("A-17", 500)
    async with shop.under(serving(pack_by_number)) as outrider:
        with pytest.raises(ValidationError):
            await (await outrider.task(task_id)).result()


# --- tools -------------------------------------------------------------------------------------------


async def ship(task: TaskContext, order: str) -> str:
    await task.ask("Ship it?", bool)
    return order


async def ship_by(task: TaskContext, order: str, carrier: str = "bike") -> str:
    await task.ask("Ship it?", bool)
    return f"{order} by {carrier}"


async def ship_to(task: TaskContext, order: str, address: str) -> None:
    raise AssertionError("it is never called")


async def ship_number(task: TaskContext, order: int) -> None:
    raise AssertionError("it is never called")


async def ship_all(task: TaskContext) -> None:
    raise AssertionError("it is never called")


@shows("a parameter added that has a default")
async def test_a_task_takes_the_default_of_a_parameter_that_it_does_not_have(shop: Shop):
    assert (await shop.changed(ship, ship_by, order="A-17")).summary == "A-17 by bike"


@shows("a parameter added that has none, removed, or of another type")
@pytest.mark.parametrize("new", [ship_to, ship_number, ship_all])
async def test_arguments_that_do_not_fit_any_more_are_rejected(shop: Shop, new: Code):
    record = await shop.changed(ship, new, order="A-17")
    assert record.error is not None
    assert (record.state, record.error.kind) == (State.FAILED, "rejected")


@shows("`max_failures`, timeouts or `concurrency_key` of the tool")
async def test_a_task_keeps_the_options_that_it_was_made_with(shop: Shop):
    def app(failures: int, timeout: float, key: str) -> Outrider:
        made = Outrider(WorkerSettings(park_grace=0))
        made.tool(name="work", max_failures=failures, run_timeout=timeout, concurrency_key=key)(one_two)
        return made

    async with shop.under(app(7, 60, "old")) as outrider:
        session = await outrider.sessions.create(id="orders")
        task = await session.spawn("work")
        await task.wait(on_question=True)
    record = await shop.after(app(1, 1, "new"), task.id)
    kept = (record.state, record.retry.max_failures, record.timeouts.run, record.concurrency_key)
    assert kept == (State.SUCCEEDED, 7, 60, "old")


@shows("a tool renamed or removed")
async def test_a_task_that_nobody_serves_waits_and_says_so(shop: Shop):
    task_id = await shop.until_it_asks(serving(ship), order="A-17")
    async with shop.under(serving(send=ship)) as outrider:
        task = await outrider.task(task_id)
        await task.answer(True)
        with pytest.raises(WaitTimeout):
            await task.wait(timeout=0.1)
        assert nobody(await task.record()) == "background_tool:work"
        session = await outrider.sessions.get("orders")
        with pytest.raises(UnknownName):
            await session.spawn("work", order="A-18")
        await task.cancel()
        assert (await task.record()).state is State.CANCELED


@shows("a tool renamed, and registered under its old name too")
async def test_a_tool_may_have_two_names(shop: Shop):
    task_id = await shop.until_it_asks(serving(ship), order="A-17")
    assert (await shop.after(serving(ship, send=ship), task_id)).summary == "A-17"


# --- agents ------------------------------------------------------------------------------------------


def refunding(turn: Turn) -> Reply:
    match turn.number:
        case 1:
            return Reply(calls=(Call("look", {"order": "A-17"}),))
        case 2:
            return Reply(calls=(Call("pay", {"cents": 4900}),))
    return Reply(f"{turn.tools}: {turn.results[0].content}")


scripted.register("refunding", refunding)
scripted.register("laconic", lambda turn: Reply(f"{turn.number}: no"))


def desk(
    *tools: str, name: str = "desk", model: str = "scripted:refunding", prompt: str = "Be kind.", unit: str = "cents"
) -> Outrider:
    """An app with an agent that looks an order up, and asks before it pays."""
    app = Outrider(WorkerSettings(park_grace=0))

    def look(order: str) -> str:
        return f"{order} is broken"

    def pay(cents: int) -> str:
        return f"paid {cents} cents"

    def pay_in_euros(euros: int) -> str:
        return f"paid {euros} euros"

    if "look" in tools:
        app.tool(look)
    if "pay" in tools:
        app.tool(name="pay", requires_approval=True)(pay if unit == "cents" else pay_in_euros)
    app.agent(name, model=model, system_prompt=prompt, tools=tools)
    return app


async def until_it_wants_to_pay(shop: Shop, app: Outrider, **given: Any) -> str:
    async with shop.under(app) as outrider:
        session = await outrider.sessions.create(id="desk")
        task = await session.spawn_agent("My order is broken!", options=FAIL_AT_ONCE, **given)
        await task.wait(on_question=True, timeout=30)
    return task.id


@shows("the system prompt, the model or the tools of a registered agent")
async def test_an_agent_goes_on_as_it_is_registered_now(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    look, pay = {"tools": [("look", {"order": "A-17"})]}, {"tools": [("pay", {"cents": 4900})]}
    async with Provider([look, pay, {"content": ["Sorry!"]}]).serving() as provider:
        monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
        task_id = await until_it_wants_to_pay(shop, desk("look", "pay", model="openai:tiny"), agent="desk")
        new = desk("look", "pay", "post", model="openai:large", prompt="Be brief.")
        new.tool(name="post")(lambda letter: letter)
        assert (await shop.after(new, task_id)).summary == "Sorry!"
    before, last = provider.requests[1], provider.requests[2]
    assert [before["model"], last["model"]] == ["tiny", "large"]
    assert [len(request["tools"]) for request in (before, last)] == [2, 3]
    texts = [message.get("content") for message in last["messages"]]
    assert ("Be brief." in texts, "Be kind." in texts, "A-17 is broken" in texts) == (True, False, True)


@shows("a tool taken away that the model has just called")
async def test_a_model_is_told_that_its_tool_is_gone(shop: Shop):
    task_id = await until_it_wants_to_pay(shop, desk("look", "pay"), agent="desk")
    record = await shop.after(desk("look"), task_id)
    assert record.summary is not None
    assert record.summary.startswith("('look',): Unknown tool name: 'pay'")


@shows("the parameters of a tool that the model has just called")
async def test_a_model_is_told_that_its_arguments_do_not_fit_any_more(shop: Shop):
    task_id = await until_it_wants_to_pay(shop, desk("look", "pay"), agent="desk")
    record = await shop.after(desk("look", "pay", unit="euros"), task_id)
    assert record.summary is not None
    assert "euros: Field required" in record.summary


@shows(
    "a step renamed in a function that runs as an agent",
    "a tool called in a function before what it has done",
)
@pytest.mark.parametrize(("changes", "met"), [("wrap", "step 'wrap'"), ("look", "tool 'look'")])
async def test_an_agents_function_that_comes_to_another_position_is_found_out(shop: Shop, changes: str, met: str):
    def packing(name: str, *, looks: bool) -> Outrider:
        async def pack(ctx: AgentContext) -> str:
            if looks:
                await ctx.call("look", {"order": "A-17"})
            await ctx.step(name, str, "packed")
            return str(await ctx.ask("Ship it?", bool))

        app = desk("look")
        app.agent("packer", pack, tools=["look"])
        return app

    task_id = await until_it_wants_to_pay(shop, packing("pack", looks=False), agent="packer")
    new = packing("wrap" if changes == "wrap" else "pack", looks=changes == "look")
    record = await shop.after(new, task_id)
    assert record.error is not None
    assert (record.error.kind, record.error.details) == ("interrupted", {"journaled": "step 'pack'", "met": met})
    assert record.attempt == 2


class Parcels(TypedDict, total=False):
    parcel: str


def packing_in_a_graph(first: str, second: str) -> Outrider:
    async def pack(state: Parcels) -> Parcels:
        return {"parcel": "parcel A-17"}

    async def confirm(state: Parcels) -> Parcels:
        return {"parcel": f"{state['parcel']}: {interrupt('Ship it?')}"}

    graph = StateGraph(Parcels)
    graph.add_node(first, pack)
    graph.add_node(second, confirm)
    graph.add_edge(START, first)
    graph.add_edge(first, second)
    app = desk()
    app.agent("packer", graph.compile())
    return app


@shows(
    "a node renamed or removed that comes next in a graph, in a subgraph too",
    "a node renamed in a graph that has ended it",
)
@pytest.mark.parametrize(("first", "second"), [("pack", "inquire"), ("wrap", "ask")])
async def test_a_graph_without_the_node_that_comes_next_is_found_out(shop: Shop, first: str, second: str):
    task_id = await until_it_wants_to_pay(shop, packing_in_a_graph("pack", "ask"), agent="packer")
    record = await shop.after(packing_in_a_graph(first, second), task_id, "yes")
    if second == "ask":
        assert record.state == State.SUCCEEDED
        assert record.error is None
    else:
        details = interrupted(record)
        assert details is not None
        assert details.items() >= {"journaled": "node 'ask'", "met": "nodes 'inquire', 'pack'"}.items()


@shows("an agent renamed")
async def test_an_agent_that_nobody_serves_waits_and_says_so(shop: Shop):
    task_id = await until_it_wants_to_pay(shop, desk("look", "pay"), agent="desk")
    assert await nobody_after(shop, desk("look", "pay", name="counter"), task_id) == "subagent:desk"


@shows("a tool gone that the task itself names")
async def test_a_task_that_names_its_tools_needs_them(shop: Shop):
    named = {"model": "scripted:refunding", "tools": ["look", "pay"]}
    task_id = await until_it_wants_to_pay(shop, desk("look", "pay"), **named)
    assert await nobody_after(shop, desk("pay"), task_id) == "subagent:+look"
    async with shop.under(desk("look")) as outrider:
        record = await (await outrider.task(task_id)).wait(timeout=20)
    assert record.error is not None
    assert (record.error.kind, "unknown tool 'pay'" in record.error.message) == ("rejected", True)


async def nobody_after(shop: Shop, new: Outrider, task_id: str) -> str:
    async with shop.under(new) as outrider:
        task = await outrider.task(task_id)
        await task.answer(True)
        with pytest.raises(WaitTimeout):
            await task.wait(timeout=0.1)
        return nobody(await task.record())
