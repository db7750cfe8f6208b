"""What surrounds a task and its own record does not say: who serves it, what is paused, how its worker is.

Read once for a whole list of tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from outrider.core.ledger import Views, Worker
from outrider.core.queue import Gates
from outrider.core.task import Phase, Task, phase_of
from outrider.core.values import Instant


@dataclass(frozen=True, slots=True)
class Around:
    """The registered workers, and the limits and pauses, at one moment."""

    workers: Sequence[Worker]
    gates: Gates
    _served: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        routes = (route for worker in self.workers for route in worker.card.routes)
        object.__setattr__(self, "_served", frozenset(routes))

    @classmethod
    async def look(cls, views: Views) -> Around:
        """Read it."""
        return cls(await views.workers(), await views.gates())

    def phase(self, task: Task) -> Phase | None:
        """The phase of a task, as far as anybody can tell."""
        pause = self.gates.pause_of(task.input.kind, task.session_id) if self.gates.is_paused else None
        return phase_of(task, is_served=self.is_served(task), paused=None if pause is None else pause.scope)

    def is_served(self, task: Task) -> bool:
        """Whether a worker serves the route of a task."""
        return task.input.route in self._served

    def beat(self, task: Task) -> Instant | None:
        """When the worker that holds a task last showed that it lives."""
        return next((worker.beat_at for worker in self.workers if worker.card.id == task.core.worker_id), None)
