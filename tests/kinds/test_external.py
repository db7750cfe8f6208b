"""`external`: somebody else's program does the task, with the number of its attempt as its token."""

from __future__ import annotations

from datetime import timedelta

import pytest

from outrider import Outrider, TaskOptions
from outrider.core.errors import InvalidArguments, LeaseLost, TaskCanceled, TaskFailed
from outrider.core.task import State
from outrider.testing import Store, TestRuntime, open_test

pytestmark = pytest.mark.anyio

app = Outrider()


@app.tool
def echo(text: str) -> str:
    return text


async def claimed(runtime: TestRuntime, holder: str = "builder") -> tuple[str, int]:
    (record,) = await runtime.external.claim(holder)
    return record.id, record.attempt


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_program_takes_a_task_reports_and_ends_it(store: Store):
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        task = await session.create("external", {"what": "build"})
        await runtime.run_until_idle()
        assert (await task.record()).phase == "ready"
        assert await runtime.external.claim("builder", name="other") == []
        id, attempt = await claimed(runtime)
        assert id == task.id
        assert await runtime.external.claim("another") == []
        await runtime.external.report(id, attempt, current=1, total=2, detail="linking", output="line\n")
        record = await task.record()
        assert (record.state, record.worker_id, record.state_detail) == (State.RUNNING, "external:builder", "linking")
        assert [each.text async for each in runtime.tasks.output(id, follow=False)] == ["line\n"]
        await runtime.external.succeed(id, attempt, {"ok": True}, summary="built")
        assert await task.result() == {"ok": True}
        with pytest.raises(LeaseLost):
            await runtime.external.report(id, attempt)
        (ended,) = await task.attempts()
        assert (ended.worker_id, ended.ending) == ("external:builder", "succeeded")


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_who_stops_reporting_loses_the_task_and_who_reports_keeps_it(store: Store):
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        task = await session.create("external", {}, options=TaskOptions(idle_timeout=60))
        id, attempt = await claimed(runtime)
        for _ in range(5):
            await runtime.advance(timedelta(seconds=40))
            await runtime.external.report(id, attempt)
        assert (await task.record()).failures == 0
        await runtime.advance(timedelta(seconds=61))
        record = await task.record()
        assert (record.state, record.phase, record.failures) == (State.RUNNING, "resuming", 1)
        with pytest.raises(LeaseLost):
            await runtime.external.report(id, attempt)
        with pytest.raises(LeaseLost):
            await runtime.external.succeed(id, attempt, 1)
        assert await claimed(runtime, "second") == (id, attempt + 1)
        await runtime.external.succeed(id, attempt + 1, 2)
        assert await task.result() == 2


async def test_without_any_worker_a_claim_frees_what_was_lost():
    async with open_test(app, worker=False) as runtime:
        session = await runtime.sessions.create()
        await session.create("external", {}, options=TaskOptions(max_failures=5))
        id, attempt = await claimed(runtime)
        assert await runtime.external.claim("second") == []
        runtime.clock.advance(timedelta(seconds=61))
        assert await claimed(runtime, "second") == (id, attempt + 1)


async def test_a_task_that_is_lost_too_often_has_failed():
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        task = await session.create("external", {}, options=TaskOptions(max_failures=2))
        for _ in range(2):
            await claimed(runtime)
            await runtime.advance(timedelta(seconds=61))
        with pytest.raises(TaskFailed) as failure:
            await task.result()
        assert failure.value.kind == "orphaned"


async def test_a_question_waits_for_its_answer_with_or_without_its_program():
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        task = await session.create("external", {"name": "ci"})
        (record,) = await runtime.external.claim("builder", name="ci")
        question = await runtime.external.ask(task.id, record.attempt, "Deploy?", expected={"type": "boolean"})
        assert (await task.record()).state is State.AWAITING_INPUT
        await runtime.external.give_back(task.id, record.attempt)
        await runtime.advance(timedelta(days=1))
        assert await runtime.external.claim("builder", name="ci") == []
        await task.answer(True)
        (record,) = await runtime.external.claim("builder", name="ci")
        assert (record.attempt, record.failures) == (2, 0)
        (answered,) = await task.requests()
        assert (answered.id, answered.answer) == (question.id, True)
        await runtime.external.succeed(task.id, 2)


async def test_a_cancel_is_seen_by_the_program_and_forced_when_it_is_not():
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        first, second = [await session.create("external", {}) for _ in range(2)]
        records = await runtime.external.claim("builder", limit=2)
        for each in (first, second):
            await each.cancel()
        seen = await runtime.external.report(first.id, records[0].attempt)
        assert seen.cancel_requested_at is not None
        assert (await runtime.external.stopped(first.id, records[0].attempt)).state is State.CANCELED
        await runtime.advance(timedelta(seconds=11))
        with pytest.raises(TaskCanceled):
            await second.result()


async def test_a_failure_is_tried_again_and_a_result_is_checked():
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        task = await session.create("external", {}, options=TaskOptions(result_schema={"type": "integer"}))
        id, attempt = await claimed(runtime)
        assert (await runtime.external.fail(id, attempt, "no disk", kind="disk")).state is State.QUEUED
        await runtime.advance(timedelta(minutes=5))
        id, attempt = await claimed(runtime)
        await runtime.external.succeed(id, attempt, "text")
        with pytest.raises(TaskFailed) as failure:
            await task.result()
        assert failure.value.kind == "schema_mismatch"


async def test_tasks_of_other_kinds_and_odd_names_are_refused():
    async with open_test(app, worker=False) as runtime:
        session = await runtime.sessions.create()
        other = await session.spawn(echo, text="a")
        with pytest.raises(InvalidArguments):
            await runtime.external.report(other.id, 1)
        with pytest.raises(InvalidArguments):
            await session.create("external", {"name": "no name"})
        with pytest.raises(InvalidArguments):
            await runtime.external.claim("no\nname")
        with pytest.raises(LeaseLost):
            await runtime.external.report("task_none", 1)


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_what_no_record_could_hold_is_refused_and_every_list_still_reads(store: Store):
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        await session.create("external", {"what": "build"})
        id, attempt = await claimed(runtime)
        external = runtime.external
        for call in (
            lambda: external.report(id, attempt, unit=5),  # type: ignore[arg-type]  # that is what is tried
            lambda: external.report(id, attempt, current="abc"),  # type: ignore[arg-type]  # likewise
            lambda: external.report(id, attempt, current=float("nan")),
            lambda: external.report(id, attempt, detail=5),  # type: ignore[arg-type]  # likewise
            lambda: external.report(id, attempt, output=5),  # type: ignore[arg-type]  # likewise
            lambda: external.report(id, attempt, output="x", stream=""),
            lambda: external.ask(id, attempt, 5),  # type: ignore[arg-type]  # likewise
            lambda: external.fail(id, attempt, 5),  # type: ignore[arg-type]  # likewise
            lambda: external.fail(id, attempt, "no", kind=5),  # type: ignore[arg-type]  # likewise
            lambda: external.succeed(id, attempt, summary=5),  # type: ignore[arg-type]  # likewise
        ):
            with pytest.raises(InvalidArguments):
                await call()
        assert [each.id for each in await runtime.tasks.list()] == [id]
        await external.report(id, attempt, output="fine\n")
        await external.succeed(id, attempt)
