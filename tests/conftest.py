"""What every test shares: the asyncio backend, a hypothesis profile for machines whose speed drifts, PostgreSQL."""

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

from tests.servers import RUNNING, SERVERS, Host, Server, SharedServers, fresh_database, programs_of, versions

# A deadline would measure the machine. In CI the examples are the same every time; elsewhere they explore.
settings.register_profile("outrider", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("outrider")

if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    # Hundreds of processes are started here: each would compile all that it imports. What is kept is kept elsewhere.
    os.environ["PYTHONPYCACHEPREFIX"] = tempfile.mkdtemp(prefix="outrider-bytecode-")
    atexit.register(shutil.rmtree, os.environ["PYTHONPYCACHEPREFIX"], ignore_errors=True)

# Where a store that is no file keeps the locks of its workers.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="outrider-state-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

# Who starts the tests in the background of a script, or under nohup, has them ignore what is sent from a terminal. The
# programs that they start would as well, and never end.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

# What several test files share is no test file itself, so its asserts are rewritten by request: here, before any of
# them imports it.
pytest.register_assert_rewrite(
    "tests.agents.engine_contract", "tests.stores.contract", "tests.stores.scene", "tests.stores.races"
)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Tests marked `anyio` run on asyncio, the only loop the runtime supports."""
    return "asyncio"


# --- PostgreSQL --------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def postgres_servers() -> Iterator[SharedServers]:
    """The servers that this process has started by now; another process of the same run has its own."""
    yield SERVERS
    SERVERS.close()


@pytest.fixture
def postgres_version() -> str:
    """The newest at hand; to run on the oldest too: `@pytest.mark.parametrize("postgres_version", versions())`."""
    return versions()[-1]


@pytest.fixture
def postgres(postgres_servers: SharedServers, postgres_version: str) -> Host:
    """A server that runs, shared with other tests: not to be stopped, nor its settings changed."""
    return postgres_servers.of(postgres_version)


@pytest.fixture
def postgres_url(postgres: Host) -> Iterator[str]:
    """The address of an empty database of the test's own."""
    with fresh_database(postgres) as url:
        yield url


@pytest.fixture
def own_postgres(postgres_version: str) -> Iterator[Server]:
    """A server of the test's own, to be stopped and killed."""
    with Server(programs_of(postgres_version)) as server:
        yield server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails shows what the servers said last."""
    report = yield
    if report.failed:
        for server in RUNNING:
            title = f"PostgreSQL {server.version} at {server.url()}, its last words"
            report.sections.append((title, "\n".join(server.log().splitlines()[-40:])))
    return report
