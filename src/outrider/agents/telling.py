"""What is told of an agent's requests to models and calls of tools: metrics for all engines, spans where one has none.

The default engine makes spans of its own, in the GenAI conventions of OpenTelemetry; those made here have the same
names and attributes. What is said is in neither, unless the program asks for it (`CONTENT`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from outrider.agents.engine import AgentBrief, AgentFailed, ModelFailed, ToolError, ToolRetry
from outrider.core.errors import Failure, OutriderError
from outrider.core.task import Usage
from outrider.runtime.attempt import CURRENT
from outrider.runtime.telemetry import NO_OPERATION, ModelRequest, Operation, Telemetry

CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
"""The variable, of OpenTelemetry's own instrumentations, by which a program asks for what is said to be in spans."""

_SILENT = Telemetry()


def listening() -> Telemetry:
    """Who is to be told of what the running task does."""
    attempt = CURRENT.get()
    return _SILENT if attempt is None else attempt.services.telemetry


def shows_content() -> bool:
    """Whether what is said may be in spans."""
    return os.environ.get(CONTENT, "").lower() in ("true", "1", "span_only", "span_and_event")


def tell_request(
    model: str,
    provider: str,
    *,
    seconds: float | None = None,
    usage: Usage | None = None,
    error: BaseException | None = None,
) -> None:
    """Have one request of the running task to a model counted: how long it took, what it used, what came of it."""
    attempt = CURRENT.get()
    if attempt is None or attempt.services.telemetry.is_silent:
        return
    kind = None if error is None else error_type(error)
    attempt.services.telemetry.asked(attempt.record, ModelRequest(model, provider, seconds, usage, kind))


def tell_call(tool: str, seconds: float, error: str | None) -> None:
    """Have one call of a tool by the running task's agent counted."""
    attempt = CURRENT.get()
    if attempt is not None:
        attempt.services.telemetry.called(attempt.record, tool, seconds, error)


class ToolCall:
    """A call of a tool that is under way."""

    __slots__ = ("error",)

    def __init__(self) -> None:
        self.error: str | None = None
        """The kind of what came of it. Whoever has the agent told, and raises nothing, says it here."""


@contextmanager
def calling(tool: str, span: Operation = NO_OPERATION) -> Iterator[ToolCall]:
    """An agent of the running task calls a tool in here; it is counted, and its span ends with it.

    A call that parks, or is stopped, has come to nothing yet and is not counted.
    """
    call, began = ToolCall(), time.perf_counter()
    try:
        try:
            with span.current():
                yield call
        except Exception as error:
            call.error = error_type(error)
            raise
        finally:
            span.end(call.error)
    except Exception:
        tell_call(tool, time.perf_counter() - began, call.error)
        raise
    tell_call(tool, time.perf_counter() - began, call.error)


def in_step(name: str) -> AbstractContextManager[None]:
    """A step of the running task's agent runs in here."""
    attempt = CURRENT.get()
    return nullcontext() if attempt is None else attempt.services.telemetry.step(attempt.record, name)


def tool_span(tool: str, call_id: str | None, arguments: Any, below: Operation = NO_OPERATION) -> Operation:
    """Begin the span of a call of a tool, for an engine that has none."""
    told = listening()
    if told.is_silent:
        return NO_OPERATION
    content = as_text(arguments) if shows_content() else None
    attributes = {"gen_ai.tool.name": tool, "gen_ai.tool.call.id": call_id, "gen_ai.tool.call.arguments": content}
    return told.operate("execute_tool", tool, attributes, below=below)


@contextmanager
def running_agent(brief: AgentBrief) -> Iterator[None]:
    """An agent of an engine without spans runs in here."""
    told = listening()
    if told.is_silent:
        yield
        return
    name = agent_name()
    span = told.operate("invoke_agent", name, {"gen_ai.agent.name": name, "gen_ai.conversation.id": brief.task_id})
    kind: str | None = None
    try:
        with span.current():
            yield
    except Exception as error:
        kind = error_type(error)
        raise
    finally:
        span.end(kind)


def agent_name() -> str:
    """What the agent of the running task is called; it may have no name."""
    attempt = CURRENT.get()
    name = None if attempt is None else attempt.record.input.spec.get("agent")
    return name if isinstance(name, str) else "agent"


def error_type(error: BaseException) -> str:
    """The kind of an error in few words: the HTTP status of a provider, the kind of a failure, else its class."""
    if isinstance(error, ModelFailed) and error.status is not None:
        return str(error.status)
    if isinstance(error, AgentFailed | Failure):
        return error.kind
    if isinstance(error, ToolRetry | ToolError):
        return type(error).__name__
    return error.code if isinstance(error, OutriderError) else type(error).__name__


def as_text(value: Any) -> str:
    """A value as JSON, as the conventions have content in attributes."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
