"""Fragments of the documents: blocks that are part of something run here with the rest of it, or where it is said.

A page that gets its first fragment is to be run here too; programs, which are whole, run in test_programs.
"""

import ast
import json
import re
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from outrider import Outrider, SessionHandle, TaskContext, TaskFailed, TaskOptions
from outrider.agents import engine
from outrider.agents.scripted import Call, Reply, register, replies
from outrider.core.session import Session
from outrider.settings import LeaseTimes
from outrider.testing import TestRuntime, open_test
from tests.api.conftest import Api
from tests.api.conftest import opened as opened_api
from tests.docs.programs import EXAMPLES, ROOT

pytestmark = pytest.mark.anyio

DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
RUN_ELSEWHERE = {"context.md": "test_context", "tutorial.md": "test_tutorial"}


def fragments(page: str) -> list[str]:
    return blocks(page, "python fragment")


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_every_page_with_fragments_is_run_by_a_test():
    pages = {path.name for path in DOCUMENTS if "```python fragment\n" in path.read_text()}
    there = set(re.findall(r'fragments\("([\w-]+\.md)"\)', (ROOT / "tests" / "docs" / "test_fragments.py").read_text()))
    assert pages - set(RUN_ELSEWHERE) == there


def test_every_block_names_its_language_so_that_no_command_hides_from_the_tests():
    for path in DOCUMENTS:
        openings = re.findall(r"^```(.*)$", path.read_text(), re.MULTILINE)[::2]
        assert "" not in openings, path.name


