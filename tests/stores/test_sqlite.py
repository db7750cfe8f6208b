"""The SQLite store keeps every promise of the seam."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from outrider.core.ledger import Ledger
from outrider.stores.sqlite import SqliteLedger
from tests.stores.contract import StoreContract


class TestSqlite(StoreContract):
    @pytest.fixture
    async def ledger(self, tmp_path: Path) -> AsyncIterator[Ledger]:
        ledger = await SqliteLedger.open(tmp_path / "work.db")
        yield ledger
        await ledger.close()
