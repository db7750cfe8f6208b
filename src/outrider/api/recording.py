"""The one place where requests are written into the audit log, and where those that last are looked at again.

An entry is durable before the answer is sent, so whoever was told that something was done finds it in the log. What
cannot be written down then, for the store is away, has been done all the same: that is in the server's own log.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from typing import Any, cast

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from outrider.api.access import Gate, address_of
from outrider.core.errors import Denied, StoreError
from outrider.core.task import DEFAULT_ORGANIZATION
from outrider.runtime.access import Caller, Rate, Rates
from outrider.runtime.facade import Runtime
from outrider.runtime.log import log

REFUSALS = Rates(1.0, 20)
"""How many refusals are written down: twenty, and one a second. How many were not stands in the next."""

TARGETS = "outrider.targets"
"""Where, in the scope of a request, those things are that it is about; without, they are what its path names."""
FEW = 1900
"""How many characters of ids are named of many things; of the others how many there are."""

EVENTS = "text/event-stream"
_REFUSED = frozenset({401, 403, 429})
_ID = re.compile(rb'\{"id":"([^"\\]{1,128})"')
_CODE = re.compile(rb'"code":"([a-z_]{1,64})"')


LOOK_AGAIN = 5.0
"""How many seconds a stream goes on until it is looked at again whether who follows it is still admitted. One in which
nothing happens is looked at with its next sign of life."""

_NOT_ADMITTED = b'event: end\ndata: {"reason":"not_admitted"}\n\n'


def concern(request: Request, **targets: str | bool | float | Sequence[str] | None) -> None:
    """Have the audit log say what a request is about, beside what its path names. What is None, False or empty is not
    said; of many ids as many are as a few lines hold.
    """
    there = request.scope.setdefault(TARGETS, {**request.path_params})
    for name, value in targets.items():
        if isinstance(value, bool):
            if value:
                there[name] = "true"
        elif isinstance(value, str | float | int):
            there[name] = f"{value}"
        elif value:
            there[name] = _few(value)


def _few(ids: Sequence[str]) -> str:
    length = 0
    for number, each in enumerate(ids):
        length += len(each) + 1
        if length > FEW:
            return " ".join([*ids[:number], f"and {len(ids) - number} more"])
    return " ".join(ids)


class Recording:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, runtime: Runtime, gate: Gate) -> None:
        self._app = app
        self._runtime = runtime
        self._gate = gate
        self._refusals = Rates(REFUSALS.rate, REFUSALS.burst)
        self._unrecorded = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not self._gate.is_guarded:
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        stream = _Stream(scope, self._gate, receive) if scope["method"] == "GET" else None

        async def sending(message: Message) -> None:
            nonlocal start
            if stream is not None and await stream.is_over(message, send):
                return
            if message["type"] == "http.response.start":
                _tell_rate(message, scope.get("outrider.rate"))
                if self._is_worth_it(scope, message["status"]):
                    start = message  # until its body says what came of it
                    return
            elif start is not None:
                begun, start = start, None
                await self._record(scope, begun["status"], message.get("body", b""))
                await send(begun)
            await send(message)

        try:
            await self._app(scope, receive if stream is None else stream.receive, sending)
        except BaseException as error:
            if self._is_worth_it(scope, 500):
                is_cut = isinstance(error, asyncio.CancelledError)  # by the end of the server
                await self._record(scope, 500, b'"code":"cut"' if is_cut else b'"code":"internal"')
            raise

    def _is_worth_it(self, scope: Scope, status: int) -> bool:
        needs = scope.get("outrider.needs")
        changes = scope["method"] not in ("GET", "HEAD") and needs != "read"
        return needs is not None and (changes or status in (401, 403))

    async def _record(self, scope: Scope, status: int, body: bytes) -> None:
        caller: Caller | None = scope.get("outrider.caller")
        targets = {**scope.get(TARGETS, scope.get("path_params", {}))}
        targets = {name: str(value) for name, value in targets.items()}
        outcome = "ok"
        if status >= 400:
            code = _CODE.search(body)
            outcome = code[1].decode() if code else scope.get("outrider.outcome", f"{status}")
        elif made := _ID.match(body):
            targets.setdefault("id", made[1].decode())
        if status in _REFUSED or (status >= 400 and (caller is None or caller.via == "link")):
            now = self._runtime.services.clock.passed()
            if self._refusals.take("" if caller is None else caller.organization_id, now).is_over:
                self._unrecorded += 1
                return
            if self._unrecorded:
                targets["unrecorded"], self._unrecorded = f"{self._unrecorded}", 0
        actor = {"via": "nobody"} if caller is None else caller.actor
        action = str(getattr(scope.get("endpoint"), "__name__", scope["path"]))
        try:
            await self._runtime.audit.record(
                action,
                actor={**actor, "address": address_of(scope)},
                outcome=outcome,
                targets=targets,
                request_id=scope.get("outrider.request_id"),
                organization_id=DEFAULT_ORGANIZATION if caller is None else caller.organization_id,
            )
        except StoreError as error:
            log.error(
                "what a request did could not be written into the audit log",
                action=action,
                targets=targets,
                reason=f"{error}",
            )


class _Stream:
    """A response that may go on for long: it ends when who follows it is no longer admitted."""

    def __init__(self, scope: Scope, gate: Gate, receive: Receive) -> None:
        self._scope = scope
        self._gate = gate
        self._receive = receive
        self._looked_at = time.monotonic()
        self._is_stream = False
        self._is_over = asyncio.Event()

    async def receive(self) -> Message:
        """What the client sends; that it has gone, once it is no longer admitted."""
        tasks = [asyncio.ensure_future(each) for each in (self._receive(), self._is_over.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return {"type": "http.disconnect"} if self._is_over.is_set() else cast(Message, tasks[0].result())
        finally:
            for each in tasks:
                each.cancel()

    async def is_over(self, message: Message, send: Send) -> bool:
        """Whether a message is not to be sent any more. The end of the stream is sent once."""
        if message["type"] == "http.response.start":
            self._is_stream = Headers(raw=message["headers"]).get("content-type", "").startswith(EVENTS)
        elif self._is_stream and not self._is_over.is_set():
            now = time.monotonic()
            if now - self._looked_at >= LOOK_AGAIN:
                self._looked_at = now
                try:
                    await self._gate.check_still(self._scope)
                except Denied:
                    await send({"type": "http.response.body", "body": _NOT_ADMITTED, "more_body": False})
                    self._is_over.set()
        return self._is_over.is_set()


def _tell_rate(message: Message, rate: Rate | None) -> None:
    """Say what is left to a caller, as draft-ietf-httpapi-ratelimit-headers has it."""
    if rate is not None:
        headers: Any = MutableHeaders(raw=message.setdefault("headers", []))
        headers["RateLimit-Policy"] = f'"default";q={rate.burst};w={max(1, round(rate.full))}'
        headers["RateLimit"] = f'"default";r={rate.left};t={round(rate.reset)}'
