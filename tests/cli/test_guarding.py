"""`keys`, `organizations`, `audit` and `secrets`; and a guarded `serve`, as processes."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import httpx2

from tests.cli.harness import Cli, eventually


def test_the_first_key_is_made_on_the_machine_of_the_database_and_what_is_done_is_written_down(cli: Cli):
    made = cli.ok("keys", "create", "--admin", "--name", "boss")
    assert made.out.startswith("ork_")
    assert "shown this once" in made.err
    key_id = made.err.split("token of ")[1].split(";")[0]
    rotated = cli.ok("keys", "rotate", key_id, "--overlap", "1h", "--json").record
    assert rotated["token"] != made.out.strip()
    assert "good no more" in cli.ok("keys", "revoke", key_id).out
    (key,) = cli.ok("keys", "list", "--json").records
    assert (key["name"], key["scopes"], key["is_active"], "token" in key) == ("boss", ["admin"], False, False)
    told = cli.ok("audit", "list", "--json").records
    assert [(each["action"], each["actor"]["via"]) for each in told] == [
        (action, "command line") for action in ("revoke_key", "rotate_key", "create_key")
    ]
    assert cli.run("keys", "revoke").code == 2


def test_a_log_that_was_tampered_with_ends_verify_with_its_own_code(cli: Cli):
    cli.ok("organizations", "create", "A", "--id", "org_a")
    assert "org_a  A  suspended since" in cli.ok("organizations", "suspend", "org_a").out
    head = cli.ok("audit", "verify", "--organization", "org_a").out.strip()
    with closing(sqlite3.connect(cli.folder / ".outrider" / "outrider.db")) as database, database:
        database.execute("update documents set data = replace(data, 'suspend_', 'resume_') where id like 'org_a/%2'")
    ended = cli.run("audit", "verify", "--organization", "org_a", "--expect-head", head, "--json")
    assert (ended.code, ended.record["broken_at"], ended.record["reason"]) == (10, 2, "it was altered")


def test_secrets_are_sealed_anew_from_the_command_line(cli: Cli):
    assert cli.ok("secrets", "rotate", "--json").record["sealed"] == 0
    assert (cli.folder / ".outrider" / "outrider.db-secrets").stat().st_mode & 0o777 == 0o600


def test_a_guarded_server_asks_for_a_key_and_heeds_its_revocation_by_another_process(cli: Cli):
    server = cli.start("serve", "--auth", "--host", "0.0.0.0", "--port", "0", "--no-worker", "--json")
    assert server.stdout is not None
    url = json.loads(server.stdout.readline())["url"].replace("0.0.0.0", "127.0.0.1")
    key = cli.ok("keys", "create", "--scope", "read", "--json").record
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key['token']}"}) as client:
        assert client.get("/v1/tasks", headers={"Authorization": ""}).status_code == 401
        assert client.get("/v1/tasks").status_code == 200
        assert client.post("/v1/sessions", json={}).status_code == 403
        cli.ok("keys", "revoke", key["id"])
        eventually(lambda: client.get("/v1/tasks").status_code == 401)


def test_beyond_this_machine_nothing_is_served_without_asking(cli: Cli):
    refused = cli.run("serve", "--host", "0.0.0.0", "--port", "0", "--json")
    assert (refused.code, refused.error["code"]) == (3, "invalid_arguments")
    cli.env["OUTRIDER_OIDC_ISSUER"] = "https://issuer.example"
    assert "OUTRIDER_OIDC_AUDIENCE" in cli.run("serve", "--port", "0").err
