"""`chat`: talking with a session's agent.

What is said is put into the session's inbox and the turn is taken by whoever serves the agent, this process among them
unless it talks with a server; what comes of it is read off the session's log. So one can leave at any moment, and come
back from anywhere.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from argparse import Namespace
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from outrider.bootstrap import Outrider
from outrider.cli.apps import load_apps, names_of
from outrider.cli.arguments import IDLE_EXIT
from outrider.cli.asking import give
from outrider.cli.conversing import Conversation
from outrider.cli.database import Opened, client_of, is_here, server_of, url_of
from outrider.cli.exits import HUNG_UP, INTERRUPTED, OK, UsageError, code_of, code_of_state
from outrider.cli.glance import Glance, short
from outrider.cli.staging import Typed, stage_for
from outrider.cli.starting import DRAIN, user_name
from outrider.cli.steering import missing_worker
from outrider.cli.terminal import Screen, on_one_line
from outrider.cli.workers import ensure_worker
from outrider.core.errors import (
    IllegalMove,
    InvalidArguments,
    NotFound,
    OutriderError,
    RequestClosed,
    StoreError,
    UnknownName,
)
from outrider.core.ledger import TaskFilter
from outrider.core.task import LIVE_STATES, TURN
from outrider.core.wording import counted
from outrider.runtime.lease import locks_of
from outrider.runtime.turns import Steering

if TYPE_CHECKING:
    from outrider.client import Client
    from outrider.runtime.handles import SessionHandle

MOST_LEFT = 1000
"""How many tasks that go on are looked for as the chat is left: each kind of them needs a worker."""
LISTED = 20
"""How many tasks `/tasks` lists."""

HELP = """what you type is said to the agent; while it takes its turn, it hears it at its next step
/after TEXT        have it hear this in the turn after this one
/interrupt [TEXT]  end its turn (as Ctrl-C does), and say this
/answer TEXT       answer the oldest question, also one that was left for later
/skip              leave a question for later
/tasks             list the session's tasks
/cancel [TASK]     cancel a task
/quit              leave (as Ctrl-D does); tasks go on
//TEXT             say something that begins with a slash"""


async def chat(arguments: Namespace, screen: Screen) -> int:
    """Talk with an agent."""
    names = names_of(arguments.app)
    app = load_apps(names)
    if (server := server_of(arguments)) is not None:
        async with client_of(server, arguments) as client:
            return await _chat_there(client, app, arguments, screen)
    app.settings = replace(app.settings, drain_timeout=min(DRAIN, app.settings.drain_timeout))
    url = url_of(arguments)
    async with app.open(url) as runtime:
        session = await _session(runtime, app, arguments)
        is_kept = locks_of(runtime.ledger) is not None
        code = await _Chat(runtime, session, screen).run()
        left = await runtime.services.views.list_tasks(await _left(session))
        routes = sorted({task.input.route for task in left} & set(app.registry.routes()))
        if is_kept:
            _tell_how_to_return(screen, session, len(left))
    if routes and is_kept:  # what this process did, somebody else has to
        async with app.open(url, worker=False) as runtime:
            for route in routes:
                log = await ensure_worker(runtime, route, names, IDLE_EXIT)
                if log is not None:
                    screen.hint(f"started a worker, which writes to {log}")
    return code


async def _chat_there(client: Client, app: Outrider, arguments: Namespace, screen: Screen) -> int:
    """Talk with an agent of a server, whose workers take its turns."""
    session = await _session(client, app, arguments)
    code = await _Chat(client, session, screen).run()
    _tell_how_to_return(screen, session, len(await client.tasks.list(await _left(session))))
    return code


def _tell_how_to_return(screen: Screen, session: SessionHandle, left: int) -> None:
    going = f"{counted(left, 'task')} {'goes' if left == 1 else 'go'} on; " if left else ""
    screen.note(f"{going}come back with: outrider chat {shlex.quote(on_one_line(session.id))}")


