"""The engine `function`: an agent is an `async def` that takes an `AgentContext`, whatever framework it uses.

The function is run from its start in every attempt, like a tool: what it does through its context is journaled, and is
not done again but gives what it gave. Code between is ordinary and runs again, so what must not run twice belongs into
a step. The journal is kept until the task has ended, for the function comes to all of it again; one that was changed so
that it does not is told so, see `AgentContext`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar, cast, overload

from outrider.agents.engine import (
    MOST_USED,
    AgentBrief,
    AgentFailed,
    AgentOutcome,
    AgentRun,
    Approval,
    Iteration,
    ToolError,
    ToolRetry,
    ToolSpec,
    said_meanwhile,
    said_plainly,
    summed,
)
from outrider.agents.telling import calling, in_step, running_agent, tell_request, tool_span
from outrider.core.errors import InvalidArguments, UnknownName
from outrider.core.task import Effects, ExpiryPolicy, Usage
from outrider.core.values import JSON, SECOND, JSONObject
from outrider.runtime.clock import span
from outrider.runtime.codec import decode, encode, jsonable, shape_for, shape_of
from outrider.runtime.failures import revive, tell
from outrider.runtime.journal import DOUBT, Branch, changed, has_handled

T = TypeVar("T")

NEWS = "news"
RAISED = "raised/"
"""Before the key of a step that raised what the function handled: the row of the error, null for a cancellation."""


class FunctionEngine:
    """Runs functions as agents."""

    name = "function"

    def said(self, text: str) -> Sequence[JSON]:
        """See `Engine.said`."""
        return said_plainly(text)

    async def run(self, brief: AgentBrief, run: AgentRun) -> AgentOutcome:
        """See `Engine.run`."""
        agent = brief.agent
        if not callable(agent):
            raise AgentFailed(f"{type(agent).__name__} is no function that takes an AgentContext", kind="rejected")
        if isinstance(brief.require_approval, list | tuple):
            known = [tool.name for tool in brief.tools]
            for name in brief.require_approval:
                if name not in known:
                    raise UnknownName.of("tool", name, known)
        ctx = AgentContext(brief, run)
        try:
            with running_agent(brief):
                returned = await agent(ctx)
        except BaseException as error:
            if not _is_spent(error):
                raise
            return AgentOutcome("max_iterations", text=ctx.text)
        try:
            answer = jsonable(returned)
        except TypeError as error:  # as often as it is asked
            message = f"the agent returned what is not JSON: {error}"
            raise AgentFailed(message, kind="invalid_result", partial=ctx.text) from None
        return AgentOutcome("answered", answer, answer if isinstance(answer, str) else ctx.text)


class AgentContext:
    """What an agent's function has of its task. One for each attempt.

    Steps, calls and questions that run side by side, as in `asyncio.gather`, need names of their own: a resumed
    agent could not tell them apart otherwise. Where one runs alone and comes to a position that its journal does not
    have, while the journal has one that it did not come to, its code was changed: it fails as `interrupted`. What a
    step raised is journaled once the function has handled it and gone on, and is raised again.
    """

    def __init__(self, brief: AgentBrief, run: AgentRun) -> None:
        self.brief = brief
        """All that it was asked, as the engine got it."""
        self.tools: Mapping[str, ToolSpec] = {
            tool.name: replace(tool, call=self._journaled(tool)) for tool in brief.tools
        }
        """The tools that the task was given, by name. `call` takes arguments and the id of the call, asks a person
        where the tool needs that, and is a step. It raises `ToolRetry` and `ToolError` for the model to read."""
        self.transcript: list[JSON] = list(brief.transcript[: brief.before])
        """What the session has said: first what is older than this task, then what it appended and heard so far."""
        self.iterations = 0
        """How many iterations the function has appended so far."""
        self.usage = Usage()
        """The sum of theirs."""
        self.text = ""
        """What it said last, which is all there is if it may go no further."""
        self._run = run
        self._main = asyncio.current_task()
        self._raised = {key.removeprefix(RAISED): told for key, told in run.journaled(RAISED).items()}
        rows = (key.removeprefix(RAISED).partition(DOUBT)[0] for key in run.journaled())
        self._known = dict.fromkeys(rows)
        """The positions that earlier attempts came to, in order."""
        self._unvisited = dict(self._known)
        self._failures: list[tuple[str, Branch, BaseException]] = []
        """What steps raised, while it is not known whether the function handles it."""
        self._uses: Counter[str] = Counter()
        self._visited: set[str] = set()
        self._open: set[str] = set()

    @property
    def prompt(self) -> str:
        """What it is asked to do."""
        return self.brief.prompt

    @property
    def system_prompt(self) -> str | None:
        """The system prompt of the agent or of the task."""
        return self.brief.system_prompt

    @property
    def model(self) -> str | JSONObject | None:
        """The model that the agent or the task names; nothing here uses it."""
        return self.brief.model

    @property
    def model_settings(self) -> JSONObject:
        """The settings that go with the model."""
        return self.brief.model_settings

    @property
    def deps(self) -> Any:
        """What the agent was registered with."""
        return self.brief.deps

    @property
    def result_schema(self) -> JSONObject | None:
        """What the answer must fit. One that does not has failed the task."""
        return self.brief.result_schema

    @overload
    async def step(
        self,
        name: str,
        fn: Callable[..., Awaitable[T]],
        /,
        *args: Any,
        effects: Effects = "idempotent",
        **kwargs: Any,
    ) -> T: ...
    @overload
    async def step(
        self, name: str, fn: Callable[..., T], /, *args: Any, effects: Effects = "idempotent", **kwargs: Any
    ) -> T: ...

    async def step(
        self, name: str, fn: Callable[..., Any], /, *args: Any, effects: Effects = "idempotent", **kwargs: Any
    ) -> Any:
        """Run `fn` and journal what it returns; once that is done it is returned and `fn` is not run again.

        The result is JSON, or fits the return annotation of `fn`. A plain function runs in a thread, which a cancel
        does not stop. `effects="once"` is as in `TaskContext.step`. Raises what `fn` raises, unjournaled. When all
        iterations that the task may have are appended no step is begun any more, and the agent ends there.
        """
        shape = shape_of(fn)

        async def body() -> JSON:
            with in_step(name):
                if inspect.iscoroutinefunction(fn):
                    value = await fn(*args, **kwargs)
                else:
                    value = await asyncio.to_thread(fn, *args, **kwargs)
                    value = await value if inspect.isawaitable(value) else value
                return jsonable(value)

        value = await self._step(f"step/{name}", body, effects)
        return value if shape.is_plain else shape.read(encode(value))

    async def call(self, tool: str, arguments: JSONObject | None = None, /, *, id: str | None = None) -> JSON:
        """Call a tool that the task was given, as a step; see `tools`. `id` sets it apart from calls beside it.

        Raises UnknownName, `ToolRetry` for arguments that do not fit, `ToolError` for a call that a person denied,
        and what the tool raises.
        """
        if tool not in self.tools:
            raise UnknownName.of("tool", tool, self.tools)
        return await self.tools[tool].call(arguments or {}, id or tool)

    async def approve(self, what: str, arguments: JSONObject | None = None, /, *, id: str | None = None) -> Approval:
        """Ask a person to approve something, parked meanwhile. No person, no approval. Tools ask by themselves."""
        with self._at(f"approve/{id or what}") as key:
            await self._keep_failures()
            decision = await self._run.approve(what, arguments or {}, key)

            async def taken() -> JSON:
                return jsonable(decision)

            return Approval(**cast("dict[str, Any]", await self._run.step(key, taken)))

    @overload
    async def ask(
        self,
        prompt: str,
        expected: type[T],
        *,
        name: str | None = None,
        details: JSON = None,
        deadline: timedelta | float | None = None,
        on_expiry: ExpiryPolicy = "remind",
        default: JSON = None,
    ) -> T: ...
    @overload
    async def ask(
        self,
        prompt: str,
        expected: JSONObject | None = None,
        *,
        name: str | None = None,
        details: JSON = None,
        deadline: timedelta | float | None = None,
        on_expiry: ExpiryPolicy = "remind",
        default: JSON = None,
    ) -> JSON: ...

    async def ask(
        self,
        prompt: str,
        expected: Any = None,
        *,
        name: str | None = None,
        details: JSON = None,
        deadline: timedelta | float | None = None,
        on_expiry: ExpiryPolicy = "remind",
        default: JSON = None,
    ) -> Any:
        """Ask whoever the session answers to, and wait; the task parks meanwhile. See `TaskContext.ask`.

        With a `default`, say `on_expiry="default"`.
        """
        shape = None if expected is None or isinstance(expected, Mapping) else shape_for(expected)
        with self._at(f"ask/{name or 'ask'}") as key:
            await self._keep_failures()
            answer = await self._run.ask(
                key,
                prompt,
                expected=expected if shape is None else shape.schema() or None,
                details=details,
                deadline=None if deadline is None else span(deadline) / SECOND,
                on_expiry=on_expiry,
                default=default,
            )
        return answer if shape is None else shape.read(encode(answer))

    async def news(self) -> str | None:
        """Return what somebody said to the agent since it was asked, or since the last news; None for nothing.

        It is for the model, before its next request: what came into the session's inbox, and messages that were sent to
        a subagent. It is taken in the transaction that appends it to the transcript, and a resumed function hears the
        same at the same place. Once all iterations that the task may have are appended there is no more.
        """
        with self._at(NEWS) as key:
            if key in self._known:
                text = cast("str | None", await self._run.step(key, _nothing))
            elif self._is_replaying or self.iterations >= self.brief.max_iterations:
                return None
            else:
                await self._keep_failures()
                text = await self._run.take_news(key)
        if text is not None:
            self.transcript.extend(said_meanwhile(text))
        return text

    async def append(
        self,
        *messages: JSON,
        usage: Usage | None = None,
        text: str | None = None,
        provider: str | None = None,
        model: str | None = None,
    ) -> None:
        """End an iteration: append its messages to the transcript, and add its usage to the task's, in one transaction.

        Any JSON is a message. `usage` is what this iteration took, `text` what the model said in it. Raises TypeError
        for a message that is not JSON, InvalidArguments for a usage that cannot be; neither ends the iteration.
        """
        if self.iterations >= max(self.brief.max_iterations, self.brief.iterations):
            raise _Spent
        kept = tuple(jsonable(message) for message in messages)  # before anything counts, and each time alike
        _check(usage)
        self.iterations += 1
        self.transcript.extend(messages)
        self.usage = summed(self.usage, usage or Usage(requests=1))
        self.text = self.text if text is None else text
        if self.iterations > self.brief.iterations:
            await self._keep_failures()
            await self._run.append(
                Iteration(
                    self.iterations,
                    kept,
                    self.usage,
                    provider,
                    model,
                    keeps_journal=True,
                )
            )
            tell_request(model or "", provider or "", usage=usage or Usage(requests=1))

    def output(self, text: str) -> None:
        """Show a piece of what is being said. Mute while the function does again what an earlier attempt did."""
        if not self._is_replaying:
            self._run.output(text)

    @property
    def _is_replaying(self) -> bool:
        return bool(self._unvisited) or self.iterations < self.brief.iterations

    def _journaled(self, tool: ToolSpec) -> Callable[[JSONObject, str], Awaitable[JSON]]:
        async def call(arguments: JSONObject, call_id: str) -> JSON:
            with self._at(f"tool/{call_id}") as key:
                given = arguments
                if tool.requires_approval:
                    decision = await self._run.approve(tool.name, arguments, key)
                    if not decision.granted:
                        raise ToolError(f"the call was denied: {decision.reason or 'no reason was given'}")
                    given = arguments if decision.arguments is None else decision.arguments

                async def body() -> JSON:
                    try:
                        with calling(tool.name, tool_span(tool.name, call_id, given)):
                            return {"value": await tool.call(given, key)}
                    except ToolRetry as error:
                        return {"retry": str(error)}
                    except ToolError as error:
                        return {"failed": str(error)}

                told = await self._begin(key, body, tool.effects)
            match told:
                case {"value": value} if len(told) == 1:
                    return value
                case {"retry": str(why)} if len(told) == 1:
                    raise ToolRetry(why)
                case {"failed": str(why)} if len(told) == 1:
                    raise ToolError(why)
                case _:  # a person gave a result for a call whose fate is unknown
                    return told

        return call

    async def _step(self, stem: str, body: Callable[[], Awaitable[JSON]], effects: Effects) -> JSON:
        with self._at(stem) as key:
            return await self._begin(key, body, effects)

    async def _begin(self, key: str, body: Callable[[], Awaitable[JSON]], effects: Effects) -> JSON:
        if (told := self._raised.get(key)) is not None:
            raise revive(encode(told))
        if key not in self._known and self.iterations >= self.brief.max_iterations:
            raise _Spent

        async def fn() -> JSON:
            self._unvisited.clear()
            value = await body()
            await self._keep_failures()
            return value

        try:
            return await self._run.step(key, fn, effects=effects)
        except BaseException as error:
            self._failures.append((key, self._branch, error))
            raise

    async def _keep_failures(self) -> None:
        """Journal what steps raised and the function has handled, now that it has come further."""
        branch = self._branch
        handled = [each for each in self._failures if has_handled(each[1], branch, {}, None)]
        self._failures = [each for each in self._failures if each not in handled]
        for key, _, error in handled:

            async def told(error: BaseException = error) -> JSON:
                return cast("JSON", decode(tell(error))) if isinstance(error, Exception) else None

            await self._run.step(f"{RAISED}{key}", told)

    @property
    def _branch(self) -> Branch:
        current = asyncio.current_task()
        return None if current is self._main else current

    def _at(self, stem: str) -> _Place:
        """Come to the next position of that name."""
        if DOUBT in stem:
            raise InvalidArguments(f"the name {stem!r} has {DOUBT!r} in it, which marks positions of ours")
        if stem in self._open:
            raise InvalidArguments(
                f"two branches of this agent are at {stem!r} at the same time; a resumed agent could not tell them "
                "apart: give each a name of its own"
            )
        while True:
            use = self._uses[stem] = self._uses[stem] + 1
            key = stem if use == 1 else f"{stem}#{use}"
            if key not in self._visited:  # a name may look like another one's number
                break
        # News are journaled only where there are some.
        if key not in self._known and self._unvisited and stem != NEWS and self._run.is_alone:
            raise changed(_told(next(iter(self._unvisited))), _told(key))
        self._visited.add(key)
        self._unvisited.pop(key, None)
        return _Place(self._open, stem, key)


async def _nothing() -> JSON:
    return None


def _told(key: str) -> str:
    """A position, as a person reads it."""
    verb, _, name = key.partition("/")
    return f"{verb} {name!r}" if name else verb


class _Place:
    """A position that the code is at, until it leaves the block."""

    __slots__ = ("_key", "_open", "_stem")

    def __init__(self, open: set[str], stem: str, key: str) -> None:
        self._open = open
        self._stem = stem
        self._key = key

    def __enter__(self) -> str:
        self._open.add(self._stem)
        return self._key

    def __exit__(self, *_: object) -> None:
        self._open.discard(self._stem)


def _check(usage: Usage | None) -> None:
    """Raise InvalidArguments for what no request can take, which would be given back to a budget, or fit no record."""
    if usage is None:
        return
    for name in ("requests", "input_tokens", "output_tokens", "cached_tokens"):
        if type(count := getattr(usage, name)) is not int or not 0 <= count <= MOST_USED:
            raise InvalidArguments(f"{name} of a usage is a whole number from 0 to {MOST_USED:,}, not {count!r:.100}")
    cost = usage.cost
    if cost is not None and (type(cost) not in (int, float) or not 0 <= cost <= MOST_USED):
        raise InvalidArguments(f"the cost of a usage is dollars from 0 to {MOST_USED:,}, or None, not {cost!r:.100}")


class _Spent(BaseException):
    """The iterations that the task may have are used up. Not for the code of the agent to handle."""


def _is_spent(error: BaseException) -> bool:
    """Whether nothing but that has ended the function, in whatever groups it was wrapped."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_spent(inner) for inner in error.exceptions)
    return isinstance(error, _Spent)
