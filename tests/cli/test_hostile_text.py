"""Text that is meant to do harm, in every place where a client can put text: no command lets it reach a terminal raw.

Each place has the same poison: sequences that clear, retitle, recolour, link and write the clipboard, marks that turn
the direction of writing, characters that nobody sees, an 8-bit control, a carriage return and a line of its own that
looks like ours.
"""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import unicodedata
from contextlib import closing
from pathlib import Path

import pytest

from outrider import Outrider, TaskContext, TaskOptions
from outrider.cli.terminal import harmless, json_text, on_one_line
from outrider.core.errors import OutriderError
from outrider.core.ledger import WorkerCard
from outrider.runtime.facade import Runtime
from tests.cli.harness import Cli

NUL = "\0"
POISON = (
    "\x1b[2J\x1b]0;owned\x07\x1b[31mred\x1b]8;;http://evil.example\x1b\\link\x1b]52;c;aGk=\x07\x9b5m\x9d0;owned\x9c"
    "\u202egnidaer\u2066\u200f\u061c\u200b\ufeff\u2060\u00ad\U000e0041\u2028\x00\x7f\x08\rFORGED\nFORGED"
    "\u2029\u0085FORGED" + "x" * 250
)
OURS = re.compile(r"\x1b\[[0-9;?]*[A-HJKSTfhlmsu]")
"""What rich writes: styles, and moves of the cursor in a live display."""

app = Outrider()


@app.tool(name="plain")
async def everywhere(task: TaskContext, end: str) -> str:
    task.detail(POISON[:2000])
    task.progress(1, 3, unit=POISON[:200], label=POISON)
    task.output(f"{POISON}\n")
    await task.post(POISON)
    await task.artifact("\u202egnp.exe", POISON)  # controls are refused in a path, marks of direction are not
    await task.step(POISON[:500].replace(NUL, ""), str, POISON)
    asyncio.get_running_loop().call_soon(forget, POISON)
    match end:
        case "ask":
            await task.ask(POISON, str, details={POISON: [POISON]})
        case "fail":
            raise ValueError(POISON)
        case "sleep":
            await task.sleep(3600)
    return POISON


def forget(text: str) -> None:
    """Fail where nobody hears of it but the log of the event loop."""
    raise ValueError(text)


async def poison(database: Path) -> dict[str, str]:
    """A database full of it; the ids of its tasks by how they stand."""
    ids = {}
    async with app.open(str(database)) as runtime:
        session = await runtime.sessions.create(id="session_a", title=POISON.replace("\0", ""), labels={POISON: POISON})
        for end in ("return", "fail", "ask", "sleep"):
            options = TaskOptions(
                name=POISON.replace(NUL, ""),
                labels={POISON: POISON},
                origin={"actor": POISON},
                max_failures=1,
                headless=False,
            )
            task = await session.spawn("plain", end=end, options=options)
            if end in ("ask", "sleep"):
                await task.message(POISON, sender=POISON[:200])
            ids[end] = task.id
        await runtime.tasks.wait([ids["return"], ids["fail"]], timeout=30)
        await runtime.tasks.wait([ids["ask"]], timeout=30, on_question=True)
        await _until_said(runtime, ids["sleep"])
        canceled = await session.spawn("plain", end="sleep", options=TaskOptions(name=POISON.replace(NUL, "")))
        await canceled.cancel(reason=POISON, by=POISON, wait=10)
        ids["canceled"] = canceled.id
        await runtime.ledger.register(WorkerCard(f"worker_{POISON}", POISON, POISON, 1, 0, (POISON,), POISON))
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("update attempts set worker_id = ?", (f"worker_{POISON}",))
    return ids


async def _until_said(runtime: Runtime, task_id: str) -> None:
    while "sleeping" not in str((await runtime.tasks.record(task_id)).phase):  # noqa: ASYNC110 - a park rings no bell
        await asyncio.sleep(0.01)


