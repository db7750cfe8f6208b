"""What must hold in a database that was cut off at any moment, with work still under way in it."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from outrider.core.ledger import Views
from outrider.core.machine import snapshot
from outrider.core.replay import replay
from outrider.core.task import Task
from outrider.runtime.codec import decode
from outrider.stores.rows import encode
from tests.faults.subject import digest


class Loss(AssertionError):
    """Something that was acknowledged is not there."""


def acks_in(content: bytes) -> list[list[Any]]:
    """What was acknowledged, in order; a line that was cut short was not."""
    return [json.loads(line) for line in content.split(b"\n")[:-1]]


def check_integrity(path: Path) -> None:
    """SQLite's own word. Only while the store has the file open, so that this is not the one to recover it."""
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert connection.execute("pragma foreign_key_check").fetchall() == []
    finally:
        connection.close()


async def check_whole(views: Views) -> None:
    """No change is there by half: record, log, attempts, questions, messages, output and files agree."""
    for session in await views.sessions(limit=1000):
        log, first = await views.events(session.id, limit=100_000), await views.first_seq(session.id)
        whole = [row.seq for row in log if row.seq >= first]
        assert whole == list(range(first, first + len(whole))), "the log has a gap"
        assert first > 1 or log[0].type == "session.created"
        kinds = Counter((row.task_id, row.type) for row in log)
        by_task: dict[str | None, list[Any]] = defaultdict(list)
        for row in log:
            by_task[row.task_id].append((row.type, decode(row.data)))
        for task_id, entries in by_task.items():
            if task_id is not None:
                task = await views.task(task_id)
                assert task is not None, f"the log tells of {task_id}, which is not there"
                await _check_task(views, task, entries, kinds[task_id, "task.message"])


async def _check_task(views: Views, task: Task, entries: list[Any], told_messages: int) -> None:
    replayed, record = replay(entries), decode(encode(snapshot(task)).encode())
    assert isinstance(record, dict)
    assert replayed is not None, f"{task.id} has no beginning"
    if replayed["core"]["readiness"] == "timed" and record["core"]["readiness"] == "ready":
        record["core"]["readiness"] = "timed"  # the moment has come, which no log tells of
    assert replayed == record, f"the log of {task.id} does not replay to its record"

    attempts = [each.attempt for each in await views.attempts(task.id)]
    has_been_held = task.core.attempt > 1 or bool(attempts)
    closed = task.core.attempt - 1 if task.core.is_held else task.core.attempt if has_been_held else 0
    assert attempts == list(range(1, closed + 1)), f"the attempts of {task.id} are {attempts}: {task.core}"

    pending = [each.id for each in await views.requests(task.id) if each.status == "pending"]
    assert pending == [each.id for each in task.core.requests]
    messages = await views.messages(task.id, limit=10_000)
    assert len(messages) == told_messages
    assert task.core.messages == sum(message.direction == "inbound" for message in messages)
    printed = sum(data["to"] - data["from"] for type, data in entries if type == "task.output")
    assert (await views.output(task.id)).next == printed
    named = [task.outcome.result_path, *(artifact.path for artifact in task.outcome.artifacts)]
    for path in filter(None, named):
        assert await views.file(task.session_id, path) is not None, f"{task.id} names {path}, which is not there"


async def check_acknowledged(views: Views, acks: Iterable[list[Any]]) -> None:
    """All of it is there, or something later is."""
    events: Counter[str] = Counter()
    printed: Counter[str] = Counter()
    reported: Counter[str] = Counter()
    workers: dict[str, None] = {}
    tasks: dict[str, int] = {}
    messages: dict[str, set[str]] = defaultdict(set)
    requests: dict[str, str] = {}
    ends: dict[tuple[str, int], str] = {}
    files: dict[tuple[str, str], str] = {}
    steps: dict[tuple[str, str], tuple[int, bool, str | None]] = {}
    for verb, *words in acks:
        match verb:
            case "session":
                events[words[0]] += 1
            case "task":
                task_id, version, session_id, beside = words
                tasks[task_id] = max(version, tasks.get(task_id, 0))
                if beside:
                    events[session_id] += beside["events"]
                    messages[task_id].update(beside["messages"])
                    requests.update(beside["requests"])
                    files.update({(session, path): content for session, path, content in beside["files"]})
                    steps.update({(id, at): tuple(rest) for id, at, *rest in beside["steps"]})
                    if beside["ended"]:
                        ends[task_id, beside["ended"][0]] = beside["ended"][1]
            case "report":
                reported[words[0]] += words[1]
            case "print":
                printed[words[0]] += words[1]
            case "journal":
                steps[words[0], words[1]] = (words[2], words[3], words[4])
            case "file":
                files[words[0], words[1]] = words[2]
            case "worker":
                workers[words[0]] = None
            case "retiring":
                workers.pop(words[0], None)

    for session_id, number in events.items():
        _need(len(await views.events(session_id, limit=100_000)) >= number, f"entries of {session_id}")
    found = {task.id: task for task in await views.tasks(list(tasks))}
    for task_id, version in tasks.items():
        _need(task_id in found and found[task_id].core.version >= version, task_id)
        _need(messages[task_id] <= {message.id for message in await views.messages(task_id, limit=10_000)}, "a message")
    for request_id, status in requests.items():
        request = await views.request(request_id)
        _need(request is not None and (request.status == status or status == "pending"), request_id)
    for (task_id, attempt), ending in ends.items():
        _need([end.ending for end in await views.attempts(task_id) if end.attempt == attempt] == [ending], "an end")
    for task_id, number in printed.items():
        _need((await views.output(task_id)).next >= number, f"output of {task_id}")
    for task_id, number in reported.items():
        log = await views.events(found[task_id].session_id, limit=100_000, task_id=task_id)
        _need(sum(row.type == "task.progress" for row in log) >= number, f"progress of {task_id}")
    for (session_id, path), content in files.items():
        _need(digest(await views.file(session_id, path)) == content, f"{path} of {session_id}")
    journals = {task_id: {step.position: step for step in await views.steps(task_id)} for task_id, _ in steps}
    for (task_id, position), (attempt, done, value) in steps.items():
        step = journals[task_id].get(position)
        _need(step is not None and (step.attempt, step.done) >= (attempt, done), f"step {position} of {task_id}")
        assert step is not None
        _need(step.attempt > attempt or step.done > done or digest(step.value) == value, f"the value of {position}")
    _need(workers.keys() <= {worker.card.id for worker in await views.workers()}, "a worker")


def _need(is_there: bool, what: str) -> None:
    if not is_there:
        raise Loss(f"{what} was acknowledged, and is lost or older")
