"""The PostgreSQL store keeps every promise of the seam, on the newest server at hand; on the oldest in long tests."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg import sql

from outrider.core.errors import InvalidArguments, NotFound, StoreReadOnly, StoreUnavailable
from outrider.core.events import FileWrite
from outrider.core.ledger import Ledger, Signal
from outrider.runtime.ids import new_id
from outrider.stores.postgres import PostgresLedger, news
from outrider.stores.postgres.database import Database
from outrider.stores.postgres.statements import PostgresStatements
from tests.facts import until
from tests.servers import Host, each_version, versions
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


@pytest.mark.parametrize("pooler", ["", "?pooler=transaction"])
def test_what_a_database_sets_for_all_who_use_it_does_not_change_what_a_transaction_sees_and_writes(
    postgres_url: str, pooler: str
):
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        for setting in ("default_transaction_isolation to 'repeatable read'", "client_encoding to 'LATIN1'"):
            connection.execute(sql.SQL(f"alter database {{}} set {setting}").format(name))
    database = Database(postgres_url + pooler)
    database.prepare()
    with database.connect() as link:
        with link.transaction():
            assert link.execute("show transaction_isolation").fetchone() == ("read committed",)
        with link.ahead as pipeline:
            pipeline.begin()
            assert pipeline.say("show transaction_isolation").fetchone() == ("read committed",)
            assert pipeline.say("select $1::text", ["\N{SNOWMAN}"]).fetchone() == ("\N{SNOWMAN}",)


def test_bringing_the_schema_up_to_date_may_take_longer_than_the_users_statements(postgres_url: str):
    database = Database(f"{postgres_url}?options=-cstatement_timeout%3D1")
    database.prepare()
    with database.connect() as link, pytest.raises(psycopg.errors.QueryCanceled) as caught:
        link.execute("select pg_sleep(1)")
    assert "`statement_timeout` is too short" in str(database.explain(caught.value))


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_cannot_hold_every_text_is_refused(postgres: Host, postgres_url: str, encoding: str):
    name = f"{postgres_url.rsplit('/', 1)[1]}_{encoding.lower()}"
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        create = f"create database {{}} encoding '{encoding}' locale 'C' template template0 strategy file_copy"
        connection.execute(sql.SQL(create).format(sql.Identifier(name)))
    try:
        with pytest.raises(StoreUnavailable, match=f"{encoding}.*--encoding=UTF8"):
            Database(postgres.url(name)).prepare()
    finally:
        postgres.drop_database(name)


def test_a_user_without_a_schema_is_told_what_to_name(postgres_url: str):
    with pytest.raises(StoreReadOnly, match="search_path"):
        Database(f"{postgres_url}?options=-csearch_path%3Dnowhere").prepare()


def test_a_transaction_that_the_server_ended_for_its_length_is_done_again(postgres_url: str):
    error = psycopg.Error("terminating connection due to transaction timeout")
    error.sqlstate = "25P04"
    assert Database(postgres_url).is_lost(error)


def test_who_opens_a_database_waits_for_no_transaction_of_those_who_use_it(postgres_url: str):
    database = Database(postgres_url)
    database.prepare()
    with database.connect() as link, link.transaction():
        statements = PostgresStatements(link)
        statements.run("lock_gates")
        statements.run("lock_documents")
        database.prepare()


@pytest.mark.anyio
async def test_a_read_that_the_server_ends_for_a_deadlock_is_done_again(postgres_url: str):
    ledger = await PostgresLedger.open(postgres_url)
    scene = Scene(ledger)
    await scene.session()
    created = await scene.create("task_read")
    with psycopg.connect(postgres_url, autocommit=True) as connection:  # in the place of a table, what fails once
        connection.execute("create sequence reads")
        connection.execute(
            "create function fails_once() returns boolean language plpgsql as $$ begin"
            " if nextval('reads') = 1 then raise deadlock_detected; end if; return true; end $$"
        )
        connection.execute("alter table inputs rename to kept")
        connection.execute("create view inputs as select * from kept where fails_once()")
    assert await ledger.views.task("task_read") == created
    await ledger.close()


def test_those_who_use_another_schema_of_a_database_hold_up_nobody_at_work(postgres_url: str):
    here, there = (Database(f"{postgres_url}?options=-csearch_path%3D{name}") for name in ("one", "two"))
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("create schema one; create schema two")
    with here.connect() as link, there.connect() as other, link.transaction():
        PostgresStatements(link).run("lock_writer", 1)
        other.execute("set lock_timeout to '1s'")
        PostgresStatements(other).run("lock_writer", 1)


def test_news_of_many_tasks_are_told_whole_in_notifications_that_fit():
    moved = {new_id("task"): version for version in range(1, 1001)}
    touched, sessions = new_id("task"), frozenset(new_id("session") for _ in range(300))
    told = [
        Signal(frozenset(moved), moved, sessions, ready=True, deadline_at=7),
        Signal(frozenset({touched}), {min(moved): 2_000}, frozenset(), deadline_at=5),
        Signal(frozenset(moved), moved),
    ]
    payloads = news._write(told)
    assert all(len(payload) < 8000 for payload in payloads)
    heard = [news._read(payload) for payload in payloads]
    assert frozenset().union(*(each.task_ids for each in heard)) == moved.keys() | {touched}
    assert {id: version for each in heard for id, version in each.moved.items()} == {**moved, min(moved): 2_000}
    assert frozenset().union(*(each.session_ids for each in heard)) == sessions
    assert all(each.foreign and each.ready and each.deadline_at == 5 and not each.unknown for each in heard)


def test_news_of_more_than_that_say_that_all_may_have_changed():
    crowd = frozenset(new_id("task") for _ in range(10_000))
    (payload,) = news._write([Signal(crowd)])
    assert news._read(payload) == Signal(unknown=True)


def test_news_of_another_version_say_the_same():
    assert news._read('[["task_1"],["task_1"],["session_1"],true,false,null]') == Signal(unknown=True)


@pytest.mark.anyio
async def test_what_another_process_commits_is_told_as_foreign_with_the_version(postgres_url: str):
    own, other = await PostgresLedger.open(postgres_url), await PostgresLedger.open(postgres_url)
    here: list[Signal] = []
    there: list[Signal] = []
    own.listen(here.append)
    other.listen(there.append)
    scene = Scene(own)
    await scene.session()
    await scene.create("task_1")

    async def is_told() -> bool:
        return any("task_1" in each.moved for each in there)

    await until(is_told)
    assert [(each.moved["task_1"], each.foreign) for each in there if "task_1" in each.moved] == [(1, True)]
    assert [(each.moved["task_1"], each.foreign) for each in here if "task_1" in each.moved] == [(1, False)]
    await own.close()
    await other.close()
