"""A whole database copied into another: the same in every view, whole or not at all, and gone on with."""

from __future__ import annotations

import asyncio
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from outrider import Failure, Outrider, Runtime, TaskContext, TaskOptions
from outrider import bootstrap as root
from outrider.bootstrap import copy, open_ledger, separate
from outrider.core.errors import (
    AlreadyExists,
    CopyDiffers,
    InvalidArguments,
    NotFound,
    OutriderError,
    StoreError,
    StoreForeign,
    StoreLocked,
    StoreNewer,
)
from outrider.core.ledger import Document, GrantSet, Ledger, TaskFilter, WorkerCard
from outrider.core.meters import Account, Amounts, Charge, Granted, Heard, RateLimit, Reserve, taps_of
from outrider.core.session import Grant, NewSession
from outrider.core.task import State
from outrider.core.values import evolve
from outrider.runtime.lease import Lock, lock_path, locks_of
from outrider.stores.copy import TABLES, Progress
from outrider.stores.postgres.copy import PostgresPlace
from outrider.stores.sqlite.copy import SqlitePlace
from outrider.testing import Call, Reply, replies, script
from tests.facts import until
from tests.servers import Host, each_version, fresh_database

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
MANY = 1_000_000
UGLY = 'a\0b\x1b[31m\r\n\x7f\x85\u2028 \\u0000 "q" naïve 日本語 🦉\U0010ffff'
NAME = 'quoted "\\" 日本語 🦉 \x1b[31m\u2028'
DAY = 86_400.0

app = Outrider()


def one() -> int:
    return 1


@app.tool
async def journey(task: TaskContext, ugly: str) -> list[str]:
    """Leaves something in every place where a task can, and asks."""
    task.output(ugly)
    task.output("\n", stream="stderr")
    task.progress(1, total=2, label=ugly)
    await task.step("pack", one)
    child = await task.spawn("quick", n=2)
    await task.wait_for([child])
    await task.artifact("ticket", ugly)
    await task.post(ugly)
    said = [message.text for message in await task.messages()]
    return [
        await task.ask(f"Where to? {ugly}", str),
        (await task.files.read(f"/.tasks/{task.id}/ticket")).decode(),
        *said,
    ]


@app.tool
async def quick(n: int) -> int:
    return n


@app.tool
async def sleeper(task: TaskContext) -> str:
    await task.sleep(DAY)
    return "woken"


@app.tool
async def hold(task: TaskContext) -> int:
    """Held by a worker that is killed; ends at once when it is taken up again."""
    n = await task.step("begin", one)
    if task.attempt == 1:
        print("held", flush=True)
        await asyncio.Event().wait()
    return n + task.attempt


@app.tool(max_failures=1)
async def broken() -> None:
    raise Failure(UGLY, kind="on_purpose")


script("look around", replies(Reply(calls=(Call("quick", {"n": 3}),)), Reply("done 🦉")))

WORKER = """
import asyncio, sys
from tests.stores.test_copy import app

async def main():
    async with app.open(sys.argv[1]) as outrider:
        await asyncio.Event().wait()

asyncio.run(main())
"""


