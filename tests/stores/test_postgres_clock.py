"""The time of a fleet is the server's, whatever the clocks of its machines show."""

import time

import psycopg
import pytest

from outrider.stores.postgres import PostgresLedger
from outrider.stores.postgres.clock import ServerClock

MS = 1000


def at(ahead: int, *, took: int = 2 * MS, late: int = 0) -> tuple[int, int, int]:
    """A look at a server that is so far ahead, whose answer took so long, and was `late` beyond the middle of that."""
    before = 1_000_000
    return before, before + took // 2 + late + ahead, before + took


def ahead_of(clock: ServerClock) -> int:
    return clock.now() - time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def test_the_surest_look_counts():
    clock = ServerClock()
    clock.note(*at(500 * MS, took=2 * MS))
    clock.note(*at(500 * MS, took=800 * MS, late=-300 * MS))
    assert abs(ahead_of(clock) - 500 * MS) < 50


@pytest.mark.parametrize("step", [3600 * 1_000_000, -3600 * 1_000_000, 20 * MS])
def test_a_server_whose_clock_was_set_is_followed(step: int):
    clock = ServerClock()
    for _ in range(20):
        clock.note(*at(0, took=1 * MS))
    clock.note(*at(step, took=3 * MS))
    assert abs(ahead_of(clock) - step) < 50


async def test_a_step_of_the_machines_own_clock_is_not_seen(postgres_url: str, monkeypatch: pytest.MonkeyPatch):
    ledger = await PostgresLedger.open(postgres_url)
    with psycopg.connect(postgres_url) as connection:

        def the_server_says() -> int:
            row = connection.execute("select (extract(epoch from clock_timestamp()) * 1000000)::bigint").fetchone()
            assert row is not None
            return int(row[0])

        monkeypatch.setattr(time, "time_ns", lambda: 4_000_000_000_000_000_000)
        earliest, shown, latest = the_server_says(), ledger.now(), the_server_says()
    assert earliest - 50 * MS <= shown <= latest + 50 * MS
    await ledger.close()


pytestmark = pytest.mark.anyio
