"""kill -9 at random moments, several workers on one store, many tasks at once.

The seed says who is killed and when to look; what runs in that moment is up to the machine. `SEED` in the environment
repeats one.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from tests.crash.crew import Crew, new_database
from tests.crash.test_kills import answer_all, dismiss, prove_voyage, runtime_on, set_sail

pytestmark = pytest.mark.anyio

WORKERS = 3
VOYAGES = 5
LONGEST_LULL = 0.25
"""Seconds between two kills, at most. A worker takes some 50 ms to come to work."""


@pytest.mark.slow
async def test_workers_killed_at_random_lose_nothing_and_repeat_nothing(database: Path):
    seed = int(os.environ.get("SEED", "7"))
    async with Crew.muster() as crew:
        await storm(crew, database, random.Random(seed), kills=20)


@pytest.mark.soak
async def test_a_thousand_kills(tmp_path: Path, store: str):
    seed = int(os.environ.get("SEED", random.randrange(10**6)))
    print(f"SEED={seed}")
    chance, kills = random.Random(seed), 0
    async with Crew.muster() as crew:
        while kills < 1000:
            await storm(crew, new_database(store, tmp_path / f"{kills}.db"), chance, kills=50)
            kills += 50
            print(f"{kills} kills")


async def storm(crew: Crew, database: Path, chance: random.Random, kills: int) -> None:
    """Keep some voyages under way while workers are killed; let them all come home, and prove each."""
    async with runtime_on(database) as runtime:
        hands = [await crew.start(database) for _ in range(WORKERS)]
        session = await runtime.sessions.create()
        voyages = [await set_sail(session) for _ in range(VOYAGES)]
        person = asyncio.create_task(asyncio.sleep(0))
        for _ in range(kills):
            await asyncio.sleep(chance.uniform(0.0, LONGEST_LULL))
            victim = hands.pop(chance.randrange(len(hands)))
            victim.signal(signal.SIGKILL)
            assert await victim.wait() == -signal.SIGKILL
            hands.append(await crew.start(database))
            if person.done():
                await person
                voyages += [await set_sail(session) for _ in range(VOYAGES)]
                person = asyncio.create_task(answer_all(runtime, voyages[-VOYAGES:]))
        await person
        await answer_all(runtime, voyages)
        for hand in hands:
            await dismiss(hand)
        assert not await runtime.workers()
        for number, voyage in enumerate(voyages):
            await prove_voyage(runtime, session, voyage, database, whole=number == 0)
