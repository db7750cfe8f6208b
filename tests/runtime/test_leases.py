"""Leases: the thread that keeps a worker honest, and who finds a worker that is gone."""

import asyncio
import fcntl
import os
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from outrider import Outrider, State, TaskContext, TaskOptions, WorkerSettings
from outrider.core.errors import StoreLocked, StoreUnavailable
from outrider.core.ledger import Claims, WorkerCard
from outrider.runtime.indexing import Indexing
from outrider.runtime.lease import EXIT_CODE, LeaseThread, Lock, Watched, Will, boot_id, is_locked, lock_path, locks_of
from outrider.runtime.pruning import Retention
from outrider.runtime.recovery import Recovery
from outrider.runtime.webhooks.duty import Webhooking
from outrider.runtime.worker import Worker
from outrider.settings import LeaseTimes
from outrider.testing import Store, open_test

pytestmark = pytest.mark.anyio

QUICK = WorkerSettings(
    lease=LeaseTimes(renew=0.02, cancel=0.15, end=0.3, lost=0.5),
    stall_named=0.05,
    stall_limit=0.25,
    recovery_interval=0.01,
)


@dataclass
class Ledger:
    """As much of a store as a lease needs."""

    answers: bool = True
    holds: bool = True
    renewals: list[float] = field(default_factory=list)
    error: Exception = field(default_factory=lambda: StoreUnavailable("no answer"))

    def renew(self, worker_id: str, timeout: float) -> bool:
        if not self.answers:
            raise self.error
        self.renewals.append(time.monotonic())
        return self.holds


@dataclass
class Told:
    """What a lease thread told its worker."""

    lost: list[float] = field(default_factory=list)
    ended: list[tuple[float, int]] = field(default_factory=list)
    is_holding: bool = True
    culprit: str | None = "task_culprit"


@contextmanager
def lease(ledger: Any, told: Told, lock: Path | None = None, settings: WorkerSettings = QUICK):
    watched = Watched(
        asyncio.get_running_loop(),
        lambda: told.culprit,
        lambda: told.is_holding,
        lambda: told.lost.append(time.monotonic()),
        lambda code: told.ended.append((time.monotonic(), code)),
    )
    thread = LeaseThread(ledger, "worker_1", settings, lock, watched)
    thread.start()
    try:
        yield
    finally:
        thread.stop()
        assert not thread.is_alive()


async def until(fact: Callable[[], Any]) -> None:
    give_up = time.monotonic() + 10
    while not fact():
        assert time.monotonic() < give_up, "it never came to pass"
        await asyncio.sleep(0.005)


async def test_a_lease_is_renewed_while_the_loop_is_busy():
    ledger, told = Ledger(), Told()
    with lease(ledger, told, settings=replace(QUICK, stall_limit=60)):
        enough, give_up = len(ledger.renewals) + 3, time.monotonic() + 10
        while len(ledger.renewals) < enough and time.monotonic() < give_up:
            time.sleep(0.01)  # not a turn for the loop
        assert len(ledger.renewals) >= enough
    assert (told.lost, told.ended) == ([], [])


@pytest.mark.parametrize("error", [StoreUnavailable("no answer"), OSError("disk"), ValueError("a defect")], ids=repr)
async def test_who_cannot_renew_stops_its_work_and_then_its_process(error: Exception):
    ledger, told = Ledger(error=error), Told()
    with lease(ledger, told):
        await until(lambda: ledger.renewals)
        ledger.answers = False
        await until(lambda: told.lost)
        await until(lambda: told.ended)
    silence = told.lost[0] - ledger.renewals[-1]
    assert silence > 0.14, "not before its time"
    assert told.ended[0][0] - ledger.renewals[-1] > 0.29
    assert told.ended[0][1] == EXIT_CODE


async def test_a_process_whose_work_has_stopped_need_not_end():
    ledger, told = Ledger(answers=False), Told(is_holding=False)
    with lease(ledger, told):
        await until(lambda: told.lost)
        await asyncio.sleep(0.3)
    assert told.ended == []


