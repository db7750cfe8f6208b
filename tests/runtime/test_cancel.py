"""Cancelling: at once where nobody holds the task, by order where somebody does, by force after the grace."""

import asyncio
import threading
import time
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from outrider import Outrider, State, SyncTaskContext, TaskCanceled, TaskContext, TaskHandle, TaskOptions
from outrider.core.errors import TaskFinished
from outrider.testing import Store, TestRuntime, open_test

pytestmark = pytest.mark.anyio


async def spawn(runtime: TestRuntime, tool: Any, options: TaskOptions | None = None, **arguments: Any) -> TaskHandle:
    session = await runtime.sessions.create()
    return await session.spawn(tool, options=options or TaskOptions(), **arguments)


async def has_ended(handle: TaskHandle) -> bool:
    return (await handle.record()).is_terminal


async def test_what_is_queued_is_canceled_at_once_and_never_runs(store: Store):
    app, runs = Outrider(), []

    @app.tool
    async def runs_never() -> None:
        runs.append("ran")

    async with open_test(app, store=store, worker=False) as runtime:
        handle = await spawn(runtime, "runs_never")
        receipt = await handle.cancel(reason="changed my mind", by="me")
        assert (receipt.canceled, receipt.requested, receipt.left) == ((handle.id,), (), ())
        record = await handle.record()
        assert (record.state, record.cancel_reason, record.started_at) == (State.CANCELED, "changed my mind", None)
        first = record.cancel_requested_at
        runtime.clock.advance(5)
        assert (await handle.cancel()).left == (handle.id,), "a repeat changes nothing"
        assert (await handle.record()).cancel_requested_at == first
        await runtime.start_worker()
        await runtime.run_until_idle()
        assert runs == []
        with pytest.raises(TaskCanceled, match="changed my mind"):
            await handle.result()


async def test_code_that_runs_is_cancelled_and_may_clean_up(store: Store):
    app, seen, told = Outrider(), [], asyncio.Event()

    @app.tool
    async def cleans(task: TaskContext) -> None:
        seen.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            await told.wait()  # else it may have ended before the receipt looks
            assert task.cancel_requested
            await task.post("cleaned up")
            await task.step("undo", seen.append, "undone")

    async with open_test(app, store=store) as runtime:
        handle = await spawn(runtime, "cleans")
        await runtime.until(lambda: bool(seen))
        receipt = await handle.cancel()
        assert receipt.requested == (handle.id,)
        told.set()
        await runtime.run_until_idle()
        assert (await handle.record()).state is State.CANCELED
        assert seen == ["begun", "undone"]
        assert [message.text for message in await handle.messages()] == ["cleaned up"]
        assert [each.ending for each in await handle.attempts()] == ["canceled"]


async def test_a_cancel_may_wait_and_say_where_it_ended():
    app = Outrider()
    started = asyncio.Event()

    @app.tool
    async def slow(task: TaskContext) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.02)

    async with open_test(app) as runtime:
        handle = await spawn(runtime, "slow")
        await started.wait()
        receipt = await handle.cancel(wait=60)
        assert receipt.canceled == (handle.id,)
        assert receipt.states == {handle.id: State.CANCELED}


async def test_code_that_finishes_first_has_succeeded(store: Store):
    app = Outrider()
    started = asyncio.Event()

    @app.tool
    async def stubborn() -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done all the same"
        raise AssertionError

    async with open_test(app, store=store) as runtime:
        handle = await spawn(runtime, "stubborn")
        await started.wait()
        await handle.cancel()
        await runtime.run_until_idle()
        record = await handle.record()
        assert record.state is State.SUCCEEDED
        assert record.cancel_requested_at is not None
        assert await handle.result() == "done all the same"
        assert (await handle.cancel()).left == (handle.id,)


async def test_a_cancel_that_comes_with_the_last_word_of_the_code_does_not_hang_the_task():
    """The order reaches the code while it returns: whatever becomes of it, it is settled at once."""
    app = Outrider()
    handle: TaskHandle

    @app.tool
    async def returns(task: TaskContext) -> str:
        await handle.cancel()
        await task.post("last word")
        return "returned"

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("returns")
        await runtime.run_until_idle()
        assert (await handle.record()).state in (State.SUCCEEDED, State.CANCELED)


