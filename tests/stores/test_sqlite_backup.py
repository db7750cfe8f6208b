"""Backup and restore of a database that real processes work on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path

import pytest

from outrider import Outrider, TaskContext
from outrider.bootstrap import restore
from outrider.core.errors import (
    InvalidArguments,
    NotFound,
    StoreCorrupt,
    StoreError,
    StoreForeign,
    StoreLocked,
    StoreNewer,
)
from outrider.runtime.facade import Runtime

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
app = Outrider()


async def one() -> int:
    return 1


@app.tool
async def count(task: TaskContext, upto: int) -> int:
    """Many steps, then a question."""
    total = 0
    for n in range(upto):
        total += await task.step(f"step {n}", one)
    return total if await task.ask("Enough?", bool) else 0


@app.tool
async def nothing(task: TaskContext) -> None:
    await asyncio.sleep(0)


PROGRAM = """
import asyncio, json, sys
from tests.stores.test_sqlite_backup import app

async def main(path):
    async with app.open(path, concurrency=20) as outrider:
        session = await outrider.sessions.create(id="session_busy")
        while True:
            made = await session.spawn_many("nothing", [{}] * 20)
            print(json.dumps([task.id for task in made]), flush=True)

asyncio.run(main(sys.argv[1]))
"""


@asynccontextmanager
async def busy(path: Path) -> AsyncIterator[tuple[list[str], asyncio.subprocess.Process]]:
    """A process with a worker that makes and runs tasks as fast as it can, and the ids it was told are durable."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(path), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    ids: list[str] = []

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            ids.extend(json.loads(line))

    reading = asyncio.create_task(read())
    try:
        yield ids, process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def until(fact: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not (found if isinstance(found := fact(), bool) else await found):  # noqa: ASYNC110 - of other processes
            await asyncio.sleep(0.01)


def _has(ids: list[str], count: int) -> bool:
    return len(ids) > count


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute(sql).fetchall()


def folder(path: Path) -> set[str]:
    return {each.name for each in path.iterdir()}


@asynccontextmanager
async def looking(path: Path) -> AsyncIterator[Runtime]:
    async with app.open(str(path), worker=False) as runtime:
        yield runtime


@pytest.fixture
async def saved(tmp_path: Path) -> Path:
    """A backup with one task that asks."""
    async with app.open(str(tmp_path / "first.db")) as runtime:
        task = await (await runtime.sessions.create()).spawn("count", upto=3)
        await task.wait(on_question=True, timeout=60)
        await runtime.backup(tmp_path / "saved")
    return tmp_path / "saved"


# --- saving ----------------------------------------------------------------------------------------------


async def test_a_backup_of_a_busy_database_is_sound_and_holds_all_that_was_acknowledged_before(tmp_path: Path):
    path = tmp_path / "work.db"
    async with busy(path) as (ids, _), looking(path) as runtime:
        await until(lambda: len(ids) > 200)
        for nth in range(3):
            known, more = set(ids), len(ids) + 100
            done = await runtime.backup(tmp_path / f"saved-{nth}")
            assert rows(Path(done.path), "pragma integrity_check") == [("ok",)]
            found = {row[0] for row in rows(Path(done.path), "select id from tasks")}
            assert known <= {str(each) for each in found}
            assert done.tasks == len(found)
            assert done.size == Path(done.path).stat().st_size
            await until(partial(_has, ids, more))  # whoever writes went on
    assert {name for name in folder(tmp_path) if name.startswith((".", "saved"))} == {"saved-0", "saved-1", "saved-2"}


async def test_a_restored_database_goes_on_with_what_was_held_when_it_was_saved(tmp_path: Path):
    path = tmp_path / "work.db"
    async with busy(path) as (ids, _), looking(path) as runtime:
        await until(lambda: len(ids) > 100)
        while True:  # until something is held in the very moment
            done = await runtime.backup(tmp_path / "saved", replace=True)
            held = [row[0] for row in rows(tmp_path / "saved", "select id from tasks where worker_id is not null")]
            if held:
                break
    there = len(rows(path, "select id from tasks"))
    put = await restore(tmp_path / "saved", str(path))
    assert put.tasks == done.tasks < there
    assert put.before is not None
    assert len(rows(put.before, "select id from tasks")) == there
    async with app.open(str(path)) as runtime:

        async def all_ended() -> bool:
            return all(
                state == "succeeded" or not count
                for state, count in (await runtime.ledger.views.count_by_state()).items()
            )

        await until(all_ended)
        assert len(rows(path, "select id from tasks")) == done.tasks


async def test_a_task_that_asked_when_it_was_saved_can_be_answered_after(tmp_path: Path, saved: Path):
    target = tmp_path / "elsewhere" / "second.db"
    put = await restore(saved, f"sqlite:///{target}")
    assert put.before is None
    async with app.open(str(target)) as runtime:
        (record,) = await runtime.tasks.list()
        task = await runtime.task(record.id)
        await task.answer(True)
        assert await task.result(timeout=60) == 3
        assert len([step for step in await task.steps() if step.verb == "step"]) == 3


async def test_a_backup_replaces_nothing_unless_told_to(tmp_path: Path, saved: Path):
    before = saved.read_bytes()
    async with looking(tmp_path / "other.db") as runtime:
        with pytest.raises(InvalidArguments, match="exists already"):
            await runtime.backup(saved)
        assert saved.read_bytes() == before
        done = await runtime.backup(saved, replace=True)
        assert done.tasks == 0
        for nonsense in (tmp_path / "other.db", tmp_path / "other.db-wal", tmp_path, tmp_path / "no" / "folder"):
            with pytest.raises(InvalidArguments):
                await runtime.backup(nonsense, replace=True)
        await runtime.sessions.create()  # it is all right still
    async with app.open("memory://", worker=False) as runtime:
        with pytest.raises(InvalidArguments, match="no file"):
            await runtime.backup(tmp_path / "memory")


async def test_a_backup_that_is_cut_short_leaves_no_file(tmp_path: Path, saved: Path):
    code = (
        "import sys, os, pathlib\n"
        "from outrider.stores.sqlite import backup\n"
        "backup._sync = lambda path: os.kill(os.getpid(), 9)\n"
        "backup.save(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
    )
    target = tmp_path / "never"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "first.db"), str(target)])
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert list(tmp_path.glob(".never.*.part"))