async def test_who_was_taken_for_lost_hears_of_it_at_once():
    ledger, told = Ledger(holds=False), Told(is_holding=False)
    with lease(ledger, told):
        await until(lambda: told.lost)
    assert len(ledger.renewals) == 1, "it does not ask again"


async def test_a_blocked_loop_is_named_with_its_stack_and_then_ends_the_process_leaving_a_will(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    ledger, told, lock = Ledger(), Told(), tmp_path / "worker_1.lock"
    with lease(ledger, told, lock):
        await asyncio.sleep(0.1)
        end = time.monotonic() + 5
        while not told.ended and time.monotonic() < end:
            time.sleep(0.01)  # here the loop is blocked
    assert told.ended[0][1] == EXIT_CODE
    will = Will.read(lock)
    assert will is not None
    assert will.task_id == "task_culprit"
    assert "blocked the event loop" in will.reason
    named = next(line.getMessage() for line in caplog.records if "event loop blocked" in line.getMessage())
    assert "task_culprit" in named
    assert "here the loop is blocked" in named


async def test_a_program_that_blocks_its_own_loop_is_not_ended_while_no_task_suffers():
    told = Told(is_holding=False, culprit=None)
    with lease(Ledger(), told):
        await asyncio.sleep(0.1)
        time.sleep(0.5)
    assert told.ended == []


async def test_a_will_that_cannot_be_written_stops_nobody(tmp_path: Path):
    told = Told()
    with lease(Ledger(), told, tmp_path / "no such folder" / "worker.lock"):
        await asyncio.sleep(0.1)
        end = time.monotonic() + 5
        while not told.ended and time.monotonic() < end:
            time.sleep(0.01)
    assert told.ended


async def test_the_task_that_blocks_the_loop_is_the_one_named():
    app, seen = Outrider(), list[str | None]()

    @app.tool
    async def innocent(task: TaskContext) -> None:
        await asyncio.Event().wait()

    @app.tool
    async def culprit(task: TaskContext, deep: bool) -> str:
        async def blocks() -> None:
            thread = threading.Thread(target=lambda: seen.append(worker._culprit()))
            thread.start()
            thread.join()

        await (asyncio.create_task(blocks()) if deep else blocks())
        return task.id

    async with open_test(app) as runtime:
        worker = runtime._crews[0].worker
        session = await runtime.sessions.create()
        await session.spawn("innocent")
        for deep in (False, True):
            handle = await session.spawn("culprit", deep=deep)
            await runtime.until(lambda: bool(seen))
            assert seen.pop() == handle.id
        assert worker._culprit() is None


# --- finding those that are gone ---------------------------------------------------------------------


def card(worker_id: str, host: str = "here", boot: str | None = None) -> WorkerCard:
    return WorkerCard(worker_id, host, boot_id() if boot is None else boot, 1, 0)


@pytest.mark.parametrize("is_held", [True, False])
async def test_a_worker_of_this_machine_is_gone_as_soon_as_its_lock_is(is_held: bool, tmp_path: Path):
    async with open_test(Outrider(), worker=False) as runtime:
        await runtime.ledger.register(card("worker_other"))
        lock = Lock(lock_path(tmp_path, "worker_other"))
        if not is_held:
            lock.release()
            lock.path.touch()
        await Recovery(runtime.services, "here", tmp_path, "worker_me").look()
        assert [worker.id for worker in await runtime.workers()] == (["worker_other"] if is_held else [])
        if is_held:
            assert is_locked(lock.path)
            lock.release()


async def test_a_worker_on_a_file_of_this_machine_is_gone_where_its_lock_is_not_there():
    async with open_test(Outrider(), worker=False, store="sqlite") as runtime:
        await runtime.ledger.register(card("worker_other"))  # as in a database that was moved or restored
        locks = locks_of(runtime._store)
        assert locks is not None
        await Recovery(runtime.services, "here", locks, "worker_me").look()
        assert await runtime.workers() == []


async def test_of_a_worker_that_has_no_lock_here_only_its_silence_tells(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    now = [1000.0]
    monkeypatch.setattr("outrider.runtime.recovery.time.monotonic", lambda: now[0])
    async with open_test(Outrider(), worker=False) as runtime:
        await runtime.ledger.register(card("worker_namesake"))  # of another machine with the name of this one
        recovery = Recovery(runtime.services, "here", tmp_path, "worker_me")
        for _ in range(5):
            now[0] += 0.99
            await recovery.look()
            assert [worker.id for worker in await runtime.workers()] == ["worker_namesake"]
        for _ in range(10):
            now[0] += 0.99
            await recovery.look()
        assert await runtime.workers() == []


async def test_a_lock_of_a_worker_that_died_before_it_was_known_is_taken_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    now = [1000.0]
    monkeypatch.setattr("outrider.runtime.recovery.time.monotonic", lambda: now[0])
    async with open_test(Outrider(), worker=False) as runtime:
        await runtime.ledger.register(card("worker_known", "elsewhere"))
        held = Lock(lock_path(tmp_path, "worker_held"))
        for name in ("known", "dead", "young"):
            lock_path(tmp_path, f"worker_{name}").touch()
        Will(None, "its store failed").write(lock_path(tmp_path, "worker_dead"))
        for lock in tmp_path.glob("*.lock"):
            if lock.stem != "worker_young":
                os.utime(lock, (0, 0))
        recovery = Recovery(runtime.services, "here", tmp_path, "worker_me")
        await recovery.look()
        assert len(list(tmp_path.iterdir())) == 5
        now[0] += 10
        await recovery.look()
        assert {path.stem for path in tmp_path.iterdir()} == {"worker_held", "worker_known", "worker_young"}
        held.release()


async def test_a_worker_elsewhere_is_gone_when_its_beat_has_stood_still_for_the_lease_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
):
    now = [1000.0]
    monkeypatch.setattr("outrider.runtime.recovery.time.monotonic", lambda: now[0])
    async with open_test(Outrider(), worker=False) as runtime:
        for name in ("worker_dead", "worker_alive"):
            await runtime.ledger.register(card(name, "elsewhere"))
        recovery = Recovery(runtime.services, "here", None, "worker_me")
        for second in range(11):
            now[0] += 0.99
            runtime.ledger.renew("worker_alive", 1)
            await recovery.look()
            names = {worker.id for worker in await runtime.workers()}
            assert names == {"worker_dead", "worker_alive"}, f"after {second} seconds"
        now[0] += 1
        await recovery.look()
        assert {worker.id for worker in await runtime.workers()} == {"worker_alive"}


async def test_how_long_a_worker_may_be_silent_is_its_own_word(monkeypatch: pytest.MonkeyPatch):
    now = [1000.0]
    monkeypatch.setattr("outrider.runtime.recovery.time.monotonic", lambda: now[0])
    hasty = LeaseTimes(renew=0.5, cancel=1, end=2, lost=3)
    async with open_test(Outrider(), worker=False, lease=hasty) as runtime:
        for name, lost_after in (("worker_hasty", 3.0), ("worker_patient", 10.0), ("worker_silent_about_it", 0.0)):
            await runtime.ledger.register(replace(card(name, "elsewhere"), lost_after=lost_after))
        recovery, gone = Recovery(runtime.services, "here", None, "worker_me"), list[tuple[str, float]]()
        there = {worker.id for worker in await runtime.workers()}
        for step in range(48):
            await recovery.look()
            left = {worker.id for worker in await runtime.workers()}
            gone += [(name, step / 4) for name in sorted(there - left)]
            there = left
            now[0] += 0.25
        assert gone == [("worker_hasty", 3.0), ("worker_silent_about_it", 3.0), ("worker_patient", 10.0)]


async def test_no_jump_of_a_clock_takes_anybody_for_lost(monkeypatch: pytest.MonkeyPatch):
    now = [1000.0]
    monkeypatch.setattr("outrider.runtime.recovery.time.monotonic", lambda: now[0])
    async with open_test(Outrider(), worker=False) as runtime:
        await runtime.ledger.register(card("worker_alive", "elsewhere"))
        recovery = Recovery(runtime.services, "here", None, "worker_me")
        await recovery.look()
        runtime.clock.advance(3600)
        await recovery.look()
        now[0] += 3600  # this process was stopped, and may not conclude anything from it
        await recovery.look()
        assert [worker.id for worker in await runtime.workers()] == ["worker_alive"]


async def test_the_culprit_of_a_will_is_charged_and_the_others_go_on_unharmed(tmp_path: Path):
    app, started = Outrider(), list[str]()

    @app.tool
    async def held(task: TaskContext) -> None:
        started.append(task.id)
        await asyncio.Event().wait()

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        culprit = await session.spawn("held", options=TaskOptions(max_failures=1))
        other = await session.spawn("held")
        await runtime.until(lambda: len(started) == 2)
        worker_id = runtime._crews[0].worker.id
        Will(culprit.id, "its code blocked the event loop for 30 s").write(lock_path(tmp_path, worker_id))
        recovery = Recovery(runtime.services, "here", tmp_path, "worker_me")
        (worker,) = [each for each in await runtime.services.views.workers() if each.card.id == worker_id]
        runtime._kill()
        await recovery._bury(worker)
        record = await culprit.record()
        assert record.error is not None
        assert (record.state, record.failures) == (State.FAILED, 1)
        assert "blocked the event loop" in record.error.message
        record = await other.record()
        assert (record.state, record.failures, record.worker_id) == (State.RUNNING, 0, None)
        assert [each.ending for each in await other.attempts()] == ["released"]
        assert Will.read(lock_path(tmp_path, worker_id)) is None


async def test_a_worker_that_counts_as_lost_stops_its_code_and_leaves_no_task_behind():
    """Its lease ran out while the store was away; when that is back, its work goes on elsewhere."""
    app, seen = Outrider(), list[str]()

    @app.tool
    async def works(task: TaskContext) -> str:
        seen.append(f"begun {task.attempt}")
        await task.step("first", lambda: None)
        if task.attempt == 1:
            try:
                await asyncio.Event().wait()
            finally:
                seen.append("stopped")
        return "done"

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("works")
        await runtime.until(lambda: runtime.writes == 1)
        lost = runtime._crews[0]
        lost.worker._on_lost()
        await runtime.until(lambda: lost.job.done())
        assert seen == ["begun 1", "stopped"]
        runtime._crews.remove(lost)
        await runtime.start_worker()
        await runtime.run_until_idle()
        assert await handle.result() == "done"
        assert (await handle.record()).failures == 0


async def test_what_is_given_late_to_a_worker_whose_lease_is_over_is_handed_back_and_not_run(
    monkeypatch: pytest.MonkeyPatch,
):
    """Its claim was under way when the store went away, and is answered when that is back: another may be faster."""
    app, seen = Outrider(), list[int]()

    @app.tool
    async def works(task: TaskContext) -> str:
        seen.append(task.attempt)
        return "done"

    async with open_test(app) as runtime:
        lost, session = runtime._crews[0], await runtime.sessions.create()
        ledger, claim = lost.worker._services.ledger, lost.worker._services.ledger.claim

        async def claim_late(*given: Any) -> Claims:
            claims = await claim(*given)
            if claims.tasks:
                lost.worker._on_lost()
            return claims

        monkeypatch.setattr(ledger, "claim", claim_late)
        handle = await session.spawn("works", options=TaskOptions(concurrency_key="queued, and claimed"))
        await runtime.until(lambda: lost.job.done())
        assert seen == []
        monkeypatch.undo()
        runtime._crews.remove(lost)
        await runtime.start_worker()
        assert await handle.result() == "done"
        assert seen == [2]
        assert [each.ending for each in await handle.attempts()] == ["released", "succeeded"]


async def test_what_is_tried_again_and_again_is_told_when_it_begins_and_when_it_is_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    looks, fail = Recovery.look, [StoreUnavailable("no answer"), StoreLocked("somebody keeps it locked")] * 3

    async def look(recovery: Recovery) -> int:
        if fail:
            raise fail.pop()
        return await looks(recovery)

    monkeypatch.setattr(Recovery, "look", look)
    async with Outrider(QUICK).open("memory://"):
        await until(lambda: "recovery succeeds again" in caplog.text)
        await asyncio.sleep(0.05)
    told: list[dict[str, Any]] = [vars(line)["outrider"] for line in caplog.records if "recovery" in line.getMessage()]
    assert [(each["event"], each.get("reason"), each.get("failures")) for each in told] == [
        ("recovery failed; trying again", "somebody keeps it locked", None),
        ("recovery failed; trying again", "no answer", None),
        ("recovery succeeds again", None, 6),
    ]


@pytest.mark.parametrize(
    ("duty", "look"), [(Recovery, "look"), (Retention, "look"), (Webhooking, "look"), (Indexing, "_look")]
)
async def test_a_worker_goes_on_with_its_duties_after_what_nobody_foresaw(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, duty: type, look: str
):
    looks, count = getattr(duty, look), 0

    async def look_badly(self: object) -> Any:
        nonlocal count
        count += 1
        if count == 1:
            raise RuntimeError("unforeseen")
        return await looks(self)

    monkeypatch.setattr(duty, look, look_badly)
    monkeypatch.setattr("outrider.runtime.worker.STORE_PAUSE", 0.01)
    settings = replace(QUICK, retention_interval=0.01, index_interval=0.01)
    async with Outrider(settings).open("memory://"):
        await until(lambda: count > 1)
    assert "a duty of this worker broke" in caplog.text


async def test_a_worker_that_signs_off_between_two_beats_does_not_take_itself_for_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    async with Outrider(QUICK).open("memory://", worker=False) as runtime:
        ledger, retire = runtime.ledger, runtime.ledger.retire
        refused = asyncio.Event()

        async def retire_slowly(worker_id: str) -> None:
            await retire(worker_id)
            await asyncio.wait_for(refused.wait(), 10)

        def renew(worker_id: str, timeout: float, renew: Callable[[str, float], bool] = ledger.renew) -> bool:
            held = renew(worker_id, timeout)
            if not held:
                loop.call_soon_threadsafe(loop.call_soon, refused.set)  # after the worker was told
            return held

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(ledger, "retire", retire_slowly)
        monkeypatch.setattr(ledger, "renew", renew)
        job = asyncio.create_task(Worker(runtime.services, locks=None).run())
        for _ in range(1000):
            if await runtime.workers():
                break
            await asyncio.sleep(0.01)
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        await asyncio.sleep(0)
        assert refused.is_set()
        assert "lost" not in caplog.text


def test_a_lock_is_on_the_file_that_others_see(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    path, lock_it, late = tmp_path / "worker.lock", fcntl.flock, [True]

    def stopped_on_the_way(fd: int, how: int) -> None:
        if late:
            late.clear()
            path.unlink()  # somebody took it for that of a worker which is no more
        lock_it(fd, how)

    monkeypatch.setattr("outrider.runtime.lease.fcntl.flock", stopped_on_the_way)
    lock = Lock(path)
    assert is_locked(path)
    lock.release()


def test_a_lock_lasts_until_it_is_released(tmp_path: Path):
    path = tmp_path / "folder" / "worker.lock"
    lock = Lock(path)
    assert is_locked(path)
    with pytest.raises(BlockingIOError):
        Lock(path)
    lock.release()
    assert not is_locked(path)
    assert not path.exists()


@pytest.mark.parametrize("store", ["sqlite", "postgres"], indirect=True)
async def test_what_a_lost_worker_held_is_freed_together(store: Store, tmp_path: Path):
    app, started = Outrider(), list[str]()

    @app.tool
    async def held(task: TaskContext) -> None:
        started.append(task.id)
        await asyncio.Event().wait()

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        tasks = await session.spawn_many("held", [{} for _ in range(100)])
        await runtime.until(lambda: len(started) == len(tasks))
        (worker,) = await runtime.services.views.workers()
        runtime._kill()
        before = runtime.ledger.counters["commits"]
        await Recovery(runtime.services, "here", tmp_path, "worker_me")._bury(worker)
        assert runtime.ledger.counters["commits"] - before < len(tasks) / 2
        assert {(await task.record()).worker_id for task in tasks} == {None}
