"""The seam between the runtime and whatever runs an agent: `Engine`, and what passes between the two.

The runtime hands an engine an `AgentBrief`, which is data, and an `AgentRun`, which is the task's journal. One
**iteration** is one model request, its response, and the tool results that the response caused. The transcript is
the checkpoint: an engine starts from it and replays no finished iteration; only the open one has a journal. An engine
that has to replay, since it cannot enter its agent in the middle, has the journal kept (`Iteration.keeps_journal`).
Nothing here imports an engine; `load_engine` imports the one it is asked for.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, cast, runtime_checkable

from outrider.agents.models import ModelChoice
from outrider.core.errors import InvalidArguments, OutriderError, Refused, UnknownName
from outrider.core.task import Effects, ExpiryPolicy, Usage
from outrider.core.values import JSON, Instant, JSONObject
from outrider.settings import WorkerSettings

Stop: TypeAlias = Literal["answered", "max_iterations"]

DEFAULT_ENGINE = "pydantic-ai"

MOST_USED = 10**12
"""Requests, tokens or dollars that one iteration can take: more is a mistake of whoever told, and fits no account."""

ENGINES: Mapping[str, str] = {
    "function": "outrider.agents.function:FunctionEngine",
    "langgraph": "outrider.agents.langgraph:LangGraph",
    "pydantic-ai": "outrider.agents.pydantic_ai:PydanticAI",
}
"""Where each engine's adapter is, as `module:class`. Importing the module imports the engine."""

TOOLLESS = frozenset({"langgraph"})
"""The engines whose agents bring their own tools, and can be given none."""


ONE_FORM = frozenset({"pydantic-ai"})
"""The engines of which any agent goes on from what any other said; of the rest each agent has a form of its own."""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool that the runtime gives to an agent.

    `call` takes the arguments and the id of the call, and returns JSON. It may raise `ToolRetry` or `ToolError` to
    speak to the model; any other exception fails the attempt. The engine does not check the arguments against
    `parameters` (a JSON Schema of type object): `call` does, and answers with `ToolRetry`.
    """

    name: str
    description: str
    parameters: JSONObject
    call: Callable[[JSONObject, str], Awaitable[JSON]]
    requires_approval: bool = False
    effects: Effects = "idempotent"


class ToolRetry(Exception):
    """Raised by a tool: the model shall read this and call again, differently. The engine bounds how often."""


class ToolError(Exception):
    """Raised by a tool: it failed, and the model shall read why and go on. Not an error of the task."""


@dataclass(frozen=True, slots=True)
class Approval:
    """A person's decision on one tool call. `arguments`, when given, replace those that the model chose."""

    granted: bool
    reason: str | None = None
    arguments: JSONObject | None = None


@dataclass(frozen=True, slots=True)
class AgentOutcome:
    """How the agent ended. `result` is the answer as JSON; `text` is the last thing it said.

    With `max_iterations` there is no result, and `text` is all there is: never a success.
    """

    stop: Stop
    result: JSON = None
    text: str = ""

    def to_json(self) -> dict[str, JSON]:
        """Return the outcome as JSON, for the runtime to keep with the last iteration."""
        return {"stop": self.stop, "result": self.result, "text": self.text}

    @classmethod
    def from_json(cls, value: JSONObject) -> AgentOutcome:
        """Return the outcome that `to_json` wrote."""
        return cls(stop=value["stop"], result=value["result"], text=value["text"])


@dataclass(frozen=True, slots=True)
class Iteration:
    """One finished iteration: what is new in the transcript, and the totals after it.

    The first one of a task carries the prompt. `outcome` is set on the last one only: it is durable together with
    the messages it rests on, so that a crash between here and the end of the task asks no model again.
    `keeps_journal` leaves the journal as it is, for an engine whose next attempt will come to the same keys again.
    """

    number: int
    messages: tuple[JSON, ...]
    usage: Usage
    provider: str | None = None
    model: str | None = None
    outcome: AgentOutcome | None = None
    keeps_journal: bool = False


