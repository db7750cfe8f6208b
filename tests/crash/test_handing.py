"""Peers and invited agents under kill -9: each session is opened once, and each agent hears its message once."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from outrider import TaskOptions
from outrider.core.errors import WaitTimeout
from outrider.core.ledger import TaskFilter
from outrider.core.task import LIVE_STATES
from outrider.runtime.codec import decode
from tests.crash import tree
from tests.crash.crew import Crew, address_of, new_database
from tests.crash.test_wakes import kill

pytestmark = pytest.mark.anyio

STUBBORN = TaskOptions(max_failures=1000, backoff=0.01, backoff_max=0.02)


@pytest.mark.slow
async def test_a_peer_is_opened_once_and_a_guest_told_once_whoever_is_killed(tmp_path: Path):
    async with Crew.muster(app="tests.crash.tree") as crew:
        await harass(crew, tmp_path / "work.db", random.Random(os.environ.get("SEED", "7")), kills=6)


@pytest.mark.soak
async def test_peers_are_opened_once_and_guests_told_once_in_a_thousand_kills(store: str, tmp_path: Path):
    seed = os.environ.get("SEED", str(random.randrange(10**6)))
    print(f"SEED={seed}")
    chance = random.Random(seed)
    async with Crew.muster(app="tests.crash.tree") as crew:
        for lap in range(25):
            await harass(crew, new_database(store, tmp_path / f"{lap}.db"), chance, kills=40)


async def harass(crew: Crew, database: Path, chance: random.Random, kills: int) -> None:
    """Have peers opened and guests invited by workers that are killed; then let all end, and prove it."""
    async with tree.app.open(address_of(database), worker=False) as runtime:
        origin = await runtime.sessions.create(agent="guest")
        workers = [await crew.start(database) for _ in range(2)]
        asked: dict[str, str] = {}
        for number in range(kills):
            if number % 2:
                task = await origin.open_peer(f"word {number}", options=STUBBORN)
            else:
                task = await origin.hand_off("other guest", f"word {number}", invite=True, options=STUBBORN)
            asked[task.id] = f"word {number}"
            await asyncio.sleep(chance.random() ** 2 * 0.15)
            workers.append(await crew.start(database))
            await kill(workers.pop(chance.randrange(2)))
        try:
            ended = await runtime.tasks.wait(list(asked), timeout=60)
        except WaitTimeout:
            live = await runtime.services.views.list_tasks(TaskFilter(states=tuple(LIVE_STATES), limit=1000))
            stuck = [(task.id, task.input.kind, task.input.session_id, task.core) for task in live]
            raise AssertionError(f"it does not settle: {stuck}") from None
        for worker in workers:
            worker.signal(signal.SIGTERM)
            assert await worker.wait() == 0
        views = runtime.services.views
        peers = {task.live.links.child_session_id for task in ended if task.input.kind == "session"}
        assert {each.id for each in await runtime.sessions.list(limit=1000)} == {origin.id, *peers}
        heard: Counter[str] = Counter()
        for session_id in (origin.id, *filter(None, peers)):
            rows: list[Any] = [decode(row.message) for row in await views.transcript(session_id)]
            prompts = [part["content"] for row in rows for part in row["parts"] if part["part_kind"] == "user-prompt"]
            heard += Counter(word for prompt in prompts for word in re.findall(r"^word \d+$", prompt, re.MULTILINE))
        turns = await views.list_tasks(TaskFilter(kind="turn", limit=1000))
        assert Counter(turn.input.parent_task_id for turn in turns if turn.input.parent_task_id) == Counter(list(asked))
        for each in ended:
            if (error := each.outcome.error) is not None:  # its turn lost three workers before it had come any further
                assert error.kind == "orphaned", error
            else:
                assert each.outcome.summary == "so"
                assert heard.pop(asked[each.id]) == 1
        assert set(heard.values()) <= {1}, heard
