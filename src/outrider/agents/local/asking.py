"""One request to the `local` model: fitted into its context, held to a choice of actions, heard as it comes.

The server may die at any moment, since whoever likes may end it; a request that it took along is sent again to the
next one, and what had been said is said once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import httpx2
from openai import APIConnectionError, APITimeoutError, AsyncOpenAI, AsyncStream, BadRequestError
from openai.types.chat import ChatCompletionChunk

from outrider.agents.local import NAME, server
from outrider.agents.local.actions import Action, Choice, Said, read, said_so_far, schema_of
from outrider.agents.local.conversation import Line, as_messages, fit
from outrider.core.values import JSON
from outrider.settings import LocalModelSettings

SERVERS = 3
"""How many servers one request may lose."""
AT_ONCE = 16
"""Requests of one worker; the others wait here, where it costs the server no thread."""
TIMEOUT = 120.0
"""Seconds without a sign of life. A request that waits for its turn gets one every few seconds."""
REPEAT_PENALTY = 1.1
MARGIN = 32
"""Tokens."""

_WAITING: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the model is asked, as far as a task says so. The same every time unless it does."""

    temperature: float = 0.0
    seed: int = 0
    max_tokens: int | None = None
    timeout: float = TIMEOUT
    more: Mapping[str, JSON] | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Sampling:
        """Take what is known here out of the engine's settings."""
        known = {key: settings[key] for key in ("temperature", "seed", "max_tokens", "timeout") if key in settings}
        return cls(**known, more={"top_p": settings["top_p"]} if "top_p" in settings else None)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model did. `is_cut` is for a reply that its bound on tokens ended."""

    action: Action
    is_cut: bool
    input_tokens: int
    output_tokens: int
    cached_tokens: int


async def ask(
    weights: Path,
    limits: LocalModelSettings,
    lines: Sequence[Line],
    choice: Choice,
    sampling: Sampling,
    say: Callable[[str], None],
    begin_anew: Callable[[], None],
) -> Reply:
    """Ask until a server has lived through the request. `begin_anew` is called before what was said is said again.

    Raises LocalServerFailed, LocalServerSilent, and `openai.APIStatusError` for what the server refused.
    """
    where = server.folder()
    waiting = _WAITING.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(AT_ONCE))
    async with waiting, server.in_use(where):
        for _ in range(SERVERS):
            address = await server.reach(where, weights, limits)
            try:
                return await _ask_at(address, limits, lines, choice, sampling, say)
            except APITimeoutError as error:
                raise server.LocalServerSilent("the server of the local model did not answer in time") from error
            except (APIConnectionError, httpx2.TransportError):
                begin_anew()
                await _until_gone(where, address)
    raise server.LocalServerFailed(f"{SERVERS} servers of the local model in a row broke off this request")


async def _ask_at(
    address: server.Address,
    limits: LocalModelSettings,
    lines: Sequence[Line],
    choice: Choice,
    sampling: Sampling,
    say: Callable[[str], None],
) -> Reply:
    room = min(sampling.max_tokens or limits.answer_tokens, address.context_tokens // 2)
    async with AsyncOpenAI(
        base_url=address.url, api_key=address.key, max_retries=0, timeout=sampling.timeout
    ) as client:
        fitting = await fit(lines, address.context_tokens - room - MARGIN, _counter(client))
        request = {
            "messages": as_messages(fitting),
            "max_tokens": room,
            "temperature": sampling.temperature,
            "seed": sampling.seed,
            "extra_body": {"repeat_penalty": REPEAT_PENALTY},
            **(sampling.more or {}),
        }
        try:
            reply = await _hear(client, request, choice, schema_of(choice), say)
        except BadRequestError:
            if choice.is_plain:
                raise
            # A schema that the server cannot follow: the tool, or the engine, still holds the model to it.
            return await _hear(client, request, choice, schema_of(choice, loose=True), say)
        if not reply.is_cut or isinstance(reply.action, Said):
            return reply
        # Half an action is none. A character is a few tokens at worst, so texts this short leave room for the rest.
        again = await _hear(client, request, choice, schema_of(choice, bound=room // 8), say)
        return replace(
            again,
            input_tokens=reply.input_tokens + again.input_tokens,
            output_tokens=reply.output_tokens + again.output_tokens,
            cached_tokens=reply.cached_tokens + again.cached_tokens,
        )


async def _hear(
    client: AsyncOpenAI, request: dict[str, Any], choice: Choice, schema: JSON, say: Callable[[str], None]
) -> Reply:
    if schema is not None:
        form = {"type": "json_schema", "json_schema": {"name": "action", "schema": schema}}
        request = {**request, "response_format": form}
    text, shown, finish, usage = "", 0, None, None
    stream: AsyncStream[ChatCompletionChunk] = await client.chat.completions.create(
        model=NAME, stream=True, stream_options={"include_usage": True}, **request
    )
    async with stream:
        async for chunk in stream:
            usage = chunk.usage or usage
            for each in chunk.choices:
                finish = each.finish_reason or finish
                text += each.delta.content or ""
            said = said_so_far(text, choice)
            say(said[shown:])
            shown = max(shown, len(said))
    if finish is None or usage is None:
        raise httpx2.RemoteProtocolError("the stream ended before the reply did")
    cached = usage.prompt_tokens_details
    return Reply(
        action=read(text, choice),
        is_cut=finish == "length",
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cached_tokens=(cached.cached_tokens or 0) if cached is not None else 0,
    )


def _counter(client: AsyncOpenAI) -> Callable[[str], Awaitable[int]]:
    async def count(text: str) -> int:
        counted = await client.post("/tokenize", body={"content": text}, cast_to=httpx2.Response)
        return len(counted.json()["tokens"])

    return count


async def _until_gone(where: Path, address: server.Address) -> None:
    """Wait until a server that broke off is seen to be gone: its connections close before its lock is free."""
    for _ in range(40):
        if server.find(where) != address:
            return
        await asyncio.sleep(server.POLL)
