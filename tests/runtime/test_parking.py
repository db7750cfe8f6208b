"""A wait gives the worker back, when all that is open is a wait, and leaves nothing running behind."""

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from outrider import Outrider, State, SyncTaskContext, TaskContext, TaskHandle, TaskOptions
from outrider.core.task import Task
from outrider.testing import Store, TestRuntime, open_test

pytestmark = pytest.mark.anyio


async def is_parked(handle: TaskHandle) -> bool:
    record = await handle.record()
    return record.worker_id is None and not record.is_terminal and record.started_at is not None


async def spawn(runtime: TestRuntime, tool: Any, **arguments: Any) -> TaskHandle:
    session = await runtime.sessions.create()
    return await session.spawn(tool, **arguments)


async def test_a_wait_stays_in_memory_for_the_grace_and_then_gives_the_worker_back(store: Store):
    app = Outrider()

    @app.tool
    async def waits(task: TaskContext) -> int:
        await task.sleep(3600)
        return task.attempt

    async with open_test(app, store=store, park_grace=1.0) as runtime:
        handle = await spawn(runtime, "waits")
        await runtime.advance(0.9)
        assert not await is_parked(handle)
        await runtime.advance(0.2)
        assert await is_parked(handle)
        record = await handle.record()
        assert (record.state, record.phase, record.failures) == (State.RUNNING, "sleeping", 0)
        await runtime.advance(3600)
        assert await handle.result() == 2
        assert [each.ending for each in await handle.attempts()] == ["parked", "succeeded"]


async def test_a_wait_that_ends_within_the_grace_never_leaves_memory():
    app = Outrider()

    @app.tool
    async def waits(task: TaskContext) -> int:
        await task.sleep(0.5)
        await task.sleep(0.9)
        return task.attempt

    async with open_test(app, park_grace=1.0) as runtime:
        handle = await spawn(runtime, "waits")
        await runtime.advance(2)
        assert await handle.result() == 1


async def test_a_record_that_was_read_while_a_task_was_parked_does_not_end_its_next_attempt():
    app, read = Outrider(), list[Task]()

    @app.tool(max_failures=1)
    async def waits(task: TaskContext) -> int:
        await task.sleep(3600)
        if read:  # it comes late, as from a reader that was slow
            task._attempt.take(read[0])
        return await task.step("after", lambda: task.attempt)

    async with open_test(app, park_grace=1.0) as runtime:
        handle = await spawn(runtime, "waits")
        await runtime.advance(2)
        assert await is_parked(handle)
        read += await runtime.services.views.tasks([handle.id])
        await runtime.advance(3600)
        assert await handle.result() == 2


@pytest.mark.parametrize("first", ["the wait", "the other work"])
async def test_a_wait_parks_at_once_when_other_work_is_due(first: str, store: Store):
    app = Outrider()
    go_on = asyncio.Event()

    @app.tool
    async def waits(task: TaskContext) -> int:
        await go_on.wait()
        await task.sleep(3600)
        return task.attempt

    @app.tool
    async def quick() -> str:
        return "done"

    async with open_test(app, store=store, park_grace=1000.0, concurrency=1) as runtime:
        waiting = await spawn(runtime, "waits")
        if first == "the wait":
            go_on.set()
            await runtime.run_until_idle()
            assert not await is_parked(waiting)
        else:
            await runtime.until(lambda: runtime._crews[0].worker.held == 1)
        other = await spawn(runtime, "quick")
        go_on.set()
        await runtime.run_until_idle()
        assert await other.result() == "done", "no second has passed"
        assert await is_parked(waiting)


async def test_a_task_parks_only_if_all_that_is_open_is_a_wait():
    app = Outrider()
    go_on = asyncio.Event()

    @app.tool
    async def mixed(task: TaskContext) -> list[Any]:
        return list(await asyncio.gather(task.ask("Yes?", bool), task.step("work", go_on.wait)))

    async with open_test(app) as runtime:
        handle = await spawn(runtime, "mixed")
        await runtime.until(lambda: _asks(handle))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not await is_parked(handle)
        go_on.set()
        await runtime.run_until_idle()
        assert await is_parked(handle)
        await handle.answer(True)
        await runtime.run_until_idle()
        assert await handle.result() == [True, True]
        assert (await handle.record()).attempt == 2


