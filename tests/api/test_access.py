"""Who may do what over HTTP: every route, with ids of somebody else, with each scope, and with no good key at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import Message

from outrider import Outrider, TaskOptions
from outrider.api import create_api, recording
from outrider.api.app import ROUTERS
from outrider.core.task import DEFAULT_ORGANIZATION
from outrider.core.values import evolve
from outrider.runtime.bounds import Bounds
from outrider.runtime.facade import Runtime
from outrider.runtime.keys import SCOPES, Scope
from outrider.runtime.sessions import Sessions
from outrider.settings import AccessSettings, ServeSettings, StreamSettings
from tests.facts import until

pytestmark = pytest.mark.anyio

OWN = "org_a"
HOOK = "https://hooks.example/"
COLLECTIONS = ("keys", "audit", "pin", "retention", "webhook", "task_webhook")


@dataclass(frozen=True)
class Ids:
    """What somebody else's things are called, or what nothing is called."""

    session_id: str
    task_id: str
    ended: str
    request_id: str
    key_id: str
    organization_id: str
    receipt: str
    attempt: int
    pinned_id: str
    webhook_id: str
    delivery_id: str = "dlv_none"
    token: str = "e30.e30"
    path: str = "hidden.txt"


NOTHING = Ids(
    *("session_none", "task_none", "task_none", "req_none", "key_none", "org_none", "task_none.1.1", 1),
    *("session_none", "whk_none"),
)

BODIES: dict[str, Callable[[Ids], dict[str, Any]]] = {
    "create_session": lambda _: {},
    "fork_session": lambda _: {},
    "send_to_session": lambda _: {"content": "hello"},
    "revoke_grant": lambda _: {"tool": "x"},
    "create_task": lambda it: {"kind": "external", "depends_on": [it.task_id]},
    "create_tasks": lambda it: {"tasks": [{"kind": "external", "depends_on": [it.task_id]}]},
    "wait_for_tasks": lambda it: {"task_ids": [it.task_id], "timeout": 0},
    "cancel_tasks": lambda it: {"ids": [it.task_id]},
    "retry_tasks": lambda it: {"ids": [it.ended]},
    "prune_tasks": lambda it: {"older_than": 0, "session_id": it.session_id},
    "import_task": lambda _: {"document": {}},
    "give_task_away": lambda _: {"document": {}},
    "answer_task": lambda it: {"answer": True, "request_id": it.request_id},
    "send_message": lambda _: {"content": "hello"},
    "reprioritize_task": lambda _: {"priority": 5},
    "claim_tasks": lambda _: {"holder": "robot"},
    "ask_in_attempt": lambda _: {"prompt": "What?"},
    "fail_attempt": lambda _: {"message": "no"},
    "acknowledge_inbox": lambda it: {"receipts": [it.receipt]},
    "renew_inbox": lambda it: {"receipts": [it.receipt]},
    "set_limit": lambda _: {"key": "k", "concurrency": 1},
    "pause": lambda it: {"session": it.session_id},
    "create_api_key": lambda it: {"name": "x", "organization_id": it.organization_id},
    "prune_audit": lambda it: {"older_than": 0, "organization_id": it.organization_id},
    "create_organization": lambda _: {"name": "x"},
    "create_webhook": lambda _: {"url": HOOK},
    "create_task_webhook": lambda _: {"url": HOOK},
    "update_session": lambda _: {"title": "x"},
    "update_webhook": lambda _: {"description": "x"},
    "disable_webhook": lambda _: {},
    "rotate_webhook_secret": lambda _: {},
    "replay_deliveries": lambda _: {},
    "create_answer_link": lambda _: {},
    "show_answer_link": lambda it: {"token": it.token},
    "answer_with_link": lambda it: {"token": it.token, "choice": 0},
    "set_retention": lambda _: {"age": None},
    "pin": lambda _: {},
}
"""What is sent where a body is needed, or names somebody's things."""

