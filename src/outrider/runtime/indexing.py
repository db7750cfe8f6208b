"""Keeping the index of tasks up to date: the duty of workers that follows the log.

Nothing of it is in a transition's transaction, and it takes a small share of the store's time, so that what runs is not
slowed. Lists are right meanwhile: what the index lacks is looked at by whoever lists.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from outrider.core.errors import OutriderError
from outrider.core.ledger import IndexEntry, Ledger, Signal
from outrider.core.search import entry_of
from outrider.core.task import Task
from outrider.runtime.log import log
from outrider.runtime.pruning import is_on_duty
from outrider.runtime.services import Services

SHARE = 0.1
"""How much of the time it takes at most while tasks run or are made: after a batch it rests as long as makes that."""

SHARE_AT_REST = 0.5

FEW = 2
"""How many commits of this process there are from one batch to the next while nothing else goes on."""

LATE = 60.0
"""After how many seconds of not having caught up it may take `SHARE_LATE`: the more is missing the slower lists are."""

SHARE_LATE = 0.25

ENTRIES = 500
"""How many log entries are read at once: so few that no transition waits long behind what is written."""

TROUBLE = "indexing"

AT_ONCE = 0.005
"""For how many seconds the event loop is kept from others."""

UNHEARD = 30.0
"""After how many seconds it looks although nobody was heard to write."""


class Indexing:
    """The duty of a worker: bring the index up to date, again and again.

    Of all the workers the one that has been there longest does it. Two at once do no harm: one of them is refused.
    """

    def __init__(self, services: Services, own_id: str, is_idle: Callable[[], bool]) -> None:
        self._services = services
        self._own_id = own_id
        self._is_idle = is_idle
        self._has_news = True
        self._commits = 0
        self._caught_up_at = self._looked_at = time.monotonic()

    async def run(self) -> None:
        """Do it for ever."""
        stop = self._services.ledger.listen(self._heard)
        rest = self._services.settings.index_interval
        try:
            while True:
                await asyncio.sleep(rest)
                rest = await self._look()
        finally:
            stop()

    def _heard(self, signal: Signal) -> None:
        self._has_news = True

    async def _look(self) -> float:
        """Take in what is new, a batch of it; return how long to rest."""
        interval = self._services.settings.index_interval
        now = time.monotonic()
        if not self._has_news and now - self._looked_at < UNHEARD:
            return interval
        try:
            if not await is_on_duty(self._services, self._own_id):
                return interval
            self._has_news, self._looked_at = False, now
            is_behind = await take_in(self._services.ledger)
        except OutriderError as error:
            self._has_news = True
            self._services.troubles.met(TROUBLE, error)
            return interval
        self._services.troubles.over(TROUBLE)
        took = time.monotonic() - now
        if not is_behind:
            self._caught_up_at = now
            return interval
        self._has_news = True
        return took * (1 / self._share(now) - 1)

    def _share(self, now: float) -> float:
        commits, self._commits = self._commits, self._services.ledger.counters["commits"]
        if self._is_idle() and self._commits - commits <= FEW:
            return SHARE_AT_REST
        return SHARE if now - self._caught_up_at < LATE else SHARE_LATE


async def take_in(ledger: Ledger) -> bool:
    """Take the next log entries into the index; return whether it lacks others yet."""
    lacks = await ledger.views.unindexed(ENTRIES)
    if lacks.upto != lacks.after or lacks.more:
        entries = await _entries_of(lacks.tasks)
        if not await ledger.index(entries, lacks.after, lacks.upto):
            log.debug("another worker keeps the index of tasks", position=lacks.after)
    return lacks.more


async def _entries_of(tasks: Sequence[Task]) -> list[IndexEntry]:
    """What the index is to have of these tasks. Long texts take their time: others have their turn in between."""
    entries, since = [], time.monotonic()
    for task in tasks:
        entries.append(entry_of(task))
        if time.monotonic() - since > AT_ONCE:
            await asyncio.sleep(0)
            since = time.monotonic()
    return entries
