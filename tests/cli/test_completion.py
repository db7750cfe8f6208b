"""`completion`: the scripts are given to the shells that are here, and asked what they would offer."""

import os
import shutil
import subprocess

import pytest

from outrider.cli.arguments import COMMANDS, SHELLS
from tests.cli.harness import OUTRIDER, Cli, eventually

ASK = """
source <(outrider completion bash)
for line in "$@"; do
    COMP_LINE=$line COMP_POINT=${#line}
    IFS='^' read -ra COMP_WORDS <<< "${line// /^}^"
    [[ $line == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _outrider
    printf '%s ' "${COMPREPLY[@]}"
    echo
done
"""


def offered(cli: Cli, *lines: str) -> list[list[str]]:
    """What bash offers at the end of each of these lines."""
    path = f"{OUTRIDER.parent}{os.pathsep}{cli.env['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", ASK, "bash", *(f"outrider {line}" for line in lines)],
        cwd=cli.folder, env={**cli.env, "PATH": path}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split() for line in done.stdout.splitlines()]


def test_bash_offers_every_command_option_and_choice(cli: Cli):
    commands, worker, backup, restore, *choices = offered(
        cli, "", "wor", "backup --", "restore --", "call --wake on", "call --wake = sil", "completion ",
        "--log-format j", "run --model ",
    )  # fmt: skip
    assert set(commands) == {*COMMANDS, "--help", "--version"}
    assert worker == ["workers", "worker"]
    assert {"--force", "--db", "--log-format"} <= set(backup)
    assert "--force" not in restore
    assert choices == [["on_terminal", "on_activity"], ["silent"], list(SHELLS), ["json"], []]


def test_bash_offers_the_tasks_that_a_command_can_be_about(cli: Cli):
    assert offered(cli, "show ") == [[]]
    assert not (cli.folder / ".outrider").exists()
    done = cli.ok("call", "add", "a=1", "--json", "--name=$(touch forged)").record["id"]
    asks = cli.ok("call", "confirm", "--background", "--idle-exit=1", "--json").record["id"]
    eventually(lambda: cli.task(asks)["state"] == "awaiting_input")
    cli.ok("chat", "talk", "--agent=somebody", stdin="", OUTRIDER_APP="")
    short, whole, *answers, talks, elsewhere = offered(
        cli, "show ", "show task_", "answer ", f"answer {asks[-8:-4]}", "send t", "answer --db elsewhere.db "
    )
    assert set(short) == {done[-8:], asks[-8:]}
    assert set(whole) == {done, asks}
    assert answers == [[asks[-8:]], [asks[-8:]]]
    assert talks == ["talk"]
    assert elsewhere == []
    assert not {"forged", "elsewhere.db"} & {each.name for each in cli.folder.iterdir()}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_that_its_shell_understands(cli: Cli, shell: str):
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")  # bash is tested everywhere; a shell that is absent cannot be asked
    script = cli.folder / f"script.{shell}"
    script.write_text(cli.ok("completion", shell).out)
    done = subprocess.run([shell, "-n", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_fish_offers_commands_choices_and_tasks(cli: Cli):
    if shutil.which("fish") is None:
        pytest.skip("there is no fish here")  # its script is fish's own language, which nothing else runs
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
        pytest.skip("there is no zsh here")  # likewise zsh's
    cli.env["PATH"] = f"{OUTRIDER.parent}{os.pathsep}{cli.env['PATH']}"
    terminal = cli.shell("exec zsh -f -i")
    terminal.type('autoload -Uz compinit; compinit -u -D; eval "$(outrider completion zsh)"; echo rea""dy\n')
    terminal.read_until("\nready")
    terminal.type("outrider complet\tfi\t; echo e''nd\n")
    terminal.read_until("# fish completion")


def test_which_shell_has_to_be_said(cli: Cli):
    assert cli.run("completion").code == 2
    assert cli.run("completion", "tcsh").code == 2
