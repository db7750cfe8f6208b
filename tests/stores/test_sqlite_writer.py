"""How the SQLite store writes: many callers in one transaction, in the order in which they came."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from outrider.core.errors import StoreUnavailable
from outrider.core.events import CancelRequested, MessageReceived, Released, Succeeded
from outrider.core.ledger import Claim, Committed, Report, Stale, TaskFilter, Verdict, WorkerCard
from outrider.core.machine import apply
from outrider.core.meters import Amounts, Granted, Reserve, Settle, taps_of
from outrider.core.task import Live, State, WaitForMessage
from outrider.runtime.indexing import take_in
from outrider.stores.migrate import known
from outrider.stores.sqlite import SqliteLedger
from outrider.stores.sqlite.statements import SqliteStatements, texts, wide
from outrider.stores.sqlite.views import POOL
from outrider.stores.sqlite.writer import Writer
from tests.stores.scene import ROUTE, SESSION, START, Ear, Scene

pytestmark = pytest.mark.anyio


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    ledger = await SqliteLedger.open(tmp_path / "work.db")
    scene = Scene(ledger)
    await scene.session()
    yield scene
    await ledger.close()


def sqlite_of(scene: Scene) -> SqliteLedger:
    assert isinstance(scene.ledger, SqliteLedger)
    return scene.ledger


@contextmanager
def held_up(scene: Scene) -> Iterator[None]:
    """The writer waits for the lock meanwhile, so that what is handed over queues up behind one operation."""
    ledger = sqlite_of(scene)
    other = sqlite3.connect(ledger.path, isolation_level=None, check_same_thread=False)
    other.execute("begin immediate")
    try:
        yield
    finally:
        other.execute("rollback")
        other.close()


async def all_of(scene: Scene, *acts: Any) -> list[Any]:
    """Hand over all of these while the writer is held up, in this order."""
    with held_up(scene):
        first = asyncio.ensure_future(scene.ledger.retire("nobody"))
        await anyio.sleep(0.05)
        tasks = [asyncio.ensure_future(act) for act in acts]
        await anyio.lowlevel.checkpoint()
    await first
    return await asyncio.gather(*tasks)


async def test_what_queues_up_during_a_commit_goes_into_the_next_one_together(scene: Scene):
    before = scene.ledger.counters["commits"]
    await all_of(scene, *(scene.ledger.commit([scene.new(f"task_{n:03}")]) for n in range(100)))
    assert scene.ledger.counters["commits"] - before == 2
    assert [row.seq for row in await scene.log()] == list(range(1, 102))


async def test_a_batch_of_many_rows_takes_few_statements(scene: Scene):
    before = scene.ledger.counters["statements"]
    await scene.ledger.commit([scene.new(f"task_{n:03}") for n in range(64)])
    assert scene.ledger.counters["statements"] - before <= 10


async def test_a_call_costs_a_commit_of_four_statements_to_reserve_and_one_to_settle_that_others_share(scene: Scene):
    budget = {"tokens": 9, "session": {"cost": 1}, "tree": {"requests": 99}}
    tasks = [await scene.running(f"task_{n:02}", budget=budget) for n in range(64)]
    call = Amounts(1, 9, 9, 1)
    asked = [Reserve(task.id, 1, 1, call, scene.now, taps_of(task)) for task in tasks]
    answered = [Settle(each.task_id, 1, 1, call, scene.now, each.taps) for each in asked]
    for charges in ([asked[0]], asked[1:], [answered[0]], answered[1:]):
        before = dict(scene.ledger.counters)
        verdicts = await asyncio.gather(*(scene.ledger.charge([each]) for each in charges))
        assert all(verdict == [Granted()] for verdict in verdicts)
        after = scene.ledger.counters
        assert (after["commits"] - before["commits"], after["statements"] - before["statements"]) == (1, 4)


async def test_later_operations_of_a_transaction_see_the_earlier_ones(scene: Scene):
    task = await scene.running("task_1")
    done = apply(task, Succeeded(1, b"1"), scene.now)
    verdicts: list[Any] = await all_of(
        scene,
        scene.ledger.journal([scene.step("task_1", "a")]),
        scene.ledger.report([Report("task_1", 1, scene.now, Live(state_detail="before"))]),
        scene.ledger.commit([done]),
        scene.ledger.commit([done]),
        scene.ledger.journal([scene.step("task_1", "b")]),
        scene.ledger.report([Report("task_1", 1, scene.now, Live(state_detail="after"))]),
        scene.ledger.write_file(scene.file("/a"), ("task_1", 1)),
    )
    journaled, reported, (first,), (second,), too_late, told, written = verdicts
    assert (list(journaled), list(reported), list(too_late), list(told), written) == (
        [True],
        [True],
        [False],
        [False],
        False,
    )
    assert isinstance(first, Committed)
    assert first.task.live.state_detail == "before"
    assert isinstance(second, Stale)
    assert second.current == first.task == await scene.task("task_1")
    assert [step.position for step in await scene.views.steps("task_1")] == ["a"]


async def test_a_claim_sees_what_was_handed_over_before_it_and_nothing_is_claimed_twice(scene: Scene):
    (verdict,), one, two = await all_of(
        scene, scene.ledger.commit([scene.new("task_1")]), scene.claim("worker_a"), scene.claim("worker_b")
    )
    assert isinstance(verdict, Committed)
    assert [task.id for task in one.tasks] == ["task_1"]
    assert [task.id for task in two.tasks] == []


async def test_a_claim_that_raises_does_not_disturb_its_neighbours(scene: Scene):
    await scene.create("task_1")

    async def bad() -> object:
        def decide(task: Any) -> Any:
            raise RuntimeError("no")

        try:
            return await scene.ledger.claim(Claim("worker_x", (ROUTE,), 10, scene.now), decide)
        except RuntimeError as error:
            return error

    first, error, last = await all_of(
        scene, scene.ledger.commit([scene.new("task_2")]), bad(), scene.ledger.commit([scene.new("task_3")])
    )
    assert isinstance(error, RuntimeError)
    assert isinstance(first[0], Committed)
    assert isinstance(last[0], Committed)
    assert await scene.claimed_ids() == ["task_1", "task_2", "task_3"]


async def test_one_signal_tells_of_all_that_a_transaction_wrote(scene: Scene):
    ear = Ear(scene.ledger)
    await all_of(scene, *(scene.ledger.commit([scene.new(f"task_{n}")]) for n in range(3)))
    (signal,) = [signal for signal in ear.signals if signal.task_ids]
    assert signal.task_ids == signal.moved.keys() == {"task_0", "task_1", "task_2"}
    assert signal.session_ids == {SESSION}
    assert signal.ready


async def test_our_own_commits_are_no_news_from_elsewhere(scene: Scene):
    ear = Ear(scene.ledger)
    for n in range(20):
        await scene.create(f"task_{n}")
        await anyio.sleep(0.005)
    assert not any(signal.unknown for signal in ear.signals)


async def test_news_from_elsewhere_is_told_even_while_we_write_without_a_pause(scene: Scene, tmp_path: Path):
    ear = Ear(scene.ledger)
    other = await SqliteLedger.open(tmp_path / "work.db")
    stop = False

    async def write() -> None:
        n = 0
        while not stop:
            n += 1
            await scene.create(f"task_{n}")

    async with anyio.create_task_group() as group:
        for _ in range(1):
            group.start_soon(write)
        await Scene(other).session("session_other")
        await ear.hears(lambda signal: signal.unknown)
        stop = True
    await other.close()


async def test_a_renewal_goes_ahead_of_what_is_queued(scene: Scene):
    await scene.ledger.register(WorkerCard("worker_a", "host", "boot", 1, START))
    order: list[str] = []

    async def note(name: str, act: Any) -> None:
        await act
        order.append(name)

    async def renew() -> None:
        assert await anyio.to_thread.run_sync(scene.ledger.renew, "worker_a", 10.0)

    with held_up(scene):
        first = asyncio.ensure_future(scene.ledger.retire("nobody"))
        await anyio.sleep(0.05)
        rest = [asyncio.ensure_future(scene.ledger.commit([scene.new(f"task_{n:04}")])) for n in range(1200)]
        await anyio.lowlevel.checkpoint()
        renewal = asyncio.ensure_future(note("renewed", renew()))
        last = asyncio.ensure_future(note("last", rest[-1]))
        await anyio.sleep(0.05)
    await asyncio.gather(first, *rest, renewal, last)
    assert order == ["renewed", "last"]


async def test_a_renewal_that_takes_too_long_says_so(scene: Scene):
    await scene.ledger.register(WorkerCard("worker_a", "host", "boot", 1, START))
    with held_up(scene), pytest.raises(StoreUnavailable, match="did not answer within"):
        await anyio.to_thread.run_sync(scene.ledger.renew, "worker_a", 0.1)


async def test_verbs_may_be_called_from_another_loop(scene: Scene):
    def elsewhere() -> Verdict:
        async def create() -> Verdict:
            (verdict,) = await scene.ledger.commit([scene.new("task_1")])
            assert await scene.views.task("task_1") is not None
            assert len(await scene.views.list_tasks(TaskFilter(limit=1000))) == 1
            return verdict

        return asyncio.run(create())

    ear = Ear(scene.ledger)
    assert isinstance(await anyio.to_thread.run_sync(elsewhere), Committed)
    await ear.hears(lambda signal: "task_1" in signal.task_ids)


class ClosedMeanwhile(deque[Any]):
    """The queue of a writer, which is closed from another thread before what comes first is in it."""

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self._writer = writer

    def append(self, handed: Any) -> None:
        self._close()
        super().append(handed)

    def appendleft(self, handed: Any) -> None:
        self._close()
        super().appendleft(handed)

    def _close(self) -> None:
        closing = threading.Thread(target=self._writer.close)
        closing.start()
        closing.join()


async def test_what_is_handed_over_in_the_moment_of_closing_is_refused_and_not_forgotten(tmp_path: Path):
    for hand_over in (
        lambda ledger: ledger.retire("nobody"),
        lambda ledger: anyio.to_thread.run_sync(ledger.renew, "nobody", 60.0),
    ):
        ledger = await SqliteLedger.open(tmp_path / "work.db")
        ledger._writer._queue = ClosedMeanwhile(ledger._writer)
        with anyio.fail_after(20), pytest.raises(StoreUnavailable, match="was closed"):
            await hand_over(ledger)
        await ledger.close()


async def test_what_was_handed_over_before_closing_is_written(scene: Scene, tmp_path: Path):
    ledger = await SqliteLedger.open(tmp_path / "another.db")
    other = Scene(ledger)
    await other.session()
    tasks = [asyncio.ensure_future(ledger.commit([other.new(f"task_{n}")])) for n in range(50)]
    await anyio.lowlevel.checkpoint()
    await ledger.close()
    assert all(isinstance(verdict, Committed) for (verdict,) in await asyncio.gather(*tasks))
    with pytest.raises(StoreUnavailable):
        await ledger.commit([other.new("task_late")])


async def test_a_caller_that_gives_up_disturbs_nobody(scene: Scene):
    with held_up(scene):
        one = asyncio.ensure_future(scene.ledger.commit([scene.new("task_1")]))
        two = asyncio.ensure_future(scene.ledger.commit([scene.new("task_2")]))
        await anyio.sleep(0.05)
        one.cancel()
    await two
    assert (await scene.task("task_2")).state is State.QUEUED


async def test_the_interpreter_switches_often_enough_for_a_writer_beside_a_busy_loop(scene: Scene):
    assert sys.getswitchinterval() <= 0.0001


async def test_a_large_spec_is_stored_once_and_not_rewritten_by_transitions(scene: Scene):
    ledger = sqlite_of(scene)
    wal = ledger.path.with_name("work.db-wal")
    empty = wal.stat().st_size
    await scene.create("task_1", spec={"text": "x" * 200_000})
    before = wal.stat().st_size
    assert before - empty < 400_000
    await scene.claim()
    await scene.apply("task_1", MessageReceived(scene.message("tmsg_1", "task_1")))
    await scene.apply("task_1", Released(1))
    assert wal.stat().st_size - before < 200_000
    assert (await scene.task("task_1")).input.spec == {"text": "x" * 200_000}


async def test_what_is_kept_in_mind_is_what_will_be_asked_for_next(scene: Scene):
    known = sqlite_of(scene)._writer._known
    await scene.create("task_ready")
    await scene.create("task_large", spec={"text": "x" * 10_000})
    await scene.create("task_delayed", not_before=scene.now + 5)
    await scene.running("task_held")
    await scene.running("task_parked")
    await scene.park("task_parked", WaitForMessage(0))
    await scene.running("task_ended")
    await scene.succeed("task_ended")
    assert {id: head.task is not None for id, head in known.tasks.items()} == {
        "task_ready": True,
        "task_large": False,
        "task_delayed": False,
        "task_held": True,
        "task_parked": False,
    }
    assert known.numbered.keys() == {head.number for head in known.tasks.values()}
    assert [task.id for task in (await scene.claim()).tasks] == ["task_ready", "task_large"]
    assert known.tasks["task_large"].task is None
    assert (await scene.task("task_large")).input.spec == {"text": "x" * 10_000}


async def test_what_another_process_wrote_is_not_overlooked(scene: Scene, tmp_path: Path):
    """Each store keeps heads in mind, and each finds them outdated by the other."""
    other = Scene(await SqliteLedger.open(tmp_path / "work.db"))
    await scene.create("task_1")
    for n in range(10):
        one, two = (scene, other) if n % 2 else (other, scene)
        before = await one.task("task_1")
        await one.apply("task_1", MessageReceived(one.message(f"tmsg_{n}", "task_1")))
        stale = apply(before, MessageReceived(two.message("tmsg_lost", "task_1")), two.now)
        assert isinstance(await two.one(stale), Stale)
        await two.create(f"task_more_{n}")
    log = await scene.log()
    assert [row.seq for row in log] == list(range(1, len(log) + 1))
    await other.ledger.close()


async def test_at_rest_the_log_of_the_database_is_copied_into_its_file(scene: Scene):
    ledger = sqlite_of(scene)
    scene.ledger.listen(lambda signal: None)
    await scene.create("task_1", spec={"text": "x" * 500_000})
    with anyio.fail_after(10):
        while ledger.path.stat().st_size < 500_000:  # noqa: ASYNC110  # a file's size tells nobody
            await anyio.sleep(0.01)
    await scene.create("task_2")


@pytest.mark.parametrize("is_indexed", [True, False])
async def test_the_few_tasks_that_live_are_listed_without_going_through_those_that_ended(
    scene: Scene, is_indexed: bool
):
    """Also before any worker has made an index."""
    for n in range(300):
        await scene.create(f"task_{n:03}")
        await scene.apply(f"task_{n:03}", CancelRequested())
    await scene.create("task_live")
    while is_indexed and await take_in(scene.ledger):
        pass
    views = sqlite_of(scene).views
    views._pool = ThreadPoolExecutor(1, thread_name_prefix=POOL)  # the one whose steps are counted
    counts: list[int] = []

    async def look(*states: State) -> list[str]:
        steps: list[None] = []
        for reader in views._readers:
            reader.connection.set_progress_handler(lambda: steps.append(None), 1)
        found = await views.list_tasks(TaskFilter(states=states, limit=50))
        counts.append(len(steps))
        return [task.id for task in found]

    await look(State.QUEUED)
    assert await look(State.QUEUED, State.RUNNING) == ["task_live"]
    assert await look(State.RUNNING, State.FAILED) == []
    assert len(await look(State.QUEUED, State.CANCELED)) == 50
    assert all(0 < count < 500 for count in counts[1:3]), counts


# --- plans -------------------------------------------------------------------------------------------------

READ_THROUGH = {"workers", "counts", "sqlite_sequence", "follow_ups", "limits", "p", "indexed", "blocks", "unlisted"}
"""Small tables (`p` are the pauses, a row of `blocks` stands for 2,048 tasks), and two that are read in the order of
their keys up to a limit."""
NO_TABLE = {
    "CONSTANT",
    "(subquery",
    "v",
    "json_each",
    "pair",
    "served",
    "waiting",
    "first",
    "label",
    "found",
    "gone",
    "e",
    "name",
    "few",
    "t",
}
"""Parameters, and subqueries with a limit or over them: `t` in `tasks_where` and `overdue`; `waiting` skips from key to
key."""


@pytest.fixture
def plans(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "plans.db")
    for migration in known():
        connection.executescript(migration.sql)
    yield connection
    connection.close()


FOR_PEOPLE = {"waiting", "ended_by_kind", "miscounted", "quick_integrity", "integrity"}
"""These look at all that they tell of, on a reader's connection, when a person asks."""

