"""The one clock of a fleet: the server's, as far as this process knows it.

Between two looks it goes on by a clock of this machine that nobody sets, so a step of the machine's own is not seen at
all. A look tells how late its answer may have been; the best of the last few counts, lest a slow one move the time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from outrider.core.values import Instant

T = TypeVar("T")

LOOKS = 16
"""How many looks are remembered. What a machine's quartz drifts meanwhile is less than what a slow answer hides."""

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""The first goes on while the machine sleeps; Linux has it."""


class ServerClock:
    """Tells the server's time. Looked at by one thread, asked by any."""

    def __init__(self) -> None:
        self._looks: deque[tuple[int, int]] = deque(maxlen=LOOKS)
        self._ahead = time.time_ns() // 1000 - _passed()

    def now(self) -> Instant:
        """The present moment in microseconds since the Unix epoch."""
        return _passed() + self._ahead

    def look(self, ask: Callable[[], tuple[Instant, T]]) -> T:
        """Have the server asked, for its time and something else, which is returned. Raises what `ask` raises."""
        before = _passed()
        said, rest = ask()
        self.note(before, said, _passed())
        return rest

    def note(self, before: int, said: Instant, after: int) -> None:
        """Take in what the server said at some moment between two of this machine, in microseconds."""
        ahead, doubt = said - (before + after) // 2, (after - before) // 2
        if any(abs(ahead - other) > doubt + its + 1000 for its, other in self._looks):
            self._looks.clear()  # the server's clock was set, or it is another server's
        self._looks.append((doubt, ahead))
        self._ahead = min(self._looks)[1]


def _passed() -> int:
    return time.clock_gettime_ns(_CLOCK) // 1000