async def test_branches_wait_together_and_each_gets_its_own(store: Store):
    app = Outrider()

    @app.tool
    async def nested(task: TaskContext) -> list[Any]:
        got: list[Any] = []

        async def leaf(name: str) -> None:
            got.append((name, await task.ask(f"{name}?", str, name=name)))

        async def pair(left: str, right: str) -> None:
            await asyncio.gather(leaf(left), leaf(right))

        async with asyncio.TaskGroup() as group:
            group.create_task(pair("a", "b"))
            group.create_task(pair("c", "d"))
            group.create_task(task.sleep(30, name="meanwhile"))
        return sorted(got)

    async with open_test(app, store=store) as runtime:
        handle = await spawn(runtime, "nested")
        await runtime.run_until_idle()
        assert await is_parked(handle)
        record = await handle.record()
        assert sorted(request.prompt for request in record.input_requests) == ["a?", "b?", "c?", "d?"]
        for name in ("c", "a"):
            request = next(each for each in record.input_requests if each.prompt == f"{name}?")
            await handle.answer(name.upper(), request_id=request.id)
            await runtime.run_until_idle()
            assert await is_parked(handle)
        await runtime.advance(60)
        for request in (await handle.record()).input_requests:
            await handle.answer(request.prompt[0].upper(), request_id=request.id)
        await runtime.run_until_idle()
        assert await handle.result() == [["a", "A"], ["b", "B"], ["c", "C"], ["d", "D"]]
        assert len(await handle.requests()) == 4


async def test_what_was_left_running_is_cancelled_and_gone_before_the_park_is_committed(store: Store):
    app = Outrider()
    seen: list[str] = []

    @app.tool
    async def leaves(task: TaskContext) -> None:
        async def background() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)  # cleaning up takes a moment
                seen.append(f"cleaned, worker {(await handle.record()).worker_id is not None}")

        background_task = asyncio.create_task(background())
        await task.sleep(60)
        background_task.cancel()

    async with open_test(app, store=store) as runtime:
        handle = await spawn(runtime, "leaves")
        await runtime.run_until_idle()
        assert seen == ["cleaned, worker True"]
        assert await is_parked(handle)


async def test_code_around_a_wait_may_catch_exceptions_and_clean_up():
    app = Outrider()
    cleaned = []

    @app.tool
    async def careful(task: TaskContext) -> str:
        try:
            async with asyncio.timeout(3600):
                answer = await task.ask("Go?", str)
        except Exception as error:  # noqa: BLE001 - that is the point
            return f"caught {error!r}"
        finally:
            cleaned.append(task.attempt)
        return f"got {answer}"

    async with open_test(app) as runtime:
        handle = await spawn(runtime, "careful")
        await runtime.run_until_idle()
        assert await is_parked(handle)
        await handle.answer("yes")
        await runtime.run_until_idle()
        assert await handle.result() == "got yes"
        assert cleaned == [1, 2]


@pytest.mark.parametrize("how", ["returns", "raises", "raises from", "uses a verb", "gathers"])
async def test_code_that_swallows_being_parked_is_parked_all_the_same(how: str, store: Store):
    app = Outrider()

    @app.tool(max_failures=1)
    async def swallows(task: TaskContext) -> Any:
        if how == "gathers":
            (answer,) = await asyncio.gather(task.ask("Go?", str), return_exceptions=True)
            return answer if isinstance(answer, str) else "swallowed"
        try:
            return await task.ask("Go?", str)
        except BaseException as error:
            match how:
                case "returns":
                    return "swallowed"
                case "raises":
                    raise ValueError("swallowed")  # noqa: B904 - that is the point
                case "raises from":
                    raise ValueError("swallowed") from error
                case _:
                    await task.post("swallowed")
                    raise

    async with open_test(app, store=store) as runtime:
        handle = await spawn(runtime, "swallows")
        await runtime.run_until_idle()
        assert await is_parked(handle), await handle.record()
        assert (await handle.record()).failures == 0
        assert await handle.messages(direction="outbound") == []
        await handle.answer("yes")
        await runtime.run_until_idle()
        assert await handle.result() == "yes"


@pytest.mark.parametrize("verb", ["sleep", "ask", "step", "write"])
async def test_code_that_swallows_being_parked_in_a_loop_leaves_the_others_room(verb: str):
    app, seen = Outrider(), list[int]()

    @app.tool
    async def swallows(task: TaskContext) -> None:
        loop = asyncio.get_running_loop()
        for n in range(10):
            with suppress(BaseException):
                match verb if n else "sleep":
                    case "sleep":
                        await task.sleep(60)
                    case "ask":
                        await task.ask("Go?")
                    case "step":
                        await task.step("work", asyncio.sleep, 60)
                    case _:
                        await task.files.write("/a", "b")
            assert len(seen) == n, "the loop has turned since the last time"
            loop.call_soon(seen.append, n)

    async with open_test(app) as runtime:
        handle = await spawn(runtime, "swallows")
        await runtime.run_until_idle()
        assert await is_parked(handle)
        assert seen == list(range(10))


