"""The reference store keeps every promise of the seam."""

from collections.abc import AsyncIterator

import pytest

from outrider.core.ledger import Ledger
from outrider.stores.memory import MemoryLedger
from tests.stores.contract import StoreContract


class TestMemory(StoreContract):
    @pytest.fixture
    async def ledger(self) -> AsyncIterator[Ledger]:
        ledger = MemoryLedger()
        yield ledger
        await ledger.close()
