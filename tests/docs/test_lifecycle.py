"""What docs/lifecycle.md draws and lists is what the code does."""

import re
from pathlib import Path
from typing import get_args, get_type_hints

from outrider.core.diagram import mermaid, table
from outrider.core.events import EVENTS
from outrider.core.task import Phase, State

PAGE = (Path(__file__).parents[2] / "docs" / "lifecycle.md").read_text()


def test_the_diagram_is_the_one_that_the_table_of_moves_gives():
    """Paste what `mermaid()` returns."""
    assert re.findall(r"```mermaid\n(.*?)\n```", PAGE, re.DOTALL) == [mermaid()]


def test_the_table_is_the_one_that_the_table_of_moves_gives():
    """Paste what `table()` returns."""
    start = PAGE.index("| event |")
    assert PAGE[start : PAGE.index("\n\n", start)] == table()


def test_the_picture_shows_every_state_and_the_table_every_event():
    assert {state for state in State if f" {state}" in mermaid()} == set(State)
    assert [row.split(" | ")[0] for row in table().splitlines()[2:]] == [f"| {event.__name__}" for event in EVENTS]


def test_every_state_and_phase_is_explained():
    for name in (*State, *get_args(get_type_hints(Phase)["name"])):
        assert f"| `{name}` |" in PAGE


def test_all_fifteen_rules_are_told():
    assert re.findall(r"^(\d+)\. \*\*", PAGE, re.MULTILINE) == [str(number) for number in range(1, 16)]
