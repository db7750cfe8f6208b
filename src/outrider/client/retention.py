"""What a server keeps for how long: the verbs of `outrider.runtime.retention`, for the organization of the key."""

from __future__ import annotations

from outrider.client.connection import Connection, segment
from outrider.runtime.clock import span
from outrider.runtime.options import Length, check_flags, check_texts_if_given
from outrider.runtime.records import PinRecord, RetentionRecord


class RetentionPolicies:
    """The policy and the pins of one organization."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def policy(self) -> RetentionRecord:
        """Return the policy of the organization, its own or that of the settings."""
        return (await self._connection.ask("GET", "/v1/retention")).record(RetentionRecord)

    async def policies(self, *, after: str | None = None, limit: int = 100) -> list[RetentionRecord]:
        """Return the organizations that have a policy of their own, in the order of their ids."""
        return await self._connection.listed("/v1/retention/policies", RetentionRecord, after=after, limit=limit)

    async def set_policy(
        self, *, age: Length | None, count: int | None = None, archive: bool = False, by: str | None = None
    ) -> RetentionRecord:
        """Have the ended tasks of the organization kept for so long, and no more than `count` of them; None: no bound.

        With `archive` whole sessions go, into the archive, in the place of tasks. Raises InvalidArguments.
        """
        check_texts_if_given(by=by)
        check_flags(archive=archive)
        body = {"age": None if age is None else span(age) / 1e6, "count": count, "archive": archive, "by": by}
        return (await self._connection.ask("PUT", "/v1/retention", body=body)).record(RetentionRecord)

    async def reset_policy(self) -> bool:
        """Have the settings' word hold again; False if it did."""
        return (await self._connection.ask("DELETE", "/v1/retention", again=True)).changed()

    async def pin(self, id: str, *, by: str | None = None, reason: str | None = None) -> PinRecord:
        """Keep a task, or a session with all in it and in the sessions that its tasks opened, until it is unpinned."""
        check_texts_if_given(by=by, reason=reason)
        body = {"by": by, "reason": reason}
        return (await self._connection.ask("PUT", _path(id), body=body)).record(PinRecord)

    async def unpin(self, id: str) -> bool:
        """Have a task or session go as its organization's policy says; False if it was not pinned."""
        return (await self._connection.ask("DELETE", _path(id), again=True)).changed()

    async def pins(self, *, after: str | None = None, limit: int = 100) -> list[PinRecord]:
        """Return what is pinned, in the order of ids."""
        return await self._connection.listed("/v1/pins", PinRecord, after=after, limit=limit)


def _path(id: str) -> str:
    return f"/v1/pins/{segment('session' if id.startswith('session') else 'task', id)}"
