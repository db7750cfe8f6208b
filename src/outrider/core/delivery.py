"""What an outside agent holds of an inbox: a receipt is for one delivery of one entry, and good while that is the last.

News of the same task make another entry of it, under another number, so a receipt never stands for more than what was
received with it: whatever is acknowledged, the news after it are still to come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Standing: TypeAlias = Literal["good", "replaced", "stale", "gone"]
"""What became of a receipt. It is `good`; newer news of its task have taken the place of what was received
(`replaced`); the same was handed out again after its lease (`stale`); or there is nothing of it any more (`gone`)."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """For an entry: the task that it is about, its number in the inbox, and the how-manieth delivery of it this was."""

    task_id: str
    seq: int
    delivery: int

    def __str__(self) -> str:
        """The form in which it goes out and comes back."""
        return f"{self.task_id}.{self.seq}.{self.delivery}"

    @classmethod
    def of(cls, text: str) -> Receipt | None:
        """Read its form; None for what is none."""
        match text.rsplit(".", 2):
            case [task_id, seq, delivery] if task_id and _is_number(seq) and _is_number(delivery):
                return cls(task_id, int(seq), int(delivery))
        return None

    def standing(self, seq: int | None, deliveries: int = 0) -> Standing:
        """What became of it, when the entry of its task has that number (None: there is none) and was delivered so
        often.
        """
        if seq is None or seq < self.seq:
            return "gone"
        if seq > self.seq:
            return "replaced"
        return "good" if deliveries == self.delivery else "stale"


def _is_number(text: str) -> bool:
    """Whether it is a number from 1 that a store can hold, in the one form that we write."""
    return text.isascii() and text.isdigit() and text[0] != "0" and len(text) <= 18
