"""When a task next needs a look at the clock: the earliest of all its deadlines, and nothing else.

The reducer calls `next_deadline` after every transition. The idle deadline counts from the last recorded
sign of life, which is not in the record; a look that comes too early only moves the deadline on.
"""

from __future__ import annotations

from outrider.core.task import Core, Input, State, TERMINAL
from outrider.core.values import Instant


def next_deadline(input: Input, core: Core, active_at: Instant | None = None) -> Instant | None:
    """Return the earliest deadline of a live task, None when it has none or has ended."""
    if core.state in TERMINAL:
        return None
    due: list[Instant] = []
    timeouts = input.timeouts
    if core.stopping is not None and core.worker_id is not None:
        due.append(core.stopping.force_at)
    else:
        if (total := total_deadline(input)) is not None:
            due.append(total)
        if timeouts.queue is not None and core.state is State.QUEUED and core.started_at is None:
            due.append(input.created_at + timeouts.queue)
        if core.worker_id is not None and core.attempt_started_at is not None:
            if timeouts.run is not None:
                due.append(core.attempt_started_at + timeouts.run)
            if timeouts.idle is not None:
                due.append(max(active_at or 0, core.attempt_started_at) + timeouts.idle)
    for request in core.requests:
        due.extend(moment for moment in (request.deadline_at, request.remind_at) if moment is not None)
    return min(due, default=None)


def total_deadline(input: Input) -> Instant | None:
    """Return the moment by which the task must have ended, if it has one."""
    return None if input.timeouts.total is None else input.created_at + input.timeouts.total
