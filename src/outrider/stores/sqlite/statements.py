"""The statements of `sql/sqlite/queries.sql`, run on one connection.

Rows are written many to a statement, never by `executemany`: every step of a statement gives up the interpreter's
lock, and beside a busy event loop winning it back takes longer than the step. So that few texts do for any number
of rows, a statement takes one of a few numbers, and what is missing to it is filled with NULLs, which the texts
leave out.
"""

from __future__ import annotations

import re
import sqlite3
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any

from outrider.stores.rows import MOVED, decode
from outrider.stores.statements import read_statements

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""How many rows a statement may take."""

_TASK = (
    "'[' || group_concat('[' ||"
    " json_array(t.number, t.id, s.id, t.rank, t.active_at, t.active_attempt, length(i.data)) || ','"
    f" || json_array({', '.join('t.' + name for name in MOVED)}) || ',' || i.data || ',' || ifnull(t.core, 'null')"
    " || ',' || ifnull(t.live, 'null') || ',' || ifnull(t.outcome, 'null') || ']') || ']'"
)


_USAGE = "select " + ", ".join(
    f"sum(live ->> '$.usage.{name}')" for name in ("requests", "input_tokens", "output_tokens", "cached_tokens", "cost")
)


class SqliteStatements:
    """`Statements` on an SQLite connection. Its arrays are read as one JSON text in one row."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute
        self._texts = texts()
        self._places = places()
        self.count = 0

    def run(self, name: str, *parameters: Any) -> sqlite3.Cursor:
        """Run a statement."""
        self.count += 1
        return self._run(name, parameters)

    def changed(self, name: str, *parameters: Any) -> int:
        """Run a statement; how many rows it changed."""
        return self.run(name, *parameters).rowcount

    def row(self, name: str, *parameters: Any) -> Any:
        """The first row of a query, None when there is none."""
        self.count += 1
        return self._run(name, parameters).fetchone()

    def array(self, name: str, *parameters: Any) -> list[Any]:
        """The JSON array that a query builds in its one row and column; NULL is an empty one."""
        self.count += 1
        text = self._run(name, parameters).fetchone()[0]
        return [] if text is None else decode(text)

    tasks = array

    def arrays(self, queries: Sequence[tuple[str, str]]) -> list[list[Any]]:
        """The rows of several queries with a parameter each, run in this order."""
        return [self.array(name, given) for name, given in queries]

    def document(self, name: str, *parameters: Any) -> Any:
        """The one JSON value that a query makes, decoded; None where there is none."""
        row = self.row(name, *parameters)
        return None if row is None or row[0] is None else decode(row[0])

    def texts(self, name: str) -> list[str]:
        """The first column of every row of a query, as it is."""
        self.count += 1
        return [row[0] for row in self._run(name, ()).fetchall()]

    def filtered(self, name: str, conditions: str, direction: str, *parameters: Any) -> list[Any]:
        """Like `array`, of a query with conditions to fill in. They are never made of a caller's words."""
        self.count += 1
        text = self._texts[name].replace("{conditions}", conditions).replace("{direction}", direction)
        found = self._execute(text, parameters).fetchone()[0]
        return [] if found is None else decode(found)

    filtered_tasks = filtered

    def write(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a `{rows}` statement for all rows, in as few statements as they make."""
        for start in range(0, len(rows), WIDTHS[-1]):
            chunk = rows[start : start + WIDTHS[-1]]
            width = WIDTHS[bisect_left(WIDTHS, len(chunk))]
            values = list(chain.from_iterable(chunk))
            values += [None] * (width * len(chunk[0]) - len(values))
            self.count += 1
            self._execute(wide(name, width), values)

    def _run(self, name: str, parameters: Sequence[Any]) -> sqlite3.Cursor:
        if (order := self._places.get(name)) is not None:
            parameters = [parameters[place] for place in order]
        return self._execute(self._texts[name], parameters)


@cache
def texts() -> Mapping[str, str]:
    """All statements by name, with plain placeholders: Python deprecates numbered ones for sequences."""
    return {name: _NUMBERED.sub("?", text) for name, text in _numbered().items()}


@cache
def places() -> Mapping[str, tuple[int, ...]]:
    """Which parameter each placeholder stands for, of the statements that number them."""
    numbers = {name: _NUMBERED.findall(text) for name, text in _numbered().items()}
    return {name: tuple(int(number) - 1 for number in found) for name, found in numbers.items() if found}


_LISTED = re.compile(r"\{(?:texts|numbers):?(\d*)\}")
_NUMBERED = re.compile(r"\?(\d+)")


@cache
def _numbered() -> Mapping[str, str]:
    return {
        name: _LISTED.sub(
            r"in (select value from json_each(?\1))", text.replace("{task}", _TASK).replace("{usage}", _USAGE)
        )
        for name, text in read_statements("sqlite").items()
    }


@cache
def wide(name: str, size: int) -> str:
    """The text of a `{rows}` statement for that many rows."""

    def rows(match: re.Match[str]) -> str:
        row = "(" + ", ".join("?" * int(match[1])) + ")"
        return f"select * from (values {', '.join([row] * size)}) where column1 is not null"

    return re.sub(r"values \{rows:(\d+)\}", rows, texts()[name])
