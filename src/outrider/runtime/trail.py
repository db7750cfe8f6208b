"""The audit log as it is written: one chain for each organization, in which every entry names the hash of the last.

Entry and head of a chain are written in one transaction, on condition that the head is the one that was read. So
several processes never fork a chain: whoever was slower reads the head again. What waits in one process goes in
together.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import orjson

from outrider.core.errors import StoreUnavailable
from outrider.core.ledger import Document, Ledger
from outrider.core.values import evolve
from outrider.runtime.clock import Clock

ENTRIES = "audit"
HEADS = "audit_heads"
BATCH = 200
"""How many entries one transaction writes at most."""
TRIES = 200
"""How often a head is read again that another process has moved. Each time one of them has come through."""
PAUSE = 0.01
"""Seconds until it is read again, at most."""
LONGEST = 500
"""Characters of a text in an entry."""
LONGEST_TARGET = 2000
"""Characters of one of its targets, which may name many things."""
ORIGIN = "0" * 64
"""What the first entry of a chain names as the hash before it."""


@dataclass(frozen=True, slots=True)
class Deed:
    """Something that was done, or refused, in an organization; see `AuditRecord`."""

    organization_id: str
    actor: Mapping[str, str]
    action: str
    outcome: str
    targets: Mapping[str, str] = field(default_factory=dict)
    request_id: str | None = None


_Waiting: TypeAlias = tuple[Deed, asyncio.Future[None]]


class Trail:
    """Writes the audit log of one store. Belongs to one loop."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self._writer: asyncio.Task[None] | None = None

    async def record(self, deed: Deed) -> None:
        """Write an entry; it is durable when this returns. Raises a StoreError."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((deed, written))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write(), name="outrider-audit")
        await written

    async def _write(self) -> None:
        try:
            while self._waiting:
                organization_id = self._waiting[0][0].organization_id
                together: list[_Waiting] = []
                others: list[_Waiting] = []
                for each in self._waiting:
                    is_one = each[0].organization_id == organization_id and len(together) < BATCH
                    (together if is_one else others).append(each)
                self._waiting = others
                try:
                    await self._append(organization_id, [deed for deed, _ in together])
                except Exception as refused:  # noqa: BLE001 - whatever it is, nobody waits for ever for what was not written
                    _settle(together, refused)
                except BaseException:
                    stopped, self._waiting = [*together, *self._waiting], []
                    _settle(stopped, StoreUnavailable("whoever writes the audit log was stopped"))
                    raise
                else:
                    _settle(together)
        finally:
            self._writer = None

    async def _append(self, organization_id: str, deeds: Sequence[Deed]) -> None:
        for _ in range(TRIES):
            head = await head_of(self._ledger, organization_id)
            number, previous, entries = head.data["number"], head.data["hash"], []
            for deed in deeds:
                number += 1
                entry = _entry(deed, number, self._clock.now(), previous)
                previous = entry["hash"]
                entries.append(Document(ENTRIES, id_of(organization_id, number), entry, organization_id))
            moved = evolve(head, data={**head.data, "number": number, "hash": previous})
            if await self._ledger.keep([moved, *entries]):
                return
            await asyncio.sleep(random.uniform(0, PAUSE))
        raise StoreUnavailable("the audit log is being written by too many at once")


def _settle(waiting: Sequence[_Waiting], error: Exception | None = None) -> None:
    for _, written in waiting:
        if not written.done():
            written.set_result(None) if error is None else written.set_exception(error)


async def head_of(ledger: Ledger, organization_id: str) -> Document:
    """Where a chain ends: the `number` and the `hash` of its last entry; and where it begins: what is `first`, and the
    hash before that, its `base`.
    """
    found = await ledger.views.document(HEADS, id=organization_id)
    beginning = {"number": 0, "hash": ORIGIN, "first": 1, "base": ORIGIN}
    return found or Document(HEADS, organization_id, beginning, organization_id)


def id_of(organization_id: str, number: int) -> str:
    """The id of an entry: those of a chain sort by their numbers."""
    return f"{organization_id}/{number:016d}"


def hash_of(organization_id: str, entry: Mapping[str, Any]) -> str:
    """The hash of an entry: SHA-256 over all of it but that, as JSON with its names in order and no blanks."""
    said = {name: value for name, value in entry.items() if name != "hash"}
    return hashlib.sha256(
        orjson.dumps({**said, "organization_id": organization_id}, option=orjson.OPT_SORT_KEYS)
    ).hexdigest()


def _entry(deed: Deed, number: int, at: int, previous: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "number": number,
        "at": at,
        "actor": {name: _plain(value) for name, value in deed.actor.items()},
        "action": _plain(deed.action),
        "targets": {_plain(name): _plain(value, LONGEST_TARGET) for name, value in deed.targets.items()},
        "outcome": _plain(deed.outcome),
        "request_id": None if deed.request_id is None else _plain(deed.request_id),
        "previous": previous,
    }
    return {**entry, "hash": hash_of(deed.organization_id, entry)}


def _plain(text: str, longest: int = LONGEST) -> str:
    """A text that every store keeps as it is, and that is not too long."""
    clean = text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"
