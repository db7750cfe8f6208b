"""An SQLite database, to be copied or filled whole.

Its lock is held all the while, so that nobody else writes nor begins to use it. One transaction holds all that is
written: SQLite keeps it in the `-wal` file beside the database, not in memory.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from outrider.core.errors import InvalidArguments, NotFound
from outrider.stores.copy import COUNTED, Row, Table, check_known
from outrider.stores.sqlite.file import DatabaseFile

PATIENCE = 5.0
"""Seconds to wait for others to let go of the database."""


class SqlitePlace:
    """A `Place`: an SQLite file, behind all links."""

    def __init__(self, path: str) -> None:
        self._path = Path(os.path.realpath(path))
        self.name = f"the database {self._path}"

    def check_present(self) -> None:
        """Raise NotFound where there is no file."""
        if not self._path.exists():
            raise NotFound.of("file", str(self._path))

    @contextmanager
    def read(self) -> Iterator[SqliteTables]:
        """Its tables as they are at this moment; nobody writes meanwhile, nor begins to use it."""
        with self._opened() as (file, connection):
            connection.execute("pragma query_only = on")
            connection.execute("begin")
            (applied,) = connection.execute("select max(number) from migrations").fetchone()
            check_known(applied, "sqlite", self.name)
            yield SqliteTables(self.name, file, connection)

    @contextmanager
    def write(self) -> Iterator[SqliteTables]:
        """Its tables, to be filled. It is made where it is missing."""
        with self._opened() as (file, connection):
            connection.execute("begin immediate")
            yield SqliteTables(self.name, file, connection)
            connection.execute("commit")

    @contextmanager
    def _opened(self) -> Iterator[tuple[DatabaseFile, sqlite3.Connection]]:
        file = DatabaseFile(self._path, PATIENCE)
        connection = file.open()
        try:
            with file.errors(), file.alone():
                try:
                    yield file, connection
                finally:
                    if connection.in_transaction:
                        connection.execute("rollback")
        finally:
            connection.close()
            file.close()


class SqliteTables:
    """`NewTables` in an SQLite file, within a transaction."""

    def __init__(self, name: str, file: DatabaseFile, connection: sqlite3.Connection) -> None:
        self.name = name
        self._file = file
        self._connection = connection

    def beats(self) -> Mapping[str, int]:
        """The beat of each registered worker."""
        return dict(self._connection.execute("select id, beat from workers"))

    def rows(self, table: Table) -> Iterator[Row]:
        """All rows of a table, in the order of its key."""
        columns = ", ".join(f'"{name}"' for name in table.columns)
        truths = [place for place, kind in enumerate(table.columns.values()) if kind == "truth"]
        with self._file.errors():  # whoever writes meanwhile would take them for its own
            for row in self._connection.execute(f"select {columns} from {_source(table)} order by {table.order}"):
                if truths:
                    values = list(row)
                    for place in truths:
                        values[place] = bool(values[place])
                    yield tuple(values)
                else:
                    yield row

    def holds(self, table: Table) -> bool:
        """Whether there is any row."""
        return self._connection.execute(f"select 1 from {_source(table)} limit 1").fetchone() is not None

    def newest(self) -> Mapping[str, int]:
        """The newest number of each counted table."""
        given = dict(self._connection.execute("select name, seq from sqlite_sequence"))
        return {name: given.get(name, 0) for name in COUNTED}

    def write(self, table: Table, rows: Iterable[Row]) -> None:
        """Write rows into an empty table. Raises InvalidArguments for what it cannot hold."""
        if table.name == "counts":  # a row for each state is there from the first
            self._connection.execute("update counts set tasks = 0")
            for state, tasks in rows:
                self._connection.execute("update counts set tasks = ? where state = ?", [tasks, state])
            return
        if table.name in ("rates", "lines"):
            self._connection.execute(f"delete from {table.name}")
        columns = ", ".join(f'"{name}"' for name in table.columns)
        places = ", ".join("?" * len(table.columns))
        try:
            self._connection.executemany(f'insert into "{table.name}" ({columns}) values ({places})', rows)
        except sqlite3.IntegrityError as error:
            raise InvalidArguments(f"{self.name} cannot take a row of {table.name} ({error})") from error

    def go_on_after(self, newest: Mapping[str, int]) -> None:
        """Have all later numbers of these tables be above those."""
        own = self.newest()
        for name, number in newest.items():
            self._connection.execute("delete from sqlite_sequence where name = ?", [name])
            self._connection.execute("insert into sqlite_sequence values (?, ?)", [name, max(number, own[name])])


def _source(table: Table) -> str:
    match table.name:
        case "counts":
            return "counts where tasks <> 0"
        case "rates":
            return "rates where spent <> '[]' or opens_at is not null"
    return f'"{table.name}"'
