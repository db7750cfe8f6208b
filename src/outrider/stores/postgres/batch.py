"""One transaction among others: what is locked so that nobody changes it meanwhile, and what is numbered last.

Locks are waited for in one order: limits and pauses, tasks by number, follow-ups, concurrency keys, meters, sessions by
number. What is needed out of turn is taken only where nobody else holds it. So no two transactions wait for each other,
but for two that insert the same key; the server ends one of those, and it is done again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outrider.core.events import FileWrite
from outrider.core.values import Instant
from outrider.stores.batch import Ask, Batch, Known, Look, Ready, SessionHead, Wanted
from outrider.stores.parcel import Parcel
from outrider.stores.postgres.statements import PostgresStatements
from outrider.stores.rows import encode
from outrider.stores.statements import NO_NUL, listed

NONE = "[]"

BLOCK = 1000
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


def searched(labels: Mapping[str, str]) -> str | None:
    """Labels as they are searched: with a name that nothing has for what no `jsonb` may hold."""
    clean = {name.replace("\0", NO_NUL): value.replace("\0", NO_NUL) for name, value in labels.items()}
    return encode(clean) if clean else None


class PostgresBatch(Batch):
    """A `Batch` beside other writers. It knows only what it has looked up itself, under locks."""

    def __init__(self, statements: PostgresStatements, numbers: Numbers) -> None:
        super().__init__(statements, Known())
        self._own = statements
        self._numbers = numbers
        self._told = 0
        self._has_gates = False
        self._gates: Any = None
        self._filed: set[int] = set()
        """The sessions, by number, that got a file: they must not be gone when this is committed."""

    # --- locks -------------------------------------------------------------------------------------------

    def keep_gates(self) -> None:
        """Have nobody change limits and pauses until the end."""
        if not self._has_gates:
            self._has_gates = True
            self._own.run("lock_gates_shared")
            self._gates = self._own.run("gates")

    def change_gates(self) -> None:
        """Have nobody else look at limits and pauses until the end, nor start anything by them."""
        self._has_gates = True
        self._own.run("lock_gates")

    def _read_gates(self) -> Any:
        asked, self._gates = self._gates, None
        return super()._read_gates() if asked is None else asked.fetchone()[0]

    def load(self, wanted: Wanted) -> None:
        """Look up what is wanted, and lock it."""
        if wanted.concurrency or wanted.is_held:
            self.keep_gates()
        # Who ends a parent tells its children: one must not come into being meanwhile, unseen.
        wanted.tasks |= wanted.new_of
        super().load(wanted)

    def _ask_keys(self, keys: set[str], ask: Ask) -> None:
        if missing := keys - self._known.keys.keys():
            wanted = listed(missing)

            def take_locked(rows: list[Any]) -> None:
                if len(rows) < len(missing):
                    raise Again("somebody has just pruned a concurrency key")

            ask("add_keys", wanted, lambda _: None)
            ask("lock_keys", wanted, take_locked)
            super()._ask_keys(keys, ask)

    def _ask_meters(self, names: set[str], ask: Ask) -> None:
        wanted = listed(names)

        def take_locked(rows: list[Any]) -> None:
            if len(rows) < len(names):
                raise Again("somebody has just pruned a meter")
            self._take_meters(rows)

        ask("add_meters", wanted, lambda _: None)
        ask("lock_meters", wanted, take_locked)

    # --- claims ------------------------------------------------------------------------------------------

    def look(self, routes: str, size: int) -> Look:
        """All that a claim has to know. The tasks are locked, and those that others are at are left out."""
        asked, rest = self._own.run("ready", routes, size), self._own.run("look", routes)
        ready = sorted(asked.fetchall())[:size]
        timed, deadline, follow_ups, opens_at = rest.fetchall()[0]
        return ready, timed, deadline, follow_ups, opens_at

    def ready_by(self, routes: str, size: int, now: Instant) -> list[Ready]:
        """The first ready tasks of these routes that are due by a moment, locked."""
        return sorted(self._own.array("ready_by", routes, size, now))[:size]

    # --- inboxes -----------------------------------------------------------------------------------------

    def _keep_inbox(self, session_id: str) -> None:
        """Whoever writes to an inbox has its session."""
        self._own.run("lock_session", session_id)

    # --- files -------------------------------------------------------------------------------------------

    def write_file(self, file: FileWrite, fence: tuple[str, int] | None = None) -> bool:
        """Write a file whole. Whoever deletes its session, or what is in it, waits for this or is waited for."""
        is_written = super().write_file(file, fence)
        if is_written:
            head = self._sessions[file.session_id]
            self._touched[head.number] = head
            self._filed.add(head.number)
        return is_written

    # --- documents ---------------------------------------------------------------------------------------

    def _keep_documents(self) -> None:
        """One at a time: the only lock of its transaction, so nobody waits for another in a circle."""
        self._own.run("lock_documents")

    # --- pruning -----------------------------------------------------------------------------------------

    def _keep_sessions(self, ids: str, task_ids: str, numbers: str) -> None:
        """Have nobody write to these sessions: a task may just be coming into one that seems empty."""
        self._own.array("lock_sessions", ids, task_ids, numbers)

    def _kept_session(self, session_id: str) -> SessionHead:
        self._keep_sessions(listed([session_id]), NONE, NONE)
        self._sessions.pop(session_id, None)  # it may have been closed since it was looked up
        self._take_sessions(self._own.array("session_heads", listed([session_id])))
        return super()._kept_session(session_id)

    # --- writing -----------------------------------------------------------------------------------------

    def _number_task(self) -> int:
        return self._numbers.next("new_task_numbers", self._own)

    def _number_session(self) -> int:
        return self._numbers.next("new_session_numbers", self._own)

    def _session_created(self, head: SessionHead) -> None:
        self._touched[head.number] = head  # its first entry is numbered like all that follow

    def _input_row(self, number: int, parcel: Parcel) -> tuple[Any, ...]:
        return number, parcel.input, searched(parcel.change.task.input.labels)

    def _write_log(self) -> None:
        """Say what is to be added to where sessions stand by now, which others may have moved since it was read."""
        heads = [self._touched[number] for number in sorted(self._touched)]
        stood = {head.number: (place, *head.base) for place, head in enumerate(heads, 1)}
        added = [
            (
                head.number,
                head.seq - head.base[0],
                head.transcript - head.base[1],
                head.inbox - head.base[2],
                head.updated_at,
                head.number in self._needs_open,
            )
            for head in heads
        ]
        events = [
            (place, stood[session][0], session, seq - stood[session][1], *rest)
            for place, (session, seq, *rest) in enumerate(self._events, self._told)
        ]
        transcript = [
            (stood[session][0], session, number - stood[session][2], *rest)
            for session, number, *rest in self._transcript
        ]
        inbox = [
            (stood[session][0], session, id, seq - stood[session][3], *rest)
            for session, id, seq, *rest in self._inbox.values()
        ]
        self._told += len(events)
        self._own.write_all("write_log", added, events, transcript, inbox)
        if filed := self._filed.difference(session for _, _, session, *_ in events):
            if len(self._own.array("kept_sessions", listed(filed))) < len(filed):
                raise Again("a session has just been deleted into which a file is written")
            self._filed.clear()
        for head in heads:
            head.base = (head.seq, head.transcript, head.inbox)