QUERIES: dict[str, Callable[[Ids], dict[str, Any]]] = {
    "find_task": lambda it: {"part": it.task_id},
    "list_tasks": lambda it: {"session_id": it.session_id},
    "remove_limit": lambda _: {"key": "k"},
    "resume": lambda it: {"session": it.session_id},
    "list_audit": lambda it: {"organization_id": it.organization_id},
    "verify_audit": lambda it: {"organization_id": it.organization_id},
    "list_api_keys": lambda it: {"organization_id": it.organization_id},
    "wait_for_task": lambda _: {"timeout": 0},
    "get_result": lambda _: {"timeout": 0},
}

NEEDS_ANOTHER_BODY = {"import_task", "give_task_away"}
"""What takes a whole document: tests/runtime/test_bounds.py has those of somebody else."""

NO_LINK = {"show_answer_link", "answer_with_link"}
"""What refuses links, whatever is wrong with them, by the same code."""

NOT_THE_SAME_TWICE = {"create_session", "create_organization", "list_audit", "get_caller"}
NOT_THE_SAME_TWICE |= {"set_retention", "reset_retention"}
"""They take no ids, or tell of what grows or changes with each request."""

READ_BY_POST = {"wait_for_tasks", "show_answer_link"}
FOR_ADMINS = ("/v1/keys", "/v1/audit", "/v1/organizations", "/v1/secrets", "/v1/webhooks")


class Client(httpx2.AsyncClient):
    """A client of a guarded application in this process, with a key."""

    def __init__(self, runtime: Runtime, token: str | None, settings: ServeSettings | None = None) -> None:
        name = (runtime, settings)
        app = _APPS.get(name) or create_api(runtime, settings or ServeSettings(access=AccessSettings()))
        _APPS.clear()
        _APPS[name] = app
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        super().__init__(transport=httpx2.ASGITransport(app), base_url="http://outrider", headers=headers)

    async def call(self, route: APIRoute, ids: Ids) -> httpx2.Response:
        """Ask for a route with these ids wherever it takes any."""
        method = next(iter(route.methods or ()))
        path = route.path_format
        for name in route.param_convertors:
            path = path.replace(f"{{{name}}}", str(getattr(ids, name)))
        body = BODIES.get(route.name)
        query = QUERIES.get(route.name)
        return await self.request(
            method, path, json=None if body is None else body(ids), params=None if query is None else query(ids)
        )


def _streams(route: APIRoute) -> bool:
    """Whether a route goes on for ever, whatever ids it takes: the one that takes none."""
    return route.path == "/v1/events"


ROUTES = [
    route
    for router in ROUTERS
    for route in router.routes
    # What is not in the document is the page behind a signed link, which needs no key; it has tests of its own.
    if isinstance(route, APIRoute) and not _streams(route) and route.include_in_schema
]
_APPS: dict[Any, FastAPI] = {}
"""The application that was made last: to make one takes longer than to ask for every route."""


@asynccontextmanager
async def opened() -> AsyncIterator[Runtime]:
    async with Outrider().open("memory://", worker=False) as runtime:
        await runtime.organizations.create("A", id=OWN)
        yield runtime


async def key(runtime: Runtime, *scopes: Scope, **given: Any) -> str:
    made = await runtime.keys.create("ci", scopes=scopes, **{"organization_id": OWN, **given})
    return made.token


async def somebody_elses(runtime: Runtime) -> Ids:
    """Something of everything in another organization."""
    await runtime.organizations.create("xyzzy", id="org_b")
    there = runtime.within(Bounds("org_b"))
    session = await there.sessions.create(title="xyzzy")
    task = await session.create("external", {"xyzzy": 1})
    ended = await session.create("external", {"xyzzy": 2})
    await there.tasks.cancel(ended.id)
    (held,) = await there.external.claim("robot")
    request = await there.external.ask(task.id, held.attempt, "xyzzy?")
    await there.tasks.message(task.id, "xyzzy")
    await session.write_file("/hidden.txt", "xyzzy")
    made = await there.keys.create("xyzzy")
    await there.audit.record("xyzzy", actor={})
    await there.retention.pin(session.id, reason="xyzzy")
    receipt = f"{task.id}.1.1"
    hook = await there.webhooks.create(HOOK, description="xyzzy")
    await there.webhooks.create(HOOK, task_id=task.id, description="xyzzy")
    link = await there.answer_links.create(request.id, choices=["xyzzy"])
    return Ids(
        *(session.id, task.id, ended.id, request.id, made.id, "org_b", receipt, held.attempt, session.id, hook.id),
        token=link.path.removeprefix("/answer/"),
    )


