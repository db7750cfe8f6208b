"""`completion`: the scripts are given to the shells that are here, and asked what they would offer."""

import os
import shutil
import subprocess

import pytest

from outrider.cli.arguments import COMMANDS, SHELLS
from tests.cli.harness import OUTRIDER, Cli

ASK = """
source <(outrider completion bash)
ask() {
    COMP_LINE="$*" COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
    COMP_POINT=${#COMP_LINE}
    _outrider
    printf '%s\\n' "${COMPREPLY[@]}"
}
ask "$@"
"""


def offered(cli: Cli, *words: str) -> list[str]:
    """What bash offers for the last of these words."""
    path = f"{OUTRIDER.parent}{os.pathsep}{cli.env['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", ASK, "bash", "outrider", *words],
        cwd=cli.folder, env={**cli.env, "PATH": path}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_bash_offers_every_command_option_and_choice(cli: Cli):
    assert set(offered(cli, "")) == {*COMMANDS, "--help", "--version"}
    assert offered(cli, "wor") == ["worker"]
    assert {"--force", "--db", "--log-format"} <= set(offered(cli, "backup", "--"))
    assert "--force" not in offered(cli, "restore", "--")
    assert offered(cli, "call", "--wake", "on") == ["on_terminal", "on_activity"]
    assert offered(cli, "call", "--wake", "=", "sil") == ["silent"]
    assert offered(cli, "completion", "") == list(SHELLS)
    assert offered(cli, "--log-format", "j") == ["json"]
    assert offered(cli, "run", "--model", "") == []


def test_bash_offers_the_tasks_that_a_command_can_be_about(cli: Cli):
    assert offered(cli, "show", "") == []
    assert not (cli.folder / ".outrider").exists()
    done = cli.ok("call", "add", "a=1", "--json").record["id"]
    asks = cli.ok("call", "confirm", "--background", "--idle-exit=1", "--json").record["id"]
    cli.ok("call", "add", "a=1", "--background", "--delay=1h", "--name=$(touch forged)", "--idle-exit=1")
    while cli.task(asks)["state"] != "awaiting_input":
        pass
    shown = offered(cli, "show", "")
    assert len(shown) == 3
    assert {done[-8:], asks[-8:]} < set(shown)
    assert done in offered(cli, "show", "task_")
    assert offered(cli, "answer", "") == [asks[-8:]]
    assert offered(cli, "answer", asks[-8:-4]) == [asks[-8:]]
    assert offered(cli, "answer", "--db", "elsewhere.db", "") == []
    assert not {"forged", "elsewhere.db"} & {each.name for each in cli.folder.iterdir()}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_that_its_shell_understands(cli: Cli, shell: str):
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    script = cli.folder / f"script.{shell}"
    script.write_text(cli.ok("completion", shell).out)
    done = subprocess.run([shell, "-n", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_fish_offers_commands_choices_and_tasks(cli: Cli):
    if shutil.which("fish") is None:
        pytest.skip("there is no fish here")
    task_id = cli.ok("call", "add", "a=1", "--json").record["id"]
    program = 'outrider completion fish | source; for line in $argv; complete -C "$line" | cut -f 1; end'
    path = f"{OUTRIDER.parent}{os.pathsep}{cli.env['PATH']}"
    done = subprocess.run(
        ["fish", "-c", program, "outrider wor", "outrider call --wake sil", "outrider show "],
        cwd=cli.folder, env={**cli.env, "PATH": path, "HOME": str(cli.folder)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["worker", "silent", task_id[-8:]]


def test_zsh_completes_what_is_typed(cli: Cli):
    if shutil.which("zsh") is None:
        pytest.skip("there is no zsh here")
    cli.env["PATH"] = f"{OUTRIDER.parent}{os.pathsep}{cli.env['PATH']}"
    terminal = cli.shell("exec zsh -f -i")
    terminal.type('autoload -Uz compinit; compinit -u -D; eval "$(outrider completion zsh)"; echo rea""dy\n')
    terminal.read_until("\nready")
    terminal.type("outrider complet\tfi\t; echo e''nd\n")
    terminal.read_until("# fish completion")


def test_which_shell_has_to_be_said(cli: Cli):
    assert cli.run("completion").code == 2
    assert cli.run("completion", "tcsh").code == 2
