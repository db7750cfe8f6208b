"""Handles: a session or a task in hand, with the façade's verbs on it. They hold an id, not state.

They do nothing but name their session or task to the nouns of the façade, so that `outrider.client` has the same ones
over its own nouns.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from outrider.core.session import Session
from outrider.core.task import Effects, Task
from outrider.core.values import JSON, JSONObject
from outrider.runtime.codec import PLAIN, Shape
from outrider.runtime.context import NOTHING, Parts, tool_spec
from outrider.runtime.inbox import SessionInbox
from outrider.runtime.options import DEFAULT_OPTIONS, Length, TaskOptions, check_lists, check_mappings, not_negative
from outrider.runtime.records import (
    AttemptRecord,
    CancelReceipt,
    EventRecord,
    FileRecord,
    GrantRecord,
    InputRequestRecord,
    MessageRecord,
    OutputRecord,
    SessionRecord,
    SpentRecord,
    StepRecord,
    TaskRecord,
    TranscriptRecord,
)
from outrider.runtime.services import Services
from outrider.runtime.sessions import Remaining, Sessions
from outrider.runtime.specs import agent_spec, process_spec
from outrider.runtime.tasks import Tasks
from outrider.runtime.turns import Steering, turn_after


class TaskHandle:
    """One task."""

    __slots__ = ("_input", "_is_before", "_services", "_tasks", "id", "session_id")

    def __init__(self, services: Services, task: Task, *, is_before: bool = False) -> None:
        self._services = services
        self._is_before = is_before
        self._tasks = Tasks(services)
        self._input = task.input
        self.id = task.id
        self.session_id = task.session_id

    def __repr__(self) -> str:
        return f"<TaskHandle {self.id} {self._input.display_name}>"

    async def record(self) -> TaskRecord:
        """Return the whole record as it stands."""
        return await self._tasks.record(self.id)

    async def result(self, *, timeout: Length | None = None) -> Any:
        """Wait for the end and return the result, in the tool's declared type where the tool is known here.

        Raises TaskFailed, TaskCanceled or WaitTimeout.
        """
        encoded = await self._tasks.result(self.id, timeout=timeout)
        return None if encoded is None else self._shape().read(encoded)

    async def wait(self, *, timeout: Length | None = None, on_question: bool = False) -> TaskRecord:
        """Wait until the task has ended, or asks something with `on_question`. Raises WaitTimeout."""
        await self._tasks.wait([self.id], timeout=timeout, on_question=on_question)
        return await self.record()

    async def heard_by(self, *, timeout: Length | None = None) -> TaskHandle:
        """Return the turn that hears what `send` said, of which this is the turn that it returned.

        That is this one; or, where it was ended for it, or is to end `after` which it is heard, the next, once there is
        one. This one, too, where it took what was said along as it ended, or the session was closed before the next.
        Raises WaitTimeout.
        """
        if not self._is_before:
            return self
        turn = await self._turn_after(timeout)
        return self if turn is None else self._handle(turn)

    async def answer(
        self, answer: JSON, *, request_id: str | None = None, by: str | None = None, via: str | None = None
    ) -> TaskRecord:
        """Answer a question of the task; see `Tasks.answer`."""
        return await self._tasks.answer(self.id, answer, request_id=request_id, by=by, via=via)

    async def message(
        self,
        content: Parts,
        *,
        in_reply_to: str | None = None,
        sender: str | None = None,
        idempotency_key: str | None = None,
    ) -> MessageRecord:
        """Send the task a message; see `Tasks.message`. Raises TaskFinished if it has ended."""
        return await self._tasks.message(
            self.id, content, in_reply_to=in_reply_to, sender=sender, idempotency_key=idempotency_key
        )

    async def retry(self, *, id: str | None = None) -> TaskHandle:
        """Do it again, as a new task; see `Tasks.retry`. Raises IllegalMove while this one lives."""
        return self._handle(await self._tasks.retry(self.id, id=id))

    async def fork(
        self, *, from_step: str | None = None, arguments: Mapping[str, Any] | None = None, id: str | None = None
    ) -> TaskHandle:
        """Go on from one of its steps, as a new task; see `Tasks.fork`. Raises IllegalMove while this one lives."""
        return self._handle(await self._tasks.fork(self.id, from_step=from_step, arguments=arguments, id=id))

    async def export(self, *, events: bool = False) -> dict[str, JSON]:
        """Return it as one JSON document, with its checkpoint; see `Tasks.export`."""
        return await self._tasks.export(self.id, events=events)

    async def delete(self) -> int:
        """Delete it, once it has ended; see `Tasks.delete`. Raises NotEnded while it lives."""
        return await self._tasks.delete(self.id)

    async def cancel(
        self,
        *,
        reason: str | None = None,
        by: str | None = None,
        wait: Length | None = None,
        include_detached: bool = False,
        grace: Length | None = None,
    ) -> CancelReceipt:
        """Cancel the task and the linked children below it; see `Tasks.cancel`."""
        return await self._tasks.cancel(
            self.id, reason=reason, by=by, wait=wait, include_detached=include_detached, grace=grace
        )

    async def spent(self) -> SpentRecord:
        """Return what its model calls have used, and the accounts that bound them."""
        return await self._tasks.spent(self.id)

    async def attempts(self) -> Sequence[AttemptRecord]:
        """Return its attempts, the open one last."""
        return await self._tasks.attempts(self.id)

    async def steps(self) -> Sequence[StepRecord]:
        """Return its journal."""
        return await self._tasks.steps(self.id)

    async def requests(self) -> Sequence[InputRequestRecord]:
        """Return all that it ever asked."""
        return await self._tasks.requests(self.id)

    async def messages(
        self, *, direction: Literal["inbound", "outbound"] | None = None, after: str | None = None
    ) -> Sequence[MessageRecord]:
        """Return its thread."""
        return await self._tasks.messages(self.id, direction=direction, after=after)

    def events(self, *, after: int = 0) -> AsyncIterator[EventRecord]:
        """Yield its events, each once, until it has ended."""
        return self._tasks.events(self.id, after=after)

    def output(self, *, start: int = 0) -> AsyncIterator[OutputRecord]:
        """Yield its output from a byte offset on, until it has ended."""
        return self._tasks.output(self.id, start=start)

    def _handle(self, task: Task) -> TaskHandle:
        return TaskHandle(self._services, task)

    async def _turn_after(self, timeout: Length | None) -> Task | None:
        until = None if timeout is None else self._services.clock.now() + not_negative("timeout", timeout)
        return await turn_after(self._services, await self._tasks.get(self.id), until)

    def _shape(self) -> Shape:
        executor = self._services.registry.executors.get(self._input.kind)
        if executor is None:
            return PLAIN
        try:
            return executor.check(self._input.spec).shape or PLAIN
        except Exception:  # noqa: BLE001 - a tool that is not known here leaves the result as JSON
            return PLAIN


class SessionHandle:
    """One session."""

    def __init__(self, services: Services, session: Session) -> None:
        self._services = services
        self._sessions = Sessions(services)
        self._tasks = Tasks(services)
        self._session = session  # of which only what never changes is used: whose it is, and of which tree
        self.id = session.id
        self.inbox = SessionInbox(services, session.id)
        """What the session has yet to be told, and how an outside agent receives it."""

    def __repr__(self) -> str:
        return f"<SessionHandle {self.id}>"

    async def record(self) -> SessionRecord:
        """Return the record of the session as it stands."""
        return await self._sessions.record(self.id)

    async def usage(self, *, tree: bool = False) -> SpentRecord:
        """Return what its tasks have used, or its whole tree; see `Sessions.usage`."""
        return await self._sessions.usage(self.id, tree=tree)

    async def grants(self) -> list[GrantRecord]:
        """Return the tools that need no more approval here; see `Sessions.grants`."""
        return await self._sessions.grants(self.id)

    async def revoke(self, tool: str, *, by: str | None = None) -> bool:
        """Have a tool need an approval again; see `Sessions.revoke`."""
        return await self._sessions.revoke(self.id, tool, by=by)

    async def spawn(
        self,
        tool: str | Callable[..., Any],
        given: Mapping[str, Any] = NOTHING,
        /,
        *,
        options: TaskOptions = DEFAULT_OPTIONS,
        **arguments: Any,
    ) -> TaskHandle:
        """Start a registered tool in the background. The arguments are checked against its signature first.

        They may be `given` as a mapping too, and one that is called `options` has to be.

        Raises UnknownName, InvalidArguments or another Refused; nothing is written then.
        """
        check_mappings(given=given)
        return await self.create("background_tool", tool_spec(tool, {**given, **arguments}), options=options)

    async def spawn_many(
        self,
        tool: str | Callable[..., Any],
        /,
        arguments: Iterable[Mapping[str, Any]],
        *,
        options: TaskOptions = DEFAULT_OPTIONS,
    ) -> list[TaskHandle]:
        """Start one tool many times, in few transactions."""
        check_lists(arguments=arguments)
        specs = [tool_spec(tool, each) for each in arguments]
        created = await self._tasks.create_many(self._session, "background_tool", specs, options)
        return [self._handle(task) for task in created]

    async def spawn_agent(
        self,
        prompt: str,
        *,
        model: str | JSONObject | Sequence[str | JSONObject] | None = None,
        system_prompt: str | None = None,
        agent: str | None = None,
        tools: Sequence[str] = (),
        max_iterations: int | None = None,
        require_approval: bool | Sequence[str] = False,
        seed: Literal["fresh", "fork", "files"] = "fresh",
        options: TaskOptions = DEFAULT_OPTIONS,
    ) -> TaskHandle:
        """Start an agent in the background, in a session of its own (kind `subagent`).

        With the `seed` fork that session begins with what was said in this one by the time it starts, and with copies
        of its files; with `files` with these alone.

        `tools` are names of registered tools; `model` is any model string that the engine knows, an object of
        `model` and its settings, or a list of such: where one fails, the next is asked.
        """
        spec = agent_spec(
            prompt,
            model=model,
            system_prompt=system_prompt,
            agent=agent,
            tools=tools,
            max_iterations=max_iterations,
            require_approval=require_approval,
            seed=seed,
        )
        return await self.create("subagent", spec, options=options)

    async def hand_off(
        self,
        agent: str,
        prompt: str,
        *,
        invite: bool = False,
        seed: Literal["fresh", "fork", "files"] = "fresh",
        options: TaskOptions = DEFAULT_OPTIONS,
    ) -> TaskHandle:
        """Hand something to a registered agent, as it is registered (kind `agent_handoff`).

        It runs in a session of its own, which begins with the `seed`; see `spawn_agent`. With `invite` it takes a turn
        in this one instead, once nobody else does: it goes on from what was said here, and is heard here. Raises
        ConnectionRequired where it lacks one, and IllegalMove for an invitation to where no turns are taken.
        """
        given = {"agent": agent, "prompt": prompt, "invite": invite, "seed": seed}
        return await self.create("agent_handoff", given, options=options)

    async def open_peer(
        self,
        prompt: str,
        *,
        agent: str | None = None,
        title: str | None = None,
        seed: Literal["fresh", "fork", "files"] = "fresh",
        options: TaskOptions = DEFAULT_OPTIONS,
    ) -> TaskHandle:
        """Open a peer of this session, which stays open, and have its agent answer the prompt (kind `session`).

        The agent is this session's own unless named. The task's `links.child_session_id` is the peer, its result the
        first answer, and its budget the peer's. The peer is in the tree of this session, and outlives it.
        """
        given = {"prompt": prompt, "agent": agent or self._session.agent, "title": title, "seed": seed}
        spec = {name: value for name, value in given.items() if value is not None}
        return await self.create("session", spec, options=options)

    async def spawn_process(
        self,
        command: Sequence[str] | None = None,
        *,
        shell: str | None = None,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        clean_env: bool = False,
        stdin: str | None = None,
        cpu_limit: float | None = None,
        memory_limit: int | None = None,
        output_limit: int | None = None,
        keep_output: int | None = None,
        artifacts: Sequence[str] = (),
        effects: Effects = "idempotent",
        success: Sequence[int] = (0,),
        retry: bool | None = None,
        options: TaskOptions = DEFAULT_OPTIONS,
    ) -> TaskHandle:
        """Run a command in the background, under a supervisor that outlives the worker (kind `process`).

        `command` is a list, `shell` a line for /bin/sh. It runs in `cwd`, by default the current directory of this
        process, with a documented part of its worker's environment and `env` over that; none of it but `env` with
        `clean_env`. `cpu_limit` is in seconds for each process, `memory_limit` in bytes for all of them together,
        `output_limit` in bytes printed. A command that fails is run again with `retry`, which more than one of
        `options.max_failures` implies. `effects="once"` keeps one whose end is not known from being run again
        unasked.

        The result is an object of `exit_code`, `signal`, `duration`, `cpu_time`, `max_rss`, `output_bytes`, `tail`.
        Raises InvalidArguments.
        """
        spec = process_spec(
            command,
            shell=shell,
            cwd=cwd,
            env=env,
            clean_env=clean_env,
            stdin=stdin,
            cpu_limit=cpu_limit,
            memory_limit=memory_limit,
            output_limit=output_limit,
            keep_output=keep_output,
            artifacts=artifacts,
            effects=effects,
            success=success,
            retry=retry,
            options=options,
        )
        return await self.create("process", spec, options=options)

    async def create(self, kind: str, spec: Mapping[str, Any], *, options: TaskOptions = DEFAULT_OPTIONS) -> TaskHandle:
        """Create a task of any kind."""
        return self._handle(await self._tasks.create(self._session, kind, spec, options))

    async def send(self, content: Parts, *, steering: Steering = "inject", sender: str | None = None) -> TaskHandle:
        """Say something to the session's agent, durably: text, an object, or a list of message parts.

        Where no turn is taken one is made for it. During one, `steering` says what becomes of it: the agent hears it at
        its next iteration (`inject`), in the turn `after`, in one for which this turn is ended (`interrupt`; background
        tasks go on), or it is refused (`reject`). Returns the turn that was told or made; its `heard_by` is the one
        that hears it. Raises NotFound, SessionBusy, SessionClosed, InvalidArguments, TooLarge, and IllegalMove where
        the session has no agent.
        """
        turn, is_before = await self._sessions.send(self.id, content, steering=steering, sender=sender)
        return self._handle(turn, is_before)

    async def turn(self) -> TaskHandle | None:
        """Return the turn that the agent takes or took last, None before the first. Raises NotFound."""
        turn = await self._sessions.turn(self.id)
        return None if turn is None else self._handle(turn)

    async def transcript(
        self, *, after: int | None = None, limit: int = 100, newest_first: bool = False
    ) -> list[TranscriptRecord]:
        """Return what the agent has heard, said and done; see `Sessions.transcript`."""
        return await self._sessions.transcript(self.id, after=after, limit=limit, newest_first=newest_first)

    async def tasks(self, **filter: Any) -> list[TaskRecord]:
        """Return the session's tasks, newest first; fields of `TaskFilter` narrow it.

        `checkpoint` is left out, and `heartbeat_at` is the beat of the worker; see `Tasks.list`.
        """
        return await self._tasks.list(session_id=self.id, **filter)

    async def fork(
        self, *, upto: str | None = None, iteration: int | None = None, title: str | None = None
    ) -> SessionHandle:
        """Make a session that goes on from where this one is; see `Sessions.fork`."""
        return await self._sessions.fork(self.id, upto=upto, iteration=iteration, title=title)

    def export(self, *, tree: bool = True) -> AsyncIterator[JSONObject]:
        """Yield all that is in it as JSON objects; see `Sessions.export`."""
        return self._sessions.export(self.id, tree=tree)

    async def update(
        self, *, title: str | None = None, labels: Mapping[str, str | None] | None = None
    ) -> SessionRecord:
        """Give the session another title or other labels; see `Sessions.update`."""
        return await self._sessions.update(self.id, title=title, labels=labels)

    async def close(self, *, tasks: Remaining = "finish") -> SessionRecord:
        """Have the session take nothing any more; see `Sessions.close`. Raises NotEnded with `refuse`."""
        return await self._sessions.close(self.id, tasks=tasks)

    async def reopen(self) -> SessionRecord:
        """Open it again; see `Sessions.reopen`."""
        return await self._sessions.reopen(self.id)

    async def delete(self, *, cancel: bool = False) -> int:
        """Delete the session with all in it; see `Sessions.delete`. Raises NotEnded while tasks live."""
        return await self._sessions.delete(self.id, cancel=cancel)

    def events(self, *, after: int = 0) -> AsyncIterator[EventRecord]:
        """Yield the session's events, each once, for ever. Raises NotFound once it is deleted."""
        return self._sessions.events(self.id, after=after)

    async def files(self, prefix: str = "/", *, after: str | None = None, limit: int = 1000) -> list[FileRecord]:
        """Return the session's files below a prefix, in the order of their paths, after the one of that path."""
        return await self._sessions.files(self.id, prefix, after=after, limit=limit)

    async def read_file(self, path: str) -> bytes:
        """Return a file's content. Raises NotFound, InvalidPath."""
        return await self._sessions.read_file(self.id, path)

    async def write_file(self, path: str, content: bytes | str, media_type: str | None = None) -> str:
        """Write a file whole; return its path in normal form. Raises InvalidPath, InvalidArguments, TooLarge."""
        return await self._sessions.write_file(self.id, path, content, media_type)

    async def delete_file(self, path: str) -> bool:
        """Delete a file; False if there was none."""
        return await self._sessions.delete_file(self.id, path)

    def _handle(self, task: Task, is_before: bool = False) -> TaskHandle:
        return TaskHandle(self._services, task, is_before=is_before)
