"""Questions: typed, answered once, and what becomes of those that nobody answers."""

import asyncio
from dataclasses import dataclass
from datetime import date, timedelta
from enum import Enum
from typing import Any, Literal

import pytest

from outrider import Outrider, State, TaskContext, TaskHandle, TaskOptions
from outrider.core.errors import InvalidAnswer, NotFound, RequestClosed
from outrider.core.task import WakePolicy
from outrider.testing import Store, TestRuntime, open_test

pytestmark = pytest.mark.anyio


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Choice:
    colour: Colour
    count: int = 1


async def asked(
    runtime: TestRuntime, app: Outrider, *arguments: Any, options: TaskOptions | None = None, **named: Any
) -> TaskHandle:
    """A task that has asked one question and waits for the answer."""

    @app.tool
    async def asks(task: TaskContext) -> Any:
        answer = await task.ask("Well?", *arguments, **named)
        return [type(answer).__name__, answer]

    session = await runtime.sessions.create()
    handle = await session.spawn("asks", options=options or TaskOptions())
    await runtime.run_until_idle()
    return handle


@pytest.mark.parametrize(
    ("expected", "wrong", "right", "seen"),
    [
        (bool, ["yes", 1, None, {}], True, ["bool", True]),
        (int, ["1", 1.5, True, None], 7, ["int", 7]),
        (str, [1, None, []], "text", ["str", "text"]),
        (Literal["a", "b"], ["c", 1], "b", ["str", "b"]),
        (list[int], [1, ["x"]], [1, 2], ["list", [1, 2]]),
        (
            Choice,
            [{"colour": "green"}, {"count": 1}, "red"],
            {"colour": "red"},
            ["Choice", {"colour": "red", "count": 1}],
        ),
        (date, ["tomorrow", 5], "2030-01-02", ["date", "2030-01-02"]),
        ({"type": "object", "required": ["x"]}, [{}, 1], {"x": 1}, ["dict", {"x": 1}]),
        (None, [object(), float("nan"), b"x"], {"any": ["thing"]}, ["dict", {"any": ["thing"]}]),
    ],
    ids=["bool", "int", "str", "literal", "list", "dataclass", "date", "schema", "anything"],
)
async def test_an_answer_arrives_as_the_type_that_was_asked_for_and_a_wrong_one_is_refused(
    expected: Any, wrong: list[Any], right: Any, seen: list[Any]
):
    app = Outrider()
    async with open_test(app) as runtime:
        handle = await asked(runtime, app, expected)
        for answer in wrong:
            with pytest.raises(InvalidAnswer):
                await handle.answer(answer)
        assert (await handle.record()).state is State.AWAITING_INPUT
        await handle.answer(right)
        await runtime.run_until_idle()
        assert await handle.result() == seen


async def test_who_answered_and_from_where_is_recorded(store: Store):
    app = Outrider()
    async with open_test(app, store=store) as runtime:
        handle = await asked(runtime, app, bool, kind="approval", details={"cost": 3})
        runtime.clock.advance(60)
        await handle.answer(True, by="anna", via="cli")
        (request,) = await handle.requests()
        assert (request.status, request.answer, request.answered_by, request.answered_via) == (
            "answered",
            True,
            "anna",
            "cli",
        )
        assert request.kind == "approval"
        assert request.details == {"cost": 3}
        assert request.closed_at == runtime.clock.time


async def test_the_first_answer_wins_and_the_second_is_told(store: Store):
    app = Outrider()
    async with open_test(app, store=store) as runtime:
        handle = await asked(runtime, app, str)
        answers = await asyncio.gather(
            *(handle.answer(each) for each in ("one", "two", "three")), return_exceptions=True
        )
        refused = [each for each in answers if isinstance(each, RequestClosed)]
        assert len(refused) == 2
        await runtime.run_until_idle()
        (request,) = await handle.requests()
        assert (await handle.result())[1] == request.answer
        with pytest.raises(RequestClosed, match=r"answered already; .* has ended as succeeded"):
            await handle.answer("four", request_id=request.id)
        with pytest.raises(RequestClosed, match=f"{handle.id} has ended as succeeded and asks nothing now"):
            await handle.answer("five")


async def test_an_answer_to_nothing_is_refused():
    app = Outrider()
    async with open_test(app) as runtime:
        handle = await asked(runtime, app, str)
        other = await (await runtime.sessions.create()).spawn("asks")
        await runtime.run_until_idle()
        foreign = (await other.record()).input_request
        assert foreign is not None
        with pytest.raises(NotFound):
            await handle.answer("x", request_id="req_unknown")
        with pytest.raises(NotFound):
            await handle.answer("x", request_id=foreign.id)
        assert (await other.record()).input_request is not None


# --- at the deadline ---------------------------------------------------------------------------------


async def expired(runtime: TestRuntime, handle: TaskHandle) -> Any:
    await runtime.advance(timedelta(minutes=9))
    assert (await handle.record()).state is State.AWAITING_INPUT
    await runtime.advance(timedelta(minutes=2))
    (request,) = await handle.requests()
    return request


async def test_a_question_may_answer_itself_with_its_default(store: Store):
    app = Outrider()
    async with open_test(app, store=store) as runtime:
        handle = await asked(runtime, app, Choice, deadline=timedelta(minutes=10), default=Choice(Colour.BLUE))
        request = await expired(runtime, handle)
        assert (request.status, request.answer, request.answered_by) == (
            "expired",
            {"colour": "blue", "count": 1},
            "policy",
        )
        assert await handle.result() == ["Choice", {"colour": "blue", "count": 1}]
        with pytest.raises(RequestClosed, match="expired"):
            await handle.answer({"colour": "red"}, request_id=request.id)


