"""The limits of this machine and store, with nothing of Outrider in the way.

`raw_fsync_p50_ms`: append 4 KiB to a file and make it durable. `raw_commits_per_s`: one-row inserts of 64 waiting
callers through a bare group-commit writer. `raw_tasks_per_s`: rows through one bare table, inserted, claimed and
settled in batches of 100, one thread, a commit each. They drift with the machine: measure them next to every round.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Protocol

KEYS = ("raw_fsync_p50_ms", "raw_commits_per_s", "raw_tasks_per_s")

CALLERS = 64
COMMITS = 20_000
BATCH = 100
FSYNCS = 100


def limits(store: str, directory: Path, tasks: int, server: str | None = None) -> Mapping[str, float | None]:
    """Measure the limits of a store in a new directory; `tasks` rows go through the bare table. Takes seconds."""
    directory.mkdir(parents=True)
    match store:
        case "sqlite":
            return {
                "raw_fsync_p50_ms": _fsync_p50_ms(directory / "fsync"),
                "raw_commits_per_s": _commits_per_s(_Sqlite(directory / "commits.db")),
                "raw_tasks_per_s": _tasks_per_s(_Sqlite(directory / "tasks.db"), tasks),
            }
        case "memory":
            return {
                "raw_fsync_p50_ms": None,
                "raw_commits_per_s": _commits_per_s(_Memory()),
                "raw_tasks_per_s": _tasks_per_s(_Memory(), tasks),
            }
        case "postgres":
            from benchmarks.bare_postgres import Postgres

            assert server is not None
            return {
                "raw_fsync_p50_ms": _fsync_p50_ms(directory / "fsync"),
                "raw_commits_per_s": _commits_per_s(Postgres(server)),
                "raw_tasks_per_s": _tasks_per_s(Postgres(server), tasks),
            }
    raise SystemExit(f"benchmarks: there is no store {store}")


class _Bare(Protocol):
    """The barest form of a store: one table, whose rows are waiting, taken or done. Every call is a commit."""

    def insert(self, rows: list[str]) -> None: ...

    def claim(self, limit: int) -> list[int]: ...

    def settle(self, ids: list[int]) -> None: ...

    def count_done(self) -> tuple[int, int]:
        """How many rows are done, and how many there are."""
        ...

    def close(self) -> None: ...


class _Sqlite:
    """A bare table in SQLite, as durable as Outrider's own: WAL and `synchronous=FULL`."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("pragma journal_mode=wal").fetchall()
        self._db.execute("pragma synchronous=full")
        self._db.execute("create table bare (id integer primary key, state text not null, body text not null)")
        self._db.execute("create index bare_waiting on bare (id) where state = 'waiting'")

    def insert(self, rows: list[str]) -> None:
        self._db.execute("begin immediate")
        self._db.executemany("insert into bare (state, body) values ('waiting', ?)", [(row,) for row in rows])
        self._db.execute("commit")

    def claim(self, limit: int) -> list[int]:
        self._db.execute("begin immediate")
        ids = [
            id
            for (id,) in self._db.execute(
                "update bare set state = 'taken' where id in "
                "(select id from bare where state = 'waiting' order by id limit ?) returning id",
                (limit,),
            )
        ]
        self._db.execute("commit")
        return ids

    def settle(self, ids: list[int]) -> None:
        self._db.execute("begin immediate")
        self._db.executemany("update bare set state = 'done' where id = ?", [(id,) for id in ids])
        self._db.execute("commit")

    def count_done(self) -> tuple[int, int]:
        done, every = self._db.execute("select sum(state = 'done'), count(*) from bare").fetchone()
        return done or 0, every

    def close(self) -> None:
        self._db.close()


class _Memory:
    """A bare table in a dictionary: what the language alone can do."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[str, str]] = {}
        self._waiting: dict[int, None] = {}

    def insert(self, rows: list[str]) -> None:
        for row in rows:
            id = len(self._rows)
            self._rows[id] = ("waiting", row)
            self._waiting[id] = None

    def claim(self, limit: int) -> list[int]:
        ids = [id for id, _ in zip(self._waiting, range(limit), strict=False)]
        for id in ids:
            del self._waiting[id]
            self._rows[id] = ("taken", self._rows[id][1])
        return ids

    def settle(self, ids: list[int]) -> None:
        for id in ids:
            self._rows[id] = ("done", self._rows[id][1])

    def count_done(self) -> tuple[int, int]:
        return sum(state == "done" for state, _ in self._rows.values()), len(self._rows)

    def close(self) -> None:
        self._rows.clear()


def _fsync_p50_ms(path: Path) -> float:
    spans = []
    with path.open("wb", buffering=0) as file:
        for _ in range(FSYNCS):
            file.write(bytes(4096))
            started = time.perf_counter()
            os.fsync(file.fileno())
            spans.append(time.perf_counter() - started)
    return sorted(spans)[len(spans) // 2] * 1e3


def _tasks_per_s(bare: _Bare, tasks: int) -> float:
    with closing(bare):
        started = time.perf_counter()
        for first in range(0, tasks, BATCH):
            bare.insert(["x" * 100] * min(BATCH, tasks - first))
        while ids := bare.claim(BATCH):
            bare.settle(ids)
        spent = time.perf_counter() - started
        if bare.count_done() != (tasks, tasks):
            raise SystemExit("benchmarks: the bare table lost rows; the limits mean nothing")
    return tasks / spent


def _commits_per_s(bare: _Bare) -> float:
    # A loop that keeps letting go of the interpreter starves other threads at the usual 5 ms; the store lowers it too.
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    try:
        with closing(bare):
            spent = asyncio.run(_commit_from_callers(bare))
            if bare.count_done()[1] != COMMITS:
                raise SystemExit("benchmarks: the bare writer lost rows; the limits mean nothing")
    finally:
        sys.setswitchinterval(usual)
    return COMMITS / spent


async def _commit_from_callers(bare: _Bare) -> float:
    loop = asyncio.get_running_loop()
    writer = _GroupCommit(bare, loop)
    left = iter(range(COMMITS))

    async def call() -> None:
        for number in left:
            await writer.insert(str(number))

    started = time.perf_counter()
    try:
        await asyncio.gather(*(call() for _ in range(CALLERS)))
        return time.perf_counter() - started
    finally:
        writer.stop()


class _GroupCommit:
    """One thread that commits together whatever queued up while it committed the last."""

    def __init__(self, bare: _Bare, loop: asyncio.AbstractEventLoop) -> None:
        self._bare, self._loop = bare, loop
        self._waiting: queue.SimpleQueue[tuple[str, asyncio.Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def insert(self, row: str) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.put((row, future))
        return future

    def stop(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _write(self) -> None:
        going_on = True
        while going_on:
            group = [self._waiting.get()]
            while not self._waiting.empty():
                group.append(self._waiting.get())
            entries = [entry for entry in group if entry is not None]
            going_on = len(entries) == len(group)
            self._bare.insert([row for row, _ in entries])
            self._loop.call_soon_threadsafe(_resolve, [future for _, future in entries])


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
