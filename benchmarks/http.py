"""Creating tasks over HTTP: one after another on one connection, then from 16 connections at once.

The server is `outrider serve` in a process of its own, its worker inside. The tasks are for somebody else's program
(kind `external`), so that only their creation is measured; each has its number, by which the lists are checked. Before
that, one connection waits for the end of a task, and another one ends it: `poll_…` is from the request that ends it to
the answer of the one that waits.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.harness import Figures, Place, Settings, check, percentile

KEYS = ("create_p50_ms", "create_p99_ms", "create_per_s", "list_p50_ms", "poll_p50_ms", "poll_p95_ms", "server_cpu_ms")

CONNECTIONS = 16
SINGLES = 500
POLLS = 200
PAGE = 1000


def tasks(settings: Settings) -> int:
    """What the 16 connections create together."""
    return 60_000 if settings.full else 8_000


async def run(place: Place) -> Figures:
    """Create them, and find each exactly once in the lists."""
    async with _server(place.url()) as (port, pid), _connected(port) as first:
        session_id = json.loads(await first.ask("POST", "/v1/sessions", b"{}"))["id"]
        path = f"/v1/sessions/{session_id}/tasks"
        polls = await _poll(port, first)
        for number in range(-50, 0):  # so that what is done once is not timed
            await first.ask("POST", path, _task(number))
        spans = []
        for number in range(SINGLES):
            started = time.perf_counter()
            await first.ask("POST", path, _task(number))
            spans.append((time.perf_counter() - started) * 1e3)
        numbers = iter(range(SINGLES, SINGLES + place.tasks))
        before, started = _cpu(pid), time.perf_counter()
        await asyncio.gather(*(_create_all(port, path, numbers) for _ in range(CONNECTIONS)))
        spent, cpu = time.perf_counter() - started, _cpu(pid) - before
        lists = await _check(first, path, range(-50, SINGLES + place.tasks))
    return {
        "create_p50_ms": percentile(spans, 0.5),
        "create_p99_ms": percentile(spans, 0.99),
        "create_per_s": place.tasks / spent,
        "list_p50_ms": percentile(lists, 0.5),
        "poll_p50_ms": percentile(polls, 0.5),
        "poll_p95_ms": percentile(polls, 0.95),
        "server_cpu_ms": cpu / place.tasks * 1e3,
    }


async def _poll(port: int, first: _Connection) -> list[float]:
    """How long the news of an end took to who waited for it, each in turn."""
    session_id = json.loads(await first.ask("POST", "/v1/sessions", b"{}"))["id"]
    spans = []
    async with _connected(port) as other:
        for _ in range(POLLS):
            task_id = json.loads(await first.ask("POST", f"/v1/sessions/{session_id}/tasks", _task(0)))["id"]
            (held,) = json.loads(await first.ask("POST", "/v1/external/claim", b'{"holder":"bench"}'))["items"]
            check(held["id"] == task_id, f"{held['id']} was claimed, and {task_id} was made")
            waiting = asyncio.ensure_future(other.ask("GET", f"/v1/tasks/{task_id}/wait?timeout=20"))
            await asyncio.sleep(0.02)
            started = time.perf_counter()
            await first.ask("POST", f"/v1/tasks/{task_id}/attempts/{held['attempt']}/succeed", b'{"result":1}')
            ended = json.loads(await waiting)
            spans.append((time.perf_counter() - started) * 1e3)
            check(ended["state"] == "succeeded", f"who waited for {task_id} was told that it is {ended['state']}")
    return spans


def _task(number: int) -> bytes:
    return b'{"kind":"external","spec":{"number":%d},"labels":{"made":"here"}}' % number


async def _create_all(port: int, path: str, numbers: Iterator[int]) -> None:
    async with _connected(port) as connection:
        for number in numbers:
            await connection.ask("POST", path, _task(number))


async def _check(connection: _Connection, path: str, expected: range) -> list[float]:
    """Check that each number is there once; return how long the pages of 100 took that follow."""
    found: list[int] = []
    after = ""
    while True:
        page = json.loads(await connection.ask("GET", f"{path}?limit={PAGE}{after}"))
        found += [each["spec"]["number"] for each in page["items"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    check(sorted(found) == list(expected), f"{len(expected)} tasks were created, and {len(set(found))} are there")
    spans = []
    for _ in range(20):
        started = time.perf_counter()
        await connection.ask("GET", f"{path}?limit=100")
        spans.append((time.perf_counter() - started) * 1e3)
    return spans


class _Connection:
    """One connection that is kept. Cheap: the generator shall not be what is measured."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The body of the answer. Raises Lost for one that is no success."""
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\n"
        if body:
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self._writer.write(head.encode() + b"\r\n" + body)
        told = await self._reader.readuntil(b"\r\n\r\n")
        length = int(told.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        answer = await self._reader.readexactly(length)
        check(told[9:10] == b"2", f"{method} {path} was answered with {told[9:12].decode()}: {answer.decode():.300}")
        return answer


@asynccontextmanager
async def _connected(port: int) -> AsyncIterator[_Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    try:
        yield _Connection(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def _server(url: str) -> AsyncIterator[tuple[int, int]]:
    """The port and the process of a server that runs meanwhile."""
    command = [sys.executable, "-m", "outrider.cli", "serve", "--json", "--port", "0", "--db", url]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        told: dict[str, Any] = json.loads(await process.stdout.readline())
        yield int(told["url"].rpartition(":")[2]), process.pid
    finally:
        process.terminate()
        status = await process.wait()
    check(status == 0, f"the server ended with exit status {status}")


def _cpu(pid: int) -> float:
    """The seconds of CPU time that a process has had."""
    import os

    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
