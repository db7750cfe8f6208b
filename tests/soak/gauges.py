"""What is measured: memory, descriptors, threads and children of processes, rows and bytes of a database, leftovers.

All of it is read from outside, of the kernel and of the database; nothing is asked of the program that is measured.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

MIB = 1024 * 1024
GONE = (FileNotFoundError, ProcessLookupError)
TABLES = """
select
    (select coalesce(sum(pg_table_size(relid)), 0)::bigint from pg_stat_user_tables),
    (select coalesce(sum(pg_indexes_size(relid)), 0)::bigint from pg_stat_user_tables),
    (select coalesce(sum(n_live_tup), 0)::bigint from pg_stat_user_tables),
    (select coalesce(sum(n_dead_tup), 0)::bigint from pg_stat_user_tables)
"""
"""What to ask PostgreSQL for: the bytes of tables and of their indexes, the rows that live there, and the dead."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """A process at one moment. `rss` in bytes, without what it shares with others as files."""

    rss: int
    descriptors: int
    threads: int


def vitals(pid: int) -> Vitals | None:
    """Those of a process, None when it is gone."""
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        return Vitals(int(status["RssAnon"].split()[0]) * 1024, descriptors, int(status["Threads"]))
    except (*GONE, KeyError):
        return None


def descriptors_of(pid: int) -> list[str]:
    """What a process has open, in words."""
    named = []
    with suppress(*GONE):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with suppress(*GONE):
                named.append(f"{number} -> {os.readlink(f'/proc/{pid}/fd/{number}')}")
    return sorted(named, key=lambda each: int(each.split()[0]))


def processes_of(token: str, folder: Path) -> dict[int, str]:
    """All living processes that have the token in their environment, work in the folder, or name it; how each began."""
    found = {}
    for pid in _pids():
        if pid == os.getpid():
            continue
        with suppress(*GONE, PermissionError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            where = os.readlink(f"/proc/{pid}/cwd")
            if token.encode() in environment or os.fsencode(folder) in command or Path(where).is_relative_to(folder):
                found[pid] = command.replace(b"\0", b" ").decode(errors="replace").strip()[:300]
    return found


def children_of(parents: Iterable[int]) -> dict[int, tuple[int, str]]:
    """The children of processes: of each its parent, and its state as the kernel calls it (`Z` for a zombie)."""
    wanted, found = set(parents), {}
    for pid in _pids():
        with suppress(*GONE):
            state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) in wanted:
                found[pid] = (int(parent), state)
    return found


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def rows(database: Path) -> dict[str, int]:
    """How many rows each table has."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        names = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        return {name: connection.execute(f"select count(*) from {name}").fetchone()[0] for name in names}


def size_of(*paths: Path) -> int:
    """Bytes of files; one that is not there has none."""
    total = 0
    for path in paths:
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The rise of a straight line through points of seconds and values, an hour."""
    if len(points) < 2:
        return 0.0
    middle = sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
    spread = sum((x - middle[0]) ** 2 for x, _ in points)
    return 3600 * sum((x - middle[0]) * (y - middle[1]) for x, y in points) / spread if spread else 0.0


def risen(values: Sequence[float]) -> float:
    """How much higher the last values are than the first: medians of a third of them each."""
    part = max(1, len(values) // 3)
    return median(values[-part:]) - median(values[:part])
