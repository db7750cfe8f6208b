"""`tasks`, `show`, `messages`, `output`: what is there, for people and for programs."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from outrider import TaskRecord
from outrider.runtime.records import AttemptRecord, InputRequestRecord, MessageRecord, OutputRecord, StepRecord
from tests.cli.harness import OUTRIDER, Cli, eventually

LOOKS = [
    (["tasks"], 0),
    (["show", "task_1"], 4),
    (["output", "task_1"], 4),
    (["messages", "task_1"], 4),
    (["message", "task_1", "hello"], 4),
    (["answer", "task_1", "yes"], 4),
    (["cancel", "task_1"], 4),
    (["wait", "task_1"], 4),
]


@pytest.mark.parametrize(("command", "code"), LOOKS, ids=str)
def test_where_there_is_no_database_yet_there_are_no_tasks_and_none_is_made(cli: Cli, command: list[str], code: int):
    done = cli.run(*command, "--json")
    assert (done.code, done.out) == (code, "")
    if code:
        assert done.error["code"] == "task_not_found"
    assert list(cli.folder.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ["show", "\udcff"],
        ["wait", "a", "\udcff"],
        ["watch", "\udcff"],
        ["call", "add", "a=\udcff"],
        ["tasks", "--kind=\udcff"],
    ],
    ids=ascii,
)
def test_what_is_typed_and_is_no_utf_8_is_a_wrong_command_line(cli: Cli, command: list[str]):
    done = cli.run(*command, "--json")
    assert (done.code, done.out, done.error["code"]) == (2, "", "usage")
    assert cli.run(*command).err.startswith("outrider: '")


def test_a_database_may_have_a_name_that_is_no_utf_8(cli: Cli):
    cli.ok("call", "add", "a=1", "--db=\udcff.db")
    assert len(cli.ok("tasks", "--db=\udcff.db", "--json").records) == 1


def test_a_named_database_is_made_with_its_folders(cli: Cli):
    assert cli.ok("tasks", "--db", "sqlite:///deep/down/work.db").out == ""
    assert (cli.folder / "deep/down/work.db").exists()
    assert cli.ok("tasks", OUTRIDER_DB="other.db").out == ""
    assert (cli.folder / "other.db").exists()


def test_tasks_lists_records_newest_first_and_narrowed(cli: Cli):
    cli.ok("call", "add", "a=1", "--label=team=blue")
    cli.run("call", "fail", "reason=no", "--label=team=blue", "--label=x=y")
    cli.ok("call", "add", "a=2", "--session=other")
    records = cli.ok("tasks", "--json").records
    assert [record["display_name"] for record in records] == ["add", "fail", "add"]
    for record in records:
        assert TaskRecord.model_validate(record).model_dump(mode="json") == record

    def found(*options: str) -> list[int]:
        return [records.index(record) for record in cli.ok("tasks", "--json", *options).records]

    assert found("--state=failed") == [1]
    assert found("--state=failed,succeeded") == [0, 1, 2]
    assert found("--state=queued", "--state=failed") == [1]
    assert found("--session=other") == [0]
    assert found("--label=team=blue", "--label=x=y") == [1]
    assert found("--kind=subagent") == []
    assert found("--limit=2") == [0, 1]
    for wrong in ("--state=done", "--limit=0", "--limit=x", "--label=x"):
        assert cli.run("tasks", wrong).code == 2


def test_tasks_are_found_by_their_words_and_by_when_they_were_made(cli: Cli):
    cli.ok("call", "add", "a=1", "--name=Quarterly report")
    cli.ok("call", "add", "a=2", "--name=Daily report")

    def names(*given: str) -> list[str]:
        return [record["display_name"] for record in cli.ok("tasks", "--json", *given).records]

    assert names("--text=QUARTERLY rep") == ["Quarterly report"]
    assert names("--text=report", "--oldest-first", "--created-after=1h") == ["Quarterly report", "Daily report"]
    assert names("--text=report", "--created-before=2020-01-31T09:30Z") == []
    for wrong in ("--text=?", "--created-after=tomorrow", "--root="):
        assert cli.run("tasks", wrong, "--json").error["code"] == "usage"


def test_piped_tasks_are_a_line_each_with_the_whole_id_and_no_colour(cli: Cli):
    cli.ok("call", "add", "a=1", "--name=first")
    (record,) = cli.ok("tasks", "--json").records
    head, line = cli.ok("tasks", FORCE_COLOR="1").out.splitlines()
    assert head.split() == ["ID", "STATE", "KIND", "AGE", "NAME", "NEWS"]
    assert line.split()[:3] == [record["id"], "succeeded", "background_tool"]


def test_a_task_is_named_by_the_beginning_or_the_end_of_its_id(cli: Cli):
    cli.ok("call", "add", "a=1")
    cli.ok("call", "add", "a=2")
    newest, oldest = (record["id"] for record in cli.ok("tasks", "--json").records)
    for name in (newest, newest[-8:], newest[:-3] if newest[:-3] != oldest[:-3] else newest, newest[5:]):
        assert cli.task(name)["id"] == newest
    several = cli.run("show", newest[:8], "--json")
    assert (several.code, several.error["code"]) == (3, "invalid_arguments")
    assert several.error["details"] == {"matches": [oldest, newest]}


def test_show_tells_all_about_a_task(cli: Cli):
    notes = cli.folder / "notes"
    cli.ok("call", "steps", f"notes={notes}", "upto=3", "hold=none")
    task_id = cli.ok("tasks", "--json").records[0]["id"]
    shown = dict(cli.task(task_id))
    assert shown.pop("result") == 3
    assert [StepRecord.model_validate(step).position for step in shown.pop("steps")] == ["step 0", "step 1", "step 2"]
    (attempt,) = map(AttemptRecord.model_validate, shown.pop("attempts"))
    assert attempt.ending == "succeeded"
    assert (shown.pop("requests"), shown.pop("messages"), shown.pop("accounts")) == ([], [], [])
    record = TaskRecord.model_validate(shown)
    assert record.checkpoint is not None
    assert record.checkpoint.step == "step 2"
    text = cli.ok("show", task_id).out
    assert text.splitlines()[0] == f"{task_id}  steps"
    assert "step step 2" in text


def test_a_message_reaches_the_task_and_the_thread(cli: Cli):
    worker = cli.worker()
    task_id = cli.ok("call", "echo_messages", "--background").out.strip()
    sent = MessageRecord.model_validate(cli.ok("message", task_id, "good\x1b[2J morning", "--json").record)
    assert sent.text == "good\x1b[2J morning"
    assert cli.ok("wait", task_id, "--json").record["result"] == "heard good\x1b[2J morning"
    (heard,) = cli.ok("messages", task_id, "--json").records
    assert MessageRecord.model_validate(heard) == sent
    assert f"→ {task_id[-8:]}" in cli.ok("messages", task_id).out
    assert cli.run("message", task_id, "too late", "--json").error["code"] == "task_finished"
    assert cli.run("message", task_id, "too late").code == 5
    worker.terminate()


def test_output_is_the_bytes_that_were_printed_from_an_offset_on(cli: Cli):
    cli.run("call", "nasty")
    cli.ok("call", "count", "upto=3")
    counted, nasty = (record["id"] for record in cli.ok("tasks", "--json").records)
    assert cli.ok("output", nasty).out == "\x1b[2Jwiped\ttab\n"
    assert cli.ok("output", counted).out == "line 1\nline 2\nline 3\n"
    assert cli.ok("output", counted, "--from=9").out == "ne 2\nline 3\n"
    assert cli.ok("output", counted, "--from=100").out == ""
    pieces = [OutputRecord.model_validate(piece) for piece in cli.ok("output", counted, "--json").records]
    assert "".join(piece.text for piece in pieces) == "line 1\nline 2\nline 3\n"
    assert pieces[-1].next == 21


def test_questions_of_a_task_are_shown_with_their_answers(cli: Cli):
    worker = cli.worker()
    task_id = cli.ok("call", "name_it", "--background").out.strip()
    eventually(lambda: cli.task(task_id)["input_requests"])
    (request,) = cli.task(task_id)["requests"]
    assert InputRequestRecord.model_validate(request).prompt == "Which name?"
    assert "asks: Which name?" in cli.ok("tasks").out
    cli.ok("answer", task_id, "123", f"--request={request['id']}")
    assert cli.ok("wait", task_id, "--json").record["result"] == "called 123"
    assert "(answered: 123 by " in cli.ok("show", task_id).out
    worker.terminate()


def test_a_reader_that_leaves_ends_the_command_quietly(cli: Cli):
    cli.ok("call", "count", "upto=1")
    read, write = os.pipe()
    os.close(read)
    for command in (["tasks"], ["tasks", "--json"], ["watch", "session_default"], ["call", "add", "a=1"]):
        done = subprocess.run(
            [OUTRIDER, *command], cwd=cli.folder, env=cli.env, stdout=write, stderr=subprocess.PIPE, text=True
        )
        assert done.returncode == 141
        assert "Broken" not in done.stderr
        assert "Traceback" not in done.stderr
    os.close(write)


def test_json_on_a_line_never_steers_a_terminal(cli: Cli):
    cli.ok("call", "add", "a=1", "--name=\x9b2J\x7f\u202eevil\x1b")
    line = cli.ok("tasks", "--json").out
    assert not any(bad in line for bad in "\x9b\x7f\u202e\x1b")
    assert json.loads(line)["display_name"] == "\x9b2J\x7f\u202eevil\x1b"


def test_a_result_that_is_escaped_for_a_terminal_means_the_same_to_a_parser(cli: Cli):
    evil = "\x9b2J\x7f\u202eevil\x1b"
    printed = cli.ok("call", "boxed", f"text={evil}").out
    assert not any(bad in printed for bad in evil if not bad.isalnum())
    assert json.loads(printed) == {"text": evil}


@pytest.fixture
def stranger(cli: Cli) -> dict[str, Path]:
    import sqlite3

    text = cli.folder / "text.db"
    text.write_text("this is no database\n" * 100)
    other = cli.folder / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("create table people (name text)")
    connection.close()
    folder = cli.folder / "folder.db"
    folder.mkdir()
    return {"text": text, "other": other, "folder": folder, "below a file": text / "work.db"}


@pytest.mark.parametrize(
    ("what", "error", "command"),
    [
        ("text", "store_foreign", ["tasks"]),
        ("other", "store_foreign", ["call", "add", "a=1"]),
        ("folder", "store_unavailable", ["worker"]),
        ("below a file", "store_unavailable", ["watch"]),
    ],
    ids=str,
)
def test_what_is_no_database_of_ours_is_refused_clearly_and_left_alone(
    cli: Cli, stranger: dict[str, Path], what: str, error: str, command: list[str]
):
    path = stranger[what]
    before = path.read_bytes() if path.is_file() else None
    done = cli.run(*command, "--db", str(path), "--json")
    assert (done.code, done.out, done.error["code"]) == (6, "", error)
    told = cli.run(*command, "--db", str(path))
    assert told.code == 6
    assert str(path) in told.err
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_place_that_cannot_be_written_is_refused_clearly(cli: Cli):
    done = cli.run("tasks", "--db", "/proc/outrider/work.db", "--json")
    assert done.code == 6
    assert done.error["code"].startswith("store_")
