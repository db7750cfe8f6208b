"""One attempt at an agent's task: from where the transcript ends, node by node, to an outcome that is durable.

An iteration is closed when the next request is ready to be sent, or at the end. The engine looks through its whole
message history several times in each iteration, so an agent of our own making is shown only the last exchange: the
rest is kept aside here and joins at the model.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from decimal import Decimal
from typing import Any, TypeVar, cast

from pydantic_ai import Agent, StructuredDict
from pydantic_ai.agent import AbstractAgent, WrapperAgent
from pydantic_ai.agent import AgentRun as EngineRun
from pydantic_ai.capabilities import AbstractCapability, Instrumentation
from pydantic_ai.durable_exec import record_durable_unit
from pydantic_ai.exceptions import (
    ContentFilterError,
    FallbackExceptionGroup,
    ModelAPIError,
    ModelHTTPError,
    ModelRequestTimeout,
    ModelRetry,
    ModelTimeoutError,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
    UserError,
)
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    ToolCallPart,
    UserPromptPart,
)
from pydantic_ai.models import Model
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import DeferredToolRequests, ToolApproved, ToolDenied
from pydantic_ai.usage import RunUsage, UsageLimits
from pydantic_core import to_json, to_jsonable_python
from pydantic_graph import End

from outrider.agents.engine import (
    AgentBrief,
    AgentFailed,
    AgentOutcome,
    AgentRun,
    Iteration,
    ModelFailed,
    ModelMisbehaved,
)
from outrider.agents.models import ModelChoice, choose
from outrider.agents.pydantic_ai.durability import CHOSEN, CORRECTIONS, Durability, GivenTools, tool_key
from outrider.agents.pydantic_ai.serving import resolve, text_of
from outrider.agents.telling import shows_content
from outrider.core.errors import UnknownName
from outrider.core.task import Effects, Usage
from outrider.core.values import JSON, JSONObject
from outrider.runtime.attempt import shorten
from outrider.runtime.codec import encode
from outrider.runtime.schemas import references_in
from outrider.runtime.telemetry import telemetry

T = TypeVar("T")

PLAIN = Agent(
    CHOSEN, defer_model_check=True, name="outrider", retries=CORRECTIONS, capabilities=[Durability(name="outrider")]
)
"""The agent of our own making, which is what the brief says in each run. To make one takes as long as a request."""

CUT_OFF = "\n[… cut here: the answer has as many tokens as it may; see max_tokens]"


class RuntimeFault(BaseException):
    """Carries an exception of the runtime's through the engine, which must not take it for a tool's or a model's."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Attempt:
    """One attempt at one task: the brief, how far it came, and the keys of the open iteration."""

    def __init__(self, brief: AgentBrief, run: AgentRun) -> None:
        self.brief = brief
        self.run = run
        self.number = brief.iterations + 1
        """The open iteration."""
        self.shortens_history = brief.agent is None
        self.unread: Sequence[JSON] = ()
        """What nobody has looked at of what the engine is not shown: the start of the transcript."""
        self.older: list[ModelMessage] = []
        """What follows on that, and is not shown either, in order."""
        self.fresh: list[ModelMessage] = []
        """What the transcript does not have yet."""
        self.answered = False
        """Whether `fresh` holds the response of the open iteration."""
        self.opened = False
        """Whether the request being made has been noted by `open_iteration`."""
        self.keys: set[str] = set()
        self.choice: ModelChoice | None = None
        """The model that the task names, if it names one."""
        self.model: Model | None = None
        """That model, while the run is open."""
        self.instructions: str | None = None
        self.last: ModelResponse | None = None
        self.usage: RunUsage | None = None
        """The totals of the open run, which the engine keeps up to date."""
        self.text = ""
        self.line_open = False
        self.mismatch: str | None = None
        self.wraps_result = False

    async def drive(self) -> AgentOutcome:
        """Open the run where the transcript ends, take it node by node, and end it durably."""
        self._look_back(self.brief.transcript)
        history = self._history(self.brief.transcript)
        prompt = self.brief.prompt if self.brief.iterations == 0 and not self.brief.asked else None
        # Without a prompt the engine sends the last message of the history again, and the transcript has it already.
        self.resends = prompt is None
        async with self._open(prompt, history) as agent_run:
            self.usage = agent_run.usage
            node = agent_run.next_node
            while not isinstance(node, End):
                if Agent.is_model_request_node(node) and self._is_spent():
                    outcome = AgentOutcome("max_iterations", text=self.text)
                    if self.answered:
                        await self._append([*self.fresh, node.request], agent_run.usage, outcome)
                    return outcome
                node = await self._advance(agent_run, node)
            return await self._finish(agent_run)

    async def step(self, key: str, body: Callable[[], Awaitable[JSON]], effects: Effects = "idempotent") -> JSON:
        """Journal `body` under a key of the open iteration that no finished or running step has."""
        claimed = self._claim(self._key(key))
        failure: Exception | None = None
        has_run = False

        async def fn() -> JSON:
            nonlocal failure, has_run
            has_run = True
            try:
                return await body()
            except Exception as error:
                failure = error
                raise

        try:
            return await self.run.step(claimed, fn, effects=effects)
        except Exception as error:
            # What failed is not journaled, so another try, by a fallback or a hook, takes the same place.
            self.keys.discard(claimed)
            if error is failure:
                raise
            raise RuntimeFault(error) from error
        finally:
            record_durable_unit(executed=has_run)  # so that no span tells again of what an earlier attempt did

    async def runtime(self, verb: Awaitable[T]) -> T:
        """Await a verb of the runtime's from inside the engine."""
        try:
            return await verb
        except Exception as error:
            raise RuntimeFault(error) from error

    async def open_iteration(self, request: ModelMessage, usage: RunUsage) -> None:
        """Close the iteration before, with this request as its last message; or note the request that is the first."""
        if self.opened:
            return
        self.opened = True
        if self.answered:
            await self._append([*self.fresh, request], usage)
        elif not self.resends:
            self.fresh.append(request)
        self.resends = False

    def shorten(self, messages: list[ModelMessage]) -> list[ModelMessage]:
        """Return the last exchange of the history and set aside what is before it."""
        start = len(messages) - 1
        while start > 0 and not isinstance(messages[start], ModelResponse):
            start -= 1
        self.older.extend(messages[:start])
        return messages[start:]

    def whole(self, messages: list[ModelMessage]) -> list[ModelMessage]:
        """Return the history as the model has to see it."""
        if self.unread:
            self.older[:0] = ModelMessagesTypeAdapter.validate_python(self.unread)
            self.unread = ()
        return [*self.older, *messages] if self.older else messages

    async def decide(self, calls: Sequence[ToolCallPart]) -> dict[str, ToolApproved | ToolDenied]:
        """Ask for all decisions at once, so that a person sees every question. Anything but a yes is a no."""
        if len(calls) == 1:
            return {calls[0].tool_call_id: await self._decide(calls[0])}
        asked = [asyncio.ensure_future(self._decide(call)) for call in calls]
        try:
            await asyncio.wait(asked, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        raised = [error for task in asked if not task.cancelled() and (error := task.exception()) is not None]
        if raised:
            raise raised[0]
        return {call.tool_call_id: task.result() for call, task in zip(calls, asked, strict=True)}

    def judge(self, output: object) -> None:
        """Send an answer that does not fit the task's schema back to the model."""
        if self.brief.result_schema is None:
            return
        self.mismatch = self.run.mismatch(self._result(output))
        if self.mismatch is not None:
            raise ModelRetry(self.mismatch)

    def say(self, text: str) -> None:
        """Show text as it arrives."""
        if text:
            self.run.output(text)
            self.line_open = not text.endswith("\n")

    def end_line(self) -> None:
        """Keep what is said next apart from what was said."""
        if self.line_open:
            self.say("\n")

    def explain(self, error: BaseException) -> BaseException:
        """Return the error that the runtime is told: ours for what the model did, any other as it is."""
        told = self._explain(error)
        if isinstance(told, AgentFailed) and not told.partial:
            told.partial = self.text
        if isinstance(told, AgentFailed) and not told.retryable and self.answered and self.usage is not None:
            told.last = self._iteration((), self.usage)
        return told

    def _explain(self, error: BaseException) -> BaseException:
        match error:
            case RuntimeFault():
                return error.error
            case FallbackExceptionGroup():
                causes = [cause for cause in error.exceptions if isinstance(cause, ModelAPIError)]
                return self._model_failed(causes[-1]) if causes else error
            case ModelAPIError():
                return self._model_failed(error)
            case UsageLimitExceeded():
                return AgentFailed(str(error), kind="budget_exceeded", partial=self.text)
            case UnexpectedModelBehavior():
                kind = "no_result" if self.mismatch is None else "schema_mismatch"
                return ModelMisbehaved(self.mismatch or _misbehaviour(error), kind=kind, partial=self.text)
            case UserError():
                return AgentFailed(str(error), kind="rejected", partial=self.text)
            case _:
                return error

    # The run

    @asynccontextmanager
    async def _open(self, prompt: str | None, history: list[ModelMessage]) -> AsyncGenerator[EngineRun[Any, Any]]:
        brief = self.brief
        self.choice = choice = choose(brief.model, brief.model_settings) if brief.model is not None else None
        self.model = model = await resolve(choice, self) if choice is not None else None
        agent, output_type = self._agent(model)
        spent = brief.usage
        # What was made for this run is closed with it: its connections are nobody else's.
        async with (
            nullcontext() if model is None else model,
            agent.iter(
                prompt,
                output_type=output_type,
                message_history=history or None,
                conversation_id=brief.task_id,
                # One attempt may answer several times.
                run_id=f"{brief.task_id}:{brief.attempt}:{len(brief.transcript)}",
                model=model,
                instructions=brief.system_prompt,
                deps=brief.deps,
                model_settings=_settings(choice.settings if choice is not None else brief.model_settings),
                usage=RunUsage(
                    requests=spent.requests,
                    input_tokens=spent.input_tokens,
                    output_tokens=spent.output_tokens,
                    cache_read_tokens=spent.cached_tokens,
                    cost=None if spent.cost is None else Decimal(str(spent.cost)),
                ),
                # Iterations are counted here, with an outcome of their own.
                usage_limits=UsageLimits(request_limit=None),
                toolsets=[GivenTools(brief.tools)] if brief.tools and agent is not PLAIN else None,
                capabilities=[
                    *_instrumentation(agent),
                    *([Durability(name=agent.name or "agent")] if agent is not PLAIN else []),
                ],
                infer_name=False,
            ) as agent_run,
        ):
            yield agent_run

    async def _advance(self, agent_run: EngineRun[Any, Any], node: Any) -> Any:
        self.opened = False
        if self.answered and Agent.is_model_request_node(node) and (news := await self._news()) is not None:
            node.request.parts = [*node.request.parts, UserPromptPart(news)]
        after = await agent_run.next(node)
        if Agent.is_model_request_node(node):
            # A hook of the user's may have answered in the model's place, past `before_model_request`.
            await self.open_iteration(node.request, agent_run.usage)
            if Agent.is_call_tools_node(after):
                self._hear(after.model_response)
                self.fresh.append(after.model_response)
                self.answered = True
        return after

    async def _news(self) -> str | None:
        try:
            return await self.run.news()
        except Exception as error:
            raise RuntimeFault(error) from error

    async def _finish(self, agent_run: EngineRun[Any, Any]) -> AgentOutcome:
        assert agent_run.result is not None
        output = agent_run.result.output
        if isinstance(output, DeferredToolRequests):
            names = ", ".join(sorted({call.tool_name for call in (*output.calls, *output.approvals)}))
            raise AgentFailed(f"the agent left calls to others, and nobody here runs them: {names}", kind="rejected")
        if isinstance(output, str) and self.last is not None and self.last.finish_reason == "length":
            output += CUT_OFF
        outcome = AgentOutcome("answered", result=self._result(output), text=self.text)
        if self.answered:
            trailing = agent_run.ctx.state.message_history[-1:]
            closing = [message for message in trailing if isinstance(message, ModelRequest)]
            await self._append([*self.fresh, *closing], agent_run.usage, outcome)
        return outcome

    async def _append(
        self, messages: Sequence[ModelMessage], usage: RunUsage, outcome: AgentOutcome | None = None
    ) -> None:
        try:
            await self.run.append(self._iteration(messages, usage, outcome))
        except Exception as error:
            raise RuntimeFault(error) from error
        self.number += 1
        self.fresh = []
        self.answered = False
        self.keys.clear()

    def _iteration(
        self, messages: Sequence[ModelMessage], usage: RunUsage, outcome: AgentOutcome | None = None
    ) -> Iteration:
        answered = self.last
        return Iteration(
            number=self.number,
            messages=tuple(self._dump(messages)),
            usage=Usage(
                requests=usage.requests,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cached_tokens=usage.cache_read_tokens,
                cost=None if usage.cost is None else float(usage.cost),
            ),
            provider=answered.provider_name if answered else None,
            model=answered.model_name if answered else None,
            outcome=outcome,
        )

    def _dump(self, messages: Sequence[ModelMessage]) -> list[JSON]:
        """Dump messages, the instructions only where they change: the engine repeats them in every request."""
        dumped: list[dict[str, JSON]] = ModelMessagesTypeAdapter.dump_python(list(messages), mode="json")
        for message in dumped:
            stated = message.get("instructions")
            if stated is not None and stated == self.instructions:
                message["instructions"] = None
            else:
                self.instructions = stated or self.instructions
        return list(dumped)

    def _look_back(self, transcript: Sequence[JSON]) -> None:
        stated = (message.get("instructions") for message in reversed(transcript) if message["kind"] == "request")
        self.instructions = next((each for each in stated if each), None)
        if self.brief.iterations:
            said = (_text_in(message) for message in reversed(transcript) if message["kind"] == "response")
            self.text = next((text for text in said if text), "")

    def _history(self, transcript: Sequence[JSON]) -> list[ModelMessage]:
        """Return what the engine is shown to begin with. To read what it is not takes time with each turn before."""
        start = 0
        if self.shortens_history:
            answers = (nth for nth in reversed(range(len(transcript))) if transcript[nth]["kind"] == "response")
            start = next(answers, 0)
        self.unread = transcript[:start]
        return ModelMessagesTypeAdapter.validate_python(transcript[start:])

    def _hear(self, response: ModelResponse) -> None:
        self.end_line()
        self.last = response
        self.text = text_of(response) or self.text

    def _is_spent(self) -> bool:
        return self.number - 1 + self.answered >= self.brief.max_iterations

    def _key(self, key: str) -> str:
        return f"{self.number}/{key}"

    def _claim(self, key: str) -> str:
        claimed, nth = key, 1
        while claimed in self.keys:
            nth += 1
            claimed = f"{key}#{nth}"
        self.keys.add(claimed)
        return claimed

    def gated(self, tools: set[str]) -> set[str]:
        """Which of the tools need an approval. Raises UnknownName, through the engine, for a name that none has."""
        wanted = self.brief.require_approval
        if isinstance(wanted, bool):
            return tools if wanted else set()
        for name in wanted:
            if name not in tools and name not in self.brief.spawnable:
                raise RuntimeFault(UnknownName.of("tool", name, tools))
        return set(wanted)

    async def _decide(self, call: ToolCallPart) -> ToolApproved | ToolDenied:
        id = call.tool_call_id
        try:
            decision = await self.run.approve(call.tool_name, call.args_as_dict(), id, key=self._key(tool_key(id)))
        except Exception as error:
            raise RuntimeFault(error) from error
        if decision.granted is not True:
            denied = "The tool call was denied"
            return ToolDenied(f"{denied}: {decision.reason}" if decision.reason else f"{denied}.")
        return ToolApproved(override_args=None if decision.arguments is None else dict(decision.arguments))

    # What the agent is made of

    def _agent(self, model: Model | None) -> tuple[AbstractAgent[Any, Any], Any]:
        schema = self.brief.result_schema
        if self.brief.agent is None:
            if model is None:
                raise AgentFailed("the task names neither an agent nor a model", kind="rejected")
            return PLAIN, self._answer_type()
        agent = self.brief.agent
        if not isinstance(agent, AbstractAgent):
            raise AgentFailed(f"{type(agent).__name__} is not an agent of pydantic-ai", kind="rejected")
        if agent.model is None and model is None:
            raise AgentFailed(
                "the agent has no model: give model= to its Agent, to app.agent, or to the task", kind="rejected"
            )
        if agent.model is None:
            # The engine makes an agent durable only if it has a model of its own; the user's stays as it is.
            agent = copy.copy(agent)
            agent.model = model  # type: ignore[misc]  # read-only on a wrapper, whose model is never None here
        return agent, self._answer_type() if schema is not None and agent.output_type is str else None

    def _answer_type(self) -> Any:
        schema = self.brief.result_schema
        if schema is None:
            return None
        if not _is_followed(schema):
            self.wraps_result = True
            told = {"description": f"It has to fit this JSON Schema: {to_json(schema).decode()}"}
            schema = {"type": "object", "properties": {"result": told}, "required": ["result"]}
        elif schema.get("type") != "object":
            # A model's answer is the arguments of a call, so always an object.
            self.wraps_result = True
            inner = {key: value for key, value in schema.items() if key != "$defs"}
            outer = {"type": "object", "properties": {"result": inner}, "required": ["result"]}
            schema = {**outer, "$defs": schema["$defs"]} if "$defs" in schema else outer
        return StructuredDict(dict(schema), name="result")

    def _result(self, output: object) -> JSON:
        try:
            result = to_jsonable_python(output, serialize_unknown=True)
            encode(result)
        except (TypeError, ValueError) as error:  # as often as it is asked
            message = f"the agent returned what is not JSON: {error}"
            raise AgentFailed(message, kind="invalid_result", partial=self.text) from None
        return result.get("result") if self.wraps_result and isinstance(result, dict) else result

    # Errors

    def _model_failed(self, error: ModelAPIError) -> ModelFailed:
        status = error.status_code if isinstance(error, ModelHTTPError) else None
        details = {"model": error.model_name, "status": status, "body": to_jsonable_python(error.body, fallback=str)}
        return ModelFailed(
            _with_reason(error)[:2048],
            kind="timeout" if isinstance(error, ModelTimeoutError | ModelRequestTimeout) else "exception",
            details=details,
            retryable=status is None or status >= 500 or status in (408, 409, 425, 429),
            retry_after=error.retry_after,
            partial=self.text,
        )


def said(text: str) -> list[JSON]:
    """What the transcript holds of a text that the user says."""
    dumped: list[JSON] = ModelMessagesTypeAdapter.dump_python([ModelRequest([UserPromptPart(text)])], mode="json")
    return dumped


def _text_in(response: JSON) -> str:
    return "".join(part["content"] for part in response["parts"] if part["part_kind"] == "text")


def _is_followed(schema: JSONObject) -> bool:
    """Whether the engine can follow all references of a schema: to its `$defs`, and in no circle.

    What it cannot follow the model is told in words; the answer is held against it all the same.
    """
    parts: Mapping[str, JSON] = schema.get("$defs") or {}
    state: dict[str, bool] = {}
    """Of the parts begun, whether they are done."""

    def ends(part: JSON) -> bool:
        for reference in references_in(part):
            name = reference.removeprefix("#/$defs/")
            if state.get(name) is False or name not in parts or name == reference:
                return False
            if name not in state:
                state[name] = False
                if not ends(parts[name]):
                    return False
                state[name] = True
        return True

    return ends({word: part for word, part in schema.items() if word != "$defs"})


def _misbehaviour(error: UnexpectedModelBehavior) -> str:
    """What a model did that is of no use, in words for whoever reads the task's error."""
    cause = error.__cause__
    why = cause.message if isinstance(cause, ModelRetry) else "" if cause is None else str(cause)
    told = error.message.partition(". Consider raising")[0]
    match error:
        case ContentFilterError():
            told = f"the provider's filter kept the answer back: {told}"
        case _ if told.startswith("Tool "):
            told = f"the model called a tool in a wrong way as often as it may: {told}"
        case _ if told.startswith("Exceeded maximum output"):
            told = f"the model gave no answer that can be used as often as it may: {told}"
            why = why or "it said nothing"
        case _:
            pass
    return shorten(f"{told}. It was told: {why}" if why else told, 2048)


def _with_reason(error: ModelAPIError) -> str:
    """What an error says, and where it says little what it came from."""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    told = str(error)
    if "ended without a `finish_reason`" in told:
        return f"the answer broke off before it was whole: {told}"
    return told if isinstance(error, ModelHTTPError) or str(root) in told else f"{told} ({type(root).__name__}: {root})"


def ungrouped(error: BaseException) -> BaseException:
    """Take one error out of a group, control flow before failures, and a cancellation last."""
    if not isinstance(error, BaseExceptionGroup) or isinstance(error, FallbackExceptionGroup):
        return error

    def rank(leaf: BaseException) -> int:
        return 2 if isinstance(leaf, asyncio.CancelledError) else 1 if isinstance(leaf, Exception) else 0

    return min((ungrouped(inner) for inner in error.exceptions), key=rank)


def _instrumentation(agent: AbstractAgent[Any, Any]) -> list[AbstractCapability[Any]]:
    """The engine's own spans and metrics; none of ours where the program instruments the agent, or all, by itself."""
    if telemetry().is_silent:
        return []
    while isinstance(agent, WrapperAgent):
        agent = agent.wrapped
    # There is no public way to ask for what `Agent.instrument_all` was told.
    if isinstance(agent, Agent) and agent._resolve_instrumentation_settings() is not None:
        return []
    settings = InstrumentationSettings(include_content=shows_content(), include_model_request_parameters=False)
    return [Instrumentation(settings=settings)]


def _settings(settings: JSONObject) -> ModelSettings | None:
    return cast("ModelSettings", dict(settings)) if settings else None
