"""The servers of the tests: each version at hand really runs, comes back with its data, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest

from tests.servers import Programs, Server, programs

each_version = pytest.mark.parametrize("of", programs(), ids=str)


@pytest.fixture
def server(of: Programs) -> Iterator[Server]:
    with Server(of) as server:
        yield server


def ask(url: str, question: str) -> Any:
    """The one value that answers a statement; None if it has no answer."""
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        cursor = connection.execute(question.encode())
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


@each_version
def test_a_server_answers_over_loopback_and_over_its_socket(server: Server):
    for over in ("tcp", "socket"):
        assert ask(server.url(over=over), "select 1") == 1
    assert int(ask(server.url(), "show server_version_num")) // 10_000 == server.version
    assert ask(server.url(), "show listen_addresses") == "127.0.0.1"


@each_version
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_comes_back_with_its_data_at_the_same_address(server: Server, mode: Any):
    url = server.create_database("kept")
    ask(url, "create table t as select 42 as n")
    pid = server.pid
    server.restart(mode)
    assert server.pid != pid
    assert ask(url, "select n from t") == 42


@each_version
def test_a_server_that_was_killed_recovers(server: Server):
    ask(server.url(), "create table t as select 42 as n")
    server.kill()
    with pytest.raises(psycopg.OperationalError):
        ask(server.url(), "select 1")
    server.start()
    assert ask(server.url(), "select n from t") == 42
    assert "was not properly shut down" in server.log()