CONDITIONS = {"in_session", "unpinned"}
"""What a page of tasks may be asked for; `in_states` and `labelled` look at each task that the others leave, and
`applied` at the migrations, of which there is a row each."""


@pytest.mark.parametrize("name", sorted(texts().keys() - FOR_PEOPLE - {"in_states", "labelled", "applied"}))
def test_no_statement_walks_through_a_table_that_grows(plans: sqlite3.Connection, name: str):
    if name in CONDITIONS:
        name, condition = "tasks_where", texts()[name]
    else:
        condition = "session = 1" if "document" not in name else "collection = ? and due_at <= ?"
    text = wide(name, 1).replace("{conditions}", condition).replace("{direction}", "desc")
    plan = [row[3] for row in plans.execute(f"explain query plan {text}", [1] * text.count("?"))]
    walks = [step for step in plan if step.startswith("SCAN") and "INDEX" not in step]
    assert {step.split()[1].partition("-")[0] for step in walks} - NO_TABLE <= READ_THROUGH, plan
    assert not any(step.startswith("SCAN t") and "MATERIALIZE t" not in plan for step in walks), plan


def work_of(plans: sqlite3.Connection, name: str, *parameters: object) -> int:
    """How many instructions SQLite's machine takes for a statement."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    SqliteStatements(plans).run(name, *parameters).fetchall()  # compiled before it is counted
    plans.set_progress_handler(step, 1)
    SqliteStatements(plans).run(name, *parameters).fetchall()
    plans.set_progress_handler(None, 1)
    return steps


def test_a_debounce_key_is_looked_up_at_the_same_price_however_many_tasks_it_stood_for(plans: sqlite3.Connection):
    plans.execute(
        "insert into sessions (number, id, organization_id, root_session_id, labels, created_at, updated_at)"
        " values (1, 's', 'o', 's', '{}', 0, 0)"
    )
    before = work_of(plans, "debounced", '[["s", "key"]]')
    plans.executemany(
        "insert into tasks (id, session, organization_id, kind, route, priority, debounce_key, detached, created_at,"
        " state, version, attempt, failures, updated_at, rank, started_at, finished_at)"
        " values (?, 1, 'o', 'k', 'k', 0, 'key', 0, 0, 'succeeded', 2, 1, 0, 0, 0, 0, 0)",
        [(f"t{n}",) for n in range(500)],
    )
    assert work_of(plans, "debounced", '[["s", "key"]]') == before


def test_what_an_organization_keeps_is_found_at_the_same_price_however_much_others_ended(plans: sqlite3.Connection):
    def ended(organization: str, first: int, last: int) -> None:
        plans.executemany(
            "insert into tasks (id, session, organization_id, kind, route, priority, detached, created_at,"
            " state, version, attempt, failures, updated_at, rank, started_at, finished_at)"
            " values (?, 1, ?, 'k', 'k', 0, 0, 0, 'succeeded', 2, 1, 0, 0, 0, 0, ?)",
            [(f"t{n}", organization, n) for n in range(first, last)],
        )

    ended("org_a", 0, 10)
    before = [work_of(plans, "newest_ended", "org_a", place) for place in (5, 50)]
    ended("org_b", 10, 1000)
    assert [work_of(plans, "newest_ended", "org_a", place) for place in (5, 50)] == before


def test_output_is_trimmed_at_the_same_price_however_much_is_kept(plans: sqlite3.Connection):
    def pieces(first: int, last: int) -> None:
        rows = [(start,) for start in range(first, last)]
        plans.executemany("insert into output (task, start, size, stream, at, text) values (1, ?, 1, '', 0, 'x')", rows)

    pieces(10, 20)
    before = work_of(plans, "trim_output", 1, 5)
    pieces(20, 1000)
    assert work_of(plans, "trim_output", 1, 5) == before
