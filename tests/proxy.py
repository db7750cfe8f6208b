"""A TCP proxy on loopback that a test can cut, freeze and slow down, to see what a fault of the network does.

It runs on threads of its own, so that a test that blocks, or its event loop, does not hold it up. Each socket is closed
by a thread that uses it: a close from elsewhere would take effect only when that thread looks up.
"""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

from tests.servers import free_port

Direction: TypeAlias = Literal["to_server", "to_client"]
DIRECTIONS: Final[tuple[Direction, ...]] = ("to_server", "to_client")
CHUNK: Final = 65_536
LOOK: Final = 0.2
"""Seconds after which a thread that waits for a socket sees whether it still should."""
PATIENCE: Final = 30


@dataclass(eq=False, slots=True)
class Link:
    """One connection through the proxy."""

    client: socket.socket
    server: socket.socket
    over: set[Direction] = field(default_factory=set)
    """The directions in which all has been said, or nothing more will be."""
    is_dropped: bool = False
    is_reset: bool = False
    """Whether its end is a reset: no goodbye, and what was under way is lost."""


class Proxy:
    """Forwards to `host:port` what is sent to its own `host` and `port`, from `with` to its end.

    Its address stays the same over every fault. The verbs may be called from any thread, and hold when they return.
    """

    host: Final = "127.0.0.1"

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.port: Final = free_port()
        self._target = (host, port)
        self._changed = threading.Condition()
        self._acceptor: threading.Thread | None = None
        self._listener: socket.socket | None = None
        self._links: list[Link] = []
        self._accepted = 0
        self._frozen: frozenset[Direction] = frozenset()
        self._delay = 0.0
        self._rate: float | None = None

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.cut()

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        with self._changed:
            return len(self._links)

    @property
    def accepted(self) -> int:
        """How many connections there have been, the present ones included."""
        with self._changed:
            return self._accepted

    def cut(self, *, politely: bool = False) -> None:
        """Drop all connections, and refuse new ones. See `drop`."""
        with self._changed:
            listener, self._listener = self._listener, None
        if listener is not None and self._acceptor is not None:
            with suppress(OSError):  # not every system lets it be woken so
                listener.shutdown(socket.SHUT_RDWR)
            self._acceptor.join()
        self.drop(politely=politely)

    def drop(self, *, politely: bool = False) -> None:
        """Drop all connections with a reset, or politely with an end, as if the other side had closed them.

        New ones are taken.
        """
        with self._changed:
            links = list(self._links)
            for link in links:
                self._abandon(link, is_reset=not politely)
            gone = self._changed.wait_for(lambda: not any(link in self._links for link in links), PATIENCE)
            assert gone, "a connection of the proxy did not end"

    def freeze(self, *directions: Direction) -> None:
        """Keep the connections and take new ones, but forward nothing, in the directions named, or in both.

        Nothing is lost: what is sent meanwhile waits, and its sender too once the buffers on the way are full. An end
        waits as well, so that each side believes in the other.
        """
        with self._changed:
            self._frozen = frozenset(directions or DIRECTIONS)
            self._changed.notify_all()

    def slow(self, *, delay: float = 0.0, rate: float | None = None) -> None:
        """Hold each piece that passes back by `delay` seconds, and let at most `rate` bytes a second pass each way."""
        with self._changed:
            self._delay, self._rate = delay, rate
            self._changed.notify_all()

    def heal(self) -> None:
        """Undo every fault: take connections, forward at once. What was dropped stays dropped."""
        with self._changed:
            self._frozen, self._delay, self._rate = frozenset(), 0.0, None
            self._changed.notify_all()
        if self._listener is None:
            self._listen()

    def _listen(self) -> None:
        self._listener = socket.create_server((self.host, self.port))
        self._listener.settimeout(LOOK)
        self._acceptor = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._acceptor.start()

    def _accept(self, listener: socket.socket) -> None:
        with listener:
            while self._listener is listener:
                with suppress(OSError):  # nobody came, or `cut` woke us
                    client, _ = listener.accept()
                    self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target)
        except OSError:  # the server is down: the client sees a connection that ends at once
            client.close()
            return
        for half in (client, server):
            half.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            half.settimeout(LOOK)
        link = Link(client, server)
        with self._changed:
            self._links.append(link)
            self._accepted += 1
        for direction in DIRECTIONS:
            threading.Thread(target=self._forward, args=(link, direction), daemon=True).start()

    def _forward(self, link: Link, direction: Direction) -> None:
        source, target = (link.client, link.server) if direction == "to_server" else (link.server, link.client)
        try:
            while self._may_pass(link, direction):
                try:
                    data = source.recv(CHUNK)
                except TimeoutError:
                    continue
                if not data:
                    if self._may_pass(link, direction):
                        target.shutdown(socket.SHUT_WR)
                    break
                self._send(link, direction, target, data)
        except OSError:  # a side reset the connection: the other learns it the same way
            with self._changed:
                self._abandon(link, is_reset=True)
        finally:
            self._end(link, direction)

    def _send(self, link: Link, direction: Direction, target: socket.socket, data: bytes) -> None:
        """Send it on, as slowly as it may pass, or as far as the connection lasts."""
        while data:
            size = self._hold_back(link, len(data))
            piece, data = data[:size], data[size:]
            while piece and self._may_pass(link, direction):
                with suppress(TimeoutError):  # the receiver does not read
                    piece = piece[target.send(piece) :]

    def _may_pass(self, link: Link, direction: Direction) -> bool:
        """Wait while the direction is frozen. False if the connection was dropped."""
        with self._changed:
            self._changed.wait_for(lambda: link.is_dropped or direction not in self._frozen)
            return not link.is_dropped

    def _hold_back(self, link: Link, size: int) -> int:
        """Wait as long as is asked for. Returns how many bytes may pass then."""
        with self._changed:
            asked = delay, rate = self._delay, self._rate
            if rate is not None:
                size = min(size, max(1, int(rate / 20)))  # a twentieth of a second's
                delay += size / rate
            if delay:
                self._changed.wait_for(lambda: link.is_dropped or asked != (self._delay, self._rate), delay)
            return size

    def _abandon(self, link: Link, *, is_reset: bool) -> None:
        """Have the threads of a connection end it. The lock is held."""
        if not link.is_dropped:
            link.is_dropped, link.is_reset = True, is_reset
            for half in (link.client, link.server):
                with suppress(OSError):  # its side is gone
                    half.shutdown(socket.SHUT_RD)  # which wakes who reads, and tells the other side nothing
            self._changed.notify_all()

    def _end(self, link: Link, direction: Direction) -> None:
        """Note the end of one direction. With the second the connection is over."""
        with self._changed:
            link.over.add(direction)
            if len(link.over) < len(DIRECTIONS):
                return
            for half in (link.client, link.server):
                if link.is_reset:
                    half.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                half.close()
            self._links.remove(link)
            self._changed.notify_all()