async def state(runtime: Runtime, ids: Ids) -> Any:
    views = runtime.services.views
    return (
        await views.session(ids.session_id),
        await views.tasks([ids.task_id, ids.ended]),
        await views.events(ids.session_id),
        await views.messages(ids.task_id),
        await views.requests(ids.task_id),
        await views.files(ids.session_id),
        [await views.documents(each, organization_id="org_b") for each in COLLECTIONS],
        await views.document("organizations", id="org_b"),
    )


def told(answer: httpx2.Response, ids: Ids) -> Any:
    """What an answer says, but for what is never the same twice, and the ids that were sent."""
    text = answer.text
    for each in (ids.session_id, ids.ended, ids.task_id, ids.organization_id):
        text = text.replace(each, "ID")
    body = json.loads(text) if text else None
    return answer.status_code, body.get("code", body) if isinstance(body, dict) else body


async def test_every_route_takes_ids_of_another_organization_for_ids_of_nothing():
    async with opened() as runtime, Client(runtime, await key(runtime, "admin")) as client:
        theirs = await somebody_elses(runtime)
        before = await state(runtime, theirs)
        unproved = []
        for route in ROUTES:
            answers = [await client.call(route, ids) for ids in (theirs, NOTHING)]
            assert "xyzzy" not in answers[0].text, route.name
            assert [each.status_code < 500 for each in answers] == [True, True], (route.name, answers[0].text)
            if route.name in (
                "create_session",
                "create_organization",
                "list_audit",
                "get_caller",
                "set_retention",
                "reset_retention",
                "create_webhook",
                "list_webhooks",
            ):
                continue  # no ids, or what is told grows with each request
            assert told(answers[0], theirs) == told(answers[1], NOTHING), route.name
            if answers[0].status_code == 422 and route.name not in NEEDS_ANOTHER_BODY | NO_LINK:
                unproved.append((route.name, answers[0].json()["detail"]))
        assert unproved == [], "say in BODIES or QUERIES what these take"
        assert await state(runtime, theirs) == before


async def test_every_route_asks_for_the_scope_that_is_told_of_it_and_each_scope_holds_those_before_it():
    async with opened() as runtime:
        document = create_api(runtime).openapi()
        untried = document["paths"]["/v1/events"]["get"]
        assert untried["security"] == [{"bearer": ["read"]}, {}]
        allowed: dict[str, set[Scope]] = {}
        for_operators = set()
        for scope in SCOPES:
            async with Client(runtime, await key(runtime, scope)) as client:
                for route in ROUTES:
                    answer = await client.call(route, NOTHING)
                    refused = answer.status_code == 403 and "scope" in answer.json()["detail"]
                    allowed.setdefault(f"{'/'.join(route.methods or ())} {route.path_format} {route.name}", set())
                    if not refused:
                        allowed[f"{'/'.join(route.methods or ())} {route.path_format} {route.name}"].add(scope)
                        if scope == "admin" and answer.status_code == 403:
                            for_operators.add(route.name)
                    assert answer.status_code != 401, route.name
        for name, scopes in allowed.items():
            method, path, operation = name.split()
            lowest = min(map(SCOPES.index, scopes))
            assert scopes == {*SCOPES[lowest:]}, name
            told = document["paths"][path][method.lower()]
            assert told["security"] == [{"bearer": [SCOPES[lowest]]}, {}], name
            assert told.get("x-outrider-operator", False) == (operation in for_operators), name
            if path.startswith(FOR_ADMINS):
                assert scopes == {"admin"}, name
            elif method != "GET" and operation not in READ_BY_POST:
                assert "read" not in scopes, name


