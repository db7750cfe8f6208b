"""The tasks of a server: the verbs of `outrider.runtime.tasks.Tasks`, with records where that has inner tasks."""

from __future__ import annotations

import builtins
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from datetime import datetime
from typing import Any, Literal, NamedTuple, cast, get_args

import orjson

from outrider.client.connection import PAGE, Connection, Told, as_json, segment
from outrider.core.errors import (
    InvalidArguments,
    NotFound,
    Outdated,
    OutriderError,
    RequestClosed,
    ServerDiffers,
    TaskCanceled,
    TaskFailed,
    WaitTimeout,
)
from outrider.core.ledger import TaskFilter
from outrider.core.task import Direction, State
from outrider.core.values import JSON, evolve
from outrider.runtime.clock import as_datetime, instant, span
from outrider.runtime.context import Parts, message_parts
from outrider.runtime.ids import new_id
from outrider.runtime.options import (
    DEFAULT_OPTIONS,
    Length,
    TaskOptions,
    check_count,
    check_filter,
    check_flags,
    check_ids,
    check_mappings,
    check_texts,
    check_texts_if_given,
    filter_of,
    not_negative,
    states_of,
)
from outrider.runtime.records import (
    AttemptRecord,
    BulkReceipt,
    CancelReceipt,
    EventRecord,
    InputRequestRecord,
    MessageRecord,
    OutputRecord,
    PruneReceipt,
    Record,
    RetryReceipt,
    SessionRecord,
    SpentRecord,
    StepRecord,
    TaskRecord,
    TaskSnapshot,
)
from outrider.runtime.tasks import Order

BYTES = 4 * 1024 * 1024
"""How many bytes of tasks to be made go in one request, unless one task has more."""
NO_LIMIT = 1 << 62
"""Sizes are for the server to judge."""

_IN_QUERY = {"states": "state", "labels": "label"}
_LENGTHS = ("debounce_max", "delay", "backoff", "backoff_max", "queue_timeout", "run_timeout", "idle_timeout",
            "total_timeout", "cancel_grace")  # fmt: skip


class Submitted(NamedTuple):
    """A task that was created; not `is_new` if it was there already, of the same id or idempotency key."""

    task: TaskRecord
    is_new: bool


class _SubmittedTask(Record):
    is_new: bool
    task: TaskRecord


class _Waited(Record):
    is_over: bool
    items: tuple[TaskRecord, ...]


