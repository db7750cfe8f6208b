"""Runs one program and sees that it does not outlive whoever asked for it, however that one ends.

Started as a script by `tests.servers`: `guard.py FOLDER USER PROGRAM ARGUMENT...`. It writes the program's pid on a
line, then passes on each byte that it reads as a signal of that number. At the end of its input (its owner is gone) it
ends the program and removes the folder. It ends itself when nothing is left of the program: where the system lets it
(Linux), it kills what that one leaves behind. It is not `PR_SET_PDEATHSIG` alone: that one speaks of the thread that
forked, leaves no one to clean up, and is Linux's.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
PATIENCE = 10
LINUX = sys.platform.startswith("linux")


def main(folder: str, user: str, command: list[str]) -> int:
    """Run the command as that user (our own, if empty), to its end. Returns its status."""
    owner = os.getppid()
    if LINUX:  # what the program leaves behind becomes our child, to be waited for
        prctl(SET_CHILD_SUBREAPER, 1)
    program = start(command, folder, user)
    os.write(1, b"%d\n" % program.pid)
    is_orphaned = threading.Event()
    threading.Thread(target=watch, args=(program, owner, is_orphaned), daemon=True).start()
    status = program.wait()
    for child in children(os.getpid()) if LINUX else ():  # a connection that computes sees only later that it is alone
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:  # none of its processes is left when we end
            os.wait()
    if is_orphaned.is_set():
        shutil.rmtree(folder, ignore_errors=True)
    return status


def start(command: list[str], folder: str, user: str) -> subprocess.Popen[bytes]:
    """Start it in the folder, bound to our own life as well: somebody may kill us."""
    guard, entry = os.getpid(), pwd.getpwnam(user) if user else None

    def bind() -> None:  # after the change of user, which would undo it
        if LINUX:
            prctl(SET_PDEATHSIG, signal.SIGQUIT)
            if os.getppid() != guard:
                os._exit(1)

    return subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=2,
        user=entry and entry.pw_uid,
        group=entry and entry.pw_gid,
        extra_groups=[] if entry else None,
        preexec_fn=bind,
    )


def watch(program: subprocess.Popen[bytes], owner: int, is_orphaned: threading.Event) -> None:
    """Pass signals on until the owner is gone, then end the program."""
    try:
        # A child that the owner forked may hold the other end of our input: so the owner is looked for as well.
        while os.getppid() == owner:
            if select.select([0], [], [], 1)[0]:
                byte = os.read(0, 1)
                if not byte:
                    break
                program.send_signal(byte[0])
    finally:  # whatever went wrong here
        is_orphaned.set()
        program.send_signal(signal.SIGQUIT)  # PostgreSQL ends its children and removes its shared memory
        with suppress(subprocess.TimeoutExpired):
            program.wait(PATIENCE)
        program.kill()


def children(pid: int) -> list[int]:
    """The processes, on Linux, whose parent it is now."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat") as file:
            if int(file.read().rpartition(")")[2].split()[1]) == pid:  # "pid (name) state parent ..."
                found.append(int(name))
    return found


prctl: Callable[[int, int], int] = ctypes.CDLL(None).prctl if LINUX else lambda *_: 0

if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
