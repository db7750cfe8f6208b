"""The audit log of a server: the verbs of `outrider.runtime.audit`, but `record`, which each request is by itself."""

from __future__ import annotations

import builtins

from outrider.client.connection import LONG, Connection
from outrider.runtime.options import Length, check_count, check_texts_if_given, not_negative
from outrider.runtime.records import AuditRecord, AuditVerdict


class Audit:
    """The audit log of one organization; with an operator's key, those of all."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def list(
        self, *, organization_id: str | None = None, before: int | None = None, limit: int = 100
    ) -> builtins.list[AuditRecord]:
        """Return entries, the newest first, before the one of that number. Raises NotFound."""
        check_texts_if_given(organization_id=organization_id)
        if before is not None:
            check_count("before", before)
        params = {"organization_id": organization_id}
        after = None if before is None else f"{before}"
        return await self._connection.listed("/v1/audit", AuditRecord, params, after=after, limit=limit)

    async def verify(self, *, organization_id: str | None = None, expect_head: str | None = None) -> AuditVerdict:
        """Read the log from its beginning, and say which is the first entry that is not as it was written.

        `expect_head` is a `NUMBER:HASH` that was kept elsewhere: the entry of that number must still be that, and
        one that was pruned since cannot be compared, which is not whole either. The server reads, and is believed.
        """
        check_texts_if_given(organization_id=organization_id, expect_head=expect_head)
        params = {"organization_id": organization_id, "expect_head": expect_head}
        return (await self._connection.ask("GET", "/v1/audit/verify", params=params, waits=LONG)).record(AuditVerdict)

    async def prune(self, older_than: Length, *, organization_id: str | None = None) -> int:
        """Delete what is older than that, from the beginning, but the last entry; return how many went. Asked once."""
        check_texts_if_given(organization_id=organization_id)
        body = {"older_than": not_negative("older_than", older_than) / 1e6, "organization_id": organization_id}
        answer = await self._connection.ask("POST", "/v1/audit/prune", body=body, waits=LONG)
        return int(answer.plain()["entries"])
