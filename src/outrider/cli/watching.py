"""Following from another process: `output` and `watch`.

On a terminal `watch` is a live tree of tasks. Elsewhere it is the log, an event a line, which is exact: every event
once, in its order within a session. The tree shows what is; it may pass over what lasted
only a moment.
"""

from __future__ import annotations

import asyncio
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Collection, Sequence
from typing import TYPE_CHECKING

from outrider.cli.database import open_runtime
from outrider.cli.exits import OK
from outrider.cli.glance import STYLES, Glance, age_text, progress_text, short
from outrider.cli.terminal import Screen, on_one_line
from outrider.core.errors import NotFound
from outrider.core.ledger import TaskFilter
from outrider.core.task import LIVE_STATES, Progress, Task

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.tree import Tree

    from outrider.runtime.facade import Runtime
    from outrider.runtime.records import EventRecord, OutputRecord
    from outrider.runtime.stream import EventReader

SESSIONS = 500
"""How many sessions, the newest, are looked at for news."""
SHOWN = 200
"""How many tasks the tree shows."""
FRAME = 0.04
"""The shortest time between two looks for the tree, in seconds."""


async def output(arguments: Namespace, screen: Screen) -> int:
    """Print what a task has printed, and with `--follow` what it goes on to print."""
    async with open_runtime(arguments) as runtime:
        task = await runtime.tasks.find(arguments.task)
        start = max(0, arguments.start)
        async for piece in runtime.tasks.output(task.id, start=start, follow=arguments.follow):
            _print_piece(piece, start, screen)
    return OK


async def watch(arguments: Namespace, screen: Screen) -> int:
    """Watch everything, a session, or a task until it has ended."""
    async with open_runtime(arguments, create=True) as runtime:
        target = await _target(runtime, arguments.target)
        if screen.is_terminal and not screen.as_json:
            await _show_tree(runtime, target, screen)
            return OK
        if isinstance(target, Task):
            async for event in runtime.tasks.events(target.id, after=arguments.after or 0):
                _print_event(event, screen)
        else:
            async for event in _Feed(runtime, target, arguments.after).events():
                _print_event(event, screen)
    return OK


def _print_piece(piece: OutputRecord, start: int, screen: Screen) -> None:
    if screen.as_json:
        screen.record(piece)
    elif piece.lost:
        screen.note(f"[{piece.lost} bytes before this were cut]")
    elif piece.offset < start:  # pieces come whole; the first may begin before what was asked for
        screen.text(piece.text.encode()[start - piece.offset :].decode(errors="replace"))
    else:
        screen.text(piece.text)


async def _target(runtime: Runtime, name: str | None) -> Task | str | None:
    """The task or the id of the session that was named; None for everything."""
    if name is None:
        return None
    try:
        return (await runtime.sessions.get(name)).id
    except NotFound:
        return await runtime.tasks.find(name)


# --- the log ---------------------------------------------------------------------------------------------


class _Feed:
    """The events of one session and those below it, from the start; or of all sessions, from now on."""

    def __init__(self, runtime: Runtime, session_id: str | None, after: int | None) -> None:
        self._runtime = runtime
        self._session_id = session_id
        self._after = after or 0
        self._readers: dict[str, EventReader] = {}
        self._from_now = session_id is None

    async def events(self) -> AsyncIterator[EventRecord]:
        """Yield events for ever, as they come."""
        with self._runtime.services.signals.listen([self._session_id or ""]) as bell:
            while True:
                found = await self._read()
                for event in found:
                    yield event
                if not found:
                    await bell.wait()

    async def _read(self) -> list[EventRecord]:
        from outrider.runtime.stream import EventReader

        found: list[EventRecord] = []
        for session in await self._sessions():
            reader = self._readers.get(session[0])
            if reader is None:
                begin = self._after if session[0] == self._session_id else session[1] if self._from_now else 0
                reader = EventReader(self._runtime.services, session[0], after=begin)
                self._readers[session[0]] = reader
            if session[1] > reader.after:
                found += await reader.read()
        self._from_now = False
        return sorted(found, key=lambda event: event.at)

    async def _sessions(self) -> list[tuple[str, int]]:
        """Ids and last numbers of the sessions that are watched."""
        newest = await self._runtime.sessions.list(limit=SESSIONS)
        if self._session_id is None:
            return [(each.id, each.last_seq) for each in newest]
        own = await (await self._runtime.sessions.get(self._session_id)).record()
        below = [each for each in newest if each.root_session_id == own.id and each.id != own.id]
        return [(each.id, each.last_seq) for each in (own, *below)]


def _print_event(event: EventRecord, screen: Screen) -> None:
    if screen.as_json:
        screen.record(event)
    else:
        screen.line(_event_line(event))


def _event_line(event: EventRecord) -> str:
    name = short(event.task_id) if event.task_id else on_one_line(event.session_id)
    said = f"{event.at.astimezone():%H:%M:%S.%f}"[:-3] + f"  {name}  {event.type.removeprefix('task.')}"
    return "  ".join([said, *map(on_one_line, filter(None, _told(event)))])


