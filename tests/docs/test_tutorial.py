"""The tutorial does what it says: it is typed into a shell, in an empty folder, with real processes and real kills."""

import asyncio
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from outrider import Outrider
from tests.docs.programs import PATIENCE, ROOT, dismiss_workers, environment

PAGE = (ROOT / "docs" / "tutorial.md").read_text()
CLI = ".outrider/outrider.db"
NOTED = {"ada", "bob", "cyd", "flo", "gil"}
"""Whose letter is noted as done before the kill, if there is one: it is never written twice."""


@pytest.mark.slow
def test_the_tutorial_typed_as_it_stands_does_what_it_shows(tmp_path: Path):
    reader = Reader(tmp_path)
    try:
        for kind, name, text, shown in blocks():
            if kind == "python":
                with (tmp_path / "letters" / name).open("a") as program:
                    program.write(f"\n\n{text}")
            else:
                reader.types(text.splitlines(), shown.splitlines())
        letters = (tmp_path / "letters" / "sent.txt").read_text().split()[3::4]
        assert list(dict.fromkeys(letters)) == ["ada", "bob", "cyd", "dan", "eve", "flo", "gil", "hal", "ian"]
        twice = {name for name, times in Counter(letters).items() if times > 1}
        assert not twice & NOTED
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
    """Somebody at a shell, who types a command and reads what it prints."""

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
            (r"\d/\d", r"\\d/\\d"),
            (r"(\\ )+", " +"),
            ("…", ".*"),
        ):
            pattern = re.sub(sample, any_other, pattern)
        if not any(re.fullmatch(pattern, each) for each in lines):
            return line
    return None


async def endings(database: Path) -> dict[str, list[str]]:
    """How each task's attempts ended, by its result."""
    async with Outrider().open(str(database), worker=False) as outrider:
        return {
            str(task.summary): [str(each.ending) for each in await outrider.tasks.attempts(task.id)]
            for task in await outrider.tasks.list()
        }
