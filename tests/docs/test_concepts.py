"""The example of docs/concepts.md does what it shows, and its table of words names every kind there is."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

from outrider import kinds
from tests.docs.programs import ROOT, lines, run

PAGE = (ROOT / "docs" / "concepts.md").read_text()


@pytest.mark.slow
def test_the_example_shows_what_it_says(tmp_path: Path):
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (shown,) = re.findall(r"print\(.*  # (.*)", source)
    program = tmp_path / "program.py"
    program.write_text(source)
    assert lines(run(program, folder=tmp_path)) == [shown]


def test_every_kind_is_named_among_the_words():
    (row,) = [line for line in PAGE.splitlines() if line.startswith("| kind |")]
    modules = [
        importlib.import_module(f"{kinds.__name__}.{each.name}") for each in pkgutil.iter_modules(kinds.__path__)
    ]
    there = {module.KIND for module in modules if hasattr(module, "KIND")}
    assert there == set(re.findall(r"`([a-z_]+)`", row))
