"""The routes of tasks: create, list, look, wait, steer, and what is done to many at once."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Literal

from fastapi import Header, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from outrider.api import wire
from outrider.api.access import Asking, Operating, Reading, Submitting
from outrider.api.conditional import IfMatch, etag_of, named_versions, unless_same
from outrider.api.filters import FilterForm, Filtering, filter_of
from outrider.api.forms import Anything, Deleted, Flag, Form, Object, Seconds
from outrider.api.options import OptionsForm, Priority
from outrider.api.paging import After, Limit, Page, cursor_of
from outrider.api.problems import responses
from outrider.api.recording import concern
from outrider.api.routing import noun
from outrider.api.waiting import LONGEST, Patience, Timeout, attended
from outrider.api.wire import REPLAYED
from outrider.core.errors import Denied, InvalidArguments, NotFound, WaitTimeout
from outrider.core.task import State
from outrider.runtime.codec import encode
from outrider.runtime.records import (
    AttemptRecord,
    BulkReceipt,
    CancelReceipt,
    Explanation,
    InputRequestRecord,
    MessageRecord,
    OutputRecord,
    PruneReceipt,
    RetryReceipt,
    SpentRecord,
    StepRecord,
    TaskRecord,
)
from outrider.runtime.tasks import Order

router = noun("tasks")

MANY = 1000
"""How many tasks one request creates, cancels by id, retries or waits for."""

PRINTABLE = r"^[\x20-\x7e]*$"
"""What a header may say that is to mean the same as text in a body: nobody agrees on the bytes of any other."""
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=PRINTABLE,
        description="As `idempotency_key`: the same key in a session gives the same task, with the status 200.",
    ),
]
MessageKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=PRINTABLE,
        description="The same key to a task gives the same message, sent once.",
    ),
]
Ids = Annotated[tuple[str, ...], Field(max_length=MANY)]


# --- forms ---------------------------------------------------------------------------------------------------


class NewTaskForm(OptionsForm):
    """A task to be created."""

    kind: str = Field(description="What it does: background_tool, subagent, process, external, or one of your own.")
    spec: Object = Field(default_factory=dict, description="What its kind takes.")

    def order(self, key: str | None = None) -> Order:
        """What the façade takes. Raises InvalidArguments for two keys that differ."""
        if key is None:
            return Order(self.kind, self.spec, self.options())
        if self.idempotency_key not in (None, key):
            raise InvalidArguments("the header Idempotency-Key and idempotency_key say different things")
        return Order(self.kind, self.spec, self.options(idempotency_key=key))


class NewTasksForm(Form):
    """Tasks to be created, in few transactions."""

    tasks: Annotated[tuple[NewTaskForm, ...], Field(min_length=1, max_length=MANY)]


class SubmittedTask(Form):
    """A task that was created; not `is_new` if it was there already."""

    is_new: bool
    task: TaskRecord


class SubmittedTasks(Form):
    """What became of tasks that were to be created, in their order."""

    items: list[SubmittedTask]


class TaskWithThread(TaskRecord):
    """A task, and the messages between it and its session where they were asked for."""

    thread: list[MessageRecord] | None = None


class AnswerForm(Form):
    """An answer to a question of a task. The first one counts."""

    answer: Anything = Field(description="What fits the `expected` of the question.")
    request_id: str | None = Field(default=None, description="Which question; the oldest that is pending if left out.")
    by: str | None = Field(default=None, description="Who answers. A caller with a name is who they are.")
    via: str = Field(default="http", description="By which way, for the record.")


class MessageForm(Form):
    """A message to a task."""

    content: str | Object | list[Object] = Field(description="Text, an object, or a list of message parts.")
    in_reply_to: str | None = None
    sender: str | None = None


class CancelForm(Form):
    """How a task is to be canceled."""

    reason: str | None = None
    by: str | None = None
    wait: Patience | None = Field(
        default=None, description="Give those whose worker has to stop first so many seconds, and say where each ended."
    )
    include_detached: Flag = False
    grace: Seconds | None = Field(default=None, description="Seconds to stop in, instead of its own.")


class RetryForm(Form):
    """How a task is done again."""

    id: str | None = Field(default=None, description="An id for the new task; the same one gives the same task.")


class ForkForm(Form):
    """From where a fork of a task goes on."""

    from_step: str | None = Field(default=None, description="A position of its journal; behind the last if left out.")
    arguments: Object | None = Field(default=None, description="Arguments that replace some of the tool's.")
    id: str | None = Field(default=None, description="An id for the new task; the same one gives the same task.")


class PriorityForm(Form):
    """Another place in the queue."""

    priority: Priority


class BulkCancelForm(Form):
    """Which tasks are to be canceled: those of these ids, or all live ones that pass a filter."""

    ids: Ids | None = None
    filter: FilterForm | None = None
    reason: str | None = None
    by: str | None = None
    include_detached: Flag = False


class BulkRetryForm(Form):
    """Which tasks are to be done again: those of these ids, or a page of those that pass a filter."""

    ids: Ids | None = None
    filter: FilterForm | None = Field(default=None, description="Without `state`, of the failed ones.")


class WaitForm(Form):
    """Which tasks are waited for, until when."""

    task_ids: Annotated[tuple[str, ...], Field(min_length=1, max_length=MANY)]
    any: Flag = Field(default=False, description="Until the first, and not all, has ended.")
    timeout: Patience = LONGEST
    on_question: Flag = Field(default=False, description="A pending question counts as an end.")


class Waited(Form):
    """Tasks that were waited for, as they stand; `is_over` unless the time was over first."""

    is_over: bool
    items: list[TaskRecord]


class PruneForm(Form):
    """Which ended tasks are to be deleted."""

    older_than: Seconds = Field(description="Seconds since their end.")
    states: tuple[Literal["succeeded", "failed", "canceled"], ...] | None = None
    session_id: str | None = None
    kind: str | None = None
    dry_run: Flag = Field(default=False, description="Delete nothing, and say how many tasks would go.")


class LoadForm(Form):
    """An exported task, and where it comes to."""

    document: Object
    session_id: str | None = Field(default=None, description="Into this session; the one it had if left out.")
    force: Flag = Field(default=False, description="Also where nothing here can run it.")


class DocumentForm(Form):
    """An exported task."""

    document: Object


class OutputPage(Form):
    """A page of a task's output. `next` is the byte to go on from, which is also where the output ends so far."""

    items: list[OutputRecord]
    next: int
    is_ended: bool = Field(description="Whether the task has ended and this was the last of it.")


