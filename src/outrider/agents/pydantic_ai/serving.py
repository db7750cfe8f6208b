"""The models that answer: found by name, sent the history whole, and heard while they speak.

A scripted model needs no request rendered for a provider, so its iterations cost the same however long the history.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from pydantic_ai import RunContext
from pydantic_ai.exceptions import FallbackExceptionGroup, ModelAPIError, ModelHTTPError, ModelTimeoutError, UserError
from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    ModelResponsePart,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import (
    CompletedStreamedResponse,
    KnownModelName,
    Model,
    ModelRequestParameters,
    StreamedResponse,
    infer_model,
    parse_model_id,
)
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.providers import infer_provider_class
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage
from pydantic_core import to_json, to_jsonable_python

from outrider.agents import local, scripted
from outrider.agents.engine import ModelNotReady
from outrider.agents.models import ModelChoice
from outrider.agents.pydantic_ai.paying import paying
from outrider.core.errors import UnknownName
from outrider.runtime.attempt import well_formed
from outrider.runtime.codec import encode

if TYPE_CHECKING:
    from outrider.agents.pydantic_ai.attempt import Attempt


async def resolve(choice: ModelChoice, attempt: Attempt) -> Model:
    """Return the model that a choice names. Raises UnknownName and ModelNotReady."""
    if choice.is_scripted:
        script = scripted.from_json(choice.script) if choice.script is not None else scripted.named(choice.name)
        return ScriptedModel(choice.name, script, attempt)
    # A provider's package takes a second to import and its client a tenth to make; the loop stays alive meanwhile.
    return await asyncio.to_thread(_found, choice, attempt)


def _found(choice: ModelChoice, attempt: Attempt) -> Model:
    if choice.is_local:
        from outrider.agents.pydantic_ai.local import LocalModel

        return LocalModel(choice.name, attempt)
    try:
        if choice.compatible_name is not None:
            from pydantic_ai.models.openai import OpenAIChatModel
            from pydantic_ai.profiles.openai import OpenAIModelProfile
            from pydantic_ai.providers.openai import OpenAIProvider

            return OpenAIChatModel(
                choice.compatible_name,
                provider=OpenAIProvider(base_url=choice.base_url, api_key=os.environ.get(choice.key_variable)),
                # Else a stream that breaks off between two words is a whole answer.
                profile=OpenAIModelProfile(openai_chat_streaming_requires_finish_reason=True),
            )
        _check_provider(choice.name)
        return infer_model(choice.name)
    except (UserError, ImportError) as error:
        raise ModelNotReady(f"model {choice.name!r} cannot be used: {error}") from error


def check_model(choice: ModelChoice) -> None:
    """Raise UnknownName for a model that cannot be found by its name, without making it."""
    if choice.is_scripted:
        if choice.script is None:
            scripted.named(choice.name)
    elif not choice.is_local and choice.compatible_name is None:
        _check_provider(choice.name)


class ServingModel(WrapperModel):
    """Sends the request: with the history whole, and its text shown as it comes."""

    def __init__(self, wrapped: Model, attempt: Attempt) -> None:
        super().__init__(wrapped)
        self._attempt = attempt

    def prepare_messages(
        self, messages: list[ModelMessage], model_request_parameters: ModelRequestParameters | None = None
    ) -> list[ModelMessage]:
        """Render the history for the provider, which needs all of it."""
        if isinstance(self.wrapped, ScriptedModel):
            return messages
        return self.wrapped.prepare_messages(self._attempt.whole(messages), model_request_parameters)

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Send the request, where it may be sent."""
        async with paying(self._attempt, self.wrapped, messages, model_settings, model_request_parameters) as payment:
            response = _tidied(await self._send(messages, payment.settings, model_request_parameters))
            payment.response = response
        return response

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """The same for whoever listens to the run's events."""
        async with (
            paying(self._attempt, self.wrapped, messages, model_settings, model_request_parameters) as payment,
            super().request_stream(messages, payment.settings, model_request_parameters, run_context) as stream,
        ):
            yield stream
            payment.response = _whole(self.wrapped, stream.get())

    async def _send(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Streamed where the model can."""
        if isinstance(self.wrapped, SpeakingModel):
            return await self.wrapped.request(messages, model_settings, model_request_parameters)
        if not _streams(self.wrapped):
            with _reading(self.wrapped):
                response = await self.wrapped.request(messages, model_settings, model_request_parameters)
            self._attempt.say(text_of(response))
            return response
        with _reading(self.wrapped):
            async with self.wrapped.request_stream(messages, model_settings, model_request_parameters) as stream:
                async for event in stream:
                    match event:
                        case (
                            PartStartEvent(part=TextPart(content=text))
                            | PartDeltaEvent(delta=TextPartDelta(content_delta=text))
                        ):
                            self._attempt.say(text)
                        case _:
                            pass
        return _whole(self.wrapped, stream.get())


def _tidied(response: ModelResponse) -> ModelResponse:
    """The calls of a response as they can be kept, whatever the model made of them."""
    parts = [_tidied_call(part) if isinstance(part, ToolCallPart) else part for part in response.parts]
    return replace(response, parts=parts)


def _tidied_call(call: ToolCallPart) -> ToolCallPart:
    id, args = well_formed(call.tool_call_id).replace("\0", ""), call.args
    if isinstance(args, dict):
        args = all_well_formed(args)
        try:
            encode(args)
        except TypeError:  # such as a number of a hundred digits: as text, whoever reads it says what is wrong
            args = json.dumps(args, default=str)
    return replace(call, tool_call_id=id, args=args)


def all_well_formed(value: Any) -> Any:
    """JSON without halves of characters, which JSON can tell of and no text can keep."""
    try:
        encode(value)
    except TypeError:
        return _mended(value)
    return value


def _mended(value: Any) -> Any:
    match value:
        case str():
            return well_formed(value)
        case dict():
            return {_mended(key): _mended(each) for key, each in value.items()}
        case list():
            return [_mended(each) for each in value]
        case _:
            return value


class SpeakingModel(Model):
    """Shows by itself what it says, as it says it."""

    def __init__(self, name: str, attempt: Attempt) -> None:
        super().__init__()
        self._name = name
        self._attempt = attempt

    @property
    def model_name(self) -> str:
        """What the task named."""
        return self._name


class ScriptedModel(SpeakingModel):
    """Plays a script, by the number of the open iteration."""

    def __init__(self, name: str, script: scripted.Script, attempt: Attempt) -> None:
        super().__init__(name, attempt)
        self._script = script

    @property
    def system(self) -> str:
        """The provider."""
        return scripted.NAME

    def prepare_messages(
        self, messages: list[ModelMessage], model_request_parameters: ModelRequestParameters | None = None
    ) -> list[ModelMessage]:
        """Nothing: a script reads the messages as they are."""
        return messages

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Give the script's reply."""
        return await self._respond(messages, model_request_parameters, aloud=True)

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[CompletedStreamedResponse]:
        """Give the script's reply to whoever listens to the run's events."""
        response = await self._respond(messages, model_request_parameters, aloud=False)
        yield CompletedStreamedResponse(response, model_request_parameters=model_request_parameters, replay_events=True)

    async def _respond(
        self, messages: list[ModelMessage], model_request_parameters: ModelRequestParameters, *, aloud: bool
    ) -> ModelResponse:
        attempt = self._attempt
        reply = self._script(
            scripted.Turn(
                number=attempt.number,
                attempt=attempt.brief.attempt,
                prompt=attempt.brief.prompt,
                tools=tuple(tool.name for tool in model_request_parameters.function_tools),
                results=tuple(_results(messages[-1:])),
                earlier=lambda: tuple(_results(attempt.whole(messages))),
                heard=_heard(messages[-1:]),
            )
        )
        self._fail(reply.failure)
        await self._speak(reply, aloud)
        parts = list(self._parts(reply, model_request_parameters))
        return ModelResponse(
            parts=parts,
            usage=_tokens(reply, messages[-1:], parts),
            model_name=self._name,
            provider_name=scripted.NAME,
            finish_reason="stop" if not reply.calls else "tool_call",
        )

    def _fail(self, failure: scripted.Failure | None) -> None:
        if failure is None or (failure.attempts is not None and self._attempt.brief.attempt > failure.attempts):
            return
        if failure.timeout:
            raise ModelTimeoutError(self._name, failure.message)
        raise ModelHTTPError(failure.status, self._name, {"error": {"message": failure.message}})

    async def _speak(self, reply: scripted.Reply, aloud: bool) -> None:
        pause = reply.delay / reply.chunks
        size = -(-len(reply.text) // reply.chunks)
        for nth in range(reply.chunks):
            if pause:
                await asyncio.sleep(pause)
            if aloud:
                self._attempt.say(reply.text[nth * size : (nth + 1) * size])

    def _parts(self, reply: scripted.Reply, parameters: ModelRequestParameters) -> Iterator[ModelResponsePart]:
        number = self._attempt.number
        if reply.text:
            yield TextPart(reply.text)
        for nth, call in enumerate(reply.calls, 1):
            # A provider sends what is no object as text, and so does a script that wants to be wrong.
            arguments = call.arguments if isinstance(call.arguments, dict | str | None) else to_json(call.arguments)
            text = arguments.decode() if isinstance(arguments, bytes) else arguments
            yield ToolCallPart(call.tool, text, tool_call_id=call.id or f"call_{number}_{nth}")
        if reply.result is None:
            return
        if parameters.output_tools:
            answer = {"result": reply.result} if self._attempt.wraps_result else reply.result
            yield ToolCallPart(parameters.output_tools[0].name, answer, tool_call_id=f"call_{number}_result")
        else:
            yield TextPart(reply.result if isinstance(reply.result, str) else to_json(reply.result).decode())


def _check_provider(name: str) -> None:
    provider, _ = parse_model_id(name)
    try:
        if provider is None:
            raise ValueError(name)
        infer_provider_class(provider)
    except ValueError:
        providers = {known.partition(":")[0] for known in get_args(KnownModelName.__value__) if ":" in known}
        raise UnknownName.of(
            "model", name, [*scripted.known(), local.NAME, *(f"{provider}:NAME" for provider in providers)]
        ) from None


@contextmanager
def _reading(model: Model) -> Iterator[None]:
    """What a server answers that is no answer of a model is a failure of that server's, and may pass."""
    try:
        yield
    except (ModelAPIError, FallbackExceptionGroup, UserError):
        raise
    except Exception as error:
        if model.base_url is None:
            raise  # no server: it is the code of whoever made the model
        told = f"what {model.base_url} answered cannot be read ({error}); is that the address of a model?"
        raise ModelAPIError(model.model_name, told) from error


def _whole(model: Model, response: ModelResponse) -> ModelResponse:
    """Return a response whose stream has come to its end. Raises ModelAPIError where it broke off before."""
    is_over = response.finish_reason is not None or "finish_reason" in (response.provider_details or {})
    if model.base_url is not None and not is_over and response.state != "suspended":
        raise ModelAPIError(model.model_name, "the answer broke off: its stream ended without a `finish_reason`")
    return response


def _streams(model: Model) -> bool:
    """Whether a model can stream. One for tests may be without, and a fallback is as good as its least."""
    match model:
        case FallbackModel():
            return all(_streams(candidate) for candidate in model.models)
        case FunctionModel():
            return model.stream_function is not None
        case WrapperModel():
            return _streams(model.wrapped)
        case _:
            return type(model).request_stream is not Model.request_stream


def text_of(response: ModelResponse) -> str:
    """Return what a response says in words."""
    return "".join(part.content for part in response.parts if isinstance(part, TextPart))


def _results(messages: Sequence[ModelMessage]) -> Iterator[scripted.ToolResult]:
    for message in messages:
        for part in message.parts:
            if isinstance(part, ToolReturnPart):
                yield scripted.ToolResult(
                    part.tool_name, part.tool_call_id, to_jsonable_python(part.content), part.outcome == "success"
                )


def _heard(messages: Sequence[ModelMessage]) -> str:
    parts = (part for message in messages for part in message.parts)
    return "\n\n".join(
        part.content for part in parts if isinstance(part, UserPromptPart) and isinstance(part.content, str)
    )


def _tokens(reply: scripted.Reply, latest: Sequence[ModelMessage], parts: Sequence[ModelResponsePart]) -> RequestUsage:
    if reply.tokens is not None:
        told = reply.tokens
        return RequestUsage(input_tokens=told.input, output_tokens=told.output, cache_read_tokens=told.cached)
    asked = sum(_length(part) for message in latest for part in message.parts)
    said = sum(_length(part) for part in parts)
    return RequestUsage(input_tokens=-(-asked // 4), output_tokens=-(-said // 4))


def _length(part: object) -> int:
    match part:
        case ToolCallPart():
            return len(part.tool_name) + len(_tidied_call(part).args_as_json_str())
        case ToolReturnPart():
            return len(part.model_response_str())
        case _:
            return len(str(getattr(part, "content", "")))
