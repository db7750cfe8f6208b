"""Real workers, several at once and killed: each webhook is sent once, and again only after a kill, under its id."""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from outrider.runtime.facade import Runtime
from tests.facts import until
from tests.webhooks.app import app
from tests.webhooks.receivers import hang, receiving, status

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def worker(
    database: Path, *how: str, command: str = "worker", **variables: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker, or another command, in a process of its own, which is killed at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "outrider.cli", command, "--db", str(database), *how),
        cwd=ROOT,
        env={**os.environ, "OUTRIDER_APP": "tests.webhooks.app:app", **variables},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def states(runtime: Runtime, webhook_id: str, expected: dict[str, int]) -> bool:
    return Counter(each.status for each in await runtime.webhooks.deliveries(webhook_id)) == expected


async def test_what_a_killed_process_was_sending_is_sent_again_under_the_same_id(tmp_path: Path):
    database = tmp_path / "work.db"
    async with receiving(hang, status(200)) as receiver:
        async with app.open(str(database), worker=False) as runtime:
            hook = await runtime.webhooks.create(receiver.url)
            session = await runtime.sessions.create()
            await session.spawn("add", a=1)
            async with worker(database):
                await receiver.until(1)  # and no answer: it is killed in the middle of it
            async with worker(database):
                await receiver.until(2)
                await until(lambda: states(runtime, hook.id, {"delivered": 1}))
        assert len(receiver.ids) == 2
        assert len(set(receiver.ids)) == 1


async def test_two_processes_send_each_webhook_once(tmp_path: Path):
    database, count = tmp_path / "work.db", 40
    async with receiving() as receiver, app.open(str(database), worker=False) as runtime:
        hook = await runtime.webhooks.create(receiver.url)
        session = await runtime.sessions.create()
        async with worker(database), worker(database):
            for each in range(count):
                await session.spawn("add", a=each)
            await until(lambda: states(runtime, hook.id, {"delivered": count}))
        assert Counter(receiver.ids).most_common(1)[0][1] == 1
        assert len(receiver.ids) == count


async def test_a_server_without_a_worker_sends_them_itself(tmp_path: Path):
    database = tmp_path / "work.db"
    async with receiving() as receiver, app.open(str(database), worker=False) as runtime:
        hook = await runtime.webhooks.create(receiver.url)
        session = await runtime.sessions.create()
        task = await session.create("external", {})
        await runtime.tasks.cancel(task.id)
        async with worker(database, "--no-worker", "--port", "0", command="serve") as process:
            await until(lambda: states(runtime, hook.id, {"delivered": 1}))
            process.terminate()
            assert await process.wait() == 0
        assert receiver.requests[0].told["data"]["task"]["state"] == "canceled"
