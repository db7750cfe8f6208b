"""The statements of a store, by name: how the files in `sql` are read, and what a connection does with them.

Both stores have the same names and parameters, so that everything above writes and reads without knowing the dialect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

from outrider.stores.rows import encode

NO_NUL = "\ufdd0"
"""A character that stands for none, so that no name has it."""


class Result(Protocol):
    """What a statement left behind."""

    def fetchone(self) -> Any:
        """The next row, None when there is none left."""
        ...

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        ...


class Statements(Protocol):
    """Runs the named statements on one connection, and counts them."""

    count: int

    def run(self, name: str, *parameters: Any) -> Result:
        """Run a statement."""
        ...

    def changed(self, name: str, *parameters: Any) -> int:
        """Run a statement; how many rows it changed."""
        ...

    def row(self, name: str, *parameters: Any) -> Any:
        """The first row of a query, None when there is none."""
        ...

    def array(self, name: str, *parameters: Any) -> list[Any]:
        """All rows of a query; of a query with one column, its values. Columns of JSON are decoded."""
        ...

    def arrays(self, queries: Sequence[tuple[str, str]]) -> list[list[Any]]:
        """The rows of several queries with a parameter each, run in this order."""
        ...

    def document(self, name: str, *parameters: Any) -> Any:
        """The one JSON value that a query makes, decoded; None where there is none."""
        ...

    def tasks(self, name: str, *parameters: Any) -> list[Any]:
        """The rows of a query of `{task}`: keys, columns of the core, input, core, live and outcome."""
        ...

    def filtered(self, name: str, conditions: str, direction: str, *parameters: Any) -> list[Any]:
        """Like `array`, of a query with conditions to fill in. They are never made of a caller's words."""
        ...

    def filtered_tasks(self, name: str, conditions: str, direction: str, *parameters: Any) -> list[Any]:
        """Like `tasks`, of such a query."""
        ...

    def texts(self, name: str) -> list[str]:
        """The first column of every row of a query, as it is."""
        ...

    def write(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a `{rows}` statement for all rows, in as few statements as they make."""
        ...


@cache
def read_statements(dialect: str) -> Mapping[str, str]:
    """The statements of `sql/queries.sql` and `sql/{dialect}/queries.sql` by name, without their comments."""
    folder = files("outrider.stores").joinpath("sql")
    source = folder.joinpath("queries.sql").read_text() + folder.joinpath(dialect, "queries.sql").read_text()
    parts = re.split(r"^-- (\w+) --$", source, flags=re.MULTILINE)
    statements = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        lines = (line for line in body.splitlines() if line.strip() and not line.startswith("--"))
        statements[name] = "\n".join(lines).rstrip(";")
    return statements


def listed(values: Sequence[Any] | Set[Any]) -> str:
    """Values as the JSON array that a query takes. In what is looked up a NUL, which no text of PostgreSQL may hold,
    stands as something that nothing is called.
    """
    return encode([each.replace("\0", NO_NUL) if isinstance(each, str) else each for each in values])
