"""Effects that must not happen twice: the intent is written first, and a doubt is somebody's to decide."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from outrider import Outrider, State, SyncTaskContext, TaskContext, TaskHandle, TaskOptions
from outrider.core.errors import InvalidAnswer
from outrider.testing import Store, TestRuntime, open_test

pytestmark = pytest.mark.anyio


def paying(paid: list[int]) -> Outrider:
    """An app that pays in a step, and does not get to say so when `crashes` are left."""
    app = Outrider()

    async def pay(amount: int) -> int:
        paid.append(amount)
        return amount

    @app.tool
    async def pays(task: TaskContext, amount: int) -> int:
        await task.step("before", lambda: None)
        return await task.step("pay", pay, amount, effects="once")

    return app


async def in_doubt(runtime: TestRuntime, options: TaskOptions | None = None) -> TaskHandle:
    """A task whose worker was lost after the intent to pay was written."""
    session = await runtime.sessions.create()
    runtime.crash_after(2)
    handle = await session.spawn("pays", amount=5, options=options or TaskOptions())
    await runtime.run_until_idle()
    assert runtime.crashes == 1
    return handle


async def test_the_intent_stands_before_the_effect(store: Store):
    paid: list[int] = []
    async with open_test(paying(paid), store=store) as runtime:
        handle = await in_doubt(runtime)
        assert paid == [], "the crash came between intent and effect"
        assert [(step.position, step.done) for step in await handle.steps()][:2] == [("before", True), ("pay", False)]


async def test_a_doubt_is_asked_and_a_person_may_have_it_done_again(store: Store):
    paid: list[int] = []
    async with open_test(paying(paid), store=store) as runtime:
        handle = await in_doubt(runtime)
        record = await handle.record()
        assert record.state is State.AWAITING_INPUT
        assert record.worker_id is None
        assert record.input_request is not None
        assert record.input_request.kind == "approval"
        assert record.input_request.details == {"step": "pay", "attempt": 1}
        await handle.answer({"action": "retry"})
        await runtime.run_until_idle()
        assert await handle.result() == 5
        assert paid == [5]


async def test_a_doubt_may_be_skipped_with_a_value_that_fits(store: Store):
    paid: list[int] = []
    async with open_test(paying(paid), store=store) as runtime:
        handle = await in_doubt(runtime)
        for wrong in ({"action": "skip"}, {"action": "skip", "value": "five"}, {"action": "shrug"}, "retry"):
            with pytest.raises(InvalidAnswer):
                await handle.answer(wrong)
        await handle.answer({"action": "skip", "value": 4})
        await runtime.run_until_idle()
        assert await handle.result() == 4
        assert paid == []


async def test_a_doubt_may_fail_the_task(store: Store):
    async with open_test(paying([]), store=store) as runtime:
        handle = await in_doubt(runtime)
        await handle.answer({"action": "fail"})
        await runtime.run_until_idle()
        record = await handle.record()
        assert record.error is not None
        assert (record.state, record.error.kind) == (State.FAILED, "interrupted")


async def test_a_doubt_nobody_decides_fails_the_task_after_an_hour():
    async with open_test(paying([])) as runtime:
        handle = await in_doubt(runtime)
        await runtime.advance(timedelta(minutes=59))
        assert (await handle.record()).state is State.AWAITING_INPUT
        await runtime.advance(timedelta(minutes=2))
        record = await handle.record()
        assert record.error is not None
        assert (record.state, record.error.kind) == (State.FAILED, "input_expired")


async def test_with_nobody_to_ask_a_doubt_fails_at_once(store: Store):
    paid: list[int] = []
    async with open_test(paying(paid), store=store) as runtime:
        handle = await in_doubt(runtime, TaskOptions(headless=True))
        record = await handle.record()
        assert record.error is not None
        assert (record.state, record.error.kind, paid) == (State.FAILED, "interrupted", [])
        assert await handle.requests() == []


async def test_a_doubt_is_asked_again_after_the_next_crash():
    paid: list[int] = []
    async with open_test(paying(paid)) as runtime:
        handle = await in_doubt(runtime)
        runtime.crash_after(1)  # the intent of the second try
        await handle.answer({"action": "retry"})
        await runtime.run_until_idle()
        assert runtime.crashes == 2
        requests = await handle.requests()
        assert [request.status for request in requests] == ["answered", "pending"]
        assert requests[1].details["attempt"] > requests[0].details["attempt"]
        await handle.answer({"action": "retry"})
        await runtime.run_until_idle()
        assert await handle.result() == 5
        assert paid == [5]


async def test_an_answered_doubt_is_not_asked_again_if_the_crash_comes_before_the_next_try():
    paid: list[int] = []
    async with open_test(paying(paid)) as runtime:
        handle = await in_doubt(runtime)
        await runtime.drain()
        await handle.answer({"action": "retry"})
        await runtime.start_worker()
        await runtime.run_until_idle()
        assert await handle.result() == 5
        assert len(await handle.requests()) == 1


async def test_a_step_that_raised_is_in_doubt_too_when_the_task_is_tried_again():
    app, calls = Outrider(), []

    def charge() -> None:
        calls.append("charged")
        raise ConnectionError("the answer was lost")

    @app.tool(backoff=1)
    async def pays(task: TaskContext) -> None:
        await task.step("charge", charge, effects="once")

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("pays")
        await runtime.advance(5)
        assert (await handle.record()).state is State.AWAITING_INPUT
        assert calls == ["charged"]


async def test_a_tool_with_effects_once_is_one_such_step(store: Store):
    app, runs = Outrider(), []

    @app.tool(effects="once")
    async def fires(task: TaskContext) -> str:
        runs.append(task.attempt)
        if task.attempt == 1:
            await asyncio.Event().wait()
        return "fired"

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("fires")
        await runtime.until(lambda: bool(runs))
        await runtime.crash()
        await runtime.run_until_idle()
        assert runs == [1]
        await handle.answer({"action": "retry"})
        await runtime.run_until_idle()
        assert await handle.result() == "fired"


async def test_a_wait_inside_a_once_step_keeps_its_worker_and_raises_no_doubt():
    app, runs = Outrider(), []

    @app.tool(effects="once")
    async def asks(task: TaskContext) -> str:
        runs.append("begun")
        return "yes" if await task.ask("Sure?", bool) else "no"

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("asks")
        await runtime.until(lambda: bool(runs))
        await runtime.until(lambda: _asks(handle))
        assert (await handle.record()).worker_id is not None
        await handle.answer(True)
        await runtime.run_until_idle()
        assert await handle.result() == "yes"
        assert runs == ["begun"]


async def test_once_steps_in_a_thread_have_doubts_as_well(store: Store):
    app = Outrider()
    paid: list[int] = []

    @app.tool
    def pays(task: SyncTaskContext, amount: int) -> Any:
        task.step("before", lambda: None)
        return task.step("pay", paid.append, amount, effects="once")

    async with open_test(app, store=store) as runtime:
        handle = await in_doubt(runtime)
        assert (await handle.record()).state is State.AWAITING_INPUT
        await handle.answer({"action": "retry"})
        await runtime.run_until_idle()
        assert (await handle.record()).state is State.SUCCEEDED
        assert paid == [5]


async def _asks(handle: TaskHandle) -> bool:
    return (await handle.record()).input_request is not None
