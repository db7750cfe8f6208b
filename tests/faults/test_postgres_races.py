"""Many at once on one PostgreSQL database: no two transactions wait for each other."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from tests.faults.crowd import crowd, prove
from tests.pooler import Pooler
from tests.servers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.mark.parametrize("is_pooled", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["direct", "pooled"])
@pytest.mark.parametrize("turns", [300, pytest.param(20_000, marks=pytest.mark.soak)])
async def test_a_storm_of_writers_on_one_session_ends_in_no_deadlock(
    own_postgres: Server, tmp_path: Path, turns: int, is_pooled: bool
):
    """Through a pooler too, with two connections for all: also those who wait for one wait for nobody in circles."""
    url = own_postgres.create_database("work")
    with ExitStack() as stack:
        way = stack.enter_context(Pooler(own_postgres.url(), pool_size=2)).url(url) if is_pooled else url
        async with crowd(way, tmp_path, "storm", size=3) as there:
            await there.goes_on("done", by=turns, timeout=60 + turns / 10)
    assert not there.told("failed"), there.told("failed")[:3]
    await prove(replace(there, address=url))
    own_postgres.restart()  # the sessions of the server tell what they counted when they end
    with closing(psycopg.connect(url)) as connection:
        row = connection.execute(
            "select deadlocks, xact_commit from pg_stat_database where datname = 'work'"
        ).fetchone()
    assert row is not None
    assert row[0] == 0
    assert row[1] > turns
