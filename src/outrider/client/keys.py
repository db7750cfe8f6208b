"""The API keys of a server: the verbs of `outrider.runtime.keys`.

What makes a token is asked once and never again by itself: of two tokens one would be nobody's, and good all the same.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence

from outrider.client.connection import Connection, segment
from outrider.runtime.clock import span
from outrider.runtime.keys import OVERLAP, Scope, check_scopes
from outrider.runtime.options import Length, check_texts, check_texts_if_given, not_negative
from outrider.runtime.records import ApiKeyRecord, NewApiKeyRecord


class Keys:
    """The keys of one organization; with an operator's key, those of all."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(
        self,
        name: str,
        *,
        scopes: Sequence[Scope] = ("read",),
        session_id: str | None = None,
        expires: Length | None = None,
        organization_id: str | None = None,
        by: str | None = None,
    ) -> NewApiKeyRecord:
        """Make a key; its token is in what is returned, and nowhere else. See `Keys.create` there.

        Asked once: where the answer is lost, `list` shows whether there is a key whose token nobody knows; revoke it.
        """
        check_texts(name=name)
        check_texts_if_given(session_id=session_id, organization_id=organization_id, by=by)
        body = {
            "name": name,
            "scopes": check_scopes(scopes),
            "session_id": session_id,
            "expires": None if expires is None else span(expires) / 1e6,
            "organization_id": organization_id,
            "by": by,
        }
        return (await self._connection.ask("POST", "/v1/keys", body=body)).record(NewApiKeyRecord)

    async def list(
        self, *, organization_id: str | None = None, after: str | None = None, limit: int = 100
    ) -> builtins.list[ApiKeyRecord]:
        """Return keys, the oldest first, after the one of that id: those of an organization, or all within reach."""
        check_texts_if_given(organization_id=organization_id)
        params = {"organization_id": organization_id}
        return await self._connection.listed("/v1/keys", ApiKeyRecord, params, after=after, limit=limit)

    async def get(self, key_id: str) -> ApiKeyRecord:
        """Return a key. Raises NotFound."""
        return (await self._connection.ask("GET", _path(key_id))).record(ApiKeyRecord)

    async def revoke(self, key_id: str) -> ApiKeyRecord:
        """Have a key be good no more, from within seconds in all processes; its record stays. Raises NotFound."""
        return (await self._connection.ask("POST", f"{_path(key_id)}/revoke", again=True)).record(ApiKeyRecord)

    async def rotate(self, key_id: str, *, overlap: Length = OVERLAP) -> NewApiKeyRecord:
        """Give a key a new token; the one that it had is good for the `overlap` as well, and any before it no more.

        Asked once: a second rotation would end the token that is in use. Where the answer is lost, `overlaps_until` of
        `get` tells whether it was done. Raises NotFound, and Conflict for a key that was revoked or has expired.
        """
        body = {"overlap": not_negative("overlap", overlap) / 1e6}
        return (await self._connection.ask("POST", f"{_path(key_id)}/rotate", body=body)).record(NewApiKeyRecord)


def _path(key_id: str) -> str:
    return f"/v1/keys/{segment('key', key_id)}"
