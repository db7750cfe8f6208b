"""What the documents show runs: every python block is a program, unless it says that it is a fragment.

A program is run as it stands, as a reader who has pasted it into a file would: in a folder of its own, by a new
interpreter; and it prints something. A block that begins with ```` ```python fragment ```` is part of something, and
only has to parse (see test_documents).
The commands of shell blocks exist, with their options, and those of the README do what it says.
"""

import asyncio
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from outrider.cli.arguments import parse
from tests.docs.programs import EXAMPLES, PATIENCE, ROOT, dismiss_workers, environment, lines, run

DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
README = (ROOT / "README.md").read_text()
RUN_ELSEWHERE = {(EXAMPLES / "hello.py").read_text(): "test_examples, killed on the way"}
KNOWN_COMMANDS = {"make", "python", "pytest", "pip", "outrider", "git", "cd", "export", ".", "kill", "sleep"}
KNOWN_COMMANDS |= {"curl", "mkdir", "cat", "grep", "install", "docker", "kubectl", "systemctl"}
KNOWN_COMMANDS |= {"createuser", "createdb", "pg_dump", "pg_restore", "psql"}
KEYWORDS = {"until", "do", "done"}


def blocks(path: Path, language: str) -> Iterator[tuple[str, str]]:
    """The fenced blocks of a document: what stands after the language, and the text."""
    yield from re.findall(rf"^```{language}\b ?([^\n]*)\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


PROGRAMS = [
    pytest.param(text, id=f"{path.relative_to(ROOT)}-{number}")
    for path in DOCUMENTS
    for number, (info, text) in enumerate(blocks(path, "python"), start=1)
    if info != "fragment" and text not in RUN_ELSEWHERE and path.name != "tutorial.md"  # typed in by test_tutorial
]

COMMAND_LINES = [
    pytest.param(line, id=f"{path.relative_to(ROOT)}: {line[:60]}")
    for path in DOCUMENTS
    for language in ("sh", "console")
    for _, text in blocks(path, language)
    for line in text.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#") and (language == "sh" or line.startswith("$ "))
]


@pytest.mark.slow
@pytest.mark.parametrize("source", PROGRAMS)
def test_the_program_runs_as_it_stands_and_shows_something(source: str, tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(source)
    assert lines(run(program, folder=tmp_path)), "whoever pastes this sees nothing: does it run its main?"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_whatever_defines_main_runs_it(path: Path):
    defining = [text for _, text in blocks(path, "python") if "async def main(" in text]
    assert [text for text in defining if "asyncio.run(main())" not in text] == []


@pytest.mark.slow
def test_the_program_of_the_telemetry_page_shows_spans_and_metrics(tmp_path: Path):
    (source,) = [text for _, text in blocks(ROOT / "docs" / "telemetry.md", "python")]
    program = tmp_path / "program.py"
    program.write_text(source)
    named = set(re.findall(r'"name": "(.+)"', run(program, folder=tmp_path).stdout))
    assert {"a request", "outrider.task", "outrider.attempt", "outrider.step"} <= named
    assert {"outrider.task.created", "outrider.task.ended", "outrider.step.duration"} <= named


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_the_command_exists_and_takes_these_options(line: str):
    for words in commands_in(line.removeprefix("$ ")):
        assert words[0] in KNOWN_COMMANDS, f"what is {words[0]!r}?"
        if words[0] == "outrider":
            given = [word for word in words[1:] if not re.fullmatch(r"\d?[<>].*", word)]
            if given and given[0] not in ("--help", "--version"):
                parse(given)


def commands_in(line: str) -> Iterator[list[str]]:
    """The simple commands of a line of shell, without comments, keywords, assignments and `$( )`."""
    words = shlex.shlex(line, posix=True, punctuation_chars="&;|()")
    words.whitespace_split = True
    words.commenters = "#"
    simple: list[str] = []
    for word in [*words, ";"]:
        if set(word) <= set("&;|()"):
            said_first = (at for at, each in enumerate(simple) if "=" not in each and each not in KEYWORDS)
            simple = simple[next(said_first, len(simple)) :]
            if simple and simple != ["$"]:
                yield simple
            simple = []
        elif not word.endswith("=$"):
            simple.append(word)


def test_every_example_is_named_in_the_readme():
    assert [each.name for each in EXAMPLES.glob("*.py") if f"(examples/{each.name})" not in README] == []


def test_the_first_program_of_the_readme_is_the_example_hello():
    _, first = next(blocks(ROOT / "README.md", "python"))
    assert first == (EXAMPLES / "hello.py").read_text()


@pytest.mark.slow
def test_the_command_line_of_the_readme_does_what_it_says(tmp_path: Path):
    shutil.copy(EXAMPLES / "hello.py", tmp_path)
    section = README[README.index("## The same from the command line") :]
    (call, tasks, answer, wait, watch, *rest) = [line for line in section.split("```")[1].splitlines()[1:] if line]
    assert rest == []
    task = shell(f"{call}; echo $task", tmp_path).strip()
    try:
        assert task.startswith("task_")
        until_it_asks(tasks, task, tmp_path)
        shell(answer, tmp_path, task=task)
        assert "published 300 words" in shell(wait, tmp_path, task=task)
        told = shell(watch, tmp_path, task=task)
        assert ["created" in told, "awaiting_input" in told, "succeeded" in told] == [True] * 3
        assert task in shell(tasks, tmp_path)
    finally:
        asyncio.run(dismiss_workers(tmp_path))


@pytest.mark.slow
def test_the_agent_of_the_readme_answers_on_the_command_line(tmp_path: Path):
    (line,) = [line for line in README.splitlines() if line.startswith("outrider run")]
    assert "umbrella in Oslo?" in shell(line, tmp_path)


def shell(line: str, folder: Path, **variables: str) -> str:
    """What a line of shell prints. It has to end with 0."""
    done = subprocess.run(
        ["sh", "-c", line],
        cwd=folder,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, f"{line!r} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def until_it_asks(tasks: str, task: str, folder: Path) -> None:
    """Look, as a reader would, until the task is listed with its question."""
    give_up = time.monotonic() + PATIENCE
    while "awaiting_input" not in (listed := shell(tasks, folder)):
        assert time.monotonic() < give_up, listed
        time.sleep(0.2)
    assert task in listed
