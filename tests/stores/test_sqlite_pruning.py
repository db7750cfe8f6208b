"""What pruning must see to in an SQLite file: short transactions, flat costs, and other processes' memories."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from outrider.core.events import CancelRequested
from outrider.core.ledger import NoSession
from outrider.core.values import SECOND
from outrider.stores.sqlite import SqliteLedger
from outrider.stores.sqlite.statements import texts
from tests.stores.scene import SESSION, Scene

pytestmark = pytest.mark.anyio

PRUNING = [name for name in texts() if "prun" in name] + ["move_first_seq", "empty_sessions", "ended", "child_sessions"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work.db"


@pytest.fixture
async def scene(path: Path) -> AsyncIterator[Scene]:
    ledger = await SqliteLedger.open(path)
    scene = Scene(ledger)
    await scene.session()
    yield scene
    await ledger.close()


@pytest.mark.parametrize("name", PRUNING)
async def test_no_statement_of_pruning_walks_through_a_table(name: str, scene: Scene, path: Path):
    text = texts()[name].replace("{conditions}", "finished_at < ?").replace("{direction}", "asc")
    connection = sqlite3.connect(path)
    plan = [row[3] for row in connection.execute(f"explain query plan {text}", ["[]"] * text.count("?"))]
    connection.close()
    tables = "tasks|sessions|events|steps|attempts|requests|messages|files|output|outputs|inputs|transcript|inbox|rates"
    assert [line for line in plan if re.match(rf"SCAN ({tables}|t)\b", line)] == []
    assert not any("ORDER BY" in line for line in plan)


async def test_a_large_task_goes_alone_and_the_others_are_named_to_be_asked_for_again(scene: Scene):
    await scene.running("task_large")
    await scene.ledger.journal([scene.step("task_large", f"step {number}") for number in range(2000)])
    await scene.succeed("task_large")
    for id in ("task_1", "task_2"):
        await scene.create(id)
        await scene.apply(id, CancelRequested())
    pruned = await scene.ledger.prune(["task_large", "task_1", "task_2"])
    assert (pruned.task_ids, pruned.rest) == (("task_large",), ("task_1", "task_2"))
    assert (await scene.task("task_1")).is_terminal
    pruned = await scene.ledger.prune(pruned.rest)
    assert (pruned.task_ids, pruned.rest) == (("task_1", "task_2"), ())


async def test_what_another_process_deleted_is_not_remembered_here(scene: Scene, path: Path):
    await scene.session("session_b")
    await scene.create("task_1", "session_b", idempotency_key="key")
    await scene.apply("task_1", CancelRequested())
    other = await SqliteLedger.open(path)
    try:
        assert (await other.prune(["task_1"])).task_ids == ("task_1",)
        again = await scene.create("task_2", "session_b", idempotency_key="key")
        assert again.id == "task_2"
        await scene.apply("task_2", CancelRequested())
        assert (await other.prune(["task_2"], ["session_b"])).session_ids == ("session_b",)
        assert isinstance(await scene.one(scene.new("task_3", "session_b")), NoSession)
    finally:
        await other.close()


async def test_the_space_of_what_went_is_used_again(scene: Scene, path: Path):
    async def fill_and_prune(mark: str) -> int:
        ids = [f"task_{mark}_{number:04}" for number in range(150)]
        for id in ids:
            await scene.create(id, spec={"text": "x" * 2000})
            await scene.apply(id, CancelRequested())
        left = tuple(ids)
        while left:
            left = (await scene.ledger.prune(left)).rest
        connection = sqlite3.connect(path)
        (pages,) = connection.execute("pragma page_count").fetchone()
        connection.close()
        return int(pages)

    first = await fill_and_prune("a")
    assert await fill_and_prune("b") <= first * 1.1
    assert await scene.views.first_seq(SESSION) == (await scene.log())[-1].seq + 601


async def test_the_starts_of_keys_that_nobody_uses_any_more_are_forgotten_with_their_tasks(scene: Scene, path: Path):
    await scene.limit("tenant:*", rate=1, span=10 * SECOND)
    for n in range(20):
        await scene.create(f"task_{n}", concurrency_key=f"tenant:{n}")
    await scene.claim()
    for n in range(20):
        await scene.succeed(f"task_{n}")
    await scene.ledger.prune(["task_0"], now=scene.now)
    assert _rates(path) == 20  # it still counts
    scene.later(21 * SECOND)  # the span, and as long as a claim may be late
    await scene.claim()  # finds that nobody waits for them
    await scene.ledger.prune([f"task_{n}" for n in range(20)], now=scene.now)
    assert _rates(path) == 1  # of the key whose task went too early


def _rates(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("select count(*) from rates").fetchone()[0])
