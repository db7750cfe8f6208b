"""Tasks that take more than their share: the worker stays alive and bounded, and the others come to their turn."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from outrider.core.events import Claimed
from outrider.core.ledger import Claim, TaskFilter
from outrider.core.machine import apply
from outrider.core.task import State
from outrider.runtime.facade import Runtime
from outrider.stores.sqlite import SqliteLedger
from tests.faults.heavy_app import app
from tests.stores.scene import Scene

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
MB = 1024 * 1024


@contextmanager
def worker_on(database: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "outrider.cli", "worker", "--db", str(database), "--app", "tests.faults.heavy_app"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.stderr is not None
            assert "works on" in worker.stderr.readline()
            yield worker
            worker.terminate()
            assert worker.wait(30) == 0
        finally:
            worker.kill()


@asynccontextmanager
async def runtime_on(database: Path) -> AsyncIterator[Runtime]:
    async with app.open(str(database), worker=False) as runtime:
        yield runtime


@pytest.mark.parametrize(
    ("depth", "width"), [(3, 6), pytest.param(4, 7, marks=pytest.mark.soak)], ids=["hundreds", "thousands"]
)
async def test_a_fork_bomb_neither_wedges_the_worker_nor_starves_the_others(tmp_path: Path, depth: int, width: int):
    database, folder = tmp_path / "work.db", tmp_path / "born"
    folder.mkdir()
    async with runtime_on(database) as runtime:
        session = await runtime.sessions.create()
        with worker_on(database):
            bombs = [await session.spawn("bomb", depth=depth, width=width, folder=str(folder)) for _ in range(2)]
            copies = await session.spawn("forks", folder=str(folder), count=20)
            ticks = [await session.spawn("tick", n=n) for n in range(50)]
            assert [await tick.result(timeout=60) for tick in ticks] == list(range(50))
            assert [await task.result(timeout=300) for task in (*bombs, copies)] == ["spent"] * 3
            for task in (*bombs, copies, *ticks):
                assert [attempt.ending for attempt in await task.attempts()] == ["succeeded"]
            assert len(await runtime.workers()) == 1
        assert not await runtime.workers()
    assert len(list(folder.iterdir())) == 2 * sum(width**n for n in range(depth + 1)) + 20


@pytest.mark.parametrize("megabytes", [50, pytest.param(1000, marks=pytest.mark.soak)], ids=["50 MB", "1 GB"])
@pytest.mark.parametrize("tool", ["shout", pytest.param("shout_from_a_thread", marks=pytest.mark.soak)])
async def test_a_task_that_prints_without_end_costs_neither_memory_nor_disk(tmp_path: Path, tool: str, megabytes: int):
    database = tmp_path / "work.db"
    async with runtime_on(database) as runtime:
        session = await runtime.sessions.create()
        with worker_on(database) as worker:
            before = _peak(worker.pid)
            task = await session.spawn(tool, megabytes=megabytes)
            quiet = await session.spawn("tick", n=7)
            assert await quiet.result(timeout=120) == 7
            assert await task.result(timeout=1200) == megabytes
            assert _peak(worker.pid) - before < 40 * MB
            assert len(await runtime.workers()) == 1
        kept = [piece async for piece in task.output()]
        assert sum(len(piece.text.encode()) for piece in kept if not piece.lost) <= 1 * MB
        assert kept[-1].text.endswith("x\n")
    assert sum(file.stat().st_size for file in tmp_path.glob("work.db*") if file.is_file()) < 40 * MB


def _peak(pid: int) -> int:
    """The most memory a process has had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.parametrize("sessions", [2_000, pytest.param(10_000, marks=pytest.mark.soak)])
async def test_many_sessions_cost_no_more_statements_than_few(tmp_path: Path, sessions: int):
    """What is done in the midst of them takes as many statements as at the start; no pass goes through all."""
    ledger = await SqliteLedger.open(tmp_path / "work.db")
    scene = Scene(ledger)
    costs = []
    for start in range(0, sessions, 500):
        names = [f"session_{n:06}" for n in range(start, start + 500)]
        await asyncio.gather(*(scene.session(name) for name in names))
        await ledger.commit([scene.new(f"task_{name}", name, route="background_tool:other") for name in names])
        costs.append(await _a_day(scene, f"day_{start:06}"))
    assert max(costs) <= costs[0] + 2, f"{costs}: more than what is no longer remembered from the last transaction"
    page = await scene.views.sessions(limit=100)
    assert len(page) == 100
    seen = {session.id for session in page}
    while page:
        page = await scene.views.sessions(after=page[-1].id, limit=1000)
        assert not seen & {session.id for session in page}
        seen |= {session.id for session in page}
    assert len(seen) == sessions + sessions // 500
    assert len(await scene.views.list_tasks(TaskFilter(session_id="session_000007"))) == 1
    await ledger.close()


async def _a_day(scene: Scene, name: str) -> int:
    """Create, claim, watch, end: the statements of the writer that this takes."""
    ledger = scene.ledger
    await scene.session(f"session_{name}")
    before = ledger.counters["statements"]
    position = await scene.views.position()
    task = await scene.create(f"task_{name}", f"session_{name}")
    claim = Claim("worker_a", (task.input.route,), 10, scene.now)
    claims = await ledger.claim(claim, lambda task: apply(task, Claimed("worker_a"), scene.now))
    assert [each.id for each in claims.tasks] == [task.id]
    ended = await scene.succeed(task.id, b"1")
    assert ended.state is State.SUCCEEDED
    news = await scene.views.news(after=position)
    assert {each.session_id for each in news} == {f"session_{name}"}
    return ledger.counters["statements"] - before
