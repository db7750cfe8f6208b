"""`webhooks`: who is told, and what became of it."""

from tests.cli.harness import Cli


def test_an_endpoint_is_made_looked_at_changed_and_deleted(cli: Cli):
    made = cli.ok("webhooks", "create", "https://hooks.example/x", "--events", "terminal,message", "--json").record
    id = made["id"]
    assert made["secret"].startswith("whsec_")
    assert f"{id}  https://hooks.example/x  terminal,message  enabled" in cli.ok("webhooks").out
    disabled = cli.ok("webhooks", "disable", id, "--reason", "noisy\x1b[31m\none", "--json").record
    assert disabled["disabled_reason"] == "noisy\x1b[31m\none"
    shown = cli.ok("webhooks", "show", id).out
    assert ("\x1b" in shown, shown.count("\n")) == (False, 1)
    assert cli.run("doctor").code == 10
    assert cli.run("webhooks", "replay", id).code == 5
    cli.ok("webhooks", "enable", id)
    assert cli.ok("webhooks", "deliveries", id).out == ""
    assert cli.run("webhooks", "create", "http://127.0.0.1:5/").code == 3
    cli.ok("webhooks", "delete", id)
    assert cli.run("webhooks", "show", id).code == 4


def test_what_makes_no_sense_is_a_wrong_command_line(cli: Cli):
    for wrong in (
        ["webhooks", "tell"],
        ["webhooks", "create"],
        ["webhooks", "list", "x"],
        ["webhooks", "show", "x", "y"],
        ["webhooks", "test", "x", "--reason", "y"],
    ):
        assert cli.run(*wrong).code == 2, wrong
