"""The doctor finds what is wrong, says why a task does not run, and finds nothing where nothing is."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from outrider import Outrider, Runtime, TaskHandle, TaskOptions
from outrider.core.errors import NotFound
from outrider.core.ledger import WorkerCard
from outrider.runtime.bounds import Bounds

pytestmark = pytest.mark.anyio

app = Outrider()
gate = asyncio.Event()


@app.tool
async def hold() -> None:
    await gate.wait()


@app.tool(concurrency_key="door")
async def hold_door() -> None:
    await gate.wait()


@app.tool(max_failures=2, backoff=3600)
async def fail() -> None:
    raise ValueError("no such thing")


@app.tool
async def ask(task) -> bool:
    return bool(await task.ask("Really?", bool))


@app.tool
async def doze(task) -> None:
    await task.sleep(3600)


@pytest.fixture
async def outrider(tmp_path: Path) -> AsyncIterator[Runtime]:
    global gate
    gate = asyncio.Event()
    async with app.open(f"{tmp_path}/work.db") as runtime:
        yield runtime
        gate.set()  # else whoever holds would be waited for


async def said(outrider: Runtime, task: TaskHandle, phrase: str) -> str:
    """What is said of a task, as soon as it holds the phrase."""
    text = ""
    async with asyncio.timeout(20):
        while phrase not in text:
            text = "\n".join((await outrider.doctor.explain(task.id)).because)
            await asyncio.sleep(0.002)
    return text


async def test_a_sound_store_gives_no_finding(outrider: Runtime):
    session = await outrider.sessions.create()
    await (await session.spawn("hold")).cancel(wait=5)
    assert await outrider.doctor.examine(deep=True) == []


async def test_every_standstill_of_a_task_has_its_reason(outrider: Runtime):
    session = await outrider.sessions.create()
    held = await session.spawn("hold", options=TaskOptions(concurrency_key="door"))
    assert "attempt 1 runs since" in await said(outrider, held, "attempt 1")
    second = await session.spawn("hold", options=TaskOptions(concurrency_key="door"))
    assert "1 of 1 running (no limit is set, so it is one)" in await said(outrider, second, "door is full")
    stranger = outrider.within(Bounds("org_b"))
    there = await stranger.sessions.create()
    theirs = await there.spawn("hold_door")
    told = await said(stranger, theirs, "door is full")
    assert "running" not in told
    assert "waiting" not in told
    own = await there.spawn_many("hold", [{}, {}], options=TaskOptions(concurrency_key="door"))
    assert "1 of 1 running (no limit is set, so it is one), 1 waiting" in await said(stranger, own[1], "door is full")
    after = await session.spawn("hold", options=TaskOptions(depends_on=(held.id,)))
    assert held.id in await said(outrider, after, "depends on")
    later = await session.spawn("hold", options=TaskOptions(delay=3600))
    await said(outrider, later, "it is not due before")
    failing = await session.spawn("fail")
    assert "no such thing" in await said(outrider, failing, "it has failed 1 of 2 times")
    asking = await session.spawn("ask")
    assert f"outrider answer {asking.id} VALUE" in await said(outrider, asking, "it asks: Really?")
    dozing = await session.spawn("doze")
    await said(outrider, dozing, "it sleeps until")
    await outrider.queue.pause(kind="background_tool", reason="a reason", by="ada")
    paused = await session.spawn("hold")
    assert "by ada: a reason" in await said(outrider, paused, "background_tool is paused")
    assert len((await outrider.doctor.explain(paused.id)).because) == 1
    await paused.cancel(reason="enough", by="eve")
    assert await said(outrider, paused, "canceled") == (await outrider.doctor.explain(paused.id)).because[0]
    assert "by eve: enough" in await said(outrider, paused, "canceled")
    with pytest.raises(NotFound):
        await outrider.doctor.explain("task_none")


async def test_a_task_behind_a_full_worker_is_told_its_place_and_the_room(tmp_path: Path):
    global gate
    gate = asyncio.Event()
    async with app.open(f"{tmp_path}/work.db", concurrency=1) as outrider:
        session = await outrider.sessions.create()
        held = await session.spawn("hold")
        await said(outrider, held, "attempt 1")
        second, third = await session.spawn("hold"), await session.spawn("hold")
        await said(outrider, second, "it is ready, with 0 tasks of background_tool:hold before it")
        assert "holds 1 of 1" in await said(outrider, third, "with 1 task of background_tool:hold before it")
        await outrider.tasks.cancel_many([held.id, second.id, third.id])


async def test_a_dead_worker_serves_nobody_in_any_line(tmp_path: Path):
    async with app.open(f"{tmp_path}/work.db", worker=False) as outrider:
        dead = WorkerCard("worker_dead", socket.gethostname(), "boot", 1, 0, ("background_tool:hold",), "0", 150)
        await outrider.ledger.register(dead)
        task = await (await outrider.sessions.create()).spawn("hold")
        told = await said(outrider, task, "no live worker serves background_tool:hold")
        assert "it is ready" in told
        assert "worker_dead" not in told


async def test_a_spent_rate_is_told_with_when_it_returns(outrider: Runtime):
    await outrider.queue.limit("mail", rate=1, per=3600)
    session = await outrider.sessions.create()
    options = TaskOptions(concurrency_key="mail")
    await session.spawn("hold", options=options)
    second = await session.spawn("hold", options=options)
    assert "1 start in 3600 s" in await said(outrider, second, "the rate of mail is spent")


async def test_what_nobody_serves_and_who_is_dead_are_problems(outrider: Runtime, tmp_path: Path):
    card = WorkerCard("worker_gone", "elsewhere", "boot", 1, 0, ("background_tool:other",), "0", 4)
    await outrider.ledger.register(card)
    async with Outrider().open(f"{tmp_path}/work.db", worker=False) as other:
        (mine,) = [each for each in await other.workers() if each.is_alive]
        (gone,) = [each for each in await other.workers() if each.id == "worker_gone"]
        assert (gone.is_alive, gone.held, mine.held) == (None, 0, 0)
        app_elsewhere = Outrider()

        @app_elsewhere.tool
        async def unheard_of() -> None: ...

        async with app_elsewhere.open(f"{tmp_path}/work.db", worker=False) as elsewhere:
            session = await elsewhere.sessions.create()
            task = await session.spawn("unheard_of")
        found = await other.doctor.examine()
        assert any("no live worker serves background_tool:unheard_of, awaited by 1 task" in each.text for each in found)
        assert any("worker_gone" in each.text and each.level == "problem" for each in found)
        await said(other, TaskHandle(other.services, await other.tasks.get(task.id)), "no live worker serves")


async def test_a_database_that_miscounts_is_a_problem(outrider: Runtime, tmp_path: Path):
    with sqlite3.connect(tmp_path / "work.db") as connection:
        connection.execute("update counts set tasks = 7 where state = 'failed'")
    (found,) = await outrider.doctor.examine()
    assert (found.level, found.about) == ("problem", "database")
    assert "the count of failed tasks is 7, and there are 0" in found.text


async def test_numbers_are_told(outrider: Runtime):
    session = await outrider.sessions.create()
    await session.spawn("hold")
    gate.set()
    await (await session.spawn("hold")).result(timeout=20)
    stats = await outrider.stats()
    assert stats.seconds == 3600
    (ended,) = stats.ended
    assert (ended.kind, ended.state, ended.count) == ("background_tool", "succeeded", 2)
    assert ended.waited is not None
    assert stats.size > 0


async def test_tasks_that_others_do_are_no_problem(outrider: Runtime):
    session = await outrider.sessions.create()
    claimed = await session.create("external", {"name": "ci"})
    await outrider.external.claim("builder", name="ci")
    assert "by external:builder" in await said(outrider, claimed, "no worker")
    waiting = await session.create("external", {"name": "ci"})
    assert "to claim external:ci" in await said(outrider, waiting, "to claim")
    assert await outrider.doctor.examine() == []