def _told(event: EventRecord) -> Sequence[str]:
    task, data = event.task, event.data
    if task is not None:
        error = f"{task.error.kind}: {task.error.message}" if task.error else ""
        asks = f"asks: {task.input_request.prompt}" if task.input_request else ""
        phase = f" ({task.phase})" if task.phase and task.phase not in ("ready", "executing") else ""
        return [task.display_name, f"{task.state}{phase}", error or asks or task.summary or ""]
    if event.type == "task.progress":
        progress = data.get("progress")
        told = progress_text(_progress(progress)) if isinstance(progress, dict) else ""
        return [told, str(data.get("state_detail") or "")]
    if event.type == "task.output":
        return [f"{data.get('stream') or 'several'}  {data.get('from')}-{data.get('to')}"]
    return [_brief(data)]


def _progress(data: dict[str, object]) -> Progress:
    known = {name: data[name] for name in ("current", "total", "unit", "label") if name in data}
    return Progress(**known)  # type: ignore[arg-type]  # it is what a Progress was written as


def _brief(data: object) -> str:
    import orjson

    text = orjson.dumps(data, str).decode()
    return text if len(text) <= 200 else f"{text[:200]}…"


# --- the tree --------------------------------------------------------------------------------------------


async def _show_tree(runtime: Runtime, target: Task | str | None, screen: Screen) -> None:
    from rich.live import Live

    began = time.time_ns() // 1000
    views, clock = runtime.services.views, runtime.services.clock
    with (
        runtime.services.signals.listen([""]) as bell,
        Live(console=screen.console(), auto_refresh=False, vertical_overflow="crop") as live,
    ):
        while True:
            tasks = await _shown(runtime, target, began)
            served = {route for worker in await views.workers() for route in worker.card.routes}
            live.update(_tree(tasks, served), refresh=True)
            if isinstance(target, Task) and tasks and all(task.is_terminal for task in tasks):
                return
            await asyncio.sleep(FRAME)
            # Ages move without news, so look at the clock once a second.
            await bell.wait(clock.now() + 1_000_000)


async def _shown(runtime: Runtime, target: Task | str | None, began: int) -> list[Task]:
    """The tasks to show, oldest first. Of everything: those alive, and those that ended since `began`."""
    views = runtime.services.views
    if isinstance(target, Task):
        tasks: list[Task] = []
        level = [target.id]
        while level and len(tasks) < SHOWN:
            found = await views.tasks(level)
            tasks += found
            level = [child.id for each in found for child in await views.children(each.id)]
            level += [
                task.id
                for each in found
                if each.live.links.child_session_id
                for task in await views.list_tasks(TaskFilter(session_id=each.live.links.child_session_id, limit=SHOWN))
                if task.id not in level
            ]
    elif target is not None:
        tasks = list(await views.list_tasks(TaskFilter(root_session_id=target, limit=SHOWN)))
        if not tasks:
            tasks = list(await views.list_tasks(TaskFilter(session_id=target, limit=SHOWN)))
    else:
        alive = await views.list_tasks(TaskFilter(states=tuple(LIVE_STATES), limit=SHOWN))
        newest = await views.list_tasks(TaskFilter(limit=SHOWN))
        ended = [task for task in newest if (task.core.finished_at or 0) >= began]
        tasks = [*alive, *(task for task in ended if task.is_terminal)][:SHOWN]
    return sorted({task.id: task for task in tasks}.values(), key=lambda task: task.id)


def _tree(tasks: Sequence[Task], served: Collection[str]) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(_summary(tasks), "dim"), guide_style="dim")
    branches: dict[str, Tree] = {}
    of_session = {task.live.links.child_session_id: task.id for task in tasks if task.live.links.child_session_id}
    for task in tasks:
        parent = task.input.parent_task_id or of_session.get(task.session_id) or ""
        branches[task.id] = branches.get(parent, tree).add(_branch(Glance.of(task, served)))
    return tree


def _summary(tasks: Sequence[Task]) -> str:
    if not tasks:
        return "nothing runs; Ctrl-C leaves"
    alive = sum(not task.is_terminal for task in tasks)
    asking = sum(bool(task.core.requests) for task in tasks)
    return f"{alive} alive of {len(tasks)} shown" + (f", {asking} asking" if asking else "")


def _branch(glance: Glance) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    cells: list[RenderableType] = [
        Text(glance.short_id, "dim"),
        Text(glance.name, "bold"),
        Text(glance.standing, STYLES[glance.state]),
    ]
    progress = None if glance.state.is_terminal else glance.progress
    if progress is not None and progress.total:
        cells.append(ProgressBar(total=progress.total, completed=min(progress.current, progress.total), width=20))
    if glance.news:
        cells.append(Text(glance.news))
    cells.append(Text(age_text(glance.took), "dim"))
    row = Table.grid(padding=(0, 1))
    for _ in cells:
        row.add_column(no_wrap=True, overflow="ellipsis")
    row.add_row(*cells)
    return row
