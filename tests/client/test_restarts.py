"""A server that is killed and started again: whoever followed, waited or created does not notice."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from outrider import Client, TaskOptions
from outrider.settings import ClientSettings

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
PATIENT = ClientSettings(poll_time=5.0, patience=60.0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def serve(folder: Path, port: int) -> asyncio.subprocess.Process:
    """`outrider serve`, once it serves."""
    command = [sys.executable, "-m", "outrider.cli", "serve", "--no-worker", "--port", str(port), "--json"]
    process = await asyncio.create_subprocess_exec(
        *command, "--db", f"{folder}/work.db", cwd=folder, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert json.loads(await asyncio.wait_for(process.stdout.readline(), 60))["pid"] == process.pid
    return process


async def test_a_kill_of_the_server_is_no_end_of_what_its_clients_do(tmp_path: Path):
    port = free_port()
    server = await serve(tmp_path, port)
    try:
        async with Client(f"http://127.0.0.1:{port}", settings=PATIENT) as client:
            session = await client.sessions.create()
            task = await session.create("external", {}, options=TaskOptions(idle_timeout=600))
            seen: list[int] = []
            begun = asyncio.Event()

            async def follow() -> None:
                async for event in task.events():
                    seen.append(event.seq)
                    begun.set()

            following = asyncio.create_task(follow())
            waiting = asyncio.create_task(task.result())
            receiving = asyncio.create_task(session.inbox.receive(wait=120))
            await asyncio.wait_for(begun.wait(), 30)

            server.kill()
            await server.wait()
            creating = asyncio.create_task(session.create("external", {"while": "away"}))
            await asyncio.sleep(0)
            server = await serve(tmp_path, port)

            assert (await asyncio.wait_for(creating, 60)).session_id == session.id
            (held,) = await client.external.claim("me")
            await client.external.succeed(task.id, held.attempt, "survived")
            assert await asyncio.wait_for(waiting, 60) == "survived"
            await asyncio.wait_for(following, 60)
            assert seen == sorted(set(seen))
            assert len(seen) == len([event async for event in task.events()])
            assert len(await session.tasks()) == 2

            server.terminate()  # a graceful end is no end of a wait either
            await server.wait()
            server = await serve(tmp_path, port)
            await session.create("external", {}, options=TaskOptions(wake="on_activity"))
            receiving.cancel()
            with suppress(asyncio.CancelledError):
                await receiving
    finally:
        with suppress(ProcessLookupError):
            server.kill()
        await server.wait()
