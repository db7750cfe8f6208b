"""What a reader begins with: how things stand at one place of a log, so that the events after it are all that is new.

Records and log are read by several queries, between which others write. What was written meanwhile is folded in from
the log, so that a snapshot is exactly of the place that it names, however busy the store is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence

from outrider.core.errors import NotFound
from outrider.core.ledger import TaskFilter, Views
from outrider.core.session import Session
from outrider.core.task import LIVE_STATES, Task
from outrider.runtime.records import (
    EventRecord,
    OrganizationSnapshot,
    SessionRecord,
    SessionSnapshot,
    TaskRecord,
    TaskSnapshot,
)
from outrider.runtime.services import Services
from outrider.runtime.stream import PAGE, EventReader, Life, LogReader, life_of
from outrider.runtime.turns import last_turn

SHOWN = 100
"""How many live tasks a snapshot shows."""

COUNTED = 1000
"""How many of an organization's it counts."""

PATIENCE = 2.0
"""How long, in seconds, what was read is waited for in the log of all sessions; see `snapshot_of_organization`."""

_LOOK = 0.005
_LIVE = tuple(LIVE_STATES)


async def snapshot_of_session(services: Services, session_id: str, life: Life | None = None) -> SessionSnapshot:
    """A session with its live tasks, all of one life of its id: of that one, if it is named. Raises NotFound."""
    views = services.views
    before = await session_of(views, session_id, life)
    life = life_of(before)
    tasks = await views.list_tasks(TaskFilter(session_id=session_id, states=_LIVE, limit=SHOWN + 1))
    session = await session_of(views, session_id, life)
    reader = EventReader(services, session_id, after=before.last_seq)
    touched: set[str] = set()
    while reader.after < session.last_seq:
        was_at = reader.after
        touched |= _touched(await reader.read(min(PAGE, session.last_seq - was_at)))
        if reader.after == was_at:  # what was written meanwhile is deleted already
            break
    live = _live(tasks, touched, reader)
    shown, is_cut = live[:SHOWN], max(len(tasks), len(live)) > SHOWN
    turn = next((task for task in shown if task.id == session.driver_task_id), None)
    if turn is None and is_cut:
        turn = await last_turn(services.lifecycle, session)
    await session_of(views, session_id, life)
    return SessionSnapshot(
        after=max(session.last_seq, reader.after),
        session=SessionRecord.of(session, turn),
        tasks=tuple(map(TaskRecord.of, shown)),
        is_cut=is_cut,
    )


async def snapshot_of_task(services: Services, task_id: str, life: Life | None = None) -> TaskSnapshot:
    """A task, of one life of its id: of that one, if it is named. Raises NotFound."""
    views = services.views
    task = await _task_of(views, task_id, life)
    life = life_of(task.input)
    session = await session_of(views, task.session_id)
    record = TaskRecord.of(await _task_of(views, task_id, life))
    reader = EventReader(services, session.id, after=session.last_seq, task_id=task_id)
    is_last = False
    while not is_last:
        events = await reader.read()
        is_last = len(events) < PAGE
        record = next((each.task for each in reversed(events) if each.task is not None), record)
        if _touched(events) and (folded := reader.folded(task_id)) is not None:
            record = TaskRecord.of(folded)
    await _task_of(views, task_id, life)
    return TaskSnapshot(after=reader.after, task=record)


async def snapshot_of_organization(services: Services, organization_id: str | None) -> OrganizationSnapshot:
    """The live tasks of an organization, of all with None.

    What a transaction of PostgreSQL wrote that ended while an older one goes on is in the records, and not in the log
    yet: it is waited for, for two seconds. Only where some other program has a transaction open for longer may the
    events tell of what the snapshot shows already.
    """
    views = services.views
    before = await views.position()
    tasks = await views.list_tasks(TaskFilter(organization_id=organization_id, states=_LIVE, limit=COUNTED))
    position = await _caught_up(views, {task.session_id for task in tasks})
    reader = LogReader(services, organization_id, after=before)
    touched: set[str] = set()
    while reader.after < position:
        events = await reader.read()
        if not events:
            break
        touched |= _touched(event for _, event in events)
    live = _live(tasks, touched, reader)
    return OrganizationSnapshot(
        after=reader.after,
        states=Counter(task.state for task in live[:COUNTED]),
        tasks=tuple(map(TaskRecord.of, live[:SHOWN])),
        is_cut=len(live) > SHOWN,
    )


async def session_of(views: Views, session_id: str, life: Life | None = None) -> Session:
    """The session of that id, and of that life of it, if one is named. Raises NotFound."""
    session = await views.session(session_id)
    if session is None or life not in (None, life_of(session)):
        raise NotFound.of("session", session_id)
    return session


async def _task_of(views: Views, task_id: str, life: Life | None) -> Task:
    task = await views.task(task_id)
    if task is None or life not in (None, life_of(task.input)):
        raise NotFound.of("task", task_id)
    return task


async def _caught_up(views: Views, session_ids: set[str]) -> int:
    """The position of the log once it has all that was written in these sessions until now."""
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE
    newest = max((head.position for head in (await views.heads(list(session_ids))).values()), default=0)
    position = await views.position()
    while position < newest and loop.time() < end:
        await asyncio.sleep(_LOOK)
        position = await views.position()
    return position


def _touched(events: Iterable[EventRecord]) -> set[str]:
    return {
        each.task_id
        for each in events
        if each.task_id is not None and each.type in ("task.created", "task.updated", "task.progress")
    }


def _live(tasks: Sequence[Task], touched: set[str], reader: EventReader | LogReader) -> Sequence[Task]:
    """The live tasks, the newest first; those that the reader came across as it left them."""
    found = {task.id: task for task in tasks}
    for task_id in touched:
        folded = reader.folded(task_id)
        if folded is not None:
            found[task_id] = folded
        else:
            found.pop(task_id, None)
    return sorted(found.values(), key=lambda task: task.id, reverse=True)
