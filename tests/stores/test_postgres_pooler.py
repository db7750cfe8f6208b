"""Behind a pooler that gives out the server's connections by transaction all holds as it does without, and it is told.

PgBouncer is the one of the machine, with two connections for all: see `tests.pooler`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import psycopg
import pytest

from outrider import Outrider, TaskContext
from outrider.bootstrap import copy
from outrider.core.errors import InvalidArguments, StoreLocked, StoreUnavailable, TaskCanceled
from outrider.core.ledger import Ledger
from outrider.runtime import clock
from outrider.stores.postgres import PostgresLedger
from outrider.stores.postgres.database import Database
from tests.faults.crowd import crowd, prove
from tests.pooler import Pooler
from tests.servers import Host, SharedServers, fresh_database, versions
from tests.stores.contract import StoreContract
from tests.stores.scene import Scene

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SIZE = 2


@pytest.fixture(scope="module")
def pooler(postgres_servers: SharedServers) -> Iterator[Pooler]:
    with Pooler(postgres_servers.of(versions()[-1]).url(), pool_size=SIZE) as pooler:
        yield pooler


@pytest.mark.soak
class TestPooled(StoreContract):
    @pytest.fixture
    async def ledger(self, pooler: Pooler, postgres_url: str) -> AsyncIterator[Ledger]:
        ledger = await PostgresLedger.open(pooler.url(postgres_url))
        yield ledger
        await ledger.close()


# --- who says nothing of a pooler ------------------------------------------------------------------------------------


@pytest.mark.parametrize("round_robin", ["0", "1"])
async def test_a_pooler_by_transaction_that_nobody_spoke_of_is_refused_before_anything_is_left_on_it(
    postgres_url: str, postgres: Host, round_robin: str
):
    with Pooler(postgres.url(), pool_size=SIZE, server_round_robin=round_robin) as pooler:
        with pytest.raises(InvalidArguments, match="pooler=transaction"):
            await PostgresLedger.open(pooler.url(postgres_url, stated=False))
        assert {setting for setting, _ in left(pooler, postgres_url)} == {frozenset()}


async def test_a_pooler_by_session_is_like_a_server(postgres_url: str, postgres: Host):
    with Pooler(postgres.url(), mode="session", pool_size=10) as pooler:
        async with app.open(pooler.url(postgres_url, stated=False)) as outrider:
            session = await outrider.sessions.create()
            task = await session.spawn("add", one=1, other=2)
            assert await task.result() == 3


async def test_a_pooler_that_begins_to_mix_up_connections_is_named(postgres_url: str, postgres: Host):
    with Pooler(postgres.url(), mode="session") as pooler:
        database = Database(pooler.url(postgres_url, stated=False))
        connection = database.connect()
        connection.execute("select 1")
        connection.execute("do 'begin execute ''deallocate all''; end'", prepare=False)  # as on another one's
        with pytest.raises(StoreUnavailable, match="pooler=transaction"), database.errors():
            connection.execute("select 1")
        connection.close()


@pytest.mark.parametrize("said", ["?pooler=session", "?pooler=", "?pooler=transaction&pooler=transaction"])
def test_what_else_a_url_may_say_of_a_pooler_is_refused(said: str):
    with pytest.raises(InvalidArguments, match="only `pooler=transaction`"):
        Database(f"postgresql://somebody@localhost/work{said}")


# --- what is left on a connection ------------------------------------------------------------------------------------


async def test_nothing_is_left_on_the_connections_that_others_share(pooler: Pooler, postgres_url: str, tmp_path: Path):
    ledger = await PostgresLedger.open(pooler.url(postgres_url))
    scene = Scene(ledger)
    await scene.session()
    await scene.running("task_1")
    await scene.succeed("task_1")
    assert not ledger.renew("worker_unknown", 2.0)
    assert await ledger.views.problems() == []
    await ledger.close()
    assert left(pooler, postgres_url) == [(frozenset(), (0, 0, 0))] * SIZE
    await copy(pooler.url(postgres_url), f"sqlite:///{tmp_path}/work.db")
    assert left(pooler, postgres_url) == [(frozenset(), (0, 0, 0))] * SIZE
    with closing(psycopg.connect(pooler.url(postgres_url, stated=False), autocommit=True)) as other:
        other.execute("set lock_timeout = 1234")
    assert {("lock_timeout", "1234ms")} in [settings for settings, _ in left(pooler, postgres_url)], (
        "nothing is cleared"
    )


async def test_a_renewal_that_is_held_up_is_given_up_on_the_server_too(pooler: Pooler, postgres_url: str):
    ledger = await PostgresLedger.open(pooler.url(postgres_url))
    with psycopg.connect(postgres_url) as locker, psycopg.connect(postgres_url, autocommit=True) as watcher:
        locker.execute("lock table workers in exclusive mode")
        with pytest.raises((StoreUnavailable, StoreLocked)):
            await asyncio.to_thread(ledger.renew, "worker_unknown", 0.3)
        waiting = (
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        )
        while watcher.execute(waiting).fetchone() != (0,):  # noqa: ASYNC110 - only the server knows when
            await asyncio.sleep(0.01)
        locker.rollback()
    await ledger.close()


def left(pooler: Pooler, url: str) -> list[tuple[frozenset[tuple[str, str]], tuple[int, int, int]]]:
    """What others left on each of the server's connections: settings; prepared statements, channels, advisory locks."""
    found = []
    with ExitStack() as stack:
        for _ in range(SIZE):  # each holds one, until all are seen
            connection = stack.enter_context(psycopg.connect(pooler.url(url, stated=False)))
            settings = connection.execute(
                "select name, current_setting(name) from pg_settings where source = 'session' and name <> all(%s)",
                [["application_name", "client_encoding"]],
            ).fetchall()
            counts = connection.execute(
                "select (select count(*) from pg_prepared_statements), (select count(*) from pg_listening_channels()),"
                " (select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory')"
            ).fetchone()
            assert counts is not None
            found.append((frozenset(settings), counts))
    return found


