"""The routes of the audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from outrider.api import wire
from outrider.api.access import Administering
from outrider.api.forms import Form, Seconds
from outrider.api.keys import OrganizationId
from outrider.api.paging import Limit, Page, cursor_of
from outrider.api.problems import responses
from outrider.api.recording import concern
from outrider.api.routing import noun
from outrider.core.errors import InvalidArguments
from outrider.runtime.records import AuditRecord, AuditVerdict

router = noun("audit")


class AuditPruneForm(Form):
    """What of the audit log is too old."""

    older_than: Seconds
    organization_id: str | None = None


class AuditPruned(Form):
    """What went of the audit log."""

    entries: int = Field(description="How many entries went.")


@router.get("/audit", response_model=Page[AuditRecord], responses=responses(404))
async def list_audit(
    runtime: Administering,
    organization_id: OrganizationId = None,
    after: Annotated[str | None, Query(description="The cursor `next` of the page before.", max_length=20)] = None,
    limit: Limit = 100,
) -> Response:
    """List the entries of the audit log, the newest first."""
    if after is not None and not (after.isascii() and after.isdigit()):
        raise InvalidArguments("after is the cursor of the page before")
    before = None if after is None else int(after)
    found = await runtime.audit.list(organization_id=organization_id, before=before, limit=limit)
    return wire.page(found, cursor_of(found, limit, "number"))


@router.get("/audit/verify", response_model=AuditVerdict, responses=responses(404))
async def verify_audit(
    runtime: Administering,
    organization_id: OrganizationId = None,
    expect_head: Annotated[
        str | None, Query(description="A `head` that was kept elsewhere: NUMBER:HASH.", max_length=100)
    ] = None,
) -> Response:
    """Read the whole audit log, and say which is the first entry that is not as it was written."""
    return wire.record(await runtime.audit.verify(organization_id=organization_id, expect_head=expect_head))


@router.post("/audit/prune", response_model=AuditPruned, responses=responses(404))
async def prune_audit(runtime: Administering, request: Request, form: AuditPruneForm) -> Response:
    """Delete entries that are older than that, but the last."""
    concern(request, **form.model_dump())
    gone = await runtime.audit.prune(form.older_than, organization_id=form.organization_id)
    concern(request, entries=gone)
    return wire.plain({"entries": gone})
