"""Connections: what a tool or an agent needs to be there, by name, such as the account that somebody has linked.

Only the app knows whether one is there, for a session and its organization: it is asked before a task is made, and
again whenever one begins to run.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

from outrider.core.errors import ConnectionRequired, UnknownName
from outrider.core.session import Session
from outrider.runtime.services import Services

Connection: TypeAlias = Callable[[Session], bool | Awaitable[bool]]
"""Says whether a connection is there for a session."""


async def lacking(services: Services, session: Session, names: Iterable[str]) -> list[str]:
    """Return those of the connections that are not there. Raises UnknownName for one that the app does not know."""
    missing = []
    for name in dict.fromkeys(names):
        look = services.registry.connections.get(name)
        if look is None:
            raise UnknownName.of("connection", name, services.registry.connections)
        if inspect.iscoroutinefunction(look):
            there = await look(session)
        else:
            there = await asyncio.to_thread(look, session)
        if there is not True:
            missing.append(name)
    return missing


async def check_connections(services: Services, session: Session, names: Iterable[str]) -> None:
    """Raise ConnectionRequired where a connection is missing."""
    missing = await lacking(services, session, names)
    if missing:
        raise ConnectionRequired.lacking(missing)
