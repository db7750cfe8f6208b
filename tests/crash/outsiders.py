"""Outside agents that receive from an inbox, and programs that make tasks with news for it: for the proof of leases.

What an agent was given, and what became of its receipts, it appends to a file, a JSON list on each line. It is killed
at any point between; a line that stands there happened, one that does not may have happened too.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outrider import Outrider, SessionHandle, TaskContext, TaskOptions, WorkerSettings

LEASE = 0.25
"""Seconds."""

app = Outrider(WorkerSettings(recovery_interval=0.05))


@app.tool
async def errand(task: TaskContext) -> str:
    """Something that has two pieces of news for its session."""
    await task.post("half way")
    await asyncio.sleep(random.uniform(0, 0.1))
    return "there"


def settings_of(given: Mapping[str, Any]) -> WorkerSettings:
    return app.settings


async def speak(address: str, name: str, notes: Path) -> None:
    """Do what the name says in the one session that there is, until killed."""
    chance = random.Random(name)
    async with app.open(address, worker=False) as runtime:
        (record,) = await runtime.sessions.list()
        session = await runtime.sessions.get(record.id)
        while True:
            if name.startswith("sender"):
                await session.spawn("errand", options=TaskOptions(wake="on_activity"))
                await asyncio.sleep(chance.uniform(0, 0.04))
            else:
                await _attend(session, name, chance, notes)


async def _attend(session: SessionHandle, name: str, chance: random.Random, notes: Path) -> None:
    entries = await session.inbox.receive(wait=30, lease=LEASE, limit=chance.choice([1, 3, 10]))
    for entry in entries:
        assert entry.leased_until is not None
        news = [entry.reason, entry.leased_until.timestamp() - LEASE, entry.leased_until.timestamp()]
        _note(notes, ["received", name, entry.receipt, *news])
    receipts = [entry.receipt or "" for entry in entries]
    await asyncio.sleep(chance.choice([0, 0.01, 0.05]))
    match chance.randrange(8):
        case 0:
            await session.inbox.renew(receipts, lease=LEASE)
        case 1:
            await asyncio.sleep(1.5 * LEASE)
    settled = await session.inbox.acknowledge(receipts)
    _note(notes, ["acknowledged", name, *settled.good])
    again = await session.inbox.acknowledge(receipts)
    assert not again.good


def _note(notes: Path, line: list[Any]) -> None:
    fd = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, f"{json.dumps(line)}\n".encode())
    finally:
        os.close(fd)
