"""All that a database holds, table by table, and the copying of it into another, of whatever kind.

What is copied is rows, as they are: ids, versions, positions and the database's own numbers stay, so that every cursor
goes on where it stood. Rows have one form here, which both SQL stores read and write; by it what was written is
compared with what was read. Workers are not copied: they belong to where they run; nor is the index of tasks, which
they make anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import orjson

from outrider.core.errors import AlreadyExists, CopyDiffers, StoreNewer
from outrider.stores.migrate import known

Row: TypeAlias = tuple[Any, ...]

Kind: TypeAlias = Literal["number", "flag", "text", "truth", "json", "words", "bytes"]
"""What a column holds: `flag` is a small number, `json` the text of a document, `words` a text that may have a NUL."""

EVERY = 1000
"""After how many rows somebody is told how far it has come, and may stop it."""

COUNTED = ("sessions", "tasks", "events", "follow_ups")
"""The tables whose numbers are never given out twice, also not those of rows that are gone."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its columns, and those by which its rows are ordered."""

    name: str
    key: Sequence[str]
    columns: Mapping[str, Kind]

    @property
    def order(self) -> str:
        """The key as SQL."""
        return ", ".join(f'"{name}"' for name in self.key)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a copy has come: so many rows of a table were written, or read again. `is_whole`: that was all of it.

    `wait`, before any of that: so many workers are watched, whether they live on other machines.
    """

    step: Literal["wait", "copy", "compare"]
    table: str
    rows: int
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied: from where, to where, and how many rows of each table."""

    source: str
    target: str
    rows: Mapping[str, int]


class Place(Protocol):
    """A database that can be copied from and to."""

    name: str
    """What errors call it."""

    def check_present(self) -> None:
        """Raise NotFound or a StoreError where there is none of ours yet; it would be made."""
        ...

    def read(self) -> AbstractContextManager[Tables]:
        """Its tables as they are at this moment. Raises a StoreError."""
        ...

    def write(self) -> AbstractContextManager[NewTables]:
        """Its tables, to be filled: all of it is there once this is left, or nothing. Nobody else writes meanwhile.

        Raises a StoreError.
        """
        ...


class Tables(Protocol):
    """The tables of one database, within one transaction."""

    name: str
    """What errors call the database."""

    def beats(self) -> Mapping[str, int]:
        """The beat of each registered worker. Nobody can become one meanwhile."""
        ...

    def rows(self, table: Table) -> Iterator[Row]:
        """All rows of a table, in the order of its key; of `rates` those that say anything. To be read to the end."""
        ...

    def newest(self) -> Mapping[str, int]:
        """For each table of `COUNTED`, no number above this was ever given out."""
        ...


class NewTables(Tables, Protocol):
    """The tables of a database that is to be filled."""

    def holds(self, table: Table) -> bool:
        """Whether there is any row."""
        ...

    def write(self, table: Table, rows: Iterable[Row]) -> None:
        """Write rows into an empty table."""
        ...

    def go_on_after(self, newest: Mapping[str, int]) -> None:
        """Have all later numbers of these tables be above those."""
        ...


def copy_all(source: Tables, target: NewTables, tell: Callable[[Progress], None]) -> Copied:
    """Copy all tables, then read them again at the target and compare. Committing is the caller's.

    `tell` may raise to stop it. Raises AlreadyExists for a target that is not empty, CopyDiffers where something else
    came to stand there than was read.
    """
    for table in TABLES:
        if table.name not in ("counts", "lines") and target.holds(table):
            raise AlreadyExists(f"{target.name} is not empty: it has {table.name} already; name one without any")
    read = {table.name: Digest() for table in TABLES}
    for table in TABLES:
        target.write(table, _told("copy", table, read[table.name].of(source.rows(table)), tell))
    target.go_on_after(source.newest())
    for table in TABLES:
        there = Digest()
        for _ in _told("compare", table, there.of(target.rows(table)), tell):
            pass
        compare(table, read[table.name], there, target.name)
    return Copied(source.name, target.name, {name: digest.count for name, digest in read.items()})


def _told(
    step: Literal["copy", "compare"], table: Table, rows: Iterable[Row], tell: Callable[[Progress], None]
) -> Iterator[Row]:
    count = 0
    tell(Progress(step, table.name, 0, is_whole=False))
    for row in rows:
        yield row
        count += 1
        if count % EVERY == 0:
            tell(Progress(step, table.name, count, is_whole=False))
    tell(Progress(step, table.name, count, is_whole=True))


@dataclass(slots=True)
class Digest:
    """How many rows went by, and what tells them, in their order, from any others."""

    count: int = 0
    _hash: Any = field(default_factory=hashlib.sha256)

    @property
    def hex(self) -> str:
        """The digest of all that went by."""
        return str(self._hash.hexdigest())

    def of(self, rows: Iterable[Row]) -> Iterator[Row]:
        """These rows, taken in as they go by."""
        update, dumps = self._hash.update, orjson.dumps
        for row in rows:
            update(dumps(row, _of_bytes))
            self.count += 1
            yield row


