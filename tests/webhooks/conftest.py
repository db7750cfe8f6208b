"""What the tests of webhooks share: an app, and a runtime whose webhooks are sent when a test says so."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from outrider import Outrider, TaskContext
from outrider.runtime.webhooks.duty import Webhooking
from outrider.testing import TestRuntime, open_test
from tests.webhooks.receivers import LOOPBACK

Open = Callable[..., AbstractAsyncContextManager[tuple[TestRuntime, Webhooking]]]


@pytest.fixture
def app() -> Outrider:
    app = Outrider()

    @app.tool
    async def add(a: int, b: int = 1) -> int:
        return a + b

    @app.tool
    async def ask(task: TaskContext, questions: int = 1) -> list[Any]:
        for number in range(questions - 1):
            await task.spawn("add", a=number)
        return [await task.ask(f"May I, {number}?", bool) for number in range(questions)]

    @app.tool
    async def talk(task: TaskContext, times: int = 1) -> None:
        for number in range(times):
            task.progress(number, total=times)
            await task.post(f"word {number}")

    return app


@pytest.fixture
def opened(app: Outrider) -> Open:
    @asynccontextmanager
    async def open(store: str = "memory", clock: Any = None, **settings: Any) -> AsyncIterator[tuple[TestRuntime, Any]]:
        async with open_test(app, store=store, clock=clock, webhooks=replace(LOOPBACK, **settings)) as runtime:
            duty = Webhooking(runtime.services)
            try:
                yield runtime, duty
            finally:
                await duty.leave()

    return open
