"""How the task's journal gets into a run: each model request, each tool call and each approval passes here.

Tool calls are journaled by the id of the call, whatever toolset they go to, so no toolset needs an id of its own.
To bind a `Durability` to an agent takes the engine as long as a request, so one that is bound serves many attempts at
once: which of them a run is of is in its context.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, get_args

from pydantic import TypeAdapter
from pydantic_ai import AbstractToolset, RunContext, ToolsetTool, WrapperToolset
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.capabilities import WrapToolExecuteHandler
from pydantic_ai.durable_exec import (
    JSON_CODEC,
    BaseDurabilityCapability,
    CapabilityOperationId,
    DurabilityEngineSpec,
    DurableOperationId,
    JournalCallableOperationBackend,
    ModelCompactMessagesId,
    ModelRequestId,
    RoleBasedOperationConfig,
    durable_unit_scope,
)
from pydantic_ai.exceptions import ModelRetry, ToolFailed, ToolFailedError, ToolRetryError
from pydantic_ai.messages import ToolCallPart, ToolReturn, ToolReturnContent
from pydantic_ai.models import Model, ModelRequestContext, ModelResolutionContext
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolDefinition
from pydantic_core import SchemaValidator, core_schema

from outrider.agents.engine import AgentFailed, ToolError, ToolRetry, ToolSpec
from outrider.agents.pydantic_ai.serving import ServingModel, all_well_formed
from outrider.agents.telling import calling, error_type, listening
from outrider.core.task import Effects
from outrider.core.values import JSON
from outrider.runtime.attempt import belonging_to_nobody
from outrider.runtime.codec import encode

if TYPE_CHECKING:
    from outrider.agents.pydantic_ai.attempt import Attempt


METADATA_KEY = "outrider"
"""Where a user's own tool declares its effects: `metadata={"outrider": {"effects": "once"}}`."""

CONNECTION_CLOSED = -32000
"""What the MCP SDK raises of its own, with the message `Connection closed`, has this code."""

_TOLD = {"retry": ToolRetry.__name__, "failed": ToolError.__name__}
"""What an outcome that the model is told of counts as."""

CHOSEN = "chosen"
"""What the model that a task names is called in its run."""

CORRECTIONS = 3
"""How often in a row the model may correct one tool's call, or its answer. The engine counts in memory: a new attempt
starts anew, and the limit on iterations holds over all of them."""

_ATTEMPT: ContextVar[Attempt] = ContextVar("attempt of an agent")

_RETURN: TypeAdapter[ToolReturn[Any]] = TypeAdapter(ToolReturn)
_CONTENT: TypeAdapter[Any] = TypeAdapter(ToolReturnContent)


def tool_key(call_id: str) -> str:
    """The key of a call's step."""
    return f"tool/{call_id}"


@contextmanager
def attempting(attempt: Attempt) -> Iterator[None]:
    """What is run in here is of this attempt."""
    token = _ATTEMPT.set(attempt)
    try:
        yield
    finally:
        _ATTEMPT.reset(token)


