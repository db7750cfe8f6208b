"""Background tools: what is refused at submit, and what becomes of tools that misbehave."""

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from outrider import (
    Failure,
    Outrider,
    State,
    SyncTaskContext,
    TaskContext,
    TaskFailed,
    TaskHandle,
    TaskRecord,
    WorkerSettings,
)
from outrider.core.errors import InvalidArguments, TooLarge, UnknownName
from outrider.runtime.options import TaskOptions
from outrider.settings import Limits
from outrider.testing import TestRuntime, open_test

pytestmark = pytest.mark.anyio


async def run(app: Outrider, tool: str, **arguments: Any) -> TaskRecord:
    """Run one tool to its end, and see that its worker still works."""

    @app.tool
    async def afterwards() -> str:
        return "fine"

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn(tool, options=TaskOptions(max_failures=1), **arguments)
        await runtime.run_until_idle(timeout=20)
        record = await handle.record()
        assert record.is_terminal
        other = await session.spawn("afterwards")
        await runtime.run_until_idle()
        assert await other.result() == "fine"
        app.registry.tools.pop("afterwards")
        return record


async def error_of(app: Outrider, tool: str, **arguments: Any) -> tuple[str, str]:
    record = await run(app, tool, **arguments)
    assert record.state is State.FAILED
    assert record.error is not None
    return record.error.kind, record.error.message


# --- what is asked of a tool -------------------------------------------------------------------------


@dataclass
class Size:
    width: int
    height: int = 1


class Order(BaseModel):
    name: str
    sizes: list[Size]


async def test_arguments_arrive_as_the_annotations_say():
    app = Outrider()
    got: list[Any] = []

    @app.tool
    async def takes(order: Order, size: Size, count: int = 3, *, note: str | None = None, **others: int) -> Order:
        got.extend([order, size, count, note, others])
        return order

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        order = Order(name="n", sizes=[Size(1)])
        handle = await session.spawn("takes", order=order, size={"width": 2}, extra=5)
        await runtime.run_until_idle()
        assert got == [order, Size(2), 3, None, {"extra": 5}]
        assert await handle.result() == order, "in the declared type"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "n"),
        ({"n": "many"}, "n"),
        ({"n": 1, "m": 2}, "m"),
        ({"n": 1.5}, "n"),
        ({"n": None}, "n"),
        ({"n": object()}, "JSON"),
        ({"n": float("nan")}, "n"),
        ({"n": 1, "text": "\ud800"}, "JSON"),
        ({"n": 2**70}, "JSON"),
    ],
    ids=["missing", "wrong type", "unknown", "a fraction", "none", "no json", "nan", "surrogate", "huge"],
)
async def test_wrong_arguments_are_refused_at_submit_and_nothing_is_written(arguments: dict[str, Any], named: str):
    app = Outrider()

    @app.tool
    async def takes(n: int, text: str = "") -> int:
        return n

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        with pytest.raises(InvalidArguments, match=named):
            await session.spawn("takes", **arguments)
        assert await session.tasks() == []


async def test_an_unknown_tool_or_kind_is_refused_with_the_known_names():
    app = Outrider()

    @app.tool
    async def known() -> None:
        return None

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        with pytest.raises(UnknownName, match="known: known"):
            await session.spawn("unknown")
        with pytest.raises(UnknownName, match="background_tool"):
            await session.create("unknown", {})


async def test_a_spec_over_its_limit_is_refused():
    app = Outrider()

    @app.tool
    async def takes(text: str) -> int:
        return len(text)

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        with pytest.raises(TooLarge) as refused:
            await session.spawn("takes", text="x" * 300_000)
        assert refused.value.details["limit"] == 262_144


def test_parameters_without_a_name_and_names_that_mean_another_cannot_be_registered():
    app = Outrider()
    with pytest.raises(InvalidArguments, match="passed by name"):

        @app.tool
        def positional(a: int, /) -> None: ...

    @app.tool(name="same")
    def one() -> None: ...

    with pytest.raises(InvalidArguments, match="already"):

        @app.tool(name="same")
        def two() -> None: ...

    with pytest.raises(InvalidArguments, match="colon"):  # so are tools of an agent's own granted

        @app.tool(name="same:two")
        def three() -> None: ...


