"""A PostgreSQL server to measure, and what it does with nothing of Outrider in the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import psycopg
from psycopg import errors


@contextmanager
def server() -> Iterator[str]:
    """The address of a server of our own, as durable as PostgreSQL is by itself."""
    from tests.servers import Server, programs

    with Server(programs()[-1], settings={"shared_buffers": "1GB"}, durable=True) as own:
        yield own.url(over="socket")


def create(address: str, name: str) -> str:
    """The address of the database of that name, made the first time."""
    with psycopg.connect(address, autocommit=True) as connection, suppress(errors.DuplicateDatabase):
        connection.execute(f'create database "{name}"'.encode())
    return urlsplit(address)._replace(path=f"/{name}").geturl()


def settle(url: str) -> None:
    """Vacuum and write a database that was just filled: its server would do so in the midst of what follows."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("vacuum analyze")
        connection.execute("checkpoint")


class Postgres:
    """A bare table in PostgreSQL, with its default durability. Every call is a commit."""

    def __init__(self, address: str) -> None:
        self._db = psycopg.connect(address, autocommit=True)
        self._db.prepare_threshold = 0
        for statement in (
            b"drop table if exists bare",
            b"create table bare (id bigint generated always as identity primary key, state text not null,"
            b" body text not null)",
            b"create index bare_waiting on bare (id) where state = 'waiting'",
        ):
            self._db.execute(statement)

    def insert(self, rows: list[str]) -> None:
        """Insert rows that wait."""
        self._db.execute("insert into bare (state, body) select 'waiting', unnest(%b::text[])", [rows])

    def claim(self, limit: int) -> list[int]:
        """Take the first that wait."""
        return [
            id
            for (id,) in self._db.execute(
                "update bare set state = 'taken' where id = any(array("
                "select id from bare where state = 'waiting' order by id limit %s for update skip locked))"
                " returning id",
                [limit],
            )
        ]

    def settle(self, ids: list[int]) -> None:
        """Note that these are done."""
        self._db.execute("update bare set state = 'done' where id = any(%b::bigint[])", [ids])

    def count_done(self) -> tuple[int, int]:
        """How many rows are done, and how many there are."""
        row = self._db.execute("select count(*) filter (where state = 'done'), count(*) from bare").fetchone()
        assert row is not None
        return row[0], row[1]

    def close(self) -> None:
        """Drop it."""
        self._db.execute("drop table bare")
        self._db.close()
