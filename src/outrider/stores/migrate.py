"""Bring a database's schema up to date: numbered SQL files, each applied once, forward only.

What was applied is recorded with its checksum, so that a migration changed afterwards is noticed and not
passed over. Each runs in a transaction of its own with its record: a crash leaves it applied or not.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from outrider.core.errors import StoreCorrupt, StoreNewer

_TOLERATED = "-- tolerated"
"""A migration that begins so may stand in a database that a program which does not know it goes on using."""

_LEDGER = """
create table if not exists migrations (
    number integer primary key,
    name text not null,
    checksum text not null,
    tolerated integer not null,
    applied_at integer not null
)
"""


@dataclass(frozen=True, slots=True, order=True)
class Migration:
    """One numbered step of the schema."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """What tells whether the text has changed."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def is_tolerated(self) -> bool:
        """Whether programs that do not know it may use the database all the same."""
        return self.sql.startswith(_TOLERATED)


@cache
def known(dialect: str = "sqlite") -> Sequence[Migration]:
    """The migrations that come with this program, in order."""
    folder = files("outrider.stores").joinpath("sql", dialect)
    return sorted(
        Migration(int(match[1]), match[2], file.read_text())
        for file in folder.iterdir()
        if (match := re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name))
    )


def migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration] | None = None) -> None:
    """Apply what the database at `path` lacks. The caller keeps other processes out.

    Raises StoreNewer for a schema that only a later program knows, StoreCorrupt when one that was applied
    had another text than the one known here.
    """
    migrations = known() if migrations is None else migrations
    connection.execute(_LEDGER)
    applied = {
        number: rest for number, *rest in connection.execute("select number, checksum, tolerated from migrations")
    }
    check(applied, migrations, f"the database {path}")
    for migration in migrations:
        if migration.number not in applied:
            _apply(connection, migration)


def check(applied: Mapping[int, Sequence[object]], migrations: Sequence[Migration], database: str) -> None:
    """Compare what was applied, number by checksum and whether it is tolerated, with what is known.

    Raises StoreNewer and StoreCorrupt as `migrate` does; `database` is what they call it.
    """
    texts = {migration.number: migration for migration in migrations}
    for number, (checksum, tolerated) in applied.items():
        migration = texts.get(number)
        if migration is None:
            if not tolerated:
                raise StoreNewer(
                    f"{database} has schema {number}, which this version of Outrider does not know (it knows "
                    f"{max(texts, default=0)}); use a later version"
                )
        elif checksum != migration.checksum:
            raise StoreCorrupt(
                f"migration {number} ({migration.name}) of {database} is not the one of this program; "
                "it was made by a changed or unreleased version: use that one, or start a new database"
            )


def _apply(connection: sqlite3.Connection, migration: Migration) -> None:
    connection.execute("begin immediate")
    try:
        for statement in statements_of(migration.sql):
            connection.execute(statement)
        connection.execute(
            "insert into migrations (number, name, checksum, tolerated, applied_at) values (?, ?, ?, ?, ?)",
            (migration.number, migration.name, migration.checksum, migration.is_tolerated, time.time_ns() // 1000),
        )
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:
            connection.execute("rollback")
        raise


def statements_of(sql: str) -> list[str]:
    """The single statements of a script. `executescript` would commit the transaction around them."""
    statements, lines = [], []
    for line in sql.splitlines():
        lines.append(line)
        text = "\n".join(lines)
        if sqlite3.complete_statement(text):
            statements.append(text)
            lines = []
    if any(line.strip() and not line.lstrip().startswith("--") for line in lines):
        statements.append("\n".join(lines))
    return statements