async def test_no_route_is_open_to_who_has_no_good_key():
    async with opened() as runtime:
        settings = ServeSettings(access=AccessSettings(failures=10_000))
        revoked = await runtime.keys.create("old", organization_id=OWN)
        await runtime.keys.revoke(revoked.id)
        for token in (None, "ork_wrong", revoked.token):
            async with Client(runtime, token, settings) as client:
                for route in ROUTES:
                    answer = await client.call(route, NOTHING)
                    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), route.name
                    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="outrider"'


async def test_a_key_of_one_session_sees_its_tree_and_nothing_beside_it():
    async with opened() as runtime:
        here = runtime.within(Bounds(OWN))
        own, beside = await here.sessions.create(), await here.sessions.create()
        other = await beside.create("external", {})
        async with Client(runtime, await key(runtime, "admin", session_id=own.id)) as client:
            assert (await client.get("/v1/caller")).json()["session_id"] == own.id
            assert [each["id"] for each in (await client.get("/v1/sessions")).json()["items"]] == [own.id]
            assert (await client.get("/v1/tasks")).json()["items"] == []
            assert (await client.get(f"/v1/tasks/{other.id}")).status_code == 404
            assert (await client.post("/v1/sessions", json={})).status_code == 403
            assert (await client.post("/v1/keys", json={"name": "x"})).status_code == 403
            assert (await client.get("/v1/audit/verify")).status_code == 403
            assert (await client.post("/v1/audit/prune", json={"older_than": 0})).status_code == 403
            made = await client.post(f"/v1/sessions/{own.id}/tasks", json={"kind": "external"})
            assert made.status_code == 201, made.text


async def test_a_key_of_one_session_is_of_no_other_that_is_given_its_id_later():
    at_once = ServeSettings(access=AccessSettings(key_cache=0))
    async with opened() as runtime:
        here = runtime.within(Bounds(OWN))
        await here.sessions.create(id="chat-1")
        token, beside = await key(runtime, "admin", session_id="chat-1"), await key(runtime, "read")
        (document,) = [each for each in await runtime.services.views.documents("keys") if each.data["session_id"]]
        async with Client(runtime, token, at_once) as client:
            assert (await client.get("/v1/sessions/chat-1")).status_code == 200
            await here.sessions.delete("chat-1")
            assert (await client.get("/v1/sessions/chat-1")).status_code == 404
            await here.sessions.create(id="chat-1")
            refused = await client.get("/v1/sessions/chat-1")
            assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
            (kept,) = [each for each in await runtime.services.views.documents("keys") if each.id == document.id]
            data = {name: value for name, value in kept.data.items() if name != "session_created_at"}
            assert await runtime.services.ledger.keep([evolve(kept, data=data)])  # as they were once
            assert (await client.get("/v1/sessions/chat-1")).status_code == 200
        async with Client(runtime, beside, at_once) as client:
            assert (await client.get("/v1/sessions/chat-1")).status_code == 200


# --- keys over HTTP ----------------------------------------------------------------------------------


async def test_keys_are_made_rotated_and_revoked_over_http():
    at_once = ServeSettings(access=AccessSettings(key_cache=0))
    async with opened() as runtime, Client(runtime, await key(runtime, "admin"), at_once) as admin:
        made = await admin.post("/v1/keys", json={"name": "ci", "scopes": ["submit"], "expires": 60})
        assert (made.status_code, made.headers["Cache-Control"]) == (201, "no-store")
        given = made.json()
        assert (given["organization_id"], given["created_by"], given["scopes"]) == (OWN, "ci", ["submit"])
        async with Client(runtime, given["token"], at_once) as client:
            assert (await client.get("/v1/caller")).json()["scopes"] == ["submit"]
            answer = await client.get("/v1/keys")
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        rotated = (await admin.post(f"/v1/keys/{given['id']}/rotate", json={"overlap": 0})).json()
        for token, status in ((given["token"], 401), (rotated["token"], 200)):
            async with Client(runtime, token, at_once) as client:
                assert (await client.get("/v1/caller")).status_code == status
        listed = (await admin.get("/v1/keys")).json()["items"]
        assert [each["name"] for each in listed] == ["ci", "ci"]
        assert not any("token" in each or "secret" in each for each in listed)
        revoked = await admin.post(f"/v1/keys/{given['id']}/revoke")
        assert revoked.json()["is_active"] is False


