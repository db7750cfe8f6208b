"""The routes of tasks: create, list, look, steer, wait."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from outrider.api import wire
from outrider.api.access import Reading, Submitting
from outrider.api.conditional import etag_of, unless_same
from outrider.api.filters import Filtering, filter_of
from outrider.api.forms import Object
from outrider.api.options import OptionsForm
from outrider.api.paging import Page, cursor_of
from outrider.api.problems import responses
from outrider.api.routing import noun
from outrider.core.errors import InvalidArguments
from outrider.runtime.records import TaskRecord
from outrider.runtime.tasks import Order

router = noun("tasks")

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="As `idempotency_key`: the same key in a session gives the same task, with the status 200.",
    ),
]
REPLAYED = {"Idempotent-Replayed": "true"}


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


@router.post(
    "/sessions/{session_id}/tasks",
    status_code=201,
    response_model=TaskRecord,
    responses={200: {"model": TaskRecord, "description": "It was there already."}, **responses(404, 409)},
)
async def create_task(
    runtime: Submitting, session_id: str, form: NewTaskForm, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create a task of any kind."""
    ((task, is_new),) = await runtime.tasks.submit(session_id, [form.order(idempotency_key)])
    return wire.answer(wire.encoded_task(task), 201 if is_new else 200, None if is_new else REPLAYED)


@router.get("/tasks", response_model=Page[TaskRecord])
async def list_tasks(runtime: Reading, query: Filtering) -> Response:
    """List tasks of the organization, newest first."""
    filter = filter_of(query)
    found = await runtime.tasks.list(filter)
    return wire.page(found, cursor_of(found, filter.limit))


@router.get("/sessions/{session_id}/tasks", response_model=Page[TaskRecord], responses=responses(404))
async def list_session_tasks(runtime: Reading, session_id: str, query: Filtering) -> Response:
    """List tasks of a session, newest first."""
    filter = filter_of(query, session_id=session_id)
    found = await runtime.tasks.list(filter)
    if not found:
        await runtime.sessions.get(session_id)
    return wire.page(found, cursor_of(found, filter.limit))


@router.get("/tasks/{task_id}", response_model=TaskRecord, responses={304: {}, **responses(404)})
async def get_task(runtime: Reading, request: Request, task_id: str) -> Response:
    """Get a task, whole."""
    found = await runtime.tasks.record(task_id)
    return unless_same(request, etag_of(found)) or wire.record(found, headers={"ETag": etag_of(found)})
