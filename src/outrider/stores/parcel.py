"""A Change packed for its rows: everything that can be encoded without knowing what is stored.

Packing happens where the Change is handed over, so that what cannot be encoded fails its caller and nobody
who shares the transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from outrider.core.change import Change, LogType
from outrider.stores.rows import CORE, INPUT, LIVE, NO_OUTCOME, OUTCOME, encode, moved, write_snapshot


@dataclass(slots=True, eq=False)
class Parcel:
    """One Change and the columns and documents it will write. `columns` are those of `rows.MOVED`."""

    change: Change
    columns: tuple[Any, ...]
    core: str | None
    outcome: str | None
    live: str | None
    input: str | None
    events: list[tuple[LogType, str]]


def pack(change: Change) -> Parcel:
    """Pack a Change. Raises TypeError for what is not JSON."""
    task = change.task
    return Parcel(
        change,
        moved(task.core),
        CORE.write(task.core),
        None if task.outcome is NO_OUTCOME else OUTCOME.write(task.outcome),
        LIVE.write(task.live) if change.live_changed else None,
        None if change.before is not None else INPUT.write(task.input),
        [
            (event.type, write_snapshot(task, event.data) if event.type == "task.created" else encode(event.data))
            for event in change.events
        ],
    )