# --- news ------------------------------------------------------------------------------------------------------------

app = Outrider()


@app.tool
def add(one: int, other: int) -> int:
    return one + other


@app.tool
async def ask(task: TaskContext) -> str:
    """Ask, and be canceled if told to go on."""
    task.output("hello")
    answer: str = await task.ask("What now?", str)
    if answer == "go on":
        task.output("going on")
        await task.sleep(3600)
    return answer


async def test_who_hears_nothing_learns_of_what_others_do_by_looking(
    pooler: Pooler, postgres_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(clock, "LOOK_AGAIN", 3600.0)  # whoever waits looks by itself only then
    url = pooler.url(postgres_url)
    async with asyncio.timeout(40), app.open(url), app.open(url, worker=False) as outrider:
        session = await outrider.sessions.create()
        ended, canceled = await session.spawn("ask"), await session.spawn("ask")
        for task, answer in ((ended, "end"), (canceled, "go on")):
            await outrider.tasks.wait([task.id], on_question=True)
            await outrider.tasks.answer(task.id, answer)
        assert await ended.result() == "end"
        async for chunk in outrider.tasks.output(canceled.id):
            if "going on" in chunk.text:
                break
        await canceled.cancel()
        with pytest.raises(TaskCanceled):
            await canceled.result()


async def test_who_hears_learns_at_once_of_what_is_done_through_a_pooler(
    pooler: Pooler, postgres_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(clock, "LOOK_AGAIN", 3600.0)
    monkeypatch.setattr("outrider.stores.postgres.news.LOOK", 3600.0)
    async with (
        asyncio.timeout(40),
        app.open(postgres_url),
        app.open(pooler.url(postgres_url), worker=False) as outrider,
    ):
        session = await outrider.sessions.create()
        task = await session.spawn("add", one=1, other=2)
        assert await task.result() == 3


# --- the whole of it -------------------------------------------------------------------------------------------------


async def test_a_database_is_looked_through_and_copied_through_a_pooler(pooler: Pooler, postgres: Host):
    with fresh_database(postgres) as source, fresh_database(postgres) as target:
        with psycopg.connect(source, autocommit=True) as connection:
            has_amcheck = connection.execute(
                "select count(*) from pg_available_extensions where name = 'amcheck'"
            ).fetchone() == (1,)
            if has_amcheck:
                connection.execute("create extension amcheck")
        async with app.open(pooler.url(source), worker=False) as outrider:
            session = await outrider.sessions.create()
            task = await session.spawn("add", one=1, other=2)
            if has_amcheck:
                assert await outrider.services.views.problems(deep=True) == []
        await copy(pooler.url(source), pooler.url(target))
        async with app.open(pooler.url(target)) as outrider:
            assert await outrider.tasks.result(task.id) == b"3"


Harm: TypeAlias = Callable[[Pooler, str], None]


def cut_all(_pooler: Pooler, url: str) -> None:
    """End all of the server's connections to the database."""
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )


HARM: Mapping[str, Harm] = {"restart": lambda pooler, _: pooler.restart(), "cut": cut_all}


async def test_a_pooler_that_goes_away_under_load_loses_nothing_and_work_goes_on(
    pooler: Pooler, postgres_url: str, tmp_path: Path
):
    await _harm(pooler, postgres_url, tmp_path, ["restart", "cut", "restart"])


@pytest.mark.soak
async def test_a_pooler_that_goes_away_a_hundred_times_loses_nothing(pooler: Pooler, postgres_url: str, tmp_path: Path):
    await _harm(pooler, postgres_url, tmp_path, random.choices(list(HARM), k=100))


async def _harm(pooler: Pooler, url: str, folder: Path, harms: list[str]) -> None:
    async with crowd(pooler.url(url), folder, "work") as there:
        await there.goes_on()
        for harm in harms:
            await asyncio.to_thread(HARM[harm], pooler, url)
            await there.goes_on()
    assert not there.told("refused"), "no outage was as long as a verb waits"
    await prove(replace(there, address=url))
