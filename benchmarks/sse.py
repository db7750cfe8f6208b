"""How far behind those are who follow a server: 1,000 streams, 200 events a second that another process writes.

Ten streams follow each of a hundred sessions; with `--full` all of them follow all sessions, so that each event goes to
each. The lag of an event is from the moment that it is dated to its being in hand at the client.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from benchmarks import work
from benchmarks.harness import Figures, Place, Settings, check, percentile
from outrider.runtime.facade import Runtime

KEYS = ("lag_p50_ms", "lag_p95_ms", "lost", "rss_mb")

STREAMS, SESSIONS = 1000, 100
RATE = 200
"""Events a second. A task that is made and canceled has two."""

LINE = 64 * 1024 * 1024


def tasks(settings: Settings) -> int:
    """The tasks that are made and canceled."""
    return 3000 if settings.full else 800


async def run(place: Place) -> Figures:
    """Serve in one process, follow in another, write here."""
    check(place.settings.store != "memory", "a store in memory is of one process, and this takes three")
    url = place.url()
    async with work.app.open(url, worker=False) as outrider:
        sessions = [(await outrider.sessions.create()).id for _ in range(SESSIONS)]
        server = await _start("outrider.cli", "serve", "--no-worker", "--port", "0", "--db", url, "--json")
        client: Process | None = None
        try:
            port = (await _said(server))["url"].rpartition(":")[2]
            client = await _start("benchmarks.listener", port)
            paths = _paths(place.settings, sessions)
            await _tell(client, paths)
            check(await _said(client) == {"begun": len(paths)}, "not all streams began")
            await _write(outrider, sessions, place.tasks)
            await _tell(client, await _ends(outrider, sessions))
            heard = await _said(client)
            size = _resident(server.pid)
        finally:
            for process in (server, client):
                if process is not None:
                    await work.kill(process)
    check(heard["cut"] == 0, f"{heard['cut']} streams were cut")
    check(heard["lost"] == 0 and heard["doubled"] == 0, f"{heard['lost']} were lost, {heard['doubled']} came twice")
    return {
        "lag_p50_ms": percentile(heard["lags"], 0.5),
        "lag_p95_ms": percentile(heard["lags"], 0.95),
        "lost": heard["lost"],
        "rss_mb": size,
    }


def _paths(settings: Settings, sessions: Sequence[str]) -> list[str]:
    if settings.full:
        return ["/v1/events"] * STREAMS
    return [f"/v1/sessions/{sessions[number % SESSIONS]}/events" for number in range(STREAMS)]


async def _write(outrider: Runtime, sessions: Sequence[str], count: int) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for number in range(count):
        task = await outrider.tasks.create(sessions[number % SESSIONS], "external", {})
        await outrider.tasks.cancel(task.id)
        await asyncio.sleep(max(0.0, begun + 2 * number / RATE - loop.time()))


async def _ends(outrider: Runtime, sessions: Sequence[str]) -> Mapping[str, int]:
    heads = await outrider.services.views.heads(sessions)
    ends = {f"/v1/sessions/{session_id}/events": head.seq for session_id, head in heads.items()}
    return {**ends, "/v1/events": await outrider.services.views.position()}


async def _start(module: str, *arguments: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdin=PIPE, stdout=PIPE, limit=LINE
    )


async def _tell(process: Process, said: object) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(said).encode() + b"\n")
    await process.stdin.drain()


async def _said(process: Process) -> dict[str, Any]:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        return cast("dict[str, Any]", json.loads(await process.stdout.readline()))


def _resident(pid: int) -> float:
    """The memory that a process holds now, in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
