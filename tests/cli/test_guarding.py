"""`keys`, `organizations`, `audit` and `secrets`; and a guarded `serve`, as processes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from typing import Any

import httpx2
import pytest

from outrider import Outrider, Runtime
from outrider.cli.arguments import parse
from outrider.cli.terminal import Screen
from outrider.core.errors import Forbidden, NotFound, OutriderError
from outrider.settings import AccessSettings, ServeSettings
from tests.cli.harness import Cli, eventually
from tests.client.stage import served


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


# --- the same with a server ------------------------------------------------------------------------------

GUARDED = ServeSettings(shutdown_timeout=1.0, access=AccessSettings(key_cache=0))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Does a command in this process, and returns its exit code and the records on stdout."""

    async def do(url: str, key: str, *given: str) -> tuple[int, list[dict[str, Any]]]:
        monkeypatch.setenv("OUTRIDER_KEY", key)
        command, arguments = parse(["--server", url, "--json", *given])
        module, _, function = command.code.partition(":")
        code = await getattr(import_module(f"outrider.cli.{module}"), function)(arguments, Screen(as_json=True))
        return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return do


async def admin_of(runtime: Runtime, organization_id: str | None = None) -> str:
    made = await runtime.keys.create("boss", scopes=["admin"], organization_id=organization_id)
    return made.token


@pytest.mark.anyio
async def test_keys_organizations_and_their_log_are_looked_after_by_a_server(command: Callable[..., Any]):
    async with Outrider().open("memory://", worker=False) as runtime, served(runtime, GUARDED) as url:
        boss = await admin_of(runtime)
        (made,) = (await command(url, boss, "organizations", "create", "A", "--id", "org_a"))[1]
        assert made["id"] == "org_a"
        given = ("--scope", "admin", "--organization", "org_a", "--name", "ada")
        (key,) = (await command(url, boss, "keys", "create", *given))[1]
        assert (key["created_by"], key["token"][:4]) == ("boss", "ork_")
        assert (await command(url, boss, "keys", "rotate", key["id"], "--overlap", "0s"))[1][0]["token"] != key["token"]
        listed = (await command(url, boss, "keys", "list", "--organization", "org_a"))[1]
        assert [(each["id"], "token" in each) for each in listed] == [(key["id"], False)]
        theirs = await admin_of(runtime, "org_a")
        assert (await command(url, theirs, "organizations", "list"))[1] == [made]
        for refused, asked in (
            (Forbidden, ("organizations", "create", "B")),
            (Forbidden, ("secrets", "rotate")),
            (NotFound, ("audit", "list", "--organization", "org_default")),
        ):
            with pytest.raises(refused):
                await command(url, theirs, *asked)
        assert (await command(url, boss, "keys", "revoke", key["id"]))[1][0]["is_active"] is False
        assert (await command(url, boss, "organizations", "suspend", "org_a"))[1][0]["suspended_at"]
        assert (await command(url, boss, "secrets", "rotate"))[1][0]["key_id"]
        code, (verdict,) = await command(url, boss, "audit", "verify")
        assert (code, verdict["is_whole"], verdict["entries"]) == (0, True, 6)
        told = (await command(url, boss, "audit", "list", "--limit", "5"))[1]
        # Each once, by the server: what is done here by hand is in no log twice.
        assert [(each["action"], each["actor"]["name"], each["actor"]["via"]) for each in reversed(told)] == [
            (action, "boss", "key")
            for action in (
                "create_api_key", "rotate_api_key", "revoke_api_key", "suspend_organization", "rotate_secrets",
            )
        ]  # fmt: skip
        head = verdict["head"].replace("6:", "9:")
        assert (await command(url, boss, "audit", "verify", "--expect-head", head))[0] == 10
        assert (await command(url, boss, "audit", "prune", "--older-than", "1d"))[1] == [{"entries": 0}]
        assert await command(url, boss, "organizations", "delete", "org_a") == (0, [])


@pytest.mark.anyio
async def test_webhooks_are_those_of_a_server_and_of_the_organization_of_the_key(command: Callable[..., Any]):
    async with Outrider().open("memory://", worker=False) as runtime, served(runtime, GUARDED) as url:
        await runtime.organizations.create("A", id="org_a")
        boss, theirs = await admin_of(runtime), await admin_of(runtime, "org_a")
        task = await (await runtime.sessions.create()).create("external", {})
        (made,) = (await command(url, boss, "webhooks", "create", "https://hooks.example/x"))[1]
        assert made["secret"].startswith("whsec_")
        given = ("https://hooks.example/", "--task", task.id[-8:])
        assert (await command(url, boss, "webhooks", "create", *given))[1][0]["task_id"] == task.id
        assert [each["id"] for each in (await command(url, boss, "webhooks"))[1]] == [made["id"]]
        assert (await command(url, theirs, "webhooks"))[1] == []
        assert (await command(url, boss, "webhooks", "update", made["id"], "--events", "message"))[1][0]["url"]
        assert (await command(url, boss, "webhooks", "rotate", made["id"]))[1][0]["secret"] != made["secret"]
        assert (await command(url, boss, "webhooks", "disable", made["id"]))[1][0]["disabled_at"]
        assert (await command(url, boss, "webhooks", "enable", made["id"]))[1][0]["disabled_at"] is None
        assert (await command(url, boss, "webhooks", "deliveries", made["id"]))[1] == []
        with pytest.raises(NotFound):
            await command(url, theirs, "webhooks", "show", made["id"])
        with pytest.raises(OutriderError, match="scope admin"):
            await command(url, (await runtime.keys.create("x")).token, "webhooks")
        assert (await command(url, boss, "webhooks", "delete", made["id"]))[0] == 0
