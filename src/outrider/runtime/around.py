"""What surrounds a task and its own record does not say: who serves it, what is paused, how its worker is.

Read once for a whole list of tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from outrider.core.ledger import Ledger, Worker
from outrider.core.queue import Gates
from outrider.core.task import Phase, Task, phase_of
from outrider.core.values import Instant
from outrider.runtime.lease import seen_alive


@dataclass(frozen=True, slots=True)
class Around:
    """The registered workers, and the limits and pauses, at one moment."""

    workers: Sequence[Worker]
    gates: Gates
    dead: frozenset[str] = frozenset()
    """The ids of those workers that are seen to be dead; one of another machine is not."""
    served: frozenset[str] = field(init=False)
    """The routes that a worker serves which may live."""

    def __post_init__(self) -> None:
        living = (worker.card for worker in self.workers if worker.card.id not in self.dead)
        object.__setattr__(self, "served", frozenset(route for card in living for route in card.routes))

    @classmethod
    async def look(cls, ledger: Ledger) -> Around:
        """Read it, with two queries and a look at the lock of each worker."""
        workers = await ledger.views.workers()
        dead = frozenset(each.card.id for each in workers if seen_alive(each, ledger) is False)
        return cls(workers, await ledger.views.gates(), dead)

    def phase(self, task: Task) -> Phase | None:
        """The phase of a task, as far as anybody can tell."""
        pause = self.gates.pause_of(task.input.kind, task.session_id) if self.gates.is_paused else None
        return phase_of(
            task,
            is_served=self.is_served(task),
            paused=None if pause is None else pause.scope,
            is_lost=task.core.worker_id in self.dead,
        )

    def is_served(self, task: Task) -> bool:
        """Whether a worker that may live serves the route of a task."""
        return task.input.route in self.served

    def beat(self, task: Task) -> Instant | None:
        """When the worker that holds a task last showed that it lives."""
        return next((worker.beat_at for worker in self.workers if worker.card.id == task.core.worker_id), None)
