"""Commands of workers on PostgreSQL: their folders are on the machine, and outlive the worker as beside a file."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from outrider import Outrider, State, TaskHandle, WorkerSettings
from outrider.kinds.process_run import Run, runs_of
from outrider.runtime.clock import SystemClock
from outrider.settings import LeaseTimes
from outrider.testing import TestRuntime, open_test
from tests.dumps import dump, restore
from tests.servers import Host, fresh_database, programs_of

pytestmark = pytest.mark.anyio

LEASE = LeaseTimes(renew=0.5, cancel=2, end=2.5, lost=3)
APP = Outrider(WorkerSettings(process_linger=0.3, recovery_interval=0.05, lease=LEASE))
PATIENCE = 60
UNTIL_DONE = "echo run; echo run >> runs; while ! test -e done; do sleep 0.02; done; echo end"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this machine keeps what belongs to a database elsewhere."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[TestRuntime]:
    """A runtime on a server, and nothing of its commands alive afterwards."""
    async with open_test(APP, store=url, clock=SystemClock()) as runtime:
        try:
            yield runtime
        finally:
            folder, _ = runs_of(runtime.ledger)
            for run in map(Run, folder.iterdir() if folder.exists() else ()):
                run.order_end(0)


async def has_printed(task: TaskHandle, text: str) -> None:
    async with asyncio.timeout(PATIENCE):
        async for piece in task.output():
            if text in piece.text:
                return
    raise AssertionError(f"it ended without printing {text!r}")


@pytest.mark.parametrize("end", ["drain", "crash"])
async def test_a_command_lives_on_when_its_worker_goes_and_the_next_adopts_it(
    end: str, postgres_url: str, tmp_path: Path, state: Path
):
    async with opened(postgres_url) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn_process(shell=UNTIL_DONE, cwd=tmp_path)
        await has_printed(task, "run")
        (folder,) = (state / "outrider").glob("*-processes")
        assert folder.stat().st_mode & 0o777 == 0o700
        if end == "drain":
            await runtime.drain()
            await runtime.start_worker()
        else:
            await runtime.crash()
        (tmp_path / "done").touch()
        record = await task.wait(timeout=PATIENCE)
        assert (record.state, record.failures, record.attempt) == (State.SUCCEEDED, 0, 2)
        assert "".join([piece.text async for piece in task.output()]) == "run\nend\n"
    assert (tmp_path / "runs").read_text() == "run\n"


async def test_a_copy_under_a_name_of_its_own_leaves_the_command_to_the_original(
    postgres: Host, postgres_version: str, tmp_path: Path
):
    programs = programs_of(postgres_version)
    with fresh_database(postgres) as url, fresh_database(postgres) as copy:
        async with opened(url) as runtime:
            session = await runtime.sessions.create()
            task = await session.spawn_process(shell=UNTIL_DONE, cwd=tmp_path)
            await has_printed(task, "run")
            dump(programs, url, tmp_path / "saved")
            restore(programs, tmp_path / "saved", copy)
            with psycopg.connect(copy, autocommit=True) as connection:
                connection.execute("update origin set id = gen_random_uuid()")
            async with opened(copy) as other:
                async with asyncio.timeout(PATIENCE):
                    while (tmp_path / "runs").read_text() != "run\nrun\n":  # noqa: ASYNC110 - a command writes it
                        await asyncio.sleep(0.02)
                (tmp_path / "done").touch()
                for each in (other, runtime):
                    record = await (await each.task(task.id)).wait(timeout=PATIENCE)
                    assert record.state is State.SUCCEEDED
            assert "".join([piece.text async for piece in task.output()]) == "run\nend\n"
            assert (await task.record()).attempt == 1
