"""The servers of the tests: each version at hand really runs, comes back with its data, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.guard import children
from tests.servers import ELSEWHERE, PATIENCE, ROOT, Host, Programs, Server, ServerFailed, demand_driver, programs

_OLDER, _NEWEST = programs()[:-1], programs()[-1:] or (None,)
each_version = pytest.mark.parametrize(
    "of", [*(pytest.param(each, marks=pytest.mark.soak) for each in _OLDER), *_NEWEST], ids=str
)


@pytest.fixture
def server(of: Programs | None) -> Iterator[Server]:
    """A server of one version at hand; where there is none, the reason to skip."""
    demand_driver()
    with Server(of or servers.programs_of("none")) as server:
        yield server


def ask(url: str, question: str) -> Any:
    """The one value that answers a statement; None if it has no answer."""
    import psycopg  # where it cannot be had, the fixtures have skipped the test by now

    with closing(psycopg.connect(url, autocommit=True)) as connection:
        cursor = connection.execute(question.encode())
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


def until(is_so: Callable[[], object], what: str = "it did not come to pass") -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


# --- a server ----------------------------------------------------------------------------------------


@each_version
def test_a_server_answers_over_loopback_and_over_its_socket(server: Server):
    assert ask(server.url(over="tcp"), "select 1") == 1
    assert ask(server.url(over="socket"), "select 1") == 1
    assert int(ask(server.url(), "show server_version_num")) // 10_000 == server.version
    assert ask(server.url(), "show listen_addresses") == "127.0.0.1"
    assert ask(server.url(), "select pg_encoding_to_char(encoding) || datcollate from pg_database limit 1") == "UTF8C"


@each_version
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_comes_back_with_its_data_at_the_same_address(server: Server, mode: Any):
    url = server.create_database("kept")
    ask(url, "create table t as select 42 as n")
    pid = server.pid
    server.restart(mode)
    assert server.pid not in (0, pid)
    assert ask(url, "select n from t") == 42


@each_version
def test_a_server_that_was_killed_recovers_all_that_was_committed(server: Server):
    ask(server.url(), "create table t as select 42 as n")
    server.kill()
    assert (server.is_running, server.pid) == (False, 0)
    with pytest.raises(OSError, match="refused"):
        knock(server)
    server.start()
    assert ask(server.url(), "select n from t") == 42
    assert "was not properly shut down" in server.log()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere nobody inherits what the server leaves")
@pytest.mark.parametrize("is_alone", [False, True], ids=["whole server", "postmaster"])
def test_a_kill_ends_a_connection_that_computes(own_postgres: Server, is_alone: bool):
    import psycopg  # the fixture has seen to it

    with closing(psycopg.connect(own_postgres.url(), autocommit=True)) as connection:
        backend = connection.info.backend_pid
        # It computes for ever, and needs no memory and no file.
        busy = threading.Thread(target=survive, args=(connection, "do 'begin loop null; end loop; end'"))
        busy.start()
        question = f"select count(*) from pg_stat_activity where state = 'active' and pid = {backend}"
        until(lambda: ask(own_postgres.url(), question) == 1)
        if is_alone:
            os.kill(own_postgres.pid, signal.SIGKILL)
            until(lambda: not own_postgres.is_running)
        else:
            own_postgres.kill()
        assert not is_alive(backend)
        busy.join()
    own_postgres.start()


def test_a_statement_that_runs_away_does_not_take_all_memory(own_postgres: Server):
    import psycopg  # the fixture has seen to it

    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded, match="temp_file_limit"):
        ask(own_postgres.url(), "select count(*) from generate_series(1, 30000000)")


def test_a_server_that_died_by_itself_can_be_started_again(own_postgres: Server):
    os.kill(own_postgres.pid, signal.SIGQUIT)
    until(lambda: not own_postgres.is_running)
    own_postgres.start()
    assert ask(own_postgres.url(), "select 1") == 1


def test_a_server_goes_without_syncs_but_a_durable_one_makes_them(own_postgres: Server):
    synced = ("fsync", "synchronous_commit", "full_page_writes")
    assert [ask(own_postgres.url(), f"show {name}") for name in synced] == ["off", "on", "off"]
    with Server(servers.programs_of("newest"), durable=True, settings={"max_connections": "7"}) as durable:
        assert [ask(durable.url(), f"show {name}") for name in synced] == ["on", "on", "on"]
        assert ask(durable.url(), "show max_connections") == "7"
        assert not durable.folder.is_relative_to(servers.MEMORY)


def test_a_server_that_does_not_start_says_why_and_leaves_nothing(own_postgres: Server):
    server = Server(servers.programs_of("newest"), settings={"shared_buffers": "a lot"})
    with pytest.raises(ServerFailed, match='invalid value for parameter "shared_buffers": "a lot"'), server:
        pass
    assert not server.folder.exists()


def test_nothing_is_left_of_a_server_that_was_killed(own_postgres: Server):
    with Server(servers.programs_of("newest")) as server:
        memory = (server.data / "postmaster.pid").read_text().splitlines()[6].split()[1]
        server.kill()
        assert memory in segments()
    assert not server.folder.exists()
    assert memory not in segments()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as another user, who may not reach the checkout")
def test_a_server_runs_from_a_checkout_that_only_root_can_enter(tmp_path: Path, own_postgres: Server):
    of = servers.programs_of("newest")
    if not of.bin.is_relative_to(sys.prefix):
        pytest.skip("the newest server at hand is the machine's, which everybody reaches")
    site = of.bin.parents[2]
    for path in (of.bin.parent, *of.needs):
        shutil.copytree(path, tmp_path / path.relative_to(site), symlinks=True)
    tmp_path.chmod(0o700)
    hidden = Programs(of.version, tmp_path / of.bin.relative_to(site))
    with Server(hidden) as server:
        assert ask(server.url(), "select 1") == 1


# --- its end with ours -------------------------------------------------------------------------------

OWNER = """
import os, sys, time
from tests.servers import Server, programs
with Server(programs()[-1]) as server:
    child = os.fork() if sys.argv[1:] == ["fork"] else 0  # it holds all that its parent had open
    if child or sys.argv[1:] != ["fork"]:
        os.write(1, f"{server.pid} {server._guard.pid} {child} {server.folder}\\n".encode())
    if sys.argv[1:] == ["leave"]:
        os._exit(0)
    time.sleep(600)
