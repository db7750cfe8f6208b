"""Waiting for a fact that tells nobody when it comes to be: of a store, another process, a file, a list."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable


async def until(fact: Callable[[], object], within: float = 20.0) -> None:
    """Wait until a fact, awaited if it has to be, holds. Raises TimeoutError after so many seconds."""
    async with asyncio.timeout(within):
        while not await _holds(fact):  # noqa: ASYNC110 - who makes it so rings no bell here
            await asyncio.sleep(0.005)


async def _holds(fact: Callable[[], object]) -> bool:
    found = fact()
    return bool(await found if inspect.isawaitable(found) else found)
