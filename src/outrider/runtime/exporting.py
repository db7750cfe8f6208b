"""A session with all that is in it, as a stream of records: for whoever wants to keep it, or has a right to have it.

Each record is one JSON object with a `record` that says what it is of. What a reader may get wrong: it is read page by
page, so of a session in which something goes on the records are of moments that follow each other.
"""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict

from outrider.core import machine
from outrider.core.ledger import TaskFilter
from outrider.core.session import Session
from outrider.core.task import Task
from outrider.core.values import JSON, JSONObject, evolve
from outrider.runtime.codec import decode, jsonable
from outrider.runtime.services import Services

FORMAT = "outrider.session"
VERSION = 1
PAGE = 200
MANY = 1_000_000
"""More than there are of what one task or session has."""


async def export_session(services: Services, session: Session, *, tree: bool) -> AsyncIterator[JSONObject]:
    """Yield the records of a session, with `tree` of those that its tasks opened as well, and at last how many came."""
    counts: Counter[str] = Counter()
    yield {
        "record": "export",
        "format": FORMAT,
        "version": VERSION,
        "session_id": session.id,
        "exported_at": services.clock.now(),
    }
    left = [session]
    while left:
        own = left.pop(0)
        async for record in _session(services, own):
            counts[str(record["record"])] += 1
            yield record
        async for tasks in _tasks(services, own):
            for task in tasks:
                for record in await _task(services, task):
                    counts[str(record["record"])] += 1
                    yield record
            if tree:
                left += await services.views.child_sessions([task.id for task in tasks])
    yield {"record": "end", "counts": dict(counts)}


async def _session(services: Services, session: Session) -> AsyncIterator[JSONObject]:
    """What a session has beside its tasks."""
    views, of = services.views, {"session_id": session.id}
    yield {"record": "session", **jsonable(session)}
    for grant in await views.grants([session.id]):
        yield {"record": "grant", **jsonable(grant)}
    for entry in await views.inbox(session.id, limit=MANY):
        yield {"record": "inbox", **jsonable(entry)}
    number = 0
    while rows := await views.transcript(session.id, after=number, limit=PAGE):
        for row in rows:
            yield {"record": "transcript", **of, **asdict(row), "message": decode(row.message)}
        number = rows[-1].number
    for info in await views.files(session.id, limit=MANY):
        content = await views.file(session.id, info.path)
        if content is not None:  # it may have been deleted since
            yield {"record": "file", **jsonable(info), "content": b64encode(content).decode()}
    seq = 0
    while events := await views.events(session.id, after=seq, limit=PAGE):
        for event in events:
            plain = {"seq": event.seq, "task_id": event.task_id, "type": event.type, "at": event.at}
            yield {"record": "event", **of, **plain, "data": decode(event.data)}
        seq = events[-1].seq


async def _tasks(services: Services, session: Session) -> AsyncIterator[list[Task]]:
    page = TaskFilter(session_id=session.id, limit=PAGE, newest_first=False)
    while tasks := list(await services.views.list_tasks(page)):
        yield tasks
        page = evolve(page, after=tasks[-1].id)


async def _task(services: Services, task: Task) -> list[JSONObject]:
    """What a task has beside its files, which are its session's."""
    views, of = services.views, {"task_id": task.id}
    records: list[JSONObject] = [{"record": "task", "id": task.id, **jsonable(machine.snapshot(task))}]
    records += [{"record": "attempt", **jsonable(each)} for each in await views.attempts(task.id)]
    records += [{"record": "request", **jsonable(each)} for each in await views.requests(task.id)]
    records += [{"record": "message", **jsonable(each)} for each in await views.messages(task.id, limit=MANY)]
    for step in await views.steps(task.id):
        value: JSON = None if step.value is None else decode(step.value)
        records.append({"record": "step", **asdict(step), "value": value})
    output = await views.output(task.id, limit=MANY)
    records += [{"record": "output", **of, **jsonable(each)} for each in output.rows]
    return records
