"""One run of a command, as a worker sees it: a folder, by which it talks with the supervisor of the command.

Whoever holds the folder's news open for reading has adopted the run; the kernel lets go of it however a worker ends.
Whether the supervisor lives is told by its lock. What a reader would get wrong: no process is ever signalled by its
number alone. The supervisor gets orders by way of the folder, and what a killed one left behind is known by the
token of the run in its environment.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from outrider.core.errors import Failure
from outrider.core.ledger import Ledger
from outrider.kinds import supervisor
from outrider.kinds.supervisor import ENDED, HEADER, LOCK, LOG, NEWS, ORDERS, OUTPUT, PROTOCOL, SPEC, STARTED, STDIN
from outrider.runtime.forked import forget, keep_from_forks
from outrider.runtime.lease import is_locked

TOKEN = "OUTRIDER_RUN"
"""In the environment of the command and of all that it starts: which run they belong to."""

BESIDE = "-processes"
"""After the name of a database: the folder of its runs."""
FOR_PYTHON = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
"""What a supervisor has from its worker's environment. The command can read all of that, so nothing else is in it."""


@dataclass(frozen=True, slots=True)
class Place:
    """How far the spool was read: in bytes of the spool, and in bytes that the command has printed."""

    frames: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Output as it was printed, of stream 1 or 2, and the place after it; before it `lost` bytes are gone."""

    stream: int
    text: bytes
    after: Place
    lost: int = 0


_File: TypeAlias = tuple[int, int, str]
"""A piece of the spool: what came before it, as in its name, and its name."""


class Run:
    """The folder of one run. Without its `token`, which the folder has too, one that was deleted is not known."""

    def __init__(self, folder: Path, token: str | None = None) -> None:
        self.folder = folder
        self._token = token

    # --- starting ------------------------------------------------------------------------------------

    def prepare(self, spec: Mapping[str, Any], stdin: str | None) -> None:
        """Make the folder with all that a supervisor needs. It blocks, on the disk."""
        _make_private(self.folder.parent)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o700)
        for name in (ORDERS, NEWS):
            os.mkfifo(self.folder / name, 0o600)
        if stdin is not None:
            self._write(STDIN, stdin.encode())
        self._write(SPEC, json.dumps({"protocol": PROTOCOL, **spec}).encode())
        for folder in (self.folder, self.folder.parent):
            fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def start(self) -> None:
        """Have a supervisor start the command, unless one has; return when it has. It blocks, on a process.

        Raises Failure when there is no supervisor afterwards; the command was not started then, and may be yet.
        """
        program = f"import sys; sys.path.append({str(Path(supervisor.__file__).parent)!r}); import supervisor as it; "
        with open(self.folder / LOG, "ab") as log:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-X", "utf8", "-c", f"{program} it.main({str(self.folder)!r})"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={name: os.environ[name] for name in FOR_PYTHON if name in os.environ},
                start_new_session=True,
                check=False,
            )
        if done.returncode not in (0, supervisor.TAKEN) and not self.has_started:
            said = (self.folder / LOG).read_bytes()[-2000:].decode(errors="replace").strip()
            raise Failure(f"the supervisor of the command could not start it: {said}", retryable=True)

    def _write(self, name: str, content: bytes) -> None:
        fd = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)

    def fetch(self, beside: Path) -> Path | None:
        """Take the folder along from where it was made, if the database was moved and it was not.

        Returns the database that is still there: this one is a copy then, and the run is not its own. One on a server
        is no file here, and is told from others by its name.
        """
        there = beside / self.folder.name
        if there == self.folder or not Run(there).exists:
            return None
        theirs, ours = (Path(str(folder).removesuffix(BESIDE)) for folder in (beside, self.folder.parent))
        if theirs.exists() or (theirs.name != ours.name and not ours.exists()):
            return theirs
        with suppress(OSError):  # of another file system: what cannot be fetched is ended and done again
            _make_private(self.folder.parent)
            os.rename(there, self.folder)  # its supervisor works in the folder, whatever that is called
        return None

    # --- looking -------------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether its folder is there."""
        return (self.folder / SPEC).exists()

    @property
    def has_started(self) -> bool:
        """Whether the command may have been started."""
        return (self.folder / STARTED).exists() or (self.folder / ENDED).exists()

    @property
    def is_supervised(self) -> bool:
        """Whether its supervisor lives."""
        return is_locked(self.folder / LOCK)

    def protocol(self) -> int:
        """Which protocol its files follow."""
        return int((self._read(SPEC) or {}).get("protocol", 0))

    def host(self) -> str | None:
        """Where it was made, the only host that can go on with it."""
        return (self._read(SPEC) or {}).get("host")

    def started(self) -> dict[str, Any] | None:
        """What its supervisor wrote down when it started the command."""
        return self._read(STARTED)

    def ended(self) -> dict[str, Any] | None:
        """What its supervisor wrote down when nothing of the command was left."""
        return self._read(ENDED)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((self.folder / name).read_bytes())
        except (OSError, ValueError):
            return None
        return found

    # --- ending --------------------------------------------------------------------------------------

    def order_end(self, grace: float) -> bool:
        """Have the supervisor send TERM, and KILL `grace` seconds later. False if there is no supervisor."""
        try:
            fd = os.open(self.folder / ORDERS, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # ENXIO: nobody reads it
            return False
        try:
            os.write(fd, f"T {grace:.3f}\n".encode() if grace > 0 else b"K\n")
        except OSError as error:
            return error.errno == errno.EAGAIN  # it has orders enough
        finally:
            os.close(fd)
        return True

    def end_leftovers(self) -> int:
        """Kill what a supervisor that is gone has left of the command; return how many processes there were.

        A process is one of the run's by the token in its environment, or by having number, start and boot of the
        command. Only Linux tells; elsewhere nothing is found.
        """
        if self.is_supervised:
            return 0
        token = self._token or (self._read(SPEC) or {}).get("env", {}).get(TOKEN)
        started = self.started() or {}
        own = (started.get("pid"), started.get("start_time")) if started.get("boot") == supervisor.boot_id() else None
        count = 0
        with suppress(OSError):
            for name in os.listdir("/proc"):
                if name.isdigit() and int(name) != os.getpid():
                    count += _kill_if_of(int(name), token, own)
        return count

    def remove(self) -> None:
        """Delete the folder. Only for a run of which nothing lives any more, of a task that has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- what a reader of the output keeps -----------------------------------------------------------

    def reading(self) -> list[tuple[int, list[dict[str, Any]]]]:
        """What earlier attempts noted of how far they had come, the newest attempt first."""
        found = []
        with suppress(OSError):
            for name in os.listdir(self.folder):
                kind, _, rest = name.partition(".")
                number = rest.removesuffix(".json")
                if kind == "read" and number.isdigit() and (noted := self._read(name)) is not None:
                    found.append((int(number), noted["states"]))
        return sorted(found, reverse=True, key=lambda each: each[0])

    def note_reading(self, attempt: int, states: list[dict[str, Any]]) -> None:
        """Keep how far an attempt has come, and will have come with what it is about to print.

        It has to survive the worker and not the machine: after a reboot nothing is printed any more.
        """
        path = self.folder / f"read.{attempt}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(json.dumps({"states": states}).encode())
        os.replace(temporary, path)


class Hold:
    """Keeps a run adopted as long as it is open, without a word of it."""

    def __init__(self, run: Run) -> None:
        self._fd: int | None = os.open(run.folder / NEWS, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        keep_from_forks(self)

    def close(self) -> None:
        """Let go of the run: another may adopt it."""
        forget(self)
        self.disown()

    def disown(self) -> None:
        """In a forked copy of this process: the run was not adopted by it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class News(Hold):
    """The hold of the attempt that follows a run, which hears that there is something to read."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        assert self._fd is not None
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._hear)

    async def wait(self, seconds: float) -> None:
        """Wait for news, at most so long."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)
        self._event.clear()

    def ring(self) -> None:
        """Wake who waits."""
        self._event.set()

    def close(self) -> None:
        """Let go of the run, and hear nothing more."""
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
        super().close()

    def _hear(self) -> None:
        assert self._fd is not None
        try:
            is_over = not os.read(self._fd, 65536)
        except BlockingIOError:
            return
        if is_over:  # no supervisor holds it now, which would be told again and again; the end is looked for anyway
            self._loop.remove_reader(self._fd)
        self._event.set()


class Spool:
    """Reads the output of a run from a place on. The oldest of it may be gone."""

    def __init__(self, run: Run, place: Place) -> None:
        self._folder = run.folder
        self.place = place
        self._file: _File | None = None
        self._lost = 0

    def read(self, most: int) -> list[Piece]:
        """Return the next pieces, of some `most` bytes together; none if there is nothing more yet."""
        pieces: list[Piece] = []
        size = 0
        while size < most:
            files = self._files()  # before it is read: a file that has one after it is not written any more
            if self._file is None and not self._find(files):
                break
            assert self._file is not None
            try:
                content = self._content(self._file, self.place.frames - self._file[0], most - size + supervisor.CHUNK)
            except FileNotFoundError:  # dropped, as there was too much
                self._file = None
                continue
            taken = self._take(content, pieces)
            size += taken
            if taken == 0:
                following = min((file for file in files if file > self._file), default=None)
                if following is None:
                    break
                self._turn_to(following)
        return pieces

    def tail(self, most: int) -> bytes:
        """The last bytes that the command printed, of both streams."""
        kept = b""
        for file in self._files()[-2:]:
            pieces: list[Piece] = []
            with suppress(FileNotFoundError):
                self._take(self._content(file, 0, -1), pieces)
            kept = (kept + b"".join(piece.text for piece in pieces))[-most:]
        return kept

    def _find(self, files: list[_File]) -> bool:
        """Find the file that the place is in, or the oldest there is."""
        if files:
            held = [file for file in files if file[0] <= self.place.frames and file[1] <= self.place.bytes]
            self._file = max(held, default=None)
            if self._file is None:
                self._turn_to(files[0])
        return bool(files)

    def _turn_to(self, file: _File) -> None:
        self._file = file
        self._lost += file[1] - self.place.bytes
        self.place = Place(file[0], file[1])

    def _take(self, content: bytes, pieces: list[Piece]) -> int:
        """Take the whole frames; the last may not be written yet."""
        at = 0
        while at + HEADER.size <= len(content):
            stream, length = HEADER.unpack_from(content, at)
            end = at + HEADER.size + length
            if end > len(content):
                break
            self.place = Place(self.place.frames + end - at, self.place.bytes + length)
            pieces.append(Piece(stream, content[at + HEADER.size : end], self.place, self._lost))
            self._lost = 0
            at = end
        return at

    def _content(self, file: _File, start: int, most: int) -> bytes:
        with open(self._folder / file[2], "rb") as opened:
            opened.seek(start)
            return opened.read(most)

    def _files(self) -> list[_File]:
        found = []
        for name in os.listdir(self._folder):
            if name.startswith(OUTPUT):
                _, frames, printed = name.split(".")
                found.append((int(frames), int(printed), name))
        return sorted(found)


def runs_of(ledger: Ledger) -> tuple[Path, bool]:
    """The folder of a store's runs on this machine; and whether the store outlives this process."""
    beside = getattr(ledger, "beside", None)
    return (_temporary(), False) if beside is None else (Path(f"{beside}{BESIDE}"), True)


@cache
def _temporary() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="outrider-processes-", ignore_cleanup_errors=True)
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list[Any] = []
"""What is deleted when this process ends."""


def _make_private(folder: Path) -> None:
    """Make a folder; refuse one in which others could exchange what a supervisor is to run. Raises Failure."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.stat()
    owners = {found.st_uid, folder.lstat().st_uid}  # a link is to be ours as well
    if owners != {os.geteuid()} or found.st_mode & 0o022:
        raise Failure(f"others than the user of this worker can write {folder}; delete it, or see to its permissions")


def _kill_if_of(pid: int, token: str | None, own: tuple[Any, Any] | None) -> bool:
    """Kill a process if it belongs to a run. Its number cannot become another's between look and signal."""
    try:
        fd = os.pidfd_open(pid)
    except (OSError, AttributeError):
        return False
    try:
        if not _is_of(pid, token, own):
            return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _is_of(pid: int, token: str | None, own: tuple[Any, Any] | None) -> bool:
    if supervisor.is_dead(pid):  # and only waits to be buried
        return False
    if own is not None and own == (pid, supervisor.start_time(pid)):
        return True
    if token is None:
        return False
    with open(f"/proc/{pid}/environ", "rb") as file:
        return f"{TOKEN}={token}".encode() in file.read().split(b"\0")
