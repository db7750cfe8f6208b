"""News of a worker reaches another process while it happens: `output --follow`, `watch`, `wait`.

How soon is what the benchmark `output` measures; here it only has to be before the next thing happens.
"""

import asyncio
import json
import select
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from outrider import Client, Outrider, Runtime
from outrider.cli import watching
from outrider.cli.watching import _all_events, _below, _Everything, _Feed
from outrider.client.sessions import Sessions
from outrider.core.session import NewSession
from outrider.runtime.records import EventRecord, OutputRecord
from tests.cli.harness import PATIENCE, Cli, eventually
from tests.client.stage import app_of_tests, served


def test_output_is_followed_line_by_line_and_ends_with_the_task(cli: Cli):
    worker = cli.worker()
    task_id = cli.ok("call", "count", "upto=8", "pause=0.5", "--background").out.strip()
    follower = cli.start("output", task_id, "--follow", "--json")
    assert follower.stdout is not None
    lags = []
    text = ""
    for line in follower.stdout:
        piece = OutputRecord.model_validate(json.loads(line))
        assert piece.at is not None
        lags.append(time.time() - piece.at.timestamp())
        text += piece.text
    assert text == "".join(f"line {n}\n" for n in range(1, 9))
    assert follower.wait(60) == 0
    assert min(lags) < 0.4, "a line came only with the next one"
    worker.terminate()


def test_events_of_a_task_come_once_each_in_order_and_end_with_it(cli: Cli):
    worker = cli.worker()
    task_id = cli.ok("call", "confirm", "--background").out.strip()
    watcher = cli.start("watch", task_id, "--json")
    assert watcher.stdout is not None
    events = []
    for line in watcher.stdout:
        events.append(EventRecord.model_validate(json.loads(line)))
        if events[-1].task is not None and events[-1].task.state == "awaiting_input":
            cli.run("answer", task_id, "yes")
    assert watcher.wait(60) == 0
    states = [str(event.task.state) for event in events if event.task is not None]
    assert states[0] == "queued"
    assert states[-1] == "succeeded"
    assert "awaiting_input" in states
    assert [event.seq for event in events] == sorted({event.seq for event in events})
    again = cli.ok("watch", task_id, "--json", f"--after={events[1].seq}").records
    assert [event["seq"] for event in again] == [event.seq for event in events[2:]]
    plain = cli.ok("watch", task_id).out.splitlines()
    assert len(plain) == len(events)
    assert "asks: Go on?" in "".join(plain)
    worker.terminate()


def test_watch_tells_of_every_session_from_now_on_and_of_one_from_its_start(cli: Cli):
    worker = cli.worker()
    before = cli.ok("call", "add", "a=0", "--background").out.strip()
    cli.ok("wait", before)
    watcher = cli.start("watch", "--json")
    assert watcher.stdout is not None
    while not select.select([watcher.stdout], [], [], 0)[0]:  # it takes a moment until it looks
        cli.ok("call", "echo", "text=ready", "--session=one", "--background")
    first = json.loads(watcher.stdout.readline())
    assert first["task_id"] != before
    cli.ok("call", "add", "a=1", "--session=two", "--background")
    sessions = {first["session_id"]}
    while sessions != {"one", "two"}:
        sessions.add(json.loads(watcher.stdout.readline())["session_id"])
    watcher.kill()
    one = cli.start("watch", "one", "--json")
    assert one.stdout is not None
    seqs = [json.loads(one.stdout.readline())["seq"] for _ in range(3)]
    assert seqs == [1, 2, 3]
    one.kill()
    worker.terminate()


def test_wait_hears_of_the_end(cli: Cli):
    worker = cli.worker()
    task_id = cli.ok("call", "name_it", "--background").out.strip()
    eventually(lambda: cli.task(task_id)["input_request"])
    waiter = cli.start("wait", task_id, "--json")
    time.sleep(1)
    assert waiter.poll() is None
    cli.ok("answer", task_id, "x")
    out, _ = waiter.communicate(timeout=60)
    assert json.loads(out)["result"] == "called x"
    assert waiter.returncode == 0
    worker.terminate()


def test_wait_prints_each_task_with_its_result_as_it_ends(cli: Cli):
    worker = cli.worker()
    asking = cli.ok("call", "name_it", "--background").out.strip()
    boxed = cli.ok("call", "boxed", "text=a", "--background", "--name=the box").out.strip()
    waiter = cli.start("wait", asking, boxed, asking)
    assert waiter.stdout is not None
    assert waiter.stdout.readline() == f"{boxed}  succeeded  the box\n"
    assert waiter.stdout.readline() == '{"text":"a"}\n'
    eventually(lambda: cli.task(asking)["input_request"])
    cli.ok("answer", asking, "x")
    out, _ = waiter.communicate(timeout=60)
    assert out == f"{asking}  succeeded  name_it\ncalled x\n"
    assert waiter.returncode == 0
    worker.terminate()


def test_watching_an_empty_place_waits_for_what_comes(cli: Cli):
    watcher = cli.start("watch", "--json")
    eventually(lambda: (cli.folder / ".outrider" / "outrider.db").exists())
    cli.ok("call", "add", "a=1", "--background")
    assert watcher.stdout is not None
    assert json.loads(watcher.stdout.readline())["type"] == "session.created"
    watcher.kill()