async def test_code_that_cancels_itself_fails_or_returns_and_never_hangs():
    app = Outrider()

    @app.tool(max_failures=1)
    async def cancels_itself(how: str) -> str:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        if how == "awaits":
            await asyncio.sleep(0)
        return "returned"

    async with open_test(app) as runtime:
        returns = await spawn(runtime, "cancels_itself", how="returns")
        awaits = await spawn(runtime, "cancels_itself", how="awaits")
        await runtime.run_until_idle()
        assert await returns.result() == "returned"
        error = (await awaits.record()).error
        assert error is not None
        assert "cancelled from inside" in error.message


async def test_code_that_ignores_the_order_is_left_behind_after_the_grace(store: Store):
    app = Outrider()
    started, release = asyncio.Event(), asyncio.Event()
    late: list[Any] = []

    @app.tool
    async def ignores(task: TaskContext) -> str:
        started.set()
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await release.wait()
        try:
            await task.step("late", lambda: late.append("written"))
        except BaseException as error:
            late.append(type(error).__name__)
            raise
        return "too late"

    @app.tool
    async def next_one() -> str:
        return "the worker goes on"

    async with open_test(app, store=store) as runtime:
        handle = await spawn(runtime, "ignores")
        await started.wait()
        await handle.cancel()
        await asyncio.sleep(0.02)
        record = await handle.record()
        assert (record.state, record.phase_reason) == (State.RUNNING, "stopping: cancel")
        runtime.clock.advance(10)
        await runtime.until(lambda: has_ended(handle))
        assert (await handle.record()).state is State.CANCELED
        assert [each.ending for each in await handle.attempts()] == ["forced"]
        worker = runtime._crews[0].worker
        await runtime.until(lambda: worker.abandoned == 1)
        assert await (await spawn(runtime, "next_one")).result() == "the worker goes on"
        release.set()
        await runtime.until(lambda: bool(late))
        assert late == ["Superseded"], "the fence refuses what comes late"
        assert (await handle.record()).state is State.CANCELED
        await runtime.until(lambda: worker.abandoned == 0)


async def test_a_grace_of_its_own_may_be_shorter():
    app = Outrider()
    release = asyncio.Event()

    @app.tool
    async def ignores() -> None:
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await release.wait()

    async with open_test(app) as runtime:
        handle = await spawn(runtime, "ignores", TaskOptions(cancel_grace=100))
        await asyncio.sleep(0.02)
        await handle.cancel(grace=1)
        runtime.clock.advance(1)
        await runtime.until(lambda: has_ended(handle))
        release.set()


# --- threads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["between verbs", "in a sleep", "in a question", "in a step", "on a handle"])
async def test_a_plain_function_is_told_to_stop_wherever_it_is(where: str, store: Store):
    app = Outrider()
    started, told = threading.Event(), threading.Event()
    seen: list[str] = []

    @app.tool
    async def sleeps(task: TaskContext) -> None:
        await task.sleep(1000)

    @app.tool
    def works(task: SyncTaskContext) -> None:
        started.set()
        try:
            match where:
                case "between verbs":
                    for n in range(100_000):
                        time.sleep(0.001)
                        task.progress(n)
                case "in a sleep":
                    task.sleep(1000)
                case "in a question":
                    task.ask("Anybody?", str)
                case "on a handle":
                    task.spawn("sleeps", options=TaskOptions(detached=True)).result()
                case _:
                    task.step("finished", told.wait)
                    seen.append("after the step")
                    task.progress(1)
        except asyncio.CancelledError:
            seen.append("told")
            task.post("cleaned up")
            raise

    async with open_test(app, store=store, park_grace=1000.0) as runtime:
        handle = await spawn(runtime, "works")
        await runtime.until(started.is_set)
        await asyncio.sleep(0.02)
        await handle.cancel()
        if where == "in a step":
            await asyncio.sleep(0.02)
            told.set()
        await runtime.run_until_idle()
        assert (await handle.record()).state is State.CANCELED
        assert seen == (["after the step", "told"] if where == "in a step" else ["told"])
        assert [message.text for message in await handle.messages()] == ["cleaned up"]
        assert [step.position for step in await handle.steps() if step.verb == "step"] == (
            ["finished"] if where == "in a step" else []
        )


