"""The routes of tasks that somebody else's program does. The number of the attempt is its token."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from outrider.api import wire
from outrider.api.access import Submitting
from outrider.api.forms import Anything, Flag, Form, Id, Number, Object, Whole
from outrider.api.paging import PAGE, Page
from outrider.api.problems import responses
from outrider.api.recording import concern
from outrider.api.routing import noun
from outrider.runtime.records import InputRequestRecord, TaskRecord

router = noun("external")

Attempt = Annotated[int, Path(ge=0, le=1 << 53, description="The attempt that the claim gave.")]


class ClaimForm(Form):
    """Who takes tasks, of which name, and how many."""

    holder: Id = Field(description="Who takes them; its records then name it as `external:HOLDER`.")
    name: Id | None = Field(default=None, description="The `name` in the spec of the tasks; those without if left out.")
    limit: Annotated[Whole, Field(ge=1, le=PAGE)] = 1


class ReportForm(Form):
    """How far it is; with nothing, only that it is still at it."""

    current: Number | None = None
    total: Number | None = None
    unit: str | None = None
    label: str | None = None
    detail: str | None = None
    output: str | None = None
    stream: str = "stdout"


class QuestionForm(Form):
    """A question of a task."""

    prompt: str
    expected: Object | None = Field(default=None, description="A JSON Schema of the answer.")
    details: Anything = None


class SuccessForm(Form):
    """How a task ended well."""

    result: Anything = None
    summary: str | None = None


class FailureForm(Form):
    """How an attempt failed."""

    message: str
    kind: str = "exception"
    details: Anything = None
    retryable: Flag = Field(default=True, description="Whether another attempt makes sense.")


@router.post("/external/claim", response_model=Page[TaskRecord])
async def claim_tasks(runtime: Submitting, request: Request, form: ClaimForm) -> Response:
    """Take tasks of kind `external` that are due. The `attempt` of each is the token for everything else."""
    concern(request, holder=form.holder, name=form.name)
    claimed = await runtime.external.claim(form.holder, name=form.name, limit=form.limit)
    concern(request, claimed=[each.id for each in claimed])
    return wire.page(claimed)


@router.post("/tasks/{task_id}/attempts/{attempt}/report", response_model=TaskRecord, responses=responses(404, 409))
async def report_attempt(
    runtime: Submitting, task_id: str, attempt: Attempt, form: ReportForm | None = None
) -> Response:
    """Say how far it is, which renews the lease. Stop where the answer has `cancel_requested_at`."""
    given = form or ReportForm()
    return wire.record(await runtime.external.report(task_id, attempt, **given.model_dump()))


@router.post(
    "/tasks/{task_id}/attempts/{attempt}/ask", response_model=InputRequestRecord, responses=responses(404, 409)
)
async def ask_in_attempt(runtime: Submitting, task_id: str, attempt: Attempt, form: QuestionForm) -> Response:
    """Ask whoever the session answers to. Keep reporting meanwhile, or give the task back until it is answered."""
    return wire.record(
        await runtime.external.ask(task_id, attempt, form.prompt, expected=form.expected, details=form.details)
    )


@router.post("/tasks/{task_id}/attempts/{attempt}/give-back", response_model=TaskRecord, responses=responses(404, 409))
async def give_back_attempt(runtime: Submitting, task_id: str, attempt: Attempt) -> Response:
    """Let go of the task unharmed: it is due again at once, or when one of its questions is answered."""
    return wire.record(await runtime.external.give_back(task_id, attempt))


@router.post("/tasks/{task_id}/attempts/{attempt}/succeed", response_model=TaskRecord, responses=responses(404, 409))
async def succeed_attempt(
    runtime: Submitting, task_id: str, attempt: Attempt, form: SuccessForm | None = None
) -> Response:
    """End it with a result. One that does not fit the task's `result_schema` fails it."""
    given = form or SuccessForm()
    return wire.record(await runtime.external.succeed(task_id, attempt, given.result, summary=given.summary))


@router.post("/tasks/{task_id}/attempts/{attempt}/fail", response_model=TaskRecord, responses=responses(404, 409))
async def fail_attempt(runtime: Submitting, task_id: str, attempt: Attempt, form: FailureForm) -> Response:
    """Let the attempt fail: it is tried again after a pause while failures are left, if it is `retryable`."""
    return wire.record(
        await runtime.external.fail(
            task_id, attempt, form.message, kind=form.kind, details=form.details, retryable=form.retryable
        )
    )


@router.post("/tasks/{task_id}/attempts/{attempt}/stopped", response_model=TaskRecord, responses=responses(404, 409))
async def stop_attempt(runtime: Submitting, task_id: str, attempt: Attempt) -> Response:
    """Say that it has stopped, as a cancel asked; without one the task is only given back."""
    return wire.record(await runtime.external.stopped(task_id, attempt))
