"""The order of claims: one number, lower first, fixed when a task becomes due.

    rank = max(due_at, tail of its session + spacing) - priority x ageing

The tail moves with each new task of a session, so a session that submits a thousand tasks at once queues
behind itself and not before others; a task of higher priority counts as having waited longer.
"""

from __future__ import annotations

from outrider.core.values import SECOND, Instant, Span

AGEING: Span = 10 * SECOND
"""How much waiting one point of priority is worth."""

SPACING: Span = 10_000
"""How far apart the new tasks of one session stand in the queue."""


def rank_of_new(due_at: Instant, priority: int, tail: Instant, now: Instant) -> tuple[int, Instant]:
    """Return the rank of a session's new task and the session's tail after it.

    A delayed task stands where it becomes due and leaves the tail alone, else it would hold up its session.
    """
    if due_at > now:
        return due_at - priority * AGEING, tail
    place = max(due_at, tail + SPACING)
    return place - priority * AGEING, place


def rank_of_resumed(due_at: Instant, priority: int) -> int:
    """Return the rank of a task that becomes due again; it has stood in the queue once."""
    return due_at - priority * AGEING
