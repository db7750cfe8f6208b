"""Looking at tasks together: all that is asked for in one pass of the loop is read in one query.

Whoever waits for a task looks at it when the bell rings, and one commit may ring for hundreds; a commit of another
process rings for all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import Context
from typing import TypeAlias

from outrider.core.ledger import Views
from outrider.core.task import Task

_Askers: TypeAlias = "dict[str, list[asyncio.Future[Task | None]]]"


class Glance:
    """Reads single tasks for many who ask at once. Belongs to one loop."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._asked: _Askers = {}
        self._reads: set[asyncio.Task[None]] = set()

    def task(self, task_id: str) -> asyncio.Future[Task | None]:
        """The task of that id, as it stands at the end of this pass or later; None if there is none."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Task | None] = loop.create_future()
        if not self._asked:
            loop.call_soon(self._begin, loop)
        self._asked.setdefault(task_id, []).append(answer)
        return answer

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        asked, self._asked = self._asked, {}
        # In a context of its own: it reads for all, and is not a part of the task whose code asked first.
        read = loop.create_task(self._read(asked), context=Context())
        self._reads.add(read)
        read.add_done_callback(self._reads.discard)

    async def _read(self, asked: _Askers) -> None:
        try:
            found: Mapping[str, Task] = {task.id: task for task in await self._views.tasks(list(asked))}
        except Exception as error:  # noqa: BLE001 - it is raised where it was asked for; here nobody awaits it
            for answers in asked.values():
                for answer in answers:
                    if not answer.done():
                        answer.set_exception(error)
            return
        for task_id, answers in asked.items():
            for answer in answers:
                if not answer.done():
                    answer.set_result(found.get(task_id))
