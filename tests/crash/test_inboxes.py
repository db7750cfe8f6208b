"""What an outside agent receives from an inbox stays until it is acknowledged, whoever dies: kill -9 of agents."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from outrider import Runtime, SessionHandle
from tests.crash import outsiders
from tests.crash.crew import Crew, address_of, new_database
from tests.crash.test_wakes import all_is_heard, kill
from tests.facts import until

pytestmark = pytest.mark.anyio

LONGEST_LULL = 0.06
"""Seconds from news of an agent to a kill, at most."""


@pytest.mark.slow
async def test_no_news_are_lost_or_held_or_acknowledged_twice_whoever_is_killed(database: Path):
    async with Crew.muster(app="tests.crash.outsiders") as crew:
        await storm(crew, database, random.Random(os.environ.get("SEED", "5")), kills=10)


@pytest.mark.soak
async def test_no_news_are_lost_or_held_or_acknowledged_twice_in_a_thousand_kills(store: str, tmp_path: Path):
    seed = os.environ.get("SEED", str(random.randrange(10**6)))
    print(f"SEED={seed}")
    chance = random.Random(seed)
    async with Crew.muster(app="tests.crash.outsiders") as crew:
        for lap in range(10):
            await storm(crew, new_database(store, tmp_path / f"{lap}.db"), chance, kills=100)


async def storm(crew: Crew, database: Path, chance: random.Random, kills: int) -> None:
    """Have agents receive what tasks have to tell while they, and who makes the tasks, are killed; then prove it."""
    notes = database.with_suffix(".notes")
    async with outsiders.app.open(address_of(database)) as runtime:
        session = await runtime.sessions.create()
        sender = await crew.start(database, speaks="sender", acks=str(notes))
        agents = [await crew.start(database, speaks=f"agent{n}", acks=str(notes)) for n in range(3)]
        for number in range(kills):
            await more_is_noted(notes)
            await asyncio.sleep(chance.uniform(0.0, LONGEST_LULL))
            if chance.random() < 0.8:
                agents.append(await crew.start(database, speaks=f"next{number}", acks=str(notes)))
                await kill(agents.pop(chance.randrange(3)))
            else:
                await kill(sender)
                sender = await crew.start(database, speaks=f"sender{number}", acks=str(notes))
        await kill(sender)
        await all_is_heard(runtime, session)
        for agent in agents:
            await kill(agent)
        await prove(runtime, session, [json.loads(line) for line in notes.read_text().splitlines()])


async def more_is_noted(notes: Path) -> None:
    """Wait until an agent has said something more; on a busy machine they take their time to begin."""
    before = _size(notes)
    await until(lambda: _size(notes) != before, within=60)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


async def prove(runtime: Runtime, session: SessionHandle, notes: list[list[str | float]]) -> None:
    """The end of each task was received; no delivery twice, none within the lease of another or after the last."""
    deliveries: dict[tuple[str, int], list[tuple[int, float, float]]] = defaultdict(list)
    ends = set()
    for _, _, receipt, reason, at, end in [note for note in notes if note[0] == "received"]:
        task_id, seq, delivery = str(receipt).rsplit(".", 2)
        deliveries[task_id, int(seq)].append((int(delivery), float(at), float(end)))
        if reason == "terminal":
            ends.add(task_id)
    assert ends == {task.id for task in await session.tasks(limit=10_000)}
    acknowledged = Counter(str(each) for note in notes if note[0] == "acknowledged" for each in note[2:])
    assert set(acknowledged.values()) == {1}
    last = {(id, int(seq)): int(n) for id, seq, n in (receipt.rsplit(".", 2) for receipt in acknowledged)}
    assert len(last) == len(acknowledged), "each entry was acknowledged once"
    for entry, held in deliveries.items():
        held.sort()
        numbers = [number for number, _, _ in held]
        assert len(set(numbers)) == len(numbers), "no delivery was made twice"
        assert entry not in last or numbers[-1] <= last[entry], "nothing came again once it was acknowledged"
        for (_, _, end), (_, at, _) in pairwise(held):
            assert end <= at + 1e-5, "nobody receives within the lease of another"
