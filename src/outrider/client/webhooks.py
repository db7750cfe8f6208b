"""The webhooks of a server: the verbs of `outrider.runtime.webhooks.endpoints`, for the organization of the key.

What makes a secret is asked once and never again by itself. `deliver` is not here: every server does it.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence

from outrider.client.connection import PAGE, Connection, segment
from outrider.core.errors import InvalidArguments, NotFound, OutriderError
from outrider.runtime.options import Length, check_ids, check_texts, check_texts_if_given, not_negative
from outrider.runtime.webhooks.hooks import DEFAULT_EVENTS, events_of
from outrider.runtime.webhooks.records import DeliveryRecord, NewWebhookRecord, TryRecord, WebhookRecord
from outrider.runtime.webhooks.signing import key_of
from outrider.runtime.webhooks.stored import STATUSES, Event, Status


class Webhooks:
    """The endpoints of one organization and of its tasks, and what is sent to them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    # --- endpoints -----------------------------------------------------------------------------------

    async def create(
        self,
        url: str,
        *,
        events: Sequence[Event] = DEFAULT_EVENTS,
        task_id: str | None = None,
        description: str = "",
        secret: str | None = None,
    ) -> NewWebhookRecord:
        """Have what happens from now on be told to a URL: of one task, or of all of the organization.

        The secret that signs is told this once. Asked once: where the answer is lost, `list` shows whether there is an
        endpoint whose secret nobody knows; delete it, or give it another one. See `Webhooks.create` there.
        """
        check_texts(url=url, description=description)
        _check_secret(secret)
        body = {"url": url, "events": events_of(events), "description": description, "secret": secret}
        return (await self._connection.ask("POST", _list_of(task_id), body=body)).record(NewWebhookRecord)

    async def list(
        self, *, task_id: str | None = None, after: str | None = None, limit: int = 100
    ) -> builtins.list[WebhookRecord]:
        """Return endpoints in the order they were made, after the one of that id: of a task, or those of no task."""
        return await self._connection.listed(_list_of(task_id), WebhookRecord, after=after, limit=limit)

    async def get(self, webhook_id: str) -> WebhookRecord:
        """Return an endpoint. Raises NotFound."""
        return (await self._connection.ask("GET", _path(webhook_id))).record(WebhookRecord)

    async def update(
        self,
        webhook_id: str,
        *,
        url: str | None = None,
        events: Sequence[Event] | None = None,
        description: str | None = None,
    ) -> WebhookRecord:
        """Change an endpoint; what is left at None stays. What waits to be sent goes to the new URL.

        Raises what `create` raises, and NotFound.
        """
        check_texts_if_given(url=url, description=description)
        body = {"url": url, "events": None if events is None else events_of(events), "description": description}
        return (await self._connection.ask("PATCH", _path(webhook_id), body=body, again=True)).record(WebhookRecord)

    async def enable(self, webhook_id: str) -> WebhookRecord:
        """Send again to an endpoint that was disabled: what still waits, and what happens from now on. Raises NotFound.

        What happened meanwhile is not told.
        """
        return (await self._connection.ask("POST", f"{_path(webhook_id)}/enable", again=True)).record(WebhookRecord)

    async def disable(self, webhook_id: str, *, reason: str | None = None) -> WebhookRecord:
        """Send nothing to an endpoint until it is enabled. Raises NotFound."""
        check_texts_if_given(reason=reason)
        path = f"{_path(webhook_id)}/disable"
        return (await self._connection.ask("POST", path, body={"reason": reason}, again=True)).record(WebhookRecord)

    async def delete(self, webhook_id: str) -> None:
        """Delete an endpoint with all that was sent to it, or waits to be. Raises NotFound. Safe to repeat."""

        async def arrived(error: OutriderError) -> bool:
            return isinstance(error, NotFound)

        await self._connection.ask("DELETE", _path(webhook_id), again=True, arrived=arrived)

    async def rotate_secret(
        self, webhook_id: str, *, secret: str | None = None, overlap: Length | None = None
    ) -> NewWebhookRecord:
        """Give an endpoint a new secret; the one before signs beside it for the `overlap` (a day unless it says).

        Asked once: after a second rotation the one in use would sign no more. Raises NotFound and InvalidArguments.
        """
        _check_secret(secret)
        body = {"secret": secret, "overlap": None if overlap is None else not_negative("overlap", overlap) / 1e6}
        return (await self._connection.ask("POST", f"{_path(webhook_id)}/secret", body=body)).record(NewWebhookRecord)

    async def test(self, webhook_id: str) -> TryRecord:
        """Have a signed `webhook.ping` sent now, disabled or not, and return what became of it. Not tried again."""
        return (await self._connection.ask("POST", f"{_path(webhook_id)}/test")).record(TryRecord)

    # --- deliveries ----------------------------------------------------------------------------------

    async def deliveries(
        self, webhook_id: str, *, status: Status | None = None, after: str | None = None, limit: int = 100
    ) -> builtins.list[DeliveryRecord]:
        """Return what was, is or will be sent to an endpoint, newest first, after the one of that id. Raises NotFound.

        Of what was sent the last ones are kept, and more of what was given up; see `WebhookSettings`.
        """
        if status not in (None, *STATUSES):
            raise InvalidArguments(f"status is one of {', '.join(STATUSES)}, not {status!r:.100}")
        path, params = f"{_path(webhook_id)}/deliveries", {"status": status}
        return await self._connection.listed(path, DeliveryRecord, params, after=after, limit=limit)

    async def delivery(self, webhook_id: str, delivery_id: str) -> DeliveryRecord:
        """Return one of them. Raises NotFound."""
        path = f"{_path(webhook_id)}/deliveries/{segment('delivery', delivery_id)}"
        return (await self._connection.ask("GET", path)).record(DeliveryRecord)

    async def replay(self, webhook_id: str, delivery_ids: Sequence[str] | None = None) -> int:
        """Send again, under the same ids: these deliveries, or all that were given up. Return how many. Asked once.

        What waits to be tried again is tried now. Raises NotFound, and Conflict while the endpoint is disabled.
        """
        path, some = f"{_path(webhook_id)}/replay", list[Sequence[str] | None]([None])
        if delivery_ids is not None:
            check_ids(delivery_ids=delivery_ids)
            some = [delivery_ids[first : first + PAGE] for first in range(0, max(1, len(delivery_ids)), PAGE)]
        answers = [await self._connection.ask("POST", path, body={"delivery_ids": each}) for each in some]
        return sum(int(each.plain()["count"]) for each in answers)


def _check_secret(secret: str | None) -> None:
    """Raise InvalidArguments for what is no secret, without repeating it."""
    if secret:
        key_of(secret)


def _path(webhook_id: str) -> str:
    return f"/v1/webhooks/{segment('webhook', webhook_id)}"


def _list_of(task_id: str | None) -> str:
    return "/v1/webhooks" if task_id is None else f"/v1/tasks/{segment('task', task_id)}/webhooks"