"""


@dataclass
class Owner:
    """A process with a server of its own."""

    process: subprocess.Popen[str]
    server: int
    guard: int
    child: int
    folder: Path


@pytest.fixture
def own() -> Iterator[Callable[..., Owner]]:
    servers.programs_of("newest")
    owners: list[Owner] = []

    def start(*arguments: str) -> Owner:
        command = [sys.executable, "-c", OWNER, *arguments]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        *pids, folder = process.stdout.readline().split()
        server, guard, child = map(int, pids)
        owners.append(Owner(process, server, guard, child, Path(folder)))
        return owners[-1]

    yield start
    for owner in owners:
        owner.process.kill()
        if owner.child:
            os.kill(owner.child, signal.SIGKILL)
        owner.process.communicate()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_ends_with_its_owner(own: Any, end: signal.Signals):
    owner = own()
    pids = [owner.server, owner.guard]
    if sys.platform.startswith("linux"):  # elsewhere nothing tells them as simply
        pids += children(owner.server)
        assert len(pids) > 2
    owner.process.send_signal(end)
    until(lambda: not any(map(is_alive, pids)), "a process of the server outlived its owner")
    until(lambda: not owner.folder.exists(), "the folder of the server outlived its owner")


def test_a_server_ends_with_an_owner_who_leaves_without_a_word(own: Any):
    owner = own("leave")
    until(lambda: not is_alive(owner.server), "the server outlived its owner")


def test_a_server_ends_with_its_owner_though_a_child_of_the_owner_lives_on(own: Any):
    owner = own("fork")
    owner.process.kill()
    until(lambda: not is_alive(owner.server), "the server outlived its owner")
    assert is_alive(owner.child)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="elsewhere nothing tells a process of its parent's end"
)
def test_a_server_ends_with_its_guard(own: Any):
    owner = own()
    os.kill(owner.guard, signal.SIGKILL)
    until(lambda: not is_alive(owner.server), "the server outlived its guard")
    shutil.rmtree(owner.folder)  # nobody else is left to do it


# --- what ordinary tests share -----------------------------------------------------------------------


@pytest.mark.parametrize("postgres_version", servers.versions())
def test_a_test_gets_an_empty_database_of_its_own(postgres_url: str, postgres: Host):
    with servers.fresh_database(postgres) as other:
        ask(postgres_url, "create table t as select 42 as n")
        tables = "select count(*) from pg_class where relname = 't'"
        assert (ask(postgres_url, tables), ask(other, tables)) == (1, 0)
        is_there = f"select count(*) from pg_database where datname = '{other.rpartition('/')[2]}'"
        assert ask(postgres.url(), is_there) == 1
    assert ask(postgres.url(), is_there) == 0


def test_a_database_is_dropped_though_somebody_is_connected(postgres: Host):
    import psycopg  # the fixture has seen to it

    with servers.fresh_database(postgres) as url:
        connection = psycopg.connect(url)
    with closing(connection), pytest.raises(psycopg.OperationalError):
        connection.execute("select 1")


def test_a_server_that_somebody_named_is_used_instead(own_postgres: Server, tmp_path: Path):
    tests = """
