"""What the tests of the runtime share: most run on every store."""

import pytest

from outrider.testing import Store


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "postgres":
        url: str = request.getfixturevalue("postgres_url")
        return url
    chosen: Store = request.param
    return chosen
