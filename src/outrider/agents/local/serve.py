"""The server of the `local` model, a program of its own: `python -m outrider.agents.local.serve FOLDER WEIGHTS …`.

It speaks OpenAI's chat completions on loopback, to whoever has the key that is in its folder. It leaves its parent
before it loads anything, and ends itself when it has not been used for a while. Killed at any moment it leaves
nothing behind that anybody would believe: see `server`.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import secrets
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from outrider.agents.local.server import ADDRESS, LOCK, LOG, USE

PATIENCE = 0.5
"""Seconds to try for the lock: whoever looks whether it is held, holds it for a moment."""
LARGEST_POLL = 1.0
HTTP_THREADS = 128
PING = 5
"""Seconds between signs of life to who waits for a slot."""
MOST_TOKENS = 2048


def main() -> None:
    """Become the server, unless there is one."""
    parser = argparse.ArgumentParser(prog="python -m outrider.agents.local.serve")
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("context", type=int)
    parser.add_argument("slots", type=int)
    parser.add_argument("idle", type=float)
    given = parser.parse_args()
    if not _lock(given.folder / LOCK):
        return
    (given.folder / ADDRESS).unlink(missing_ok=True)
    _detach(given.folder / LOG)
    key = secrets.token_urlsafe(32)
    server = _load(given.weights, given.context, given.slots, key)
    _announce(given.folder, server.listening_address, key, given.context)
    _serve_until_idle(given.folder, given.idle)


def _lock(path: Path) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True  # and the file stays open: the lock lasts as long as this process
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.01)


def _detach(log: Path) -> None:
    """Leave the parent, which waits for this moment and keeps no child. The lock comes along."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    if os.fork():
        os._exit(0)


def _load(weights: Path, context: int, slots: int, key: str) -> Any:
    xllamacpp: Any = import_module("xllamacpp")  # which has no types, and may be missing where this is checked

    os.chdir("/")
    told = xllamacpp.CommonParams()
    told.model.path = str(weights)
    told.model_alias = {"local"}
    told.hostnames = ["127.0.0.1"]
    told.port = 0
    told.api_keys = [key]
    told.n_parallel = slots
    told.n_ctx = context * slots
    told.n_predict = MOST_TOKENS
    # Half of the cores: its threads wait for each other busily, and slow to a crawl where others want the cores too.
    told.cpuparams.n_threads = told.cpuparams_batch.n_threads = max(1, min(4, (os.cpu_count() or 1) // 2))
    told.n_threads_http = HTTP_THREADS
    told.sse_ping_interval = PING
    told.cache_ram_mib = 0
    told.cache_idle_slots = False
    told.fit_params = False
    told.warmup = False
    told.ui = False
    told.endpoint_slots = False
    told.verbosity = 1
    return xllamacpp.Server(told)


def _announce(folder: Path, url: str, key: str, context: int) -> None:
    """Write the address whole or not at all."""
    draft = folder / f"{ADDRESS}.{os.getpid()}"
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"url": url, "key": key, "pid": os.getpid(), "context_tokens": context}, file)
    draft.replace(folder / ADDRESS)


def _serve_until_idle(folder: Path, idle: float) -> None:
    use = os.open(folder / USE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    seen, at = os.fstat(use).st_mtime_ns, time.monotonic()
    while True:
        time.sleep(min(LARGEST_POLL, idle / 4))
        try:
            fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            at = time.monotonic()
            continue
        touched = os.fstat(use).st_mtime_ns
        if touched != seen:
            seen, at = touched, time.monotonic()
        elif time.monotonic() - at > idle:
            # Nobody can begin a use while this lock is held, and it is held to the end.
            (folder / ADDRESS).unlink(missing_ok=True)
            os._exit(0)
        fcntl.flock(use, fcntl.LOCK_UN)


if __name__ == "__main__":
    main()
