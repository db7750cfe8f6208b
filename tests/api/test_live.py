"""Streams: nothing missed and nothing twice, from any place, through any end; and nobody who is slow costs anybody."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from outrider import Outrider, SessionHandle, TaskContext, TaskOptions
from outrider.api import create_api
from outrider.api.live import as_sse
from outrider.core.errors import NotFound, StoreError, StoreUnavailable
from outrider.runtime import live, snapshots
from outrider.runtime.bounds import Bounds
from outrider.runtime.facade import Runtime
from outrider.runtime.live import Live
from outrider.settings import ServeSettings, StreamSettings
from outrider.testing import open_test
from tests.api.conftest import Api, opened
from tests.api.listening import Listener, Told, listening, parse
from tests.servers import Server

pytestmark = pytest.mark.anyio


async def worked(session: SessionHandle, count: int = 1) -> list[str]:
    """Make tasks and cancel them: two events each."""
    made = [(await session.create("external", {})).id for _ in range(count)]
    for task_id in made:
        await Runtime(session._services).tasks.cancel(task_id)
    return made


async def session_of(api: Api, **given: Any) -> SessionHandle:
    return await api.runtime.sessions.create(**given)


def events(told: list[Told]) -> list[tuple[int | None, str]]:
    return [(each.id, each.name) for each in told if each.name not in ("snapshot", "end")]


async def logged(api: Api, session: SessionHandle, after: int = 0) -> list[tuple[int | None, str]]:
    rows = await api.runtime.services.views.events(session.id, after=after)
    return [(row.seq, row.type) for row in rows]


async def test_a_stream_begins_with_a_snapshot_and_goes_on_with_each_event_once(api: Api):
    session = await session_of(api)
    (before,) = await worked(session)
    living = await session.create("external", {})
    async with listening(api.app, f"/v1/sessions/{session.id}/events") as heard:
        (snapshot,) = await heard.until(1)
        assert (snapshot.name, snapshot.id, snapshot.data["after"]) == ("snapshot", 4, 4)
        assert [each["id"] for each in snapshot.data["tasks"]] == [living.id]
        assert before not in str(snapshot.data)
        assert snapshot.data["session"] == (await session.record()).model_dump(mode="json")
        await worked(session, 20)
        told = await heard.until(41)
        assert events(told) == await logged(api, session, after=4)
        assert told[1].data["task"]["state"] == "queued"
        assert heard.headers[b"content-type"].startswith(b"text/event-stream")
        assert heard.headers[b"cache-control"] == b"no-store"
        assert datetime.fromisoformat(heard.headers[b"created-at"].decode()) == (await session.record()).created_at


async def test_a_stream_is_resumed_after_any_event_by_header_or_query(api: Api):
    session = await session_of(api)
    await worked(session, 20)
    whole = await logged(api, session)
    path = f"/v1/sessions/{session.id}/events"
    for after in range(0, len(whole), 7):
        async with (
            listening(api.app, path, last=after) as by_header,
            listening(api.app, path, query=f"after={after}") as by_query,
            listening(api.app, path, query="after=3", last=after) as by_both,
        ):
            for heard in (by_header, by_query, by_both):
                assert events(await heard.until(len(whole) - after)) == whole[after:]


async def test_an_id_that_was_never_given_is_refused_as_is_a_stream_of_what_does_not_exist(api: Api):
    session = await session_of(api)
    task = await session.create("external", {})
    for path, last, status in (
        (f"/v1/sessions/{session.id}/events", 3, 422),
        (f"/v1/sessions/{session.id}/events", "x", 422),
        (f"/v1/sessions/{session.id}/live", -1, 422),
        (f"/v1/tasks/{task.id}/events", 3, 422),
        (f"/v1/tasks/{task.id}/output", 1, 422),
        ("/v1/events", 3, 422),
        ("/v1/events", 2**63, 422),
        ("/v1/sessions/none/events", None, 404),
        ("/v1/sessions/none/live", 0, 404),
        ("/v1/tasks/none/events", None, 404),
        ("/v1/tasks/none/output", 0, 404),
    ):
        async with listening(api.app, path, last=last) as heard:
            await heard.until()
            assert (heard.status, heard.headers[b"content-type"]) == (status, b"application/problem+json"), path


async def test_a_stream_of_a_task_ends_with_it_and_says_so_also_to_who_comes_later(api: Api):
    session = await session_of(api)
    task = await session.create("external", {})
    path = f"/v1/tasks/{task.id}/events"
    async with listening(api.app, path) as heard, listening(api.app, f"/v1/tasks/{task.id}/output") as output:
        await heard.until(1)
        await worked(session, 3)
        await api.runtime.tasks.cancel(task.id)
        told = await heard.until()
        assert [each.name for each in told] == ["snapshot", "task.updated", "end"]
        assert told[0].data["task"]["state"] == "queued"
        assert told[1].data["task"]["state"] == "canceled"
        assert told[-1] == Told("end", None, {"reason": "task_ended"})
        assert await output.until() == [told[-1]]
    async with listening(api.app, path) as late, listening(api.app, path, last=told[1].id) as resumed:
        assert [each.name for each in await late.until()] == ["snapshot", "end"]
        assert await resumed.until() == [told[-1]]


async def test_what_comes_in_while_a_stream_finds_that_its_task_has_ended_is_told_before_the_end(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    task = await (await session_of(api)).create("external", {})
    views = api.runtime.services.views
    read = views.task

    async def ending(task_id: str) -> Any:
        monkeypatch.setattr(views, "task", read)
        await api.runtime.tasks.cancel(task_id)
        return await read(task_id)

    async with listening(api.app, f"/v1/tasks/{task.id}/events") as heard:
        await heard.until(1)
        (feed,) = api.app.state.audience.live._feeds.values()
        monkeypatch.setattr(views, "task", ending)
        feed.ring()
        assert [each.name for each in await heard.until()] == ["snapshot", "task.updated", "end"]


async def test_output_is_followed_from_any_byte_and_told_with_the_events_of_its_session():
    app = Outrider()

    @app.tool
    async def prints(task: TaskContext, n: int) -> None:
        for number in range(n):
            task.output(f"ä{number}\n")
            await asyncio.sleep(0)

    async with open_test(app) as runtime:
        api = create_api(runtime)
        session = await runtime.sessions.create()
        task = await session.spawn("prints", n=3)
        async with (
            listening(api, f"/v1/tasks/{task.id}/output") as heard,
            listening(api, f"/v1/sessions/{session.id}/live", last=0) as both,
        ):
            await both.until(1)
            await runtime.run_until_idle()
            told = await heard.until()
            whole = "".join(each.data["text"] for each in told if each.name == "output")
            assert whole == "ä0\nä1\nä2\n"
            last = (await session.record()).last_seq
            printed = [each.data["data"] for each in await both.until(last) if each.name == "task.output"]
            assert "".join(piece["text"] for each in printed for piece in each["pieces"]) == whole
        for start in (4, 8):
            async with listening(api, f"/v1/tasks/{task.id}/output", last=start) as rest:
                found = [each.data["text"] for each in await rest.until() if each.name == "output"]
                assert "".join(found) == whole.encode()[start:].decode()


async def test_who_follows_an_organization_hears_of_it_all_and_of_no_other(api: Api):
    own, other = await session_of(api), await session_of(api, organization_id="org_b")
    living = await own.create("external", {})
    hidden = await other.create("external", {})
    async with listening(api.app, "/v1/events") as heard:
        (snapshot,) = await heard.until(1)
        assert [each["id"] for each in snapshot.data["tasks"]] == [living.id]
        for _ in range(150):  # more than are read at once
            await other.create("external", {})
        await worked(own, 2)
        late = await session_of(api)
        told = await heard.until(6)
        page = await api.runtime.services.views.log(after=snapshot.id or 0, organization_id="org_default")
        assert events(told) == [(row.position, row.type) for row in page.rows]
        assert told[-1].data["session_id"] == late.id
        assert hidden.id not in str([each.data for each in told])
    async with listening(api.app, "/v1/events", last=told[2].id) as resumed:
        assert await resumed.until(3) == told[3:]


async def test_what_others_follow_is_not_shared_with_who_may_not_see_it(api: Api):
    session = await session_of(api)
    task = await session.create("external", {})
    hub = Live(api.runtime.services, as_sse)
    own, others = (api.runtime.within(Bounds(each)).services for each in ("org_default", "org_b"))
    streams = [await hub.session(own, session.id), await hub.task(own, task.id), await hub.output(own, task.id)]
    for refused in (hub.session(others, session.id), hub.task(others, task.id), hub.output(others, task.id)):
        with pytest.raises(NotFound):
            await refused
    for organization_id in ("org_default", "org_b"):
        streams += [empty := await hub.organization(others, organization_id, bounds="others")]
        snapshot = await empty.take()
        assert snapshot is not None
        assert b'"tasks":[]' in snapshot
    streams += [full := await hub.organization(own, "org_default")]
    assert task.id.encode() in (await full.take() or b"")
    for stream in streams:
        stream.close()


async def test_what_was_deleted_is_told_by_a_marker_and_the_end_of_a_session_by_its_end(api: Api):
    session = await session_of(api)
    gone, kept = await worked(session), await worked(session)
    path = f"/v1/sessions/{session.id}/events"
    async with listening(api.app, path) as heard:
        await heard.until(1)
        await api.runtime.tasks.delete(gone[0])
        async with listening(api.app, path, last=0) as late:
            marker, *rest = await late.until(4)
            assert (marker.name, marker.id, marker.data["data"]) == ("log.trimmed", 0, {"first_seq": 4})
            assert [each.data["task_id"] for each in rest] == [None, kept[0], kept[0]]
            await api.runtime.sessions.delete(session.id)
            for each in (heard, late):
                assert (await each.until())[-1] == Told("end", None, {"reason": "session_deleted"})


class Ids:
    """A session `shared` and a task `mine` in it, which has printed: of one organization, later of another."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def make(self, organization_id: str, tasks: int = 1) -> Runtime:
        """Make them, with some tasks before; return what is within the organization."""
        within = self._runtime.within(Bounds(organization_id))
        session = await within.sessions.create(id="shared", title=organization_id)
        for _ in range(tasks):
            await session.create("external", {"of": organization_id})
        await session.create("external", {"of": organization_id}, options=TaskOptions(id="mine"))
        for task in await within.external.claim("x", limit=tasks + 1):
            await within.external.report(task.id, task.attempt, output=f"{organization_id} printed this\n")
        return within

    async def delete(self) -> None:
        """Delete them."""
        for task in await self._runtime.tasks.list(session_id="shared"):
            await self._runtime.tasks.cancel(task.id)
            await self._runtime.external.stopped(task.id, task.attempt)
        await self._runtime.sessions.delete("shared")