from tests.servers import versions
def test_it(postgres_url):
    assert versions() == ("named",)
    assert postgres_url.startswith(ADDRESS) and postgres_url.endswith("?connect_timeout=9")
    import psycopg
    psycopg.connect(postgres_url).close()
"""
    address = own_postgres.url("")
    done = run(tests.replace("ADDRESS", repr(address)), tmp_path, **{ELSEWHERE: f"{address}postgres?connect_timeout=9"})
    assert "1 passed" in done
    assert ask(own_postgres.url(), "select count(*) from pg_database where datname like 'test_%'") == 0


NOTHING = """
import pytest
from tests import servers
@pytest.fixture(autouse=True)
def nothing(monkeypatch):
    monkeypatch.setattr(servers, "programs", lambda: ())
@pytest.fixture
def postgres_version():
    return servers.versions()[-1]
def test_shared(postgres_url): ...
def test_own(own_postgres): ...
"""


def test_where_no_server_is_at_hand_tests_skip_with_what_to_install(tmp_path: Path):
    done = run(NOTHING, tmp_path)
    assert "2 skipped" in done
    for way in ("make setup", "package postgresql", ELSEWHERE):
        assert way in done


def test_in_ci_a_server_that_is_not_at_hand_is_a_failure(tmp_path: Path):
    done = run(NOTHING, tmp_path, CI="true")
    assert "2 errors" in done
    assert "no PostgreSQL server is at hand" in done


def test_a_test_that_fails_shows_the_words_of_its_server(own_postgres: Server, tmp_path: Path):
    done = run(
        """
import psycopg
def test_it(own_postgres):
    psycopg.connect(own_postgres.url("nowhere"))
""",
        tmp_path,
    )
    assert re.search(
        r"PostgreSQL \d+ at postgresql://.*, its last words.*FATAL: +database \"nowhere\" does not", done, re.S
    )


# --- what the tests look at --------------------------------------------------------------------------


def run(tests: str, folder: Path, **variables: str) -> str:
    """Run tests that take the fixtures of all tests, in a process of their own. Returns what pytest said."""
    file = folder / "test_it.py"
    file.write_text(tests)
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", ELSEWHERE)}
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-ra", str(file)]
    done = subprocess.run(
        command, cwd=ROOT, env={**kept, "COLUMNS": "400", **variables}, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def knock(server: Server) -> None:
    socket.create_connection(("127.0.0.1", server.port)).close()


def survive(connection: Any, question: str) -> None:
    with suppress(Exception):  # the server is killed meanwhile
        connection.execute(question)


def segments() -> list[str]:
    """The ids of the segments of System V memory on this machine."""
    said = subprocess.run(["ipcs", "-m"], capture_output=True, text=True, check=True).stdout
    return [words[1] for line in said.splitlines() if len(words := line.split()) > 1]


def is_alive(pid: int) -> bool:
    """Whether it runs; a process that has ended, and waits for its parent to look, does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return not Path("/proc").exists()
