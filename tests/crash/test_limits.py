"""Limits held by several worker processes that are killed while they race: never exceeded, and nobody is forgotten.

What was held at one moment is told by the log in the order of the commits; when attempts started, by them.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from outrider import State, TaskOptions
from outrider.core.errors import Refused
from outrider.core.ledger import TaskFilter
from outrider.runtime.facade import Runtime
from outrider.runtime.handles import SessionHandle
from tests.crash.crew import Crew, Hand, address_of
from tests.crash.proof import rows_of
from tests.crash.test_kills import runtime_on

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MOST = {"two": 2, "lock": 1, "wide:a": 3, "wide:b": 3, "moving": 4, "rated": 2, "turning": 3}
RATE, SPAN = 6, 0.3
WORKERS = 4


async def test_racing_workers_that_are_killed_exceed_no_limit_and_forget_nobody(database: Path):
    await _race(database, seed=1, tasks=60, kills=4)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 12))
async def test_racing_workers_exceed_no_limit_for_long(database: Path, seed: int):
    await _race(database, seed=seed, tasks=600, kills=40)


async def _race(database: Path, *, seed: int, tasks: int, kills: int) -> None:
    chance = random.Random(seed)
    async with Crew.muster() as crew, runtime_on(database) as runtime:
        queue = runtime.queue
        await queue.limit("two", concurrency=2)
        await queue.limit("wide:*", concurrency=3)
        await queue.limit("moving", concurrency=1)
        await queue.limit("rated", concurrency=2, rate=RATE, per=SPAN)
        await queue.limit("turning", concurrency=3, rate=RATE, per=SPAN)
        hands = [await crew.start(database) for _ in range(WORKERS)]
        meddler = asyncio.create_task(_meddle(runtime, random.Random(seed)))
        sessions = [await runtime.sessions.create() for _ in range(3)]
        made = await _submit(sessions, chance, tasks)
        for _ in range(kills):
            await asyncio.sleep(chance.random() * 0.3)
            hands = await _replace(crew, database, hands, chance)
        meddler.cancel()
        await asyncio.gather(meddler, return_exceptions=True)
        await queue.limit("moving", concurrency=4)
        for pause in await queue.pauses():
            await queue.resume(session=pause.name)
        records = await runtime.tasks.wait(made, timeout=60 + tasks / 10)
        assert all(record.state.is_terminal for record in records)
        assert Counter(record.state for record in records)[State.SUCCEEDED] > tasks / 2
        assert await queue.keys() == []
        for hand in hands:
            hand.signal(signal.SIGTERM)
        assert [await hand.wait() for hand in hands] == [0] * len(hands)
    _prove(database)


async def _submit(sessions: list[SessionHandle], chance: random.Random, count: int) -> list[str]:
    made: list[str] = []
    for n in range(count):
        options = TaskOptions(
            concurrency_key=chance.choice(list(MOST)),
            max_failures=1000,
            priority=chance.randrange(3),
            delay=chance.choice([None, None, 0.05]),
            queue_timeout=chance.choice([None] * 9 + [0.2]),
            depends_on=tuple(chance.sample(made, 1)) if made and chance.random() < 0.1 else (),
            run_if_dependency_fails=True,
        )
        name = "nap" if n % 4 == 0 else "hold"  # a nap is parked, and starts again
        made.append((await chance.choice(sessions).spawn(name, seconds=chance.random() * 0.03, options=options)).id)
    return made


async def _replace(crew: Crew, database: Path, hands: list[Hand], chance: random.Random) -> list[Hand]:
    victim = chance.choice(hands)
    victim.signal(chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
    await victim.wait()
    return [*(hand for hand in hands if hand is not victim), await crew.start(database)]


async def _meddle(runtime: Runtime, chance: random.Random) -> None:
    """From a process that runs nothing: move limits, pause and resume, cancel, re-order."""
    queue = runtime.queue
    while True:
        await asyncio.sleep(chance.random() * 0.03)
        tasks = await runtime.tasks.list(TaskFilter(states=(State.QUEUED,), limit=50))
        with suppress(Refused):  # it has ended meanwhile
            match chance.randrange(7):
                case 0 | 1:
                    await queue.limit("moving", concurrency=chance.randrange(5))
                case 2:
                    await queue.limit("turning", concurrency=chance.randrange(1, 4), rate=RATE, per=SPAN)
                case 3 if tasks:
                    await queue.pause(session=chance.choice(tasks).session_id)
                case 4:
                    for pause in await queue.pauses():
                        await queue.resume(session=pause.name)
                case 5 if tasks:
                    await queue.reprioritize(chance.choice(tasks).id, chance.randrange(-5, 5))
                case 6 if tasks and chance.random() < 0.2:
                    await runtime.tasks.cancel(chance.choice(tasks).id)


@dataclass
class _Held:
    now: int = 0
    most: int = 0


def _prove(database: Path) -> None:
    is_file = address_of(database) == str(database)
    order = "position" if is_file else "pg_xact_commit_timestamp(xmin), position"
    rows, log, starts = rows_of(
        database,
        "select number, concurrency_key from tasks",
        f"select task, data from events where type = 'task.updated' order by {order}",
        "select task, started_at from attempts order by started_at",
    )
    keys: Mapping[int, str] = dict(rows)
    moves = [(task, json.loads(data).get("core", {})) for task, data in log]
    held = {key: _Held() for key in MOST}
    for task, core in moves:
        if "worker_id" in core:
            use = held[keys[task]]
            use.now += 1 if core["worker_id"] else -1
            use.most = max(use.most, use.now)
    assert {key: use.now for key, use in held.items()} == dict.fromkeys(MOST, 0)
    assert {key: use.most for key, use in held.items() if use.most > MOST[key]} == {}
    assert held["two"].most == 2, "nothing raced"
    for key in ("rated", "turning"):
        at = [started for task, started in starts if keys[task] == key]
        within = max(sum(begin <= each < begin + SPAN * 1e6 for each in at) for begin in at)
        assert within <= RATE, f"{within} starts of {key} in {SPAN} s"