class Durability(BaseDurabilityCapability[Any]):
    """What makes the runs of an agent durable that are made while `attempting`; no others are to be made with it."""

    engine_spec = DurabilityEngineSpec(
        engine_name="Outrider",
        durable_unit_noun="step",
        durable_container_noun="task",
        codec=JSON_CODEC,
        wrapped_toolset_kinds=frozenset(),
        journal_discovery=False,
    )

    @property
    def _attempt(self) -> Attempt:
        return _ATTEMPT.get()

    @property
    def in_durable_context(self) -> bool:
        """Always: a run that it is added to is one of a task."""
        return True

    def get_durable_operation_backend(self) -> Journal:
        """Where the base sends model requests and the durable operations of other capabilities."""
        return _JOURNAL

    def get_wrapper_model(self, model: Model) -> Model:
        """Wrap whichever model serves a request."""
        return ServingModel(model, self._attempt)

    def _bind_to_agent(self, agent: AbstractAgent[Any, Any]) -> None:
        # The base would wrap each toolset, and refuses those without an id. Calls are journaled in
        # `wrap_tool_execute` instead, whatever toolset they go to. Model requests it would bind each for itself, since
        # some engines name them by the model.
        self._bound_model_operations = self._bind_model_operations(_JOURNAL, model_id=None, model_name="")

    def _registered_model_id(self, model: Model) -> tuple[bool, str | None]:
        # The base knows those alone that the agent was bound with.
        is_known, model_id = super()._registered_model_id(model)
        return (True, CHOSEN) if not is_known and model is self._attempt.model else (is_known, model_id)

    async def resolve_model_id(self, ctx: ModelResolutionContext[Any], *, model_id: str) -> Model | None:
        """Find the model that the task names."""
        if model_id == CHOSEN and self._attempt.model is not None:
            return self._attempt.model
        return await super().resolve_model_id(ctx, model_id=model_id)

    def get_wrapper_toolset(self, toolset: AbstractToolset[Any]) -> AbstractToolset[Any] | None:
        """Give an agent of our own making its tools, in the place of those that it was made with: none.

        Beside them, each request would be prepared in several asyncio tasks. An agent of the user's keeps what it has.
        """
        brief = self._attempt.brief
        if brief.agent is not None:
            return SharedTools(toolset)
        if not brief.tools:
            return None
        return toolset.visit_and_replace(lambda _: GivenTools(brief.tools))

    async def before_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        """Close the iteration before, and show the engine no more than it needs."""
        # Innermost, so the request is as it will be sent, with whatever tools have enqueued.
        await self._attempt.open_iteration(ctx.messages[-1], ctx.usage)
        if self._attempt.shortens_history:
            ctx.messages[:] = self._attempt.shorten(ctx.messages)
            request_context.messages = list(ctx.messages)
        return await super().before_model_request(ctx, request_context)

    async def prepare_tools(self, ctx: RunContext[Any], tool_defs: list[ToolDefinition]) -> list[ToolDefinition]:
        """Mark the tools that may not run without an approval, whoever gave them."""
        return [
            replace(tool, kind="unapproved") if tool.name in gated and tool.kind == "function" else tool
            for gated in [self._attempt.gated({tool.name for tool in tool_defs})]
            for tool in tool_defs
        ]

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: WrapToolExecuteHandler,
    ) -> Any:
        """Journal a tool call, what it tells the model included."""

        async def body() -> JSON:
            with durable_unit_scope(), calling(call.tool_name) as told:
                try:
                    outcome = await _outcome_of(call.tool_name, handler(args))
                except Exception as error:
                    listening().mark("execute_tool", error_type(error))
                    raise
                told.error = next((error for name, error in _TOLD.items() if name in outcome), None)
                if told.error is not None:
                    listening().mark("execute_tool", told.error)
                return outcome

        effects = effects_of(tool_def, self._attempt.brief.tools)
        journaled = await self._attempt.step(tool_key(call.tool_call_id), body, effects=effects)
        return _replayed(journaled)

    async def handle_deferred_tool_calls(
        self, ctx: RunContext[Any], *, requests: DeferredToolRequests
    ) -> DeferredToolResults | None:
        """Have the calls that need approval decided before they run."""
        if not requests.approvals:
            return None
        decisions = await self._attempt.decide(requests.approvals)
        return DeferredToolResults(approvals=dict(decisions))

    async def after_output_process(self, ctx: RunContext[Any], *, output_context: Any, output: Any) -> Any:
        """Hold an answer against the task's schema."""
        if not ctx.partial_output:
            self._attempt.judge(output)
        return output


class Journal(JournalCallableOperationBackend[None]):
    """Runs what the engine calls a durable unit as a step of the open iteration."""

    def __init__(self) -> None:
        nothing = RoleBasedOperationConfig[None](model=None, event=None, capability=None, tool=None)
        super().__init__(agent_name="", config=nothing)

    async def execute(
        self,
        *,
        operation_id: DurableOperationId,
        name: str,
        body: Callable[[], Awaitable[object]],
        cache_key: tuple[object, ...],
        config: None,
    ) -> object:
        """Run `body`, or return what it returned before."""
        attempt = _ATTEMPT.get()
        match operation_id:
            case ModelRequestId(streaming=False):
                return await attempt.step("model", _readable(body))
            case ModelRequestId():
                return await attempt.step("model", _heard(_readable(body)))
            case ModelCompactMessagesId():
                return await attempt.step("compact", body)
            case CapabilityOperationId(capability_id=capability, operation=operation):
                return await attempt.step(f"capability/{capability}.{operation}", body)
            case _:
                # Event handlers and clean-up: nothing that the run depends on.
                return await body()


_JOURNAL = Journal()


def _heard(body: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[object]]:
    """Show a response that a handler of the user's streams for itself, once it is whole."""

    async def heard() -> object:
        payload = await body()
        if isinstance(payload, dict):
            parts = payload.get("parts", ())
            _ATTEMPT.get().say("".join(part["content"] for part in parts if part.get("part_kind") == "text"))
        return payload

    return heard


def _readable(body: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[object]]:
    """What a model says as text that can be kept: halves of characters, which JSON can tell of, are none."""

    async def readable() -> object:
        return all_well_formed(await body())

    return readable


