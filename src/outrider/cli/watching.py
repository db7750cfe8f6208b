"""Following from another process: `output` and `watch`.

On a terminal `watch` is a live tree of tasks. Elsewhere it is the log, an event a line, which is exact: every event
once, in its order within a session. The tree shows what is; it may pass over what lasted
only a moment.
"""

from __future__ import annotations

import asyncio
import time
from argparse import Namespace
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from outrider.cli.database import Opened, is_here, open_runtime
from outrider.cli.exits import OK, UsageError
from outrider.cli.glance import STYLES, Glance, age_text, progress_text, short
from outrider.cli.sessions import target_of
from outrider.cli.terminal import Screen, on_one_line
from outrider.core.errors import NotFound
from outrider.core.ledger import News, TaskFilter, Views
from outrider.core.task import LIVE_STATES, Progress, Task
from outrider.core.values import Instant
from outrider.core.wording import counted
from outrider.runtime.around import Around
from outrider.runtime.records import TaskRecord
from outrider.runtime.trees import tasks_below

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.tree import Tree

    from outrider.core.session import Session
    from outrider.runtime.facade import Runtime
    from outrider.runtime.records import EventRecord, OutputRecord
    from outrider.runtime.stream import EventReader

PAGE = 500
"""How many sessions are read at a time, when all are gone through."""
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
    if arguments.after is not None and arguments.target is None:
        raise UsageError("--after is a number of one log; name a session or a task")
    async with open_runtime(arguments, create=True) as runtime:
        target = None if arguments.target is None else await target_of(runtime, arguments.target)
        if screen.is_terminal and not screen.as_json:
            if is_here(runtime):
                await _show_tree(runtime, target, screen)
            else:
                await _show_tree_of_server(runtime, target, screen)
            return OK
        async for event in _events(runtime, target, arguments.after or 0):
            _print_event(event, screen)
    return OK


def _events(runtime: Opened, target: Task | TaskRecord | str | None, after: int) -> AsyncIterator[EventRecord]:
    """The events of a task to its end; of a session and those below it; or of everything, from now on."""
    if target is None:
        return _all_events(runtime)
    if not isinstance(target, str):
        return runtime.tasks.events(target.id, after=after)
    return _Feed(runtime, target, after).events() if is_here(runtime) else _below(runtime, target, after)


async def _all_events(runtime: Opened) -> AsyncGenerator[EventRecord]:
    async for _, event in runtime.events():
        yield event


async def _below(runtime: Opened, session_id: str, after: int) -> AsyncGenerator[EventRecord]:
    """The events of a session, and from its beginning on those of each session that a task of it opens or has opened.

    Raises what any of them is cut off with; a session below that is deleted just ends.
    """
    told: asyncio.Queue[EventRecord | Exception] = asyncio.Queue(maxsize=PAGE)
    jobs: dict[str, asyncio.Task[None]] = {}

    async def follow(followed: str, start: int) -> None:
        try:
            async for event in runtime.sessions.events(followed, after=start):
                await told.put(event)
        except Exception as error:  # noqa: BLE001 - who waits for the events raises it
            if followed == session_id or not isinstance(error, NotFound):
                await told.put(error)

    def begin(followed: str, start: int) -> None:
        if followed not in jobs:
            jobs[followed] = asyncio.create_task(follow(followed, start))

    begin(session_id, after)
    try:
        if after:  # what was opened before that is not told of again
            page = await runtime.tasks.list(session_id=session_id, limit=PAGE)
            while page:
                for task in page:
                    if task.links.child_session_id is not None:
                        begin(task.links.child_session_id, 0)
                page = await runtime.tasks.list(session_id=session_id, limit=PAGE, after=page[-1].id)
        while True:
            event = await told.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if event.task is not None and event.task.links.child_session_id is not None:
                begin(event.task.links.child_session_id, 0)
    finally:
        for job in jobs.values():
            job.cancel()
        await asyncio.gather(*jobs.values(), return_exceptions=True)


def _print_piece(piece: OutputRecord, start: int, screen: Screen) -> None:
    if screen.as_json:
        screen.record(piece)
    elif piece.lost:
        screen.note(f"[{counted(piece.lost, 'byte')} cut before this]")
    elif piece.offset < start:  # pieces come whole; the first may begin before what was asked for
        screen.text(piece.text.encode()[start - piece.offset :].decode(errors="replace"))
    else:
        screen.text(piece.text)