async def _session(runtime: Opened, app: Outrider, arguments: Namespace) -> SessionHandle:
    """The session that was named, or a new one. Raises NotFound, IllegalMove, InvalidArguments or UnknownName."""
    agents, agent = sorted(app.registry.agents), arguments.agent
    if arguments.session is not None:
        try:
            session = await runtime.sessions.get(arguments.session)
        except NotFound:
            if agent is None:
                raise
        else:
            record = await session.record()
            if record.agent is None or record.parent_task_id is not None:
                raise IllegalMove(f"{session.id} has no agent that could take a turn; name another, or leave it out")
            if agent not in (None, record.agent):
                raise InvalidArguments(f"{session.id} is a session of {record.agent}, not of {agent}")
            return session
    if agent is None and len(agents) != 1:
        which = f"the app has {', '.join(agents)}" if agents else "name the app that has it: --app MODULE:APP"
        raise UsageError(f"which agent? --agent NAME; {which}")
    if is_here(runtime) and agent is not None and agents and agent not in agents:  # a server may have others
        raise UnknownName.of("agent", agent, agents)
    return await runtime.sessions.create(id=arguments.session, agent=agent or agents[0])


async def _left(session: SessionHandle) -> TaskFilter:
    """What finds the tasks that live in a session and below it."""
    root = (await session.record()).root_session_id
    return TaskFilter(root_session_id=root, states=tuple(LIVE_STATES), limit=MOST_LEFT)


