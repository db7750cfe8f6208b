"""Agents as background tasks: what the record tells, how they ask, how they fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from pydantic_ai import Agent, FunctionToolset

from outrider import Outrider, Runtime, SessionHandle, State, TaskContext, TaskFailed, TaskOptions, WorkerSettings
from outrider.agents import scripted
from outrider.agents.scripted import Call, Reply, Tokens, Turn, replies
from outrider.core.errors import InvalidArguments, OutriderError, UnknownName
from outrider.core.session import NewSession, Seed
from outrider.testing import open_test

pytestmark = pytest.mark.anyio
QUICK = WorkerSettings(park_grace=0.02)


def told(*sequence: Reply, name: str) -> str:
    """A model that gives these replies in order."""
    scripted.register(name, replies(*sequence))
    return f"scripted:{name}"


@pytest.fixture
def app() -> Outrider:
    app = Outrider(QUICK)

    @app.tool
    async def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @app.tool
    async def consult(task: TaskContext, question: str) -> str:
        """Ask a person."""
        return await task.ask(question, str)

    @app.tool(max_failures=1)
    async def burst() -> None:
        """Fail."""
        raise RuntimeError("it burst")

    return app


@asynccontextmanager
async def at_work(app: Outrider) -> AsyncIterator[tuple[Runtime, SessionHandle]]:
    async with app.open("memory://") as outrider:
        yield outrider, await outrider.sessions.create()


async def test_the_record_tells_iterations_model_usage_and_the_child_session(app):
    model = told(
        Reply("Let me add.\n", calls=(Call("add", {"a": 3, "b": 4}),), tokens=Tokens(100, 10, 20)),
        Reply("It is 7.", tokens=Tokens(130, 5)),
        name="sum",
    )
    async with at_work(app) as (outrider, session):
        task = await session.spawn_agent("What is 3 + 4?", model=model, tools=["add"])
        assert await task.result(timeout=30) == "It is 7."
        record = await task.record()
        assert (record.kind, record.state, record.iterations) == ("subagent", State.SUCCEEDED, 2)
        assert (record.provider, record.model) == ("scripted", model)
        usage = record.usage
        assert (usage.requests, usage.input_tokens, usage.output_tokens, usage.cached_tokens) == (2, 230, 15, 20)
        assert record.summary == "It is 7."
        assert record.links.child_session_id is not None
        (*_, last) = [event.task async for event in task.events() if event.task is not None]
        assert (last.links, last.usage) == (record.links, record.usage)
        child = await outrider.sessions.get(record.links.child_session_id)
        described = await child.record()
        assert (described.parent_session_id, described.parent_task_id) == (session.id, task.id)
        assert described.root_session_id == session.id


async def test_the_record_tells_the_child_session_even_of_a_worker_that_was_killed_as_it_made_it(app):
    model = told(Reply("done"), name="killed")
    made = asyncio.Event()

    async with open_test(app) as runtime:
        (crew,) = runtime._crews

        async def create_session(new: NewSession, seed: Seed | None) -> None:
            await runtime.services.ledger.create_session(new, seed)
            made.set()
            await asyncio.Event().wait()

        crew.probe.__dict__["create_session"] = create_session
        task = await (await runtime.sessions.create()).spawn_agent("Go.", model=model)
        await made.wait()
        await runtime.crash()
        await runtime.run_until_idle()
        assert await task.result() == "done"
        record = await task.record()
        assert record.links.child_session_id is not None
        child = await runtime.sessions.get(record.links.child_session_id)
        assert (await child.record()).parent_task_id == task.id


async def test_what_the_model_says_is_output_as_it_says_it(app):
    model = told(Reply("one two three four", chunks=4), name="chunks")
    async with at_work(app) as (_, session):
        task = await session.spawn_agent("Count.", model=model)
        await task.result(timeout=30)
        assert "".join([piece.text async for piece in task.output()]).strip() == "one two three four"


async def test_a_result_schema_gives_a_structured_result(app):
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    model = told(Reply(result={"sum": 7}), name="structured")
    async with at_work(app) as (_, session):
        task = await session.spawn_agent("Add.", model=model, options=TaskOptions(result_schema=schema))
        assert await task.result(timeout=30) == {"sum": 7}


async def test_a_result_that_never_fits_its_schema_fails_the_task_and_every_request_is_counted(app):
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    asked: list[int] = []

    def misfit(turn: scripted.Turn) -> Reply:
        asked.append(turn.number)
        return Reply(result={"sum": "seven"}, tokens=Tokens(100, 10))

    scripted.register("misfit", misfit)
    async with at_work(app) as (_, session):
        task = await session.spawn_agent("Add.", model="scripted:misfit", options=TaskOptions(result_schema=schema))
        with pytest.raises(TaskFailed) as failure:
            await task.result(timeout=30)
        assert failure.value.kind == "schema_mismatch"
        record = await task.record()
        assert (record.iterations, record.usage.requests) == (len(asked), len(asked))
        assert (record.usage.input_tokens, record.usage.output_tokens) == (100 * len(asked), 10 * len(asked))


async def test_an_agent_that_never_answers_fails_at_its_limit_and_keeps_what_it_said(app):
    model = told(*[Reply("Still at it.", calls=(Call("add", {"a": 1, "b": 1}),))] * 9, name="endless")
    async with at_work(app) as (_, session):
        task = await session.spawn_agent("Go on.", model=model, tools=["add"], max_iterations=3)
        with pytest.raises(TaskFailed) as failure:
            await task.result(timeout=30)
        record = await task.record()
        assert (failure.value.kind, record.iterations, record.attempt) == ("max_iterations", 3, 1)
        assert record.summary == "Still at it."
        assert record.result_path is not None


async def test_a_tool_that_needs_approval_parks_the_task_until_it_is_given(app):
    model = told(Reply(calls=(Call("add", {"a": 3, "b": 4}),)), Reply("done"), name="approve")
    async with at_work(app) as (_, session):
        task = await session.spawn_agent("Add.", model=model, tools=["add"], require_approval=["add"])
        record = await task.wait(on_question=True, timeout=30)
        request = record.input_request
        assert request is not None
        assert request.kind == "approval"
        assert request.details["tool"] == "add"
        assert request.details["arguments"] == {"a": 3, "b": 4}
        assert request.deadline_at is not None
        await until_parked(task)
        await task.answer({"approved": True, "arguments": {"a": 30, "b": 40}}, by="ada")
        assert await task.result(timeout=30) == "done"
        (answered,) = await task.requests()
        assert (answered.status, answered.answered_by) == ("answered", "ada")
        assert (await task.record()).failures == 0


async def test_a_denial_is_told_to_the_model_and_the_tool_is_not_called(app):
    heard: list[Any] = []

    def script(turn: scripted.Turn) -> Reply:
        heard.extend(turn.results)
        return Reply(calls=(Call("burst", {}),)) if turn.number == 1 else Reply("as you wish")

    scripted.register("denied", script)
    async with at_work(app) as (_, session):
        task = await session.spawn_agent("Burst.", model="scripted:denied", tools=["burst"], require_approval=True)
        await task.wait(on_question=True, timeout=30)
        await task.answer({"approved": False, "reason": "too loud"})
        assert await task.result(timeout=30) == "as you wish"
        assert not heard[0].ok
        assert "too loud" in str(heard[0].content)


@pytest.mark.parametrize("answer", ["no", 1, {"approved": "yes"}, None, []])
async def test_nothing_but_a_plain_yes_approves(app, answer):
    model = told(Reply(calls=(Call("add", {"a": 1, "b": 1}),)), Reply("done"), name="strict")
    async with at_work(app) as (_, session):
        task = await session.spawn_agent("Add.", model=model, tools=["add"], require_approval=True)
        await task.wait(on_question=True, timeout=30)
        with pytest.raises(OutriderError) as refusal:
            await task.answer(answer)
        assert refusal.value.code == "invalid_answer"


@pytest.mark.parametrize("wanted", ["add", ["Add"], ["add", "nope"], 1, [1], {"add": True}])
async def test_a_tool_whose_approval_is_misspelled_does_not_run_unasked(app, wanted):
    model = told(Reply(calls=(Call("add", {"a": 1, "b": 1}),)), Reply("done"), name="misspelled")
    async with at_work(app) as (_, session):
        with pytest.raises((InvalidArguments, UnknownName)):
            await session.spawn_agent("Add.", model=model, tools=["add"], require_approval=wanted)
        assert await session.tasks() == []


async def test_what_a_tool_returns_beyond_the_limit_is_cut_with_a_mark_for_the_model(app):
    heard: list[Any] = []

    @app.tool
    async def read() -> str:
        return "x" * 200_000

    def script(turn: scripted.Turn) -> Reply:
        heard.extend(turn.results)
        return Reply(calls=(Call("read", {}),)) if turn.number == 1 else Reply("read it")

    scripted.register("reader", script)
    async with at_work(app) as (_, session):
        task = await session.spawn_agent("Read.", model="scripted:reader", tools=["read"])
        assert await task.result(timeout=30) == "read it"
    assert heard[0].content.endswith("[… cut here, of 200,000 characters]")
    assert 65_000 < len(heard[0].content) <= 65_536


async def test_an_answer_beyond_the_limit_is_kept_whole_as_an_artifact_and_cut_in_the_result(app):
    model = told(Reply("ü" * 50_000), name="talker")
    async with at_work(app) as (_, session):
        task = await session.spawn_agent("Talk.", model=model)
        answer = await task.result(timeout=30)
        assert answer.endswith("[… cut here, of 50,000 characters]")
        (artifact,) = (await task.record()).artifacts
        assert (await session.read_file(artifact.path or "")).decode() == "ü" * 50_000


async def test_a_task_cannot_lift_what_its_agent_requires(app):
    model = told(Reply(calls=(Call("add", {"a": 1, "b": 1}),)), Reply("done"), name="careful")
    app.agent("careful", model=model, tools=["add"], require_approval=["add"])
    async with at_work(app) as (_, session):
        spec = {"prompt": "Add.", "agent": "careful", "require_approval": False}
        task = await session.create("subagent", spec)
        record = await task.wait(on_question=True, timeout=30)
        assert record.input_request is not None


@pytest.mark.parametrize("given", [{"tools": "add"}, {"require_approval": "add"}])
def test_an_agent_with_a_name_in_place_of_names_is_refused(app, given):
    with pytest.raises(InvalidArguments):
        app.agent("odd", **given)


async def test_an_approval_that_nobody_gives_is_denied_at_its_deadline(app):
    app.settings = replace(app.settings, approval_deadline=0.2)
    model = told(Reply(calls=(Call("burst", {}),)), Reply("then not"), name="expired")
    async with at_work(app) as (_, session):
        task = await session.spawn_agent("Burst.", model=model, tools=["burst"], require_approval=True)
        assert await task.result(timeout=30) == "then not"
        (request,) = await task.requests()
        assert (request.status, request.answer) == ("expired", False)


async def test_without_anybody_to_ask_nothing_is_approved(app):
    model = told(Reply(calls=(Call("burst", {}),)), Reply("then not"), name="headless")
    async with at_work(app) as (_, session):
        task = await session.spawn_agent(
            "Burst.", model=model, tools=["burst"], require_approval=True, options=TaskOptions(headless=True)
        )
        assert await task.result(timeout=30) == "then not"
        assert await task.requests() == []


async def test_tools_of_an_agent_ask_side_by_side_and_park_together(app):
    asks = (Call("consult", {"question": "colour?"}), Call("consult", {"question": "size?"}))
    model = told(Reply(calls=asks), Reply("thanks"), name="consults")
    async with at_work(app) as (_, session):
        task = await session.spawn_agent("Ask.", model=model, tools=["consult"])
        await until_parked(task, requests=2)
        record = await task.record()
        for request in record.input_requests:
            await task.answer("blue" if "colour" in request.prompt else "large", request_id=request.id)
        assert await task.result(timeout=30) == "thanks"
        assert len(await task.requests()) == 2


async def test_arguments_that_do_not_fit_go_back_to_the_model(app):
    model = told(
        Reply(calls=(Call("add", {"a": "three", "b": 4}),)),
        Reply(calls=(Call("add", {"a": 3, "b": 4}),)),
        Reply("7"),
        name="corrected",
    )
    async with at_work(app) as (_, session):
        task = await session.spawn_agent("Add.", model=model, tools=["add"])
        assert await task.result(timeout=30) == "7"
        assert (await task.record()).iterations == 3


async def test_a_tool_that_raises_fails_the_attempt_and_a_retry_asks_no_kept_model_call_again(app):
    asked: list[int] = []

    def script(turn: scripted.Turn) -> Reply:
        asked.append(turn.number)
        return Reply(calls=(Call("burst", {}),))

    scripted.register("bursting", script)
    options = TaskOptions(max_failures=3, backoff=0.001)
    async with at_work(app) as (_, session):
        task = await session.spawn_agent("Burst.", model="scripted:bursting", tools=["burst"], options=options)
        with pytest.raises(TaskFailed, match="it burst"):
            await task.result(timeout=30)
        assert asked == [1]
        assert len(await task.attempts()) >= 3


async def test_an_unknown_model_is_rejected_with_some_of_the_known_ones(app):
    async with at_work(app) as (_, session):
        task = await session.spawn_agent("Hello.", model="nobody:knows")
        with pytest.raises(TaskFailed, match="are known, such as") as failure:
            await task.result(timeout=30)
        assert failure.value.kind == "rejected"
        assert (await task.record()).attempt == 1


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ({"prompt": "x", "model": "scripted", "tools": ["nothing"]}, UnknownName),
        ({"prompt": "x", "agent": "nobody"}, UnknownName),
        ({"prompt": " ", "model": "scripted"}, InvalidArguments),
        ({"prompt": "x"}, InvalidArguments),
        ({"prompt": "x", "model": "scripted", "max_iterations": 0}, InvalidArguments),
        ({"prompt": "x", "model": "scripted", "temper": 3}, InvalidArguments),
        ({"prompt": "x", "model": "scripted", "tools": "add"}, InvalidArguments),
    ],
)
async def test_a_spec_that_cannot_run_is_refused_and_nothing_is_written(app, spec, error):
    async with app.open("memory://", worker=False) as outrider:
        session = await outrider.sessions.create()
        with pytest.raises(error):
            await session.create("subagent", spec)
        assert await session.tasks() == []


async def test_a_registered_agent_runs_as_it_was_registered(app):
    model = told(Reply(calls=(Call("add", {"a": 1, "b": 1}),)), Reply("2"), name="registered")
    app.agent("adder", model=model, tools=["add"], system_prompt="You add.", max_iterations=5)
    with pytest.raises(InvalidArguments):
        app.agent("adder", model=model)
    async with at_work(app) as (_, session):
        task = await session.spawn_agent("Add.", agent="adder")
        assert await task.result(timeout=30) == "2"


async def until_parked(task: Any, requests: int = 1) -> None:
    """Wait for the fact that the task asks so much and nobody holds it."""
    async for event in task.events():
        record = event.task
        if record is not None and len(record.input_requests) == requests and record.worker_id is None:
            return
    raise AssertionError("it ended without asking")


async def test_what_a_toolset_opens_for_all_runs_outlives_the_attempt_that_opened_it(app):
    class Line(FunctionToolset[object]):
        """A connection, as that to an MCP server: served by an asyncio task, open while any run uses it."""

        users, serving = 0, asyncio.get_running_loop().create_future()

        async def __aenter__(self) -> Line:
            if self.users == 0:
                self.serving = asyncio.ensure_future(asyncio.Event().wait())
            self.users += 1
            return self

        async def __aexit__(self, *args: object) -> None:
            self.users -= 1
            if self.users == 0:
                self.serving.cancel()

    line, both_ask, first_is_over = Line(), asyncio.Barrier(2), asyncio.Event()

    @line.tool_plain
    async def call(n: int) -> str:
        await both_ask.wait()
        if n == 2:
            await first_is_over.wait()
        return "cut" if line.serving.done() else "heard"

    app.agent("caller", Agent(toolsets=[line]))
    heard: list[str] = []

    def second(turn: Turn) -> Reply:
        heard.extend(result.content for result in turn.results)
        return Reply("over") if turn.results else Reply(calls=(Call("call", {"n": 2}),))

    scripted.register("second", second)
    model = told(Reply(calls=(Call("call", {"n": 1}),)), Reply("over"), name="first")
    async with at_work(app) as (_, session):
        first = await session.spawn_agent("Call.", agent="caller", model=model)
        other = await session.spawn_agent("Call.", agent="caller", model="scripted:second")
        assert await first.result(timeout=30) == "over"
        first_is_over.set()
        assert await other.result(timeout=30) == "over"
        assert (heard, line.users) == (["heard"], 0)
        assert line.serving.done()