# --- the log ---------------------------------------------------------------------------------------------


class _Feed:
    """The events of one session and those below it, from the start."""

    def __init__(self, runtime: Runtime, session_id: str, after: int) -> None:
        self._services = runtime.services
        self._session_id = session_id
        self._after = after
        self._readers: dict[str, EventReader] = {}
        self._others: set[str] = set()

    async def events(self) -> AsyncGenerator[EventRecord]:
        """Yield events for ever, as they come."""
        views = self._services.views
        with self._services.signals.listen([self._session_id]) as bell:
            position = await views.position()
            behind = await self._present()
            while True:
                for event in await self._read(behind):
                    yield event
                if behind:
                    continue
                news = await views.news(after=position)
                if news:
                    position = news[-1].position
                    behind = await self._concerned(news)
                else:
                    await bell.wait()

    async def _read(self, behind: dict[str, int]) -> list[EventRecord]:
        """A page of each session that is behind the number given; who has come up to it is taken out."""
        found: list[EventRecord] = []
        for session_id, seq in list(behind.items()):
            reader = self._readers[session_id]
            events = await reader.read()
            found += events
            if not events or reader.after >= seq:
                del behind[session_id]
        return sorted(found, key=lambda event: event.at)

    async def _present(self) -> dict[str, int]:
        """The sessions to read from their start, and their last numbers. The one time that all sessions are gone
        through; a session comes after the one above it.
        """
        views = self._services.views
        own = await views.session(self._session_id)
        if own is None:
            raise NotFound.of("session", self._session_id)
        tree: list[Session] = []
        page = await views.sessions(limit=PAGE)
        while page:
            tree += [each for each in page if each.root_session_id == own.root_session_id and each.id != own.id]
            page = await views.sessions(after=page[-1].id, limit=PAGE)
        self._begin(own.id, self._after)
        watched = [own]
        for each in sorted(tree, key=lambda each: (each.created_at, each.id)):
            if each.parent_session_id in self._readers:
                self._begin(each.id, 0)
                watched.append(each)
        return {each.id: each.last_seq for each in watched}

    async def _concerned(self, news: Sequence[News]) -> dict[str, int]:
        """The sessions of these entries that are watched, and the last number of each."""
        behind: dict[str, int] = {}
        for each in news:
            if each.session_id not in self._readers and each.session_id not in self._others:
                await self._meet(each)
            reader = self._readers.get(each.session_id)
            if reader is not None and each.seq > reader.after:
                behind[each.session_id] = each.seq
        return behind

    async def _meet(self, news: News) -> None:
        """Watch a session that is new here, or know from now on that it is not watched."""
        session = await self._services.views.session(news.session_id)
        if session is not None and session.parent_session_id in self._readers:
            self._begin(session.id, 0)
        else:
            self._others.add(news.session_id)

    def _begin(self, session_id: str, after: int) -> None:
        from outrider.runtime.stream import EventReader

        self._readers[session_id] = EventReader(self._services, session_id, after=after)


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


