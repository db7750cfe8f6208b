"""Leaving new tasks to other workers, while this process is busy making them.

Who makes many tasks at once has enough to do with that, and each claim beside it is one more transaction; meanwhile
other workers would stand idle, since whoever makes a task knows of it first. So they are let go ahead, for a moment at
a time, and for as long as they are heard to do something.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from outrider.core.ledger import Signal

MANY = 16
"""How many tasks this process makes at once when it leaves them to others."""

MOMENT = 0.2
"""Seconds for which it leaves them, before it takes some itself."""

ANSWER = 0.05
"""Seconds within which somebody else has to be heard: whoever has no place left says nothing."""

ALONE = 1.0
"""Seconds for which it then leaves nothing."""

_LOOK = 0.005


class Courtesy:
    """What one worker leaves to others. `making` says how many tasks are on their way into the store from here.

    `is_served_elsewhere` says whether another worker runs the tasks of a route.
    """

    def __init__(self, making: Callable[[], int], is_served_elsewhere: Callable[[str], bool]) -> None:
        self._making = making
        self._is_served_elsewhere = is_served_elsewhere
        self._has_left = False
        self._heard_at = self._alone_until = 0.0

    def hear(self, signal: Signal) -> None:
        """Note that somebody else has written."""
        if signal.foreign or signal.unknown:
            self._heard_at = time.monotonic()

    def leaves(self, route: str) -> bool:
        """Whether a task that is being made here is left to others."""
        if not (self._is_busy and self._is_served_elsewhere(route) and time.monotonic() >= self._alone_until):
            return False
        self._has_left = True
        return True

    async def wait(self) -> None:
        """Let others go ahead, where something was left to them."""
        if not self._has_left:
            return
        self._has_left = False
        since = time.monotonic()
        while self._is_busy and time.monotonic() < since + MOMENT:
            if time.monotonic() > max(since, self._heard_at) + ANSWER:
                self._alone_until = time.monotonic() + ALONE
                return
            await asyncio.sleep(_LOOK)

    @property
    def _is_busy(self) -> bool:
        return self._making() >= MANY
