"""When a task next needs a look at the clock: the earliest of all its deadlines, and nothing else.

The reducer calls `next_deadline` after every transition. The idle deadline counts from the last recorded
sign of life, which is not in the record; a look that comes too early only moves the deadline on.
"""

from __future__ import annotations

from outrider.core.task import NO_TIMEOUTS, TERMINAL, Core, Input
from outrider.core.values import Instant


def next_deadline(input: Input, core: Core, active_at: Instant | None = None) -> Instant | None:
    """Return the earliest deadline of a live task, None when it has none or has ended."""
    if core.state in TERMINAL:
        return None
    if core.stopping is not None:
        moments = [core.stopping.force_at]
    else:
        moments = [moment for _, moment in timeouts_of(input, core, active_at)]
    for request in core.requests:
        moments.extend(moment for moment in (request.deadline_at, request.remind_at) if moment is not None)
    return min(moments, default=None)


def timeouts_of(input: Input, core: Core, active_at: Instant | None = None) -> list[tuple[str, Instant]]:
    """Return which of the timeouts of a live task are running, and when each is up; the gravest first."""
    spans = input.timeouts
    running: list[tuple[str, Instant]] = []
    if spans is NO_TIMEOUTS or spans == NO_TIMEOUTS:
        return running
    if spans.total is not None:
        running.append(("total", input.created_at + spans.total))
    if spans.queue is not None and core.started_at is None and core.due_at is not None and not core.dependencies:
        running.append(("queue", core.due_at + spans.queue))
    if core.attempt_started_at is not None:
        if spans.run is not None:
            running.append(("run", core.attempt_started_at + spans.run))
        if spans.idle is not None:
            running.append(("idle", max(active_at or 0, core.attempt_started_at) + spans.idle))
    return running
