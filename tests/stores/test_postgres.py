"""The PostgreSQL store keeps every promise of the seam, on the oldest and the newest server at hand."""

from collections.abc import AsyncIterator

import pytest

from outrider.core.ledger import Ledger
from outrider.stores.postgres import PostgresLedger
from tests.servers import versions
from tests.stores.contract import StoreContract


@pytest.mark.parametrize("postgres_version", versions())
class TestPostgres(StoreContract):
    @pytest.fixture
    async def ledger(self, postgres_url: str) -> AsyncIterator[Ledger]:
        ledger = await PostgresLedger.open(postgres_url)
        yield ledger
        await ledger.close()
