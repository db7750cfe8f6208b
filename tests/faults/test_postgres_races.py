"""Many at once on one PostgreSQL database: no task is given to two, and no two transactions wait for each other."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from tests.faults.crowd import crowd, prove
from tests.servers import Server
from tests.stores.backends import open_postgres
from tests.stores.scene import Scene

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("races", [1000, pytest.param(10_000, marks=pytest.mark.soak)])
async def test_of_two_workers_that_race_for_each_task_one_gets_it(tmp_path: Path, races: int):
    ledger = await open_postgres(tmp_path)
    scene = Scene(ledger)
    await scene.session()
    ids = [f"task_{n:05}" for n in range(races)]
    await ledger.commit([scene.new(id) for id in ids])
    got = await asyncio.gather(*(_claim_singly(tmp_path, name) for name in ("one", "other")))
    assert Counter(got[0] + got[1]) == Counter(ids)
    assert min(map(len, got)) > races // 10, "nobody raced"
    assert not await scene.views.problems()
    await ledger.close()


async def _claim_singly(folder: Path, name: str) -> list[str]:
    """A process that claims the first task there is until there is none; what it got."""
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "tests.stores.racer", "postgres", str(folder), "claim", name, "1"],
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate(b"go\n")
    assert process.returncode == 0
    first, *ids = [json.loads(line) for line in said.splitlines()]
    assert first == "ready"
    return ids


@pytest.mark.parametrize("turns", [300, pytest.param(20_000, marks=pytest.mark.soak)])
async def test_a_storm_of_writers_on_one_session_ends_in_no_deadlock(own_postgres: Server, tmp_path: Path, turns: int):
    url = own_postgres.create_database("work")
    async with crowd(url, tmp_path, "storm", size=3) as there:
        await there.goes_on("done", by=turns, timeout=60 + turns / 10)
    assert not there.told("failed")
    await prove(there)
    own_postgres.restart()  # the sessions of the server tell what they counted when they end
    with closing(psycopg.connect(url)) as connection:
        row = connection.execute(
            "select deadlocks, xact_commit from pg_stat_database where datname = 'work'"
        ).fetchone()
    assert row is not None
    assert row[0] == 0
    assert row[1] > turns
