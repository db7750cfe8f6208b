"""The PostgreSQL store keeps every promise of the seam, on the newest server at hand; on the oldest in long tests."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from outrider.core.errors import InvalidArguments, NotFound
from outrider.core.events import FileWrite
from outrider.core.ledger import Ledger
from outrider.stores.postgres import PostgresLedger
from tests.facts import until
from tests.servers import each_version, versions
from tests.stores.contract import StoreContract
from tests.stores.scene import SESSION, Scene


@pytest.mark.parametrize("postgres_version", each_version())
class TestPostgres(StoreContract):
    @pytest.fixture
    async def ledger(self, postgres_url: str) -> AsyncIterator[Ledger]:
        ledger = await PostgresLedger.open(postgres_url)
        yield ledger
        await ledger.close()


@pytest.mark.anyio
@pytest.mark.parametrize("postgres_version", versions())
async def test_an_index_that_lacks_what_its_table_has_is_found(postgres_version: str, postgres_url: str):
    ledger = await PostgresLedger.open(postgres_url)
    scene = Scene(ledger)
    await scene.session()
    await scene.create("task_seen")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        if connection.execute("select 1 from pg_available_extensions where name = 'amcheck'").fetchone() is None:
            with pytest.raises(InvalidArguments, match="create extension amcheck"):
                await ledger.views.problems(deep=True)
        else:
            connection.execute("create extension amcheck")
            assert await ledger.views.problems(deep=True) == []
            hide = (
                "update pg_index set indisready = %s, indisvalid = %s where indexrelid = 'tasks_of_session'::regclass"
            )
            connection.execute(hide, [False, False])
            assert await ledger.views.problems() == ["the index tasks_of_session is invalid: nothing finds by it"]
            await scene.create("task_unseen")
            connection.execute(hide, [True, True])
            (problem,) = await ledger.views.problems(deep=True)
            assert problem.startswith("the index tasks_of_session is damaged: heap tuple")
    await ledger.close()


@pytest.mark.anyio
async def test_a_file_that_comes_as_its_session_is_deleted_is_waited_for_or_refused(postgres_url: str):
    ledger = await PostgresLedger.open(postgres_url)
    scene = Scene(ledger)
    await scene.session()
    with psycopg.connect(postgres_url) as connection:  # it does what a deletion does, from its lock to its commit
        connection.execute("select from sessions where id = %s for update", [SESSION])
        writing = asyncio.ensure_future(ledger.write_file(FileWrite(SESSION, "/late", b"x", "text/plain", scene.now)))
        waits = "select 1 from pg_locks where not granted"
        await until(lambda: connection.execute(waits).fetchone())
        assert connection.execute("select 1 from files").fetchone() is None
        connection.execute("delete from sessions where id = %s", [SESSION])
        connection.commit()
        with pytest.raises(NotFound):
            await writing
        assert connection.execute("select 1 from files").fetchone() is None
    await ledger.close()
