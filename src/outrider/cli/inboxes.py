"""`inbox`: what a session is told, for a person to look at and for a script to receive and acknowledge."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from outrider.cli.database import open_runtime
from outrider.cli.exits import CONFLICT, OK, UsageError
from outrider.cli.glance import short
from outrider.cli.starting import DEFAULT_SESSION
from outrider.cli.terminal import Screen, json_text, on_one_line
from outrider.core.errors import NotFound

if TYPE_CHECKING:
    from outrider.runtime.records import InboxRecord, ReceiptsRecord


async def inbox(arguments: Namespace, screen: Screen) -> int:
    """Look into an inbox, receive from it, or say what became of what was received."""
    if (arguments.wait is not None) + bool(arguments.ack) + bool(arguments.renew) > 1:
        raise UsageError("--wait, --ack and --renew are three things to do")
    if arguments.lease is not None and arguments.wait is None and not arguments.renew:
        raise UsageError("--lease says how long --wait or --renew keeps what is received")
    if arguments.ack or arguments.renew:
        return await _settle(arguments, screen)
    session_id = arguments.session or DEFAULT_SESSION
    if arguments.wait is None:
        async with open_runtime(arguments) as runtime:
            try:
                found = await runtime.inbox.list(session_id, limit=arguments.limit)
            except NotFound:
                if arguments.session is not None:
                    raise
                found = []
    else:
        async with open_runtime(arguments, create=True) as runtime:
            await runtime.sessions.create(id=session_id)
            found = await runtime.inbox.receive(
                session_id, wait=arguments.wait, lease=arguments.lease, limit=arguments.limit
            )
    for entry in found:
        if screen.as_json:
            screen.record(entry)
        else:
            screen.line(_told(entry))
    if not found:
        screen.hint("nothing")
    return OK


async def _settle(arguments: Namespace, screen: Screen) -> int:
    session_id = arguments.session or DEFAULT_SESSION
    async with open_runtime(arguments) as runtime:
        if arguments.ack:
            settled = await runtime.inbox.acknowledge(session_id, arguments.ack)
        else:
            settled = await runtime.inbox.renew(session_id, arguments.renew, lease=arguments.lease)
    if screen.as_json:
        screen.record(settled)
    else:
        _tell(settled, "acknowledged" if arguments.ack else "renewed", screen)
    return CONFLICT if settled.stale else OK


def _tell(settled: ReceiptsRecord, done: str, screen: Screen) -> None:
    outcomes: Sequence[tuple[Sequence[str], str]] = (
        (settled.good, done),
        (settled.replaced, "newer news took its place, and come by themselves"),
        (settled.stale, "received again since; somebody else may be at it"),
        (settled.gone, "acknowledged before, or deleted"),
    )
    for receipts, became in outcomes:
        for receipt in receipts:
            screen.line(f"{receipt}  {became}")


def _told(entry: InboxRecord) -> str:
    body = entry.body
    said = body.get("summary") or body.get("prompt") or body.get("text") or body.get("parts") or body.get("error") or ""
    name = "" if entry.task is None else f" {entry.task.display_name}"
    what = f"{body.get('state') or entry.reason}{name}: {said if isinstance(said, str) else json_text(said)}"
    return f"{entry.receipt or short(entry.task_id)}  {on_one_line(what)}"
