"""What is kept for how long: `retention` and `pin`."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from outrider.cli.arguments import FOREVER
from outrider.cli.database import open_runtime, server_of
from outrider.cli.exits import OK, UsageError
from outrider.cli.sessions import target_of
from outrider.cli.terminal import Screen, on_one_line
from outrider.cli.values import seconds
from outrider.core.task import DEFAULT_ORGANIZATION
from outrider.core.wording import counted

if TYPE_CHECKING:
    from outrider.runtime.records import PinRecord, RetentionRecord

DAY = 86_400.0


async def retention(arguments: Namespace, screen: Screen) -> int:
    """Show for how long ended tasks are kept, or set it for an organization."""
    from outrider.cli.starting import user_name

    if arguments.organization is not None and server_of(arguments) is not None:
        raise UsageError("--organization is for a database; with a server, the key says of which")
    organization = arguments.organization or DEFAULT_ORGANIZATION
    of: dict[str, Any] = {} if server_of(arguments) is not None else {"organization_id": organization}
    sets = arguments.age is not None or arguments.count is not None or arguments.archive
    if sets and arguments.reset:
        raise UsageError("--reset takes away what --age, --count and --archive set")
    async with open_runtime(arguments, create=sets) as runtime:
        policies = runtime.retention
        if sets:
            age = None if arguments.age in (None, FOREVER) else seconds(arguments.age)
            said = {"age": age, "count": arguments.count, "archive": arguments.archive, "by": user_name()}
            found = [await policies.set_policy(**of, **said)]
        elif arguments.reset:
            await policies.reset_policy(**of)
            found = [await policies.policy(**of)]
        elif arguments.organization is not None or not of:
            found = [await policies.policy(**of)]
        else:
            own = await policies.policies(limit=1000)
            default = [] if organization in {each.organization_id for each in own} else [await policies.policy()]
            found = [*default, *own]
    for each in found:
        if screen.as_json:
            screen.record(each)
        else:
            screen.line(_told(each))
    return OK


async def pin(arguments: Namespace, screen: Screen) -> int:
    """Keep tasks and sessions whatever retention says, let them go again, or list them."""
    from outrider.cli.starting import user_name

    if not arguments.targets:
        if arguments.remove or arguments.reason:
            raise UsageError("what is to be pinned? name a SESSION or TASK")
        async with open_runtime(arguments) as runtime:
            found = await runtime.retention.pins(limit=1000)
        _show(found, screen)
        return OK
    async with open_runtime(arguments) as runtime:
        named = [await target_of(runtime, name) for name in dict.fromkeys(arguments.targets)]
        ids = list(dict.fromkeys(each if isinstance(each, str) else each.id for each in named))
        if arguments.remove:
            for id in ids:
                was_there = await runtime.retention.unpin(id)
                screen.note(f"{id}: {'unpinned' if was_there else 'it was not pinned'}")
            return OK
        found = [await runtime.retention.pin(id, by=user_name(), reason=arguments.reason) for id in ids]
    _show(found, screen)
    return OK


def _show(pins: list[PinRecord], screen: Screen) -> None:
    for each in pins:
        if screen.as_json:
            screen.record(each)
            continue
        since = "" if each.at is None else f"  since {each.at:%Y-%m-%d %H:%M:%S} UTC"
        by, reason = f" by {each.by}" if each.by else "", f": {each.reason}" if each.reason else ""
        screen.line(on_one_line(f"{each.id}{since}{by}{reason}"))
    if not pins:
        screen.hint("nothing is pinned")


def _told(policy: RetentionRecord) -> str:
    age = "for ever" if policy.age is None else _length(policy.age)
    count = "" if policy.count is None else f", no more than {counted(policy.count, 'task')}"
    if policy.archive:
        return on_one_line(f"{policy.organization_id}: sessions are archived that had nothing happen for {age}")
    whose = "" if policy.is_own else "  (the default; workers may be started with another)"
    return on_one_line(f"{policy.organization_id}: kept {age}{count}{whose}")


def _length(age: float) -> str:
    return counted(round(age / DAY), "day") if age >= DAY and age % DAY == 0 else f"{age:g} s"
