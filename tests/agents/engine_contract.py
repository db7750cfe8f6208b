"""What every engine promises, one test a promise. An engine's own test is a subclass that names it.

The agents are those of the engine's cast; the tests act through the public verbs and look at the record, so that they
say nothing of how an engine does it. That a kill repeats nothing is told by `tests/crash/test_agent_kills.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from outrider import Outrider, SessionHandle, State, TaskFailed, TaskOptions, WorkerSettings
from outrider.runtime.handles import TaskHandle
from tests.agents.casts import ANSWER, CASTS, World

PATIENCE = 30
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


class EngineContract:
    engine: str

    @pytest.fixture
    def begun(self) -> Counter[str]:
        """How often each thing was begun."""
        return Counter()

    @pytest.fixture
    def world(self, begun: Counter[str]) -> World:
        return World(lambda what: begun.update([what]))

    @pytest.fixture
    def app(self, world: World) -> Outrider:
        app = Outrider(WorkerSettings(park_grace=0.02))
        CASTS[self.engine]().register(app, world)
        return app

    async def test_an_agent_answers_and_the_record_tells_what_it_took(self, app, begun):
        async with at_work(app) as session:
            task = await session.spawn_agent("Add, then send.", agent="worker")
            assert await task.result(timeout=PATIENCE) == ANSWER
            record = await task.record()
            assert (record.iterations, record.usage.requests) == (CASTS[self.engine]().iterations, 3)
            assert (record.usage.input_tokens, record.usage.output_tokens) == (30, 15)
            assert record.links.child_session_id is not None
            assert begun == dict.fromkeys(["model 1", "add 3", "add 4", "model 2", "send hello", "model 3"], 1)

    async def test_what_the_agent_says_is_output_once_and_in_order(self, app):
        async with at_work(app) as session:
            task = await session.spawn_agent("Add, then send.", agent="worker")
            await task.result(timeout=PATIENCE)
            said = "".join([piece.text async for piece in task.output()])
            assert said.split() == ["Adding.", "Sending.", *ANSWER.split()]

    async def test_a_question_parks_the_task_and_its_answer_goes_on_with_nothing_done_again(self, app, begun):
        async with at_work(app) as session:
            task = await session.spawn_agent("Where to?", agent="asker")
            record = await parked(task)
            assert record.input_request is not None
            assert (record.input_request.kind, record.input_request.prompt) == ("question", "Which city?")
            await task.answer("Oslo")
            assert await task.result(timeout=PATIENCE) == "Oslo"
            assert begun["model 1"] == 1
            record = await task.record()
            assert (record.attempt, record.failures) == (2, 0)

    async def test_an_answer_of_another_type_than_the_question_asks_for_is_refused(self, app):
        async with at_work(app) as session:
            task = await session.spawn_agent("Where to?", agent="asker")
            await parked(task)
            with pytest.raises(Exception, match="string"):
                await task.answer(7)
            await task.answer("Oslo")
            assert await task.result(timeout=PATIENCE) == "Oslo"

    async def test_several_questions_are_asked_at_once_and_answered_in_any_order(self, app, begun):
        async with at_work(app) as session:
            task = await session.spawn_agent("Where to, and when?", agent="pair")
            requests = {request.prompt: request for request in (await parked(task, 2)).input_requests}
            await task.answer("Monday", request_id=requests["Which day?"].id)
            await task.answer("Oslo", request_id=requests["Which city?"].id)
            assert await task.result(timeout=PATIENCE) == "Oslo and Monday"
            assert begun["model 1"] == 1

    @pytest.mark.parametrize("granted", [True, False])
    async def test_what_needs_an_approval_is_done_only_with_one(self, app, begun, granted):
        if not CASTS[self.engine]().takes_tools:
            pytest.skip("its agents bring their own tools along, and ask by themselves")
        async with at_work(app) as session:
            task = await session.spawn_agent("Publish.", agent="publisher", options=TaskOptions(max_failures=1))
            record = await parked(task)
            assert record.input_request is not None
            assert (record.input_request.kind, record.input_request.details["tool"]) == ("approval", "publish")
            await task.answer(granted)
            await task.wait(timeout=PATIENCE)
            assert begun["publish all"] == int(granted)

    async def test_an_agent_that_never_answers_fails_at_its_limit_with_what_it_said_last(self, app):
        async with at_work(app) as session:
            task = await session.spawn_agent("Go on.", agent="endless", max_iterations=3)
            failure = await failed(task)
            assert failure.kind == "max_iterations"
            record = await task.record()
            assert (record.iterations, record.summary) == (3, "Still at it.")
            assert record.attempt == 1

    @pytest.mark.parametrize("given", ['{"n": 1}', '{"n": "one"}'])
    async def test_an_answer_has_to_fit_the_schema_of_the_result(self, app, given):
        async with at_work(app) as session:
            task = await session.spawn_agent(given, agent="giver", options=TaskOptions(result_schema=NUMBER))
            if "one" in given:
                assert (await failed(task)).kind == "schema_mismatch"
            else:
                assert await task.result(timeout=PATIENCE) == {"n": 1}

    async def test_a_cancel_stops_the_agent_in_the_midst_of_what_it_does(self, app, world):
        async with at_work(app) as session:
            task = await session.spawn_agent("Wait.", agent="stuck")
            await world.began.wait()
            await task.cancel()
            assert (await task.wait(timeout=PATIENCE)).state is State.CANCELED
            assert world.stopped.is_set()

    async def test_an_exception_fails_the_attempt_and_the_next_does_nothing_again_that_was_done(self, app, begun):
        async with at_work(app) as session:
            options = TaskOptions(backoff=0, max_failures=3)
            task = await session.spawn_agent("Carefully.", agent="fragile", options=options)
            assert await task.result(timeout=PATIENCE) == "mended"
            assert (begun["model 1"], begun["burst"]) == (1, 2)
            record = await task.record()
            assert (record.attempt, record.failures) == (2, 1)

    async def test_what_is_said_in_the_middle_of_a_run_is_heard_before_the_next_request(self, app, world, begun):
        async with app.open("memory://") as outrider:
            session = await outrider.sessions.create(agent="listener")
            turn = await session.send("Go.")
            await world.began.wait()
            assert (await session.send("Mind the cat.")).id == turn.id
            world.gate.set()
            assert await turn.result(timeout=PATIENCE) == "I heard Mind the cat."
            assert begun == {"model 1": 1, "model 2": 1}
            assert await session.inbox.list() == []

    async def test_a_failure_that_no_attempt_would_mend_ends_the_task_with_what_it_said(self, app):
        async with at_work(app) as session:
            task = await session.spawn_agent("Try.", agent="broken")
            failure = await failed(task)
            assert "no such thing" in str(failure)
            record = await task.record()
            assert (record.attempt, record.summary) == (1, "So far.")


@asynccontextmanager
async def at_work(app: Outrider) -> AsyncIterator[SessionHandle]:
    async with app.open("memory://") as outrider:
        yield await outrider.sessions.create()


async def parked(task: TaskHandle, questions: int = 1) -> Any:
    """The record, once the task waits for so many answers and no worker holds it."""
    async for _ in task.events():
        record = await task.record()
        assert not record.is_terminal, record.error
        if len(record.input_requests) == questions and record.worker_id is None:
            return record
    raise AssertionError("it ended without a question")


async def failed(task: TaskHandle) -> TaskFailed:
    with pytest.raises(TaskFailed) as failure:
        await task.result(timeout=PATIENCE)
    return failure.value
