"""The tasks of a delegation tree, or of a part of it: what a session's tasks started, and so on down."""

from __future__ import annotations

from outrider.core.ledger import TaskFilter, Views
from outrider.core.task import Task

MANY = 200
"""How many tasks of a tree are looked at."""


async def tasks_below(views: Views, target: Task | str) -> list[Task]:
    """The tasks of the session of that id, or a task, with those below, oldest first; of more than 200 some."""
    if isinstance(target, Task):
        tasks: list[Task] = []
        level = [target.id]
        while level and len(tasks) < MANY:
            found = await views.tasks(level)
            tasks += found
            level = [child.id for each in found for child in await views.children(each.id)]
            level += [
                task.id
                for each in found
                if each.live.links.child_session_id
                for task in await views.list_tasks(TaskFilter(session_id=each.live.links.child_session_id, limit=MANY))
                if task.id not in level
            ]
    else:
        tasks = list(await views.list_tasks(TaskFilter(root_session_id=target, limit=MANY)))
        if not tasks:  # it is no root: what is below its tasks is in sessions of their own
            own = await views.list_tasks(TaskFilter(session_id=target, limit=MANY))
            tasks = [each for task in own for each in await tasks_below(views, task)][:MANY]
    return sorted({task.id: task for task in tasks}.values(), key=lambda task: task.id)
