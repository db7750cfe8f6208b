"""PostgreSQL goes away under load, or connections to it do: nothing is lost, and nobody is told what is not so."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import psycopg
import pytest

from tests.faults.crowd import crowd, prove
from tests.servers import Host, Server

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

Harm: TypeAlias = Callable[[Server], None]


def cut_all(server: Host) -> None:
    """End all connections to all databases but our own."""
    with closing(psycopg.connect(server.url("postgres"), autocommit=True)) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where backend_type = 'client backend' and pid <> pg_backend_pid()"
        )


def kill(server: Server) -> None:
    server.kill()
    server.start()


HARM: Mapping[str, Harm] = {
    "fast": lambda server: server.restart("fast"),
    "immediate": lambda server: server.restart("immediate"),
    "killed": kill,
    "cut": cut_all,
}


async def test_a_server_that_goes_away_under_load_loses_nothing_and_work_goes_on(own_postgres: Server, tmp_path: Path):
    await _harm(own_postgres, tmp_path, ["killed", "cut", "fast", "cut", "immediate", "killed"])


@pytest.mark.soak
async def test_a_server_that_goes_away_a_hundred_times_loses_nothing(own_postgres: Server, tmp_path: Path):
    await _harm(own_postgres, tmp_path, random.choices(list(HARM), k=100))


@pytest.mark.soak
async def test_who_is_told_in_a_long_outage_that_the_server_is_away_has_written_nothing(
    own_postgres: Server, tmp_path: Path
):
    async with crowd(own_postgres.create_database("work"), tmp_path, "work") as there:
        await there.goes_on()
        await asyncio.to_thread(own_postgres.kill)
        await there.goes_on("refused", by=6)
        await asyncio.to_thread(own_postgres.start)
        await there.goes_on()
    await prove(there)


async def _harm(server: Server, folder: Path, harms: list[str]) -> None:
    async with crowd(server.create_database("work"), folder, "work") as there:
        await there.goes_on()
        for harm in harms:
            await asyncio.to_thread(HARM[harm], server)
            await there.goes_on()
    assert not there.told("refused"), "no outage was as long as a verb waits"
    await prove(there)
