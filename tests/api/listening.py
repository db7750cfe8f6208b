"""A client of event streams for tests: speaks ASGI to an application, or HTTP to a server, and reads what comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message


@dataclass(frozen=True, slots=True)
class Told:
    """One event of a stream."""

    name: str
    id: int | None
    data: Any


def parse(text: bytes) -> tuple[list[Told], bytes]:
    """The events in what came, comments left out, and the rest that is no whole event yet."""
    *blocks, rest = text.split(b"\n\n")
    found = []
    for block in blocks:
        fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if not line.startswith((b":", b"retry")))
        if fields:
            at = fields.get(b"id")
            found.append(Told(fields[b"event"].decode(), None if at is None else int(at), json.loads(fields[b"data"])))
    return found, rest


@dataclass
class Listener:
    """Follows a stream of an application, as the server between them would."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    raw: bytes = b""
    is_whole: bool = False
    """Whether the response came to its end."""
    told: list[Told] = field(default_factory=list)
    comments: int = 0
    aborts: int = 0
    room: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared while the client reads nothing."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    job: asyncio.Task[None] | None = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, message: Message) -> None:
        await self.room.wait()
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self.raw += message.get("body", b"")
            self.comments += message.get("body", b"").startswith(b":")
            self.is_whole = not message.get("more_body", False)
            if self.headers.get(b"content-type", b"").startswith(b"text/event-stream"):
                found, rest = parse(self.raw)
                self.told += found
                self.raw = rest
        self._news.set()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def until(self, count: int = 0, *, comments: int = 0, timeout: float = 10.0) -> list[Told]:
        """Wait for so many events and comments, or for the end, and return all so far."""
        async with asyncio.timeout(timeout):
            while not self.is_whole:
                if count and len(self.told) >= count and self.comments >= comments:
                    break
                self._news.clear()
                await self._news.wait()
        return self.told

    async def leave(self) -> None:
        """Go, as a client does that closes its connection."""
        self.gone.set()
        self.room.set()
        assert self.job is not None
        await asyncio.wait_for(self.job, 5)

    def _abort(self) -> None:
        self.aborts += 1
        self.room.set()


@asynccontextmanager
async def listening(
    app: ASGIApp, path: str, *, query: str = "", last: int | str | None = None, reads: bool = True
) -> AsyncIterator[Listener]:
    """Follow a path of an application, after the event of the id `last`."""
    listener = Listener()
    if reads:
        listener.room.set()
    headers = [] if last is None else [(b"last-event-id", str(last).encode())]
    scope: MutableMapping[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "extensions": {"outrider.abort": {"abort": listener._abort}},
    }
    listener.job = asyncio.ensure_future(app(scope, listener.receive, listener.send))
    try:
        yield listener
    finally:
        if not listener.job.done():
            await listener.leave()
