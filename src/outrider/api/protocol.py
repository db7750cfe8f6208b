"""uvicorn's HTTP protocol, with more: patience ends, a response can cut its connection, and a refusal is heard out.

ASGI begins when the head of a request is there, and only knows how to go on. Who never ends one would keep a connection
for ever; so would who reads nothing of an answer, since closing waits for what is not sent yet. A stream of events says
itself when it has waited long enough (`live.Audience`); all other answers are looked after here.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from outrider.api.problems import problem
from outrider.settings import ServeSettings

ABORT = "outrider.abort"
"""The extension of a request's scope: a function that cuts the connection at once."""
LINGER, MOST_UNHEARD = 5.0, 64 * 1024 * 1024
"""For how many seconds, and how many bytes, a client that was refused is let send on."""


class HttpProtocol(HttpToolsProtocol):
    """What `serving` runs uvicorn with: the head of a request has to come in time, and to end."""

    def __init__(self, settings: ServeSettings, **given: Any) -> None:
        super().__init__(**given)
        self._settings = settings
        self._patience: asyncio.TimerHandle | None = None
        self._head = 0
        """How much of a head has come so far; while a body comes, of what is no part of it."""
        self._is_after_head = False
        self._fields = 0
        """How large the fields of the head are so far."""
        self._trailers = 0
        self._stall: asyncio.TimerHandle | None = None
        self._unread = 0
        """How much of what was sent nobody had read when that was looked at last."""
        self._lingering: asyncio.TimerHandle | None = None
        self._unheard = 0
        """How much came that is thrown away."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Somebody comes."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """And is gone."""
        super().connection_lost(exc)
        self._has_head()
        self._is_read()
        if self._lingering is not None:
            self._lingering.cancel()

    def pause_writing(self) -> None:
        """More was sent than is read."""
        super().pause_writing()
        self._await_reading()

    def resume_writing(self) -> None:
        """It was read."""
        super().resume_writing()
        if not self.is_over:
            self._is_read()

    def on_response_complete(self) -> None:
        """A response was sent, if not read."""
        if self._lingering is not None:
            self.server_state.total_requests += 1
            return  # what comes now is no other request
        super().on_response_complete()
        self._await_end()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing more was asked."""
        super().timeout_keep_alive_handler()
        self._await_end()

    def shutdown(self) -> None:
        """The server ends."""
        super().shutdown()
        self._await_end()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._is_after_head = False
        self._fields = 0
        self.scope["extensions"] = {ABORT: {"abort": self.transport.abort}}
        if self._patience is None:
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field is there. One after the body is nothing that was asked: whoever filters heads has not seen it."""
        if not self._is_after_head:
            self._fields += len(name) + len(value) + len(": \r\n")
            super().on_header(name, value)
            return
        self._trailers += len(name) + len(value)
        if self._trailers > self._settings.header:
            self._refuse_head()
            raise ValueError("too many trailers")  # so that nothing more is read

    def on_headers_complete(self) -> None:
        """The head of a request is there."""
        self._has_head()
        if len(self.url) + self._fields > self._settings.header:  # it may have come in one piece with the end of it
            self._refuse_head()
            raise ValueError("too large a head")  # so that nothing more is read
        if sum(name == b"host" for name, _ in self.headers) > 1:  # RFC 9112, 3.2: a proxy may have gone by the other
            self._refuse(400, "a request has one Host, and this has several")
            raise ValueError("several hosts")  # so that nothing more is read
        self._is_after_head = True
        self._head = self._trailers = 0
        upgrades = self.parser.should_upgrade()
        if upgrades and _has_body(self.headers):
            # The parser takes such a body for the next request.
            self._refuse(400, "a request with a body asks for no other protocol: send it without Upgrade, as HTTP/1.1")
            raise ValueError("a body that cannot be told from a request")  # so that nothing more is read
        super().on_headers_complete()
        self.cycle.transport = _Heard(self)
        if upgrades:
            self.cycle.keep_alive = False  # what comes now may be in the other protocol

    def on_body(self, body: bytes) -> None:
        """Some of a body is there."""
        self._head = 0
        super().on_body(body)

    def data_received(self, data: bytes) -> None:
        """Some of a request is there."""
        if self._lingering is not None:
            self._unheard += len(data)
            if self._unheard > MOST_UNHEARD:
                self._end_lingering()
            return
        self._head += len(data)
        super().data_received(data)
        if self._head > self._settings.header and (self._patience is not None or self._is_after_head):
            self._refuse_head()
        if self._patience is None and not self._is_answering and not self.is_over:
            self._await_head()  # it was an empty line, which begins nothing, and has ended the wait for another request

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, such as an address too long to be looked at."""
        if self._head > self._settings.header and not self._is_after_head:
            self._refuse_head()
            return
        self._refuse(400, f"this is no HTTP: {msg}")

    @property
    def is_over(self) -> bool:
        """Whether nothing more is answered."""
        return self._lingering is not None or self.transport.is_closing()

    def leave(self) -> None:
        """End the connection after a response: at once, unless the request has not come whole."""
        if self.cycle.response_complete and self.cycle.more_body:
            self._linger()
        else:
            self.transport.close()

    @property
    def _is_answering(self) -> bool:
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete  # type: ignore[redundant-expr]  # None before the first

    def _linger(self) -> None:
        """Send the end of what is sent, and let the client say what it has to, within bounds."""
        self._has_head()
        self._unset_keepalive_if_required()
        seconds = min(LINGER, self._settings.body_timeout)
        self._lingering = self.loop.call_later(seconds, self._end_lingering)
        self._unheard = 0
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._await_reading()

    def _end_lingering(self) -> None:
        self.transport.close()
        self._await_end()

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
            self._await_end()
        else:
            self._refuse(408, f"the head of the request did not come within {self._settings.head_timeout:g} seconds")

    def _await_end(self) -> None:
        """Closing waits for what is not read yet, for ever if need be."""
        if self.transport.is_closing():
            self._await_reading()

    def _await_reading(self) -> None:
        # Nothing is added while too much is unread, nor while it closes: what is unread gets less, or nobody reads.
        if self._stall is None and (unread := self.transport.get_write_buffer_size()):
            self._unread = unread
            self._stall = self.loop.call_later(self._settings.streams.stall_limit, self._look)

    def _look(self) -> None:
        self._stall = None
        if self.transport.get_write_buffer_size() >= self._unread:
            self.transport.abort()
        else:
            self._await_reading()

    def _is_read(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _refuse_head(self) -> None:
        self._refuse(431, f"the head of a request has at most {self._settings.header:,} bytes, and so have trailers")

    def _refuse(self, status: int, text: str) -> None:
        self._has_head()
        if self.is_over:
            return
        answer = problem({}, status, text)
        head = [STATUS_LINE[status], b"connection: close\r\n"]
        head += [b"%b: %b\r\n" % each for each in answer.raw_headers]
        self.transport.write(b"".join([*head, b"\r\n", bytes(answer.body)]))
        self._linger()


class _Heard(asyncio.Transport):
    """The transport as a response sees it: what closes it is the protocol, and what comes after the end is dropped."""

    def __init__(self, protocol: HttpProtocol) -> None:
        super().__init__()
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send some of it."""
        if not self._protocol.is_over:
            self._protocol.transport.write(data)

    def is_closing(self) -> bool:
        """Whether nothing more can be sent."""
        return self._protocol.is_over

    def close(self) -> None:
        """The response is over, and with it the connection."""
        self._protocol.leave()


def _has_body(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 ")) for name, value in headers
    )
