"""The link between a worker and PostgreSQL is cut, goes silent, or is slow: no task runs twice at once, none is stuck.

The worker behind the proxy and the one beside it are on two hosts, as far as they know: neither sees the other's lock,
and only the lease says who lives. What code ran when is told by the code itself, by the machine's one steady clock.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar
from urllib.parse import urlsplit

import pytest

from outrider.runtime.facade import Runtime
from outrider.runtime.handles import SessionHandle, TaskHandle
from outrider.runtime.lease import EXIT_CODE
from tests.crash.crew import Crew, Hand, address_of, new_database
from tests.crash.proof import rows_of
from tests.crash.test_kills import runtime_on
from tests.crash.test_signals import endings, until
from tests.crash.voyage import ticks_in
from tests.proxy import Direction, Proxy

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

TASKS = 5

WAITING = """
select pid from pg_stat_activity
where
    datname = current_database() and wait_event = 'ClientRead' and backend_xid is not null
    and state_change < clock_timestamp() - interval '0.2 s'
"""
"""Who keeps a transaction open in which something was written or locked, and says nothing."""


class Link(Protocol):
    """What a worker reaches the server by."""

    def cut(self) -> None: ...
    def freeze(self, *directions: Direction) -> None: ...
    def heal(self) -> None: ...


L = TypeVar("L", bound=Link)


@dataclass
class Field(Generic[L]):
    """A worker behind a link that can break, `far`, and a way to start others beside it."""

    link: L
    crew: Crew
    database: Path
    runtime: Runtime
    session: SessionHandle
    far: Hand
    address: str | None = None
    """By which the others reach the database, where that is not the usual one."""

    async def start(self, host: str = "near") -> Hand:
        return await self.crew.start(self.database, address=self.address, settings={"short_lease": True}, host=host)

    async def under_way(self, count: int = TASKS, seconds: float = 60) -> list[TaskHandle]:
        """Tasks that the far worker runs now; each but its first attempt is short."""
        tasks = [await self.session.spawn("tick", seconds=seconds) for _ in range(count)]
        await until(lambda: {task.id for task in tasks} <= {id for id, _ in ticks_in(self.database)})
        return tasks

    async def hosts(self) -> set[str]:
        return {worker.host for worker in await self.runtime.workers()}

    def prove(self, tasks: list[TaskHandle], attempts: int) -> None:
        """Each task had so many attempts, and no two of them ran at once."""
        ticks = ticks_in(self.database)
        for task in tasks:
            for attempt in range(1, attempts):
                assert max(ticks[task.id, attempt]) < min(ticks[task.id, attempt + 1]), "it ran twice at once"
            assert (task.id, attempts + 1) not in ticks


@asynccontextmanager
async def field(folder: Path) -> AsyncIterator[Field[Proxy]]:
    database = new_database("postgres", folder / "work.db")
    address = address_of(database)
    port = urlsplit(address).port or 0
    with Proxy(port) as proxy:
        async with Crew.muster() as crew, runtime_on(database) as runtime:
            through = address.replace(f":{port}", f":{proxy.port}")
            far = await crew.start(database, address=through, settings={"short_lease": True}, host="far")
            yield Field(proxy, crew, database, runtime, await runtime.sessions.create(), far)


@pytest.mark.parametrize("fault", ["cut", "silent", "deaf", pytest.param("mute", marks=pytest.mark.soak)])
async def test_a_worker_whose_link_breaks_stops_its_tasks_before_another_starts_them(tmp_path: Path, fault: str):
    async with field(tmp_path) as on:
        await break_and_heal(on, fault)


async def break_and_heal(on: Field[L], fault: str) -> None:
    """Tasks of the worker whose link breaks run elsewhere, after it has stopped them; and it comes back."""
    tasks = await on.under_way()
    near = await on.start()
    await until(lambda: _is(on, {"far", "near"}))
    break_link(on.link, fault)
    for task in tasks:
        assert await task.result(timeout=30) == "ticked"
    on.prove(tasks, attempts=2)
    on.link.heal()
    await until(lambda: _is(on, {"far", "near"}))
    for task in tasks:
        assert await endings(task) == ["lost", "succeeded"]
    await dismissed(near)

    (late,) = await on.under_way(1, seconds=0.1)  # the one who came back goes on
    assert await late.result(timeout=30) == "ticked"
    on.prove([*tasks], attempts=2)
    on.prove([late], attempts=1)
    assert not await on.runtime.services.views.problems()
    await dismissed(on.far)


def break_link(link: Link, fault: str) -> None:
    directions: dict[str, tuple[Direction, ...]] = {
        "silent": ("to_server", "to_client"),
        "deaf": ("to_client",),
        "mute": ("to_server",),
    }
    if fault == "cut":
        link.cut()
    else:
        link.freeze(*directions[fault])


async def test_a_link_that_comes_back_within_the_lease_costs_no_attempt(tmp_path: Path):
    async with field(tmp_path) as on:
        tasks = await on.under_way(seconds=4)
        near = await on.start()
        for fault in ("cut", "silent"):
            break_link(on.link, fault)
            await asyncio.sleep(0.5)  # of a lease of 2 s
            on.link.heal()
            await until(lambda: _is(on, {"far", "near"}))
            await beaten(on)
        for task in tasks:
            assert await task.result(timeout=30) == "ticked"
            assert await endings(task) == ["succeeded"]
        on.prove(tasks, attempts=1)
        await dismissed(near)
        await dismissed(on.far)


async def test_a_worker_on_a_slow_link_keeps_its_tasks(tmp_path: Path):
    async with field(tmp_path) as on:
        near = await on.start()
        await until(lambda: _is(on, {"far", "near"}))
        await dismissed(near)
        on.link.slow(delay=0.02, rate=200_000)
        tasks = await on.under_way(seconds=1)
        near = await on.start()
        for task in tasks:
            assert await task.result(timeout=60) == "ticked"
            assert await endings(task) == ["succeeded"]
        on.prove(tasks, attempts=1)
        for hand in (near, on.far):
            await dismissed(hand)


@pytest.mark.parametrize("place", [1, *(pytest.param(n, marks=pytest.mark.soak) for n in (2, 3, 4, 5))])
async def test_a_worker_stopped_in_the_middle_of_a_transaction_holds_nobody_up(tmp_path: Path, place: int):
    database = new_database("postgres", tmp_path / "work.db")
    async with Crew.muster() as crew, runtime_on(database) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("march", steps=20)
        stopped = await crew.start(database, kill=(place, "stop"), settings={"short_lease": True}, host="far")
        await until(lambda: bool(rows_of(database, WAITING)[0]))
        near = await crew.start(database, settings={"short_lease": True}, host="near")
        assert await task.result(timeout=30) == list(range(20))
        stopped.signal(signal.SIGCONT)
        for hand in (stopped, near):
            await dismissed(hand)
        assert await endings(task) == ["lost", "succeeded"]
        assert not await runtime.services.views.problems()


async def _is(on: Field[L], hosts: set[str]) -> bool:
    return await on.hosts() == hosts


async def beaten(on: Field[L]) -> None:
    """Wait until the lease of the far worker was renewed once more."""

    async def beat() -> int:
        (worker,) = [each for each in await on.runtime.services.views.workers() if each.card.host == "far"]
        return worker.beat

    before = await beat()

    async def grew() -> bool:
        return await beat() > before

    await until(grew)


async def dismissed(hand: Hand) -> None:
    hand.signal(signal.SIGTERM)
    assert await hand.wait() in (0, EXIT_CODE)