FOLLOWED: dict[str, tuple[Callable[..., Awaitable[live.Stream]], str]] = {
    "session": (Live.session, "shared"),
    "session with output": (partial(Live.session, output=True), "shared"),
    "task": (Live.task, "mine"),
    "output": (Live.output, "mine"),
}


ENDS = {"shared": ("session_deleted",), "mine": ("task_ended", "task_deleted")}
"""As it is seen: it ends before it is deleted."""


async def rest_of(stream: live.Stream) -> bytes:
    """All that a stream still tells, until it ends."""
    told = b""
    while (found := await asyncio.wait_for(stream.take(), 5)) is not None:
        told += found
    stream.close()
    return told


async def test_who_has_an_id_now_is_shown_nothing_of_who_had_it_before(api: Api, monkeypatch: pytest.MonkeyPatch):
    ids, hub = Ids(api.runtime), Live(api.runtime.services, as_sse)
    taken: list[str] = []

    async def counted(*given: Any) -> Any:
        taken.append(given[1])
        return await snapshots.snapshot_of_session(*given)

    monkeypatch.setattr(live, "snapshot_of_session", counted)
    streams = []
    for organization_id, tasks in (("acme", 9), ("zeta", 1), ("zeta", 0)):
        within = (await ids.make(organization_id, tasks)).services
        taken.clear()
        for _ in range(20):
            for stream in (await hub.session(within, "shared"), await hub.task(within, "mine")):
                told = await stream.take()
                assert told is not None
                assert b'"of":"%s"' % organization_id.encode() in told
                assert told.count(b'"of":') in (1, tasks + 1)
                assert stream.cursor == (await within.views.heads(["shared"]))["shared"].seq
                streams.append(stream)
        assert len(taken) == 1, "all who follow share one"
        await ids.delete()
    for stream in streams:
        await rest_of(stream)
        assert stream.reason in ENDS["shared"] + ENDS["mine"]


