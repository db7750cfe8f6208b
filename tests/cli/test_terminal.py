"""What a person at a terminal sees, and is asked. Each test has a real terminal of its own."""

import io
import json
import os
import re
import signal
import sqlite3
from contextlib import closing

import pytest
from rich.console import Console

from outrider import State
from outrider.cli.glance import Glance
from outrider.cli.watching import _branch
from tests.cli.harness import Cli, eventually

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def without_styles(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_question_is_asked_inline_until_the_answer_fits(cli: Cli):
    terminal = cli.terminal("call", "confirm", "prompt=Publish it?")
    terminal.read_until("Publish it? (yes or no)")
    terminal.read_until("> ")
    terminal.type("maybe\n")
    terminal.read_until("does not fit")
    terminal.type("y\n")
    assert terminal.end() == 0
    assert terminal.shown.rstrip().endswith("yes")
    (task,) = cli.ok("tasks", "--json").records
    (request,) = cli.task(task["id"])["requests"]
    assert (request["answer"], request["answered_via"]) == (True, "cli")
    assert request["answered_by"] is not None


def test_text_that_looks_like_json_is_text_where_text_is_asked_for(cli: Cli):
    terminal = cli.terminal("call", "name_it")
    terminal.read_until("> ")
    terminal.type("42\n")
    assert terminal.end() == 0
    assert "called 42" in terminal.shown


def test_a_question_that_is_answered_elsewhere_is_let_go(cli: Cli):
    terminal = cli.terminal("call", "confirm")
    terminal.read_until("> ")
    (task,) = cli.ok("tasks", "--json").records
    cli.ok("answer", task["id"], "no")
    terminal.read_until("answered or closed elsewhere")
    assert terminal.end() == 0


def test_ctrl_c_at_a_terminal_cancels(cli: Cli):
    terminal = cli.terminal("call", "forever")
    terminal.read_until("waiting for ever")
    terminal.type("\x03")
    assert terminal.end() == 8
    assert "was canceled: interrupted" in terminal.shown
    assert "Traceback" not in terminal.shown


def test_ctrl_c_twice_leaves_at_once(cli: Cli):
    pids = cli.folder / "pids"
    terminal = cli.terminal("call", "stubborn", f"pids={pids}")
    eventually(pids.exists)
    terminal.type("\x03")
    terminal.read_until("canceling")
    terminal.type("\x03")
    assert terminal.end() == 130


def test_closing_the_terminal_leaves_the_task_to_another_worker(cli: Cli):
    terminal = cli.terminal("call", "count", "upto=1000", "pause=0.05")
    terminal.read_until("line 2")
    terminal.close()
    assert terminal.process.wait(60) in (128 + signal.SIGHUP, -signal.SIGHUP)
    (task,) = cli.ok("tasks", "--json").records
    assert (task["state"], task["failures"]) == ("running", 0)


def test_output_and_progress_are_live_and_the_result_is_told_last(cli: Cli):
    terminal = cli.terminal("call", "count", "upto=5", "pause=0.2")
    terminal.read_until("━")
    assert terminal.end() == 0
    shown = without_styles(terminal.shown)
    assert "5/5 lines" in shown or "4/5 lines" in shown
    assert '"counted": 5' in shown[shown.rindex("line 5") :]


def test_stdout_has_the_result_alone_while_the_terminal_sees_how_it_goes(cli: Cli):
    with (cli.folder / "out").open("w") as out:
        terminal = cli.terminal("call", "count", "upto=3", "pause=0.1", out=out.fileno())
        assert terminal.end() == 0
    assert (cli.folder / "out").read_text() == '{"counted":3}\n'
    assert "line 3" in terminal.shown


@pytest.mark.parametrize("command", [["call", "nasty"], ["tasks"], ["output"], ["show"]], ids=str)
def test_nothing_that_a_task_made_steers_the_terminal(cli: Cli, command: list[str]):
    if command[0] != "call":
        cli.run("call", "nasty", "--name=evil\x1b[2Jname")
        if command[0] != "tasks":
            command = [*command, cli.ok("tasks", "--json").records[0]["id"]]
    terminal = cli.terminal(*command)
    assert terminal.end() == 0
    for bad in ("\x1b]0;owned", "\x1b[2J", "\x1b[31mred", "\x07"):
        assert bad not in terminal.shown


@pytest.mark.parametrize("command", ["tasks", "show", "messages", "wait", "cancel", "watch", "output"])
@pytest.mark.parametrize("piped", [False, True], ids=["seen", "piped"])
def test_ids_of_an_older_version_steer_no_terminal_and_begin_no_line(cli: Cli, command: str, piped: bool):
    cli.ok("call", "add", "a=1", "--session=one")
    bad = "task_\x1b[2J\rforged\n\u202ex"
    message = {"id": bad, "task_id": bad, "session_id": "one", "direction": "inbound", "parts": [], "created_at": 0}
    with closing(sqlite3.connect(cli.folder / ".outrider" / "outrider.db")) as database, database:
        database.execute("update tasks set id = ?", (bad,))
        database.execute("update attempts set worker_id = ?", (bad,))
        database.execute("insert into messages values (1, ?, 1, 'inbound', ?)", (bad, json.dumps(message)))
    given = [command] if command == "tasks" else [command, bad]
    if piped:
        shown = cli.ok(*given).out
    else:
        terminal = cli.terminal(*given)
        assert terminal.end() == 0
        shown = without_styles(terminal.shown.replace("\r\n", "\n"))
        assert "\x1b[2J" not in terminal.shown
    assert command == "output" or "forged" in shown or "task_" in shown
    assert "\u202e" not in shown
    assert not any(line.startswith(("forged", "x")) for line in shown.splitlines())


@pytest.mark.parametrize("command", [["tasks"], ["call", "add", "a=1"], ["show", "nothing"]], ids=str)
def test_no_color_means_none(cli: Cli, command: list[str]):
    cli.ok("call", "add", "a=1")
    terminal = cli.terminal(*command, NO_COLOR="1")
    terminal.end()
    colours = [code for code in COLOUR.findall(terminal.shown) if re.search(r"\b(3[0-7]|9[0-7]|38|48)\b", code)]
    assert colours == []


def test_colours_are_there_on_a_terminal(cli: Cli):
    cli.ok("call", "add", "a=1")
    terminal = cli.terminal("tasks")
    assert terminal.end() == 0
    assert COLOUR.search(terminal.shown)
    (task,) = cli.ok("tasks", "--json").records
    assert task["id"][-8:] in terminal.shown
    assert task["id"] not in terminal.shown


def test_watch_is_a_live_tree_on_a_terminal(cli: Cli):
    worker = cli.worker()
    task_id = cli.ok("call", "count", "upto=1000", "pause=0.01", "--background", "--name=counting").out.strip()
    asking = cli.ok("call", "confirm", "prompt=Really?", "--background").out.strip()
    terminal = cli.terminal("watch")
    terminal.read_until("counting")
    terminal.read_until("━")
    terminal.read_until("asks: Really?")
    terminal.read_until("1 asking")
    cli.ok("cancel", task_id)
    terminal.read_until("canceled")
    terminal.type("\x03")
    assert terminal.end() == 130
    one = cli.terminal("watch", asking)
    one.read_until("Really?")
    cli.ok("answer", asking, "yes")
    one.read_until("succeeded")
    assert one.end() == 0
    worker.terminate()


def test_a_pipe_in_the_middle_is_no_terminal(cli: Cli):
    cli.ok("call", "add", "a=1")
    read, write = os.pipe()
    terminal = cli.terminal("tasks", out=write)
    os.close(write)
    assert terminal.end() == 0
    assert b"\x1b" not in os.read(read, 65536)
    os.close(read)


def test_where_there_is_little_room_only_the_news_gives_way():
    shown = io.StringIO()
    asking = Glance(
        "task_01a202555bc57000a3309bc2ad832089",
        "reporter",
        "subagent",
        State.AWAITING_INPUT,
        "",
        "asks: " + "may I? " * 20,
        None,
        5_000_000,
    )
    Console(file=shown, width=60).print(_branch(asking))
    (line,) = shown.getvalue().splitlines()
    assert line.startswith("ad832089 reporter awaiting_input asks: may I?")
    assert line.rstrip().endswith("… 5.0s")
