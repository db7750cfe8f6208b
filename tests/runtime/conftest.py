"""What the tests of the runtime share: most run on both stores, in memory and in a file."""

import pytest

from outrider.testing import Store


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest) -> Store:
    chosen: Store = request.param
    return chosen
