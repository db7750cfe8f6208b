"""`exec`: a command in the foreground, with its output and exit code, which the terminal and the worker may leave."""

import os
import re
import signal
from functools import partial

import pytest

from outrider.cli.arguments import parse
from outrider.cli.exits import UsageError
from outrider.cli.values import size
from tests.cli.harness import Cli, eventually, is_alive


def test_output_and_exit_code_are_those_of_the_command(cli: Cli):
    done = cli.run("exec", "--", "sh", "-c", "echo $*; echo err >&2; exit 3", "sh", "--json", "--help", "--")
    assert (done.code, done.out, done.err) == (3, "--json --help --\n", "err\n")
    assert cli.run("exec", "no-such-command").code == 127
    assert cli.run("exec", "--", "sh", "-c", "kill -TERM $$").code == 143


def test_output_that_was_cut_on_its_way_into_a_pipe_is_counted_and_no_success(cli: Cli):
    done = cli.run("exec", "--", "sh", "-c", "head -c 60000000 /dev/zero | tr '\\0' 'x'")
    said = done.err.splitlines()[-1]
    assert done.code == 125, said
    found = re.match(r"outrider: ([\d,]+) bytes of its output were cut", said)
    assert found, said
    assert int(found[1].replace(",", "")) + done.out.count("x") == 60_000_000


def test_what_outrider_itself_refuses_is_told_from_what_the_command_does(cli: Cli):
    done = cli.run("exec", "--priority=5000", "--", "true")
    assert (done.code, "priority" in done.err) == (125, True)
    assert cli.run("exec", "--env=NOT_SET_HERE", "--", "true").code == 2
    assert cli.run("exec", "--background", "--priority=5000", "--", "true").code == 3
    done = cli.run("exec", "--run-timeout=0.3s", "--json", "--", "sleep", "60")
    assert (done.code, done.record["error"]["kind"]) == (124, "timeout")
    with pytest.raises(UsageError, match="is no size"):
        parse(["exec", "--memory=lots", "--", "true"])


def test_the_surroundings_of_the_command_are_given_by_options(cli: Cli):
    (cli.folder / "there").mkdir()
    show = ["sh", "-c", 'pwd; echo "$A $B"; cat; echo kept > kept.txt']
    options = ["--cwd=there", "--env=A=1", "--env=B", "--stdin=-", "--artifact=*.txt", "--name=shown"]
    done = cli.ok("exec", *options, "--", *show, B="from here", stdin="typed")
    assert done.out == f"{cli.folder}/there\n1 from here\ntyped"
    (task,) = cli.ok("tasks", "--json").records
    assert (task["display_name"], [each["name"] for each in task["artifacts"]]) == ("shown", ["kept.txt"])


def test_a_command_that_is_retried_says_what_it_was_made_from_and_that_nothing_repeats_it_by_itself(cli: Cli):
    assert cli.run("exec", "--env=A=again", "--", "sh", "-c", "echo $A; exit 3").code == 3
    old = cli.ok("tasks", "--json").record["id"]
    terminal = cli.terminal("retry", old)
    assert terminal.end() == 0
    assert f"{old[-8:]} stays failed; follow it: outrider watch" in terminal.shown
    assert terminal.shown.rstrip().endswith("start one: outrider worker")
    cli.ok("worker", "--idle-exit=0.1")
    (new,) = [each["id"] for each in cli.ok("tasks", "--json").records if each["id"] != old]
    shown = cli.ok("show", new).out
    assert shown.splitlines()[1] == f"  a new task, made from {old}, which stays as it ended"
    assert "retry                none: a command that failed is not run again by itself" in shown
    assert [name for name in ("usage", "timeouts", "links") if f"  {name} " in shown] == []
    assert cli.ok("output", new).out == "again\n"


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


def test_the_terminal_is_closed_and_workers_are_killed_and_the_command_runs_on(cli: Cli):
    hold = cli.folder / "hold"
    hold.touch()
    terminal = cli.terminal("exec", "--", "sh", "-c", COUNT)
    pid = int(terminal.read_until("line 3").split()[0])
    (task,) = cli.ok("tasks", "--json").records
    terminal.close()
    assert terminal.process.wait(60) == 129
    (worker,) = eventually(cli.worker_pids)  # it was started for what goes on
    eventually(lambda: cli.task(task["id"])["attempt"] == 2)
    os.kill(worker, signal.SIGKILL)
    eventually(partial(has_ended, worker))
    assert is_alive(pid)
    follower = cli.start("output", "--follow", task["id"])
    other = cli.ok("exec", "--background", "--", "true").out.strip()  # which starts the next worker
    cli.ok("wait", other, "--timeout=60")
    hold.unlink()
    done = cli.run("wait", task["id"], "--timeout=60", "--json")
    assert (done.code, done.record["failures"], done.record["error"]["details"]["exit_code"]) == (7, 1, 6)
    assert [each["ending"] for each in cli.task(task["id"])["attempts"]] == ["released", "lost", "failed"]
    assert follower.stdout is not None
    output = follower.stdout.read()
    lines = output.splitlines()
    assert lines == [str(pid), *(f"line {number}" for number in range(1, len(lines) - 1)), "the end"]
    half = len(output) // 2
    assert cli.ok("output", task["id"], f"--from={half}").out == output[half:]
    runs = cli.folder / ".outrider" / "outrider.db-processes"
    eventually(lambda: not list(runs.iterdir()))


@pytest.mark.parametrize(
    ("text", "number"), [("65536", 65536), ("512K", 524288), ("1.5g", 1610612736), ("2MiB", 2 << 20)]
)
def test_sizes_have_units(text: str, number: int):
    assert size(text) == number


@pytest.mark.parametrize("text", ["", "K", "-1", "1 K", "1X", "1e3"])
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(UsageError, match="is no size"):
        size(text)
