"""The `local` model as the engine sees it: one action a turn, and none that it has done before.

A small model goes round in circles: it is not let make a call twice, and after so many calls it has to answer. Nor
does it find a way by itself: `must_call` among the settings names the tools that it has to call first, in order.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openai import APIStatusError
from pydantic_ai import RunContext
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError, ModelTimeoutError
from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import CompletedStreamedResponse, ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import RequestUsage

from outrider.agents import local
from outrider.agents.local.actions import Action, Answered, Called, Choice, Offer, Said, rules, told
from outrider.agents.local.asking import Reply, Sampling, ask
from outrider.agents.local.conversation import Line
from outrider.agents.local.server import LocalServerFailed, LocalServerSilent
from outrider.agents.pydantic_ai.serving import SpeakingModel

if TYPE_CHECKING:
    from outrider.agents.pydantic_ai.attempt import Attempt


class LocalModel(SpeakingModel):
    """Asks the small model of this machine."""

    def __init__(self, name: str, attempt: Attempt) -> None:
        super().__init__(name, attempt)
        self._weights: Path = local.weights(name)
        self._limits = local.settings()

    @property
    def system(self) -> str:
        """The provider."""
        return local.NAME

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Ask, and show what is said as it comes."""
        return await self._respond(messages, model_settings, model_request_parameters, self._attempt.say)

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[CompletedStreamedResponse]:
        """Give the whole reply to whoever listens to the run's events."""
        response = await self._respond(messages, model_settings, model_request_parameters, lambda _: None)
        yield CompletedStreamedResponse(response, model_request_parameters=model_request_parameters, replay_events=True)

    async def _respond(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        parameters: ModelRequestParameters,
        say: Callable[[str], None],
    ) -> ModelResponse:
        chosen, parameters = self.prepare_request(model_settings, parameters)
        given: dict[str, Any] = dict(chosen or {})
        sampling = Sampling.of(given)
        made = list(_calls_since(self._attempt.brief.prompt, messages))
        everything = self._everything(parameters)
        choice = self._narrowed(everything, made, given.get("must_call"))
        # What it is told stays as it was, whatever it may do in this turn: the server remembers what it has read.
        lines = [*self._system(messages, parameters, everything), *_lines(messages, everything, parameters)]
        if everything.tools and not choice.tools:
            lines.append(Line("user", "Use no more tools. Answer now."))
        reply = await self._ask(lines, choice, sampling, say)
        usage = _usage(reply)
        while isinstance(reply.action, Called) and reply.action in made:
            lines += [
                Line("assistant", told(reply.action)),
                Line("user", f"You have the result of this {reply.action.tool} above. Use it now."),
            ]
            choice = _without(choice, reply.action.tool)
            reply = await self._ask(lines, choice, sampling, say)
            usage += _usage(reply)
        return ModelResponse(
            parts=[self._part(reply.action, parameters)],
            usage=usage,
            model_name=local.SMOLLM2.partition(":")[2],
            provider_name=local.NAME,
            finish_reason="length" if reply.is_cut else "tool_call" if isinstance(reply.action, Called) else "stop",
        )

    # What it may do

    def _everything(self, parameters: ModelRequestParameters) -> Choice:
        answer = parameters.output_tools[0].parameters_json_schema if parameters.output_tools else None
        return Choice(
            tools=tuple(_offer(tool) for tool in parameters.function_tools),
            answer=answer,
            say=parameters.allow_text_output or answer is None,
            is_plain=not parameters.function_tools and answer is None,
        )

    def _narrowed(self, everything: Choice, made: Sequence[Called], must_call: object) -> Choice:
        attempt = self._attempt
        if attempt.number >= attempt.brief.max_iterations or len(made) >= self._limits.max_calls:
            return replace(everything, tools=())
        tools = tuple(tool for tool in everything.tools if tool.takes_arguments or Called(tool.name, {}) not in made)
        if isinstance(must_call, list | tuple) and len(made) < len(must_call):
            forced = tuple(tool for tool in tools if tool.name == must_call[len(made)])
            if forced:
                return replace(everything, tools=forced, answer=None, say=False)
        return replace(everything, tools=tools)

    def _system(
        self, messages: Sequence[ModelMessage], parameters: ModelRequestParameters, choice: Choice
    ) -> Iterator[Line]:
        stated = [part.content for part in self._get_instruction_parts(messages, parameters) or ()]
        stated += [part.content for message in messages for part in message.parts if isinstance(part, SystemPromptPart)]
        text = "\n\n".join(part for part in (*stated, rules(choice)) if part)
        yield Line("system", text or "You are a helpful assistant.")

    def _part(self, action: Action, parameters: ModelRequestParameters) -> TextPart | ToolCallPart:
        number = self._attempt.number
        match action:
            case Said(text):
                return TextPart(text)
            case Called(tool, arguments):
                return ToolCallPart(tool, arguments, tool_call_id=f"call_{number}_1")
            case Answered(result):
                arguments = result if isinstance(result, dict) else json.dumps(result)
                return ToolCallPart(parameters.output_tools[0].name, arguments, tool_call_id=f"call_{number}_result")

    async def _ask(
        self, lines: Sequence[Line], choice: Choice, sampling: Sampling, say: Callable[[str], None]
    ) -> Reply:
        try:
            return await ask(self._weights, self._limits, lines, choice, sampling, say, self._attempt.end_line)
        except LocalServerSilent as error:
            raise ModelTimeoutError(self._name, error.message) from error
        except LocalServerFailed as error:
            raise ModelAPIError(self._name, error.message) from error
        except APIStatusError as error:
            raise ModelHTTPError(error.status_code, self._name, error.body) from error


