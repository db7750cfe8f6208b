"""The routes of retention: how long what has ended is kept, and what is kept whatever that says."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from outrider.api import wire
from outrider.api.access import Administering, Asking, Operating, Reading
from outrider.api.forms import Changed, Flag, Form, Number, Whole
from outrider.api.paging import After, Limit, Page, cursor_of
from outrider.api.problems import responses
from outrider.api.recording import concern
from outrider.api.routing import noun
from outrider.runtime.records import PinRecord, RetentionRecord

router = noun("retention")


class PolicyForm(Form):
    """For how long an organization's ended tasks are kept, and how many of them; null for no bound."""

    age: Annotated[Number, Field(ge=1)] | None = Field(description="Seconds since their end.")
    count: Annotated[Whole, Field(ge=0)] | None = None
    archive: Flag = Field(default=False, description="Whole sessions go, into the archive, in the place of tasks.")
    by: str | None = None


class PinForm(Form):
    """Why something is kept."""

    by: str | None = None
    reason: str | None = None


@router.get("/retention", response_model=RetentionRecord)
async def get_retention(runtime: Reading, caller: Asking) -> Response:
    """Get the policy of the organization, its own or that of the settings."""
    return wire.record(await runtime.retention.policy(caller.organization_id))


@router.put("/retention", response_model=RetentionRecord)
async def set_retention(runtime: Administering, caller: Asking, request: Request, form: PolicyForm) -> Response:
    """Set the policy of the organization. What is over is deleted within minutes, the longest ended first."""
    concern(request, **form.model_dump(exclude={"by"}))
    return wire.record(
        await runtime.retention.set_policy(
            caller.organization_id, age=form.age, count=form.count, archive=form.archive, by=caller.signs(form.by)
        )
    )


@router.delete("/retention", response_model=Changed)
async def reset_retention(runtime: Administering, caller: Asking) -> Response:
    """Have the settings' word hold again for the organization."""
    return wire.plain({"changed": await runtime.retention.reset_policy(caller.organization_id)})


@router.get("/retention/policies", response_model=Page[RetentionRecord])
async def list_retention(runtime: Administering, after: After = None, limit: Limit = 100) -> Response:
    """List the policies that organizations have of their own."""
    found = await runtime.retention.policies(after=after, limit=limit)
    return wire.page(found, cursor_of(found, limit, "organization_id"))


@router.get("/pins", response_model=Page[PinRecord])
async def list_pins(runtime: Reading, caller: Asking, after: After = None, limit: Limit = 100) -> Response:
    """List what is kept whatever the policy says, in the order of ids."""
    found = await runtime.retention.pins(organization_id=caller.organization_id, after=after, limit=limit)
    return wire.page(found, cursor_of(found, limit))


@router.put("/pins/{pinned_id}", response_model=PinRecord, responses=responses(404))
async def pin(runtime: Operating, caller: Asking, pinned_id: str, form: PinForm | None = None) -> Response:
    """Keep a task, or a session with all in it, until it is unpinned. A pin that is there stays as it is."""
    given = form or PinForm()
    return wire.record(await runtime.retention.pin(pinned_id, by=caller.signs(given.by), reason=given.reason))


@router.delete("/pins/{pinned_id}", response_model=Changed)
async def unpin(runtime: Operating, pinned_id: str) -> Response:
    """Have a task or session go as the policy says."""
    return wire.plain({"changed": await runtime.retention.unpin(pinned_id)})
