"""PostgreSQL is saved and put back with its own programs, as docs/deployment.md says; then a worker goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest

from outrider import Outrider, State, TaskContext, WorkerSettings
from outrider.core.errors import StoreForeign
from outrider.settings import LeaseTimes
from tests.dumps import dump, restore
from tests.servers import Server, each_version, fresh_database, programs_of

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.slow,
    pytest.mark.parametrize("postgres_version", each_version()),
]

app = Outrider(WorkerSettings(lease=LeaseTimes(renew=0.5, cancel=2, end=2.5, lost=3)))
PATIENCE = 60


@app.tool
async def bake(task: TaskContext, cakes: int) -> str:
    dough = await task.step("dough", lambda: f"dough for {cakes}")
    task.output("it rises\n")
    flavour = await task.ask("Which flavour?", str)
    return await task.step("oven", lambda: f"{dough}, {flavour}")


def positions(url: str) -> list[tuple[int, str]]:
    """The log as readers of it go through it: where each entry stands, and of what it tells."""
    with psycopg.connect(url) as connection:
        return connection.execute("select position, type from events order by position").fetchall()


def spend_numbers(url: str, count: int) -> None:
    """Let the server count transactions, as it does in a life of some length."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            f"do $$ begin for n in 1..{count} loop perform pg_current_xact_id(); commit; end loop; end $$".encode()
        )


async def test_a_worker_goes_on_from_a_dump_that_was_taken_while_everything_went_on(
    postgres_version: str, postgres_url: str, own_postgres: Server, tmp_path: Path
):
    programs = programs_of(postgres_version)
    saved = tmp_path / "saved"
    spend_numbers(postgres_url, 5000)  # the other server, which is new, has not come so far
    async with app.open(postgres_url) as outrider:
        session = await outrider.sessions.create(id="bakery")
        done = await session.spawn(bake, cakes=1)
        await done.wait(on_question=True, timeout=PATIENCE)
        await done.answer("lemon")
        assert await done.result() == "dough for 1, lemon"
        waiting = await session.spawn(bake, cakes=2)
        await waiting.wait(on_question=True, timeout=PATIENCE)
        await asyncio.to_thread(dump, programs, postgres_url, saved)
    before = positions(postgres_url)

    with fresh_database(own_postgres) as url:
        await asyncio.to_thread(restore, programs, saved, url)
        restored = positions(url)
        assert restored == before[: len(restored)]
        assert restored
        async with app.open(url) as outrider:
            assert await (await outrider.task(done.id)).result() == "dough for 1, lemon"
            task = await outrider.task(waiting.id)
            await task.answer("plum")
            assert await task.result() == "dough for 2, plum"
            assert "".join([piece.text async for piece in task.output()]) == "it rises\n"
            assert [step.position for step in await task.steps()] == ["dough", "ask:1", "oven"]
            again = await outrider.sessions.get("bakery")
            new = await again.spawn(bake, cakes=3)
            record = await new.wait(on_question=True, timeout=PATIENCE)
            assert record.state is State.AWAITING_INPUT
        after = positions(url)
        assert after[: len(restored)] == restored
        assert len(after) > len(restored)
        assert min(position for position, _ in after[len(restored) :]) > max(position for position, _ in restored)


async def test_a_dump_is_put_into_an_empty_database_and_into_no_other(
    postgres_version: str, postgres_url: str, own_postgres: Server, tmp_path: Path
):
    programs = programs_of(postgres_version)
    async with app.open(postgres_url, worker=False) as outrider:
        await outrider.sessions.create(id="bakery")
    dump(programs, postgres_url, tmp_path / "saved")
    with fresh_database(own_postgres) as url:
        async with app.open(url, worker=False) as outrider:
            await outrider.sessions.create(id="another")
        with pytest.raises(AssertionError, match="already exists"):
            restore(programs, tmp_path / "saved", url)
        async with app.open(url, worker=False) as outrider:
            assert (await outrider.sessions.get("another")).id == "another", "it is as it was"
    with fresh_database(own_postgres) as url:
        with psycopg.connect(url) as connection:
            connection.execute("create table tasks (mine text)")
        with pytest.raises(StoreForeign):
            async with app.open(url, worker=False):
                pass
