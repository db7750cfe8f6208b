"""Each recipe of docs/context.md: its example, after a crash at every place of its journal, and what is refused."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from types import ModuleType
from typing import Any

import pytest

from outrider import Outrider, State, TaskContext, TaskHandle, TaskOptions
from outrider.core.errors import InvalidAnswer, InvalidArguments, NotFound, Refused, RequestClosed, TaskFinished
from outrider.runtime.isolated_context import IsolatedContext
from outrider.testing import TestRuntime, open_test
from tests.docs.programs import ROOT

pytestmark = pytest.mark.anyio

PAGE = (ROOT / "docs" / "context.md").read_text()
PRELUDE, *_ = re.findall(r"^```python fragment\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
RECIPES: dict[str, str] = dict(re.findall(r"^### ([^\n]+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))

See = Callable[[TestRuntime, TaskHandle], Awaitable[Any]]


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def test_every_verb_of_the_class_has_a_recipe_and_every_recipe_a_verb():
    verbs = {name for heading in RECIPES for name in heading.split(", ")}
    others = set(re.findall(r"`(\w+)`", PAGE[PAGE.index("## For executors of kinds") :]))
    assert verbs | others == public(TaskContext)
    assert verbs & others == set()
    assert verbs == public(IsolatedContext), "a tool in a process of its own has the same"


def test_every_verb_is_in_the_table_and_leads_to_its_recipe():
    table = PAGE[PAGE.index("| verb |") : PAGE.index("`async` functions await")]
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in RECIPES}
    assert set(re.findall(r"\(#([^)]+)\)", table)) == anchors


@pytest.mark.parametrize("heading", RECIPES)
def test_every_recipe_has_an_example_and_says_what_a_crash_does_and_what_is_refused(heading: str):
    parts = [
        RECIPES[heading].find(mark) for mark in ("\nFor ", "```python fragment", "**After a crash**", "**Refused:**")
    ]
    assert parts == sorted(parts)
    assert -1 not in parts
    assert f'"{heading}"' in PROGRAM, "and is run here"


PROGRAM = (ROOT / "tests" / "docs" / "test_context.py").read_text()


def app_of(heading: str) -> Outrider:
    """The app that a recipe's example makes."""
    (example,) = re.findall(r"^```python fragment\n(.*?)^```", RECIPES[heading], re.MULTILINE | re.DOTALL)
    module = ModuleType("outrider_recipe")
    sys.modules[module.__name__] = module
    try:
        exec(compile(f"{PRELUDE}\n{example}", heading, "exec"), module.__dict__)
    finally:
        del sys.modules[module.__name__]
    app = module.__dict__["app"]
    assert isinstance(app, Outrider)
    return app


@asynccontextmanager
async def begun(
    app: Outrider, crash_after: int | None = None, *, options: TaskOptions | None = None, **arguments: Any
) -> AsyncIterator[tuple[TestRuntime, TaskHandle]]:
    """A task of the app's first tool, at rest."""
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        await session.write_file("/notes.txt", "one\ntwo")
        if crash_after is not None:
            runtime.crash_after(crash_after)
        name = next(iter(app.registry.tools))
        task = await session.spawn(name, arguments, options=options or TaskOptions())
        await runtime.run_until_idle()
        yield runtime, task


async def after_every_crash(heading: str, see: See, **arguments: Any) -> Any:
    """What `see` sees: without a crash, and, all the same, after one at any place of the journal."""
    async with begun(app_of(heading), **arguments) as (runtime, task):
        seen = await see(runtime, task)
        places = runtime.writes
    assert places > 0
    for place in range(1, places + 1):
        async with begun(app_of(heading), place, **arguments) as (runtime, task):
            assert await see(runtime, task) == seen, f"after a crash at {place}"
            assert runtime.crashes >= 1
    return seen


async def refusal(code: Callable[[TaskContext], Awaitable[Any]]) -> type[Exception]:
    """What a verb raises in a task."""
    app, raised = Outrider(), list[Exception]()

    @app.tool
    async def tries(task: TaskContext) -> None:
        try:
            await code(task)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test wants to see it
            raised.append(error)

    async with begun(app) as (_, task):
        assert (await task.record()).state is State.SUCCEEDED
    (error,) = raised
    return type(error)


async def refused(code: Callable[[TaskContext], Awaitable[Any]]) -> bool:
    return issubclass(await refusal(code), Refused)


# --- do ----------------------------------------------------------------------------------------------