class Tasks:
    """All tasks of one organization, or of what the key may see."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(
        self, session: SessionRecord | str, kind: str, spec: Mapping[str, Any], options: TaskOptions = DEFAULT_OPTIONS
    ) -> TaskRecord:
        """Create a task of a session, given as its record or its id; idempotent on its own id or key.

        It gets its id here, so that it is made once however often it has to be asked for. Raises what the façade
        raises.
        """
        ((task, _),) = await self.submit(session, [Order(kind, spec, options)])
        return task

    async def create_many(
        self,
        session: SessionRecord | str,
        kind: str,
        specs: Sequence[Mapping[str, Any]],
        options: TaskOptions = DEFAULT_OPTIONS,
    ) -> list[TaskRecord]:
        """Create many tasks of one kind with the same options, a thousand a request."""
        orders = [Order(kind, spec, options) for spec in specs]
        return [made.task for made in await self.submit(session, orders)]

    async def submit(self, session: SessionRecord | str, orders: Sequence[Order]) -> builtins.list[Submitted]:
        """Create tasks of any kinds, and say of each whether it was there already.

        All of a request, a thousand at most, are looked at before any is made; so are their ids and keys.
        """
        session_id = session.id if isinstance(session, SessionRecord) else session
        path = f"/v1/sessions/{segment('session', session_id)}/tasks"
        forms = [_form_of(order) for order in orders]
        if len(forms) == 1:
            answer = await self._connection.ask("POST", path, body=forms[0], again=True)
            task = answer.record(TaskRecord)
            is_new = "idempotent-replayed" not in answer.headers or (answer.is_doubtful and _is_ours(task, forms[0]))
            return [Submitted(task, is_new)]
        made: builtins.list[Submitted] = []
        for some in _portions(forms):
            answer = await self._connection.ask("POST", f"{path}/bulk", body={"tasks": some}, again=True)
            for form, each in zip(some, answer.page(_SubmittedTask), strict=True):
                is_new = each.is_new or (answer.is_doubtful and _is_ours(each.task, form))
                made.append(Submitted(each.task, is_new))
        return made

    async def get(self, task_id: str) -> TaskRecord:
        """Return a task. Raises NotFound, InvalidArguments for what is no id."""
        return await self.record(task_id)

    async def find(self, part: str) -> TaskRecord:
        """Return the task of that id, or the only one whose id begins or ends with it; `task_` may be left out.

        Raises NotFound, or InvalidArguments when it fits several.
        """
        check_texts(task_id=part)
        return (await self._connection.ask("GET", "/v1/tasks:find", params={"part": part})).record(TaskRecord)

    async def record(self, task_id: str) -> TaskRecord:
        """Return a task's whole record. Raises NotFound."""
        return (await self._connection.ask("GET", _path(task_id))).record(TaskRecord)

    async def list(self, filter: TaskFilter | None = None, **given: Any) -> list[TaskRecord]:
        """Return a page of tasks; the fields are those of `TaskFilter`. Raises InvalidArguments for others."""
        wanted = filter_of(given) if filter is None else filter
        check_filter(wanted)
        found: builtins.list[TaskRecord] = []
        while len(found) < wanted.limit:
            limit = min(wanted.limit - len(found), PAGE)
            answer = await self._connection.ask("GET", "/v1/tasks", params=_query_of(evolve(wanted, limit=limit)))
            page = answer.page(TaskRecord)
            found += page
            if len(page) < limit:
                break
            wanted = evolve(wanted, after=page[-1].id)
        return found

    async def tree(self, task_id: str) -> builtins.list[TaskRecord]:
        """Return a task and those below it, oldest first; of more than 200 some. Raises NotFound."""
        return (await self._connection.ask("GET", f"{_path(task_id)}/tree")).page(TaskRecord)

    async def spent(self, task_id: str) -> SpentRecord:
        """Return what a task's model calls have used, and the accounts that bound them. Raises NotFound."""
        return (await self._connection.ask("GET", f"{_path(task_id)}/usage")).record(SpentRecord)

    async def attempts(self, task_id: str) -> Sequence[AttemptRecord]:
        """Return a task's attempts, the open one last."""
        return (await self._connection.ask("GET", f"{_path(task_id)}/attempts")).page(AttemptRecord)

    async def steps(self, task_id: str) -> Sequence[StepRecord]:
        """Return a task's journal."""
        return (await self._connection.ask("GET", f"{_path(task_id)}/steps")).page(StepRecord)

    async def requests(self, task_id: str) -> Sequence[InputRequestRecord]:
        """Return all that a task ever asked, oldest first."""
        return (await self._connection.ask("GET", f"{_path(task_id)}/requests")).page(InputRequestRecord)

    async def messages(
        self, task_id: str, *, direction: Literal["inbound", "outbound"] | None = None, after: str | None = None
    ) -> Sequence[MessageRecord]:
        """Return a task's thread, after the message of that id."""
        check_texts_if_given(after=after)
        if direction not in (None, *get_args(Direction)):
            raise InvalidArguments(f"direction is one of {', '.join(get_args(Direction))}, not {direction!r:.100}")
        params = {"direction": direction, "after": after}
        return (await self._connection.ask("GET", f"{_path(task_id)}/messages", params=params)).page(MessageRecord)

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

        Which question is the oldest is looked up first, so that an answer that has to be sent again is one to that.
        """
        check_texts_if_given(request_id=request_id, by=by, via=via)
        path, given = _path(task_id), as_json("the answer", answer)
        if request_id is None and (oldest := (await self.record(task_id)).input_request) is not None:
            request_id = oldest.id
        body = {"answer": given, "request_id": request_id, "by": by, "via": via or "http"}

        async def arrived(error: OutriderError) -> bool:
            """Whether the answer that was sent first is the one that counts, and only what came back of it was lost.

            Who answered is not compared: a server signs with the name of the key, whatever `by` says.
            """
            if not isinstance(error, RequestClosed):
                return False
            asked = [each for each in await self.requests(task_id) if each.id == request_id]
            return any(each.status == "answered" and each.answer == given for each in asked)

        told = await self._connection.ask(
            "POST", f"{path}/answer", body=body, headers=_if_match(if_version), again=True, arrived=arrived
        )
        return told.record(TaskRecord) if told.content else await self.record(task_id)

    async def message(
        self,
        task_id: str,
        content: Parts,
        *,
        in_reply_to: str | None = None,
        sender: str | None = None,
        idempotency_key: str | None = None,
    ) -> MessageRecord:
        """Send a task a message from its session, once, however often it has to be sent. Raises TaskFinished."""
        check_texts_if_given(in_reply_to=in_reply_to, sender=sender, idempotency_key=idempotency_key)
        body = {"content": message_parts(content, NO_LIMIT), "in_reply_to": in_reply_to, "sender": sender}
        headers = {"Idempotency-Key": _in_header(idempotency_key or new_id("tmsg"))}
        answer = await self._connection.ask(
            "POST", f"{_path(task_id)}/messages", body=body, headers=headers, again=True
        )
        return answer.record(MessageRecord)

    async def retry(self, task_id: str, *, id: str | None = None) -> TaskRecord:
        """Do again what an ended task was to do: a new task of its session, with all its options, that names it."""
        body = {"id": new_id("task") if id is None else id}
        answer = await self._connection.ask("POST", f"{_path(task_id)}/retry", body=body, again=True)
        return answer.record(TaskRecord)

    async def retry_many(self, ids: Sequence[str] | None = None, *, filter: TaskFilter | None = None) -> RetryReceipt:
        """Retry many ended tasks: those of these ids, or a page of those that pass a filter, by default the failed.

        Each is made or left by itself; the receipt says why. Asked again, it makes them again.
        """
        if (ids is None) == (filter is None):
            raise InvalidArguments("name the tasks to retry by ids or by a filter, not both")
        receipts = [
            (await self._connection.ask("POST", "/v1/tasks:retry", body=body)).record(RetryReceipt)
            for body in _meant(ids, filter)
        ]
        return RetryReceipt(
            retried={old: new for each in receipts for old, new in each.retried.items()},
            left={old: code for each in receipts for old, code in each.left.items()},
        )

    async def fork(
        self,
        task_id: str,
        *,
        from_step: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        id: str | None = None,
    ) -> TaskRecord:
        """Go on from a step of an ended task, as a new task of its session that names it; see `Tasks.fork` there."""
        check_texts_if_given(from_step=from_step)
        if arguments is not None:
            check_mappings(arguments=arguments)
        body = {"from_step": from_step, "arguments": arguments, "id": new_id("task") if id is None else id}
        answer = await self._connection.ask("POST", f"{_path(task_id)}/fork", body=body, again=True)
        return answer.record(TaskRecord)

    async def export(self, task_id: str, *, events: bool = False) -> dict[str, JSON]:
        """Return a task as one JSON document, with its checkpoint; `load` makes it of that on another database."""
        check_flags(events=events)
        answer = await self._connection.ask("GET", f"{_path(task_id)}/export", params={"events": events})
        return cast("dict[str, JSON]", answer.plain())

    async def give_away(self, document: Mapping[str, Any]) -> TaskRecord:
        """End there an exported task, as canceled, so that it does not run twice; one that has ended stays as it is."""
        check_mappings(document=document)
        answer = await self._connection.ask("POST", "/v1/tasks:give-away", body={"document": document})
        return answer.record(TaskRecord)

    async def load(
        self, document: Mapping[str, Any], *, session_id: str | None = None, force: bool = False
    ) -> TaskRecord:
        """Make the task of an exported document, under its id; it goes on from its checkpoint there."""
        check_mappings(document=document)
        body = {"document": document, "session_id": session_id, "force": force}
        return (await self._connection.ask("POST", "/v1/tasks:import", body=body)).record(TaskRecord)

    async def delete(self, task_id: str) -> int:
        """Delete an ended task whole, with the sessions that it opened; return how many tasks went."""
        return int((await self._connection.ask("DELETE", _path(task_id))).plain()["tasks"])

    async def prune(
        self,
        older_than: Length,
        *,
        states: Sequence[State] | None = None,
        session_id: str | None = None,
        kind: str | None = None,
        dry_run: bool = False,
    ) -> PruneReceipt:
        """Delete the tasks that ended longer ago than that, in bounded batches; with `dry_run`, only count them."""
        check_texts_if_given(session_id=session_id, kind=kind)
        body = {
            "older_than": not_negative("older_than", older_than) / 1e6,
            "states": None if states is None else states_of(states),
            "session_id": session_id,
            "kind": kind,
            "dry_run": dry_run,
        }
        return (await self._connection.ask("POST", "/v1/tasks:prune", body=body)).record(PruneReceipt)

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

        With `wait`, give those whose holder has to stop first that long, and say where each ended. Where an answer was
        lost on the way, what stands as canceled counts as canceled by this.
        """
        check_texts_if_given(reason=reason, by=by)
        until = None if wait is None else time.monotonic() + span(wait) / 1e6
        body = {
            "reason": reason,
            "by": by,
            "include_detached": include_detached,
            "grace": None if grace is None else not_negative("grace", grace) / 1e6,
        }
        path = f"{_path(task_id)}/cancel"

        async def arrived(error: OutriderError) -> bool:
            """Whether it has another version by now because it was canceled, and only what came back was lost."""
            return isinstance(error, Outdated) and (await self.record(task_id)).cancel_requested_at is not None

        answer = await self._connection.ask(
            "POST", path, body=body, headers=_if_match(if_version), again=True, arrived=arrived
        )
        is_doubtful = answer.is_doubtful
        if not answer.content:
            answer = await self._connection.ask("POST", path, body=body, again=True)
        receipt = answer.record(CancelReceipt)
        if is_doubtful or answer.is_doubtful:
            ours = [each for each in receipt.left if receipt.states.get(each) is State.CANCELED]
            receipt = receipt.model_copy(
                update={
                    "canceled": (*receipt.canceled, *ours),
                    "left": tuple(each for each in receipt.left if each not in ours),
                }
            )
        return receipt if until is None else await self._settled(receipt, until)

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

        Where an answer was lost on the way, what stands as canceled counts as canceled by this. Of a filter the receipt
        then does not name what ended at once, for that passes it no more.
        """
        if (ids is None) == (filter is None):
            raise InvalidArguments("name the tasks to cancel by ids or by a filter, not both")
        check_texts_if_given(reason=reason, by=by)
        more = {"reason": reason, "by": by, "include_detached": include_detached}
        receipts = builtins.list[BulkReceipt]()
        for body in _meant(ids, filter):
            answer = await self._connection.ask("POST", "/v1/tasks:cancel", body={**body, **more}, again=True)
            receipt = answer.record(BulkReceipt)
            if answer.is_doubtful and receipt.left:
                states = {each.id: each.state for each in await self._by_then(receipt.left, 0.0)}
                ours = [each for each in receipt.left if states.get(each) is State.CANCELED]
                left = tuple(each for each in receipt.left if each not in ours)
                receipt = BulkReceipt(canceled=(*receipt.canceled, *ours), requested=receipt.requested, left=left)
            receipts.append(receipt)
        return BulkReceipt(
            canceled=tuple(each for receipt in receipts for each in receipt.canceled),
            requested=tuple(each for receipt in receipts for each in receipt.requested),
            left=tuple(each for receipt in receipts for each in receipt.left),
        )

    async def _settled(self, receipt: CancelReceipt, until: float) -> CancelReceipt:
        """A receipt with where those ended that were still to stop, as far as they have by then."""
        open_ones = receipt.requested
        if not open_ones:
            return receipt
        tasks = await self._by_then(open_ones, max(0.0, until - time.monotonic()))
        return receipt.since({each.id: each.state for each in tasks})

    async def _by_then(self, ids: Sequence[str], timeout: float) -> builtins.list[TaskRecord]:
        """These tasks once they have ended or the time is over, without those that are gone."""
        try:
            return await self.wait(ids, timeout=timeout)
        except (WaitTimeout, NotFound):
            return [each for each in [await self._found(task_id) for task_id in ids] if each is not None]

    async def _found(self, task_id: str) -> TaskRecord | None:
        try:
            return await self.record(task_id)
        except NotFound:
            return None

    # --- waiting -------------------------------------------------------------------------------------

    async def wait(
        self, task_ids: Sequence[str], *, any: bool = False, timeout: Length | None = None, on_question: bool = False
    ) -> builtins.list[TaskRecord]:
        """Wait until all of these tasks have ended, or one, with `any`; with `on_question`, a pending question
        counts as well. Raises NotFound, and WaitTimeout when the time is over.
        """
        check_ids(task_ids=task_ids)
        check_flags(any=any, on_question=on_question)
        until = None if timeout is None else time.monotonic() + span(timeout) / 1e6
        if not task_ids:
            return []
        if len(task_ids) <= PAGE:
            return await self._wait(task_ids, any, until, on_question)
        if any:
            raise InvalidArguments(f"over HTTP one of at most {PAGE} tasks is waited for, not one of {len(task_ids)}")
        found: builtins.list[TaskRecord] = []
        for start in range(0, len(task_ids), PAGE):
            found += await self._wait(task_ids[start : start + PAGE], any, until, on_question)
        return found

    async def _wait(
        self, task_ids: Sequence[str], any: bool, until: float | None, on_question: bool
    ) -> builtins.list[TaskRecord]:
        body = {"task_ids": task_ids, "any": any, "on_question": on_question}
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            waits = (
                self._connection.settings.poll_time if left is None else min(left, self._connection.settings.poll_time)
            )
            waited = (
                await self._connection.ask(
                    "POST", "/v1/tasks:wait", body={**body, "timeout": waits}, again=True, waits=waits, until=until
                )
            ).record(_Waited)
            if waited.is_over:
                return builtins.list(waited.items)
            if until is not None and time.monotonic() >= until:
                open_ones = [each.id for each in waited.items if not each.is_terminal]
                raise WaitTimeout(f"still going on: {', '.join(open_ones)}", details={"open": open_ones})

    async def result(self, task_id: str, *, timeout: Length | None = None) -> bytes | None:
        """Wait for a task and return its result as encoded JSON, None if it returned nothing.

        Raises TaskFailed, TaskCanceled or WaitTimeout.
        """
        (task,) = await self.wait([task_id], timeout=timeout)
        match task.state:
            case State.SUCCEEDED:
                if task.result_path is None:
                    return None
                return (await self._connection.ask("GET", f"{_path(task_id)}/result")).content
            case State.CANCELED:
                reason = f": {task.cancel_reason}" if task.cancel_reason else ""
                raise TaskCanceled(f"{task_id} was canceled{reason}")
            case _:
                error = task.error
                if error is None:
                    raise ServerDiffers(f"{task_id} is {task.state}, and nothing says why")
                raise TaskFailed(f"{task_id} failed: {error.message}", kind=error.kind, details=error.details)

    # --- following -----------------------------------------------------------------------------------

    async def events(self, task_id: str, *, after: int = 0) -> AsyncIterator[EventRecord]:
        """Yield a task's events, each once, after that number of its session's log, until the task has ended."""
        check_count("after", after)
        async for told in self._connection.follow(f"{_path(task_id)}/events", after):
            if isinstance(told, Told):
                yield told.record(EventRecord)
            elif told == "task_deleted":
                raise NotFound.of("task", task_id)

    async def snapshot(self, task_id: str) -> TaskSnapshot:
        """Return a task, and the number of the event after which all of its events are new. Raises NotFound."""
        return await self._connection.snapshot(f"{_path(task_id)}/events", TaskSnapshot)

    def output(self, task_id: str, *, start: int = 0, follow: bool = True) -> AsyncIterator[OutputRecord]:
        """Yield a task's output from a byte offset on: until it has ended, or without `follow` what is there."""
        check_count("start", start)
        path = _path(task_id)
        return self._follow_output(path, start) if follow else self._read_output(path, start)

    async def _follow_output(self, path: str, start: int) -> AsyncIterator[OutputRecord]:
        async for told in self._connection.follow(f"{path}/output", start):
            if isinstance(told, Told):
                yield told.record(OutputRecord)

    async def _read_output(self, path: str, start: int) -> AsyncIterator[OutputRecord]:
        while True:
            params = {"start": start, "limit": PAGE}
            found = (await self._connection.ask("GET", f"{path}/output/page", params=params)).page(OutputRecord)
            for each in found:
                yield each
                start = each.next
            if len(found) < PAGE:
                return