async def test_a_thread_may_look_and_return_what_it_has():
    app = Outrider()
    started = threading.Event()

    @app.tool
    def polls(task: SyncTaskContext) -> str:
        started.set()
        while not task.cancel_requested:
            time.sleep(0.001)
        return "half of it"

    async with open_test(app) as runtime:
        handle = await spawn(runtime, "polls")
        await runtime.until(started.is_set)
        await handle.cancel()
        await runtime.run_until_idle()
        assert await handle.result() == "half of it", "it finished first"


async def test_a_thread_that_ignores_the_order_is_abandoned_and_its_writes_refused(
    store: Store, caplog: pytest.LogCaptureFixture
):
    app = Outrider()
    started, release = threading.Event(), threading.Event()
    late: list[str] = []

    @app.tool
    def ignores(task: SyncTaskContext) -> str:
        started.set()
        release.wait(20)
        try:
            task.output("too late")
            task.post("too late")
        except BaseException as error:
            late.append(type(error).__name__)
            raise
        return "too late"

    async with open_test(app, store=store) as runtime:
        handle = await spawn(runtime, "ignores")
        await runtime.until(started.is_set)
        await handle.cancel()
        runtime.clock.advance(10)
        await runtime.until(lambda: has_ended(handle))
        assert (await handle.record()).state is State.CANCELED
        worker = runtime._crews[0].worker
        await runtime.until(lambda: worker.abandoned == 1)
        release.set()
        await runtime.until(lambda: worker.abandoned == 0)
        assert late == ["Superseded"]
        assert await handle.messages() == []
        assert [piece.text async for piece in handle.output()] == []
    assert sum("was abandoned" in line.getMessage() for line in caplog.records) == 1


async def test_abandoned_threads_leave_room_for_others():
    app = Outrider()
    release = threading.Event()

    @app.tool
    def ignores() -> None:
        release.wait(20)

    @app.tool
    def quick() -> str:
        return "there is a thread for it"

    async with open_test(app, threads=2) as runtime:
        stuck = [await spawn(runtime, "ignores") for _ in range(2)]
        for handle in stuck:
            await runtime.until(partial(_is_held, handle))
            await handle.cancel()
        runtime.clock.advance(10)
        for handle in stuck:
            await runtime.until(partial(has_ended, handle))
        try:
            other = await spawn(runtime, "quick")
            await runtime.until(lambda: has_ended(other))
            assert await other.result() == "there is a thread for it"
        finally:
            release.set()


async def _is_held(handle: TaskHandle) -> bool:
    return (await handle.record()).worker_id is not None


async def test_a_cancellation_while_a_thread_runs_a_step_keeps_the_step_and_then_stops():
    app = Outrider()
    started, go_on = threading.Event(), threading.Event()
    seen: list[str] = []

    def work() -> str:
        started.set()
        go_on.wait(20)
        return "worked"

    @app.tool
    async def works(task: TaskContext) -> None:
        await task.step("first", work)
        seen.append("went on")
        await task.step("second", lambda: seen.append("second"))

    async with open_test(app) as runtime:
        handle = await spawn(runtime, "works")
        await runtime.until(started.is_set)
        await handle.cancel()
        await asyncio.sleep(0.02)
        go_on.set()
        await runtime.run_until_idle()
        assert (await handle.record()).state is State.CANCELED
        assert seen == []
        assert [step.position for step in await handle.steps()] == ["first"]


async def test_a_timeout_around_a_step_in_a_thread_is_not_lost():
    app = Outrider()

    @app.tool
    async def impatient(task: TaskContext) -> str:
        try:
            async with asyncio.timeout(0.01):
                await task.step("slow", time.sleep, 0.05)
        except TimeoutError:
            return "too slow"
        return "in time"

    async with open_test(app) as runtime:
        handle = await spawn(runtime, "impatient")
        await runtime.run_until_idle()
        assert await handle.result() == "too slow"


# --- trees -------------------------------------------------------------------------------------------