async def test_step_runs_once_and_gives_what_it_gave():
    async def see(runtime: TestRuntime, task: TaskHandle) -> Any:
        if (question := (await task.record()).input_request) is not None:  # the crash came within `charge`
            await task.answer({"action": "retry"}, request_id=question.id)
            await runtime.run_until_idle()
        assert await task.result() == f"3 characters for 5 cents, charged as {task.id}:charge"
        return [step.position for step in await task.steps() if "!" not in step.position]

    assert await after_every_crash("step", see, urls=["a", "bc"]) == ["fetch a", "fetch bc", "charge"]


async def test_step_refuses_what_it_could_not_give_back():
    assert await refusal(lambda task: task.step("s", object)) is TypeError
    assert await refused(lambda task: task.step("s", lambda: "x" * (1024 * 1024)))
    for name in ("n" * 513, "a!", "a › b"):
        assert await refused(partial(step_named, name))

    def number() -> int:
        return "seven"  # type: ignore[return-value]  # that is the mistake

    assert await refusal(lambda task: task.step("s", number)) is TypeError

    async def side_by_side(task: TaskContext) -> None:
        await asyncio.gather(*(task.step("same", asyncio.sleep, 0) for _ in range(2)))

    assert await refused(side_by_side)


async def step_named(name: str, task: TaskContext) -> None:
    await task.step(name, str)


async def test_spawn_makes_each_child_once():
    async def see(runtime: TestRuntime, task: TaskHandle) -> Any:
        children = await runtime.tasks.list(parent_task_id=task.id)
        return await task.result(), sorted(child.display_name for child in children)

    assert await after_every_crash("spawn", see, words=["one", "three"]) == (8, ["one", "three"])
    assert await refused(lambda task: task.spawn("nobody"))
    assert await refused(lambda task: task.spawn("tries", more=1))
    assert await refused(lambda task: task.spawn("tries", options=TaskOptions(priority=10**6)))


async def test_wait_for_gives_how_each_stood_at_its_end():
    async def see(runtime: TestRuntime, task: TaskHandle) -> Any:
        await runtime.advance(60)
        return await task.result(), len(await runtime.tasks.list())

    assert await after_every_crash("wait_for", see, words=["long one", "hi"]) == ("running, HI", 3)
    assert await refused(lambda task: task.wait_for([task.id]))
    assert await refusal(lambda task: task.wait_for(["task_of_nobody"])) is NotFound


async def test_sleep_ends_at_the_moment_that_it_was_to_end():
    async def see(runtime: TestRuntime, task: TaskHandle) -> Any:
        began = runtime.clock.time
        await runtime.advance(timedelta(hours=23))
        assert (await task.record()).phase == "sleeping"
        await runtime.crash()
        await runtime.advance(timedelta(hours=2))
        record = await task.record()
        assert record.finished_at is not None
        return record.finished_at - began, await task.result()

    assert await after_every_crash("sleep", see, text="tea") == (timedelta(days=1), "tea")
    assert await refused(lambda task: task.sleep("a while"))  # type: ignore[arg-type]  # that is the mistake
    assert await refused(lambda task: task.sleep(timedelta(days=365 * 101)))


async def test_artifact_leaves_it_once():
    async def see(runtime: TestRuntime, task: TaskHandle) -> Any:
        record = await task.record()
        session = await runtime.sessions.get(record.session_id)
        assert await task.result() == f"/.tasks/{task.id}/chart.svg"
        assert await session.read_file(await task.result()) == b"<svg><title>Sales</title></svg>"
        return [(each.name, each.type, each.url) for each in record.artifacts]

    assert await after_every_crash("artifact", see, title="Sales") == [
        ("chart.svg", "file", None),
        ("more", "link", "https://example.org/charts"),
    ]
    assert await refused(lambda task: task.artifact("big", b"x" * (1024 * 1024 + 1)))
    assert await refused(lambda task: task.artifact("result.json", "{}"))
    for path in ("/../out.txt", "/.tasks/task_of_another/out.txt"):
        assert await refused(partial(artifact_at, path))


async def test_hold_is_released_once_after_the_end():
    async def see(runtime: TestRuntime, task: TaskHandle) -> Any:
        record = await task.record()
        releases = await runtime.tasks.list()
        assert [each.id for each in releases if each.display_name == "render"] == [task.id]
        others = [(each.display_name, each.state) for each in releases if each.id != task.id]
        return await task.result(), record.links.resource_ids, others

    assert await after_every_crash("hold", see, scene="sea") == (
        "sea.png",
        ("machine:render-sea",),
        [("release machine render-sea", State.SUCCEEDED)],
    )
    assert await refused(lambda task: task.hold("volume", "of nobody"))
    assert await refused(lambda task: task.hold("volume", "a!"))


async def artifact_at(path: str, task: TaskContext) -> None:
    await task.artifact("out", "text", path=path)


