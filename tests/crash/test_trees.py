"""Trees of agents cut at any place: whoever is killed, canceled or deleted, all settles, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from outrider import Runtime, SessionHandle, State
from outrider.core.errors import NotEnded, NotFound, OutriderError
from outrider.core.ledger import TaskFilter
from outrider.core.task import LIVE_STATES, TURN, Task
from tests.core.stage import the
from tests.crash import tree
from tests.crash.crew import Crew, address_of, new_database
from tests.crash.test_wakes import kill

pytestmark = pytest.mark.anyio

LONGEST_LULL = 0.2
"""Seconds between two strokes, at most."""


@pytest.mark.slow
async def test_trees_of_agents_settle_whoever_is_killed_canceled_or_deleted(database: Path):
    async with Crew.muster(app="tests.crash.tree") as crew:
        await fell(crew, database, os.environ.get("SEED", "3"), strokes=12)


@pytest.mark.soak
async def test_a_forest_of_agents_settles_through_a_thousand_strokes(store: str, tmp_path: Path):
    seed = os.environ.get("SEED", str(random.randrange(10**6)))
    async with Crew.muster(app="tests.crash.tree") as crew:
        for lap in range(25):
            await fell(crew, new_database(store, tmp_path / f"{lap}.db"), f"{seed}-{lap}", strokes=40)


async def fell(crew: Crew, database: Path, seed: str, strokes: int) -> None:
    """Let trees grow while workers are killed and tasks canceled, and a root deleted; then let all settle."""
    print(f"SEED={seed}")  # a failure shows it
    chance, run = random.Random(seed), uuid4().hex
    async with tree.app.open(address_of(database), worker=False) as runtime:
        roots = [await runtime.sessions.create(agent="chief") for _ in range(2)]
        workers = [await crew.start(database) for _ in range(2)]
        for root in roots:
            await root.send(f"go {seed} {chance.random()} #{run}")
        for number in range(strokes):
            await asyncio.sleep(chance.uniform(0.0, LONGEST_LULL))
            blow = chance.random()
            if number == strokes // 2:
                await fell_one(runtime, roots.pop())
            elif blow < 0.6:
                workers.append(await crew.start(database))
                await kill(workers.pop(chance.randrange(2)))
            elif blow < 0.9:
                await cancel_one(runtime, chance)
            else:
                await chance.choice(roots).send(f"go {seed} {chance.random()} #{run}", steering="interrupt")
        for task in await every_task(runtime, live=True):
            if task.input.kind == "process":  # some would go on for long
                with suppress(OutriderError):
                    await runtime.tasks.cancel(task.id)
        await all_is_settled(runtime, roots)
        for worker in workers:
            worker.signal(signal.SIGTERM)
            assert await worker.wait() == 0
        await prove(runtime, roots)
        assert commands(run) == [], "a command outlives its task"


async def fell_one(runtime: Runtime, root: SessionHandle) -> None:
    """Delete a tree with all that lives in it; whoever runs it may be killed in the midst of that, or slow."""
    async with asyncio.timeout(30):
        while True:
            with suppress(NotEnded):
                await root.delete(cancel=True)
                break
    with pytest.raises(NotFound):
        await runtime.sessions.get(root.id)


async def cancel_one(runtime: Runtime, chance: random.Random) -> None:
    """Cancel any task but a turn: a turn that is canceled takes along what it was to hear."""
    live = [task for task in await every_task(runtime, live=True) if task.input.kind != TURN]
    if live:
        with suppress(OutriderError):  # it has ended meanwhile, or gone
            await runtime.tasks.cancel(chance.choice(live).id)


async def every_task(runtime: Runtime, *, live: bool = False) -> list[Task]:
    states = tuple(LIVE_STATES) if live else None
    found: list[Task] = []
    while page := await runtime.services.views.list_tasks(
        TaskFilter(states=states, limit=1000, after=found[-1].id if found else None)
    ):
        found += page
    return found


async def all_is_settled(runtime: Runtime, roots: list[SessionHandle]) -> None:
    """Wait until nothing lives, nothing is to be applied, and no agent has anything to hear."""
    views = runtime.services.views
    live: list[Task] = []
    try:
        async with asyncio.timeout(60):
            while True:
                live = await every_task(runtime, live=True)
                unheard = [root for root in roots if await root.inbox.list()]
                for root in unheard:
                    turn = await the(await root.turn()).record()
                    if turn.error is not None and turn.error.kind == "orphaned":
                        # It lost three workers in a row before it could take anything; the next word makes the next.
                        await root.send("Is anybody there?")
                if not live and not unheard and not await views.follow_ups(1):
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        stuck = [(task.input.kind, task.input.display_name, task.core) for task in live]
        left = [(entry, await root.turn()) for root in roots for entry in await root.inbox.list()]
        told = [(entry, None if turn is None else await turn.attempts()) for entry, turn in left]
        raise AssertionError(f"it does not settle: {stuck}, unheard: {told}") from None


async def prove(runtime: Runtime, roots: list[SessionHandle]) -> None:
    tasks = {task.id: task for task in await every_task(runtime)}
    assert all(task.is_terminal and not task.core.is_held for task in tasks.values())
    sessions = {session.id: session for session in await runtime.sessions.list(limit=1000)}
    kept = {root.id for root in roots}
    for session in sessions.values():
        assert session.root_session_id in kept, "a session of a tree that was deleted"
        if session.id not in kept:
            opener = tasks[session.parent_task_id or ""]
            assert opener.input.session_id == session.parent_session_id, "a session that nobody opened"
    assert {task.session_id for task in tasks.values()} <= sessions.keys()
    for session in sessions.values():
        opened = tasks.get(session.parent_task_id or "")
        hears_all = opened is None or (opened.core.state is State.SUCCEEDED and opened.input.spec["agent"] == "lead")
        started = {
            task.id for task in tasks.values() if task.session_id == session.id and task.input.wake_policy != "silent"
        }
        rows = await runtime.services.views.transcript(session.id)
        said = "".join(row.message.decode() for row in rows)
        heard = Counter(re.findall(r'<task_wake task=\\"(task_\w+)\\" reason=\\"terminal\\"', said))
        assert set(heard.values()) <= {1}, heard.most_common(3)
        assert heard.keys() <= started
        if hears_all:
            seen = heard.keys() | {task_id for row in rows for task_id in seen_to_end(json.loads(row.message))}
            unheard = [tasks[task_id].core for task_id in started - seen]
            left = await (await runtime.sessions.get(session.id)).inbox.list()
            assert (unheard, left) == ([], []), opened


def seen_to_end(message: dict[str, Any]) -> Iterator[str]:
    """The tasks of which an agent was told by a wait that they have ended, and is not told again."""
    for part in message.get("parts", ()):
        if part.get("tool_name") == "wait_task" and isinstance(part.get("content"), dict):
            for told in part["content"]["tasks"]:
                if told["state"] in ("succeeded", "failed", "canceled"):
                    yield told["task_id"]


def commands(run: str) -> list[str]:
    """The commands of the trees of a run that are left on this machine."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                if tree.MARK.encode() in line and run.encode() in line and b"sleep" in line:
                    found.append(line.decode(errors="replace"))
    return found
