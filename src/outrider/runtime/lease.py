"""A worker's right to hold tasks: a lock on a file, a beat in the store, and a thread that keeps both honest.

The lock tells processes of the same machine at once that this one is dead; the kernel lets go of it however the
process ends. The beat is a counter that tells everybody else: whoever has not seen it change for the lease's
time, by its own monotonic clock, takes its holder for lost. No wall clock takes part.

The thread also watches the event loop. A loop that is blocked is named with its stack; past the stall limit the
process ends, and leaves a will that says whose fault it was.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from outrider.core.errors import StoreError
from outrider.core.ledger import Ledger, Worker, WorkerCard
from outrider.runtime.forked import forget, keep_from_forks
from outrider.runtime.log import log
from outrider.settings import WorkerSettings

EXIT_CODE = 70
"""What a process ends with that could not renew its lease or was blocked for too long (`EX_SOFTWARE`)."""

YOUNG = 10.0
"""Seconds in which a lock may have been made and not be held yet."""


class Lock:
    """A lock on a file that lasts as long as this process, and no longer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = _locked(path)
        while not _is_there(path, self._fd):  # it was swept away before it was locked
            os.close(self._fd)
            self._fd = _locked(path)
        keep_from_forks(self)

    def release(self, *, leaves_it: bool = False) -> None:
        """Let go, and take the file away; or leave it to show that its worker is dead."""
        forget(self)
        if not leaves_it:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)

    def disown(self) -> None:
        """In a forked copy of this process: the lock is not its own, and must not last as long as it."""
        os.close(self._fd)


