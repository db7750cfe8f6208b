"""What is kept of tasks: `export`, `import`, `delete`, `prune`."""

from __future__ import annotations

import errno
import os
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson

from outrider.cli.apps import load_apps, names_of
from outrider.cli.database import Opened, open_runtime, server_of, url_of
from outrider.cli.exits import OK, UsageError
from outrider.cli.glance import short
from outrider.cli.looking import states_of
from outrider.cli.sessions import target_of
from outrider.cli.steering import hint_at_worker
from outrider.cli.terminal import Screen, cannot_write
from outrider.cli.values import bytes_of
from outrider.core.errors import IllegalMove, InvalidArguments
from outrider.core.wording import counted
from outrider.settings import WorkerSettings

MOST_OF_A_TASK = 1 << 30
"""Bytes of an exported task that are read at most."""


async def export(arguments: Namespace, screen: Screen) -> int:
    """Write a task as one document to stdout, or a session as a stream of them."""
    async with open_runtime(arguments) as runtime:
        task = await target_of(runtime, arguments.target)
        if isinstance(task, str):
            if arguments.move or arguments.events:
                raise UsageError("--move and --events are for tasks; a session is copied, with its log")
            async for record in runtime.sessions.export(task):
                screen.data(record)
            return OK
        if arguments.move and task.is_terminal:
            raise IllegalMove(
                f"{task.id} has ended as {task.state}, so there is nothing left to go on with elsewhere; "
                "without --move it is exported as it ended"
            )
        document = await runtime.tasks.export(task.id, events=arguments.events)
        screen.data(document)
        if arguments.move:
            _settle(screen)
            await runtime.tasks.give_away(document)
            screen.note(f"{short(task.id)} has ended here; import it elsewhere")
    return OK


def _settle(screen: Screen) -> None:
    """See that the document is on the disk before the task ends here. A pipe has none: its reader sees to that."""
    try:
        os.fsync(screen.out.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise cannot_write(error) from error


async def load(arguments: Namespace, screen: Screen) -> int:
    """Make a task of a document."""
    document = _document(arguments.path)
    async with _open_app(arguments) as runtime:
        task = await runtime.tasks.load(document, session_id=arguments.session, force=arguments.force)
        if screen.as_json:
            screen.record(await runtime.tasks.record(task.id))
        else:
            screen.line(task.id)
        if not task.is_terminal:
            await hint_at_worker(runtime, task.id, screen)
    return OK


@asynccontextmanager
async def _open_app(arguments: Namespace) -> AsyncIterator[Opened]:
    """The server, or the database with the app, which knows whether the task could be run."""
    if server_of(arguments) is not None:
        async with open_runtime(arguments) as client:
            yield client
        return
    async with load_apps(names_of(arguments.app)).open(url_of(arguments), worker=False) as runtime:
        yield runtime


def _document(path: str) -> dict[str, Any]:
    """What a file has. Raises UsageError for one that cannot be read, InvalidArguments for what is no JSON object."""
    try:
        document = orjson.loads(bytes_of(path, MOST_OF_A_TASK))
    except orjson.JSONDecodeError as error:
        raise InvalidArguments(f"{path!r} is no exported task: {error}") from None
    if not isinstance(document, dict):
        raise InvalidArguments(f"{path!r} is no exported task: it is no JSON object")
    return document


async def delete(arguments: Namespace, screen: Screen) -> int:
    """Delete tasks that have ended, each whole, and sessions with all in them."""
    async with open_runtime(arguments) as runtime:
        found = [await target_of(runtime, name) for name in dict.fromkeys(arguments.targets)]
        if arguments.cancel and not all(isinstance(each, str) for each in found):
            raise UsageError("--cancel is for sessions; cancel the task first")
        for each in dict.fromkeys(each if isinstance(each, str) else each.id for each in found):
            if each in found:
                count = await runtime.sessions.delete(each, cancel=arguments.cancel)
                below = f", with {counted(count, 'task')}" if count else ""
            else:
                count = await runtime.tasks.delete(each)
                below = f", with {count - 1} below it" if count > 1 else ""
            if screen.as_json:
                screen.data({"id": each, "tasks": count})
            else:
                screen.line(f"{each}  deleted{below}")
    return OK


async def prune(arguments: Namespace, screen: Screen) -> int:
    """Delete what ended longer ago than a time."""
    kept = arguments.older_than
    if kept is None:
        kept = WorkerSettings().retention or 0.0
    states = states_of(arguments.state)
    async with open_runtime(arguments) as runtime:
        receipt = await runtime.tasks.prune(
            kept, states=states, kind=arguments.kind, session_id=arguments.session, dry_run=arguments.dry_run
        )
        counts = receipt.model_dump(exclude={"sessions"} if arguments.dry_run else None)
    if screen.as_json:
        screen.data({**counts, "dry_run": arguments.dry_run})
    else:
        said = " and ".join(counted(count, noun.removesuffix("s")) for noun, count in counts.items())
        screen.line(f"{said} {'would go' if arguments.dry_run else 'deleted'}")
    return OK
