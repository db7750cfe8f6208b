"""Asking the person at the terminal what a task asks, by the question's schema."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from outrider.cli.glance import age_text
from outrider.cli.terminal import Screen, harmless, told
from outrider.cli.values import ALWAYS, answer_of, value_of
from outrider.core.errors import Conflict, NotFound, OutriderError
from outrider.core.task import InputRequest
from outrider.core.values import Span

if TYPE_CHECKING:
    from outrider.cli.database import Opened
    from outrider.cli.display import Display
    from outrider.runtime.records import InputRequestRecord

Question: TypeAlias = "InputRequest | InputRequestRecord"
"""What is asked, as it is stored or as it is told."""

_one_at_a_time = asyncio.Lock()


async def give(runtime: Opened, request: Question, text: str) -> None:
    """Give what somebody typed as the answer. Raises Conflict or NotFound where the question is no longer open, and
    InvalidAnswer or another OutriderError where it is and this is no answer.
    """
    from outrider.cli.starting import user_name

    answer = value_of(text, request.expected)
    await runtime.tasks.answer(request.task_id, answer, request_id=request.id, by=user_name(), via="cli")


def asked(request: Question) -> str:
    """A question with all that comes with it; of one line or several."""
    return f"{request.prompt}{_expectation(request)}{told(request.details)}"


class Prompt:
    """One question on the terminal, until it is answered, here or elsewhere."""

    def __init__(self, runtime: Opened, request: Question, screen: Screen, display: Display) -> None:
        self._runtime = runtime
        self._request = request
        self._screen = screen
        self._display = display

    async def run(self) -> None:
        """Ask, and ask again until the answer fits. Whoever answers first elsewhere ends it."""
        async with _one_at_a_time:
            if not await self._is_open():
                return
            self._display.pause()
            closed = asyncio.ensure_future(self._closed_elsewhere())
            try:
                await self._ask(closed)
            finally:
                closed.cancel()
                self._display.resume()

    async def _ask(self, closed: asyncio.Future[None]) -> None:
        self._say(f"{asked(self._request)}\n")
        while True:
            self._say("> ")
            typed = asyncio.ensure_future(_line())
            first: list[asyncio.Future[Any]] = [typed, closed]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if not typed.done():
                typed.cancel()
                self._say("\nanswered or closed elsewhere\n")
                return
            text = typed.result()
            if text is None:  # end of input: nobody will answer here
                self._say("\n")
                return
            if not text and self._request.expected is not None and value_of(text, self._request.expected) == text:
                continue
            try:
                await give(self._runtime, self._request, text)
                return
            except (Conflict, NotFound) as error:
                self._say(f"{error.message}\n")
                return
            except OutriderError as error:
                self._say(f"{error.message}\n")

    async def _closed_elsewhere(self) -> None:
        async for _ in self._runtime.tasks.events(self._request.task_id):
            if not await self._is_open():
                return

    async def _is_open(self) -> bool:
        task = await self._runtime.tasks.record(self._request.task_id)
        return any(each.id == self._request.id for each in task.input_requests)

    def _say(self, text: str) -> None:
        self._screen.aside(harmless(text))


async def _line() -> str | None:
    """A line that somebody typed, None at the end of input. Leaves nothing behind when it is cancelled."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sys.stdin.fileno(), _settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sys.stdin.fileno())
    line = sys.stdin.readline()  # a terminal hands over whole lines
    return line.rstrip("\n") if line else None


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _expectation(request: Question) -> str:
    """What would be an answer, and what happens without one."""
    words = _wanted(request.expected)
    if answer_of(ALWAYS, request) != ALWAYS:
        words = f"{words}, always for this session"
    said = f" ({words})" if words else ""
    if request.deadline_at is not None:
        left = age_text(max(0, _between(request)))
        outcome = {"default": f"{request.default!r} is taken", "deny": "it is denied", "fail": "the task fails"}
        said += f" [within {left}, else {outcome.get(request.on_expiry, 'it is asked again')}]"
    return said


def _between(request: Question) -> Span:
    """From when it was asked to its deadline."""
    if isinstance(request, InputRequest):
        return (request.deadline_at or 0) - request.created_at
    return round(((request.deadline_at or request.created_at) - request.created_at).total_seconds() * 1e6)


def _wanted(schema: Mapping[str, Any] | None) -> str:
    if not schema:
        return ""
    kinds = schema.get("anyOf")
    if isinstance(kinds, list):
        return " or ".join(dict.fromkeys(filter(None, (_wanted(kind) for kind in kinds if isinstance(kind, dict)))))
    choices = schema.get("enum")
    if isinstance(choices, list):
        return ", ".join(str(choice) for choice in choices)
    if schema.get("type") == "boolean":
        return "yes or no"
    if schema.get("type") == "string":
        return ""
    if schema.get("type") in ("object", "array"):
        return f"JSON, {schema.get('title') or schema['type']}"
    return str(schema.get("type") or "")
