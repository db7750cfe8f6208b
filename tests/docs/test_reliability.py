"""Every test that docs/reliability.md calls as a witness exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
WITNESSES = sorted(set(re.findall(r"`(tests/\S+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize(("path", "name"), WITNESSES, ids=lambda value: value)
def test_the_witness_exists(path: str, name: str):
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_every_promise_has_a_witness():
    promises = [
        line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| ---"))
    ]
    assert promises
    assert [line for line in promises if "::test_" not in line] == []
