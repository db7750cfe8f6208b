"""What every test shares: the asyncio backend, and a hypothesis profile for machines whose speed drifts."""

import os

import pytest
from hypothesis import settings

# A deadline would measure the machine. In CI the examples are the same every time; elsewhere they explore.
settings.register_profile("outrider", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("outrider")


# What several test files share is no test file itself, so its asserts are rewritten by request: here, before any of
# them imports it.
pytest.register_assert_rewrite("tests.stores.contract", "tests.stores.scene", "tests.stores.races")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Tests marked `anyio` run on asyncio, the only loop the runtime supports."""
    return "asyncio"
