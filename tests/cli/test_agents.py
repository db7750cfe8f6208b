"""`run`: an agent on a prompt, with the tools of an app or with none."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from outrider import Outrider, TaskRecord
from outrider.cli import starting
from outrider.cli.arguments import parse
from outrider.cli.exits import UsageError
from outrider.cli.terminal import Screen
from outrider.cli.values import budget_of
from tests.cli.harness import Cli, eventually


def scripted(*replies: dict[str, object]) -> str:
    return json.dumps({"model": "scripted", "script": list(replies)})


ADDS = scripted({"calls": [{"tool": "add", "arguments": {"a": 2, "b": 3}}]}, {"text": "It is five."})


def test_an_agent_answers_on_stdout(cli: Cli):
    assert cli.ok("run", "hello", "--model=scripted", OUTRIDER_APP="").out == "You said: hello\n"
    assert cli.ok("run", "-", "--model=scripted", stdin="from stdin", OUTRIDER_APP="").out == "You said: from stdin\n"
    assert cli.ok("run", "hello", OUTRIDER_MODEL="scripted").out == "You said: hello\n"


def test_whose_agent_is_meant_has_to_be_said_and_a_name_that_is_no_app_is_told_of_those_that_are(cli: Cli):
    assert "--app MODULE:APP" in cli.run("run", "hi", "--agent=clerk", OUTRIDER_APP="").err
    assert "it has example_app:app" in cli.run("call", "add", "a=1", "--app=example_app:ap").err


def test_an_agent_calls_tools_of_the_app_and_its_record_says_what_it_used(cli: Cli):
    record = cli.ok("run", "add two and three", f"--model={ADDS}", "--tools=add", "--system=Be brief", "--json").record
    assert record.pop("result") == "It is five."
    task = TaskRecord.model_validate(record)
    assert (task.kind, task.iterations, task.provider) == ("subagent", 2, "scripted")
    assert task.spec["system_prompt"] == "Be brief"
    assert task.links.child_session_id is not None


@pytest.mark.parametrize(
    ("option", "approval"),
    [
        (["--require-approval"], True),
        (["--require-approval", "all"], True),
        (["--require-approval=add"], ["add"]),
        (["--require-approval", "add"], ["add"]),
    ],
    ids=str,
)
def test_a_tool_is_approved_by_a_person_first(cli: Cli, option: list[str], approval: object):
    process = cli.start("run", "--tools=add", *option, "add two and three", f"--model={ADDS}", "--json")
    (task,) = eventually(lambda: cli.ok("tasks", "--state=awaiting_input", "--json").records)
    assert task["spec"]["require_approval"] == approval
    assert task["spec"]["prompt"] == "add two and three"
    assert task["input_request"]["kind"] == "approval"
    cli.ok("answer", task["id"], "yes")
    out, _ = process.communicate(timeout=60)
    assert json.loads(out)["result"] == "It is five."


def test_whoever_approves_sees_what_would_be_called(cli: Cli):
    process = cli.start("run", "--tools=add", "--require-approval=add", "add two and three", f"--model={ADDS}")
    (task,) = eventually(lambda: cli.ok("tasks", "--state=awaiting_input", "--json").records)
    assert '"tool": "add"' in cli.ok("show", task["id"]).out
    assert '"b": 3' in cli.ok("show", task["id"]).out
    cli.ok("answer", task["id"], "always")
    _, err = process.communicate(timeout=60)
    assert '"arguments": {\n    "a": 2,\n    "b": 3\n' in err.replace("      ", "    ")
    (ended,) = cli.ok("show", task["id"], "--json").records
    session = ended["links"]["child_session_id"]
    assert [grant["tool"] for grant in cli.ok("grants", session, "--json").records] == ["add"]
    assert "add: revoked" in cli.ok("grants", session, "--revoke=add").err


def test_too_many_iterations_are_no_success(cli: Cli):
    done = cli.run("run", "x", f"--model={ADDS}", "--tools=add", "--max-iterations=1", "--json")
    assert (done.code, done.record["error"]["kind"]) == (7, "max_iterations")
    assert cli.run("run", "x", "--model=scripted", "--max-iterations=0", "--json").error["code"] == "invalid_arguments"


def test_a_worker_without_an_app_serves_agents_without_tools_and_commands(cli: Cli):
    done = cli.ok("run", "hello", "--model=scripted", "--background", "--name=greeting", OUTRIDER_APP="")
    record = cli.ok("wait", done.out.strip(), "--json", "--timeout=60").record
    assert (record["result"], record["display_name"]) == ("You said: hello", "greeting")
    log = (cli.folder / ".outrider/outrider.db-worker.log").read_text()
    assert log.rstrip().endswith("serves process, subagent")


def test_a_budget_ends_the_task_and_show_says_what_became_of_it(cli: Cli):
    endless = scripted({"calls": [{"tool": "add", "arguments": {"a": 2, "b": 3}}], "text": "So far.", "repeat": 9})
    ran = cli.run("run", "add", f"--model={endless}", "--tools=add", "--budget=requests=2,tokens=100000", "--json")
    assert ran.record["error"]["kind"] == "budget_exceeded"
    assert ran.record["summary"] == "So far."
    told = cli.ok("show", ran.record["id"])
    assert f"task:{ran.record['id']}  tokens " in told.out
    assert "requests 2 of 2" in told.out
    assert "requests 2 of 2" in cli.ok("usage", ran.record["id"]).out
    assert cli.ok("usage", "session_default", "--tree", "--json").record["requests"] == 2
    assert cli.run("usage", "nobody").code == 4


def test_a_budget_is_typed_as_names_and_numbers():
    assert budget_of("tokens=100000, cost=1.50") == {"tokens": 100_000, "cost": 1.5}
    for text in ("tokens", "tokens=many", "tokens=1,tokens=2"):
        with pytest.raises(UsageError):
            budget_of(text)


@pytest.mark.anyio
async def test_a_registered_agent_answers_in_a_peer_that_stays_open_or_takes_a_turn_where_it_is_invited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OUTRIDER_APP", "tests.cli.chat_app")
    url = f"sqlite:///{tmp_path}/work.db"

    async def run(*typed: str) -> dict[str, Any]:
        _, arguments = parse(["run", *typed, "--json", f"--db={url}"])
        out = io.StringIO()
        assert await starting.run(arguments, Screen(as_json=True, out=out)) == 0
        record: dict[str, Any] = json.loads(out.getvalue())
        return record

    for wrong in (["--peer"], ["--invite", "--agent=clerk", "--model=scripted"]):
        with pytest.raises(UsageError):
            await run("hi", *wrong)
    async with Outrider().open(url, worker=False) as runtime:
        await runtime.sessions.create(id="talk", agent="clerk")
        peer = await run("hi", "--agent=clerk", "--peer", "--name=hers")
        opened = await (await runtime.sessions.get(peer["links"]["child_session_id"])).record()
        assert (peer["kind"], peer["result"], opened.title) == ("session", "You said: hi", "hers")
        guest = await run("hi", "--agent=clerk", "--invite", "--session=talk")
        assert (guest["kind"], guest["result"]) == ("agent_handoff", "You said: hi")
        assert len(await runtime.tasks.list(session_id="talk", kind="turn")) == 1
