"""Who asks, and what they may: the dependencies that give a route its `Runtime`.

A route states the scope it needs by the runtime that it takes: `Reading`, `Submitting`, `Operating` or
`Administering`. Without authentication, which only a loopback address is served without, everybody is the
administrator of `org_default`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from fastapi import Depends
from starlette.requests import Request

from outrider.core.task import DEFAULT_ORGANIZATION
from outrider.runtime.facade import Runtime

Scope: TypeAlias = Literal["read", "submit", "operate", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "submit", "operate", "admin")
"""Each holds those before it: who may operate may submit and read as well."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: of which organization, how far they may go, bound to one session's tree or not, and their name."""

    organization_id: str = DEFAULT_ORGANIZATION
    scopes: frozenset[Scope] = frozenset(SCOPES)
    session_id: str | None = None
    name: str | None = None

    def signs(self, given: str | None) -> str | None:
        """Who did it, for the record: a caller with a name is who they are, whatever they say."""
        return given if self.name is None else self.name


ANYBODY = Caller()


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


async def _admit(request: Request, scope: Scope) -> Runtime:
    """Authenticate, check the scope, and return the runtime within the bounds of who asks."""
    del scope
    request.scope["outrider.caller"] = ANYBODY
    runtime: Runtime = request.app.state.runtime
    return runtime


async def caller_of(request: Request) -> Caller:
    """Who asks. Comes after the dependency that admitted them."""
    caller: Caller = request.scope["outrider.caller"]
    return caller


Reading = Annotated[Runtime, Depends(reading)]
Submitting = Annotated[Runtime, Depends(submitting)]
Operating = Annotated[Runtime, Depends(operating)]
Administering = Annotated[Runtime, Depends(administering)]
Asking = Annotated[Caller, Depends(caller_of)]
