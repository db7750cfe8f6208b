"""The command line on a PostgreSQL database: all that it does in a file, and no password that anybody reads."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.cli.harness import Cli, eventually, is_alive
from tests.servers import Server


@pytest.fixture
def there(cli: Cli, postgres_url: str) -> Iterator[Cli]:
    """The command line on a database of its own, with a password that the server does not ask for."""
    parts = urlsplit(postgres_url)
    cli.env["OUTRIDER_DB"] = parts._replace(netloc=f"{parts.username}:hush@{parts.hostname}:{parts.port}").geturl()
    state = cli.folder / "state"
    cli.env["XDG_STATE_HOME"] = str(state)
    yield cli
    for log in state.glob("outrider/*-worker.log"):  # what commands have started in the background
        for pid in map(int, re.findall(r"pid (\d+)", log.read_text())):
            if is_alive(pid) and str(cli.folder) in os.readlink(f"/proc/{pid}/cwd"):
                os.kill(pid, signal.SIGKILL)


def test_a_tool_a_question_and_a_command_run_and_are_seen(there: Cli):
    assert there.ok("call", "add", "a=1", "b=2").out == "3\n"
    assert there.ok("exec", "--", "echo", "hi").out == "hi\n"
    asked = there.ok("call", "confirm", "--background").out.strip()
    eventually(lambda: there.task(asked)["state"] == "awaiting_input")
    there.ok("answer", asked, "yes")
    assert there.ok("wait", asked, "--timeout=60", "--json").record["result"] == "yes"
    assert {each["state"] for each in there.ok("tasks", "--json").records} == {"succeeded"}
    assert there.ok("doctor").code == 0
    assert "free" not in there.ok("stats").out
    there.ok("prune", "--older-than=1s")


def test_a_background_worker_is_started_killed_and_followed_by_another(there: Cli):
    notes, hold = there.folder / "notes", there.folder / "hold"
    hold.touch()
    task_id = there.ok("call", "steps", f"notes={notes}", "upto=4", f"hold={hold}", "--background").out.strip()
    eventually(lambda: len([step for step in there.task(task_id)["steps"] if step["done"]]) == 3)
    (worker,) = there.ok("workers", "--json").records
    os.kill(worker["pid"], signal.SIGKILL)
    hold.unlink()
    there.worker("--idle-exit=1s")
    assert there.ok("wait", task_id, "--timeout=60", "--json").record["result"] == 6
    words = [int(line.split()[0]) for line in notes.read_text().splitlines()]
    assert len(words) <= 5, "more than the step in flight was repeated"


def test_a_command_outlives_its_worker_and_is_taken_up_by_another(there: Cli):
    go_on = there.folder / "go_on"
    script = f"echo one; while ! test -e {go_on}; do sleep 0.05; done; echo two; exit 3"
    task_id = there.ok("exec", "--background", "--", "sh", "-c", script).out.strip()
    eventually(lambda: there.ok("output", task_id).out == "one\n")
    (worker,) = there.ok("workers", "--json").records
    os.kill(worker["pid"], signal.SIGKILL)
    there.worker("--idle-exit=1s")
    go_on.touch()
    record = there.run("wait", task_id, "--timeout=60", "--json").record
    assert (record["state"], record["error"]["details"]["exit_code"]) == ("failed", 3)
    assert there.ok("output", task_id).out == "one\ntwo\n"


@pytest.mark.soak
def test_a_worker_outlasts_a_server_that_is_away(cli: Cli, own_postgres: Server):
    cli.env["OUTRIDER_DB"] = own_postgres.create_database("work")
    assert cli.run("worker", OUTRIDER_DB=own_postgres.url("nowhere")).code == 6, "it has never worked there"
    worker = cli.worker()
    own_postgres.stop()
    assert worker.stderr is not None
    while "counts as lost" not in (line := worker.stderr.readline()):  # where a commit is in doubt, it says no more
        assert line, "the worker ended"
    own_postgres.start()
    while "serves" not in (line := worker.stderr.readline()):
        assert line, "the worker ended"
    task_id = cli.ok("call", "add", "a=1", "--background").out.strip()
    record = cli.ok("wait", task_id, "--timeout=60", "--json").record
    assert record["result"] == 1
    worker.terminate()
    assert worker.wait(60) == 0


def test_no_password_is_shown(there: Cli):
    worker = there.start("worker", "--idle-exit=0.1s")
    _, said = worker.communicate(timeout=60)
    assert "works on postgresql://" in said
    assert "hush" not in said
    assert "hush" not in there.ok("tasks").err
    there.ok("call", "add", "a=1", "--background")
    (pid,) = eventually(lambda: [each["pid"] for each in there.ok("workers", "--json").records])
    assert "hush" not in Path(f"/proc/{pid}/cmdline").read_text()
    down = there.run("tasks", OUTRIDER_DB="postgresql://me:hush@127.0.0.1:1/nowhere")
    assert down.code != 0
    assert "127.0.0.1:1" in down.err
    assert "hush" not in down.err


def test_what_is_for_files_only_is_refused(there: Cli):
    for command in (["backup", "copy.db"], ["restore", "copy.db"]):
        refused = there.run(*command, "--json")
        assert refused.code == 3
        assert "pg_dump" in refused.error["message"]


def test_a_worker_serves_only_what_it_is_told_to(cli: Cli):
    refused = cli.run("worker", "--serves=background_tool:nothing", "--json")
    assert refused.code == 3
    assert "background_tool:add" in refused.error["message"]
    cli.worker("--serves=background_tool:ad*", "--serves=process")
    (worker,) = cli.ok("workers", "--json").records
    assert set(worker["routes"]) == {"background_tool:add", "process"}
    ids = json.loads(cli.python(SPAWN))
    eventually(lambda: cli.task(ids[0])["state"] == "succeeded")
    left = cli.task(ids[1])
    assert (left["state"], left["phase_reason"]) == ("queued", "no worker serves background_tool:echo")
    assert "no live worker serves background_tool:echo" in cli.run("doctor", ids[1]).out


SPAWN = """
import asyncio, json
from example_app import app

async def main():
    async with app.open(".outrider/outrider.db", worker=False) as outrider:
        session = await outrider.sessions.create()
        tasks = [await session.spawn("add", a=1), await session.spawn("echo", text="x")]
        print(json.dumps([task.id for task in tasks]))

asyncio.run(main())
"""


def test_a_session_is_talked_to_while_a_worker_elsewhere_takes_its_turns(there: Cli):
    worker = there.worker("--app=chat_app")
    typed = {"stdin": "hello\nbuild docs\n", "OUTRIDER_APP": ""}
    done = there.ok("chat", "talk", "--agent=clerk", **typed)
    assert done.out.startswith("You said: hello\nIt is begun.\n")
    assert re.search(r"\w{8}  build  (queued|running|succeeded)", done.err)
    worker.terminate()
