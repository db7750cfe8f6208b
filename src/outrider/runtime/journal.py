"""What a task has done already: the positions of its journal, in the order the code comes to them.

A position is a verb's name, else verb and ordinal (`sleep:2`); a name used again gets a number (`index#2`), one
inside a step the step's name before it (`publish › sleep:1`), and the step stands for those once it is done. Code
that comes to a position finds what is journaled there, or nothing yet. Code that was changed so that it comes to
other positions than before is told so, as far as that can be known: see `Journal.enter`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from outrider.core.errors import Failure, InvalidArguments
from outrider.core.events import Step

INSIDE = " › "
"""Between the position of a step and those of the verbs that its function uses."""

FAILED = "!"
"""After the verb of a position whose row is the error that it raised."""

OUTLIVES = "outlives"
"""The verb of a row about something that goes on without its worker. While it is not done, its loss is no failure."""

DOUBT = "!"
"""Marks positions that the runtime takes for itself, outside of the code's own order."""


Branch: TypeAlias = "asyncio.Task[Any] | None"
"""A line of the code that runs beside others: the asyncio task that it runs in, None for the main line."""


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
        self._inner: dict[str, list[str]] = {}
        for position in self._expected:
            outer, inside, _ = position.rpartition(INSIDE)
            while inside:
                self._inner.setdefault(outer, []).append(position)
                outer, inside, _ = outer.rpartition(INSIDE)
        self._uses: dict[str, int] = {}
        self._visited: set[str] = set()
        self._last_branch: dict[str, Branch] = {}
        self._failures: list[tuple[Position, Branch, Exception | asyncio.CancelledError]] = []
        self._owed: list[tuple[Position, Exception | asyncio.CancelledError]] = []
        self._next = max((row.ordinal for row in rows), default=0) + 1 if rows else 1
        self.has_grown = False
        """Whether this attempt has journaled something new."""

    @property
    def is_replaying(self) -> bool:
        """Whether the code is still on ground that an earlier attempt covered."""
        return bool(self._unvisited) and not self.has_grown

    def enter(self, verb: str, name: str | None, *, alone: bool, scope: str = "", branch: Branch = None) -> Position:
        """Come to the next position of a verb, within a scope that has an order of its own.

        `branch` is the asyncio task that comes here, None for the main line. Raises Failure of kind `interrupted` if
        the journal holds another verb there, or if the code runs `alone` (no other branch is under way) and comes to
        a new position while old ones were not visited; InvalidArguments if two branches use one name at a time,
        since which of them is first may be another one next time.
        """
        stem = scope + (name or verb)
        last = self._last_branch.get(stem)
        if last is not branch:
            if last is not None and not last.done():
                raise InvalidArguments(_AMBIGUOUS.format(verb=verb, name=f"named {name!r}" if name else "without name"))
            self._last_branch[stem] = branch
        while True:
            use = self._uses[stem] = self._uses.get(stem, 0) + 1
            position = (stem if use == 1 else f"{stem}#{use}") if name else f"{stem}:{use}"
            if position not in self._visited:  # a name may look like another one's number
                break
        self._visited.add(position)
        entry = self._rows.get(position)
        if entry is not None:
            if entry.verb.removesuffix(FAILED) != verb:
                raise changed(f"{entry.verb} {position!r}", f"{verb} {position!r}")
            self._unvisited.discard(position)
            if entry.done:
                self._unvisited.difference_update(self._inner.get(position, ()))
        elif position in self._inner:  # it was under way, and its inside has begun
            pass
        elif alone and not scope and self._unvisited and not self.has_grown:
            expected = next(each for each in self._expected if each in self._unvisited)
            raise changed(f"{self._rows[expected].verb} {expected!r}", f"{verb} {position!r}")
        return self._position(position, verb, entry)

    def failed(self, position: Position, branch: Branch, error: Exception | asyncio.CancelledError) -> None:
        """A verb raised, or was cancelled. If the code goes on all the same, `go_on` finds that owed to the journal."""
        row = self._rows.get(position.name)
        if row is None or not row.done:  # else it is what is journaled that raises, every time
            self._failures.append((position, branch, error))

    def go_on(self, has_handled: Callable[[Branch], bool]) -> None:
        """The code came to a position: the errors of the branches that `has_handled` names were handled."""
        handled = [failure for failure in self._failures if has_handled(failure[1])]
        self._failures = [failure for failure in self._failures if failure not in handled]
        self._owed.extend((position, error) for position, _, error in handled)

    @property
    def has_failures(self) -> bool:
        """Whether verbs have raised, and it is not known yet whether the code handles that."""
        return bool(self._failures)

    @property
    def owed(self) -> Sequence[tuple[Position, Exception | asyncio.CancelledError]]:
        """The errors that the code has handled and that are not journaled yet."""
        return tuple(self._owed)

    def own(self, position: str, verb: str) -> Position:
        """Come to a position that the runtime keeps for itself, outside of the code's order."""
        return self._position(position, verb, self._rows.get(position))

    def at(self, position: str) -> Step | None:
        """What is journaled at a position that the runtime keeps for itself."""
        self._unvisited.discard(position)
        return self._rows.get(position)

    def note(self, step: Step, *, is_progress: bool = True) -> None:
        """Remember a row that was just written."""
        self._rows[step.position] = step
        self._owed = [each for each in self._owed if each[0].name != step.position]
        self.has_grown = self.has_grown or is_progress

    def read(self, position: str) -> None:
        """The code has what a step returned, and does not come there again: do not hold it any longer."""
        self._rows[position] = replace(self._rows[position], value=None)

    def forget(self, prefix: str) -> None:
        """Forget the rows whose position starts with a prefix, as the store just did."""
        for position in [each for each in self._rows if each.startswith(prefix)]:
            del self._rows[position]
            self._unvisited.discard(position)

    def holds(self, verb: str) -> bool:
        """Whether any position is of that verb."""
        return any(row.verb == verb for row in self._rows.values())

    def under(self, prefix: str) -> list[Step]:
        """All rows whose position starts with a prefix, in order."""
        rows = (row for row in self._rows.values() if row.position.startswith(prefix))
        return sorted(rows, key=lambda row: row.ordinal)

    def of(self, verb: str) -> list[Step]:
        """All rows of a verb, in order."""
        return sorted((row for row in self._rows.values() if row.verb == verb), key=lambda row: row.ordinal)

    def _position(self, position: str, verb: str, entry: Step | None) -> Position:
        if entry is not None:
            return Position(position, verb, entry.ordinal, entry)
        ordinal, self._next = self._next, self._next + 1
        return Position(position, verb, ordinal, None)


_AMBIGUOUS = (
    "two branches of this task's code use {verb} {name} at the same time; a resumed task could not tell them apart: "
    "give each a name of its own"
)


def has_handled(failed: Branch, branch: Branch, parents: Mapping[asyncio.Task[Any], Branch], main: Branch) -> bool:
    """Whether a branch that goes on has dealt with an error that another one, or itself, raised.

    `parents` tells which task started which, `main` is the task of the main line.
    """
    if failed is branch:
        return True
    if failed is None or not failed.done() or getattr(failed, "_log_traceback", False):
        return False  # nobody has been told of it yet
    parent: Branch = failed
    while parent is not None and (parent := parents.get(parent)) is not None and parent is not main:
        if parent is branch:
            return True
    return branch is None


def changed(journaled: str, met: str) -> Failure:
    """The error of code that came to a position which its journal does not have, and not to one that it has."""
    return Failure(
        f"the code has changed since this task began: its journal has {journaled}, the code came to {met}; "
        "run it with the code it began with, or retry it as a new task",
        kind="interrupted",
        details={"journaled": journaled, "met": met},
    )
