"""The process of an isolated tool, run by `isolation` as a fresh interpreter: a warden, and the tool as its child.

The warden never runs code of the tool and never blocks. It ends the tool's process group when it is told to, when
the tool itself has ended, and when the worker is gone, which it learns from the end of a pipe: nothing of a tool
outlives the attempt. What a reader would get wrong: the fork is of an interpreter that has no thread yet.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from contextlib import suppress

TERM, KILL = b"T", b"K"
"""What the worker tells the warden to send to the tool's process group."""

is_importing = False
"""Whether this is the process of a tool that imports the tool's module: no time to open a database."""


def main(life: int, talk: int) -> None:
    """Become the warden of a tool. `life` ends with the worker; over `talk` the tool speaks with it."""
    warden = os.getpid()
    awake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
    tool = os.fork()
    if tool == 0:
        os.setpgid(0, 0)
        for fd in (life, awake, waker):
            os.close(fd)
        _die_with(warden)
        _run(talk)
        return
    with suppress(PermissionError, ProcessLookupError):  # it has done so itself, or has ended already
        os.setpgid(tool, tool)
    os.close(talk)
    _hush()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    os._exit(_watch(tool, life, awake))


def _watch(tool: int, life: int, awake: int) -> int:
    """Wait until the tool has ended, end what it left behind, and tell the worker how it ended."""
    while True:
        if os.waitid(os.P_PID, tool, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            _send(tool, signal.SIGKILL)  # before it is reaped: until then nobody else has its number
            _, status = os.waitpid(tool, 0)
            try:
                os.write(life, json.dumps({"ended": os.waitstatus_to_exitcode(status)}).encode())
            except OSError:
                return 1
            return 0
        readable, _, _ = select.select([life, awake], [], [])
        if awake in readable:
            os.read(awake, 4096)
        if life in readable:
            try:
                order = os.read(life, 64)
            except OSError:
                order = b""
            _send(tool, signal.SIGTERM if order and KILL not in order else signal.SIGKILL)
            if not order:
                return 1


def _send(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nobody is left, or macOS says so of the dead
        os.killpg(group, number)


def _hush() -> None:
    """Let go of the tool's output, so that it ends with the tool."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the warden dies, where it can (Linux)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def _run(talk: int) -> None:
    from outrider.runtime.isolated_run import run

    code = 1
    try:
        code = run(talk)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)  # not by way of atexit: threads of the tool may not want to end
