"""A session as a stream of records: all of it, in the words of its records, and an end that says how much there was."""

from __future__ import annotations

from base64 import b64decode
from collections import Counter
from typing import Any

import pytest

from outrider import Outrider, SessionHandle, TaskContext
from outrider.core.errors import NotFound
from outrider.core.values import JSONObject
from outrider.testing import Reply, TestRuntime, open_test, replies, script

pytestmark = pytest.mark.anyio

app = Outrider()


@app.tool
async def work(task: TaskContext, count: int) -> int:
    task.output("at work")
    await task.step("one", len, "abc")
    await task.post("done soon")
    await task.ask("Go on?", bool)
    return count


async def filled(runtime: TestRuntime) -> SessionHandle:
    script("greeter", replies(Reply("hello")))
    session = await runtime.sessions.create(title="all of it")
    await session.write_file("/notes.bin", b"\x00\xff")
    asking = await session.spawn(work, count=1)
    await runtime.run_until_idle()
    await asking.answer(True)
    await asking.result()
    await (await session.spawn_agent("say hello", model="scripted:greeter")).result()
    return session


async def exported(session: SessionHandle, **options: Any) -> list[JSONObject]:
    return [record async for record in session.export(**options)]


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_all_that_is_in_a_session_and_below_it_is_exported_and_counted(store: Any):
    async with open_test(app, store=store) as runtime:
        session = await filled(runtime)
        records = await exported(session)
        first, *between, last = records
        assert (first["record"], first["session_id"], last["record"]) == ("export", session.id, "end")
        counts = Counter(record["record"] for record in between)
        assert last["counts"] == counts
        assert {name: counts[name] for name in ("session", "task", "request", "message")} == {
            "session": 2,
            "task": 2,
            "request": 1,
            "message": 1,
        }
        assert "at work" in {record["text"] for record in between if record["record"] == "output"}
        assert counts["attempt"] == sum([len(await runtime.tasks.attempts(task.id)) for task in await session.tasks()])
        (notes,) = [record for record in between if record.get("path") == "/notes.bin"]
        assert b64decode(str(notes["content"])) == b"\x00\xff"
        said = [record["message"] for record in between if record["record"] == "transcript"]
        assert "hello" in str(said)
        events = [record for record in between if record["record"] == "event"]
        log = [record["seq"] for record in events if record["session_id"] == session.id]
        assert log == list(range(1, (await session.record()).last_seq + 1))
        steps = {record["position"] for record in between if record["record"] == "step"}
        assert "one" in steps
        assert {record["id"] for record in between if record["record"] == "session"} > {session.id}
        alone = await exported(session, tree=False)
        assert [record["id"] for record in alone if record["record"] == "session"] == [session.id]


async def test_a_session_that_is_not_there_is_not_exported():
    async with open_test(app) as runtime:
        with pytest.raises(NotFound):
            await anext(runtime.sessions.export("session_none"))
