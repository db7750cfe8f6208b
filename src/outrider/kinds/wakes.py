"""The mark by which an agent knows that a task speaks to it: nobody else may use it, in whatever spelling."""

from __future__ import annotations

import re

WAKE = "task_wake"


def unmarked(text: str) -> str:
    """A text that cannot be taken for a wake, not by a reader either who does not look at each letter."""
    return _MARK.sub("\\1\u200b\\2", text)


_MARK = re.compile(rf"(<[\s/]*)({WAKE})", re.IGNORECASE)
