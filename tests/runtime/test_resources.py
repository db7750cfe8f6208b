"""What a task held is released when it has ended, however that was: at least once, and durably."""

from __future__ import annotations

import asyncio

import pytest

from outrider import Failure, Outrider, SyncTaskContext, TaskContext, TaskOptions
from outrider.core.errors import IllegalMove, InvalidArguments, TaskFailed
from outrider.testing import Store, TestRuntime, open_test

pytestmark = pytest.mark.anyio

app = Outrider()
released: list[str] = []
breaks = 0


@pytest.fixture(autouse=True)
def clean() -> None:
    global breaks
    released.clear()
    breaks = 0


@app.resource("volume")
async def release_volume(resource_id: str) -> None:
    global breaks
    if breaks:
        breaks -= 1
        raise RuntimeError("the volume does not answer")
    released.append(resource_id)


@app.tool
async def use(task: TaskContext, end: str = "well") -> str:
    await task.hold("volume", "v1")
    await task.hold("volume", "v2")
    await task.hold("volume", "v1")
    await task.step("mount", str, "mounted")
    if end == "badly":
        raise Failure("no")
    if end == "asking":
        await task.ask("Done?", bool)
    return "done"


@app.tool
def use_in_thread(task: SyncTaskContext) -> None:
    task.hold("volume", "v3")


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_the_log_tells_what_a_task_holds(store: Store):
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn(use, end="asking")
        await runtime.run_until_idle()
        await task.answer(True)
        await runtime.run_until_idle()
        told = [event.task.links.resource_ids async for event in task.events() if event.task is not None]
        assert told[-1] == (await task.record()).links.resource_ids == ("volume:v1", "volume:v2")


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_resources_are_released_after_success_and_not_before(store: Store):
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn(use, end="asking")
        await runtime.run_until_idle()
        assert (await task.record()).links.resource_ids == ("volume:v1", "volume:v2")
        assert released == []
        await task.answer(True)
        assert await task.result() == "done"
        await runtime.run_until_idle()
        assert sorted(released) == ["v1", "v2"]


async def test_they_are_released_after_a_failure_and_from_a_thread():
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        with pytest.raises(TaskFailed):
            await (await session.spawn(use, end="badly")).result()
        await (await session.spawn(use_in_thread)).result()
        await runtime.run_until_idle()
        assert sorted(released) == ["v1", "v2", "v3"]


async def test_a_cancel_releases_them_also_one_that_reaches_everything():
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn(use, end="asking")
        await runtime.run_until_idle()
        await task.cancel(include_detached=True)
        await runtime.run_until_idle()
        assert sorted(released) == ["v1", "v2"]


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_crash_at_any_piece_of_the_journal_loses_no_release(store: Store):
    for writes in range(1, 5):
        released.clear()
        async with open_test(app, store=store) as runtime:
            runtime.crash_after(writes)
            session = await runtime.sessions.create()
            task = await session.spawn(use)
            await runtime.run_until_idle()
            assert await task.result() == "done"
            await runtime.run_until_idle()
            assert set(released) == {"v1", "v2"}, writes


async def test_a_task_whose_workers_are_lost_for_good_is_released_by_the_next():
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn(hang, options=TaskOptions(max_failures=1))
        await runtime.until(lambda: any_held(runtime))
        await runtime.crash()
        with pytest.raises(TaskFailed):
            await task.result()
        await runtime.run_until_idle()
        assert released == ["v9"]


@app.tool
async def hang(task: TaskContext) -> None:
    await task.hold("volume", "v9")
    task.detail("hanging")
    await asyncio.sleep(3600)


async def any_held(runtime: TestRuntime) -> bool:
    (record,) = [each for each in await runtime.tasks.list() if each.display_name == "hang"]
    return record.state_detail == "hanging"


async def test_a_hook_that_fails_is_tried_again():
    global breaks
    breaks = 3
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        await (await session.spawn(use_in_thread)).result()
        await runtime.run_until_idle()
        assert released == []
        await runtime.advance(60)
        assert released == ["v3"]


async def test_a_fork_holds_them_anew():
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn(use)
        await task.result()
        await runtime.run_until_idle()
        await (await task.fork()).result()
        await runtime.run_until_idle()
        assert sorted(released) == ["v1", "v1", "v2", "v2"]


async def test_what_nobody_can_release_is_refused_and_what_holds_is_not_exported():
    @app.tool(name="careless", max_failures=1)
    async def careless(task: TaskContext) -> None:
        await task.hold("moon", "1")

    with pytest.raises(InvalidArguments):
        app.resource("odd")(lambda: None)
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        with pytest.raises(TaskFailed, match="release:moon"):
            await (await session.spawn("careless")).result()
        task = await session.spawn(use, end="asking")
        await runtime.run_until_idle()
        with pytest.raises(IllegalMove):
            await task.export()
