"""The supervisor of one command: a program of its own that starts it, spools its output and keeps how it ended.

It imports only the standard library and nothing of Outrider, runs as `python -I -S`, and outlives the worker that
started it. All that others know of it is in its folder; docs/processes.md has the protocol. What a reader would get
wrong: the command's process is made, and recorded, before it may become the command. A supervisor that dies in
between leaves a process that ends by itself, so a command is started only if `started.json` is there, and at most once.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import select
import signal
import struct
import sys
import time
import traceback
from contextlib import suppress
from typing import Any, NoReturn

PROTOCOL = 1
"""Of the files in the folder. A worker refuses to touch what has another one."""

SPEC, STDIN, LOCK, ORDERS, NEWS = "spec.json", "stdin", "lock", "orders", "news"
STARTED, ENDED, LOG = "started.json", "exit.json", "supervisor.log"
OUTPUT = "out."
"""A piece of the spool: `out.FRAMES.BYTES`, by how much of either came before it."""
HEADER = struct.Struct(">BI")
"""Before each piece of output: its stream (1 or 2) and its length in bytes."""

TAKEN = 3
"""What the program ends with where another supervisor has the folder."""
CHUNK = 65536
TICK = 0.25
"""Seconds between two looks at whether somebody has adopted the command."""
SAMPLE = 0.1
"""Seconds between two looks at how much memory it takes."""
LAST_GRACE = 5.0
"""Seconds from TERM to KILL where nobody has said."""
GIVE_UP = 10.0
"""Seconds after which a process that not even KILL ends is left behind."""
RESERVED = 4096
"""Bytes kept on the disk for how it ended, so that a full one does not lose it."""

_ON_LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(folder: str) -> NoReturn:
    """Start a supervisor that is nobody's child, and end once it has started its command or could not."""
    ready, tell = os.pipe()
    if os.fork():
        os.close(tell)
        told = os.read(ready, 1)
        os._exit(told[0] if told else 1)
    os.setsid()
    os.close(ready)
    code = 1
    try:
        code = _supervise(folder, tell)
    except BaseException:  # noqa: BLE001 - there is nobody to raise it to; who looks after the folder reads the log
        traceback.print_exc()
    os._exit(code)


def _supervise(folder: str, tell: int) -> int:
    os.chdir(folder)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    if _lock() is None or os.path.exists(STARTED) or os.path.exists(ENDED):
        os.write(tell, bytes([TAKEN]))
        return TAKEN
    with open(SPEC, "rb") as file:
        spec = json.load(file)
    command = Command(spec)
    command.start()
    os.write(tell, b"\0")
    os.close(tell)
    command.watch()
    return 0


def _lock() -> int | None:
    """Hold the folder for as long as this process lives. Somebody who only looks holds the lock for a moment."""
    fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(50):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return fd
    return None