def _of_bytes(content: object) -> str:
    assert isinstance(content, bytes)
    return hashlib.sha256(content).hexdigest()


def compare(table: Table, read: Digest, there: Digest, name: str) -> None:
    """Raise CopyDiffers unless the same rows were read there as went in."""
    if read.count != there.count:
        raise CopyDiffers(
            f"{read.count:,} rows of {table.name} were read, and {there.count:,} are in {name} now; nothing was kept",
            details={"table": table.name, "read": read.count, "there": there.count},
        )
    if read.hex != there.hex:
        raise CopyDiffers(
            f"the rows of {table.name} in {name} are not those that were read; nothing was kept",
            details={"table": table.name, "read": read.hex, "there": there.hex},
        )


def check_known(applied: int, dialect: str, name: str) -> None:
    """Raise StoreNewer for a schema of which this program may not know all tables, be it one that it tolerates."""
    newest = known(dialect)[-1].number
    if applied > newest:
        raise StoreNewer(
            f"{name} has schema {applied}, and this version of Outrider knows only what is in {newest}; copy it with "
            "a later version"
        )


def _table(name: str, key: str, /, **columns: Kind) -> Table:
    return Table(name, key.split(), columns)


TABLES = (
    _table(
        "sessions",
        "number",
        number="number",
        id="text",
        organization_id="text",
        root_session_id="text",
        parent_session_id="text",
        parent_task_id="text",
        agent="text",
        title="text",
        labels="text",
        driver_task_id="text",
        first_seq="number",
        seq="number",
        tail="number",
        transcript="number",
        inbox="number",
        created_at="number",
        updated_at="number",
        budget="text",
        closed_at="number",
        forked_from="text",
    ),
    _table(
        "tasks",
        "number",
        number="number",
        id="text",
        session="number",
        organization_id="text",
        root_session_id="text",
        parent_task_id="text",
        kind="text",
        route="text",
        priority="number",
        concurrency_key="text",
        idempotency_key="text",
        debounce_key="text",
        detached="truth",
        created_at="number",
        state="text",
        version="number",
        attempt="number",
        failures="number",
        worker_id="text",
        attempt_started_at="number",
        due_at="number",
        readiness="text",
        next_deadline_at="number",
        started_at="number",
        finished_at="number",
        finished_by="number",
        updated_at="number",
        blocked_by="text",
        rank="number",
        core="text",
        outcome="text",
        live="text",
        active_at="number",
        active_attempt="number",
    ),
    _table("inputs", "task", task="number", data="text"),
    _table("counts", "state", state="text", tasks="number"),
    _table(
        "events",
        "position",
        position="number",
        session="number",
        seq="number",
        task="number",
        type="text",
        at="number",
        data="text",
    ),
    _table("follow_ups", "id", id="number", task_id="text", event="json"),
    _table("watches", "number", number="number", awaited="text", watcher="text"),
    _table(
        "steps",
        "number",
        number="number",
        task="number",
        position="text",
        ordinal="number",
        verb="text",
        attempt="number",
        created_at="number",
        done="truth",
        value="text",
    ),
    _table(
        "attempts",
        "task attempt",
        task="number",
        attempt="number",
        worker_id="text",
        started_at="number",
        ended_at="number",
        ending="text",
        error="text",
    ),
    _table("requests", "number", number="number", id="text", task="number", data="json"),
    _table("messages", "number", number="number", id="text", task="number", direction="text", data="json"),
    _table(
        "files",
        "folder path",
        folder="number",
        path="text",
        media_type="text",
        size="number",
        created_at="number",
        task_id="text",
        content="bytes",
    ),
    _table("outputs", "task", task="number", first="number", next="number"),
    _table(
        "output",
        "number",
        number="number",
        task="number",
        start="number",
        size="number",
        stream="text",
        at="number",
        text="words",
    ),
    _table(
        "transcript",
        "session number",
        session="number",
        number="number",
        task_id="text",
        iteration="number",
        message="text",
    ),
    _table(
        "inbox",
        "session task_id",
        session="number",
        task_id="text",
        seq="number",
        reason="text",
        body="json",
        created_at="number",
        leased_until="number",
        deliveries="number",
    ),
    _table("limits", "key", key="text", capacity="number", rate="number", span="number"),
    _table("rates", "key", key="text", spent="json", opens_at="number"),
    _table("meters", "name", name="text", state="text"),
    _table("reservations", "task attempt ordinal", task="number", attempt="number", ordinal="number", amounts="text"),
    _table("lines", "owner route", owner="text", route="text", place="number"),
    _table(
        "grants",
        "session_id tool",
        session_id="text",
        tool="text",
        is_allowed="flag",
        at="number",
        by="text",
        via="text",
        task_id="text",
    ),
    _table(
        "documents",
        "collection id",
        collection="text",
        id="text",
        organization_id="text",
        key="text",
        due_at="number",
        version="number",
        data="text",
    ),
    _table("pauses", "scope name", scope="text", name="text", at="number", by="text", reason="text", is_over="flag"),
)