async def test_a_question_may_be_denied():
    app = Outrider()
    async with open_test(app) as runtime:
        handle = await asked(runtime, app, bool, deadline=timedelta(minutes=10), on_expiry="deny")
        await expired(runtime, handle)
        assert await handle.result() == ["bool", False]


@pytest.mark.parametrize("park_grace", [0.0, 3600.0])
async def test_a_question_may_fail_the_task(park_grace: float):
    app = Outrider()
    async with open_test(app, park_grace=park_grace) as runtime:
        handle = await asked(runtime, app, str, deadline=timedelta(minutes=10), on_expiry="fail")
        request = await expired(runtime, handle)
        record = await handle.record()
        assert record.error is not None
        assert (request.status, record.state, record.error.kind) == ("expired", State.FAILED, "input_expired")
        assert (await handle.record()).attempt <= 2, "it is not tried again"


@pytest.mark.parametrize("park_grace", [0.0, 3600.0])
async def test_a_question_may_stay_and_remind(park_grace: float):
    app = Outrider()
    async with open_test(app, park_grace=park_grace) as runtime:
        handle = await asked(
            runtime,
            app,
            str,
            deadline=timedelta(minutes=10),
            remind_every=timedelta(minutes=4),
            options=TaskOptions(wake="on_activity"),
        )
        session = await runtime.sessions.get(handle.session_id)
        reasons: list[tuple[float, str]] = []
        start = runtime.clock.now()
        for _ in range(20):
            await runtime.advance(timedelta(minutes=1))
            for entry in await session.inbox.receive():
                reasons.append(((runtime.clock.now() - start) / 60e6, entry.reason))
                await session.inbox.acknowledge([entry.receipt or ""])
        assert reasons == [
            (1, "question"),
            (4, "reminder"),
            (8, "reminder"),
            (10, "reminder"),
            (14, "reminder"),
            (18, "reminder"),
        ]
        assert (await handle.record()).state is State.AWAITING_INPUT
        await handle.answer("at last")
        await runtime.run_until_idle()
        assert (await handle.result())[1] == "at last"


async def test_a_default_or_denial_that_does_not_fit_is_refused_when_it_is_asked():
    app = Outrider()

    @app.tool
    async def asks(task: TaskContext, how: str) -> None:
        if how == "default":
            await task.ask("?", int, default="many", deadline=1)
        elif how == "no default":
            await task.ask("?", int, on_expiry="default", deadline=1)
        elif how == "deny":
            await task.ask("?", str, on_expiry="deny", deadline=1)
        else:
            await task.ask("?", {"type": "no such type"})

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        for how in ("default", "no default", "deny", "schema"):
            handle = await session.spawn("asks", how=how)
            await runtime.run_until_idle()
            record = await handle.record()
            assert record.error is not None, how
            assert (record.state, record.error.kind) == (State.FAILED, "rejected"), how
            assert await handle.requests() == []


async def test_a_schema_with_a_reference_elsewhere_reads_nothing_from_there():
    app = Outrider()
    async with open_test(app) as runtime:
        handle = await asked(runtime, app, {"$ref": "http://127.0.0.1:9/schema.json"})
        record = await handle.record()
        if record.error is None:
            with pytest.raises(InvalidAnswer, match="schema"):
                await handle.answer("x")
        else:
            assert record.error.kind == "rejected"


async def test_the_deadline_of_a_question_counts_from_when_it_was_asked_across_a_crash():
    app = Outrider()
    async with open_test(app, park_grace=3600.0) as runtime:
        handle = await asked(runtime, app, str, deadline=timedelta(minutes=10), default="late")
        await runtime.advance(timedelta(minutes=6))
        await runtime.crash()
        await runtime.advance(timedelta(minutes=5))
        assert (await handle.result())[1] == "late"
        assert len(await handle.requests()) == 1


async def test_several_questions_are_open_at_once_and_the_oldest_comes_first(store: Store):
    app = Outrider()

    @app.tool
    async def asks(task: TaskContext) -> list[str]:
        return list(await asyncio.gather(*(task.ask(f"{n}?", str, name=f"{n}") for n in range(3))))

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("asks")
        await runtime.run_until_idle()
        record = await handle.record()
        assert [request.prompt for request in record.input_requests] == ["0?", "1?", "2?"]
        assert record.input_request == record.input_requests[0]
        for n in range(3):
            assert (await handle.record()).state is State.AWAITING_INPUT
            await handle.answer(f"answer {n}")
            await runtime.run_until_idle()
        assert await handle.result() == ["answer 0", "answer 1", "answer 2"]


async def test_a_question_wakes_its_session_unless_it_wants_silence():
    app = Outrider()
    async with open_test(app) as runtime:
        policies: dict[WakePolicy, list[str]] = {
            "silent": [],
            "on_terminal": ["question"],
            "on_activity": ["question"],
        }
        for wake, expected in policies.items():
            app.registry.tools.pop("asks", None)
            handle = await asked(runtime, app, str, options=TaskOptions(wake=wake))
            session = await runtime.sessions.get(handle.session_id)
            assert [entry.reason for entry in await session.inbox.list()] == expected
