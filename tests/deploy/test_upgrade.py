"""Old and new code on one schema, as a rolling upgrade has it: a tolerated migration, and one that is not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from outrider import Outrider, TaskContext
from outrider.core.errors import StoreNewer
from outrider.stores.migrate import Migration, known
from outrider.stores.postgres.database import Database

pytestmark = pytest.mark.anyio

app = Outrider()
PATIENCE = 60


@app.tool
async def pack(task: TaskContext) -> str:
    parcel = await task.step("wrap", lambda: "parcel")
    await task.ask("Ship it?", bool)
    return await task.step("ship", lambda: f"{parcel} shipped")


def later(text: str) -> Sequence[Migration]:
    """What a later version of this program knows."""
    known_here = known("postgres")
    return [*known_here, Migration(known_here[-1].number + 1, "later", text)]


WIDER = "alter table tasks add column later text; alter table sessions add column later bigint not null default 0;"


async def test_old_workers_go_on_under_a_later_schema_that_says_it_may_be_tolerated_and_new_old_ones_may_come(
    postgres_url: str,
):
    async with app.open(postgres_url) as old:
        session = await old.sessions.create(id="depot")
        task = await session.spawn(pack)
        await task.wait(on_question=True, timeout=PATIENCE)
        await asyncio.to_thread(Database(postgres_url).prepare, later(f"-- tolerated: columns of one's own\n{WIDER}"))
        await task.answer(True)
        assert await task.result() == "parcel shipped", "on connections that were there before"
        another = await session.spawn(pack)
        await another.wait(on_question=True, timeout=PATIENCE)
    async with app.open(postgres_url) as old:
        task = await old.task(another.id)
        await task.answer(True)
        assert await task.result() == "parcel shipped"


async def test_old_workers_are_refused_where_the_later_schema_does_not_say_so(postgres_url: str):
    async with app.open(postgres_url, worker=False) as old:
        await old.sessions.create(id="depot")
    await asyncio.to_thread(Database(postgres_url).prepare, later(WIDER))
    with pytest.raises(StoreNewer, match="use a later version"):
        async with app.open(postgres_url, worker=False):
            pass


async def test_workers_that_start_at_once_bring_the_schema_up_to_date_once(postgres_url: str):
    text = f"-- tolerated: columns of one's own\n{WIDER}"
    prepared = [asyncio.to_thread(Database(postgres_url).prepare, later(text)) for _ in range(6)]
    assert len(set(await asyncio.gather(*prepared))) == 1, "it is one database"