@dataclass(frozen=True, slots=True)
class AgentBrief:
    """What an engine is asked to do in one attempt, and how far earlier attempts came.

    `agent` is an agent of the engine's own making that was registered as it is; without one, the engine makes a
    plain agent of `system_prompt`, `model` and `tools`. `model` with an `agent` replaces the agent's own.

    `require_approval` is True for all tools, or names those that may not run without an approval, those of an
    `agent` too; a name that no tool has is an error, since a call might pass where one was meant. In `tools` it is
    marked already. A name that is `spawnable` may be that of a tool which the agent reaches through others only.

    With `asked` the transcript ends with the prompt already, as `Engine.said` writes it, and it is sent from there.

    `transcript` holds the messages of every finished iteration of the session, this task's included, in the
    engine's format; the first `before` of them are older than the prompt. `iterations` and `usage` count what was done
    about this prompt alone; it is sent when `iterations` is 0.
    """

    task_id: str
    session_id: str
    attempt: int
    prompt: str
    asked: bool = False
    system_prompt: str | None = None
    agent: object | None = None
    deps: object | None = None
    model: str | JSONObject | None = None
    model_settings: JSONObject = field(default_factory=dict)
    tools: Sequence[ToolSpec] = ()
    require_approval: bool | Sequence[str] = False
    spawnable: Sequence[str] = ()
    max_iterations: int = WorkerSettings().iterations
    result_schema: JSONObject | None = None
    transcript: Sequence[JSON] = ()
    before: int = 0
    iterations: int = 0
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A model request that is about to be made.

    `model` is what the task named, else the engine's name for it; `provider` is who answers. `input_tokens` counts what
    is sent, rather too much than too little; it is called only where somebody wants to know, and so is `price`: what so
    many tokens in and out cost in dollars, None where no price is known. `output_tokens` is the most that the answer
    may have, None where nobody has said.
    """

    model: str
    provider: str
    input_tokens: Callable[[], int]
    output_tokens: int | None
    price: Callable[[int, int], float | None]


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to make one model request, whose answer has no more than `output_tokens`; None for no bound."""

    call: ModelCall
    output_tokens: int | None


@runtime_checkable
class Choosy(Protocol):
    """An engine that can tell whether it knows a model before it is to run it."""

    def check_model(self, choice: ModelChoice) -> None:
        """Raise UnknownName for a model that it does not know. Whether its key is here does not count."""
        ...


class AgentRun(Protocol):
    """The task's journal and voice during one attempt; the runtime's side of the seam.

    Every verb may raise a `BaseException` (`Parked`, `Superseded`, a cancellation): an engine lets it pass and
    wraps it in no group. An `Exception` of the runtime's own passes likewise, unchanged and unretried.
    """

    async def step(self, key: str, fn: Callable[[], Awaitable[JSON]], *, effects: Effects = "idempotent") -> JSON:
        """Return what `key` has in the journal of the open iteration, or run `fn` and journal what it returns.

        Durable before it returns. An exception of `fn` is not journaled and passes through as it is: the step is as
        if it had never begun. Several steps may be open at once, under different keys. A value that a person gave
        for a `once` step whose fate is unknown is returned like any other.
        """
        ...

    def journaled(self, prefix: str = "") -> Mapping[str, JSON]:
        """Return what the journal of the open iteration held when asked, by key, in the order it was written.

        Of the keys that begin with `prefix`. For a step that is what it returned; a question that was asked is there
        too, whatever its answer, under its key. A step that is not done is not.
        """
        ...

    async def reserve(self, call: ModelCall) -> Permit:
        """Have a model request allowed, right before it is sent: called inside its step, so never for a journaled one.

        Raises `Busy` or `AgentFailed`, to be passed through unchanged but for `partial`.
        """
        ...

    async def settle(self, permit: Permit, usage: Usage | None, failure: ModelFailed | None = None) -> float | None:
        """Say what a permitted request took, as soon as that is known; None with the failure where it failed.

        Returns what it cost in dollars, None where no price is known. A request that was cancelled is not settled.
        """
        ...

    async def append(self, iteration: Iteration) -> None:
        """Append a finished iteration to the transcript, take its totals, and forget the journal before it.

        One transaction. An iteration with an outcome is the last: the task is not handed to an engine again, and it is
        durable with the end of the task.
        """
        ...

    async def news(self) -> str | None:
        """Return what somebody says to the agent meanwhile, None for nothing; to be asked before each request.

        It goes to the model with that request, as said by the user, and into the messages of the iteration that the
        request closes: with those it is taken from the inbox. Not to be asked where no iteration is closed.
        """
        ...

    async def has_news(self) -> bool:
        """Return whether there is something to `take_news` of."""
        ...

    async def take_news(self, key: str) -> str | None:
        """Take from the inbox what somebody says to the agent meanwhile, and return it; None for nothing.

        One transaction takes it, appends it to the transcript (as `said_meanwhile`) and journals it as the step `key`
        of the open iteration: so it is heard once, and an attempt that finds that key has it from the journal. For
        engines that do not close an iteration with each request. Nothing is journaled of nothing.
        """
        ...

    @property
    def is_alone(self) -> bool:
        """Whether no asyncio task that the engine's code has started is under way beside it."""
        ...

    async def ask(
        self,
        key: str,
        prompt: str,
        *,
        expected: JSONObject | None = None,
        details: JSON = None,
        deadline: float | None = None,
        on_expiry: ExpiryPolicy = "remind",
        default: JSON = None,
    ) -> JSON:
        """Return the answer to a question, asking it and parking if there is none yet.

        The question belongs to `key` in the open iteration, and its answer is the same every time. One that does not
        fit `expected`, a JSON Schema, is refused and never returned. `deadline` is in seconds; what happens then is
        as `TaskContext.ask` has it. Several may be asked at once, under different keys.
        """
        ...

    async def approve(self, tool: str, arguments: JSONObject, call_id: str, *, key: str | None = None) -> Approval:
        """Return a person's decision on a tool call, asking and parking if there is none yet.

        The decision belongs to `call_id` in the open iteration, this tool and these arguments. `key` is that of the
        step by which the call is made, `call_id` unless given: until that is journaled, a decision that has grown old,
        or is about something else, is asked for again. No person, no approval.
        """
        ...

    def output(self, text: str) -> None:
        """Show a piece of what the model is saying. Called for live responses only, never for journaled ones."""
        ...

    def mismatch(self, result: JSON) -> str | None:
        """Return why a result does not fit the task's `result_schema`, or None if it does."""
        ...


