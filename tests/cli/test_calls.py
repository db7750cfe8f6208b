"""`call` in the foreground: what it prints, what it ends with, what it refuses."""

import json
import signal

import pytest

from outrider import TaskRecord
from outrider.cli.values import seconds, value_of
from tests.cli.harness import Cli, eventually


def test_the_result_goes_to_stdout_and_everything_else_to_stderr(cli: Cli):
    done = cli.ok("call", "count", "upto=3")
    assert json.loads(done.out) == {"counted": 3}
    assert "line 2\n" in done.err
    assert "count  succeeded" in done.err


def test_a_text_result_is_printed_as_it_is(cli: Cli):
    assert cli.ok("call", "echo", "text=hello there").out == "hello there\n"


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("123", {"type": "string"}, "123"),
        ("123", {"type": "integer"}, 123),
        ("123", None, 123),
        ("true", {"type": "string"}, "true"),
        ("yes", {"type": "boolean"}, True),
        ("No", {"anyOf": [{"type": "object"}, {"type": "boolean"}]}, False),
        ("yes", {"type": "string"}, "yes"),
        ("yes", None, "yes"),
        ('{"a": [1]}', {"type": "object"}, {"a": [1]}),
        ('"5"', None, "5"),
        ("5", {"anyOf": [{"type": "string"}, {"type": "integer"}]}, 5),
        ("maybe", {"type": "boolean"}, "maybe"),
        ("", {"type": "string"}, ""),
        ("NaN", None, "NaN"),
        ("18446744073709551615", None, 2**64 - 1),
        ("18446744073709551616", None, "18446744073709551616"),
        ("-9223372036854775809", None, "-9223372036854775809"),
        ("1" * 5000, None, "1" * 5000),
        ('{"id": 18446744073709551616}', None, {"id": 2**64}),
    ],
)
def test_a_value_is_json_where_it_parses_and_fits_else_text(text: str, schema: dict[str, object] | None, value: object):
    found = value_of(text, schema)
    assert (found, type(found)) == (value, type(value))


def test_a_value_is_text_where_the_tool_wants_text(cli: Cli):
    assert cli.ok("call", "echo", "text=-5").out == "-5\n"
    assert cli.ok("call", "echo", 'text={"a=b": 1}').out == '{"a=b": 1}\n'


@pytest.mark.parametrize(("text", "length"), [("90", 90), ("1.5s", 1.5), ("10m", 600), ("8h", 28800), ("2d", 172800)])
def test_lengths_of_time_have_units(text: str, length: float):
    assert seconds(text) == length


def test_options_may_stand_between_and_before_the_arguments(cli: Cli):
    done = cli.ok(
        "--json", "call", "add", "a=2", "--name", "sum", "b=3", "--app", "example_app", OUTRIDER_APP="nothing"
    )
    assert done.record["result"] == 5


def test_json_is_the_record_and_its_result(cli: Cli):
    done = cli.ok(
        "call", "add", "a=2", "b=3", "--json", "--name=sum", "--label=team=blue", "--label=x=", "--priority=7",
        "--wake=on_terminal", "--run-timeout=5m", "--max-failures=2", "--session=mine", "--idempotency-key=k",
    )  # fmt: skip
    record = dict(done.record)
    assert record.pop("result") == 5
    task = TaskRecord.model_validate(record)
    assert task.model_dump(mode="json") == record
    assert (task.display_name, task.labels, task.priority) == ("sum", {"team": "blue", "x": ""}, 7)
    assert (task.wake_policy, task.timeouts.run, task.retry.max_failures) == ("on_terminal", 300, 2)
    assert (task.session_id, task.idempotency_key) == ("mine", "k")
    assert done.err == ""


def test_the_same_key_gives_the_same_task_and_another_payload_a_conflict(cli: Cli):
    first = cli.ok("call", "add", "a=1", "--idempotency-key=k", "--json").record
    assert cli.ok("call", "add", "a=1", "--idempotency-key=k", "--json").record["id"] == first["id"]
    assert cli.run("call", "add", "a=2", "--idempotency-key=k", "--json").error["code"] == "idempotency_conflict"
    assert len(cli.ok("tasks", "--json").records) == 1


