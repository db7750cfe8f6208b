"""`backup`, `restore` and `copy`, while a worker works and after it was stopped."""

import io
import signal

from outrider.cli.saving import _teller
from outrider.cli.terminal import Screen
from outrider.stores.copy import Progress
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


def test_a_database_is_copied_to_postgresql_and_back_and_gone_on_with(cli: Cli, postgres_url: str):
    worker = cli.worker()
    asked = cli.ok("call", "confirm", "--background").out.strip()
    cli.ok("call", "add", "a=1")
    here = ".outrider/outrider.db"
    refused = cli.run("copy", here, postgres_url, "--json")
    assert (refused.code, refused.error["code"]) == (6, "store_locked")
    worker.send_signal(signal.SIGTERM)
    worker.wait(60)

    made = cli.ok("copy", here, postgres_url, "--json").record
    assert (made["sessions"], made["tasks"], made["rows"]["tasks"]) == (1, 2, 2)
    assert "database" in made["target"]
    again = cli.run("copy", here, postgres_url, "--json")
    assert (again.code, again.error["code"]) == (5, "already_exists")
    assert cli.ok("tasks", "--json", OUTRIDER_DB=postgres_url).out == cli.ok("tasks", "--json").out

    cli.ok("answer", asked, "yes", OUTRIDER_DB=postgres_url)
    other = cli.worker("--db", postgres_url)
    assert cli.ok("wait", asked, "--json", OUTRIDER_DB=postgres_url).record["result"] == "yes"
    other.send_signal(signal.SIGTERM)
    other.wait(60)
    back = cli.ok("copy", postgres_url, "sqlite:///back.db")
    assert back.out == f"2 tasks in 1 session copied to the database {cli.folder / 'back.db'}\n"
    assert "tasks: 2 rows\n" in back.err
    assert cli.ok("doctor", "--deep", "--db=back.db").code == 0
    assert cli.task(asked)["state"] == "awaiting_input"
    assert cli.ok("show", asked, "--json", "--db=back.db").record["result"] == "yes"


def test_a_copy_that_waits_for_a_worker_of_another_machine_says_so():
    err = io.StringIO()
    _teller(Screen(err=err))(Progress("wait", "workers", 1, is_whole=False))
    told = "1 registered worker may live on another machine: watching for 10 s whether a lease is renewed\n"
    assert err.getvalue() == told


def test_a_copy_that_the_server_made_is_set_apart(cli: Cli, postgres_url: str):
    cli.ok("tasks", f"--db={postgres_url}")
    one = cli.ok("separate", f"--db={postgres_url}", "--json").record["id"]
    other = cli.ok("separate", f"--db={postgres_url}")
    assert len(other.out.strip()) == len(one)
    assert other.out.strip() != one
    assert "pause --all" in other.err


def test_a_copy_takes_two_databases_and_makes_no_source(cli: Cli):
    assert cli.run("copy", "a.db").code == 2
    assert cli.run("copy", "a.db", "b.db", "--db=c.db").code == 2
    done = cli.run("copy", "a.db", "b.db", "--json")
    assert (done.code, done.error["code"]) == (4, "file_not_found")
    assert list(cli.folder.iterdir()) == []