class Engine(Protocol):
    """Runs agents. One instance serves many attempts at once and keeps nothing of any."""

    @property
    def name(self) -> str:
        """The name it is chosen by."""
        ...

    def said(self, text: str) -> Sequence[JSON]:
        """Return what the transcript is to hold of a text that the user says: messages in the engine's format."""
        ...

    async def run(self, brief: AgentBrief, run: AgentRun) -> AgentOutcome:
        """Run an agent from where its transcript ends until it has answered or may go no further.

        Every model request and tool call goes through `run.step`, every finished iteration through `run.append`,
        the last with the outcome that is returned; an engine that can tell the outcome from what is durable already
        may do without. Raises `UnknownName` and `ModelNotReady` before anything is asked of a model, `AgentFailed`
        for what the model or its provider did, and a tool's exception as it is.
        """
        ...


class ModelNotReady(Refused):
    """The model is known, but cannot be used here: its package or its key is missing."""

    code = "model_not_ready"


class AgentFailed(OutriderError):
    """The agent cannot go on. `kind` is the kind of the task's error; `partial` is the last thing it said, or the
    result that it had reported.

    `retryable` says whether another attempt could fare better; `retry_after` is what the provider asked for, in
    seconds. `last` is the iteration that it failed in, where no other attempt will close it: its totals count too.
    """

    code = "agent_failed"
    last: Iteration | None = None

    def __init__(
        self,
        message: str,
        *,
        kind: str = "exception",
        details: JSON = None,
        retryable: bool = False,
        retry_after: float | None = None,
        partial: str = "",
    ) -> None:
        super().__init__(message, details=details)
        self.kind = kind
        self.retryable = retryable
        self.retry_after = retry_after
        self.partial: JSON = partial


class ModelFailed(AgentFailed):
    """The provider refused, broke off, or did not answer in time (kind `timeout`)."""

    code = "model_failed"

    @property
    def status(self) -> int | None:
        """The HTTP status that the provider answered with; None where it did not answer."""
        return self.details.get("status") if isinstance(self.details, Mapping) else None


class Busy(ModelFailed):
    """The model may not be asked before `until`. With `elsewhere` another model may be, at once.

    `is_broken`: because its provider has failed too often.
    """

    code = "model_busy"

    def __init__(self, message: str, until: Instant, *, elsewhere: bool, is_broken: bool = False) -> None:
        super().__init__(message, retryable=True)
        self.until = until
        self.elsewhere = elsewhere
        self.is_broken = is_broken


