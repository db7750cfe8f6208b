"""Streams of a real server, over real sockets: killed, started again, read slowly or not at all."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from outrider import Outrider, SessionHandle
from outrider.runtime.facade import Runtime
from tests.api.listening import Told, parse

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def serving(url: str, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """`outrider serve` as a process of its own, once it serves; killed at the end unless it has ended."""
    command = [sys.executable, "-m", "outrider.cli", "serve", "--no-worker", "--port", str(port), "--db", url, "--json"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        assert json.loads(line)["pid"] == process.pid
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def followed(client: httpx2.AsyncClient, path: str, last: int, told: list[Told]) -> None:
    """Follow a path through whatever happens, until its event number `last` was told."""
    while not told or (told[-1].id or 0) < last:
        headers = {"Last-Event-ID": str(told[-1].id)} if told else {}
        rest = b""
        try:
            async with client.stream("GET", path, headers=headers) as answer:
                assert answer.status_code in (200, 503)  # it is about to stop
                async for piece in answer.aiter_bytes():
                    found, rest = parse(rest + piece) if answer.status_code == 200 else ([], b"")
                    told += [each for each in found if each.name != "end"]
                    if told and (told[-1].id or 0) >= last:
                        return
        except httpx2.TransportError:
            pass
        await asyncio.sleep(0.2)


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not fact():  # noqa: ASYNC110 - what other processes do sets no event here
            await asyncio.sleep(0.01)


async def busy(runtime: Runtime, session: SessionHandle, pairs: int) -> None:
    for _ in range(pairs):
        task = await session.create("external", {})
        await runtime.tasks.cancel(task.id)
        await asyncio.sleep(0.005)


async def test_who_comes_again_after_the_server_was_killed_gets_each_event_exactly_once(tmp_path: Path):
    url, port, pairs = f"sqlite:///{tmp_path}/work.db", free_port(), 60
    async with Outrider().open(url, worker=False) as runtime, httpx2.AsyncClient(timeout=30) as client:
        session = await runtime.sessions.create()
        base, told, of_all = f"http://127.0.0.1:{port}/v1", list[Told](), list[Told]()
        path, last = f"{base}/sessions/{session.id}/events", 1 + 2 * pairs
        following = [
            asyncio.ensure_future(followed(client, path, last, told)),
            asyncio.ensure_future(followed(client, f"{base}/events", last, of_all)),
        ]
        async with serving(url, port):
            await until(lambda: bool(told and of_all))
            writing = asyncio.ensure_future(busy(runtime, session, pairs))
            await until(lambda: len(told) >= pairs // 4)
        async with serving(url, port) as second:  # the first was killed
            await asyncio.wait_for(asyncio.gather(writing, *following), 30)
            late: list[Told] = []
            async with client.stream("GET", path) as answer:
                async for piece in answer.aiter_bytes():
                    if not late and (late := parse(piece)[0]):
                        second.send_signal(signal.SIGTERM)
                    elif late:
                        late += parse(piece)[0]
            assert [each.name for each in late] == ["snapshot", "end"]
            assert late[-1].data == {"reason": "server_stopping"}
            assert await asyncio.wait_for(second.wait(), 20) == 0
    for each in (told, of_all):
        first, *rest = each
        assert first.name == "snapshot"
        assert [event.id for event in rest] == list(range((first.id or 0) + 1, last + 1))


@pytest.mark.soak
async def test_clients_that_do_not_read_cost_the_server_no_memory_to_speak_of(tmp_path: Path):
    url, port = f"sqlite:///{tmp_path}/work.db", free_port()
    async with (
        Outrider().open(url, worker=False) as runtime,
        serving(url, port) as server,
        httpx2.AsyncClient(timeout=30) as client,
    ):
        session = await runtime.sessions.create()
        path = f"http://127.0.0.1:{port}/v1/sessions/{session.id}/events?after=0"
        await followed(client, path, 1, [])
        lazy = []
        for _ in range(20):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            lazy.append(connection)
        before = resident(server.pid)
        for _ in range(20):
            await runtime.tasks.create_many(session.id, "external", [{}] * 100)
        told: list[Told] = []
        await followed(client, path, 2001, told)
        assert [each.id for each in told] == list(range(1, 2002))
        # What was told to this one, to each of the others, would be 80 MB and more.
        grown = resident(server.pid) - before
        assert grown < 30e6, f"{grown / 1e6:.0f} MB"
        for connection in lazy:
            connection.close()


def resident(pid: int) -> int:
    """The memory that a process holds, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
