"""Looking: `tasks`, `show`, `messages`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from outrider.cli.arguments import STATES
from outrider.cli.database import open_runtime, open_store, place_of, server_of
from outrider.cli.exits import OK, UsageError
from outrider.cli.glance import STYLES, Glance, age_text, short
from outrider.cli.terminal import Screen, harmless, json_text, on_one_line, told
from outrider.cli.values import pairs
from outrider.core.errors import NotFound
from outrider.core.ledger import TaskFilter
from outrider.core.search import words
from outrider.core.task import State
from outrider.runtime.around import Around

if TYPE_CHECKING:
    from outrider.runtime.handles import TaskHandle
    from outrider.runtime.records import MessageRecord, TaskRecord


async def tasks(arguments: Namespace, screen: Screen) -> int:
    """List tasks, newest first."""
    if arguments.limit < 1:
        raise UsageError("--limit is a whole number of 1 or more")
    wanted = TaskFilter(
        session_id=arguments.session,
        root_session_id=arguments.root,
        parent_task_id=arguments.parent,
        organization_id=arguments.organization,
        states=states_of(arguments.state),
        kind=arguments.kind,
        labels=pairs(arguments.label, "label"),
        created_after=arguments.created_after,
        created_before=arguments.created_before,
        text=arguments.text,
        after=arguments.after,
        limit=arguments.limit + 1,
        newest_first=not arguments.oldest_first,
    )
    if wanted.text is not None and not words(wanted.text):
        raise UsageError(f"--text {wanted.text!r} has no word in it that could be searched for")
    if server_of(arguments) is not None:
        async with open_runtime(arguments) as runtime:
            return _list(await runtime.tasks.list(wanted), arguments, screen)
    async with open_store(arguments) as ledger:  # not the façade: its records take longer to import than the list does
        found = list(await ledger.views.list_tasks(wanted))
        around = await Around.look(ledger)
    if screen.as_json:
        from outrider.runtime.fields import task_fields

        for task in found[: arguments.limit]:
            fields = task_fields(task, heartbeat_at=around.beat(task), around=around)
            screen.data({**fields, "checkpoint": None})
        return OK
    _tell_list([Glance.of(task, around) for task in found], arguments, screen)
    return OK


def _list(found: Sequence[TaskRecord], arguments: Namespace, screen: Screen) -> int:
    if screen.as_json:
        for task in found[: arguments.limit]:
            screen.record(task)
    else:
        _tell_list([Glance.of(task) for task in found], arguments, screen)
    return OK


def _tell_list(glances: Sequence[Glance], arguments: Namespace, screen: Screen) -> None:
    if glances:
        _table(glances[: arguments.limit], screen)
    else:
        screen.hint(f"no tasks in {place_of(arguments)}")
    if len(glances) > arguments.limit:
        screen.hint(f"there are more; --limit {arguments.limit * 2} shows some")


async def show(arguments: Namespace, screen: Screen) -> int:
    """Show all about one task: the record, its attempts, journal, questions, messages and result."""
    async with open_runtime(arguments) as runtime:
        task = await runtime.task((await runtime.tasks.find(arguments.task)).id)
        record = await task.record()
        beside = {
            "result": await result_of(task, record),
            "attempts": [each.model_dump(mode="json") for each in await task.attempts()],
            "steps": [each.model_dump(mode="json") for each in await task.steps()],
            "requests": [each.model_dump(mode="json") for each in await task.requests()],
            "messages": [each.model_dump(mode="json") for each in await task.messages()],
            "accounts": [each.model_dump(mode="json") for each in (await task.spent()).accounts],
        }
    if screen.as_json:
        screen.record(record, **beside)
    else:
        for line in _described(record, beside):
            screen.line(line)
    return OK


async def messages(arguments: Namespace, screen: Screen) -> int:
    """List the messages of a task, both ways."""
    async with open_runtime(arguments) as runtime:
        found = await runtime.tasks.messages((await runtime.tasks.find(arguments.task)).id)
    for message in found:
        if screen.as_json:
            screen.record(message)
        else:
            _print_message(message, screen)
    if not found:
        screen.hint("no messages")
    return OK


async def result_of(task: TaskHandle, record: TaskRecord) -> Any:
    """The result of a task that has succeeded, as JSON; None for any other."""
    if record.state is not State.SUCCEEDED or record.result_path is None:
        return None
    return await task.result()


def print_result(screen: Screen, result: Any, seen: str = "") -> None:
    """A result on stdout: text as it is, else JSON. Not twice on a terminal that has `seen` it stream by."""
    if result is None:
        return
    if isinstance(result, str):
        if screen.is_terminal and screen.is_talking and result.strip() and is_seen(result, seen):
            return
        screen.text(result if result.endswith("\n") else f"{result}\n")
    else:
        screen.text(json_text(result, indent=screen.is_terminal) + "\n")


def is_seen(result: Any, seen: str) -> bool:
    """Whether a result is the text that was seen last."""
    return isinstance(result, str) and seen.rstrip().endswith(result.strip())


def states_of(given: Sequence[str]) -> tuple[State, ...] | None:
    """The states that were named, None for any. Raises UsageError."""
    names = [name.strip() for each in given for name in each.split(",") if name.strip()]
    for name in names:
        if name not in STATES:
            raise UsageError(f"{name!r} is no state; the states are {', '.join(STATES)}")
    return tuple(State(name) for name in names) or None


def _table(glances: Sequence[Glance], screen: Screen) -> None:
    if not screen.is_terminal:
        rows = [("ID", "STATE", "KIND", "AGE", "NAME", "NEWS")]
        rows += [(each.id, each.standing, each.kind, age_text(each.took), each.name, each.news) for each in glances]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            screen.line("  ".join([*cells, row[5]]).rstrip())
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, expand=False)
    for name in ("id", "state", "kind", "age", "name"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    table.add_column("news", overflow="ellipsis")  # only the news gives way where there is little room
    for each in glances:
        table.add_row(
            Text(each.short_id, "bold"),
            Text(each.standing, STYLES[each.state]),
            Text(each.kind, "dim"),
            Text(age_text(each.took)),
            Text(each.name),
            Text(each.news, no_wrap=True, overflow="ellipsis"),
        )
    screen.console().print(table)


def _described(record: TaskRecord, beside: dict[str, Any]) -> list[str]:
    """A task in words: what is set, by name, then what surrounds it."""
    lines = [f"{record.id}  {on_one_line(record.display_name)}"]
    if record.retry_of is not None:
        lines.append(f"  a new task, made from {record.retry_of}, which stays as it ended")
    plain = record.model_dump(mode="json", exclude={"id", "display_name", "input_request", "input_requests"})
    if record.kind == "process" and not record.spec.get("retry"):
        plain["retry"] = "none: a command that failed is not run again by itself"
    for name, value in plain.items():
        if not _says_nothing(value):
            lines.append(f"  {name:<20} {_compact(value)}")
    if record.state is State.SUCCEEDED:
        result = beside["result"]
        if isinstance(result, str):
            lines += ["result", *(f"  {line}" for line in harmless(result).split("\n"))]
        else:
            lines.append(f"  {'result':<20} {_compact(result)}")
    for each in beside["accounts"]:
        lines.append(f"  {'budget of':<20} {_account(each)}")
    for each in beside["requests"]:
        answer = f": {_compact(each['answer'])} by {on_one_line(each['answered_by'])}" if each["answered_by"] else ""
        lines.append(f"{each['kind']} {each['id']} ({each['status']}{answer})  {on_one_line(each['prompt'])}")
        lines += told(each["details"]).splitlines()[1:]
    for each in beside["attempts"]:
        error = f": {on_one_line(each['error']['message'])}" if each["error"] else ""
        lines.append(
            f"attempt {each['attempt']}  {each['started_at']}  {each['ending'] or 'open'}{error}  {each['worker_id']}"
        )
    for each in beside["steps"]:
        done = "" if each["done"] else "  begun, not done"
        lines.append(f"step {on_one_line(each['position'])}  {each['verb']}  attempt {each['attempt']}{done}")
    for each in beside["messages"]:
        text = " ".join(_part(part) for part in each["parts"])
        lines.append(f"message {each['id']}  {each['direction']}  {on_one_line(text)}")
    return lines


async def usage(arguments: Namespace, screen: Screen) -> int:
    """Show what a task, a session or a whole tree has used, and what is spent of the budgets that bound it."""
    async with open_runtime(arguments) as runtime:
        try:
            spent = await runtime.tasks.spent((await runtime.tasks.find(arguments.target)).id)
        except NotFound:
            spent = await runtime.sessions.usage(arguments.target, tree=arguments.tree)
    if screen.as_json:
        screen.record(spent)
        return OK
    cost = "" if spent.cost is None else f", ${spent.cost:g}"
    cached = f" ({spent.cached_tokens:,} cached)" if spent.cached_tokens else ""
    screen.line(
        f"{spent.requests:,} requests, {spent.input_tokens:,} tokens in{cached}, {spent.output_tokens:,} out{cost}"
    )
    for account in spent.accounts:
        screen.line(on_one_line(_account(account.model_dump(mode="json"))))
    return OK


def _account(account: dict[str, Any]) -> str:
    """A budget in a line: of each bound how much is spent, what calls under way hold, and what nobody knows of."""
    parts = []
    for name, bound in account["budget"].items():
        if name not in account["spent"]:  # the wall time, and the soft mark, are spent by the clock
            parts.append(f"{name} {bound:g}")
            continue
        held, unknown = account["reserved"][name], account["unknown"][name]
        beside = [f"{held:g} reserved"] if held else []
        beside += [f"{unknown:g} unknown"] if unknown else []
        told = f" ({', '.join(beside)})" if beside else ""
        parts.append(f"{name} {account['spent'][name]:g} of {bound:g}{told}")
    return f"{account['name']}  {', '.join(parts)}"


def _says_nothing(value: Any) -> bool:
    return value in (None, [], {}, "", 0) or (isinstance(value, dict) and all(map(_says_nothing, value.values())))


def _print_message(message: MessageRecord, screen: Screen) -> None:
    arrow = "→" if message.direction == "inbound" else "←"
    sender = f" {on_one_line(message.sender)}" if message.sender else ""
    screen.line(f"{message.created_at:%Y-%m-%d %H:%M:%S} {arrow} {short(message.task_id)}{sender}  {message.id}")
    for part in message.parts:
        screen.text("".join(f"  {line}\n" for line in _part(part).split("\n")))


def _part(part: Any) -> str:
    return str(part["text"]) if part.get("type") == "text" else _compact(part)


def _compact(value: Any) -> str:
    return on_one_line(value) if isinstance(value, str) else json_text(value)
