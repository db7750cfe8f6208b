"""The webhooks of a runtime: endpoints are made, changed and tried; what was sent is looked up and sent again."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

from outrider.core.errors import Conflict, InvalidArguments, LimitReached, NotFound
from outrider.core.ledger import Document
from outrider.core.values import evolve
from outrider.runtime.clock import span
from outrider.runtime.ids import new_id
from outrider.runtime.options import (
    Length,
    check_ids,
    check_name,
    check_page,
    check_texts,
    check_texts_if_given,
    not_negative,
)
from outrider.runtime.services import Services
from outrider.runtime.webhooks import lanes, stored
from outrider.runtime.webhooks.guard import Guard
from outrider.runtime.webhooks.hooks import DEFAULT_EVENTS, MOST_OF_TASK, description_of, events_of, new_endpoint
from outrider.runtime.webhooks.news import envelope
from outrider.runtime.webhooks.records import DeliveryRecord, NewWebhookRecord, TryRecord, WebhookRecord
from outrider.runtime.webhooks.secrets import kept, keys_of
from outrider.runtime.webhooks.sending import Sender
from outrider.runtime.webhooks.signing import key_of, new_secret
from outrider.runtime.webhooks.stored import (
    ENDPOINT,
    LANE,
    STATUSES,
    Endpoint,
    Event,
    Status,
    deliveries_of,
    every,
    lane_for,
    moved,
)

MOST = 100
"""How many endpoints one organization may have, beside those of tasks."""

LONGEST_OVERLAP: Length = 30 * 86_400


class Webhooks:
    """The endpoints of one store, and what is sent to them."""

    def __init__(self, services: Services) -> None:
        self._services = services

    # --- endpoints -----------------------------------------------------------------------------------

    async def create(
        self,
        url: str,
        *,
        events: Sequence[Event] = DEFAULT_EVENTS,
        task_id: str | None = None,
        organization_id: str | None = None,
        description: str = "",
        secret: str | None = None,
    ) -> NewWebhookRecord:
        """Have what happens from now on be told to a URL: of one task, or of all of an organization.

        The endpoint of a task goes with it. The secret that signs is told this once. Raises InvalidArguments for a URL
        or events that are none, AddressRefused for a place that may not be reached, LimitReached, NotFound for a task.
        """
        ledger, views = self._services.ledger, self._services.views
        check_texts_if_given(task_id=task_id, organization_id=organization_id)
        organization_id = organization_id or self._services.organization_id
        task = None
        if task_id is not None:
            task = await views.task(task_id)
            if task is None:
                raise NotFound.of("task", task_id)
            organization_id = task.input.organization_id
            if len(await stored.of_task(views, task_id)) >= MOST_OF_TASK:
                raise LimitReached(f"a task has up to {MOST_OF_TASK} webhooks")
        elif len(await views.documents(ENDPOINT, organization_id=organization_id, limit=MOST)) >= MOST:
            raise LimitReached(f"an organization has up to {MOST} webhooks; delete some")
        told = {"url": url, "events": events, "description": description, "secret": secret}
        made, secret = await new_endpoint(self._services, told, new_id("whk"), organization_id, task)
        lane = lane_for(made)
        await stored.start_following(self._services.whole.ledger)
        if not await ledger.keep([made, lane]):
            raise AssertionError(f"{made.id} is no new id")
        now = self._services.clock.now()
        return NewWebhookRecord.with_secret(Endpoint(evolve(made, version=1)), lane, now, secret)

    async def list(
        self,
        *,
        task_id: str | None = None,
        organization_id: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> builtins.list[WebhookRecord]:
        """Return endpoints in the order they were made, after the one of that id: of a task, or those of no task."""
        check_texts_if_given(task_id=task_id, organization_id=organization_id, after=after)
        views = self._services.views
        check_page(limit)
        if task_id is not None:
            if await views.task(task_id) is None:
                raise NotFound.of("task", task_id)
            of_task = sorted(await stored.of_task(views, task_id), key=lambda each: each.id)
            found = [each for each in of_task if after is None or each.id > after][:limit]
        else:
            page = await views.documents(ENDPOINT, organization_id=organization_id, after=after, limit=limit)
            found = [Endpoint(each) for each in page]
        return [await self._record(each) for each in found]

    async def get(self, webhook_id: str) -> WebhookRecord:
        """Return an endpoint. Raises NotFound."""
        return await self._record(await self._endpoint(webhook_id))

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
        changes: dict[str, Any] = {}
        if url is not None:
            self._guard().check(url)
            changes["url"] = url
        if events is not None:
            changes["events"] = events_of(events)
        if description is not None:
            changes["description"] = description_of(self._services, description)
        return await self._record(await self._change(webhook_id, lambda _: changes))

    async def enable(self, webhook_id: str) -> WebhookRecord:
        """Send again to an endpoint that was disabled: what still waits, and what happens from now on. Raises NotFound.

        What happened meanwhile is not told.
        """
        while True:
            found = await self._endpoint(webhook_id)
            views, now = self._services.views, self._services.clock.now()
            lane = await views.document(LANE, id=found.id)
            if lane is None:
                raise NotFound.of("webhook", webhook_id)
            fresh = stored.rested(evolve(lane, data={**lane.data, "failures": 0, "failing_since": None}))
            if await views.documents(stored.pending(found.id), limit=1):
                fresh = stored.woken(fresh, now)
            since = await self._services.views.position()
            changed = found.changed(disabled=None, updated_at=now)
            if found.disabled is not None:
                changed = evolve(changed, data={**changed.data, "since": since})
            if await self._services.ledger.keep([changed, fresh]):
                return await self.get(webhook_id)

    async def disable(self, webhook_id: str, *, reason: str | None = None) -> WebhookRecord:
        """Send nothing to an endpoint until it is enabled. Raises NotFound."""
        if reason is not None:
            check_name("the reason", reason, self._services.settings.limits.name)
        found = await self._endpoint(webhook_id)
        await lanes.disable(self._services, found.id, reason or "it was disabled by hand")
        return await self.get(webhook_id)

    async def delete(self, webhook_id: str) -> None:
        """Delete an endpoint with all that was sent to it, or waits to be. Raises NotFound."""
        if not await stored.forget(self._services.ledger, await self._endpoint(webhook_id)):
            raise NotFound.of("webhook", webhook_id)

    async def rotate_secret(
        self, webhook_id: str, *, secret: str | None = None, overlap: Length | None = None
    ) -> NewWebhookRecord:
        """Give an endpoint a new secret; the one before signs beside it for the `overlap` (a day unless it says).

        Those before that one sign no more. Raises NotFound and InvalidArguments.
        """
        settings = self._services.settings.webhooks
        length = span(settings.overlap) if overlap is None else not_negative("overlap", overlap)
        if length > span(LONGEST_OVERLAP):
            raise InvalidArguments("two secrets sign side by side for 30 days at most")
        given = secret or new_secret()
        new = kept(self._services, key_of(given))

        def rotated(found: Endpoint) -> dict[str, Any]:
            last = found.document.data["secrets"][0]
            return {"secrets": [new, {**last, "until": self._services.clock.now() + length}]}

        found = await self._change(webhook_id, rotated)
        lane = await self._services.views.document(LANE, id=found.id)
        return NewWebhookRecord.with_secret(found, lane, self._services.clock.now(), given)

    async def test(self, webhook_id: str) -> TryRecord:
        """Send a signed `webhook.ping` now, disabled or not, and return what became of it. It is not tried again."""
        found = await self._endpoint(webhook_id)
        settings, now = self._services.settings, self._services.clock.now()
        body = envelope("webhook.ping", now, {"webhook_id": found.id}, settings.limits.webhook).encode()
        keys = keys_of(self._services, found, now)
        sender = Sender(settings.webhooks, settings.limits.webhook_answer, self._guard())
        try:
            outcome = await sender.send(found.url, keys, new_id("dlv"), body, now // 1_000_000)
        finally:
            await sender.close()
        return TryRecord.of(outcome, now)

    async def deliver(self) -> None:
        """Follow what happens and send it, until cancelled. Workers do so by themselves; this is for who has none.

        Raises Forbidden but for operators.
        """
        from outrider.runtime.webhooks.duty import Webhooking

        await Webhooking(self._services.operating("the sending of webhooks")).run()

    # --- deliveries ----------------------------------------------------------------------------------

    async def deliveries(
        self, webhook_id: str, *, status: Status | None = None, after: str | None = None, limit: int = 100
    ) -> builtins.list[DeliveryRecord]:
        """Return what was, is or will be sent to an endpoint, newest first, after the one of that id. Raises NotFound.

        Of what was sent the last ones are kept, and more of what was given up; see `WebhookSettings`.
        """
        found = await self._endpoint(webhook_id)
        check_texts_if_given(after=after)
        check_page(limit)
        page: builtins.list[Document] = []
        for each in _statuses(status):
            name = deliveries_of(found.id, each)
            page += await self._services.views.documents(name, after=after, limit=limit, newest_first=True)
        page.sort(key=lambda each: each.id, reverse=True)
        return [DeliveryRecord.of(each) for each in page[:limit]]

    async def delivery(self, webhook_id: str, delivery_id: str) -> DeliveryRecord:
        """Return one of them. Raises NotFound."""
        return DeliveryRecord.of(await self._delivery(await self._endpoint(webhook_id), delivery_id))

    async def replay(self, webhook_id: str, delivery_ids: Sequence[str] | None = None) -> int:
        """Send again, under the same ids: these deliveries, or all that were given up. Return how many.

        What waits to be tried again is tried now. Raises NotFound, and Conflict while the endpoint is disabled.
        """
        found = await self._endpoint(webhook_id)
        if found.disabled is not None:
            raise Conflict(f"{found.id} is disabled ({found.disabled['reason']}); enable it first")
        if delivery_ids is not None:
            check_ids(delivery_ids=delivery_ids)
            documents = [await self._delivery(found, each) for each in dict.fromkeys(delivery_ids)]
        else:
            documents = [each async for each in every(self._services.views, deliveries_of(found.id, "dead"))]
        now, count = self._services.clock.now(), 0
        for each in documents:
            # One after the other in their own time, so that they are sent in their order.
            changes = {"began_at": now, "failures": 0, "ended_at": None}
            again = moved(each, "pending", changes, due_at=now + count)
            is_pending = each.collection == again.collection
            again = evolve(again, version=each.version if is_pending else 0)
            count += await stored.put(self._services.ledger, found.id, [again], *([] if is_pending else [each]))
        return count

    async def _delivery(self, endpoint: Endpoint, delivery_id: str) -> Document:
        check_texts(delivery_id=delivery_id)
        for status in STATUSES:
            found = await self._services.views.document(deliveries_of(endpoint.id, status), id=delivery_id)
            if found is not None:
                return found
        raise NotFound.of("delivery", delivery_id)

    # --- within --------------------------------------------------------------------------------------

    async def _endpoint(self, webhook_id: str) -> Endpoint:
        check_texts(webhook_id=webhook_id)
        return await stored.endpoint(self._services.views, webhook_id)

    async def _record(self, endpoint: Endpoint) -> WebhookRecord:
        lane = await self._services.views.document(LANE, id=endpoint.id)
        return WebhookRecord.of(endpoint, lane, self._services.clock.now())

    async def _change(self, webhook_id: str, changes: Any) -> Endpoint:
        while True:
            found = await self._endpoint(webhook_id)
            changed = found.changed(**changes(found), updated_at=self._services.clock.now())
            if await self._services.ledger.keep([changed]):
                return Endpoint(evolve(changed, version=changed.version + 1))

    def _guard(self) -> Guard:
        return Guard(self._services.settings.webhooks)


def _statuses(status: Status | None) -> Sequence[Status]:
    if status is None:
        return STATUSES
    if status not in STATUSES:
        raise InvalidArguments(f"status is one of {', '.join(STATUSES)}, not {status!r:.100}")
    return (status,)
