"""One transaction among others: what is locked so that nobody changes it meanwhile, and what is numbered last.

Locks are waited for in one order: limits and pauses, tasks by number, follow-ups, concurrency keys, sessions by number.
What is needed out of turn is taken only where nobody else holds it. So no two transactions wait for each other, but for
two that insert the same key; the server ends one of those, and it is done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outrider.core.values import Instant
from outrider.stores.batch import Batch, KeyHead, Known, Look, Ready, SessionHead, Wanted, spent_of
from outrider.stores.parcel import Parcel
from outrider.stores.postgres.statements import PostgresStatements
from outrider.stores.rows import encode
from outrider.stores.statements import listed

SHIFT = 20
"""How many bits of a position are the place of an entry in its transaction; see `news` in the queries."""

BLOCK = 64
"""How many numbers are given out at once; the `increment` of their sequences."""


class Again(Exception):
    """What was looked up is no longer so; the transaction has to begin anew."""


class Numbers:
    """Numbers that this process may give to new tasks and sessions. What is left of them at its end is lost."""

    def __init__(self) -> None:
        self._left: dict[str, range] = {}

    def next(self, name: str, statements: PostgresStatements) -> int:
        """The next number."""
        left = self._left.get(name)
        if not left:
            (first,) = statements.row(name)
            left = range(first, first + BLOCK)
        self._left[name] = left[1:]
        return left[0]


class PostgresBatch(Batch):
    """A `Batch` beside other writers. It knows only what it has looked up itself, under locks."""

    def __init__(self, statements: PostgresStatements, numbers: Numbers, first_position: int) -> None:
        super().__init__(statements, Known())
        self._own = statements
        self._numbers = numbers
        self._position = first_position
        self._has_gates = False

    # --- locks -------------------------------------------------------------------------------------------

    def keep_gates(self) -> None:
        """Have nobody change limits and pauses until the end."""
        if not self._has_gates:
            self._has_gates = True
            self._own.run("lock_gates_shared")

    def change_gates(self) -> None:
        """Have nobody else look at limits and pauses until the end, nor start anything by them."""
        self._has_gates = True
        self._own.run("lock_gates")

    def load(self, wanted: Wanted) -> None:
        """Look up what is wanted, and lock it."""
        if wanted.concurrency or wanted.is_held:
            self.keep_gates()
        # Who ends a parent tells its children: one must not come into being meanwhile, unseen.
        wanted.tasks |= wanted.new_of
        super().load(wanted)

    def load_keys(self, keys: set[str]) -> None:
        """Look up and lock concurrency keys, and the limits and pauses with them."""
        missing = keys - self._known.keys.keys()
        if not missing:
            return
        wanted = listed(missing)
        self._own.run("add_keys", wanted)
        while len(self._own.array("lock_keys", wanted)) < len(missing):
            self._own.run("add_keys", wanted)  # somebody has just pruned one
        for key, held, spent in self._own.array("held_of_keys", wanted):
            self._known.keys[key] = KeyHead(held, spent_of(spent))

    # --- claims ------------------------------------------------------------------------------------------

    def look(self, routes: str, size: int) -> Look:
        """All that a claim has to know. The tasks are locked, and those that others are at are left out."""
        ready = sorted(self._own.array("ready", routes, size))[:size]
        timed, deadline, follow_ups, opens_at = self._own.row("look", routes)
        return ready, timed, deadline, follow_ups, opens_at

    def ready_by(self, routes: str, size: int, now: Instant) -> list[Ready]:
        """The first ready tasks of these routes that are due by a moment, locked."""
        return sorted(self._own.array("ready_by", routes, size, now))[:size]

    # --- pruning -----------------------------------------------------------------------------------------

    def _empty_sessions(self, *named: str) -> list[Any]:
        # Locked first and looked at afterwards: a task may just have come into one.
        self._own.array("lock_sessions", *named)
        return super()._empty_sessions(*named)

    # --- writing -----------------------------------------------------------------------------------------

    def _number_task(self) -> int:
        return self._numbers.next("new_task_numbers", self._own)

    def _number_session(self) -> int:
        return self._numbers.next("new_session_numbers", self._own)

    def _session_created(self, session_id: str) -> None:
        """Nothing is known of pauses that would have to be forgotten."""

    def _input_row(self, number: int, parcel: Parcel) -> tuple[Any, ...]:
        labels = parcel.change.task.input.labels
        return number, parcel.input, encode(labels) if labels else None

    def _write_sessions(self, heads: Sequence[SessionHead]) -> None:
        """Add to the counters of sessions, and number what was counted on from where they stood when they were read."""
        rows = []
        for head in heads:
            seq, transcript, inbox = head.base
            added = (head.seq - seq, head.tail, head.transcript - transcript, head.inbox - inbox)
            rows.append((head.number, *added, head.updated_at))
        found = {row[0]: row for row in self._own.write_and_tell("update_sessions", rows).fetchall()}
        moved: dict[int, tuple[int, int, int]] = {}
        for head in heads:
            if (row := found.get(head.number)) is None:
                raise Again("a session was deleted")
            by = (row[1] - head.seq, row[2] - head.transcript, row[3] - head.inbox)
            if any(by):
                moved[head.number] = by
        nowhere = (0, 0, 0)
        if moved:
            self._events = [
                (session, seq + moved.get(session, nowhere)[0], *rest) for session, seq, *rest in self._events
            ]
            self._transcript = [
                (session, number + moved.get(session, nowhere)[1], *rest) for session, number, *rest in self._transcript
            ]
            for place, (session, task_id, seq, *rest) in self._inbox.items():
                self._inbox[place] = (session, task_id, seq + moved.get(session, nowhere)[2], *rest)
            for head in heads:
                _, head.seq, head.transcript, head.inbox = found[head.number]
        for head in heads:
            head.base = (head.seq, head.transcript, head.inbox)

    def _event_rows(self) -> list[tuple[Any, ...]]:
        rows = [(position, *row) for position, row in enumerate(self._events, self._position)]
        self._position += len(rows)
        return rows
