"""A task that is made where there is room starts with the commit that makes it, and is never lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from outrider import Outrider, Runtime, State, TaskOptions
from outrider.core.ledger import Claim, Claims, Decide, Listener
from outrider.runtime.lease import locks_of
from outrider.runtime.worker import Worker

pytestmark = pytest.mark.anyio

app = Outrider()
ran: list[int] = []
gates: dict[int, asyncio.Event] = {}


@app.tool
async def note(number: int) -> int:
    ran.append(number)
    return number


@app.tool
async def hold(number: int) -> int:
    ran.append(number)
    await gates.setdefault(number, asyncio.Event()).wait()
    return number


@pytest.fixture(params=["memory", "sqlite"])
def url(request: Any, tmp_path: Path) -> str:
    ran.clear()
    gates.clear()
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/work.db"


@pytest.fixture
async def outrider(url: str) -> AsyncIterator[Runtime]:
    async with app.open(url, concurrency=2) as runtime:
        await until(lambda: runtime.services.lifecycle.starter is not None)
        yield runtime


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not fact():  # noqa: ASYNC110 - facts of many kinds
            await asyncio.sleep(0.001)


async def settled(outrider: Runtime, session_id: str, count: int) -> None:
    async with asyncio.timeout(10):
        while len(await outrider.tasks.list(session_id=session_id, states=(State.SUCCEEDED,))) < count:  # noqa: ASYNC110 - the store
            await asyncio.sleep(0.001)


async def test_a_task_is_claimed_by_the_commit_that_makes_it(outrider: Runtime):
    session = await outrider.sessions.create()
    await (await session.spawn("note", number=0)).result()
    commits = outrider.ledger.counters["commits"]
    task = await session.spawn("hold", number=1)
    assert outrider.ledger.counters["commits"] == commits + 1
    assert (await task.record()).state is State.RUNNING
    await until(lambda: 1 in gates)
    gates[1].set()
    assert await task.result() == 1
    assert [attempt.attempt for attempt in await task.attempts()] == [1]


async def test_no_more_run_at_once_than_there_is_room_for(outrider: Runtime):
    session = await outrider.sessions.create()
    tasks = await asyncio.gather(*(session.spawn("hold", number=number) for number in range(5)))
    await until(lambda: len(ran) == 2)
    states = [(await task.record()).state for task in tasks]
    assert states.count(State.RUNNING) == 2
    assert states.count(State.QUEUED) == 3
    for number in range(5):
        gates.setdefault(number, asyncio.Event()).set()
    assert [await task.result() for task in tasks] == list(range(5))
    assert sorted(ran) == list(range(5))


async def test_a_new_task_does_not_overtake_those_that_wait(outrider: Runtime):
    session = await outrider.sessions.create()
    for number in (0, 1):
        await session.spawn("hold", number=number)
    for number in (2, 3):
        await session.spawn("note", number=number)
    await until(lambda: {0, 1} <= gates.keys())
    gates[0].set()
    last = await session.spawn("note", number=4)
    await last.result()
    assert ran.index(2) < ran.index(4)
    assert ran.index(3) < ran.index(4)
    gates[1].set()


async def test_what_has_to_wait_is_queued_first(outrider: Runtime):
    session = await outrider.sessions.create()
    task = await session.spawn("note", options=TaskOptions(delay=0.05), number=1)
    assert (await task.record()).state is State.QUEUED
    assert await task.result() == 1


async def test_a_task_runs_even_if_whoever_made_it_was_cancelled_meanwhile(outrider: Runtime):
    session = await outrider.sessions.create()
    for number in range(20):
        spawning = asyncio.create_task(session.spawn("note", number=number))
        for _ in range(number % 4 + 1):
            await asyncio.sleep(0)
        spawning.cancel()
        await asyncio.gather(spawning, return_exceptions=True)
    made = len(await outrider.tasks.list(session_id=session.id))
    await (await session.spawn("note", number=99)).result()
    await settled(outrider, session.id, made + 1)
    assert len(ran) == len(set(ran))


async def test_an_idempotent_creation_that_finds_its_task_starts_nothing(outrider: Runtime):
    session = await outrider.sessions.create()
    once = TaskOptions(idempotency_key="once")
    first = await session.spawn("note", options=once, number=1)
    await first.result()
    for _ in range(5):  # more often than there are places: none may be kept
        assert (await session.spawn("note", options=once, number=1)).id == first.id
    tasks = [await session.spawn("note", number=number) for number in (2, 3)]
    assert [await task.result() for task in tasks] == [2, 3]
    assert sorted(ran) == [1, 2, 3]


async def test_a_worker_that_ends_while_it_claims_gives_back_what_it_got(url: str, monkeypatch: pytest.MonkeyPatch):
    async with app.open(url, worker=False) as outrider:
        session = await outrider.sessions.create()
        worker = Worker(outrider.services, locks=locks_of(outrider.ledger))
        claim = outrider.ledger.claim
        asked = asyncio.Event()

        async def claim_late(wanted: Claim, decide: Decide) -> Claims:
            if wanted.worker_id == worker.id and not asked.is_set():
                await session.spawn("note", number=1)
                asked.set()
                job.cancel()
            return await claim(wanted, decide)

        monkeypatch.setattr(outrider.ledger, "claim", claim_late)
        job = asyncio.create_task(worker.run())
        await asyncio.gather(job, return_exceptions=True)
        (record,) = await outrider.tasks.list(session_id=session.id)
        assert asked.is_set()
        assert (record.state, record.worker_id) in ((State.QUEUED, None), (State.RUNNING, None))
        assert not await held(outrider, worker.id)
    if not url.startswith("memory"):
        async with app.open(url) as outrider:
            await settled(outrider, session.id, 1)
        assert ran == [1]


async def test_a_worker_that_cannot_begin_leaves_nothing_behind(tmp_path: Path):
    (tmp_path / "file").touch()
    async with app.open("memory://", worker=False) as outrider:
        listened, loop = 0, asyncio.get_running_loop()
        factory = loop.get_task_factory()
        listen = outrider.ledger.listen

        def counted(listener: Listener) -> Callable[[], None]:
            nonlocal listened
            listened += 1
            stop = listen(listener)

            def end() -> None:
                nonlocal listened
                listened -= 1
                stop()

            return end

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(outrider.ledger, "listen", counted)
            with pytest.raises(FileExistsError):
                await Worker(outrider.services, locks=tmp_path / "file").run()
        assert (listened, loop.get_task_factory()) == (0, factory)


async def held(outrider: Runtime, worker_id: str) -> Sequence[object]:
    return await outrider.ledger.views.held_by(worker_id)


@pytest.mark.parametrize("lag", range(4))
@pytest.mark.parametrize("delay", [None, 0.02])
async def test_a_cancel_that_comes_while_a_task_is_on_its_way_to_its_worker_is_not_missed(outrider, lag, delay):
    session = await outrider.sessions.create()
    task = await session.spawn("hold", number=lag, options=TaskOptions(delay=delay))
    while (await outrider.services.views.task(task.id)).core.worker_id is None:  # noqa: ASYNC110 - the store
        await asyncio.sleep(0)
    for _ in range(lag):
        await asyncio.sleep(0)
    await task.cancel()
    assert (await task.wait(timeout=5)).state is State.CANCELED
