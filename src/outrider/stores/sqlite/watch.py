"""Hearing of other processes without looking: the kernel tells when somebody writes to the WAL (Linux, inotify).

A look at the database every few milliseconds was two thirds of what a store at rest costs. What is written before
anybody listens stays in the kernel's queue, so nothing is missed between a last look and the wait.
"""

from __future__ import annotations

import os
import select
import threading
from contextlib import suppress
from pathlib import Path

_MASK = 0x2 | 0x4 | 0x400 | 0x800
"""IN_MODIFY; IN_ATTRIB, IN_DELETE_SELF and IN_MOVE_SELF, for a file that is deleted while somebody has it open."""
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
"""What `inotify_init1` calls IN_NONBLOCK and IN_CLOEXEC: the same numbers."""


class Watch:
    """Waits for a write to one file, or for somebody of this process who calls `wake`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._identity = _identity(path)
        self._changes = descriptor
        self._wakes, self._wake = os.pipe2(_FLAGS)
        self._lock = threading.Lock()
        self._is_closed = False
        self._poll = select.poll()
        self._poll.register(self._changes, select.POLLIN)
        self._poll.register(self._wakes, select.POLLIN)

    @classmethod
    def of(cls, path: Path) -> Watch | None:
        """Watch a file; None where the system cannot, or the file is not there."""
        import ctypes

        try:
            libc = ctypes.CDLL(None, use_errno=True)
            descriptor = libc.inotify_init1(_FLAGS)
        except (OSError, AttributeError):  # not Linux
            return None
        if descriptor < 0:
            return None
        if libc.inotify_add_watch(descriptor, os.fsencode(path), _MASK) < 0:
            os.close(descriptor)
            return None
        return cls(path, descriptor)

    @property
    def is_stale(self) -> bool:
        """Whether another file is there now, or none."""
        return self._identity is None or _identity(self._path) != self._identity

    def drain(self) -> None:
        """Forget what was written until now."""
        for descriptor in (self._changes, self._wakes):
            with suppress(BlockingIOError):
                while os.read(descriptor, 65536):
                    pass

    def wait(self, timeout: float) -> bool:
        """Wait for a write that was not forgotten, for `wake`, or for so many seconds; whether there was any."""
        return bool(self._poll.poll(timeout * 1000))

    def wake(self) -> None:
        """End a wait, or the next one. From any thread, and after it was closed: it does nothing then."""
        with self._lock, suppress(BlockingIOError):  # it is full of such calls already
            if not self._is_closed:  # else the number may be that of another file by now, and it would be written to
                os.write(self._wake, b"\0")

    def close(self) -> None:
        """Let go of it."""
        with self._lock:
            self._is_closed = True
            for descriptor in (self._changes, self._wakes, self._wake):
                os.close(descriptor)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
