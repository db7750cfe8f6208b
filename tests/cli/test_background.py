"""`--background` and `worker`: work that carries on when the terminal is closed and workers are killed."""

import json
import os
import signal
import time
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cli.harness import Cli, eventually, is_alive


def ended(cli: Cli, task_id: str) -> dict[str, Any]:
    return cli.ok("wait", task_id, "--timeout=60", "--json").record


def test_a_worker_carries_on_after_the_terminal_was_closed(cli: Cli):
    hold = cli.folder / "hold"
    hold.touch()
    notes = cli.folder / "notes"
    shell = cli.shell(f'"$OUTRIDER" call steps notes={notes} upto=4 hold={hold} --background; exec sleep 1000')
    shell.read_until("see: outrider watch")
    eventually(lambda: notes.exists() and len(notes.read_text().splitlines()) == 3)
    shell.close()
    assert shell.process.wait(60) == -signal.SIGHUP
    (pid,) = cli.worker_pids()
    hold.unlink()
    (task,) = cli.ok("tasks", "--json").records
    assert ended(cli, task["id"])["result"] == 6
    assert {int(line.split()[1]) for line in notes.read_text().splitlines()} == {pid}


def test_the_id_comes_at_once_and_alone(cli: Cli):
    done = cli.ok("call", "count", "upto=1", "--background", "--delay=2s")
    assert done.out.startswith("task_")
    assert len(done.out.splitlines()) == 1
    record = ended(cli, done.out.strip())
    assert record["result"] == {"counted": 1}
    started, created = (datetime.fromisoformat(record[name]) for name in ("started_at", "created_at"))
    assert started - created >= timedelta(seconds=2)


def test_the_record_comes_with_json(cli: Cli):
    record = cli.ok("call", "add", "a=1", "--background", "--json").record
    assert record["state"] in ("queued", "running")
    assert ended(cli, record["id"])["result"] == 1


def test_the_worker_is_killed_and_another_goes_on_where_it_was(cli: Cli):
    hold = cli.folder / "hold"
    hold.touch()
    notes = cli.folder / "notes"
    task_id = cli.ok("call", "steps", f"notes={notes}", "upto=4", f"hold={hold}", "--background").out.strip()
    eventually(lambda: len([step for step in cli.task(task_id)["steps"] if step["done"]]) == 3)
    (pid,) = cli.worker_pids()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_alive(pid))
    hold.unlink()
    worker = cli.worker()
    record = ended(cli, task_id)
    assert (record["state"], record["result"]) == ("succeeded", 6)
    lines = [line.split() for line in notes.read_text().splitlines()]
    assert [int(step) for step, _ in lines] == [0, 1, 2, 3]
    assert [int(by) for _, by in lines] == [pid, pid, pid, worker.pid]
    worker.terminate()


@pytest.mark.parametrize("all_of_them", [False, True])
def test_what_a_killed_worker_held_is_canceled_though_no_other_lives(cli: Cli, all_of_them: bool):
    hold = cli.folder / "hold"
    hold.touch()
    told = cli.ok("call", "steps", f"notes={cli.folder / 'notes'}", "upto=4", f"hold={hold}", "--background")
    task_id = told.out.strip()
    eventually(lambda: cli.task(task_id)["state"] == "running")
    (pid,) = cli.worker_pids()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_alive(pid))
    assert "canceled" in cli.ok("cancel", "--all" if all_of_them else task_id).out
    assert cli.task(task_id)["state"] == "canceled"
    assert "deleted" in cli.ok("delete", task_id).out


def test_ten_commands_start_one_worker(cli: Cli):
    started = [cli.start("call", "add", f"a={n}", "--background") for n in range(6)]
    ids = [process.communicate(timeout=60)[0].strip() for process in started]
    done = cli.ok("wait", *ids, "--json", "--timeout=60")
    assert sorted(record["result"] for record in done.records) == [0, 1, 2, 3, 4, 5]
    cli.ok("call", "add", "a=1", "--background")
    assert len(cli.worker_pids()) == 1
    log = (cli.folder / ".outrider/outrider.db-worker.log").read_text()
    assert log.count("serves") == 1


def test_no_worker_is_started_beside_one_that_serves_the_tool(cli: Cli):
    worker = cli.worker()
    task_id = cli.ok("call", "add", "a=1", "--background").out.strip()
    assert ended(cli, task_id)["result"] == 1
    assert cli.worker_pids() == []
    worker.terminate()


def test_a_worker_leaves_when_nothing_was_left_to_do_and_not_while_something_is_parked(cli: Cli):
    first = cli.ok("call", "confirm", "--background", "--idle-exit=0.5").out.strip()
    eventually(lambda: cli.task(first)["state"] == "awaiting_input")
    (pid,) = cli.worker_pids()
    time.sleep(2)
    assert is_alive(pid)
    cli.ok("answer", first, "no")
    assert ended(cli, first)["result"] == "no"
    eventually(lambda: not is_alive(pid))
    assert "nothing left to do" in (cli.folder / ".outrider/outrider.db-worker.log").read_text()
    second = cli.ok("call", "add", "a=1", "--background").out.strip()
    assert ended(cli, second)["result"] == 1