async def test_operators_look_after_organizations_and_see_nothing_in_them():
    async with opened() as runtime:
        theirs = await somebody_elses(runtime)
        async with Client(runtime, await key(runtime, "admin", organization_id=DEFAULT_ORGANIZATION)) as client:
            made = (await client.post("/v1/organizations", json={"name": "C", "id": "org_c"})).json()
            assert made["id"] == "org_c"
            ids = [each["id"] for each in (await client.get("/v1/organizations")).json()["items"]]
            assert ids == [OWN, "org_b", "org_c", DEFAULT_ORGANIZATION]
            assert (await client.post("/v1/organizations/org_c/suspend")).json()["suspended_at"]
            assert (await client.delete("/v1/organizations/org_c")).status_code == 204
            assert (await client.delete("/v1/organizations/org_b")).json()["code"] == "in_use"
            assert (await client.get(f"/v1/tasks/{theirs.task_id}")).status_code == 404
            assert (await client.get("/v1/sessions")).json()["items"] == []
            answer = await client.get("/v1/audit", params={"organization_id": "org_b"})
            assert [each["action"] for each in answer.json()["items"]] == ["xyzzy"]


# --- how often ---------------------------------------------------------------------------------------


async def test_who_asks_too_often_is_refused_with_when_to_come_again():
    async with opened() as runtime:
        settings = ServeSettings(access=AccessSettings(rate=0.01, burst=2))
        async with Client(runtime, await key(runtime, "read"), settings) as client:
            first = await client.get("/v1/caller")
            assert first.headers["RateLimit-Policy"] == '"default";q=2;w=200'
            assert first.headers["RateLimit"] == '"default";r=1;t=100'
            assert (await client.get("/v1/caller")).status_code == 200
            third = await client.get("/v1/caller")
            assert (third.status_code, third.json()["code"]) == (429, "rate_limited")
            assert 0 < int(third.headers["Retry-After"]) <= 100


@pytest.mark.parametrize("token", ["ork_wrong", None])
async def test_who_sends_wrong_keys_or_none_is_told_to_wait_and_holds_up_nobody(token: str | None):
    settings = ServeSettings(access=AccessSettings(failures=2, rate=0.01, burst=1))
    async with opened() as runtime, Client(runtime, token, settings) as client:
        assert [(await client.get("/v1/caller")).status_code for _ in range(3)] == [401, 401, 429]
        good = {"Authorization": f"Bearer {await key(runtime, 'read')}"}
        assert (await client.get("/v1/caller", headers=good)).status_code == 200
        # How often is asked before what: what the key may not do is not said any more.
        for path in ("/v1/caller", "/v1/keys"):
            assert (await client.get(path, headers=good)).json()["code"] == "rate_limited"


# --- the audit log -----------------------------------------------------------------------------------


async def test_what_changes_anything_is_in_the_audit_log_before_it_is_answered():
    async with opened() as runtime, Client(runtime, await key(runtime, "admin")) as client:
        session = (await client.post("/v1/sessions", json={})).json()["id"]
        await client.get(f"/v1/sessions/{session}")
        named = {"X-Request-Id": "mine-1"}
        assert (await client.post("/v1/sessions/session_none/close", headers=named)).status_code == 404
        assert (await client.post("/v1/sessions", json={"x": 1})).status_code == 422
        told = (await client.get("/v1/audit")).json()["items"]
        assert [(each["action"], each["outcome"], each["targets"]) for each in told] == [
            ("create_session", "invalid_arguments", {}),
            ("close_session", "session_not_found", {"session_id": "session_none"}),
            ("create_session", "ok", {"id": session}),
        ]
        assert told[1]["request_id"] == "mine-1"
        assert told[0]["actor"]["name"] == "ci"
        assert told[0]["actor"]["via"] == "key"
        verdict = (await client.get("/v1/audit/verify")).json()
        assert (verdict["is_whole"], verdict["entries"]) == (True, 3)
        page = (await client.get("/v1/audit", params={"limit": 2})).json()
        assert [each["number"] for each in page["items"]] == [3, 2]
        rest = (await client.get("/v1/audit", params={"after": page["next"]})).json()
        assert [each["number"] for each in rest["items"]] == [1]