@asynccontextmanager
async def working(url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process with a worker, which has taken up what it can hold on to. It is killed at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, url, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"held\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@dataclass
class Full:
    """A database with something in every table, and what stands where in it."""

    url: str
    tasks: dict[str, str]


async def fill(url: str) -> Full:
    names: dict[str, str] = {}
    async with app.open(url) as runtime:
        await runtime.queue.limit("narrow", concurrency=1)
        await runtime.queue.limit("slow*", rate=1, per=DAY)
        first = await runtime.sessions.create(title=NAME, labels={"team": NAME}, tree_budget={"tokens": 9999})
        options = TaskOptions(
            name=NAME, labels={"team": NAME, "a\0b": "c\0"}, wake="on_activity", idempotency_key="the key"
        )
        journeying = await first.spawn(journey, ugly=UGLY, options=options)
        agent = await first.spawn_agent("go", model="scripted:look around", tools=["quick"])
        failed = await first.spawn(broken)
        sleeping = await first.spawn(sleeper, options=TaskOptions(wake="on_terminal"))
        slow = [await first.spawn(quick, n=n, options=TaskOptions(concurrency_key="slow one")) for n in (0, 1)]
        await journeying.message(UGLY, sender="ann")
        await first.write_file("/notes/🦉.txt", UGLY.encode() + b"\xff\x00")
        await journeying.wait(on_question=True, timeout=60)
        for ended in (agent, failed, slow[0]):
            await ended.wait(timeout=60)
        await until(lambda: _is_parked(runtime.ledger, sleeping.id))
        assert await first.inbox.receive(lease=DAY, limit=1)
        delayed = await first.spawn(quick, n=4, options=TaskOptions(delay=DAY))
        second = await runtime.sessions.create(title="paused")
        await runtime.queue.pause(session=second.id, reason=NAME, by="ann")
        grant = Grant(second.id, "pay", True, runtime.services.clock.now(), NAME, "cli", "task_1")
        await runtime.services.ledger.control(GrantSet(grant))
        await runtime.services.ledger.keep([Document("hook", "hook_1", {"name": NAME}, "org_b", "by-name", due_at=5)])
        paused = await second.spawn(quick, n=5)
        names |= {"journey": journeying.id, "agent": agent.id, "failed": failed.id, "sleeping": sleeping.id}
        names |= {"slow": slow[1].id, "delayed": delayed.id, "paused": paused.id}
    async with app.open(url, worker=False) as runtime:
        first = await runtime.sessions.get(first.id)
        narrow = TaskOptions(concurrency_key="narrow")
        names["held"] = (await first.spawn(hold, options=narrow)).id
        names["next"] = (await first.spawn(quick, n=6, options=narrow)).id
    # Killed while it holds that task, with the next one of its key set aside.
    async with working(url), app.open(url, worker=False) as runtime:
        await until(lambda: _is_set_aside(runtime.ledger, names["next"]))
    async with app.open(url, worker=False) as runtime:
        first = await runtime.sessions.get(first.id)
        held = await runtime.ledger.views.task(names["held"])
        assert held is not None
        reserve = Reserve(held.id, held.core.attempt, 1, Amounts(1, 70), held.core.updated_at, taps_of(held))
        limit = RateLimit(f"model:{NAME}", tokens=9)
        charges: list[Charge] = [reserve, evolve(reserve, ordinal=2, rate=limit), Heard("someone", UGLY, 1)]
        assert all(isinstance(verdict, Granted) for verdict in await runtime.ledger.charge(charges))
        awaited = await first.spawn(quick, n=7, options=TaskOptions(delay=DAY))
        dependent = await first.spawn(quick, n=8, options=TaskOptions(depends_on=(awaited.id,)))
        other = await first.spawn(quick, n=9, options=TaskOptions(depends_on=(delayed.id,)))
        await awaited.cancel()  # the task that hears of it has yet to be told, by a worker
        names |= {"dependent": dependent.id, "other": other.id}
    return Full(url, names)


async def _is_parked(ledger: Ledger, task_id: str) -> bool:
    task = await ledger.views.task(task_id)
    return task is not None and bool(task.core.waits) and not task.core.is_held


async def _is_set_aside(ledger: Ledger, task_id: str) -> bool:
    task = await ledger.views.task(task_id)
    return task is not None and task.core.blocked_by == "limit"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Full:
    """Made once, and only ever read."""
    return asyncio.run(fill(str(tmp_path_factory.mktemp("full") / "first.db")))


@pytest.fixture
def urls(tmp_path: Path, postgres: Host) -> Iterator[dict[str, str]]:
    """Empty databases of both kinds."""
    with fresh_database(postgres) as url, fresh_database(postgres) as other:
        yield {
            "sqlite": f"sqlite:///{tmp_path}/target.db",
            "postgres": url,
            "other sqlite": f"sqlite:///{tmp_path}/other.db",
            "other postgres": other,
        }


@pytest.fixture
def own(full: Full, tmp_path: Path) -> Full:
    """A copy of the full database for a test that changes it."""
    path = tmp_path / "own.db"
    with closing(sqlite3.connect(full.url)) as connection:
        connection.execute("vacuum into ?", [str(path)])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("delete from workers")  # whose locks are elsewhere
    return Full(str(path), full.tasks)


async def everything(url: str) -> dict[str, Any]:
    """All that a reader can see in a database."""
    ledger = await open_ledger(url)
    views = ledger.views
    try:
        sessions = await views.sessions(limit=MANY)
        tasks = await views.list_tasks(TaskFilter(limit=MANY))
        statistics = await views.statistics(0)
        seen: dict[str, Any] = {
            "sessions": sessions,
            "tasks": tasks,
            "counts": await views.count_by_state(),
            "gates": await views.gates(),
            "uses": await views.uses(),
            "holders": await views.holders(),
            "follow-ups": await views.follow_ups(MANY),
            "news": await views.news(after=0, limit=MANY),
            "waiting": statistics.waiting,
            "ended": statistics.ended,
            "labelled": await views.list_tasks(TaskFilter(labels={"team": NAME})),
            "problems": await views.problems(),
            "meters": await views.meters(
                [f"model:{NAME}", "provider:someone", *(f"tree:{session.id}" for session in sessions)]
            ),
        }
        for session in sessions:
            seen[session.id] = {
                "events": await views.events(session.id, limit=MANY),
                "first_seq": await views.first_seq(session.id),
                "transcript": await views.transcript(session.id),
                "inbox": await views.inbox(session.id, limit=MANY),
                "files": (files := await views.files(session.id, limit=MANY)),
                "contents": [await views.file(session.id, file.path) for file in files],
            }
        for task in tasks:
            seen[task.id] = {
                "steps": await views.steps(task.id),
                "attempts": await views.attempts(task.id),
                "requests": await views.requests(task.id),
                "messages": await views.messages(task.id, limit=MANY),
                "output": await views.output(task.id, limit=MANY),
                "ahead": await views.ahead(task.id),
                "active": await views.active_at(task.id),
            }
        return seen
    finally:
        await ledger.close()


def rows(url: str) -> dict[str, list[Any]]:
    """All rows of all tables."""
    place = PostgresPlace(url) if url.startswith("postgresql") else SqlitePlace(url.removeprefix("sqlite:///"))
    with place.read() as tables:
        return {table.name: list(tables.rows(table)) for table in TABLES}


async def is_empty(url: str) -> bool:
    ledger = await open_ledger(url)
    try:
        return not any(rows(url).values()) and not await ledger.views.sessions()
    finally:
        await ledger.close()


# --- what comes over -------------------------------------------------------------------------------------


async def test_the_database_that_these_tests_copy_has_something_in_every_table(full: Full):
    assert [name for name, found in rows(full.url).items() if not found] == []


@pytest.mark.parametrize("postgres_version", each_version())
@pytest.mark.parametrize("way", [("postgres", "sqlite"), ("sqlite", "other sqlite"), ("postgres", "other postgres")])
async def test_a_copy_and_a_copy_of_it_are_the_same_in_every_view(full: Full, urls: dict[str, str], way: Any):
    before = await everything(full.url)
    first = rows(full.url)
    url = full.url
    for kind in way:
        done = await copy(url, urls[kind])
        url = urls[kind]
        assert done.rows == {name: len(found) for name, found in first.items()}
        assert rows(url) == first
        assert await everything(url) == before
        assert await everything(full.url) == before
    ledger = await open_ledger(url)
    assert not await ledger.views.workers()
    await ledger.close()


MADE_ANEW = ("indexed", "terms", "blocks", "passing_terms", "unlisted")
"""The index of tasks, which the workers of the target make from the log."""


async def test_a_row_is_what_the_schemas_say_it_is(full: Full, urls: dict[str, str]):
    """A column that a migration adds has to be copied as well."""
    await copy(full.url, urls["postgres"])
    named = {table.name: list(table.columns) for table in TABLES}
    with closing(sqlite3.connect(full.url)) as connection:
        tables = [name for (name,) in connection.execute("select name from sqlite_schema where type = 'table'")]
        here = {name: [row[1] for row in connection.execute(f"pragma table_info({name})")] for name in tables}
    with psycopg.connect(urls["postgres"]) as postgres:
        there: dict[str, list[str]] = {}
        for name, column in postgres.execute(
            "select table_name, column_name from information_schema.columns where table_schema = current_schema()"
        ):
            there.setdefault(name, []).append(column)
    for found in (here, there):
        for name in ("workers", "migrations", *MADE_ANEW):
            del found[name]
    assert {name: set(columns) for name, columns in here.items() if name != "sqlite_sequence"} == {
        name: set(columns) for name, columns in named.items()
    }
    assert set(there.pop("origin")) == {"id", "position"}
    assert set(there.pop("writers")) == {"id", "number", "at"}, "what processes are in doubt about"
    there["counts"].remove("shard")
    there["inputs"].remove("labels")
    assert {name: set(columns) for name, columns in there.items()} == {n: set(c) for n, c in named.items()}


# --- what becomes of it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
async def test_a_worker_at_the_target_goes_on_with_all_that_was_under_way(full: Full, urls: dict[str, str], kind: str):
    url, names = urls[kind], full.tasks
    await copy(full.url, url)
    async with app.open(url) as runtime:
        tasks = {name: await runtime.task(task_id) for name, task_id in names.items()}
        assert await tasks["held"].result(timeout=60) == 3
        assert (await tasks["held"].record()).failures == 1
        assert next(each.ending for each in await tasks["held"].attempts()) == "lost"
        tree = f"tree:{tasks['held'].session_id}"
        account = (await runtime.ledger.views.meters([tree]))[tree]
        assert isinstance(account, Account)
        assert (account.held, account.unknown) == (Amounts(), Amounts(2, 140)), "the calls that nobody ended"
        assert await tasks["next"].result(timeout=60) == 6
        error = (await tasks["dependent"].wait(timeout=60)).error
        assert error is not None
        assert error.kind == "dependency_failed"
        await tasks["journey"].answer("Rome")
        assert await tasks["journey"].result(timeout=60) == ["Rome", UGLY, UGLY]
        assert len([step for step in await tasks["journey"].steps() if step.verb == "step"]) == 1
        assert (await tasks["sleeping"].record()).phase == "sleeping"
        assert (await tasks["slow"].record()).phase == "blocked"
        assert (await tasks["delayed"].record()).phase == "delayed"
        assert (await tasks["other"].record()).phase == "blocked"
        await runtime.queue.unlimit("slow*")
        assert await tasks["slow"].result(timeout=60) == 1
        assert await runtime.queue.resume(session=tasks["paused"].session_id)
        assert await tasks["paused"].result(timeout=60) == 5
        session = await runtime.sessions.get(tasks["journey"].session_id)
        again = await session.spawn(
            journey,
            ugly=UGLY,
            options=TaskOptions(
                name=NAME, labels={"team": NAME, "a\0b": "c\0"}, wake="on_activity", idempotency_key="the key"
            ),
        )
        assert again.id == names["journey"]
        assert not await runtime.ledger.views.problems()


@pytest.mark.parametrize("way", [("postgres",), ("sqlite",), ("postgres", "sqlite"), ("postgres", "other postgres")])
async def test_what_is_made_at_the_target_comes_after_all_that_was_copied(full: Full, urls: dict[str, str], way: Any):
    url = full.url
    ledger = await open_ledger(url)
    position = await ledger.views.position()
    await ledger.close()
    for kind in way:
        await copy(url, urls[kind])
        url = urls[kind]
    before = rows(url)
    async with app.open(url, worker=False) as runtime:
        assert await runtime.ledger.views.position() >= position
        assert len(await runtime.ledger.views.news(after=0, limit=MANY)) == len(before["events"])
    async with app.open(url) as runtime:
        held = await runtime.task(full.tasks["held"])
        await held.wait(timeout=60)
        session = await runtime.sessions.create()
        made = await session.spawn(journey, ugly=UGLY)
        await made.message("go on")
        await made.wait(on_question=True, timeout=60)
        news = await runtime.ledger.views.news(after=position, limit=MANY)
        assert {each.session_id for each in news} >= {session.id, held.session_id}
    after = rows(url)
    for table in TABLES:
        if table.key[0] in ("number", "id", "position"):
            old = {row[0] for row in before[table.name]}
            new = [row[0] for row in after[table.name] if row[0] not in old]
            assert min(new, default=MANY**9) > max(old), table.name
            assert new or table.name in ("follow_ups", "watches")


async def test_numbers_of_what_is_gone_are_not_given_again(tmp_path: Path, urls: dict[str, str]):
    url = str(tmp_path / "pruned.db")
    async with app.open(url) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn(quick, n=1)
        await task.wait(timeout=60)
        await session.spawn(quick, n=2, options=TaskOptions(delay=DAY))
        last = await session.spawn(quick, n=3)
        await last.wait(timeout=60)
        number, position = rows(url)["tasks"][-1][0], await runtime.ledger.views.position()
        await last.delete()
    for kind in ("postgres", "sqlite"):
        await copy(url, urls[kind])
        url = urls[kind]
        async with app.open(url) as runtime:
            assert await runtime.ledger.views.position() >= position
            await (await runtime.sessions.create()).spawn(quick, n=4, options=TaskOptions(delay=DAY))
            assert rows(url)["tasks"][-1][0] > number
            assert len(await runtime.ledger.views.news(after=position)) == 2
            position = await runtime.ledger.views.position()


async def test_a_database_that_has_counted_further_than_the_target_is_gone_on_with_from_there(
    own: Full, urls: dict[str, str]
):
    with closing(sqlite3.connect(own.url, isolation_level=None)) as connection:
        connection.execute("update sqlite_sequence set seq = seq + ?", [1 << 55])
        connection.execute("update messages set number = number + ?", [1 << 55])
    async with app.open(own.url, worker=False) as runtime:
        await (await runtime.sessions.create()).spawn(quick, n=1, options=TaskOptions(delay=DAY))
        position = await runtime.ledger.views.position()
    await copy(own.url, urls["postgres"])
    before = rows(urls["postgres"])
    async with app.open(urls["postgres"], worker=False) as runtime:
        assert await runtime.ledger.views.position() >= position > 1 << 55
        session = await runtime.sessions.create()
        task = await session.spawn(quick, n=1, options=TaskOptions(delay=DAY))
        news = await runtime.ledger.views.news(after=position)
        assert [(each.session_id, each.task_id) for each in news] == [(session.id, None), (session.id, task.id)]
        await session.spawn(quick, n=1, options=TaskOptions(depends_on=(task.id,)))
        await task.message("later")
        await task.cancel()
    after = rows(urls["postgres"])
    for name in ("sessions", "tasks", "events", "messages", "follow_ups"):
        assert after[name][: len(before[name])] == before[name]
        assert len(after[name]) > len(before[name])
        assert after[name][-1][0] > 1 << 55


async def test_who_has_had_the_target_open_all_the_time_gives_no_number_twice(own: Full, urls: dict[str, str]):
    async with app.open(own.url, worker=False) as runtime:
        await (await runtime.sessions.create()).spawn_many(quick, [{"n": n} for n in range(100)])
    async with app.open(urls["postgres"], worker=False) as runtime:
        session = await runtime.sessions.create()
        await (await session.spawn(quick, n=1)).cancel()
        await session.delete()
        await copy(own.url, urls["postgres"])
        task = await (await runtime.sessions.create()).spawn(quick, n=1)
        assert (await task.record()).state is State.QUEUED
    assert len(rows(urls["postgres"])["tasks"]) == len(rows(own.url)["tasks"]) + 1


# --- all of it or nothing --------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["copy", "compare"])
@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
async def test_a_copy_that_is_killed_leaves_nothing_and_can_be_made_again(
    full: Full, urls: dict[str, str], kind: str, step: str
):
    program = (
        "import asyncio, signal, sys\n"
        "from outrider.bootstrap import copy\n"
        "def tell(progress):\n"
        f"    if (progress.step, progress.table, progress.is_whole) == ({step!r}, 'files', True):\n"
        "        print('half', flush=True)\n"
        "        signal.pause()\n"
        "asyncio.run(copy(*sys.argv[1:], tell=tell))\n"
    )
    before = rows(full.url)
    with subprocess.Popen(
        [sys.executable, "-c", program, full.url, urls[kind]], cwd=ROOT, stdout=subprocess.PIPE
    ) as killed:
        assert killed.stdout is not None
        assert await asyncio.to_thread(killed.stdout.readline) == b"half\n"
        killed.kill()
    assert killed.returncode == -signal.SIGKILL
    assert await is_empty(urls[kind])
    await copy(full.url, urls[kind])
    assert rows(urls[kind]) == rows(full.url) == before


@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
async def test_a_copy_that_is_cancelled_ends_and_leaves_nothing(full: Full, urls: dict[str, str], kind: str):
    has_begun, may_go_on = threading.Event(), threading.Event()

    def tell(progress: Progress) -> None:
        if progress.table == "steps":
            has_begun.set()
            may_go_on.wait(60)

    job = asyncio.create_task(copy(full.url, urls[kind], tell=tell))
    assert await asyncio.to_thread(has_begun.wait, 60)
    job.cancel()
    await asyncio.sleep(0)
    assert not job.done()  # it sees to it that nothing goes on behind its back
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert await is_empty(urls[kind])


async def test_what_came_to_stand_there_otherwise_is_found_and_nothing_is_kept(full: Full, urls: dict[str, str]):
    for url in (urls["postgres"], urls["sqlite"]):
        await (await open_ledger(url)).close()
    with closing(sqlite3.connect(urls["sqlite"].removeprefix("sqlite:///"), isolation_level=None)) as connection:
        for table, spoils, undoes in (
            ("steps", "update steps set verb = 'x' where number = new.number", "rows of steps"),
            ("messages", "delete from messages where number = new.number", "rows of messages"),
            ("files", "insert into watches (awaited, watcher) values (new.folder, new.path)", "rows of watches"),
        ):
            connection.execute(f"create trigger spoil after insert on {table} begin {spoils}; end")
            with pytest.raises(CopyDiffers, match=undoes) as caught:
                await copy(full.url, urls["sqlite"])
            assert caught.value.code == "copy_differs"
            connection.execute("drop trigger spoil")
            assert await is_empty(urls["sqlite"])
    with psycopg.connect(urls["postgres"], autocommit=True) as postgres:
        for table, spoils in (
            ("output", "new.text := to_json('x'::text); return new;"),
            ("files", "new.content := substr(new.content, 2); return new;"),
            ("events", "return null;"),
        ):
            postgres.execute(
                f"create function spoil() returns trigger language plpgsql as $$begin {spoils} end$$".encode()
            )
            postgres.execute(
                f"create trigger spoil before insert on {table} for each row execute function spoil()".encode()
            )
            with pytest.raises(CopyDiffers, match=f"rows of {table}"):
                await copy(full.url, urls["postgres"])
            postgres.execute("drop function spoil cascade")
            assert await is_empty(urls["postgres"])


# --- refusals --------------------------------------------------------------------------------------------


async def _is_worked_on(runtime: Runtime) -> bool:
    return bool(await runtime.workers())


async def refused(source: str, target: str, error: type[OutriderError], match: str) -> None:
    with pytest.raises(error, match=match):
        await copy(source, target)


@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
async def test_nothing_is_merged(full: Full, urls: dict[str, str], kind: str):
    url = urls[kind]
    async with app.open(url, worker=False) as runtime:
        await runtime.queue.limit("mine", concurrency=3)
        await refused(full.url, url, AlreadyExists, "limits")
        await runtime.queue.unlimit("mine")
        session = await runtime.sessions.create()
        await refused(full.url, url, AlreadyExists, "sessions")
        assert [each.id for each in await runtime.sessions.list()] == [session.id]
        await session.delete()
    await copy(full.url, url)
    before = rows(url)
    await refused(full.url, url, AlreadyExists, "sessions")
    assert rows(url) == before


async def test_one_database_is_not_copied_into_itself_nor_one_in_memory_at_all(
    full: Full, urls: dict[str, str], tmp_path: Path
):
    (tmp_path / "link.db").symlink_to(full.url)
    for same in (full.url, f"sqlite:///{full.url}", str(tmp_path / "link.db")):
        await refused(full.url, same, InvalidArguments, "same")
    await refused(urls["sqlite"], "memory://", InvalidArguments, "memory")
    await refused("memory://", urls["sqlite"], InvalidArguments, "memory")
    await (await open_ledger(urls["postgres"])).close()
    await refused(urls["postgres"], f"{urls['postgres']}?application_name=other", InvalidArguments, "same")


async def test_a_source_that_is_not_there_is_not_made(urls: dict[str, str], tmp_path: Path):
    await refused(str(tmp_path / "missing.db"), urls["postgres"], NotFound, "missing.db")
    await refused(urls["other postgres"], urls["sqlite"], StoreForeign, "no database of Outrider")
    assert list(tmp_path.iterdir()) == []
    with psycopg.connect(urls["other postgres"]) as postgres:
        assert postgres.execute("select count(*) from pg_tables where schemaname = 'public'").fetchone() == (0,)


async def test_databases_of_later_programs_are_refused(own: Full, urls: dict[str, str]):
    newer = "insert into migrations values (9999, 'later', 'x', %s, 1)"
    await (await open_ledger(urls["postgres"])).close()
    with psycopg.connect(urls["postgres"], autocommit=True) as postgres:
        postgres.execute(newer.encode(), [True])
        await refused(urls["postgres"], urls["sqlite"], StoreNewer, "9999")  # which may have what is not known here
        postgres.execute("update migrations set tolerated = false where number = 9999")
        await refused(own.url, urls["postgres"], StoreNewer, "9999")
    with closing(sqlite3.connect(own.url, isolation_level=None)) as connection:
        connection.execute(newer.replace("%s", "?"), [True])
    await refused(own.url, urls["other postgres"], StoreNewer, "9999")
    assert await is_empty(urls["other postgres"])


async def test_a_database_on_which_a_worker_lives_is_refused_at_either_end(own: Full, urls: dict[str, str]):
    for url in (own.url, urls["postgres"], urls["other sqlite"]):
        async with app.open(url) as runtime:
            await until(lambda: _is_worked_on(runtime))
            (worker,) = await runtime.workers()
            if url is not own.url:
                await refused(own.url, url, StoreLocked, worker.id)
            await refused(url, urls["sqlite"], StoreLocked, worker.id)
    assert await is_empty(urls["postgres"])
    await copy(own.url, urls["postgres"])


@pytest.mark.parametrize("silent", [1.0, 0.0])
async def test_a_worker_of_another_machine_lives_as_long_as_its_beat_moves(
    full: Full, urls: dict[str, str], monkeypatch: pytest.MonkeyPatch, silent: float
):
    """However short it is looked at: the last look is when nobody can begin to work any more."""
    monkeypatch.setattr(root, "SILENT", silent)
    ledger = await open_ledger(urls["postgres"])
    await ledger.register(WorkerCard("worker_far", "elsewhere", "boot", 1, 1))
    is_dead = threading.Event()

    def beat() -> None:
        while not is_dead.wait(0.005):
            ledger.renew("worker_far", 10)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        await refused(full.url, urls["postgres"], StoreLocked, "worker_far")
        await refused(urls["postgres"], urls["sqlite"], StoreLocked, "worker_far")
    finally:
        is_dead.set()
        thread.join()
    told: list[Progress] = []
    await copy(full.url, urls["postgres"], tell=told.append)
    assert told[0] == Progress("wait", "workers", 1, is_whole=False), "whoever waits is told so"
    await copy(urls["postgres"], urls["sqlite"])
    await ledger.close()
    other = await open_ledger(urls["sqlite"])
    assert not await other.views.workers()
    await other.close()


async def test_a_copy_that_a_server_made_is_set_apart_from_its_original_unless_a_worker_is_on_it(
    urls: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(root, "SILENT", 1.0)
    ledger = await open_ledger(urls["postgres"])
    before, is_dead = locks_of(ledger), threading.Event()
    assert before is not None
    await ledger.register(WorkerCard("worker_of_the_original", socket.gethostname(), "boot", 1, 1))

    def beat() -> None:
        while not is_dead.wait(0.005):
            with suppress(StoreError):  # its table is locked just now
                ledger.renew("worker_of_the_original", 10)

    thread = threading.Thread(target=beat)
    thread.start()
    lock = Lock(lock_path(before, "worker_of_the_original"))  # which lives, but not on this database
    with pytest.raises(StoreLocked, match="worker_of_the_original"):
        await separate(urls["postgres"])
    is_dead.set()
    thread.join()
    told: list[Progress] = []
    id = await separate(urls["postgres"], tell=told.append)
    lock.release()
    assert told == [Progress("wait", "workers", 1, is_whole=False)]
    await ledger.close()
    ledger = await open_ledger(urls["postgres"])
    after = locks_of(ledger)
    assert after is not None
    assert before.name != after.name == f"{id}-workers"
    await ledger.close()
    with pytest.raises(InvalidArguments, match="a file is known by where it is"):
        await separate(urls["sqlite"])


async def test_a_worker_that_comes_while_a_copy_is_set_apart_keeps_its_identity(
    urls: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    ledger, loop, write = await open_ledger(urls["postgres"]), asyncio.get_running_loop(), PostgresPlace.write
    before = locks_of(ledger)

    def late(place: PostgresPlace) -> Any:
        card = WorkerCard("worker_late", socket.gethostname(), "boot", 1, 1)
        asyncio.run_coroutine_threadsafe(ledger.register(card), loop).result()
        return write(place)

    monkeypatch.setattr(PostgresPlace, "write", late)
    with pytest.raises(StoreLocked, match="worker_late"):
        await separate(urls["postgres"])
    await ledger.close()
    ledger = await open_ledger(urls["postgres"])
    assert locks_of(ledger) == before
    await ledger.close()


@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
async def test_nobody_becomes_a_worker_of_either_database_while_it_is_copied(
    own: Full, urls: dict[str, str], kind: str
):
    if kind == "postgres":
        await copy(own.url, urls["other postgres"])
    source = urls["other postgres"] if kind == "postgres" else own.url
    has_begun, may_go_on = threading.Event(), threading.Event()
    in_time: list[bool] = []

    def tell(progress: Progress) -> None:
        if progress.table == "steps" and not has_begun.is_set():
            has_begun.set()
            may_go_on.wait(60)
        elif progress == Progress("compare", "pauses", 1, is_whole=True):
            in_time.extend(task.done() for task in late)

    ledgers = [await open_ledger(source), await open_ledger(urls["postgres"])]
    job = asyncio.create_task(copy(source, urls["postgres"], tell=tell))
    assert await asyncio.to_thread(has_begun.wait, 60)
    late = [
        asyncio.create_task(ledger.register(WorkerCard(f"worker_{n}", "here", "boot", n, 1)))
        for n, ledger in enumerate(ledgers)
    ]
    may_go_on.set()
    await job
    await asyncio.gather(*late)
    assert in_time == [False, False]
    for ledger in ledgers:
        await ledger.close()


@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
async def test_what_others_write_into_the_source_meanwhile_stays_there(own: Full, urls: dict[str, str], kind: str):
    if kind == "postgres":
        await copy(own.url, urls["other postgres"])
    source = urls["other postgres"] if kind == "postgres" else own.url
    before = rows(source)
    has_begun, has_written = threading.Event(), threading.Event()

    def tell(progress: Progress) -> None:
        if progress.table == "sessions" and progress.is_whole and progress.step == "copy":
            has_begun.set()
            assert kind == "sqlite" or has_written.wait(60)  # in SQLite who writes waits for the copy

    async with app.open(source, worker=False) as runtime:
        job = asyncio.create_task(copy(source, urls["postgres"], tell=tell))
        assert await asyncio.to_thread(has_begun.wait, 60)
        session = await runtime.sessions.create()
        await session.spawn(quick, n=1)
        has_written.set()
        await job
        assert len(await session.tasks()) == 1
    assert rows(urls["postgres"]) == before


async def test_what_postgresql_cannot_hold_is_refused_with_its_name(tmp_path: Path, urls: dict[str, str]):
    url = str(tmp_path / "nul.db")
    async with app.open(url, worker=False) as runtime:
        # As an earlier version could write it; the façade refuses it.
        session = await runtime.ledger.create_session(NewSession("session_old", 0, title="a\0b"))
    await refused(url, urls["postgres"], InvalidArguments, f"title of {session.id}")
    assert await is_empty(urls["postgres"])
    await copy(url, urls["sqlite"])
    assert rows(urls["sqlite"]) == rows(url)


async def test_how_far_it_has_come_is_told(full: Full, urls: dict[str, str]):
    told: list[Progress] = []
    done = await copy(full.url, urls["postgres"], tell=told.append)
    for step in ("copy", "compare"):
        whole = {each.table: each.rows for each in told if each.step == step and each.is_whole}
        assert whole == done.rows
