"""Races within one worker that decide whether something happens twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from outrider import Outrider, TaskContext
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
        views = runtime.services.views
        request_of = views.request
        requests = {each.prompt: each.id for each in (await task.record()).input_requests}

        async def park_meanwhile(request_id: str) -> Any:
            found = await request_of(request_id)
            if request_id == requests["Left?"] and found is not None and found.status == "answered":
                attempts[0].park_if_idle()
            return found

        views.request = park_meanwhile  # type: ignore[method-assign]
        await task.answer(True, request_id=requests["Left?"])
        await until(partial(is_at_attempt, task, 2))
        await task.answer(True, request_id=requests["Right?"])
        assert await task.result(timeout=30) == ["fired", True]
        assert len(fired) == 1
        assert len(await task.requests()) == 2
