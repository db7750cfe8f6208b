"""The spans of a graph's model requests and tool calls, in the GenAI conventions, and what is counted of them.

What a graph does is known by LangChain's callbacks. A program that has LangChain instrumented gets its spans from
there, and none from here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langgraph.errors import GraphBubbleUp

from outrider.agents.telling import (
    as_text,
    error_type,
    listening,
    shows_content,
    tell_call,
    tell_request,
    tool_span,
)
from outrider.runtime.telemetry import NO_OPERATION, Operation


class Ears(Protocol):
    """Who wants to know what models answer."""

    def hear(self, message: AIMessage) -> None:
        """A model has answered."""
        ...


class Listener(BaseCallbackHandler):
    """Hears what models answer, also where it comes into no state, and tells of it. Belongs to one attempt."""

    def __init__(self, ears: Ears) -> None:
        self._ears = ears
        self.run_inline = True
        self._above: dict[UUID, UUID | None] = {}
        """What is under way, and what it is a part of."""
        self._spans: dict[UUID, Operation] = {}
        self._began: dict[UUID, tuple[float, str, str]] = {}
        """Since when, of what, by whom: a model and its provider, or a tool."""
        self._has_spans = not listening().is_silent and not is_instrumented()

    # --- what surrounds them -----------------------------------------------------------------------------

    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **_: Any,
    ) -> None:
        """A node, a graph, or a part of one begins."""
        if self._has_spans:
            self._above[run_id] = parent_run_id

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **_: Any) -> None:
        """It has ended."""
        self._above.pop(run_id, None)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """It has ended so."""
        self._above.pop(run_id, None)

    # --- models ------------------------------------------------------------------------------------------

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """A chat model is asked."""
        said = [message for each in messages for message in each] if shows_content() else None
        self._ask(run_id, parent_run_id, metadata or {}, said)

    def on_llm_start(
        self,
        serialized: dict[str, Any],
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """A model of the older kind is asked."""
        self._ask(run_id, parent_run_id, metadata or {}, None)

    def _ask(
        self, run_id: UUID, above: UUID | None, metadata: dict[str, Any], said: Sequence[BaseMessage] | None
    ) -> None:
        model, provider = str(metadata.get("ls_model_name") or ""), str(metadata.get("ls_provider") or "unknown")
        self._began[run_id] = time.perf_counter(), model, provider
        if self._has_spans:
            span = listening().operate(
                "chat",
                model,
                {
                    "gen_ai.provider.name": provider,
                    "gen_ai.request.model": model or None,
                    "gen_ai.request.temperature": metadata.get("ls_temperature"),
                    "gen_ai.request.max_tokens": metadata.get("ls_max_tokens"),
                    "gen_ai.input.messages": None if said is None else _as_messages(said),
                },
                below=self._below(above),
            )
            self._above[run_id], self._spans[run_id] = above, span

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        """It has answered."""
        message: AIMessage | None = None
        for generations in response.generations:
            for generation in generations[:1]:
                if isinstance(generation, ChatGeneration) and isinstance(generation.message, AIMessage):
                    message = generation.message
                    self._ears.hear(message)
        began, model, provider = self._began.pop(run_id, (None, "", ""))
        if began is not None:
            details = {} if message is None else message.response_metadata
            answered = details.get("model_name") or details.get("model") or model
            by = details.get("model_provider") or provider
            tell_request(str(answered), str(by), seconds=time.perf_counter() - began)
        span = self._ended(run_id)
        if message is not None:
            span.tell(_answer(message))
        span.end()

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """It has failed, or was stopped."""
        began, model, provider = self._began.pop(run_id, (None, "", ""))
        if began is not None and isinstance(error, Exception):
            tell_request(model, provider, seconds=time.perf_counter() - began, error=error)
        self._ended(run_id).end(error_type(error) if isinstance(error, Exception) else None)

    # --- tools -------------------------------------------------------------------------------------------

    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        inputs: dict[str, Any] | None = None,
        tool_call_id: str | None = None,
        **_: Any,
    ) -> None:
        """A tool is called."""
        name = str((serialized or {}).get("name") or "tool")
        self._began[run_id] = time.perf_counter(), name, ""
        if self._has_spans:
            below = self._below(parent_run_id)
            span = tool_span(name, tool_call_id, input_str if inputs is None else inputs, below)
            self._above[run_id], self._spans[run_id] = parent_run_id, span

    def on_tool_end(self, output: Any, *, run_id: UUID, **_: Any) -> None:
        """It has returned."""
        error = "ToolError" if getattr(output, "status", None) == "error" else None
        self._return(run_id, error)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """It has raised; where it interrupts the graph to ask, that is no error."""
        if isinstance(error, Exception) and not isinstance(error, GraphBubbleUp):
            self._return(run_id, error_type(error))
        else:
            self._began.pop(run_id, None)
            self._ended(run_id).end()

    def _return(self, run_id: UUID, error: str | None) -> None:
        began, name, _ = self._began.pop(run_id, (None, "", ""))
        if began is not None:
            tell_call(name, time.perf_counter() - began, error)
        self._ended(run_id).end(error)

    # --- spans -------------------------------------------------------------------------------------------

    def _below(self, run_id: UUID | None) -> Operation:
        """The span that what is a part of this hangs on."""
        while run_id is not None:
            if (span := self._spans.get(run_id)) is not None:
                return span
            run_id = self._above.get(run_id)
        return NO_OPERATION

    def _ended(self, run_id: UUID) -> Operation:
        self._above.pop(run_id, None)
        return self._spans.pop(run_id, NO_OPERATION)


def is_instrumented() -> bool:
    """Whether the program has LangChain instrumented: all who do that wrap the making of its callback managers."""
    return hasattr(BaseCallbackManager.__init__, "__wrapped__")


def _answer(message: AIMessage) -> dict[str, Any]:
    details, used = message.response_metadata or {}, message.usage_metadata
    reason = details.get("finish_reason") or details.get("stop_reason")
    told: dict[str, Any] = {
        "gen_ai.response.model": details.get("model_name") or details.get("model"),
        "gen_ai.response.id": details.get("id"),
        "gen_ai.response.finish_reasons": [str(reason)] if reason else None,
        "gen_ai.output.messages": _as_messages([message]) if shows_content() else None,
    }
    if used is not None:
        told["gen_ai.usage.input_tokens"] = used["input_tokens"]
        told["gen_ai.usage.output_tokens"] = used["output_tokens"]
        told["gen_ai.usage.cache_read.input_tokens"] = used.get("input_token_details", {}).get("cache_read")
    return told


_ROLES = {"human": "user", "ai": "assistant"}


def _as_messages(messages: Sequence[BaseMessage]) -> str:
    return as_text([_as_message(message) for message in messages])


def _as_message(message: BaseMessage) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "content": str(message.text)}] if str(message.text) else []
    parts.extend(
        {"type": "tool_call", "id": call["id"], "name": call["name"], "arguments": call["args"]}
        for call in getattr(message, "tool_calls", ())
    )
    return {"role": _ROLES.get(message.type, message.type), "parts": parts}