def family(app: Outrider, started: asyncio.Event, stop: asyncio.Event) -> None:
    @app.tool
    async def grandchild(task: TaskContext) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await stop.wait()  # takes its time to clean up

    @app.tool
    async def child(task: TaskContext) -> None:
        await task.wait_for([await task.spawn("grandchild")])

    @app.tool
    async def parked(task: TaskContext) -> None:
        await task.sleep(1000)

    @app.tool
    async def done() -> str:
        return "done"

    @app.tool
    async def parent(task: TaskContext) -> None:
        children = [
            await task.spawn("child", position="child"),
            await task.spawn("parked", position="parked"),
            await task.spawn("done", position="done"),
            await task.spawn("parked", position="detached", options=TaskOptions(detached=True, name="detached")),
        ]
        await task.wait_for(children)


async def test_a_cancel_goes_down_three_levels_and_names_everybody(store: Store):
    app, started, stop = Outrider(), asyncio.Event(), asyncio.Event()
    family(app, started, stop)
    async with open_test(app, store=store) as runtime:
        handle = await spawn(runtime, "parent")
        await runtime.until(started.is_set)
        await runtime.until(lambda: _all_started(runtime, 6))
        names = {record.id: record.display_name for record in await runtime.tasks.list()}
        receipt = await handle.cancel(reason="enough", wait=0)
        assert {names[each] for each in receipt.canceled} == {"parent", "child", "parked"}
        assert {names[each] for each in receipt.requested} == {"grandchild"}
        assert {names[each] for each in receipt.left} == {"done", "detached"}
        assert receipt.canceled[0] == handle.id
        stop.set()
        await runtime.run_until_idle()
        states = {record.display_name: record.state for record in await runtime.tasks.list()}
        assert states == {
            "parent": State.CANCELED,
            "child": State.CANCELED,
            "grandchild": State.CANCELED,
            "parked": State.CANCELED,
            "done": State.SUCCEEDED,
            "detached": State.RUNNING,
        }
        everything = await handle.cancel(include_detached=True)
        assert handle.id in everything.left


async def test_detached_children_go_too_when_asked():
    app, started, stop = Outrider(), asyncio.Event(), asyncio.Event()
    family(app, started, stop)
    async with open_test(app) as runtime:
        handle = await spawn(runtime, "parent")
        await runtime.until(lambda: _all_started(runtime, 6))
        await handle.cancel(include_detached=True)
        stop.set()
        await runtime.run_until_idle()
        states = {record.display_name: record.state for record in await runtime.tasks.list()}
        assert states["detached"] is State.CANCELED


async def test_a_child_made_after_the_cancel_goes_with_its_parent():
    app = Outrider()
    started = asyncio.Event()

    @app.tool
    async def child(task: TaskContext) -> None:
        await task.sleep(1000)

    @app.tool
    async def parent(task: TaskContext) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await task.spawn("child")

    async with open_test(app) as runtime:
        handle = await spawn(runtime, "parent")
        await started.wait()
        await handle.cancel()
        await runtime.run_until_idle()
        states = {record.display_name: record.state for record in await runtime.tasks.list()}
        assert states == {"parent": State.CANCELED, "child": State.CANCELED}


async def test_lost_work_that_was_asked_to_cancel_is_canceled_and_never_claimed_again(store: Store):
    app, runs = Outrider(), []
    release = asyncio.Event()

    @app.tool
    async def ignores(task: TaskContext) -> None:
        runs.append(task.attempt)
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                if not task.cancel_requested or len(runs) > 1:
                    raise
                runs.append(99)

    async with open_test(app, store=store) as runtime:
        handle = await spawn(runtime, "ignores")
        await runtime.until(lambda: runs == [1])
        await handle.cancel()
        await runtime.until(lambda: 99 in runs)
        await runtime.crash()
        await runtime.run_until_idle()
        assert (await handle.record()).state is State.CANCELED
        assert [each.ending for each in await handle.attempts()] == ["lost"]
        assert runs == [1, 99]


async def test_nothing_reaches_a_task_that_has_ended():
    app = Outrider()

    @app.tool
    async def done() -> None:
        return None

    async with open_test(app) as runtime:
        handle = await spawn(runtime, "done")
        await runtime.run_until_idle()
        with pytest.raises(TaskFinished):
            await handle.message("too late")


async def _all_started(runtime: TestRuntime, count: int) -> bool:
    records = await runtime.tasks.list()
    return len(records) == count and all(
        record.is_terminal
        or (record.started_at is not None and (record.worker_id is None or record.display_name == "grandchild"))
        for record in records
    )
