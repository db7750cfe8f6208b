"""The help for tests is itself tested: what idle means, how time passes, what a crash leaves."""

import asyncio
import threading
import time
from datetime import timedelta
from functools import partial

import pytest

from outrider import Outrider, State, SyncTaskContext, TaskContext
from outrider.testing import ManualClock, NotIdle, open_test

pytestmark = pytest.mark.anyio


def test_a_manual_clock_stands_still_until_it_is_moved():
    clock = ManualClock()
    before = clock.time
    clock.advance(timedelta(hours=1))
    clock.advance(0.5)
    assert clock.time - before == timedelta(hours=1, seconds=0.5)


def test_alarms_go_off_in_order_each_at_its_own_moment_and_not_after_they_were_called_off():
    clock = ManualClock()
    rung: list[tuple[int, int]] = []
    start = clock.now()
    for second in (3, 1, 2):
        clock.call_at(start + second * 1_000_000, partial(lambda at: rung.append((at, clock.now() - start)), second))
    clock.call_at(start + 1_500_000, lambda: rung.append((0, 0))).cancel()
    clock.advance(2)
    assert rung == [(1, 1_000_000), (2, 2_000_000)]
    assert clock.next_alarm == start + 3_000_000


async def test_idle_means_that_all_that_can_be_done_without_time_is_done(store):
    app = Outrider()

    @app.tool
    async def nap(task: TaskContext, seconds: float) -> str:
        await task.step("before", asyncio.sleep, 0)
        await task.sleep(seconds)
        return "awake"

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        naps = await session.spawn_many("nap", [{"seconds": 10.0 + n} for n in range(20)])
        await runtime.run_until_idle()
        assert {(await each.record()).phase for each in naps} == {"sleeping"}
        await runtime.advance(15)
        assert [(await each.record()).state for each in naps] == [State.SUCCEEDED] * 6 + [State.RUNNING] * 14
        await runtime.advance(timedelta(minutes=1))
        assert [await each.result() for each in naps] == ["awake"] * 20


async def test_time_passes_moment_by_moment(store):
    app = Outrider()
    seen = []

    @app.tool
    async def tick(task: TaskContext) -> None:
        for _ in range(5):
            await task.sleep(60)
            seen.append(task.services.clock.now())

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        start = runtime.clock.now()
        await session.spawn("tick")
        await runtime.advance(timedelta(minutes=5))
        assert set(seen) == {start + n * 60_000_000 for n in range(1, 6)}


async def test_idle_waits_for_threads_and_for_code_that_really_sleeps(store):
    app = Outrider()
    done = []

    @app.tool
    def threaded(task: SyncTaskContext) -> None:
        time.sleep(0.05)
        done.append(threading.current_thread().name)

    @app.tool
    async def sleeping() -> None:
        await asyncio.sleep(0.05)
        done.append("slept")

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        await session.spawn("threaded")
        await session.spawn("sleeping")
        await runtime.run_until_idle()
        assert len(done) == 2


async def test_what_never_rests_is_named():
    app, begun = Outrider(), asyncio.Event()

    @app.tool
    async def hangs() -> None:
        begun.set()
        await asyncio.Event().wait()

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        await session.spawn("hangs")
        await begun.wait()
        with pytest.raises(NotIdle, match="hangs"):
            await runtime.run_until_idle(timeout=0.05)


async def test_a_crash_settles_nothing_and_its_work_is_found_again(store):
    app = Outrider()
    runs: list[object] = []

    @app.tool
    async def long(task: TaskContext) -> str:
        runs.append(task.attempt)
        await task.step("first", runs.append, "first")
        if task.attempt == 1:
            await asyncio.Event().wait()
        return "through"

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("long")
        await runtime.until(lambda: "first" in runs)
        await runtime.until(lambda: runtime.writes == 1)
        await runtime.crash()
        await runtime.run_until_idle()
        assert await handle.result() == "through"
        assert runs == [1, "first", 2]
        assert [each.ending for each in await handle.attempts()] == ["lost", "succeeded"]


async def test_a_crash_may_be_placed_after_any_write(store):
    app = Outrider()

    @app.tool
    async def three(task: TaskContext) -> list[int]:
        return [await task.step(str(n), lambda n=n: n) for n in range(3)]

    for writes in range(1, 4):
        async with open_test(app, store=store) as runtime:
            runtime.crash_after(writes)
            session = await runtime.sessions.create()
            handle = await session.spawn("three")
            await runtime.run_until_idle()
            assert await handle.result() == [0, 1, 2]
            assert runtime.crashes == 1
            assert runtime.writes == 3
            assert (await handle.record()).attempt == 2


async def test_a_drain_hands_over_without_a_failure(store):
    app = Outrider()

    @app.tool
    async def waits(task: TaskContext) -> str:
        await task.sleep(10)
        return "done"

    async with open_test(app, store=store, park_grace=1000) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("waits")
        await runtime.run_until_idle()
        await runtime.drain()
        record = await handle.record()
        assert (record.state, record.worker_id, record.failures) == (State.RUNNING, None, 0)
        await runtime.start_worker()
        await runtime.advance(10)
        assert await handle.result() == "done"
