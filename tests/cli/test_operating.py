"""`doctor`, `workers`, `tree`, `stats`, and several worker processes at once."""

import os
import signal
from pathlib import Path

import pytest

from tests.cli.harness import Cli, eventually, is_alive


def test_an_operator_sees_who_works_what_waits_and_why(cli: Cli):
    assert "sound" in cli.ok("doctor").err
    cli.ok("pause", "--all", "--reason", "a reason")
    task_id = cli.ok("call", "add", "a=1", "--background").out.strip()
    why = cli.ok("doctor", task_id).out
    assert "everything is paused" in why
    assert "a reason" in why
    assert cli.ok("doctor", task_id, "--json").record["phase"] == "blocked"
    (worker,) = cli.ok("workers", "--json").records
    assert (worker["is_alive"], worker["held"]) == (True, 0)
    assert f"{worker['host']}:{worker['pid']}  alive" in cli.ok("workers").out
    assert "add queued" in cli.ok("tree", "session_default").out
    assert [task["id"] for task in cli.ok("tree", task_id, "--json").records] == [task_id]
    assert cli.run("tree", "nobody").code == 4
    cli.ok("resume", "--all")
    eventually(lambda: cli.task(task_id)["state"] == "succeeded")
    told = cli.ok("stats", "--within", "1d").out
    assert "1 succeeded" in told
    assert "background_tool succeeded: 1" in told
    assert cli.ok("stats", "--json").record["states"]["succeeded"] == 1
    os.kill(worker["pid"], signal.SIGKILL)
    eventually(lambda: cli.run("doctor").code == 10)
    assert "is dead" in cli.run("doctor").out


def test_a_list_says_which_tasks_run_on_a_worker_that_is_dead(cli: Cli):
    task_id = cli.ok("call", "forever", "--background").out.strip()
    waiting = cli.ok("call", "add", "a=1", "--delay", "1d", "--background").out.strip()
    eventually(lambda: cli.task(task_id)["worker_id"] is not None)
    (worker,) = cli.ok("workers", "--json").records
    assert "its worker is dead" not in cli.ok("tasks").out
    os.kill(worker["pid"], signal.SIGKILL)
    eventually(lambda: not is_alive(worker["pid"]))
    (line,) = [each for each in cli.ok("tasks").out.splitlines() if each.startswith(task_id)]
    assert "running (its worker is dead)" in line
    told = {each["id"]: (each["phase"], each["phase_reason"]) for each in cli.ok("tasks", "--json").records}
    assert told == {task_id: ("executing", "its worker is dead"), waiting: ("delayed", None)}
    assert cli.task(task_id)["phase_reason"] == "its worker is dead"
    assert "its worker is dead" in cli.ok("tree", task_id).out


def test_several_worker_processes_live_and_drain_together_and_a_dead_one_is_replaced(cli: Cli):
    crew = cli.start("worker", "--processes", "2")

    def pids() -> list[int]:
        return sorted(worker["pid"] for worker in cli.ok("workers", "--json").records if worker["is_alive"])

    eventually(lambda: len(pids()) == 2)
    before = pids()
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: len(pids()) == 2 and before[0] not in pids())
    assert before[1] in pids()
    task_id = cli.ok("call", "add", "a=1", "--background").out.strip()
    eventually(lambda: cli.task(task_id)["state"] == "succeeded")
    crew.send_signal(signal.SIGTERM)
    assert crew.wait(30) == 0
    assert cli.ok("workers", "--json").records == []


def test_worker_processes_do_not_outlive_a_crew_that_was_killed(cli: Cli, tmp_path: Path):
    crew = cli.start("worker", "--processes", "2")
    eventually(lambda: len(cli.ok("workers", "--json").records) == 2)
    pids = [worker["pid"] for worker in cli.ok("workers", "--json").records]
    crew.kill()
    crew.wait()
    eventually(lambda: not any(is_alive(pid) for pid in pids))
    for wrong in ("0", "100000000"):  # so many would fill the machine before the first of them worked
        assert cli.run("worker", "--processes", wrong).code == 2


@pytest.mark.parametrize(
    "command", [["worker", "--app=leaving"], ["serve", "leaving", "--port=0"]], ids=lambda each: each[0]
)
def test_the_program_itself_is_not_looked_through_for_garbage_again(cli: Cli, command: list[str]):
    (cli.folder / "leaving.py").write_text(
        "import gc\n"
        "from outrider import Outrider\n"
        "app = Outrider()\n"
        "@app.tool\n"
        "def left_alone() -> int:\n"
        "    return gc.get_freeze_count()\n"
    )
    process = cli.start(*command, "--json")
    assert process.stdout is not None
    assert process.stdout.readline()
    task_id = cli.ok("call", "left_alone", "--background", OUTRIDER_APP="leaving").out.strip()
    eventually(lambda: cli.task(task_id)["state"] == "succeeded")
    assert cli.task(task_id)["result"] > 20_000
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
