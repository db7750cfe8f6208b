"""What makes no sense is refused before anything is made, in words that say what to do; no traceback is shown."""

import subprocess
from pathlib import Path

import pytest

from tests.cli.harness import OUTRIDER, Cli

EMPTY = [
    ("call", "add", "a=1", "--session", ""),
    ("call", "add", "a=1", "--app", ""),
    ("call", "add", "a=1", "--after", ""),
    ("exec", "--cwd", "", "--", "true"),
    ("run", "Hi", "--model", ""),
    ("cancel", "--all", "--session", ""),
    ("cancel", "--all", "--kind", ""),
    ("tasks", "--session", ""),
    ("prune", "--state", ""),
    ("pause", "--kind", ""),
]


@pytest.mark.parametrize("words", EMPTY, ids=" ".join)
def test_an_option_that_names_nothing_is_refused(cli: Cli, words: tuple[str, ...]):
    ended = cli.run(*words, "--json")
    assert (ended.code, ended.error["code"]) == (2, "usage")
    assert "is empty" in ended.error["message"]
    assert not (cli.folder / ".outrider").exists()


@pytest.mark.parametrize("size", ["0", "1024T", "99999T"])
def test_a_size_that_nothing_has_is_refused_with_the_sizes_that_will_do(cli: Cli, size: str):
    ended = cli.run("exec", "--memory", size, "--", "true")
    assert ended.code == 2
    assert "argument --memory" in ended.err
    assert "from 1 byte to less than 1024T" in ended.err


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("opnai:gpt-5", "near: openai:NAME"),
        ("no-such-model", "are known, such as"),
        ("scripted:lost", "known: scripted"),
    ],
)
def test_a_model_that_nobody_knows_is_refused_in_few_words_and_no_task_is_made(cli: Cli, model: str, said: str):
    for background in ((), ("--background",)):
        ended = cli.run("run", "Hi", "--model", model, *background)
        assert ended.code == 3
        assert said in ended.err
        assert len(ended.err) < 300
    assert cli.run("run", "Hi", "--model", model, "--json").error["code"] == "unknown_model"
    assert not (cli.folder / ".outrider").exists()


def test_a_pause_of_a_kind_that_nobody_knows_holds_and_says_so(cli: Cli):
    told = cli.ok("pause", "--kind", "subagnet").err
    assert "nothing of kind 'subagnet' is here yet" in told
    assert "subagent" in told
    assert [each["name"] for each in cli.ok("limits", "--json").record["pauses"]] == ["subagnet"]
    assert "nothing of kind" not in cli.ok("pause", "--kind", "process").err


def with_bytes(cli: Cli, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([OUTRIDER, *words], cwd=cli.folder, env=cli.env, input=b"\xff\xfe", capture_output=True)


def test_stdin_that_is_no_text_is_refused(cli: Cli):
    task = cli.ok("call", "add", "a=1", "--delay", "1d", "--background", "--idle-exit", "0.1").out.strip()
    for words in (("message", task, "-"), ("run", "-", "--model", "scripted"), ("exec", "--stdin=-", "--", "cat")):
        ended = with_bytes(cli, *words)
        assert ended.returncode == 2
        assert ended.stderr == b"outrider: stdin is not UTF-8 text, and only that can be given\n"
    assert len(cli.ok("tasks", "--json").records) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only some systems have a file that is always full")
@pytest.mark.parametrize("words", [("exec", "--stdin", "-", "--", "head", "-1"), ("run", "-"), ("message", "x", "-")])
def test_stdin_without_end_is_read_no_further_than_anybody_could_use(cli: Cli, words: tuple[str, ...]):
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as endless:
        ended = subprocess.run(
            [OUTRIDER, *words], cwd=cli.folder, stdin=endless.stdout, capture_output=True, text=True, check=False
        )
        endless.kill()
    assert ended.returncode == 2
    assert "stdin has more than 16,777,216 bytes" in ended.stderr


def test_an_output_that_is_full_is_said_plainly_and_a_task_that_was_to_move_stays(cli: Cli):
    task = cli.ok("call", "add", "a=1", "--delay", "1d", "--background", "--idle-exit", "0.1").out.strip()
    for words in (("export", task, "--move"), ("export", task), ("tasks",), ("show", task), ("--help",)):
        with open("/dev/full", "w") as full:
            ended = subprocess.run([OUTRIDER, *words], cwd=cli.folder, env=cli.env, stdout=full, stderr=subprocess.PIPE)
        assert ended.returncode == 1, words
        assert ended.stderr == b"outrider: stdout cannot be written: No space left on device\n"
    assert cli.task(task)["state"] == "queued"


def test_a_current_directory_that_was_deleted_is_said_plainly(cli: Cli):
    gone = cli.folder / "gone"
    command = f"mkdir {gone}; cd {gone}; rmdir {gone}; exec {OUTRIDER} call add a=1 --app example_app"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (ended.returncode, "the current directory was deleted" in ended.stderr) == (3, True), ended.stderr


def test_what_has_ended_is_exported_but_not_moved(cli: Cli):
    cli.ok("call", "add", "a=1")
    (task,) = cli.ok("tasks", "--json").records
    refused = cli.run("export", task["id"], "--move", "--json")
    assert (refused.code, refused.error["code"], refused.out) == (5, "illegal_move", "")
    assert "has ended as succeeded" in refused.error["message"]
    assert cli.ok("export", task["id"]).record["task"]["id"] == task["id"]


def test_what_a_worker_serves_is_readable_however_much_it_is(cli: Cli):
    (cli.folder / "many.py").write_text(
        "from outrider import Outrider\n"
        "app = Outrider()\n"
        "for n in range(10, 23):\n"
        "    app.tool(name=f'tool_{n}')(lambda: 1)\n"
    )
    told = cli.ok("worker", "--app", "many", "--idle-exit", "0.1").err
    names = ", ".join(f"tool_{n}" for n in range(10, 16))
    assert f"serves background_tool ({names} and 7 more), process, subagent" in told
