"""The PostgreSQL store keeps every promise of the seam, on the newest server at hand; on the oldest in long tests."""

from collections.abc import AsyncIterator

import pytest

from outrider.core.ledger import Ledger
from outrider.stores.postgres import PostgresLedger
from tests.servers import versions
from tests.stores.contract import StoreContract

OLDER, NEWEST = versions()[:-1], versions()[-1]


@pytest.mark.parametrize("postgres_version", [*(pytest.param(each, marks=pytest.mark.soak) for each in OLDER), NEWEST])
class TestPostgres(StoreContract):
    @pytest.fixture
    async def ledger(self, postgres_url: str) -> AsyncIterator[Ledger]:
        ledger = await PostgresLedger.open(postgres_url)
        yield ledger
        await ledger.close()
