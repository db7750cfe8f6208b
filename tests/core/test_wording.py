"""One is one, and everything else is many."""

import re
from pathlib import Path

import pytest

import outrider
from outrider.core.wording import counted

SOURCE = Path(outrider.__file__).parent
SPOKEN = sorted([*SOURCE.glob("cli/*.py"), SOURCE / "demo" / "show.py", SOURCE / "runtime" / "doctor.py"])
COUNTED_BY_HAND = re.compile(r"(?<!/)\{[^{}]*\} (?:tasks|workers|bytes|failures|files|lines|kills)\b")


@pytest.mark.parametrize(("count", "said"), [(0, "0 tasks"), (1, "1 task"), (2, "2 tasks"), (12_000, "12,000 tasks")])
def test_a_count_agrees_with_its_noun(count: int, said: str):
    assert counted(count, "task") == said


@pytest.mark.parametrize("path", SPOKEN, ids=lambda path: path.name)
def test_no_message_of_the_command_line_says_one_tasks(path: Path):
    assert COUNTED_BY_HAND.findall(path.read_text()) == []
