"""PgBouncer before a server of the tests, sharing its connections by transaction; for as long as a `with` block lasts.

It is Debian's package, which nothing here installs: where it is not at hand the tests are skipped, in CI too. Like a
server it never outlives this process, and started by root it runs as another user.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.servers import PATIENCE, SUPERUSER, ServerFailed, forget, free_port, guarded, log_in, shared_folder


def pooler_program() -> Path:
    """Where PgBouncer is. Where it is nowhere, the test is skipped."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found is None:
        pytest.skip("no PgBouncer is at hand: Debian's package is pgbouncer")
    return Path(found)


class Pooler:
    """A PgBouncer before the server of an address; any database of it can be reached through this one."""

    def __init__(self, server: str, *, mode: str = "transaction", pool_size: int = 4, **settings: str) -> None:
        self.folder: Final = shared_folder()
        self.port: Final = free_port()
        self._program = pooler_program()
        self.server = server
        """The address that it has been made for, or was moved to: it holds from the next start on."""
        self._settings = {"pool_mode": mode, "default_pool_size": str(pool_size), **settings}
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def url(self, server: str, *, stated: bool = True, port: int | None = None) -> str:
        """The address, through the pooler, of the database that an address on the server names.

        `port` is that of a proxy before the pooler, if there is one.
        """
        options = "?pooler=transaction" if stated else ""
        return f"postgresql://{SUPERUSER}@127.0.0.1:{port or self.port}{urlsplit(server).path}{options}"

    def start(self) -> None:
        """Start it, and return when it takes connections. Raises `ServerFailed`."""
        assert self._guard is None
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "any",
            "admin_users": SUPERUSER,
            "max_client_conn": "500",
            "server_login_retry": "0.1",
            **self._settings,
        }
        behind = urlsplit(self.server)
        lines = [
            "[databases]",
            f"* = host={behind.hostname} port={behind.port or 5432} user={behind.username}",
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in settings.items()),
        ]
        path = self.folder / "pgbouncer.ini"
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o644)
        self._guard = guarded([str(self._program), str(path)], self.folder)
        give_up = time.monotonic() + PATIENCE
        while not self._answers():
            if self._guard.poll() is not None or time.monotonic() > give_up:
                raise ServerFailed(f"PgBouncer did not start:\n{self.log()}")
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill it, with all connections that go through it, and start another in its place."""
        self.kill()
        self.start()

    def ask(self, command: str) -> list[Mapping[str, Any]]:
        """What it answers to one of its own commands, such as `show pools`."""
        address = f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/pgbouncer"
        with closing(psycopg.connect(address, autocommit=True)) as connection:
            cursor = psycopg.ClientCursor(connection, row_factory=psycopg.rows.dict_row)
            return list(cursor.execute(command.encode()))

    def log(self) -> str:
        """What it said since it was made."""
        return log_in(self.folder)

    def close(self) -> None:
        """Stop it, and remove all that is left of it."""
        if self._guard is not None:
            with suppress(ServerFailed):
                self._end(signal.SIGKILL)  # it keeps nothing; where somebody has SIGQUIT blocked it would not hear
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _end(self, number: signal.Signals) -> None:
        assert self._guard is not None
        assert self._guard.stdin is not None
        with suppress(BrokenPipeError):
            self._guard.stdin.write(bytes([number]))
        try:
            self._guard.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
            raise ServerFailed(f"PgBouncer did not stop on {number.name}:\n{self.log()}") from None
        finally:
            forget(self._guard)
            self._guard = None
