"""The wall clock of the workers jumps by days while they work: nobody is taken for lost, nothing is run twice.

The shim moves the clock of real worker processes; this process, who creates the tasks, follows.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from outrider.core.task import State
from outrider.runtime import clock
from outrider.runtime.clock import Bell, SystemClock
from outrider.runtime.handles import TaskHandle
from tests.crash.crew import Crew
from tests.crash.proof import prove
from tests.crash.test_kills import answer_all, dismiss, prove_voyage, runtime_on, set_sail
from tests.crash.test_signals import endings, until
from tests.crash.voyage import effects_in
from tests.faults.shim import DAY, Shim

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.mark.parametrize("days", [3, pytest.param(-3, marks=pytest.mark.soak)])
async def test_a_clock_that_jumps_by_days_loses_no_worker_and_repeats_no_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int
):
    database, scratch = tmp_path / "store" / "work.db", tmp_path / "scratch"
    scratch.mkdir()
    shim = Shim(tmp_path / "nothing", scratch)
    for name, value in shim.environment.items():
        monkeypatch.setenv(name, value)
    async with Crew.muster() as crew, runtime_on(database) as runtime:
        monkeypatch.undo()
        session = await runtime.sessions.create()
        hands = [await crew.start(database, settings={"short_lease": True}) for _ in range(2)]
        held = [await session.spawn("hold", seconds=1.5) for _ in range(3)]
        nap = await session.spawn("nap", seconds=3600)
        effects = database.with_suffix(".effects")
        await until(lambda: _have_begun(effects, held))
        await until(lambda: _sleeps(nap))
        jump(shim, monkeypatch, days * DAY)
        voyages = [await set_sail(session) for _ in range(2)]
        await answer_all(runtime, [*held, *voyages] + ([nap] if days > 0 else []))
        for voyage in voyages:
            await prove_voyage(runtime, session, voyage, database, whole=False)
        assert all(hand.status is None for hand in hands), "a worker was ended by the clock"
        assert len(await runtime.workers()) == 2
        if days < 0:  # the sleep goes on until the clock has come back to where it was
            assert (await nap.record()).phase == "sleeping"
            jump(shim, monkeypatch, 2 * 3600)
            await session.spawn("march", steps=1)
            await answer_all(runtime, [nap])
        for hand in hands:
            await dismiss(hand)
        if days > 0:  # else attempts end before they begin
            await prove(runtime, session.id, effects)
        done = effects_in(effects)
        assert len({(task_id, name) for task_id, name, _ in done}) == len(done), "a step ran twice"
        for task in held:
            assert await endings(task) == ["succeeded"]
        for record in await runtime.tasks.list(session_id=session.id):
            assert (record.state, record.failures) == (State.SUCCEEDED, 0)
            assert "lost" not in [attempt.ending for attempt in await runtime.tasks.attempts(record.id)]


TRUE = time.time_ns


def jump(shim: Shim, monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    """Set the clock of all."""
    shim.jump(seconds)
    monkeypatch.setattr(time, "time_ns", lambda: TRUE() + seconds * 10**9)


async def test_a_timer_hears_of_a_clock_that_was_set(monkeypatch: pytest.MonkeyPatch):
    """As after a night in which the machine slept, and its monotonic clock with it."""
    monkeypatch.setattr(clock, "LOOK_AGAIN", 0.01)
    bell = Bell(SystemClock())
    waiting = asyncio.create_task(bell.wait(SystemClock().now() + 3600 * 1_000_000))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    monkeypatch.setattr(time, "time_ns", lambda: TRUE() + DAY * 10**9)
    assert not await asyncio.wait_for(waiting, 10)


async def _sleeps(task: TaskHandle) -> bool:
    return (await task.record()).phase == "sleeping"


def _have_begun(effects: Path, tasks: list[TaskHandle]) -> bool:
    return {task.id for task in tasks} <= {task_id for task_id, _, _ in effects_in(effects)}
