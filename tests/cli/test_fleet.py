"""A fleet as its operator sees it: two versions of an app beside each other, and workers that state a label."""

from tests.cli.harness import Cli, eventually

APP = """
from outrider import Outrider, TaskContext
app = Outrider(version={version!r})

@app.tool
async def {tool}(task: TaskContext) -> str:
    return "{version} " + str(await task.ask("Go on?", bool))
"""


def test_in_a_rolling_deploy_a_parked_task_waits_for_a_worker_that_knows_its_tool_and_says_so(cli: Cli):
    for version, tool in (("1.0", "pack"), ("2.0", "pack_v2")):
        (cli.folder / f"app_{tool}.py").write_text(APP.format(version=version, tool=tool))
    old = cli.worker("--app=app_pack")
    task_id = cli.ok("call", "pack", "--app=app_pack", "--background").out.strip()
    eventually(lambda: cli.task(task_id)["state"] == "awaiting_input")
    new = cli.worker("--app=app_pack_v2")
    assert {each["app_version"] for each in cli.ok("workers", "--json").records} == {"1.0", "2.0"}
    old.terminate()
    assert old.wait(60) == 0
    answered = cli.ok("answer", task_id, "yes")
    assert "no worker for background_tool:pack is running here" in answered.err
    record = cli.task(task_id)
    assert (record["state"], record["phase"]) == ("running", "resuming")
    assert record["phase_reason"] == "no worker serves background_tool:pack"
    said = "no live worker serves background_tool:pack (live workers for background_tool know other names: app 2.0)"
    assert said in cli.ok("doctor", task_id).out
    everything = cli.run("doctor")
    assert everything.code == 10
    assert "background_tool:pack, awaited by 1 task (live workers for background_tool" in everything.out
    assert new.poll() is None
    cli.worker("--app=app_pack")
    assert cli.ok("wait", task_id, "--timeout=60", "--json").record["result"] == "1.0 True"
    assert cli.task(task_id)["failures"] == 0


def test_a_worker_with_a_label_takes_what_needs_it_and_nothing_else(cli: Cli):
    refused = cli.run("worker", "--serves=label:no label", "--json")
    assert refused.code == 3
    assert "a label is" in refused.error["message"]
    assert cli.run("call", "add", "a=1", "--needs=a b", "--background", "--json").code == 3
    needy = cli.ok("call", "add", "a=1", "--needs=gpu", "--background")
    assert "--serves label:gpu" in needy.err
    assert not cli.worker_pids(), "nobody is started who would have to claim to have one"
    first = cli.start("worker", "--serves=label:gpu")
    assert first.stderr is not None
    line = first.stderr.readline()
    assert line.rstrip().endswith("; of what needs gpu"), line
    assert cli.ok("wait", needy.out.strip(), "--timeout=60", "--json").record["needs"] == "gpu"
    session = "import asyncio\nfrom example_app import app\nasync def main():\n"
    session += " async with app.open('.outrider/outrider.db', worker=False) as outrider:\n"
    session += "  print((await (await outrider.sessions.create()).spawn('add', a=1)).id)\nasyncio.run(main())"
    plain = cli.python(session).strip()
    assert "take only what needs a label: gpu" in cli.ok("doctor", plain).out
    (worker,) = cli.ok("workers", "--json").records
    assert (worker["labels"], worker["lost_after"], worker["held"]) == (["gpu"], 10.0, 0)
    shown = cli.ok("workers").out
    assert "lost after 10s" in shown
    assert "; of what needs gpu" in shown
    cli.worker("--serves=label:gpu", "--serves=label:none", "--idle-exit=0.1s")
    assert cli.ok("wait", plain, "--timeout=60", "--json").record["result"] == 1
