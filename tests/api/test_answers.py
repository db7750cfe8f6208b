"""A signed link answers one question, of one organization, for a while, and only by its form."""

import base64
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from outrider import Outrider, TaskContext
from outrider.core.errors import InvalidAnswer, InvalidLink, NotFound, RequestClosed
from outrider.runtime.webhooks.duty import Webhooking
from outrider.testing import TestRuntime, open_test
from tests.api.conftest import Api
from tests.webhooks.receivers import LOOPBACK, receiving

pytestmark = pytest.mark.anyio


@pytest.fixture
async def runtime() -> AsyncIterator[TestRuntime]:
    app = Outrider()

    @app.tool
    async def ask(task: TaskContext, prompt: str, expected: dict[str, Any] | None = None) -> Any:
        return await task.ask(prompt, expected, details={"html": "<script>alert(1)</script>"})

    @app.tool
    async def approve(task: TaskContext) -> Any:
        return await task.ask("Deploy?", {"anyOf": [{"type": "boolean"}, {"type": "object"}]}, kind="approval")

    webhooks = replace(LOOPBACK, public_url="https://outrider.example/")
    async with open_test(app, webhooks=webhooks) as runtime:
        yield runtime


async def asked(runtime: TestRuntime, prompt: str = "Go?", schema: Any = None) -> Any:
    session = await runtime.sessions.create()
    task = await session.spawn("ask", prompt=prompt, expected=schema)
    await runtime.run_until_idle()
    return (await task.record()).input_request


async def test_a_phone_answers_by_pressing_a_button(runtime: TestRuntime):
    request = await asked(runtime, "Go <b>now</b>?", {"type": "boolean"})
    link = await runtime.answer_links.create(request.id, by="alice@example.com")
    assert link.url == f"https://outrider.example{link.path}"
    async with Api(runtime) as api:
        page = await api.get(link.path)
        assert page.status_code == 200
        assert "Go &lt;b&gt;now&lt;/b&gt;?" in page.text
        assert "<script" not in page.text
        assert re.findall(r"<button[^>]*>(\w+)", page.text) == ["Yes", "No"]
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert page.headers["referrer-policy"] == "no-referrer"
        assert "noindex" in page.headers["x-robots-tag"]
        assert (await api.head(link.path)).status_code == 200
        assert (await runtime.tasks.requests(request.task_id))[0].status == "pending"  # looking answers nothing
        assert (await api.post(link.path, data={"choice": "0"})).status_code == 200
        (closed,) = await runtime.tasks.requests(request.task_id)
        assert (closed.answer, closed.answered_by, closed.answered_via) == (True, "alice@example.com", "link")
        again = await api.post(link.path, data={"choice": "1"})
        assert (again.status_code, "was answered" in again.text) == (409, True)
        shown = await api.get(link.path)
        assert (shown.status_code, "answered by alice@example.com" in shown.text) == (409, True)
        assert "<form" not in shown.text


@pytest.mark.parametrize(
    ("schema", "buttons", "typed", "answer", "wrong"),
    [
        (None, [], "a\r\nb <i>", "a\nb <i>", None),
        ({"type": "string", "minLength": 3}, ["Send"], "long", "long", "no"),
        ({"type": "integer"}, ["Send"], " 5 ", 5, "five"),
        ({"type": "object", "required": ["a"]}, ["Send"], '{"a": 1}', {"a": 1}, '{"b": 1}'),
        ({"anyOf": [{"enum": ["x", "y"]}, {"type": "string"}]}, ["x", "y", "Send"], "z", "z", None),
    ],
    ids=["nothing", "text", "number", "json", "choices and text"],
)
async def test_what_is_typed_is_read_as_what_is_expected(
    runtime: TestRuntime, schema: Any, buttons: list[str], typed: str, answer: Any, wrong: str | None
):
    request = await asked(runtime, "What?", schema)
    link = await runtime.answer_links.create(request.id)
    async with Api(runtime) as api:
        page = await api.get(link.path)
        assert re.findall(r"<button[^>]*>(\w+)", page.text) == (buttons or ["Send"])
        if wrong is not None:
            refused = await api.post(link.path, data={"typed": wrong})
            assert (refused.status_code, 'role="alert"' in refused.text) == (422, True)
            assert (await runtime.tasks.requests(request.task_id))[0].status == "pending"
        assert (await api.post(link.path, data={"typed": typed})).status_code == 200
    assert (await runtime.tasks.requests(request.task_id))[0].answer == answer


async def test_enter_sends_what_is_typed_and_never_a_choice(runtime: TestRuntime):
    request = await asked(runtime, "How many?", {"anyOf": [{"type": "null"}, {"type": "integer"}]})
    link = await runtime.answer_links.create(request.id)
    async with Api(runtime) as api:
        choosing, typing = re.findall(r"<form.*?</form>", (await api.get(link.path)).text, re.DOTALL)
        assert ('name="choice"' in choosing, "<input" in choosing) == (True, False)
        assert ('name="choice"' in typing, "<input" in typing) == (False, True)
        both = await api.post(link.path, data={"choice": "0", "typed": "42"})
        assert (both.status_code, "not both" in both.text, 'value="42"' in both.text) == (422, True, True)
        assert (await api.post(link.path, data={"typed": "42"})).status_code == 200
    assert (await runtime.tasks.requests(request.task_id))[0].answer == 42