@pytest.mark.parametrize("followed", FOLLOWED)
@pytest.mark.parametrize("is_behind", [False, True])
async def test_nothing_is_told_of_who_is_given_the_id_while_the_log_is_read(
    api: Api, monkeypatch: pytest.MonkeyPatch, followed: str, is_behind: bool
):
    ids, views, hub = Ids(api.runtime), api.runtime.services.views, Live(api.runtime.services, as_sse)
    within = (await ids.make("acme")).services
    verb = "output" if followed == "output" else "events"
    read = getattr(views, verb)

    async def late(*given: Any, **named: Any) -> Any:
        monkeypatch.setattr(views, verb, read)
        await ids.delete()
        await ids.make("zeta", tasks=9)
        return await read(*given, **named)

    follow, id = FOLLOWED[followed]
    end = (await within.views.output(id)).next if followed == "output" else None
    stream = await follow(hub, within, id, 0 if is_behind else end)
    (feed,) = hub._feeds.values()
    if is_behind and feed._pump is not None:
        await feed._pump
    monkeypatch.setattr(views, verb, late)
    assert b"zeta" not in await rest_of(stream)
    assert stream.reason in ENDS[id]


async def test_a_stream_does_not_go_on_into_what_another_process_makes_of_its_id(tmp_path: Path):
    app, url = Outrider(), f"sqlite:///{tmp_path}/work.db"
    async with app.open(url, worker=False) as here, app.open(url, worker=False) as there:
        ids, hub = Ids(there), Live(here.services, as_sse)
        await ids.make("acme")
        within = here.within(Bounds("acme")).services
        streams = [await follow(hub, within, id) for follow, id in FOLLOWED.values()]
        begun = [await stream.take() for stream in streams]
        await ids.delete()
        await ids.make("zeta", tasks=2)
        assert b"zeta" not in b"".join([*filter(None, begun), *[await rest_of(stream) for stream in streams]])
        for stream, (_, id) in zip(streams, FOLLOWED.values(), strict=True):
            assert stream.reason in ENDS[id]


