"""uvicorn's HTTP protocol, with one thing more: a response can cut its connection.

ASGI only knows how to go on. A client that reads nothing would keep its connection, and what was written to it, for as
long as it likes: closing waits for what is not sent yet.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

ABORT = "outrider.abort"
"""The extension of a request's scope: a function that cuts the connection at once."""


class HttpProtocol(HttpToolsProtocol):
    """What `serving` runs uvicorn with."""

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: {"abort": self.transport.abort}}
