"""A schema only goes forward, each step once and whole."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from outrider.core.errors import StoreCorrupt, StoreNewer
from outrider.stores.migrate import Migration, known, migrate, statements_of

FIRST = Migration(1, "first", "create table a (x);\n-- a comment; with a semicolon\ninsert into a values (1);\n")
SECOND = Migration(2, "second", "alter table a add column y;\nupdate a set y = x;\n")
BROKEN = Migration(3, "broken", "create table b (x);\ninsert into nowhere values (1);\n")
GENTLE = Migration(3, "gentle", "-- tolerated: adds a table that nobody else reads\ncreate table c (x);\n")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work.db"


@pytest.fixture
def database(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None)
    yield connection
    connection.close()


def applied(database: sqlite3.Connection) -> list[tuple[int, str]]:
    return database.execute("select number, name from migrations order by number").fetchall()


def test_a_new_database_gets_every_migration_in_order(database: sqlite3.Connection, path: Path):
    migrate(database, path, [FIRST, SECOND])
    assert database.execute("select x, y from a").fetchall() == [(1, 1)]
    assert applied(database) == [(1, "first"), (2, "second")]


def test_an_older_database_gets_what_it_lacks_and_keeps_what_it_has(database: sqlite3.Connection, path: Path):
    migrate(database, path, [FIRST])
    database.execute("insert into a values (2)")
    migrate(database, path, [FIRST, SECOND])
    assert database.execute("select x, y from a").fetchall() == [(1, 1), (2, 2)]


def test_what_was_applied_is_not_applied_again(database: sqlite3.Connection, path: Path):
    for _ in range(2):
        migrate(database, path, [FIRST, SECOND])
    assert database.execute("select count(*) from a").fetchone() == (1,)


def test_a_migration_that_fails_leaves_nothing_and_those_before_it_stand(database: sqlite3.Connection, path: Path):
    with pytest.raises(sqlite3.OperationalError):
        migrate(database, path, [FIRST, BROKEN])
    assert applied(database) == [(1, "first")]
    assert database.execute("select name from sqlite_schema where name = 'b'").fetchall() == []


def test_a_database_with_a_migration_unknown_here_is_newer(database: sqlite3.Connection, path: Path):
    migrate(database, path, [FIRST, SECOND])
    with pytest.raises(StoreNewer, match=r"schema 2.*knows 1"):
        migrate(database, path, [FIRST])


def test_a_migration_may_say_that_programs_that_do_not_know_it_go_on(database: sqlite3.Connection, path: Path):
    migrate(database, path, [FIRST, SECOND, GENTLE])
    migrate(database, path, [FIRST, SECOND])


def test_a_changed_text_is_noticed(database: sqlite3.Connection, path: Path):
    migrate(database, path, [FIRST])
    with pytest.raises(StoreCorrupt, match="migration 1"):
        migrate(database, path, [Migration(1, "first", FIRST.sql + "\n")])


def test_a_script_is_cut_where_its_statements_end():
    assert statements_of("select 1;\nselect ';';\n-- the end\n") == ["select 1;", "select ';';"]
    assert statements_of("select 1;\nselect 2") == ["select 1;", "select 2"]


def test_the_migrations_here_are_numbered_from_one_without_a_gap():
    assert [migration.number for migration in known()] == list(range(1, len(known()) + 1))
