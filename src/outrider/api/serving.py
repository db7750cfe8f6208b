"""One uvicorn in the running event loop, and its graceful end.

`Service.end` is what a signal calls: the application is told first (`app.state.ending`), so that streams and waits say
so and leave; then nothing more is accepted, requests under way finish, and what is left after a while is cut off.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import cast

import uvicorn
from fastapi import FastAPI

from outrider.api.protocol import HttpProtocol
from outrider.core.errors import InvalidArguments
from outrider.settings import ServeSettings

BACKLOG = 2048

logging.getLogger("uvicorn").addHandler(logging.NullHandler())  # what it has to say is for programs that want it


class Service:
    """An application being served on a socket that was bound before."""

    def __init__(self, app: FastAPI, listener: socket.socket, settings: ServeSettings) -> None:
        self._app = app
        self._listener = listener
        config = uvicorn.Config(
            app,
            http=cast("type[asyncio.Protocol]", partial(HttpProtocol, settings)),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=max(1, round(settings.keep_alive)),
            timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout)),
        )
        self._server = _Server(config)

    async def run(self) -> None:
        """Serve until told to end."""
        await self._server.serve(sockets=[self._listener])

    async def has_started(self) -> None:
        """Wait until connections are accepted."""
        await self._server.accepting.wait()

    @property
    def under_way(self) -> int:
        """How many requests are being answered."""
        return len(self._server.server_state.tasks)

    def end(self) -> None:
        """Begin to end. Only on the loop's own thread."""
        self._app.state.ending.set()
        self._server.should_exit = True


class _Server(uvicorn.Server):
    """A server that leaves signals to whoever runs it."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections, and say so."""
        await super().startup(sockets)
        self.accepting.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None: they are the process's."""
        yield


def bind(host: str, port: int, *, is_guarded: bool = False) -> socket.socket:
    """A listening place. Raises InvalidArguments where it is taken or not ours, and beyond loopback unless guarded.

    `is_guarded`: whoever asks has to say who they are.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InvalidArguments(f"there is no address {host!r:.200}: {error}") from None
    family, kind, protocol, _, address = found[0]
    if not is_guarded and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise InvalidArguments(
            f"{host} can be reached from other machines, and nobody would be asked who they are: serve on 127.0.0.1, "
            "behind a proxy that asks, or turn authentication on"
        )
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _cannot_bind(f"{host} port {port}", error) from None
    listener.setblocking(False)
    return listener


def bind_path(path: str) -> socket.socket:
    """A Unix socket that only this user may use; one that nobody listens on is replaced. Raises InvalidArguments."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.stat(path).st_mode) and not _answers(path):
                os.unlink(path)
        mask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
    except OSError as error:
        listener.close()
        raise _cannot_bind(path, error) from None
    listener.setblocking(False)
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
    return True


def _cannot_bind(place: str, error: OSError) -> InvalidArguments:
    if error.errno == errno.EADDRINUSE:
        return InvalidArguments(f"{place} is in use: another server listens there; end it, or name another place")
    return InvalidArguments(f"{place} cannot be listened on: {error.strerror or error}")
