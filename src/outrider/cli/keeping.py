"""What is kept of tasks: `delete`, `prune`."""

from __future__ import annotations

from argparse import Namespace

from outrider.cli.database import open_runtime
from outrider.cli.exits import OK
from outrider.cli.looking import states_of
from outrider.cli.terminal import Screen
from outrider.settings import WorkerSettings

MANY = 1_000_000
"""More than which a dry run does not count."""


async def delete(arguments: Namespace, screen: Screen) -> int:
    """Delete tasks that have ended, each whole."""
    async with open_runtime(arguments) as runtime:
        found = [await runtime.tasks.find(name) for name in dict.fromkeys(arguments.tasks)]
        for task_id in dict.fromkeys(task.id for task in found):
            count = await runtime.tasks.delete(task_id)
            if screen.as_json:
                screen.data({"id": task_id, "tasks": count})
            else:
                below = f", with {count - 1} below it" if count > 1 else ""
                screen.line(f"{task_id}  deleted{below}")
    return OK


async def prune(arguments: Namespace, screen: Screen) -> int:
    """Delete what ended longer ago than a time."""
    kept = arguments.older_than
    if kept is None:
        kept = WorkerSettings().retention or 0.0
    states = states_of(arguments.state)
    async with open_runtime(arguments) as runtime:
        if arguments.dry_run:
            before = runtime.services.clock.now() - round(kept * 1e6)
            of = {"states": states, "kind": arguments.kind, "session_id": arguments.session}
            counts = {"tasks": len(await runtime.services.views.ended(before, MANY, **of))}
        else:
            receipt = await runtime.tasks.prune(kept, states=states, kind=arguments.kind, session_id=arguments.session)
            counts = receipt.model_dump()
    if screen.as_json:
        screen.data({**counts, "dry_run": arguments.dry_run})
    else:
        said = " and ".join(f"{count:,} {noun if count != 1 else noun[:-1]}" for noun, count in counts.items())
        screen.line(f"{said} {'would go' if arguments.dry_run else 'deleted'}")
    return OK
