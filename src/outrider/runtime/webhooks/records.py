"""The public records of webhooks. A secret is in one of them only, the one that its maker is given."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import orjson
from pydantic import Field

from outrider.core.ledger import Document
from outrider.core.values import Instant
from outrider.runtime.clock import as_datetime
from outrider.runtime.records import Record
from outrider.runtime.webhooks.sending import Outcome
from outrider.runtime.webhooks.stored import Endpoint, Event, Status


class WebhookRecord(Record):
    """An endpoint: whose `events` are sent to which `url`, of one task or of all of its organization.

    From `disabled_at` on nothing is sent, for the reason given, until it is enabled. `failures` is how many tries have
    failed since the last that did not, the first of them at `failing_since`.
    """

    id: str
    organization_id: str
    task_id: str | None
    url: str
    events: tuple[Event, ...]
    description: str
    created_at: datetime
    updated_at: datetime
    disabled_at: datetime | None
    disabled_reason: str | None
    failing_since: datetime | None
    failures: int
    secrets: int
    """How many sign now: two while one takes the place of the other."""

    @classmethod
    def of(cls, endpoint: Endpoint, lane: Document | None, now: Instant) -> WebhookRecord:
        """The public form of an endpoint and how it has been doing."""
        return cls(**_fields(endpoint, lane, now))


class NewWebhookRecord(WebhookRecord):
    """An endpoint with a `secret` that was just made or given, which is told here and never again."""

    secret: str = Field(repr=False)

    @classmethod
    def with_secret(cls, endpoint: Endpoint, lane: Document | None, now: Instant, secret: str) -> NewWebhookRecord:
        """The same with the secret."""
        return cls(**_fields(endpoint, lane, now), secret=secret)


def _fields(endpoint: Endpoint, lane: Document | None, now: Instant) -> dict[str, Any]:
    data, told = endpoint.document.data, {} if lane is None else lane.data
    disabled = endpoint.disabled
    return {
        "id": endpoint.id,
        "organization_id": endpoint.organization_id,
        "task_id": endpoint.task_id,
        "url": endpoint.url,
        "events": tuple(data["events"]),
        "description": data["description"],
        "created_at": as_datetime(data["created_at"]),
        "updated_at": as_datetime(data["updated_at"]),
        "disabled_at": None if disabled is None else as_datetime(disabled["at"]),
        "disabled_reason": None if disabled is None else disabled["reason"],
        "failing_since": _moment(told.get("failing_since")),
        "failures": told.get("failures", 0),
        "secrets": sum(each["until"] is None or each["until"] > now for each in data["secrets"]),
    }


class TryRecord(Record):
    """One try of a delivery: the receiver's `status`, how many `seconds` it took, and how its answer begins.

    `error` says why it failed, None if it was taken.
    """

    at: datetime
    status: int | None
    seconds: float
    head: str
    error: str | None

    @classmethod
    def of(cls, outcome: Outcome, at: Instant) -> TryRecord:
        """The public form of an outcome."""
        return cls(at=as_datetime(at), **outcome.told())


class DeliveryRecord(Record):
    """A webhook that was, is or will be sent. Its `id` is the `webhook-id` of each try, and of each replay.

    A `pending` one is tried at `next_try_at`. `tries` are the last ones, of `tried` in all.
    """

    id: str
    webhook_id: str
    type: str
    task_id: str | None
    session_id: str | None
    status: Status
    created_at: datetime
    next_try_at: datetime | None
    ended_at: datetime | None
    tried: int
    tries: Sequence[TryRecord]
    payload: Any
    """What it says, without links to answer with."""

    @classmethod
    def of(cls, document: Document) -> DeliveryRecord:
        """The public form of a delivery."""
        data = document.data
        status, _, webhook_id = document.collection.removeprefix("webhook_").partition(":")
        return cls(
            id=document.id,
            webhook_id=webhook_id,
            type=data["type"],
            task_id=data["task_id"],
            session_id=data["session_id"],
            status=status,  # type: ignore[arg-type]  # the collections are named after them
            created_at=as_datetime(data["created_at"]),
            next_try_at=_moment(document.due_at),
            ended_at=_moment(data.get("ended_at")),
            tried=data.get("tries", 0),
            tries=tuple(TryRecord(**{**each, "at": as_datetime(each["at"])}) for each in data["attempts"]),
            payload=orjson.loads(data["payload"]),
        )


def _moment(moment: Instant | None) -> datetime | None:
    return None if moment is None else as_datetime(moment)
