"""A fork goes on from a step of an ended task: what came before is not done, asked or started again."""

from __future__ import annotations

import pytest

from outrider import Failure, Outrider, TaskContext, TaskOptions
from outrider.core.errors import CannotFork, IllegalMove, InvalidArguments, NotFound, TaskFailed, UnknownName
from outrider.runtime.handles import SessionHandle, TaskHandle
from outrider.testing import Reply, Store, TestRuntime, open_test, replies, script

pytestmark = pytest.mark.anyio

app = Outrider()
ran: list[str] = []
is_broken = True


@pytest.fixture(autouse=True)
def clean() -> None:
    global is_broken
    ran.clear()
    is_broken = True


def note(what: str) -> str:
    ran.append(what)
    return what


@app.tool
async def book(task: TaskContext, title: str = "A") -> list[str]:
    """A task with a row of each verb, that fails at its end as long as something is broken."""
    done = [await task.step("plan", note, "plan")]
    child = await task.spawn("echo", text="child")
    (record,) = await task.wait_for([child])
    done.append(record.id)
    done.append(await task.ask("Which colour?", str))
    done += [message.text for message in await task.messages()]
    await task.artifact("cover", f"cover of {title}")
    await task.sleep(0.01)
    await task.post("half way")
    done.append(await task.step("write", note, f"write {title}"))
    if is_broken:
        raise Failure("no ink", kind="no_ink")
    done.append(await task.step("print", note, "print"))
    return done


@app.tool
def echo(text: str) -> str:
    return note(text)


async def failed_book(runtime: TestRuntime) -> tuple[SessionHandle, TaskHandle]:
    session = await runtime.sessions.create()
    task = await session.spawn(book, options=TaskOptions(labels={"team": "blue"}, idempotency_key="key"))
    await runtime.run_until_idle()
    await task.answer("red", by="ann")
    await task.message("hurry", sender="bob")
    await runtime.advance(1)
    with pytest.raises(TaskFailed):
        await task.result()
    return session, task


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_fork_of_all_goes_on_where_the_old_one_failed(store: Store):
    global is_broken
    async with open_test(app, store=store) as runtime:
        _, task = await failed_book(runtime)
        child = next(record for record in await runtime.tasks.list() if record.display_name == "echo")
        assert ran == ["plan", "child", "write A"]
        is_broken = False
        again = await task.fork()
        assert await again.result() == ["plan", child.id, "red", "hurry", "write A", "print"]
        assert ran == ["plan", "child", "write A", "print"]
        record = await again.record()
        assert (record.retry_of, record.labels, record.idempotency_key) == (task.id, {"team": "blue"}, None)
        (request,) = await again.requests()
        assert (request.task_id, request.answer, request.answered_by) == (again.id, "red", "ann")
        assert [message.text for message in await again.messages(direction="inbound")] == ["hurry"]
        (artifact,) = record.artifacts
        assert artifact.path == f"/.tasks/{again.id}/cover"
        assert {step.attempt for step in await again.steps()} == {0, 1}


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_fork_needs_nothing_of_the_old_one_any_more(store: Store):
    global is_broken
    async with open_test(app, store=store) as runtime:
        session, task = await failed_book(runtime)
        again = await task.fork(from_step="write", arguments={"title": "B"})
        await task.delete()
        with pytest.raises(TaskFailed):
            await again.result()
        is_broken = False
        third = await again.fork(from_step="write")
        await again.delete()
        result = await third.result()
        assert result[2:] == ["red", "hurry", "write B", "print"]
        assert ran.count("plan") == ran.count("child") == 1
        (artifact,) = (await third.record()).artifacts
        assert artifact.path is not None
        assert await session.read_file(artifact.path) == b"cover of A"


async def test_a_fork_from_a_step_does_that_step_again_and_all_after_it():
    global is_broken
    async with open_test(app) as runtime:
        _, task = await failed_book(runtime)
        is_broken = False
        again = await task.fork(from_step="ask:1")
        await runtime.run_until_idle()
        assert (await again.record()).input_request is not None
        await again.answer("green")
        await again.message("slowly")
        await runtime.advance(1)
        result = await again.result()
        assert result[2:] == ["green", "slowly", "write A", "print"]
        assert ran == ["plan", "child", "write A", "write A", "print"]


async def test_a_fork_from_within_a_step_goes_into_it_again_with_what_it_had_done_before():
    @app.tool(name="outer")
    async def outer(task: TaskContext) -> str:
        async def inside() -> str:
            await task.step("first", note, "first")
            await task.step("second", note, "second")
            return "inside"

        return await task.step("outer", inside)

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        ended = await session.spawn("outer")
        await ended.result()
        positions = [step.position for step in await ended.steps()]
        again = await ended.fork(from_step=next(each for each in positions if "second" in each))
        assert await again.result() == "inside"
        assert ran == ["first", "second", "second"]


async def test_what_cannot_be_forked_is_refused_and_nothing_is_made():
    script("greeter", replies(Reply("hello")))
    async with open_test(app) as runtime:
        session, task = await failed_book(runtime)
        live = await session.spawn(book)
        agent = await session.spawn_agent("hello", model="scripted:greeter")
        await agent.result()
        await runtime.run_until_idle()
        before = len(await runtime.tasks.list())
        with pytest.raises(UnknownName) as unknown:
            await task.fork(from_step="nowhere")
        assert unknown.value.code == "unknown_step"
        assert isinstance(unknown.value.details, dict)
        assert "write" in unknown.value.details["known"]
        with pytest.raises(InvalidArguments):
            await task.fork(from_step="write", arguments={"pages": 3})
        with pytest.raises(IllegalMove):
            await live.fork()
        with pytest.raises(CannotFork) as refusal:
            await agent.fork()
        assert refusal.value.code == "cannot_fork"
        await task.delete()
        with pytest.raises(NotFound):
            await task.fork()
        assert len(await runtime.tasks.list()) == before - 1


async def test_a_fork_that_crashes_goes_on_from_its_own_journal():
    global is_broken
    async with open_test(app, store="sqlite") as runtime:
        _, task = await failed_book(runtime)
        is_broken = False
        runtime.crash_after(1)
        again = await task.fork(from_step="write")
        await runtime.run_until_idle()
        assert runtime.crashes == 1
        assert (await again.result())[-2:] == ["write A", "print"]
        assert ran.count("plan") == ran.count("child") == 1
