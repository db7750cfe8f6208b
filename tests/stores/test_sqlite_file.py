"""What can be wrong with a database file: each has its own error that names the path, and nothing that was
acknowledged is lost."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from outrider.core.errors import (
    InvalidArguments,
    StoreCorrupt,
    StoreError,
    StoreForeign,
    StoreFull,
    StoreLocked,
    StoreNewer,
    StoreReadOnly,
    StoreUnavailable,
)
from outrider.core.events import MessageReceived
from outrider.stores.sqlite import SqliteLedger
from outrider.stores.sqlite.file import DatabaseFile
from outrider.stores.statements import Statements
from tests.stores.scene import Scene

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work.db"


@asynccontextmanager
async def opened(path: Path, lock_timeout: float = 0.2) -> AsyncIterator[Scene]:
    ledger = await SqliteLedger.open(path, lock_timeout=lock_timeout)
    try:
        yield Scene(ledger)
    finally:
        await ledger.close()


async def filled(path: Path, tasks: int = 3) -> None:
    """A database with some acknowledged rows, closed again."""
    async with opened(path) as scene:
        await scene.session()
        for n in range(tasks):
            await scene.create(f"task_{n}")


async def refused(path: Path, kind: type[StoreError]) -> StoreError:
    with pytest.raises(kind, match=re.escape(str(path))) as caught:
        await SqliteLedger.open(path, lock_timeout=0.2)
    assert type(caught.value) is kind
    return caught.value


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may write anything, so be nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def shared_path(tmp_path: Path) -> Path:
    """A path that nobody can reach, in a folder that nobody can write."""
    if os.geteuid() == 0:
        folder = tmp_path
        while folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(0o755)
            folder = folder.parent
    home = tmp_path / "home"
    home.mkdir()
    return home / "work.db"


# --- opening -----------------------------------------------------------------------------------------------


async def test_a_missing_directory_is_created(tmp_path: Path):
    path = tmp_path / "not" / "there" / "yet" / "work.db"
    await filled(path)
    assert path.exists()


async def test_the_path_is_absolute_and_known(path: Path):
    async with opened(path) as scene:
        assert isinstance(scene.ledger, SqliteLedger)
        assert scene.ledger.path == path.absolute()


async def test_an_empty_file_becomes_a_database(path: Path):
    path.touch()
    await filled(path)


async def test_an_empty_database_of_nobody_becomes_ours(path: Path):
    with sqlite3.connect(path) as connection:
        connection.execute("vacuum")
    connection.close()
    await filled(path)


async def test_a_database_is_durable_and_marked_as_ours(path: Path):
    async with opened(path) as scene:
        await scene.session()
        connection = sqlite3.connect(path)
        assert connection.execute("pragma application_id").fetchone() == (0x4F757472,)
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
        connection.close()


async def test_what_was_acknowledged_is_there_after_opening_again(path: Path):
    await filled(path)
    async with opened(path) as scene:
        assert [(await scene.task(f"task_{n}")).id for n in range(3)] == ["task_0", "task_1", "task_2"]
        assert [row.seq for row in await scene.log()] == [1, 2, 3, 4]


async def test_closing_waits_for_the_read_under_way(path: Path):
    """SQLite crashes the process when a connection is closed under a thread that reads."""
    ledger = await SqliteLedger.open(path)
    begun = threading.Event()

    def close() -> None:
        begun.wait()
        ledger.views.close()

    closing = threading.Thread(target=close)

    def read_slowly(read: Statements) -> Any:
        begun.set()
        closing.join(0.2)
        return read.array("workers")

    closing.start()
    assert ledger.views._now(read_slowly) == []
    closing.join()
    with pytest.raises(StoreUnavailable):
        await ledger.views.workers()
    await ledger.close()


async def test_closing_leaves_all_in_the_one_file(path: Path):
    await filled(path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["work.db", "work.db-lock"]


async def test_an_sqlite_that_is_too_old_is_named(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 37, 2))
    await refused(path, StoreUnavailable)
    assert not path.exists()


async def test_a_directory_is_no_database(tmp_path: Path):
    await refused(tmp_path, StoreUnavailable)


async def test_a_path_through_a_file_is_no_path(tmp_path: Path):
    (tmp_path / "file").write_text("")
    await refused(tmp_path / "file" / "work.db", StoreUnavailable)


@pytest.mark.parametrize("content", [b"hello\n", b"x" * 100_000, b"SQLite format 2\x00" + bytes(4080)])
async def test_a_file_of_something_else_is_refused_and_left_as_it_was(path: Path, content: bytes):
    path.write_bytes(content)
    await refused(path, StoreForeign)
    assert path.read_bytes() == content


async def test_a_database_of_another_program_is_refused_and_left_as_it_was(path: Path):
    connection = sqlite3.connect(path)
    connection.execute("create table bookmarks (url text)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    error = await refused(path, StoreForeign)
    assert "another program" in error.message
    assert path.read_bytes() == before


async def test_a_file_that_may_not_be_written_is_refused(shared_path: Path):
    await filled(shared_path)
    shared_path.chmod(0o444)
    with unprivileged():
        error = await refused(shared_path, StoreReadOnly)
    assert "permission" in error.message


async def test_a_directory_that_may_not_be_written_is_refused(shared_path: Path):
    shared_path.parent.chmod(0o555)
    with unprivileged():
        await refused(shared_path, StoreReadOnly)
        await refused(shared_path.parent / "deeper" / "work.db", StoreReadOnly)


# --- damage ------------------------------------------------------------------------------------------------


def damage(path: Path, start: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xa5" * (path.stat().st_size - start))


async def test_a_database_with_a_damaged_schema_is_refused(path: Path):
    await filled(path)
    damage(path, 100)
    await refused(path, StoreCorrupt)


async def test_a_table_that_somebody_dropped_is_found_out_when_it_is_needed(path: Path):
    await filled(path)
    connection = sqlite3.connect(path)
    connection.execute("drop table steps")
    connection.close()
    async with opened(path) as scene:
        with pytest.raises(StoreCorrupt, match="no such table: steps"):
            await scene.views.steps("task_1")


async def test_damaged_rows_are_found_out_when_they_are_touched(path: Path):
    await filled(path, tasks=50)
    connection = sqlite3.connect(path)
    (page,) = connection.execute("select rootpage from sqlite_schema where name = 'tasks'").fetchone()
    (size,) = connection.execute("pragma page_size").fetchone()
    connection.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * size)
    async with opened(path) as scene:
        with pytest.raises(StoreCorrupt, match=re.escape(str(path))):
            await scene.task("task_1")
        with pytest.raises(StoreCorrupt, match=re.escape(str(path))):
            await scene.create("task_new")


async def test_a_file_cut_short_is_found_out(path: Path):
    await filled(path, tasks=50)
    os.truncate(path, 4096 * 3)
    with pytest.raises(StoreCorrupt):
        async with opened(path) as scene:
            await scene.create("task_new")


# --- a full disk -------------------------------------------------------------------------------------------


def allow_pages(scene: Scene, pages: int) -> None:
    """The nearest thing to a full disk that needs no disk: SQLite answers the same code."""
    assert isinstance(scene.ledger, SqliteLedger)
    scene.ledger._writer._connection.execute(f"pragma max_page_count = {pages}")


async def test_on_a_full_disk_every_caller_is_told_and_nothing_is_half_written(path: Path):
    async with opened(path) as scene:
        await scene.session()
        acknowledged: list[str] = []
        told: list[str] = []
        allow_pages(scene, 80)

        async def create(id: str) -> None:
            try:
                await scene.create(id, spec={"text": "x" * 2000})
                acknowledged.append(id)
            except StoreFull as error:
                told.append(error.message)

        async with anyio.create_task_group() as group:
            for n in range(200):
                group.start_soon(create, f"task_{n:03}")
        with pytest.raises(StoreFull):
            await scene.create("task_huge", spec={"text": "x" * 200_000})
        assert told
        assert all(str(path) in message for message in told)
        assert len(acknowledged) + len(told) == 200
        found = await scene.views.tasks([f"task_{n:03}" for n in range(200)])
        assert sorted(task.id for task in found) == sorted(acknowledged)
        allow_pages(scene, 1_000_000)
        await scene.create("task_after")
        log = [row.seq for row in await scene.log()]
        assert log == list(range(1, len(acknowledged) + 3))


async def test_a_reader_goes_on_while_the_disk_is_full(path: Path):
    async with opened(path) as scene:
        await scene.session()
        await scene.create("task_1")
        allow_pages(scene, 1)
        with pytest.raises(StoreFull):
            await scene.ledger.write_file(scene.file("/large", b"x" * 1_000_000))
        assert (await scene.task("task_1")).id == "task_1"


# --- others ------------------------------------------------------------------------------------------------

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("begin exclusive")
print("held", flush=True)
sys.stdin.read()
"""


