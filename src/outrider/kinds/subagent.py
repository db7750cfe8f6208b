"""The kind `subagent`: an agent that runs in a session of its own until it has answered.

Spec: `prompt`, and any of `system_prompt`, `agent`, `model` (a list: those after the first are fallen back on),
`model_settings`, `tools`, `max_iterations`, `require_approval`. The child session's transcript is the checkpoint: each
finished iteration is appended in one transaction with its totals, and only the open iteration has journal rows, which
that transaction forgets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from outrider.agents.calls import Calls
from outrider.agents.delegation import Delegation, reported
from outrider.agents.engine import (
    DEFAULT_ENGINE,
    AgentBrief,
    AgentFailed,
    AgentOutcome,
    Approval,
    Engine,
    Iteration,
    ModelCall,
    ModelFailed,
    ModelNotReady,
    Permit,
    ToolRetry,
    ToolSpec,
    is_said,
    load_engine,
    summed,
)
from outrider.agents.models import chain, choose
from outrider.agents.patience import Patience
from outrider.agents.registered import RegisteredAgent
from outrider.core.errors import InvalidArguments, Superseded, UnknownName
from outrider.core.events import Step
from outrider.core.ledger import Page
from outrider.core.session import NewSession
from outrider.core.task import TURN, Effects, ExpiryPolicy, Usage
from outrider.core.values import JSON, Instant, JSONObject, evolve
from outrider.kinds.background_tool import call_tool
from outrider.kinds.wakes import unmarked
from outrider.runtime.attempt import Scope, cut, shorten
from outrider.runtime.codec import decode, encode, jsonable
from outrider.runtime.context import TaskContext
from outrider.runtime.ids import new_id
from outrider.runtime.registry import CheckedSpec, Registry, Tool
from outrider.runtime.schemas import mismatch

KIND = "subagent"
FIELDS = frozenset(
    {
        "prompt",
        "system_prompt",
        "agent",
        "model",
        "model_settings",
        "tools",
        "max_iterations",
        "require_approval",
    }
)
OPEN = "agent!"
"""Prefix of the journal rows of the open iteration."""
ASKED = "!ask"
"""After the key of a question, which has a row of its own beside a step of that key."""
OUTCOME = "outcome!"
ITERATION = "iteration!"
SESSION = "session!"


class Subagent:
    """Runs agents."""

    kind = KIND

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._engines: dict[str, Engine] = {}

    def routes(self) -> Iterable[str]:
        """Agents without tools, those with a tool of this app, and those registered here."""
        return [
            KIND,
            *(f"{KIND}:{name}" for name in self._registry.agents),
            *(f"{KIND}:+{name}" for name in self._registry.tools),
        ]

    def check(self, spec: JSONObject) -> CheckedSpec:
        """Check the spec's form, and that its agent and tools are known."""
        unknown = set(spec) - FIELDS
        if unknown:
            raise InvalidArguments(
                f"a subagent's spec has no {', '.join(sorted(unknown))}; it has {', '.join(sorted(FIELDS))}"
            )
        prompt = spec.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise InvalidArguments("a subagent's spec needs a prompt, which is text")
        limit = spec.get("max_iterations")
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise InvalidArguments("max_iterations is a whole number of 1 or more")
        system_prompt, settings = spec.get("system_prompt"), spec.get("model_settings")
        if not isinstance(system_prompt, str | None):
            raise InvalidArguments(f"system_prompt is text, not {system_prompt!r:.100}")
        if not isinstance(settings, Mapping | None):
            raise InvalidArguments(f"model_settings is an object, not {settings!r:.100}")
        for model in chain(spec.get("model")):
            choose(model, settings)
        agent = self._agent(spec)
        tools = self._tool_names(spec, agent)
        for name in tools:
            self._registry.tool(name)
        gated = _gated(spec, agent)
        if not isinstance(gated, bool) and (agent is None or agent.agent is None):
            for name in gated:
                if name not in tools:
                    raise UnknownName.of("tool", name, tools)
        if agent is None and not spec.get("model"):
            raise InvalidArguments("a subagent's spec needs a model or a registered agent")
        route = f"{KIND}:{agent.name}" if agent is not None else f"{KIND}:+{tools[0]}" if tools else KIND
        try:
            plain = jsonable(dict(spec))
        except TypeError as error:
            raise InvalidArguments(f"a subagent's spec is JSON: {error}") from None
        return CheckedSpec(plain, route, shorten(prompt.strip().splitlines()[0], 60))

    async def prepare(self) -> None:
        """Import the engines of registered agents, before a worker claims anything."""
        for agent in self._registry.agents.values():
            if isinstance(agent, RegisteredAgent):
                await self._engine(agent.engine)

    async def run(self, task: TaskContext) -> Any:
        """Run the agent to its answer; one that delegates goes on when it is told of what it has started."""
        agent = self._agent(task.spec)
        if agent is not None and agent.delegates:
            return await self._answer(task, await self._run_and_hear(task, agent))
        finished = task.journal.at(OUTCOME)
        if finished is None:
            outcome = await self._run_engine(task)
        else:
            outcome = AgentOutcome.from_json(decode(finished.value or b"{}"))
        return await self._answer(task, outcome)

    async def _answer(self, task: TaskContext, outcome: AgentOutcome) -> Any:
        """What the task comes to. Raises AgentFailed where the agent has not answered."""
        if outcome.stop == "max_iterations":
            raise AgentFailed(
                f"the agent had not answered after {task.live.iterations} iterations",
                kind="max_iterations",
                partial=outcome.text,
            )
        if (told := reported(task)) is not None:
            return told[0]
        answer = outcome.text if outcome.result is None else outcome.result
        limit = task.services.settings.limits.result
        if isinstance(answer, str) and len(encode(answer)) > limit:
            await task.artifact("answer.txt", answer, position="answer")
        return cut(answer, limit) if isinstance(answer, str) else answer

    async def _run_engine(self, task: TaskContext) -> AgentOutcome:
        agent = self._agent(task.spec)
        engine = await self._engine(DEFAULT_ENGINE if agent is None else agent.engine)
        session_id = await self._session_of(task)
        return await self._drive(task, engine, AgentTranscript(task, session_id), prompt=unmarked(task.spec["prompt"]))

    async def _run_and_hear(self, task: TaskContext, agent: RegisteredAgent) -> AgentOutcome:
        from outrider.kinds.turn import Ears  # not above: turns are made of what is here

        engine = await self._engine(agent.engine)
        ears = Ears(task, await self._session_of(task), engine)
        outcome = ears.finished()
        if outcome is None:
            outcome = await self._drive(task, engine, ears, prompt=unmarked(task.spec["prompt"]))
            await ears.keep(outcome)
        while outcome.stop == "answered" and await ears.hear_of_children():
            outcome = await self._drive(task, engine, ears, prompt=ears.prompt, asked=True)
            await ears.keep(outcome)
        return outcome

    async def _session_of(self, task: TaskContext) -> str:
        session_id = await _child_session(task)
        if task.live.links.child_session_id != session_id:  # or the worker was gone before it could say so
            task.report(links=evolve(task.live.links, child_session_id=session_id))
        return session_id

    async def _drive(
        self, task: TaskContext, engine: Engine, run: AgentTranscript, *, prompt: str, asked: bool = False
    ) -> AgentOutcome:
        """Have the engine go on where the transcript ends, again and elsewhere where a model fails it."""
        agent, patience = self._agent(task.spec), Patience(task)
        await patience.resume()
        delegation = await self._delegation(task, agent, run.session_id)
        while True:
            rows = await task.services.views.transcript(run.session_id)
            transcript = tuple(decode(row.message) for row in rows)
            brief = self._brief(task, agent, run.session_id, transcript, prompt, asked=asked)
            said = (nth for nth in reversed(range(len(rows))) if is_said(transcript[nth]))
            own = (nth for nth, row in enumerate(rows) if row.task_id == task.id)
            brief = evolve(
                brief,
                model=patience.choice(brief.model),
                tools=(*brief.tools, *delegation),
                before=next(said if asked else own, len(rows)),
                iterations=brief.iterations - run.done,
                usage=less(brief.usage, run.used),
                # Of a turn: for each thing that it is told. It goes on where others would begin anew.
                max_iterations=brief.max_iterations - (0 if self.kind == TURN else run.done),
            )
            try:
                return await engine.run(brief, run)
            except ModelNotReady:
                if not patience.turn():
                    raise
            except AgentFailed as error:
                if not (isinstance(error, ModelFailed) and await patience.bears(error)):
                    if (last := error.last) is not None:
                        task.report(
                            iterations=run.done + last.number,
                            usage=summed(run.used, last.usage),
                            provider=last.provider,
                            model=last.model,
                        )
                    raise
            run.restart()

    async def _delegation(self, task: TaskContext, agent: RegisteredAgent | None, session_id: str) -> list[ToolSpec]:
        """The tools by which the agent hands work off, if it does, and speaks to whoever handed it its own."""
        is_child = "tool_call_id" in task.origin
        if not is_child and (agent is None or not agent.delegates):
            return []
        session = await task.services.views.session(session_id)
        assert session is not None, "a task's session cannot be gone"

        def within(call_id: str) -> TaskContext:
            return task.within(Scope(f"{OPEN}{call_id}!"))

        delegation = Delegation(task, session, None if agent is None else agent.name, within)
        return delegation.tools() if agent is not None and agent.delegates else delegation.tools_of_child()

    def _brief(
        self,
        task: TaskContext,
        agent: RegisteredAgent | None,
        session_id: str,
        transcript: tuple[JSON, ...],
        prompt: str,
        *,
        asked: bool,
    ) -> AgentBrief:
        spec = task.spec
        given = agent or RegisteredAgent(name="")
        gated = _gated(spec, agent)
        tools = [
            _tool_spec(task, self._registry.tool(name), gated if isinstance(gated, bool) else name in gated)
            for name in self._tool_names(spec, agent)
        ]
        return AgentBrief(
            task_id=task.id,
            session_id=session_id,
            attempt=task.attempt,
            prompt=prompt,
            asked=asked,
            system_prompt=spec.get("system_prompt", given.system_prompt),
            agent=given.agent,
            deps=given.deps,
            model=spec.get("model", given.model),
            model_settings={**given.model_settings, **spec.get("model_settings", {})},
            tools=tools,
            require_approval=gated,
            max_iterations=spec.get("max_iterations") or given.max_iterations or task.services.settings.iterations,
            result_schema=task.result_schema,
            transcript=transcript,
            iterations=task.live.iterations,
            usage=task.live.usage,
        )

    async def _engine(self, name: str) -> Engine:
        engine = self._engines.get(name)
        if engine is None:
            # Importing an engine takes seconds; in a thread the loop stays alive meanwhile.
            engine = self._engines[name] = await asyncio.to_thread(load_engine, name)
        return engine

    def _agent(self, spec: JSONObject) -> RegisteredAgent | None:
        name = spec.get("agent")
        if name is None:
            return None
        agent = self._registry.agents.get(name) if isinstance(name, str) else None
        if not isinstance(agent, RegisteredAgent):
            raise UnknownName.of("agent", str(name), self._registry.agents)
        return agent

    @staticmethod
    def _tool_names(spec: JSONObject, agent: RegisteredAgent | None) -> list[str]:
        names = spec.get("tools", list(agent.tools) if agent is not None else [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InvalidArguments("tools is a list of names of registered tools")
        return names


async def _child_session(task: TaskContext) -> str:
    """The session that the agent runs in, made once.

    Its id is journaled first: one that was planned and not made is made on resume, by the same id.
    """
    row = task.journal.at(SESSION)
    session_id: str = new_id("session") if row is None else decode(row.value or b"null")
    if row is None:
        await task.write_own(SESSION, "session", encode(session_id))
    elif await task.services.views.session(session_id) is not None:
        return session_id
    parent = await task.services.views.session(task.session_id)
    assert parent is not None, "a task's session cannot be gone"
    new = NewSession(
        id=session_id,
        created_at=task.services.clock.now(),
        organization_id=parent.organization_id,
        root_session_id=parent.root_session_id,
        parent_session_id=parent.id,
        parent_task_id=task.id,
        agent=task.spec.get("agent"),
        title=shorten(task.spec["prompt"], 60),
        budget=None if parent.budget is None or "tree" not in parent.budget else {"tree": parent.budget["tree"]},
    )
    await task.services.ledger.create_session(new)
    return new.id


def _gated(spec: JSONObject, agent: RegisteredAgent | None) -> bool | list[str]:
    """The tools that need an approval, or whether all do: what the agent requires, and what the task adds to it.

    Raises InvalidArguments: a tool whose requirement is misread would run unasked.
    """
    gated: list[str] = []
    for wanted in (agent.require_approval if agent is not None else False, spec.get("require_approval", False)):
        if wanted is True:
            return True
        if wanted is False:
            continue
        if not isinstance(wanted, list | tuple) or not all(isinstance(name, str) for name in wanted):
            raise InvalidArguments("require_approval is True, or a list of names of tools")
        gated.extend(wanted)
    return gated or False


def _tool_spec(task: TaskContext, tool: Tool, needs_approval: bool) -> ToolSpec:
    async def call(arguments: JSONObject, call_id: str) -> JSON:
        try:
            checked = tool.arguments.check(arguments)
        except InvalidArguments as error:
            raise ToolRetry(error.message) from None
        scope = Scope(f"{OPEN}{call_id}!", parks=tool.effects != "once")
        returned = await call_tool(task.within(scope), tool, checked)
        try:
            value = jsonable(returned)
        except TypeError as error:  # as often as it is called
            raise AgentFailed(f"the tool {tool.name} returned what is not JSON: {error}") from None
        limit = task.services.settings.limits.result
        encoded = encode(value)
        if len(encoded) <= limit:
            return value
        return cut(value if isinstance(value, str) else encoded.decode(), limit)

    return ToolSpec(
        name=tool.name,
        description=tool.description,
        parameters=tool.arguments.schema(),
        call=call,
        requires_approval=tool.requires_approval or needs_approval,
        effects=tool.effects,
    )


def less(usage: Usage, other: Usage) -> Usage:
    """What is left of a usage without a part of it."""
    return Usage(
        usage.requests - other.requests,
        usage.input_tokens - other.input_tokens,
        usage.output_tokens - other.output_tokens,
        usage.cached_tokens - other.cached_tokens,
        None if usage.cost is None else usage.cost - (other.cost or 0.0),
    )


class AgentTranscript:
    """The journal and voice of one attempt, as an engine sees them: an `AgentRun` on one session's transcript."""

    def __init__(self, task: TaskContext, session_id: str) -> None:
        self._task = task
        self._session_id = session_id
        self.done = 0
        """How many iterations of the task are of what it was asked before."""
        self.used = Usage()
        """What those used."""
        self._calls = Calls(task)

    @property
    def session_id(self) -> str:
        """The session whose transcript it is."""
        return self._session_id

    async def step(self, key: str, fn: Callable[[], Awaitable[JSON]], *, effects: Effects = "idempotent") -> JSON:
        """Return what is journaled for the open iteration under `key`, or run `fn` and journal it."""
        with self._task.busy():
            position = self._task.journal.own(OPEN + key, "step")
            begun = await self._task.begin_step(position, effects)
            if begun is not None:
                return decode(begun)
            return decode(await self._task.finish_step(position, await fn()))

    def journaled(self, prefix: str = "") -> Mapping[str, JSON]:
        """Return what the journal of the open iteration holds under keys that begin with `prefix`."""
        return {
            row.position.removeprefix(OPEN).removesuffix(ASKED): decode(row.value or b"null")
            for row in self._task.journal.under(OPEN + prefix)
            if row.done
        }

    def restart(self) -> None:
        """The engine goes on anew from where the transcript ends, as if in another attempt."""

    async def reserve(self, call: ModelCall) -> Permit:
        """Have a model request allowed."""
        return await self._calls.reserve(call)

    async def settle(self, permit: Permit, usage: Usage | None, failure: ModelFailed | None = None) -> float | None:
        """Say what a permitted request took; returns what it cost, where that is known."""
        return await self._calls.settle(permit, usage, failure)

    async def append(self, iteration: Iteration) -> None:
        """Append a finished iteration with its totals, and forget the journal before it."""
        task = self._task
        forgotten = None if iteration.keeps_journal else OPEN
        live = evolve(
            task.live,
            iterations=self.done + iteration.number,
            usage=summed(self.used, iteration.usage),
            provider=iteration.provider,
            model=iteration.model,
        )
        now = task.services.clock.now()
        # One row, replaced each time: it tells whoever recovers the task that this attempt came further.
        steps = [self._row(ITERATION, "iteration", now, encode(iteration.number))]
        if iteration.outcome is not None:
            outcome = self.outcome_row(iteration.outcome.to_json())
            steps.append(self._row(OUTCOME, "outcome", now, encode(outcome)))
        page = Page(
            session_id=self._session_id,
            task_id=task.id,
            attempt=task.attempt,
            iteration=live.iterations,
            messages=tuple(encode(message) for message in iteration.messages),
            live=live,
            at=now,
            forget=forgotten,
            steps=tuple(steps),
            takes=self.takes(),
        )
        await self._write(page)

    async def news(self) -> str | None:
        """Return what came in since that the agent has to hear: nothing, where it has no inbox of its own."""
        return None

    def takes(self) -> tuple[tuple[str, int], ...]:
        """What of the inbox the iteration about to be appended tells of."""
        return ()

    def finished(self) -> AgentOutcome | None:
        """How the agent ended, if it has."""
        row = self._task.journal.at(OUTCOME)
        return None if row is None else AgentOutcome.from_json(decode(row.value or b"{}"))

    def outcome_row(self, outcome: dict[str, JSON]) -> dict[str, JSON]:
        """What is journaled of an outcome."""
        return outcome

    async def _write(self, page: Page) -> None:
        task = self._task
        with task.busy(), task.storing():
            if not await task.services.ledger.append(page):
                raise Superseded(task.id, task.attempt)
        task.take_page(page.live, page.forget, page.steps)

    def _row(self, position: str, verb: str, now: Instant, value: bytes) -> Step:
        ordinal = self._task.journal.own(position, verb).ordinal
        return Step(self._task.id, position, ordinal, verb, self._task.attempt, now, value)

    async def approve(self, tool: str, arguments: JSONObject, call_id: str) -> Approval:
        """Return a person's decision on a tool call. No person, no approval."""
        prompt = f"The agent wants to call {tool}. Approve?"
        details = {"tool": tool, "arguments": arguments, "call_id": call_id}
        answer = await self._task.ask_for_approval(f"{OPEN}{call_id}!approve", prompt, details)
        if isinstance(answer, Mapping):
            return Approval(answer["approved"] is True, answer.get("reason"), answer.get("arguments"))
        return Approval(answer is True, None if answer is True else "it was not approved")

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
        """Return the answer to a question that belongs to `key` in the open iteration."""
        return await self._task.ask_own(
            f"{OPEN}{key}{ASKED}",
            prompt,
            expected=expected,
            details=details,
            deadline=deadline,
            on_expiry=on_expiry,
            default=default,
        )

    def output(self, text: str) -> None:
        """Show a piece of what the model says."""
        self._task.print_live(text)

    def mismatch(self, result: JSON) -> str | None:
        """Return why a result does not fit the task's schema."""
        return mismatch(result, self._task.result_schema)
