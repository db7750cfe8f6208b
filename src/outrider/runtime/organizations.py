"""Organizations: the tenants of an installation. `org_default` is there from the beginning, and is its operators'.

One that is suspended is closed to everybody from outside: its keys and tokens are not accepted. What runs in it goes
on, for a task is nobody's request.
"""

from __future__ import annotations

import asyncio
import builtins
from typing import Any

from outrider.core.errors import AlreadyExists, Conflict, InUse, InvalidArguments, NotFound
from outrider.core.ledger import Document, LimitRemoved
from outrider.core.task import DEFAULT_ORGANIZATION, split_key
from outrider.core.values import evolve
from outrider.runtime.archive import COLLECTION as ARCHIVED
from outrider.runtime.bounds import ORGANIZATION_IDS, ORGANIZATIONS
from outrider.runtime.clock import as_datetime
from outrider.runtime.ids import check_id, new_id
from outrider.runtime.options import check_name, check_page, check_texts, check_texts_if_given
from outrider.runtime.records import OrganizationRecord
from outrider.runtime.retention import PIN, POLICY
from outrider.runtime.services import Services
from outrider.runtime.webhooks import stored

KEYS = "keys"
LOOK = 0.05
"""Seconds between two looks for a session that is about to be taken back."""
TRIES = 20
"""How often a record is read again that somebody else has changed meanwhile."""


class Organizations:
    """All organizations of a store: for its operators. Anybody else sees their own."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def create(self, name: str, *, id: str | None = None) -> OrganizationRecord:
        """Make an organization.

        Raises AlreadyExists for an id that is taken, also by one that was deleted, Forbidden but for operators.
        """
        services = self._services.operating("the organizations")
        check_name("name", name, services.settings.limits.name)
        if id is not None:
            check_id("organization", id)
        data = {"name": name, "created_at": services.clock.now(), "suspended_at": None}
        made = Document(ORGANIZATIONS, id or new_id("org"), data)
        if made.id == DEFAULT_ORGANIZATION or not await services.ledger.keep(
            [made, Document(ORGANIZATION_IDS, made.id, {})]
        ):
            raise AlreadyExists(f"there is an organization {made.id!r} already, or there was one")
        return _record(made)

    async def list(self, *, after: str | None = None, limit: int = 100) -> builtins.list[OrganizationRecord]:
        """Return the organizations in the order of their ids, after one; those who are no operators see their own."""
        check_texts_if_given(after=after)
        check_page(limit)
        if not self._services.is_operator:
            return [] if after is not None else [await self.get(self._services.organization_id)]
        found = await self._services.whole.views.documents(ORGANIZATIONS, after=after, limit=limit)
        default = [_DEFAULT] if after is None or after < DEFAULT_ORGANIZATION else []  # which has no document
        in_order = sorted((*default, *found), key=lambda each: each.id)
        return [_record(each) for each in in_order[:limit]]

    async def get(self, organization_id: str) -> OrganizationRecord:
        """Return an organization. Raises NotFound, also for one that is not one's own."""
        return _record(await self._document(organization_id))

    async def suspend(self, organization_id: str) -> OrganizationRecord:
        """Admit nobody to it until it is resumed, from within seconds in all processes. Raises NotFound, Forbidden."""
        return await self._change(organization_id, suspended_at=self._services.clock.now())

    async def resume(self, organization_id: str) -> OrganizationRecord:
        """Admit those again whose keys and tokens are good. Raises NotFound, Forbidden."""
        return await self._change(organization_id, suspended_at=None)

    async def delete(self, organization_id: str) -> None:
        """Delete an organization that has no session left, with all that is kept of it but its audit log, and its id
        for good. What it has archived is forgotten; the files stay.

        It is suspended first; one whose deletion was cut off stays so, and is deleted by another call. The same where a
        session comes into it meanwhile, which only who is bound to no organization can still make: its keys and limits
        are gone then. Raises NotFound, Forbidden, and InUse while it has sessions.
        """
        services = self._services.operating("the organizations")
        document = await self._document(organization_id)
        if document.id == DEFAULT_ORGANIZATION:
            raise InvalidArguments(f"{DEFAULT_ORGANIZATION} is its operators', and stays")
        await _check_empty(services, document.id)
        if document.data["suspended_at"] is None:
            await self.suspend(document.id)
            try:
                await _check_empty(services, document.id)
            except InUse:
                await self.resume(document.id)
                raise
        await _clear(services, document.id)
        for left in reversed(range(TRIES)):
            try:
                await _check_empty(services, document.id)
                break
            except InUse:
                if not left:  # whoever is bound to the organization would have taken it back by now
                    raise
                await asyncio.sleep(LOOK)
        for _ in range(TRIES):
            document = await self._document(organization_id)
            known = await services.views.document(ORGANIZATION_IDS, id=document.id)
            if await services.ledger.keep([known or Document(ORGANIZATION_IDS, document.id, {})], [document]):
                return
        raise Conflict(f"{organization_id} changes all the time")

    async def _change(self, organization_id: str, **fields: Any) -> OrganizationRecord:
        services = self._services.operating("the organizations")
        for _ in range(TRIES):
            document = await self._document(organization_id)
            if document.id == DEFAULT_ORGANIZATION:
                raise InvalidArguments(f"{DEFAULT_ORGANIZATION} is its operators', who would shut themselves out")
            changed = evolve(document, data={**document.data, **fields})
            if await services.ledger.keep([changed]):
                return _record(changed)
        raise Conflict(f"{organization_id} changes all the time")

    async def _document(self, organization_id: str) -> Document:
        check_texts(organization_id=organization_id)
        found = None
        if self._services.is_operator or organization_id == self._services.organization_id:
            found = await organization_of(self._services, organization_id)
        if found is None:
            raise NotFound.of("organization", organization_id)
        return found


async def organization_of(services: Services, organization_id: str) -> Document | None:
    """The record of an organization, whoever asks."""
    if organization_id == DEFAULT_ORGANIZATION:
        return _DEFAULT
    return await services.whole.views.document(ORGANIZATIONS, id=organization_id)


async def _check_empty(services: Services, organization_id: str) -> None:
    if await services.views.sessions(organization_id=organization_id, limit=1):
        raise InUse(f"{organization_id} has sessions; delete them first")


async def _clear(services: Services, organization_id: str) -> None:
    """Drop all documents of an organization but its audit log, a page at a time, its keys first; and its limits."""
    ledger, views = services.ledger, services.views
    for collection in (KEYS, stored.ENDPOINT, stored.TASK_ENDPOINT, stored.LANE, POLICY, PIN, ARCHIVED):
        while page := await views.documents(collection, organization_id=organization_id):
            if collection in (stored.ENDPOINT, stored.TASK_ENDPOINT):
                for each in page:
                    await stored.forget(ledger, stored.Endpoint(each))
            else:
                await ledger.keep([], page)
    for key in (await views.gates()).limits:
        if split_key(key)[1] == organization_id:
            await ledger.control(LimitRemoved(key))


_DEFAULT = Document(ORGANIZATIONS, DEFAULT_ORGANIZATION, {"name": "default", "created_at": None, "suspended_at": None})


def _record(document: Document) -> OrganizationRecord:
    created, suspended = document.data["created_at"], document.data["suspended_at"]
    return OrganizationRecord(
        id=document.id,
        name=document.data["name"],
        created_at=None if created is None else as_datetime(created),
        suspended_at=None if suspended is None else as_datetime(suspended),
    )