class Command:
    """The command, from before it is started until nothing of it is left."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._limits: dict[str, Any] = spec["limits"]
        self._spool = Spool(spec["kept"])
        self._prctl = _prctl()
        self._pid = 0
        self._pipes: dict[int, int] = {}
        """The stream by the descriptor that it is read from."""
        self._poll = select.poll()
        self._orders = os.open(ORDERS, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # both: it never ends, nor blocks
        self._news: int | None = None
        self._began = self._alone_since = time.monotonic()
        self._status: tuple[int | None, int | None] | None = None
        """Exit code and signal of the command itself, once it has ended."""
        self._ended = 0.0
        self._reason: str | None = None
        """Why it was told to end."""
        self._kill_at: float | None = None
        self._sample_at = 0.0
        self._termed: set[int] = set()
        self._problem: dict[str, Any] | None = None
        self._left: list[int] = []

    # --- starting it ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Make its process, record that, and only then let it become the command."""
        reserve = os.open(f"{ENDED}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.write(reserve, b" " * RESERVED)
        os.fsync(reserve)
        os.close(reserve)
        if self._prctl is not None:
            self._prctl(_PR_SET_CHILD_SUBREAPER, 1)
        awake, waker = os.pipe()
        for fd in (awake, waker):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(waker)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        out, their_out = os.pipe()
        err, their_err = os.pipe()
        wait, go = os.pipe()
        problem, their_problem = os.pipe()
        supervisor = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            self._become(supervisor, wait, go, their_out, their_err, their_problem)
        for fd in (their_out, their_err, wait, their_problem):
            os.close(fd)
        self._began = time.monotonic()
        started = {
            "protocol": PROTOCOL,
            "pid": self._pid,
            "start_time": start_time(self._pid),
            "boot": boot_id(),
            "supervisor": {"pid": supervisor, "start_time": start_time(supervisor)},
            "at": time.time(),
        }
        write_json(STARTED, started)
        os.write(go, b"!")
        os.close(go)
        self._awake = awake
        self._pipes = {out: 1, err: 2}
        told = b""
        while piece := os.read(problem, 4096):
            told += piece
        os.close(problem)
        self._problem = json.loads(told) if told else None
        for fd in (out, err, awake, self._orders):
            self._poll.register(fd, select.POLLIN)

    def _become(self, supervisor: int, wait: int, go: int, out: int, err: int, problem: int) -> NoReturn:
        """In the new process: wait to be let go, then become the command. Tell what kept it from that."""
        stage = "process"
        try:
            os.close(go)
            os.setsid()
            if self._prctl is not None:
                self._prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
            if os.read(wait, 1) != b"!" or os.getppid() != supervisor:
                os._exit(1)
            signal.set_wakeup_fd(-1)
            for number in signal.valid_signals():
                with suppress(OSError, ValueError):  # of KILL, STOP, and what the C library keeps for itself
                    signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            stage = "limits"
            self._limit()
            stage = "stdin"
            stdin = os.open(STDIN if self._spec["stdin"] else os.devnull, os.O_RDONLY)
            for place, fd in enumerate((stdin, out, err)):
                os.dup2(fd, place)
            stage = "cwd"
            os.chdir(self._spec["cwd"])
            stage = "command"
            argv = self._spec["argv"]
            os.execvpe(argv[0], argv, self._spec["env"])
        except OSError as error:
            os.write(problem, json.dumps({"stage": stage, "errno": error.errno, "what": error.strerror}).encode())
        except BaseException as error:  # noqa: BLE001 - whatever it is, it has to be told and must not go on from here
            os.write(problem, json.dumps({"stage": stage, "errno": None, "what": str(error)[:2000]}).encode())
        os._exit(127)

    def _limit(self) -> None:
        cpu, memory = self._limits.get("cpu"), self._limits.get("memory")
        if cpu is not None:
            _lower(resource.RLIMIT_CPU, int(-(-cpu // 1)), 2)
        if memory is not None and not _ON_LINUX:  # there it is measured, and of the whole tree
            _lower(resource.RLIMIT_AS, int(memory), 0)

    # --- watching it ---------------------------------------------------------------------------------

    def watch(self) -> None:
        """Spool what it prints and heed orders until it has ended and nothing of it is left; then keep how."""
        while not self._is_over():
            for fd, event in self._poll.poll(self._patience() * 1000):
                self._heed(fd, event)
            self._look()
            self._tell()
        self._finish()

    def _heed(self, fd: int, event: int) -> None:
        if fd in self._pipes:
            self._take(fd)
        elif fd == self._orders:
            self._obey(os.read(fd, 4096))
        elif fd == self._awake:
            os.read(fd, 4096)
        elif fd == self._news and event & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
            self._lose_reader()

    def _take(self, fd: int) -> bool:
        """Take some output; False if there is none now."""
        try:
            piece = os.read(fd, CHUNK)
        except BlockingIOError:
            return False
        if piece:
            self._spool.append(self._pipes[fd], piece)
            return True
        self._poll.unregister(fd)
        os.close(fd)
        del self._pipes[fd]
        return False

    def _obey(self, orders: bytes) -> None:
        """`T SECONDS` is TERM, and KILL so much later; `K` is KILL."""
        for order in orders.decode("ascii", "replace").split("\n"):
            name, _, seconds = order.partition(" ")
            if name == "K":
                self._stop("order", 0.0)
            elif name == "T":
                with suppress(ValueError):
                    self._stop("order", max(0.0, float(seconds)))

    def _stop(self, reason: str, grace: float) -> None:
        """Tell it to end. The first reason stays; of several graces, the one that is over first counts."""
        kill_at = time.monotonic() + grace
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)
        if self._reason is None and self._status is None:
            self._reason = reason
        if grace > 0:
            self._send(signal.SIGTERM)

    def _look(self) -> None:
        now = time.monotonic()
        self._reap()
        if self._news is None:
            self._seek_reader()
        if self._status is None:
            self._check_limits(now)
        elif self._kill_at is None and now >= self._ended + self._spec["linger"]:
            self._stop("linger", self._spec["linger"])
        if self._kill_at is not None and now >= self._kill_at:
            self._send(signal.SIGKILL)
        elif self._kill_at is not None and self._status is not None:
            self._send(signal.SIGTERM)  # whoever was orphaned since

    def _check_limits(self, now: float) -> None:
        if self._reason is not None:
            return
        limits, wall = self._limits, self._spec["wall"]
        if self._news is None and now >= self._alone_since + self._spec["adopt"]:
            self._stop("unadopted", LAST_GRACE)
        elif wall is not None and now >= self._began + wall:
            self._stop("wall", LAST_GRACE)
        elif limits.get("output") is not None and self._spool.bytes > limits["output"]:
            self._stop("output", 0.0)
        elif limits.get("memory") is not None and _ON_LINUX and now >= self._sample_at:
            self._sample_at = now + SAMPLE
            if _memory_below(os.getpid()) > limits["memory"]:
                self._stop("memory", 0.0)

    def _patience(self) -> float:
        """Seconds until something has to be looked at, whatever happens."""
        if self._status is not None or self._kill_at is not None:
            return 0.02
        waits = [TICK] if self._news is None else [3600.0]
        if self._spec["wall"] is not None:
            waits.append(max(0.0, self._began + self._spec["wall"] - time.monotonic()) + 0.001)
        if self._limits.get("memory") is not None and _ON_LINUX:
            waits.append(SAMPLE)
        return min(waits)

    # --- who reads -----------------------------------------------------------------------------------

    def _seek_reader(self) -> None:
        """A worker has adopted the command as long as it holds the other end open."""
        try:
            self._news = os.open(NEWS, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # ENXIO: nobody reads
            return
        self._poll.register(self._news, 0)

    def _lose_reader(self) -> None:
        if self._news is not None:
            self._poll.unregister(self._news)
            os.close(self._news)
            self._news = None
            self._alone_since = time.monotonic()

    def _tell(self) -> None:
        if self._news is not None and self._spool.has_grown:
            self._spool.has_grown = False
            try:
                os.write(self._news, b".")
            except BlockingIOError:
                pass  # it has news enough
            except OSError:
                self._lose_reader()

    # --- its processes -------------------------------------------------------------------------------

    def _reap(self) -> None:
        """Take note of the command's end, and bury orphans. It itself is buried last: until then its number is its."""
        while self._status is None:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if found.si_pid != self._pid:
                os.waitpid(found.si_pid, 0)
                continue
            is_exit = found.si_code == os.CLD_EXITED
            self._status = (found.si_status, None) if is_exit else (None, found.si_status)
            self._ended = time.monotonic()

    def _orphans(self) -> set[int]:
        """Those that lived below the command and whose parent has ended: they are this process's children now."""
        found = set()
        for pid in _children_of(os.getpid()) - {self._pid}:
            with suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    found.add(pid)
        return found

    def _is_over(self) -> bool:
        if self._status is None:
            return False
        if self._problem is not None:
            return True
        if _ON_LINUX:
            left = self._orphans()
        else:
            left = set()
            with suppress(ProcessLookupError, PermissionError):  # nobody is left, or macOS says so of the dead
                os.killpg(self._pid, 0)
                left = {self._pid}
        if left and self._kill_at is not None and time.monotonic() > self._kill_at + GIVE_UP:
            self._left = sorted(left)
            return True
        return not left

    def _send(self, number: signal.Signals) -> None:
        """To the command's group, and to its orphans wherever they are. TERM only once to each."""
        if self._pid not in self._termed or number == signal.SIGKILL:
            self._termed.add(self._pid)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, number)
        if _ON_LINUX:
            for pid in self._orphans():
                if pid not in self._termed or number == signal.SIGKILL:
                    self._termed.add(pid)
                    with suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, number)

    # --- its end -------------------------------------------------------------------------------------

    def _finish(self) -> None:
        for fd in list(self._pipes):
            os.set_blocking(fd, False)  # somebody who got away may hold the other end
            while self._take(fd):
                pass
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert self._status is not None
        code, by_signal = self._status
        ended = {
            "protocol": PROTOCOL,
            "code": code,
            "signal": by_signal,
            "reason": self._reason,
            "problem": self._problem,
            "at": time.time(),
            "boot": boot_id(),
            "duration": round(self._ended - self._began, 6),
            "cpu": round(usage.ru_utime + usage.ru_stime, 6),
            "max_rss": usage.ru_maxrss * (1024 if _ON_LINUX else 1),
            "output": self._spool.bytes,
            "left": self._left,
        }
        while True:
            try:
                _keep(ended)
            except OSError as error:
                if os.stat(".").st_nlink == 0:  # somebody has deleted the folder; nobody will ever ask
                    return
                print(f"how it ended cannot be written yet: {error}", file=sys.stderr, flush=True)  # noqa: T201 - its log
                self._spool.shrink()
                time.sleep(1)
            else:
                return


class Spool:
    """The output on disk: numbered pieces, of which the oldest go when there is too much."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._piece = max(CHUNK, kept // 4)
        self._files: list[tuple[str, int]] = []
        """Name and size of the pieces there are, the one that is written last."""
        self._fd: int | None = None
        self._frames = 0
        self.bytes = 0
        """How many the command has printed."""
        self.has_grown = False

    def append(self, stream: int, text: bytes) -> None:
        """Keep what was printed. What a full disk refuses is lost, and counted."""
        self.has_grown = True
        try:
            if self._fd is None or self._files[-1][1] >= self._piece:
                self._turn()
            self._write(HEADER.pack(stream, len(text)) + text)
        except OSError:
            self._close()  # the next piece tells by its name that something is missing
        self.bytes += len(text)

    def shrink(self) -> None:
        """Make room: let go of all pieces but the newest."""
        while len(self._files) > 1:
            self._drop()

    def _write(self, frame: bytes) -> None:
        assert self._fd is not None
        name, size = self._files[-1]
        done = 0
        try:
            while done < len(frame):
                done += os.write(self._fd, frame[done:])
        except OSError:
            os.ftruncate(self._fd, size)
            raise
        self._files[-1] = (name, size + len(frame))
        self._frames += len(frame)

    def _turn(self) -> None:
        self._close()
        name = f"{OUTPUT}{self._frames:020d}.{self.bytes:020d}"
        self._fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if self._files and self._files[-1][0] == name:
            self._files.pop()
        self._files.append((name, 0))
        while len(self._files) > 1 and sum(size for _, size in self._files) > self._kept:
            self._drop()

    def _drop(self) -> None:
        name, _ = self._files.pop(0)
        with suppress(OSError):
            os.unlink(name)

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


# --- files -----------------------------------------------------------------------------------------------


def write_json(name: str, value: Any) -> None:
    """Write a file whole and durably, or not at all."""
    fd = os.open(f"{name}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, json.dumps(value).encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(f"{name}.tmp", name)
    _sync_folder()


def _keep(ended: dict[str, Any]) -> None:
    """Write how it ended, over the bytes that were reserved for it."""
    fd = os.open(f"{ENDED}.tmp", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, json.dumps(ended).encode().ljust(RESERVED))
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(f"{ENDED}.tmp", ENDED)
    _sync_folder()


def _sync_folder() -> None:
    fd = os.open(".", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- the system ------------------------------------------------------------------------------------------


def boot_id() -> str:
    """What tells one run of this machine from the next; empty where the kernel does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def start_time(pid: int) -> int | None:
    """When a process was started, in ticks since boot: with its number, its identity. None where nobody knows."""
    fields = _stat(pid)
    return None if fields is None else int(fields[19])


def is_dead(pid: int) -> bool:
    """Whether a process has ended, as far as the kernel says."""
    fields = _stat(pid)
    return fields is None or fields[0] in (b"Z", b"X")


def _stat(pid: int) -> list[bytes] | None:
    """The fields of `/proc/PID/stat` from the third on: a name may have spaces and brackets in it."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return None


def _parents() -> dict[int, int]:
    found = {}
    with suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit() and (fields := _stat(int(name))) is not None:
                found[int(name)] = int(fields[1])
    return found


def _children_of(parent: int) -> set[int]:
    return {pid for pid, its in _parents().items() if its == parent}


def _memory_below(parent: int) -> int:
    """The bytes of memory that the descendants of a process have in use; what they share is counted for each."""
    parents, page, total = _parents(), os.sysconf("SC_PAGE_SIZE"), 0
    for pid in parents:
        above = parents.get(pid)
        while above is not None and above not in (0, parent):
            above = parents.get(above)
        if above == parent and (fields := _stat(pid)) is not None:
            total += int(fields[21]) * page
    return total


def _prctl() -> Any:
    """The system call that only Linux has, None elsewhere."""
    if not _ON_LINUX:
        return None
    import ctypes

    return ctypes.CDLL(None).prctl


def _lower(which: int, soft: int, more: int) -> None:
    """Lower a limit of this process: a signal at `soft`, KILL at `more` above it. None is ever raised."""
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        soft, more = min(soft, hard), min(more, max(0, hard - soft))
    resource.setrlimit(which, (soft, soft + more))
