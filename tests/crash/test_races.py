"""Races within one worker that decide whether something happens twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from outrider import Outrider, TaskContext
from outrider.runtime.worker import keep_working
from tests.crash.test_signals import is_at_attempt, until
from tests.crash.voyage import SETTINGS

pytestmark = pytest.mark.anyio


async def test_a_branch_whose_answer_comes_as_the_task_parks_is_not_cut_short():
    app = Outrider(replace(SETTINGS, park_grace=3600))
    fired: list[int] = []
    attempts: list[Any] = []

    async def fire(number: int) -> str:
        fired.append(number)
        await asyncio.sleep(0.2)
        return "fired"

    async def left(task: TaskContext) -> str:
        await task.ask("Left?", bool, name="left")
        return await task.step("fire", fire, task.attempt, effects="once")

    @app.tool
    async def both(task: TaskContext) -> list[Any]:
        attempts.append(task._attempt)
        return list(await asyncio.gather(left(task), task.ask("Right?", bool, name="right")))

    async with app.open("memory://") as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("both")

        async def asks_both() -> bool:
            return len((await task.record()).input_requests) == 2

        await until(asks_both)
        requests = {each.prompt: each.id for each in (await task.record()).input_requests}
        take = attempts[0].take

        def take_and_park(record: Any) -> None:
            take(record)
            if record.core.request(requests["Left?"]) is None:  # it was rung for, and has not looked yet
                attempts[0].park_if_idle()

        attempts[0].take = take_and_park
        await task.answer(True, request_id=requests["Left?"])
        await until(partial(is_at_attempt, task, 2))
        await task.answer(True, request_id=requests["Right?"])
        assert await task.result(timeout=30) == ["fired", True]
        assert len(fired) == 1
        assert len(await task.requests()) == 2


async def test_a_worker_that_breaks_is_followed_by_another():
    app = Outrider(SETTINGS)

    @app.tool
    async def greet() -> str:
        return "hello"

    async with app.open("memory://", worker=False) as runtime:
        task = await (await runtime.sessions.create()).spawn("greet")
        ledger = runtime.ledger
        claim = ledger.claim

        async def broken(*args: Any) -> Any:
            ledger.claim = claim  # type: ignore[method-assign]  # as it was
            raise RuntimeError("a defect")

        ledger.claim = broken  # type: ignore[method-assign, assignment]  # a claim that fails once
        working = asyncio.create_task(keep_working(runtime.services, locks=None))
        assert await task.result(timeout=30) == "hello"
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        assert not await runtime.workers()
