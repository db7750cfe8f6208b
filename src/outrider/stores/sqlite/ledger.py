"""The SQLite store: one file, any number of processes on one machine, no server."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from outrider.core.change import Change
from outrider.core.events import FileWrite, Step
from outrider.core.ledger import (
    Claim,
    Claims,
    Decide,
    Listener,
    Order,
    OutputChunk,
    Page,
    Pruned,
    Report,
    Saved,
    Signal,
    Verdict,
    WorkerCard,
)
from outrider.core.session import NewSession, Session
from outrider.core.values import Instant
from outrider.stores.sqlite import operations
from outrider.stores.sqlite.file import DatabaseFile
from outrider.stores.sqlite.views import SqliteViews
from outrider.stores.sqlite.writer import Writer

SWITCH_INTERVAL = 0.0001
"""Seconds. See `SqliteLedger.open`."""


class SqliteLedger:
    """A `Ledger` in an SQLite file. Made by `open`; verbs may be called from any event loop of the process."""

    def __init__(self, file: DatabaseFile, views: SqliteViews) -> None:
        self._file = file
        self._views = views
        self._listeners: dict[object, Listener] = {}
        self._writer: Writer

    @classmethod
    async def open(cls, path: str | Path, *, lock_timeout: float = 5.0) -> SqliteLedger:
        """Open the database at `path`, creating it and its directory where they are missing.

        Brings the schema up to date. `lock_timeout` is how long, in seconds, to wait for others who keep it
        locked. Raises a StoreError that says what is wrong with the file. Signals arrive on the running loop.

        Lowers the interpreter's switch interval to 0.1 ms if it is longer. The writing thread gives up the
        interpreter's lock at each step of a statement; beside a busy event loop it gets it back only after an
        interval, and with the default of 5 ms was seen to starve for seconds.
        """
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL))
        file = DatabaseFile(path, lock_timeout)
        connection = await asyncio.to_thread(file.open)
        ledger = cls(file, SqliteViews(file))
        ledger._writer = Writer(
            file, connection, asyncio.get_running_loop(), ledger._tell, lambda: bool(ledger._listeners)
        )
        return ledger

    @property
    def path(self) -> Path:
        """The database file, absolute."""
        return self._file.path

    @property
    def views(self) -> SqliteViews:
        """The reading half."""
        return self._views

    @property
    def counters(self) -> Mapping[str, int]:
        """`commits` and `statements` of the writer since the store was opened."""
        return {"commits": self._writer.commits, "statements": self._writer.statements}

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` on the opening loop after each commit, ours or another process's."""
        key = object()
        self._listeners[key] = listener
        self._writer.listeners_changed()
        return lambda: self._listeners.pop(key, None) and None

    def _tell(self, signal: Signal) -> None:
        for listener in tuple(self._listeners.values()):
            listener(signal)

    async def create_session(self, new: NewSession) -> Session:
        """Create a session, or return the one of that id. Logs `session.created`."""
        return await self._writer.submit(operations.create_session(new))

    async def commit(self, changes: Sequence[Change]) -> Sequence[Verdict]:
        """Commit each Change whole or not at all, in the order given; one verdict for each."""
        return await self._writer.submit(operations.commit(changes))

    async def claim(self, claim: Claim, decide: Decide) -> Claims:
        """Take ready tasks that nobody holds, committing what `decide` makes of each; it runs in the writing thread."""
        return await self._writer.submit(operations.claim(claim, decide))

    async def control(self, order: Order) -> bool:
        """Set or remove a limit, pause or resume; False if all was so already."""
        return await self._writer.submit(operations.control(order))

    async def report(self, reports: Sequence[Report]) -> Sequence[bool]:
        """Write live values; False for each whose attempt no longer holds its task."""
        return await self._writer.submit(operations.report(reports))

    async def journal(self, steps: Sequence[Step]) -> Sequence[bool]:
        """Write journal rows, replacing those of the same position; False for each whose attempt is over."""
        return await self._writer.submit(operations.journal(steps))

    async def append(self, page: Page) -> bool:
        """Append a finished iteration; False, and nothing written, if the attempt is over."""
        return await self._writer.submit(operations.append(page))

    async def print(self, chunks: Sequence[OutputChunk]) -> Sequence[bool]:
        """Append output; False for each whose attempt is over."""
        return await self._writer.submit(operations.print(chunks))

    async def write_file(self, file: FileWrite, fence: tuple[str, int] | None = None) -> bool:
        """Write a file whole, replacing one of that path; False if the fencing (task id, attempt) is over.

        Raises NotFound when there is no such session.
        """
        return await self._writer.submit(operations.write_file(file, fence))

    async def delete_file(self, session_id: str, path: str) -> bool:
        """Delete a file; False if there was none."""
        return await self._writer.submit(operations.delete_file(session_id, path))

    async def register(self, card: WorkerCard) -> None:
        """Make a worker known."""
        await self._writer.submit(operations.register(card))

    def renew(self, worker_id: str, timeout: float) -> bool:
        """Advance the worker's beat, waiting at most `timeout` seconds. Called from a thread, never the loop.

        False when the worker is not registered any more; raises StoreUnavailable when time ran out.
        """
        return self._writer.call(operations.renew(worker_id, time.time_ns() // 1000), timeout)

    async def retire(self, worker_id: str) -> None:
        """Forget a worker. The tasks it held must have been settled before."""
        await self._writer.submit(operations.retire(worker_id))

    async def acknowledge(self, session_id: str, upto: int) -> int:
        """Mark inbox entries up to that seq as delivered; returns how many."""
        return await self._writer.submit(operations.acknowledge(session_id, upto))

    async def save(self, path: str, *, replace: bool = False) -> Saved:
        """Write all that was committed by now into a new file; see `Savable`."""
        from outrider.stores.sqlite.backup import save  # it takes 4 ms that nobody else needs

        return await asyncio.to_thread(save, self.path, Path(path), replace=replace)

    async def prune(
        self, task_ids: Sequence[str], session_ids: Sequence[str] = (), *, now: Instant | None = None
    ) -> Pruned:
        """Delete ended tasks whole, and sessions that have no task left; what lives is left as it is, silently."""
        return await self._writer.submit(operations.prune(task_ids, session_ids, now))

    async def close(self) -> None:
        """Finish what was handed over and let go of the database."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        # The writer last: whoever closes last copies the WAL into the file, and readers may not.
        self._views.close()
        self._writer.close()
        self._file.close()
