"""One attempt at a graph's task: run it from its last checkpoint, ask what it interrupts itself for, and go on."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Generator, Mapping
from contextlib import aclosing, suppress
from typing import Any, cast

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.channels import BinaryOperatorAggregate, DeltaChannel
from langgraph.errors import GraphDrained, GraphRecursionError
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import Pregel
from langgraph.runtime import RunControl
from langgraph.types import Command, Interrupt
from pydantic_core import to_jsonable_python

from outrider.agents.engine import SAID, AgentBrief, AgentFailed, AgentOutcome, AgentRun, ModelFailed
from outrider.agents.langgraph.changes import check
from outrider.agents.langgraph.checkpoints import Checkpoints, Saver
from outrider.agents.langgraph.telling import Listener
from outrider.core.values import JSON, JSONObject
from outrider.runtime.clock import retry_after
from outrider.runtime.codec import encode

OUTCOME = "outcome"
MESSAGES = "messages"
PROMPTS = ("question", "prompt", "message")
"""Where an interrupt with several fields has its question."""


class _Saved:
    """Awaited, it is over."""

    def __await__(self) -> Generator[None]:
        return
        yield


# With durability "sync" LangGraph awaits the last checkpoint of each subgraph, of those too that are compiled with
# `checkpointer=False` and save none: there it would miss this name, which it sets with the first that is saved.
with suppress(ImportError):  # another version may have it elsewhere
    from langgraph.pregel._loop import AsyncPregelLoop

    if not hasattr(AsyncPregelLoop, "_put_checkpoint_fut"):
        AsyncPregelLoop._put_checkpoint_fut = _Saved()  # type: ignore[assignment]  # what is no future is awaited alike


class Attempt:
    """One attempt at one task."""

    def __init__(self, brief: AgentBrief, run: AgentRun) -> None:
        self.brief = brief
        self.run = run
        self.graph = self._graph()
        self.control = RunControl()
        """Told to stop when the iterations are used up, or there is news: the graph starts no superstep after that."""
        deltas = frozenset(name for name, channel in self.graph.channels.items() if isinstance(channel, DeltaChannel))
        self.checkpoints = Checkpoints(brief, run, deltas, self._pause)
        self.graph.checkpointer = self.saver = Saver(self.checkpoints)
        # One without a reducer would lose all that was said before.
        self.listens = isinstance(self.graph.channels.get(MESSAGES), BinaryOperatorAggregate | DeltaChannel)
        self.speaking: str | None = None
        """The message that is being shown."""
        self.line_open = False

    async def drive(self) -> AgentOutcome:
        """Run the graph until it has nothing to do, or may do no more."""
        if (ended := self.run.journaled(OUTCOME).get(OUTCOME)) is not None:
            return AgentOutcome.from_json(cast("JSONObject", ended))
        if not self.checkpoints.is_new:
            check(self.saver, "", self.graph.nodes.keys(), self.graph.channels)
        if self._is_spent or (self.checkpoints.iterations and self.checkpoints.is_between and self._heard() is None):
            await self._pause()  # what was heard already it is told first
        given: Any = None
        if self.checkpoints.is_new:
            given = self._input()
        elif (heard := self._heard()) is not None:
            given = heard
        # What a crash left may show a question that is answered; to go on without an answer shows the one that is not.
        elif not self.checkpoints.are_interrupts_stale:
            given = await self._answers((await self.graph.aget_state(self._config())).interrupts)
        while True:
            # On resume, too: all tasks of a superstep may have ended, and nobody have closed it.
            try:
                await self._advance(given)
            except GraphRecursionError:
                return await self._spent()
            except GraphDrained:
                if self._is_spent:
                    return await self._spent()
                given = await self._hear()
                continue
            state = await self.graph.aget_state(self._config())
            if not state.next:
                return self._answered(state.values)
            if not state.interrupts:
                raise AgentFailed(
                    f"the graph stopped before {', '.join(state.next)} and asked nothing: use interrupt(), which is "
                    "asked as a question, in place of a static breakpoint",
                    kind="rejected",
                    partial=_last_text(state.values),
                )
            given = await self._answers(state.interrupts)

    async def _advance(self, given: Any) -> None:
        stream: Any = self.graph.astream(
            given,
            self._config(),
            context=cast("Any", self.brief.deps),
            stream_mode="messages",
            subgraphs=True,
            durability="sync",
            control=self.control,
        )
        try:
            async with aclosing(stream):
                async for _, (message, _) in stream:
                    if isinstance(message, AIMessage):
                        self._say(message)
        except (GraphDrained, GraphRecursionError):
            raise
        except Exception as error:
            if self.checkpoints.fault is not None:
                raise self.checkpoints.fault from (None if error is self.checkpoints.fault else error)
            status = getattr(error, "status_code", None)  # as the clients of all providers have it
            if not isinstance(status, int):
                raise
            state = await self.graph.aget_state(self._config())
            raise ModelFailed(
                str(error)[:2048],
                details={"status": status},
                retryable=status >= 500 or status in (408, 409, 425, 429),
                retry_after=_asked(error),
                partial=_last_text(state.values),
            ) from error
        finally:
            self._end_line()
        if self.checkpoints.fault is not None:
            raise self.checkpoints.fault

    @property
    def _is_spent(self) -> bool:
        return self.checkpoints.iterations >= self.brief.max_iterations

    async def _pause(self) -> None:
        """A superstep has ended: have the graph stop there if it may do no more, or somebody says something."""
        if self._is_spent or (self.listens and await self.run.has_news()):
            self.control.request_drain()

    async def _hear(self) -> Any:
        """Take what somebody says meanwhile; None where a call waits for its result, which has to come first."""
        self.control = RunControl()
        state = await self.graph.aget_state(self._config())
        if _has_open_calls(state.values) or await self.run.take_news(self._news_key) is None:
            return None
        return self._heard()

    def _heard(self) -> Any:
        """What the graph is to be told of it, before the superstep that comes next, whose tasks stay what they are.

        None where nothing was said, or the graph has been told.
        """
        text = self.run.journaled(self._news_key).get(self._news_key)
        if text is None or self.checkpoints.is_updated:
            return None
        return Command(update={MESSAGES: [HumanMessage(cast("str", text))]})

    @property
    def _news_key(self) -> str:
        return f"{self.checkpoints.iterations + 1}/news"

    async def _answers(self, interrupts: tuple[Interrupt, ...]) -> Any:
        """Ask all at once, so that a person sees every question; None if there is nothing to ask."""
        if not interrupts:
            return None
        if len(interrupts) == 1:
            return Command(resume={interrupts[0].id: await self._ask(interrupts[0])})
        asked = [asyncio.ensure_future(self._ask(each)) for each in interrupts]
        try:
            await asyncio.wait(asked, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        for task in asked:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        return Command(resume={each.id: task.result() for each, task in zip(interrupts, asked, strict=True)})

    async def _ask(self, interrupt: Interrupt) -> JSON:
        value = _plain(interrupt.value)
        schema = interrupt.response_schema
        prompt = value if isinstance(value, str) else "The graph asks."
        if isinstance(value, dict):
            prompt = next((value[key] for key in PROMPTS if isinstance(value.get(key), str)), prompt)
            schema = value.get("expected") if schema is None else schema
        return await self.run.ask(
            f"interrupt/{interrupt.id}",
            prompt,
            expected=schema if isinstance(schema, dict) else None,
            details=None if isinstance(value, str) else value,
        )

    def _answered(self, values: Any) -> AgentOutcome:
        text = _last_text(values)
        outputs = self.graph.output_channels
        if isinstance(values, dict) and not isinstance(outputs, str):
            values = {name: values[name] for name in outputs if name in values}
        try:
            result = self._result(values, text)
            encode(result)
        except (TypeError, ValueError) as error:  # as often as it is asked
            message = f"the graph returned what is not JSON: {error}"
            raise AgentFailed(message, kind="invalid_result", partial=text) from None
        return AgentOutcome("answered", result, text)

    def _result(self, values: Any, text: str) -> JSON:
        if not isinstance(values, dict):
            return _plain(values)
        if "structured_response" in values:
            return _plain(values["structured_response"])
        if self.brief.result_schema is None and MESSAGES in values:
            return text
        rest = _plain({name: value for name, value in values.items() if name != MESSAGES})
        if self.brief.result_schema is None:
            return rest
        candidates = [*rest.values(), rest] if len(rest) == 1 else [rest] if rest else []
        if MESSAGES in values:
            candidates.append(_parsed(text))
        return next((each for each in candidates if self.run.mismatch(each) is None), (candidates or [None])[0])

    async def _spent(self) -> AgentOutcome:
        state = await self.graph.aget_state(self._config())
        outcome = AgentOutcome("max_iterations", text=_last_text(state.values))

        async def ending() -> JSON:
            return outcome.to_json()

        await self.run.step(OUTCOME, ending)
        return outcome

    def _input(self) -> Any:
        """What the graph is given: the prompt as a message, or as the fields that it takes."""
        prompt = self.brief.prompt
        names = self._fields()
        given = _parsed(prompt)
        if isinstance(given, dict) and given and given.keys() <= set(names):
            return given
        if MESSAGES in names:
            system = [SystemMessage(self.brief.system_prompt)] if self.brief.system_prompt else []
            return {MESSAGES: [*system, *(HumanMessage(text) for text in [*self._unheard(), prompt])]}
        if len(names) == 1:
            return {names[0]: prompt}
        if not names:
            return given
        raise AgentFailed(
            f"the graph takes {', '.join(names)}: give it a prompt that is a JSON object of these, or have it take "
            "messages",
            kind="rejected",
        )

    def _unheard(self) -> list[str]:
        """What was said to the session since the graph saved anything: in turns that came to nothing."""
        texts: list[str] = []
        for message in self.brief.transcript[: self.brief.before]:
            if isinstance(message, dict) and SAID in message:
                texts.append(message[SAID])
            else:
                texts.clear()
        return texts

    def _fields(self) -> list[str]:
        """The names of what the graph takes, none if that is one value without a name."""
        if isinstance(self.graph, CompiledStateGraph):
            # Not from its JSON Schema, which not every state has.
            return list(self.graph.builder.schemas[self.graph.builder.input_schema])
        channels = self.graph.input_channels
        return [] if isinstance(channels, str) else list(channels)

    def _config(self) -> RunnableConfig:
        brief = self.brief
        configurable: dict[str, Any] = {**brief.model_settings, "thread_id": brief.session_id}
        if brief.model is not None:
            configurable["model"] = brief.model
        return {"configurable": configurable, "callbacks": [Listener(self.checkpoints)]}

    def _graph(self) -> Pregel[Any, Any, Any, Any]:
        brief = self.brief
        if not isinstance(brief.agent, Pregel):
            raise AgentFailed(f"{type(brief.agent).__name__} is not a compiled graph of LangGraph", kind="rejected")
        if brief.tools or brief.require_approval:
            raise AgentFailed(
                "a graph brings its own tools, and asks by itself, with interrupt(); it can be given neither tools "
                "nor require_approval",
                kind="rejected",
            )
        return copy.copy(brief.agent)  # the user's stays as it is

    def _say(self, message: AIMessage) -> None:
        text = str(message.text)
        if not text or self.checkpoints.is_old(message):
            return
        if message.id != self.speaking:
            self._end_line()
            self.speaking = message.id
        self.run.output(text)
        self.line_open = not text.endswith("\n")

    def _end_line(self) -> None:
        if self.line_open:
            self.run.output("\n")
            self.line_open = False


def _asked(error: Exception) -> float | None:
    """How many seconds the provider asks to be left alone for, where its client keeps the response with the error."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    told = headers.get("retry-after") if isinstance(headers, Mapping) else None
    return retry_after(told) if isinstance(told, str) else None


def _plain(value: Any) -> Any:
    """A value of the graph's as JSON: bytes in base64, as text what has no form in it."""
    return to_jsonable_python(value, bytes_mode="base64", fallback=str)


def _last_text(values: Any) -> str:
    """What the last message says that a model wrote."""
    messages = values.get(MESSAGES, ()) if isinstance(values, dict) else ()
    said = (str(each.text) for each in reversed(messages) if isinstance(each, AIMessage))
    return next((text for text in said if text), "")


def _has_open_calls(values: Any) -> bool:
    """Whether a model has called tools that have not all answered yet."""
    answered = set[str]()
    for message in reversed(values.get(MESSAGES, ()) if isinstance(values, dict) else ()):
        if isinstance(message, ToolMessage):
            answered.add(message.tool_call_id)
        elif isinstance(message, AIMessage) and message.tool_calls:
            return any(call["id"] not in answered for call in message.tool_calls)
    return False


def _parsed(text: str) -> JSON:
    """The text as JSON if it is some, else as it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text
