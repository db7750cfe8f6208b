"""Whole sessions: `close`, `reopen`; and what a name means where a session or a task may be named."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from outrider.cli.database import open_runtime
from outrider.cli.exits import OK
from outrider.cli.terminal import Screen
from outrider.core.errors import NotFound

if TYPE_CHECKING:
    from outrider.cli.database import Opened
    from outrider.core.task import Task
    from outrider.runtime.records import TaskRecord


async def close(arguments: Namespace, screen: Screen) -> int:
    """Have a session take nothing any more."""
    async with open_runtime(arguments) as runtime:
        record = await runtime.sessions.close(arguments.session, tasks=arguments.tasks)
        if screen.as_json:
            screen.record(record)
    left = {"finish": "what lives in it goes on to its end", "cancel": "what lived in it is canceled"}
    screen.note("; ".join(["closed", *([left[arguments.tasks]] if arguments.tasks in left else [])]))
    return OK


async def reopen(arguments: Namespace, screen: Screen) -> int:
    """Open a closed session again."""
    async with open_runtime(arguments) as runtime:
        record = await runtime.sessions.reopen(arguments.session)
        if screen.as_json:
            screen.record(record)
    screen.note("open again")
    return OK


async def target_of(runtime: Opened, name: str) -> Task | TaskRecord | str:
    """The id of the session of that name, or the task that it fits. Raises NotFound."""
    try:
        return (await runtime.sessions.get(name)).id
    except NotFound:
        return await runtime.tasks.find(name)
