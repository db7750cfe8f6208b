"""Several processes on one database file: real ones, and real kills."""

from __future__ import annotations

import os
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from outrider.core.errors import StoreFailed
from outrider.core.ledger import Signal
from outrider.core.session import NewSession
from outrider.core.task import State
from outrider.stores.sqlite import SqliteLedger
from outrider.stores.sqlite.watch import Watch
from tests.stores.scene import SESSION, Scene

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


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


@contextmanager
def neighbour(verb: str, path: Path, *words: object) -> Iterator[subprocess.Popen[str]]:
    """Another process at the same database; killed at the end if it has not ended by itself."""
    command = [sys.executable, "-m", "tests.stores.neighbour", verb, str(path), *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def lines(process: subprocess.Popen[str]) -> list[str]:
    """Everything it has yet to say, until it ends."""
    assert process.stdout is not None
    return process.stdout.read().split("\n")[:-1]


async def test_of_two_processes_claiming_the_same_tasks_each_gets_its_own(scene: Scene, path: Path):
    ids = [f"task_{n:04}" for n in range(2000)]
    await scene.ledger.commit([scene.new(id) for id in ids])
    with neighbour("claim", path, "worker_a") as one, neighbour("claim", path, "worker_b") as two:
        for process in (one, two):
            assert line(process) == "ready"
        for process in (one, two):
            tell(process)
        got = {"worker_a": lines(one), "worker_b": lines(two)}
    assert Counter(got["worker_a"] + got["worker_b"]) == Counter(ids)
    assert all(got.values()), "one took all, so nothing was raced for"
    for worker, taken in got.items():
        assert {beat.task_id for beat in await scene.views.held_by(worker)} == set(taken)
    assert [row.seq for row in await scene.log()] == list(range(1, 4002))


async def test_the_log_is_gap_free_while_two_processes_write_to_it(scene: Scene, path: Path):
    with neighbour("create", path, "a", 500, 8) as one, neighbour("create", path, "b", 500, 8) as two:
        made = lines(one) + lines(two)
    assert len(made) == 1000
    log = await scene.log()
    assert [row.seq for row in log] == list(range(1, 1002))
    assert [row.position for row in log] == sorted(row.position for row in log)
    assert sorted(row.task_id for row in log if row.task_id) == sorted(made)


async def test_many_processes_may_open_a_database_that_does_not_exist_yet(path: Path):
    with ExitStack() as stack:
        several = [stack.enter_context(neighbour("create", path, name, 20, 2)) for name in "abcd"]
        made = [id for process in several for id in lines(process)]
    ledger = await SqliteLedger.open(path)
    log = await Scene(ledger).log()
    assert sorted(row.task_id for row in log if row.task_id) == sorted(made)
    assert [row.seq for row in log] == list(range(1, 82))
    await ledger.close()


async def test_a_writer_among_busy_neighbours_is_not_starved(scene: Scene, path: Path):
    """One caller here, and one in the other process who writes without a pause: each of its commits is one entry."""
    with neighbour("create", path, "n", 100_000, 1) as process:
        line(process)
        for n in range(100):
            await scene.create(f"task_{n:03}")
    log = await scene.log()
    mine = [row.seq for row in log if row.task_id and not row.task_id.startswith("task_n_")]
    waits = [after - before - 1 for before, after in pairwise(mine)]
    assert statistics.median(waits) <= 10
    assert max(waits) <= 500


async def test_what_another_process_wrote_is_heard_of_soon(scene: Scene, path: Path):
    delays = []
    scene.ledger.listen(lambda signal: None)
    with neighbour("answer", path) as process:
        assert await anyio.to_thread.run_sync(line, process) == "ready"
        for _ in range(20):
            await anyio.sleep(0.1)  # long enough for the pauses between looks to grow to their longest
            heard: list[tuple[float, Signal]] = []
            news = anyio.Event()

            def hear(signal: Signal, heard: list[tuple[float, Signal]] = heard, news: anyio.Event = news) -> None:
                heard.append((time.monotonic(), signal))
                news.set()

            stop = scene.ledger.listen(hear)
            tell(process)
            durable = float(await anyio.to_thread.run_sync(line, process))
            with anyio.fail_after(10):
                await news.wait()
            stop()
            assert heard[0][1] == Signal(unknown=True)
            delays.append(heard[0][0] - durable)
    assert statistics.median(delays) < 0.05


async def test_a_store_at_rest_costs_next_to_nothing(scene: Scene):
    scene.ledger.listen(lambda signal: None)
    await anyio.sleep(0.3)
    before = time.process_time()
    await anyio.sleep(2)
    assert (time.process_time() - before) / 2 < 0.01


async def test_nobody_looks_for_news_while_nobody_listens(scene: Scene):
    assert isinstance(scene.ledger, SqliteLedger)
    looked = threading.Event()
    scene.ledger._writer._look = looked.set  # type: ignore[method-assign]  # noticed
    await anyio.sleep(0.1)
    assert not looked.is_set()
    stop = scene.ledger.listen(lambda signal: None)
    assert await anyio.to_thread.run_sync(looked.wait, 10)
    stop()


@pytest.mark.parametrize("enough", [50, 400, 1500])
async def test_what_a_killed_writer_acknowledged_is_there(path: Path, enough: int):
    said: list[str] = []
    with neighbour("live", path, "a", 16) as process:
        while len(said) < enough:
            said.append(line(process))
        process.kill()
        said.extend(word for word in lines(process) if word.count("_") == 2)
    ledger = await SqliteLedger.open(path)
    scene = Scene(ledger)
    done = [words.split() for words in said if len(words.split()) == 2]
    created = {id for verb, id in done if verb == "created"}
    found = {task.id: task for task in await scene.views.tasks(list(created))}
    assert found.keys() == created
    for verb, id in done:
        task = await scene.task(id)
        if verb == "claimed":
            assert task.state in (State.RUNNING, State.SUCCEEDED)
        if verb == "succeeded":
            assert task.state is State.SUCCEEDED
            assert await scene.views.file(SESSION, f"/.tasks/{id}/result.json") == b'{"n":1}'
    log = await scene.log()
    assert [row.seq for row in log] == list(range(1, len(log) + 1))
    counts = await scene.views.count_by_state()
    assert sum(counts.values()) == len([row for row in log if row.type == "task.created"])
    await ledger.close()
    connection = sqlite3.connect(path)
    assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()


async def test_who_lost_its_log_to_a_stray_reader_acknowledges_nothing_more(tmp_path: Path):
    """Closing any handle on the file lets go of this process's locks: another that closes it then deletes the log."""
    path = tmp_path / "work.db"
    ledger = await SqliteLedger.open(path)
    scene = Scene(ledger)
    await scene.session()
    await scene.create("task_1")
    path.read_bytes()
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('select count(*) from tasks'); c.close()"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    assert not Path(f"{path}-wal").exists()
    with pytest.raises(StoreFailed, match="lost its locks"):
        await scene.create("task_2")
    await ledger.close()
    again = await SqliteLedger.open(path)
    assert await again.views.task("task_1") is not None
    assert list(await again.views.problems(deep=True)) == []
    await again.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel does not tell, and the writer looks")
async def test_a_writer_at_rest_hears_of_others_and_of_its_own_at_once_and_wakes_for_nothing_else(tmp_path: Path):
    ledger = await SqliteLedger.open(tmp_path / "work.db")
    other = await SqliteLedger.open(tmp_path / "work.db")
    heard: list[Signal] = []
    ledger.listen(heard.append)
    other.listen(lambda signal: None)
    writer = ledger._writer
    for turn in range(5):
        with anyio.fail_after(20):
            while not writer._is_resting:  # noqa: ASYNC110 - a thread's rest rings no bell
                await anyio.sleep(0.005)
        heard.clear()
        with anyio.fail_after(1):  # within the longest rest, so not by looking
            if turn % 2:
                await ledger.create_session(NewSession(f"own_{turn}", turn))
            else:
                await other.create_session(NewSession(f"other_{turn}", turn))
                while not any(signal.unknown for signal in heard):  # noqa: ASYNC110 - a list rings no bell
                    await anyio.sleep(0.001)
    await other.close()
    await ledger.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is watched")
def test_a_watch_that_was_closed_writes_to_no_file_that_has_its_number_by_now(tmp_path: Path):
    path = tmp_path / "watched"
    path.touch()
    watch = Watch.of(path)
    assert watch is not None
    watch.close()
    files = [(tmp_path / f"file {n}").open("w+b") for n in range(3)]
    watch.wake()
    assert [file.read() for file in files] == [b"", b"", b""]
    assert [file.seek(0, os.SEEK_END) for file in files] == [0, 0, 0]
    for file in files:
        file.close()
