"""Policies of organizations and pins: what the duty of workers deletes, what it keeps, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from outrider import Outrider, SessionHandle, TaskContext, TaskOptions
from outrider.core.errors import InvalidArguments, NotFound
from outrider.runtime import pruning
from outrider.runtime.pruning import Retention
from outrider.testing import Reply, Store, TestRuntime, open_test, replies, script

pytestmark = pytest.mark.anyio

app = Outrider()
DAY = timedelta(days=1)


@app.tool
async def say(task: TaskContext, text: str) -> str:
    return text


@asynccontextmanager
async def opened(store: Store = "memory", **settings: Any) -> AsyncIterator[TestRuntime]:
    async with open_test(app, store=store, retention_interval=3600.0, **settings) as runtime:
        yield runtime


async def ended(runtime: TestRuntime, session: SessionHandle, count: int = 1) -> list[str]:
    """Tasks of a session that end an hour apart, the newest an hour ago."""
    found = []
    for number in range(count):
        found.append((await session.spawn(say, text=str(number))).id)
        await runtime.run_until_idle()
        await runtime.advance(timedelta(hours=1))
    return found


async def left(runtime: TestRuntime, *duties: Retention) -> set[str]:
    """What is there after each duty has looked until it has nothing to do."""
    for duty in duties or (Retention(runtime.services, "worker_1"),):
        while await duty.look() < runtime.services.settings.retention_interval:
            pass
    return {each.id for each in await runtime.tasks.list(limit=1000)}


async def session_of(runtime: TestRuntime, organization_id: str) -> SessionHandle:
    return await runtime.sessions.create(organization_id=organization_id)


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_each_organization_keeps_what_its_own_policy_says_and_the_others_what_the_setting_says(store: Store):
    async with opened(store, retention=30 * 86_400.0, retention_batch=2) as runtime:
        sessions = {name: await session_of(runtime, name) for name in ("org_short", "org_ever", "org_default")}
        there = {name: (await ended(runtime, session))[0] for name, session in sessions.items()}
        await runtime.retention.set_policy("org_short", age=DAY, by="ada")
        await runtime.retention.set_policy("org_ever", age=None)
        assert await left(runtime) == set(there.values())
        await runtime.advance(2 * DAY)
        assert await left(runtime) == {there["org_ever"], there["org_default"]}
        await runtime.advance(30 * DAY)
        assert await left(runtime) == {there["org_ever"]}
        assert await runtime.retention.reset_policy("org_ever")
        assert await left(runtime) == set()


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_of_the_tasks_that_ended_no_more_than_the_count_of_the_newest_are_kept(store: Store):
    async with opened(store, retention=None, retention_batch=2) as runtime:
        session, other = await session_of(runtime, "org_few"), await session_of(runtime, "org_many")
        ids, beside = await ended(runtime, session, 5), await ended(runtime, other, 2)
        await runtime.retention.set_policy("org_few", age=None, count=3)
        assert await left(runtime) == {*ids[2:], *beside}
        await runtime.retention.set_policy("org_few", age=timedelta(hours=3, minutes=30), count=3)
        assert await left(runtime) == {*ids[4:], *beside}
        await runtime.retention.set_policy("org_few", age=None, count=0)
        assert await left(runtime) == set(beside)


async def test_what_is_pinned_is_kept_until_it_is_unpinned():
    async with opened(retention=3600.0, retention_batch=2) as runtime:
        session = await runtime.sessions.create()
        kept, other = (await ended(runtime, session))[0], (await ended(runtime, await runtime.sessions.create()))[0]
        pin = await runtime.retention.pin(session.id, by="ada", reason="a lawsuit")
        assert (pin.id, pin.by, pin.reason) == (session.id, "ada", "a lawsuit")
        assert await runtime.retention.pin(session.id, by="bob") == pin
        assert [each.id for each in await runtime.retention.pins()] == [session.id]
        await runtime.advance(DAY)
        duty = Retention(runtime.services, "worker_1")
        assert await left(runtime, duty) == {kept}
        assert (await runtime.tasks.prune(0)).tasks == 0
        assert other != kept
        assert await runtime.retention.unpin(session.id)
        assert not await runtime.retention.unpin(session.id)
        # What was passed over is looked at again after a while, and by whoever prunes at once.
        assert await left(runtime, duty) == {kept}
        await runtime.advance(pruning.LOOK_ANEW / 1e6)
        assert await left(runtime, duty) == set()


async def test_pruning_can_be_tried_first():
    async with opened(retention=None, retention_batch=2) as runtime:
        session = await runtime.sessions.create()
        ids = await ended(runtime, session, 5)
        assert (await runtime.tasks.prune(0, dry_run=True)).tasks == len(ids)
        assert len(await session.tasks()) == len(ids)


async def test_a_policy_or_pin_that_makes_no_sense_is_refused_and_changes_nothing():
    async with opened() as runtime:
        set_policy = runtime.retention.set_policy
        wrongs: tuple[dict[str, Any], ...] = (
            {"age": timedelta(0)},
            {"age": -1.0},
            {"age": DAY, "count": -1},
            {"age": DAY, "count": True},
        )
        for wrong in wrongs:
            with pytest.raises(InvalidArguments):
                await set_policy("org_b", **wrong)
        with pytest.raises(InvalidArguments):
            await set_policy("", age=DAY)
        with pytest.raises(NotFound) as refusal:
            await runtime.retention.pin("task_none")
        assert refusal.value.code == "task_not_found"
        assert await runtime.retention.policies() == []
        assert await runtime.retention.pins() == []
        policy = await runtime.retention.policy("org_b")
        assert (policy.age, policy.count, policy.is_own) == (30 * 86_400.0, None, False)
        await set_policy("org_b", age=DAY, count=7)
        assert [(each.organization_id, each.age, each.count) for each in await runtime.retention.policies()] == [
            ("org_b", 86_400.0, 7)
        ]


async def test_a_pin_holds_what_lies_below_it_and_what_opened_it_and_goes_with_what_it_names():
    script("greeter", replies(Reply("hello")))
    async with opened(retention=3600.0, retention_batch=2) as runtime:
        session, other = await runtime.sessions.create(), await runtime.sessions.create()
        opener = await session.spawn_agent("say hello", model="scripted:greeter")
        await opener.result()
        child = await runtime.sessions.get((await opener.record()).links.child_session_id or "")
        below = await child.spawn_agent("say hello", model="scripted:greeter")
        await below.result()
        grandchild = await runtime.sessions.get((await below.record()).links.child_session_id or "")
        deep = (await ended(runtime, grandchild))[0]
        gone = (await ended(runtime, other, 3))[0]
        await runtime.retention.pin(child.id)
        await runtime.advance(DAY)
        assert await left(runtime) == {opener.id, below.id, deep}
        assert (await runtime.tasks.prune(0)).tasks == 0
        assert gone not in {each.id for each in await runtime.tasks.list()}
        await session.delete()
        assert await runtime.retention.pins() == []


async def test_the_pins_of_tasks_and_of_sessions_below_go_with_a_session_and_hold_nobody_elses_of_their_ids():
    script("greeter", replies(Reply("hello")))
    async with opened(retention=None) as runtime:
        session, other = await session_of(runtime, "org_a"), await session_of(runtime, "org_b")
        opener = await session.spawn_agent("say hello", model="scripted:greeter")
        await opener.result()
        named = await session.spawn(say, text="once", options=TaskOptions(id="task_named"))
        await runtime.run_until_idle()
        child = (await opener.record()).links.child_session_id or ""
        for id in (named.id, opener.id, child, session.id, other.id):
            await runtime.retention.pin(id)
        await session.delete()
        assert [each.id for each in await runtime.retention.pins()] == [other.id]
        await runtime.retention.unpin(other.id)
        again = await other.spawn(say, text="again", options=TaskOptions(id=named.id))
        await again.result()
        await runtime.advance(DAY)
        assert (await runtime.tasks.prune(0)).tasks == 1


@pytest.mark.parametrize("by_the_duty", [True, False])
async def test_a_pin_that_came_too_late_goes_with_its_task(monkeypatch: pytest.MonkeyPatch, by_the_duty: bool):
    async with opened(retention=3600.0) as runtime:
        session = await runtime.sessions.create()
        (id,) = await ended(runtime, session)
        await runtime.advance(DAY)
        prune = runtime.services.ledger.prune

        async def pin_first(*given: Any, **more: Any) -> Any:
            await runtime.retention.pin(id)
            return await prune(*given, **more)

        monkeypatch.setattr(runtime.services.ledger, "prune", pin_first)
        if by_the_duty:
            assert await left(runtime) == set()
        else:
            assert (await runtime.tasks.prune(0)).tasks == 1
        assert await runtime.retention.pins() == []
