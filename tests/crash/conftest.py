"""What the crash tests share: each runs on every store that outlives its process."""

from pathlib import Path

import pytest

from tests.crash.crew import new_database
from tests.stores.backends import SHARED


@pytest.fixture(params=SHARED)
def store(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def database(store: str, tmp_path: Path) -> Path:
    """A new store; what lies beside it is named after this path."""
    return new_database(store, tmp_path / "work.db")
