"""Many callers at once, on every store: each promise holds whoever comes first.

The callers share one loop and really interleave: each decides on what it has read, and reads anew when it lost.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from outrider.core.errors import NotEnded, RequestClosed, TaskFinished
from outrider.core.events import (
    Answered,
    Asked,
    CancelRequested,
    Event,
    HolderLost,
    MessageReceived,
    Parked,
    Posted,
    Succeeded,
    WatchedEnded,
)
from outrider.core.ledger import (
    Closed,
    Committed,
    Existing,
    Ledger,
    OutputChunk,
    Settled,
    Shut,
    Stale,
    Verdict,
    WorkerCard,
)
from outrider.core.machine import apply
from outrider.core.task import State, Task, WaitForTasks
from outrider.core.values import SECOND
from tests.stores.backends import BACKENDS, SHARED
from tests.stores.scene import ROUTE, SESSION, START, Scene, committed, receipt_for

pytestmark = pytest.mark.anyio


@pytest.fixture(params=BACKENDS)
async def scene(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Scene]:
    ledger: Ledger = await BACKENDS[request.param](tmp_path)
    scene = Scene(ledger)
    await scene.session()
    yield scene
    await ledger.close()


async def insist(scene: Scene, id: str, event: Event, seen: Task | None = None) -> Task:
    """Decide and commit until nobody else was first; begins with what was `seen`. Raises what the reducer does."""
    record = seen or await scene.task(id)
    while True:
        verdict = await scene.one(apply(record, event, scene.now))
        if isinstance(verdict, Committed):
            return verdict.task
        assert isinstance(verdict, Stale), verdict
        assert verdict.current is not None
        record = verdict.current


async def test_no_task_is_given_to_two_of_many_claimers_and_none_is_left(scene: Scene):
    ids = {f"task_{n:03}" for n in range(500)}
    await scene.ledger.commit([scene.new(id) for id in sorted(ids)])
    got: list[tuple[str, str, int]] = []

    async def claim(worker: str) -> None:
        while tasks := (await scene.claim(worker, limit=5)).tasks:
            got.extend((task.id, worker, task.core.attempt) for task in tasks)

    async with anyio.create_task_group() as group:
        for n in range(64):
            group.start_soon(claim, f"worker_{n}")
    assert Counter(id for id, _, _ in got) == Counter(ids)
    assert {attempt for _, _, attempt in got} == {1}
    for id, worker, _ in got:
        assert (await scene.task(id)).core.worker_id == worker
    assert [row.seq for row in await scene.log()] == list(range(1, 1002))


async def test_claimers_leave_nothing_behind_while_work_keeps_coming(scene: Scene):
    got: list[str] = []
    made = anyio.Event()

    async def submit() -> None:
        for n in range(100):
            await scene.create(f"task_{n:03}")
        made.set()

    async def claim(worker: str) -> None:
        while True:
            is_last_look = made.is_set()
            tasks = (await scene.claim(worker, limit=2)).tasks
            got.extend(task.id for task in tasks)
            if is_last_look and not tasks:
                return
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(submit)
        for n in range(8):
            group.start_soon(claim, f"worker_{n}")
    assert sorted(got) == [f"task_{n:03}" for n in range(100)]


async def test_of_many_answers_the_first_wins_and_every_other_is_told(scene: Scene):
    await scene.running("task_1")
    seen = await scene.apply("task_1", Asked(1, scene.request("req_1", "task_1")))
    won: list[int] = []
    told: list[int] = []

    async def answer(number: int) -> None:
        try:
            await insist(scene, "task_1", Answered("req_1", number, by=f"user_{number}"), seen)
            won.append(number)
        except RequestClosed:
            told.append(number)

    async with anyio.create_task_group() as group:
        for number in range(32):
            group.start_soon(answer, number)
    assert len(won) == 1
    assert len(told) == 31
    request = await scene.views.request("req_1")
    assert request is not None
    assert (request.status, request.answer, request.answered_by) == ("answered", won[0], f"user_{won[0]}")


async def test_a_task_that_is_canceled_while_it_ends_has_one_end_and_everybody_is_told_which(scene: Scene):
    ends: Counter[State] = Counter()
    for n in range(30):
        id = f"task_{n:02}"
        seen = await scene.running(id, cancel_grace=0)
        last: dict[str, State] = {}

        async def succeed(id: str = id, seen: Task = seen, last: dict[str, State] = last) -> None:
            last["succeed"] = (await insist(scene, id, Succeeded(1, b"1"), seen)).state

        async def cancel(id: str = id, seen: Task = seen, last: dict[str, State] = last) -> None:
            last["cancel"] = (await insist(scene, id, CancelRequested(), seen)).state

        async with anyio.create_task_group() as group:
            for end in (succeed, cancel) if n % 2 else (cancel, succeed):
                group.start_soon(end)
        task = await scene.task(id)
        assert task.state is State.SUCCEEDED, "work that finished is never overwritten by a cancel"
        assert last["succeed"] is State.SUCCEEDED
        ends[last.get("cancel", State.SUCCEEDED)] += 1
        (attempt,) = await scene.views.attempts(id)
        assert attempt.ending == "succeeded"
    assert sum(ends.values()) == 30


async def test_messages_from_many_senders_are_all_kept_each_once(scene: Scene):
    seen = await scene.create("task_1")

    async def send(number: int) -> None:
        await insist(scene, "task_1", MessageReceived(scene.message(f"tmsg_{number:02}", "task_1")), seen)

    async with anyio.create_task_group() as group:
        for number in range(40):
            group.start_soon(send, number)
    task = await scene.task("task_1")
    assert (task.core.messages, task.core.version) == (40, 41)
    assert sorted(one.id for one in await scene.views.messages("task_1")) == [f"tmsg_{n:02}" for n in range(40)]
    logged = [row.type for row in await scene.log()].count("task.message")
    assert logged == 40


async def test_a_task_created_by_many_at_once_under_one_key_exists_once(scene: Scene):
    verdicts: dict[str, object] = {}

    async def create(number: int) -> None:
        id = f"task_{number:02}"
        verdicts[id] = await scene.one(scene.new(id, idempotency_key="key"))

    async with anyio.create_task_group() as group:
        for number in range(32):
            group.start_soon(create, number)
    (winner,) = [verdict.task for verdict in verdicts.values() if isinstance(verdict, Committed)]
    assert [verdict for verdict in verdicts.values() if verdict == Existing(winner)] == [Existing(winner)] * 31
    assert len(await scene.log()) == 2


async def test_follow_ups_taken_by_many_workers_are_each_applied_once(scene: Scene):
    await scene.running("task_0")
    for n in range(1, 41):
        await scene.create(f"task_{n}", depends_on=("task_0",))
    await scene.succeed("task_0")
    applied: Counter[str] = Counter()

    async def work() -> None:
        while pending := await scene.views.follow_ups(10):
            for one in pending:
                change = replace(apply(await scene.task(one.task_id), one.event, scene.now), settles=one.id)
                verdict = await scene.one(change)
                assert isinstance(verdict, Committed | Settled | Stale)
                applied[one.task_id] += isinstance(verdict, Committed)

    async with anyio.create_task_group() as group:
        for _ in range(6):
            group.start_soon(work)
    assert applied == Counter({f"task_{n}": 1 for n in range(1, 41)})
    for n in range(1, 41):
        task = await scene.task(f"task_{n}")
        assert (task.core.version, task.core.readiness) == (2, "ready")


async def test_no_wake_is_lost_whether_the_waiter_parks_or_the_awaited_task_ends_first(scene: Scene):
    for n in range(30):
        await scene.running(f"task_{n}_waiter")
        await scene.running(f"task_{n}_awaited")
    parks = [
        await scene.decide(f"task_{n}_waiter", Parked(1, (WaitForTasks((f"task_{n}_awaited",)),))) for n in range(30)
    ]
    ends = [await scene.decide(f"task_{n}_awaited", Succeeded(1)) for n in range(30)]
    async with anyio.create_task_group() as group:
        for n in range(30):
            for change in (parks[n], ends[n]) if n % 2 else (ends[n], parks[n]):
                group.start_soon(scene.one, change)
    assert sorted(await scene.pending(), key=str) == sorted(
        ((f"task_{n}_waiter", WatchedEnded(f"task_{n}_awaited", State.SUCCEEDED)) for n in range(30)), key=str
    )


async def test_a_zombie_writes_nothing_from_the_moment_its_task_was_lost(scene: Scene):
    await scene.running("task_1")
    answers: list[bool] = []
    lost = anyio.Event()

    async def zombie() -> None:
        number = 0
        while not (lost.is_set() and answers and not answers[-1]):
            number += 1
            was_lost = lost.is_set()
            (kept,) = await scene.ledger.journal([scene.step("task_1", f"step:{number}")])
            assert not (kept and was_lost), "a write was taken that began after the task was lost"
            answers.append(kept)

    async def observer() -> None:
        while len(answers) < 5:
            await anyio.lowlevel.checkpoint()
        await insist(scene, "task_1", HolderLost(1))
        lost.set()
        await scene.reclaim("task_1", "worker_b")

    async with anyio.create_task_group() as group:
        group.start_soon(zombie)
        group.start_soon(observer)
    assert answers == sorted(answers, reverse=True), "once refused, always refused"
    kept = answers.count(True)
    assert [step.position for step in await scene.views.steps("task_1")] == [f"step:{n + 1}" for n in range(kept)]


async def test_who_follows_a_log_while_many_write_to_it_misses_nothing_and_sees_nothing_twice(scene: Scene):
    await scene.running("task_run", wake_policy="on_activity")
    done = anyio.Event()
    read: list[int] = []

    async def follow() -> None:
        while True:
            is_last_look = done.is_set()
            rows = await scene.views.events(SESSION, after=read[-1] if read else 0, limit=10)
            read.extend(row.seq for row in rows)
            if is_last_look and not rows:
                return
            await anyio.lowlevel.checkpoint()

    async def write(number: int) -> None:
        for turn in range(5):
            await scene.create(f"task_{number}_{turn}")
            message = scene.message(f"tmsg_{number}_{turn}", "task_run", "outbound")
            await insist(scene, "task_run", Posted(1, message))

    async with anyio.create_task_group() as group:
        group.start_soon(follow)
        async with anyio.create_task_group() as writers:
            for number in range(10):
                writers.start_soon(write, number)
        done.set()
    assert read == list(range(1, len(read) + 1))
    session = await scene.views.session(SESSION)
    assert session is not None
    assert len(read) == session.last_seq == 1 + 2 + 50 * 3


async def test_output_of_many_tasks_printed_at_once_keeps_its_order(scene: Scene):
    for n in range(5):
        await scene.running(f"task_{n}")

    async def print(id: str) -> None:
        for line in range(30):
            await scene.ledger.print([OutputChunk(id, 1, "stdout", f"{id}: {line}\n", scene.now, 100_000)])

    async with anyio.create_task_group() as group:
        for n in range(5):
            group.start_soon(print, f"task_{n}")
    for n in range(5):
        output = await scene.views.output(f"task_{n}")
        assert [row.text for row in output.rows] == [f"task_{n}: {line}\n" for line in range(30)]
        sizes = [len(row.text) for row in output.rows]
        assert [row.offset for row in output.rows] == [sum(sizes[:place]) for place in range(30)]


async def test_no_news_are_lost_to_an_acknowledgement_and_no_two_receivers_have_the_same(scene: Scene):
    for n in range(5):
        await scene.running(f"task_{n}", wake_policy="on_activity")
    posted = anyio.Event()
    done: list[str] = []

    async def post(id: str) -> None:
        for turn in range(10):
            await insist(scene, id, Posted(1, scene.message(f"{id}:{turn}", id, "outbound")))

    async def work() -> None:
        while True:
            is_last_look = posted.is_set()
            rows = await scene.receive(limit=2)
            await anyio.lowlevel.checkpoint()
            standings = await scene.ledger.acknowledge(SESSION, [receipt_for(row) for row in rows])
            assert set(standings) <= {"good", "replaced"}
            done.extend(str(row.body["message_id"]) for row in rows)
            if is_last_look and not rows:
                return

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(work)
        async with anyio.create_task_group() as writers:
            for n in range(5):
                writers.start_soon(post, f"task_{n}")
        posted.set()
    assert await scene.told() == []
    for n in range(5):
        assert f"task_{n}:9" in done, "the newest entry of each task was delivered"
    assert len(done) == len(set(done)), "nothing was delivered twice"


async def test_a_task_that_ended_refuses_every_later_report_of_many(scene: Scene):
    seen = await scene.running("task_1")
    refused: list[int] = []

    async def late(number: int) -> None:
        try:
            await insist(scene, "task_1", MessageReceived(scene.message(f"tmsg_{number}", "task_1")), seen)
        except TaskFinished:
            refused.append(number)

    async with anyio.create_task_group() as group:
        group.start_soon(insist, scene, "task_1", Succeeded(1), seen)
        for number in range(20):
            group.start_soon(late, number)
    task = await scene.task("task_1")
    assert task.state is State.SUCCEEDED
    assert len(await scene.views.messages("task_1")) == 20 - len(refused) == task.core.messages


async def test_a_lease_is_renewed_from_its_thread_while_the_store_is_busy(scene: Scene):
    await scene.ledger.register(WorkerCard("worker_a", "host", "boot", 1, START))
    kept: list[bool] = []
    done = threading.Event()

    def renew() -> None:
        while len(kept) < 3 or not done.is_set():
            kept.append(scene.ledger.renew("worker_a", 10.0))

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, renew)
        for batch in range(20):
            await scene.ledger.commit([scene.new(f"task_{batch}_{n}") for n in range(25)])
        done.set()
    assert all(kept)
    (worker,) = await scene.views.workers()
    assert worker.beat >= len(kept)


async def test_time_that_comes_for_many_claimers_at_once_comes_once(scene: Scene):
    for n in range(40):
        await scene.create(f"task_{n:02}", not_before=scene.now + SECOND)
    scene.later()
    got: list[str] = []

    async def claim(worker: str) -> None:
        while ids := await scene.claimed_ids(worker=worker, limit=3, routes=[ROUTE]):
            got.extend(ids)

    async with anyio.create_task_group() as group:
        for n in range(16):
            group.start_soon(claim, f"worker_{n}")
    assert sorted(got) == [f"task_{n:02}" for n in range(40)]
    assert committed(Committed(await scene.task("task_00"))).core.version == 2


@pytest.mark.parametrize("backend", SHARED)
async def test_a_task_comes_into_a_session_before_another_process_closes_it_or_not_at_all(backend: str, tmp_path: Path):
    one, other = [Scene(await BACKENDS[backend](tmp_path)) for _ in range(2)]
    for n in range(40):
        await one.session(f"session_{n}")
        verdicts: list[Verdict] = []
        refusals: list[NotEnded] = []

        async def create(n: int = n, verdicts: list[Verdict] = verdicts) -> None:
            verdicts.append(await one.one(one.new(f"task_{n}", f"session_{n}")))

        async def close(n: int = n, refusals: list[NotEnded] = refusals) -> None:
            try:
                await other.ledger.control(Closed(f"session_{n}", other.now, when_idle=True))
            except NotEnded as error:
                refusals.append(error)

        async with anyio.create_task_group() as group:
            for act in (create, close) if n % 2 else (close, create):
                group.start_soon(act)
        session = await one.views.session(f"session_{n}")
        assert session is not None
        assert (session.closed_at is None) == bool(refusals) == isinstance(verdicts[0], Committed)
        assert session.closed_at is None or verdicts == [Shut(session.id)]
    await one.ledger.close()
    await other.ledger.close()