# --- what it returns ---------------------------------------------------------------------------------


def circle() -> list[Any]:
    turning: list[Any] = []
    turning.append(turning)
    return turning


def deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(2000):
        nested = [nested]
    return nested


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: b"bytes", "bytes"),
        (lambda: object(), "object"),
        (lambda: float("nan"), "NaN"),
        (lambda: {"a": [1, float("inf")]}, "NaN"),
        (lambda: open(__file__), "TextIOWrapper"),  # noqa: SIM115 - closed by the test's end
        (lambda: threading.Lock(), "lock"),
        (circle, "JSON"),
        (deep, "JSON"),
        (lambda: "\ud800", "JSON"),
        (lambda: (n for n in range(3)), "generator"),
        (lambda: lambda: 1, "function"),
        (lambda: Exception("as a value"), "Exception"),
        (lambda: {"a": [2**64]}, "more than 64 bits"),
    ],
    ids=[
        "bytes",
        "object",
        "nan",
        "inf",
        "file",
        "lock",
        "circle",
        "deep",
        "surrogate",
        "generator",
        "function",
        "error",
        "wide",
    ],
)
async def test_a_result_that_is_not_json_fails_the_task_for_good(make: Any, said: str, in_thread: bool):
    app = Outrider()
    made = []

    async def returns() -> Any:
        made.append(make())
        return made[-1]

    def returns_in_thread() -> Any:
        made.append(make())
        return made[-1]

    app.tool(name="returns")(returns_in_thread if in_thread else returns)
    kind, message = await error_of(app, "returns")
    assert kind == "invalid_result"
    assert said.lower() in message.lower()
    for each in made:
        if hasattr(each, "close"):
            each.close()


async def test_a_result_over_its_limit_fails_the_task_and_says_what_to_do():
    app = Outrider()

    @app.tool
    async def huge() -> str:
        return "x" * 70_000

    kind, message = await error_of(app, "huge")
    assert kind == "too_large"
    assert "artifact" in message


async def test_a_plain_function_that_returns_something_to_await_has_it_awaited():
    app = Outrider()

    async def later() -> str:
        return "awaited"

    @app.tool
    def returns_coroutine() -> Any:
        return later()

    assert await _result(app, "returns_coroutine") == "awaited"


async def test_a_generator_is_no_tool():
    app = Outrider()

    @app.tool
    def generates() -> Iterator[int]:
        yield 1

    @app.tool
    async def generates_async() -> AsyncIterator[int]:
        yield 1

    for tool in ("generates", "generates_async"):
        kind, message = await error_of(app, tool)
        assert kind == "invalid_result"
        assert "generator" in message


async def _result(app: Outrider, tool: str) -> Any:
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn(tool)
        await runtime.run_until_idle()
        return await handle.result()


# --- what it raises ----------------------------------------------------------------------------------


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even its message")


class OwnBase(BaseException):
    pass


RAISED: list[tuple[BaseException, str]] = [
    (ValueError("plain"), "ValueError: plain"),
    (SystemExit(3), "SystemExit: 3"),
    (KeyboardInterrupt(), "KeyboardInterrupt"),
    (GeneratorExit(), "GeneratorExit"),
    (OwnBase("own"), "OwnBase: own"),
    (StopIteration(4), "StopIteration"),
    (StopAsyncIteration(), "StopAsyncIteration"),
    (Unspeakable(), "Unspeakable"),
    (ValueError("\ud800"), "ValueError: ?"),
    (ValueError("x" * 100_000), "ValueError: xxx"),
    (MemoryError(), "MemoryError"),
    (ExceptionGroup("several", [ValueError("first"), KeyError("second")]), "ValueError: first"),
    (BaseExceptionGroup("several", [OwnBase("first"), SystemExit(1)]), "OwnBase: first"),
]