async def test_a_server_that_stops_ends_its_streams_with_a_word_and_begins_no_other(api: Api):
    session = await session_of(api)
    path = f"/v1/sessions/{session.id}/events"
    async with listening(api.app, path) as heard, listening(api.app, "/v1/events", last=0) as other:
        await heard.until(1)
        await other.until(1)
        api.app.state.ending.set()
        for each in (heard, other):
            assert (await each.until())[-1] == Told("end", None, {"reason": "server_stopping"})
        async with listening(api.app, path) as late:
            await late.until()
            assert late.status == 503


async def test_nothing_is_left_of_a_client_that_goes(api: Api):
    session = await session_of(api)
    task = await session.create("external", {})
    before = len(asyncio.all_tasks())
    bells = len(api.runtime.ledger._listeners)  # type: ignore[attr-defined]  # of the memory store
    paths = [f"/v1/sessions/{session.id}/events", f"/v1/tasks/{task.id}/events", "/v1/events"]
    heard = []
    for path in [*paths, f"/v1/tasks/{task.id}/output", *paths]:
        context = listening(api.app, path)
        heard.append((context, await context.__aenter__()))
    for _, each in heard:
        if each.job is not heard[3][1].job:
            await each.until(1)
    assert api.app.state.audience.live.feeds == 4
    for context, each in heard:
        await each.leave()
        await context.__aexit__(None, None, None)
    await asyncio.sleep(0)  # in which what was canceled ends
    await asyncio.sleep(0)
    audience = api.app.state.audience
    assert (len(audience), audience.live.feeds, audience.live.held) == (0, 0, 0)
    assert len(api.runtime.ledger._listeners) == bells  # type: ignore[attr-defined]  # of the memory store
    assert len(asyncio.all_tasks()) == before


