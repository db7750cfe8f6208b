"""The tables of a PostgreSQL database, to be copied or filled whole, by COPY in its binary form.

A reader would get one thing wrong: a position is where `origin` says plus what the number of the transaction makes of
it. So a database that was filled has its origin after all positions that came with it, or what is new would stand
before them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
import psycopg
from psycopg import Connection, errors

from outrider.core.errors import InvalidArguments, StoreForeign, StoreLocked
from outrider.stores.copy import TABLES, Kind, Row, Table, check_known
from outrider.stores.postgres.batch import BLOCK, searched
from outrider.stores.postgres.database import Database

_NUMBERED = (
    ("follow_ups", "id"),
    *((name, "number") for name in ("watches", "steps", "requests", "messages", "output")),
)
"""What the server itself numbers."""

_TYPES: Mapping[Kind, str] = {
    "number": "bigint",
    "flag": "integer",
    "text": "text",
    "truth": "boolean",
    "json": "text",
    "words": "text",
    "bytes": "bytea",
}
"""How values are given to COPY. In its binary form a document of type `json` is its text."""

_JSONB = b"\x01"
"""What stands before the text of a `jsonb` there: the version of the form."""


class PostgresPlace:
    """A `Place`: a PostgreSQL database."""

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self.name = self._database.name

    def check_present(self) -> None:
        """Raise StoreForeign for a database without tables of ours."""
        connection = self._database.connect()
        try:
            with self._database.errors():
                query = "select to_regclass('migrations') is not null and to_regclass('tasks') is not null"
                if connection.execute(query).fetchone() != (True,):
                    raise StoreForeign(f"{self.name} is no database of Outrider")
        finally:
            connection.close()

    @contextmanager
    def read(self) -> Iterator[PostgresTables]:
        """Its tables as they are at this moment. Nobody becomes a worker there meanwhile."""
        with self._transaction("repeatable read") as connection:
            # Before the first query, which is the moment that is read.
            connection.execute("lock table workers in exclusive mode")
            (applied,) = connection.execute("select max(number) from migrations").fetchone() or (0,)
            check_known(applied, "postgres", self.name)
            yield PostgresTables(self._database, connection)

    @contextmanager
    def write(self) -> Iterator[PostgresTables]:
        """Its tables, to be filled. Nobody else writes meanwhile."""
        with self._transaction("read committed") as connection:
            connection.execute("lock table limits, pauses, tasks, rates, sessions, workers in exclusive mode")
            yield PostgresTables(self._database, connection)
            connection.execute("commit")

    @contextmanager
    def _transaction(self, isolation: str) -> Iterator[Connection[Any]]:
        connection = self._database.connect(is_patient=True)
        try:
            with self._database.errors():
                try:
                    connection.begin(f"isolation level {isolation}")
                    yield connection
                except errors.DeadlockDetected as error:
                    raise StoreLocked(f"somebody else writes {self.name} ({error}); end its programs first") from error
        finally:
            connection.close()


class PostgresTables:
    """`NewTables` in a PostgreSQL database, within a transaction."""

    def __init__(self, database: Database, connection: Connection[Any]) -> None:
        self.name = database.name
        self._database = database
        self._connection = connection

    def beats(self) -> Mapping[str, int]:
        """The beat of each registered worker."""
        return dict(self._connection.execute("select id, beat from workers").fetchall())

    def rows(self, table: Table) -> Iterator[Row]:
        """All rows of a table, in the order of its key."""
        words = [place for place, kind in enumerate(table.columns.values()) if kind == "words"]
        columns = ", ".join(_read(name, kind) for name, kind in table.columns.items())
        query = f"select {columns} from {_source(table)} order by {table.order}"
        statement = f"copy ({query}) to stdout (format binary)".encode()
        # Errors have their names from here: whoever writes meanwhile would take them for its own.
        with self._database.errors(), self._connection.cursor().copy(statement) as copy:
            copy.set_types([_TYPES[kind] for kind in table.columns.values()])
            for row in copy.rows():
                if words:
                    values = list(row)
                    for place in words:
                        values[place] = orjson.loads(values[place])
                    yield tuple(values)
                else:
                    yield row

    def separate(self) -> str:
        """Give the database another identity, which is returned."""
        return str(self._value("update origin set id = gen_random_uuid() returning id::text"))

    def holds(self, table: Table) -> bool:
        """Whether there is any row."""
        query = f"select exists (select from {_source(table)})"
        return bool(self._value(query))

    def newest(self) -> Mapping[str, int]:
        """What no number of each counted table is above."""
        return {
            "sessions": self._given("session_numbers", BLOCK),
            "tasks": self._given("task_numbers", BLOCK),
            "events": int(
                self._value(
                    "select position + (pg_snapshot_xmax(pg_current_snapshot())::text::bigint << 20) from origin"
                )
            ),
            "follow_ups": self._given(self._sequence("follow_ups", "id"), 1),
        }

    def write(self, table: Table, rows: Iterable[Row]) -> None:
        """Write rows into an empty table. Raises InvalidArguments for what no table of PostgreSQL can hold."""
        if table.name in ("counts", "rates", "lines"):
            self._connection.execute(f"delete from {table.name}".encode())
        columns = {name: _TYPES[kind] for name, kind in table.columns.items()}
        change = _changes(table)
        if table.name == "counts":
            columns["shard"] = "integer"
        elif table.name == "inputs":
            columns["labels"] = "bytea"
        names = ", ".join(f'"{name}"' for name in columns)
        statement = f'copy "{table.name}" ({names}) from stdin (format binary)'
        try:
            with self._connection.cursor().copy(statement.encode()) as copy:
                copy.set_types(list(columns.values()))
                for row in rows:
                    copy.write_row(change(row))
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            raise InvalidArguments(f"{self.name} cannot take a row of {table.name} ({error})") from error

    def go_on_after(self, newest: Mapping[str, int]) -> None:
        """Have all later numbers be above those. Sequences only go ahead, for they do so also where it is undone."""
        self._move("session_numbers", newest["sessions"])
        self._move("task_numbers", newest["tasks"])
        for name, column in _NUMBERED:
            written = self._value(f"select coalesce(max({column}), 0) from {name}")
            self._move(self._sequence(name, column), max(int(written), newest.get(name, 0)))
        self._connection.execute("update origin set position = greatest(position, %s)", [newest["events"]])
        self._connection.execute(f"analyze {', '.join(table.name for table in TABLES)}".encode())

    def _sequence(self, table: str, column: str) -> str:
        return str(self._value("select pg_get_serial_sequence(%s, %s)", [table, column]))

    def _given(self, sequence: str, block: int) -> int:
        """The last number that a sequence may have given to anybody."""
        return int(self._value(f"select case when is_called then last_value + {block - 1} else 0 end from {sequence}"))

    def _move(self, sequence: str, number: int) -> None:
        if number:
            query = f"select setval(%s::regclass, greatest(last_value, %s)) from {sequence}"
            self._value(query, [sequence, number])

    def _value(self, query: str, parameters: Sequence[Any] = ()) -> Any:
        row = self._connection.execute(query.encode(), parameters or None).fetchone()
        return None if row is None else row[0]


def _read(name: str, kind: Kind) -> str:
    return f'"{name}"::text' if kind in ("json", "words") else f'"{name}"'


def _source(table: Table) -> str:
    match table.name:
        case "counts":
            total = "select state, sum(tasks)::bigint as tasks from counts group by state having sum(tasks) <> 0"
            return f"({total}) as counts"
        case "rates":
            return "rates where spent::text <> '[]' or opens_at is not null"
    return f'"{table.name}"'


def _changes(table: Table) -> Callable[[Row], Sequence[Any]]:
    """What a row becomes on its way into the table of PostgreSQL."""
    kinds = tuple(table.columns.values())
    texts = [place for place, kind in enumerate(kinds) if kind == "text"]
    words = [place for place, kind in enumerate(kinds) if kind == "words"]
    names = list(table.columns)
    id_at = names.index("id") if "id" in names else 0

    def change(row: Row) -> Sequence[Any]:
        for place in texts:
            value = row[place]
            if value is not None and "\0" in value:
                raise InvalidArguments(
                    f"{names[place]} of {row[id_at]} in {table.name} has a NUL in it, which no text of "
                    f"PostgreSQL can hold: {value!r:.100}"
                )
        if words:
            return [orjson.dumps(value).decode() if place in words else value for place, value in enumerate(row)]
        match table.name:
            case "counts":
                return (*row, 0)
            case "inputs":
                return (*row, _labels(row[1]))
        return row

    return change


def _labels(data: str) -> bytes | None:
    """The labels of an input once more, as they are searched."""
    labels = searched(orjson.loads(data).get("labels", {})) if '"labels"' in data else None
    return None if labels is None else _JSONB + labels.encode()