async def test_files_are_shared_with_the_session():
    async with begun(app_of("files"), path="/notes.txt") as (runtime, task):
        session = await runtime.sessions.get(task.session_id)
        assert await session.read_file("/numbered.txt") == b"1 one\n2 two"
        assert (await task.result())[:2] == ["/notes.txt", "/numbered.txt"]
    assert await refusal(lambda task: task.files.read("/nothing.txt")) is NotFound
    assert await refused(lambda task: task.files.write("/big", b"x" * (1024 * 1024 + 1)))
    assert await refused(lambda task: task.files.write("/../out.txt", ""))


async def test_files_are_read_as_they_are_now():
    app, seen = Outrider(), list[str]()

    @app.tool
    async def reads(task: TaskContext) -> None:
        seen.append(await task.files.read_text("/notes.txt"))
        await task.ask("Go on?")

    async with begun(app) as (runtime, task):
        await (await runtime.sessions.get(task.session_id)).write_file("/notes.txt", "three")
        await task.answer(None)
        await runtime.run_until_idle()
    assert seen == ["one\ntwo", "three"]


# --- ask and talk ------------------------------------------------------------------------------------


async def test_ask_asks_once_and_takes_what_fits():
    async def see(runtime: TestRuntime, task: TaskHandle) -> Any:
        record = await task.record()
        assert (record.state, record.worker_id) == (State.AWAITING_INPUT, None)
        assert record.input_request is not None
        with pytest.raises(InvalidAnswer):
            await task.answer("large")
        await task.answer(3)
        with pytest.raises(RequestClosed):
            await task.answer(4, request_id=record.input_request.id)
        await runtime.advance(timedelta(days=2))
        return await task.result(), [request.prompt for request in await task.requests()]

    assert await after_every_crash("ask", see) == ("forgotten", ["Which size?", "Order size 3?"])
    assert await refused(lambda task: task.ask("?", {"type": "nothing"}))
    assert await refused(lambda task: task.ask("?", int, default="none"))
    assert await refused(lambda task: task.ask("?", int, deadline=1, on_expiry="deny"))
    assert await refused(lambda task: task.ask("?", details="x" * (256 * 1024)))


async def test_post_sends_once_and_wakes_the_session():
    async def see(runtime: TestRuntime, task: TaskHandle) -> Any:
        messages = [message.parts[0]["data"] for message in await task.messages(direction="outbound")]
        inbox = await (await runtime.sessions.get(task.session_id)).inbox.list()
        return messages, len(inbox)

    woken = TaskOptions(wake="on_activity")
    seen = await after_every_crash("post", see, values=[7, 101, 300], options=woken)
    assert seen == ([{"alarm": 101}, {"alarm": 300}], 1)
    assert await refused(lambda task: task.post({"set": object()}))
    assert await refused(lambda task: task.post("x" * (64 * 1024)))


async def test_messages_gives_each_message_once():
    async def see(runtime: TestRuntime, task: TaskHandle) -> Any:
        for text in ("hello", "stop"):
            await task.message(text)
            await runtime.run_until_idle()
        with pytest.raises(TaskFinished):
            await task.message("too late")
        return await task.result()

    async with begun(app_of("messages"), options=TaskOptions(message_schema={"type": "string"})) as (runtime, task):
        assert await see(runtime, task) == ["hello", "stop"]
    for place in (1, 2):
        async with begun(app_of("messages")) as (runtime, task):
            runtime.crash_after(place)
            assert await see(runtime, task) == ["hello", "stop"]
            assert runtime.crashes == 1
    async with begun(app_of("messages"), options=TaskOptions(message_schema={"type": "string"})) as (runtime, task):
        with pytest.raises(InvalidAnswer):
            await task.message({"number": 7})


# --- say ---------------------------------------------------------------------------------------------


async def test_progress_never_jumps_back():
    async def see(runtime: TestRuntime, task: TaskHandle) -> Any:
        numbers = [event.task.progress.current async for event in task.events() if event.task and event.task.progress]
        assert numbers == sorted(numbers), "it does not jump back"
        record = await task.record()
        assert record.progress is not None
        return record.progress.current, record.progress.label

    assert await after_every_crash("progress", see, files=["a", "b", "c"]) == (3, "c")

    async def speaks(task: TaskContext) -> None:
        task.progress("most of it")  # type: ignore[arg-type]  # that is the mistake

    assert await refusal(speaks) is InvalidArguments