def test_a_failed_task_ends_the_command_with_its_code(cli: Cli):
    done = cli.run("call", "fail", "reason=because")
    assert (done.code, done.out) == (7, "")
    assert "on_purpose: because" in done.err
    again = cli.run("call", "fail", "reason=because", "--json")
    assert again.code == 7
    assert again.record["error"] == {"kind": "on_purpose", "message": "because", "details": None}


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["call", "nope"], 3, "unknown_tool"),
        (["call", "add", "a=x"], 3, "invalid_arguments"),
        (["call", "add", "c=1"], 3, "invalid_arguments"),
        (["call", "add", "a"], 2, "usage"),
        (["call", "add", "a=1", "a=2"], 2, "usage"),
        (["call", "add", "a=1", "--app", "no_such_module:app"], 3, "invalid_arguments"),
        (["call", "add", "a=1", "--app", "example_app:add"], 3, "invalid_arguments"),
        (["call", "add", "a=1", "--app", "example_app.py"], 3, "invalid_arguments"),
        (["call", "add", "a=1", "--priority=5000"], 3, "invalid_arguments"),
        (["call", "add", "a=1", "--delay=soon"], 2, "usage"),
        (["call", "add", "a=1", "--delay=999999d"], 2, "usage"),
        (["call", "add", "a=1", f"--run-timeout={'9' * 400}"], 2, "usage"),
        (["call", "add", "a=1", f"--max-failures={10**20}"], 2, "usage"),
        (["call", "add", "a=1", "--wake=never"], 2, "usage"),
        (["tasks", f"--limit={2**63 - 1}"], 2, "usage"),
        (["output", "x", f"--from={10**20}"], 2, "usage"),
        (["watch", "x", "--after=1.5"], 2, "usage"),
        (["watch", "--after=1"], 2, "usage"),
        (["worker", f"--concurrency={10**20}"], 2, "usage"),
        (["call", "add", "a=1", "--db", "nosuch://x"], 3, "invalid_arguments"),
        (["call", "add", "a=1", "--db", "memory://", "--background"], 3, "invalid_arguments"),
        (["run", "hello"], 2, "usage"),
        (["demo", "nowhere"], 2, "usage"),
        (["demo", "--db=work.db"], 2, "usage"),
        (["run", "hello", "--model=scripted", "--tools=nope"], 3, "unknown_tool"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_with_its_code(cli: Cli, arguments: list[str], code: int, error: str):
    done = cli.run(*arguments, "--json")
    assert (done.code, done.out, done.error["code"]) == (code, "", error)


def test_what_is_refused_is_told_in_words_and_nothing_is_written(cli: Cli):
    for arguments in (["call", "nope"], ["call", "add", "a=x"], ["call", "add", "a"]):
        told = cli.run(*arguments)
        assert told.code in (2, 3)
        assert told.out == ""
        assert told.err.startswith("outrider: ")
    assert cli.ok("tasks", "--json").records == []


def test_an_app_that_cannot_be_imported_says_where(cli: Cli):
    (cli.folder / "broken.py").write_text("import nothing_of_this_name\n")
    (cli.folder / "raises.py").write_text("\n1 / 0\n")
    assert "nothing_of_this_name" in cli.run("call", "add", "--app=broken:app").err
    assert "raises.py:2" in cli.run("call", "add", "--app=raises").err


def test_modules_are_found_in_the_current_directory(cli: Cli):
    (cli.folder / "here.py").write_text(
        "from outrider import Outrider\n\n"
        "def make():\n    app = Outrider()\n    app.tool(name='seven')(lambda: 7)\n    return app\n"
    )
    assert cli.ok("call", "seven", "--app=here:make", PYTHONPATH="").out == "7\n"


def test_ctrl_c_cancels_the_task_and_waits_for_it(cli: Cli):
    process = cli.start("call", "forever")
    eventually(lambda: [task for task in cli.ok("tasks", "--json").records if task["state_detail"]])
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (8, "")
    assert "was canceled: interrupted" in err
    (task,) = cli.ok("tasks", "--json").records
    assert task["state"] == "canceled"


def test_sigterm_leaves_the_task_for_another_worker(cli: Cli):
    process = cli.start("call", "count", "upto=1000", "pause=0.05")
    eventually(lambda: [task for task in cli.ok("tasks", "--json").records if task["progress"]])
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    (task,) = cli.ok("tasks", "--json").records
    assert (task["state"], task["failures"], task["worker_id"]) == ("running", 0, None)


def test_a_question_without_a_terminal_is_named_and_answered_from_elsewhere(cli: Cli):
    process = cli.start("call", "confirm", "prompt=Shall I?")
    (task,) = eventually(lambda: cli.ok("tasks", "--state=awaiting_input", "--json").records)
    assert cli.run("answer", task["id"], "maybe", "--json").error["code"] == "invalid_answer"
    answered = cli.ok("answer", task["id"][-8:], "yes", "--json")
    TaskRecord.model_validate(answered.record)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "yes\n")
    assert f"outrider answer {task['id'][-8:]}" in err
    assert cli.run("answer", task["id"], "yes", "--json").error["code"] == "request_closed"


def test_what_a_tool_prints_reaches_a_pipe_untouched_and_its_name_never_steers(cli: Cli):
    done = cli.ok("call", "nasty", "--name=evil\x1b[2J\nname")
    assert done.out == "\x1b[31mred\nsecond line\n"
    assert "evil\\x1b[2J\\nname" in done.err
    listed = cli.ok("tasks").out
    assert "\x1b" not in listed
    assert len(listed.splitlines()) == 2
