"""The tasks of a runtime: create, look, answer, message, cancel, wait. Every edge comes through here."""

from __future__ import annotations

import asyncio
import builtins
import hashlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

from outrider.core.errors import (
    Conflict,
    IdempotencyConflict,
    IllegalMove,
    InvalidAnswer,
    InvalidArguments,
    NotFound,
    Outdated,
    Refused,
    RequestClosed,
    Superseded,
    TaskCanceled,
    TaskFailed,
    WaitTimeout,
)
from outrider.core.events import Answered, CancelRequested, Message, MessageReceived
from outrider.core.ledger import Beat, Existing, TaskFilter
from outrider.core.queue import route_needing, split_route
from outrider.core.session import Session
from outrider.core.task import LIVE_STATES, TURN, Direction, Input, InputRequest, NewTask, State, Task
from outrider.core.values import JSON, JSONObject, evolve
from outrider.runtime.around import Around
from outrider.runtime.budgets import usage_of_task
from outrider.runtime.clock import span
from outrider.runtime.codec import check_size, decode, ordered
from outrider.runtime.connections import check_connections
from outrider.runtime.context import Parts, message_parts
from outrider.runtime.forking import heritage_of
from outrider.runtime.ids import check_id, new_id
from outrider.runtime.moving import export_task, give_away, import_task, spec_of
from outrider.runtime.options import (
    DEFAULT_OPTIONS,
    Length,
    TaskOptions,
    check_count,
    check_filter,
    check_flags,
    check_ids,
    check_mappings,
    check_name,
    check_options,
    check_same,
    check_texts,
    check_texts_if_given,
    filter_of,
    new_task,
    not_negative,
    states_of,
)
from outrider.runtime.pruning import count_ended, delete_task, prune_ended
from outrider.runtime.records import (
    AttemptRecord,
    BulkReceipt,
    CancelReceipt,
    EventRecord,
    InputRequestRecord,
    MessageRecord,
    OutputRecord,
    PruneReceipt,
    RetryReceipt,
    SpentRecord,
    StepRecord,
    TaskRecord,
    TaskSnapshot,
    checkpoint_of,
)
from outrider.runtime.recovery import loss_of
from outrider.runtime.schemas import mismatch
from outrider.runtime.services import Services
from outrider.runtime.snapshots import snapshot_of_task
from outrider.runtime.stream import EventReader, life_of, read_output
from outrider.runtime.trees import tasks_below
from outrider.runtime.webhooks.hooks import create_with_webhooks, handing_on_webhooks

AHEAD = 100
"""How many of the tasks that somebody waits for are looked at each time."""

BATCH = 500
"""How many tasks are moved in one transaction."""


class Order(NamedTuple):
    """A task to be created."""

    kind: str
    spec: Mapping[str, Any]
    options: TaskOptions = DEFAULT_OPTIONS


class Submitted(NamedTuple):
    """A task that was created; not `is_new` if it was there already, of the same id or idempotency key."""

    task: Task
    is_new: bool