async def test_who_does_not_read_costs_nothing_and_misses_nothing(api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live, "RING", 8192)  # some four events
    session = await session_of(api)
    path = f"/v1/sessions/{session.id}/events"
    async with listening(api.app, path) as quick, listening(api.app, path, last=0) as slow:
        await quick.until(1)
        await slow.until(1)
        slow.room.clear()
        for n in range(40):
            await worked(session)
            await quick.until(1 + 2 * (n + 1))
            assert api.app.state.audience.live.held <= 8192
        assert len(slow.told) == 1
        slow.room.set()
        whole = await logged(api, session)
        assert events(await slow.until(len(whole))) == whole
        assert events(quick.told) == whole[1:]


async def test_a_client_that_reads_nothing_for_too_long_is_cut_without_an_end_and_may_come_again():
    settings = ServeSettings(streams=StreamSettings(stall_limit=0.02, silence=0.02, most=2))
    async with opened(Outrider(), settings=settings) as api:
        session = await session_of(api)
        path = f"/v1/sessions/{session.id}/events"
        async with listening(api.app, path) as heard, listening(api.app, "/v1/events") as third:
            await heard.until(1)
            await third.until(1)
            async with listening(api.app, path) as many:
                await many.until()
                assert many.status == 429
            heard.room.clear()
            await worked(session)
            assert heard.job is not None
            await asyncio.wait_for(heard.job, 5)
            assert heard.aborts == 1
            assert not heard.is_whole
            async with listening(api.app, path, last=heard.told[-1].id) as again:
                assert events(await again.until(2)) == await logged(api, session, after=1)


async def test_who_has_nothing_to_tell_says_that_it_is_still_there():
    settings = ServeSettings(streams=StreamSettings(silence=0.02))
    async with opened(Outrider(), settings=settings) as api, listening(api.app, "/v1/events") as heard:
        await heard.until(1, comments=3)
        assert [each.name for each in heard.told] == ["snapshot"]


@pytest.mark.parametrize("views", ["events", "news", "session"])
async def test_a_store_that_is_away_for_a_moment_is_waited_for(api: Api, monkeypatch: pytest.MonkeyPatch, views: str):
    monkeypatch.setattr(live, "RETRIES", (0.005, 0.01))
    session = await session_of(api)
    read, failures = getattr(api.runtime.services.views, views), iter(range(3))

    async def away(*given: Any, **named: Any) -> Any:
        if next(failures, None) is not None:
            raise StoreUnavailable("it is away")
        return await read(*given, **named)

    async with listening(api.app, f"/v1/sessions/{session.id}/events") as heard:
        await heard.until(1)
        monkeypatch.setattr(api.runtime.services.views, views, away)
        await worked(session, 5)
        assert events(await heard.until(11)) == await logged(api, session, after=1)


async def test_a_page_of_which_could_not_be_said_whose_it_is_is_read_again(api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live, "RETRIES", (0.005, 0.01))
    session, hub, views = await session_of(api), Live(api.runtime.services, as_sse), api.runtime.services.views
    await worked(session, 5)
    stream = await hub.session(api.runtime.services, session.id, 0)
    (feed,) = hub._feeds.values()
    assert feed._pump is not None
    await feed._pump
    read = views.session

    async def away(session_id: str) -> Any:
        monkeypatch.setattr(views, "session", read)
        raise StoreUnavailable("it is away")

    monkeypatch.setattr(views, "session", away)
    told, _ = parse(await stream.take() or b"")
    assert events(told) == await logged(api, session)
    assert stream.cursor == told[-1].id
    stream.close()


async def test_a_fault_of_a_feed_is_no_end_of_what_it_tells_of(api: Api, monkeypatch: pytest.MonkeyPatch):
    session = await session_of(api)

    async def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("it is broken")

    async with listening(api.app, f"/v1/sessions/{session.id}/events") as heard:
        await heard.until(1)
        monkeypatch.setattr(api.runtime.services.views, "events", broken)
        await worked(session)
        async with listening(api.app, f"/v1/sessions/{session.id}/events", last=0) as late:
            for each in (heard, late):
                assert (await each.until())[-1] == Told("end", None, {"reason": "failed"})


