"""What makes no sense is refused where it is said, with a stable code, and nothing is written."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from outrider import Outrider, State, TaskContext, TaskOptions
from outrider.core.errors import (
    Failure,
    IdempotencyConflict,
    InvalidAnswer,
    InvalidArguments,
    NotFound,
    Refused,
    TooLarge,
)
from outrider.core.ledger import TaskFilter
from outrider.testing import Store, TestRuntime, open_test

pytestmark = pytest.mark.anyio

TOO_LONG = 101 * 365 * 86400
app = Outrider()


@app.tool
async def echo(value: int = 0) -> int:
    return value


@pytest.mark.parametrize(
    "options",
    [
        {"wake": "always"},
        {"on_open_children": "nope"},
        {"priority": 0.5},
        {"priority": math.nan},
        {"priority": True},
        {"priority": 1001},
        {"max_failures": 0},
        {"max_failures": 10**30},
        {"max_failures": 1.5},
        {"cancel_grace": -5},
        {"start_at": datetime(9999, 12, 31, tzinfo=UTC)},
        {"start_at": datetime(2030, 1, 1)},  # noqa: DTZ001 - a moment without a zone is the point
        {"start_at": "tomorrow"},
        {"idempotency_key": "k" * 513},
        {"idempotency_key": 7},
        {"name": "n" * 2049},
        *({flag: value} for flag in ("detached", "headless", "run_if_dependency_fails") for value in (5, "no", None)),
        *({field: value} for field in ("labels", "origin") for value in ("a", ["a"], 5)),
        {"depends_on": "abc"},
        {"depends_on": (5,)},
        {"retry_of": 5},
        *(
            {length: value}
            for length in ("delay", "run_timeout", "total_timeout", "queue_timeout", "idle_timeout", "backoff")
            for value in (math.nan, math.inf, -1, TOO_LONG, 1e15, 10**400, timedelta(days=400_000), "soon")
        ),
        *({"id": id} for id in ("a/b", "../../etc", " a", "a\n", "a\0b", "\x1b]0;x\x07", "\ud800", "x" * 129, 7)),
    ],
    ids=repr,
)
async def test_an_option_that_makes_no_sense_is_refused_and_nothing_is_written(options: dict[str, Any], store: Store):
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        with pytest.raises(Refused) as refusal:
            await session.spawn("echo", options=TaskOptions(**options))
        assert refusal.value.code in ("invalid_arguments", "too_large")
        assert await session.tasks() == []


async def test_a_plain_id_of_ones_own_is_taken():
    async with open_test(app) as runtime:
        session = await runtime.sessions.create(id="chat:42@example.org")
        task = await session.spawn("echo", options=TaskOptions(id="nightly-2026.11.22+1"))
        await runtime.run_until_idle()
        assert (await task.record()).result_path == "/.tasks/nightly-2026.11.22+1/result.json"


@pytest.mark.parametrize(
    "given",
    [{"id": "a/b"}, {"title": "t" * 300_000}, {"title": "a\0b"}, {"agent": "a\0b"}, {"labels": {"a": "x" * 300_000}}],
)
async def test_a_session_that_makes_no_sense_is_refused(given: dict[str, Any]):
    async with open_test(app) as runtime:
        with pytest.raises(Refused):
            await runtime.sessions.create(**given)
        assert await runtime.sessions.list() == []


async def test_a_task_can_only_be_the_retry_of_one_that_is_there():
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        with pytest.raises(NotFound):
            await session.spawn("echo", options=TaskOptions(retry_of="nonsense"))
        first = await session.spawn("echo")
        again = await session.spawn("echo", options=TaskOptions(retry_of=first.id))
        assert (await again.record()).retry_of == first.id


async def test_who_asks_makes_no_difference_to_an_idempotency_key():
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        tasks = [
            await session.spawn("echo", options=TaskOptions(idempotency_key="k", origin={"actor": actor}))
            for actor in ("ada", "bob")
        ]
        assert tasks[0].id == tasks[1].id
        with pytest.raises(IdempotencyConflict):
            await session.spawn("echo", value=2, options=TaskOptions(idempotency_key="k"))


@pytest.mark.parametrize("options", [{"effects": "onec"}, {"isolation": "proces"}])
def test_a_tool_with_an_unknown_guarantee_is_refused(options: dict[str, Any]):
    with pytest.raises(InvalidArguments, match=r"one of .*, not"):
        Outrider().tool(name="odd", **options)(lambda: None)


async def failed_by(runtime: TestRuntime, own: Outrider, fn: Any) -> Any:
    own.tool(fn, name="odd", max_failures=1)
    session = await runtime.sessions.create()
    task = await session.spawn("odd")
    await runtime.run_until_idle()
    record = await task.record()
    assert record.state is State.FAILED
    assert record.error is not None
    assert record.error.kind in ("rejected", "too_large")
    return record.error.details["code"]


BIG = "x" * 300_000
CALLS: dict[str, Any] = {
    "a step of unknown effects": lambda task: task.step("pay", lambda: 1, effects="ONCE"),
    "a question of an unknown kind": lambda task: task.ask("?", kind="poll"),
    "a question with an unknown end": lambda task: task.ask("?", on_expiry="ignore"),
    "a question that reminds without pause": lambda task: task.ask("?", remind_every=0),
    "a question that reminds backwards": lambda task: task.ask("?", remind_every=-1),
    "a question without a true deadline": lambda task: task.ask("?", deadline=1e18),
    "a wait for itself": lambda task: task.wait_for([task.id]),
    "a sleep for ages": lambda task: task.sleep(TOO_LONG),
    "a question with too much to read": lambda task: task.ask("?", details=BIG),
    "a step with too long a name": lambda task: task.step("s" * 513, lambda: 1),
    "an artifact with too long a name": lambda task: task.artifact(BIG, url="https://example.org"),
    "an artifact with too long an address": lambda task: task.artifact("it", url=BIG),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_verb_that_makes_no_sense_fails_its_task_at_once(call: Any, store: Store):
    own = Outrider()

    async def odd(task: TaskContext) -> None:
        await call(task)

    async with open_test(own, store=store) as runtime:
        assert await failed_by(runtime, own, odd) in ("invalid_arguments", "too_large")


async def test_an_answer_over_the_limit_is_refused_and_the_question_stays_open():
    own = Outrider()

    @own.tool
    async def asks(task: TaskContext) -> int:
        return len(await task.ask("Well?", str))

    async with open_test(own) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("asks")
        await runtime.run_until_idle()
        with pytest.raises(TooLarge):
            await task.answer(BIG)
        await task.answer("x")
        await runtime.run_until_idle()
        assert await task.result() == 1


async def test_an_answer_to_a_schema_that_never_ends_is_refused():
    own = Outrider()

    @own.tool
    async def asks(task: TaskContext) -> Any:
        return await task.ask("Well?", {"$ref": "#"})

    async with open_test(own) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("asks")
        await runtime.run_until_idle()
        with pytest.raises(InvalidAnswer, match="without end"):
            await task.answer(1)


@pytest.mark.parametrize("limit", [0, -1, 10**30, 1.5, True])
async def test_a_page_that_nobody_could_read_is_refused(limit: Any):
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        for listing in (session.tasks, session.inbox.list, runtime.sessions.list):
            with pytest.raises(InvalidArguments):
                await listing(limit=limit)
        with pytest.raises(InvalidArguments):
            await runtime.tasks.list(TaskFilter(limit=limit))


@pytest.mark.parametrize("content", ["\ud800", 5, None, ["x"]])
async def test_a_file_of_what_is_neither_text_nor_bytes_is_refused(content: Any):
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        with pytest.raises(InvalidArguments):
            await session.write_file("/notes.txt", content)
        assert await session.files() == []


async def test_an_agents_prompt_that_is_not_unicode_is_refused():
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        with pytest.raises(InvalidArguments):
            await session.spawn_agent("\ud800", model="scripted:any")


async def test_what_a_failure_tells_beyond_the_limit_is_cut_with_a_mark():
    own = Outrider()

    @own.tool(max_failures=1)
    async def odd() -> None:
        raise Failure("it is so", details={"why": BIG})

    async with open_test(own) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("odd")
        await runtime.run_until_idle()
        error = (await task.record()).error
        assert error is not None
        assert error.message == "it is so"
        assert "[… cut here, of " in error.details
        assert len(error.details) <= 64 * 1024


async def test_who_cancels_answers_or_writes_is_told_in_few_words():
    own = Outrider()

    @own.tool
    async def asks(task: TaskContext) -> int:
        return await task.ask("Well?", int)

    async with open_test(own) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("asks")
        await runtime.run_until_idle()
        for call in (
            task.cancel(reason=BIG),
            task.cancel(by=BIG),
            task.answer(1, by=BIG),
            task.message("x", sender=BIG),
        ):
            with pytest.raises(TooLarge):
                await call
        record = await task.record()
        assert (record.state, record.cancel_requested_at) == (State.AWAITING_INPUT, None)


@pytest.mark.parametrize("given", [{"name": 5}, {"type": None}, {"url": 5}, {"media_type": b"x"}], ids=repr)
async def test_an_artifact_that_no_record_could_hold_is_refused(given):
    fresh = Outrider()

    @fresh.tool(max_failures=1)
    async def leave(task: TaskContext) -> None:
        await task.artifact(**{"name": "report", "url": "x:y", **given})

    async with open_test(fresh) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("leave")
        await runtime.run_until_idle()
        (record,) = await runtime.tasks.list()
        assert record.error is not None
        assert "is text" in record.error.message
        assert record.id == task.id