@pytest.mark.parametrize("where", ["async", "thread", "step", "thread step", "asyncio task"])
@pytest.mark.parametrize(
    ("error", "said"), RAISED, ids=[type(error).__name__ + str(n) for n, (error, _) in enumerate(RAISED)]
)
async def test_whatever_a_tool_raises_is_its_failure_and_nobody_elses(error: BaseException, said: str, where: str):
    app = Outrider()

    def fail() -> None:
        raise error

    async def fail_async() -> None:
        raise error

    async def in_loop(task: TaskContext) -> None:
        match where:
            case "step":
                await task.step("fails", fail_async)
            case "thread step":
                await task.step("fails", fail)
            case "asyncio task":
                await asyncio.gather(fail_async(), asyncio.sleep(0.01))
            case _:
                fail()

    def in_thread(task: SyncTaskContext) -> None:
        fail()

    app.tool(name="fails")(in_thread if where == "thread" else in_loop)
    kind, message = await error_of(app, "fails")
    assert kind == "exception"
    assert said in message
    assert len(message) < 9000


async def test_sys_exit_in_a_thread_ends_the_task_and_not_the_worker():
    app = Outrider()

    @app.tool
    def exits() -> None:
        sys.exit("good bye")

    assert await error_of(app, "exits") == ("exception", "SystemExit: good bye")


async def test_endless_recursion_is_a_failure():
    app = Outrider()

    @app.tool
    async def recurses(n: int) -> int:
        return await recurses(n + 1)

    kind, message = await error_of(app, "recurses", n=0)
    assert "RecursionError" in message
    assert kind == "exception"


@pytest.mark.parametrize(
    "details", [{"a": 1}, object(), float("nan"), b"x", "\ud800"], ids=["json", "object", "nan", "bytes", "surrogate"]
)
async def test_a_failure_of_its_own_says_kind_and_details_whatever_they_are(details: Any):
    app = Outrider()

    @app.tool
    async def fails() -> None:
        raise Failure("no luck", kind="weather", details=details)

    record = await run(app, "fails")
    assert record.error is not None
    assert (record.error.kind, record.error.message) == ("weather", "no luck")
    assert record.error.details == details if isinstance(details, dict) else record.error.details is not None


async def test_what_a_failure_says_of_retries_holds():
    app, runs = Outrider(), []

    @app.tool(backoff=1)
    async def fails(task: TaskContext, retryable: bool) -> None:
        runs.append(task.attempt)
        raise Failure("no luck", retryable=retryable)

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        await session.spawn("fails", retryable=False)
        await runtime.advance(3600)
        assert runs == [1]
        await session.spawn("fails", retryable=True)
        await runtime.advance(3600)
        assert runs == [1, 1, 2, 3]


# --- what it does to its worker ----------------------------------------------------------------------


async def test_a_flood_of_output_is_cut_and_hurts_nobody():
    app = Outrider()

    @app.tool
    async def floods(task: TaskContext) -> int:
        line = "x" * 999_999 + "\n"
        for n in range(100):
            task.output(line)
            if n % 10 == 0:
                await asyncio.sleep(0)
        task.output("the end\n")
        return 100

    @app.tool
    def floods_from_a_thread(task: SyncTaskContext) -> int:
        line = "x" * 99_999 + "\n"
        for _ in range(1000):
            task.output(line)
        task.output("the end\n")
        return 100

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        for tool in ("floods", "floods_from_a_thread"):
            handle = await session.spawn(tool)
            await runtime.run_until_idle(timeout=60)
            assert await handle.result() == 100
            pieces = [piece async for piece in handle.output()]
            text = "".join(piece.text for piece in pieces)
            assert text.endswith("the end\n")
            assert len(text) < 3 * 262_144
            assert "were cut here" in text or pieces[0].lost > 0


async def test_asyncio_tasks_that_a_tool_leaves_behind_end_with_it():
    app = Outrider()
    ended: list[str] = []

    @app.tool
    async def leaks(task: TaskContext) -> str:
        async def background(n: int) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(str(n))
                if n == 1:
                    raise SystemExit("in a cleanup")

        task.__dict__["kept"] = [asyncio.create_task(background(n)) for n in range(3)]
        await asyncio.sleep(0)
        return "returned"

    before = len(asyncio.all_tasks())
    assert (await run(app, "leaks")).state is State.SUCCEEDED
    assert sorted(ended) == ["0", "1", "2"]
    assert len(asyncio.all_tasks()) <= before


