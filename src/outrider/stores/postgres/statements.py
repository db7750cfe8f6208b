"""The statements of `sql/postgres/queries.sql`, run on one connection.

Rows are written as one array for each column. psycopg can make those itself, but takes twice the time for it: an array
of the binary protocol is a header and the values, each after its length.
"""

from __future__ import annotations

import re
import struct
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import orjson
from psycopg import Connection, RawCursor
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types.string import StrBinaryDumper

from outrider.stores.postgres.pipeline import Pipeline
from outrider.stores.rows import MOVED, decode
from outrider.stores.statements import NO_NUL, read_statements

_TASK = ", ".join(
    (
        "t.number, t.id, s.id, t.rank, t.active_at, t.active_attempt, length(i.data)",
        *(f"t.{name}" for name in MOVED),
        "i.data, t.core, t.live, t.outcome",
    )
)
_USAGE = "select " + ", ".join(
    f"sum((replace(live, '\\u0000', '\\u0001')::json -> 'usage' ->> '{name}')::{type}){cast}"
    for name, type, cast in (
        ("requests", "bigint", "::bigint"),
        ("input_tokens", "bigint", "::bigint"),
        ("output_tokens", "bigint", "::bigint"),
        ("cached_tokens", "bigint", "::bigint"),
        ("cost", "float8", ""),
    )
)
_KEYS = 7
_COLUMNS = _KEYS + len(MOVED)

_UNIQUE: Mapping[str, int] = {"upsert_steps": 2, "upsert_requests": 1, "upsert_files": 2, "upsert_outputs": 1}
"""The statements that may be given two rows of the same first columns, and how many those are: the last one counts."""


class Cursor(Protocol):
    """What a statement brings; in a pipeline it may be waited for here."""

    def fetchall(self) -> list[Any]:
        """All rows."""

    def fetchone(self) -> Any:
        """The first row, None when there is none."""

    @property
    def rowcount(self) -> int:
        """How many rows the statement found or changed."""