def test_a_hang_up_does_not_reach_a_detached_worker(cli: Cli):
    task_id = cli.ok("call", "hangs_up", "--background").out.strip()
    assert ended(cli, task_id)["result"] == "still here"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_worker_that_is_told_to_stop_drains_and_ends_with_0(cli: Cli, number: signal.Signals):
    worker = cli.worker()
    task_id = cli.ok("call", "confirm", "--background").out.strip()
    eventually(lambda: cli.task(task_id)["state"] == "awaiting_input")
    worker.send_signal(number)
    _, err = worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert "drained" in err
    task = cli.task(task_id)
    assert (task["state"], task["failures"], task["worker_id"]) == ("awaiting_input", 0, None)


@pytest.mark.parametrize("tool", ["stubborn", "hold_up"])
def test_the_second_signal_forces_whatever_a_task_does(cli: Cli, tool: str):
    worker = cli.worker()
    task_id = cli.ok("call", tool, f"pids={cli.folder / 'pids'}", "--background").out.strip()
    eventually((cli.folder / "pids").exists)
    worker.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert worker.poll() is None
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 128 + signal.SIGTERM
    assert cli.task(task_id)["state"] == "running"


def test_a_worker_whose_stderr_is_gone_still_drains(cli: Cli):
    worker = cli.worker()
    assert worker.stderr is not None
    worker.stderr.close()
    worker.terminate()
    assert worker.wait(60) == 0


@pytest.mark.slow
def test_a_worker_rids_itself_of_threads_that_do_not_stop(cli: Cli):
    pids = cli.folder / "pids"
    worker = cli.worker()
    task_id = cli.ok("call", "stubborn", f"pids={pids}", "--background").out.strip()
    eventually(pids.exists)
    threads = Path(f"/proc/{worker.pid}/task")
    assert cli.ok("cancel", task_id, "--wait", "--json").record["canceled"] == [task_id]
    lines: list[str] = []
    assert worker.stderr is not None
    while "starts over" not in "".join(lines):
        lines.append(worker.stderr.readline())
    while "serves" not in lines[-1]:
        lines.append(worker.stderr.readline())
    assert f"pid {worker.pid}" in lines[-1]
    assert ended(cli, cli.ok("call", "add", "a=1", "--background").out.strip())["result"] == 1
    assert len(list(threads.iterdir())) < 20
    worker.terminate()
    assert worker.wait(60) == 0


@pytest.mark.slow
def test_a_worker_whose_loop_was_blocked_for_too_long_starts_over_in_place(cli: Cli):
    pids = cli.folder / "pids"
    cli.env["OUTRIDER_APP"] = "stalling_app"
    worker = cli.worker()
    task_id = cli.ok("call", "block", f"pids={pids}", "--max-failures=2", "--background").out.strip()
    record = cli.run("wait", task_id, "--timeout=60", "--json").record
    assert (record["state"], record["failures"]) == ("failed", 2)
    assert pids.read_text().split() == [str(worker.pid)] * 2
    assert ended(cli, cli.ok("call", "go_on", "--background").out.strip())["result"] == worker.pid
    assert worker.poll() is None
    eventually(lambda: not _children_of(worker.pid))  # of those that its task had, no zombie stays
    worker.terminate()


def _children_of(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(status.parent.name))
    return found


def test_a_worker_leaves_with_its_database(cli: Cli):
    task_id = cli.ok("call", "confirm", "--background").out.strip()
    eventually(lambda: cli.task(task_id)["state"] == "awaiting_input")
    (pid,) = cli.worker_pids()
    for file in (cli.folder / ".outrider").glob("outrider.db*"):
        if file.is_file() and not file.name.endswith(".log"):
            file.unlink()
    eventually(lambda: not is_alive(pid))


def test_wait_ends_as_the_tasks_ended(cli: Cli):
    worker = cli.worker()

    def begin(*arguments: str) -> str:
        return cli.ok("call", *arguments, "--background").out.strip()

    good, bad, long = begin("add", "a=1"), begin("fail", "reason=no"), begin("forever")
    done = cli.run("wait", good, bad, "--json")
    assert done.code == 7
    assert sorted(record["state"] for record in done.records) == ["failed", "succeeded"]
    assert cli.run("wait", good, long, "--any").code == 0
    late = cli.run("wait", good, long, "--timeout=0.2", "--json")
    assert (late.code, late.error["code"]) == (9, "wait_timeout")
    assert [record["state"] for record in late.records] == ["succeeded", "running"]
    receipt = cli.ok("cancel", long, "--reason=enough", "--wait", "--json").record
    assert receipt["states"] == {long: "canceled"}
    assert cli.run("wait", long).code == 8
    assert cli.task(long)["cancel_reason"] == "enough"
    assert cli.ok("cancel", good).out == f"{good}  left as it is (succeeded)\n"
    worker.terminate()


def test_a_worker_serves_the_tools_of_several_apps_and_refuses_two_of_one_name(cli: Cli):
    (cli.folder / "rival.py").write_text(
        "from outrider import Outrider\napp = Outrider()\n@app.tool\ndef add(a: int) -> int:\n    return a\n"
    )
    worker = cli.start("worker", "--app=stalling_app", "--app=example_app", "--json")
    assert worker.stdout is not None
    routes = json.loads(worker.stdout.readline())["routes"]
    assert {"background_tool:add", "background_tool:go_on", "subagent"} <= set(routes)
    assert ended(cli, cli.ok("call", "add", "a=1", "--background").out.strip())["result"] == 1
    worker.terminate()
    done = cli.run("worker", "--json", OUTRIDER_APP="example_app,rival")
    assert (done.code, done.error["code"]) == (3, "invalid_arguments")
    assert "'add'" in done.error["message"]
