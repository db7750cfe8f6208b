"""`exec`: a command as if it had been typed alone, which the terminal and the worker may leave."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from outrider.cli.exits import UsageError
from outrider.cli.values import size
from tests.cli.harness import Cli, eventually, is_alive


def test_output_and_exit_code_are_those_of_the_command(cli: Cli):
    done = cli.run("exec", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.code, done.out, done.err) == (3, "out\n", "err\n")
    assert cli.ok("exec", "echo", "plain").out == "plain\n"
    assert cli.ok("exec", "--", "echo", "--json", "--help", "--").out == "--json --help --\n"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["sh", "-c", "exit 255"], 255),
    ],
)
def test_the_exit_code_is_the_one_that_a_shell_would_tell(cli: Cli, command: list[str], code: int):
    assert cli.run("exec", "--", *command).code == code


def test_what_outrider_itself_refuses_is_told_from_what_the_command_does(cli: Cli):
    done = cli.run("exec", "--priority=5000", "--", "true")
    assert (done.code, "priority" in done.err) == (125, True)
    assert cli.run("exec").code == 2
    assert cli.run("exec", "--memory=lots", "--", "true").code == 2
    assert cli.run("exec", "--env=NOT_SET_HERE", "--", "true").code == 2
    assert cli.run("exec", "--background", "--priority=5000", "--", "true").code == 3
    done = cli.run("exec", "--run-timeout=0.3s", "--", "sleep", "60")
    assert (done.code, "run timeout" in done.err) == (124, True)
    done = cli.run("exec", "--max-output=1K", "--json", "--", "yes")
    assert (done.code, done.record["error"]["details"]["limit"]) == (137, "output")


def test_the_surroundings_of_the_command_are_given_by_options(cli: Cli):
    (cli.folder / "in.txt").write_text("from a file")
    (cli.folder / "there").mkdir()
    show = ["sh", "-c", 'pwd; echo "$A $B"; cat; echo kept > kept.txt']
    options = ["--cwd=there", "--env=A=1", "--env=B", "--stdin=in.txt", "--artifact=*.txt", "--name=shown"]
    done = cli.ok("exec", *options, "--", *show, B="from here")
    assert done.out == f"{cli.folder}/there\n1 from here\nfrom a file"
    (task,) = cli.ok("tasks", "--json").records
    assert (task["display_name"], [each["name"] for each in task["artifacts"]]) == ("shown", ["kept.txt"])
    assert cli.ok("exec", "--stdin=-", "--", "cat", stdin="typed").out == "typed"


def test_a_reader_that_has_enough_ends_the_command(cli: Cli):
    shell = cli.shell('"$OUTRIDER" exec -- sh -c "echo $$; yes" | head -1; echo done')
    shell.read_until("done")
    assert shell.end() == 0
    (task,) = cli.ok("tasks", "--json").records
    assert task["state"] == "canceled"


def test_the_first_interrupt_cancels_the_command(cli: Cli):
    terminal = cli.terminal(
        "exec", "--", "sh", "-c", "trap 'echo goodbye; exit 1' TERM; echo $$ ready; sleep 300 & wait"
    )
    pid = int(terminal.read_until("ready").split()[0])
    terminal.type("\x03")
    terminal.read_until("goodbye")
    assert terminal.end() == 130
    assert not is_alive(pid)
    (task,) = cli.ok("tasks", "--json").records
    assert (task["state"], task["cancel_reason"]) == ("canceled", "interrupted")


def has_ended(pid: int) -> bool:
    return not is_alive(pid)


COUNT = "echo $$; n=0; while test -e hold; do n=$((n+1)); echo line $n; sleep 0.05; done; echo the end; exit 6"


def _wait_for(cli: Cli, task_id: str) -> dict[str, Any]:
    done = cli.run("wait", task_id, "--timeout=60", "--json")
    assert done.code == 7
    return done.record


def _counted(output: str) -> bool:
    lines = output.splitlines()
    return lines[1:] == [*(f"line {number}" for number in range(1, len(lines) - 1)), "the end"]


def test_the_terminal_is_closed_and_the_output_goes_on_where_it_was(cli: Cli):
    """In the foreground: a worker is started for what goes on."""
    hold = cli.folder / "hold"
    hold.touch()
    terminal = cli.terminal("exec", "--", "sh", "-c", COUNT)
    terminal.read_until("line 3")
    (task,) = cli.ok("tasks", "--json").records
    terminal.close()
    assert terminal.process.wait(60) == 129
    eventually(cli.worker_pids)
    hold.unlink()
    record = _wait_for(cli, task["id"])
    assert (record["failures"], record["error"]["details"]["exit_code"]) == (1, 6)
    assert [each["ending"] for each in cli.task(task["id"])["attempts"]] == ["released", "failed"]
    output = cli.ok("output", "--follow", task["id"]).out
    assert _counted(output)
    half = len(output) // 2
    assert cli.ok("output", task["id"], f"--from={half}").out == output[half:]


def test_workers_in_the_background_are_killed_and_the_command_runs_on(cli: Cli):
    hold = cli.folder / "hold"
    hold.touch()
    task_id = cli.ok("exec", "--background", "--", "sh", "-c", COUNT).out.strip()
    follower = cli.start("output", "--follow", task_id)
    assert follower.stdout is not None
    pid = int(follower.stdout.readline())
    for _ in range(2):
        (worker,) = eventually(cli.worker_pids)
        eventually(lambda: cli.task(task_id)["worker_id"])
        os.kill(worker, signal.SIGKILL)
        eventually(partial(has_ended, worker))
        assert is_alive(pid)
        cli.ok("exec", "--background", "--", "true")  # which starts the next worker
    eventually(lambda: cli.task(task_id)["attempt"] == 3 and cli.task(task_id)["worker_id"])
    hold.unlink()
    record = _wait_for(cli, task_id)
    assert (record["attempt"], record["failures"]) == (3, 1)
    assert _counted(f"{pid}\n{follower.stdout.read()}")
    eventually(lambda: not list(Path(cli.folder / ".outrider" / "outrider.db-processes").iterdir()))


@pytest.mark.parametrize(
    ("text", "number"), [("65536", 65536), ("512K", 524288), ("1.5g", 1610612736), ("2MiB", 2 << 20)]
)
def test_sizes_have_units(text: str, number: int):
    assert size(text) == number


@pytest.mark.parametrize("text", ["", "K", "-1", "1 K", "1X", "1e3"])
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(UsageError, match="is no size"):
        size(text)
