"""What fails and is tried again and again: told when that begins and when it is over, and not at every try.

They are those of a runtime and not of a worker, since in a long outage one worker follows another.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from outrider.core.errors import OutriderError
from outrider.runtime.log import log


@dataclass(slots=True)
class _Trouble:
    since: float
    tries: int = 0
    told: set[str] = field(default_factory=set)


class Troubles:
    """What has been failing since when, by the name of what is tried."""

    def __init__(self) -> None:
        self._open: dict[str, _Trouble] = {}

    def met(self, what: str, error: OutriderError) -> None:
        """It failed. That is told once for each code of an error, until it is over."""
        trouble = self._open.setdefault(what, _Trouble(time.monotonic()))
        trouble.tries += 1
        if error.code not in trouble.told:
            trouble.told.add(error.code)
            log.error(f"{what} failed; trying again", reason=error.message)

    def over(self, what: str) -> None:
        """It has succeeded. That is told where it had failed before."""
        trouble = self._open.pop(what, None)
        if trouble is not None:
            seconds = round(time.monotonic() - trouble.since, 1)
            log.warning(f"{what} succeeds again", seconds=seconds, failures=trouble.tries)
