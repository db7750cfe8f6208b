"""Whoever looks at tasks in the same pass of the loop is answered by one query, each for himself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from outrider.core.errors import StoreUnavailable
from outrider.core.ledger import Views
from outrider.core.task import Task
from outrider.runtime.attempt import CURRENT
from outrider.runtime.glance import Glance
from tests.core.stage import new

pytestmark = pytest.mark.anyio


class Counted:
    """Views that know one task and note who asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.found: Any = new().task
        self.failure: Exception | None = None
        self.within: list[object] = []

    async def tasks(self, ids: Sequence[str]) -> Sequence[Task]:
        self.asked.append(sorted(ids))
        self.within.append(CURRENT.get())
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        return [self.found]


@pytest.fixture
def views() -> Counted:
    return Counted()


@pytest.fixture
def glance(views: Counted) -> Glance:
    return Glance(cast(Views, views))


async def test_all_of_one_pass_are_answered_by_one_query(glance: Glance, views: Counted):
    answers = await asyncio.gather(glance.task("task_a"), glance.task("task_b"), glance.task("task_a"))
    assert list(answers) == [views.found, None, views.found]
    assert views.asked == [["task_a", "task_b"]]
    assert await glance.task("task_a") == views.found
    assert len(views.asked) == 2


async def test_one_who_gives_up_does_not_spoil_it_for_the_others(glance: Glance, views: Counted):
    impatient, patient = glance.task("task_a"), glance.task("task_a")
    await asyncio.sleep(0)
    impatient.cancel()
    assert await patient == views.found


async def test_a_failure_is_for_all_who_asked_and_for_nobody_later(glance: Glance, views: Counted):
    views.failure = StoreUnavailable("no")
    answers = await asyncio.gather(glance.task("task_a"), glance.task("task_b"), return_exceptions=True)
    assert list(answers) == [views.failure, views.failure]
    views.failure = None
    assert await glance.task("task_a") == views.found


async def test_it_reads_on_behalf_of_no_task(glance: Glance, views: Counted):
    CURRENT.set(cast(Any, "the attempt that asked first"))
    await glance.task("task_a")
    assert views.within == [None]
