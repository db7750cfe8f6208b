"""`inbox`: a script as an outside agent."""

from tests.cli.harness import Cli


def test_a_script_receives_what_a_session_is_told_and_acknowledges_it(cli: Cli):
    task_id = cli.ok("call", "echo", "text=\x1b[31m", "--wake", "on_terminal", "--json").record["id"]
    (entry,) = cli.ok("inbox", "--json").records
    assert (entry["task_id"], entry["receipt"], entry["deliveries"]) == (task_id, None, 0)
    late = cli.ok("inbox", "--wait", "1m", "--lease", "0.001", "--json").record
    assert (late["task"]["id"], late["deliveries"]) == (task_id, 1)
    told = cli.ok("inbox", "--wait", "1m").out
    receipt = told.split()[0]
    assert told.count("\n") == 1
    assert "\x1b" not in told
    refused = cli.run("inbox", "--ack", late["receipt"], "--ack", receipt, "--json")
    assert refused.code == 5
    assert (refused.record["stale"], refused.record["good"]) == ([late["receipt"]], [receipt])
    assert cli.ok("inbox", "--wait", "0").out == ""
    assert cli.run("inbox", "--wait", "1", "--ack", receipt).code == 2
