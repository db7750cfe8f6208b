"""From the log back to the record: the fold that expands an entry of a task's log into a full snapshot.

`task.created` holds the groups whole, `task.updated` and `task.progress` only what changed since, so a record
is the fold of its entries in the order of their `seq`. Everything here is decoded JSON, never a `Task`: a
reader in another language folds the same way. The one thing the log does not say is that a `timed` task's
moment has come (see `ledger`): `readiness` may read `timed` where the record has `ready`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from outrider.core.change import LogType
from outrider.core.values import JSON, JSONObject

Snapshot: TypeAlias = Mapping[str, Mapping[str, JSON]]
"""A task at one moment, as JSON: its groups `input`, `core`, `live` and `outcome`, each by field."""


def fold(before: Snapshot | None, type: LogType, data: JSONObject) -> Snapshot | None:
    """Return the task after one more entry of its log; `before` stays as it was.

    None where the log does not reach back to the task's creation: such a reader starts from the record.
    Entries that tell nothing of the record (a message, output) return `before`.
    """
    match type:
        case "task.created":
            return {group: dict(fields) for group, fields in data.items()}
        case "task.updated" if before is not None:
            return {group: {**fields, **data.get(group, {})} for group, fields in before.items()}
        case "task.progress" if before is not None:
            return {**before, "live": {**before["live"], **data}}
        case _:
            return before


def replay(entries: Iterable[tuple[LogType, JSONObject]]) -> Snapshot | None:
    """Fold the entries of one task, in the order of their `seq`; None if its creation is not among them."""
    snapshot: Snapshot | None = None
    for type, data in entries:
        snapshot = fold(snapshot, type, data)
    return snapshot
