"""What every test shares: the asyncio backend, and a hypothesis profile for machines whose speed drifts."""

import atexit
import os
import shutil
import signal
import tempfile

import pytest
from hypothesis import settings

# A deadline would measure the machine. In CI the examples are the same every time; elsewhere they explore.
settings.register_profile("outrider", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("outrider")

if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    # Hundreds of processes are started here: each would compile all that it imports. What is kept is kept elsewhere.
    os.environ["PYTHONPYCACHEPREFIX"] = tempfile.mkdtemp(prefix="outrider-bytecode-")
    atexit.register(shutil.rmtree, os.environ["PYTHONPYCACHEPREFIX"], ignore_errors=True)

# Who starts the tests in the background of a script, or under nohup, has them ignore what is sent from a terminal. The
# programs that they start would as well, and never end.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

# What several test files share is no test file itself, so its asserts are rewritten by request: here, before any of
# them imports it.
pytest.register_assert_rewrite("tests.stores.contract", "tests.stores.scene", "tests.stores.races")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Tests marked `anyio` run on asyncio, the only loop the runtime supports."""
    return "asyncio"
