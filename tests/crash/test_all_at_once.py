"""kill -9 of all workers at the same moment, as when memory runs out: one that comes later goes on with it all."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from outrider.runtime.facade import Runtime
from tests.crash.crew import Crew, Hand
from tests.crash.test_kills import answer_all, dismiss, prove_voyage, runtime_on, set_sail
from tests.crash.voyage import effects_in

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

WORKERS = 3
VOYAGES = 6
MARCHES = 3
STEPS = 60


async def test_all_workers_killed_at_the_same_moment_lose_nothing_and_repeat_nothing(database: Path):
    async with Crew.muster() as crew, runtime_on(database) as runtime:
        hands = [await crew.start(database) for _ in range(WORKERS)]
        session = await runtime.sessions.create()
        voyages = [await set_sail(session) for _ in range(VOYAGES)]
        marches = [await session.spawn("march", steps=STEPS) for _ in range(MARCHES)]
        for _ in range(3):
            await kill_all(runtime, hands, database)
            hands = [await crew.start(database) for _ in range(WORKERS)]
        await kill_all(runtime, hands, database)

        alone = await crew.start(database)
        await answer_all(runtime, [*voyages, *marches])
        for number, voyage in enumerate(voyages):
            await prove_voyage(runtime, session, voyage, database, whole=number == 0)
        for march in marches:
            assert await march.result() == list(range(STEPS))
        await dismiss(alone)
        assert not await runtime.workers()


async def kill_all(runtime: Runtime, hands: list[Hand], database: Path) -> None:
    """Wait until they have come further, with work in hand, and kill them with no time between."""
    effects, views = database.with_suffix(".effects"), runtime.services.views
    wanted = len(effects_in(effects)) + 30
    async with asyncio.timeout(60):
        while len(effects_in(effects)) < wanted or not await views.holders():  # noqa: ASYNC110 - others ring no bell here
            await asyncio.sleep(0.005)
    for hand in hands:
        os.kill(hand.pid, signal.SIGKILL)
    assert await asyncio.gather(*(hand.wait() for hand in hands)) == [-signal.SIGKILL] * len(hands)
