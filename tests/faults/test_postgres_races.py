"""Many at once on one PostgreSQL database: no two transactions wait for each other."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from tests.faults.crowd import crowd, prove
from tests.servers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


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