async def test_a_failure_beside_a_wait_is_a_failure():
    app = Outrider()

    @app.tool(max_failures=1)
    async def fails(task: TaskContext) -> None:
        async def breaks() -> None:
            raise ValueError("broken")

        async with asyncio.TaskGroup() as group:
            group.create_task(task.ask("Go?", str))
            group.create_task(breaks())

    async with open_test(app) as runtime:
        handle = await spawn(runtime, "fails")
        await runtime.run_until_idle()
        error = (await handle.record()).error
        assert error is not None
        assert error.message == "ValueError: broken"


async def test_a_plain_function_parks_as_well(store: Store):
    app = Outrider()

    @app.tool
    def asks(task: SyncTaskContext) -> str:
        try:
            return f"{task.ask('Who?', str)} {task.attempt}"
        except Exception as error:  # noqa: BLE001 - it must not see any
            return repr(error)

    async with open_test(app, store=store) as runtime:
        handle = await spawn(runtime, "asks")
        await runtime.run_until_idle()
        assert await is_parked(handle)
        await handle.answer("me")
        await runtime.run_until_idle()
        assert await handle.result() == "me 2"


async def test_a_task_waits_inside_a_step_without_its_worker():
    app = Outrider()
    runs = []

    @app.tool
    async def nested(task: TaskContext) -> str:
        async def inside() -> str:
            runs.append("inside")
            await asyncio.gather(task.sleep(60, name="a"), task.sleep(30, name="b"))
            return await task.ask("Really?", str)

        return await task.step("outer", inside)

    async with open_test(app) as runtime:
        handle = await spawn(runtime, "nested")
        await runtime.run_until_idle()
        assert await is_parked(handle)
        await runtime.advance(61)
        assert await is_parked(handle)
        await handle.answer("yes")
        await runtime.run_until_idle()
        assert await handle.result() == "yes"
        assert runs == ["inside"] * 4, "again on each resume, up to where it waits"


async def test_a_step_with_a_branch_left_behind_does_not_keep_the_task_from_parking():
    app = Outrider()

    @app.tool
    async def leaks(task: TaskContext) -> str:
        async def inside() -> None:
            asyncio.get_running_loop().create_task(task.sleep(3600, name="left behind"))
            await asyncio.sleep(0)

        await task.step("leaky", inside)
        return await task.ask("And now?", str)

    async with open_test(app) as runtime:
        handle = await spawn(runtime, "leaks")
        await runtime.run_until_idle()
        assert await is_parked(handle)
        await handle.answer("fine")
        await runtime.run_until_idle()
        assert await handle.result() == "fine"


async def test_a_hundred_waiting_tasks_hold_no_worker(store: Store):
    app = Outrider()

    @app.tool
    async def waits(task: TaskContext, n: int) -> int:
        await task.sleep(timedelta(days=n + 1))
        return n

    async with open_test(app, store=store, concurrency=5) as runtime:
        session = await runtime.sessions.create()
        handles = await session.spawn_many("waits", [{"n": n} for n in range(100)])
        await runtime.run_until_idle()
        assert runtime._crews[0].worker.held == 0
        await runtime.advance(timedelta(days=3))
        states = [(await handle.record()).state for handle in handles]
        assert states == [State.SUCCEEDED] * 3 + [State.RUNNING] * 97


async def test_news_that_comes_as_a_task_parks_is_not_missed(store: Store):
    """The answer, message or end is there before the park is committed: the task is due at once."""
    app = Outrider()

    @app.tool
    async def child() -> str:
        return "grown"

    @app.tool
    async def waits(task: TaskContext) -> list[Any]:
        grown = await task.wait_for([await task.spawn("child")])
        message = await task.messages()
        return [grown[0].state, message[0].text, await task.ask("And?", str)]

    async with open_test(app, store=store) as runtime:
        handle = await spawn(runtime, "waits")
        await handle.message("early")
        await runtime.run_until_idle()
        request = (await handle.record()).input_request
        assert request is not None
        await handle.answer("ok", request_id=request.id)
        await runtime.run_until_idle()
        assert await handle.result() == ["succeeded", "early", "ok"]


async def _asks(handle: TaskHandle) -> bool:
    return (await handle.record()).input_request is not None


async def test_a_parked_task_may_be_canceled_and_its_question_is_withdrawn(store: Store):
    app = Outrider()

    @app.tool
    async def asks(task: TaskContext) -> None:
        await task.ask("Go?", str)

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("asks", options=TaskOptions(name="asks"))
        await runtime.run_until_idle()
        receipt = await handle.cancel(reason="no longer needed")
        assert receipt.canceled == (handle.id,)
        assert [request.status for request in await handle.requests()] == ["withdrawn"]
