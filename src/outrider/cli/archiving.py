"""The archive of old sessions: `archive`."""

from __future__ import annotations

from argparse import Namespace

from outrider.cli.database import open_runtime
from outrider.cli.exits import OK, UsageError
from outrider.cli.terminal import Screen, on_one_line
from outrider.core.wording import counted


async def archive(arguments: Namespace, screen: Screen) -> int:
    """Take sessions out of the database into the archive, read or erase what is there, or list it."""
    from outrider.cli.starting import user_name

    if arguments.read and arguments.erase:
        raise UsageError("--read shows what --erase would delete: give one of them")
    if not arguments.sessions and (arguments.read or arguments.erase):
        raise UsageError("which session? name a SESSION")
    async with open_runtime(arguments) as runtime:
        if arguments.read:
            for id in arguments.sessions:
                async for record in runtime.archive.read(id):
                    screen.data(record)
            return OK
        if arguments.erase:
            for id in arguments.sessions:
                was_there = await runtime.archive.delete(id)
                screen.note(f"{id}: {'erased' if was_there else 'it was not in the archive'}")
            return OK
        if arguments.sessions:
            found = [await runtime.archive.store(id, by=user_name()) for id in dict.fromkeys(arguments.sessions)]
        else:
            found = await runtime.archive.list(limit=1000)
    for each in found:
        if screen.as_json:
            screen.record(each)
        else:
            since = "" if each.at is None else f"  {each.at:%Y-%m-%d %H:%M:%S} UTC"
            by = f" by {each.by}" if each.by else ""
            screen.line(on_one_line(f"{each.session_id}{since}  {counted(each.size, 'byte')}{by}"))
    if not found:
        screen.hint("nothing is archived")
    return OK