async def test_detail_tells_the_last_and_is_cut(capsys: pytest.CaptureFixture[str]):
    async def see(runtime: TestRuntime, task: TaskHandle) -> Any:
        return (await task.record()).state_detail

    assert await after_every_crash("detail", see) == "done"

    app = Outrider()

    @app.tool
    async def chatters(task: TaskContext) -> None:
        task.detail("x" * 10_000)
        task.progress(1, label="y" * 1000)

    async with begun(app) as (_, task):
        record = await task.record()
        assert record.state_detail is not None
        assert record.progress is not None
        assert record.progress.label is not None
        assert (len(record.state_detail), len(record.progress.label)) == (2048, 256)


async def test_output_is_there_once():
    async def see(runtime: TestRuntime, task: TaskHandle) -> Any:
        return [(piece.stream, piece.text) async for piece in task.output()]

    seen = await after_every_crash("output", see)
    assert seen == [("stdout", "compiling\n"), ("stderr", "one warning\n")]
    for stream in ("", "s" * 65, "a\nb"):

        async def prints(task: TaskContext, stream: str = stream) -> None:
            task.output("text", stream)

        assert await refused(prints)


async def test_heartbeat_keeps_a_silent_task_alive():
    app = app_of("heartbeat")
    begun, go_on = list[int](), asyncio.Semaphore(0)

    async def crunch(number: int) -> None:
        begun.append(number)
        await go_on.acquire()

    app.registry.tools["grind"].fn.__globals__["crunch"] = crunch
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("grind", rounds=2)
        await runtime.until(lambda: begun == [0])
        runtime.clock.advance(45)
        await runtime.crash()
        await runtime.until(lambda: begun == [0, 0])
        for _ in range(2):
            runtime.clock.advance(45)
            go_on.release()
            await runtime.until(lambda: _beats(runtime, task))
        await runtime.run_until_idle()
        assert await task.result() == 2
        assert [attempt.ending for attempt in await task.attempts()] == ["lost", "succeeded"]


async def _beats(runtime: TestRuntime, task: TaskHandle) -> bool:
    record = await task.record()
    return record.is_terminal or record.heartbeat_at == runtime.clock.time


async def test_a_task_without_a_sign_of_life_runs_into_its_idle_timeout():
    app = Outrider()

    @app.tool(idle_timeout=60, max_failures=1)
    async def silent(task: TaskContext) -> None:
        await asyncio.Event().wait()

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn(silent)
        await runtime.until(lambda: _runs(task))
        runtime.clock.advance(61)
        await runtime.until(lambda: _ended(task))
        record = await task.record()
        assert record.error is not None
        assert record.error.kind == "timeout"


async def _runs(task: TaskHandle) -> bool:
    return (await task.record()).worker_id is not None


async def _says(task: TaskHandle, detail: str) -> bool:
    return (await task.record()).state_detail == detail


async def _ended(task: TaskHandle) -> bool:
    return (await task.record()).is_terminal


# --- know --------------------------------------------------------------------------------------------


async def test_cancel_requested_lets_code_stop_in_order():
    app = app_of("cancel_requested")
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("spin")
        await runtime.until(lambda: _says(task, "spinning"))
        await task.cancel()
        await runtime.run_until_idle()
        assert ((await task.record()).state, await task.result()) == (State.SUCCEEDED, "stopped in order")


async def test_lost_work_that_was_to_stop_is_not_taken_up_again():
    app, attempts = Outrider(), list[int]()

    @app.tool
    async def stays(task: TaskContext) -> None:
        attempts.append(task.attempt)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.Event().wait()  # it cleans up

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn(stays)
        await runtime.until(lambda: bool(attempts))
        receipt = await task.cancel()
        assert receipt.requested == (task.id,)
        await runtime.crash()
        assert ((await task.record()).state, attempts) == (State.CANCELED, [1])


async def test_attempt_and_is_replaying_tell_a_repetition():
    heading = "attempt, is_replaying"
    async with begun(app_of(heading)) as (_, task):
        assert await task.result() == [False, False, False]
    async with begun(app_of(heading), 1) as (_, task):
        assert await task.result() == [True, False, True]


async def test_log_names_the_task_and_the_attempt(caplog: pytest.LogCaptureFixture):
    heading = "log"
    async with begun(app_of(heading), 1, url="abc") as (_, task):
        assert await task.result() == 3
        lines = [message for message in caplog.messages if "slow" in message]
    assert len(lines) == 2
    for attempt, line in enumerate(lines, start=1):
        assert task.id in line
        assert f"attempt={attempt}" in line


async def test_a_task_knows_what_it_is():
    heading = "id, session_id, spec, record"
    async with begun(app_of(heading), options=TaskOptions(priority=7), page=3) as (_, task):
        assert await task.result() == f"{task.id} of {task.session_id}: {{'page': 3}}, priority 7"
