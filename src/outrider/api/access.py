"""Who asks, and what they may: the dependencies that give a route its `Runtime`.

A route states the scope it needs by the runtime that it takes: `Reading`, `Submitting`, `Operating` or
`Administering`. What it is given reaches as far as the caller does, so a route cannot reach further by mistake. Without
authentication, which only this machine is served without, everybody may do everything; only pages of other sites, which
a browser here has open, may not.
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import ip_address
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope as Connection

from outrider.core.errors import Forbidden, OutriderError
from outrider.runtime.access import ANYBODY as ANYBODY
from outrider.runtime.access import Access, Caller
from outrider.runtime.bounds import Bounds
from outrider.runtime.facade import Runtime
from outrider.runtime.keys import SCOPES as SCOPES
from outrider.runtime.keys import Scope
from outrider.runtime.tokens import Tokens
from outrider.settings import ServeSettings

MOST = 1000
"""How many runtimes within bounds are kept for the next request."""


class Gate:
    """Admits the requests of one application."""

    def __init__(self, runtime: Runtime, settings: ServeSettings) -> None:
        """Raises InvalidArguments for an issuer of tokens that cannot be trusted."""
        given = settings.access
        issuer = None if given is None else given.issuer
        self._runtime = runtime
        self._settings = settings
        self._access = None
        if given is not None:
            tokens = None if issuer is None else Tokens(issuer, runtime.services.clock)
            self._access = Access(runtime.services, given, tokens)
        self._within: OrderedDict[Bounds, Runtime] = OrderedDict()

    @property
    def is_guarded(self) -> bool:
        """Whether anybody is asked who they are."""
        return self._access is not None

    async def admit(self, request: Request, scope: Scope) -> Runtime:
        """Authenticate, check the scope, and return the runtime within the bounds of who asks. Raises a Denied."""
        connection = request.scope
        connection["outrider.needs"] = scope
        if self._access is None:
            self._check_is_local(request)
            connection["outrider.caller"] = ANYBODY
            return self._runtime
        caller = await self._access.admit(request.headers.get("authorization"), address_of(connection))
        connection["outrider.caller"] = caller
        connection["outrider.rate"] = self._access.count(caller)
        caller.check(scope)
        return self._runtime_within(caller.bounds)

    async def refusal(self, connection: Connection) -> OutriderError | None:
        """Why who sends a request will not be admitted, by its head alone; None for who may be. It is counted later."""
        if self._access is None:
            return None
        try:
            await self._access.check(Headers(scope=connection).get("authorization"))
        except OutriderError as refusal:
            return refusal
        return None

    async def check_still(self, connection: Connection) -> None:
        """Raise a Denied where who was admitted with a request, which goes on for long, no longer is."""
        if self._access is not None:
            await self._access.check_still(Headers(scope=connection).get("authorization"))

    def _runtime_within(self, bounds: Bounds) -> Runtime:
        found = self._within.get(bounds)
        if found is None:
            found = self._within[bounds] = self._runtime.within(bounds)
            if len(self._within) > MOST:
                self._within.popitem(last=False)
        return found

    def _check_is_local(self, request: Request) -> None:
        """Raise Forbidden for what a page of another site has a browser of this machine send.

        Such a page says where it is from, unless the name of its own site leads here; then that name is asked for.
        """
        host, origins = request.headers.get("host", ""), self._settings.origins
        if not _is_own_name(host, self._settings.hosts):
            raise Forbidden(f"nobody here is called {host!r:.100}; if somebody is, serve with --allow-host")
        origin = request.headers.get("origin")
        if origin is not None and not {origin, "*"} & {*origins} and _place_of(origin) != host:
            raise Forbidden(f"pages of {origin!r:.100} may not use this; if they may, serve with --origin")


async def reading(request: Request) -> Runtime:
    """The runtime for who may look."""
    return await _admit(request, "read")


async def submitting(request: Request) -> Runtime:
    """The runtime for who may give work, answer and talk."""
    return await _admit(request, "submit")


async def operating(request: Request) -> Runtime:
    """The runtime for who may hold up, prune and move what is there."""
    return await _admit(request, "operate")


async def administering(request: Request) -> Runtime:
    """The runtime for who may do anything."""
    return await _admit(request, "admin")


async def measuring(request: Request) -> Runtime:
    """The runtime for who may see the figures of all organizations. Raises Forbidden for anybody but an operator."""
    runtime = await _admit(request, "read")
    runtime.services.operating("what is measured")
    return runtime


async def _admit(request: Request, scope: Scope) -> Runtime:
    gate: Gate = request.app.state.gate
    return await gate.admit(request, scope)


async def caller_of(request: Request) -> Caller:
    """Who asks. Comes after the dependency that admitted them."""
    caller: Caller = request.scope["outrider.caller"]
    return caller


SCOPE_OF: dict[object, Scope] = {
    reading: "read",
    submitting: "submit",
    operating: "operate",
    administering: "admin",
}
"""Which scope each of these dependencies asks for."""
FOR_OPERATORS: dict[str, object] = {"x-outrider-operator": True}
"""`openapi_extra` of a route that the façade refuses to all but operators, whatever is asked of it."""

Reading = Annotated[Runtime, Depends(reading)]
Submitting = Annotated[Runtime, Depends(submitting)]
Operating = Annotated[Runtime, Depends(operating)]
Administering = Annotated[Runtime, Depends(administering)]
Asking = Annotated[Caller, Depends(caller_of)]


def address_of(connection: Connection) -> str:
    """Where a request comes from: the address of whoever is connected, be that a proxy."""
    client = connection.get("client")
    return str(client[0]) if client else "unix"


def _place_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _is_own_name(host: str, known: tuple[str, ...]) -> bool:
    """Whether a site of somebody else's can have no such name: it would be one with dots."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:  # it is none at all
        return False
    if "." not in name or name in known or name.endswith(".localhost"):
        return True
    try:
        return bool(ip_address(name))
    except ValueError:
        return False
