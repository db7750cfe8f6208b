"""Whoever was set aside is let in, though nothing else moves; and who asks for nonsense is refused."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from outrider import Outrider, Runtime, TaskOptions
from outrider.core.errors import InvalidArguments, NotFound

pytestmark = pytest.mark.anyio

app = Outrider()
SPAN = 0.3
gate = asyncio.Event()


@app.tool
async def work(n: int) -> int:
    return n


@app.tool
async def hold() -> None:
    await gate.wait()


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/work.db"


@pytest.fixture
async def outrider(url: str) -> AsyncIterator[Runtime]:
    async with app.open(url) as runtime:
        yield runtime


def most_within(starts: list[datetime], seconds: float) -> int:
    """The most starts in any span of that length."""
    starts = sorted(starts)
    return max(sum(begin <= at < begin + timedelta(seconds=seconds) for at in starts) for begin in starts)


async def started_at(runtime: Runtime, ids: list[str]) -> list[datetime]:
    records = [await runtime.tasks.record(task_id) for task_id in ids]
    return [record.started_at for record in records if record.started_at is not None]


@pytest.mark.parametrize("count", [1, 3, 7])
async def test_what_waits_for_a_rate_is_let_in_though_nothing_else_happens(outrider: Runtime, count: int):
    await outrider.queue.limit("mail", rate=1, per=0.05)
    session = await outrider.sessions.create()
    tasks = await session.spawn_many(
        "work", [{"n": n} for n in range(count)], options=TaskOptions(concurrency_key="mail")
    )
    await outrider.tasks.wait([task.id for task in tasks], timeout=10)
    assert most_within(await started_at(outrider, [task.id for task in tasks]), 0.05) == 1


async def test_a_limit_set_again_by_another_process_forgets_no_start(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/work.db"
    options = TaskOptions(concurrency_key="mail")
    async with app.open(url) as outrider:
        await outrider.queue.limit("mail", rate=2, per=SPAN)
        session = await outrider.sessions.create()
        tasks = await session.spawn_many("work", [{"n": n} for n in range(8)], options=options)
        ids = [task.id for task in tasks]
        for n in itertools.count():
            # Who opens the database anew knows of no start but by the table, and of no moment of its own.
            async with app.open(url, worker=False) as other:
                await other.queue.limit("mail", rate=2, concurrency=10 + n, per=SPAN)
            records = await outrider.tasks.list(session_id=session.id)
            if all(record.state.is_terminal for record in records):
                break
            await asyncio.sleep(SPAN / 20)
        assert most_within(await started_at(outrider, ids), SPAN) == 2


async def is_full_and_its_rate_open(runtime: Runtime) -> bool:
    keys = await runtime.queue.keys()
    return bool(keys) and keys[0].waiting == 1 and keys[0].next_start_at is None


async def test_a_place_that_gets_free_long_after_its_rate_opened_is_taken(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/work.db"
    gate.clear()
    options = TaskOptions(concurrency_key="mail")
    async with app.open(url) as outrider:
        await outrider.queue.limit("mail", concurrency=1, rate=1, per=0.05)
        session = await outrider.sessions.create()
        first = await session.spawn("hold", options=options)
        second = await session.spawn("work", n=2, options=options)
        async with asyncio.timeout(10):
            while not await is_full_and_its_rate_open(outrider):  # noqa: ASYNC110 - the store
                await asyncio.sleep(0.01)
        await (await session.spawn("work", n=0)).result(timeout=10)  # a claim finds the rate open, the key full
        async with app.open(url, worker=False) as other:  # whose write makes the worker forget what it knows of keys
            await other.sessions.create()
        gate.set()
        await first.result(timeout=10)
        assert await second.result(timeout=10) == 2


async def test_a_wider_limit_lets_in_at_once_who_waited_for_the_old_one(outrider: Runtime):
    await outrider.queue.limit("mail", rate=1, per=3600)
    session = await outrider.sessions.create()
    tasks = await session.spawn_many("work", [{"n": n} for n in range(5)], options=TaskOptions(concurrency_key="mail"))
    await outrider.tasks.wait([tasks[0].id], timeout=10)
    await outrider.queue.limit("mail", rate=3, per=3600)
    await outrider.tasks.wait([task.id for task in tasks[:3]], timeout=10)
    assert not (await tasks[3].record()).state.is_terminal
    await outrider.queue.limit("m*", concurrency=2)
    await outrider.queue.unlimit("mail")
    await outrider.tasks.wait([task.id for task in tasks], timeout=10)


@pytest.mark.parametrize("key", ["a\0b", "\0", "\ud800"])
async def test_a_key_that_no_database_can_keep_is_refused_and_stops_nobody(outrider: Runtime, key: str):
    session = await outrider.sessions.create()
    for options in (
        TaskOptions(concurrency_key=key),
        TaskOptions(idempotency_key=key),
        TaskOptions(debounce_key=key, delay=0.01),
    ):
        with pytest.raises(InvalidArguments):
            await session.spawn("work", n=1, options=options)
    for refused in (
        outrider.queue.limit(key, concurrency=1),
        outrider.queue.unlimit(key),
        outrider.queue.pause(kind=key),
        outrider.queue.pause(everything=True, reason=key),
        outrider.queue.pause(everything=True, by=key),
    ):
        with pytest.raises(InvalidArguments):
            await refused
    with pytest.raises(InvalidArguments):
        await outrider.queue.pause(kind=7)  # type: ignore[arg-type]  # that is what is tried
    assert await outrider.queue.pauses() == []
    assert await (await session.spawn("work", n=1)).result(timeout=10) == 1


async def test_a_session_that_does_not_exist_cannot_be_paused(outrider: Runtime):
    with pytest.raises(NotFound):
        await outrider.queue.pause(session="session_none")
    assert await outrider.queue.resume(session="session_none") is False
