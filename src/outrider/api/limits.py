"""The layer below the log: reads the body of a request within bounds, and makes a problem of a fault of ours.

A body is read whole before a route sees the request: no route is begun for one that is too large or never comes.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from outrider.api.access_log import REQUEST_ID
from outrider.api.problems import problem
from outrider.runtime.answer_links import PATH as ANSWER
from outrider.runtime.log import log
from outrider.settings import ServeSettings

_CLOSE = {"Connection": "close"}


class Limits:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = _told(scope)
        has_begun = False

        async def sending(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
            await send(message)

        try:
            if length is not None:
                body = await self._read(scope, length, receive, sending)
                if body is None:
                    return
                receive = _again(body, receive)
            await self._app(scope, receive, sending)
        except Exception as error:
            request_id = scope.get(REQUEST_ID)
            path = ANSWER if scope["path"].startswith(ANSWER) else scope["path"]  # whoever has such a link may answer
            log.error("a request failed", request=request_id, path=path, exc_info=error)
            if has_begun:
                raise  # the connection is cut, so that nobody takes what was sent for all of it
            detail = f"this should not have happened; the server's log has more about {request_id}"
            await problem(scope, 500, detail)(scope, receive, sending)

    async def _read(self, scope: Scope, length: int, receive: Receive, send: Send) -> bytes | None:
        """The body; None where the request was answered, or there is nobody to answer."""
        limit = self._settings.body
        chunks: list[bytes] = []
        size = length
        if size <= limit:
            size = 0
            try:
                async with asyncio.timeout(self._settings.body_timeout):
                    while True:
                        message = await receive()
                        if message["type"] != "http.request":
                            return None
                        chunk = message.get("body", b"")
                        size += len(chunk)
                        chunks.append(chunk)
                        if size > limit or not message.get("more_body", False):
                            break
            except TimeoutError:
                text = f"the body did not come within {self._settings.body_timeout:g} seconds"
                await problem(scope, 408, text, headers=_CLOSE)(scope, receive, send)
                return None
        if size > limit:
            text = f"the body has more than the limit of {limit:,} bytes"
            answer = problem(scope, 413, text, details={"what": "body", "limit": limit}, headers=_CLOSE)
            await answer(scope, receive, send)
            return None
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _told(scope: Scope) -> int | None:
    """How long the body is said to be, 0 for one in pieces, None for none."""
    length: int | None = None
    for name, value in scope["headers"]:
        if name == b"content-length":
            length = int(value) if value.isdigit() and len(value) < 19 else 1 << 62
        elif name == b"transfer-encoding":
            length = length or 0
    return length


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that tells of a body that was read, and then of whatever comes."""
    message: dict[str, Any] | None = {"type": "http.request", "body": body, "more_body": False}

    async def receiving() -> Message:
        nonlocal message
        if message is None:
            return await receive()
        told, message = message, None
        return told

    return receiving