def check_harmless(command: list[str], shown: str) -> None:
    left = OURS.sub("", shown.replace("\r\n", "\n"))
    if command[0] in ("watch", "call"):
        left = left.replace("\r", "")  # a live display goes back to the beginning of its line
    bad = {c for c in left if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert not bad, f"{command} lets {sorted(map(hex, map(ord, bad)))} through"
    assert "\x1b[2J" not in shown
    assert "\x1b[31mred" not in shown
    if command[0] in ("tasks", "show", "messages", "cancel", "answer"):
        assert not any(line.startswith("FORGED") for line in left.splitlines())


HERE = Path(__file__).parent


def of_records(ids: dict[str, str]) -> list[list[str]]:
    """Commands that show most of what clients wrote."""
    commands = [["watch"], ["tasks"], ["show", ids["ask"]], ["messages", ids["ask"]]]
    commands += [["call", "plain", "end=fail", "-v", "--app", "test_hostile_text", f"--name={POISON.replace(NUL, '')}"]]
    return commands


def of_words() -> list[list[str]]:
    """Commands that are given such words themselves, and say them again in an error."""
    bad = "\x1b[2J\rFORGED"
    commands = [["show", bad], ["tasks", "--state", bad], [bad], ["tasks", bad], ["call", bad, "--app", "example_app"]]
    commands += [["call", "add", f"a={bad}"], ["call", "add", f"{bad}=1"], ["worker", "--app", bad]]
    return [*commands, ["tasks", "--db", f"x://{bad}"], ["tasks", "--label", bad], ["watch", bad]]


def of_the_rest(ids: dict[str, str]) -> list[list[str]]:
    """All others."""
    commands = [["tasks", "--json"], ["watch", "session_a"], ["output", ids["fail"]], ["cancel", ids["fail"]]]
    for id in ids.values():
        commands += [["show", id], ["show", id, "--json"]]
    for id in (ids["return"], ids["fail"], ids["canceled"]):
        commands += [["wait", id], ["watch", id], ["watch", id, "--json"]]
    return [
        *commands,
        ["answer", ids["fail"], POISON.replace(NUL, "")],
        ["answer", ids["ask"], "--request", "\x1b", "x"],
    ]


def check(cli: Cli, command: list[str]) -> None:
    terminal = cli.terminal(*command, PYTHONPATH=f"{HERE}:{HERE.parents[1]}")
    if command in (["watch"], ["watch", "session_a"]):
        terminal.read_until("alive of")
        terminal.type("\x03")
    terminal.end()
    assert terminal.shown, command
    check_harmless(command, terminal.shown)


@pytest.mark.slow
def test_no_command_lets_hostile_text_reach_a_terminal(cli: Cli):
    ids = asyncio.run(poison(cli.folder / ".outrider" / "outrider.db"))
    for command in of_records(ids):
        check(cli, command)
    check(cli, of_words()[0])


@pytest.mark.soak
def test_no_command_at_all_lets_hostile_text_reach_a_terminal(cli: Cli):
    ids = asyncio.run(poison(cli.folder / ".outrider" / "outrider.db"))
    for command in [*of_words(), *of_the_rest(ids)]:
        check(cli, command)


@pytest.mark.anyio
async def test_halves_of_characters_are_refused_with_a_word(tmp_path: Path):
    async with app.open(str(tmp_path / "work.db"), worker=False) as runtime:
        session = await runtime.sessions.create()
        for made in (
            lambda: runtime.sessions.create(title="\udc80"),
            lambda: session.spawn("plain", end="\udc80"),
            lambda: session.spawn("plain", end="ask", options=TaskOptions(name="\udc80")),
            lambda: session.spawn("plain", end="ask", options=TaskOptions(labels={"\udc80": "x"})),
        ):
            with pytest.raises(OutriderError) as caught:
                await made()
            assert caught.value.code in ("invalid_arguments", "refused"), caught.value
        assert not await runtime.tasks.list()


def test_what_nobody_sees_is_shown_and_json_with_it_means_the_same():
    hidden = "\u200b\u200e\u202e\u2066\ufeff\u00ad\U000e0041\U000e007f"
    assert on_one_line(f"pay{hidden}pal") == r"pay\u200b\u200e\u202e\u2066\ufeff\xad\U000e0041\U000e007fpal"
    assert harmless(hidden).isascii()
    told = json_text({hidden: hidden})
    assert told.isascii()
    assert json.loads(told) == {hidden: hidden}


def test_what_writing_needs_stays_as_it_is():
    family, persian = "👩\u200d👩\u200d👧", "می\u200cخواهم"
    assert on_one_line(family) == family
    assert harmless(persian) == persian
    assert json_text(family) == f'"{family}"'
