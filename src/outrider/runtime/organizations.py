"""Organizations: the tenants of an installation. `org_default` is there from the beginning, and is its operators'.

One that is suspended is closed to everybody from outside: its keys and tokens are not accepted. What runs in it goes
on, for a task is nobody's request.
"""

from __future__ import annotations

import builtins
from typing import Any

from outrider.core.errors import AlreadyExists, Conflict, InUse, InvalidArguments, NotFound
from outrider.core.ledger import Document
from outrider.core.task import DEFAULT_ORGANIZATION
from outrider.core.values import evolve
from outrider.runtime.clock import as_datetime
from outrider.runtime.ids import check_id, new_id
from outrider.runtime.options import check_name, check_page, check_texts, check_texts_if_given
from outrider.runtime.records import OrganizationRecord
from outrider.runtime.services import Services

COLLECTION = "organizations"
KEYS = "keys"
TRIES = 20
"""How often a record is read again that somebody else has changed meanwhile."""


class Organizations:
    """All organizations of a store: for its operators. Anybody else sees their own."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def create(self, name: str, *, id: str | None = None) -> OrganizationRecord:
        """Make an organization. Raises AlreadyExists for an id that is taken, Forbidden but for operators."""
        services = self._services.operating("the organizations")
        check_name("name", name, services.settings.limits.name)
        if id is not None:
            check_id("organization", id)
        data = {"name": name, "created_at": services.clock.now(), "suspended_at": None}
        made = Document(COLLECTION, id or new_id("org"), data)
        if made.id == DEFAULT_ORGANIZATION or not await services.ledger.keep([made]):
            raise AlreadyExists(f"there is an organization {made.id!r} already")
        return _record(made)

    async def list(self, *, after: str | None = None, limit: int = 100) -> builtins.list[OrganizationRecord]:
        """Return the organizations in the order of their ids, after one; those who are no operators see their own."""
        check_texts_if_given(after=after)
        check_page(limit)
        if not self._services.is_operator:
            return [] if after is not None else [await self.get(self._services.organization_id)]
        found = await self._services.whole.views.documents(COLLECTION, after=after, limit=limit)
        first = [_DEFAULT] if after is None else []
        return [_record(each) for each in (*first, *found)][:limit]

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
        """Delete an organization that has no session left, with its keys; its audit log stays.

        Raises NotFound, Forbidden, and InUse while it has sessions.
        """
        services = self._services.operating("the organizations")
        document = await self._document(organization_id)
        if document.id == DEFAULT_ORGANIZATION:
            raise InvalidArguments(f"{DEFAULT_ORGANIZATION} is its operators', and stays")
        if await services.views.sessions(organization_id=document.id, limit=1):
            raise InUse(f"{document.id} has sessions; delete them first")
        while keys := await services.views.documents(KEYS, organization_id=document.id):
            await services.ledger.keep([], keys)
        if not await services.ledger.keep([], [document]):
            raise Conflict(f"{document.id} was changed meanwhile")

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
    return await services.whole.views.document(COLLECTION, id=organization_id)


_DEFAULT = Document(COLLECTION, DEFAULT_ORGANIZATION, {"name": "default", "created_at": None, "suspended_at": None})


def _record(document: Document) -> OrganizationRecord:
    created, suspended = document.data["created_at"], document.data["suspended_at"]
    return OrganizationRecord(
        id=document.id,
        name=document.data["name"],
        created_at=None if created is None else as_datetime(created),
        suspended_at=None if suspended is None else as_datetime(suspended),
    )
