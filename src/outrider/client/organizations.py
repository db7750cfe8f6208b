"""The organizations of a server: the verbs of `outrider.runtime.organizations`, for operators."""

from __future__ import annotations

import builtins

from outrider.client.connection import Connection, segment
from outrider.core.errors import AlreadyExists, NotFound, OutriderError
from outrider.runtime.ids import check_id, new_id
from outrider.runtime.options import check_texts
from outrider.runtime.records import OrganizationRecord


class Organizations:
    """All organizations, for an operator. With another key, one's own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(self, name: str, *, id: str | None = None) -> OrganizationRecord:
        """Make an organization. Raises AlreadyExists for an id that is taken, Forbidden but for operators.

        It gets its id here, so that it is made once however often it has to be asked for.
        """
        check_texts(name=name)
        made = new_id("org") if id is None else check_id("organization", id)

        async def arrived(error: OutriderError) -> bool:
            """Whether the id is taken by what was asked for first, and only what came back of it was lost."""
            try:
                return isinstance(error, AlreadyExists) and (await self.get(made)).name == name
            except NotFound:
                return False

        answer = await self._connection.ask(
            "POST", "/v1/organizations", body={"name": name, "id": made}, again=True, arrived=arrived
        )
        return answer.record(OrganizationRecord) if answer.content else await self.get(made)

    async def list(self, *, after: str | None = None, limit: int = 100) -> builtins.list[OrganizationRecord]:
        """Return the organizations in the order of their ids, after one; those who are no operators see their own."""
        return await self._connection.listed("/v1/organizations", OrganizationRecord, after=after, limit=limit)

    async def get(self, organization_id: str) -> OrganizationRecord:
        """Return an organization. Raises NotFound, also for one that is not one's own."""
        return (await self._connection.ask("GET", _path(organization_id))).record(OrganizationRecord)

    async def suspend(self, organization_id: str) -> OrganizationRecord:
        """Admit nobody to it until it is resumed, from within seconds in all processes. Raises NotFound, Forbidden."""
        answer = await self._connection.ask("POST", f"{_path(organization_id)}/suspend", again=True)
        return answer.record(OrganizationRecord)

    async def resume(self, organization_id: str) -> OrganizationRecord:
        """Admit those again whose keys and tokens are good. Raises NotFound, Forbidden."""
        answer = await self._connection.ask("POST", f"{_path(organization_id)}/resume", again=True)
        return answer.record(OrganizationRecord)

    async def delete(self, organization_id: str) -> None:
        """Delete an organization that has no session left, and its id for good; see `Organizations.delete` there.

        Raises NotFound, Forbidden, and InUse while it has sessions. Safe to repeat: its id is not given again.
        """

        async def arrived(error: OutriderError) -> bool:
            return isinstance(error, NotFound)

        await self._connection.ask("DELETE", _path(organization_id), again=True, arrived=arrived)


def _path(organization_id: str) -> str:
    return f"/v1/organizations/{segment('organization', organization_id)}"
