"""What docs/deployment.md says of the database is so: addresses, SQL, the commands of a backup."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from outrider import Outrider
from outrider.core.errors import StoreUnavailable
from outrider.stores.postgres.database import ANSWER, CONNECT_TIMEOUT, Database
from outrider.stores.postgres.news import LIVELY_LOOK, SHARED_LOOK
from outrider.stores.postgres.views import READERS
from outrider.stores.postgres.writer import PATIENCE
from tests import dumps
from tests.deploy.files import ROOT
from tests.servers import free_port

PAGE = (ROOT / "docs" / "deployment.md").read_text()
URLS = re.findall(r"`(postgresql://[^`]+)`", PAGE)
OPTIONS = re.findall(r"`(\?[^`]+)`", PAGE)


@pytest.mark.parametrize("url", [*URLS, *(f"postgresql://outrider@db.example/outrider{each}" for each in OPTIONS)])
def test_an_address_of_the_page_is_one(url: str):
    Database(url)
    assert conninfo_to_dict(url.replace("?pooler=transaction", ""))["dbname"] == "outrider"


def test_the_page_has_addresses():
    assert len(URLS) >= 3
    assert len(OPTIONS) >= 3


@pytest.mark.anyio
async def test_of_several_servers_the_one_that_can_be_written_is_taken(postgres_url: str):
    there = urlsplit(postgres_url)
    user, _, host = there.netloc.rpartition("@")
    several = there._replace(
        netloc=f"{user}@127.0.0.1:{free_port()},{host}", query="target_session_attrs=read-write"
    ).geturl()
    async with Outrider().open(several) as outrider:
        session = await outrider.sessions.create(id="here")
        assert (await outrider.sessions.get(session.id)).id == "here"


@pytest.mark.anyio
async def test_a_server_without_tls_is_refused_where_the_address_asks_for_it(postgres_url: str):
    with pytest.raises(StoreUnavailable, match="SSL"):
        async with Outrider().open(f"{postgres_url}?sslmode=require"):
            pass


def test_the_figures_of_the_page_are_those_of_the_code():
    assert f"| {3 + READERS} for each worker process: one that writes, one for the lease" in PAGE
    assert f"up to {2 + READERS}: the same without the lease" in PAGE
    assert f"for each address; default {CONNECT_TIMEOUT} |" in PAGE
    assert f"writes are tried again, for {PATIENCE:g} s," in PAGE
    assert ("come by looking,** four times a second and ten times while" in PAGE) == (
        (SHARED_LOOK, LIVELY_LOOK) == (0.25, 0.1)
    )
    assert f"gets none for {ANSWER:g} seconds" in PAGE


def sql() -> Iterator[str]:
    for block in re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL):
        yield from (line for line in block.splitlines() if line)


@pytest.mark.anyio
async def test_the_sql_of_the_page_is_understood(postgres_url: str):
    async with Outrider().open(postgres_url, worker=False):
        pass
    lines = list(sql())
    assert len(lines) == 4
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for line in lines:
            connection.execute(line.encode())
    async with Outrider().open(postgres_url) as outrider:
        await outrider.sessions.create()


@pytest.mark.parametrize("program", ["pg_dump", "pg_restore"])
def test_a_backup_is_made_and_restored_as_the_tests_do_it(program: str):
    (told,) = re.findall(rf"^{program} (.*)$", PAGE, re.MULTILINE)
    source = Path(dumps.__file__).read_text()
    (done,) = re.findall(rf'_run\(programs, "{program}", (.*)\)', source)
    assert re.findall(r"--[a-z-]+", told) == re.findall(r"--[a-z-]+", done)
