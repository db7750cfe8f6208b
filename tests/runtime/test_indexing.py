"""A worker keeps the index of tasks up to date, of what runs and of what was there before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outrider import Outrider, Runtime, WorkerSettings
from outrider.core.errors import InvalidArguments
from outrider.core.task import State
from tests.facts import until

pytestmark = pytest.mark.anyio

app = Outrider(WorkerSettings(index_interval=0.01))


@app.tool
async def echo(value: str) -> str:
    return value


async def taken_in(runtime: Runtime) -> None:
    async def is_whole() -> bool:
        lacks = await runtime.ledger.views.unindexed(1)
        return lacks.after > 0 and lacks.upto == lacks.after and not lacks.more

    await until(is_whole)


async def test_a_worker_takes_in_the_past_of_a_database_and_all_that_comes(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/work.db"
    async with app.open(url, worker=False) as runtime:
        session = await runtime.sessions.create(id="session_a")
        first = await session.spawn("echo", value="from before")
    async with app.open(url) as runtime:
        second = await (await runtime.sessions.get("session_a")).spawn("echo", value="and from now")
        await second.result()
        await runtime.tasks.result(first.id)
        await taken_in(runtime)
        both = [second.id, first.id]
        for text, ids in (("from", both), ("before", both[1:]), ("now", both[:1]), ("nobody", [])):
            assert [record.id for record in await runtime.tasks.list(text=text)] == ids
        assert await runtime.tasks.list(states=[State.QUEUED]) == []
        await runtime.tasks.delete(first.id)
        await taken_in(runtime)
        assert await runtime.tasks.list(text="before") == []


@pytest.mark.parametrize(
    "wrong",
    [{"text": "?!"}, {"text": "x" * 501}, {"text": 7}, {"created_after": "today"}, {"created_before": True}],
    ids=str,
)
async def test_a_filter_that_nothing_can_be_found_by_is_refused(wrong: dict[str, Any]):
    async with Outrider().open("memory://", worker=False) as runtime:
        with pytest.raises(InvalidArguments):
            await runtime.tasks.list(**wrong)
