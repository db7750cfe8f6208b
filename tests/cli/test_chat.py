"""Talking with an agent, at a terminal and through a pipe, and what its tasks do and ask meanwhile."""

import asyncio
import io
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from outrider import Outrider, Runtime
from outrider.cli import chatting, steering
from outrider.cli.arguments import parse
from outrider.cli.exits import UsageError
from outrider.cli.terminal import Screen
from outrider.core.errors import IllegalMove, InvalidArguments, NotFound, SessionBusy, UnknownName
from tests.cli import chat_app
from tests.cli.harness import Cli, Terminal
from tests.facts import until

SESSION = re.compile(r"outrider chat (session_[0-9a-f]+)")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|38|9[0-7])[;m]")
PROMPT = "\x1b[?2004h"
"""What a terminal is told when somebody can type."""


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    cli = Cli(tmp_path)
    cli.env |= {"OUTRIDER_APP": "chat_app", "PROMPT_TOOLKIT_NO_CPR": "1"}
    try:
        yield cli
    finally:
        cli.clean_up()


@pytest.fixture
def hold(cli: Cli) -> Path:
    """The file for whose end builds and slow answers wait."""
    path = cli.folder / "hold"
    path.touch()
    return path


def type_line(terminal: Terminal, text: str) -> None:
    """Type a line where the prompt is, and see it taken."""
    terminal.read_until(PROMPT)
    terminal.type(f"{text}\r")
    terminal.read_until(f"> {text}")