async def test_what_concerns_many_or_has_no_id_is_in_the_audit_log_with_what_it_was_about():
    async with opened() as runtime:
        made = await runtime.keys.create("ci", scopes=["admin"])
        async with Client(runtime, made.token) as client:
            await client.post("/v1/sessions", json={"id": "s"})
            both = [{"kind": "external", "id": each} for each in ("a", "b")]
            expected: list[dict[str, str]] = []
            for method, path, body, targets in (
                ("POST", "/v1/sessions/s/tasks/bulk", {"tasks": both}, {"session_id": "s", "created": "a b"}),
                ("POST", "/v1/sessions/s/tasks/bulk", {"tasks": both}, {"session_id": "s"}),
                ("POST", "/v1/external/claim", {"holder": "h"}, {"holder": "h", "claimed": "a"}),
                ("POST", "/v1/tasks:cancel", {"filter": {"text": "private", "kind": "x"}}, {"filter": '{"kind":"x"}'}),
                (
                    *("POST", "/v1/tasks:cancel", {"filter": {"session_id": "s"}}),
                    {"filter": '{"session_id":"s"}', "canceled": "b", "requested": "a"},
                ),
                ("POST", "/v1/tasks:cancel", {"ids": ["none"]}, {"ids": "none"}),
                ("POST", "/v1/tasks:retry", {"ids": ["none"]}, {"ids": "none"}),
                (
                    *("POST", "/v1/tasks:prune", {"older_than": 0, "session_id": "s", "states": ["canceled"]}),
                    {"older_than": "0.0", "states": "canceled", "session_id": "s", "tasks": "1", "sessions": "0"},
                ),
                (
                    *("PUT", "/v1/queue/limits", {"key": "gpu", "concurrency": 1}),
                    {"key": "gpu", "concurrency": "1", "per": "1.0"},
                ),
                ("DELETE", "/v1/queue/limits?key=gpu", None, {"key": "gpu"}),
                ("PUT", "/v1/queue/pauses", {"kind": "process"}, {"kind": "process"}),
                ("DELETE", "/v1/queue/pauses?everything=true", None, {"everything": "true"}),
                ("PUT", "/v1/retention", {"age": 5000}, {"age": "5000.0"}),
                ("POST", "/v1/audit/prune", {"older_than": 100_000}, {"older_than": "100000.0", "entries": "0"}),
            ):
                answer = await client.request(method, path, json=body)
                assert answer.is_success, (path, answer.text)
                expected.append(targets)
            many = [f"{'x' * 90}{n}" for n in range(1000)]
            await client.post("/v1/tasks:cancel", json={"ids": many})
            told = [each.targets for each in reversed(await runtime.audit.list())][1:]
            assert told[:-1] == expected
            *named, rest = told[-1]["ids"].split(" ", 20)
            assert (named, rest) == (many[:20], "and 980 more")
            assert (await runtime.audit.verify()).is_whole


