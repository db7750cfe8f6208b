"""Tasks among tasks: dependencies, children, messages, creating twice, results that must fit."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from outrider import Outrider, State, SyncTaskContext, TaskContext, TaskHandle, TaskOptions
from outrider.core.errors import (
    IdempotencyConflict,
    IllegalMove,
    InvalidAnswer,
    InvalidArguments,
    InvalidSchema,
    NotFound,
    TaskFailed,
    TooLarge,
    WaitTimeout,
)
from outrider.testing import Store, TestRuntime, open_test

pytestmark = pytest.mark.anyio


def basics(app: Outrider, order: list[str]) -> None:
    @app.tool
    async def work(name: str) -> str:
        order.append(name)
        return name

    @app.tool(max_failures=1)
    async def fails() -> None:
        raise ValueError("broken")

    @app.tool
    async def sleeps(task: TaskContext, seconds: float = 60) -> str:
        await task.sleep(seconds)
        return "slept"


# --- dependencies ------------------------------------------------------------------------------------


async def test_a_task_runs_after_all_that_it_depends_on(store: Store):
    app, order = Outrider(), list[str]()
    basics(app, order)
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        first = await session.spawn("sleeps", seconds=60)
        second = await session.spawn("work", name="second")
        third = await session.spawn("work", name="third", options=TaskOptions(depends_on=(first.id, second.id)))
        await runtime.run_until_idle()
        record = await third.record()
        assert (record.state, record.phase, record.phase_reason) == (State.QUEUED, "blocked", "dependency")
        assert order == ["second"]
        await runtime.advance(60)
        assert await third.result() == "third"
        late = await session.spawn("work", name="late", options=TaskOptions(depends_on=(first.id,)))
        await runtime.run_until_idle()
        assert await late.result() == "late", "what it depends on had ended before"


async def test_a_task_fails_with_what_it_depends_on_unless_told_otherwise(store: Store):
    app, order = Outrider(), list[str]()
    basics(app, order)
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        broken = await session.spawn("fails")
        canceled = await session.spawn("sleeps")
        for cause in (broken, canceled):
            strict = await session.spawn("work", name="strict", options=TaskOptions(depends_on=(cause.id,)))
            chained = await session.spawn("work", name="chained", options=TaskOptions(depends_on=(strict.id,)))
            tolerant = await session.spawn(
                "work", name="tolerant", options=TaskOptions(depends_on=(cause.id,), run_if_dependency_fails=True)
            )
            await runtime.run_until_idle()
            if cause is canceled:
                await canceled.cancel()
                await runtime.run_until_idle()
            for handle, blamed in ((strict, cause), (chained, strict)):
                error = (await handle.record()).error
                assert error is not None
                assert error.kind == "dependency_failed"
                assert error.details["task_id"] == blamed.id
            assert await tolerant.result() == "tolerant"
        assert order == ["tolerant", "tolerant"]


async def test_what_is_not_there_cannot_be_depended_on():
    app, order = Outrider(), list[str]()
    basics(app, order)
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        with pytest.raises(NotFound):
            await session.spawn("work", name="x", options=TaskOptions(depends_on=("task_unknown",)))
        with pytest.raises((InvalidArguments, NotFound)):
            await session.spawn("work", name="x", options=TaskOptions(id="task_self", depends_on=("task_self",)))


# --- children ----------------------------------------------------------------------------------------


def parenting(app: Outrider) -> None:
    @app.tool
    async def parent(task: TaskContext, seconds: float = 60) -> str:
        await task.spawn("sleeps", seconds=seconds)
        return "returned"


@pytest.mark.parametrize(
    ("policy", "parent_first", "child_last"),
    [
        ("wait", (State.RUNNING, "waiting", "children"), State.SUCCEEDED),
        ("cancel", (State.SUCCEEDED, None, None), State.CANCELED),
        ("detach", (State.SUCCEEDED, None, None), State.SUCCEEDED),
    ],
)
async def test_a_parent_that_returned_treats_its_open_children_by_policy(
    policy: Any, parent_first: Any, child_last: State, store: Store
):
    app = Outrider()
    basics(app, [])
    parenting(app)
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("parent", options=TaskOptions(on_open_children=policy))
        await runtime.run_until_idle()
        record = await handle.record()
        assert (record.state, record.phase, record.phase_reason) == parent_first
        assert record.worker_id is None
        await runtime.advance(61)
        assert await handle.result() == "returned"
        (child,) = await session.tasks(parent_task_id=handle.id)
        assert child.state is child_last


async def test_a_parent_that_waits_for_its_children_may_be_canceled_with_them(store: Store):
    app = Outrider()
    basics(app, [])
    parenting(app)
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("parent")
        await runtime.run_until_idle()
        receipt = await handle.cancel()
        assert len(receipt.canceled) == 2
        assert (await handle.record()).state is State.CANCELED


async def test_a_parent_that_fails_takes_its_children_along():
    app = Outrider()
    basics(app, [])

    @app.tool(max_failures=1)
    async def parent(task: TaskContext) -> None:
        await task.spawn("sleeps")
        raise ValueError("broken")

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("parent")
        await runtime.run_until_idle()
        (child,) = await session.tasks(parent_task_id=handle.id)
        assert child.state is State.CANCELED


async def test_waiting_for_some_of_several_tasks(store: Store):
    app = Outrider()
    basics(app, [])

    @app.tool
    async def parent(task: TaskContext, how: str) -> list[str]:
        children = [await task.spawn("sleeps", seconds=seconds) for seconds in (30, 60)]
        match how:
            case "any":
                records = await task.wait_for(children, any=True)
            case "timeout":
                records = await task.wait_for(children, timeout=45)
            case _:
                records = await task.wait_for([child.id for child in children])
        return [str(record.state) for record in records]

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handles = {how: await session.spawn("parent", how=how) for how in ("any", "timeout", "all")}
        await runtime.advance(29)
        assert not any([(await handle.record()).is_terminal for handle in handles.values()])
        await runtime.advance(60)
        assert await handles["any"].result() == ["succeeded", "running"]
        assert await handles["timeout"].result() == ["succeeded", "running"]
        assert await handles["all"].result() == ["succeeded", "succeeded"]


async def test_a_task_that_is_named_twice_is_waited_for_once(store: Store):
    app = Outrider()
    basics(app, [])

    @app.tool
    async def parent(task: TaskContext) -> list[str]:
        child, other = await task.spawn("sleeps", seconds=30), await task.spawn("sleeps", seconds=60)
        return [record.id for record in await task.wait_for([child, other, child])]

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("parent")
        await runtime.advance(45)
        assert not (await handle.record()).is_terminal
        await runtime.advance(45)
        first, second, again = await handle.result(timeout=0)
        assert first == again != second


async def test_arguments_that_are_called_like_those_of_spawn_reach_the_tool():
    app = Outrider()

    @app.tool
    async def move(position: str, kind: str, options: list[str], given: str = "", tool: str = "") -> list[Any]:
        return [position, kind, options, given, tool]

    wanted = {"position": "north", "kind": "knight", "options": ["x"]}

    @app.tool
    async def parent(task: TaskContext) -> list[Any]:
        child = await task.spawn("move", wanted, given="a", tool="b", position="first")
        return await task.step("moved", child.result)

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle, direct = await session.spawn("parent"), await session.spawn("move", wanted, given="a", tool="b")
        await runtime.run_until_idle()
        assert await handle.result() == await direct.result() == ["north", "knight", ["x"], "a", "b"]
        assert [step.position for step in await handle.steps()] == ["first", "moved"]


async def test_a_plain_function_gets_a_handle_that_blocks_like_its_verbs(store: Store):
    app = Outrider()
    basics(app, [])

    @app.tool(max_failures=1)
    def parent(task: SyncTaskContext) -> list[Any]:
        child, failing = task.spawn("work", name="child"), task.spawn("fails")
        with pytest.raises(TaskFailed):
            failing.result()
        record = task.step("look", child.wait)
        (ended,) = task.wait_for([child])
        return [child.result(), record.id == ended.id == child.id, record.state]

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("parent")
        await runtime.run_until_idle()
        assert await handle.result() == ["child", True, "succeeded"]


async def test_a_child_carries_its_origin_and_its_parent():
    app = Outrider()
    basics(app, [])
    parenting(app)
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("parent", options=TaskOptions(origin={"turn": 3, "actor": "me"}))
        await runtime.run_until_idle()
        (child,) = await session.tasks(parent_task_id=handle.id)
        assert (child.parent_task_id, child.session_id, child.origin) == (
            handle.id,
            session.id,
            {"turn": 3, "actor": "me"},
        )


# --- creating twice ----------------------------------------------------------------------------------


async def test_creating_with_one_key_twice_makes_one_task_and_another_payload_is_a_conflict(store: Store):
    app, order = Outrider(), list[str]()
    basics(app, order)
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        options = TaskOptions(idempotency_key="once", labels={"a": "b"})
        made = await asyncio.gather(*(session.spawn("work", name="one", options=options) for _ in range(5)))
        assert len({handle.id for handle in made}) == 1
        await runtime.run_until_idle()
        runtime.clock.advance(60)
        again = await session.spawn("work", name="one", options=options)
        assert again.id == made[0].id
        assert await again.result() == "one"
        with pytest.raises(IdempotencyConflict):
            await session.spawn("work", name="two", options=options)
        with pytest.raises(IdempotencyConflict):
            await session.spawn("work", name="one", options=TaskOptions(idempotency_key="once", priority=5))
        other = await (await runtime.sessions.create()).spawn("work", name="two", options=options)
        assert other.id != again.id, "a key is its session's own"
        named = await session.spawn("work", name="id", options=TaskOptions(id="task_mine"))
        assert (await session.spawn("work", name="id", options=TaskOptions(id="task_mine"))).id == named.id
        with pytest.raises(IdempotencyConflict):
            await session.spawn("work", name="other", options=TaskOptions(id="task_mine"))
        await runtime.run_until_idle()
        created = [event async for event in named.events() if event.type == "task.created"]
        assert len(created) == 1


async def test_a_child_of_a_key_used_for_something_else_is_a_conflict():
    app = Outrider()
    basics(app, [])

    @app.tool
    async def parent(task: TaskContext) -> list[str]:
        options = TaskOptions(idempotency_key="child")
        one = await task.spawn("work", name="a", options=options)
        same = await task.spawn("work", name="a", options=options)
        try:
            await task.spawn("work", name="b", options=options)
        except IdempotencyConflict:
            return [one.id, same.id, "conflict"]
        return [one.id, same.id, "nothing said"]

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("parent")
        await runtime.run_until_idle()
        one, same, said = await handle.result()
        assert (one, said) == (same, "conflict")


# --- messages ----------------------------------------------------------------------------------------


async def test_messages_go_both_ways_and_name_what_they_reply_to(store: Store):
    app = Outrider()

    @app.tool
    async def chats(task: TaskContext) -> list[str]:
        heard: list[str] = []
        while "bye" not in heard:
            for message in await task.messages():
                heard.append(message.text or str(message.parts[0].get("data")))
                await task.post(f"heard {heard[-1]}", in_reply_to=message.id)
        return heard

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("chats")
        await runtime.run_until_idle()
        sent = [await handle.message("hello", sender="anna"), await handle.message({"n": 1})]
        await runtime.run_until_idle()
        question = (await handle.messages(direction="outbound"))[0]
        sent.append(await handle.message("bye", in_reply_to=question.id))
        await runtime.run_until_idle()
        assert await handle.result() == ["hello", "{'n': 1}", "bye"]
        outbound = await handle.messages(direction="outbound")
        assert [message.in_reply_to for message in outbound] == [message.id for message in sent]
        thread = [message.id for message in await handle.messages()]
        assert [id for id in thread if id in {each.id for each in sent}] == [each.id for each in sent]
        for reply in outbound:
            assert reply.in_reply_to is not None
            assert thread.index(reply.in_reply_to) < thread.index(reply.id)
        assert (await handle.messages())[0].sender == "anna"
        assert len(await handle.messages(after=outbound[0].id)) == 3


async def test_a_task_need_not_wait_for_messages():
    app = Outrider()

    @app.tool
    async def looks(task: TaskContext) -> list[int]:
        counts = [len(await task.messages(wait=False))]
        counts.append(len(await task.messages(timeout=30)))
        counts.append(len(await task.messages(timeout=30)))
        return counts

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("looks")
        await runtime.advance(10)
        await handle.message("one")
        await runtime.advance(60)
        assert await handle.result() == [0, 1, 0]


async def test_many_messages_are_all_handed_over_also_on_resume():
    app, seen = Outrider(), list[int]()

    @app.tool
    async def reads(task: TaskContext) -> int:
        count = 0
        while count < 1200:
            count += len(await task.messages())
        seen.append(count)
        await task.step("done", lambda: None)
        return count

    async with open_test(app, worker=False) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("reads")
        for n in range(1200):
            await handle.message(str(n))
        runtime.crash_after(3)
        await runtime.start_worker()
        await runtime.run_until_idle(timeout=30)
        assert await handle.result() == 1200
        assert seen == [1200, 1200]


async def test_a_message_that_does_not_fit_is_refused():
    app = Outrider()
    basics(app, [])
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        schema = {"type": "object", "required": ["path"]}
        handle = await session.spawn("sleeps", options=TaskOptions(message_schema=schema))
        await handle.message({"path": "/x"})
        with pytest.raises(InvalidAnswer, match="message_schema"):
            await handle.message({"file": "/x"})
        with pytest.raises(TooLarge):
            await handle.message({"path": "x" * 70_000})
        with pytest.raises(InvalidSchema):
            await session.spawn("sleeps", options=TaskOptions(message_schema={"type": "nonsense"}))
        for wrong in (object(), b"bytes", [object()], {"type": "data", "data": float("nan")}):
            with pytest.raises((InvalidAnswer, InvalidArguments)):
                await handle.message(wrong)  # type: ignore[arg-type]  # a wrong type is what is tested


# --- results -----------------------------------------------------------------------------------------


@dataclass
class Report:
    title: str
    pages: int = 1


async def test_a_result_comes_back_in_its_declared_type_and_stands_in_a_file(store: Store):
    app = Outrider()

    @app.tool
    async def reports() -> Report:
        return Report("all well", 3)

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("reports")
        await runtime.run_until_idle()
        assert await handle.result() == Report("all well", 3)
        record = await handle.record()
        assert record.result_path == f"/.tasks/{handle.id}/result.json"
        assert await session.read_file(record.result_path) == b'{"title":"all well","pages":3}'
        assert [file.path for file in await session.files()] == [record.result_path]


@pytest.mark.parametrize(
    ("value", "kind"), [(None, "no_result"), ({"n": "x"}, "schema_mismatch"), ([], "schema_mismatch"), ({"n": 1}, None)]
)
async def test_a_result_must_fit_its_schema(value: Any, kind: str | None, store: Store):
    app = Outrider()

    @app.tool
    async def returns(value: Any) -> Any:
        return value

    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("returns", value=value, options=TaskOptions(result_schema=schema))
        await runtime.run_until_idle()
        record = await handle.record()
        if kind is None:
            assert await handle.result() == value
        else:
            assert record.error is not None
            assert (record.state, record.error.kind, record.attempt) == (State.FAILED, kind, 1)


# --- waiting from outside ----------------------------------------------------------------------------


async def test_who_waits_may_stop_waiting_and_the_task_goes_on(store: Store):
    app = Outrider()
    basics(app, [])
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("sleeps", seconds=60)
        waiting = asyncio.create_task(_waits(handle, 30))
        await runtime.advance(31)
        with pytest.raises(WaitTimeout) as over:
            await waiting
        assert over.value.details == {"open": [handle.id]}
        await runtime.advance(30)
        assert await handle.result() == "slept"


async def test_waiting_for_one_of_several_or_for_a_question():
    app = Outrider()
    basics(app, [])

    @app.tool
    async def asks(task: TaskContext) -> Any:
        return await task.ask("?")

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        slow = await session.spawn("sleeps", seconds=600)
        quick = await session.spawn("work", name="quick")
        asking = await session.spawn("asks")
        records = await runtime.tasks.wait([slow.id, quick.id], any=True)
        assert [task.is_terminal for task in records] == [False, True]
        record = await asking.wait(on_question=True)
        assert record.state is State.AWAITING_INPUT
        with pytest.raises(NotFound):
            await runtime.tasks.wait(["task_unknown"])


async def _waits(handle: TaskHandle, timeout: float) -> Any:
    return await handle.result(timeout=timeout)


async def test_a_failed_or_canceled_task_says_so_to_who_waits():
    app = Outrider()
    basics(app, [])
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("fails")
        await runtime.run_until_idle()
        with pytest.raises(TaskFailed, match="broken") as failed:
            await handle.result()
        assert failed.value.kind == "exception"


# --- what a session is told --------------------------------------------------------------------------


async def test_a_retry_by_a_person_is_a_new_task_that_names_the_old_one(store: Store):
    app, tries, may_end = Outrider(), 0, asyncio.Event()

    @app.tool(max_failures=1)
    async def shaky(value: int) -> int:
        nonlocal tries
        tries += 1
        await may_end.wait()
        if tries == 1:
            raise RuntimeError("not today")
        return value

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        options = TaskOptions(idempotency_key="k", labels={"run": "nightly"}, priority=3)
        task = await session.spawn("shaky", value=7, options=options)
        with pytest.raises(IllegalMove):
            await task.retry()
        may_end.set()
        await runtime.run_until_idle()
        again = await task.retry()
        await runtime.run_until_idle()
        assert await again.result() == 7
        record = await again.record()
        assert (record.retry_of, record.labels, record.priority) == (task.id, {"run": "nightly"}, 3)
        assert (await task.record()).state is State.FAILED
        assert (await session.spawn("shaky", value=7, options=options)).id == task.id


async def test_a_session_is_told_what_it_wants_to_know(store: Store):
    app = Outrider()

    @app.tool
    async def speaks(task: TaskContext) -> str:
        await task.post("on my way")
        return "there"

    async def reasons(runtime: TestRuntime, wake: Any) -> list[str]:
        session = await runtime.sessions.create()
        await session.spawn("speaks", options=TaskOptions(wake=wake))
        await runtime.run_until_idle()
        entries = await session.inbox.receive()
        receipts = [entry.receipt or "" for entry in entries]
        assert (await session.inbox.acknowledge(receipts)).good == tuple(receipts)
        assert await session.inbox.list() == []
        return [entry.reason for entry in entries]

    async with open_test(app, store=store) as runtime:
        assert await reasons(runtime, "silent") == []
        assert await reasons(runtime, "on_terminal") == ["terminal"]
        assert await reasons(runtime, "on_activity") == ["terminal"], "entries of one task coalesce"
