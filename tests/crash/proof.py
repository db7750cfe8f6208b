"""What must hold once the killing is over, whoever was killed and when.

`prove` holds the database against the file in which the steps themselves say what they did.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

from outrider.core.ledger import LogRow
from outrider.core.machine import snapshot
from outrider.core.replay import replay
from outrider.core.task import Task
from outrider.runtime.codec import decode
from outrider.runtime.facade import Runtime
from outrider.stores.rows import encode
from tests.crash.crew import address_of
from tests.crash.voyage import effects_in

ONCE = ("salute", "stow")


async def prove(runtime: Runtime, session_id: str, effects: Path) -> None:
    """Nothing is lost, stuck, repeated, or told otherwise than it is."""
    tasks = [
        task
        for record in await runtime.tasks.list(session_id=session_id, limit=1000)
        if (task := await runtime.services.views.task(record.id)) is not None
    ]
    log = await log_of(runtime, session_id)
    assert [row.seq for row in log] == list(range(1, len(log) + 1)), "the log has a gap"
    for task in tasks:
        await _prove_task(runtime, task, log)
    await _prove_steps(runtime, tasks, effects_in(effects))
    assert not await runtime.services.views.follow_ups(10), "follow-ups were never applied"


def rows_of(database: Path, *queries: str) -> list[list[Any]]:
    """What is in the tables, whichever store it is."""
    address = address_of(database)
    if address == str(database):
        with closing(sqlite3.connect(database)) as connection:
            return [connection.execute(query).fetchall() for query in queries]
    import psycopg  # not above: the workers that are killed import it with their store

    with psycopg.connect(address) as server:
        return [server.execute(query.encode()).fetchall() for query in queries]


async def log_of(runtime: Runtime, session_id: str) -> list[LogRow]:
    rows: list[LogRow] = []
    while page := await runtime.services.views.events(session_id, after=rows[-1].seq if rows else 0):
        rows.extend(page)
    return rows


async def _prove_task(runtime: Runtime, task: Task, log: list[LogRow]) -> None:
    views = runtime.services.views
    assert task.is_terminal, f"{task.id} is stuck: {task.core}"
    assert not task.core.is_held
    replayed = replay((row.type, decode(row.data)) for row in log if row.task_id == task.id)
    assert replayed == decode(encode(snapshot(task)).encode()), "the log does not replay to the record"
    ends = [row for row in log if row.task_id == task.id and decode(row.data).get("core", {}).get("finished_at")]
    assert len(ends) == 1, "it ended more than once"

    attempts = await views.attempts(task.id)
    assert [each.attempt for each in attempts] == list(range(1, task.core.attempt + 1))
    assert all(each.started_at <= each.ended_at for each in attempts)
    assert all(one.ended_at <= next.started_at for one, next in pairwise(attempts))
    assert {each.ending for each in attempts} <= {"lost", "parked", "released", "returned", "succeeded"}, attempts
    assert attempts[-1].ending == "succeeded"

    requests = await views.requests(task.id)
    assert all(request.status == "answered" for request in requests), "a question was orphaned"
    positions = Counter(request.position for request in requests)
    assert max(positions.values(), default=1) == 1, f"asked twice: {positions}"
    asked = [decode(step.value or b"")["request_id"] for step in await views.steps(task.id) if step.verb == "ask"]
    assert sorted(asked) == sorted(request.id for request in requests), "a question that no journal knows"


async def _prove_steps(runtime: Runtime, tasks: list[Task], effects: list[tuple[str, str, int]]) -> None:
    """A step runs again only if it was in flight, and then in a later attempt; once it is journaled, never."""
    by_step: dict[tuple[str, str], list[int]] = {}
    for task_id, name, attempt in effects:
        by_step.setdefault((task_id, name), []).append(attempt)
    for task in tasks:
        for step in await runtime.services.views.steps(task.id):
            if step.verb != "step":
                continue
            attempts = by_step.pop((task.id, step.position), [])
            assert step.done, f"step {step.position} was left open"
            assert len(set(attempts)) == len(attempts), f"{step.position} ran twice in one attempt: {attempts}"
            assert all(attempt <= step.attempt for attempt in attempts), f"{step.position} ran again: {attempts}"
            if step.position in ONCE:
                assert len(attempts) <= 1, f"once, and yet {attempts}"
            else:
                assert step.attempt in attempts, f"{step.position} is journaled and never ran"
    assert not by_step, f"steps ran that no journal knows: {by_step}"
