"""Whatever comes into an inbox its agent hears once, whoever dies: kill -9 of workers and of those who speak."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from outrider import Runtime, SessionHandle, State
from outrider.runtime.codec import decode
from tests.crash import talk
from tests.crash.crew import Crew, Hand, address_of, new_database

pytestmark = pytest.mark.anyio

LONGEST_LULL = 0.2
"""Seconds between two kills, at most; most are shorter."""


@pytest.mark.slow
async def test_no_wake_is_lost_or_told_twice_whoever_is_killed(database: Path):
    async with Crew.muster(app="tests.crash.talk") as crew:
        await storm(crew, database, random.Random(os.environ.get("SEED", "5")), kills=40)


@pytest.mark.soak
async def test_no_wake_is_lost_or_told_twice_in_a_thousand_kills(store: str, tmp_path: Path):
    seed = os.environ.get("SEED", str(random.randrange(10**6)))
    print(f"SEED={seed}")
    chance = random.Random(seed)
    async with Crew.muster(app="tests.crash.talk") as crew:
        for lap in range(25):
            await storm(crew, new_database(store, tmp_path / f"{lap}.db"), chance, kills=40)


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["function", "langgraph"])
async def test_no_wake_is_lost_or_told_twice_whatever_engine_hears_it(engine: str, store: str, tmp_path: Path):
    seed = os.environ.get("SEED", str(random.randrange(10**6)))
    print(f"SEED={seed}")
    async with Crew.muster(app="tests.crash.talk") as crew:
        for lap in range(3):
            await storm(crew, new_database(store, tmp_path / f"{lap}.db"), random.Random(f"{seed}/{lap}"), 40, engine)


async def storm(crew: Crew, database: Path, chance: random.Random, kills: int, agent: str = "listener") -> None:
    """Have two talk to an agent on two workers while all of them are killed; then let all be heard, and prove it."""
    acks = database.with_suffix(".acks")
    async with talk.app.open(address_of(database), worker=False) as runtime:
        session = await runtime.sessions.create(agent=agent)
        workers = [await crew.start(database) for _ in range(2)]
        speakers = [await crew.start(database, speaks=f"first{n}", acks=str(acks)) for n in range(2)]
        for number in range(kills):
            await asyncio.sleep(chance.random() ** 2 * LONGEST_LULL)
            if chance.random() < 0.7:
                workers.append(await crew.start(database))
                await kill(workers.pop(chance.randrange(2)))
            else:
                speakers.append(await crew.start(database, speaks=f"at{number}", acks=str(acks)))
                await kill(speakers.pop(chance.randrange(2)))
        for speaker in speakers:
            await kill(speaker)
        await all_is_heard(runtime, session)
        for worker in workers:
            worker.signal(signal.SIGTERM)
            assert await worker.wait() == 0
        if agent != "listener":
            async with talk.app.open(address_of(database)):
                said = await (await session.send(talk.REPORT)).result(timeout=60)
        else:
            rows: list[Any] = [decode(row.message) for row in await runtime.services.views.transcript(session.id)]
            parts = [part for row in rows for part in row["parts"]]
            said = "\n\n".join(part["content"] for part in parts if part["part_kind"] == "user-prompt")
        await prove(session, acks.read_text().split("\n"), said)


async def kill(hand: Hand) -> None:
    hand.signal(signal.SIGKILL)
    assert await hand.wait() == -signal.SIGKILL


async def all_is_heard(runtime: Runtime, session: SessionHandle) -> None:
    """Wait until all tasks have ended, and nothing is left in the inbox."""
    views = runtime.services.views
    async with asyncio.timeout(60):
        while True:
            counts = await views.count_by_state()
            lives = sum(count for state, count in counts.items() if not State(state).is_terminal)
            if not lives and not await session.inbox.list() and not await views.follow_ups(1):
                return
            await asyncio.sleep(0.05)


async def prove(session: SessionHandle, acks: list[str], said: str) -> None:
    """Each word that was acknowledged, and the end of each task, was heard once; nothing twice."""
    wakes = Counter(re.findall(r'<task_wake task="(task_\w+)"', said))
    words = Counter(re.findall(r"^\w+-\d+$", said, re.MULTILINE))
    assert set((wakes | words).values()) == {1}, (wakes | words).most_common(3)
    told = dict(line.split()[::-1] for line in acks if line)
    assert {word for word, how in told.items() if how == "said"} <= words.keys()
    tasks = await session.tasks(limit=10_000)
    background = {task.id for task in tasks if task.kind == "background_tool"}
    assert {task for task, how in told.items() if how == "started"} <= background
    assert wakes.keys() == background
    turns = sorted((task for task in tasks if task.kind == "turn"), key=lambda task: task.created_at)
    assert len(turns) > 1
    for one, other in pairwise(turns):
        assert one.finished_at is not None
        assert other.started_at is None or one.finished_at <= other.started_at
