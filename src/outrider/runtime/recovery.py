"""Finding workers that are gone and making their work due again.

Every worker looks after every other. One of the same machine is gone when its lock is free, which is known at
once; one elsewhere, when its beat has not changed for the lease's time on the observer's own monotonic clock.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from outrider.core.errors import NotFound, Superseded
from outrider.core.events import HolderLost, Released
from outrider.core.ledger import Beat, Worker
from outrider.runtime.lease import Will, is_locked
from outrider.runtime.log import log
from outrider.runtime.services import Services


class Recovery:
    """What one worker knows of the others."""

    def __init__(self, services: Services, host: str, boot: str, locks: Path | None, own_id: str) -> None:
        self._services = services
        self._host = host
        self._boot = boot
        self._locks = locks
        self._own_id = own_id
        self._seen: dict[str, tuple[int, float]] = {}

    async def look(self) -> int:
        """Recover the work of every worker that is gone; return how many tasks that were."""
        recovered = 0
        workers = await self._services.views.workers()
        for worker in workers:
            if worker.card.id != self._own_id and self._is_gone(worker):
                recovered += await self._bury(worker)
        known = {worker.card.id for worker in workers}
        for gone in self._seen.keys() - known:
            del self._seen[gone]
        return recovered

    def _is_gone(self, worker: Worker) -> bool:
        card = worker.card
        if self._locks is not None and card.host == self._host:
            return card.boot_id != self._boot or not is_locked(lock_path(self._locks, card.id))
        beat, since = self._seen.get(card.id, (None, 0.0))
        now = time.monotonic()
        if beat != worker.beat:
            self._seen[card.id] = (worker.beat, now)
            return False
        return now - since >= self._services.settings.lease.lost

    async def _bury(self, worker: Worker) -> int:
        card = worker.card
        lock = None if self._locks is None else lock_path(self._locks, card.id)
        will = None if lock is None else Will.read(lock)
        held = await self._services.views.held_by(card.id)
        log.warning("worker lost", worker=card.id, host=card.host, pid=card.pid, tasks=len(held))
        for beat in held:
            await self._free(beat, will)
        await self._services.ledger.retire(card.id)
        if lock is not None:
            Will.discard(lock)
            lock.unlink(missing_ok=True)
        return len(held)

    async def _free(self, beat: Beat, will: Will | None) -> None:
        steps = await self._services.views.steps(beat.task_id)
        journaled = any(step.attempt == beat.attempt and step.done for step in steps)
        event: HolderLost | Released
        if will is None:
            event = HolderLost(beat.attempt, journaled)
        elif will.task_id == beat.task_id:
            event = HolderLost(beat.attempt, reason=will.reason)
        else:
            event = Released(beat.attempt, journaled)
        with suppress(NotFound, Superseded):  # another worker was faster, or it settled after all
            await self._services.lifecycle.move(beat.task_id, event)


def lock_path(locks: Path, worker_id: str) -> Path:
    """Where the lock of a worker is."""
    return locks / f"{worker_id}.lock"
