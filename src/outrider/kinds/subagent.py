"""The kind `subagent`: an agent that runs in a session of its own until it has answered.

Spec: `prompt`, and any of `system_prompt`, `agent`, `model` (a list: those after the first are fallen back on),
`model_settings`, `tools`, `max_iterations`, `require_approval`, `seed`. The child session's transcript is the
checkpoint: each finished iteration is appended in one transaction with its totals, and only the open iteration has
journal rows, which that transaction forgets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from outrider.agents.approval import OPEN, Approvals
from outrider.agents.calls import Calls
from outrider.agents.delegation import TOOLS as DELEGATION_TOOLS
from outrider.agents.delegation import Delegation, has_heard, has_waited, reported
from outrider.agents.engine import (
    DEFAULT_ENGINE,
    TOOLLESS,
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
    said_meanwhile,
    summed,
)
from outrider.agents.models import chain, choose
from outrider.agents.patience import Patience
from outrider.agents.registered import RegisteredAgent
from outrider.core.change import Page
from outrider.core.errors import InvalidArguments, UnknownName
from outrider.core.events import Step
from outrider.core.ledger import InboxRow, TranscriptRow
from outrider.core.task import TURN, Effects, ExpiryPolicy, Live, Usage
from outrider.core.values import JSON, Instant, JSONObject, evolve
from outrider.kinds.background_tool import call_tool
from outrider.kinds.hearing import BETWEEN, said, told, unmarked
from outrider.kinds.opening import check_asked, check_seed, open_session, plain_spec, prompts_of_fork, titled
from outrider.runtime.attempt import Scope, cut
from outrider.runtime.codec import decode, encode, jsonable
from outrider.runtime.context import TaskContext
from outrider.runtime.registry import CheckedSpec, Registry, Tool
from outrider.runtime.schemas import mismatch
from outrider.runtime.turns import LOOK

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
        "seed",
    }
)
ASKED = "!ask"
"""After the key of a question, which has a row of its own beside a step of that key."""
OUTCOME = "outcome!"
ITERATION = "iteration!"
MESSAGES = "messages!"
"""The journal row that says how many messages the agent has been told, and which was the last."""
FEW = 100
"""How many rows are asked for where there are mostly fewer. A store reads so many right away, without a thread."""


class Subagent:
    """Runs agents."""

    kind = KIND
    fields = FIELDS

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
        prompt = check_asked(self.kind, spec, self.fields)
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
        check_seed(spec)
        agent = self._agent(spec)
        tools = self._tool_names(spec, agent)
        for name in tools:
            self._registry.tool(name)
        gated, within_reach = _gated(spec, agent), [*tools, *self._spawnable(agent)]
        if not isinstance(gated, bool) and (agent is None or agent.agent is None):
            for name in gated:
                if name not in within_reach:
                    raise UnknownName.of("tool", name, within_reach)
        if agent is None and not spec.get("model"):
            raise InvalidArguments(f"the spec of a task of kind {self.kind} needs a model or a registered agent")
        own = f":{agent.name}" if agent is not None else f":+{tools[0]}" if tools else ""
        plain = plain_spec(self.kind, spec)
        return CheckedSpec(plain, f"{self.kind}{own}", titled(prompt), connections=self._connections(spec, agent))

    async def prepare(self) -> None:
        """Import the engines of registered agents, before a worker claims anything."""
        for agent in self._registry.agents.values():
            if isinstance(agent, RegisteredAgent):
                await self._engine(agent.engine)

    async def run(self, task: TaskContext) -> Any:
        """Run the agent to its answer; one that delegates goes on when it is told of what it has started."""
        try:
            return await self._run(task)
        except AgentFailed as error:
            if (told := reported(task)) is not None:  # it was accepted, so it is kept
                error.partial = told[0]
            raise

    async def _run(self, task: TaskContext) -> Any:
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
            await task.append_last()
            await task.artifact("answer.txt", answer, position="answer")
        return cut(answer, limit) if isinstance(answer, str) else answer

    async def _run_engine(self, task: TaskContext) -> AgentOutcome:
        agent = self._agent(task.spec)
        engine = await self._engine(DEFAULT_ENGINE if agent is None else agent.engine)
        session_id = await self._session_of(task)
        run, is_fork = AgentTranscript(task, session_id), await self._begin_fork(task, engine, session_id)
        outcome = await self._drive(task, engine, run, prompt=unmarked(task.spec["prompt"]), asked=is_fork)
        run.keep(outcome)
        return outcome

    async def _run_and_hear(self, task: TaskContext, agent: RegisteredAgent) -> AgentOutcome:
        from outrider.kinds.turn import Ears  # not above: turns are made of what is here

        engine = await self._engine(agent.engine)
        session_id = await self._session_of(task)
        ears, is_fork = Ears(task, session_id, engine), await self._begin_fork(task, engine, session_id)
        outcome = ears.finished()
        if outcome is None:
            prompt = ears.prompt or unmarked(task.spec["prompt"])
            outcome = await self._drive(task, engine, ears, prompt=prompt, asked=is_fork or bool(ears.prompt))
            ears.keep(outcome)
        while outcome.stop == "answered" and await ears.hear_of_children():
            outcome = await self._drive(task, engine, ears, prompt=ears.prompt, asked=True)
            ears.keep(outcome)
        return outcome

    async def _begin_fork(self, task: TaskContext, engine: Engine, session_id: str) -> bool:
        """Whether the agent knows what its parent knew; what it is told then is appended before it is asked."""
        is_fork = task.spec.get("seed") == "fork"
        if is_fork and not await task.services.views.last_entry(session_id, task_id=task.id):
            told = [each for prompt in await prompts_of_fork(task) for each in engine.said(unmarked(prompt))]
            await AgentTranscript(task, session_id).tell(told)
        return is_fork

    async def _session_of(self, task: TaskContext) -> str:
        return await open_session(task, task.spec.get("agent"), self._registry.agents)

    async def _drive(
        self, task: TaskContext, engine: Engine, run: AgentTranscript, *, prompt: str, asked: bool = False
    ) -> AgentOutcome:
        """Have the engine go on where the transcript ends, again and elsewhere where a model fails it."""
        agent, patience = self._agent(task.spec), Patience(task)
        await task.connect(self._connections(task.spec, agent))
        await patience.resume()
        delegation = await self._delegation(task, agent, run)
        while True:
            await task.append_last()
            rows = await self._transcript(task, run.session_id)
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
            run.given = {tool.name: tool.parameters for tool in brief.tools}
            run.calls.is_patient = patience.is_at_last
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
                    if error.kind in ("no_result", "schema_mismatch") and reported(task) is not None:
                        return AgentOutcome("answered")  # its result is what it has reported
                    raise
            run.restart()

    @staticmethod
    async def _transcript(task: TaskContext, session_id: str) -> Sequence[TranscriptRow]:
        views = task.services.views
        rows = await views.transcript(session_id, limit=FEW)
        if len(rows) < FEW:
            return rows
        return [*rows, *await views.transcript(session_id, after=rows[-1].number)]

    async def _delegation(
        self, task: TaskContext, agent: RegisteredAgent | None, run: AgentTranscript
    ) -> list[ToolSpec]:
        """The tools by which the agent hands work off, if it does, and speaks to whoever handed it its own."""
        is_child = "tool_call_id" in task.origin and (agent is None or agent.engine not in TOOLLESS)
        if not is_child and (agent is None or not agent.delegates):
            return []
        session = await task.services.views.session(run.session_id)
        assert session is not None, "a task's session cannot be gone"

        def within(call_id: str) -> TaskContext:
            return task.within(Scope(f"{OPEN}{call_id}!"))

        name, gated = None if agent is None else agent.name, _gated(task.spec, agent)
        delegation = Delegation(task, session, name, gated, run.approvals, within)
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
            spawnable=self._spawnable(agent),
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

    def _connections(self, spec: JSONObject, agent: RegisteredAgent | None) -> tuple[str, ...]:
        """What has to be there for the agent and all tools that it is given."""
        own = () if agent is None else agent.connections
        tools = (self._registry.tool(name).connections for name in self._tool_names(spec, agent))
        return tuple(dict.fromkeys([*own, *(each for of_tool in tools for each in of_tool)]))

    def _spawnable(self, agent: RegisteredAgent | None) -> Sequence[str]:
        """What an agent that hands work off may have done beside its own tools: by these, or by a tool of the app."""
        return [*DELEGATION_TOOLS, *self._registry.tools] if agent is not None and agent.delegates else []

    @staticmethod
    def _tool_names(spec: JSONObject, agent: RegisteredAgent | None) -> list[str]:
        names = spec.get("tools", list(agent.tools) if agent is not None else [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InvalidArguments("tools is a list of names of registered tools")
        return names


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
            message = f"the tool {tool.name} returned what is not JSON: {error}"
            raise AgentFailed(message, kind="invalid_result") from None
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
        self.approvals = Approvals(task, session_id)
        self.given: Mapping[str, JSONObject] = {}
        """The tools that the runtime gives to the agent: their parameters, by name."""
        self._taken: list[InboxRow] = []
        self._heard: tuple[int, str | None] | None = None
        """How many messages are told with the iteration about to be appended, and the last of them."""
        self._seen = -1
        self.calls = Calls(task)

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
        """The engine goes on anew from where the transcript ends: what was said in vain is said again."""
        self._taken, self._heard, self._seen = [], None, -1

    async def reserve(self, call: ModelCall) -> Permit:
        """Have a model request allowed."""
        return await self.calls.reserve(call)

    async def settle(self, permit: Permit, usage: Usage | None, failure: ModelFailed | None = None) -> float | None:
        """Say what a permitted request took; returns what it cost, where that is known."""
        return await self.calls.settle(permit, usage, failure)

    async def append(self, iteration: Iteration) -> None:
        """Append a finished iteration with its totals, and forget the journal before it; the last one with the end."""
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
        steps.extend(self.heard_rows(now))
        page = self._page(
            live,
            now,
            tuple(steps),
            messages=tuple(encode(message) for message in iteration.messages),
            forget=forgotten,
            takes=entries_of(self._taken),
        )
        taken, self._taken = self._taken, []
        if iteration.outcome is None:
            await task.append(page)
        else:
            task.end_with(page)
        self.tell_heard(taken, now)

    def keep(self, outcome: AgentOutcome) -> None:
        """Have it known with the end how the agent ended, if its engine has not said so with its last iteration."""
        if self.finished() is None:
            now = self._task.services.clock.now()
            row = self._row(OUTCOME, "outcome", now, encode(self.outcome_row(outcome.to_json())))
            self._task.end_with(self._page(self._task.live, now, (row,)))

    def _page(
        self,
        live: Live,
        now: Instant,
        steps: tuple[Step, ...],
        *,
        messages: tuple[bytes, ...] = (),
        forget: str | None = None,
        takes: tuple[tuple[str, int], ...] = (),
    ) -> Page:
        task = self._task
        return Page(self._session_id, task.id, task.attempt, live.iterations, messages, live, now, forget, steps, takes)

    async def tell(self, messages: Sequence[JSON]) -> None:
        """Append what the agent is told before it is first asked."""
        task = self._task
        now = task.services.clock.now()
        await task.append(self._page(task.live, now, (), messages=tuple(map(encode, messages))))

    async def news(self) -> str | None:
        """Return what came in since, to be told with the next request; it is taken with the iteration that says it.

        What a task asks, and how it has ended, is not told to an agent that waited for it and was.
        """
        rows = await self.look()
        self._taken.extend(rows)
        return await self.words(rows)

    async def has_news(self) -> bool:
        """Whether there is something to `take_news` of. To look takes nothing: it is there until somebody hears it."""
        rows = [row for row in await self.untaken() if row.body.get("steering") != "after"]
        return any(not self.is_known(row) for row in rows) or self._task.messages_sent > self._messages_heard()[0]

    async def take_news(self, key: str) -> str | None:
        """Take what came in since, in the transaction that appends it to the transcript and journals it under `key`."""
        task, rows = self._task, await self.look()
        text = await self.words(rows)
        if text is None:
            return None
        now = task.services.clock.now()
        page = self._page(
            task.live,
            now,
            (self._row(OPEN + key, "step", now, encode(text)), *self.heard_rows(now)),
            messages=tuple(encode(message) for message in said_meanwhile(text)),
            takes=entries_of(rows),
        )
        await task.append(page)
        self.tell_heard(rows, now)
        return text

    async def words(self, rows: Sequence[InboxRow]) -> str | None:
        """What entries of the inbox say that the agent does not know, and messages that were sent to the task since."""
        words = [told(row) for row in rows if not self.is_known(row)]
        words.extend(await self._messages())
        return BETWEEN.join(words) if words else None

    def tell_heard(self, rows: Iterable[InboxRow], now: Instant) -> None:
        """Have it measured how long the agent was not told; of what it knew already it was."""
        telemetry = self._task.services.telemetry
        if not telemetry.is_silent:
            for row in rows:
                if not self.is_known(row):
                    telemetry.heard(row.reason, "agent", now - row.created_at)

    def heard_rows(self, now: Instant) -> tuple[Step, ...]:
        """The journal row that says which messages the agent has been told, if that moved."""
        heard, self._heard = self._heard, None
        return () if heard is None else (self._row(MESSAGES, "messages", now, encode(heard)),)

    @property
    def messages_heard(self) -> int:
        """How many messages of the task the agent has been told."""
        return self._messages_heard()[0]

    @property
    def is_alone(self) -> bool:
        """Whether no asyncio task that the engine's code has started is under way beside it."""
        return self._task.is_alone

    async def look(self) -> Sequence[InboxRow]:
        """Return what came into the inbox since. One that is the agent's own is looked into where something may be."""
        task, seen = self._task, self._task.rung
        if seen == self._seen and not has_waited(task):
            return ()
        rows = await self.untaken()
        shown = self.fitting(rows)
        self._seen = seen if len(shown) == len(rows) else -1
        return shown

    async def untaken(self) -> Sequence[InboxRow]:
        """What is in the inbox that no page takes which was made already."""
        views = self._task.services.views
        rows = await views.inbox(self._session_id, limit=FEW)
        if len(rows) == FEW:
            rows = await views.inbox(self._session_id, limit=LOOK)
        last = self._task.last_page
        taken = {(row.task_id, row.seq) for row in self._taken} | set(() if last is None else last.takes)
        return [row for row in rows if (row.task_id, row.seq) not in taken]

    def fitting(self, rows: Sequence[InboxRow]) -> Sequence[InboxRow]:
        """As many as make no more than one prompt, and all that the agent knows already.

        The rest is left where it is, and looked for again after that.
        """
        room = self._task.services.settings.limits.message
        shown: list[InboxRow] = []
        size = 0
        for row in rows:
            if not self.is_known(row):
                has_begun = size > 0
                size += len(told(row)) + len(BETWEEN)
                if has_begun and size > room:
                    continue
            shown.append(row)
        return shown

    def is_known(self, row: InboxRow) -> bool:
        """Whether the agent has heard it by waiting for it."""
        return has_heard(self._task, row)

    async def _messages(self) -> list[str]:
        """What was sent to the task since: a turn is sent nothing, its session is."""
        count, last = self._messages_heard()
        if self._task.messages_sent <= count:
            return []
        found = await self._task.services.views.messages(self._task.id, direction="inbound", after=last)
        if found:
            self._heard = count + len(found), found[-1].id
        return [said(message.parts) for message in found]

    def _messages_heard(self) -> tuple[int, str | None]:
        if self._heard is not None:
            return self._heard
        row = self._task.journal.at(MESSAGES)
        count, last = (0, None) if row is None else decode(row.value or b"[0,null]")
        return count, last

    def finished(self) -> AgentOutcome | None:
        """How the agent ended, if it has."""
        row = self._task.journal.at(OUTCOME)
        return None if row is None else AgentOutcome.from_json(decode(row.value or b"{}"))

    def outcome_row(self, outcome: dict[str, JSON]) -> dict[str, JSON]:
        """What is journaled of an outcome."""
        return outcome

    def _row(self, position: str, verb: str, now: Instant, value: bytes) -> Step:
        ordinal = self._task.journal.own(position, verb).ordinal
        return Step(self._task.id, position, ordinal, verb, self._task.attempt, now, value)

    async def approve(self, tool: str, arguments: JSONObject, call_id: str, *, key: str | None = None) -> Approval:
        """Return a person's decision on a tool call. No person, no approval."""
        given = self.given.get(tool)
        return await self.approvals.decide(
            tool, arguments, call_id, is_own=tool not in self.given, key=key, parameters=given
        )

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


def entries_of(rows: Iterable[InboxRow]) -> tuple[tuple[str, int], ...]:
    """What a page says of entries of an inbox that it takes."""
    return tuple((row.task_id, row.seq) for row in rows)
