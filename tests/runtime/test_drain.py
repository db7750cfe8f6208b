"""Draining: what is in flight finishes, the rest is handed over where it stands, and nobody is charged."""

import asyncio
import threading
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from outrider import Outrider, State, SyncTaskContext, TaskContext, WorkerSettings
from outrider.runtime.lease import locks_of
from outrider.runtime.worker import Worker
from outrider.testing import Store, open_test

pytestmark = pytest.mark.anyio


async def test_a_step_in_flight_finishes_and_the_rest_goes_on_elsewhere(store: Store):
    app, runs = Outrider(), list[str]()
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow(name: str) -> str:
        runs.append(name)
        started.set()
        await go_on.wait()
        return name

    @app.tool
    async def works(task: TaskContext) -> list[str]:
        return [await task.step(name, slow, name) for name in ("one", "two", "three")]

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("works")
        await started.wait()
        draining = asyncio.create_task(runtime.drain())
        await asyncio.sleep(0.01)
        assert not draining.done(), "a step is in flight"
        go_on.set()
        await draining
        record = await handle.record()
        assert (record.state, record.worker_id, record.failures) == (State.RUNNING, None, 0)
        assert [step.position for step in await handle.steps()] == ["one"]
        assert await runtime.workers() == []
        await runtime.start_worker()
        await runtime.run_until_idle()
        assert await handle.result() == ["one", "two", "three"]
        assert runs == ["one", "two", "three"]
        assert [each.ending for each in await handle.attempts()] == ["released", "succeeded"]


async def test_a_step_in_flight_in_a_thread_finishes_too():
    app, runs = Outrider(), list[str]()
    started, go_on = threading.Event(), threading.Event()

    def slow() -> str:
        runs.append("slow")
        started.set()
        go_on.wait(20)
        return "worked"

    @app.tool
    def works(task: SyncTaskContext) -> str:
        first = task.step("slow", slow)
        task.step("next", lambda: None)
        return first

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("works")
        await runtime.until(started.is_set)
        draining = asyncio.create_task(runtime.drain())
        await asyncio.sleep(0.01)
        go_on.set()
        await draining
        assert [step.position for step in await handle.steps()] == ["slow"]
        await runtime.start_worker()
        await runtime.run_until_idle()
        assert await handle.result() == "worked"
        assert runs == ["slow"]


async def test_what_does_not_come_to_an_end_in_time_is_stopped_and_handed_over(store: Store):
    app, seen = Outrider(), list[str]()

    @app.tool
    async def hangs(task: TaskContext) -> str:
        seen.append(f"begun {task.attempt}")
        if task.attempt == 1:
            try:
                await asyncio.Event().wait()
            finally:
                seen.append("stopped")
        return "done"

    async with open_test(app, store=store, drain_timeout=0.05) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("hangs")
        await runtime.until(lambda: bool(seen))
        await runtime.drain()
        assert seen == ["begun 1", "stopped"]
        record = await handle.record()
        assert (record.worker_id, record.failures) == (None, 0)
        await runtime.start_worker()
        await runtime.run_until_idle()
        assert await handle.result() == "done"


async def test_a_cancel_while_draining_still_counts():
    app, started = Outrider(), asyncio.Event()

    @app.tool
    async def hangs() -> None:
        started.set()
        await asyncio.Event().wait()

    async with open_test(app, drain_timeout=5) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("hangs")
        await started.wait()
        draining = asyncio.create_task(runtime.drain())
        await asyncio.sleep(0.01)
        await handle.cancel()
        await draining
        assert (await handle.record()).state is State.CANCELED


async def test_nothing_is_begun_any_more(store: Store):
    app, runs = Outrider(), list[str]()

    @app.tool
    async def quick() -> None:
        runs.append("ran")

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        draining = asyncio.create_task(runtime.drain())
        handles = await session.spawn_many("quick", [{} for _ in range(50)])
        await draining
        for handle in handles:
            record = await handle.record()
            assert record.is_terminal or (record.worker_id is None and record.failures == 0)
        await runtime.start_worker()
        await runtime.run_until_idle()
        assert len(runs) == 50, "each once"


class Slow:
    """An app with a tool that has to be told to stop, and then takes until it may go on."""

    def __init__(self) -> None:
        self.app = Outrider(WorkerSettings(drain_timeout=0.1))
        self.started, self.draining, self.go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

        @self.app.tool
        async def slow() -> None:
            self.started.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.draining.set()
                await self.go_on.wait()
                raise


@pytest.mark.parametrize("how", ["a scope of anyio", "cancelled twice"])
async def test_whoever_is_cancelled_once_more_while_the_worker_drains_leaves_nothing_behind(how: str, tmp_path: Path):
    slow, url = Slow(), f"sqlite:///{tmp_path}/work.db"
    app = slow.app

    async def work() -> None:
        async with app.open(url) as runtime:
            await (await runtime.sessions.create()).spawn("slow")
            await asyncio.sleep(60)

    async def work_in_a_scope() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await work()

    scopes = list[anyio.CancelScope]()
    threads = set(threading.enumerate())
    working = asyncio.create_task(work_in_a_scope() if how.startswith("a scope") else work())
    await slow.started.wait()
    for cancel in [scopes[0].cancel] if scopes else [working.cancel, working.cancel]:
        cancel()
        await slow.draining.wait()
    await anyio.lowlevel.checkpoint()
    slow.go_on.set()
    await asyncio.wait([working])
    left = {each.name for each in set(threading.enumerate()) - threads if not each.name.startswith("asyncio")}
    assert left == set()
    async with app.open(url, worker=False) as runtime:
        assert await runtime.workers() == []
        assert [each.worker_id for each in await runtime.tasks.list()] == [None]


async def test_a_worker_that_is_cancelled_twice_signs_off_all_the_same(tmp_path: Path):
    slow = Slow()
    async with slow.app.open(f"{tmp_path}/work.db", worker=False) as runtime:
        await (await runtime.sessions.create()).spawn("slow")
        worker = Worker(runtime.services, locks=locks_of(runtime.ledger))
        job = asyncio.create_task(worker.run())
        await slow.started.wait()
        for _ in range(2):
            job.cancel()
            await slow.draining.wait()
        await anyio.lowlevel.checkpoint()
        slow.go_on.set()
        await asyncio.wait([job])
        assert await runtime.workers() == []
        assert not list(Path(f"{tmp_path}/work.db-workers").iterdir())