class Tasks:
    """All tasks of one store."""

    __slots__ = ("_services",)

    def __init__(self, services: Services) -> None:
        self._services = services

    async def create(
        self,
        session: Session | str,
        kind: str,
        spec: Mapping[str, Any],
        options: TaskOptions = DEFAULT_OPTIONS,
        *,
        parent_task_id: str | None = None,
    ) -> Task:
        """Create a task of a session, given as its record, however old, or its id; idempotent on its own id or key.

        Raises UnknownName for a kind or tool that is not known, ConnectionRequired for a connection that it needs and
        that is not there, another Refused for a spec that is wrong, NotFound for the session, IdempotencyConflict if
        the key was used for something else.
        """
        (task,) = await self.create_many(session, kind, [spec], options, parent_task_id=parent_task_id)
        return task

    async def create_many(
        self,
        session: Session | str,
        kind: str,
        specs: Sequence[Mapping[str, Any]],
        options: TaskOptions = DEFAULT_OPTIONS,
        *,
        parent_task_id: str | None = None,
    ) -> list[Task]:
        """Create many tasks of one kind with the same options, in few transactions."""
        orders = [Order(kind, spec, options) for spec in specs]
        return [made.task for made in await self.submit(session, orders, parent_task_id=parent_task_id)]

    async def submit(
        self, session: Session | str, orders: Sequence[Order], *, parent_task_id: str | None = None
    ) -> list[Submitted]:
        """Create tasks of any kinds, in few transactions, and say of each whether it was there already.

        All are looked at before any is made: raises what `create` raises, for the first that is wrong, also where its
        id or key stands for something else, and none is made then. What others make between the look and the write is
        met as it comes: then IdempotencyConflict may leave some that were made.
        """
        services = self._services
        limits = services.settings.limits
        fine: object = DEFAULT_OPTIONS
        for order in orders:
            _check_is_no_turn(order.kind)
            services.registry.executor(order.kind)
            check_mappings(spec=order.spec)
            if order.options is not DEFAULT_OPTIONS and order.options is not fine:
                check_options(order.options, limits)
                fine = order.options
        if not isinstance(session, Session):
            session = await self._session(session)
        named = [task_id for order in orders for task_id in _named_by(order.options)]
        await self._check_exist(list(dict.fromkeys(named)))
        now = services.clock.now()
        checked = [services.registry.executor(order.kind).check(order.spec) for order in orders]
        for each in checked:
            if each.check_session is not None:
                each.check_session(session)
        if needed := {name for each in checked for name in each.connections}:
            await check_connections(services, session, sorted(needed))
        new = [
            new_task(order.kind, each, session, order.options, now, limits, parent_task_id)
            for order, each in zip(orders, checked, strict=True)
        ]
        if len(new) > 1:
            await self._check_unused(session.id, new, [order.options.id for order in orders])
        made = await create_with_webhooks(services, new, [order.options.webhooks for order in orders])
        for asked, verdict in zip(new, made, strict=True):
            if isinstance(verdict, Existing):
                check_same(asked.input, verdict.task.id, verdict.task.input)
        return [Submitted(verdict.task, not isinstance(verdict, Existing)) for verdict in made]

    async def _check_unused(self, session_id: str, new: Sequence[NewTask], given: Sequence[str | None]) -> None:
        """Raise IdempotencyConflict where the key of one, or its id that was given, stands for another task: one that
        there is, or one before it here.
        """
        ids = [each for each in given if each is not None]
        keys = [each.input.idempotency_key for each in new if each.input.idempotency_key is not None]
        views = self._services.views
        there = {task.id: task.input for task in (await views.tasks(ids) if ids else ())}
        keyed = await views.keyed(session_id, keys) if keys else ()
        used = {task.input.idempotency_key: (task.id, task.input) for task in keyed}
        for each in new:
            key = each.input.idempotency_key
            if each.id in there:
                check_same(each.input, each.id, there[each.id])
            elif key is not None and key in used:
                check_same(each.input, *used[key])
            else:
                there[each.id] = each.input
                if key is not None:
                    used[key] = each.id, each.input

    async def _session(self, session_id: str) -> Session:
        check_texts(session_id=session_id)
        session = await self._services.views.session(session_id)
        if session is None:
            raise NotFound.of("session", session_id)
        return session

    async def _check_exist(self, ids: Sequence[str]) -> None:
        if not ids:
            return
        known = {task.id for task in await self._services.views.tasks(list(ids))}
        for task_id in ids:
            if task_id not in known:
                raise NotFound.of("task", task_id)

    async def get(self, task_id: str) -> Task:
        """Return a task. Raises NotFound, InvalidArguments for what is no id."""
        check_texts(task_id=task_id)
        task = await self._services.views.task(task_id)
        if task is None:
            raise NotFound.of("task", task_id)
        return task

    async def find(self, part: str) -> Task:
        """Return the task of that id, or the only one whose id begins or ends with it; `task_` may be left out.

        Raises NotFound, or InvalidArguments when it fits several.
        """
        check_texts(task_id=part)
        views = self._services.views
        task = await views.task(part)
        if task is not None:
            return task
        found = await views.task_ids(part, 6) if part else ()
        if not found and part:
            found = await views.task_ids(f"task_{part}", 6)
        if len(found) > 1:
            raise InvalidArguments(
                f"{part!r} fits several tasks: {', '.join(found[:5])}{', …' if len(found) > 5 else ''}",
                details={"matches": builtins.list(found[:5])},
            )
        return await self.get(found[0] if found else part)

    async def record(self, task_id: str) -> TaskRecord:
        """Return a task's whole public record, with what is derived on read. Raises NotFound."""
        task = await self.get(task_id)
        views = self._services.views
        steps = await views.steps(task_id, values=False)
        beat = await views.active_at(task_id)
        around = None if task.is_terminal else await Around.look(self._services.ledger)
        if around is not None and (beaten := around.beat(task)) is not None:
            beat = max(beaten, beat or 0)
        return TaskRecord.of(task, heartbeat_at=beat, checkpoint=checkpoint_of(task, steps), around=around)

    async def list(self, filter: TaskFilter | None = None, **given: Any) -> list[TaskRecord]:
        """Return a page of tasks; the fields are those of `TaskFilter`. Raises InvalidArguments for others.

        `created_after` (at it or after it) and `created_before` are datetimes; `text` is words that a task has (see
        docs/operations.md).
        What would take a query for each task is left to `record`: `checkpoint` is None in a list, and `heartbeat_at` is
        the last beat of the worker that holds the task, None where none does.
        """
        wanted = filter_of(given) if filter is None else filter
        check_filter(wanted)
        return await self._records(await self._services.views.list_tasks(wanted))

    async def _records(self, found: Sequence[Task]) -> builtins.list[TaskRecord]:
        around = await Around.look(self._services.ledger)
        return [TaskRecord.of(task, heartbeat_at=around.beat(task), around=around) for task in found]

    async def tree(self, task_id: str) -> builtins.list[TaskRecord]:
        """Return a task and those below it, also in the sessions that they opened, oldest first. Raises NotFound."""
        return await self._records(await tasks_below(self._services.views, await self.get(task_id)))

    async def spent(self, task_id: str) -> SpentRecord:
        """Return what a task's model calls have used, and the accounts that bound them. Raises NotFound."""
        return await usage_of_task(self._services.views, await self.get(task_id))

    async def attempts(self, task_id: str) -> Sequence[AttemptRecord]:
        """Return a task's attempts, the open one last."""
        task = await self.get(task_id)
        ended = [AttemptRecord.of(end) for end in await self._services.views.attempts(task_id)]
        core = task.core
        if core.worker_id is not None:
            from outrider.runtime.clock import as_datetime

            open_one = AttemptRecord(
                attempt=core.attempt,
                worker_id=core.worker_id,
                started_at=as_datetime(core.attempt_started_at or core.updated_at),
                ended_at=None,
                ending=None,
                error=None,
            )
            ended.append(open_one)
        return ended

    async def steps(self, task_id: str) -> Sequence[StepRecord]:
        """Return a task's journal."""
        check_texts(task_id=task_id)
        steps = await self._services.views.steps(task_id, values=False)
        task = await self._services.views.task(task_id)
        return [StepRecord.of(step, has_ended=task is not None and task.is_terminal) for step in steps]

    async def requests(self, task_id: str) -> Sequence[InputRequestRecord]:
        """Return all that a task ever asked, oldest first."""
        check_texts(task_id=task_id)
        return [InputRequestRecord.of(request) for request in await self._services.views.requests(task_id)]

    async def messages(
        self, task_id: str, *, direction: Literal["inbound", "outbound"] | None = None, after: str | None = None
    ) -> Sequence[MessageRecord]:
        """Return a task's thread, after the message of that id."""
        check_texts(task_id=task_id)
        check_texts_if_given(after=after)
        if direction not in (None, *get_args(Direction)):
            raise InvalidArguments(f"direction is one of {', '.join(get_args(Direction))}, not {direction!r:.100}")
        found = await self._services.views.messages(task_id, direction=direction, after=after)
        return [MessageRecord.of(message) for message in found]

    # --- steering ------------------------------------------------------------------------------------

    async def answer(
        self,
        task_id: str,
        answer: JSON,
        *,
        request_id: str | None = None,
        by: str | None = None,
        via: str | None = None,
        if_version: int | Collection[int] | None = None,
    ) -> TaskRecord:
        """Answer a question of a task: the oldest pending one, or the one of that id. The first answer wins.

        Raises InvalidAnswer if it does not fit what is expected, RequestClosed if the request is no longer
        pending, NotFound if there is no such request, Outdated for a task that has no version of `if_version`.
        """
        check_texts_if_given(request_id=request_id, by=by, via=via)
        check_size("who answers, and how,", (by, via), self._services.settings.limits.name)
        task = await self.get(task_id)
        request = task.core.request(request_id) if request_id is not None else next(iter(task.core.requests), None)
        if request is None:
            await self._explain_missing(task, request_id)
        assert request is not None
        try:
            answer = decode(check_size("the answer", answer, self._services.settings.limits.question))
        except InvalidArguments as error:
            raise InvalidAnswer(error.message) from None
        problem = mismatch(answer, request.expected)
        if problem is not None:
            raise InvalidAnswer(
                f"the answer does not fit what is expected: {problem}", details={"expected": request.expected}
            )
        self._check_edited(request, answer)
        answered = Answered(request.id, answer, by, via)
        return TaskRecord.of(await self._services.lifecycle.move(task, answered, if_version=if_version))

    def _check_edited(self, request: InputRequest, answer: JSON) -> None:
        """Raise InvalidAnswer for arguments that an approver puts in place of others, where this app knows the tool.

        A tool of the agent's own may have the name of one of the app's; what is put in place there the model is told.
        """
        details = request.details if isinstance(request.details, Mapping) else {}
        tool = None if details.get("own") else self._services.registry.tools.get(str(details.get("tool")))
        if request.kind != "approval" or tool is None or not isinstance(answer, Mapping) or not answer.get("approved"):
            return
        if (arguments := answer.get("arguments")) is not None:
            try:
                tool.arguments.check(arguments)
            except InvalidArguments as error:
                raise InvalidAnswer(f"{tool.name} cannot be called like this: {error.message}") from None

    async def _explain_missing(self, task: Task, request_id: str | None) -> None:
        ended = f"{task.id} has ended as {task.core.state}" if task.is_terminal else None
        if request_id is None:
            raise RequestClosed(f"{f'{ended} and' if ended else task.id} asks nothing now")
        closed = await self._services.views.request(request_id)
        if closed is None or closed.task_id != task.id:
            raise NotFound.of("request", request_id)
        by = f" by {closed.answered_by}" if closed.answered_by else ""
        raise RequestClosed(
            f"request {request_id} was {closed.status}{by} already{f'; {ended}' if ended else ''}",
            details={"status": closed.status, "answered_by": closed.answered_by},
        )

    async def message(
        self,
        task_id: str,
        content: Parts,
        *,
        in_reply_to: str | None = None,
        sender: str | None = None,
        idempotency_key: str | None = None,
    ) -> MessageRecord:
        """Send a task a message from its session; idempotent on the key, if there is one.

        Raises TaskFinished if it has ended, IdempotencyConflict for a key that another message of the task was sent
        with.
        """
        check_texts_if_given(in_reply_to=in_reply_to, sender=sender)
        limits = self._services.settings.limits
        if idempotency_key is not None:
            check_name("idempotency_key", idempotency_key, limits.name)
        task = await self.get(task_id)
        parts = message_parts(content, limits.message)
        check_size("the sender of the message, with what it replies to,", (sender, in_reply_to), limits.name)
        if task.input.message_schema is not None:
            for part in parts:
                problem = mismatch(part.get("data", part.get("text")), task.input.message_schema)
                if problem is not None:
                    raise InvalidAnswer(f"the message does not fit the task's message_schema: {problem}")
        message = Message(
            id=new_id("tmsg") if idempotency_key is None else _message_id(task_id, idempotency_key),
            task_id=task_id,
            session_id=task.session_id,
            direction="inbound",
            parts=parts,
            created_at=self._services.clock.now(),
            sender=sender,
            in_reply_to=in_reply_to,
        )
        if idempotency_key is None:
            await self._services.lifecycle.move(task, MessageReceived(message))
            return MessageRecord.of(message)
        return MessageRecord.of(await self._send_once(task, message))

    async def _send_once(self, task: Task, message: Message) -> Message:
        """Send a message unless it was sent before; return the one that was. A message moves the version of its task,
        so that of two at once the second one sees the first.
        """
        while True:
            after: str | None = None
            while thread := await self._services.views.messages(task.id, direction="inbound", after=after):
                sent = next((each for each in thread if each.id == message.id), None)
                if sent is not None:
                    if ordered(evolve(message, created_at=sent.created_at)) != ordered(sent):
                        raise IdempotencyConflict(
                            f"this idempotency key was used before, for another message to {task.id}",
                            details={"message_id": sent.id},
                        )
                    return sent
                after = thread[-1].id
            try:
                await self._services.lifecycle.move(task, MessageReceived(message), if_version=task.core.version)
            except Outdated:
                task = await self.get(task.id)
                continue
            return message

    async def retry(self, task_id: str, *, id: str | None = None) -> Task:
        """Do again what an ended task was to do: a new task of its session, with all its options, that names it.

        It is nobody's child and waits for nothing: what the old one depended on has ended. Idempotent on the `id` of
        the new one, if that is given. Raises NotFound, IllegalMove while the old one lives, and IdempotencyConflict
        for an id that another task has.
        """
        new_task_id = new_id("task") if id is None else check_id("task", id)
        old = await self._ended(task_id)
        _check_is_no_turn(old.input.kind)
        again = self._again(old)
        new = NewTask(new_task_id, again)
        async with handing_on_webhooks(self._services, old, new):
            (made,) = await self._services.lifecycle.create([new])
        return _made_of(made.task, old)

    async def retry_many(self, ids: Sequence[str] | None = None, *, filter: TaskFilter | None = None) -> RetryReceipt:
        """Retry many ended tasks: those of these ids, or a page of those that pass a filter, by default the failed.

        Each is made or left by itself; the receipt says why. Asked again, it makes them again. Raises InvalidArguments
        unless either ids or a filter are given.
        """
        if (ids is None) == (filter is None):
            raise InvalidArguments("name the tasks to retry by ids or by a filter, not both")
        if ids is not None:
            check_ids(ids=ids)
            wanted = builtins.list(dict.fromkeys(ids))
        else:
            assert filter is not None
            check_filter(filter)
            filter = filter if filter.states is not None else replace(filter, states=(State.FAILED,))
            wanted = [task.id for task in await self._services.views.list_tasks(filter)]
        made: dict[str, str] = {}
        left: dict[str, str] = {}

        async def again(task_id: str) -> None:
            try:
                made[task_id] = (await self.retry(task_id)).id
            except (Conflict, NotFound, Refused) as error:
                left[task_id] = error.code

        for start in range(0, len(wanted), BATCH):
            await asyncio.gather(*map(again, wanted[start : start + BATCH]))
        return RetryReceipt(retried=made, left=left)

    async def fork(
        self,
        task_id: str,
        *,
        from_step: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        id: str | None = None,
    ) -> Task:
        """Go on from a step of an ended task, as a new task of its session that names it.

        It begins with the old journal up to that position (`steps` lists them), without it; with None, with all of
        it. Questions answered before stay answered, children spawned before are not spawned again, messages taken
        before are the same. `arguments` replace some of the tool's, or fields of the spec for other kinds. Idempotent
        on the `id` of the new one, if that is given.

        Raises NotFound, IllegalMove while the old one lives, UnknownName for a step that its journal does not have,
        CannotFork for an agent, whose progress is in its session, and a Refused for arguments that do not fit.
        """
        check_texts_if_given(from_step=from_step)
        if arguments is not None:
            check_mappings(arguments=arguments)
        new_task_id = new_id("task") if id is None else check_id("task", id)
        old = await self._ended(task_id)
        _check_is_no_turn(old.input.kind)
        given = self._again(old)
        if arguments:
            given = self._with_arguments(given, arguments)
        new = NewTask(new_task_id, given)
        heritage = await heritage_of(self._services, old, new.id, from_step)
        async with handing_on_webhooks(self._services, old, new):
            made = await self._services.lifecycle.fork(new, heritage)
        return _made_of(made, old)

    def _with_arguments(self, given: Input, changes: Mapping[str, Any]) -> Input:
        spec = dict(given.spec)
        if isinstance(spec.get("arguments"), Mapping):
            spec["arguments"] = {**spec["arguments"], **changes}
        else:
            spec.update(changes)
        checked = self._services.registry.executor(given.kind).check(spec)
        check_size("the spec of the task", checked.spec, self._services.settings.limits.spec)
        return evolve(given, spec=checked.spec, route=route_needing(checked.route, split_route(given.route)[1]))

    async def _ended(self, task_id: str) -> Task:
        task = await self.get(task_id)
        if not task.is_terminal:
            raise IllegalMove(f"{task_id} is {task.state}; what has not ended cannot be retried or forked")
        return task

    def _again(self, old: Task) -> Input:
        """What an ended task was to do, for a new one: nobody's child, and it waits for nothing."""
        return evolve(
            old.input,
            created_at=self._services.clock.now(),
            spec=old.spec,
            priority=old.priority,
            retry_of=old.id,
            idempotency_key=None,
            debounce_key=None,
            debounce_until=None,
            depends_on=(),
            parent_task_id=None,
        )

    async def export(self, task_id: str, *, events: bool = False) -> dict[str, JSON]:
        """Return a task as one JSON document, with its checkpoint; `load` makes it of that on another database.

        Nothing is changed: `give_away` ends it here. The task may have ended or live, but nobody may hold it, and it
        may not wait for other tasks: else IllegalMove. `events` adds its log entries. Raises NotFound.
        """
        return await export_task(self._services, await self.get(task_id), events=events)

    async def give_away(self, document: Mapping[str, Any]) -> Task:
        """End here an exported task, as canceled, so that it does not run twice; one that has ended stays as it is.

        Raises Conflict if it has moved on since it was exported: the document is then worth nothing.
        """
        return await give_away(self._services, document)

    async def load(self, document: Mapping[str, Any], *, session_id: str | None = None, force: bool = False) -> Task:
        """Make the task of an exported document, under its id; it goes on from its checkpoint here.

        It comes into the session of its own one's id, or that of `session_id`; that is made where it is missing.
        Raises InvalidArguments for what is no such document, AlreadyExists for a task that is here already, and, but
        with `force`, UnknownName or another Refused for a task that lives and that neither this app nor a worker here
        could run.
        """
        kind, spec, has_ended = spec_of(document)
        if not (has_ended or force):
            await self._check_can_run(kind, spec, str(document["task"]["input"]["route"]))
        return await import_task(self._services, document, session_id=session_id)

    async def _check_can_run(self, kind: str, spec: JSONObject, route: str) -> None:
        if not any(route in worker.card.routes for worker in await self._services.views.workers()):
            self._services.registry.executor(kind).check(spec)

    async def delete(self, task_id: str) -> int:
        """Delete an ended task whole, with the sessions that it opened; return how many tasks went.

        Its children in other sessions stay, and so does what names it. Raises NotFound, and NotEnded while it lives,
        or anything in those sessions does: nothing is deleted then.
        """
        return await delete_task(self._services, await self.get(task_id))

    async def prune(
        self,
        older_than: Length,
        *,
        states: Sequence[State] | None = None,
        organization_id: str | None = None,
        session_id: str | None = None,
        kind: str | None = None,
        dry_run: bool = False,
    ) -> PruneReceipt:
        """Delete the tasks that ended longer ago than that and are not pinned, in bounded batches.

        `states` are some of the three that a task ends in. `dry_run` only counts the tasks. Raises InvalidArguments.
        """
        check_texts_if_given(organization_id=organization_id, session_id=session_id, kind=kind)
        check_flags(dry_run=dry_run)
        tasks = sessions = 0
        before = self._services.clock.now() - not_negative("older_than", older_than)
        if dry_run:
            count = await count_ended(
                self._services,
                before,
                states=None if states is None else states_of(states),
                organization_id=organization_id,
                session_id=session_id,
                kind=kind,
            )
            return PruneReceipt(tasks=count, sessions=0)
        async for pruned in prune_ended(
            self._services,
            before,
            states=None if states is None else states_of(states),
            organization_id=organization_id,
            session_id=session_id,
            kind=kind,
        ):
            tasks, sessions = tasks + len(pruned.task_ids), sessions + len(pruned.session_ids)
        return PruneReceipt(tasks=tasks, sessions=sessions)

    async def cancel(
        self,
        task_id: str,
        *,
        reason: str | None = None,
        by: str | None = None,
        wait: Length | None = None,
        include_detached: bool = False,
        grace: Length | None = None,
        if_version: int | Collection[int] | None = None,
    ) -> CancelReceipt:
        """Cancel a task and the linked children below it; say what became of each.

        With `wait`, give those whose holder has to stop first that long, and say where each ended. Raises NotFound, and
        Outdated for a task that has no version of `if_version`.
        """
        self._check_cancel(reason, by, include_detached)
        patience = None if wait is None else span(wait)
        before = await self.get(task_id)
        was_terminal = {before.id} if before.is_terminal else set()
        event = CancelRequested(by, reason, include_detached, None if grace is None else not_negative("grace", grace))
        await self._services.lifecycle.move(before, event, if_version=if_version)
        tree, ended_before = await self._cancel_below(task_id, include_detached)
        ids = [task_id, *tree]
        await self._end_lost(ids)
        left = was_terminal | ended_before
        if patience is not None:
            await self._wait_for_end([each for each in ids if each not in left], patience)
        records = {task.id: task for task in await self._services.views.tasks(ids)}
        ids = [each for each in ids if each in records]  # what has ended may be deleted meanwhile
        canceled, requested = [], []
        for each in ids:
            task = records[each]
            if each in left or task.core.cancel_requested_at is None:
                left.add(each)
            elif task.core.state is State.CANCELED:
                canceled.append(each)
            elif task.is_terminal:
                left.add(each)
            else:
                requested.append(each)
        return CancelReceipt(
            task_id=task_id,
            canceled=tuple(canceled),
            requested=tuple(requested),
            left=tuple(each for each in ids if each in left),
            states={each: records[each].core.state for each in ids},
        )

    async def cancel_many(
        self,
        ids: Sequence[str] | None = None,
        *,
        filter: TaskFilter | None = None,
        reason: str | None = None,
        by: str | None = None,
        include_detached: bool = False,
    ) -> BulkReceipt:
        """Cancel many tasks, those of these ids or all live ones that pass a filter, and the linked children below.

        In batches, each one transaction; the children hear of it right after. Of the filter, states, `after` and
        `limit` are ignored. An id that nothing has is left out. Raises InvalidArguments unless either ids or a filter
        are given.
        """
        if (ids is None) == (filter is None):
            raise InvalidArguments("name the tasks to cancel by ids or by a filter, not both")
        if ids is not None:
            check_ids(ids=ids)
        if filter is not None:
            check_filter(filter)
        self._check_cancel(reason, by, include_detached)
        event = CancelRequested(by, reason, include_detached)
        canceled, requested, left = builtins.list[str](), builtins.list[str](), builtins.list[str]()
        async for batch in self._batches(ids, filter):
            done = {task.id for task in batch if task.is_terminal}
            live = [task for task in batch if not task.is_terminal]
            for task in await self._services.lifecycle.move_many(live, event):
                if task.state is State.CANCELED:
                    canceled.append(task.id)
                elif task.core.cancel_requested_at is not None and not task.is_terminal:
                    requested.append(task.id)
                else:
                    left.append(task.id)
            left.extend(sorted(done))
        while await self._services.lifecycle.apply_follow_ups():
            pass
        settled = await self._end_lost(requested)
        canceled.extend(each for each in requested if each in settled)
        waiting = tuple(each for each in requested if each not in settled)
        return BulkReceipt(canceled=tuple(canceled), requested=waiting, left=tuple(left))

    def _check_cancel(self, reason: object, by: object, include_detached: object) -> None:
        check_texts_if_given(reason=reason, by=by)
        check_flags(include_detached=include_detached)
        check_size("the reason of a cancel, with who cancels,", (reason, by), self._services.settings.limits.message)

    async def _batches(self, ids: Sequence[str] | None, filter: TaskFilter | None) -> AsyncIterator[Sequence[Task]]:
        views = self._services.views
        if ids is not None:
            for start in range(0, len(ids), BATCH):
                yield await views.tasks(builtins.list(dict.fromkeys(ids[start : start + BATCH])))
            return
        assert filter is not None
        after: str | None = None
        while True:  # by id, oldest first, so that what is canceled on the way moves no page
            page = replace(filter, states=tuple(sorted(LIVE_STATES)), after=after, limit=BATCH, newest_first=False)
            batch = await views.list_tasks(page)
            if batch:
                yield batch
            if len(batch) < BATCH:
                return
            after = batch[-1].id

    async def _cancel_below(self, task_id: str, include_detached: bool) -> tuple[builtins.list[str], set[str]]:
        """Apply the follow-ups of a cancel level by level; return the descendants, and those that had ended."""
        found: builtins.list[str] = []
        ended: set[str] = set()
        level = [task_id]
        while level:
            children = [child for parent in level for child in await self._services.views.children(parent)]
            found.extend(child.id for child in children)
            ended.update(child.id for child in children if child.is_terminal and child.core.cancel_requested_at is None)
            level = [child.id for child in children]
            while level and await self._services.lifecycle.apply_follow_ups(task_ids=level):
                pass
        return found, ended

    async def _end_lost(self, ids: Sequence[str]) -> set[str]:
        """Settle what a dead worker of this machine holds, and return which: nobody would while no other lives."""
        held = [task for task in await self._services.views.tasks(ids) if task.core.is_held]
        settled = set[str]()
        if not held:
            return settled
        dead = (await Around.look(self._services.ledger)).dead
        for task in held:
            if task.core.worker_id in dead and task.core.cancel_requested_at is not None:
                beat = Beat(task.id, task.core.attempt, task.core.version)
                with suppress(NotFound, Superseded):  # a worker was faster
                    await self._services.lifecycle.move(task.id, await loss_of(self._services.views, beat))
                    settled.add(task.id)
        return settled

    async def _wait_for_end(self, ids: Sequence[str], length: int) -> None:
        until = self._services.clock.now() + length
        with self._services.signals.listen(ids) as bell:
            while self._services.clock.now() < until:
                if all(task.is_terminal for task in await self._services.views.tasks(ids)):
                    return
                await bell.wait(until)

    # --- waiting -------------------------------------------------------------------------------------

    async def wait(
        self, task_ids: Sequence[str], *, any: bool = False, timeout: Length | None = None, on_question: bool = False
    ) -> builtins.list[Task]:
        """Wait until all of these tasks have ended, or one, with `any`; with `on_question`, a pending question
        counts as well. Raises NotFound, and WaitTimeout when the time is over.
        """

        check_ids(task_ids=task_ids)
        check_flags(any=any, on_question=on_question)

        def is_ready(task: Task) -> bool:
            return task.is_terminal or (on_question and bool(task.core.requests))

        until = None if timeout is None else self._services.clock.now() + span(timeout)
        with self._services.signals.listen(task_ids) as bell:
            found = fresh = await self._look(task_ids)
            while True:
                open_ones = [task_id for task_id, task in found.items() if not is_ready(task)]
                if not open_ones and on_question:  # what asked before may have been answered since
                    found |= await self._look([task_id for task_id, task in found.items() if not task.is_terminal])
                    open_ones = [task_id for task_id, task in found.items() if not is_ready(task)]
                if not open_ones or (any and len(open_ones) < len(found)):
                    return [found[task_id] for task_id in task_ids]
                if until is not None and self._services.clock.now() >= until:
                    raise await self._wait_timeout(open_ones)
                if not builtins.any(map(is_ready, fresh.values())):  # else those behind them may have ended too
                    await bell.wait(until)
                # For all of them to have ended the first must have: the others are not looked at before.
                fresh = await self._look(open_ones if any else open_ones[:AHEAD])
                found |= fresh

    async def _wait_timeout(self, task_ids: Sequence[str]) -> WaitTimeout:
        found = await self._look(task_ids)
        open_ones = [task_id for task_id, task in found.items() if not task.is_terminal]
        return WaitTimeout(f"still going on: {', '.join(open_ones)}", details={"open": open_ones})

    async def _look(self, task_ids: Sequence[str]) -> dict[str, Task]:
        if not task_ids:
            return {}
        if len(task_ids) == 1:
            tasks: Sequence[Task | None] = [await self._services.glance.task(task_ids[0])]
        else:
            tasks = await self._services.views.tasks(list(task_ids))
        found = {task.id: task for task in tasks if task is not None}
        for task_id in task_ids:
            if task_id not in found:
                raise NotFound.of("task", task_id)
        return found

    async def result(self, task_id: str, *, timeout: Length | None = None) -> bytes | None:
        """Wait for a task and return its result as encoded JSON, None if it returned nothing.

        Raises TaskFailed, TaskCanceled or WaitTimeout.
        """
        (task,) = await self.wait([task_id], timeout=timeout)
        match task.core.state:
            case State.SUCCEEDED:
                path = task.outcome.result_path
                return None if path is None else await self._services.views.file(task.session_id, path)
            case State.CANCELED:
                reason = f": {task.core.cancel_reason}" if task.core.cancel_reason else ""
                raise TaskCanceled(f"{task_id} was canceled{reason}")
            case _:
                error = task.outcome.error
                assert error is not None
                raise TaskFailed(f"{task_id} failed: {error.message}", kind=error.kind, details=error.details)

    # --- following -----------------------------------------------------------------------------------

    async def events(self, task_id: str, *, after: int = 0) -> AsyncIterator[EventRecord]:
        """Yield a task's events, each once, after that number of its session's log, until the task has ended.

        Raises NotFound, also once deleted.
        """
        check_count("after", after)
        task = await self.get(task_id)
        life = life_of(task.input)
        reader = EventReader(self._services, task.session_id, after=after, task_id=task_id)
        with self._services.signals.listen([task_id]) as bell:
            while True:
                is_last = task.is_terminal
                events = await reader.read()
                task = await self.get(task_id)
                if life_of(task.input) != life:
                    raise NotFound.of("task", task_id)
                for event in events:
                    yield event
                if events:
                    continue
                if is_last:
                    return
                if not task.is_terminal:
                    await bell.wait()

    async def snapshot(self, task_id: str) -> TaskSnapshot:
        """Return a task, and the number of the event after which all of its events are new. Raises NotFound."""
        check_texts(task_id=task_id)
        return await snapshot_of_task(self._services, task_id)

    def output(self, task_id: str, *, start: int = 0, follow: bool = True) -> AsyncIterator[OutputRecord]:
        """Yield a task's output from a byte offset on: until it has ended, or without `follow` what is there."""
        check_texts(task_id=task_id)
        check_count("start", start)
        return read_output(self._services, task_id, start, follow=follow)


def _message_id(task_id: str, key: str) -> str:
    """The id of the message to a task that is sent with a key: the same for the same, and of no other task."""
    return f"tmsg_{hashlib.sha256(f'{task_id} {key}'.encode()).hexdigest()[:32]}"


def _made_of(task: Task, old: Task) -> Task:
    """A task that was to be made of an old one. Raises IdempotencyConflict for what was there already, of another."""
    if (task.input.retry_of, task.session_id) != (old.id, old.session_id):
        raise IdempotencyConflict(f"id {task.id!r} was used before, for another task")
    return task


def _named_by(options: TaskOptions) -> builtins.list[str]:
    """The tasks that have to be there for a task with these options."""
    return [*options.depends_on, *([] if options.retry_of is None else [options.retry_of])]


def _check_is_no_turn(kind: str) -> None:
    """Raise IllegalMove for a turn: they follow each other, and are made by what is said in the session alone."""
    if kind == TURN:
        raise IllegalMove("a turn is made by what comes into its session, and taken once: say something there")
