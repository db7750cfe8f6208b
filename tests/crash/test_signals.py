"""Workers that are told to go, stopped, frozen or blocked: what their work comes to, and whose fault it was."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from outrider.core import machine
from outrider.core.events import Claimed
from outrider.core.ledger import Claim
from outrider.core.task import State
from outrider.runtime.facade import Runtime
from outrider.runtime.handles import TaskHandle
from outrider.runtime.lease import EXIT_CODE
from tests.crash.crew import Crew
from tests.crash.proof import prove
from tests.crash.test_kills import answer_all, dismiss, runtime_on
from tests.crash.voyage import effects_in

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def until(fact: Callable[[], Awaitable[bool] | bool], timeout: float = 30) -> None:
    """Wait for a fact."""
    give_up = time.monotonic() + timeout
    while True:
        found = fact()
        if found if isinstance(found, bool) else await found:
            return
        assert time.monotonic() < give_up, "it never came to pass"
        await asyncio.sleep(0.01)


async def endings(task: TaskHandle) -> list[str | None]:
    return [attempt.ending for attempt in await task.attempts()]


async def test_a_deploy_repeats_nothing_and_counts_no_failure(database: Path):
    async with Crew.muster() as crew, runtime_on(database) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("hold", seconds=0.6)
        old = await crew.start(database)
        await until(lambda: _has_journaled(runtime, task, "before"))
        await dismiss(old)
        record = await task.record()
        assert (record.state, record.phase) == (State.RUNNING, "resuming")
        assert not await runtime.workers()
        new = await crew.start(database)
        assert await task.result(timeout=30) == "held"
        await dismiss(new)
        await prove(runtime, session.id, database.with_suffix(".effects"))
        assert await endings(task) == ["released", "succeeded"]
        assert (await task.record()).failures == 0
        assert [name for _, name, _ in effects_in(database.with_suffix(".effects"))] == ["before", "long", "after"]


async def test_rolling_deploys_under_load_repeat_no_step_at_all(database: Path):
    async with Crew.muster() as crew, runtime_on(database) as runtime:
        session = await runtime.sessions.create()
        tasks = await session.spawn_many("march", [{"steps": 40}] * 20)
        hands = [await crew.start(database) for _ in range(2)]
        for _ in range(4):
            await asyncio.sleep(0.15)
            old = hands.pop(0)
            hands.append(await crew.start(database))
            await dismiss(old)
        await answer_all(runtime, tasks)
        for hand in hands:
            await dismiss(hand)
        await prove(runtime, session.id, database.with_suffix(".effects"))
        assert len(effects_in(database.with_suffix(".effects"))) == 20 * 40
        assert {ending for task in tasks for ending in await endings(task)} <= {"released", "succeeded"}


async def test_a_worker_told_to_go_in_the_middle_of_a_claim_keeps_nothing(database: Path):
    async with Crew.muster() as crew, runtime_on(database) as runtime:
        session = await runtime.sessions.create()
        tasks = await session.spawn_many("march", [{"steps": 1}] * 20)
        leaving = await crew.start(database, kill=(1, "term"))
        assert await leaving.wait() == 0
        new = await crew.start(database)
        await answer_all(runtime, tasks)
        await dismiss(new)
        await prove(runtime, session.id, database.with_suffix(".effects"))


async def test_a_thread_that_outlives_the_drain_is_not_run_twice_while_it_lives(database: Path):
    effects = database.with_suffix(".effects")
    async with Crew.muster() as crew, runtime_on(database) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("stubborn", seconds=3600)
        old = await crew.start(database, settings={"drain_timeout": 0.2, "drain_grace": 0.5})
        await until(lambda: bool(effects_in(effects)))
        new = await crew.start(database)
        await dismiss(old)
        assert await task.result(timeout=30) == "done at last"
        await dismiss(new)
        assert [(name, attempt) for _, name, attempt in effects_in(effects)] == [
            ("begin", 1),
            ("begin", 2),
            ("end", 2),
        ]
        assert await endings(task) == ["released", "succeeded"]
        assert (await task.record()).failures == 0


@pytest.mark.parametrize(
    ("store", "host"),
    [
        ("sqlite", None),
        ("sqlite", "elsewhere"),
        pytest.param("postgres", None, marks=pytest.mark.soak),
        ("postgres", "elsewhere"),
    ],
)
async def test_a_worker_stopped_beyond_its_lease_finds_its_work_gone_and_ends_its_own(database: Path, host: str | None):
    effects = database.with_suffix(".effects")
    lease = {"short_lease": True}
    async with Crew.muster() as crew, runtime_on(database) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("hold", seconds=1.5)
        frozen = await crew.start(database, settings=lease)
        await until(lambda: _has_journaled(runtime, task, "before"))
        frozen.signal(signal.SIGSTOP)
        heir = await crew.start(database, settings=lease, host=host)
        await until(partial(is_at_attempt, task, 2))
        frozen.signal(signal.SIGCONT)
        assert await task.result(timeout=30) == "held"
        await until(lambda: _no_work_of_its_own(runtime))
        for hand in (frozen, heir):
            hand.signal(signal.SIGTERM)
            assert await hand.wait() in (0, EXIT_CODE)
        await prove(runtime, session.id, effects)
        assert await endings(task) == ["lost", "succeeded"]
        assert ("after", 1) not in {(name, attempt) for _, name, attempt in effects_in(effects)}


async def test_a_worker_whose_loop_is_blocked_ends_itself_and_only_the_culprit_pays(database: Path):
    stall = {"stall_named": 0.1, "stall_limit": 0.5}
    async with Crew.muster() as crew, runtime_on(database) as runtime:
        session = await runtime.sessions.create()
        innocents = [await session.spawn("hold", seconds=1.5) for _ in range(5)]
        first = await crew.start(database, settings=stall)
        for task in innocents:
            await until(partial(_has_journaled, runtime, task, "before"))
        culprit = await session.spawn("block", seconds=3600)
        assert await first.wait() == EXIT_CODE
        heir = await crew.start(database, settings=stall)
        await answer_all(runtime, [culprit, *innocents])
        await dismiss(heir)
        assert await endings(culprit) == ["lost", "succeeded"]
        assert (await culprit.record()).failures == 1
        for task in innocents:
            assert await endings(task) == ["released", "succeeded"]
            assert (await task.record()).failures == 0


async def test_nobody_waits_for_a_writer_that_was_killed_with_the_lock_in_its_hand(database: Path):
    async with Crew.muster() as crew, runtime_on(database) as runtime:
        session = await runtime.sessions.create()
        tasks = await session.spawn_many("march", [{"steps": 100}] * 20)
        steady = await crew.start(database, settings={"concurrency": 10})
        for n in range(1, 6):
            doomed = await crew.start(database, kill=(n * 3, "within"), settings={"concurrency": 10})
            assert await doomed.wait() == -signal.SIGKILL
        await answer_all(runtime, tasks)
        await dismiss(steady)
        await prove(runtime, session.id, database.with_suffix(".effects"))


@pytest.mark.parametrize("mode", ["within", "after"])
async def test_a_forked_copy_of_a_dead_worker_holds_none_of_its_locks(database: Path, mode: str):
    async with Crew.muster() as crew, runtime_on(database) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("fork")
        writes = 2 + (mode == "after")  # the claim counts after it
        doomed = await crew.start(database, kill=(writes, mode))
        assert await doomed.wait() == -signal.SIGKILL
        heir = await crew.start(database)
        sleeper = await task.result(timeout=4)  # the lease is longer
        os.kill(sleeper, signal.SIGKILL)
        await dismiss(heir)
        assert await endings(task) == ["lost", "succeeded"]


async def test_work_in_the_name_of_a_worker_that_nobody_knows_is_found(database: Path):
    async with Crew.muster() as crew, runtime_on(database) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("march", steps=1)
        now = runtime.services.clock.now()
        claim = Claim("worker_unknown", ("background_tool:march",), 1, now)
        await runtime.ledger.claim(claim, lambda task: machine.apply(task, Claimed("worker_unknown"), now))
        hand = await crew.start(database)
        assert await task.result(timeout=30) == [0]
        await dismiss(hand)
        assert await endings(task) == ["lost", "succeeded"]


async def _has_journaled(runtime: Runtime, task: TaskHandle, position: str) -> bool:
    return any(step.position == position for step in await runtime.services.views.steps(task.id))


async def is_at_attempt(task: TaskHandle, attempt: int) -> bool:
    record = await task.record()
    return record.attempt == attempt and record.worker_id is not None


async def _no_work_of_its_own(runtime: Runtime) -> bool:
    return not [beat for worker in await runtime.workers() for beat in await runtime.services.views.held_by(worker.id)]
