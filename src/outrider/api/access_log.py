"""One line of the log for each request, when it has been answered; and an id by which a client finds its own.

Pure ASGI: it hands on every piece as it comes, so a stream is not held up, and its line comes when it ends. What is
said in a request is never logged: of its path only the route, of its query and its headers nothing but the id.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from outrider.runtime.ids import new_id
from outrider.runtime.log import LOGGER, log

CALLER = "outrider.caller"
"""Where, in the scope of a request, those who admit it leave who asks: something with a `name`."""

PROBES = frozenset({"/health", "/ready", "/metrics"})
"""What is asked every few seconds for ever: logged at level DEBUG, unless it goes wrong."""

REQUEST_ID = "outrider.request_id"
"""Where the id of a request is, in its scope."""

HEADER = b"x-request-id"
_PLAIN = re.compile(r"[A-Za-z0-9._:+=/@-]{1,128}")


class AccessLog:
    """Middleware around an application, the outermost: what others refuse is logged as well."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and log how that went."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        line = _Line(scope)
        try:
            await self._app(scope, receive, line.passing(send))
        except BaseException as error:
            line.tell(error)
            raise
        line.tell(None)


class _Line:
    """The line of one request, as far as it is known."""

    __slots__ = ("_began", "_is_whole", "_request", "_scope", "_status")

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._began = time.perf_counter()
        self._request = scope[REQUEST_ID] = _given(scope["headers"]) or new_id("request")
        self._status: int | None = None
        self._is_whole = False

    def passing(self, send: Send) -> Send:
        async def pass_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._status = message["status"]
                there = [each for each in message.get("headers", ()) if each[0].lower() != HEADER]
                message = {**message, "headers": [*there, (HEADER, self._request.encode())]}
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                self._is_whole = True
            await send(message)

        return pass_on

    def tell(self, error: BaseException | None) -> None:
        """Log it. An answer that was not whole was cut off: by the client, or by the end of the server."""
        status = self._status
        if status is None and isinstance(error, Exception):
            status = 500
        route = _route(self._scope)
        is_wrong = status is not None and status >= 500 and route != "/ready"  # which has said so by itself
        level = logging.WARNING if is_wrong else logging.DEBUG if route in PROBES else logging.INFO
        if not LOGGER.isEnabledFor(level):
            return
        caller = self._scope.get(CALLER)
        more = {
            "caller": getattr(caller, "name", None),
            "organization": getattr(caller, "organization_id", None),
            "trace": _trace(),
            "cut": None if self._is_whole else True,
        }
        log.log(
            level,
            "request",
            method=self._scope["method"][:16],
            route=route,
            status=status,
            seconds=round(time.perf_counter() - self._began, 6),
            request=self._request,
            **{name: value for name, value in more.items() if value is not None},
        )


def _given(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The id that a client gave its request, if it is one that can stand in a line and a header."""
    for name, value in headers:
        if name == HEADER:
            text = value.decode("latin-1")
            return text if _PLAIN.fullmatch(text) else None
    return None


def _route(scope: Scope) -> str | None:
    """The template of the route that was found, None where none was: what stands in such a path is anybody's guess."""
    # A router that is included under a prefix keeps a route that knows nothing of it; the whole path is only here.
    context = scope.get("fastapi", {}).get("effective_route_context")
    for found in (context, scope.get("route")):
        if isinstance(path := getattr(found, "path_format", None), str):
            return path
    return None


def _trace() -> str | None:
    """The trace that the request belongs to, where the program traces."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import trace

    context: Any = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None
