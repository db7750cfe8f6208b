"""`--server`: the commands of a database, done by a server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.harness import Cli

pytestmark = pytest.mark.slow


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Cli]:
    """A folder with a server of its own, which is the one that is meant."""
    cli = Cli(tmp_path)
    try:
        server = cli.start("serve", "example_app", "--port", "0", "--json", "--db", "work.db")
        assert server.stdout is not None
        cli.env["OUTRIDER_SERVER"] = json.loads(server.stdout.readline())["url"]
        yield cli
    finally:
        cli.clean_up()


def test_what_is_done_with_a_database_is_done_with_a_server(there: Cli):
    assert there.ok("call", "add", "a=1", "b=2").out.strip() == "3"
    failed = there.run("call", "fail", "reason=no luck", "--max-failures", "1")
    assert (failed.code, "no luck" in failed.err) == (7, True)
    assert there.ok("exec", "--", "printf", "from afar").out == "from afar"
    asking = there.ok("call", "confirm", "--background").out.strip()
    assert there.run("wait", asking, "--timeout", "100ms").code == 9
    there.ok("answer", asking[-8:], "yes")
    assert "succeeded" in there.ok("wait", asking).out
    assert asking in {each["id"] for each in there.ok("tasks", "--state", "succeeded", "--json").records}
    assert "asks" not in there.ok("tasks").out
    assert there.ok("show", asking, "--json").record["requests"][0]["answered_via"] == "cli"
    assert "created" in there.ok("watch", asking).out
    assert "confirm succeeded" in there.ok("tree", "session_default").out
    going = there.ok("call", "forever", "--background").out.strip()
    assert "canceled" in there.ok("cancel", going, "--wait").out
    assert "sound" in there.ok("doctor").err
    assert len(there.ok("workers", "--json").records) == 1
    assert not (there.folder / ".outrider").exists()


def test_what_is_for_the_machine_of_the_database_is_refused_and_an_error_is_the_servers(there: Cli):
    for command in (["backup", "copy.db"], ["worker"], ["serve", "example_app"]):
        refused = there.run(*command)
        assert (refused.code, "for the machine of the database: " in refused.err) == (2, True), command
    assert "names both databases itself" in there.run("copy", "a", "b", "--server", "http://127.0.0.1:1").err
    assert there.run("show", "task_none", "--json").error["code"] == "task_not_found"
    assert there.run("tasks", "--server", "http://127.0.0.1:1", "--db", "x.db").code == 2
    elsewhere = there.run("tasks", "--server", "nowhere", "--json")
    assert (elsewhere.code, elsewhere.error["code"]) == (3, "invalid_arguments")
    assert there.run("tasks", "--key-file", "none").code == 2
    assert there.ok("tasks", "--db", "other.db").out == ""
