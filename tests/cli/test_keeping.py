"""`export`, `import`, `delete`, `prune`, `retry` and `fork`: what moves ends here, what is gone is gone."""

from tests.cli.harness import Cli, eventually


def test_ended_tasks_are_deleted_and_live_ones_refused(cli: Cli):
    cli.ok("call", "add", "a=1")
    cli.ok("call", "add", "a=2")
    live = cli.ok("call", "add", "a=3", "--background", "--delay", "1h").out.strip()
    second, first = [each["id"] for each in cli.ok("tasks", "--state", "succeeded", "--json").records]
    refused = cli.run("delete", live, "--json")
    assert (refused.code, refused.error["code"]) == (5, "not_ended")
    assert cli.ok("delete", first, "--json").record == {"id": first, "tasks": 1}
    assert cli.run("show", first).code == 4
    assert cli.ok("delete", second).out == f"{second}  deleted\n"
    assert [each["id"] for each in cli.ok("tasks", "--json").records] == [live]


def test_what_ended_long_ago_is_pruned_once_it_is_not_only_asked_how_much_that_is(cli: Cli):
    for number in range(3):
        cli.ok("call", "add", f"a={number}")
    assert cli.ok("prune").out == "0 tasks and 0 sessions deleted\n"
    assert cli.ok("prune", "--older-than", "0", "--dry-run").out == "3 tasks would go\n"
    assert cli.ok("prune", "--older-than", "0", "--state", "failed,canceled", "--json").record["tasks"] == 0
    refused = cli.run("prune", "--older-than", "0", "--state", "running", "--json")
    assert (refused.code, refused.error["code"]) == (3, "invalid_arguments")
    assert cli.ok("prune", "--older-than", "0", "--json").record == {"tasks": 3, "sessions": 0, "dry_run": False}
    assert cli.ok("tasks").out == ""


def test_an_ended_task_is_done_again_from_its_beginning_or_from_a_step(cli: Cli):
    notes, hold = cli.folder / "notes", cli.folder / "hold"
    cli.ok("call", "steps", f"notes={notes}", "upto=4", f"hold={hold}")
    (old,) = [each["id"] for each in cli.ok("tasks", "--json").records]
    again = cli.ok("retry", old, "--json").record
    fork = cli.ok("fork", old, "--from", "step 2").out.strip()
    assert (again["retry_of"], again["state"]) == (old, "queued")
    assert cli.run("fork", old, "--from", "step 9", "--json").error["code"] == "unknown_step"
    assert cli.run("retry", fork, "--json").error["code"] == "illegal_move"
    notes.unlink()
    worker = cli.worker()
    assert cli.ok("wait", fork, again["id"], "--json").code == 0
    assert sorted(line.split()[0] for line in notes.read_text().splitlines()) == ["0", "1", "2", "2", "3", "3"]
    worker.terminate()
    worker.communicate()


def test_a_parked_task_is_moved_to_another_database_and_ends_in_this_one(cli: Cli):
    asked = cli.run("call", "confirm", "--background", "--idle-exit", "0.1").out.strip()
    eventually(lambda: cli.task(asked)["input_request"] and not cli.task(asked)["worker_id"])
    document = cli.folder / "task.json"
    document.write_text(cli.ok("export", asked, "--move").out)
    assert cli.task(asked)["cancel_reason"] == "moved to another database"
    other = ["--db", "other.db"]
    refused = cli.run("import", str(document), *other, "--json", OUTRIDER_APP="")
    assert refused.error["code"] == "unknown_tool"
    assert cli.ok("import", str(document), *other).out.strip() == asked
    assert cli.run("import", str(document), *other, "--json").error["code"] == "already_exists"
    cli.ok("answer", asked, "yes", *other)
    worker = cli.worker(*other)
    assert cli.ok("wait", asked, *other, "--json").record["result"] == "yes"
    worker.terminate()
    worker.communicate()


def test_what_is_no_document_is_refused(cli: Cli):
    (cli.folder / "broken.json").write_text("{")
    assert cli.run("import", "broken.json", "--json").error["code"] == "invalid_arguments"
    assert cli.run("import", "-", "--json", stdin="[]").error["code"] == "invalid_arguments"
    assert cli.run("import", "nowhere.json", "--json").code == 2
