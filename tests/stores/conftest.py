"""The suite that every store must pass is not a test file itself, so its asserts are rewritten by request."""

import pytest

pytest.register_assert_rewrite("tests.stores.contract", "tests.stores.scene", "tests.stores.races")
