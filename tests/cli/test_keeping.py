"""`export`, `import`, `close`, `delete`, `prune`, `retry` and `fork`: what moves ends here, what is gone is gone."""

import re

import anyio
import pytest

from outrider import TaskOptions
from tests.cli.example_app import app
from tests.cli.harness import Cli, eventually


def fill(cli: Cli, *numbers: int, delayed: int) -> tuple[list[str], str]:
    """Some ended tasks and a live one, without a process for each."""

    async def spawn() -> tuple[list[str], str]:
        async with app.open(f"sqlite:///{cli.folder}/.outrider/outrider.db") as runtime:
            session = await runtime.sessions.create(id="session_default")
            live = await session.spawn("add", a=delayed, options=TaskOptions(delay=3600))
            tasks = [await session.spawn("add", a=number) for number in numbers]
            for task in tasks:
                await task.result(timeout=30)
            return [task.id for task in tasks], live.id

    return anyio.run(spawn)


def test_ended_tasks_are_deleted_and_pruned_and_live_ones_refused(cli: Cli):
    (first, second, *_), live = fill(cli, 1, 2, 3, 4, 5, delayed=6)
    refused = cli.run("delete", live, "--json")
    assert (refused.code, refused.error["code"]) == (5, "not_ended")
    assert cli.ok("delete", first, "--json").record == {"id": first, "tasks": 1}
    assert cli.run("show", first).code == 4
    assert cli.ok("delete", second).out == f"{second}  deleted\n"
    assert cli.ok("prune").out == "0 tasks and 0 sessions deleted\n"
    assert cli.ok("prune", "--older-than", "0", "--dry-run").out == "3 tasks would go\n"
    assert cli.ok("prune", "--older-than", "0", "--state", "failed,canceled", "--json").record["tasks"] == 0
    refused = cli.run("prune", "--older-than", "0", "--state", "running", "--json")
    assert (refused.code, refused.error["code"]) == (3, "invalid_arguments")
    assert cli.ok("prune", "--older-than", "0", "--json").record == {"tasks": 3, "sessions": 0, "dry_run": False}
    assert [each["id"] for each in cli.ok("tasks", "--json").records] == [live]


def test_a_session_is_closed_reopened_and_deleted_with_all_in_it(cli: Cli):
    _, live = fill(cli, 1, delayed=6)
    refused = cli.run("close", "session_default", "--tasks", "refuse", "--json")
    assert (refused.code, refused.error["code"], refused.error["details"]) == (5, "not_ended", {"live": [live]})
    assert cli.ok("close", "session_default", "--json").record["status"] == "closed"
    assert cli.run("call", "add", "a=1", "--background", "--json").error["code"] == "session_closed"
    assert cli.ok("reopen", "session_default", "--json").record["status"] == "idle"
    assert cli.run("delete", "session_default", "--json").error["code"] == "not_ended"
    assert cli.run("delete", live, "--cancel").code == 2
    assert cli.ok("delete", "session_default", "--cancel", "--json").record == {"id": "session_default", "tasks": 2}
    assert cli.run("close", "session_default", "--json").error["code"] == "session_not_found"


def test_sessions_are_made_listed_and_labeled(cli: Cli):
    made = cli.ok("sessions", "create", "--id", "session_a", "--title", "one", "--label", "x=1", "--json").record
    assert (made["title"], made["labels"], made["status"]) == ("one", {"x": "1"}, "idle")
    cli.ok("sessions", "create", "--id", "session_b")
    changed = cli.ok("sessions", "update", "session_a", "--label", "y=2", "--no-label", "x", "--json").record
    assert (changed["title"], changed["labels"]) == ("one", {"y": "2"})
    assert [each["id"] for each in cli.ok("sessions", "--json").records] == ["session_b", "session_a"]
    older = cli.ok("sessions", "list", "--after", "session_b", "--json").records
    assert [each["id"] for each in older] == ["session_a"]
    assert re.fullmatch(r"session_a  idle  -  \S+ \S+ UTC  one  y=2\n", cli.ok("sessions", "show", "session_a").out)
    for wrong in (["--agent", "x"], ["--limit", "3"], ["--label", "y=3", "--no-label", "y"], []):
        assert cli.run("sessions", "update", "session_a", *wrong).code == 2
    assert cli.run("sessions", "show").code == 2
    assert cli.run("sessions", "show", "session_c").code == 4


