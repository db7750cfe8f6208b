"""When the wire fails: what is lost is asked again if that does no harm, and what answers wrongly is named."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from outrider import Client, Runtime, TaskOptions
from outrider.api import create_api
from outrider.api.protocol import ABORT
from outrider.api.serving import Service, bind
from outrider.client import connection
from outrider.core.errors import (
    AlreadyExists,
    InvalidArguments,
    LimitReached,
    NotFound,
    Outdated,
    OutriderError,
    RequestClosed,
    ServerDiffers,
    ServerFailed,
    ServerForeign,
    ServerUnreachable,
    StoreLocked,
)
from outrider.runtime.records import EventRecord
from outrider.settings import AccessSettings, ClientSettings, ServeSettings
from tests.client.stage import QUICK, app_of_tests, served
from tests.facts import until

pytestmark = pytest.mark.anyio


class Lossy:
    """An application whose answers are lost as they are sent: what was asked is done, and nobody hears of it."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.state = app.state
        self.loses: Callable[[str, str], bool] = lambda method, path: False
        self.lost = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not self.loses(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return

        async def drop(message: Any) -> None:
            pass

        await self._app(scope, receive, drop)
        self.lost += 1
        scope["extensions"][ABORT]["abort"]()


@asynccontextmanager
async def lossy(access: AccessSettings | None = None) -> AsyncIterator[tuple[Runtime, Lossy, Client]]:
    settings = ServeSettings(shutdown_timeout=1.0, access=access)
    async with app_of_tests().open("memory://", worker=False) as runtime:
        app = Lossy(create_api(runtime, settings))
        listener = bind("127.0.0.1", 0)
        service = Service(app, listener, settings)  # type: ignore[arg-type]  # another application around it
        job = asyncio.create_task(service.run())
        await service.has_started()
        async with Client(f"http://127.0.0.1:{listener.getsockname()[1]}", settings=QUICK) as client:
            yield runtime, app, client
        service.end()
        await job
        listener.close()


def once(method: str, ending: str) -> Callable[[str, str], bool]:
    """Lose the first answer to that."""
    left = [1]

    def loses(asked: str, path: str) -> bool:
        if asked == method and path.endswith(ending) and left:
            left.pop()
            return True
        return False

    return loses


async def test_what_is_created_is_created_once_though_its_answer_was_lost():
    async with lossy() as (runtime, app, client):
        app.loses = once("POST", "/v1/sessions")
        session = await client.sessions.create()
        app.loses = once("POST", "/tasks")
        task = await session.create("external", {})
        app.loses = once("POST", "/bulk")
        many = await client.tasks.create_many(session.id, "external", [{}, {}])
        assert app.lost == 3
        found = await runtime.tasks.list()
        assert {each.id for each in found} == {task.id, *(each.id for each in many)}
        assert [each.id for each in await runtime.sessions.list()] == [session.id]


async def test_a_message_a_retry_and_a_fork_are_done_once_though_their_answers_were_lost():
    async with lossy() as (runtime, app, client):
        session = await client.sessions.create()
        task = await session.create("external", {})
        app.loses = once("POST", "/messages")
        sent = await task.message("hello")
        assert [each.id for each in await runtime.tasks.messages(task.id)] == [sent.id]
        app.loses = once("POST", "/cancel")
        assert (await task.cancel()).states == {task.id: "canceled"}
        app.loses = once("POST", "/retry")
        retried = await task.retry()
        app.loses = once("POST", "/fork")
        forked = await task.fork()
        assert app.lost == 4
        assert {each.id for each in await runtime.tasks.list()} == {task.id, retried.id, forked.id}


async def test_an_answer_that_arrived_is_no_conflict_with_itself():
    async with lossy() as (runtime, app, client):
        session = await client.sessions.create()
        task = await session.create("external", {}, options=TaskOptions(idle_timeout=60))
        (held,) = await client.external.claim("me")
        await client.external.ask(task.id, held.attempt, "first?")
        await client.external.ask(task.id, held.attempt, "second?")
        app.loses = once("POST", "/answer")
        record = await task.answer("yes", by="me")
        assert app.lost == 1
        assert [(each.prompt, each.answer) for each in await runtime.tasks.requests(task.id)] == [
            ("first?", "yes"),
            ("second?", None),
        ]
        assert [each.prompt for each in record.input_requests] == ["second?"]
        first = (await task.requests())[0]
        app.loses = once("POST", "/answer")
        with pytest.raises(RequestClosed):  # somebody else's answer stands
            await task.answer("no", request_id=first.id, by="you")


async def test_an_answer_that_arrived_under_the_name_of_a_key_is_no_conflict_either():
    async with lossy(access=AccessSettings()) as (runtime, app, client):
        key = (await runtime.keys.create("alice", scopes=["operate"])).token
        task = await (await runtime.sessions.create()).create("external", {})
        (held,) = await runtime.external.claim("me")
        await runtime.external.ask(task.id, held.attempt, "well?")
        app.loses = once("POST", "/answer")
        async with Client(client.url, key=key, settings=QUICK) as named:
            await named.tasks.answer(task.id, "yes", by="bob")
        assert app.lost == 1
        assert [each.answered_by for each in await runtime.tasks.requests(task.id)] == ["alice"]


async def test_a_cancel_that_arrived_is_told_as_done():
    async with lossy() as (_, app, client):
        session = await client.sessions.create()
        first, *others = await client.tasks.create_many(session.id, "external", [{}] * 4)
        (held,) = await client.external.claim("me")
        assert held.id == first.id
        app.loses = once("POST", "/cancel")
        receipt = await client.tasks.cancel(first.id, if_version=held.version)
        assert (receipt.requested, receipt.left) == ((first.id,), ())
        app.loses = once("POST", "/cancel")
        receipt = await client.tasks.cancel(others[0].id, if_version=others[0].version)
        assert (receipt.canceled, receipt.left) == ((others[0].id,), ())
        app.loses = once("POST", "/tasks:cancel")
        bulk = await client.tasks.cancel_many([each.id for each in others[1:]])
        assert (set(bulk.canceled), bulk.left) == ({each.id for each in others[1:]}, ())
        assert app.lost == 3
        assert (await client.tasks.cancel(others[0].id)).left == (others[0].id,)
        with pytest.raises(Outdated):
            await client.tasks.cancel(first.id, if_version=held.version)


async def test_a_change_that_arrived_is_told_as_one():
    async with lossy() as (_, app, client):
        task = await (await client.sessions.create()).create("external", {})
        app.loses = once("PUT", "/pauses")
        assert await client.queue.pause(kind="external")
        app.loses = once("DELETE", "/pauses")
        assert await client.queue.resume(kind="external")
        await client.queue.limit("a", concurrency=1)
        app.loses = once("DELETE", "/limits")
        assert await client.queue.unlimit("a")
        await client.retention.pin(task.id)
        app.loses = once("DELETE", task.id)
        assert await client.retention.unpin(task.id)
        assert app.lost == 4
        assert not await client.queue.resume(kind="external")


async def test_an_organization_is_made_and_deleted_once_though_the_answers_were_lost():
    async with lossy() as (runtime, app, client):
        app.loses = once("POST", "/organizations")
        made = await client.organizations.create("A")
        app.loses = once("POST", "/suspend")
        assert (await client.organizations.suspend(made.id)).suspended_at is not None
        app.loses = once("DELETE", made.id)
        await client.organizations.delete(made.id)
        hook = await client.webhooks.create("https://hooks.example/")
        app.loses = once("PATCH", hook.id)
        assert (await client.webhooks.update(hook.id, description="x")).description == "x"
        app.loses = once("DELETE", hook.id)
        await client.webhooks.delete(hook.id)
        assert app.lost == 5
        assert [each.id for each in await runtime.organizations.list()] == ["org_default"]
        await runtime.organizations.create("B", id="org_b")
        app.loses = once("POST", "/organizations")
        with pytest.raises(AlreadyExists):  # somebody else's
            await client.organizations.create("A", id="org_b")


async def test_a_secret_that_is_told_once_is_made_once_and_the_error_says_that_it_may_be_there():
    async with lossy() as (runtime, app, client):
        key = await client.keys.create("ci")
        hook = await client.webhooks.create("https://hooks.example/")
        app.loses = lambda method, _: method == "POST"
        for ask in (
            client.keys.create("ci"),
            client.keys.rotate(key.id),
            client.webhooks.create("https://hooks.example/"),
            client.webhooks.rotate_secret(hook.id),
            client.secrets.rotate(),
        ):
            with pytest.raises(ServerUnreachable, match=r"whether POST /v1/\S+ was done is not known"):
                await ask
        assert app.lost == 5
        assert len(await runtime.keys.list()) == 2
        assert [each.secrets for each in await runtime.webhooks.list()] == [2, 1]
        assert (await runtime.keys.get(key.id)).overlaps_until is not None


async def test_a_secret_in_an_answer_that_cannot_be_read_is_not_in_the_error():
    told = http(201, "application/json", '{"id": "key_1", "token": "ork_hush"}')
    async with answering(told) as (url, _), Client(url, settings=QUICK) as client:
        with pytest.raises(ServerDiffers, match="organization_id: Field required") as raised:
            await client.keys.create("ci")
    assert "ork_hush" not in "".join(traceback.format_exception(raised.value))


async def test_what_may_not_be_done_twice_is_not_and_the_error_says_so():
    async with lossy() as (runtime, app, client):
        session = await client.sessions.create(agent="echo")
        app.loses = lambda method, path: path.endswith("/send")
        with pytest.raises(ServerUnreachable, match=r"whether POST /v1/sessions/\S+/send was done is not known"):
            await session.send("once")
        assert app.lost == 1
        assert len(await runtime.inbox.list(session.id)) == 1


# --- answers of others -----------------------------------------------------------------------------------


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers requests one after the other with these bytes, the last again and again."""
    left, asked = list(answers), list[bytes]()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(left.pop(0) if len(left) > 1 else left[0])
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


def http(status: int, kind: str, body: str, headers: Mapping[str, str] | None = None) -> bytes:
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    raw = body.encode()
    return (
        f"HTTP/1.1 {status} Told\r\ncontent-type: {kind}\r\ncontent-length: {len(raw)}\r\n{more}"
        "connection: close\r\n\r\n"
    ).encode() + raw


def problem(status: int, code: str, **headers: str) -> bytes:
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return http(status, "application/problem+json", f'{{"code": "{code}", "detail": "told"}}', told)


EMPTY = http(200, "application/json", '{"items": [], "next": null}')


@pytest.mark.parametrize(
    ("told", "kind", "says"),
    [
        (http(200, "text/html", "<html>"), ServerForeign, "is the address right"),
        (http(404, "text/html", "<html>"), ServerForeign, "answered 404"),
        (http(302, "text/html", "", {"location": "https://elsewhere/"}), ServerForeign, "https://elsewhere/"),
        (problem(404, "route_not_found"), ServerDiffers, "another version"),
        (http(200, "application/json", '{"things": []}'), ServerDiffers, "another version"),
        (problem(500, "internal"), ServerFailed, "told"),
        (problem(422, "limit_reached"), LimitReached, "told"),
    ],
)
async def test_who_answers_otherwise_is_named(told: bytes, kind: type[OutriderError], says: str):
    async with answering(told) as (url, asked), Client(url, settings=QUICK) as client:
        with pytest.raises(kind, match=says):
            await client.workers()
    assert len(asked) == 1


async def test_a_server_that_is_away_is_waited_for_as_long_as_patience_lasts():
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    listener.close()
    async with Client(f"http://127.0.0.1:{port}", settings=replace(QUICK, patience=0.3)) as client:
        with pytest.raises(ServerUnreachable, match="cannot be reached"):
            await client.workers()
        with pytest.raises(ServerUnreachable):
            await anext(client.events())
    async with Client(f"http://127.0.0.1:{port}", settings=ClientSettings(patience=0)) as client:
        with pytest.raises(ServerUnreachable):
            await client.sessions.create()


async def test_trouble_is_told_when_it_begins_and_when_it_is_over_however_many_wait(caplog: pytest.LogCaptureFixture):
    def told() -> list[str]:
        return [vars(each)["outrider"]["event"] for each in caplog.records if each.name == "outrider"]

    async with app_of_tests().open("memory://", worker=False) as runtime:
        async with served(runtime) as url:
            port = int(url.rpartition(":")[2])
        async with Client(url, settings=replace(QUICK, patience=0)) as hasty:
            with pytest.raises(ServerUnreachable):
                await hasty.sessions.list()
        assert told() == []  # nothing was asked again: the error says it all
        async with Client(url, settings=QUICK) as client:
            waiting = [asyncio.ensure_future(client.sessions.list()) for _ in range(5)]
            await until(lambda: told() != [])
            async with served(runtime, port=port):
                assert await asyncio.gather(*waiting) == [[]] * 5
                await client.sessions.list()
    assert told() == ["the server is in trouble; asking again", "the server answers again"]


async def test_what_is_asked_too_early_is_asked_again_when_the_server_says():
    away = http(503, "text/html", "a proxy")
    answers = problem(429, "rate_limited", retry_after="0"), problem(503, "store_locked", retry_after="0"), away, EMPTY
    async with answering(*answers) as (url, asked), Client(url, settings=QUICK) as client:
        assert await client.workers() == []
    assert len(asked) == 4


async def test_patience_begins_with_the_first_failure_and_not_with_a_request_that_waits():
    cuts = [0.15]  # longer than the patience

    async def poll(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if cuts:
            await asyncio.sleep(cuts.pop())
        else:
            writer.write(http(200, "application/json", '{"is_over": true, "items": []}'))
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(poll, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Client(url, settings=replace(QUICK, patience=0.1)) as client:
            assert await client.tasks.wait(["task_1"]) == []


async def test_a_quiet_stream_goes_on_through_any_number_of_cuts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "_LONGEST_PAUSE", 0.03)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n:\n\n"
    asked = 0

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        if asked < 4:
            await asyncio.sleep(0.06)  # quiet, and longer than the patience
        else:
            writer.write(b'event: end\ndata: {"reason": "task_ended"}\n\n')
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(stream, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Client(url, settings=replace(QUICK, patience=0.05)) as client:
            assert [each async for each in client.tasks.events("task_1")] == []
    assert asked == 4


async def test_a_stream_does_not_go_on_into_what_was_given_its_id_while_it_was_cut():
    asked: list[bytes] = []
    created_at = iter(["2030-01-01T00:00:00+00:00"] * 2 + ["2030-01-01T00:00:01+00:00"])

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncreated-at: {next(created_at)}\r\n"
        record = EventRecord(session_id="s", seq=len(asked), type="t", at=datetime.now(UTC), task_id=None, data={})
        told = f"event: t\nid: {len(asked)}\ndata: {record.model_dump_json()}\n\n"
        writer.write(f"{head}connection: close\r\n\r\n{told}".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(stream, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Client(url, settings=QUICK) as client:
            events = client.sessions.events("s")
            assert [(await anext(events)).seq for _ in range(2)] == [1, 2]
            with pytest.raises(NotFound, match="another one has its id"):
                await anext(events)
    assert b"last-event-id: 2" in asked[-1].lower()


async def test_a_pause_that_outlasts_the_patience_or_the_wait_is_not_begun():
    async with answering(problem(503, "store_locked", retry_after="4")) as (url, asked):
        async with Client(url, settings=replace(QUICK, patience=2.0)) as client, asyncio.timeout(1.5):
            with pytest.raises(StoreLocked):
                await client.workers()
        async with Client(url, settings=QUICK) as client, asyncio.timeout(1.5):
            with pytest.raises(StoreLocked):
                await client.tasks.wait(["task_1"], timeout=1)
    assert len(asked) == 2


async def test_a_key_is_sent_and_never_shown():
    async with answering(EMPTY) as (url, asked), Client(f"{url}/behind/", key="ork_x", settings=QUICK) as client:
        await client.workers()
        assert "ork_x" not in repr(client)
    assert b"GET /behind/v1/workers HTTP/1.1" in asked[0]
    assert b"authorization: bearer ork_x" in asked[0].lower()


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("ftp://host", None), ("host:80", None), ("http://", None), ("http://a:b@host", None), ("unix:relative", None),
        ("http://host?x=1", None), ("http://host", "two\nlines"), ("http://host", ""), (None, None),
    ],
)  # fmt: skip
async def test_an_address_or_key_that_is_none_is_refused(url: Any, key: str | None):
    with pytest.raises(InvalidArguments):
        Client(url, key=key)
