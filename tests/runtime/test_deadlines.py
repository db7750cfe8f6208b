"""Retries with back-off, and the four deadlines of a task."""

import asyncio
import random
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from outrider import Outrider, State, TaskContext, TaskHandle, TaskOptions
from outrider.testing import Store, TestRuntime, open_test

pytestmark = pytest.mark.anyio


async def spawn(runtime: TestRuntime, tool: str, **options: Any) -> TaskHandle:
    session = await runtime.sessions.create()
    return await session.spawn(tool, options=TaskOptions(**options))


async def has_ended(handle: TaskHandle) -> bool:
    return (await handle.record()).is_terminal


async def timed_out(handle: TaskHandle) -> Any:
    record = await handle.record()
    assert record.error is not None
    assert (record.state, record.error.kind) == (State.FAILED, "timeout")
    return record.error.details["timeout"]


# --- retries -----------------------------------------------------------------------------------------


def failing(app: Outrider, times: list[int]) -> None:
    @app.tool
    async def fails(task: TaskContext) -> None:
        times.append(task.services.clock.now())
        raise ValueError("again")


async def test_failures_back_off_doubling_with_jitter(monkeypatch: pytest.MonkeyPatch, store: Store):
    for chance, waits in ((1.0, [1, 2, 4, 8]), (0.5, [0.5, 1, 2, 4])):
        monkeypatch.setattr(random, "random", lambda chance=chance: chance)
        app, times = Outrider(), list[int]()
        failing(app, times)
        async with open_test(app, store=store) as runtime:
            handle = await spawn(runtime, "fails", max_failures=5)
            await runtime.run_until_idle()
            record = await handle.record()
            assert (record.state, record.phase, record.failures) == (State.QUEUED, "backing_off", 1)
            await runtime.advance(60)
            assert [(after - before) / 1e6 for before, after in pairwise(times)] == waits
            record = await handle.record()
            assert record.error is not None
            assert (record.state, record.error.message, record.failures) == (State.FAILED, "ValueError: again", 5)
            assert [each.ending for each in await handle.attempts()] == ["failed"] * 5


