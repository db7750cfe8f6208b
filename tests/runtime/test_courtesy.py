"""A process that makes many tasks at once leaves them to other workers, for as long as those do something."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from outrider import Outrider, Runtime, TaskContext, TaskHandle
from outrider.core.ledger import Signal
from outrider.runtime.courtesy import ANSWER, MANY, MOMENT, Courtesy

pytestmark = pytest.mark.anyio

LONG = 60.0
FOREIGN = Signal(frozenset({"task_1"}), {"task_1": 2}, foreign=True)


class Process:
    """What a courtesy asks of its process."""

    def __init__(self, making: int = MANY) -> None:
        self.making = making
        self.courtesy = Courtesy(lambda: self.making, lambda route: route == "tool:served")


@pytest.mark.parametrize(
    ("making", "route", "leaves"),
    [(MANY, "tool:served", True), (MANY - 1, "tool:served", False), (MANY, "tool:own", False)],
)
async def test_a_task_is_left_while_many_are_made_and_another_worker_serves_it(making: int, route: str, leaves: bool):
    assert Process(making).courtesy.leaves(route) is leaves


def last(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """Have times be so long that no slow machine comes near them, or so short that they are over."""
    for name, value in seconds.items():
        monkeypatch.setattr(f"outrider.runtime.courtesy.{name}", value)


async def test_nobody_is_waited_for_where_nothing_was_left(monkeypatch: pytest.MonkeyPatch):
    last(monkeypatch, MOMENT=LONG, ANSWER=LONG)
    process = Process()
    process.courtesy.leaves("tool:own")
    assert await spent(process) < LONG / 2


async def test_others_go_ahead_for_a_moment_as_long_as_they_are_heard(monkeypatch: pytest.MonkeyPatch):
    last(monkeypatch, ANSWER=LONG)
    process = Process()
    process.courtesy.leaves("tool:served")
    process.courtesy.hear(FOREIGN)
    assert MOMENT <= await spent(process) < LONG / 2
    last(monkeypatch, MOMENT=LONG)
    assert await spent(process) < LONG / 2  # it has waited for that
    assert process.courtesy.leaves("tool:served")


async def test_the_wait_ends_with_the_many(monkeypatch: pytest.MonkeyPatch):
    last(monkeypatch, MOMENT=LONG, ANSWER=LONG)
    process = Process()
    process.courtesy.leaves("tool:served")
    waiting = asyncio.create_task(process.courtesy.wait())
    await asyncio.sleep(0)
    process.making = MANY - 1
    async with asyncio.timeout(LONG / 2):
        await waiting
    process.making = MANY
    assert process.courtesy.leaves("tool:served")


async def test_where_nobody_else_is_heard_nothing_is_left_for_a_while(monkeypatch: pytest.MonkeyPatch):
    last(monkeypatch, MOMENT=LONG, ALONE=LONG)
    process = Process()
    process.courtesy.leaves("tool:served")
    process.courtesy.hear(Signal(frozenset({"task_1"}), {"task_1": 1}))  # its own
    assert ANSWER <= await spent(process) < LONG / 2
    assert not process.courtesy.leaves("tool:served")
    now = time.monotonic()
    monkeypatch.setattr("outrider.runtime.courtesy.time.monotonic", lambda: now + LONG)
    assert process.courtesy.leaves("tool:served")


async def spent(process: Process) -> float:
    started = time.monotonic()
    await process.courtesy.wait()
    return time.monotonic() - started


# --- two workers -----------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: Any, tmp_path: Any) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/work.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


def app_of(name: str, ran: Counter[str], free: asyncio.Event) -> Outrider:
    app = Outrider()

    @app.tool(effects="idempotent")
    async def note(number: int) -> int:
        ran[name] += 1
        return number

    @app.tool(effects="idempotent")
    async def hold(task: TaskContext) -> None:
        ran[f"{name} holds"] += 1
        await free.wait()

    return app


async def know_each_other(*runtimes: Runtime) -> None:
    """Wait until every worker has seen the others."""
    async with asyncio.timeout(10):
        for runtime in runtimes:
            while not _sees_another(runtime):  # noqa: ASYNC110 - it rings no bell
                await asyncio.sleep(0.01)


def _sees_another(runtime: Runtime) -> bool:
    worker: Any = runtime.services.standing.worker
    return worker is not None and worker._recovery.is_served_elsewhere(runtime.services.registry.routes()[0])


async def make(runtime: Runtime, count: int, makers: int = 32) -> list[int]:
    session = await runtime.sessions.create()
    numbers, made = iter(range(count)), dict[int, TaskHandle]()

    async def one() -> None:
        for number in numbers:
            made[number] = await session.spawn("note", number=number)

    await asyncio.gather(*(one() for _ in range(makers)))
    return [await made[number].result() for number in range(count)]


async def test_who_makes_a_crowd_shares_it_with_the_other_worker(url: str, monkeypatch: pytest.MonkeyPatch):
    last(monkeypatch, MOMENT=LONG, ANSWER=LONG)
    ran, free = Counter[str](), asyncio.Event()
    async with app_of("maker", ran, free).open(url) as maker, app_of("other", ran, free).open(url) as other:
        await know_each_other(maker, other)
        assert await make(maker, 600) == list(range(600))
    assert ran.total() == 600
    assert ran["other"] > 200, ran


async def test_a_crowd_does_not_wait_for_a_worker_that_has_no_place_left(url: str):
    ran, free = Counter[str](), asyncio.Event()
    async with app_of("other", ran, free).open(url, concurrency=1) as other:
        held = await (await other.sessions.create()).spawn("hold")
        async with asyncio.timeout(10):
            while not ran["other holds"]:  # noqa: ASYNC110 - the tool says so
                await asyncio.sleep(0.01)
        async with app_of("maker", ran, free).open(url) as maker:
            await know_each_other(maker)
            async with asyncio.timeout(LONG):
                assert await make(maker, 300) == list(range(300))
            assert ran["maker"] == 300
        free.set()
        await held.result()