def _locked(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def _is_there(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def locks_of(ledger: Ledger) -> Path | None:
    """The folder on this machine for the locks of a store's workers; None for one in memory."""
    beside = getattr(ledger, "beside", None)
    return None if beside is None else Path(f"{beside}-workers")


def lock_path(locks: Path, worker_id: str) -> Path:
    """Where the lock of a worker is."""
    return locks / f"{worker_id}.lock"


def is_locked(path: Path) -> bool:
    """Whether a living process of this machine holds the lock. A file that is gone is not locked.

    Raises OSError where that cannot be told: who takes a living one for dead does its work a second time.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def sweep(locks: Path, known: Collection[str]) -> None:
    """Delete the locks that nobody holds and no known worker had: of one that died before it was known, say.

    One that was made just now is let be: whoever makes it has yet to lock it.
    """
    for lock in locks.glob("*.lock"):
        with suppress(FileNotFoundError):
            if lock.stem not in known and time.time() - lock.stat().st_mtime > YOUNG and not is_locked(lock):
                Will.discard(lock)
                lock.unlink()


@dataclass(frozen=True, slots=True)
class Will:
    """What a process that ends itself leaves to its heirs: which task blocked it, and where."""

    task_id: str | None
    reason: str

    @classmethod
    def read(cls, lock: Path) -> Will | None:
        """The will beside a lock, if there is one."""
        try:
            return cls(**json.loads(_will(lock).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, lock: Path) -> None:
        """Leave it beside the lock."""
        _will(lock).write_text(json.dumps({"task_id": self.task_id, "reason": self.reason}))

    @staticmethod
    def discard(lock: Path) -> None:
        """Take it away once it was carried out."""
        _will(lock).unlink(missing_ok=True)


def _will(lock: Path) -> Path:
    return lock.with_suffix(".will")


@dataclass(frozen=True, slots=True)
class Watched:
    """What the thread asks of the worker it watches, and tells it. All may be called from the thread."""

    loop: asyncio.AbstractEventLoop
    culprit: Callable[[], str | None]
    """The task whose code runs on the loop this very moment."""
    is_holding: Callable[[], bool]
    """Whether work is still running."""
    on_lost: Callable[[], None]
    """Others took this worker for lost, or will: stop all work."""
    end: Callable[[int], None]


class LeaseThread(threading.Thread):
    """Renews the lease of one worker and watches its loop."""

    def __init__(
        self, ledger: Ledger, worker_id: str, settings: WorkerSettings, lock: Path | None, watched: Watched
    ) -> None:
        super().__init__(name=f"lease-{worker_id[-8:]}", daemon=True)
        self._ledger = ledger
        self._worker_id = worker_id
        self._settings = settings
        self._lock = lock
        self._watched = watched
        self._halt = threading.Event()
        self._loop_thread = threading.get_ident()
        self._pulse = self._renewed = time.monotonic()
        self._pulse_asked = False
        self._named = False
        self._lost_at: float | None = None

    @property
    def age(self) -> float:
        """Seconds since the lease was last renewed."""
        return time.monotonic() - self._renewed

    def stop(self) -> None:
        """End the thread; it is gone when this returns."""
        self._halt.set()
        if self.is_alive() and threading.current_thread() is not self:
            self.join(timeout=5)

    def run(self) -> None:
        """Beat until told to stop."""
        next_renewal = time.monotonic() + self._settings.lease.renew
        tick = min(0.25, self._settings.lease.renew / 2, self._settings.stall_named / 2)
        before = time.monotonic()
        while not self._halt.wait(tick):
            if time.monotonic() - before > tick + self._settings.stall_named:
                # This thread got no turn either: the process was stopped, or the machine slept. Nobody is to blame.
                self._pulse_asked = False
                next_renewal = 0.0
            self._watch_loop()
            if time.monotonic() >= next_renewal and self._lost_at is None:
                self._renew()
                next_renewal = time.monotonic() + self._settings.lease.renew
            self._consider_lease()
            before = time.monotonic()

    def _renew(self) -> None:
        begun = time.monotonic()  # others may have seen the beat long before we hear of it
        try:
            held = self._ledger.renew(self._worker_id, timeout=self._settings.lease.renew)
        except Exception as error:  # noqa: BLE001 - whatever it is, the lease is not renewed, and that is to be seen to
            log.warning("lease not renewed", worker=self._worker_id, reason=str(error))
            if isinstance(error, StoreError) and error.is_final:
                self._lose()
            return
        if held:
            self._renewed = begun
        else:
            self._lose()

    def _consider_lease(self) -> None:
        now, lease = time.monotonic(), self._settings.lease
        if self._lost_at is None and now - self._renewed >= lease.cancel:
            self._lose()
        if self._lost_at is not None and now - self._lost_at >= lease.end - lease.cancel and self._watched.is_holding():
            log.error("work goes on although the lease is lost; ending the process", worker=self._worker_id)
            self._watched.end(EXIT_CODE)

    def _lose(self) -> None:
        self._lost_at = time.monotonic()
        self._call(self._watched.on_lost)

    def _watch_loop(self) -> None:
        now = time.monotonic()
        if not self._pulse_asked:
            self._pulse_asked = True
            self._pulse = now
            self._named = False
            self._call(self._on_pulse)
            return
        blocked = now - self._pulse
        if blocked >= self._settings.stall_named and not self._named:
            self._named = True
            log.warning(
                "event loop blocked", seconds=round(blocked, 1), task=self._watched.culprit(), stack=self._stack()
            )
        if blocked >= self._settings.stall_limit and self._watched.is_holding():
            reason = f"its code blocked the event loop for {blocked:.0f} s"
            if self._lock is not None:
                with suppress(OSError):  # without a will everybody it held is charged, and goes on all the same
                    Will(self._watched.culprit(), reason).write(self._lock)
            log.error("event loop blocked for too long; ending the process", stack=self._stack())
            self._watched.end(EXIT_CODE)

    def _on_pulse(self) -> None:
        self._pulse_asked = False

    def _call(self, fn: Callable[[], None]) -> None:
        try:
            self._watched.loop.call_soon_threadsafe(fn)
        except RuntimeError:  # the loop is closed; so is the worker
            self._halt.set()

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._loop_thread)
        return "" if frame is None else "".join(traceback.format_stack(frame, limit=12))


def seen_alive(worker: Worker, ledger: Ledger) -> bool | None:
    """Whether a worker lives; None when that cannot be seen from this machine but by waiting for its beat."""
    locks = locks_of(ledger)
    return None if locks is None else seen_here(worker.card, locks, socket.gethostname(), ledger)


def seen_here(card: WorkerCard, locks: Path, host: str, ledger: Ledger) -> bool | None:
    """Whether a worker of the machine `host`, which is this one, lives; None where that cannot be seen.

    Two machines may have one name. Of a store that both can reach, a worker without a lock here is another's, for all
    that is known; of one in a file it is dead.
    """
    lock = lock_path(locks, card.id)
    if card.host != host or not (lock.exists() or hasattr(ledger, "path")):
        return None
    return is_locked(lock)


def boot_id() -> str:
    """What tells one run of this machine from the next; empty where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