class _Chat:
    """One person, or a pipe, and one session."""

    def __init__(self, runtime: Opened, session: SessionHandle, screen: Screen) -> None:
        self._runtime = runtime
        self._session = session
        self._screen = screen
        self._commands: dict[str, Callable[[str], Awaitable[None]]] = {
            "/after": self._say_after,
            "/answer": self._answer_oldest,
            "/cancel": self._cancel,
            "/help": self._help,
            "/interrupt": self._interrupt_for,
            "/skip": self._skip,
            "/tasks": self._list,
        }
        self._stage = stage_for(screen, self._interrupt, [*self._commands, "/quit"])
        self._conversation = Conversation(runtime, session, self._stage)
        self._interrupted: str | None = None
        self._code = OK
        self._has_hinted = False
        self._jobs: set[asyncio.Task[None]] = set()
        self._left: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def run(self) -> int:
        """Talk until somebody leaves, or the pipe has ended and its last line is answered; return the exit code."""
        with self._stage.taken():
            return await self._run()

    async def _run(self) -> int:
        self._heed_signals()
        record = await self._session.record()
        more = "; /help tells more" if self._stage.is_live else ""
        await self._stage.note(f"{on_one_line(self._session.id)} with {on_one_line(record.agent)}{more}")
        await self._conversation.join()
        following = asyncio.ensure_future(self._conversation.follow())
        talking = asyncio.ensure_future(self._talk())
        running: list[asyncio.Future[Any]] = [following, talking, self._left]
        try:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for job in (following, talking):
                if job.done():
                    job.result()
        finally:
            for job in (following, talking, *self._jobs):
                job.cancel()
            await asyncio.gather(following, talking, *self._jobs, return_exceptions=True)
            if not self._left.done():
                worst = OK if self._stage.is_live else code_of_state(self._conversation.worst)
                self._left.set_result(self._code or worst)
        return self._left.result()

    # --- what is typed -------------------------------------------------------------------------------

    async def _talk(self) -> None:
        async with aclosing(self._stage.lines()) as lines:
            async for typed in lines:
                if typed.text.strip() == "/quit":
                    return
                try:
                    await self._take(typed)
                except StoreError:
                    raise
                except OutriderError as error:
                    if self._stage.is_live:
                        await self._stage.note(error.message)
                    else:
                        self._code = self._code or code_of(error)
                        self._screen.error(error)
        if not self._stage.is_live:
            await self._conversation.quiet()

    async def _take(self, typed: Typed) -> None:
        text = typed.text
        name, _, rest = text.strip().partition(" ")
        if text.startswith("//"):
            text = text[1:]
        elif (command := self._commands.get(name)) is not None:
            return await command(rest.strip())
        elif text.startswith("/"):
            raise InvalidArguments(f"there is no {name}; /help tells what there is, and //TEXT says it to the agent")
        if not text.strip():
            return None
        if typed.question is not None:
            return await self._answer(typed.question.id, text)
        if not self._stage.is_live:  # each line of a pipe is answered before the next is said
            await self._conversation.quiet()
        return await self._say(text)

    async def _say(self, text: str, steering: Steering = "inject") -> None:
        under_way = self._conversation.turn
        turn = await self._session.send(text, steering=steering, sender=user_name())
        self._conversation.expect(turn.id, after=steering != "inject" and turn.id == under_way)
        if not self._has_hinted and not await self._is_taken_here(turn.id):
            self._has_hinted = True
            if (hint := await missing_worker(self._runtime, turn.id)) is not None:
                await self._stage.note(hint)

    async def _is_taken_here(self, turn_id: str) -> bool:
        """Whether the worker in this process takes a turn."""
        if not is_here(self._runtime):
            return False
        return (await self._runtime.tasks.get(turn_id)).input.route in self._runtime.services.registry.routes()

    async def _say_after(self, text: str) -> None:
        await self._say(_given(text, "/after TEXT"), "after")

    async def _interrupt_for(self, text: str) -> None:
        if text:
            await self._say(text, "interrupt")
        elif (turn := self._conversation.turn) is not None:
            await self._runtime.tasks.cancel(turn, by=user_name(), reason="interrupted")

    # --- what is asked -------------------------------------------------------------------------------

    async def _answer(self, request_id: str, text: str) -> None:
        request = self._conversation.request(request_id)
        if request is None:
            raise RequestClosed("that question is no longer open; what you typed was not said to anybody")
        await give(self._runtime, request, text)
        self._conversation.close(request.id)

    async def _answer_oldest(self, text: str) -> None:
        if not self._stage.is_live:
            await self._conversation.asked()
        request = self._conversation.oldest
        if request is None:
            raise InvalidArguments("nothing is asked")
        await self._answer(request.id, _given(text, "/answer TEXT"))

    async def _skip(self, _: str) -> None:
        request = next(iter(self._conversation.questions), None)
        if request is None:
            raise InvalidArguments("nothing is asked")
        self._conversation.skip(request.id)
        await self._stage.note(f"left for later: /answer TEXT, or outrider answer {short(request.task_id)} VALUE")

    # --- tasks ---------------------------------------------------------------------------------------

    async def _list(self, _: str) -> None:
        found = [Glance.of(task) for task in await self._session.tasks(limit=LISTED)]
        lines = [
            "  ".join(filter(None, [each.short_id, each.name, each.standing, each.news]))
            for each in reversed(found)
            if each.kind != TURN
        ]
        await self._stage.note("\n".join(lines) or "no tasks")

    async def _cancel(self, name: str) -> None:
        live = [task for task in await self._session.tasks(states=tuple(LIVE_STATES)) if task.kind != TURN]
        if not name and len(live) != 1:
            raise InvalidArguments("which? /tasks lists them" if live else "there is nothing to cancel")
        task = await self._runtime.tasks.record((await self._runtime.tasks.find(name)).id) if name else live[0]
        if task.root_session_id != (await self._session.record()).root_session_id:
            raise InvalidArguments(f"{short(task.id)} is no task of this session; outrider cancel {short(task.id)}")
        await self._runtime.tasks.cancel(task.id, by=user_name())

    async def _help(self, _: str) -> None:
        await self._stage.note(HELP)

    # --- leaving -------------------------------------------------------------------------------------

    def _interrupt(self) -> None:
        """End the turn that is taken; a second time, or where there is none, leave."""
        turn = self._conversation.turn
        if self._left.done():
            os._exit(INTERRUPTED)
        if turn is None or turn == self._interrupted:
            self._left.set_result(INTERRUPTED)
            return
        self._interrupted = turn
        job = asyncio.ensure_future(self._interrupt_turn())
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def _interrupt_turn(self) -> None:
        try:
            await self._stage.note("interrupting the turn; Ctrl-C again leaves the chat")
            await self._interrupt_for("")
        except OutriderError as error:
            await self._stage.note(error.message)

    def _heed_signals(self) -> None:
        loop = asyncio.get_running_loop()

        def leave(number: int) -> None:
            if number == signal.SIGHUP:
                self._screen.hang_up()
            if not self._left.done():
                self._left.set_result(HUNG_UP if number == signal.SIGHUP else 128 + number)

        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, leave, int(number))


def _given(text: str, usage: str) -> str:
    if not text:
        raise InvalidArguments(f"what? {usage}")
    return text