async def test_answers_by_link_are_in_the_audit_log_of_their_organization_and_end_with_its_suspension():
    async with opened() as runtime, Client(runtime, None) as client:
        there = runtime.within(Bounds(OWN))
        task = await (await there.sessions.create()).create("external", {})
        claim = (await there.external.claim("h"))[0]
        asked = await there.external.ask(task.id, claim.attempt, "Go?", expected={"type": "boolean"})
        link = await there.answer_links.create(asked.id, by="ada")
        await runtime.organizations.suspend(OWN)
        assert (await client.get(link.path)).status_code == 404
        assert (await client.post(link.path, data={"choice": "0"})).status_code == 404
        await runtime.organizations.resume(OWN)
        assert (await client.post(link.path, data={"choice": "7"})).status_code == 422
        assert (await client.post(link.path, data={"choice": "0"})).status_code == 200
        for _ in range(40):
            assert (await client.post(link.path, data={"choice": "0"})).status_code == 409
        told = await runtime.audit.list(organization_id=OWN)
        assert len(told) < 30
        assert [(each.action, each.outcome, each.targets) for each in told[:-5:-1]] == [
            ("answer_by_link", outcome, {"request_id": asked.id})
            for outcome in ("invalid_link", "invalid_answer", "ok", "request_closed")
        ]
        assert told[0].actor == {"name": "ada", "via": "link", "address": "127.0.0.1"}
        await client.post(f"{link.path}x", data={"choice": "0"})
        (forged,) = await runtime.audit.list()
        assert (forged.outcome, forged.actor["via"]) == ("invalid_link", "nobody")
        token = link.path.removeprefix("/answer/")
        async with Client(runtime, await key(runtime, "submit")) as program:
            answer = await program.post("/v1/links:answer", json={"token": token, "choice": 0})
        assert answer.json()["code"] == "request_closed"
        (keyed,) = await runtime.audit.list(organization_id=OWN, limit=1)
        assert (keyed.action, keyed.targets) == ("answer_with_link", {"request_id": asked.id})
        assert (keyed.outcome, keyed.actor["name"]) == ("request_closed", "ci")
        assert token not in str([told, forged, keyed])


async def test_refused_keys_and_scopes_are_in_the_audit_log_and_a_flood_of_them_is_counted():
    async with opened() as runtime:
        async with Client(runtime, await key(runtime, "read")) as client:
            await client.post("/v1/sessions", json={})
        (refused,) = await runtime.audit.list(organization_id=OWN)
        assert (refused.action, refused.outcome) == ("create_session", "forbidden")
        settings = ServeSettings(access=AccessSettings(failures=10_000))
        async with Client(runtime, "ork_wrong", settings) as client:
            for _ in range(40):
                await client.get("/v1/caller")
        found = await runtime.audit.list()
        assert 20 <= len(found) <= 25
        assert {(each.action, each.outcome, each.actor["via"]) for each in found} == {
            ("get_caller", "unauthenticated", "nobody")
        }
        assert (await runtime.audit.verify()).is_whole


async def test_a_change_that_the_end_of_the_server_cuts_off_is_in_the_audit_log_as_cut(
    monkeypatch: pytest.MonkeyPatch,
):
    async with opened() as runtime, Client(runtime, await key(runtime, "submit")) as client:
        begun = asyncio.Event()

        async def for_ever(*_: Any, **__: Any) -> Any:
            begun.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(Sessions, "create", for_ever)
        asking = asyncio.create_task(client.post("/v1/sessions", json={}))
        await begun.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        (told,) = await runtime.audit.list(organization_id=OWN)
        assert (told.action, told.outcome) == ("create_session", "cut")


async def test_a_flood_of_changes_over_the_rate_costs_few_entries():
    settings = ServeSettings(access=AccessSettings(rate=0.01, burst=1))
    async with opened() as runtime, Client(runtime, await key(runtime, "submit"), settings) as client:
        flood = [(await client.post("/v1/sessions", json={})).status_code for _ in range(40)]
        assert flood == [201] + [429] * 39
        told = await runtime.audit.list(organization_id=OWN)
        assert 21 <= len(told) <= 26
        assert [each.outcome for each in told].count("rate_limited") == len(told) - 1


# --- without authentication --------------------------------------------------------------------------


