"""The inboxes of a server: the verbs of `outrider.runtime.inbox`."""

from __future__ import annotations

import builtins
import time
from collections.abc import Sequence
from typing import Any, cast

from outrider.client.connection import Connection, segment
from outrider.core.errors import InvalidArguments
from outrider.runtime import inbox
from outrider.runtime.options import Length, check_ids, check_page, not_negative
from outrider.runtime.records import InboxRecord, ReceiptsRecord


class Inbox:
    """The inboxes of one organization, or of what the key may see."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def list(self, session_id: str, *, limit: int = 100) -> builtins.list[InboxRecord]:
        """Return what a session has yet to be told, received or not, oldest first, and leave it. Raises NotFound."""
        answer = await self._connection.ask("GET", _path(session_id), params={"limit": check_page(limit)})
        return answer.page(InboxRecord)

    async def receive(
        self, session_id: str, *, wait: Length | None = None, lease: Length | None = None, limit: int = 100
    ) -> builtins.list[InboxRecord]:
        """Receive what a session without an agent is told, oldest first; nobody else gets it within the `lease`.

        What was received by a request whose answer was lost comes again after its lease, as all that is not
        acknowledged does.
        """
        length = None if lease is None else not_negative("lease", lease)
        if length == 0:
            raise InvalidArguments("lease is more than 0: what is received for no time is received by everybody")
        body = {"lease": None if length is None else length / 1e6, "limit": check_page(limit)}
        path = f"{_path(session_id)}/receive"
        until = None if wait is None else time.monotonic() + not_negative("wait", wait) / 1e6
        while True:
            waits = 0.0
            if until is not None:
                waits = min(max(0.0, until - time.monotonic()), self._connection.settings.poll_time)
                body["wait"] = waits
            answer = await self._connection.ask("POST", path, body=body, again=True, waits=waits)
            found = answer.page(InboxRecord)
            if found or until is None or time.monotonic() >= until:
                return found

    async def acknowledge(self, session_id: str, receipts: Sequence[str]) -> ReceiptsRecord:
        """Say that what was received with these receipts is done, for good; safe to repeat. All in one transaction."""
        check_ids(receipts=receipts)
        body = {"receipts": [*receipts]}
        answer = await self._connection.ask("POST", f"{_path(session_id)}/acknowledge", body=body, again=True)
        return answer.record(ReceiptsRecord)

    async def renew(self, session_id: str, receipts: Sequence[str], *, lease: Length | None = None) -> ReceiptsRecord:
        """Keep what was received for a `lease` from now on; with 0 give it back, for anybody to receive at once."""
        check_ids(receipts=receipts)
        body = {"receipts": [*receipts], "lease": None if lease is None else not_negative("lease", lease) / 1e6}
        answer = await self._connection.ask("POST", f"{_path(session_id)}/renew", body=body, again=True)
        return answer.record(ReceiptsRecord)


class SessionInbox(inbox.SessionInbox):
    """The inbox of one session of a server: the verbs of `Inbox`."""

    __slots__ = ()

    def __init__(self, connection: Connection, session_id: str) -> None:
        self._inbox = cast("Any", Inbox(connection))  # of the same verbs, which a test compares
        self._session_id = session_id


def _path(session_id: str) -> str:
    return f"/v1/sessions/{segment('session', session_id)}/inbox"
