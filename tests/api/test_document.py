"""The OpenAPI document: complete, with examples that hold, and of all that the façade can."""

import inspect
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from outrider.api import create_api
from outrider.api.examples import EXAMPLES
from outrider.runtime.answer_links import AnswerLinks
from outrider.runtime.archive import Archive
from outrider.runtime.audit import Audit
from outrider.runtime.doctor import Doctor
from outrider.runtime.external import ExternalTasks
from outrider.runtime.facade import Runtime
from outrider.runtime.handles import SessionHandle, TaskHandle
from outrider.runtime.inbox import Inbox
from outrider.runtime.keys import Keys
from outrider.runtime.organizations import Organizations
from outrider.runtime.queue import Queue
from outrider.runtime.retention import RetentionPolicies
from outrider.runtime.secrets import Secrets
from outrider.runtime.sessions import Sessions
from outrider.runtime.tasks import Tasks
from outrider.runtime.webhooks.endpoints import Webhooks
from tests.api.conftest import Api

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "http-api.md").read_text()
SOURCES = Path(inspect.getfile(create_api)).parent

STREAMS = "a stream: Server-Sent Events"
HANDLE = "a handle for programs in Python; its verbs are those of the noun, by id"
LOCAL = "of the machine that the database is on"
SHORT = "a task of that kind is created"
ELSEWHERE = {
    "Runtime.task": HANDLE,
    "Runtime.backup": LOCAL,
    "Runtime.within": "what each route does with who asks",
    "Runtime.events": STREAMS,
    "Runtime.snapshot": STREAMS,
    "Sessions.snapshot": STREAMS,
    "Tasks.snapshot": STREAMS,
    "Sessions.events": STREAMS,
    "Tasks.events": STREAMS,
    "Tasks.create": "submit, which says whether the task was there",
    "Tasks.create_many": "submit, which takes tasks of any kinds",
    "Webhooks.deliver": "done by every server and worker",
    "Doctor.is_alive": "in the record of each worker",
    "Doctor.readiness": "GET /ready, which is no route of the API",
    "Audit.record": "each request that changes anything is recorded",
    "Secrets.seal": "for what the server keeps",
    "Secrets.open_sealed": "for what the server keeps",
    "SessionHandle.events": STREAMS,
    "SessionHandle.spawn": SHORT,
    "SessionHandle.spawn_many": SHORT,
    "SessionHandle.spawn_agent": SHORT,
    "SessionHandle.spawn_process": SHORT,
    "SessionHandle.hand_off": SHORT,
    "SessionHandle.open_peer": SHORT,
    "SessionHandle.create": SHORT,
    "SessionHandle.tasks": "Tasks.list, by session",
}
"""What no route calls, and why."""

BY_ID = {"SessionHandle": Sessions, "TaskHandle": Tasks}
"""A verb of a handle that its noun has as well is called there."""

NOUNS = {
    "runtime": Runtime,
    "runtime.sessions": Sessions,
    "runtime.tasks": Tasks,
    "runtime.inbox": Inbox,
    "runtime.queue": Queue,
    "runtime.external": ExternalTasks,
    "runtime.doctor": Doctor,
    "runtime.webhooks": Webhooks,
    "runtime.answer_links": AnswerLinks,
    "runtime.retention": RetentionPolicies,
    "runtime.archive": Archive,
    "runtime.organizations": Organizations,
    "runtime.keys": Keys,
    "runtime.audit": Audit,
    "runtime.secrets": Secrets,
    "session": SessionHandle,
    "task": TaskHandle,
}


COMING = {"keys", "organizations", "audit", "secrets"}
"""Nouns whose routes come with the keys that guard them."""


def verbs(kind: type) -> Iterator[str]:
    for name, found in vars(kind).items():
        if not name.startswith("_") and inspect.isfunction(found):
            yield name


async def test_every_verb_of_the_facade_has_a_route_or_a_reason_why_not(api: Api):
    nouns = {f"runtime.{name}" for name in vars(api.runtime) if name not in {"services", "work", *COMING}}
    assert nouns <= set(NOUNS), "a noun of the façade is not looked at here"
    code = "\n".join(path.read_text() for path in SOURCES.glob("*.py"))
    missing = []
    for noun, kind in NOUNS.items():
        for verb in verbs(kind):
            name = f"{kind.__name__}.{verb}"
            by_id = kind.__name__ in BY_ID and (
                hasattr(BY_ID[kind.__name__], verb) or kind is TaskHandle or verb in ("record", "inbox")
            )
            called = re.search(rf"\b{re.escape(noun)}\.{verb}\(", code) or (
                # A session that was looked for has the verbs of the noun.
                kind in (SessionHandle, Sessions)
                and re.search(rf"(sessions\.get\(session_id\)\)|\bsession)\.{verb}\(", code)
            )
            assert not (called and name in ELSEWHERE), f"{name} has a route, and need not be excused"
            if not (called or by_id or name in ELSEWHERE):
                missing.append(name)
    assert missing == []


async def test_every_named_schema_has_an_example_that_holds_and_every_example_has_a_schema(api: Api):
    document = api.app.openapi()
    schemas = document["components"]["schemas"]
    assert set(EXAMPLES) <= set(schemas)
    for name, schema in schemas.items():
        for example in schema.get("examples", ()):
            jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", **document}).validate(example)
    forms = {name for name in schemas if name.endswith(("Form", "Record", "Receipt"))}
    nested = {"RetryRecord", "TimeoutsRecord", "ProgressRecord", "UsageRecord", "LinksRecord", "ErrorRecord"}
    nested |= {"CheckpointRecord", "AccountRecord", "LoadForm", "DocumentForm"}
    assert {name for name in forms - nested if "examples" not in schemas[name]} == set()


async def test_every_operation_has_a_short_name_a_summary_and_its_problems(api: Api):
    document = json.loads((await api.get("/v1/openapi.json")).content)
    assert document["openapi"].startswith("3.1")
    names = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            names.append(operation["operationId"])
            assert re.fullmatch(r"[a-z]+(_[a-z]+)*", names[-1])
            assert operation["description"], path
            assert operation["tags"], path
            assert {"400", "401", "403", "422", "429", "500", "503"} <= set(operation["responses"]), (path, method)
            for status, answer in operation["responses"].items():
                if int(status) >= 400 and "content" in answer:
                    assert list(answer["content"]) == ["application/problem+json"]
    assert len(names) == len(set(names))


def routes(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}


async def test_the_page_lists_the_routes_that_there_are_with_scope_body_and_answer(api: Api):
    document = api.app.openapi()
    listed = set(re.findall(r"^\| `([A-Z]+) (/v1[^` ]*)` \|", PAGE, re.MULTILINE))
    assert listed == routes(document)
    filled = runpy.run_path(str(DOCS / "routes.py"))["filled"](PAGE, document)
    assert filled.splitlines() == PAGE.splitlines(), "run docs/routes.py: a route is another by now"


async def test_each_route_says_that_a_body_may_have_another_form_and_that_the_store_may_be_full(api: Api):
    for path, methods in api.app.openapi()["paths"].items():
        for method, operation in methods.items():
            takes_json = "application/json" in operation.get("requestBody", {}).get("content", {})
            answers = operation["responses"]
            assert (("415" in answers), ("507" in answers)) == (takes_json, method != "get"), (method, path)
            for status in {"415", "507"} & {*answers}:
                assert answers[status]["content"] == answers["500"]["content"]