async def executed(source: str, **names: Any) -> dict[str, Any]:
    """The names after a fragment, which may await."""
    code = compile(source, "fragment", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if (running := eval(code, names)) is not None:
        await running
    return names


@asynccontextmanager
async def opened(app: Outrider, agent: str | None = None) -> AsyncIterator[tuple[TestRuntime, SessionHandle]]:
    async with open_test(app) as runtime:
        yield runtime, await runtime.sessions.create(agent=agent)


async def test_the_fragment_of_configuration_sets_what_it_says():
    (source,) = fragments("configuration.md")
    settings = (await executed(source))["app"].settings
    assert (settings.concurrency, settings.lease) == (20, LeaseTimes(renew=1, cancel=3, end=4, lost=5))


async def test_the_fragments_of_agents_start_one_answer_an_approval_and_ask_for_a_connection():
    start, answer, connection = fragments("agents.md")
    app = Outrider()
    paid: list[int] = []

    @app.tool
    def read_note(name: str) -> str:
        return name

    @app.tool(requires_approval=True)
    def refund(order: str, cents: int) -> str:
        paid.append(cents)
        return order

    register("payer", replies(Reply(calls=(Call("refund", {"order": "A-17", "cents": 4900}),)), Reply("done")))
    asked: list[str] = []

    async def has_token(organization_id: str) -> bool:
        asked.append(organization_id)
        return True

    await executed(connection, app=app, Session=Session, accounts=SimpleNamespace(has_token=has_token))
    async with opened(app) as (runtime, session):
        started = (await executed(start, session=session))["task"]
        assert (await started.record()).kind == "subagent"
        task = await session.spawn_agent("Pay.", model="scripted:payer", tools=["refund"])
        await runtime.run_until_idle()
        await executed(answer, task=task)
        issue = await session.spawn("open_issue", title="It is broken")
        await runtime.run_until_idle()
        assert (await task.record()).state == (await issue.record()).state == "succeeded"
    assert paid == [2500], "the arguments of the answer"
    assert asked


async def test_the_fragments_of_budgets_tell_what_was_used_and_state_the_terms_of_a_model():
    usage, terms = fragments("budgets.md")
    app = Outrider()
    await executed(terms, app=app)
    async with opened(app) as (runtime, session):
        task = await session.spawn_agent("Hello", model="scripted")
        await runtime.run_until_idle()
        told = await executed(usage, session=session, outrider=runtime, task=task)
    assert told["spent"].requests == told["usage"].requests == 1


async def test_the_fragments_of_sessions_interrupt_fork_and_open_a_peer():
    interrupt, fork, peer = fragments("sessions.md")
    app = Outrider()
    app.agent("parrot", model="scripted")
    app.agent("gardener", model="scripted")
    async with opened(app, "parrot") as (runtime, session):
        turn = await session.send("Hello")
        await runtime.run_until_idle()
        made = await executed(f"{interrupt}{fork}{peer}", session=session, turn=turn, outrider=runtime, print=id)
        assert (await made["told"].heard_by()).id != turn.id
        for each in ("other", "earlier"):
            assert (await made[each].record()).forked_from == session.id
        assert (await made["peer"].record()).title == "Roses"


async def test_the_fragment_of_operations_finds_the_tasks_that_it_describes():
    (source,) = fragments("operations.md")
    async with opened(Outrider()) as (runtime, session):
        older = await session.spawn_agent("Hello", model="scripted:who is in no script")
        options = TaskOptions(name="the quarterly report", labels={"team": "red"})
        task = await session.spawn_agent("Hello", model="scripted:who is in no script", options=options)
        for each in (older, task):
            with pytest.raises(TaskFailed):
                await each.result()
        now = SimpleNamespace(now=lambda zone: runtime.clock.time.astimezone(zone))
        found = await executed(source, runtime=runtime, datetime=now, timedelta=timedelta, UTC=UTC)
    assert [each.id for each in found["page"]] == [task.id]
    assert [each.id for each in found["more"]] == [older.id]


async def test_the_fragment_of_webhooks_makes_a_link_for_a_question():
    (source,) = fragments("webhooks.md")
    app = Outrider()

    @app.tool
    async def publish(task: TaskContext) -> bool:
        return await task.ask("Publish?", bool)

    async with opened(app) as (runtime, session):
        task = await session.spawn("publish")
        await runtime.run_until_idle()
        question = (await task.record()).input_request
        assert question is not None
        link = (await executed(source, runtime=runtime, request_id=question.id))["link"]
        assert (link.request_id, link.url) == (question.id, None)


def test_the_fragments_of_engines_define_what_the_example_and_the_protocol_do():
    journaled, protocol = fragments("engines.md")
    assert definitions(journaled) <= definitions((EXAMPLES / "openai_agents.py").read_text())
    assert definitions(protocol) <= {"Engine"} | {f"Engine.{each}" for each in vars(engine.Engine)}


def definitions(source: str) -> set[str]:
    """The classes and functions of a source, and what is directly in a class."""
    defined = set[str]()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            inner = {each.name for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
            defined |= {node.name, *(f"{node.name}.{each}" for each in inner)}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            defined.add(node.name)
    return defined


async def test_the_requests_of_the_http_page_are_answered_and_its_problem_is_the_one_that_comes():
    requests = [line for block in blocks("http-api.md", "sh") for line in block.replace("\\\n", "").splitlines()]
    async with opened_api(Outrider()) as api:
        answers = [await asked(api, line) for line in requests if line.startswith("curl ")]
        problem = (await api.get("/v1/tasks/task_x")).json()
    assert [answer.status_code for answer in answers] == [201, 201, 200]
    (shown, *_) = blocks("http-api.md", "json")
    assert {**problem, "request_id": ""} == {**json.loads(shown), "request_id": ""}


async def asked(api: Api, line: str) -> Any:
    """What a line of curl asks, in this process."""
    words = iter(shlex.split(line)[1:])
    method, headers, body, url = "GET", dict[str, str](), None, ""
    for word in words:
        if word == "-X":
            method = next(words)
        elif word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name] = value
        elif word == "-d":
            body = next(words)
        else:
            url = word.removeprefix("localhost:8321")
    return await api.request(method, url, headers=headers, content=body)
