"""When a failed attempt is tried again. Chance comes in as an argument."""

from __future__ import annotations

from outrider.core.task import Retry
from outrider.core.values import Span


def delay(policy: Retry, failures: int, chance: float) -> Span:
    """Return how long to back off after the given number of failures, in microseconds.

    Exponential with full jitter: uniform between 0 and min(maximum, initial x factor^(failures-1)), with
    `chance` in [0, 1] as the draw. After "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
    """
    exponent = min(max(failures, 1) - 1, 64)
    ceiling = min(float(policy.maximum), policy.initial * policy.factor**exponent)
    return int(ceiling * min(max(chance, 0.0), 1.0))


def exhausted(policy: Retry, failures: int) -> bool:
    """Whether a task with this many failures is failed for good."""
    return failures >= policy.max_failures
