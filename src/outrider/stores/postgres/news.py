"""News between processes: what each commit concerns, told by NOTIFY on a connection of its own.

Never in the writing transaction: notifications are queued under one lock of the whole server. What several commits
concern is told in one. News may be lost while the connection is broken; so now and then this looks whether somebody has
written. It looks at the server's clock as well. Who shares the server's connections by a pooler hears nothing, and only
looks, several times a second; it tells what it does all the same, to those who hear.

Now and then it also ends the transactions of those who were stopped or cut off in the middle of one: the locks that
they hold would keep others from going on with their work.
"""

from __future__ import annotations

import asyncio
import math
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import orjson
import psycopg

from outrider.core.errors import StoreError
from outrider.core.ledger import Signal, rise
from outrider.stores.postgres.clock import ServerClock
from outrider.stores.postgres.database import Database, Link
from outrider.stores.postgres.statements import PostgresStatements

CHANNEL = "outrider"

ROOM = 7900
"""Bytes of a notification; the server takes fewer than 8000."""

NAMES, MOST = 150, 10
"""How many tasks and sessions one notification names, and how many are sent at once; what is more is told as "look"."""

BREATH = 0.002
"""Seconds between two notifications: what is committed meanwhile goes together."""

LOOK = 2.0
"""Seconds between two looks: at the log, lest something was not heard, at the server's clock, at who fell silent."""

SHARED_LOOK, LIVELY_LOOK = 0.25, 0.1
"""The same for who hears nothing and knows only by looking: at rest, and while there was news a moment ago."""

MOMENT = 1.0
"""Seconds since the last news for which more are to be expected."""

SILENCE = 2.0
"""Seconds that a transaction may wait for its client: shorter than a lease, and than others wait for its locks."""

PAUSE = 0.5
"""Seconds between two attempts to connect."""

_UNKNOWN = Signal(unknown=True)


class News:
    """Tells other processes of our commits, and `hear`s of theirs, on `loop`."""

    def __init__(
        self,
        database: Database,
        clock: ServerClock,
        loop: asyncio.AbstractEventLoop,
        hear: Callable[[Signal], None],
    ) -> None:
        self._database = database
        self._clock = clock
        self._loop = loop
        self._hear = hear
        self._pending: list[Signal] = []
        self._wakes, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._is_closed = False
        self._seen: int | None = None
        self._news_at = -MOMENT
        self._own: Callable[[], int] = lambda: 0
        self._thread = threading.Thread(target=self._run, name="outrider-news", daemon=True)

    def start(self, own: Callable[[], int]) -> None:
        """Begin to listen. `own` tells under which number this process writes."""
        self._own = own
        self._thread.start()

    def tell(self, signal: Signal) -> None:
        """Tell others of a commit, soon. From any thread."""
        if signal.task_ids or signal.session_ids or signal.ready or signal.follow_ups:
            self._pending.append(signal)
            self._ring()

    def close(self) -> None:
        """Tell what is left, and let go of the connection. Blocks; safe to repeat."""
        self._is_closed = True
        self._ring()
        self._thread.join()
        with self._lock:
            if self._wake >= 0:
                os.close(self._wakes)
                os.close(self._wake)
                self._wake = -1

    def _ring(self) -> None:
        with self._lock, suppress(BlockingIOError):
            if self._wake >= 0:
                os.write(self._wake, b"\0")

    # --- the thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._is_closed:
            try:
                with self._database.connect() as connection, self._database.errors():
                    if not connection.is_shared:
                        connection.execute(f"listen {CHANNEL}")
                    self._seen = None  # what happened until now was not heard
                    self._serve(connection)
            except (StoreError, psycopg.Error):
                self._pending.clear()
                self._rest(PAUSE)

    def _serve(self, connection: Link) -> None:
        statements = PostgresStatements(connection)
        own = self._clock.look(lambda: statements.row("moment"))
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        poll.register(self._wakes, select.POLLIN)
        look_at, end_at = 0.0, time.monotonic() + LOOK
        while True:
            poll.poll(max(0.0, look_at - time.monotonic()) * 1000)
            self._drain()
            for notice in connection.notifies(timeout=0):
                if notice.pid != own:
                    self._say(_read(notice.payload))
            if self._pending:
                pending, self._pending = self._pending, []
                for payload in _write(pending):
                    connection.execute("select pg_notify(%s, %s)", [CHANNEL, payload])
                self._news_at = time.monotonic()
                self._rest(BREATH)
            if self._is_closed and not self._pending:
                return
            if time.monotonic() >= end_at:
                statements.run("end_silent", SILENCE)
                end_at = time.monotonic() + LOOK
            if time.monotonic() >= look_at:
                self._look(statements)
                look_at = math.inf
            look_at = min(look_at, time.monotonic() + self._pause(connection))

    def _look(self, statements: PostgresStatements) -> None:
        seen = self._clock.look(lambda: statements.row("written", self._own()))
        if seen != self._seen:
            self._seen = seen
            self._news_at = time.monotonic()
            self._say(_UNKNOWN)

    def _pause(self, connection: Link) -> float:
        if not connection.is_shared:
            return LOOK
        return LIVELY_LOOK if time.monotonic() < self._news_at + MOMENT else SHARED_LOOK

    def _say(self, signal: Signal) -> None:
        with suppress(RuntimeError):  # the loop is closed, so nobody listens any more
            self._loop.call_soon_threadsafe(self._hear, signal)

    def _rest(self, seconds: float) -> None:
        if not self._is_closed:
            time.sleep(seconds)

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._wakes, 4096):
                pass


def _write(signals: Sequence[Signal]) -> list[str]:
    """Several signals in as few notifications as hold them; one that says "look" where those would be too many."""
    moved: dict[str, int] = {}
    for signal in signals:
        rise(moved, signal.moved)
    deadlines = [signal.deadline_at for signal in signals if signal.deadline_at is not None]
    touched = frozenset().union(*(signal.task_ids for signal in signals)) - moved.keys()
    sessions = frozenset().union(*(signal.session_ids for signal in signals))
    rest = [any(signal.ready for signal in signals), any(signal.follow_ups for signal in signals)]
    names = [*moved, *touched, *sessions]
    written = []
    for first in range(0, max(len(names), 1), NAMES):
        some = frozenset(names[first : first + NAMES])
        data = orjson.dumps(
            [
                {id: version for id, version in moved.items() if id in some},
                [list(touched & some), list(sessions & some)],
                *rest,
                min(deadlines, default=None),
            ]
        )
        written.append(data.decode())
    return written if len(written) <= MOST and all(len(each) <= ROOM for each in written) else [""]


def _read(payload: str) -> Signal:
    try:
        moved, (touched, sessions), ready, follow_ups, deadline_at = orjson.loads(payload)
    except ValueError:  # nothing, or what another version of this program wrote
        return _UNKNOWN
    return Signal(
        frozenset((*moved, *touched)),
        moved,
        frozenset(sessions),
        ready,
        follow_ups,
        foreign=True,
        deadline_at=deadline_at,
    )
