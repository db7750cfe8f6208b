"""The primary dies and a synchronous standby takes over: what was acknowledged is there, and work goes on with it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from outrider.stores.postgres import PostgresLedger
from tests.crash.test_signals import until
from tests.faults.crowd import crowd, prove
from tests.servers import Server, either, programs_of
from tests.stores.scene import Scene

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
def standby(own_postgres: Server, postgres_version: str) -> Iterator[Server]:
    """One that has every commit of `own_postgres` that was acknowledged."""
    with Server(programs_of(postgres_version)) as server:
        server.follow(own_postgres)
        yield server


@pytest.mark.parametrize("failovers", [1, pytest.param(30, marks=pytest.mark.soak)])
async def test_a_standby_that_takes_over_under_load_has_all_that_was_acknowledged(
    own_postgres: Server, standby: Server, tmp_path: Path, failovers: int
):
    own_postgres.create_database("work")
    leader, follower = own_postgres, standby
    async with crowd(either((own_postgres.port, standby.port), "work"), tmp_path, "work") as there:
        for turn in range(failovers):
            if turn:
                await asyncio.to_thread(follower.follow, leader)
            await there.goes_on(by=random.randrange(10, 60))
            await asyncio.to_thread(leader.kill)
            await asyncio.to_thread(follower.promote)
            leader, follower = follower, leader
            await there.goes_on()
    assert not there.told("refused"), "no failover was as long as a verb waits"
    await prove(there)


async def test_a_commit_that_no_standby_has_is_not_acknowledged_though_the_server_restarts(
    own_postgres: Server, standby: Server
):
    ledger = await PostgresLedger.open(own_postgres.create_database("work"))
    scene = Scene(ledger)
    await scene.session()
    standby.stop()
    writing = asyncio.ensure_future(scene.create("new"))

    async def waits() -> bool:
        assert not writing.done(), "acknowledged, and no standby has it"
        return bool(own_postgres.ask("select from pg_stat_activity where wait_event = 'SyncRep'"))

    await until(waits)
    own_postgres.restart()  # which ends the wait: what was committed is here, and nowhere else
    await until(waits)
    standby.start()
    await writing
    own_postgres.kill()
    standby.promote()
    after = await PostgresLedger.open(standby.url("work"))
    assert [task.id for task in await after.views.tasks(["new"])] == ["new"]
    await after.close()
    await ledger.close()
