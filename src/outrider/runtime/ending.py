"""Coming to an end whole: what has to be done on the way out is done, however often whoever leaves is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def see_through(closing: Coroutine[Any, Any, None]) -> None:
    """Do it to its end, and raise a cancellation that came meanwhile only then.

    A worker that is cut off while it drains would go on renewing its lease, and serve nobody. One cancel more is
    enough for that, and a scope of anyio cancels whoever is in it again and again until it has left.
    """
    job = asyncio.get_running_loop().create_task(closing)
    cancelled: asyncio.CancelledError | None = None
    while not job.done():
        try:
            await asyncio.wait([job])
        except asyncio.CancelledError as error:
            cancelled = error
    job.result()
    if cancelled is not None:
        raise cancelled
