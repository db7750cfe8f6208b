"""Telling others: `webhooks`, with an action for each verb of the façade's noun."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from outrider.cli.database import Opened, open_runtime
from outrider.cli.exits import INTERNAL, OK, UsageError
from outrider.cli.terminal import Screen, on_one_line

if TYPE_CHECKING:
    from outrider.runtime.webhooks.records import DeliveryRecord, WebhookRecord

_OF = {
    "url": ("update",),
    "events": ("create", "update"),
    "task": ("create", "list"),
    "description": ("create", "update"),
    "overlap": ("rotate",),
    "status": ("deliveries",),
    "reason": ("disable",),
}


async def webhooks(arguments: Namespace, screen: Screen) -> int:
    """Do one thing with webhooks; see the page of the command line."""
    action, target = arguments.action, arguments.target
    for option, actions in _OF.items():
        if getattr(arguments, option) is not None and action not in actions:
            raise UsageError(f"--{option} is for {' and '.join(actions)}")
    if arguments.deliveries and action != "replay":
        raise UsageError(f"{action} takes one TARGET")
    if (target is None) != (action == "list"):
        raise UsageError(f"{action} takes no TARGET" if action == "list" else f"{action} which? name the TARGET")
    async with open_runtime(arguments, create=action == "create") as runtime:
        if action == "list":
            return await _list(runtime, arguments, screen)
        if action == "create":
            return await _create(runtime, arguments, screen)
        return await _one(runtime, arguments, screen)


async def _list(runtime: Opened, arguments: Namespace, screen: Screen) -> int:
    task = None if arguments.task is None else (await runtime.tasks.find(arguments.task)).id
    found = await runtime.webhooks.list(task_id=task, limit=arguments.limit)
    for each in found:
        _show(each, screen)
    if not found:
        screen.hint("nobody is told; outrider webhooks create URL")
    return OK


async def _create(runtime: Opened, arguments: Namespace, screen: Screen) -> int:
    given: dict[str, Any] = {} if arguments.events is None else {"events": _events(arguments.events)}
    if arguments.task is not None:
        given["task_id"] = (await runtime.tasks.find(arguments.task)).id
    made = await runtime.webhooks.create(arguments.target, description=arguments.description or "", **given)
    _show(made, screen)
    if not screen.as_json:
        screen.line(made.secret)
        screen.note("its secret is shown this once")
    return OK


async def _one(runtime: Opened, arguments: Namespace, screen: Screen) -> int:
    hooks, target = runtime.webhooks, arguments.target
    match arguments.action:
        case "show":
            _show(await hooks.get(target), screen)
        case "update":
            events = None if arguments.events is None else _events(arguments.events)
            changed = await hooks.update(target, url=arguments.url, events=events, description=arguments.description)
            _show(changed, screen)
        case "delete":
            await hooks.delete(target)
            screen.note(f"{target} is deleted")
        case "enable":
            _show(await hooks.enable(target), screen)
        case "disable":
            _show(await hooks.disable(target, reason=arguments.reason), screen)
        case "rotate":
            made = await hooks.rotate_secret(target, overlap=arguments.overlap)
            _show(made, screen)
            if not screen.as_json:
                screen.line(made.secret)
        case "test":
            outcome = await hooks.test(target)
            if screen.as_json:
                screen.record(outcome)
            else:
                screen.line(on_one_line(f"{outcome.error or 'it was taken'}, after {outcome.seconds:.2f} s"))
            return OK if outcome.error is None else INTERNAL
        case "deliveries":
            for each in await hooks.deliveries(target, status=arguments.status, limit=arguments.limit):
                screen.record(each) if screen.as_json else screen.line(_delivery_line(each))
        case "replay":
            count = await hooks.replay(target, arguments.deliveries or None)
            screen.note(f"{count} to be sent again")
    return OK


def _show(record: WebhookRecord, screen: Screen) -> None:
    if screen.as_json:
        screen.record(record)
        return
    state = f"disabled: {record.disabled_reason}" if record.disabled_at else "enabled"
    if record.failures and not record.disabled_at:
        state = f"failing, {record.failures} times since {record.failing_since:%Y-%m-%d %H:%M:%S} UTC"
    of = [] if record.task_id is None else [record.task_id]
    parts = [record.id, record.url, ",".join(record.events), *of, state, record.description]
    screen.line("  ".join(on_one_line(each) for each in parts if each))


def _delivery_line(record: DeliveryRecord) -> str:
    last = record.tries[-1] if record.tries else None
    how = "" if last is None else last.error or f"{last.status} in {last.seconds:.2f} s"
    when = f"next try {record.next_try_at:%Y-%m-%d %H:%M:%S} UTC" if record.next_try_at else ""
    parts = [record.id, record.status, record.type, record.task_id or "", f"{record.tried} tries", how, when]
    return "  ".join(on_one_line(each) for each in parts if each)


def _events(text: str) -> list[Any]:
    return [each.strip() for each in text.split(",")]
