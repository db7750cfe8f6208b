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
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from outrider.api.problems import problem
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
            http=cast("type[asyncio.Protocol]", partial(_Connection, settings)),
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


class _Connection(HttpProtocol):
    """A connection on which the head of a request has to come in time, and to end."""

    def __init__(self, settings: ServeSettings, **given: Any) -> None:
        super().__init__(**given)
        self._settings = settings
        self._patience: asyncio.TimerHandle | None = None
        self._head = 0
        """How much of a head has come so far."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._has_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._patience is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._has_head()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        self._head += len(data)
        super().data_received(data)
        if self._patience is not None and self._head > self._settings.header:
            self._refuse(431, f"the head of a request has at most {self._settings.header:,} bytes")

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, f"this is no HTTP: {msg}")

    def _await_head(self) -> None:
        self._head = 0
        self._patience = self.loop.call_later(self._settings.head_timeout, self._give_up)

    def _has_head(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        if self._head == 0:
            self.transport.close()
        else:
            self._refuse(408, f"the head of the request did not come within {self._settings.head_timeout:g} seconds")

    def _refuse(self, status: int, text: str) -> None:
        self._has_head()
        if self.transport.is_closing():
            return
        answer = problem({}, status, text)
        head = [STATUS_LINE[status], b"connection: close\r\n"]
        head += [b"%b: %b\r\n" % each for each in answer.raw_headers]
        self.transport.write(b"".join([*head, b"\r\n", bytes(answer.body)]))
        self.transport.close()


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
