"""`backup` and `restore`: the database as a file to keep, and back."""

from __future__ import annotations

from argparse import Namespace

from outrider.bootstrap import path_of
from outrider.bootstrap import restore as put_back
from outrider.cli.database import open_runtime, url_of
from outrider.cli.exits import OK
from outrider.cli.terminal import Screen
from outrider.core.errors import NotFound
from outrider.core.wording import counted


async def backup(arguments: Namespace, screen: Screen) -> int:
    """Save the database into a file, while it is in use."""
    database = path_of(url_of(arguments))
    if not database.exists():  # opening it would make an empty one
        raise NotFound.of("file", str(database))
    async with open_runtime(arguments, create=True) as runtime:
        saved = await runtime.backup(arguments.file, replace=arguments.force)
    if screen.as_json:
        screen.data({"backup": saved.path, "size": saved.size, "tasks": saved.tasks, "database": str(database)})
    else:
        screen.note(f"saved {database}: {counted(saved.tasks, 'task')}, {counted(saved.size, 'byte')}")
        screen.line(saved.path)
    return OK


async def restore(arguments: Namespace, screen: Screen) -> int:
    """Put a backup in the place of the database, and keep that one beside it."""
    done = await put_back(arguments.file, url_of(arguments))
    before = None if done.before is None else str(done.before)
    if screen.as_json:
        screen.data({"database": str(done.database), "tasks": done.tasks, "before": before})
    else:
        kept = "" if before is None else f"; what was there until now is {before}"
        screen.note(f"restored {done.database}: {counted(done.tasks, 'task')}{kept}")
        screen.line(str(done.database))
    return OK