class ModelMisbehaved(AgentFailed):
    """The model answered, but with nothing usable, as often as it was asked (`no_result`, `schema_mismatch`)."""

    code = "model_misbehaved"


SAID = "said"


def said_plainly(text: str) -> tuple[JSON, ...]:
    """What a transcript holds of a text that the user says, for engines without a form of their own."""
    return ({SAID: text},)


def said_meanwhile(text: str) -> tuple[JSON, ...]:
    """The same of what the user said in the middle of a run, which is no prompt."""
    return ({SAID: text, "meanwhile": True},)


def is_said(message: JSON) -> bool:
    """Whether an entry of a transcript is of `said_plainly`."""
    return isinstance(message, dict) and message.keys() == {SAID}


def said_in(message: JSON) -> str | None:
    """What an entry of a transcript has the user say, in whichever engine's form; None for one of another kind."""
    match message:
        case {"said": text} if is_said(message):
            return str(text)
        case {"kind": "request", "parts": list(parts)}:
            texts = [part["content"] for part in parts if _is_of_user(part)]
            return "\n".join(map(str, texts)) if texts else None
        case _:
            return None


def _is_of_user(part: JSON) -> bool:
    return isinstance(part, dict) and part.get("part_kind") == "user-prompt" and isinstance(part.get("content"), str)


def summed(one: Usage, other: Usage) -> Usage:
    """Return what two usages come to. The cost is that of those whose price is known."""
    costs = [usage.cost for usage in (one, other) if usage.cost is not None]
    return Usage(
        requests=one.requests + other.requests,
        input_tokens=one.input_tokens + other.input_tokens,
        output_tokens=one.output_tokens + other.output_tokens,
        cached_tokens=one.cached_tokens + other.cached_tokens,
        cost=sum(costs) if costs else None,
    )


def engine_for(agent: object, chosen: str | None = None) -> str:
    """Return the name of the engine that runs this object as it is: the chosen one, if it can. Imports nothing.

    Raises UnknownName for an engine that there is not, and InvalidArguments for an object that no engine runs, or not
    the chosen one: a plain function too, since one that waits for a model would hold up all others.
    """
    if chosen is not None and chosen not in tuple(ENGINES):  # what has no hash is refused alike
        raise UnknownName.of("engine", str(chosen), ENGINES)
    if agent is None:
        if chosen not in (None, DEFAULT_ENGINE):
            raise InvalidArguments(f"the engine {chosen} makes no agent of its own: pass it one")
        return DEFAULT_ENGINE
    if isinstance(agent, type):
        raise InvalidArguments(f"an agent is an instance, and {agent.__module__}.{agent.__qualname__} is a class")
    if chosen == "function" and callable(agent) and not inspect.isroutine(agent):
        return chosen  # whether what it returns can be awaited, its call will tell
    made_for = _engine_of(agent)
    if chosen not in (None, made_for):
        raise InvalidArguments(f"the engine {chosen} does not run {agent!r:.100}, which is made for {made_for}")
    return made_for


def _engine_of(agent: object) -> str:
    if inspect.iscoroutinefunction(agent):
        return "function"
    if inspect.isroutine(agent):
        raise InvalidArguments(f"an agent's function is an `async def` that takes an AgentContext, not {agent!r:.100}")
    homes = {each.__module__.partition(".")[0] for each in type(agent).__mro__}
    if "langgraph" in homes:
        if hasattr(agent, "compile"):
            raise InvalidArguments(f"this {type(agent).__name__} is not compiled: pass what its .compile() returns")
        return "langgraph"
    if "pydantic_ai" in homes:
        return DEFAULT_ENGINE
    raise InvalidArguments(
        "an agent is an Agent of pydantic-ai, a compiled graph of LangGraph, or an `async def` that takes an "
        f"AgentContext, not {agent!r:.100}"
    )


def load_engine(name: str = DEFAULT_ENGINE) -> Engine:
    """Import an engine, which takes seconds, and return it. Raises UnknownName."""
    try:
        module, attribute = ENGINES[name].split(":")
    except KeyError:
        raise UnknownName.of("engine", name, ENGINES) from None
    return cast("Engine", getattr(importlib.import_module(module), attribute)())
