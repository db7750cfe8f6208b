"""Servers on loopback that take webhooks as servers do: well, badly, late, or not at all."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
from standardwebhooks import Webhook

from outrider.settings import WebhookSettings

LOOPBACK = WebhookSettings(allow=("127.0.0.0/8",), deliver=False)
"""Reaches the receivers of a test, and sends only what the test has it send."""

Answer = Callable[["Receiver", asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Request:
    """A request as it came."""

    head: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self.body)
        return found

    def verify(self, secret: str) -> Any:
        return Webhook(secret).verify(self.body, self.headers)


@dataclass
class Receiver:
    """A receiver. It answers what is next in `answers`, and the last of them again and again."""

    answers: list[Answer]
    port: int = 0
    scheme: str = "http"
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    jobs: set[asyncio.Task[Any]] = field(default_factory=set)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/hook"

    @property
    def ids(self) -> list[str]:
        return [request.id for request in self.requests]

    async def until(self, count: int, timeout: float = 20) -> None:
        """Wait for that many requests."""
        async with asyncio.timeout(timeout):
            while len(self.requests) < count:
                self.came.clear()
                await self.came.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        job = asyncio.current_task()
        assert job is not None
        self.jobs.add(job)
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.requests.append(Request(head[0], headers, body))
            self.came.set()
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            await answer(self, writer)
            await writer.drain()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def receiving(*answers: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """A receiver that answers so, with 200 unless told."""
    receiver = Receiver(list(answers) or [status(200)], scheme="http" if tls is None else "https")
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        receiver.released.set()
        server.close()
        if receiver.jobs:  # none outlives the loop
            await asyncio.wait(receiver.jobs, timeout=5)


def status(code: int, body: bytes = b"", **headers: str) -> Answer:
    async def answer(_: Receiver, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {code} Reason", f"content-length: {len(body)}", "connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    return answer


def raw(content: bytes) -> Answer:
    async def answer(_: Receiver, writer: asyncio.StreamWriter) -> None:
        writer.write(content)

    return answer


async def hang(receiver: Receiver, _: asyncio.StreamWriter) -> None:
    await receiver.released.wait()


async def drip(receiver: Receiver, writer: asyncio.StreamWriter) -> None:
    """A header that never ends, a byte at a time."""
    writer.write(b"HTTP/1.1 200 OK\r\nx-drip: ")
    while not receiver.released.is_set():
        writer.write(b"a")
        await writer.drain()
        await asyncio.sleep(0.01)


async def pour(receiver: Receiver, writer: asyncio.StreamWriter) -> None:
    """A body that never ends, as fast as it is taken."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n")
    while not receiver.released.is_set():
        writer.write(b"x" * 65_536)
        await writer.drain()


async def reset(_: Receiver, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
