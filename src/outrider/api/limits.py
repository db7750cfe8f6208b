"""The layer below the log: reads the body of a request within bounds, and makes a problem of a fault of ours.

A body is read whole before a route sees the request: no route is begun for one that is too large or never comes. Who
has no good key is refused by the route that they ask for, on the head alone: of theirs nothing is read.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from outrider.api.access import Gate
from outrider.api.access_log import REQUEST_ID
from outrider.api.answers import LONGEST_FORM
from outrider.api.problems import problem
from outrider.core.errors import OutriderError
from outrider.runtime.answer_links import PATH as ANSWER
from outrider.runtime.log import log
from outrider.settings import KIB, ServeSettings

SMALL = 64 * KIB
"""How large a body may be that is read however much is held: as much as is buffered of any connection."""

_CLOSE = {"Connection": "close"}


class Limits:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, gate: Gate) -> None:
        self._app = app
        self._settings = settings
        self._gate = gate
        self._held = 0
        """How large the bodies are together of all requests that are under way."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = _told(scope)
        body: _Body | None = None
        refusal: OutriderError | None = None
        has_begun = False

        async def sending(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                if refusal is not None:  # what comes of the body is no other request
                    message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        try:
            if length is not None:
                is_form = scope["path"].startswith(ANSWER)  # nobody needs a key for it
                refusal = None if is_form else await self._gate.refusal(scope)
                if refusal is None:
                    body = _Body(min(self._settings.body, LONGEST_FORM) if is_form else self._settings.body)
                    if not await self._read(scope, length, body, receive, sending):
                        return
                    receive = _again(body.whole(), receive)
                else:
                    receive = _refused(refusal)
            await self._app(scope, receive, sending)
        except Exception as error:
            request_id = scope.get(REQUEST_ID)
            path = ANSWER if scope["path"].startswith(ANSWER) else scope["path"]  # whoever has such a link may answer
            log.error("a request failed", request=request_id, path=path, exc_info=error)
            if has_begun:
                raise  # the connection is cut, so that nobody takes what was sent for all of it
            detail = f"this should not have happened; the server's log has more about {request_id}"
            await problem(scope, 500, detail)(scope, receive, sending)
        finally:
            if body is not None:
                self._held -= body.size

    async def _read(self, scope: Scope, length: int, body: _Body, receive: Receive, send: Send) -> bool:
        """Read a body; False where the request was answered, or there is nobody to answer."""
        is_too_large, is_too_much = length > body.limit, False
        most = max(self._settings.bodies, self._settings.body)  # one alone is always read
        if not is_too_large:
            try:
                async with asyncio.timeout(self._settings.body_timeout):
                    while True:
                        message = await receive()
                        if message["type"] != "http.request":
                            return False
                        chunk = message.get("body", b"")
                        self._held += len(chunk)
                        body.add(chunk)
                        is_too_large = body.size > body.limit
                        is_too_much = body.size > SMALL and self._held > most
                        if is_too_large or is_too_much or not message.get("more_body", False):
                            break
            except TimeoutError:
                text = f"the body did not come within {self._settings.body_timeout:g} seconds"
                await problem(scope, 408, text, headers=_CLOSE)(scope, receive, send)
                return False
        if is_too_large:
            text = f"the body has more than the limit of {body.limit:,} bytes"
            answer = problem(scope, 413, text, details={"what": "body", "limit": body.limit}, headers=_CLOSE)
        elif is_too_much:
            text = f"the bodies of all requests under way have more than {most:,} bytes together; try again in a moment"
            answer = problem(scope, 503, text, details={"what": "bodies", "limit": most}, headers=_CLOSE)
        else:
            return True
        await answer(scope, receive, send)
        return False


class _Body:
    """What has come of a body that may have so many bytes."""

    __slots__ = ("_chunks", "limit", "size")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._chunks: list[bytes] = []

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self._chunks.append(chunk)

    def whole(self) -> bytes:
        """All of it, which is not kept here any more."""
        chunks, self._chunks = self._chunks, []
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


def _refused(refusal: OutriderError) -> Receive:
    """A `receive` for who is not admitted. A route asks who they are before it reads, and raises that itself."""

    async def receiving() -> Message:
        raise refusal

    return receiving
