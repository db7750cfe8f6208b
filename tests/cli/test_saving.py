"""`backup` and `restore`, while a worker works and after it was stopped."""

import signal

from tests.cli.harness import Cli


def test_a_backup_is_made_while_a_worker_works_and_restored_when_it_has_gone(cli: Cli):
    worker = cli.worker()
    asked = cli.ok("call", "confirm", "--background").out.strip()
    cli.ok("call", "add", "a=1")
    made = cli.ok("backup", "saved.db", "--json").record
    assert (made["tasks"], made["size"]) == (2, (cli.folder / "saved.db").stat().st_size)
    cli.ok("call", "add", "a=2")

    again = cli.run("backup", "saved.db", "--json")
    assert (again.code, again.error["code"]) == (3, "invalid_arguments")
    refused = cli.run("restore", "saved.db", "--json")
    assert (refused.code, refused.error["code"]) == (6, "store_locked")
    assert len(cli.ok("tasks", "--json").records) == 3

    worker.send_signal(signal.SIGTERM)
    worker.wait(60)
    put = cli.ok("restore", "saved.db", "--json").record
    assert put["tasks"] == 2
    assert len(cli.ok("tasks", "--json").records) == 2
    assert len(cli.ok("tasks", "--json", "--db", put["before"]).records) == 3
    cli.ok("answer", asked, "yes")
    cli.worker()
    assert cli.ok("wait", asked, "--json").record["result"] == "yes"


def test_a_backup_that_exists_is_replaced_only_by_force(cli: Cli):
    cli.ok("call", "add", "a=1")
    (cli.folder / "taken").write_text("mine")
    assert "exists already" in cli.run("backup", "taken").err
    assert (cli.folder / "taken").read_text() == "mine"
    assert cli.ok("backup", "taken", "--force").out == f"{cli.folder / 'taken'}\n"


def test_what_is_not_there_is_neither_saved_nor_made(cli: Cli):
    for arguments in (["backup", "x"], ["backup", "x", "--db=other.db"], ["restore", "missing"]):
        done = cli.run(*arguments, "--json")
        assert (done.code, done.error["code"]) == (4, "file_not_found")
    assert cli.run("backup", "x", "--db=memory://").code == 3
    assert list(cli.folder.iterdir()) == []