@pytest.fixture
async def runtimes(tmp_path: Path) -> AsyncIterator[tuple[Runtime, Runtime]]:
    """Two on one database, as two processes have: one writes, the other watches."""
    app = Outrider()

    @app.tool
    def idle() -> None:
        """Never run: no worker is here."""

    path = str(tmp_path / "work.db")
    async with app.open(path, worker=False) as writer, app.open(path, worker=False) as watcher:
        yield writer, watcher


@pytest.mark.anyio
async def test_watch_tells_of_a_session_however_many_are_newer(runtimes: tuple[Runtime, Runtime]):
    writer, watcher = runtimes
    old = await writer.sessions.create(id="a")
    await asyncio.gather(*(writer.sessions.create(id=f"session_{number}") for number in range(600)))
    feed = _all_events(watcher)
    first = asyncio.ensure_future(anext(feed))
    made = set()
    async with asyncio.timeout(PATIENCE):
        while not first.done():  # from when on it watches, it tells nobody
            made.add((await old.spawn("idle")).id)
            await asyncio.sleep(0.01)
    event = first.result()
    assert (event.session_id, event.type) == ("a", "task.created")
    assert event.task_id in made
    await feed.aclose()


@pytest.mark.anyio
async def test_watching_a_session_tells_of_all_below_it_and_of_no_other(runtimes: tuple[Runtime, Runtime]):
    writer, watcher = runtimes

    async def begin(id: str, parent: str | None) -> None:
        root = None if parent is None else "z_root"
        await writer.ledger.create_session(
            NewSession(id, time.time_ns() // 1000, root_session_id=root, parent_session_id=parent)
        )

    for id, parent in (("z_root", None), ("beside", "z_root"), ("m", "z_root"), ("a_below", "m"), ("other", None)):
        await begin(id, parent)
    feed = _Feed(watcher, "m", 0).events()
    assert {(await anext(feed)).session_id for _ in range(2)} == {"m", "a_below"}
    for id, parent in (("beside_too", "beside"), ("new", "a_below"), ("newer", "new")):
        await begin(id, parent)
    await (await writer.sessions.get("z_root")).spawn("idle")
    await (await writer.sessions.get("a_below")).spawn("idle")
    assert [(await anext(feed)).session_id for _ in range(3)] == ["new", "newer", "a_below"]
    await feed.aclose()


@pytest.mark.anyio
async def test_watching_looks_at_news_and_goes_through_nothing_again(
    runtimes: tuple[Runtime, Runtime], monkeypatch: pytest.MonkeyPatch
):
    writer, watcher = runtimes
    session = await writer.sessions.create(id="a")
    views = watcher.services.views
    ended = await session.spawn("idle")
    await ended.cancel()
    living = await session.spawn("idle")
    everything = _Everything(views, time.time_ns() // 1000)
    assert [task.id for task in await everything.look()] == [living.id]
    feed = _Feed(watcher, "a", 3).events()
    assert (await anext(feed)).task_id == living.id

    async def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("all of it was gone through again")

    for name in ("list_tasks", "sessions"):
        monkeypatch.setattr(views, name, refuse)
    later = await session.spawn("idle")
    assert [task.id for task in await everything.look()] == [living.id, later.id]
    await later.cancel()
    assert [task.is_terminal for task in await everything.look()] == [False, True]
    assert [(await anext(feed)).seq for _ in range(2)] == [5, 6]
    await feed.aclose()


@pytest.mark.anyio
async def test_tasks_that_there_was_no_room_for_are_shown_when_there_is(
    runtimes: tuple[Runtime, Runtime], monkeypatch: pytest.MonkeyPatch
):
    writer, watcher = runtimes
    monkeypatch.setattr(watching, "SHOWN", 2)
    session = await writer.sessions.create()
    one, two = [await session.spawn("idle") for _ in range(2)]
    everything = _Everything(watcher.services.views, time.time_ns() // 1000)
    assert [task.id for task in await everything.look()] == [one.id, two.id]
    three = await session.spawn("idle")
    assert [task.id for task in await everything.look()] == [two.id, three.id]
    await three.cancel()
    assert [task.id for task in await everything.look()] == [one.id, two.id]


@pytest.mark.anyio
async def test_watching_at_a_server_tells_of_what_was_opened_before_and_of_what_cuts_it_off(
    monkeypatch: pytest.MonkeyPatch,
):
    async with app_of_tests().open("memory://") as runtime, served(runtime) as url, Client(url) as client:
        session = await client.sessions.create()
        agent = await session.spawn_agent("hello", model="scripted:client-echo")
        await agent.result(timeout=PATIENCE)
        below = (await agent.record()).links.child_session_id
        feed = _below(client, session.id, (await client.sessions.snapshot(session.id)).after)
        async with asyncio.timeout(PATIENCE):
            assert (await anext(feed)).session_id == below
        await feed.aclose()

        events = Sessions.events

        def cut(sessions: Sessions, session_id: str, *, after: int = 0) -> AsyncIterator[EventRecord]:
            if session_id == below:
                raise OSError("the wire is cut")
            return events(sessions, session_id, after=after)

        monkeypatch.setattr(Sessions, "events", cut)
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(OSError, match="the wire is cut"):
                async for _ in _below(client, session.id, 0):
                    pass
