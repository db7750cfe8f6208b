"""Every test that docs/reliability.md and docs/agents.md call as a witness exists, and no row is without one."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / "docs" / name).read_text() for name in ("reliability.md", "agents.md")}
WITNESSES = sorted({each for page in PAGES.values() for each in re.findall(r"`(tests/\S+\.py)::(\w+)`", page)})


@pytest.mark.parametrize(("path", "name"), WITNESSES, ids=lambda value: value)
def test_the_witness_exists(path: str, name: str):
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", PAGES)
def test_every_promise_has_a_witness(name: str):
    tables = re.findall(r"^\|.* proved by \|\n\| ---.*\n((?:\|.*\n)+)", PAGES[name], re.MULTILINE)
    promises = [row for table in tables for row in table.splitlines()]
    assert promises
    assert [row for row in promises if "::test_" not in row] == []
