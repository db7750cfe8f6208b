"""The demonstration holds, on real folders, with real kills; and it says so only if it does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from outrider.demo import show

KEYS = {
    "ok",
    "model",
    "kills",
    "tasks",
    "steps",
    "steps_repeated",
    "steps_cut",
    "model_calls",
    "model_calls_repeated",
    "events_gap_free",
    "report",
    "seconds",
}


def demonstrate(folder: Path, cwd: Path, before: str = "pass") -> tuple[int, dict[str, Any]]:
    program = f"import sys; {before}; from outrider.demo.show import run; sys.exit(run({str(folder)!r}, as_json=True))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    (folder / "README.md").write_text("# A project\n\nIt has words.\n")
    for number in range(30):
        (folder / "src" / f"module_{number}.py").write_text(f"value = {number}\n" * number)
    (folder / "image.bin").write_bytes(b"\0\1\2" * 100)
    with open(os.fsencode(folder) + b"/no\xfftext.txt", "w") as file:
        file.write("Its name is not UTF-8.")
    return folder


@pytest.mark.slow
def test_two_kills_lose_nothing_and_repeat_nothing(folder, tmp_path):
    code, verdict = demonstrate(folder, tmp_path)
    assert set(verdict) == KEYS
    assert (code, verdict["ok"], verdict["kills"]) == (0, True, 2)
    assert (verdict["steps_repeated"], verdict["model_calls_repeated"], verdict["steps_cut"]) == (0, 0, 1)
    assert verdict["model_calls"] == 4
    assert verdict["events_gap_free"]
    assert [task["state"] for task in verdict["tasks"]] == ["succeeded", "succeeded"]
    assert [set(task) for task in verdict["tasks"]] == [{"id", "kind", "state", "attempt", "failures"}] * 2
    report = (tmp_path / verdict["report"]).read_text()
    assert "32 files" in report
    assert "It has words." in report


@pytest.mark.slow
def test_an_empty_folder_is_surveyed_and_reported_too(tmp_path):
    (tmp_path / "empty").mkdir()
    code, verdict = demonstrate(tmp_path / "empty", tmp_path)
    assert (code, verdict["ok"], verdict["kills"]) == (0, True, 2)


@pytest.mark.slow
def test_a_journal_that_is_not_what_was_noted_does_not_hold(folder, tmp_path):
    forget = "from outrider.demo import show; notes = show._read_notes; show._read_notes = lambda path: notes(path)[1:]"
    code, verdict = demonstrate(folder, tmp_path, forget)
    assert (code, verdict["ok"]) == (1, False)


def test_no_line_of_the_story_is_told_as_it_came(tmp_path, monkeypatch, capsys):
    async def told(self: show._Show) -> show.Verdict:
        self._say("evil")
        return show.Verdict()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(show._Show, "run", told)
    show.run(clean=str.upper)
    assert "EVIL" in capsys.readouterr().out
