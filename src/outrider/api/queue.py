"""The routes of the queue: limits, keys, pauses."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from outrider.api import wire
from outrider.api.access import FOR_OPERATORS, Asking, Operating, Reading
from outrider.api.forms import Changed, Flag, Form, Name, Seconds, Whole
from outrider.api.paging import Page
from outrider.api.problems import responses
from outrider.api.recording import concern
from outrider.api.routing import noun
from outrider.runtime.queue import MOST
from outrider.runtime.records import KeyRecord, LimitRecord, PauseRecord

router = noun("queue")


class LimitForm(Form):
    """A limit of a concurrency key: so many tasks at once, so many starts in any `per` seconds."""

    key: Name = Field(description="One that ends in * means each that begins like it.")
    organization_id: Name | None = Field(default=None, description="Whose key; None for all that have no limit of it.")
    concurrency: Annotated[Whole, Field(ge=0, le=MOST)] | None = Field(default=None, description="None for no bound.")
    rate: Annotated[Whole, Field(ge=1, le=MOST)] | None = Field(default=None, description="None for no bound.")
    per: Annotated[Seconds, Field(ge=0.001)] = 1.0


class PauseForm(Form):
    """What is not to be started; exactly one of the three."""

    session: str | None = None
    kind: str | None = None
    everything: Flag = False
    by: str | None = None
    reason: str | None = None


@router.get("/queue/limits", response_model=Page[LimitRecord], openapi_extra=FOR_OPERATORS)
async def list_limits(runtime: Reading) -> Response:
    """List all limits, in the order of their keys."""
    return wire.page(await runtime.queue.limits())


@router.put("/queue/limits", response_model=LimitRecord, openapi_extra=FOR_OPERATORS)
async def set_limit(runtime: Operating, request: Request, form: LimitForm) -> Response:
    """Set the limit of a concurrency key, in place of the one it has, at once and for all workers."""
    concern(request, **form.model_dump())
    limit = await runtime.queue.limit(
        form.key, concurrency=form.concurrency, rate=form.rate, per=form.per, organization_id=form.organization_id
    )
    return wire.record(limit)


@router.delete("/queue/limits", response_model=Changed, openapi_extra=FOR_OPERATORS)
async def remove_limit(
    runtime: Operating,
    request: Request,
    key: Annotated[str, Query(min_length=1, max_length=512)],
    organization_id: Annotated[str | None, Query(max_length=512)] = None,
) -> Response:
    """Remove the limit of a key. Without any limit a key admits one task at a time."""
    concern(request, key=key, organization_id=organization_id)
    return wire.plain({"changed": await runtime.queue.unlimit(key, organization_id=organization_id)})


@router.get("/queue/keys", response_model=Page[KeyRecord], openapi_extra=FOR_OPERATORS)
async def list_keys(runtime: Reading) -> Response:
    """List the concurrency keys under which anything runs or waits."""
    return wire.page(await runtime.queue.keys())


@router.get("/queue/pauses", response_model=Page[PauseRecord])
async def list_pauses(runtime: Reading) -> Response:
    """List what is paused."""
    return wire.page(await runtime.queue.pauses())


@router.put("/queue/pauses", response_model=Changed, responses=responses(404))
async def pause(runtime: Operating, caller: Asking, request: Request, form: PauseForm) -> Response:
    """Start no more tasks of a session, of a kind, or any at all; what runs goes on."""
    concern(request, session_id=form.session, kind=form.kind, everything=form.everything)
    done = await runtime.queue.pause(
        session=form.session,
        kind=form.kind,
        everything=form.everything,
        by=caller.signs(form.by),
        reason=form.reason,
    )
    return wire.plain({"changed": done})


@router.delete("/queue/pauses", response_model=Changed)
async def resume(
    runtime: Operating,
    request: Request,
    session: Annotated[str | None, Query(max_length=512)] = None,
    kind: Annotated[str | None, Query(max_length=512)] = None,
    everything: bool = False,
) -> Response:
    """End that pause, and no other."""
    concern(request, session_id=session, kind=kind, everything=everything)
    done = await runtime.queue.resume(session=session, kind=kind, everything=everything)
    return wire.plain({"changed": done})
