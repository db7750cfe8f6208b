"""How a count is put in a sentence for people."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """A count and its noun, which has to be a regular one: `1 task`, `2 tasks`, `12,000 tasks`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
