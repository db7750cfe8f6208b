"""The proxy of the fault tests, before a server that echoes: each fault is what a client would see of a real one."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.proxy import Proxy

PATIENCE = 10


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, EchoServer)
        with self.server.changed:
            self.server.open += 1
        try:
            while data := self.request.recv(65_536):
                self.server.heard += data
                self.request.sendall(data)
        except ConnectionError:
            pass
        finally:
            with self.server.changed:
                self.server.open -= 1
                self.server.changed.notify_all()


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Echo)
        self.heard = b""
        self.open = 0
        self.changed = threading.Condition()


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with EchoServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(echo: EchoServer) -> Iterator[Proxy]:
    with Proxy(echo.server_address[1]) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with connected(proxy) as client:
        assert said(client, b"hello") == b"hello"
        yield client


def connected(proxy: Proxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), PATIENCE)


def said(client: socket.socket, words: bytes) -> bytes:
    """Say something, and hear as much."""
    client.sendall(words)
    return heard(client, len(words))


def heard(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := client.recv(size - len(data))):
        data += piece
    return data


def stays_silent(client: socket.socket) -> bool:
    client.settimeout(0.3)  # it would take no time at all
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(PATIENCE)
    return False


def test_much_passes_in_both_directions_and_connections_are_counted(proxy: Proxy, client: socket.socket):
    words = bytes(range(256)) * 20_000
    sender = threading.Thread(target=client.sendall, args=(words,))
    sender.start()
    assert heard(client, len(words)) == words
    sender.join()
    with connected(proxy) as second:
        assert said(second, b"also") == b"also"
        assert (proxy.connections, proxy.accepted) == (2, 2)
    until(lambda: proxy.connections == 1)
    assert proxy.accepted == 2


def test_an_end_passes_on_and_the_answer_still_comes(client: socket.socket, proxy: Proxy):
    client.sendall(b"last words")
    client.shutdown(socket.SHUT_WR)
    assert heard(client, 100) == b"last words"
    until(lambda: proxy.connections == 0)


def test_a_cut_resets_connections_and_refuses_new_ones_until_it_is_healed(
    proxy: Proxy, client: socket.socket, echo: EchoServer
):
    proxy.cut()
    assert proxy.connections == 0
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connected(proxy)
    with echo.changed:
        assert echo.changed.wait_for(lambda: echo.open == 0, PATIENCE)
    proxy.heal()
    with connected(proxy) as again:
        assert said(again, b"again") == b"again"


def test_a_polite_drop_looks_like_an_end_and_new_connections_are_taken(proxy: Proxy, client: socket.socket):
    proxy.drop(politely=True)
    assert client.recv(1) == b""
    with connected(proxy) as again:
        assert said(again, b"again") == b"again"


def test_a_connection_is_dropped_though_its_server_does_not_read(proxy: Proxy, client: socket.socket):
    client.settimeout(0.3)
    with pytest.raises(TimeoutError):  # nobody hears the echo, so the echo stops listening
        client.sendall(bytes(100_000_000))
    client.settimeout(PATIENCE)
    proxy.cut()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        client.sendall(bytes(1_000_000))


def test_what_is_sent_while_frozen_comes_when_it_is_healed(proxy: Proxy, client: socket.socket, echo: EchoServer):
    proxy.freeze()
    client.sendall(b" again")
    with connected(proxy) as second:
        second.sendall(b"me too")
        assert stays_silent(client)
        assert stays_silent(second)
        assert (proxy.connections, echo.heard) == (2, b"hello")
        proxy.heal()
        assert heard(client, 6) == b" again"
        assert heard(second, 6) == b"me too"


def test_one_direction_can_freeze_alone(proxy: Proxy, client: socket.socket, echo: EchoServer):
    proxy.freeze("to_client")
    client.sendall(b" again")
    until(lambda: echo.heard == b"hello again")
    assert stays_silent(client)
    proxy.freeze("to_server")
    assert heard(client, 6) == b" again"
    client.sendall(b" lost")
    assert stays_silent(client)
    assert echo.heard == b"hello again"


def test_a_frozen_connection_hides_that_its_client_is_gone(proxy: Proxy, client: socket.socket, echo: EchoServer):
    proxy.freeze()
    client.close()
    with echo.changed:
        assert not echo.changed.wait_for(lambda: echo.open == 0, 0.3)
    proxy.heal()
    with echo.changed:
        assert echo.changed.wait_for(lambda: echo.open == 0, PATIENCE)


def test_a_frozen_connection_can_be_cut(proxy: Proxy, client: socket.socket):
    proxy.freeze()
    client.sendall(b"lost")
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_a_slow_way_takes_its_time_and_loses_nothing(proxy: Proxy, client: socket.socket):
    words = bytes(range(256)) * 16
    proxy.slow(rate=len(words) * 4)
    begun = time.monotonic()
    client.sendall(words)
    assert heard(client, len(words)) == words
    assert time.monotonic() - begun >= 0.25  # at the least: the promise is that it is slow
    proxy.slow(delay=3600)
    client.sendall(b"held")
    assert stays_silent(client)
    proxy.heal()
    assert heard(client, 4) == b"held"


def test_a_server_that_is_down_is_a_connection_that_ends(echo: EchoServer):
    with closing(socket.create_server(("127.0.0.1", 0))) as unused:
        port = unused.getsockname()[1]
    with Proxy(port) as proxy, connected(proxy) as client:
        assert client.recv(1) == b""


def until(is_so) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)