async def test_back_off_has_a_ceiling(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(random, "random", lambda: 1.0)
    app, times = Outrider(), list[int]()
    failing(app, times)
    async with open_test(app) as runtime:
        await spawn(runtime, "fails", max_failures=5, backoff=10, backoff_max=15)
        await runtime.advance(timedelta(minutes=5))
        assert [(after - before) / 1e6 for before, after in pairwise(times)] == [10, 15, 15, 15]


async def test_one_failure_may_be_enough():
    app, times = Outrider(), list[int]()
    failing(app, times)
    async with open_test(app) as runtime:
        handle = await spawn(runtime, "fails", max_failures=1)
        await runtime.run_until_idle()
        assert (await handle.record()).state is State.FAILED
        assert len(times) == 1


async def test_what_comes_further_each_time_is_not_punished():
    app = Outrider()

    @app.tool
    async def progresses(task: TaskContext) -> str:
        for n in range(8):
            await task.step(str(n), lambda: None)
            if task.attempt == n + 1:
                raise ValueError("stumbled")
        return "there"

    async with open_test(app) as runtime:
        handle = await spawn(runtime, "progresses", max_failures=2)
        await runtime.advance(timedelta(hours=1))
        assert await handle.result() == "there"
        assert (await handle.record()).attempt == 9


async def test_a_lost_worker_counts_one_failure_and_three_are_enough(store: Store):
    app, runs = Outrider(), []

    @app.tool
    async def kills_its_worker(task: TaskContext) -> None:
        runs.append(task.attempt)
        await asyncio.Event().wait()

    async with open_test(app, store=store) as runtime:
        handle = await spawn(runtime, "kills_its_worker")
        for n in range(1, 4):
            await runtime.until(lambda n=n: len(runs) == n)  # type: ignore[misc]  # a default is no part of what mypy expects of a lambda
            assert (await handle.record()).failures == n - 1
            await runtime.crash()
        record = await handle.record()
        assert record.error is not None
        assert (record.state, record.error.kind) == (State.FAILED, "orphaned")


# --- the four deadlines ------------------------------------------------------------------------------


def hanging(app: Outrider, runs: list[int]) -> None:
    @app.tool
    async def hangs(task: TaskContext) -> None:
        runs.append(task.attempt)
        await asyncio.Event().wait()


async def test_what_waits_too_long_in_the_queue_fails_unstarted(store: Store):
    app, runs = Outrider(), list[int]()
    hanging(app, runs)

    @app.tool
    async def long(task: TaskContext) -> None:
        await asyncio.Event().wait()

    async with open_test(app, store=store, concurrency=1) as runtime:
        await spawn(runtime, "long")
        await runtime.until(lambda: runtime._crews[0].worker.held == 1)
        handle = await spawn(runtime, "hangs", queue_timeout=60)
        delayed = await spawn(runtime, "hangs", queue_timeout=60, delay=30)
        runtime.clock.advance(61)
        await runtime.until(lambda: has_ended(handle))
        assert await timed_out(handle) == "queue"
        assert not await has_ended(delayed), "its time began when it became due"
        runtime.clock.advance(30)
        await runtime.until(lambda: has_ended(delayed))
        assert runs == []


async def test_an_attempt_that_runs_too_long_is_stopped_and_tried_again(store: Store):
    app, runs = Outrider(), list[int]()
    hanging(app, runs)
    async with open_test(app, store=store) as runtime:
        handle = await spawn(runtime, "hangs", run_timeout=60, max_failures=2, backoff=0)
        await runtime.until(lambda: runs == [1])
        runtime.clock.advance(61)
        await runtime.until(lambda: runs == [1, 2])
        assert (await handle.record()).failures == 1
        runtime.clock.advance(61)
        await runtime.until(lambda: has_ended(handle))
        assert await timed_out(handle) == "run"


async def test_the_run_deadline_does_not_count_what_was_waited_parked():
    app = Outrider()

    @app.tool
    async def waits(task: TaskContext) -> str:
        await task.sleep(3600)
        return "in time"

    async with open_test(app) as runtime:
        handle = await spawn(runtime, "waits", run_timeout=60)
        await runtime.advance(3601)
        assert await handle.result() == "in time"


@pytest.mark.parametrize("sign", ["heartbeat", "progress", "output"])
async def test_signs_of_life_hold_off_the_idle_deadline_and_silence_does_not(sign: str, store: Store):
    app = Outrider()
    beats, go_on = asyncio.Semaphore(0), list[int]()

    @app.tool
    async def beats_for_a_while(task: TaskContext) -> None:
        while True:
            await beats.acquire()
            match sign:
                case "heartbeat":
                    task.heartbeat()
                case "progress":
                    task.progress(len(go_on))
                case _:
                    task.output("alive\n")
            go_on.append(1)

    async with open_test(app, store=store) as runtime:
        handle = await spawn(runtime, "beats_for_a_while", idle_timeout=60, max_failures=1)
        await runtime.until(lambda: runtime._crews[0].worker.held == 1)
        for n in range(1, 5):
            runtime.clock.advance(45)
            beats.release()
            await runtime.until(lambda n=n: len(go_on) == n)  # type: ignore[misc]  # a default is no part of what mypy expects of a lambda
            await asyncio.sleep(0.01)
            assert not await has_ended(handle), "it beat in time"
        runtime.clock.advance(61)
        await runtime.until(lambda: has_ended(handle))
        assert await timed_out(handle) == "idle"


async def test_a_sign_of_life_on_its_way_to_the_store_counts(monkeypatch: pytest.MonkeyPatch, store: Store):
    app, said = Outrider(), list[int]()
    beats, stored = asyncio.Semaphore(0), asyncio.Event()

    @app.tool
    async def beats_for_a_while(task: TaskContext) -> None:
        while True:
            await beats.acquire()
            task.heartbeat()
            said.append(1)

    async with open_test(app, store=store) as runtime:
        ledger = runtime._store
        report, on_its_way = ledger.report, list[int]()

        async def report_late(reports: Any) -> Any:
            on_its_way.append(1)
            await stored.wait()
            return await report(reports)

        monkeypatch.setattr(ledger, "report", report_late)
        handle = await spawn(runtime, "beats_for_a_while", idle_timeout=60, max_failures=1)
        await runtime.until(lambda: runtime._crews[0].worker.held == 1)
        runtime.clock.advance(45)
        beats.release()
        await runtime.until(lambda: bool(on_its_way))
        moved = (await handle.record()).version
        runtime.clock.advance(45)

        async def has_looked() -> bool:
            return (await handle.record()).version > moved

        await runtime.until(has_looked)
        record = await handle.record()
        assert (record.state, record.phase_reason) == (State.RUNNING, None), "it beat 45 seconds ago"
        stored.set()
        runtime.clock.advance(61)
        await runtime.until(lambda: has_ended(handle))
        assert await timed_out(handle) == "idle"


async def test_the_total_deadline_holds_over_attempts_waits_and_questions(store: Store):
    app, runs = Outrider(), list[int]()
    hanging(app, runs)

    @app.tool
    async def asks(task: TaskContext) -> None:
        await task.ask("Anybody?", str)

    @app.tool
    async def sleeps(task: TaskContext) -> None:
        await task.sleep(7200)

    async with open_test(app, store=store) as runtime:
        handles = [await spawn(runtime, tool, total_timeout=3600) for tool in ("asks", "sleeps")]
        future = await spawn(runtime, "hangs", total_timeout=3600, delay=7200)
        await runtime.advance(3601)
        for handle in (*handles, future):
            assert await timed_out(handle) == "total"
            assert (await handle.record()).failures == 0
        running = await spawn(runtime, "hangs", total_timeout=60)
        await runtime.until(lambda: runs == [1])
        runtime.clock.advance(61)
        await runtime.until(lambda: has_ended(running))
        assert await timed_out(running) == "total"
        await runtime.advance(3600)
        assert runs == [1], "another attempt would be as late"


async def test_code_that_ignores_its_deadline_is_left_behind_and_not_run_again():
    app, runs = Outrider(), list[int]()
    release = asyncio.Event()

    @app.tool
    async def ignores(task: TaskContext) -> None:
        runs.append(task.attempt)
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async with open_test(app) as runtime:
        handle = await spawn(runtime, "ignores", run_timeout=60)
        try:
            await runtime.until(lambda: runs == [1])
            runtime.clock.advance(61)
            await asyncio.sleep(0.01)
            assert not await has_ended(handle)
            await runtime.until(lambda: _is_told(handle))
            runtime.clock.advance(10)
            await runtime.until(lambda: has_ended(handle))
            assert await timed_out(handle) == "run"
            runtime.clock.advance(3600)
            await asyncio.sleep(0.01)
            assert runs == [1], "nothing runs twice while it is alive"
        finally:
            release.set()


async def _is_told(handle: TaskHandle) -> bool:
    return (await handle.record()).phase_reason == "stopping: timeout"


async def test_a_tool_may_bring_its_deadlines_and_the_caller_may_change_them():
    app = Outrider()

    @app.tool(run_timeout=60, total_timeout=timedelta(hours=1), max_failures=7, backoff=2)
    async def timed() -> None:
        return None

    async with open_test(app, worker=False) as runtime:
        own = await (await spawn(runtime, "timed")).record()
        assert (own.timeouts.run, own.timeouts.total, own.timeouts.idle) == (60, 3600, None)
        assert (own.retry.max_failures, own.retry.initial) == (7, 2)
        changed = await (await spawn(runtime, "timed", run_timeout=5, max_failures=1)).record()
        assert (changed.timeouts.run, changed.timeouts.total) == (5, 3600)
        assert changed.retry.max_failures == 1


async def test_a_delayed_task_waits_for_its_moment(store: Store):
    app, times = Outrider(), list[int]()

    @app.tool
    async def now(task: TaskContext) -> None:
        times.append(task.services.clock.now())

    async with open_test(app, store=store) as runtime:
        start = runtime.clock.now()
        handle = await spawn(runtime, "now", delay=timedelta(minutes=5))
        await spawn(runtime, "now", start_at=runtime.clock.time + timedelta(minutes=2))
        await runtime.run_until_idle()
        assert (await handle.record()).phase == "delayed"
        await runtime.advance(timedelta(minutes=10))
        assert times == [start + 120_000_000, start + 300_000_000]
