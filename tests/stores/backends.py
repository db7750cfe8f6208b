"""The stores at hand, by name: what the suites that compare or stress several stores are parametrised with."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from outrider.core.ledger import Ledger
from outrider.stores.memory import MemoryLedger
from outrider.stores.postgres import PostgresLedger
from outrider.stores.sqlite import SqliteLedger
from tests.servers import SERVERS, versions

StoreFactory: TypeAlias = Callable[[Path], Awaitable[Ledger]]
"""Opens an empty store, in an empty folder if it wants one; on the loop that it is awaited on."""


async def open_memory(_folder: Path) -> Ledger:
    return MemoryLedger()


async def open_sqlite(folder: Path) -> Ledger:
    return await SqliteLedger.open(folder / "work.db")


async def open_postgres(folder: Path) -> Ledger:
    return await PostgresLedger.open(postgres_url(folder))


def postgres_url(folder: Path) -> str:
    """The database that stands for a folder: made when it is first asked for, dropped some time after the folder."""
    note = folder / "postgres"
    if not note.exists():
        host = SERVERS.of(versions()[-1])
        for other in [each for each in _DATABASES if not each.exists()]:
            host.drop_database(_DATABASES.pop(other))
        name = _DATABASES[note] = f"test_{uuid.uuid4().hex[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(host.create_database(name))
    return note.read_text()


_DATABASES: dict[Path, str] = {}

BACKENDS: Mapping[str, StoreFactory] = {"memory": open_memory, "sqlite": open_sqlite, "postgres": open_postgres}

SHARED = ("sqlite", "postgres")
"""The stores that several processes can open."""
