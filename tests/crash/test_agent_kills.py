"""An agent whose worker is killed at every write: no kept model call and no kept tool call is made again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.agent_kills import ANSWER
from tests.crash.crew import new_database
from tests.crash.proof import rows_of

ROOT = Path(__file__).parents[2]
WRITES = 15
"""More writes than the task makes, so that the last rounds kill nobody."""


def sail(folder: Path, first: int, last: int) -> dict[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.agent_kills", str(folder), str(first), str(last)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert not done.stderr, done.stderr
    return {int(number): fates for number, *fates in lines}


def assert_nothing_was_done_twice(folder: Path) -> None:
    kept: set[str] = set()
    once = 0
    for line in (folder / "truth").read_text().splitlines():
        what, _, name = line.partition(" ")
        if what == "kept":
            assert name not in kept, f"{name} was kept twice"
            kept.add(name)
        elif name.startswith("model "):
            assert f"agent!{name.split()[1]}/model" not in kept, f"{name} was asked again though it was kept"
        elif name.startswith("once"):
            once += 1
    assert once == 1, f"what must happen once happened {once} times"


def assert_settled(folder: Path) -> None:
    (((content,),),) = rows_of(folder / "work.db", "select content from files")
    assert json.loads(content) == ANSWER


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite", pytest.param("postgres", marks=pytest.mark.soak)])
def test_an_agent_killed_at_every_write_asks_and_does_nothing_twice(tmp_path, store):
    for number in range(2 * WRITES):
        (tmp_path / str(number)).mkdir()
        new_database(store, tmp_path / str(number) / "work.db")
    fates = sail(tmp_path, 0, 2 * WRITES)
    for number, fate in fates.items():
        assert fate in (["killed", "ended"], ["ended"]), (number, fate)
        assert_nothing_was_done_twice(tmp_path / str(number))
        assert_settled(tmp_path / str(number))
    killed = [number for number, fate in fates.items() if fate[0] == "killed"]
    assert len(killed) >= 20, "too few kills to prove anything"
    assert len(killed) < len(fates), "the last write was not reached"
