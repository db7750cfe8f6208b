"""A model that plays a script: deterministic, offline, for tests, demos and benchmarks.

A script is a function from a `Turn` to a `Reply`, or a JSON description of one. It is asked by the number of the
iteration and not by how often it was asked, so a resumed task gets the same reply again. This module knows no
engine; the engine's adapter turns a script into a model of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from outrider.core.errors import InvalidArguments, UnknownName
from outrider.core.values import JSON, JSONObject

NAME = "scripted"
OVER = "The script is over."


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gave back; `ok` is false for an error, a refusal or a denial."""

    tool: str
    call_id: str
    content: JSON
    ok: bool = True


@dataclass(frozen=True, slots=True)
class Turn:
    """The moment a reply is asked for. `number` counts the task's iterations from 1.

    `heard` is what was said since the last reply: the prompt at first, later what came in meanwhile, mostly nothing.
    `results` are those of the iteration before; `earlier()` gives all of the conversation, which takes time in
    proportion to its length.
    """

    number: int
    attempt: int
    prompt: str
    tools: tuple[str, ...] = ()
    results: tuple[ToolResult, ...] = ()
    earlier: Callable[[], Sequence[ToolResult]] = tuple
    heard: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call. Without an `id` it gets one made of its iteration and place."""

    tool: str
    arguments: JSON
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A provider's error instead of a reply: an HTTP status, or a timeout. Only up to the attempt `attempts`."""

    status: int = 500
    message: str = "the script says so"
    timeout: bool = False
    attempts: int | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a reply is counted as."""

    input: int
    output: int
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model says: text, tool calls (several run side by side), and a structured result.

    Text is streamed in `chunks` pieces over `delay` seconds. Without `tokens`, four characters count as one token,
    of what is new in the request and of the reply.
    """

    text: str = ""
    calls: tuple[Call, ...] = ()
    result: JSON = None
    delay: float = 0.0
    chunks: int = 1
    failure: Failure | None = None
    tokens: Tokens | None = None


Script: TypeAlias = Callable[[Turn], Reply]


def replies(*sequence: Reply) -> Script:
    """Return a script that gives these replies in order, and then says that it is over."""

    def script(turn: Turn) -> Reply:
        return sequence[turn.number - 1] if turn.number <= len(sequence) else Reply(OVER)

    return script


def loop(times: int, tool: str, arguments: Callable[[int], JSONObject], *, last: str = "done") -> Script:
    """Return a script that calls one tool `times` times and then answers: a long run with little to say."""

    def script(turn: Turn) -> Reply:
        if turn.number > times:
            return Reply(last)
        return Reply(calls=(Call(tool, arguments(turn.number)),))

    return script


def from_json(description: JSON) -> Script:
    """Return the script that a JSON description tells: a list of replies, or an object with `replies`.

    A reply is an object of `text`, `calls` (`tool`, `arguments`, `id`), `result`, `delay`, `chunks`, `failure`
    (`status`, `message`, `timeout`, `attempts`), `tokens` (`input`, `output`, `cached`) and `repeat`, how many
    iterations it answers. Raises InvalidArguments that names the fault.
    """
    try:
        told = _Told.model_validate({"replies": description} if isinstance(description, list) else description)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise InvalidArguments(f"this is not a script: {faults}") from None
    sequence = [reply.told() for reply in told.replies]
    ends = list(accumulate(reply.repeat for reply in told.replies))

    def script(turn: Turn) -> Reply:
        place = bisect_left(ends, turn.number)
        return sequence[place] if place < len(sequence) else Reply(OVER)

    return script


def echo(turn: Turn) -> Reply:
    """The script of plain `scripted`: repeat the prompt, and use no tool."""
    return Reply(f"You said: {turn.prompt}", chunks=4)


def register(name: str, script: Script) -> None:
    """Make a script known to this process as `scripted:NAME`. A worker needs the same registration."""
    _scripts[name] = script


def named(model: str) -> Script:
    """Return the script of a model string: `scripted` or `scripted:NAME`. Raises UnknownName."""
    name = model.partition(":")[2]
    if not name:
        return echo
    try:
        return _scripts[name]
    except KeyError:
        raise UnknownName.of("model", model, known()) from None


def known() -> tuple[str, ...]:
    """The model strings that `named` understands."""
    return (NAME, *(f"{NAME}:{name}" for name in sorted(_scripts)))


_scripts: dict[str, Script] = {}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _ToldCall(_Strict):
    tool: str
    arguments: JSON = Field(default_factory=dict)
    id: str | None = None


class _ToldFailure(_Strict):
    status: int = 500
    message: str = "the script says so"
    timeout: bool = False
    attempts: int | None = None


class _ToldTokens(_Strict):
    input: int
    output: int
    cached: int = 0


class _ToldReply(_Strict):
    text: str = ""
    calls: list[_ToldCall] = []
    result: JSON = None
    delay: float = Field(0.0, ge=0)
    chunks: int = Field(1, ge=1)
    failure: _ToldFailure | None = None
    tokens: _ToldTokens | None = None
    repeat: int = Field(1, ge=1)

    def told(self) -> Reply:
        return Reply(
            text=self.text,
            calls=tuple(Call(call.tool, call.arguments, call.id) for call in self.calls),
            result=self.result,
            delay=self.delay,
            chunks=self.chunks,
            failure=Failure(**self.failure.model_dump()) if self.failure else None,
            tokens=Tokens(**self.tokens.model_dump()) if self.tokens else None,
        )


class _Told(_Strict):
    replies: list[_ToldReply]
