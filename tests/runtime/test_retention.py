"""Deleting tasks and sessions, by hand and by the duty of workers: whole, in bounds, and never what lives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from outrider import Outrider, TaskContext, TaskHandle, TaskOptions
from outrider.core.errors import InvalidArguments, NotEnded, NotFound, StoreUnavailable, TaskFailed
from outrider.core.ledger import Pruned, WorkerCard
from outrider.core.task import State
from outrider.runtime.pruning import Retention, is_on_duty
from outrider.runtime.records import EventRecord
from outrider.runtime.stream import EventReader
from outrider.testing import ManualClock, Reply, Store, TestRuntime, open_test, replies, script

pytestmark = pytest.mark.anyio

app = Outrider()


@app.tool
async def say(task: TaskContext, text: str) -> str:
    task.output(text)
    await task.step("one", len, text)
    return text


@app.tool
async def ask(task: TaskContext) -> bool:
    return await task.ask("Go on?", bool)


@app.tool
async def wait_for(task: TaskContext, ids: list[str], first: bool = False) -> list[str]:
    return [record.state.value for record in await task.wait_for(ids, any=first)]


@asynccontextmanager
async def opened(store: Store = "memory", **settings: Any) -> AsyncIterator[TestRuntime]:
    async with open_test(app, store=store, retention_interval=0.01, **settings) as runtime:
        yield runtime


async def gone(runtime: TestRuntime, task_id: str) -> bool:
    return await runtime.services.views.task(task_id) is None


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_task_that_has_ended_is_deleted_whole(store: Store):
    async with opened(store) as runtime:
        session = await runtime.sessions.create()
        task, other = await session.spawn(say, text="a"), await session.spawn(say, text="b")
        assert (await task.result(), await other.result()) == ("a", "b")
        assert await task.delete() == 1
        with pytest.raises(NotFound):
            await task.record()
        assert [each.id for each in await session.tasks()] == [other.id]
        assert await other.result() == "b"
        assert {file.task_id for file in await session.files()} == {other.id}
        with pytest.raises(NotFound):
            await task.delete()


async def test_a_live_task_is_refused_and_keeps_on():
    async with opened() as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn(ask)
        await runtime.run_until_idle()
        with pytest.raises(NotEnded) as refusal:
            await task.delete()
        assert refusal.value.code == "not_ended"
        assert refusal.value.details == {"live": [task.id]}
        await task.answer(True)
        assert await task.result() is True


async def test_an_agents_session_goes_with_its_task():
    script("greeter", replies(Reply("hello")))
    async with opened() as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn_agent("say hello", model="scripted:greeter")
        assert await task.result()
        child = (await task.record()).links.child_session_id
        assert child is not None
        assert await runtime.services.views.transcript(child)
        inside = await (await runtime.sessions.get(child)).spawn(ask)
        await runtime.run_until_idle()
        with pytest.raises(NotEnded) as refusal:
            await task.delete()
        assert refusal.value.details == {"live": [inside.id]}
        await inside.cancel()
        assert await task.delete() == 2
        assert await gone(runtime, inside.id)
        with pytest.raises(NotFound):
            await runtime.sessions.get(child)
        assert await runtime.services.views.transcript(child) == []


async def test_a_session_with_live_tasks_is_deleted_only_with_a_cancel():
    async with opened("sqlite") as runtime:
        session, other = await runtime.sessions.create(), await runtime.sessions.create()
        done, live = await session.spawn(say, text="a"), await session.spawn(ask)
        kept = await other.spawn(say, text="b")
        await runtime.run_until_idle()
        with pytest.raises(NotEnded):
            await session.delete()
        assert not await gone(runtime, done.id)
        assert await session.delete(cancel=True) == 2
        assert await gone(runtime, live.id)
        with pytest.raises(NotFound):
            await runtime.sessions.get(session.id)
        assert await kept.result() == "b"
        again = await runtime.sessions.create(id=session.id)
        assert await again.tasks() == []


async def test_a_deletion_that_something_new_holds_up_counts_what_went_before_it(monkeypatch: pytest.MonkeyPatch):
    async with opened() as runtime:
        session = await runtime.sessions.create()
        for _ in range(3):
            await session.spawn(ask)
        ledger, late = runtime.services.ledger, list[TaskHandle]()
        prune = ledger.prune

        async def prune_and_spawn(task_ids: Sequence[str], *others: Any, **more: Any) -> Pruned:
            pruned = await prune(task_ids, *others, **more)
            if not late:
                late.append(await session.spawn(ask))
            return pruned

        monkeypatch.setattr(ledger, "prune", prune_and_spawn)
        assert await session.delete(cancel=True) == 4
        assert await gone(runtime, late[0].id)


async def test_waiting_for_a_task_that_is_gone_fails_and_says_what_is_gone():
    async with opened() as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn(say, text="a")
        await task.result()
        await task.delete()
        waiting = await session.spawn(wait_for, ids=[task.id], options=TaskOptions(max_failures=1))
        with pytest.raises(TaskFailed, match=task.id):
            await waiting.result()


async def test_a_wait_that_ended_before_the_deletion_and_is_resumed_after_it_says_what_is_gone():
    async with opened() as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn(say, text="a")
        await task.result()
        waited = await session.spawn(wait_then_ask, ids=[task.id], options=TaskOptions(max_failures=1))
        await runtime.run_until_idle()
        await task.delete()
        await waited.answer(True)
        with pytest.raises(TaskFailed, match=task.id):
            await waited.result()


@app.tool
async def wait_then_ask(task: TaskContext, ids: list[str]) -> bool:
    await task.wait_for(ids)
    return await task.ask("Go on?", bool)


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_news_for_a_task_that_is_gone_is_settled_and_not_carried_round_for_ever(store: Store):
    async with opened(store) as runtime:
        session = await runtime.sessions.create()
        early, late = await session.spawn(ask), await session.spawn(ask)
        waiting = await session.spawn(wait_for, ids=[early.id, late.id], first=True)
        await runtime.run_until_idle()
        await early.answer(True)
        assert await waiting.result() == ["succeeded", "awaiting_input"]
        await waiting.delete()
        await late.answer(True)  # it is watched by what is gone
        await runtime.run_until_idle()
        assert await runtime.services.views.follow_ups(10) == []
        assert await runtime.services.lifecycle.apply_follow_ups() == 0


async def events(reader: EventReader) -> list[EventRecord]:
    found: list[EventRecord] = []
    while page := await reader.read(3):
        found += page
    return found


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_reader_is_told_from_where_the_log_is_whole_and_gets_the_rest_exactly_once(store: Store):
    async with opened(store) as runtime:
        session = await runtime.sessions.create()
        first, second, third = [await session.spawn(say, text=each) for each in "abc"]
        for each in (first, second, third):
            await each.result()
        await runtime.run_until_idle()
        whole = await events(EventReader(runtime.services, session.id))
        assert [each.seq for each in whole] == list(range(1, len(whole) + 1))

        ahead = EventReader(runtime.services, session.id, after=0)
        ahead_of = await ahead.read(1)
        await second.delete()
        expected = [each.seq for each in whole if each.task_id != second.id]
        for after in range(len(whole) + 1):
            rest = await events(EventReader(runtime.services, session.id, after=after))
            missing = [each.seq for each in whole if each.task_id == second.id and each.seq > after]
            if missing:
                marker = rest.pop(0)
                assert (marker.type, marker.seq) == ("log.trimmed", after)
                assert marker.data == {"first_seq": missing[-1] + 1}
            assert [each.seq for each in rest] == [seq for seq in expected if seq > after]
            assert all(each.task is not None for each in rest if each.type == "task.updated")

        told = ahead_of + await events(ahead)
        assert [each.type for each in told].count("log.trimmed") == 1
        assert [each.seq for each in told if each.type != "log.trimmed"] == expected


async def test_a_follower_who_had_read_what_is_deleted_is_told_nothing():
    async with opened() as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn(say, text="a")
        await task.result()
        await runtime.run_until_idle()
        reader = EventReader(runtime.services, session.id)
        await events(reader)
        await task.delete()
        await (await session.spawn(say, text="b")).result()
        assert "log.trimmed" not in [each.type for each in await events(reader)]


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_follower_of_a_session_that_is_deleted_does_not_wait_for_ever(store: Store):
    async with opened(store) as runtime:
        session = await runtime.sessions.create()

        async def follow() -> None:
            async for _ in session.events():
                pass

        following = asyncio.ensure_future(follow())
        await (await session.spawn(say, text="a")).result()
        await session.delete(cancel=True)
        with pytest.raises(NotFound):
            await asyncio.wait_for(following, 20)


async def test_pruning_by_hand_takes_what_is_old_and_fits_the_filters():
    async with opened(retention=None, retention_batch=2) as runtime:
        session, other = await runtime.sessions.create(), await runtime.sessions.create()
        old = [await session.spawn(say, text=str(number)) for number in range(5)]
        canceled, elsewhere = await session.spawn(ask), await other.spawn(say, text="x")
        await runtime.run_until_idle()
        await canceled.cancel()
        await runtime.advance(timedelta(days=2))
        young, live = await session.spawn(say, text="new"), await session.spawn(ask)
        await runtime.run_until_idle()

        prune = runtime.tasks.prune
        with pytest.raises(InvalidArguments):
            await prune(timedelta(days=1), states=[State.RUNNING])
        assert (await prune(timedelta(days=3))).tasks == 0
        assert (await prune(timedelta(days=1), states=[State.CANCELED])).tasks == 1
        assert (await prune(timedelta(days=1), session_id=session.id)).tasks == len(old)
        assert not await gone(runtime, elsewhere.id)
        assert (await prune(timedelta(days=1))).tasks == 1
        assert {each.id for each in await session.tasks()} == {young.id, live.id}


async def test_a_worker_deletes_what_ended_longer_ago_than_the_setting_keeps_it():
    async with opened("sqlite", retention=86_400.0, retention_batch=2) as runtime:
        session = await runtime.sessions.create()
        old = [await session.spawn(say, text=str(number)) for number in range(5)]
        live = await session.spawn(ask)
        await runtime.run_until_idle()
        await runtime.advance(timedelta(hours=23))
        young = await session.spawn(say, text="new")
        await runtime.run_until_idle()
        assert not await gone(runtime, old[0].id)
        await runtime.advance(timedelta(hours=2))

        async def all_gone() -> bool:
            return all([await gone(runtime, each.id) for each in old])

        await runtime.until(all_gone)
        assert {each.id for each in await session.tasks()} == {live.id, young.id}


async def test_what_could_not_be_deleted_while_the_store_was_away_is_deleted_at_the_next_look(
    monkeypatch: pytest.MonkeyPatch,
):
    async with opened(worker=False, retention=60.0) as runtime:
        task = await (await runtime.sessions.create()).spawn(say, text="old")
        await task.cancel()
        await runtime.advance(timedelta(hours=1))
        retention, ledger = Retention(runtime.services, "worker_1"), runtime.services.ledger

        async def is_away(*_: Any, **__: Any) -> None:
            raise StoreUnavailable("no answer")

        monkeypatch.setattr(ledger, "prune", is_away)
        with pytest.raises(StoreUnavailable):
            await retention.look()
        monkeypatch.undo()
        await retention.look()
        assert await gone(runtime, task.id)


async def test_who_falls_behind_with_deleting_takes_more_of_the_time_for_it():
    async with opened(retention=None) as runtime:
        await (await (await runtime.sessions.create()).spawn(say, text="old")).result()
        retention, kept = Retention(runtime.services, "worker_1"), 10 * 3600 * 1_000_000
        shares = []
        for hours in (10.5, 1, 1, 3):
            await runtime.advance(timedelta(hours=hours))
            shares.append(await retention.share(kept))
        assert shares == [0.05, 0.25, 0.5, 1.0]


class Settable(ManualClock):
    """One that may be set, while time passes as before."""

    ahead = timedelta()

    def now(self) -> int:
        return super().now() + round(self.ahead.total_seconds() * 1_000_000)


async def test_nothing_is_deleted_for_a_clock_that_jumped_ahead_unless_it_stays_so_for_a_day():
    clock = Settable()
    async with open_test(app, clock=clock, worker=False) as runtime:
        retention = Retention(runtime.services, "worker_1")
        clock.advance(timedelta(days=2))
        assert retention.trusts_the_clock()
        clock.ahead = timedelta(days=400)
        assert not retention.trusts_the_clock()
        clock.advance(timedelta(hours=23))
        assert not retention.trusts_the_clock()
        clock.ahead = timedelta()
        assert retention.trusts_the_clock()
        clock.ahead = timedelta(days=400)
        assert not retention.trusts_the_clock()
        clock.advance(timedelta(hours=25))
        assert retention.trusts_the_clock()


async def test_of_several_workers_the_one_that_has_been_there_longest_is_on_duty():
    async with opened(worker=False) as runtime:
        ledger, now = runtime.ledger, runtime.clock.now()
        for each in ("worker_2", "worker_1"):
            await ledger.register(WorkerCard(each, "host", "boot", 1, now))
        assert [await is_on_duty(runtime.services, f"worker_{n}") for n in (1, 2)] == [True, False]
        await ledger.retire("worker_1")
        assert [await is_on_duty(runtime.services, f"worker_{n}") for n in (1, 2)] == [False, True]


async def test_two_that_prune_at_the_same_time_delete_each_task_once():
    async with opened("sqlite", retention=None, retention_batch=3) as runtime:
        session = await runtime.sessions.create()
        tasks = [await session.spawn(say, text=str(number)) for number in range(20)]
        for each in tasks:
            await each.result()
        await runtime.run_until_idle()
        await runtime.advance(1)
        receipts = await asyncio.gather(runtime.tasks.prune(0), runtime.tasks.prune(0))
        assert sum(receipt.tasks for receipt in receipts) == len(tasks)
