"""The queue as callers and workers see it: limits that hold, pauses that end, places that change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from outrider import Outrider, Runtime, State, TaskOptions
from outrider.core.errors import IdempotencyConflict, InvalidArguments, TaskFinished, TooLarge
from outrider.core.ledger import TaskFilter
from outrider.core.values import evolve
from outrider.runtime.options import new_task
from tests.facts import until

pytestmark = pytest.mark.anyio

app = Outrider()
running: set[int] = set()
most = 0
order: list[int] = []
gate = asyncio.Event()


@app.tool
async def work(n: int) -> int:
    global most
    running.add(n)
    most = max(most, len(running))
    order.append(n)
    for _ in range(3):
        await asyncio.sleep(0)
    running.discard(n)
    return n


@app.tool
async def hold(n: int) -> int:
    order.append(n)
    await gate.wait()
    return n


@app.tool(concurrency_key="from the tool")
async def keyed() -> None: ...


@app.tool(concurrency_key="common")
async def keyed_hold(n: int) -> int:
    return await hold(n)


@pytest.fixture(params=["memory", "sqlite"])
async def outrider(request: pytest.FixtureRequest, tmp_path) -> AsyncIterator[Runtime]:
    global most, gate
    running.clear()
    order.clear()
    most, gate = 0, asyncio.Event()
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/work.db"
    async with app.open(url) as runtime:
        yield runtime


async def started(count: int) -> list[int]:
    async with asyncio.timeout(20):
        while len(order) < count:  # noqa: ASYNC110 - a fact of the tools
            await asyncio.sleep(0.001)
    return order


async def test_no_more_run_at_once_than_the_limit_and_all_of_them_run(outrider: Runtime):
    await outrider.queue.limit("gpu", concurrency=3)
    session = await outrider.sessions.create()
    tasks = await session.spawn_many("work", [{"n": n} for n in range(200)], options=TaskOptions(concurrency_key="gpu"))
    await outrider.tasks.wait([task.id for task in tasks], timeout=60)
    assert sorted(order) == list(range(200))
    assert most == 3
    assert await outrider.queue.keys() == []


async def test_a_key_without_a_limit_is_a_lock_and_a_tool_brings_its_own(outrider: Runtime):
    session = await outrider.sessions.create()
    options = TaskOptions(concurrency_key="door")
    await session.spawn("hold", n=1, options=options)
    second = await session.spawn("hold", n=2, options=options)
    await started(1)

    async def is_blocked() -> bool:
        return (await second.record()).phase == "blocked"

    await until(is_blocked)
    assert (await second.record()).phase_reason == "limit of door"
    (key,) = await outrider.queue.keys()
    assert (key.key, key.held, key.waiting, key.limit.concurrency) == ("door", 1, 1, 1)
    gate.set()
    assert await second.result(timeout=20) == 2
    assert (await (await session.spawn("keyed")).record()).concurrency_key == "from the tool"
    asked = await session.spawn("keyed", options=TaskOptions(concurrency_key="other"))
    assert (await asked.record()).concurrency_key == "other"


async def test_a_key_is_of_the_organization_that_names_it_and_that_of_a_tool_is_common_to_all(outrider: Runtime):
    await outrider.queue.limit("door", concurrency=2, organization_id="org_b")
    sessions = [await outrider.sessions.create(organization_id=id) for id in ("org_default", "org_a", "org_b")]
    for n, session in enumerate(sessions):
        options = TaskOptions(concurrency_key="door")
        await session.spawn_many("hold", [{"n": 10 * n}, {"n": 10 * n + 1}], options=options)
        await session.spawn("keyed_hold", n=10 * n + 2)
    assert sorted(await started(5)) == [0, 2, 10, 20, 21]

    async def are_set_aside() -> bool:
        return sum(key.waiting for key in await outrider.queue.keys()) == 4

    await until(are_set_aside)
    keys = {(each.key, each.organization_id): (each.held, each.waiting) for each in await outrider.queue.keys()}
    own = {("door", None): (1, 1), ("door", "org_a"): (1, 1), ("door", "org_b"): (2, 0)}
    assert keys == {**own, ("common", None): (1, 2)}
    (record,) = [each for each in await sessions[1].tasks() if each.phase == "blocked" and each.spec["tool"] == "hold"]
    assert (record.concurrency_key, record.phase_reason) == ("door", "limit of door")
    gate.set()


async def test_what_was_made_while_keys_were_common_to_all_is_found_again_and_stays_under_its_key(outrider: Runtime):
    await outrider.queue.pause(everything=True)
    session = await outrider.sessions.create(organization_id="org_a")
    options = TaskOptions(id="task_old", concurrency_key="door")
    executor = app.registry.executor("background_tool")
    checked = executor.check({"tool": "hold", "arguments": {"n": 1}})
    found = await outrider.services.views.session(session.id)
    assert found is not None
    new = new_task("background_tool", checked, found, options, outrider.services.clock.now(), app.settings.limits)
    await outrider.services.lifecycle.create([evolve(new, input=evolve(new.input, concurrency_key="door"))])
    assert (await session.spawn("hold", n=1, options=options)).id == "task_old"
    await outrider.queue.resume(everything=True)
    await started(1)
    assert [(each.key, each.organization_id) for each in await outrider.queue.keys()] == [("door", None)]
    gate.set()


async def test_a_parked_task_leaves_its_place_to_others(outrider: Runtime):
    app.registry.tools.pop("ask_first", None)

    @app.tool
    async def ask_first(task) -> str:
        return "yes" if await task.ask("Go on?", bool) else "no"

    async with app.open("memory://") as fresh:  # whose worker serves the tool
        session = await fresh.sessions.create()
        options = TaskOptions(concurrency_key="door")
        asking = await session.spawn("ask_first", options=options)
        await asking.wait(on_question=True, timeout=20)
        other = await session.spawn("work", n=1, options=options)
        assert await other.result(timeout=20) == 1
        await asking.answer(True)
        assert await asking.result(timeout=20) == "yes"


async def test_a_rate_spreads_starts(outrider: Runtime):
    await outrider.queue.limit("mail", rate=2, per=0.2)
    session = await outrider.sessions.create()
    tasks = await session.spawn_many("work", [{"n": n} for n in range(6)], options=TaskOptions(concurrency_key="mail"))
    await outrider.tasks.wait([task.id for task in tasks], timeout=30)
    starts = sorted([(await task.record()).started_at for task in tasks])  # type: ignore[type-var]  # all have started
    for begin in starts:
        assert begin is not None
        assert sum(begin <= at < begin + timedelta(seconds=0.2) for at in starts if at is not None) <= 2


@pytest.mark.parametrize("scope", ["session", "kind", "everything"])
async def test_what_is_paused_waits_and_says_so_until_it_is_resumed(outrider: Runtime, scope: str):
    session = await outrider.sessions.create()
    what = {"session": {"session": session.id}, "kind": {"kind": "background_tool"}, "everything": {"everything": True}}
    assert await outrider.queue.pause(**what[scope], reason="a pause", by="ada") is True  # type: ignore[arg-type]  # one of the three
    assert await outrider.queue.pause(**what[scope]) is False  # type: ignore[arg-type]  # likewise
    task = await session.spawn("work", n=1)
    record = await task.record()
    assert (record.state, record.phase, record.phase_reason) == (State.QUEUED, "blocked", f"{scope} paused")
    (pause,) = await outrider.queue.pauses()
    assert (pause.scope, pause.reason, pause.by) == (scope, "a pause", "ada")
    assert order == []
    assert await outrider.queue.resume(**what[scope]) is True  # type: ignore[arg-type]  # likewise
    assert await task.result(timeout=20) == 1
    assert await outrider.queue.resume(**what[scope]) is False  # type: ignore[arg-type]  # likewise


async def test_another_priority_goes_first(outrider: Runtime):
    await outrider.queue.pause(everything=True)
    session = await outrider.sessions.create()
    options = TaskOptions(concurrency_key="door")
    tasks = [await session.spawn("work", n=n, options=options) for n in range(3)]
    await outrider.queue.reprioritize(tasks[2].id, 7)
    assert (await tasks[2].record()).priority == 7
    await outrider.queue.resume(everything=True)
    await started(3)
    assert order == [2, 0, 1]
    await tasks[0].result(timeout=20)
    with pytest.raises(TaskFinished):
        await outrider.queue.reprioritize(tasks[0].id, 1)
    with pytest.raises(InvalidArguments):
        await outrider.queue.reprioritize(tasks[0].id, 2000)


async def test_what_is_debounced_runs_once_with_the_newest_arguments(outrider: Runtime):
    session = await outrider.sessions.create()
    soon = TaskOptions(debounce_key="build", delay=0.2)
    handles = [await session.spawn("work", n=n, options=soon) for n in range(5)]
    assert len({handle.id for handle in handles}) == 1
    assert (await handles[0].record()).spec["arguments"] == {"n": 4}
    assert await handles[0].result(timeout=20) == 4
    assert order == [4]
    again = await session.spawn("work", n=9, options=soon)
    assert again.id != handles[0].id
    with pytest.raises(IdempotencyConflict):
        await session.spawn("hold", n=9, options=soon)
    assert await again.result(timeout=20) == 9


async def test_a_debounced_task_is_put_off_no_further_than_its_bound(outrider: Runtime):
    session = await outrider.sessions.create()
    first = await session.spawn("work", n=0, options=TaskOptions(debounce_key="b", delay=0.01, debounce_max=0.1))
    again = await session.spawn("work", n=1, options=TaskOptions(debounce_key="b", delay=3600))
    if again.id == first.id:  # else it had started already
        assert await again.result(timeout=20) == 1


async def test_many_are_canceled_at_once(outrider: Runtime):
    session, other = await outrider.sessions.create(), await outrider.sessions.create()
    left = await other.spawn("hold", n=-1)
    held = await session.spawn("hold", n=0)
    await started(2)
    waiting = await session.spawn_many("work", [{"n": n} for n in range(1, 1200)], options=TaskOptions(delay=3600))
    receipt = await outrider.tasks.cancel_many(filter=TaskFilter(session_id=session.id), reason="enough", by="ada")
    assert set(receipt.canceled) == {task.id for task in waiting}
    assert receipt.requested == (held.id,)
    assert (await waiting[0].record()).cancel_reason == "enough"
    assert (await held.wait(timeout=20)).state is State.CANCELED
    assert (await left.record()).state is State.RUNNING
    receipt = await outrider.tasks.cancel_many([held.id, left.id, "task_none"])
    assert (receipt.canceled, receipt.requested, receipt.left) == ((), (left.id,), (held.id,))
    for wrong in ({}, {"ids": [held.id], "filter": TaskFilter()}):
        with pytest.raises(InvalidArguments):
            await outrider.tasks.cancel_many(**wrong)  # type: ignore[arg-type]  # that is what is tried


async def test_what_makes_no_sense_is_refused(outrider: Runtime):
    queue = outrider.queue
    for wrong in ({"concurrency": -1}, {"concurrency": True}, {"rate": 0}, {"rate": 1, "per": 0}, {"concurrency": 1.5}):
        with pytest.raises(InvalidArguments):
            await queue.limit("key", **wrong)
    with pytest.raises(InvalidArguments):
        await queue.limit("", concurrency=1)
    with pytest.raises(TooLarge):
        await queue.limit("k" * 1000, concurrency=1)
    for nothing in ({}, {"session": "a", "kind": "b"}, {"session": "no/path"}, {"kind": "a:b"}):
        with pytest.raises(InvalidArguments):
            await queue.pause(**nothing)  # type: ignore[arg-type]  # that is what is tried
    session = await outrider.sessions.create()
    for options in (
        {"concurrency_key": ""},
        {"concurrency_key": 5},
        {"debounce_key": "b"},
        {"debounce_max": 5, "delay": 1},
    ):
        with pytest.raises(InvalidArguments):
            await session.spawn("work", n=1, options=TaskOptions(**options))
    assert await queue.limits() == []


async def test_limits_are_told_and_removed(outrider: Runtime):
    limit = await outrider.queue.limit("gpu", concurrency=2, rate=5, per=timedelta(minutes=1))
    assert (limit.concurrency, limit.rate, limit.per) == (2, 5, 60.0)
    assert await outrider.queue.limits() == [limit]
    assert await outrider.queue.unlimit("gpu") is True
    assert await outrider.queue.unlimit("gpu") is False
