"""docs/cli.md says of every command what the command says of itself, and the exit codes are those of the code."""

import argparse
import re
from pathlib import Path

import pytest

from outrider.cli import exits
from outrider.cli.arguments import _OF_DATABASE, COMMANDS
from outrider.core import errors
from tests.cli.harness import Cli

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


def section(title: str) -> str:
    return re.split(r"^## ", PAGE.partition(f"\n## {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def documented(title: str) -> set[str]:
    """The options in the first column of the section's tables, without what they take."""
    cells = re.findall(r"^\| (`-[^|]*(?:\\\|[^|]*)*) \|", section(title), re.MULTILINE)
    return {option.split()[0] for cell in cells for option in re.findall(r"`(-[^`]+)`", cell)}


def taken(name: str) -> set[str]:
    actions = COMMANDS[name].parser()._actions
    return {option for action in actions if action.help != argparse.SUPPRESS for option in action.option_strings}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented_and_every_documented_option_exists(name: str):
    inherited = documented("Of every command") | (documented("call") if name in ("run", "exec") else set())
    assert taken(name) == documented(name) | inherited


def test_every_command_is_documented_and_every_documented_command_exists():
    titles = re.findall(r"^## ([a-z]+)$", PAGE, re.MULTILINE)
    assert titles == list(COMMANDS)
    for name in re.findall(r"outrider ([a-z]+)", PAGE):
        assert name in COMMANDS


def test_what_a_command_takes_is_documented_in_its_order():
    for name, command in COMMANDS.items():
        for action in command.parser()._actions:
            if not action.option_strings:
                assert str(action.metavar).split("=")[0] in section(name), (name, action.metavar)


def test_what_no_server_does_is_documented_with_the_reason_that_the_refusal_gives():
    for name, why in _OF_DATABASE.items():
        assert f"| `{name}` | {why} |" in section("Of every command"), name


def leaves(kind: type[errors.OutriderError]) -> list[type[errors.OutriderError]]:
    below = [leaf for child in kind.__subclasses__() for leaf in leaves(child)]
    return below or [kind]


def test_every_error_has_its_documented_exit_code():
    rows = re.findall(r"^\| (\d+) \|[^|]*\| ([^|]*) \|$", section("Exit codes"), re.MULTILINE)
    codes = {code: int(number) for number, named in rows for code in re.findall(r"`(\w+)`", named)}
    for leaf in leaves(errors.OutriderError):
        if leaf.__module__ != errors.__name__ or leaf in (errors.NotFound, errors.UnknownName, errors.Failure):
            continue  # codes that name what was not found are below; others never leave their task or this program
        error = leaf("x", kind="x") if leaf is errors.TaskFailed else leaf("x")
        assert codes[error.code] == exits.code_of(error)
    for noun in ("task", "session", "request", "file", "worker"):
        assert codes[errors.NotFound.of(noun, "x").code] == exits.NOT_FOUND
    for noun in ("kind", "tool", "agent", "model"):
        assert codes[errors.UnknownName.of(noun, "x", ()).code] == exits.REFUSED


def test_help_and_version_are_told(cli: Cli):
    from outrider import __version__

    assert cli.ok("--version").out == f"outrider {__version__}\n"
    assert [name for name in COMMANDS if f"  {name} " in cli.ok("--help").out] == list(COMMANDS)
    assert "--idempotency-key" in cli.ok("call", "--help").out
    assert cli.run().code == 2
    assert "do you mean 'tasks'" in cli.run("taks").err
    assert "do you mean 'doctor'" in cli.run("why", "1").err
    assert cli.run("--json", "taks").error["code"] == "usage"


@pytest.mark.parametrize("options", [[], ["--json"]], ids=str)
def test_listing_tasks_imports_nothing_that_it_does_not_need(cli: Cli, options: list[str]):
    import subprocess
    import sys

    cli.ok("call", "add", "a=1")
    heavy = ("pydantic", "structlog", "rich", "jsonschema", "cyclopts", "openai", "outrider.runtime.worker")
    program = (
        "import sys; from outrider.cli import main; main(sys.argv[1:]);"
        f"sys.stderr.write(' '.join(name for name in {heavy!r} if name in sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, "tasks", *options], cwd=cli.folder, env=cli.env, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "add" in run.stdout
