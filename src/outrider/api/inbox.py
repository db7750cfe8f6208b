"""The routes of inboxes: what a session is told, for agents that are not ours."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from outrider.api import wire
from outrider.api.access import Reading, Submitting
from outrider.api.forms import Form, Seconds, Whole
from outrider.api.paging import PAGE, Limit, Page
from outrider.api.problems import responses
from outrider.api.routing import noun
from outrider.api.waiting import Patience, attended
from outrider.runtime.records import InboxRecord, ReceiptsRecord

router = noun("inbox")

Receipts = Annotated[tuple[str, ...], Field(max_length=PAGE, description="What `receive` gave with each entry.")]


class ReceiveForm(Form):
    """How much is received, for how long, and how long it is waited for."""

    wait: Patience | None = None
    lease: Annotated[Seconds, Field(gt=0)] | None = Field(
        default=None, description="Seconds in which nobody else receives it; a minute if left out."
    )
    limit: Annotated[Whole, Field(ge=1, le=PAGE)] = 100


class ReceiptsForm(Form):
    """What was received and is done."""

    receipts: Receipts


class RenewalForm(Form):
    """What was received and is kept for longer."""

    receipts: Receipts
    lease: Seconds | None = Field(default=None, description="Seconds from now on; with 0 it is given back.")


@router.get("/sessions/{session_id}/inbox", response_model=Page[InboxRecord], responses=responses(404))
async def list_inbox(runtime: Reading, session_id: str, limit: Limit = 100) -> Response:
    """List what a session has yet to be told, oldest first, and leave it there."""
    return wire.page(await runtime.inbox.list(session_id, limit=limit))


@router.post("/sessions/{session_id}/inbox/receive", response_model=Page[InboxRecord], responses=responses(404, 409))
async def receive_inbox(
    runtime: Submitting, request: Request, session_id: str, form: ReceiveForm | None = None
) -> Response:
    """Receive what a session without an agent is told. Unless it is acknowledged in time it comes again."""
    given = form or ReceiveForm()
    wait = None if given.wait is None else min(given.wait, request.app.state.settings.poll)
    receiving = runtime.inbox.receive(session_id, wait=wait, lease=given.lease, limit=given.limit)
    return wire.page((await receiving if wait is None else await attended(request, receiving)) or ())


@router.post("/sessions/{session_id}/inbox/acknowledge", response_model=ReceiptsRecord, responses=responses(404))
async def acknowledge_inbox(runtime: Submitting, session_id: str, form: ReceiptsForm) -> Response:
    """Say that what was received is done, for good. Safe to repeat."""
    return wire.record(await runtime.inbox.acknowledge(session_id, form.receipts))


@router.post("/sessions/{session_id}/inbox/renew", response_model=ReceiptsRecord, responses=responses(404))
async def renew_inbox(runtime: Submitting, session_id: str, form: RenewalForm) -> Response:
    """Keep what was received for longer, or give it back."""
    return wire.record(await runtime.inbox.renew(session_id, form.receipts, lease=form.lease))
