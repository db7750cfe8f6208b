"""Reading: events exactly once from any place, whole records on the way, files that stay in their session."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from outrider import Outrider, State, TaskContext, TaskHandle
from outrider.core.errors import InvalidArguments, InvalidPath, NotFound, TaskFailed
from outrider.core.events import Step
from outrider.runtime.clock import as_datetime
from outrider.runtime.records import EventRecord
from outrider.testing import Store, TestRuntime, open_test

pytestmark = pytest.mark.anyio


def telling(app: Outrider) -> None:
    @app.tool
    async def tells(task: TaskContext, n: int) -> int:
        for step in range(3):
            task.progress(step, total=3)
            task.output(f"{n}.{step}\n")
            await task.step(f"{step}", asyncio.sleep, 0)
            await task.sleep(1)
        await task.post("done")
        await task.ask("Fine?", bool, deadline=60, default=True)
        return n


async def told(runtime: TestRuntime, count: int = 3) -> tuple[Any, list[TaskHandle]]:
    session = await runtime.sessions.create()
    handles = await session.spawn_many("tells", [{"n": n} for n in range(count)])
    await runtime.advance(100)
    assert [await handle.result() for handle in handles] == list(range(count))
    return session, handles


async def read(session: Any, after: int, upto: int) -> list[EventRecord]:
    found: list[EventRecord] = []
    async for event in session.events(after=after):
        found.append(event)
        if event.seq >= upto:
            break
    return found


async def test_events_are_read_from_any_place_each_exactly_once(store: Store):
    app = Outrider()
    telling(app)
    async with open_test(app, store=store) as runtime:
        session, _ = await told(runtime)
        last = (await session.record()).last_seq
        everything = await read(session, 0, last)
        assert [event.seq for event in everything] == list(range(1, last + 1))
        for after in range(0, last, 3):
            assert await read(session, after, last) == everything[after:], f"from {after} on"


async def test_records_on_the_way_are_whole_and_the_last_is_the_record_itself(store: Store):
    app = Outrider()
    telling(app)
    async with open_test(app, store=store) as runtime:
        _, handles = await told(runtime)
        for handle in handles:
            events = [event async for event in handle.events()]
            assert events[0].type == "task.created"
            assert events[0].task is not None
            assert events[0].task.state is State.QUEUED
            records = [event.task for event in events if event.task is not None]
            assert {record.state for record in records} >= {State.QUEUED, State.RUNNING, State.AWAITING_INPUT}
            assert all(record.spec["arguments"] == events[0].task.spec["arguments"] for record in records)
            now = await handle.record()
            assert records[-1].model_dump(exclude={"heartbeat_at", "checkpoint"}) == now.model_dump(
                exclude={"heartbeat_at", "checkpoint"}
            )
            middle = events[len(events) // 2].seq
            assert [event async for event in handle.events(after=middle)] == [e for e in events if e.seq > middle]


async def test_whoever_follows_hears_everything_as_it_comes_and_an_end(store: Store):
    app = Outrider()
    telling(app)
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("tells", n=1)

        async def follow() -> list[EventRecord]:
            return [event async for event in handle.events()]

        async def follow_output() -> str:
            return "".join([piece.text async for piece in handle.output()])

        following = [asyncio.create_task(follow()) for _ in range(3)]
        output = asyncio.create_task(follow_output())
        await runtime.advance(100)
        heard = [await each for each in following]
        assert heard[0] == heard[1] == heard[2] == [event async for event in handle.events()]
        assert await output == "1.0\n1.1\n1.2\n"
        assert heard[0][-1].task is not None
        assert heard[0][-1].task.is_terminal


async def test_heartbeats_and_steps_are_no_events():
    app = Outrider()

    @app.tool
    async def quiet(task: TaskContext) -> None:
        for n in range(10):
            task.heartbeat()
            await task.step(str(n), asyncio.sleep, 0)

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("quiet")
        await runtime.run_until_idle()
        assert [event.type async for event in handle.events()] == ["task.created", "task.updated", "task.updated"]


# --- the record --------------------------------------------------------------------------------------


async def test_a_record_tells_where_it_would_resume_and_who_held_it(store: Store):
    app = Outrider()

    @app.tool
    async def works(task: TaskContext) -> None:
        await task.step("first", asyncio.sleep, 0)
        await task.sleep(10)
        await task.step("second", asyncio.sleep, 0)

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("works")
        await runtime.run_until_idle()
        record = await handle.record()
        assert record.checkpoint is not None
        assert record.checkpoint.step == "sleep:1"
        await runtime.advance(10)
        record = await handle.record()
        assert record.checkpoint is not None
        assert record.checkpoint.step == "second"
        attempts = await handle.attempts()
        assert [(each.attempt, each.ending) for each in attempts] == [(1, "parked"), (2, "succeeded")]
        assert all(each.worker_id == runtime._crews[0].worker.id for each in attempts)
        assert [step.position for step in await handle.steps()] == ["first", "sleep:1", "second"]


async def test_a_record_is_made_without_reading_what_the_steps_returned(store: Store, monkeypatch: pytest.MonkeyPatch):
    app = Outrider()

    @app.tool
    async def works(task: TaskContext) -> None:
        await task.step("heavy", lambda: "x" * 100_000)

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("works")
        await runtime.run_until_idle()
        views, read = handle._services.views, list[Step]()
        real = views.steps

        async def steps(task_id: str, **how: Any) -> Sequence[Step]:
            found = await real(task_id, **how)
            read.extend(found)
            return found

        monkeypatch.setattr(views, "steps", steps)
        for record in (await handle.record(), await handle.wait()):
            assert record.checkpoint is not None
            assert record.checkpoint.step == "heavy"
        assert [step.position for step in await handle.steps()] == ["heavy"]
        assert [(step.position, step.value) for step in read] == [("heavy", None)] * 3


async def test_a_list_tells_who_is_alive_and_leaves_the_checkpoint_out(store: Store):
    app = Outrider()

    @app.tool
    async def works(task: TaskContext) -> None:
        await task.step("first", asyncio.sleep, 0)
        await task.step("second", asyncio.Event().wait)

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("works")
        await runtime.until(lambda: runtime.writes == 1)
        (worker,) = await runtime.services.views.workers()
        (listed,) = await session.tasks()
        record = await handle.record()
        assert listed.heartbeat_at == as_datetime(worker.beat_at) == record.heartbeat_at
        assert (listed.checkpoint, record.checkpoint and record.checkpoint.step) == (None, "first")
        await handle.cancel()
        await runtime.run_until_idle()
        (listed,) = await session.tasks(states=(State.CANCELED,))
        assert listed.heartbeat_at is None


# --- files -------------------------------------------------------------------------------------------

ESCAPES = [
    "",
    "/",
    "..",
    "/..",
    "../x",
    "/a/../../b",
    "/a/./b",
    "/a//b",
    "a\\b",
    "/a\x00b",
    "/a\nb",
    "/" + "x" * 600,
    "/\ud800",
    "/.tasks/task_other/result.json",
]


@pytest.mark.parametrize("path", ESCAPES, ids=repr)
async def test_paths_cannot_leave_the_session_or_enter_another_tasks_folder(path: str):
    app = Outrider()
    seen: list[str] = []

    @app.tool
    async def writes(task: TaskContext) -> None:
        for verb in (
            lambda: task.files.write(path, "x"),
            lambda: task.artifact("name", "x", path=path, position="with path"),
            lambda: task.files.read(path),
        ):
            try:
                await verb()
            except (InvalidPath, NotFound) as error:
                seen.append(error.code)

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        with pytest.raises(InvalidPath):
            await session.write_file(path, "x")
        with pytest.raises((InvalidPath, NotFound)):
            await session.read_file(path)
        handle = await session.spawn("writes")
        await runtime.run_until_idle()
        assert (await handle.record()).state is State.SUCCEEDED, (await handle.record()).error
        assert seen[:2] == ["invalid_path", "invalid_path"]
        assert len(seen) == 3
        assert await session.files() == []


async def test_the_name_of_an_artifact_cannot_escape_either():
    app = Outrider()

    @app.tool
    async def writes(task: TaskContext, name: str) -> None:
        await task.artifact(name, "x")

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        for name in ("../../x", "/../x", "a/../../x"):
            handle = await session.spawn("writes", name=name)
            await runtime.run_until_idle()
            record = await handle.record()
            assert record.error is not None
            assert record.error.kind == "rejected"
        assert await session.files() == []


@pytest.mark.parametrize("how", ["name", "path", "file"])
async def test_nothing_can_be_written_where_the_result_will_stand(how: str):
    app = Outrider()

    @app.tool(max_failures=1)
    async def writes(task: TaskContext) -> str:
        path = f".tasks/{task.id}/result.json"
        match how:
            case "name":
                await task.artifact("result.json", "x")
            case "path":
                await task.artifact("mine", "x", path=path)
            case _:
                await task.files.write(path, "x")
        return "written"

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("writes")
        await runtime.run_until_idle()
        with pytest.raises(TaskFailed) as failed:
            await handle.result()
        assert (failed.value.details or {})["code"] == "invalid_path"
        assert await session.files() == []


async def test_files_are_written_read_listed_and_deleted(store: Store):
    app = Outrider()

    @app.tool
    async def writes(task: TaskContext) -> list[str]:
        path = await task.files.write("notes/a.txt", "text")
        await task.files.write("/data.bin", b"\x00\xff", "application/x-own")
        await task.artifact("report.md", "# Report")
        await task.artifact("site", url="https://example.org/", type="link")
        own = f"/.tasks/{task.id}/scratch"
        await task.files.write(own, "mine")
        assert await task.files.read_text("/notes/a.txt") == "text"
        assert await task.files.read_text(own) == "mine"
        return [path, *(file.path for file in await task.files.list("/notes"))]

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        await session.write_file("/given.txt", "given")
        handle = await session.spawn("writes")
        await runtime.run_until_idle()
        assert await handle.result() == ["/notes/a.txt", "/notes/a.txt"]
        files = {file.path: (file.media_type, file.size) for file in await session.files()}
        assert files["/notes/a.txt"] == ("text/plain", 4)
        assert files["/data.bin"] == ("application/x-own", 2)
        assert files[f"/.tasks/{handle.id}/report.md"] == ("text/markdown", 8)
        record = await handle.record()
        assert [(artifact.name, artifact.path, artifact.url) for artifact in record.artifacts] == [
            ("report.md", f"/.tasks/{handle.id}/report.md", None),
            ("site", None, "https://example.org/"),
        ]
        assert await session.delete_file("/given.txt")
        assert not await session.delete_file("/given.txt")
        with pytest.raises(NotFound):
            await session.read_file("/given.txt")
        other = await runtime.sessions.create()
        assert await other.files() == []


async def test_tasks_are_filtered_by_states_named_as_text_or_refused():
    async with Outrider().open("memory://", worker=False) as outrider:
        assert await outrider.tasks.list(states=["running", State.QUEUED]) == []
        assert await outrider.tasks.list(states="running") == []
        with pytest.raises(InvalidArguments, match="awaiting_input"):
            await outrider.tasks.list(states=["asleep"])
