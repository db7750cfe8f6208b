"""Where a conversation is shown and typed: a prompt on a terminal, lines of a pipe, or JSON.

Whoever sits at a terminal types while others speak. The prompt stays at the bottom: finished lines go above it, and the
unfinished one is drawn with it, as are the tasks that are under way.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from outrider.cli.asking import Question
from outrider.cli.display import status_line
from outrider.cli.exits import UsageError
from outrider.cli.glance import STYLES, Glance, age_text
from outrider.cli.terminal import Screen, harmless, json_text
from outrider.cli.values import MOST_TEXT
from outrider.core.task import TURN
from outrider.core.wording import counted

if TYPE_CHECKING:
    from prompt_toolkit.formatted_text import ANSI
    from prompt_toolkit.key_binding import KeyBindings

    from outrider.runtime.records import TaskRecord

SHOWN = 5
"""How many tasks are drawn with the prompt."""
TICK = 0.5
"""Seconds between two looks at the clock while something is under way."""


@dataclass(frozen=True, slots=True)
class Typed:
    """What somebody typed, and the question that it answers, if it was one that they could see when they began."""

    text: str
    question: Question | None = None


class Stage(Protocol):
    """Where a conversation takes place. Whatever is shown may hold anything, and is made harmless here."""

    is_live: bool
    """Whether a person is there, who sees what is asked and types the answer."""

    def taken(self) -> AbstractContextManager[None]:
        """Have it for oneself; whoever else writes to the same terminal meanwhile does so in good order."""
        ...

    def lines(self) -> AsyncGenerator[Typed]:
        """Yield what is typed, up to the end of input."""
        ...

    def ask(self, question: Question | None) -> None:
        """What is typed from now on answers this question; None: it is said to the agent."""
        ...

    async def say(self, text: str) -> None:
        """A piece of what the agent says."""
        ...

    async def recall(self, text: str, *, is_users: bool) -> None:
        """What was said earlier, by the user or the agent."""
        ...

    async def answered(self, record: TaskRecord, result: Any, *, seen: bool) -> None:
        """A turn has ended, with a result that was `seen` as it came or not."""
        ...

    async def note(self, text: str) -> None:
        """Something beside what the agent says, on a line of its own."""
        ...

    async def break_off(self, why: str) -> None:
        """What the agent was saying stops in its midst; what it says next begins on a line of its own."""
        ...

    async def show(self, glance: Glance) -> None:
        """A task, or a turn, stands so now."""
        ...


class Pipe:
    """Lines from stdin, answers to stdout, and all else a line each to stderr."""

    is_live = False

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._last: dict[str, str] = {}
        self._mid_line = False

    def taken(self) -> AbstractContextManager[None]:
        """Nothing to be taken."""
        return nullcontext()

    async def lines(self) -> AsyncGenerator[Typed]:
        """Yield each line of stdin. Raises UsageError for what is no UTF-8, or a line without end.

        It is read in a thread that dies with the process: stdin may be a file, a pipe or a terminal, which no event
        loop can all wait for, and nobody can be kept from leaving by what is not typed.
        """
        queue: asyncio.Queue[bytes | UsageError] = asyncio.Queue(1)
        loop = asyncio.get_running_loop()

        def read() -> None:
            try:
                with open(0, "rb", closefd=False) as file:
                    while line := file.readline(MOST_TEXT):
                        asyncio.run_coroutine_threadsafe(queue.put(line), loop).result()
                ended: bytes | UsageError = b""
            except OSError as error:
                ended = UsageError(f"stdin cannot be read: {error.strerror}")
            except (RuntimeError, concurrent.futures.CancelledError):
                return  # the loop is gone, and with it whoever would hear of it
            with suppress(RuntimeError):
                asyncio.run_coroutine_threadsafe(queue.put(ended), loop)

        threading.Thread(target=read, daemon=True, name="outrider-stdin").start()
        while line := await queue.get():
            if isinstance(line, UsageError):
                raise line
            if len(line) >= MOST_TEXT:
                raise UsageError(f"a line of stdin has {counted(MOST_TEXT, 'byte')} or more, and no more can be given")
            try:
                yield Typed(line.decode().rstrip("\r\n"))
            except UnicodeDecodeError:
                raise UsageError("stdin is not UTF-8 text, and only that can be given") from None

    def ask(self, question: Question | None) -> None:
        """Nothing: what is in a pipe was written for something else, and must not approve anything."""

    async def say(self, text: str) -> None:
        """The text as it is."""
        if text:
            self._screen.text(text)
            self._mid_line = not text.endswith("\n")

    async def recall(self, text: str, *, is_users: bool) -> None:
        """Nothing: stdout has what comes now."""

    async def answered(self, record: TaskRecord, result: Any, *, seen: bool) -> None:
        """The result, if it was not seen."""
        await self._end_line()
        if not seen:
            await self.say(f"{result if isinstance(result, str) else json_text(result)}\n")

    async def _end_line(self) -> None:
        if self._mid_line:
            await self.say("\n")

    async def note(self, text: str) -> None:
        """A line on stderr."""
        await self._make_room()
        self._screen.note(text)

    async def _make_room(self) -> None:
        """Where one terminal shows both streams, end the line on the one before there is one on the other."""
        if self._screen.is_terminal and self._screen.is_talking:
            await self._end_line()

    async def break_off(self, why: str) -> None:
        """A line on stderr, and the end of the one on stdout."""
        await self._end_line()
        await self.note(why)

    async def show(self, glance: Glance) -> None:
        """A line on stderr, if it says something new."""
        said = "  ".join(filter(None, [glance.short_id, glance.name, glance.standing, glance.news]))
        if glance.kind != TURN and self._last.get(glance.id) != said:
            self._last[glance.id] = said
            await self._make_room()
            self._screen.stamped(said)


class JsonLines(Pipe):
    """Lines from stdin, and the record of each turn as JSON, with its result, when it has ended."""

    async def say(self, text: str) -> None:
        """Nothing: the record has the result."""

    async def answered(self, record: TaskRecord, result: Any, *, seen: bool) -> None:
        """The record."""
        self._screen.record(record, result=result)


class Terminal:
    """A prompt at the bottom of a terminal. `interrupt` is called at Ctrl-C on a line that is empty, or in a turn."""

    is_live = True

    def __init__(self, screen: Screen, interrupt: Callable[[], None], commands: list[str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.application import get_app_session
        from prompt_toolkit.completion import WordCompleter

        self._screen = screen
        self._console = screen.console(of_errors=True)
        self._interrupt = interrupt
        self._glances: dict[str, tuple[Glance, float]] = {}
        """What is under way, as it stood at that moment of the monotonic clock."""
        self._tail = ""
        self._question: Question | None = None
        self._aim: Question | None = None
        """The question that the line being typed answers: the one that was there when it was begun."""
        with redirect_stdout(screen.err):  # where its output goes is settled when it is asked for first
            output = get_app_session().output
        keys = get_app_session().input
        # While something is printed above the prompt the terminal would edit lines by itself, and what is typed just
        # then would come in another form: Ctrl-U would clear nothing. It needs no other mode to print.
        keys.cooked_mode = nullcontext  # type: ignore[method-assign]  # there is no option for it
        self._prompt: PromptSession[str] = PromptSession(
            input=keys,
            output=output,
            key_bindings=self._keys(),
            completer=WordCompleter(commands, sentence=True),
            complete_while_typing=False,
            reserve_space_for_menu=0,
            erase_when_done=True,
        )
        self._buffer = self._prompt.default_buffer
        self._buffer.on_text_changed += lambda buffer: None if buffer.text else self._take_aim()

    def _keys(self) -> KeyBindings:
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()

        @keys.add("c-c")
        def _(_event: object) -> None:
            if self._buffer.text and not any(each.kind == TURN for each, _ in self._glances.values()):
                self._buffer.reset()
                self._take_aim()
            else:
                self._interrupt()

        return keys

    @contextmanager
    def taken(self) -> Iterator[None]:
        """What tools print that run in this process, and what is logged, goes above the prompt and to stderr."""
        from prompt_toolkit.patch_stdout import patch_stdout

        with patch_stdout():
            yield

    async def lines(self) -> AsyncGenerator[Typed]:
        """Yield each line that is typed, until Ctrl-D."""
        clock = asyncio.ensure_future(self._move_ages())
        try:
            while True:
                text = await self._prompt.prompt_async(self._render, handle_sigint=False, set_exception_handler=False)
                question = self._aim
                self._take_aim()
                if text.strip():
                    await self._above(f"{_label(question)}{harmless(text)}", "bold")
                    yield Typed(text, question)
        except EOFError:
            return
        finally:
            clock.cancel()

    async def _move_ages(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            if self._glances:
                self._redraw()

    def ask(self, question: Question | None) -> None:
        """See `Stage`. A line that was begun before it could be seen is no answer to it."""
        self._question = question
        if not self._buffer.text:
            self._take_aim()
        self._redraw()

    def _take_aim(self) -> None:
        self._aim = self._question

    async def say(self, text: str) -> None:
        """Finished lines go above, the unfinished one is drawn with the prompt."""
        if not self._screen.is_terminal:
            self._screen.text(text)
        *lines, self._tail = (self._tail + harmless(text)).split("\n")
        if lines:
            await self._above("\n".join(lines))
        self._redraw()

    async def recall(self, text: str, *, is_users: bool) -> None:
        """As it was typed, or said."""
        await self._above(f"{'> ' if is_users else ''}{harmless(text)}", "bold dim" if is_users else "dim")

    async def answered(self, record: TaskRecord, result: Any, *, seen: bool) -> None:
        """The result, if it was not seen."""
        await self._end_line()
        if not seen:
            await self.say(f"{result if isinstance(result, str) else json_text(result, indent=True)}\n")

    async def note(self, text: str) -> None:
        """A line above."""
        await self._above(harmless(text), "yellow")

    async def break_off(self, why: str) -> None:
        """The line as far as it came, and a note."""
        await self._end_line()
        await self.note(why)

    async def show(self, glance: Glance) -> None:
        """Live with the prompt; its beginning and its end are told above it."""
        if glance.state.is_terminal:
            self._glances.pop(glance.id, None)
            if glance.kind != TURN:
                news = f"  {glance.news}" if glance.news else ""
                said = f"· {glance.short_id}  {glance.name}  {glance.standing}  {age_text(glance.took)}{news}"
                await self._above(said, STYLES[glance.state])
        else:
            is_new = glance.id not in self._glances
            self._glances[glance.id] = (glance, time.monotonic())
            if is_new and glance.kind != TURN:
                await self._above(f"· {glance.short_id}  {glance.name}", "dim")
        self._redraw()

    async def _end_line(self) -> None:
        if self._tail:
            await self.say("\n")

    async def _above(self, text: str, style: str = "") -> None:
        from prompt_toolkit.application import in_terminal
        from rich.text import Text

        async with in_terminal():
            self._console.print(Text(text, style), soft_wrap=True)

    def _redraw(self) -> None:
        if self._prompt.app.is_running:
            self._prompt.app.invalidate()

    def _render(self) -> ANSI:
        """What is live, and where one types."""
        from prompt_toolkit.formatted_text import ANSI
        from rich.console import Console
        from rich.text import Text

        size = self._prompt.app.output.get_size()
        room = max(3, size.rows - SHOWN - 5) * size.columns
        drawn = Console(
            file=io.StringIO(), force_terminal=True, width=size.columns, markup=False, emoji=False, highlight=False
        )
        with drawn.capture() as capture:
            if self._tail:
                drawn.print(Text(self._tail[-room:]))
            for glance, at in list(self._glances.values())[:SHOWN]:
                drawn.print(status_line(glance, glance.took / 1e6 + time.monotonic() - at))
            if len(self._glances) > SHOWN:
                drawn.print(Text(f"and {len(self._glances) - SHOWN} more: /tasks", "dim"))
        return ANSI(f"{capture.get()}{_label(self._aim)}")


def _label(question: Question | None) -> str:
    return "> " if question is None else "answer> "


def stage_for(screen: Screen, interrupt: Callable[[], None], commands: list[str]) -> Stage:
    """The stage that suits the screen. On a terminal that can only print, what is live would be strewn about."""
    if screen.as_json:
        return JsonLines(screen)
    if screen.can_ask:
        from prompt_toolkit.utils import is_dumb_terminal

        if not is_dumb_terminal():
            return Terminal(screen, interrupt, commands)
    return Pipe(screen)
