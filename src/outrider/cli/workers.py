"""Making sure that somebody runs a task after this command has ended.

A worker counts as alive when its lock is held: the kernel lets go of it however the process ends. A file locked by
whoever is starting a worker keeps ten commands in a row from starting ten.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from outrider.core.errors import InvalidArguments
from outrider.core.ledger import Ledger
from outrider.core.queue import split_route
from outrider.runtime.facade import Runtime
from outrider.runtime.lease import is_locked, lock_path, locks_of

FEW = 6
"""How many names of a kind a line has room for."""


def served(routes: Iterable[str]) -> str:
    """What a worker serves, to be read in a line: each kind once, with the first of its names and how many more."""
    kinds: dict[str, list[str]] = {}
    split = [split_route(route) for route in routes]
    for plain in dict.fromkeys(plain for plain, _ in split):
        kind, _, name = plain.partition(":")
        if name.startswith("+"):  # an agent with that tool: said by the tool
            continue
        kinds.setdefault(kind, []).extend([name] if name else [])
    said = []
    for kind, names in kinds.items():
        more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
        said.append(f"{kind} ({', '.join(names[:FEW])}{more})" if names else kind)
    labels = dict.fromkeys(label for _, label in split)
    need = "" if set(labels) <= {None} else f"; of what needs {' or '.join(label or 'no label' for label in labels)}"
    return ", ".join(said) + need


def check_shareable(ledger: Ledger) -> None:
    """Raise InvalidArguments for a store that no other process can open."""
    if locks_of(ledger) is None:
        raise InvalidArguments("a database in memory ends with this command; --background needs one in a file")


async def serves(runtime: Runtime, route: str) -> bool:
    """Whether a living worker of this machine runs tasks of that route."""
    locks = locks_of(runtime.ledger)
    host = os.uname().nodename
    return locks is not None and any(
        route in worker.routes and worker.host == host and is_locked(lock_path(locks, worker.id))
        for worker in await runtime.workers()
    )


async def ensure_worker(runtime: Runtime, route: str, apps: Sequence[str], idle_exit: float) -> Path | None:
    """Start a worker for the apps in the background unless one that serves the route lives or is being started.

    The task must have been written before: a worker that is about to leave looks once more after it has signed
    off. Returns where the new worker's output goes, None if none was started. None is for what needs a label: whether
    it is true of this machine is for who looks after it to say.
    """
    locks = locks_of(runtime.ledger)
    assert locks is not None, "see check_shareable"
    if split_route(route)[1] is not None:
        return None
    starting = _lock_of_start(locks, apps)
    if starting is None:
        return None
    try:
        if await serves(runtime, route):
            return None
        return _start(runtime.ledger, locks, apps, idle_exit, starting)
    finally:
        os.close(starting)


def _lock_of_start(locks: Path, apps: Sequence[str]) -> int | None:
    """The lock that one start of these apps takes, None while another has it."""
    locks.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256("\n".join([os.getcwd(), *apps]).encode()).hexdigest()[:16]
    fd = os.open(locks / f"starting-{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _start(ledger: Ledger, locks: Path, apps: Sequence[str], idle_exit: float, starting: int) -> Path:
    """Start a worker in a session of its own; it holds `starting` until it is registered."""
    beside = str(locks).removesuffix("-workers")
    log = Path(f"{beside}-worker.log")
    command = [sys.executable, "-m", "outrider.cli", "worker", f"--idle-exit={idle_exit}"]
    environment = dict(os.environ)
    if (url := getattr(ledger, "url", None)) is None:
        command += [f"--db={beside}"]
    else:  # it may hold a password, which everybody could read among the arguments
        environment["OUTRIDER_DB"] = url
    command += [f"--app={app}" for app in apps]
    # What is ignored stays ignored in the child, so a hang-up that somebody sends it does no harm (as with nohup).
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with open(log, "ab", opener=partial(os.open, mode=0o600)) as output:
            subprocess.Popen(
                [*command, f"--starting={starting}"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=(starting,),
            )
    finally:
        with suppress(TypeError):  # the handler before was not one of Python's
            signal.signal(signal.SIGHUP, before)
    return log