async def test_an_asyncio_task_that_ignores_its_end_does_not_keep_the_result_from_being_told():
    app = Outrider()
    release = asyncio.Event()

    @app.tool
    async def leaks() -> str:
        async def ignores() -> None:
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue

        leaks.__dict__["kept"] = asyncio.create_task(ignores())
        await asyncio.sleep(0)
        return "returned"

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("leaks", options=TaskOptions(cancel_grace=1))
        try:
            await runtime.until(lambda: "kept" in leaks.__dict__)
            for _ in range(20):
                await asyncio.sleep(0)
            runtime.clock.advance(1)
            await runtime.until(lambda: _ended(handle))
            assert await handle.result() == "returned"
            await runtime.until(lambda: runtime._crews[0].worker.abandoned == 1)
        finally:
            release.set()


async def test_a_thread_that_a_tool_leaves_behind_can_say_nothing_more():
    app = Outrider()
    go_on, refused = threading.Event(), []

    @app.tool
    def leaks(task: SyncTaskContext) -> str:
        def late() -> None:
            go_on.wait(20)
            for verb in (lambda: task.step("late", lambda: 1), lambda: task.post("late"), lambda: task.sleep(1)):
                try:
                    verb()
                except BaseException as error:  # noqa: BLE001 - that is what is looked at
                    refused.append(type(error).__name__)
            for word in (lambda: task.progress(99), lambda: task.output("late")):
                with suppress(BaseException):
                    word()
            refused.append("end")

        threading.Thread(target=late, daemon=True).start()
        return "returned"

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("leaks")
        await runtime.run_until_idle()
        assert await handle.result() == "returned"
        go_on.set()
        await runtime.until(lambda: "end" in refused)
        await runtime.run_until_idle()
        assert refused == ["Superseded"] * 3 + ["end"]
        assert [piece async for piece in handle.output()] == []
        assert (await handle.record()).progress is None
        assert await handle.steps() == []


async def test_a_library_may_keep_a_task_alive_in_a_context_of_its_own():
    app = Outrider()
    from contextvars import Context

    keepers: list[asyncio.Task[None]] = []

    async def keep() -> None:
        await asyncio.Event().wait()

    @app.tool
    async def lazy() -> str:
        if not keepers:
            keepers.append(asyncio.get_running_loop().create_task(keep(), context=Context()))
            await asyncio.sleep(0)
        return "alive" if not keepers[0].done() else "gone"

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        for _ in range(2):
            handle = await session.spawn("lazy")
            await runtime.run_until_idle()
            assert await handle.result() == "alive"
    keepers[0].cancel()


async def test_a_blocked_loop_is_named_with_its_stack(caplog: pytest.LogCaptureFixture):
    app = Outrider(WorkerSettings(stall_named=0.05, stall_limit=60))

    @app.tool
    async def blocks_the_loop() -> None:
        time.sleep(0.4)

    record = await run(app, "blocks_the_loop")
    named = [line.getMessage() for line in caplog.records if "event loop blocked" in line.getMessage()]
    assert any(record.id in message and "time.sleep(0.4)" in message for message in named)


async def test_files_and_messages_over_their_limits_are_refused():
    app = Outrider(WorkerSettings(limits=Limits(file=1000, message=1000)))
    refused: list[str] = []

    @app.tool
    async def sends(task: TaskContext) -> None:
        for verb in (
            task.artifact("big", b"x" * 1001),
            task.files.write("/big", b"x" * 1001),
            task.post("x" * 1001),
            task.step("big", lambda: "x" * 1001),
        ):
            try:
                await verb
            except TooLarge as error:
                refused.append(error.details["what"])

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("sends")
        await runtime.run_until_idle()
        assert (await handle.record()).state is State.SUCCEEDED
        assert len(refused) == 4
        assert await session.files() == []
        with pytest.raises(TooLarge):
            await session.write_file("/big", b"x" * 1001)


async def _ended(handle: TaskHandle) -> bool:
    return (await handle.record()).is_terminal


async def test_who_waits_for_a_failed_task_hears_kind_and_message():
    app = Outrider()

    @app.tool
    async def fails() -> None:
        raise Failure("no luck", kind="weather", details={"rain": True})

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("fails")
        await runtime.run_until_idle()
        with pytest.raises(TaskFailed, match="no luck") as failed:
            await handle.result()
        assert (failed.value.kind, failed.value.details) == ("weather", {"rain": True})


def test_runtime_is_not_taken_for_a_test():
    assert TestRuntime.__test__ is False