# --- create and list -----------------------------------------------------------------------------------------


@router.post(
    "/sessions/{session_id}/tasks",
    status_code=201,
    response_model=TaskRecord,
    responses={200: {"model": TaskRecord, "description": "It was there already."}, **responses(404, 409)},
)
async def create_task(
    runtime: Submitting, session_id: str, form: NewTaskForm, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create a task of any kind. It is idempotent on its `id` or its key."""
    ((task, is_new),) = await runtime.tasks.submit(session_id, [form.order(idempotency_key)])
    return wire.answer(wire.encoded_task(task), 201 if is_new else 200, None if is_new else REPLAYED)


@router.post(
    "/sessions/{session_id}/tasks/bulk", status_code=201, response_model=SubmittedTasks, responses=responses(404, 409)
)
async def create_tasks(runtime: Submitting, request: Request, session_id: str, form: NewTasksForm) -> Response:
    """Create up to 1,000 tasks of any kinds. All are looked at first: where one is wrong, none is created.

    That also goes for an `id` or key that stands for another task; only one that somebody else takes in the very same
    moment may be met when others were created.
    """
    made = await runtime.tasks.submit(session_id, [each.order() for each in form.tasks])
    concern(request, created=[each.task.id for each in made if each.is_new])
    items = (
        b'{"is_new":%b,"task":%b}' % (b"true" if each.is_new else b"false", wire.encoded_task(each.task))
        for each in made
    )
    return wire.answer(b'{"items":[' + b",".join(items) + b"]}", 201)


@router.get("/tasks", response_model=Page[TaskRecord])
async def list_tasks(runtime: Reading, query: Filtering) -> Response:
    """List tasks of the organization, newest first. `checkpoint` is left out."""
    filter = filter_of(query)
    found = await runtime.tasks.list(filter)
    return wire.page(found, cursor_of(found, filter.limit))


@router.get("/sessions/{session_id}/tasks", response_model=Page[TaskRecord], responses=responses(404))
async def list_session_tasks(runtime: Reading, session_id: str, query: Filtering) -> Response:
    """List tasks of a session, newest first. `checkpoint` is left out."""
    filter = filter_of(query, session_id=session_id)
    found = await runtime.tasks.list(filter)
    if not found:
        await runtime.sessions.get(session_id)
    return wire.page(found, cursor_of(found, filter.limit))


@router.get("/sessions/{session_id}/tree", response_model=Page[TaskRecord], responses=responses(404))
async def get_session_tree(runtime: Reading, session_id: str) -> Response:
    """Get the tasks of a session and those below them, oldest first; of more than 200 some."""
    return wire.page(await runtime.sessions.tree(session_id))


# --- many at once --------------------------------------------------------------------------------------------


@router.post("/tasks:wait", response_model=Waited, responses=responses(404))
async def wait_for_tasks(runtime: Reading, request: Request, form: WaitForm) -> Response:
    """Wait until tasks have ended, for a minute at most; ask again to go on."""
    patience = min(form.timeout, request.app.state.settings.poll)
    is_over = False
    with suppress(WaitTimeout):
        work = runtime.tasks.wait(form.task_ids, any=form.any, timeout=patience, on_question=form.on_question)
        is_over = await attended(request, work) is not None
    found = [wire.encoded_task(await runtime.tasks.get(task_id)) for task_id in form.task_ids]
    told = b"true" if is_over else b"false"
    return wire.answer(b'{"is_over":' + told + b',"items":[' + b",".join(found) + b"]}")


@router.post("/tasks:cancel", response_model=BulkReceipt)
async def cancel_tasks(runtime: Submitting, caller: Asking, request: Request, form: BulkCancelForm) -> Response:
    """Cancel many tasks, and the linked children below them. An id that nothing has is left out."""
    concern(request, ids=form.ids, filter=_told(form.filter))
    receipt = await runtime.tasks.cancel_many(
        form.ids,
        filter=None if form.filter is None else filter_of(form.filter),
        reason=form.reason,
        by=caller.signs(form.by),
        include_detached=form.include_detached,
    )
    concern(request, canceled=receipt.canceled, requested=receipt.requested)
    return wire.record(receipt)


@router.post("/tasks:retry", response_model=RetryReceipt)
async def retry_tasks(runtime: Submitting, request: Request, form: BulkRetryForm) -> Response:
    """Do many ended tasks again. Those that cannot be are left, and the receipt has the code of why."""
    concern(request, ids=form.ids, filter=_told(form.filter))
    receipt = await runtime.tasks.retry_many(form.ids, filter=None if form.filter is None else filter_of(form.filter))
    concern(request, retried=[*receipt.retried], created=[*receipt.retried.values()])
    return wire.record(receipt)


@router.post("/tasks:prune", response_model=PruneReceipt)
async def prune_tasks(runtime: Operating, request: Request, form: PruneForm) -> Response:
    """Delete the tasks that ended longer ago than that, in bounded batches."""
    concern(request, **form.model_dump())
    states = None if form.states is None else [State(each) for each in form.states]
    receipt = await runtime.tasks.prune(
        form.older_than, states=states, session_id=form.session_id, kind=form.kind, dry_run=form.dry_run
    )
    concern(request, tasks=receipt.tasks, sessions=receipt.sessions)
    return wire.record(receipt)


@router.post("/tasks:import", status_code=201, response_model=TaskRecord, responses=responses(404, 409))
async def import_task(runtime: Operating, form: LoadForm) -> Response:
    """Make the task of an exported document, under its id; it goes on from its checkpoint here."""
    task = await runtime.tasks.load(form.document, session_id=form.session_id, force=form.force)
    return wire.answer(wire.encoded_task(task), 201)


@router.post("/tasks:give-away", response_model=TaskRecord, responses=responses(404, 409))
async def give_task_away(runtime: Operating, form: DocumentForm) -> Response:
    """End here an exported task, as canceled, so that it does not run twice."""
    return wire.answer(wire.encoded_task(await runtime.tasks.give_away(form.document)))


@router.get("/tasks:find", response_model=TaskRecord, responses=responses(404))
async def find_task(
    runtime: Reading, part: Annotated[str, Query(max_length=200, description="How the id begins or ends.")]
) -> Response:
    """Get the only task whose id begins or ends so."""
    return wire.record(await runtime.tasks.record((await runtime.tasks.find(part)).id))


# --- one task ------------------------------------------------------------------------------------------------


@router.get(
    "/tasks/{task_id}",
    response_model=TaskWithThread,
    responses={304: {"description": "It is as the tag in If-None-Match says."}, **responses(404)},
)
async def get_task(
    runtime: Reading,
    request: Request,
    task_id: str,
    thread: Annotated[bool, Query(description="With the messages between it and its session.")] = False,
) -> Response:
    """Get a task, whole. Its `ETag` moves with all but `heartbeat_at`."""
    found = await runtime.tasks.record(task_id)
    if thread:
        return wire.record(TaskWithThread(**dict(found), thread=list(await runtime.tasks.messages(task_id))))
    tag = etag_of(found)
    return unless_same(request, tag) or wire.record(found, headers={"ETag": tag})


@router.delete("/tasks/{task_id}", response_model=Deleted, responses=responses(404, 409))
async def delete_task(runtime: Operating, task_id: str) -> Response:
    """Delete an ended task whole, with the sessions that it opened."""
    return wire.plain({"tasks": await runtime.tasks.delete(task_id)})


@router.get("/tasks/{task_id}/wait", response_model=TaskRecord, responses=responses(404))
async def wait_for_task(
    runtime: Reading,
    request: Request,
    task_id: str,
    timeout: Timeout = LONGEST,
    on_question: Annotated[bool, Query(description="A pending question counts as an end.")] = False,
) -> Response:
    """Wait until a task has ended, and get it as it then stands; its `state` says whether it has ended."""
    patience = min(timeout, request.app.state.settings.poll)
    with suppress(WaitTimeout):
        await attended(request, runtime.tasks.wait([task_id], timeout=patience, on_question=on_question))
    return wire.record(await runtime.tasks.record(task_id))


@router.get("/tasks/{task_id}/result", response_model=Anything, responses=responses(404, 409))
async def get_result(runtime: Reading, request: Request, task_id: str, timeout: Timeout = 0) -> Response:
    """Get the result of a task; null if it returned nothing.

    409 where there is none: with the code `task_failed` or `task_canceled`, or `wait_timeout` while it goes on.
    """
    patience = min(timeout, request.app.state.settings.poll)
    with suppress(WaitTimeout):
        await attended(request, runtime.tasks.wait([task_id], timeout=patience))
    return wire.answer(await runtime.tasks.result(task_id, timeout=0) or b"null")


@router.get("/tasks/{task_id}/tree", response_model=Page[TaskRecord], responses=responses(404))
async def get_task_tree(runtime: Reading, task_id: str) -> Response:
    """Get a task and those below it, oldest first; of more than 200 some."""
    return wire.page(await runtime.tasks.tree(task_id))


@router.get("/tasks/{task_id}/explanation", response_model=Explanation, responses=responses(404))
async def explain_task(runtime: Reading, task_id: str) -> Response:
    """Say why a task is where it is."""
    return wire.record(await runtime.doctor.explain(task_id))


@router.get("/tasks/{task_id}/usage", response_model=SpentRecord, responses=responses(404))
async def get_task_usage(runtime: Reading, task_id: str) -> Response:
    """Get what a task's model calls have used, and the accounts that bound them."""
    return wire.record(await runtime.tasks.spent(task_id))


@router.get("/tasks/{task_id}/attempts", response_model=Page[AttemptRecord], responses=responses(404))
async def list_attempts(runtime: Reading, task_id: str) -> Response:
    """List a task's attempts, the open one last."""
    return wire.page(await runtime.tasks.attempts(task_id))


@router.get("/tasks/{task_id}/steps", response_model=Page[StepRecord], responses=responses(404))
async def list_steps(runtime: Reading, task_id: str) -> Response:
    """List a task's journal."""
    await runtime.tasks.get(task_id)
    return wire.page(await runtime.tasks.steps(task_id))


@router.get("/tasks/{task_id}/requests", response_model=Page[InputRequestRecord], responses=responses(404))
async def list_requests(runtime: Reading, task_id: str) -> Response:
    """List all that a task ever asked, oldest first."""
    await runtime.tasks.get(task_id)
    return wire.page(await runtime.tasks.requests(task_id))


@router.get("/tasks/{task_id}/messages", response_model=Page[MessageRecord], responses=responses(404))
async def list_messages(
    runtime: Reading,
    task_id: str,
    direction: Annotated[Literal["inbound", "outbound"] | None, Query(description="To the task, or from it.")] = None,
    after: After = None,
) -> Response:
    """List the messages between a task and its session, oldest first."""
    await runtime.tasks.get(task_id)
    found = await runtime.tasks.messages(task_id, direction=direction, after=after)
    return wire.page(found, cursor_of(found, MANY))


@router.get("/tasks/{task_id}/output/page", response_model=OutputPage, responses=responses(404))
async def get_output(
    runtime: Reading,
    task_id: str,
    start: Annotated[int, Query(ge=0, le=1 << 53, description="From this byte on: the `next` of the page before.")] = 0,
    limit: Limit = 100,
) -> Response:
    """Get what a task has printed so far, from a byte on. What was cut is told as `lost`."""
    task = await runtime.tasks.get(task_id)
    found: list[OutputRecord] = []
    is_whole = True
    async for each in runtime.tasks.output(task_id, start=start, follow=False):
        if len(found) == limit:
            is_whole = False
            break
        found.append(each)
    items = b",".join(map(wire.encoded, found))
    ended = b"true" if is_whole and task.is_terminal else b"false"
    next = found[-1].next if found else start
    return wire.answer(b'{"items":[' + items + b'],"next":%d,"is_ended":' % next + ended + b"}")


@router.get("/tasks/{task_id}/export", response_model=Object, responses=responses(404, 409))
async def export_task(
    runtime: Reading,
    task_id: str,
    events: Annotated[bool, Query(description="With its entries of the log.")] = False,
) -> Response:
    """Get a task as one document, with its checkpoint. Refused while somebody holds it."""
    return wire.plain(await runtime.tasks.export(task_id, events=events))


# --- steering ------------------------------------------------------------------------------------------------


@router.post("/tasks/{task_id}/answer", response_model=TaskRecord, responses=responses(404, 409, 412))
async def answer_task(
    runtime: Submitting, caller: Asking, task_id: str, form: AnswerForm, if_match: IfMatch = None
) -> Response:
    """Answer a question of a task. The first answer wins; a later one is told `request_closed`."""
    return wire.record(
        await runtime.tasks.answer(
            task_id,
            form.answer,
            request_id=form.request_id,
            by=caller.signs(form.by),
            via=form.via,
            if_version=named_versions(if_match),
        )
    )


@router.post("/tasks/{task_id}/messages", status_code=201, response_model=MessageRecord, responses=responses(404, 409))
async def send_message(
    runtime: Submitting, caller: Asking, task_id: str, form: MessageForm, idempotency_key: MessageKey = None
) -> Response:
    """Send a task a message from its session."""
    made = await runtime.tasks.message(
        task_id,
        form.content,
        in_reply_to=form.in_reply_to,
        sender=caller.signs(form.sender),
        idempotency_key=idempotency_key,
    )
    return wire.record(made, 201)


@router.post("/tasks/{task_id}/cancel", response_model=CancelReceipt, responses=responses(404, 409, 412))
async def cancel_task(
    runtime: Submitting,
    request: Request,
    caller: Asking,
    task_id: str,
    form: CancelForm | None = None,
    if_match: IfMatch = None,
) -> Response:
    """Cancel a task and the linked children below it; the receipt names each. Once more changes nothing."""
    given = form or CancelForm()
    receipt = await runtime.tasks.cancel(
        task_id,
        reason=given.reason,
        by=caller.signs(given.by),
        include_detached=given.include_detached,
        grace=given.grace,
        if_version=named_versions(if_match),
    )
    if given.wait is not None and receipt.requested:
        patience = min(given.wait, request.app.state.settings.poll)
        with suppress(WaitTimeout, NotFound):
            try:
                await attended(request, runtime.tasks.wait(receipt.requested, timeout=patience))
            except Denied:
                return wire.record(receipt)  # it was done, when they still might; what came of it they are not told
        states = {}
        for each in receipt.requested:
            with suppress(NotFound):
                states[each] = (await runtime.tasks.get(each)).state
        receipt = receipt.since(states)
    return wire.record(receipt)


@router.post("/tasks/{task_id}/retry", status_code=201, response_model=TaskRecord, responses=responses(404, 409))
async def retry_task(runtime: Submitting, task_id: str, form: RetryForm | None = None) -> Response:
    """Do again what an ended task was to do: a new task, that names it."""
    return wire.answer(wire.encoded_task(await runtime.tasks.retry(task_id, id=(form or RetryForm()).id)), 201)


@router.post("/tasks/{task_id}/fork", status_code=201, response_model=TaskRecord, responses=responses(404, 409))
async def fork_task(runtime: Submitting, task_id: str, form: ForkForm | None = None) -> Response:
    """Go on from a step of an ended task: a new task, that names it."""
    given = form or ForkForm()
    task = await runtime.tasks.fork(task_id, from_step=given.from_step, arguments=given.arguments, id=given.id)
    return wire.answer(wire.encoded_task(task), 201)


@router.put("/tasks/{task_id}/priority", response_model=TaskRecord, responses=responses(404, 409))
async def reprioritize_task(runtime: Submitting, task_id: str, form: PriorityForm) -> Response:
    """Give a task another priority; it keeps the time that it has waited."""
    return wire.answer(wire.encoded_task(await runtime.queue.reprioritize(task_id, form.priority)))


def _told(filter: FilterForm | None) -> str | None:
    """A filter for the audit log, which outlives what it is about: without the words that are looked for."""
    return (
        None
        if filter is None
        else encode(filter.model_dump(mode="json", exclude={"text"}, exclude_unset=True)).decode()
    )
