"""The tutorial does what it says: it is typed into a shell, in an empty folder, with real processes and real kills.

Two things differ from what a reader does: a letter takes a third of a second, and where the page says `sleep` before
a kill, the test waits for the letters that the reader would have waited for.
"""

import asyncio
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from outrider import Outrider, State
from outrider.runtime.records import TaskRecord
from tests.docs.programs import PATIENCE, ROOT, dismiss_workers, environment

PAGE = (ROOT / "docs" / "tutorial.md").read_text()
CUT = re.compile(r"(?P<start>.+) & sleep \d+; (?P<kill>kill -9 \$!)")
CLI = ".outrider/outrider.db"
DIES_AFTER = {"outrider": (CLI, 2), "python": ("spring.db", 1)}
"""Where what is killed keeps its task, and after how many letters."""


@pytest.mark.slow
def test_the_tutorial_typed_as_it_stands_does_what_it_shows(tmp_path: Path):
    reader = Reader(tmp_path)
    try:
        for kind, name, text, shown in blocks():
            if kind == "python":
                with (tmp_path / "letters" / name).open("a") as program:
                    program.write(f"\n\n{text}".replace("time.sleep(1)", "time.sleep(0.3)"))
            else:
                reader.types(text.splitlines(), shown.splitlines())
        letters = (tmp_path / "letters" / "sent.txt").read_text().splitlines()
        assert letters == [f"a letter to {name}" for name in ("ada", "bob", "cyd", "dan", "eve", "flo", "gil", "hal")]
        ended = asyncio.run(endings(tmp_path / "letters" / CLI))
        assert ended["letters to bob, cyd, dan, eve"] == ["lost", "succeeded"]
        assert ended["letters to flo"][-1] == "succeeded"
    finally:
        reader.leaves()
        asyncio.run(dismiss_workers(tmp_path / "letters"))


def blocks() -> Iterator[tuple[str, str, str, str]]:
    """The programs and commands of the page in order: kind, name of the file, text, and the output that is shown."""
    found = re.finditer(
        r"(?:`(?P<name>\w+\.py)`:\n\n)?^```(?P<kind>python|sh)\b[^\n]*\n(?P<text>.*?)^```\n(?:\n```text\n(?P<shown>.*?)^```)?",
        PAGE,
        re.MULTILINE | re.DOTALL,
    )
    for block in found:
        yield block["kind"], block["name"] or "", block["text"], block["shown"] or ""


class Reader:
    """Somebody at a shell, who types a command, reads what it prints, and looks at a list once there is something."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shell = subprocess.Popen(
            ["sh"],
            cwd=folder,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def types(self, commands: list[str], shown: list[str]) -> None:
        printed = "".join(map(self._enter, commands))
        missing = missing_in(printed, shown)
        assert missing is None, f"{commands} should have printed {missing!r}, and printed\n{printed}"

    def leaves(self) -> None:
        self._shell.kill()
        self._shell.communicate()

    def _enter(self, command: str) -> str:
        if (state := re.fullmatch(r"outrider tasks --state (\w+)", command)) is not None:
            wanted = State(state[1])
            asyncio.run(until(self._folder / "letters" / CLI, lambda task: task.state is wanted))
        cut = CUT.fullmatch(command)
        if cut is None:
            return self._run(command)
        started = self._run(f"{cut['start']} &")
        database, letters = DIES_AFTER[cut["start"].split()[0]]
        asyncio.run(until(self._folder / "letters" / database, partial(has_written, letters)))
        return started + self._run(f"{cut['kill']}; wait $!; test $? = 137")

    def _run(self, command: str) -> str:
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"{{ {command}\n}} </dev/null; status=$?; echo; echo ended with $status\n")
        self._shell.stdin.flush()
        watchdog = threading.Timer(PATIENCE, self._shell.kill)
        watchdog.start()
        try:
            printed = ""
            for line in self._shell.stdout:
                if line.startswith("ended with "):
                    assert line == "ended with 0\n", f"{command!r}: {line}{printed}"
                    return printed
                printed += line
        finally:
            watchdog.cancel()
        raise AssertionError(f"{command!r} never came to an end:\n{printed}")


def missing_in(printed: str, shown: list[str]) -> str | None:
    """The first line of what is shown that was not printed; times, ids and `…` stand for any."""
    lines = printed.splitlines()
    for line in shown:
        pattern = re.escape(line)
        for sample, any_other in (
            (r"\d\d:\d\d:\d\d", r"\\d\\d:\\d\\d:\\d\\d"),
            (r"task_[0-9a-f]{32}", "task_[0-9a-f]{32}"),
            (r"pid\\ \d+", r"pid \\d+"),
            (r"\d+\\\.\ds", r"\\d+\\.\\ds"),
            (r"(\\ )+", " +"),
            ("…", ".*"),
        ):
            pattern = re.sub(sample, any_other, pattern)
        if not any(re.fullmatch(pattern, each) for each in lines):
            return line
    return None


def has_written(letters: int, task: TaskRecord) -> bool:
    return task.state is State.RUNNING and task.progress is not None and task.progress.current == letters


async def until(database: Path, fact: Callable[[TaskRecord], bool]) -> None:
    """Wait until it is so of any task."""
    async with asyncio.timeout(PATIENCE), Outrider().open(str(database), worker=False) as outrider:
        while True:
            if any(map(fact, await outrider.tasks.list())):
                return
            await asyncio.sleep(0.01)


async def endings(database: Path) -> dict[str, list[str]]:
    """How each task's attempts ended, by its result."""
    async with Outrider().open(str(database), worker=False) as outrider:
        return {
            str(task.summary): [str(each.ending) for each in await outrider.tasks.attempts(task.id)]
            for task in await outrider.tasks.list()
        }