async def test_without_authentication_a_page_of_another_site_may_not_ask():
    async with opened() as runtime, Client(runtime, None, ServeSettings()) as client:
        assert (await client.get("/v1/caller")).json()["via"] == "open"
        for headers, status in (
            ({"Host": "127.0.0.1:8321"}, 200),
            ({"Host": "[::1]:8321"}, 200),
            ({"Host": "localhost"}, 200),
            ({"Host": "evil.example"}, 403),
            ({"Host": "127.0.0.1.evil.example:8321"}, 403),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Host": "["}, 403),
            ({"Host": "a]"}, 403),
            ({"Origin": "http://["}, 403),
            ({"Origin": "http://localhost:8321", "Host": "localhost:8321"}, 200),
            ({"Origin": "http://localhost:1", "Host": "localhost:8321"}, 403),
        ):
            assert (await client.get("/v1/caller", headers=headers)).status_code == status, headers
    known = ServeSettings(hosts=("api.example",), origins=("https://app.example",))
    async with opened() as runtime, Client(runtime, None, known) as client:
        headers = {"Host": "api.example", "Origin": "https://app.example"}
        assert (await client.get("/v1/caller", headers=headers)).status_code == 200


async def test_a_stream_ends_when_the_key_that_opened_it_is_revoked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recording, "LOOK_AGAIN", 0.0)
    settings = ServeSettings(access=AccessSettings(key_cache=0), streams=StreamSettings(silence=0.01))
    async with opened() as runtime:
        session = await runtime.within(Bounds(OWN)).sessions.create()
        made = await runtime.keys.create("ci", organization_id=OWN)
        sent: list[Message] = []
        has_begun = asyncio.Event()

        async def send(message: Message) -> None:
            sent.append(message)
            if b"snapshot" in message.get("body", b""):
                has_begun.set()

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        scope = {
            "type": "http",
            "method": "GET",
            "path": f"/v1/sessions/{session.id}/events",
            "query_string": b"",
            "headers": [(b"host", b"outrider"), (b"authorization", f"Bearer {made.token}".encode())],
            "client": ("192.0.2.1", 5),
        }
        following = asyncio.create_task(create_api(runtime, settings)(scope, receive, send))
        async with asyncio.timeout(20):
            await has_begun.wait()
            await runtime.keys.revoke(made.id)
            await following
        assert sent[-1] == {
            "type": "http.response.body",
            "body": b'event: end\ndata: {"reason":"not_admitted"}\n\n',
            "more_body": False,
        }


async def test_a_wait_tells_no_news_to_a_key_that_was_revoked_meanwhile():
    settings = ServeSettings(access=AccessSettings(key_cache=0))
    async with opened() as runtime:
        there = runtime.within(Bounds(OWN))
        session = await there.sessions.create()
        made = await runtime.keys.create("ci", scopes=["submit"], organization_id=OWN)
        doomed = await session.create("external", {})
        asked = await session.create("external", {}, options=TaskOptions(wake="on_terminal"))
        async with Client(runtime, made.token, settings) as client:
            (held,) = await there.external.claim("robot", limit=1)
            assert held.id == doomed.id
            waits = [
                client.get(f"/v1/tasks/{asked.id}/wait", params={"timeout": 50}),
                client.get(f"/v1/tasks/{asked.id}/result", params={"timeout": 50}),
                client.post("/v1/tasks:wait", json={"task_ids": [asked.id], "timeout": 50}),
                client.post(f"/v1/sessions/{session.id}/inbox/receive", json={"wait": 50}),
                client.post(f"/v1/tasks/{doomed.id}/cancel", json={"wait": 50}),
            ]
            waiting = [asyncio.ensure_future(each) for each in waits]
            bells = runtime.services.signals._bells
            await until(lambda: sum(map(len, bells.values())) == len(waits))
            await runtime.keys.revoke(made.id)
            await there.tasks.cancel(asked.id)
            await there.external.succeed(doomed.id, held.attempt, 1)
            answers = [await asyncio.wait_for(each, 20) for each in waiting]
        assert [each.status_code for each in answers] == [401, 401, 401, 401, 200]
        assert answers[-1].json()["requested"] == [doomed.id]  # it was done; what came of it is not told
