"""What the tests of the runtime share: most run on every store."""

import pytest

from outrider.testing import Store


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(request: pytest.FixtureRequest) -> Store:
    return chosen_store(request)


def chosen_store(request: pytest.FixtureRequest) -> Store:
    """What `open_test` takes for the store that a fixture was parametrized with."""
    if request.param == "postgres":
        url: str = request.getfixturevalue("postgres_url")
        return url
    chosen: Store = request.param
    return chosen
