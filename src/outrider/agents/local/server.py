"""Finding the server of the `local` model, and starting it where there is none.

One server serves every worker of a user on a machine. It belongs to none of them: it outlives the one that started
it. Locks tell who is there, since the kernel lets go of them however a process ends: the server holds `LOCK` while it
lives, so what a dead one left behind in `ADDRESS` deceives nobody, whose pid it may be by now; who wants an answer
holds `USE`, so the server never ends itself in somebody's face.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from outrider.core.errors import OutriderError
from outrider.runtime.lease import is_locked
from outrider.settings import LocalModelSettings

FOLDER_VARIABLE = "OUTRIDER_LOCAL_DIR"
LOCK = "server.lock"
USE = "use.lock"
ADDRESS = "server.json"
LOG = "server.log"

POLL = 0.05
LAUNCHES = 2
LAUNCH_TIMEOUT = 20.0
LOG_TAIL = 1000


class LocalServerFailed(OutriderError):
    """The server of the `local` model could not be started; the message has the end of its log."""

    code = "local_server_failed"


class LocalServerSilent(LocalServerFailed):
    """The server lives, and gave no sign of life for too long."""

    code = "local_server_silent"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, the key it wants, and how many tokens one request may hold there."""

    url: str
    key: str
    pid: int
    context_tokens: int


def folder(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder through which the processes of this user find the server, made if need be.

    Raises LocalServerFailed for one that others could write to: the key is in there.
    """
    given = os.environ if environ is None else environ
    if named := given.get(FOLDER_VARIABLE):
        path = Path(named)
    elif (runtime := given.get("XDG_RUNTIME_DIR")) and os.access(runtime, os.W_OK):
        path = Path(runtime, "outrider")
    else:
        path = Path(tempfile.gettempdir(), f"outrider-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise LocalServerFailed(f"the local model needs the folder {path}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise LocalServerFailed(
            f"{path} is not a folder of this user alone (mode 0700); {FOLDER_VARIABLE} names another"
        )
    return path.absolute()


@asynccontextmanager
async def in_use(where: Path) -> AsyncIterator[None]:
    """Keep the server from ending itself meanwhile."""
    fd = os.open(where / USE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # the server is looking whether it is needed, or is just ending
                await asyncio.sleep(POLL / 10)
        os.utime(fd)  # tells the server of a use that began and ended between two looks
        yield
    finally:
        os.close(fd)


def find(where: Path) -> Address | None:
    """Return the address of the server that lives, None if there is none or it is not ready yet."""
    try:
        address = Address(**json.loads((where / ADDRESS).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return address if is_locked(where / LOCK) else None


async def reach(where: Path, weights: Path, settings: LocalModelSettings) -> Address:
    """Return the address of the server, started if need be. Call it while `in_use`. Raises LocalServerFailed."""
    until = time.monotonic() + settings.start_timeout
    launched = 0
    while True:
        address = find(where)
        if address is not None:
            return address
        if not is_locked(where / LOCK):
            if launched == LAUNCHES:
                raise LocalServerFailed(f"the server of the local model ended before it was ready: {_tail(where)}")
            launched += 1
            await asyncio.to_thread(_launch, where, weights, settings)
        if time.monotonic() > until:
            raise LocalServerFailed(
                f"the server of the local model was not ready after {settings.start_timeout:g} s: {_tail(where)}"
            )
        await asyncio.sleep(POLL)


def _launch(where: Path, weights: Path, settings: LocalModelSettings) -> None:
    """Start a server; of several that start at once, all but one leave again."""
    command = [sys.executable, "-P", "-m", "outrider.agents.local.serve", str(where), str(weights)]
    command += [str(settings.context_tokens), str(settings.slots), str(settings.idle_exit)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            timeout=LAUNCH_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LocalServerFailed(f"the server of the local model could not be started: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-LOG_TAIL:]
        raise LocalServerFailed(f"the server of the local model could not be started: {said}")


def _tail(where: Path) -> str:
    try:
        said = (where / LOG).read_bytes()[-LOG_TAIL:].decode(errors="replace").strip()
    except FileNotFoundError:
        said = ""
    return f"{said or 'it said nothing'} (the whole log is {where / LOG})"
