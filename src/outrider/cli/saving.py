"""`backup`, `restore`, `copy` and `separate`: the database as a file to keep, and back; into another; apart from it."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

from outrider.bootstrap import SILENT, path_of
from outrider.bootstrap import copy as copy_whole
from outrider.bootstrap import restore as put_back
from outrider.bootstrap import separate as set_apart
from outrider.cli.database import open_here, shown, url_of
from outrider.cli.exits import OK, UsageError
from outrider.cli.terminal import Screen
from outrider.core.errors import NotFound
from outrider.core.wording import counted

if TYPE_CHECKING:
    from outrider.stores.copy import Progress

TELL_EVERY = 5.0
"""Seconds between two lines about one large table."""


async def backup(arguments: Namespace, screen: Screen) -> int:
    """Save the database into a file, while it is in use."""
    database = path_of(url_of(arguments))
    if not database.exists():  # opening it would make an empty one
        raise NotFound.of("file", str(database))
    async with open_here(arguments, create=True) as runtime:
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


async def copy(arguments: Namespace, screen: Screen) -> int:
    """Copy all that one database holds into another, which is empty."""
    if arguments.db is not None:
        raise UsageError("copy takes both databases as FROM and TO; leave out --db")
    done = await copy_whole(arguments.source, arguments.destination, tell=_teller(screen))
    if screen.as_json:
        screen.data(
            {
                "source": done.source,
                "target": done.target,
                "sessions": done.rows["sessions"],
                "tasks": done.rows["tasks"],
                "rows": done.rows,
            }
        )
    else:
        screen.note("read again and compared: nothing differs")
        tasks, sessions = counted(done.rows["tasks"], "task"), counted(done.rows["sessions"], "session")
        screen.line(f"{tasks} in {sessions} copied to {done.target}")
    return OK


async def separate(arguments: Namespace, screen: Screen) -> int:
    """Give a database that its server or a dump has copied an identity of its own."""
    url = url_of(arguments)
    id = await set_apart(url, tell=_teller(screen))
    if screen.as_json:
        screen.data({"database": shown(url), "id": id})
    else:
        screen.note("its tasks are still the original's: `outrider pause --all` keeps a worker from doing them again")
        screen.line(id)
    return OK


def _teller(screen: Screen) -> Callable[[Progress], None]:
    """Says what it waits for and how far it has come: a line for each table that was written, for a large one more."""
    told = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal told
        now = time.monotonic()
        done = "copied" if progress.step == "copy" else "compared"
        if progress.step == "wait":
            workers = counted(progress.rows, "registered worker")
            screen.note(f"{workers} may live on another machine: watching for {SILENT:g} s whether a lease is renewed")
        elif progress.is_whole and progress.rows and progress.step == "copy":
            screen.note(f"{progress.table}: {counted(progress.rows, 'row')}")
        elif not progress.is_whole and now >= told + TELL_EVERY:
            screen.note(f"{progress.table}: {counted(progress.rows, 'row')} {done} so far")
        else:
            return
        told = now

    return tell
