"""Whole sessions: `sessions`, `close`, `reopen`; and what a name means where a session or a task may be named."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from outrider.cli.database import open_runtime
from outrider.cli.exits import OK, UsageError
from outrider.cli.terminal import Screen, on_one_line
from outrider.cli.values import pairs
from outrider.core.errors import NotFound

if TYPE_CHECKING:
    from outrider.cli.database import Opened
    from outrider.core.task import Task
    from outrider.runtime.records import SessionRecord, TaskRecord


LISTED = 50
TAKEN = {
    "id": ("create",),
    "agent": ("create",),
    "title": ("create", "update"),
    "label": ("create", "update"),
    "no_label": ("update",),
    "limit": ("list",),
    "after": ("list",),
}
"""Which actions take an option."""


async def sessions(arguments: Namespace, screen: Screen) -> int:
    """List sessions, show one, make one, give one another title or other labels."""
    action, named = arguments.action, arguments.session
    if (named is None) != (action in ("list", "create")):
        raise UsageError(f"{action} takes no SESSION" if named else f"which one? outrider sessions {action} SESSION")
    for option, actions in TAKEN.items():
        if action not in actions and getattr(arguments, option) not in (None, []):
            raise UsageError(f"--{option.replace('_', '-')} is for {' and '.join(actions)}, not for {action}")
    labels = pairs(arguments.label, "label")
    if both := labels.keys() & set(arguments.no_label):
        raise UsageError(f"{min(both)!r} is set by --label and taken away by --no-label")
    async with open_runtime(arguments, create=action == "create") as runtime:
        if action == "list":
            return _list(await runtime.sessions.list(after=arguments.after, limit=arguments.limit or LISTED), screen)
        if action == "create":
            made = await runtime.sessions.create(
                id=arguments.id, agent=arguments.agent, title=arguments.title, labels=labels
            )
            record = await made.record()
        elif action == "update":
            changes = {**dict.fromkeys(arguments.no_label), **labels}
            if arguments.title is None and not changes:
                raise UsageError("what is to change? --title TEXT, --label K=V, --no-label K")
            record = await runtime.sessions.update(named, title=arguments.title, labels=changes)
        else:
            record = await runtime.sessions.record(named)
    if screen.as_json:
        screen.record(record)
    else:
        screen.line(_line(record))
    return OK


def _list(found: list[SessionRecord], screen: Screen) -> int:
    for each in found:
        if screen.as_json:
            screen.record(each)
        else:
            screen.line(_line(each))
    if not found:
        screen.hint("no sessions")
    return OK


def _line(session: SessionRecord) -> str:
    of = [session.id, session.status, session.agent or "-", f"{session.updated_at:%Y-%m-%d %H:%M:%S} UTC"]
    labels = ",".join(f"{name}={value}" for name, value in session.labels.items())
    return on_one_line("  ".join([*of, *filter(None, [session.title, labels])]))


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
