"""What a task has done already: the positions of its journal, in the order the code comes to them.

A position is a verb's name, else verb and ordinal (`sleep:2`); a name used again gets a number (`index#2`). Code
that comes to a position finds what is journaled there, or nothing yet. Code that was changed so that it comes to
other positions than before is told so, as far as that can be known: see `Journal.enter`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outrider.core.errors import Failure
from outrider.core.events import Step

DOUBT = "!"
"""Marks positions that the runtime takes for itself, outside of the code's own order."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the journal and what it holds, None if the code came here for the first time."""

    name: str
    verb: str
    ordinal: int
    entry: Step | None


class Journal:
    """The journal of one attempt. `rows` are those of earlier attempts, in the order they were written."""

    def __init__(self, rows: Sequence[Step] = ()) -> None:
        self._rows = {row.position: row for row in rows}
        self._expected = [row.position for row in rows if DOUBT not in row.position]
        self._unvisited = set(self._expected)
        self._uses: dict[str, int] = {}
        self._next = max((row.ordinal for row in rows), default=0) + 1
        self.has_grown = False
        """Whether this attempt has journaled something new."""

    @property
    def is_replaying(self) -> bool:
        """Whether the code is still on ground that an earlier attempt covered."""
        return bool(self._unvisited) and not self.has_grown

    def enter(self, verb: str, name: str | None, *, alone: bool, scope: str = "") -> Position:
        """Come to the next position of a verb, within a scope that has an order of its own.

        Raises Failure of kind `interrupted` if the journal holds another verb there, or if the code runs `alone`
        (no other branch is under way) and comes to a new position while old ones were not visited.
        """
        stem = scope + (name or verb)
        use = self._uses[stem] = self._uses.get(stem, 0) + 1
        position = (stem if use == 1 else f"{stem}#{use}") if name else f"{stem}:{use}"
        entry = self._rows.get(position)
        if entry is not None:
            if entry.verb != verb:
                raise _changed(f"{entry.verb} {position!r}", f"{verb} {position!r}")
            self._unvisited.discard(position)
        elif alone and not scope and self._unvisited and not self.has_grown:
            expected = next(each for each in self._expected if each in self._unvisited)
            raise _changed(f"{self._rows[expected].verb} {expected!r}", f"{verb} {position!r}")
        return self._position(position, verb, entry)

    def own(self, position: str, verb: str) -> Position:
        """Come to a position that the runtime keeps for itself, outside of the code's order."""
        return self._position(position, verb, self._rows.get(position))

    def at(self, position: str) -> Step | None:
        """What is journaled at a position that the runtime keeps for itself."""
        self._unvisited.discard(position)
        return self._rows.get(position)

    def note(self, step: Step) -> None:
        """Remember a row that was just written."""
        self._rows[step.position] = step
        self.has_grown = True

    def forget(self, prefix: str) -> None:
        """Forget the rows whose position starts with a prefix, as the store just did."""
        for position in [each for each in self._rows if each.startswith(prefix)]:
            del self._rows[position]
            self._unvisited.discard(position)

    def holds(self, verb: str) -> bool:
        """Whether any position is of that verb."""
        return any(row.verb == verb for row in self._rows.values())

    def of(self, verb: str) -> list[Step]:
        """All rows of a verb, in order."""
        return sorted((row for row in self._rows.values() if row.verb == verb), key=lambda row: row.ordinal)

    def _position(self, position: str, verb: str, entry: Step | None) -> Position:
        if entry is not None:
            return Position(position, verb, entry.ordinal, entry)
        ordinal, self._next = self._next, self._next + 1
        return Position(position, verb, ordinal, None)


def _changed(journaled: str, met: str) -> Failure:
    return Failure(
        f"the code has changed since this task began: its journal has {journaled}, the code came to {met}; "
        "run it with the code it began with, or retry it as a new task",
        kind="interrupted",
        details={"journaled": journaled, "met": met},
    )
