"""A resumed task gets what it got the first time: every verb, after a crash at every place of the journal."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from outrider import Outrider, State, SyncTaskContext, TaskContext, TaskHandle, TaskOptions
from outrider.core.errors import StoreError, StoreFull, StoreUnavailable, TaskFailed, UnknownName
from outrider.stores.memory import MemoryLedger
from outrider.testing import Store, TestRuntime, open_test

pytestmark = pytest.mark.anyio


@dataclass
class Point:
    x: int
    y: int


class Report(BaseModel):
    title: str
    points: list[Point]


# --- one task that uses every verb -------------------------------------------------------------------


class World:
    """What the outside saw of one task: effects that a step made, and what its verbs gave on each pass."""

    def __init__(self) -> None:
        self.effects: list[str] = []
        self.seen: dict[str, list[Any]] = {}

    def note(self, what: str, value: Any) -> None:
        self.seen.setdefault(what, []).append(value)

    def effect(self, name: str) -> str:
        self.effects.append(name)
        return name


def everything(app: Outrider, world: World) -> None:
    @app.tool
    async def child(n: int) -> int:
        return n * n

    @app.tool
    async def parent(task: TaskContext) -> dict[str, Any]:
        note = world.note
        note("step", await task.step("step", world.effect, "step"))
        first = await task.spawn(child, n=3)
        note("child", first.id)
        note("record", [record.state for record in await task.wait_for([first])])
        note("answer", await task.ask("How many?", int))
        before = task.services.clock.now()
        await task.sleep(60)
        note("slept", (await task.step("woke", lambda: task.services.clock.now())) - before >= 0)
        note("messages", [(message.id, message.text) for message in await task.messages()])
        posted = await task.post("I have it", in_reply_to=None)
        note("post", posted.id)
        artifact = await task.artifact("notes.txt", "some text")
        note("artifact", (artifact.path, artifact.size))
        done = await task.step("once", world.effect, "once", effects="once")
        note("late", [record.state for record in await task.wait_for([first.id], timeout=5)])
        note("more", [message.text for message in await task.messages(wait=False)])
        return {"done": done, "child": first.id}


async def see_it_through(runtime: TestRuntime, handle: TaskHandle) -> None:
    """Do what a person would do, whatever the task has come to."""
    has_written = False
    for _ in range(60):
        await runtime.run_until_idle()
        record = await handle.record()
        if record.is_terminal:
            return
        if record.input_request is not None:
            request = record.input_request
            answer = {"action": "retry"} if request.kind == "approval" else 42
            await handle.answer(answer, request_id=request.id)
        elif not has_written and any(step.position == "woke" for step in await handle.steps()):
            has_written = True
            await handle.message("go on")
        else:
            await runtime.advance(30)
    raise AssertionError(f"it does not end: {await handle.record()}")


async def run_everything(store: Store, crash_after: tuple[int, ...]) -> tuple[World, TestRuntime, int]:
    app, world = Outrider(), World()
    everything(app, world)
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("parent")
        runtime.crash_after(*crash_after)
        await see_it_through(runtime, handle)
        await check(runtime, session, handle, world)
        return world, runtime, runtime.writes


async def check(runtime: TestRuntime, session: Any, handle: TaskHandle, world: World) -> None:
    record = await handle.record()
    assert (record.state, record.error) == (State.SUCCEEDED, None)
    children = await session.tasks(kind="background_tool", parent_task_id=handle.id)
    assert len(children) == 1, "one child, however often resumed"
    assert (await handle.result())["child"] == children[0].id
    questions = [request for request in await handle.requests() if request.kind == "question"]
    assert len(questions) == 1, "one question"
    outbound = await handle.messages(direction="outbound")
    assert [message.text for message in outbound] == ["I have it"]
    assert [artifact.name for artifact in record.artifacts] == ["notes.txt"]
    for what, values in world.seen.items():
        assert all(value == values[0] for value in values), f"{what} differs on resume: {values}"
    assert world.seen["answer"][0] == 42
    assert world.seen["messages"][0][0][1] == "go on"
    assert world.seen["record"][0] == [State.SUCCEEDED]
    events = [event async for event in handle.events()]
    assert [event.seq for event in events] == sorted({event.seq for event in events})


async def test_every_verb_gives_the_same_after_a_crash_at_any_place(store: Store):
    _, _, places = await run_everything(store, ())
    assert places >= 11
    for place in range(1, places + 1):
        world, runtime, _ = await run_everything(store, (place,))
        assert runtime.crashes == 2, "the crash asked for, and the end of the test"
        assert world.effects.count("step") == 1
        assert world.effects.count("once") == 1 + (place == 99)


async def test_two_crashes_are_no_worse_than_one():
    _, _, places = await run_everything("memory", ())
    for place in range(1, places):
        world, runtime, _ = await run_everything("memory", (place, 1))
        assert runtime.crashes == 3
        assert world.effects.count("step") == 1


async def test_a_sleep_ends_at_the_same_moment_however_often_it_was_interrupted(store: Store):
    app = Outrider()
    woke = []

    @app.tool
    async def sleeper(task: TaskContext) -> None:
        await task.sleep(timedelta(hours=1))
        woke.append(task.services.clock.now())

    async with open_test(app, store=store, park_grace=2000.0) as runtime:
        session = await runtime.sessions.create()
        start = runtime.clock.now()
        await session.spawn("sleeper", options=TaskOptions(max_failures=9))
        for _ in range(3):
            await runtime.advance(timedelta(minutes=10))
            await runtime.crash()
        await runtime.advance(timedelta(minutes=45))
        assert woke == [start + 3_600_000_000]


# --- positions ---------------------------------------------------------------------------------------


async def run_twice(tool: Callable[..., Any], *, after: int, store: Store = "memory") -> TaskHandle:
    """Run a tool, and lose its worker after a number of writes."""
    app = Outrider()
    app.tool(tool)
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn(tool)
        runtime.crash_after(after)
        await runtime.advance(3600)
        assert runtime.crashes == 1
        await handle.result()
        return handle


async def test_a_name_used_again_is_a_place_of_its_own():
    calls = []

    def said(n: int) -> int:
        calls.append(n)
        return n

    async def loop(task: TaskContext) -> list[int]:
        got = [await task.step("item", said, n) for n in range(4)]
        assert got == [0, 1, 2, 3]
        return got

    await run_twice(loop, after=2)
    assert calls == [0, 1, 2, 3]


async def test_a_name_that_looks_like_anothers_number_is_not_taken_for_it():
    async def lookalike(task: TaskContext) -> None:
        got = [await task.step(name, lambda n=n: n) for n, name in enumerate(["a", "a#2", "a", "a"])]
        assert got == [0, 1, 2, 3]

    await run_twice(lookalike, after=4)


async def test_unnamed_verbs_are_told_apart_by_their_order():
    async def sleeps(task: TaskContext) -> None:
        start = task.services.clock.now() if task.attempt == 1 else None
        for _ in range(3):
            await task.sleep(1)
        if start is not None:
            assert task.services.clock.now() >= start

    await run_twice(sleeps, after=2)


async def test_what_a_step_uses_inside_is_journaled_inside_it():
    calls: list[str] = []

    def said(word: str) -> str:
        calls.append(word)
        return word

    async def nested(task: TaskContext) -> list[str]:
        async def outer() -> str:
            inner = await task.step("inner", said, "inner")
            await task.sleep(1)
            return f"outer of {inner}"

        first = await task.step("outer", outer)
        await task.sleep(2)  # not to be taken for the sleep inside
        second = await task.step("inner", said, "other")
        third = await task.step("last", lambda: "last")
        return [first, second, third]

    for after in range(1, 7):
        calls.clear()
        await run_twice(nested, after=after)
        assert calls == ["inner", "other"], f"crashed after {after}"


async def test_progress_is_heard_again_once_the_code_is_past_a_step_with_something_inside():
    app = Outrider()
    replaying = []

    @app.tool
    async def nested(task: TaskContext) -> None:
        async def outer() -> None:
            await task.step("inner", lambda: None)

        await task.step("outer", outer)
        replaying.append(task.is_replaying)
        task.progress(1)
        if task.attempt == 1:
            await asyncio.Event().wait()

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        await session.spawn("nested")
        await runtime.until(lambda: replaying == [False])
        await runtime.crash()
        await runtime.run_until_idle()
        assert replaying == [False, False]


async def test_changed_code_is_refused_and_says_what_is_different(store: Store):
    for change, journaled, met in (
        ("renamed", "step 'first'", "step 'other'"),
        ("another verb", "step 'first'", "sleep 'first'"),
        ("removed", "step 'first'", "step 'second'"),
    ):
        app = Outrider()
        began = asyncio.Event()

        @app.tool
        async def edited(task: TaskContext, change: str = change, began: asyncio.Event = began) -> None:
            if task.attempt == 1:
                await task.step("first", lambda: 1)
                began.set()
                await asyncio.Event().wait()
            match change:
                case "renamed":
                    await task.step("other", lambda: 1)
                case "another verb":
                    await task.sleep(1, name="first")
                case "removed":
                    await task.step("second", lambda: 1)

        async with open_test(app, store=store) as runtime:
            session = await runtime.sessions.create()
            handle = await session.create("background_tool", {"tool": "edited", "arguments": {"change": change}})
            await runtime.until(began.is_set)
            await runtime.crash()
            await runtime.run_until_idle()
            record = await handle.record()
            assert record.state is State.FAILED
            assert record.error is not None
            assert record.error.kind == "interrupted"
            assert record.error.details == {"journaled": journaled, "met": met}
            assert journaled in record.error.message
            assert met in record.error.message


async def test_code_that_was_only_extended_goes_on():
    async def extended(task: TaskContext) -> str:
        await task.step("first", lambda: 1)
        if task.attempt > 1:
            await task.step("new", lambda: 2)
        return await task.step("second", lambda: "end")

    await run_twice(extended, after=1)


# --- branches ----------------------------------------------------------------------------------------


async def test_branches_with_names_get_their_own_again_in_whatever_order_they_come():
    async def fetch(n: int, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return n

    async def fan(task: TaskContext) -> list[str]:
        async def branch(n: int) -> str:
            fetched = await task.step(f"fetch {n}", fetch, n, 0.01 * (3 - n) if task.attempt == 1 else 0)
            await task.sleep(1, name=f"nap {n}")
            return await task.step(f"parse {n}", lambda: f"{fetched}:{n}")

        got = await asyncio.gather(*(branch(n) for n in range(3)))
        assert got == ["0:0", "1:1", "2:2"]
        return got

    for after in range(1, 10):
        await run_twice(fan, after=after)


async def test_task_groups_and_groups_in_groups_are_branches_too():
    async def groups(task: TaskContext) -> list[int]:
        got: list[int] = []

        async def leaf(name: str, value: int) -> None:
            await task.sleep(1, name=f"nap {name}")
            got.append(await task.step(name, lambda: value))

        async def inner(name: str) -> None:
            async with asyncio.TaskGroup() as group:
                for n in range(2):
                    group.create_task(leaf(f"{name}/{n}", n))

        async with asyncio.TaskGroup() as group:
            for name in ("a", "b"):
                group.create_task(inner(name))
        assert sorted(got) == [0, 0, 1, 1]
        return got

    for after in range(1, 9):
        await run_twice(groups, after=after)


@pytest.mark.parametrize("name", ["named", None])
async def test_branches_without_names_of_their_own_are_refused_at_once(name: str | None):
    async def ambiguous(task: TaskContext) -> None:
        await asyncio.gather(task.sleep(1, name=name), task.sleep(2, name=name))

    app = Outrider()
    app.tool(ambiguous)
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn(ambiguous)
        await runtime.run_until_idle()
        record = await handle.record()
        assert record.error is not None
        assert record.error.kind == "rejected"
        assert "give each a name" in record.error.message


async def test_branches_one_after_the_other_may_share_a_name():
    async def sequential(task: TaskContext) -> list[int]:
        return [await asyncio.wait_for(task.step("same", lambda n=n: n), 5) for n in range(3)]

    await run_twice(sequential, after=2)


# --- what a step returns -----------------------------------------------------------------------------


def as_point() -> Point:
    return Point(1, 2)


def as_report() -> Report:
    return Report(title="t", points=[Point(1, 2)])


def as_tuple() -> tuple[int, str]:
    return 1, "a"


def as_set() -> set[int]:
    return {3, 1, 2}


def as_optional() -> Point | None:
    return None


def as_float() -> float:
    return 3


async def as_async() -> list[Point]:
    return [Point(0, 0)]


def unannotated():
    return {"tuple": (1, 2), 3: Point(4, 5)}


@pytest.mark.parametrize(
    "fn",
    [as_point, as_report, as_tuple, as_set, as_optional, as_float, as_async, unannotated],
    ids=lambda fn: fn.__name__,
)
async def test_a_step_gives_the_same_value_of_the_same_type_first_and_on_resume(fn: Callable[..., Any], store: Store):
    got = []

    async def typed(task: TaskContext) -> None:
        value = await task.step("value", fn)
        got.append((type(value), value))
        await task.step("after", lambda: None)

    await run_twice(typed, after=2, store=store)
    assert len(got) == 2
    assert got[0] == got[1]
    expected = fn()
    if fn is as_async:
        assert got[0][1] == await expected
    elif fn is not unannotated:
        assert got[0][1] == expected
    else:
        assert got[0][1] == {"tuple": [1, 2], "3": {"x": 4, "y": 5}}


async def test_a_step_that_returns_what_its_annotation_does_not_allow_fails_before_it_is_journaled():
    def liar() -> int:
        return "not a number"  # type: ignore[return-value]  # the lie that is to be found out

    async def lies(task: TaskContext) -> None:
        await task.step("lie", liar)

    app = Outrider()
    app.tool(max_failures=1)(lies)
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn(lies)
        await runtime.run_until_idle()
        with pytest.raises(TaskFailed, match="annotation does not allow"):
            await handle.result()
        assert await handle.steps() == []


@pytest.mark.parametrize(
    "value",
    [b"bytes", object(), float("nan"), {"deep": [float("inf")]}, 2**80, "\ud800"],
    ids=["bytes", "object", "nan", "infinity", "huge", "surrogate"],
)
async def test_a_step_whose_result_is_not_json_fails_and_says_so(value: Any):
    async def bad(task: TaskContext) -> None:
        await task.step("bad", lambda: value)

    app = Outrider()
    app.tool(max_failures=1)(bad)
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn(bad)
        await runtime.run_until_idle()
        with pytest.raises(TaskFailed, match="JSON"):
            await handle.result()


async def test_a_step_passes_on_its_idempotency_key(store: Store):
    keys = []

    def charge(amount: int, *, idempotency_key: str) -> int:
        keys.append(idempotency_key)
        return amount

    async def charges(task: TaskContext) -> None:
        await task.step("charge", charge, 5)
        await task.step("charge", charge, 6)
        await task.step("own", charge, 7, idempotency_key="mine")

    handle = await run_twice(charges, after=1, store=store)
    assert keys == [f"{handle.id}:charge", f"{handle.id}:charge#2", "mine"]


# --- errors that the code handles --------------------------------------------------------------------


class OwnError(Exception):
    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(code)
        self.hint = hint


class Unmakeable(Exception):
    def __new__(cls, *, needed: object) -> "Unmakeable":
        return super().__new__(cls)

    def __init__(self, *, needed: object) -> None:
        super().__init__("cannot be made again")


async def test_an_error_that_the_code_handled_is_met_again_on_resume(store: Store):
    calls: list[str] = []

    def fails() -> None:
        calls.append("fails")
        if calls.count("fails") < 4:
            raise OwnError(7, hint="try later")

    async def handles(task: TaskContext) -> list[str]:
        caught = []
        try:
            await task.step("fails", fails)
        except OwnError as error:
            caught.append(f"{error} {error.hint}")
        caught.append(await task.step("otherwise", lambda: "handled"))
        for _ in range(3):
            try:
                await task.step("again", fails)
            except OwnError:
                await task.sleep(1)
        assert caught == ["7 try later", "handled"]
        return caught

    for after in range(1, 8):
        calls.clear()
        await run_twice(handles, after=after, store=store)
        assert calls.count("fails") == 4, f"crashed after {after}"


async def test_a_step_that_the_code_timed_out_has_been_come_to_and_is_run_again_on_resume(store: Store):
    calls: list[str] = []

    def this() -> asyncio.Task[Any]:
        current = asyncio.current_task()
        assert current is not None
        return current

    async def hangs() -> None:
        calls.append("hangs")
        this().cancel()  # as `asyncio.timeout` does
        await asyncio.sleep(60)

    async def gives_up(task: TaskContext) -> str:
        try:
            await task.step("hangs", hangs)
        except asyncio.CancelledError:
            this().uncancel()
        await task.step("otherwise", lambda: calls.append("otherwise"))
        return await task.step("last", lambda: "done")

    for after in range(1, 4):
        calls.clear()
        await run_twice(gives_up, after=after, store=store)
        assert calls.count("hangs") == 2, f"crashed after {after}"


async def test_a_handled_error_is_met_again_though_the_store_refused_to_write_it_at_first(monkeypatch):
    app, tries = Outrider(), 0
    refusals: list[StoreError] = [StoreFull("once")]

    async def flaky() -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ValueError("not yet")
        return "at last"

    @app.tool
    async def stubborn(task: TaskContext) -> str:
        try:
            way = await task.step("flaky", flaky)
        except ValueError:
            way = "without"
        try:
            await task.step("next", lambda: 1)
        except StoreFull:
            await task.step("other", lambda: 2)
        await task.ask("Go on?")
        return way

    refuse(monkeypatch, refusals)
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("stubborn")
        await runtime.run_until_idle()
        await runtime.crash()
        await task.answer("yes")
        await runtime.run_until_idle()
        assert await task.result() == "without"
        assert refusals == []


def refuse(monkeypatch: pytest.MonkeyPatch, refusals: list[StoreError]) -> None:
    """Have the store refuse to write journals, once with each of these."""
    journal = MemoryLedger.journal

    async def refusing(self: MemoryLedger, steps: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return await journal(self, steps)

    monkeypatch.setattr(MemoryLedger, "journal", refusing)


@pytest.mark.parametrize("refusal", [StoreFull("no space"), StoreUnavailable("disk I/O error")], ids=repr)
async def test_a_store_that_cannot_write_is_no_failure_of_the_task(refusal: StoreError, monkeypatch):
    app = Outrider()

    @app.tool(max_failures=1)
    async def walk(task: TaskContext) -> list[int]:
        return [await task.step(f"step {number}", lambda number=number: number) for number in range(3)]

    refuse(monkeypatch, [refusal] * 3)
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("walk")
        await runtime.run_until_idle()
        assert await task.result() == [0, 1, 2]
        record = await task.record()
        assert (record.failures, record.attempt) == (0, 4)


async def test_a_store_of_the_tools_own_that_cannot_be_written_is_a_failure_like_any_other():
    app = Outrider()

    @app.tool(max_failures=2, backoff=0)
    async def elsewhere(task: TaskContext) -> None:
        raise StoreUnavailable("another database")

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("elsewhere")
        await runtime.run_until_idle()
        with pytest.raises(TaskFailed, match="another database"):
            await task.result()
        assert (await task.record()).failures == 2


async def test_a_task_told_to_stop_while_the_store_cannot_write_comes_to_its_end(monkeypatch):
    app = Outrider()

    @app.tool
    async def walk(task: TaskContext) -> None:
        await task.step("step", lambda: 1)
        await task.sleep(3600)

    refuse(monkeypatch, [StoreFull("no space")] * 3)
    async with app.open("memory://") as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("walk")
        await asyncio.sleep(0.2)  # it is in the pause that it makes for the store
        await task.cancel()
        # Well before the grace is over, after which others would end it.
        assert (await task.wait(timeout=5)).state is State.CANCELED


@pytest.mark.parametrize("name", ["charge!", "a › b"])
async def test_a_name_that_looks_like_a_position_of_the_runtimes_own_is_refused(name: str):
    app = Outrider()

    @app.tool(max_failures=1)
    async def pay(task: TaskContext) -> None:
        await task.step(name, lambda: 1)

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("pay")
        await runtime.run_until_idle()
        with pytest.raises(TaskFailed, match="positions"):
            await task.result()


async def test_what_steps_returned_is_not_held_once_the_code_has_it():
    app = Outrider()
    held: list[int] = []

    @app.tool
    async def walk(task: TaskContext) -> None:
        for number in range(20):
            await task.step(f"step-{number}", lambda: "x" * 1000)
        held.append(sum(len(row.value or b"") for row in task.journal.of("step")))

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        await session.spawn("walk")
        await runtime.run_until_idle()
        assert held == [0]


async def test_an_error_that_the_code_did_not_handle_is_tried_again():
    app = Outrider()
    calls = []

    def flaky() -> str:
        calls.append("called")
        if len(calls) < 3:
            raise OSError(5, "flaky")
        return "worked"

    @app.tool(backoff=1, backoff_max=1)
    async def retries(task: TaskContext) -> str:
        await task.step("before", lambda: None)
        return await task.step("flaky", flaky)

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn(retries)
        await runtime.advance(60)
        assert await handle.result() == "worked"
        assert (await handle.record()).attempt == 3


async def test_a_branch_that_goes_on_beside_a_failure_has_not_handled_it():
    app = Outrider()
    calls = []

    def fails() -> str:
        calls.append("called")
        if len(calls) == 1:
            raise ValueError
        return "worked"

    @app.tool(backoff=1)
    async def branches(task: TaskContext) -> list[str]:
        async def beside() -> str:
            for n in range(3):
                await task.step(f"beside {n}", asyncio.sleep, 0)
            return "beside"

        async with asyncio.TaskGroup() as group:
            results = [group.create_task(beside()), group.create_task(task.step("fails", fails))]
        return [each.result() for each in results]

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn(branches)
        await runtime.advance(60)
        assert await handle.result() == ["beside", "worked"]


async def test_an_error_that_cannot_be_made_again_comes_back_as_a_failure_that_says_the_same():
    met: list[Exception] = []

    def fails() -> None:
        raise Unmakeable(needed=object())

    async def handles(task: TaskContext) -> None:
        try:
            await task.step("fails", fails)
        except Exception as error:  # noqa: BLE001 - whatever comes
            met.append(error)
        await task.step("after", lambda: None)

    await run_twice(handles, after=2)
    assert [type(error).__name__ for error in met] == ["Unmakeable", "Failure"]
    assert [str(error) for error in met] == ["cannot be made again"] * 2


async def test_a_refused_verb_that_the_code_handled_is_refused_again():
    async def handles(task: TaskContext) -> str:
        try:
            await task.spawn("unknown tool")
        except UnknownName as error:
            await task.step("handled", lambda: None)
            return str(error)
        raise AssertionError

    await run_twice(handles, after=1)
    await run_twice(handles, after=2)


async def test_a_handled_error_in_a_thread_is_met_again_too():
    calls = []

    def fails() -> None:
        calls.append("called")
        raise LookupError("nothing there")

    def threaded(task: SyncTaskContext) -> str:
        try:
            task.step("fails", fails)
        except LookupError as error:
            task.step("handled", lambda: None)
            return str(error)
        raise AssertionError

    for after in (1, 2):
        calls.clear()
        await run_twice(threaded, after=after)
        assert calls == ["called"]


# --- the same in threads -----------------------------------------------------------------------------


async def test_a_plain_function_has_every_verb_and_resumes_alike(store: Store):
    app, world = Outrider(), World()

    @app.tool
    def child(n: int) -> int:
        return n + 1

    @app.tool
    def threaded(task: SyncTaskContext) -> dict[str, Any]:
        note = world.note
        note("step", task.step("step", world.effect, "step"))
        handle = task.spawn("child", n=1)
        note("child", handle.id)
        note("waited", [record.state for record in task.wait_for([handle])])
        note("answer", task.ask("Yes?", bool))
        task.sleep(60)
        note("post", task.post("hello").id)
        note("artifact", task.artifact("a.txt", "text").path)
        task.files.write("/out.txt", "written")
        note("read", task.files.read_text("/out.txt"))
        note("point", task.step("typed", as_point))
        return {"answer": world.seen["answer"][-1], "once": task.step("once", world.effect, "once", effects="once")}

    async def run(after: int | None) -> int:
        world.__init__()  # type: ignore[misc]  # the world begins anew in place
        async with open_test(app, store=store) as runtime:
            session = await runtime.sessions.create()
            handle = await session.spawn("threaded")
            if after is not None:
                runtime.crash_after(after)
            for _ in range(20):
                await runtime.advance(30)
                record = await handle.record()
                if record.input_request is not None:
                    await handle.answer({"action": "retry"} if record.input_request.kind == "approval" else True)
                if record.is_terminal:
                    break
            assert await handle.result() == {"answer": True, "once": "once"}
            for what, values in world.seen.items():
                assert all(value == values[0] for value in values), what
            assert world.effects.count("step") == 1
            assert len(await session.tasks()) == 2
            return runtime.writes

    for place in range(1, await run(None) + 1):
        await run(place)
