"""Requests that wait for news: each for a bounded time, until the server ends, and only while somebody is there.

Whoever has waited is asked again who they are: a key that was revoked meanwhile is told no news.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Query
from pydantic import Field
from starlette.requests import Request

from outrider.api.access import Gate
from outrider.api.forms import Number
from outrider.settings import ServeSettings

T = TypeVar("T")

LONGEST = ServeSettings().poll

Timeout = Annotated[
    float,
    Query(ge=0, le=LONGEST, allow_inf_nan=False, description="How many seconds to wait at most; ask again to go on."),
]
Patience = Annotated[Number, Field(ge=0, le=LONGEST, description="How many seconds to wait at most.")]


async def attended(request: Request, work: Coroutine[Any, Any, T], *, alone: bool = False) -> T | None:
    """What comes of a wait; None, and it is given up, once the server begins to end or the client has left.

    What changes something goes on `alone`, without the client. Raises a Denied where who waited for news is no longer
    admitted.
    """
    waiting = asyncio.ensure_future(work)
    ending = asyncio.ensure_future(request.app.state.ending.wait())
    leaving = asyncio.ensure_future(asyncio.Event().wait() if alone else _left(request))
    try:
        await asyncio.wait({waiting, ending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not alone:
            gate: Gate = request.app.state.gate
            await gate.check_still(request.scope)
        return await waiting if waiting.done() else None
    finally:
        for each in (waiting, ending, leaving):
            each.cancel()
        await asyncio.gather(waiting, ending, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
