"""Finding workers that are gone and making their work due again.

Every worker looks after every other. One of the same machine is gone when its lock is free, which is known at
once; any other, and one that was stopped, when its beat has not changed for the lease's time on the observer's own
monotonic clock. What is held in the name of a worker that nobody knows is nobody's, and freed as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from outrider.core.errors import NotFound, Superseded
from outrider.core.events import HolderLost, Released, Step
from outrider.core.ledger import Beat, Views, Worker
from outrider.core.task import OUTSIDER
from outrider.runtime.journal import OUTLIVES
from outrider.runtime.lease import Will, lock_path, seen_here, sweep
from outrider.runtime.log import log
from outrider.runtime.services import Services

READ_EVERY = 4
"""How many looks pass at most before the store is read, though nobody was heard to write."""

AT_ONCE = 64
"""How many lost tasks are freed together: they share transactions."""

SWEPT = 10.0
"""Seconds between two looks for locks that nobody will take away."""


class Recovery:
    """What one worker knows of the others."""

    def __init__(self, services: Services, host: str, locks: Path | None, own_id: str) -> None:
        self._services = services
        self._host = host
        self._locks = locks
        self._own_id = own_id
        self._beats: dict[str, int] = {}
        self._silence: dict[str, float] = {}
        self._looked_at = self._swept_at = time.monotonic()
        self._known: Sequence[Worker] = ()
        self._served_elsewhere: frozenset[str] = frozenset()
        self._is_old = True
        """Whether somebody else has written since the store was read."""

    def heard(self) -> None:
        """Somebody else has written: the workers may be others now."""
        self._is_old = True

    @property
    def pause(self) -> float:
        """How long until the next look, in seconds: whoever is alone has no lock to look at."""
        interval = self._services.settings.recovery_interval
        return interval if any(each.card.id != self._own_id for each in self._known) else READ_EVERY * interval

    def is_served_elsewhere(self, route: str) -> bool:
        """Whether another worker runs such tasks, as far as was seen at the last look."""
        return route in self._served_elsewhere

    async def look(self) -> int:
        """Recover the work of every worker that is gone; return how many tasks that were.

        While nobody writes, only the locks of the workers that are known are looked at: reading the store four times a
        second was a third of what a worker at rest costs. It is read once in a while all the same.
        """
        regular = READ_EVERY * self._services.settings.recovery_interval
        is_due = time.monotonic() - self._looked_at >= min(regular, *map(self._left, self._known), regular)
        if not (self._is_old or is_due or any(map(self._is_unlocked, self._known))):
            return 0
        self._is_old = False
        holders = await self._services.views.holders()  # first: whoever signs off meanwhile has handed back before
        workers = self._known = await self._services.views.workers()
        passed = self._passed()
        recovered = 0
        for worker in workers:
            if worker.card.id != self._own_id and self._is_gone(worker, passed):
                recovered += await self._bury(worker)
        known = {worker.card.id for worker in workers}
        self._served_elsewhere = frozenset().union(
            *(each.card.routes for each in workers if each.card.id != self._own_id and self._left(each) > 0)
        )
        for unknown in set(holders) - known - {self._own_id}:
            if unknown.startswith(OUTSIDER):  # no worker: it holds by reporting, and its deadline frees what it held
                continue
            recovered += await self._free_all(unknown, None)
        for gone in self._beats.keys() - known:
            del self._beats[gone], self._silence[gone]
        if self._locks is not None and time.monotonic() - self._swept_at >= SWEPT:
            self._swept_at = time.monotonic()
            sweep(self._locks, known)
        return recovered

    def _passed(self) -> float:
        """The time since the last look, as far as it was really watched: this process may have been stopped as well."""
        now = time.monotonic()
        passed, self._looked_at = now - self._looked_at, now
        return min(passed, max(1.0, 2 * READ_EVERY * self._services.settings.recovery_interval))

    def _is_gone(self, worker: Worker, passed: float) -> bool:
        card = worker.card
        is_silent = self._is_silent(worker, passed)
        if self._locks is None:
            return is_silent
        if self._is_unlocked(worker):
            return True
        # With a will it is leaving, and its process says when.
        return is_silent and (card.host != self._host or Will.read(lock_path(self._locks, card.id)) is None)

    def _is_unlocked(self, worker: Worker) -> bool:
        """Whether another worker of this machine is known to be dead."""
        card = worker.card
        if self._locks is None or card.id == self._own_id:
            return False
        return seen_here(card, self._locks, self._host, self._services.ledger) is False

    def _is_silent(self, worker: Worker, passed: float) -> bool:
        name = worker.card.id
        if self._beats.get(name) != worker.beat:
            self._beats[name], self._silence[name] = worker.beat, 0.0
            return False
        self._silence[name] += passed
        return self._left(worker) <= 0

    def _left(self, worker: Worker) -> float:
        """For how many seconds more it may be silent, as of the last look. The worker itself says how long."""
        lost_after = worker.card.lost_after or self._services.settings.lease.lost
        return lost_after - self._silence.get(worker.card.id, 0.0)

    async def _bury(self, worker: Worker) -> int:
        card = worker.card
        lock = None if self._locks is None else lock_path(self._locks, card.id)
        will = None if lock is None else Will.read(lock)
        freed = await self._free_all(card.id, will)
        await self._services.ledger.retire(card.id)
        if lock is not None:
            Will.discard(lock)
            lock.unlink(missing_ok=True)
        log.warning("worker lost", worker=card.id, host=card.host, pid=card.pid, tasks=freed)
        return freed

    async def _free_all(self, worker_id: str, will: Will | None) -> int:
        held = await self._services.views.held_by(worker_id)
        for first in range(0, len(held), AT_ONCE):
            await asyncio.gather(*(self._free(beat, will) for beat in held[first : first + AT_ONCE]))
        return len(held)

    async def _free(self, beat: Beat, will: Will | None) -> None:
        event: HolderLost | Released = await loss_of(self._services.views, beat)
        if will is not None and will.task_id == beat.task_id:
            event = HolderLost(beat.attempt, reason=will.reason)
        elif will is not None:
            event = Released(beat.attempt, event.journaled)
        with suppress(NotFound, Superseded):  # another worker was faster, or it settled after all
            await self._services.lifecycle.move(beat.task_id, event)


async def loss_of(views: Views, beat: Beat) -> HolderLost:
    """What is to be reported of an attempt whose worker is gone."""
    steps = await views.steps(beat.task_id, values=False)
    outlived = any(step.verb == OUTLIVES and not step.done for step in steps)
    return HolderLost(beat.attempt, _has_grown(steps, beat), outlived=outlived)


async def has_journaled(views: Views, beat: Beat) -> bool:
    """Whether an attempt has come further than the one before: it then does not count as a repeated failure."""
    return _has_grown(await views.steps(beat.task_id, values=False), beat)


def _has_grown(steps: Sequence[Step], beat: Beat) -> bool:
    return any(step.attempt == beat.attempt and step.done for step in steps)
