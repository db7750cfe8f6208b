"""The delegation tools: how an agent hands work off, looks after it, and is told of it. One definition for all edges.

What an agent starts belongs to the session that it runs in, under a key made of its tool call, so a call that is made
again after a crash finds what it started. It sees and steers the tasks of its own delegation tree, and no others. A
refusal is told to the model, which may try something else; it fails no task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeAlias, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError

from outrider.agents.approval import OPEN, Approvals
from outrider.agents.engine import DEFAULT_ENGINE, ToolError, ToolRetry, ToolSpec
from outrider.agents.registered import RegisteredAgent, check_goes_on
from outrider.core.errors import InvalidArguments, LimitReached, NotFound, OutriderError, StoreError
from outrider.core.events import Message
from outrider.core.ledger import InboxRow, Ledger, TaskFilter
from outrider.core.session import Session
from outrider.core.task import TURN, State, Task, WaitForMessage
from outrider.core.values import JSON, JSONObject, evolve
from outrider.runtime.attempt import cut
from outrider.runtime.codec import check_size, decode, encode, jsonable
from outrider.runtime.connections import check_connections
from outrider.runtime.context import TaskContext, tool_spec
from outrider.runtime.options import TaskOptions
from outrider.runtime.records import TaskRecord
from outrider.runtime.registry import Tool
from outrider.runtime.schemas import mismatch
from outrider.runtime.tasks import Tasks

ANSWERED_BY = "agent"
REPORTED = "reported!"
"""The journal row of what a child reported as its result."""
STARTED = "started!"
"""The journal row that says that an agent has started something, which may live when it has answered."""

WAITED = "waited!"
"""Prefix of the journal rows, in the open iteration, that name what the agent has heard of by waiting: the tasks that
ended, the requests that were open."""

AGENT_KINDS = ("subagent", "agent_handoff", "session")
STARTED_KINDS = (*AGENT_KINDS, "background_tool", "process")

TOOLS = (
    "spawn_agent",
    "spawn_background",
    "list_tasks",
    "get_task",
    "message_task",
    "cancel_task",
    "wait_task",
    "report_result",
    "report_progress",
    "ask_parent",
)
"""The names of all of them."""

ROWS = 50
"""How many tasks `list_tasks` shows."""
MESSAGES = 20
"""How many messages `get_task` shows."""
PIECES = 64 * 1024
"""Bytes of output that `get_task` shows at once."""

SHORTEST = 256
"""Bytes to which a text is cut at most, where all together are too many."""

P = TypeVar("P", bound=BaseModel)
Handler: TypeAlias = Callable[[Any, str], Awaitable[JSON]]


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SpawnAgent(_Parameters):
    """Start another agent on a task of its own, in the background unless told otherwise.

    You are told when it ends or asks something. In the foreground you wait for its result.
    """

    instructions: str = Field(min_length=1, description="What it shall do. Without a seed it knows nothing else.")
    agent: str | None = Field(None, description="Which configured agent; yourself when left out.")
    name: str | None = Field(None, description="A short name for the task.")
    place: Literal["child", "peer", "here"] = Field(
        "child",
        description="Child: in a session of its own, which ends with its answer. Peer: in one of its own that stays "
        "open for others to talk to. Here: another agent takes a turn after yours, and knows all that was said.",
    )
    seed: Literal["fresh", "fork", "files"] = Field(
        "fresh", description="Fork: it begins with all that was said to you and by you so far. Files: with your files."
    )
    mode: Literal["background", "foreground"] = "background"
    lifetime: Literal["linked", "detached"] = Field("linked", description="Linked: it is stopped when you are.")
    wake: Literal["silent", "on_terminal", "on_activity"] = "on_terminal"
    on_open_children: Literal["wait", "cancel", "detach"] = Field(
        "wait", description="When it has answered, and what it started lives: wait for that, cancel it, or leave it."
    )
    result_schema: dict[str, Any] | None = Field(None, description="A JSON Schema that its result has to fit.")
    message_schema: dict[str, Any] | None = Field(None, description="A JSON Schema that messages to it have to fit.")
    budget: dict[str, Any] | None = Field(None, description="Any of tokens, cost, requests, iterations, seconds.")


class SpawnBackground(_Parameters):
    """Run a tool, or a command, in the background. You are told when it has ended."""

    tool: str | None = Field(None, description="The name of a registered tool.")
    arguments: dict[str, Any] = Field(default_factory=dict, description="The tool's arguments.")
    command: list[str] | None = Field(None, description="A command and its arguments, instead of a tool.")
    title: str | None = None
    lifetime: Literal["linked", "detached"] = "linked"
    wake: Literal["silent", "on_terminal", "on_activity"] = "on_terminal"


class ListTasks(_Parameters):
    """List the background tasks of this session, newest first, or of the whole tree of agents."""

    state: Literal["queued", "running", "awaiting_input", "succeeded", "failed", "canceled"] | None = None
    kind: str | None = None
    tree: bool = Field(False, description="Also those of the agents below and above you.")


class GetTask(_Parameters):
    """Look at one task: how it stands, what it said, and its output from a cursor on."""

    task_id: str
    output_from: int = Field(0, ge=0, le=1 << 53, description="The cursor that the last look returned.")


class MessageTask(_Parameters):
    """Send a message to a task, or answer a question of its."""

    task_id: str
    message: Any = Field(description="Text, or JSON that fits what was asked for.")
    in_reply_to: str | None = Field(None, description="The id of the question or message that this answers.")


class CancelTask(_Parameters):
    """Stop a task and all that it started."""

    task_id: str
    reason: str | None = None


class WaitTask(_Parameters):
    """Wait until tasks have ended, one of them, or all, or one asks something. While you wait you do nothing else."""

    task_ids: list[str] = Field(min_length=1)
    any: bool = Field(False, description="One is enough.")
    on_question: bool = Field(True, description="Also until one asks something. False: others will answer that.")
    timeout: float | None = Field(None, gt=0, description="Seconds; a few minutes when left out.")


class ReportResult(_Parameters):
    """Report your result to whoever started you. Once; what you say afterwards is not the result."""

    result: Any


class ReportProgress(_Parameters):
    """Say how far you have come."""

    text: str
    current: float | None = None
    total: float | None = None


class AskParent(_Parameters):
    """Ask whoever started you, and wait for the answer."""

    question: str = Field(min_length=1)
    expected: dict[str, Any] | None = Field(None, description="A JSON Schema that the answer has to fit.")


@dataclass(frozen=True, slots=True)
class Delegation:
    """What one agent can do with others, during one attempt. `within` gives the context for what one call waits for."""

    task: TaskContext
    session: Session
    """The one that it runs in, and that owns what it starts."""
    agent: str | None
    gated: bool | Sequence[str]
    """The tools that need an approval of the agent's, whoever runs them; True for all."""
    approvals: Approvals
    within: Callable[[str], TaskContext]
    _reporting: list[str] = field(default_factory=list)
    """The call whose result is being kept."""

    def tools(self) -> list[ToolSpec]:
        """The tools of an agent, those of a child among them if it is one."""
        tools = [
            self._tool("spawn_agent", SpawnAgent, self._spawn_agent),
            self._tool("spawn_background", SpawnBackground, self._spawn_background),
            self._tool("list_tasks", ListTasks, self._list_tasks),
            self._tool("get_task", GetTask, self._get_task),
            self._tool("message_task", MessageTask, self._message_task),
            self._tool("cancel_task", CancelTask, self._cancel_task),
            self._tool("wait_task", WaitTask, self._wait_task),
        ]
        return [*tools, *self.tools_of_child()] if self._is_child else tools

    def tools_of_child(self) -> list[ToolSpec]:
        """How a child speaks to whoever started it."""
        return [
            self._tool("report_result", ReportResult, self._report_result),
            self._tool("report_progress", ReportProgress, self._report_progress),
            self._tool("ask_parent", AskParent, self._ask_parent),
        ]

    @property
    def _is_child(self) -> bool:
        return self.session.id != self.task.session_id

    def _tool(self, name: str, parameters: type[P], handler: Callable[[P, str], Awaitable[JSON]]) -> ToolSpec:
        async def call(arguments: JSONObject, call_id: str) -> JSON:
            try:
                given = parameters.model_validate(arguments)
            except ValidationError as error:
                faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
                raise ToolRetry("; ".join(faults)) from None
            try:
                return fitting(jsonable(await handler(given, call_id)), self.task.services.settings.limits.file // 2)
            except InvalidArguments as error:
                raise ToolRetry(error.message) from None
            except StoreError:
                raise
            except OutriderError as error:
                raise ToolError(f"{error.code}: {error.message}") from None

        described = parameters.__doc__ or ""
        return ToolSpec(name, described.strip(), _schema_of(parameters), call, requires_approval=self._is_gated(name))

    def _is_gated(self, name: str) -> bool:
        return self.gated if isinstance(self.gated, bool) else name in self.gated

    @property
    def _tasks(self) -> Tasks:
        return Tasks(self.task.services)

    # --- starting ------------------------------------------------------------------------------------

    async def _spawn_agent(self, given: SpawnAgent, call_id: str) -> JSON:
        agent = given.agent or self.agent
        if agent is None:
            raise InvalidArguments("name the agent: you have no name by which to start another one like you")
        if given.seed == "fork":
            check_goes_on(self.task.services.registry.agents, agent, self.agent)
        kind, spec = self._place(given, agent)
        options = TaskOptions(
            name=given.name,
            # It may outlast the wait, and would then end unheard.
            wake="on_terminal" if given.mode == "foreground" and given.wake == "silent" else given.wake,
            on_open_children=given.on_open_children,
            result_schema=given.result_schema,
            message_schema=given.message_schema,
            budget=given.budget,
        )
        started = await self._start(kind, spec, given, call_id, options)
        if given.mode == "background":
            return _told(started)
        told = await self._wait([started.id], call_id, every=True)
        return {**told, "note": "it goes on in the background"} if told["timed_out"] else told

    def _place(self, given: SpawnAgent, agent: str) -> tuple[str, JSONObject]:
        """The kind of the task, and its spec."""
        spec = {"prompt": given.instructions, "agent": agent}
        match given.place:
            case "child":
                # One like itself is told all that it was told itself, whom to ask for what above all.
                own = self.task.spec if agent == self.agent else {}
                return "subagent", {**own, **spec, "seed": given.seed}
            case "peer":
                if agent == self.agent and self.task.spec.get("require_approval"):
                    raise InvalidArguments(
                        "a peer asks for no more than it was registered with, and you do: try a child"
                    )
                return "session", {**spec, "seed": given.seed, **({"title": given.name} if given.name else {})}
            case "here":
                if agent == self.agent:
                    raise InvalidArguments("here you speak yourself: name another agent")
                if given.mode == "foreground" or given.seed != "fresh":
                    raise InvalidArguments(
                        "its turn comes after yours, and it knows what was said here: leave out mode and seed"
                    )
                return "agent_handoff", {**spec, "invite": True}

    async def _spawn_background(self, given: SpawnBackground, call_id: str) -> JSON:
        if (given.tool is None) == (given.command is None):
            raise InvalidArguments("name a tool, or give a command")
        if given.tool is None:
            kind, spec = "process", {"command": given.command}
        else:
            kind, spec = "background_tool", tool_spec(given.tool, given.arguments)
        return _told(await self._start(kind, spec, given, call_id, TaskOptions(name=given.title, wake=given.wake)))

    async def _approved(self, spec: JSONObject, call_id: str) -> JSONObject:
        """The spec of a tool's task as a person allows it. Raises ToolError where nobody does.

        A person who was asked about this very call has seen the tool and its arguments.
        """
        tool = self.task.services.registry.tool(spec["tool"])
        if not (tool.requires_approval or self._is_gated(tool.name)) or self.approvals.was_asked(call_id):
            return spec
        decision = await self.approvals.decide(
            tool.name,
            spec["arguments"],
            f"{call_id}!{tool.name}",
            is_own=False,
            parameters=_parameters_of(tool),
            within=self.within(call_id),
        )
        if not decision.granted:
            raise ToolError(
                f"{tool.name} was not started, the call was denied: {decision.reason or 'without a reason'}"
            )
        return spec if decision.arguments is None else tool_spec(tool.name, decision.arguments)

    async def _start(
        self,
        kind: str,
        spec: JSONObject,
        given: SpawnAgent | SpawnBackground,
        call_id: str,
        options: TaskOptions,
    ) -> TaskRecord:
        task = self.task
        key = f"{task.id}/{task.live.iterations + 1}/{call_id}"
        executor = task.services.registry.executor(kind)
        checked = executor.check(spec)
        tree = await self._tree()
        there = next((each for each in tree if each.input.idempotency_key == key), None)
        if there is not None:  # this very call had started it before it was cut off
            return TaskRecord.of(there)
        detached = given.lifetime == "detached" or checked.detached
        deepens = kind in AGENT_KINDS and not _is_guest(kind, spec)
        await self._check_limits(tree, deepens=deepens, detached=detached)
        await check_connections(task.services, self.session, checked.connections)
        if kind == "background_tool":
            spec = await self._approved(checked.spec, call_id)
            executor.check(spec)
        if self._is_child:
            await task.write_own(STARTED, "spawn", b"true")
        options = evolve(
            options,
            idempotency_key=key,
            detached=detached,
            origin={"task_id": task.id, "iteration": task.live.iterations + 1, "tool_call_id": call_id},
        )
        parent = task.id if self._is_child else None
        async with _gate(task.services.ledger, self.session.root_session_id):  # many may be called for at once
            await self._check_limits(await self._tree(), deepens=deepens, detached=detached)
            made = await self._tasks.create(self.session, kind, spec, options, parent_task_id=parent)
        return TaskRecord.of(made)

    async def _tree(self) -> list[Task]:
        """The tasks of the tree, without its turns, of which a long conversation has any number."""
        limits, views = self.task.services.settings.delegation, self.task.services.views
        found: list[Task] = []
        for each in STARTED_KINDS:
            tree = TaskFilter(root_session_id=self.session.root_session_id, kind=each, limit=limits.total + 1)
            found += await views.list_tasks(tree)
        return found

    async def _check_limits(self, tree: Sequence[Task], *, deepens: bool, detached: bool) -> None:
        """Raise LimitReached where the tree may have no further task."""
        limits = self.task.services.settings.delegation
        if deepens and (depth := await self._depth()) >= limits.depth:
            raise LimitReached(f"agents may be {limits.depth} deep below the first, and you are {depth} deep")
        live = sum(not each.is_terminal for each in tree) - self._is_child
        if len(tree) >= limits.total:
            raise LimitReached(f"the tree has had {len(tree)} tasks, and may have {limits.total} in all")
        if live >= limits.live:
            raise LimitReached(f"{live} tasks of the tree live, and no more may at once; wait for some, or cancel them")
        apart = [each for each in tree if each.input.detached] if detached else []
        if detached and len(apart) >= limits.detached_total:
            raise LimitReached(
                f"the tree has had {len(apart)} detached tasks, and may have {limits.detached_total} in all"
            )
        if detached and (live := sum(not each.is_terminal for each in apart)) >= limits.detached_live:
            raise LimitReached(f"{live} detached tasks of the tree live, and no more may at once")

    async def _depth(self) -> int:
        depth, session = 0, self.session
        while session.parent_session_id is not None:
            above = await self.task.services.views.session(session.parent_session_id)
            if above is None:
                break
            depth, session = depth + 1, above
        return depth

    # --- looking after them --------------------------------------------------------------------------

    async def _list_tasks(self, given: ListTasks, _: str) -> JSON:
        views, kinds = self.task.services.views, set(self.task.services.registry.executors)
        where = TaskFilter(
            session_id=None if given.tree else self.session.id,
            root_session_id=self.session.root_session_id if given.tree else None,
            states=None if given.state is None else (State(given.state),),
            limit=ROWS + 1,  # its own may be among them
        )
        # By kind: of a long conversation the newest tasks are turns, and behind those nothing else would be seen.
        found: list[Task] = []
        for kind in (kinds if given.kind is None else {given.kind}) - {TURN}:
            found += await views.list_tasks(evolve(where, kind=kind))
        newest = sorted((each for each in found if each.id != self.task.id), key=lambda each: each.id, reverse=True)
        return [_told(TaskRecord.of(each)) for each in newest[:ROWS]]

    async def _get_task(self, given: GetTask, _: str) -> JSON:
        record = await self._find(given.task_id)
        views = self.task.services.views
        messages = await self._thread(record.id)
        output = await views.output(record.id, start=given.output_from, limit=100)
        text, following = "", given.output_from
        for row in output.rows:
            if len(text) >= PIECES:
                break
            text += row.text
            following = row.offset + len(row.text.encode())
        thread = [{"id": each.id, "direction": each.direction, "parts": list(each.parts)} for each in messages]
        told = {**_told(record), "asks": _asks(record), "messages": thread, "output": text, "output_next": following}
        if record.state is State.SUCCEEDED:
            told["result"] = await self._result(record)
        return told

    async def _thread(self, task_id: str) -> Sequence[Message]:
        """The newest messages of a task, in their order."""
        last: list[Message] = []
        while found := await self.task.services.views.messages(task_id, after=last[-1].id if last else None):
            last = [*last, *found][-MESSAGES:]
        return last

    async def _message_task(self, given: MessageTask, _: str) -> JSON:
        record = await self._find(given.task_id)
        asked = given.in_reply_to
        request = None if asked is None else await self.task.services.views.request(asked)
        if request is not None and request.task_id != record.id:
            raise self._no_such(request.id, record)
        if request is not None and request.kind != "question":
            raise ToolError(f"{request.id} asks for an {request.kind}, which is for a person to give")
        if request is not None:
            answered = await self._tasks.answer(
                record.id, given.message, request_id=request.id, by=ANSWERED_BY, via=self.task.id
            )
            return {"recorded": "answer", "delivered": "yes", "task": _told(answered)}
        if asked is not None and not record.is_terminal and not await self._has_message(record.id, asked):
            raise self._no_such(asked, record)
        content = given.message if isinstance(given.message, str) else {"type": "data", "data": given.message}
        before = await self._tasks.get(record.id)
        sent = await self._tasks.message(record.id, content, sender=self.task.id, in_reply_to=given.in_reply_to)
        delivered, why = self._delivery(before)
        return {"recorded": "message", "message_id": sent.id, "delivered": delivered, "why": why}

    async def _has_message(self, task_id: str, message_id: str) -> bool:
        """Whether a message of that id is in a task's thread."""
        after: str | None = None
        while thread := await self.task.services.views.messages(task_id, after=after):
            if any(each.id == message_id for each in thread):
                return True
            after = thread[-1].id
        return False

    def _no_such(self, request_id: str, record: TaskRecord) -> NotFound:
        """For a reply to what a task has not asked or said; a model that mistook the id is told the right ones."""
        named = ", ".join(f"{each.id} ({each.kind})" for each in record.input_requests)
        return NotFound(
            f"there is no request {request_id!r} of {record.id}, and no message: it asks {named or 'nothing'} now",
            details={"request": request_id, "open": [each.id for each in record.input_requests]},
            code="request_not_found",
        )

    def _delivery(self, task: Task) -> tuple[str, str]:
        """What becomes of a message to a task that stood so: whether it was delivered, and why."""
        core, kind = task.core, task.input.kind
        if any(isinstance(wait, WaitForMessage) for wait in core.waits):
            return "yes", "it was waiting for a message, and goes on with this one"
        if kind == "process":
            return "no", "a command reads no messages"
        if core.returned:
            return "no", "it has answered, and waits only for what it started"
        if kind == "session" or _is_guest(kind, task.spec):
            return "no", "it only waits for a turn; what is said in that session is heard there"
        if kind not in AGENT_KINDS:
            return "later", "when it looks for messages, if it does"
        agent = self.task.services.registry.agents.get(str(task.spec.get("agent")))
        if core.requests:
            return "later", f"it waits for an answer; give in_reply_to={core.requests[0].id} to answer it"
        engine = agent.engine if isinstance(agent, RegisteredAgent) else DEFAULT_ENGINE
        when = {"function": "when it asks for news", "langgraph": "between two steps of its graph"}
        return "later", f"{when.get(engine, 'with its next model call')}, unless it answers before"

    async def _cancel_task(self, given: CancelTask, _: str) -> JSON:
        record = await self._find(given.task_id)
        receipt = await self._tasks.cancel(record.id, by=self.task.id, reason=given.reason)
        return receipt.model_dump(mode="json")

    async def _wait_task(self, given: WaitTask, call_id: str) -> JSON:
        records = [await self._find(each) for each in given.task_ids]
        if any(each.session_id == self.task.session_id and _is_guest(each.kind, each.spec) for each in records):
            raise InvalidArguments("who was invited takes a turn after yours: end it, and you are told of theirs")
        ids = list(dict.fromkeys(each.id for each in records))
        return await self._wait(ids, call_id, every=not given.any, on_question=given.on_question, timeout=given.timeout)

    async def _wait(
        self, ids: list[str], call_id: str, *, every: bool, on_question: bool = True, timeout: float | None = None
    ) -> dict[str, JSON]:
        settings = self.task.services.settings
        # Who is waited for may wait in turn for this one: no wait is longer than a question may be unanswered.
        timeout = min(timeout or settings.delegation.foreground_wait, settings.question_deadline)
        records = await self.within(call_id).attend(ids, any=not every, timeout=timeout, on_question=on_question)
        ended = [record for record in records if record.is_terminal]
        kinds = [request.kind for record in records for request in record.input_requests]
        asks = on_question and "question" in kinds  # the others are for a person, and no end of the wait
        tasks = []
        for record in records:
            told = _told(record)
            heard = [record.id] if record.is_terminal else [each.id for each in record.input_requests]
            for each in heard:
                await self.task.write_own(f"{OPEN}{WAITED}{each}", "waited", b"true")
            if record.state is State.SUCCEEDED:
                told["result"] = await self._result(record)
            if record.input_requests:
                told["asks"] = _asks(record)
            tasks.append(told)
        is_over = len(ended) == len(records) or (not every and bool(ended))
        return {"tasks": tasks, "timed_out": not (is_over or asks)}

    async def _find(self, task_id: str) -> TaskRecord:
        """A task of the own tree. Raises NotFound, for those of others too."""
        record = await self._tasks.record(task_id)
        if record.root_session_id != self.session.root_session_id:
            raise NotFound.of("task", task_id)
        return record

    async def _result(self, record: TaskRecord) -> JSON:
        if record.result_path is None:
            return None
        content = await self.task.services.views.file(record.session_id, record.result_path)
        return None if content is None else decode(content)

    # --- a child, to whoever started it --------------------------------------------------------------

    async def _report_result(self, given: ReportResult, call_id: str) -> JSON:
        task = self.task
        held = task.journal.at(REPORTED)
        by = self._reporting if held is None else [decode(held.value or b"[null]")[0]]
        if by and by != [call_id]:  # another call of the same response may be on its way
            raise LimitReached("you have reported your result, and a result is reported once")
        check_size("the result", given.result, task.services.settings.limits.result)
        fault = mismatch(given.result, task.result_schema)
        if fault is not None:
            raise InvalidArguments(f"this result does not fit what was asked for: {fault}")
        self._reporting[:] = [call_id]
        await task.write_own(REPORTED, "report", encode([call_id, given.result]))
        return {"accepted": True}

    async def _report_progress(self, given: ReportProgress, _: str) -> JSON:
        self.task.detail(given.text)
        if given.current is not None:
            self.task.progress(given.current, given.total, label=given.text)
        return {"accepted": True}

    async def _ask_parent(self, given: AskParent, call_id: str) -> JSON:
        deadline = self.task.services.settings.question_deadline
        ask = self.within(call_id).ask
        answer: JSON = await ask(given.question, given.expected, deadline=deadline, on_expiry="fail")
        return {"answer": answer}


def _gate(ledger: Ledger, root_session_id: str) -> asyncio.Lock:
    """Where the agents of a tree that run in this process go one by one: each counts those who went before."""
    return _GATES.setdefault(ledger, WeakValueDictionary()).setdefault(root_session_id, asyncio.Lock())


_GATES: WeakKeyDictionary[Ledger, WeakValueDictionary[str, asyncio.Lock]] = WeakKeyDictionary()


def reported(task: TaskContext) -> tuple[JSON] | None:
    """The result that a child reported, None if it has not."""
    row = task.journal.at(REPORTED)
    return None if row is None else (decode(row.value or b"[null,null]")[1],)


def has_waited(task: TaskContext) -> bool:
    """Whether the agent has heard something by waiting in its open iteration."""
    return bool(task.journal.under(OPEN + WAITED))


def has_heard(task: TaskContext, row: InboxRow) -> bool:
    """Whether what an entry of its inbox says is what the agent has heard by waiting, in its open iteration."""
    of = {"terminal": row.task_id, "question": row.body.get("request_id")}.get(row.reason)
    return of is not None and task.journal.at(f"{OPEN}{WAITED}{of}") is not None


def fitting(told: JSON, limit: int) -> JSON:
    """What a tool tells of tasks, in at most so many bytes: where it is more, the longest texts and results are cut.

    Raises ToolError where that is not enough.
    """
    cap = limit
    while len(encode(told)) > limit:
        cap //= 4
        if cap < SHORTEST:
            raise ToolError("that is too much to be told at once: ask for fewer tasks")
        told = _cut_within(told, cap)
    return told


def _cut_within(told: JSON, cap: int) -> JSON:
    match told:
        case str():
            return cut(told, cap)
        case dict():
            return {name: each if name == "output" else _cut_field(name, each, cap) for name, each in told.items()}
        case list():
            return [_cut_within(each, cap) for each in told]
        case _:
            return told


def _cut_field(name: str, told: JSON, cap: int) -> JSON:
    if name in ("result", "parts") and len(text := encode(told)) > cap:  # their form is not ours
        return cut(told if isinstance(told, str) else text.decode(), cap)
    return _cut_within(told, cap)


@cache
def _schema_of(parameters: type[BaseModel]) -> JSONObject:
    """What a tool takes; worked out once, for that takes as long as a request."""
    return parameters.model_json_schema()


def _parameters_of(tool: Tool) -> JSONObject | None:
    """What a tool of the app takes, None where that cannot be said as a schema."""
    try:
        return tool.arguments.schema()
    except PydanticUserError:  # of a type that has no schema; it may be started all the same
        return None


def _is_guest(kind: str, spec: Mapping[str, Any]) -> bool:
    """Whether a task has an agent take a turn in its session."""
    return kind == "agent_handoff" and spec.get("invite") is True


def _asks(record: TaskRecord) -> list[JSON]:
    """What a task asks now."""
    return [
        {"id": request.id, "kind": request.kind, "prompt": request.prompt, "expected": request.expected}
        for request in record.input_requests
    ]


def _told(record: TaskRecord) -> dict[str, JSON]:
    """A task in a line."""
    told: dict[str, JSON] = {
        "task_id": record.id,
        "kind": record.kind,
        "name": record.display_name,
        "state": str(record.state),
        "phase": record.phase,
        "detail": record.state_detail,
        "summary": record.summary,
        "session_id": record.links.child_session_id if record.kind == "session" else None,
        "error": None if record.error is None else f"{record.error.kind}: {record.error.message}",
    }
    return {name: value for name, value in told.items() if value is not None}
