"""What an agent's task does when a model fails it or may not be asked: the next of its models, or later, or no more.

The count of tries survives parking, in a row of the journal that is no progress. What one would get wrong: to wait for
a rate, or for what the calls of others hold, is no try; to wait for a provider is.
"""

from __future__ import annotations

import random
from typing import Any

from outrider.agents.engine import Busy, ModelFailed
from outrider.agents.models import chain
from outrider.core.values import SECOND, Instant, JSONObject
from outrider.runtime.clock import span
from outrider.runtime.codec import decode, encode
from outrider.runtime.context import TaskContext

TRIES = "tries!"
LONGEST_BACKOFF = 60 * SECOND
LONGEST_ASKED = 3600 * SECOND
"""A provider that asks for more than that is asked again all the same."""
SPREAD = SECOND // 4
"""Those who wait for the same moment come within this time."""


class Patience:
    """Of one attempt."""

    def __init__(self, task: TaskContext) -> None:
        self._task = task
        self._models: tuple[str | JSONObject, ...] = ()
        self._place = 0
        self._tries = 0
        self._iteration = task.live.iterations
        self._until: Instant | None = None
        """The earliest moment at which any of the models may be asked again."""

    async def resume(self) -> None:
        """Go on where an earlier attempt waited."""
        row = self._task.journal.at(TRIES)
        if row is None or row.value is None:
            return
        told = decode(row.value)
        if told["iteration"] == self._iteration:
            self._tries = told["tries"]
            await self._task.pause(told["until"])

    def turn(self) -> bool:
        """Turn to the next model, if there is one."""
        self._place += 1
        return self._place < len(self._models)

    def choice(self, models: Any) -> str | JSONObject | None:
        """The model to ask now, of those that the task names; None for an agent's own."""
        self._models = chain(models)
        return self._models[self._place] if self._models else None

    @property
    def is_at_last(self) -> bool:
        """Whether there is no other model to turn to."""
        return self._place + 1 >= len(self._models)

    async def bears(self, failure: ModelFailed) -> bool:
        """Wait, or turn to the next model; False where neither is worth it."""
        if self._task.live.iterations != self._iteration:
            self._iteration, self._tries = self._task.live.iterations, 0
        if isinstance(failure, Busy) and not failure.elsewhere:
            await self._task.pause(self._spread(failure.until))
            return True
        again = self._again_at(failure)
        if again is not None:
            self._until = again if self._until is None else min(again, self._until)
        if self.turn():
            return True
        self._place, until, self._until = 0, self._until, None
        is_try = not isinstance(failure, Busy) or failure.is_broken
        self._tries += is_try
        if until is None or (is_try and self._tries >= self._task.services.settings.model_tries):
            return False
        if is_try:
            told = {"tries": self._tries, "until": until, "iteration": self._iteration}
            await self._task.remember(TRIES, "tries", encode(told))
        await self._task.pause(until)
        return True

    def _again_at(self, failure: ModelFailed) -> Instant | None:
        """When this model may be asked again; None where it would say the same."""
        if isinstance(failure, Busy):
            return self._spread(failure.until)
        if not failure.retryable:
            return None
        now: Instant = self._task.services.clock.now()
        most = span(self._task.services.settings.model_backoff)
        wait = random.random() * min(most << self._tries, LONGEST_BACKOFF)
        if failure.retry_after is not None:
            wait += min(max(0, failure.retry_after) * SECOND, LONGEST_ASKED)
        return now + round(wait)

    def _spread(self, until: Instant) -> Instant:
        return until + round(random.random() * SPREAD)
