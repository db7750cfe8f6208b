"""What a forked copy of this process lets go of: locks and pipes that came with it and are not its own.

A copy shares the open file, so what it kept would last as long as it does, whatever becomes of this process.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Owned(Protocol):
    """Something that belongs to the process that made it."""

    def disown(self) -> None:
        """In a forked copy: close it, and nothing more."""


_OWNED: WeakSet[Owned] = WeakSet()


def keep_from_forks(mine: Owned) -> None:
    """Have every forked copy of this process disown it."""
    _OWNED.add(mine)


def forget(mine: Owned) -> None:
    """Copies made from now on have nothing of it to disown."""
    _OWNED.discard(mine)


def _disown_all() -> None:
    for each in list(_OWNED):
        each.disown()
    _OWNED.clear()


os.register_at_fork(after_in_child=_disown_all)
