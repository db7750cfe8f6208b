"""The archive of a server: the verbs of `outrider.runtime.archive.Archive`, for the organization of the key."""

from __future__ import annotations

from collections.abc import AsyncIterator

from outrider.client.connection import Connection, segment
from outrider.core.values import JSONObject
from outrider.runtime.options import check_texts_if_given
from outrider.runtime.records import ArchiveRecord


class Archive:
    """The archived sessions of one organization."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def store(self, session_id: str, *, by: str | None = None) -> ArchiveRecord:
        """Write a session with all in it and below it into the archive, and delete it; see `Archive.store` there.

        Asked once: where the answer is lost, `get` tells whether it was done.
        """
        check_texts_if_given(by=by)
        path = f"/v1/sessions/{segment('session', session_id)}/archive"
        return (await self._connection.ask("POST", path, body={"by": by})).record(ArchiveRecord)

    async def list(self, *, after: str | None = None, limit: int = 100) -> list[ArchiveRecord]:
        """Return the archived sessions, in the order of their ids."""
        return await self._connection.listed("/v1/archive", ArchiveRecord, after=after, limit=limit)

    async def get(self, session_id: str) -> ArchiveRecord:
        """Return what is known of an archived session. Raises NotFound."""
        return (await self._connection.ask("GET", _path(session_id))).record(ArchiveRecord)

    async def read(self, session_id: str) -> AsyncIterator[JSONObject]:
        """Yield the records of an archived session, as `Sessions.export` gave them. Raises NotFound."""
        async for record in self._connection.lines(f"{_path(session_id)}/records", {}):
            yield record

    async def delete(self, session_id: str) -> bool:
        """Delete an archived session from the archive, for good; False if it is not there."""
        return (await self._connection.ask("DELETE", _path(session_id), again=True)).changed()


def _path(session_id: str) -> str:
    return f"/v1/archive/{segment('session', session_id)}"
