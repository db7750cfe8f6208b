"""The stores at hand, by name: what the suites that compare or stress several stores are parametrised with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from outrider.core.ledger import Ledger
from outrider.stores.memory import MemoryLedger
from outrider.stores.sqlite import SqliteLedger

StoreFactory: TypeAlias = Callable[[Path], Awaitable[Ledger]]
"""Opens an empty store, in an empty folder if it wants one; on the loop that it is awaited on."""


async def open_memory(_folder: Path) -> Ledger:
    return MemoryLedger()


async def open_sqlite(folder: Path) -> Ledger:
    return await SqliteLedger.open(folder / "work.db")


BACKENDS: Mapping[str, StoreFactory] = {"memory": open_memory, "sqlite": open_sqlite}

SHARED = ("sqlite",)
"""The stores that several processes can open."""