def without_styles(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_whoever_sits_at_a_terminal_sees_answers_tasks_questions_and_wakes(cli: Cli, hold: Path):
    terminal = cli.terminal("chat")
    type_line(terminal, "hello")
    terminal.read_until("You said: hello\r\n")

    type_line(terminal, "choose")
    terminal.read_until("asks: Which colour? (red, green)")
    type_line(terminal, "blue")
    terminal.read_until("does not fit")
    type_line(terminal, "green")
    terminal.read_until("You chose green.\r\n")

    type_line(terminal, "build docs")
    terminal.read_until("It is begun.\r\n")
    terminal.read_until("━")  # drawn piecemeal, so not in words
    type_line(terminal, "/tasks")
    terminal.read_until("build  running")
    terminal.type("half a line")
    hold.unlink()
    terminal.read_until("reason=\"terminal\" state='succeeded'>docs is built</task_wake>\r\n")
    terminal.type("\x15/quit\r")
    assert terminal.end() == 0

    assert "taken up again" not in terminal.shown
    (session,) = SESSION.findall(terminal.shown)
    assert terminal.shown.count("You said: hello\r\n") == terminal.shown.count("You chose green.\r\n") == 1
    again = cli.terminal("chat", session)
    again.read_until(PROMPT)
    again.type("\x04")
    assert again.end() == 0
    recalled = [*map(without_styles, again.shown.splitlines())][1:7]
    assert recalled[:4] == ["> choose", "You chose green.", "> build docs", "It is begun."]
    assert all(line.endswith("docs is built</task_wake>") for line in recalled[4:])


def test_ctrl_c_interrupts_the_turn_and_leaves_at_the_second(cli: Cli, hold: Path):
    terminal = cli.terminal("chat", NO_COLOR="1")
    type_line(terminal, "nasty")
    terminal.read_until("\\x1b[31mred")
    terminal.read_until("printed by its code")
    type_line(terminal, "slowly")
    terminal.read_until("First\r\n")
    terminal.type("\x03")
    terminal.read_until("the turn was canceled: interrupted")
    terminal.type("half a line\x03")
    terminal.type("\x03")
    assert terminal.end() == 130
    assert "Traceback" not in terminal.shown
    assert COLOUR.findall(terminal.shown) == []
    for bad in ("\x1b]0;owned", "\x1b[2J", "\x07"):
        assert bad not in terminal.shown
    assert {task["state"] for task in cli.ok("tasks", "--json").records} == {"succeeded", "canceled"}


def test_a_line_that_was_begun_before_a_question_is_no_answer_to_it(cli: Cli):
    terminal = cli.terminal("chat", "talk", "--agent=clerk")
    terminal.read_until(PROMPT)
    terminal.type("red")
    terminal.read_until("d")
    turn = cli.ok("send", "talk", "choose").out.strip()
    terminal.read_until("asks: Which colour?")
    terminal.type("\r")
    terminal.read_until("\x1b[1m> red")
    assert cli.task(turn)["state"] == "awaiting_input"
    type_line(terminal, "/skip")
    terminal.read_until(f"outrider answer {turn[-8:]} VALUE")
    cli.ok("answer", turn, "green")
    terminal.read_until("answered or closed elsewhere: Which colour?")
    terminal.read_until("You chose green.\r\n")  # and hears the rest in the same turn
    terminal.read_until("You said: red\r\n")
    type_line(terminal, "/quit")
    assert terminal.end() == 0


def test_each_line_of_a_pipe_is_answered_in_turn_and_what_is_left_goes_on(cli: Cli, hold: Path):
    done = cli.run("chat", stdin="hello\nbuild docs\n//fail\nfail\nlast")
    assert (done.code, done.out) == (7, "You said: hello\nIt is begun.\nYou said: /fail\nYou said: last\n")
    assert re.search(r"^\S+ \w{8}  build  running  1/2 parts  docs$", done.err, re.MULTILINE)
    assert "the turn failed: on_purpose: this is meant to be" in done.err
    assert "1 task goes on; come back with: outrider chat session_" in done.err
    assert "\x1b" not in done.err
    hold.unlink()
    (build,) = cli.ok("tasks", "--kind=background_tool", "--json").records
    assert cli.ok("wait", build["id"], "--timeout=60", "--json").record["result"] == "docs is built"


def test_no_line_of_a_pipe_answers_a_question_but_one_that_says_so(cli: Cli):
    done = cli.run("chat", stdin="choose\n/answer blue\n/answer red\nhello\n")
    assert (done.code, done.out) == (3, "You chose red.\nYou said: hello\n")
    assert "asks: Which colour? (red, green)" in done.err
    assert "does not fit" in done.err


def test_in_json_each_turn_is_a_record_with_its_result(cli: Cli):
    hello, last = cli.ok("chat", "--json", stdin="hello\nlast\n").records
    assert (hello["kind"], hello["result"], last["result"]) == ("turn", "You said: hello", "You said: last")


def test_an_answer_that_a_lost_worker_was_giving_is_said_anew_and_told_to_be(cli: Cli, hold: Path):
    first = cli.worker()
    terminal = cli.terminal("chat", "talk", "--agent=clerk", OUTRIDER_APP="")
    type_line(terminal, "slowly")
    terminal.read_until("First\r\n")
    first.kill()
    first.wait()
    cli.worker()
    terminal.read_until("the turn is taken up again, as its worker was lost (attempt 2)")
    hold.unlink()
    terminal.read_until("and last.\r\n")
    type_line(terminal, "/quit")
    assert terminal.end() == 0
    cut, said = terminal.shown.split("the turn is taken up again")
    assert (cut.count("First\r\n"), said.count("First\r\n")) == (1, 1)
    assert "and \r\n" in cut
    assert said.count("and last.\r\n") == 1


@pytest.mark.anyio
async def test_what_cannot_be_talked_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OUTRIDER_APP", "tests.cli.chat_app")
    url = f"sqlite:///{tmp_path}/work.db"
    async with Outrider().open(url, worker=False) as runtime:
        await runtime.sessions.create(id="talk", agent="clerk")
        await runtime.sessions.create(id="plain")
    for typed, error in {
        ("chat", "nothing"): NotFound,
        ("chat", "--agent=nobody"): UnknownName,
        ("chat", "--app=tests.cli.example_app"): UsageError,
        ("chat", "talk", "--agent=other"): InvalidArguments,
        ("chat", "plain"): IllegalMove,
        ("send", "plain", "hello"): IllegalMove,
        ("send", "nothing", "hello"): NotFound,
    }.items():
        command, arguments = parse([*typed, f"--db={url}"])
        with pytest.raises(error):
            await getattr(chatting if command.name == "chat" else steering, command.name)(arguments, Screen())


def test_an_agent_of_a_server_is_talked_with_as_one_here(cli: Cli, hold: Path):
    server = cli.start("serve", "chat_app", "--port", "0", "--json", "--db", "work.db")
    assert server.stdout is not None
    cli.env["OUTRIDER_SERVER"] = json.loads(server.stdout.readline())["url"]
    terminal = cli.terminal("chat", "talk", "--agent=clerk", OUTRIDER_APP="")
    type_line(terminal, "build docs")
    terminal.read_until("It is begun.\r\n")
    terminal.read_until("━")
    type_line(terminal, "choose")
    terminal.read_until("asks: Which colour? (red, green)")
    type_line(terminal, "blue")
    terminal.read_until("does not fit")
    type_line(terminal, "green")
    terminal.read_until("You chose green.\r\n")
    hold.unlink()
    terminal.read_until("reason=\"terminal\" state='succeeded'>docs is built</task_wake>\r\n")
    type_line(terminal, "/quit")
    assert terminal.end() == 0
    assert "come back with: outrider chat talk" in terminal.shown
    assert not (cli.folder / ".outrider").exists()


async def _has_rung(runtime: Runtime, task_id: str, before: int) -> bool:
    return (await runtime.tasks.get(task_id)).core.rung != before


@pytest.mark.anyio
async def test_send_prints_the_turn_or_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    hold = tmp_path / "hold"
    hold.touch()

    async def send(*typed: str) -> tuple[int, str, str]:
        _, arguments = parse(["send", "talk", *typed, "--db=work.db"])
        out, err = io.StringIO(), io.StringIO()
        code = await steering.send(arguments, Screen(as_json=arguments.json, out=out, err=err))
        return code, out.getvalue(), err.getvalue()

    async with chat_app.app.open("work.db", worker=False) as runtime:
        session = await runtime.sessions.create(id="talk", agent="clerk")
        code, told, hint = await send("slowly")
        turn = await session.turn()
        assert turn is not None
        assert (code, told) == (0, f"{turn.id}\n")
        assert "no worker for turn:clerk is running here" in hint
        with pytest.raises(SessionBusy):
            await send("now", "or", "never", "--steering=reject")
    async with chat_app.app.open("work.db") as runtime:
        await until((tmp_path / "begun").exists)
        before = (await runtime.tasks.get(turn.id)).core.rung
        later = asyncio.ensure_future(send("and", "later", "--steering=after", "--wait"))
        await until(partial(_has_rung, runtime, turn.id, before))
        hold.unlink()
        assert (await later)[:2] == (0, "You said: and later\n")
        assert await (await runtime.task(turn.id)).result() == "First\nand last."
        code, told, _ = await send("hello", "--wait", "--json")
        assert (code, json.loads(told)["result"]) == (0, "You said: hello")
        assert (await send("fail", "--wait"))[0] == 7