@pytest.fixture(params=["sqlite", "postgres"])
async def two(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Runtime, Runtime]]:
    """Two openings of one store, which hear of each other as two processes do."""
    url = f"sqlite:///{tmp_path}/work.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    app = Outrider()
    async with app.open(url, worker=False) as one, app.open(url, worker=False) as other:
        yield one, other


async def test_what_another_process_writes_is_told_at_once_to_all_who_are_concerned(
    two: tuple[Runtime, Runtime], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(live, "LOOK", 0.05)  # what was deleted there makes no sound
    here, there = two
    api = create_api(here)
    sessions = [await there.sessions.create() for _ in range(3)]
    watched = sessions[0]
    task = await watched.create("external", {})
    loop = asyncio.get_running_loop()
    async with (
        listening(api, f"/v1/sessions/{watched.id}/events") as one,
        listening(api, f"/v1/tasks/{task.id}/events") as of_task,
        listening(api, "/v1/events") as every,
    ):
        heard: tuple[Listener, ...] = (one, of_task, every)
        for each in heard:
            await each.until(1)
        lags = []
        for n in range(1, 8):
            begun = loop.time()
            await there.queue.reprioritize(task.id, n)
            for each in heard:
                await each.until(1 + n)
            lags.append(loop.time() - begun)
        assert sorted(lags)[3] < 0.25, f"{lags}; 50 ms where nobody else needs the processor"
        await worked(sessions[1], 2)
        await there.tasks.cancel(task.id)
        assert [each.name for each in await of_task.until()] == ["snapshot", *["task.updated"] * 8, "end"]
        assert len(await every.until(13)) == 13
        assert events(await one.until(9)) == [(n, "task.updated") for n in range(3, 11)]
        await there.sessions.delete(watched.id)
        assert (await one.until())[-1].data == {"reason": "session_deleted"}


async def test_what_an_open_transaction_hides_is_told_when_it_is_over_and_to_who_follows_its_session_at_once(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(snapshots, "PATIENCE", 0.1)
    monkeypatch.setattr(live, "LOOK", 0.05)
    async with Outrider().open(postgres_url, worker=False) as runtime:
        api = create_api(runtime)
        session = await runtime.sessions.create()
        async with (
            listening(api, f"/v1/sessions/{session.id}/events") as one,
            listening(api, "/v1/events") as every,
            await psycopg.AsyncConnection.connect(postgres_url) as stranger,
        ):
            await one.until(1)
            await every.until(1)
            await stranger.execute("create table strange (n integer)")  # in a transaction, which goes on
            await worked(session, 2)
            assert events(await one.until(5)) == [(n, each) for n, each in enumerate(MADE, start=2)]
            async with listening(api, "/v1/events") as late:
                assert len(await late.until(1)) == 1  # after a while, since what it shows is not in the log yet
                assert [each.name for each in every.told] == ["snapshot"]
                await stranger.rollback()
                for each in (every, late):
                    assert [found.name for found in await each.until(5)] == ["snapshot", *MADE]
                assert late.told[1].id == every.told[1].id


MADE = ["task.created", "task.created", "task.updated", "task.updated"]


@pytest.mark.slow
async def test_streams_go_on_through_a_restart_of_the_database_server(own_postgres: Server):
    url = own_postgres.create_database("work")
    async with Outrider().open(url, worker=False) as runtime:
        api = create_api(runtime)
        session = await runtime.sessions.create()
        async with (
            listening(api, f"/v1/sessions/{session.id}/events") as one,
            listening(api, "/v1/events") as every,
        ):
            await one.until(1)
            await every.until(1)
            await worked(session)
            await one.until(3)
            await asyncio.to_thread(own_postgres.kill)
            with pytest.raises(StoreError):  # somebody looks while it is away
                await runtime.services.views.position()
            await asyncio.to_thread(own_postgres.start)
            async with Outrider().open(url, worker=False) as other:
                await worked(await other.sessions.get(session.id), 3)
            for each in (one, every):
                told = await each.until(9, timeout=20)
                assert [found.data["seq"] for found in told[1:]] == list(range(2, 10))
