"""What surrounds each model request: leave to make it, and what it took once that is known.

What a request may take is counted from what its last response said of the conversation so far, and from the bytes that
are new since: to measure all of it for every request would take longer with each.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from pydantic_ai.exceptions import FallbackExceptionGroup, ModelAPIError
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage
from pydantic_core import to_json

from outrider.agents.engine import MOST_USED, ModelCall, ModelFailed, Permit
from outrider.agents.telling import error_type, listening, tell_request
from outrider.core.task import Usage
from outrider.core.values import evolve

if TYPE_CHECKING:
    from outrider.agents.pydantic_ai.attempt import Attempt

BYTES_A_TOKEN = 3
"""Models make a token of four bytes of English and of three of Chinese; few of fewer."""

OVERHEAD = 16
"""Tokens that a request has beside what is in it, and bytes that a part has."""


@dataclass(slots=True)
class Payment:
    """A request that may be made with these settings; whoever makes it leaves its response here."""

    settings: ModelSettings | None
    response: ModelResponse | None = None


@asynccontextmanager
async def paying(
    attempt: Attempt,
    model: Model,
    messages: Sequence[ModelMessage],
    settings: ModelSettings | None,
    parameters: ModelRequestParameters,
) -> AsyncGenerator[Payment]:
    """Have a request allowed, and say what it took. One that is cancelled is left to the end of the attempt."""
    name, provider = _names(attempt, model)
    call = ModelCall(
        name,
        provider,
        lambda: input_tokens(attempt.whole(list(messages)), parameters),
        (settings or {}).get("max_tokens"),
        lambda asked, answered: price(model, asked, answered),
    )
    permit = await attempt.runtime(attempt.run.reserve(call))
    payment = Payment(_bounded(settings, permit))
    began = time.perf_counter()
    try:
        yield payment
    except Exception as error:
        told = attempt.explain(error) if isinstance(error, ModelAPIError | FallbackExceptionGroup) else error
        tell_request(name, provider, seconds=time.perf_counter() - began, error=told)
        listening().mark("chat", error_type(told))
        failure = told if isinstance(told, ModelFailed) else None
        await attempt.runtime(attempt.run.settle(permit, None, failure))
        raise
    seconds = time.perf_counter() - began
    if (response := payment.response) is not None:
        _make_plain(response.usage)
        used = usage_of(response)
        cost = await attempt.runtime(attempt.run.settle(permit, used))
        tell_request(name, provider, seconds=seconds, usage=evolve(used, cost=cost))
        if cost is not None and response.usage.cost is None:
            response.usage.cost = Decimal(str(cost))


def input_tokens(messages: Sequence[ModelMessage], parameters: ModelRequestParameters) -> int:
    """How many tokens a request has, rather too many than too few."""
    known, new = 0, list(messages)
    for place in range(len(messages) - 1, -1, -1):
        message = messages[place]
        if isinstance(message, ModelResponse) and message.usage.input_tokens:
            known, new = message.usage.input_tokens + message.usage.output_tokens, list(messages[place + 1 :])
            break
    size = sum(_size(part) for message in new for part in message.parts)
    if not known:
        tools = [*parameters.function_tools, *parameters.output_tools]
        size += len(to_json([[tool.name, tool.description, tool.parameters_json_schema] for tool in tools]))
        size += max((len((getattr(message, "instructions", None) or "").encode()) for message in new), default=0)
    return known + -(-size // BYTES_A_TOKEN) + OVERHEAD


def _size(part: object) -> int:
    """How many bytes a part of a message has for a model."""
    if isinstance(part, ToolCallPart):
        return len(part.tool_name) + len(part.args_as_json_str().encode()) + OVERHEAD
    content = getattr(part, "content", "")
    said = content.encode() if isinstance(content, str) else to_json(content, serialize_unknown=True)
    return len(said) + OVERHEAD


def price(model: Model, asked: int, answered: int) -> float | None:
    """What so many tokens in and out cost in dollars, by the prices that the engine knows."""
    usage = RequestUsage(input_tokens=asked, output_tokens=answered)
    response = ModelResponse(
        parts=[],
        usage=usage,
        model_name=model.model_name,
        provider_name=model.system,
        provider_url=getattr(model, "base_url", None),
    )
    try:
        return float(response.cost().total_price)
    except (LookupError, ValueError):
        return None


def usage_of(response: ModelResponse) -> Usage:
    """What a response says that it took."""
    told = response.usage
    cost = None if told.cost is None else float(told.cost)
    return Usage(1, told.input_tokens, told.output_tokens, told.cache_read_tokens, cost)


def _make_plain(told: RequestUsage) -> None:
    """Correct what no usage can be, in place, for the engine adds it up as well.

    Fewer tokens than none would be given back to a budget, and no account can hold more than has 64 bits.
    """
    for name in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"):
        setattr(told, name, min(max(0, getattr(told, name)), MOST_USED))
    told.details = {name: min(max(0, count), MOST_USED) for name, count in told.details.items()}
    if told.cost is not None and not (told.cost.is_finite() and 0 <= told.cost <= MOST_USED):
        told.cost = None


def _names(attempt: Attempt, model: Model) -> tuple[str, str]:
    choice = attempt.choice
    if choice is None:
        return model.model_id, model.system
    if choice.base_url is not None:
        return choice.name, urlsplit(choice.base_url).netloc or choice.base_url
    return choice.name, choice.provider or model.system


def _bounded(settings: ModelSettings | None, permit: Permit) -> ModelSettings | None:
    told: dict[str, Any] = dict(settings or {})
    if permit.output_tokens is None or told.get("max_tokens") == permit.output_tokens:
        return settings
    return cast("ModelSettings", {**told, "max_tokens": permit.output_tokens})
