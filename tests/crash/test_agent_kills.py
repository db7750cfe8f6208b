"""An agent whose worker is killed at every write: whatever engine runs it, nothing that was kept is done again."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from outrider.agents.engine import summed
from tests.agents.casts import ANSWER, CASTS, EACH
from tests.crash.crew import new_database
from tests.crash.proof import rows_of

ROOT = Path(__file__).parents[2]
WRITES = 20
"""More writes than the task makes, so that the last round kills nobody."""
BEGUN = {"model 1", "add 3", "add 4", "model 2", "send hello", "model 3"}


def sail(engine: str, folder: Path, rounds: range) -> dict[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.agent_kills", engine, str(folder), *map(str, rounds)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert not done.stderr, done.stderr
    return {int(number): fates for number, *fates in lines}


def assert_nothing_was_done_twice(engine: str, folder: Path) -> set[str]:
    """Return what is known to have been kept: a worker may be killed before it could say so."""
    cast, kept, begun, done = CASTS[engine](), set[str](), set[str](), set[str]()
    for line in (folder / "truth").read_text().splitlines():
        what, _, name = line.partition(" ")
        if what == "kept":
            assert name not in kept, f"{name} was kept twice"
            kept.add(name)
        elif what == "done":
            done.add(name)
        else:
            assert name not in done, f"{name} was begun again though it was kept"
            assert name not in begun or name != "send hello" or not cast.takes_tools, "it must happen once"
            begun.add(name)
    assert begun == BEGUN
    return done & begun


def assert_settled(engine: str, folder: Path) -> None:
    """It has its answer, and the totals are those of one undisturbed run."""
    files, tasks = rows_of(folder / "work.db", "select content from files", "select live from tasks")
    ((content,),), ((live,),) = files, tasks
    assert json.loads(content) == ANSWER
    told = json.loads(live) if isinstance(live, str) else live
    assert told["iterations"] == CASTS[engine]().iterations
    assert told["usage"] == asdict(summed(summed(EACH, EACH), EACH))


@pytest.mark.slow
@pytest.mark.parametrize("engine", CASTS)
def test_an_agent_killed_before_every_second_write_asks_and_does_nothing_twice(tmp_path, engine):
    play(engine, "sqlite", tmp_path, range(0, 2 * WRITES, 4))


@pytest.mark.soak
@pytest.mark.parametrize("engine", CASTS)
@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_an_agent_killed_before_every_write_asks_and_does_nothing_twice(tmp_path, store, engine):
    play(engine, store, tmp_path, range(0, 2 * WRITES, 2))


@pytest.mark.soak
@pytest.mark.parametrize("engine", CASTS)
@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_an_agent_killed_after_every_write_asks_and_does_nothing_twice(tmp_path, store, engine):
    play(engine, store, tmp_path, range(1, 2 * WRITES, 2))


def play(engine: str, store: str, folder: Path, rounds: range) -> None:
    for number in rounds:
        (folder / str(number)).mkdir()
        new_database(store, folder / str(number) / "work.db")
    fates = sail(engine, folder, rounds)
    done: set[str] = set()
    for number, fate in fates.items():
        assert fate in (["killed", "ended"], ["ended"]), (number, fate)
        done |= assert_nothing_was_done_twice(engine, folder / str(number))
        assert_settled(engine, folder / str(number))
    assert done == BEGUN, "nobody could tell whether this was kept"
    assert len(fates) >= 5, "too few kills to prove anything"
    assert list(fates.values())[-1] == ["ended"], "the last write was not reached"