class PostgresStatements:
    """`Statements` on a connection to PostgreSQL, or in its pipeline."""

    def __init__(self, connection: Connection[Any] | Pipeline) -> None:
        self._connection = connection
        self._texts = texts()
        self.count = 0

    def run(self, name: str, *parameters: Any) -> Cursor:
        """Run a statement."""
        return self._execute(self._texts[name], parameters)

    def changed(self, name: str, *parameters: Any) -> int:
        """Run a statement; how many rows it changed."""
        return self.run(name, *parameters).rowcount

    def row(self, name: str, *parameters: Any) -> Any:
        """The first row of a query, None when there is none."""
        return self.run(name, *parameters).fetchone()

    def array(self, name: str, *parameters: Any) -> list[Any]:
        """All rows of a query; of a query with one column, its values."""
        return _values(self.run(name, *parameters))

    def arrays(self, queries: Sequence[tuple[str, str]]) -> list[list[Any]]:
        """The rows of several queries with a parameter each, run in this order; in a pipeline they wait once."""
        cursors = [self.run(name, given) for name, given in queries]
        return [_values(cursor) for cursor in cursors]

    def document(self, name: str, *parameters: Any) -> Any:
        """The one JSON value that a query makes, decoded; None where there is none."""
        row = self.row(name, *parameters)
        return None if row is None else row[0]

    def tasks(self, name: str, *parameters: Any) -> list[Any]:
        """The rows of a query of `{task}`: keys, columns of the core, input, core, live and outcome."""
        return [_task(row) for row in self.run(name, *parameters).fetchall()]

    def filtered(self, name: str, conditions: str, direction: str, *parameters: Any) -> list[Any]:
        """Like `array`, of a query with conditions to fill in. They are never made of a caller's words."""
        return _values(self._filtered(name, conditions, direction, parameters))

    def filtered_tasks(self, name: str, conditions: str, direction: str, *parameters: Any) -> list[Any]:
        """Like `tasks`, of such a query."""
        return [_task(row) for row in self._filtered(name, conditions, direction, parameters).fetchall()]

    def texts(self, name: str) -> list[str]:
        """The first column of every row of a query, as it is."""
        return [row[0] for row in self.run(name).fetchall()]

    def write(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a `{rows}` statement for all rows."""
        self.write_all(name, rows)

    def write_all(self, name: str, *tables: Sequence[Sequence[Any]]) -> None:
        """Run a statement with several `{rows}`, each for all rows of its own."""
        if (width := _UNIQUE.get(name)) is not None:
            (rows,) = tables
            tables = (list({tuple(row[:width]): row for row in rows}.values()),)
        columns: list[Column] = []
        for types, rows in zip(columns_of(name), tables, strict=True):
            values = zip(*rows, strict=True) if rows else [()] * len(types)
            columns += [make(each) for make, each in zip(types, values, strict=True)]
        self._execute(self._texts[name], columns)

    def _filtered(self, name: str, conditions: str, direction: str, parameters: Sequence[Any]) -> Cursor:
        text = unfilled(name).replace("{conditions}", conditions).replace("{direction}", direction)
        return self._execute(_numbered(text), parameters)

    def _execute(self, text: str, parameters: Sequence[Any]) -> Cursor:
        self.count += 1
        if isinstance(self._connection, Pipeline):
            return self._connection.say(text, parameters)
        return RawCursor(self._connection).execute(text, parameters, binary=True)


def _values(cursor: Cursor) -> list[Any]:
    rows = cursor.fetchall()
    return [row[0] for row in rows] if rows and len(rows[0]) == 1 else rows


def _task(row: Sequence[Any]) -> tuple[Any, ...]:
    documents = [None if text is None else decode(text) for text in row[_COLUMNS:]]
    return (row[:_KEYS], row[_KEYS:_COLUMNS], *documents)


# --- texts -------------------------------------------------------------------------------------------


@cache
def texts() -> Mapping[str, str]:
    """All statements by name, as the server takes them."""
    return {name: _numbered(unfilled(name)) for name in read_statements("postgres")}


@cache
def conditions() -> Mapping[str, str]:
    """All statements by name, with placeholders that have no numbers yet: some are conditions for others."""
    return {name: unfilled(name) for name in read_statements("postgres")}


@cache
def unfilled(name: str) -> str:
    """A statement whose placeholders have no numbers yet, so that conditions can be put in."""
    text = read_statements("postgres")[name].replace("{task}", _TASK).replace("{usage}", _USAGE)
    text = re.sub(r"\{texts:?(\d*)\}", r"= any(array(select json_array_elements_text(?\1::json)))", text)
    text = re.sub(r"\{numbers:?(\d*)\}", r"= any(array(select json_array_elements_text(?\1::json)::bigint))", text)
    return _unnested(text)


def _unnested(text: str) -> str:
    place = 0

    def unnest(match: re.Match[str]) -> str:
        nonlocal place
        types = ["text" if each == "string" else each for each in match[1].split(",")]
        arrays = ", ".join(f"${place + number}::{type}[]" for number, type in enumerate(types, 1))
        place += len(types)
        return f"unnest({arrays}) as v ({', '.join(f'column{number}' for number in range(1, len(types) + 1))})"

    return re.sub(_ROWS, unnest, text)


_ROWS = re.compile(r"\{rows:([\w,]+)\}")


def _numbered(text: str) -> str:
    """Give each placeholder a number; those that have one keep it."""
    place = 0

    def number(match: re.Match[str]) -> str:
        nonlocal place
        place += 1
        return f"${match[1] or place}"

    return re.sub(r"\?(\d*)", number, text)


@cache
def columns_of(name: str) -> Sequence[Sequence[Callable[[Sequence[Any]], Column]]]:
    """What makes an array of each column, of each `{rows}` of a statement."""
    found = re.findall(_ROWS, read_statements("postgres")[name])
    return [[_COLUMN_TYPES[each] for each in types.split(",")] for types in found]


# --- arrays of the binary protocol -------------------------------------------------------------------

_HEADER = struct.Struct("!iiIii")
"""Dimensions, whether any is NULL, the type of the values, how many there are, the number of the first."""
_NULL = b"\xff\xff\xff\xff"


class TextDumper(StrBinaryDumper):
    """Dumps a text; one with a NUL, which the server refuses, as a name that nothing has."""

    def dump(self, obj: str) -> Buffer | None:
        """Dump a text."""
        return super().dump(obj.replace("\0", NO_NUL) if "\0" in obj else obj)


class Column:
    """The values of one column of many rows."""

    __slots__ = ("values",)

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = values


class Bigints(Column):
    """Integers of 64 bits."""


class Texts(Column):
    """Texts."""


class Strings(Column):
    """Texts that are written as strings of JSON."""


class Booleans(Column):
    """Truths."""


class Bytes(Column):
    """Bytes."""


_COLUMN_TYPES: Mapping[str, Callable[[Sequence[Any]], Column]] = {
    "bigint": Bigints,
    "text": Texts,
    "string": Strings,
    "boolean": Booleans,
    "bytea": Bytes,
}


class _ColumnDumper(Dumper):
    format = Format.BINARY
    element = 0
    """The type of the values, by its number in the catalogue of PostgreSQL; `oid` is that of the array."""

    def dump(self, obj: Column) -> bytes:
        values = obj.values
        parts = [_HEADER.pack(1, 1, self.element, len(values), 1)]
        add, pack = parts.append, self.pack
        for value in values:
            if value is None:
                add(_NULL)
            else:
                data = pack(value)
                add(len(data).to_bytes(4, "big"))
                add(data)
        return b"".join(parts)

    @abstractmethod
    def pack(self, value: Any) -> bytes:
        """One value that is not NULL."""


class _BigintsDumper(_ColumnDumper):
    oid, element = 1016, 20

    def dump(self, obj: Column) -> bytes:
        values = obj.values
        count = len(values)
        if None in values:
            return super().dump(obj)
        flat: list[int] = [8] * (2 * count)
        flat[1::2] = values
        return _HEADER.pack(1, 0, 20, count, 1) + struct.pack("!" + "iq" * count, *flat)

    def pack(self, value: Any) -> bytes:
        return int.to_bytes(value, 8, "big", signed=True)


class _TextsDumper(_ColumnDumper):
    oid, element = 1009, 25

    def pack(self, value: Any) -> bytes:
        return str.encode(value)


class _StringsDumper(_ColumnDumper):
    oid, element = 1009, 25

    def pack(self, value: Any) -> bytes:
        return orjson.dumps(value)


class _BooleansDumper(_ColumnDumper):
    oid, element = 1000, 16

    def pack(self, value: Any) -> bytes:
        return b"\x01" if value else b"\x00"


class _BytesDumper(_ColumnDumper):
    oid, element = 1001, 17

    def pack(self, value: Any) -> bytes:
        return bytes(value)


DUMPERS: Sequence[tuple[type[Column], type[_ColumnDumper]]] = (
    (Bigints, _BigintsDumper),
    (Texts, _TextsDumper),
    (Strings, _StringsDumper),
    (Booleans, _BooleansDumper),
    (Bytes, _BytesDumper),
)
