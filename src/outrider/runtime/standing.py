"""How the worker of this process is doing, for whoever has to say whether the process is of use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

Condition: TypeAlias = Literal["starting", "working", "draining", "lost"]


class Working(Protocol):
    """A worker, as far as anybody asks how it is."""

    id: str

    @property
    def condition(self) -> Condition:
        """What it is up to."""
        ...

    @property
    def lease_age(self) -> float | None:
        """Seconds since it last renewed its lease; None before it has one."""
        ...


@dataclass(eq=False)
class Standing:
    """Of one runtime. `is_wanted`: a worker is to run in it, whether one does or not."""

    is_wanted: bool = False
    worker: Working | None = None
