"""The documents cannot go stale unseen: links lead somewhere, code parses, commands exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])

document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


@document
def test_every_relative_link_leads_to_a_file(path: Path):
    targets = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


@document
def test_every_python_example_parses(path: Path):
    for number, block in enumerate(re.findall(r"```python[^\n]*\n(.*?)```", path.read_text(), re.DOTALL), start=1):
        compile(block, f"{path.name}, example {number}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@document
def test_what_is_not_published_is_installed_as_the_readme_says_and_by_its_name_nowhere_else(path: Path):
    assert path == ROOT / "README.md" or re.findall(r"pip install '?outrider.*", path.read_text()) == []


@document
def test_every_make_target_that_is_named_exists(path: Path):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", path.read_text(), re.MULTILINE))
    assert named - targets == set()