async def test_a_link_is_made_over_http(runtime: TestRuntime):
    request = await asked(runtime)
    async with Api(runtime) as api:
        made = await api.post(f"/v1/requests/{request.id}/links", json={"choices": ["yes"], "by": "bob"})
        assert (made.status_code, made.json()["request_id"]) == (201, request.id)
        assert (await api.post(made.json()["path"], data={"choice": "0"})).status_code == 200
        again = await api.post(f"/v1/requests/{request.id}/links", json={})
        assert again.json()["code"] == "request_closed"


async def test_only_the_choices_that_a_link_was_made_with_are_given(runtime: TestRuntime):
    request = await asked(runtime, "Which?", {"enum": ["a", "b", "c"]})
    link = await runtime.answer_links.create(request.id, choices=["b"])
    with pytest.raises(InvalidAnswer):
        await runtime.answer_links.create(request.id, choices=["z"])
    async with Api(runtime) as api:
        assert re.findall(r"<button[^>]*>(\w+)", (await api.get(link.path)).text) == ["b"]
        for ugly in ({"choice": "1"}, {"choice": "-1"}, {"typed": "a"}, {}, {"choice": "9" * 400}, {"choice": "²"}):
            assert (await api.post(link.path, data=ugly)).status_code == 422, ugly
        for body in (b"\xff\xfe", b"choice=%", b"&" * 100, b"typed=" + b"x" * 300_000):
            assert (await api.post(link.path, content=body)).status_code in (413, 422)
        assert (await api.post(link.path, data={"choice": "0"})).status_code == 200


async def test_an_approval_is_given_or_denied_and_nothing_else(runtime: TestRuntime):
    session = await runtime.sessions.create()
    task = await session.spawn("approve")
    await runtime.run_until_idle()
    (request,) = (await task.record()).input_requests
    link = await runtime.answer_links.create(request.id)
    async with Api(runtime) as api:
        assert re.findall(r"<button[^>]*>(\w+)", (await api.get(link.path)).text) == ["Approve", "Deny"]
        assert (await api.post(link.path, data={"typed": '{"approved": true}'})).status_code == 422


async def test_a_link_that_is_forged_cut_or_of_another_store_opens_nothing(runtime: TestRuntime):
    request, other = await asked(runtime), await asked(runtime)
    token = (await runtime.answer_links.create(request.id)).path.removeprefix("/answer/")
    said, seal = token.split(".")
    raw = base64.urlsafe_b64decode(said + "=" * (-len(said) % 4))
    swapped = base64.urlsafe_b64encode(raw.replace(request.id.encode(), other.id.encode())).rstrip(b"=").decode()
    assert swapped != said
    async with open_test(Outrider(), worker=False) as elsewhere:
        await elsewhere.sessions.create()
        with pytest.raises(InvalidLink):
            await elsewhere.answer_links.form(token)
    forged = [f"{swapped}.{seal}", said, f"{said}.", f".{seal}", f"{said}.{seal[:-2]}", token + "=", token + ".x"]
    forged += [f"{said}.{'A' * len(seal)}", "x", "..", "%00", "é", "A" * 9000, token.swapcase()]
    async with Api(runtime) as api:
        for each in forged:
            for answer in (await api.get(f"/answer/{each}"), await api.post(f"/answer/{each}", data={"choice": "0"})):
                assert answer.status_code == 404, each
    assert (await runtime.tasks.requests(request.task_id))[0].status == "pending"


async def test_a_link_is_good_for_its_time_and_question(runtime: TestRuntime):
    request = await asked(runtime)
    link = await runtime.answer_links.create(request.id, expires=60)
    runtime.clock.advance(61)
    async with Api(runtime) as api:
        assert (await api.get(link.path)).status_code == 410
        assert (await api.post(link.path, data={"typed": "x"})).status_code == 410
    longer = await runtime.answer_links.create(request.id)
    await runtime.tasks.cancel(request.task_id)
    async with Api(runtime) as api:
        assert "was withdrawn" in (await api.get(longer.path)).text
        assert (await api.post(longer.path, data={"typed": "x"})).status_code == 409
    with pytest.raises(RequestClosed):
        await runtime.answer_links.create(request.id)
    with pytest.raises(NotFound):
        await runtime.answer_links.create("req_none")


async def test_the_webhook_that_tells_of_a_question_has_a_link_to_answer_it(runtime: TestRuntime):
    async with receiving() as receiver, Api(runtime) as api:
        hook = await runtime.webhooks.create(receiver.url)
        request = await asked(runtime, "Go?", {"type": "boolean"})
        duty = Webhooking(runtime.services)
        await duty.once()
        await runtime.webhooks.replay(hook.id, [(await runtime.webhooks.deliveries(hook.id))[0].id])
        await duty.once()
        await duty.leave()
        first, second = receiver.requests
        assert first.body == second.body  # the same each time
        (link,) = first.told["data"]["links"]
        assert link["request_id"] == request.id
        path = link["url"].removeprefix("https://outrider.example")
        assert (await api.post(path, data={"choice": "1"})).status_code == 200
        (kept,) = await runtime.webhooks.deliveries(hook.id)
        assert "links" not in kept.payload["data"]