async def test_a_lock_kept_by_another_program_is_waited_for_and_then_named(path: Path):
    await filled(path)
    async with opened(path) as scene:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(StoreLocked, match=re.escape(str(path))):
                await scene.create("task_new")
            assert await scene.views.task("task_new") is None
            holder.communicate()
        await scene.create("task_new")


FREEZE = """
import fcntl, sys
lock = open(sys.argv[1] + "-lock", "r+")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


async def test_a_stopped_process_does_not_hold_up_the_others_for_ever(path: Path):
    await filled(path)
    async with opened(path) as scene:
        holder = subprocess.Popen(
            [sys.executable, "-c", FREEZE, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            holder.send_signal(signal.SIGSTOP)
            for _ in range(2):
                with pytest.raises(StoreLocked, match=re.escape("locked for 0.2 s")):
                    await scene.create("task_new")
            holder.kill()
        await scene.create("task_new")
    assert "outrider-lock" not in [thread.name for thread in threading.enumerate()]


async def test_an_abandoned_wait_for_the_lock_lets_go_of_it(path: Path):
    await filled(path)
    with open(f"{path}-lock", "r+b") as lock:
        async with opened(path) as scene, opened(path) as other:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(StoreLocked):
                await scene.create("task_new")
            fcntl.flock(lock, fcntl.LOCK_UN)
            with anyio.fail_after(10):
                await other.create("task_other")
                await scene.create("task_new")


async def test_a_wait_that_ran_out_never_lets_go_of_what_a_later_one_holds(path: Path):
    file = DatabaseFile(path, lock_timeout=0.02)
    connection = file.open()
    with open(f"{path}-lock", "r+b") as lock:
        for _ in range(10):
            fcntl.flock(lock, fcntl.LOCK_EX)
            for _ in range(2):
                with pytest.raises(StoreLocked), file.alone():
                    pass
            file._lock_timeout = 60
            fcntl.flock(lock, fcntl.LOCK_UN)
            with file.alone():
                waiting = [thread for thread in threading.enumerate() if thread.name == "outrider-lock"]
                for thread in waiting:
                    thread.join()
                with pytest.raises(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file._lock_timeout = 0.02
    connection.close()
    file.close()


async def test_a_file_that_is_closed_while_it_waits_for_the_lock_leaves_it_to_others(path: Path):
    await filled(path)
    file = DatabaseFile(path, lock_timeout=0.02)
    with open(f"{path}-lock", "r+b") as lock, open(f"{path}-lock", "r+b") as other:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreLocked):
            file.open()
        (waiting,) = (thread for thread in threading.enumerate() if thread.name == "outrider-lock")
        fcntl.flock(lock, fcntl.LOCK_UN)
        waiting.join()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_a_database_that_was_deleted_while_it_was_open_takes_nothing_more(path: Path):
    async with opened(path) as scene:
        await scene.session()
        path.unlink()
        with pytest.raises(StoreUnavailable, match="deleted or moved"):
            await scene.create("task_1")


async def test_a_database_that_was_replaced_while_it_was_open_takes_nothing_more(path: Path):
    async with opened(path) as scene:
        await scene.session()
        (path.parent / "other").write_bytes(path.read_bytes())
        (path.parent / "other").replace(path)
        with pytest.raises(StoreUnavailable, match="replaced"):
            await scene.create("task_1")


async def test_two_ledgers_of_one_process_share_a_file(path: Path):
    async with opened(path) as one, opened(path) as two:
        await one.session()
        await two.create("task_1")
        await one.create("task_2")
        assert await two.views.task("task_2") is not None
    async with opened(path) as scene:
        assert [row.seq for row in await scene.log()] == [1, 2, 3]


# --- one bad operation among good ones ---------------------------------------------------------------------


async def test_an_operation_that_cannot_be_written_fails_alone(path: Path):
    async with opened(path) as scene:
        await scene.session()
        results: dict[str, object] = {}

        async def create(id: str, priority: int) -> None:
            try:
                results[id] = await scene.create(id, priority=priority)
            except OverflowError as error:
                results[id] = error

        async with anyio.create_task_group() as group:
            for n in range(20):
                group.start_soon(create, f"task_{n:02}", 2**62 if n == 7 else 0)
        assert [id for id, result in sorted(results.items()) if isinstance(result, OverflowError)] == ["task_07"]
        assert [row.seq for row in await scene.log()] == list(range(1, 21))


async def test_what_the_database_itself_refuses_is_a_store_error_of_its_caller(path: Path):
    async with opened(path) as scene:
        await scene.session()
        first = await scene.create("task_1")
        await scene.create("task_2")
        await scene.apply("task_1", MessageReceived(scene.message("tmsg_1", "task_1")))
        with pytest.raises(StoreError, match="refused to write"):
            await scene.apply("task_2", MessageReceived(scene.message("tmsg_1", "task_2")))
        assert (await scene.task("task_2")).core.version == first.core.version


# --- schemas -----------------------------------------------------------------------------------------------


def record(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()


async def test_a_schema_of_a_later_version_is_refused(path: Path):
    await filled(path)
    record(path, "insert into migrations values (99, 'later', 'x', 0, 0)")
    error = await refused(path, StoreNewer)
    assert "schema 99" in error.message


async def test_a_later_schema_that_says_it_may_be_tolerated_is(path: Path):
    await filled(path)
    record(path, "insert into migrations values (99, 'later', 'x', 1, 0)")
    async with opened(path) as scene:
        await scene.create("task_new")


async def test_who_has_it_open_can_see_that_a_later_version_has_moved_the_schema_on(path: Path):
    async with opened(path) as scene:
        number = await scene.views.schema()
        record(path, "insert into migrations values (98, 'harmless', 'x', 1, 0)")
        assert await scene.views.schema() == 98 > number
        record(path, "insert into migrations values (99, 'later', 'x', 0, 0)")
        with pytest.raises(StoreNewer, match="schema 99"):
            await scene.views.schema()


async def test_a_migration_that_was_changed_afterwards_is_noticed(path: Path):
    await filled(path)
    record(path, "update migrations set checksum = 'another'")
    error = await refused(path, StoreCorrupt)
    assert "migration 1" in error.message


async def test_a_database_behind_a_link_is_the_same_one_with_the_same_files_beside_it(path: Path) -> None:
    await filled(path)
    link = path.parent / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(os.path.relpath(path, link.parent))
    ledger = await SqliteLedger.open(link)
    assert ledger.path == path
    with pytest.raises(InvalidArguments, match="belongs to the database itself"):
        await ledger.save(str(link), replace=True)
    await ledger.close()
    assert [each.name for each in link.parent.iterdir()] == ["link.db"], "nothing lies beside the link"


async def test_a_new_database_is_for_its_user_alone_and_one_that_was_made_before_keeps_its_mode(path: Path) -> None:
    async with opened(path):
        assert {each.stat().st_mode & 0o077 for each in path.parent.glob("work.db*")} == {0}
    made = path.with_name("shared.db")
    made.touch()
    made.chmod(0o660)
    async with opened(made):
        modes = {each.name: each.stat().st_mode & 0o777 for each in path.parent.glob("shared.db*")}
        assert modes == dict.fromkeys(["shared.db", "shared.db-lock", "shared.db-shm", "shared.db-wal"], 0o660)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_no_other_user_can_keep_a_private_database_locked(shared_path: Path) -> None:
    async with opened(shared_path):
        with unprivileged(), pytest.raises(PermissionError):
            os.close(os.open(f"{shared_path}-lock", os.O_RDONLY))
