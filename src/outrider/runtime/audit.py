"""The audit log: who did what, when, to which things, and what came of it; one for each organization.

Whoever can write the database can write a chain anew from any place on. What tells is a head that was kept elsewhere:
`verify` compares with one, and `head` is in what it returns.
"""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Mapping
from typing import Any

from outrider.core.errors import Forbidden, InvalidArguments, NotFound
from outrider.core.ledger import Document
from outrider.core.values import evolve
from outrider.runtime.clock import as_datetime
from outrider.runtime.options import Length, check_count, check_page, check_texts_if_given, not_negative
from outrider.runtime.records import AuditRecord, AuditVerdict
from outrider.runtime.services import Services
from outrider.runtime.trail import BATCH, ENTRIES, Deed, hash_of, head_of, id_of

PAGE = 1000
ANOTHER = "it is not the one whose hash was expected: the log was written anew"


class Audit:
    """The audit log of an organization; for operators, those of all."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def record(
        self,
        action: str,
        *,
        actor: Mapping[str, str],
        outcome: str = "ok",
        targets: Mapping[str, str] | None = None,
        request_id: str | None = None,
        organization_id: str | None = None,
    ) -> None:
        """Write an entry; it is durable when this returns. Texts are cut at 500 characters, targets at 2,000.

        Raises InvalidArguments for what is no text, and a StoreError.
        """
        owner = self._owner(organization_id)
        said = {"action": action, "outcome": outcome, **({} if request_id is None else {"request_id": request_id})}
        parts: tuple[tuple[str, Mapping[Any, Any]], ...] = (("", said), ("actor", actor), ("targets", targets or {}))
        for where, texts in parts:
            for name, value in texts.items():
                if not all(isinstance(each, str) for each in (name, value)):
                    raise InvalidArguments(f"{where} {name} is text, not {value!r:.100}".strip())
        await self._services.trail.record(Deed(owner, actor, action, outcome, targets or {}, request_id))

    async def list(
        self, *, organization_id: str | None = None, before: int | None = None, limit: int = 100
    ) -> builtins.list[AuditRecord]:
        """Return entries, the newest first, before the one of that number. Raises NotFound."""
        owner = self._owner(organization_id)
        if before is not None:
            check_count("before", before)
        found = await self._reach.views.documents(
            ENTRIES,
            below=id_of(owner, 0)[: len(owner) + 1],
            after=None if before is None else id_of(owner, before),
            limit=check_page(limit),
            newest_first=True,
        )
        return [_record(each) for each in found]

    async def verify(self, *, organization_id: str | None = None, expect_head: str | None = None) -> AuditVerdict:
        """Read the log from its beginning, and say which is the first entry that is not as it was written.

        `expect_head` is a `NUMBER:HASH` that was kept elsewhere: the entry of that number must still be that. One that
        was pruned can only be compared while it is the last that was: a log that has no more of it is not whole either.
        Without one, a log whose end was cut off together with its head, or that was written anew, is taken for whole.
        Raises NotFound, and Forbidden within the bounds of a session, where nothing of it is seen.
        """
        owner = self._owner_of_all(organization_id)
        check_texts_if_given(expect_head=expect_head)
        anchor = None if expect_head is None else _anchor(expect_head)
        head = (await head_of(self._reach.ledger, owner)).data
        expected, previous, read = head["first"], head["base"], 0

        def verdict(broken_at: int | None, reason: str | None) -> AuditVerdict:
            return AuditVerdict(
                organization_id=owner,
                is_whole=broken_at is None,
                entries=read,
                first=head["first"],
                last=head["number"],
                head=f"{head['number']}:{head['hash']}",
                broken_at=broken_at,
                reason=reason,
            )

        async for entry in self._entries(owner):
            number = int(entry.id.rpartition("/")[2])
            if number > head["number"]:
                break  # written since
            if number != expected:
                return verdict(expected, "it is missing")
            if entry.data["number"] != number:
                return verdict(number, f"it is the entry {entry.data['number']}, put in another's place")
            if entry.data["hash"] != hash_of(owner, entry.data):
                return verdict(number, "it was altered")
            if entry.data["previous"] != previous:
                altered = max(number - 1, head["first"])
                return verdict(altered, "it is not the one that the next was written after")
            if anchor is not None and anchor[0] == number and anchor[1] != entry.data["hash"]:
                return verdict(number, ANOTHER)
            expected, previous, read = number + 1, entry.data["hash"], read + 1
        if expected != head["number"] + 1:
            return verdict(expected, "it is missing, and all after it: the end was cut off")
        if previous != head["hash"]:
            return verdict(head["number"], "it is not the one that was written last")
        if anchor is not None and anchor[0] > head["number"]:
            return verdict(head["number"] + 1, f"it is missing: the end was cut off before {anchor[0]}")
        if anchor is not None and anchor[0] < head["first"] - 1:
            return verdict(anchor[0], "it is no longer kept, so it cannot be compared; compare with a later head")
        if anchor is not None and anchor[0] == head["first"] - 1 and anchor[1] != head["base"]:
            return verdict(anchor[0], ANOTHER)
        return verdict(None, None)

    async def prune(self, older_than: Length, *, organization_id: str | None = None) -> int:
        """Delete what is older than that, from the beginning, but the last entry; return how many went.

        What is left can be verified as before. The tasks and sessions of that time have a retention of their own.
        Raises NotFound, and Forbidden within the bounds of a session.
        """
        owner = self._owner_of_all(organization_id)
        before = self._services.clock.now() - not_negative("older_than", older_than)
        ledger, gone = self._reach.ledger, 0
        while True:
            head = await head_of(ledger, owner)
            found = await ledger.views.documents(ENTRIES, below=f"{owner}/", limit=BATCH)
            old = [each for each in found if each.data["at"] < before and each.data["number"] < head.data["number"]]
            if not old:
                return gone
            last = old[-1].data
            moved = evolve(head, data={**head.data, "first": last["number"] + 1, "base": last["hash"]})
            if await ledger.keep([moved], old):
                gone += len(old)

    @property
    def _reach(self) -> Services:
        return self._services.whole if self._services.is_operator else self._services

    def _owner(self, organization_id: str | None) -> str:
        check_texts_if_given(organization_id=organization_id)
        own = self._services.organization_id
        if organization_id not in (None, own) and not self._services.is_operator:
            raise NotFound.of("organization", str(organization_id))
        return organization_id or own

    def _owner_of_all(self, organization_id: str | None) -> str:
        """Whose log it is, for what concerns all of it."""
        bounds = self._services.bounds
        if bounds is not None and bounds.session_id is not None:
            raise Forbidden("the audit log is the organization's: that needs a key that is not of one session")
        return self._owner(organization_id)

    async def _entries(self, owner: str) -> AsyncIterator[Document]:
        after: str | None = None
        while True:
            page = await self._reach.views.documents(ENTRIES, below=f"{owner}/", after=after, limit=PAGE)
            for each in page:
                yield each
            if len(page) < PAGE:
                return
            after = page[-1].id


def _anchor(told: str) -> tuple[int, str]:
    number, colon, hashed = told.partition(":")
    if not colon or not (number.isascii() and number.isdigit() and len(number) < 19) or len(hashed) != 64:
        raise InvalidArguments(f"a head is NUMBER:HASH, as verify tells it, not {told!r:.100}")
    return int(number), hashed


def _record(document: Document) -> AuditRecord:
    data = document.data
    return AuditRecord(
        organization_id=document.organization_id,
        number=data["number"],
        at=as_datetime(data["at"]),
        actor=data["actor"],
        action=data["action"],
        targets=data["targets"],
        outcome=data["outcome"],
        request_id=data["request_id"],
        previous=data["previous"],
        hash=data["hash"],
    )