async def _show_tree_of_server(runtime: Opened, target: Task | TaskRecord | str | None, screen: Screen) -> None:
    """The same of a server: looked at whenever it tells of something, and once a second, since ages move."""
    from rich.live import Live

    began = datetime.now(UTC)
    seen: dict[str, TaskRecord] = {}
    rings = asyncio.Event()

    async def listen() -> None:
        async for _ in runtime.events():
            rings.set()

    listening = asyncio.create_task(listen())
    try:
        with Live(console=screen.console(), auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                rings.clear()
                if target is None:
                    alive = await runtime.tasks.list(states=LIVE_STATES, limit=SHOWN)
                    gone = [id for id in seen if id not in {each.id for each in alive} and not seen[id].is_terminal]
                    seen |= {each.id: each for each in [*alive, *[await _ended(runtime, id) for id in gone]] if each}
                    shown = [each for each in seen.values() if (each.finished_at or began) >= began]
                    tasks = sorted(shown, key=lambda each: each.id)[-SHOWN:]
                elif isinstance(target, str):
                    tasks = await runtime.sessions.tree(target)
                else:
                    tasks = await runtime.tasks.tree(target.id)
                live.update(tree_of(tasks), refresh=True)
                if target is not None and not isinstance(target, str) and all(each.is_terminal for each in tasks):
                    return
                await asyncio.sleep(FRAME)
                with suppress(TimeoutError):
                    await asyncio.wait_for(rings.wait(), 1.0)
                if listening.done():
                    listening.result()
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def _ended(runtime: Opened, task_id: str) -> TaskRecord | None:
    with suppress(NotFound):
        return await runtime.tasks.record(task_id)
    return None


async def _show_tree(runtime: Runtime, target: Task | TaskRecord | str | None, screen: Screen) -> None:
    from rich.live import Live

    began = time.time_ns() // 1000
    views, clock = runtime.services.views, runtime.services.clock
    everything = _Everything(views, began)
    with (
        runtime.services.signals.listen([""]) as bell,
        Live(console=screen.console(), auto_refresh=False, vertical_overflow="crop") as live,
    ):
        while True:
            assert not isinstance(target, TaskRecord)  # which only a server answers with
            tasks = await (everything.look() if target is None else tasks_below(views, target))
            around = await Around.look(runtime.ledger)
            live.update(tree_of([TaskRecord.of(each, around=around) for each in tasks]), refresh=True)
            if isinstance(target, Task) and tasks and all(task.is_terminal for task in tasks):
                return
            await asyncio.sleep(FRAME)
            # Ages move without news, so look at the clock once a second.
            await bell.wait(clock.now() + 1_000_000)


class _Everything:
    """The tasks that are alive, and those that ended since `began`. They are listed once; then news tells of more."""

    def __init__(self, views: Views, began: Instant) -> None:
        self._views = views
        self._began = began
        self._position: int | None = None
        self._known: set[str] = set()
        self._is_cut = True
        """Whether tasks may be alive that are not known, because no more would be shown."""

    async def look(self) -> list[Task]:
        """The tasks to show, oldest first."""
        ids = self._known | await self._concerned()
        tasks = {task.id: task for task in await self._views.tasks(list(ids))}
        if self._is_cut and sum(not task.is_terminal for task in tasks.values()) < SHOWN:
            alive = await self._views.list_tasks(TaskFilter(states=tuple(LIVE_STATES), limit=SHOWN))
            tasks |= {task.id: task for task in alive}
            self._is_cut = len(alive) == SHOWN
        wanted = [task for task in tasks.values() if (task.core.finished_at or self._began) >= self._began]
        wanted.sort(key=lambda task: (not task.is_terminal, task.id), reverse=True)
        self._is_cut = self._is_cut or any(not task.is_terminal for task in wanted[SHOWN:])
        shown = wanted[:SHOWN]
        self._known = {task.id for task in shown}
        return sorted(shown, key=lambda task: task.id)

    async def _concerned(self) -> set[str]:
        """The tasks that something was logged of since the last look."""
        found: set[str] = set()
        if self._position is None:
            self._position = await self._views.position()
        while news := await self._views.news(after=self._position):
            self._position = news[-1].position
            found.update(each.task_id for each in news if each.task_id is not None)
        return found


def tree_of(tasks: Sequence[TaskRecord]) -> Tree:
    """Tasks as a tree: children below their parents, and below the turn that started them, oldest first."""
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(_summary(tasks), "dim"), guide_style="dim")
    branches: dict[str, Tree] = {}
    of_session = {task.links.child_session_id: task.id for task in tasks if task.links.child_session_id}
    for task in tasks:
        turn = task.origin.get("task_id")
        parent = task.parent_task_id or of_session.get(task.session_id) or (turn if turn in branches else "")
        branches[task.id] = branches.get(parent, tree).add(_branch(Glance.of(task)))
    return tree


def _summary(tasks: Sequence[TaskRecord]) -> str:
    if not tasks:
        return "nothing runs; Ctrl-C leaves"
    alive = sum(not task.is_terminal for task in tasks)
    asking = sum(bool(task.input_requests) for task in tasks)
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
    news = Text(glance.news, no_wrap=True, overflow="ellipsis")
    if glance.news:
        cells.append(news)
    cells.append(Text(age_text(glance.took), "dim"))
    row = Table.grid(padding=(0, 1))
    for cell in cells:
        row.add_column(no_wrap=cell is not news, overflow="ellipsis")  # so that only the news gives way
    row.add_row(*cells)
    return row
