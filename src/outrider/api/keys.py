"""The routes of API keys, of who asks, and of the keys that seal secrets."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from outrider.api import wire
from outrider.api.access import FOR_OPERATORS, Administering, Asking, Reading
from outrider.api.forms import Form, Seconds
from outrider.api.paging import After, Limit, Page, cursor_of
from outrider.api.problems import responses
from outrider.api.routing import noun
from outrider.runtime.keys import OVERLAP, SCOPES, Scope
from outrider.runtime.records import ApiKeyRecord, NewApiKeyRecord, RotationRecord

router = noun("keys")

_SECRET = {"Cache-Control": "no-store"}

OrganizationId = Annotated[
    str | None, Query(description="Of this organization; one's own, but for operators.", max_length=512)
]


class NewKeyForm(Form):
    """A key to be made."""

    name: str = Field(description="Whose it is: it signs what is done with it.")
    scopes: list[Scope] = Field(
        default=["read"], description="Each holds those before it: read, submit, operate, admin."
    )
    session_id: str | None = Field(default=None, description="Good for the tree of this session alone, its root.")
    expires: Seconds | None = None
    organization_id: str | None = Field(default=None, description="For operators: of another organization.")
    by: str | None = Field(default=None, description="Who makes it; a caller with a name is who they are.")


class RotationForm(Form):
    """How a key is given another token."""

    overlap: Seconds = Field(default=OVERLAP, description="How many seconds the token before is good as well.")


class CallerRecord(BaseModel):
    """Who asks, and how far they reach."""

    organization_id: str
    scopes: list[Scope]
    session_id: str | None
    name: str | None
    key_id: str | None
    subject: str | None
    via: str = Field(description="key, token, or open where nobody is asked.")


@router.get("/caller", response_model=CallerRecord)
async def get_caller(runtime: Reading, caller: Asking) -> Response:
    """Get who asks: what a key is good for."""
    del runtime
    return wire.plain(
        {
            "organization_id": caller.organization_id,
            "scopes": [scope for scope in SCOPES if scope in caller.scopes],
            "session_id": caller.session_id,
            "name": caller.name,
            "key_id": caller.key_id,
            "subject": caller.subject,
            "via": caller.via,
        }
    )


@router.post("/keys", status_code=201, response_model=NewApiKeyRecord, responses=responses(404))
async def create_api_key(runtime: Administering, caller: Asking, form: NewKeyForm) -> Response:
    """Make a key. Its token is in the answer, and is never shown again."""
    made = await runtime.keys.create(
        form.name,
        scopes=form.scopes,
        session_id=form.session_id,
        expires=form.expires,
        organization_id=form.organization_id,
        by=caller.signs(form.by),
    )
    return wire.record(made, 201, _SECRET)


@router.get("/keys", response_model=Page[ApiKeyRecord])
async def list_api_keys(
    runtime: Administering, organization_id: OrganizationId = None, after: After = None, limit: Limit = 100
) -> Response:
    """List keys, the oldest first: those of an organization, or all within reach."""
    found = await runtime.keys.list(organization_id=organization_id, after=after, limit=limit)
    return wire.page(found, cursor_of(found, limit))


@router.get("/keys/{key_id}", response_model=ApiKeyRecord, responses=responses(404))
async def get_api_key(runtime: Administering, key_id: str) -> Response:
    """Get a key, without its token."""
    return wire.record(await runtime.keys.get(key_id))


@router.post("/keys/{key_id}/revoke", response_model=ApiKeyRecord, responses=responses(404, 409))
async def revoke_api_key(runtime: Administering, key_id: str) -> Response:
    """Have a key be good no more, from within seconds everywhere. Its record stays."""
    return wire.record(await runtime.keys.revoke(key_id))


@router.post("/keys/{key_id}/rotate", response_model=NewApiKeyRecord, responses=responses(404, 409))
async def rotate_api_key(runtime: Administering, key_id: str, form: RotationForm | None = None) -> Response:
    """Give a key another token, which is in the answer and never shown again; the one before is good for a while."""
    made = await runtime.keys.rotate(key_id, overlap=(form or RotationForm()).overlap)
    return wire.record(made, headers=_SECRET)


@router.post("/secrets/rotate", response_model=RotationRecord, responses=responses(409), openapi_extra=FOR_OPERATORS)
async def rotate_secrets(runtime: Administering) -> Response:
    """Seal the secrets in the database anew with the first of its keys, a new one where those are in a file."""
    return wire.record(await runtime.secrets.rotate())