def _usage(reply: Reply) -> RequestUsage:
    return RequestUsage(
        input_tokens=reply.input_tokens,
        output_tokens=reply.output_tokens,
        cache_read_tokens=reply.cached_tokens,
        cost=Decimal(0),
    )


def _offer(tool: ToolDefinition) -> Offer:
    return Offer(tool.name, tool.description or "", tool.parameters_json_schema)


def _without(choice: Choice, tool: str) -> Choice:
    left = tuple(each for each in choice.tools if each.name != tool)
    return replace(choice, tools=left, say=choice.say or not (left or choice.answer))


def _calls_since(prompt: str, messages: Sequence[ModelMessage]) -> Iterator[Called]:
    # What the engine says to correct a model is a prompt too by now, and no new beginning.
    start = max(
        (
            nth
            for nth, message in enumerate(messages)
            if any(isinstance(part, UserPromptPart) and part.content == prompt for part in message.parts)
        ),
        default=0,
    )
    for message in messages[start:]:
        for part in message.parts:
            if isinstance(part, ToolCallPart) and isinstance(part.args, dict):
                yield Called(part.tool_name, dict(part.args))


def _lines(messages: Sequence[ModelMessage], choice: Choice, parameters: ModelRequestParameters) -> Iterator[Line]:
    """Return the history without its system prompts. A model is shown its own actions as it wrote them."""
    answers = {tool.name for tool in parameters.output_tools}
    for message in messages:
        for part in message.parts:
            match part:
                case SystemPromptPart():
                    pass
                case UserPromptPart(content=content):
                    texts = (
                        [content] if isinstance(content, str) else [each for each in content if isinstance(each, str)]
                    )
                    yield Line("user", "\n".join(texts))
                case ToolReturnPart(tool_name=name):
                    yield Line("user", f"Result of {name}:\n{part.model_response_str()}", spare=True)
                case TextPart(content=text):
                    yield Line("assistant", text if choice.is_plain else told(Said(text)))
                case ToolCallPart(tool_name=name, args=args) if name in answers:
                    yield Line("assistant", told(Answered(args)))
                case ToolCallPart(tool_name=name, args=args):
                    yield Line("assistant", told(Called(name, args if isinstance(args, str) else dict(args or {}))))
                case _:
                    said = getattr(part, "content", None)
                    if isinstance(said, str) and not isinstance(message, ModelResponse):
                        yield Line("user", said)
