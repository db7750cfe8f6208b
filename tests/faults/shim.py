"""The shim between a program and libc: compiling it, and telling it what to do.

It notes what a program does to the files below one folder (`SHIM_ROOT`, into `SHIM_NOTES`), and through a mapped
file (`SHIM_CONTROL`) makes calls fail and moves the wall clock. Needs a C compiler and nothing else; without one the
tests skip. Syncs are noted and not made: what counts is what the notes say, not what this machine's disk does.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("shim.c")

WRITE, SYNC, TRUNCATE, READ = 1, 2, 4, 8
DATABASE, WAL, JOURNAL, FOLDER, OTHER = 1, 2, 4, 8, 16
DAY = 86_400


@cache
def library() -> Path:
    """The compiled shim. Skips the test where it cannot be had, and says why."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux"):
        pytest.skip("the shim speaks to Linux")  # its calls are the C library's there
    if compiler is None:
        pytest.skip("there is no C compiler for the shim; install cc, or name one in CC")
    folder = tempfile.mkdtemp(prefix="outrider-shim-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    built = Path(folder) / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(built), str(SOURCE), "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return built


class Control(ctypes.Structure):
    """The layout of `struct control`."""

    _fields_ = [
        ("clock_offset", ctypes.c_int64),
        ("countdown", ctypes.c_int64),
        ("kinds", ctypes.c_int64),
        ("files", ctypes.c_int64),
        ("error", ctypes.c_int64),
        ("times", ctypes.c_int64),
        ("failed", ctypes.c_int64),
        ("is_torn", ctypes.c_int64),
    ]


class Shim:
    """One shim: the folder it watches, its notes, and its control, which any process may change at any time."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self.notes = scratch / "notes"
        self._control = scratch / "control"
        self.root = root
        if not self._control.exists():
            self._control.write_bytes(bytes(Control(countdown=-1)))
        with self._control.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(Control))
        self.control = Control.from_buffer(self._map)

    @property
    def environment(self) -> dict[str, str]:
        """What a program's environment needs in order to run under it."""
        return {
            "LD_PRELOAD": str(library()),
            "SHIM_ROOT": str(self.root),
            "SHIM_NOTES": str(self.notes),
            "SHIM_CONTROL": str(self._control),
        }

    def fail(self, kinds: int, files: int, *, after: int = 0, times: int = 1, error: int = errno.EIO) -> None:
        """Let `after` matching calls pass, then let `times` fail (-1: all). Takes effect at once."""
        self.control.countdown = -1
        self.control.kinds, self.control.files = kinds, files
        self.control.error, self.control.times, self.control.failed = error, times, 0
        self.control.countdown = after

    def heal(self) -> None:
        """Let nothing fail any more."""
        self.control.countdown = -1

    @property
    def failed(self) -> int:
        """How many calls have failed since `fail`."""
        return int(self.control.failed)

    def jump(self, seconds: float) -> None:
        """Put the wall clock that many seconds ahead of the true one; negative: behind."""
        self.control.clock_offset = round(seconds * 1e9)
