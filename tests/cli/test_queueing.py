"""`limits`, `pause`, `resume`, `priority`, and the options that put a task in its place."""

from tests.cli.harness import Cli, eventually


def test_a_limit_is_set_shown_and_removed(cli: Cli):
    cli.ok("limits", "tenant:*", "--concurrency", "2", "--rate", "100/1m")
    assert cli.ok("limits").out == "tenant:*: 2 at once, 100 starts in any 60 s\n"
    shown = cli.ok("limits", "--json").record
    assert shown["limits"] == [{"key": "tenant:*", "concurrency": 2, "rate": 100, "per": 60.0, "organization_id": None}]
    cli.ok("limits", "tenant:*", "--organization", "org_b", "--concurrency", "3")
    assert "tenant:* of org_b: 3 at once" in cli.ok("limits").out
    cli.ok("limits", "tenant:*", "--organization", "org_b", "--remove")
    cli.ok("limits", "tenant:*", "--remove")
    assert cli.ok("limits").out == ""


def test_what_is_paused_does_not_start_and_resumes(cli: Cli):
    cli.ok("pause", "--kind", "background_tool", "--reason", "a \x1b[31mred\nreason")
    shown = cli.ok("limits").out
    assert shown.startswith("paused: kind background_tool")
    assert "\x1b" not in shown
    assert shown.count("\n") == 1
    task_id = cli.ok("call", "add", "a=1", "--background").out.strip()
    assert cli.task(task_id)["phase_reason"] == "kind paused"
    cli.ok("resume", "--kind", "background_tool")
    eventually(lambda: cli.task(task_id)["state"] == "succeeded")


def test_a_task_is_put_in_its_place(cli: Cli):
    cli.ok("pause", "--all")
    first = cli.ok("call", "add", "a=1", "--background", "--concurrency-key", "door", "--json").record["id"]
    second = cli.ok("call", "add", "a=2", "--background", "--after", first, "--json").record
    assert (second["depends_on"], second["phase_reason"]) == ([first], "dependency")
    cli.ok("priority", second["id"], "12")
    assert cli.task(second["id"])["priority"] == 12
    how = ["--background", "--debounce-key", "b", "--delay", "1h", "--json"]
    cli.ok("call", "add", "a=3", *how)
    made = cli.ok("call", "add", "a=4", *how).record
    assert made["spec"]["arguments"] == {"a": 4}
    assert len(cli.ok("tasks", "--json").records) == 3
    receipt = cli.ok("cancel", "--all", "--kind", "background_tool", "--json").record
    assert set(receipt["canceled"]) == {first, second["id"], made["id"]}
    assert cli.ok("cancel", first, second["id"], "--json").record["left"] == [first, second["id"]]


def test_what_makes_no_sense_is_a_wrong_command_line(cli: Cli):
    for wrong in (
        ["limits", "gpu"],
        ["limits", "--concurrency", "1"],
        ["limits", "gpu", "--rate", "100"],
        ["limits", "gpu", "--concurrency", "1", "--remove"],
        ["pause"],
        ["pause", "--all", "--kind", "x"],
        ["cancel"],
        ["cancel", "--all", "task_1"],
        ["cancel", "task_1", "--session", "s"],
        ["cancel", "task_1", "task_2", "--wait"],
    ):
        assert cli.run(*wrong).code == 2, wrong