async def test_the_next_backup_takes_away_what_a_killed_one_has_left_and_nothing_that_is_being_written(
    tmp_path: Path, saved: Path
):
    code = (
        "import sys, os, pathlib, signal\n"
        "from outrider.stores.sqlite import backup\n"
        "def sync(path):\n"
        "    print('half', flush=True)\n"
        "    signal.pause()\n"
        "backup._sync = sync\n"
        "backup.save(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
    )
    target = tmp_path / "again"
    command = [sys.executable, "-c", code, str(tmp_path / "first.db"), str(target)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as killed,
        subprocess.Popen(command, stdout=subprocess.PIPE) as alive,
    ):
        for process in (killed, alive):
            assert process.stdout is not None
            assert process.stdout.readline() == b"half\n"
        killed.kill()
        killed.wait()
        async with app.open(str(tmp_path / "first.db"), worker=False) as runtime:
            await runtime.backup(target)
        assert [path.name for path in tmp_path.glob(".again.*.part")] == [f".again.{alive.pid}.part"]
        alive.kill()


async def test_a_copy_is_read_by_nobody_who_may_not_read_the_database(tmp_path: Path, saved: Path):
    path = tmp_path / "first.db"
    path.chmod(0o640)
    async with looking(path) as runtime:
        await runtime.backup(saved, replace=True)
    assert saved.stat().st_mode & 0o777 == 0o640
    path.chmod(0o600)
    await restore(saved, str(path))
    assert path.stat().st_mode & 0o777 == 0o600


# --- restoring -------------------------------------------------------------------------------------------


async def test_a_restore_is_refused_while_a_worker_lives_and_changes_nothing(tmp_path: Path, saved: Path):
    path = tmp_path / "work.db"
    async with busy(path) as (ids, process):
        await until(lambda: len(ids) > 20)
        with pytest.raises(StoreLocked, match="worker_"):
            await restore(saved, str(path))
        more = len(ids) + 100
        await until(lambda: len(ids) > more)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await restore(saved, str(path))
    assert len(rows(path, "select id from tasks")) == 1


async def test_a_restore_is_refused_while_anybody_has_the_database_open(tmp_path: Path, saved: Path):
    path = tmp_path / "work.db"
    async with looking(path) as runtime:
        session = await runtime.sessions.create()
        await runtime.sessions.get(session.id)
        with pytest.raises(StoreLocked, match="open"):
            await restore(saved, str(path))
        await runtime.sessions.get(session.id)
        await runtime.sessions.create()
    assert not [name for name in folder(tmp_path) if name.startswith(".") or "before" in name]
    await restore(saved, str(path))


async def test_what_is_no_sound_backup_is_refused_and_the_database_stays(tmp_path: Path, saved: Path):
    path = tmp_path / "work.db"
    async with looking(path) as runtime:
        await runtime.sessions.create(id="session_mine")
    content = saved.read_bytes()

    def variant(name: str, content: bytes, *sql: str) -> Path:
        made = tmp_path / name
        made.write_bytes(content)
        if sql:
            with closing(sqlite3.connect(made)) as connection:
                for statement in sql:
                    connection.execute(statement)
                connection.commit()
        return made

    newer = "insert into migrations values (9999, 'later', 'x', 0, 1)"
    middle = len(content) // 2
    bad: list[tuple[Path, type[Exception]]] = [
        (tmp_path / "missing", NotFound),
        (path, InvalidArguments),
        (variant("text", b"this is no database at all" * 1000), StoreForeign),
        (variant("foreign", b"", "create table theirs (x)"), StoreForeign),
        (variant("newer", content, newer), StoreNewer),
        (variant("changed", content, "update migrations set checksum = 'x'"), StoreCorrupt),
        (variant("damaged", content[:middle] + os.urandom(8192) + content[middle + 8192 :]), StoreError),
        (variant("short", content[: middle // 4096 * 4096]), StoreError),
    ]
    for source, error in bad:
        with pytest.raises(error):
            await restore(source, str(path))
    with pytest.raises(InvalidArguments):
        await restore(saved, "memory://")
    assert not [name for name in folder(tmp_path) if name.startswith(".") or "before" in name]
    async with looking(path) as runtime:
        assert (await runtime.sessions.get("session_mine")).id == "session_mine"


async def test_a_damaged_database_is_replaced_and_kept_with_all_that_is_beside_it(tmp_path: Path, saved: Path):
    path = tmp_path / "work.db"
    path.write_bytes(b"\0rubbish" * 4096)
    Path(f"{path}-wal").write_bytes(b"what was not yet in it")
    put = await restore(saved, str(path))
    assert put.before is not None
    assert put.before.read_bytes() == b"\0rubbish" * 4096
    assert Path(f"{put.before}-wal").read_bytes() == b"what was not yet in it"
    async with app.open(str(path)) as runtime:
        assert len(await runtime.tasks.list()) == 1


async def test_a_database_of_another_program_is_never_replaced(tmp_path: Path, saved: Path):
    path = tmp_path / "theirs.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("create table theirs (x)")
    before = path.read_bytes()
    with pytest.raises(StoreForeign):
        await restore(saved, str(path))
    assert path.read_bytes() == before
