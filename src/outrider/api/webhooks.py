"""The routes of webhooks: endpoints of an organization, of a task (its push configs), and what was sent to them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from outrider.api import wire
from outrider.api.access import Administering, Asking, Reading, Submitting
from outrider.api.forms import Form, Seconds
from outrider.api.paging import After, Limit, Page, cursor_of
from outrider.api.problems import responses
from outrider.api.routing import noun
from outrider.runtime.webhooks.hooks import DEFAULT_EVENTS
from outrider.runtime.webhooks.records import DeliveryRecord, NewWebhookRecord, TryRecord, WebhookRecord
from outrider.runtime.webhooks.stored import Event, Status

router = noun("webhooks")
_SECRET = {"Cache-Control": "no-store"}

Url = Annotated[str, Field(description="Where they are sent, by https or http.", examples=["https://example.com/hook"])]
Events = Annotated[list[Event], Field(description="What is told.", min_length=1, max_length=4)]


class NewWebhookForm(Form):
    """An endpoint to be made."""

    url: Url
    events: Events = Field(default=list(DEFAULT_EVENTS))
    description: str = ""
    secret: str | None = Field(default=None, description="A secret of your own, `whsec_...`; a new one without.")


class WebhookForm(Form):
    """What is to be changed of an endpoint; what is left out stays."""

    url: Url | None = None
    events: Events | None = None
    description: str | None = None


class DisablingForm(Form):
    """Why an endpoint is to be left alone."""

    reason: str | None = None


class SecretForm(Form):
    """How a secret is to be replaced."""

    secret: str | None = Field(default=None, description="A secret of your own; a new one without.")
    overlap: Seconds | None = Field(default=None, description="For how many seconds the old one signs, too.")


class ReplayForm(Form):
    """What is to be sent again."""

    delivery_ids: list[str] | None = Field(
        default=None, description="These deliveries; without, all that were given up.", max_length=1000
    )


class Replayed(Form):
    """What is sent again."""

    count: int


@router.post("/webhooks", status_code=201, response_model=NewWebhookRecord, responses=responses())
async def create_webhook(runtime: Administering, caller: Asking, form: NewWebhookForm) -> Response:
    """Have what happens in the organization be told to a URL. The secret is in this answer and in no other."""
    made = await runtime.webhooks.create(
        form.url,
        events=form.events,
        description=form.description,
        secret=form.secret,
        organization_id=caller.organization_id,
    )
    return wire.record(made, 201, _SECRET)


@router.get("/webhooks", response_model=Page[WebhookRecord])
async def list_webhooks(runtime: Administering, caller: Asking, after: After = None, limit: Limit = 100) -> Response:
    """List the endpoints of the organization."""
    found = await runtime.webhooks.list(organization_id=caller.organization_id, after=after, limit=limit)
    return wire.page(found, cursor_of(found, limit))


@router.post("/tasks/{task_id}/webhooks", status_code=201, response_model=NewWebhookRecord, responses=responses(404))
async def create_task_webhook(runtime: Submitting, task_id: str, form: NewWebhookForm) -> Response:
    """Have what happens to one task be told to a URL. It goes with the task."""
    made = await runtime.webhooks.create(
        form.url, events=form.events, description=form.description, secret=form.secret, task_id=task_id
    )
    return wire.record(made, 201, _SECRET)


@router.get("/tasks/{task_id}/webhooks", response_model=Page[WebhookRecord], responses=responses(404))
async def list_task_webhooks(runtime: Reading, task_id: str, after: After = None, limit: Limit = 100) -> Response:
    """List the endpoints of one task."""
    found = await runtime.webhooks.list(task_id=task_id, after=after, limit=limit)
    return wire.page(found, cursor_of(found, limit))


@router.get("/webhooks/{webhook_id}", response_model=WebhookRecord, responses=responses(404))
async def get_webhook(runtime: Administering, webhook_id: str) -> Response:
    """Get an endpoint, and how it has been doing."""
    return wire.record(await runtime.webhooks.get(webhook_id))


@router.patch("/webhooks/{webhook_id}", response_model=WebhookRecord, responses=responses(404))
async def update_webhook(runtime: Administering, webhook_id: str, form: WebhookForm) -> Response:
    """Change an endpoint."""
    changed = await runtime.webhooks.update(webhook_id, url=form.url, events=form.events, description=form.description)
    return wire.record(changed)


@router.delete("/webhooks/{webhook_id}", status_code=204, response_class=Response, responses=responses(404))
async def delete_webhook(runtime: Administering, webhook_id: str) -> Response:
    """Delete an endpoint with all that was sent to it, or waits to be."""
    await runtime.webhooks.delete(webhook_id)
    return Response(status_code=204)


@router.post("/webhooks/{webhook_id}/enable", response_model=WebhookRecord, responses=responses(404))
async def enable_webhook(runtime: Administering, webhook_id: str) -> Response:
    """Send to an endpoint again: what still waits, and what happens from now on."""
    return wire.record(await runtime.webhooks.enable(webhook_id))


@router.post("/webhooks/{webhook_id}/disable", response_model=WebhookRecord, responses=responses(404))
async def disable_webhook(runtime: Administering, webhook_id: str, form: DisablingForm) -> Response:
    """Send nothing to an endpoint until it is enabled."""
    return wire.record(await runtime.webhooks.disable(webhook_id, reason=form.reason))


@router.post("/webhooks/{webhook_id}/secret", response_model=NewWebhookRecord, responses=responses(404))
async def rotate_webhook_secret(runtime: Administering, webhook_id: str, form: SecretForm) -> Response:
    """Give an endpoint a new secret, which is in this answer and in no other; the old one signs on for a while."""
    made = await runtime.webhooks.rotate_secret(webhook_id, secret=form.secret, overlap=form.overlap)
    return wire.record(made, headers=_SECRET)


@router.post("/webhooks/{webhook_id}/test", response_model=TryRecord, responses=responses(404))
async def test_webhook(runtime: Administering, webhook_id: str) -> Response:
    """Send a signed ping now, and say what became of it."""
    return wire.record(await runtime.webhooks.test(webhook_id))


@router.get("/webhooks/{webhook_id}/deliveries", response_model=Page[DeliveryRecord], responses=responses(404))
async def list_deliveries(
    runtime: Administering,
    webhook_id: str,
    status: Annotated[Status | None, Query(description="Those that have come so far.")] = None,
    after: After = None,
    limit: Limit = 100,
) -> Response:
    """List what was, is or will be sent to an endpoint, newest first."""
    found = await runtime.webhooks.deliveries(webhook_id, status=status, after=after, limit=limit)
    return wire.page(found, cursor_of(found, limit))


@router.get("/webhooks/{webhook_id}/deliveries/{delivery_id}", response_model=DeliveryRecord, responses=responses(404))
async def get_delivery(runtime: Administering, webhook_id: str, delivery_id: str) -> Response:
    """Get one of them."""
    return wire.record(await runtime.webhooks.delivery(webhook_id, delivery_id))


@router.post("/webhooks/{webhook_id}/replay", response_model=Replayed, responses=responses(404, 409))
async def replay_deliveries(runtime: Administering, webhook_id: str, form: ReplayForm) -> Response:
    """Send again, under the same ids."""
    return wire.plain({"count": await runtime.webhooks.replay(webhook_id, form.delivery_ids)})