def _path(task_id: str) -> str:
    return f"/v1/tasks/{segment('task', task_id)}"


def _form_of(order: Order) -> dict[str, Any]:
    """A task to be created, as the body of a request. It has an id, so that asking again makes no second one."""
    check_texts(kind=order.kind)
    check_mappings(spec=order.spec)
    options: Any = order.options
    if not isinstance(options, TaskOptions):
        raise InvalidArguments(f"options is a TaskOptions, not {options!r:.100}")
    said: dict[str, Any] = {"kind": order.kind, "spec": order.spec, "id": new_id("task")}
    for field in fields(TaskOptions):
        value = getattr(options, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if value is None or value == default:
            continue
        if field.name in _LENGTHS:
            value = not_negative(field.name, value) / 1e6
        elif field.name == "labels":
            check_mappings(labels=value)
            value = {str(name): str(each) for name, each in value.items()}
        elif field.name == "depends_on":
            check_ids(depends_on=value)
        elif isinstance(value, datetime):
            value = as_datetime(instant(value)).isoformat()
        said[field.name] = value
    return cast("dict[str, Any]", as_json("the task", said))


def _is_ours(task: TaskRecord, form: Mapping[str, Any]) -> bool:
    return bool(task.id == form["id"])


def _portions(forms: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Forms in as many portions as requests take."""
    portions: list[list[dict[str, Any]]] = []
    room = 0
    for form in forms:
        size = len(orjson.dumps(form))
        if not portions or len(portions[-1]) == PAGE or size > room:
            portions.append([])
            room = BYTES
        portions[-1].append(form)
        room -= size
    return portions


def _meant(ids: Sequence[str] | None, filter: TaskFilter | None) -> list[dict[str, Any]]:
    """Which tasks are meant, in as many bodies as it takes."""
    if ids is not None:
        check_ids(ids=ids)
        return [{"ids": list(ids[start : start + PAGE])} for start in range(0, len(ids), PAGE)]
    assert filter is not None
    check_filter(filter)
    said: dict[str, Any] = {}
    for field in fields(TaskFilter):
        value = getattr(filter, field.name)
        if value is not None and value != field.default:
            is_moment = "Instant" in str(field.type)
            said[field.name] = as_datetime(value).isoformat() if is_moment else value
    if said.get("limit", 0) > PAGE:
        raise InvalidArguments(f"over HTTP a filter takes up to {PAGE} tasks at once")
    return [{"filter": said}]


def _query_of(filter: TaskFilter) -> dict[str, Any]:
    """A filter as the parameters of a query."""
    said: dict[str, Any] = {}
    for field in fields(TaskFilter):
        value = getattr(filter, field.name)
        if field.name == "labels":
            for name in value:
                if "=" in name or not name:
                    raise InvalidArguments(f"over HTTP tasks cannot be filtered by a label that is called {name!r}")
            value = [f"{name}={each}" for name, each in value.items()]
        elif field.name == "states":
            value = None if value is None else [str(each) for each in states_of(value)]
        elif value is not None and "Instant" in str(field.type):
            value = as_datetime(value).isoformat()
        said[_IN_QUERY.get(field.name, field.name)] = value
    return said


def _if_match(version: int | Collection[int] | None) -> dict[str, str] | None:
    if version is None:
        return None
    versions = [version] if isinstance(version, int) else version
    return {"If-Match": ", ".join(f'"{each}-00000000"' for each in versions)}


def _in_header(text: str) -> str:
    if not text.isascii() or not text.isprintable() or text != text.strip():
        raise InvalidArguments(f"over HTTP an idempotency key of a message is plain ASCII text, not {text!r:.100}")
    return text
