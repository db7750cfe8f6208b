"""The queue: `limits`, `pause`, `resume`, `priority`."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from outrider.cli.database import open_runtime
from outrider.cli.exits import OK, UsageError
from outrider.cli.glance import short
from outrider.cli.terminal import Screen, on_one_line
from outrider.cli.values import seconds, whole
from outrider.core.queue import kind_of
from outrider.core.wording import counted

if TYPE_CHECKING:
    from outrider.cli.database import Opened
    from outrider.runtime.records import KeyRecord, LimitRecord


async def limits(arguments: Namespace, screen: Screen) -> int:
    """Show the limits and the keys in use; set or remove the limit of a key."""
    sets = arguments.concurrency is not None or arguments.rate is not None
    if sets and arguments.remove:
        raise UsageError("--remove takes away what --concurrency and --rate set")
    if arguments.key is None:
        if sets or arguments.remove or arguments.organization is not None:
            raise UsageError("whose limit? name a KEY")
        return await _show_limits(arguments, screen)
    if not sets and not arguments.remove:
        raise UsageError("give --concurrency, --rate or both, or --remove")
    async with open_runtime(arguments, create=True) as runtime:
        if arguments.remove:
            was_there = await runtime.queue.unlimit(arguments.key, organization_id=arguments.organization)
            screen.note(f"{arguments.key}: {'removed' if was_there else 'there was no limit'}")
            return OK
        rate, per = (None, 1.0) if arguments.rate is None else _rate(arguments.rate)
        limit = await runtime.queue.limit(
            arguments.key,
            concurrency=arguments.concurrency,
            rate=rate,
            per=per,
            organization_id=arguments.organization,
        )
    if screen.as_json:
        screen.record(limit)
    else:
        screen.note(_told(limit))
    return OK


async def _show_limits(arguments: Namespace, screen: Screen) -> int:
    async with open_runtime(arguments) as runtime:
        limits, keys, pauses = await runtime.queue.limits(), await runtime.queue.keys(), await runtime.queue.pauses()
    if screen.as_json:
        screen.data({"limits": _plain(limits), "keys": _plain(keys), "pauses": _plain(pauses)})
        return OK
    for limit in limits:
        screen.line(_told(limit))
    for key in keys:
        waiting = f", {key.waiting} waiting" if key.waiting else ""
        until = f", more at {key.next_start_at:%H:%M:%S} UTC" if key.next_start_at else ""
        screen.line(f"{on_one_line(_whose(key))}: {key.held} running{waiting}{until}")
    for pause in pauses:
        what = f"{pause.scope} {pause.name}".strip()
        by, reason = f" by {pause.by}" if pause.by else "", f": {pause.reason}" if pause.reason else ""
        screen.line(on_one_line(f"paused: {what}, since {pause.since:%Y-%m-%d %H:%M:%S} UTC{by}{reason}"))
    if not limits and not keys and not pauses:
        screen.hint("no limits, and nothing runs under a concurrency key")
    return OK


async def pause(arguments: Namespace, screen: Screen) -> int:
    """Start no more of something, until it is resumed."""
    from outrider.cli.starting import user_name

    async with open_runtime(arguments, create=True) as runtime:
        changed = await runtime.queue.pause(**_scope(arguments), by=user_name(), reason=arguments.reason)
        known = None if arguments.kind is None else await _kinds(runtime, arguments.kind)
    if known is not None and arguments.kind not in known:
        screen.note(
            f"nothing of kind {arguments.kind!r} is here yet, and no worker serves it; "
            f"the pause holds all the same (kinds that are known: {', '.join(sorted(known))})"
        )
    screen.note("paused; what runs goes on" if changed else "it was paused already")
    return OK


async def resume(arguments: Namespace, screen: Screen) -> int:
    """Let what was paused start again."""
    async with open_runtime(arguments) as runtime:
        changed = await runtime.queue.resume(**_scope(arguments))
    screen.note("resumed" if changed else "it was not paused")
    return OK


async def priority(arguments: Namespace, screen: Screen) -> int:
    """Give a task another place in the queue."""
    async with open_runtime(arguments) as runtime:
        task = await runtime.tasks.find(arguments.task)
        await runtime.queue.reprioritize(task.id, arguments.priority)
        if screen.as_json:
            screen.record(await runtime.tasks.record(task.id))
    screen.note(f"{short(task.id)} has priority {arguments.priority}")
    return OK


async def _kinds(runtime: Opened, asked: str) -> set[str]:
    """The kinds that come with Outrider, those that a worker serves, and the one asked for if a task has it."""
    served = {kind_of(route) for worker in await runtime.workers() for route in worker.routes}
    used = {task.kind for task in await runtime.tasks.list(kind=asked, limit=1)}
    own = {"agent_handoff", "background_tool", "external", "process", "session", "subagent"}
    return own | served | used


def _scope(arguments: Namespace) -> dict[str, Any]:
    if not (arguments.session or arguments.kind or arguments.all):
        raise UsageError("say what: --session ID, --kind KIND or --all")
    return {"session": arguments.session, "kind": arguments.kind, "everything": arguments.all}


def _rate(text: str) -> tuple[int, float]:
    """`100/1m`: how many, and in how many seconds."""
    count, slash, span = text.partition("/")
    if not slash:
        raise UsageError(f"{text!r} is no rate; write 100/1m")
    return whole(count), seconds(span)


def _told(limit: LimitRecord) -> str:
    said = [] if limit.concurrency is None else [f"{limit.concurrency} at once"]
    if limit.rate is not None:
        said.append(f"{counted(limit.rate, 'start')} in any {limit.per:g} s")
    return on_one_line(f"{_whose(limit)}: {', '.join(said) or 'no bound'}")


def _whose(what: LimitRecord | KeyRecord) -> str:
    return what.key if what.organization_id is None else f"{what.key} of {what.organization_id}"


def _plain(records: Any) -> list[Any]:
    return [record.model_dump(mode="json") for record in records]
