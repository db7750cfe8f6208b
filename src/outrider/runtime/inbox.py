"""Inboxes for outside agents: who is no agent of ours receives what a session is told, and acknowledges it.

Received is not delivered: an entry is kept for its receiver until its lease is over, and then comes again unless it was
acknowledged. So an agent that dies loses nothing, and may do a thing twice unless it remembers by `seq` what it did.
"""

from __future__ import annotations

import builtins
from collections import defaultdict
from collections.abc import Sequence

from outrider.core.delivery import Receipt, Standing
from outrider.core.errors import IllegalMove, InvalidArguments, NotFound
from outrider.core.session import Session
from outrider.core.values import Instant, Span
from outrider.runtime.options import Length, check_ids, check_page, check_texts, not_negative
from outrider.runtime.records import InboxRecord, ReceiptsRecord
from outrider.runtime.services import Services


class Inbox:
    """The inboxes of one store."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def list(self, session_id: str, *, limit: int = 100) -> builtins.list[InboxRecord]:
        """Return what a session has yet to be told, received or not, oldest first, and leave it. Raises NotFound."""
        check_texts(session_id=session_id)
        found = await self._services.views.inbox(session_id, limit=check_page(limit))
        if not found:
            await self._session(session_id)
        return [InboxRecord.of(row) for row in found]

    async def receive(
        self, session_id: str, *, wait: Length | None = None, lease: Length | None = None, limit: int = 100
    ) -> builtins.list[InboxRecord]:
        """Receive what a session without an agent is told, oldest first; nobody else gets it within the `lease`.

        At once what there is; else the first to come, within `wait`; else nothing. What is not acknowledged by the end
        of its lease (by default a minute; see `inbox_lease`) comes again, with another receipt. News that come of a
        task meanwhile are an entry of their own, for anybody. Raises NotFound, InvalidArguments, and IllegalMove for a
        session whose agent is told by its turns.
        """
        check_page(limit)
        length = self._length(lease)
        if length == 0:
            raise InvalidArguments("lease is more than 0: what is received for no time is received by everybody")
        clock, views = self._services.clock, self._services.views
        until = None if wait is None else clock.now() + not_negative("wait", wait)
        await self._check_receiver(session_id)
        with self._services.signals.listen([session_id]) as bell:
            while True:
                now = clock.now()
                free_at = await views.receivable_at(session_id, now)
                if free_at is not None and free_at <= now:
                    if found := await self._services.ledger.receive(session_id, now, now + length, limit):
                        for row in found:
                            if row.deliveries == 1:
                                self._services.telemetry.heard(row.reason, "outside", now - row.created_at)
                        tasks = {task.id: task for task in await views.tasks([row.task_id for row in found])}
                        return [InboxRecord.received(row, tasks.get(row.task_id)) for row in found]
                    continue  # somebody was faster, and has a lease now
                if until is None or now >= until:
                    return []
                await bell.wait(until if free_at is None else min(free_at, until))

    async def acknowledge(self, session_id: str, receipts: Sequence[str]) -> ReceiptsRecord:
        """Say that what was received with these receipts is done, for good; safe to repeat. All in one transaction.

        Returns what became of each receipt; none that is not good any more takes anything away, least of all news that
        came after it. Raises NotFound, and InvalidArguments for what is no receipt; then nothing was acknowledged.
        """
        return await self._settle(session_id, receipts, None)

    async def renew(self, session_id: str, receipts: Sequence[str], *, lease: Length | None = None) -> ReceiptsRecord:
        """Keep what was received for a `lease` from now on; with 0 give it back, for anybody to receive at once.

        Returns what became of each receipt. Raises NotFound and InvalidArguments, as `acknowledge` does.
        """
        length = self._length(lease)
        return await self._settle(session_id, receipts, self._services.clock.now() + length)

    async def _settle(self, session_id: str, receipts: Sequence[str], until: Instant | None) -> ReceiptsRecord:
        check_texts(session_id=session_id)
        check_ids(receipts=receipts)
        given = {text: _receipt(text) for text in receipts}
        standings = await self._services.ledger.acknowledge(session_id, builtins.list(given.values()), until)
        if set(standings) <= {"gone"}:
            await self._session(session_id)  # in one that is not there everything would seem to be done
        by_standing: defaultdict[Standing, builtins.list[str]] = defaultdict(builtins.list)
        for text, standing in zip(given, standings, strict=True):
            by_standing[standing].append(text)
        return ReceiptsRecord(
            good=tuple(by_standing["good"]),
            replaced=tuple(by_standing["replaced"]),
            stale=tuple(by_standing["stale"]),
            gone=tuple(by_standing["gone"]),
        )

    def _length(self, lease: Length | None) -> Span:
        return not_negative("lease", self._services.settings.inbox_lease if lease is None else lease)

    async def _check_receiver(self, session_id: str) -> None:
        """Raise IllegalMove for a session that an agent of ours drives: what it is told goes into its transcript."""
        check_texts(session_id=session_id)
        session = await self._session(session_id)
        if session.agent is not None or session.parent_task_id is not None:
            who = "the task that opened it" if session.agent is None else f"its agent {session.agent!r}"
            raise IllegalMove(
                f"what {session_id} is told is for {who}; an outside agent receives in a session without an agent"
            )

    async def _session(self, session_id: str) -> Session:
        session = await self._services.views.session(session_id)
        if session is None:
            raise NotFound.of("session", session_id)
        return session


class SessionInbox:
    """The inbox of one session: the verbs of `Inbox`."""

    __slots__ = ("_inbox", "_session_id")

    def __init__(self, services: Services, session_id: str) -> None:
        self._inbox = Inbox(services)
        self._session_id = session_id

    async def list(self, *, limit: int = 100) -> builtins.list[InboxRecord]:
        """Return what the session has yet to be told, and leave it there."""
        return await self._inbox.list(self._session_id, limit=limit)

    async def receive(
        self, *, wait: Length | None = None, lease: Length | None = None, limit: int = 100
    ) -> builtins.list[InboxRecord]:
        """Receive what it is told; see `Inbox.receive`."""
        return await self._inbox.receive(self._session_id, wait=wait, lease=lease, limit=limit)

    async def acknowledge(self, receipts: Sequence[str]) -> ReceiptsRecord:
        """Say that what was received with these receipts is done; see `Inbox.acknowledge`."""
        return await self._inbox.acknowledge(self._session_id, receipts)

    async def renew(self, receipts: Sequence[str], *, lease: Length | None = None) -> ReceiptsRecord:
        """Keep what was received for longer, or give it back; see `Inbox.renew`."""
        return await self._inbox.renew(self._session_id, receipts, lease=lease)


def _receipt(text: str) -> Receipt:
    receipt = Receipt.of(text)
    if receipt is None:
        raise InvalidArguments(f"{text!r:.100} is no receipt; those are what `receive` gave with each entry")
    return receipt
