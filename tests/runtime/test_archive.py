"""The archive: a session goes into it whole or not at all, can be read there, and only then goes from the database."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from outrider import Outrider, SessionHandle, TaskContext
from outrider.core.errors import (
    AlreadyExists,
    InvalidArguments,
    NotEnded,
    NotFound,
    SessionClosed,
    StoreError,
    StoreUnavailable,
)
from outrider.core.session import NewSession
from outrider.core.values import evolve
from outrider.runtime.bounds import Bounds
from outrider.runtime.pruning import Retention
from outrider.testing import TestRuntime, open_test

pytest.importorskip("obstore", reason="the extra `archive` is not installed")
pytestmark = pytest.mark.anyio

app = Outrider()
DAY = timedelta(days=1)


@app.tool
async def say(task: TaskContext, text: str) -> str:
    return text


@app.tool
async def ask(task: TaskContext) -> bool:
    return await task.ask("Go on?", bool)


@asynccontextmanager
async def opened(folder: Path, **settings: Any) -> AsyncIterator[TestRuntime]:
    async with open_test(app, archive=folder.as_uri(), retention_interval=3600.0, **settings) as runtime:
        yield runtime


async def session_of(runtime: TestRuntime, **given: Any) -> SessionHandle:
    session = await runtime.sessions.create(**given)
    await (await session.spawn(say, text="something")).result()
    await session.write_file("/notes.txt", "all of it")
    await runtime.run_until_idle()
    return session


async def child_of(runtime: TestRuntime, session: SessionHandle) -> SessionHandle:
    """A session that a task of another one opened, with a file in it."""
    (opener,) = await session.tasks()
    new = NewSession(
        "session_child",
        runtime.clock.now(),
        root_session_id=session.id,
        parent_session_id=session.id,
        parent_task_id=opener.id,
    )
    await runtime.services.ledger.create_session(new)
    child = await runtime.sessions.get(new.id)
    await child.write_file("/notes.txt", "all of it")
    return child


async def archive_and_stop_there(runtime: TestRuntime, session: SessionHandle, patch: pytest.MonkeyPatch) -> None:
    """Archive a session and be stopped before any of it is deleted."""

    async def stop(*given: Any, **more: Any) -> Any:
        raise KeyError("killed")

    with patch.context() as here:
        here.setattr(runtime.services.ledger, "prune", stop)
        with pytest.raises(KeyError):
            await runtime.archive.store(session.id)


async def is_there(runtime: TestRuntime, session: SessionHandle) -> bool:
    return await runtime.services.views.session(session.id) is not None


async def test_a_session_is_archived_whole_can_be_read_and_is_gone_from_the_database(tmp_path: Path):
    async with opened(tmp_path / "archive") as runtime:
        session = await session_of(runtime, title="old")
        await session.close()
        exported = [record async for record in session.export()]
        record = await runtime.archive.store(session.id, by="ada")
        assert (record.session_id, record.by) == (session.id, "ada")
        (file,) = (tmp_path / "archive").rglob("*.gz")
        assert file.stat().st_size == record.size
        assert not await is_there(runtime, session)
        read = [record async for record in runtime.archive.read(session.id)]
        assert [{**each, "exported_at": 0} for each in read] == [{**each, "exported_at": 0} for each in exported]
        assert [each.session_id for each in await runtime.archive.list()] == [session.id]
        assert await runtime.archive.delete(session.id)
        assert not list((tmp_path / "archive").rglob("*.gz"))
        assert not await runtime.archive.delete(session.id)
        with pytest.raises(NotFound):
            await runtime.archive.get(session.id)


async def test_what_lives_or_cannot_be_archived_is_refused_and_stays(tmp_path: Path):
    async with opened(tmp_path) as runtime:
        session = await session_of(runtime)
        asking = await session.spawn(ask)
        await runtime.run_until_idle()
        with pytest.raises(NotEnded):
            await runtime.archive.store(session.id)
        await asking.cancel()
        with pytest.raises(NotFound):
            await runtime.archive.store("session_none")
    async with open_test(app) as runtime:
        session = await session_of(runtime)
        with pytest.raises(InvalidArguments):
            await runtime.archive.store(session.id)
        assert await is_there(runtime, session)


async def test_where_the_archive_cannot_be_written_or_something_happens_meanwhile_nothing_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "taken").write_text("no folder")
    async with opened(tmp_path / "taken" / "below") as runtime:
        session = await session_of(runtime)
        with pytest.raises((StoreUnavailable, InvalidArguments)):
            await runtime.archive.store(session.id)
        assert await is_there(runtime, session)
    async with opened(tmp_path / "archive") as runtime:
        session = await session_of(runtime)
        write = runtime.archive._write

        async def write_and_go_on(*given: Any) -> None:
            await write(*given)
            with pytest.raises(SessionClosed):
                await session.spawn(say, text="late")
            await session.write_file("/late.txt", "late")

        monkeypatch.setattr(runtime.archive, "_write", write_and_go_on)
        with pytest.raises(NotEnded):
            await runtime.archive.store(session.id)
        assert (await session.record()).status == "idle"
        assert await session.read_file("/late.txt") == b"late"
        assert await runtime.archive.list() == []
        assert not list((tmp_path / "archive").rglob("*.gz"))


async def test_who_was_stopped_while_a_session_was_deleted_finishes_that_and_writes_nothing_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with opened(tmp_path) as runtime:
        session = await session_of(runtime)
        await (await session.spawn(say, text="another")).result()
        tasks = {task.id for task in await session.tasks()}
        prune = runtime.services.ledger.prune

        async def stop(*given: Any, **more: Any) -> Any:
            await prune([sorted(tasks)[0]])
            raise KeyError("killed")

        monkeypatch.setattr(runtime.services.ledger, "prune", stop)
        with pytest.raises(KeyError):
            await runtime.archive.store(session.id)
        monkeypatch.undo()
        assert len(await session.tasks()) == 1
        await runtime.archive.store(session.id)
        assert not await is_there(runtime, session)
        read = [record async for record in runtime.archive.read(session.id)]
        assert {record["id"] for record in read if record["record"] == "task"} == tasks


async def test_what_was_reopened_while_it_was_deleted_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with opened(tmp_path) as runtime:
        session = await session_of(runtime)
        await archive_and_stop_there(runtime, session, monkeypatch)
        await session.reopen()
        late = await session.spawn(say, text="late")
        await late.result()
        with pytest.raises(NotEnded):
            await runtime.archive.store(session.id)
        assert late.id in {task.id for task in await session.tasks()}
        with pytest.raises(AlreadyExists):
            await runtime.archive.store(session.id)
        assert await is_there(runtime, session)


@pytest.mark.parametrize("below", [False, True])
async def test_a_file_that_comes_after_a_session_was_archived_is_not_deleted_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: bool
):
    async with opened(tmp_path) as runtime:
        session = await session_of(runtime)
        there = await child_of(runtime, session) if below else session
        prune = runtime.services.ledger.prune

        async def late(*given: Any, **more: Any) -> Any:
            await there.write_file("/notes.txt", "more of it")
            return await prune(*given, **more)

        monkeypatch.setattr(runtime.services.ledger, "prune", late)
        with pytest.raises(NotEnded):
            await runtime.archive.store(session.id)
        monkeypatch.undo()
        assert await there.read_file("/notes.txt") == b"more of it"
        assert await is_there(runtime, session)
        with pytest.raises(AlreadyExists):
            await runtime.archive.store(session.id)
        read = [record async for record in runtime.archive.read(session.id)]
        assert sum(record["record"] == "file" and record["path"] == "/notes.txt" for record in read) == 1 + below


async def test_a_file_that_comes_after_who_archived_was_stopped_is_not_deleted_by_who_finishes_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with opened(tmp_path) as runtime:
        session = await session_of(runtime)
        await archive_and_stop_there(runtime, session, monkeypatch)
        await session.write_file("/late.txt", "more of it")
        with pytest.raises(NotEnded):
            await runtime.archive.store(session.id)
        assert await session.read_file("/late.txt") == b"more of it"
        assert await is_there(runtime, session)


async def test_of_several_who_archive_at_once_one_does_and_the_file_is_whole(tmp_path: Path):
    async with opened(tmp_path) as runtime:
        session = await session_of(runtime)
        tasks = {task.id for task in await session.tasks()}
        stores = [runtime.archive.store(session.id) for _ in range(4)]
        done = await asyncio.gather(*stores, return_exceptions=True)
        assert sum(not isinstance(each, BaseException) for each in done) >= 1
        assert not await is_there(runtime, session)
        assert len(list(tmp_path.rglob("*.gz"))) == 1
        read = [record async for record in runtime.archive.read(session.id)]
        assert {record["id"] for record in read if record["record"] == "task"} == tasks


async def test_another_session_of_an_archived_id_is_not_written_over_it(tmp_path: Path):
    async with opened(tmp_path) as runtime:
        session = await session_of(runtime, id="session_daily")
        await runtime.archive.store(session.id)
        again = await session_of(runtime, id="session_daily")
        with pytest.raises(AlreadyExists):
            await runtime.archive.store(again.id)
        assert await is_there(runtime, again)


async def test_a_file_that_is_not_as_it_was_written_is_found_out(tmp_path: Path):
    async with opened(tmp_path) as runtime:
        session = await session_of(runtime)
        await runtime.archive.store(session.id)
        (file,) = tmp_path.rglob("*.gz")
        file.write_bytes(file.read_bytes()[:-20])
        with pytest.raises(StoreError) as damage:
            [record async for record in runtime.archive.read(session.id)]
        assert damage.value.code == "archive_damaged"


async def test_a_policy_archives_sessions_in_which_nothing_has_happened_for_long_and_no_others(tmp_path: Path):
    async with opened(tmp_path, retention=None) as runtime:
        await runtime.retention.set_policy("org_a", age=7 * DAY, archive=True)
        old, pinned = [await session_of(runtime, organization_id="org_a") for _ in range(2)]
        other = await session_of(runtime, organization_id="org_b")
        (task,) = await pinned.tasks()
        await runtime.retention.pin(task.id)
        await runtime.advance(5 * DAY)
        young = await session_of(runtime, organization_id="org_a")
        duty = Retention(runtime.services, "worker_1")
        await duty.look()
        assert await is_there(runtime, old)
        await runtime.advance(3 * DAY)
        for _ in range(3):
            await duty.look()
        there = [await is_there(runtime, each) for each in (old, pinned, other, young)]
        assert there == [False, True, True, True]
        assert [each.session_id for each in await runtime.archive.list(organization_id="org_a")] == [old.id]
        with pytest.raises(InvalidArguments):
            await runtime.retention.set_policy("org_a", age=None, archive=True)


async def test_a_session_that_got_the_id_of_an_archived_one_is_not_taken_for_what_was_left_of_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with opened(tmp_path) as runtime:
        ledger = runtime.services.ledger
        for id, is_of_an_earlier_version in (("session_daily", False), ("session_hourly", True)):
            session, keep = await session_of(runtime, id=id), ledger.keep

            async def keep_the_first(documents: Any, *given: Any, keep: Any = keep) -> Any:
                if documents[0].data["is_left"] is False:
                    raise KeyError("killed")
                return await keep(documents, *given)

            monkeypatch.setattr(ledger, "keep", keep_the_first)
            with pytest.raises(KeyError):
                await runtime.archive.store(id)
            monkeypatch.undo()
            assert not await is_there(runtime, session)
            if is_of_an_earlier_version:
                there = await runtime.services.views.document("archive", id=id)
                assert there is not None
                data = {name: value for name, value in there.data.items() if name != "created_at"}
                assert await ledger.keep([evolve(there, data=data)])
            await runtime.advance(DAY)
            again = await session_of(runtime, id=id)
            await again.close()
            for _ in range(2):
                with pytest.raises(AlreadyExists):
                    await runtime.archive.store(id)
            assert await again.read_file("/notes.txt") == b"all of it"
            assert len(await again.tasks()) == 1


async def test_whatever_ends_it_before_it_is_recorded_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with opened(tmp_path) as runtime:
        ours, theirs = (runtime.within(Bounds(organization_id)) for organization_id in ("org_a", "org_b"))
        await ours.archive.store((await ours.sessions.create(id="session_daily")).id)
        (of_ours,) = tmp_path.rglob("*.gz")
        session = await theirs.sessions.create(id="session_daily")
        with pytest.raises(AlreadyExists):
            await theirs.archive.store(session.id)
        assert (await session.record()).closed_at is None
        assert list(tmp_path.rglob("*.gz")) == [of_ours]

        session = await session_of(runtime)
        write, waits = runtime.archive._write, asyncio.Event()

        async def write_and_wait(*given: Any) -> None:
            await write(*given)
            waits.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(runtime.archive, "_write", write_and_wait)
        storing = asyncio.create_task(runtime.archive.store(session.id))
        await waits.wait()
        storing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await storing
        monkeypatch.undo()
        assert list(tmp_path.rglob("*.gz")) == [of_ours]
        assert (await session.record()).closed_at is None


@pytest.mark.parametrize("was_kept", [False, True])
async def test_the_file_stays_where_it_was_recorded_and_only_the_word_of_that_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was_kept: bool
):
    async with opened(tmp_path) as runtime:
        session = await session_of(runtime)
        keep = runtime.services.ledger.keep

        async def lose_the_answer(*given: Any) -> Any:
            if was_kept:
                await keep(*given)
            raise StoreUnavailable("the connection was lost")

        monkeypatch.setattr(runtime.services.ledger, "keep", lose_the_answer)
        with pytest.raises(StoreUnavailable):
            await runtime.archive.store(session.id)
        monkeypatch.undo()
        assert len(list(tmp_path.rglob("*.gz"))) == was_kept
        await runtime.archive.store(session.id)
        assert not await is_there(runtime, session)
        assert [record["record"] async for record in runtime.archive.read(session.id)][-1] == "end"


async def test_who_is_stopped_while_it_is_recorded_waits_for_how_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with opened(tmp_path) as runtime:
        session = await session_of(runtime)
        keep, waits, goes_on = runtime.services.ledger.keep, asyncio.Event(), asyncio.Event()

        async def keep_late(*given: Any) -> Any:
            waits.set()
            await goes_on.wait()
            return await keep(*given)

        monkeypatch.setattr(runtime.services.ledger, "keep", keep_late)
        storing = asyncio.create_task(runtime.archive.store(session.id))
        await waits.wait()
        for _ in range(2):
            storing.cancel()
            await asyncio.sleep(0)
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await storing
        monkeypatch.undo()
        assert len(list(tmp_path.rglob("*.gz"))) == 1
        await runtime.archive.store(session.id)
        assert not await is_there(runtime, session)
        assert len(list(tmp_path.rglob("*.gz"))) == 1


async def test_a_record_that_was_deleted_while_its_session_was_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with opened(tmp_path) as runtime:
        session = await session_of(runtime)
        prune = runtime.services.ledger.prune

        async def delete_it(*given: Any, **more: Any) -> Any:
            await runtime.archive.delete(session.id)
            return await prune(*given, **more)

        monkeypatch.setattr(runtime.services.ledger, "prune", delete_it)
        await runtime.archive.store(session.id)
        assert await runtime.archive.list() == []


async def test_a_little_file_that_holds_a_great_deal_is_read_in_pieces(tmp_path: Path):
    async with opened(tmp_path) as runtime:
        session = await session_of(runtime)
        for number in range(24):
            await session.write_file(f"/{number}", bytes(1_000_000))
        await runtime.archive.store(session.id)
        tracemalloc.start()
        try:
            sizes = [len(str(record.get("content", ""))) async for record in runtime.archive.read(session.id)]
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert sum(size > 1_000_000 for size in sizes) == 24
        assert most < 30_000_000  # of which the parser takes twelve times the line it is at