class GivenTools(AbstractToolset[Any]):
    """The tools that the runtime gives. Only that the arguments are an object is checked here."""

    _OBJECT = SchemaValidator(core_schema.dict_schema(core_schema.str_schema()))

    def __init__(self, specs: Sequence[ToolSpec]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._tools = {spec.name: self._tool(spec) for spec in specs}

    @property
    def id(self) -> str:
        """The name that errors give it."""
        return "outrider"

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        """All of them, in every iteration."""
        return self._tools

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> Any:
        """Call a tool, and put what it says to the model into the engine's words."""
        try:
            return await self._specs[name].call(tool_args, ctx.tool_call_id or "")
        except ToolRetry as error:
            raise ModelRetry(str(error)) from error
        except ToolError as error:
            raise ToolFailed(str(error)) from error

    def _tool(self, spec: ToolSpec) -> ToolsetTool[Any]:
        definition = ToolDefinition(
            name=spec.name,
            description=spec.description,
            parameters_json_schema=dict(spec.parameters),
            kind="unapproved" if spec.requires_approval else "function",
        )
        return ToolsetTool(toolset=self, tool_def=definition, max_retries=CORRECTIONS, args_validator=self._OBJECT)


class SharedTools(WrapperToolset[Any]):
    """The toolsets of a user's agent. All runs share what these open, such as the connection to an MCP server, and it
    closes with the last of them: so none of it is to be ended with the attempt that happens to open it."""

    async def __aenter__(self) -> Self:
        """Open what no run before has opened."""
        with belonging_to_nobody():
            return await super().__aenter__()

    async def __aexit__(self, *args: Any) -> bool | None:
        """Close what no other run has open."""
        with belonging_to_nobody():
            return await super().__aexit__(*args)

    async def for_run_step(self, ctx: RunContext[Any]) -> AbstractToolset[Any]:
        """A toolset that is made for each step is opened here."""
        with belonging_to_nobody():
            return await super().for_run_step(ctx)


async def _outcome_of(tool: str, call: Awaitable[Any]) -> dict[str, JSON]:
    """Return what a tool did as JSON: what it returned, or what it told the model. Other exceptions pass."""
    try:
        returned = await call
    except (ModelRetry, ToolRetryError, ToolFailed, ToolFailedError) as error:
        if _broke_off(error):
            # No fault of the model's, which would be told to call it again, whether or not it has happened.
            raise ConnectionError(f"the MCP server broke off in the midst of a call to {tool}") from error
        return {"retry" if isinstance(error, ModelRetry | ToolRetryError) else "failed": _said(error)}
    try:
        if isinstance(returned, ToolReturn):
            outcome = {"returned": _RETURN.dump_python(returned, mode="json")}
        else:
            outcome = {"value": _CONTENT.dump_python(returned, mode="json")}
        encode(outcome)
    except (TypeError, ValueError) as error:  # as often as it is called
        raise AgentFailed(f"the tool {tool} returned what is not JSON: {error}", kind="invalid_result") from None
    return outcome


def _replayed(outcome: JSON) -> Any:
    """Do again, for the engine, what `_outcome_of` wrote down."""
    match outcome:
        case {"retry": message}:
            raise ModelRetry(message)
        case {"failed": message}:
            raise ToolFailed(message)
        case {"returned": returned}:
            return _RETURN.validate_python(returned)
        case {"value": value} if len(outcome) == 1:
            return _CONTENT.validate_python(value)
        case _:
            # A person gave a result for a call whose fate is unknown.
            return outcome


def _broke_off(error: BaseException | None) -> bool:
    """Whether what a tool told the model comes of a connection to an MCP server that was lost."""
    while error is not None:
        told = getattr(error, "error", None)
        if getattr(told, "code", None) == CONNECTION_CLOSED and getattr(told, "message", None) == "Connection closed":
            return True
        error = error.__cause__
    return False


def _said(error: Exception) -> str:
    """The message for the model; the engine keeps the tool's own exception as the cause of its wrapper."""
    cause = error if isinstance(error, ModelRetry | ToolFailed) else error.__cause__
    return cause.message if isinstance(cause, ModelRetry | ToolFailed) else str(error)


def effects_of(tool: ToolDefinition, given: Sequence[ToolSpec]) -> Effects:
    """As declared by us, by the user's metadata, or by the hints of an MCP server."""
    for spec in given:
        if spec.name == tool.name:
            return spec.effects
    metadata = tool.metadata or {}
    declared = metadata.get(METADATA_KEY)
    if isinstance(declared, dict) and declared.get("effects") in get_args(Effects):
        return "once" if declared["effects"] == "once" else "idempotent"
    hints = metadata.get("annotations")
    if isinstance(hints, dict) and hints.get("destructiveHint") is True and not hints.get("idempotentHint"):
        return "once"
    return "idempotent"