def test_a_session_is_forked_by_its_id(cli: Cli):
    (done,), _ = fill(cli, 1, delayed=6)
    fork = cli.ok("fork", "session_default", "--title", "other", "--json").record
    assert (fork["forked_from"], fork["title"]) == ("session_default", "other")
    assert cli.run("fork", "session_default", "--upto", done, "--json").error["code"] == "invalid_arguments"
    assert cli.run("fork", "session_default", "--from", "step 1").code == 2
    assert cli.run("fork", done, "--title", "other").code == 2


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
    eventually(lambda: (task := cli.task(asked))["input_request"] and not task["worker_id"])
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


def test_a_policy_is_set_shown_and_taken_back_and_what_is_pinned_is_kept(cli: Cli):
    (first, second), _ = fill(cli, 1, 2, delayed=6)
    assert cli.ok("retention").out == "org_default: kept 30 days  (the default; workers may be started with another)\n"
    assert cli.ok("retention", "--age", "7d", "--count", "100", "--json").record["age"] == 7 * 86_400
    assert cli.ok("retention").out == "org_default: kept 7 days, no more than 100 tasks\n"
    assert cli.ok("retention", "--organization", "org_b", "--age", "forever").out == "org_b: kept for ever\n"
    assert [each["organization_id"] for each in cli.ok("retention", "--json").records] == ["org_b", "org_default"]
    assert cli.ok("retention", "--reset", "--json").record["is_own"] is False
    assert cli.run("retention", "--reset", "--age", "1d").code == 2
    assert cli.run("retention", "--age", "soon").code == 2
    assert cli.run("retention", "--count", "-1", "--json").error["code"] == "invalid_arguments"
    assert cli.ok("pin").out == ""
    assert cli.ok("pin", first, "--reason", "a lawsuit", "--json").record["reason"] == "a lawsuit"
    assert cli.ok("prune", "--older-than", "0", "--json").record["tasks"] == 1
    assert cli.run("show", second).code == 4
    assert [each["id"] for each in cli.ok("pin", "--json").records] == [first]
    cli.ok("pin", first, "--remove")
    assert cli.run("pin", "--remove").code == 2
    assert cli.run("pin", "task_none", "--json").error["code"] == "task_not_found"
    assert cli.ok("prune", "--older-than", "0", "--json").record["tasks"] == 1


def test_a_session_is_exported_whole_one_record_a_line(cli: Cli):
    (done,), live = fill(cli, 1, delayed=6)
    records = cli.ok("export", "session_default").records
    assert [records[0]["session_id"], records[-1]["record"]] == ["session_default", "end"]
    assert {record["id"] for record in records if record["record"] == "task"} == {done, live}
    assert cli.run("export", "session_default", "--move").code == 2


def test_a_session_is_archived_read_and_erased(cli: Cli):
    pytest.importorskip("obstore", reason="the extra `archive` is not installed")
    (done,), live = fill(cli, 1, delayed=6)
    archive = {"OUTRIDER_ARCHIVE": (cli.folder / "archive").as_uri()}
    assert cli.run("archive", "session_default", "--json").error["code"] == "invalid_arguments"
    assert cli.run("retention", "--age", "7d", "--archive", "--json").error["code"] == "invalid_arguments"
    assert cli.run("archive", "session_default", "--json", **archive).error["code"] == "not_ended"
    cli.ok("cancel", live)
    assert cli.ok("archive", "session_default", "--json", **archive).record["session_id"] == "session_default"
    assert cli.run("show", done).code == 4
    assert cli.ok("archive", **archive).out.startswith("session_default  ")
    records = cli.ok("archive", "session_default", "--read", **archive).records
    assert {record["id"] for record in records if record["record"] == "task"} == {done, live}
    cli.ok("archive", "session_default", "--erase", **archive)
    assert cli.ok("archive", "--json", **archive).records == []
    assert cli.run("archive", "--read").code == 2
    told = cli.ok("retention", "--age", "7d", "--archive", **archive).out
    assert told == "org_default: sessions are archived that had nothing happen for 7 days\n"
    refused = cli.run("serve", "--port", "0", OUTRIDER_ARCHIVE=str(cli.folder / "archive"))  # no URL
    assert (refused.code, "file:///" in refused.err) == (3, True)
