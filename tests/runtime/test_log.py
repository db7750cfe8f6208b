"""The log: one line a transition, which says what moved from where to where, by whom and why."""

import logging
from typing import Any

import pytest

from outrider import Failure, Outrider, TaskContext, TaskOptions
from outrider.testing import open_test

pytestmark = pytest.mark.anyio

app = Outrider()
ORIGIN = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


@app.tool
async def asks(task: TaskContext) -> bool:
    return await task.ask("Go on?", bool)


@app.tool
async def fails(task: TaskContext) -> None:
    raise Failure("no\nluck event='task moved'", kind="out_of_luck")


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The fields of the lines about transitions."""
    found = [getattr(record, "outrider", {}) for record in caplog.records]
    return [fields for fields in found if fields.get("event") == "task moved"]


async def test_every_transition_is_one_line_with_where_it_came_from_and_went(store, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "outrider")
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("asks", options=TaskOptions(name="a name", origin=ORIGIN))
        await runtime.run_until_idle()
        await runtime.advance(5)
        await task.answer(True)
        assert await task.result() is True
        record = await runtime.tasks.get(task.id)
    found = lines(caplog)
    assert [(each["by"], each["from"], each["to"]) for each in found] == [
        ("Created", None, "queued"),
        ("Claimed", "queued", "running"),
        ("Asked", "running", "awaiting_input"),
        ("Parked", "awaiting_input", "awaiting_input"),
        ("Answered", "awaiting_input", "running"),
        ("Claimed", "running", "running"),
        ("Succeeded", "running", "succeeded"),
    ]
    assert [each["version"] for each in found] == list(range(found[0]["version"], record.core.version + 1))
    assert [each["attempt"] for each in found] == [1, 1, 1, 1, 1, 2, 2]
    assert {each["worker"] for each in found if each["by"] not in ("Created", "Answered")} != {None}
    for each in found:
        assert (each["task"], each["session"], each["kind"], each["name"]) == (
            task.id,
            session.id,
            "background_tool",
            "a name",
        )
        assert each["organization"] == "org_default"
        assert each["trace"] == "0af7651916cd43dd8448eb211c80319c"


async def test_a_failure_and_a_cancel_are_logged_with_their_reason(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "outrider")
    async with open_test(app, store="memory") as runtime:
        session = await runtime.sessions.create()
        await session.spawn("fails")
        await runtime.run_until_idle()
        task = await session.spawn("asks", options=TaskOptions(delay=60))
        await task.cancel(reason="not wanted")
    by = {each["by"]: each for each in lines(caplog)}
    assert (by["Failed"]["error"], by["Failed"]["to"]) == ("out_of_luck", "failed")
    assert by["Failed"]["reason"] == "no\nluck event='task moved'"
    assert by["CancelRequested"]["reason"] == "not wanted"
    (text,) = [each.getMessage() for each in caplog.records if "out_of_luck" in each.getMessage()]
    assert "\n" not in text
    assert r"""reason="no\nluck event='task moved'" """.strip() in text


async def test_what_is_not_to_be_logged_is_not_even_put_together(monkeypatch: pytest.MonkeyPatch, caplog):
    caplog.set_level(logging.WARNING, "outrider")
    monkeypatch.setattr("outrider.runtime.telemetry.trace_id", lambda task: pytest.fail("a line was put together"))
    async with open_test(app, store="memory") as runtime:
        session = await runtime.sessions.create()
        await (await session.spawn("asks")).cancel()
    assert lines(caplog) == []


async def test_a_field_may_be_called_like_a_part_of_the_line(caplog: pytest.LogCaptureFixture):
    own = Outrider()

    @own.tool
    async def tells(task: TaskContext) -> None:
        task.log.warning("it is so", event="mine", method_name="m", self=1)
        task.log.warning(event="alone")

    async with open_test(own) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("tells")
        await runtime.run_until_idle()
        await task.result()
        found = [getattr(record, "outrider", {}) for record in caplog.records]
        (told,) = [fields for fields in found if fields.get("event") == "it is so"]
        assert (told["task"], told["event_"], told["method_name_"], told["self_"]) == (task.id, "mine", "m", 1)
        assert [fields["event"] for fields in found if fields.get("event") == "alone"] == ["alone"]
