"""A task as one document goes on from its checkpoint on another database, and runs on one of the two alone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from outrider import Outrider, TaskContext, TaskFailed, TaskOptions
from outrider.agents.scripted import Tokens, Turn
from outrider.core.errors import (
    AlreadyExists,
    Conflict,
    IllegalMove,
    InvalidArguments,
    InvalidPath,
    TaskCanceled,
    UnknownName,
)
from outrider.core.meters import Amounts
from outrider.core.replay import replay
from outrider.core.task import key_within
from outrider.runtime.bounds import Bounds
from outrider.runtime.codec import decode, jsonable
from outrider.testing import Call, Reply, Store, TestRuntime, open_test, replies, script

pytestmark = pytest.mark.anyio

app = Outrider()
app.agent("listener", model="scripted:listener")
ran: list[str] = []


@pytest.fixture(autouse=True)
def clean() -> None:
    ran.clear()


def note(what: str) -> str:
    ran.append(what)
    return what


@app.tool
def echo(text: str) -> str:
    return note(text)


@app.tool
async def journey(task: TaskContext) -> list[str]:
    task.output("packed\n")
    done = [await task.step("pack", note, "pack")]
    child = await task.spawn("echo", text="child")
    (record,) = await task.wait_for([child])
    done += [record.id, await child.result()]
    await task.artifact("ticket", "one way")
    done += [message.text for message in await task.messages()]
    task.output("asking\n")
    done.append(await task.ask("Where to?", str))
    done.append((await task.files.read(f"/.tasks/{task.id}/ticket")).decode())
    return done


@app.tool
def look() -> str:
    return note("look")


@app.tool(requires_approval=True)
def confirm() -> str:
    return note("confirm")


@asynccontextmanager
async def two(store: Store = "memory") -> AsyncIterator[tuple[TestRuntime, TestRuntime]]:
    async with open_test(app, store=store) as here, open_test(app, store=store) as there:
        yield here, there


async def parked(here: TestRuntime) -> Any:
    session = await here.sessions.create(title="trip", labels={"team": "blue"})
    task = await session.spawn(journey)
    await here.run_until_idle()
    await task.message("quickly", sender="ann")
    await here.run_until_idle()
    return task


def through_a_file(document: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(document)))


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_parked_task_goes_on_from_its_checkpoint_on_another_database(store: Store):
    async with two(store) as (here, there):
        task = await parked(here)
        document = through_a_file(await task.export(events=True))
        loaded = await there.tasks.load(document)
        assert loaded.id == task.id
        await there.run_until_idle()
        there_task = await there.task(task.id)
        record, old = await there_task.record(), await task.record()
        same = {"spec", "display_name", "labels", "attempt", "failures", "created_at", "started_at", "input_request"}
        assert record.model_dump(include=same) == old.model_dump(include=same)
        assert (await there_task.attempts())[:1] == (await task.attempts())[:1]
        assert [each.text async for each in there.tasks.output(task.id, follow=False)] == ["packed\n", "asking\n"]
        await there_task.answer("Rome")
        result = await there_task.result()
        assert (result[0], result[2:]) == ("pack", ["child", "quickly", "Rome", "one way"])
        assert ran == ["pack", "child"]
        session = await there.sessions.get(task.session_id)
        assert (await session.record()).title == "trip"
        assert {step.attempt for step in await there_task.steps()} >= {1}


async def test_the_log_of_an_imported_task_replays_to_its_record():
    async with two("sqlite") as (here, there):
        task = await parked(here)
        await there.tasks.load(await task.export())
        rows = await there.services.views.events(task.session_id, task_id=task.id)
        stored = await there.tasks.get(task.id)
        told = replay((row.type, decode(row.data)) for row in rows)
        assert told == {name: jsonable(getattr(stored, name)) for name in ("input", "core", "live", "outcome")}


async def test_a_task_that_is_given_away_ends_here_and_runs_there_alone():
    async with two() as (here, there):
        task = await parked(here)
        document = await task.export()
        await here.tasks.give_away(document)
        with pytest.raises(TaskCanceled, match="moved"):
            await task.result()
        await there.tasks.load(document)
        await there.run_until_idle()
        await (await there.task(task.id)).answer("Rome")
        assert (await (await there.task(task.id)).result())[-2] == "Rome"


async def test_what_has_moved_on_since_its_export_cannot_be_given_away():
    async with two() as (here, _):
        task = await parked(here)
        document = await task.export()
        await task.answer("Oslo")
        assert "Oslo" in await task.result()
        with pytest.raises(Conflict):
            await here.tasks.give_away({**document})
        assert "Oslo" in await task.result()


async def test_an_ended_task_is_imported_with_its_result():
    async with two("sqlite") as (here, there):
        task = await parked(here)
        await task.answer("Oslo")
        result = await task.result()
        await there.tasks.load(through_a_file(await task.export()))
        assert await (await there.task(task.id)).result() == result
        assert await (await there.task(task.id)).delete() == 1


async def test_an_agent_goes_on_with_its_transcript():
    script("travel", replies(Reply(calls=(Call("look", {}),)), Reply(calls=(Call("confirm", {}),)), Reply("done")))

    async with two("sqlite") as (here, there):
        session = await here.sessions.create()
        task = await session.spawn_agent("travel", model="scripted:travel", tools=["look", "confirm"])
        await here.run_until_idle()
        assert (await task.record()).input_request is not None
        document = through_a_file(await task.export())
        await here.tasks.give_away(document)
        await there.tasks.load(document)
        await there.run_until_idle()
        moved = await there.task(task.id)
        await moved.answer(True)
        assert await moved.result() == "done"
        assert ran == ["look", "confirm"]


async def test_what_an_agent_has_spent_stays_spent_where_it_goes_and_counts_once():
    asked: list[int] = []

    def model(turn: Turn) -> Reply:
        asked.append(turn.number)
        if len(asked) == 1:
            return Reply("lost", delay=3600)
        tool = "confirm" if len(asked) == 2 else "look"
        return Reply(calls=(Call(tool, {}),), tokens=Tokens(100, 10))

    script("spender", model)

    async with two() as (here, there):
        session = await here.sessions.create(budget={"tokens": 99_999}, tree_budget={"tokens": 99_999, "seconds": 9})
        options = TaskOptions(budget={"requests": 3})
        task = await session.spawn_agent("Go.", model="scripted:spender", tools=["look", "confirm"], options=options)
        await here.until(lambda: bool(asked))
        await here.crash()
        await here.run_until_idle()
        left = await accounts(here, task)
        assert [(each.spent.requests, each.unknown.requests, each.held) for each in left] == [(2, 1, Amounts())] * 3
        document = through_a_file(await task.export())
        await here.tasks.give_away(document)
        await there.tasks.load(document)
        assert await accounts(there, task) == left
        moved = await there.task(task.id)
        opened = await there.sessions.get((await moved.record()).links.child_session_id or "")
        assert (await opened.record()).budget == {"tree": {"tokens": 99_999, "seconds": 9}}
        await moved.answer(True)
        with pytest.raises(TaskFailed) as failure:
            await moved.result()
        assert failure.value.kind == "budget_exceeded"
        assert len(asked) == 3, "one was left"
        assert [each.spent.requests for each in await accounts(there, task)] == [3, 3, 3]
        assert await accounts(here, task) == left


async def accounts(runtime: TestRuntime, task: Any) -> list[Any]:
    names = [f"task:{task.id}", f"session:{task.session_id}", f"tree:{task.session_id}"]
    found = await runtime.ledger.views.meters(names)
    return [found[name] for name in names]


async def test_the_budget_of_the_session_that_it_comes_into_holds_for_it():
    look_first = Reply(calls=(Call("look", {}),), tokens=Tokens(100, 10))
    script("once", replies(look_first, Reply(calls=(Call("confirm", {}),)), Reply("done")))
    async with two() as (here, there):
        session = await here.sessions.create(tree_budget={"tokens": 1})
        other = await here.sessions.create()
        task = await other.spawn_agent("Go.", model="scripted:once", tools=["look", "confirm"])
        await here.run_until_idle()
        document = through_a_file(await task.export())
        document["task"]["input"]["budget"] = (await session.record()).budget
        del document["taken"]  # of an older program
        await there.sessions.create(id="session_new", budget={"requests": 1, "seconds": 99})
        await there.tasks.load(document, session_id="session_new")
        moved = await there.task(task.id)
        assert (await moved.record()).budget == {"session": {"requests": 1, "seconds": 99}}
        (account,) = (await moved.spent()).accounts
        assert (account.name, account.spent["requests"], account.spent["tokens"]) == ("session:session_new", 1, 110)
        await moved.answer(True)
        with pytest.raises(TaskFailed, match="session:session_new has 1 requests"):
            await moved.result()


async def test_into_another_session_it_comes_whole():
    async with two() as (here, there):
        task = await parked(here)
        await there.tasks.load(await task.export(), session_id="session_new")
        await there.run_until_idle()
        moved = await there.task(task.id)
        assert moved.session_id == "session_new"
        await moved.answer("Rome")
        assert (await moved.result())[-1] == "one way"


async def test_what_cannot_be_exported_is_refused():
    async with open_test(app, worker=False) as here:
        session = await here.sessions.create()
        first = await session.spawn(echo, text="a")
        second = await session.spawn(echo, text="b", options=TaskOptions(depends_on=(first.id,)))
        with pytest.raises(IllegalMove, match="waits"):
            await second.export()
        await here.services.ledger.claim(*_claim(here))
        with pytest.raises(IllegalMove, match="held"):
            await first.export()


def _claim(runtime: TestRuntime) -> Any:
    from outrider.core.events import Claimed
    from outrider.core.ledger import Claim
    from outrider.core.machine import apply

    now = runtime.clock.now()
    return Claim("worker_x", ("background_tool:echo",), 1, now), lambda task: apply(task, Claimed("worker_x"), now)


async def test_what_is_here_already_or_cannot_run_here_is_refused():
    async with two() as (here, there):
        task = await parked(here)
        document = await task.export()
        with pytest.raises(AlreadyExists):
            await here.tasks.load(document)
        await there.tasks.load(document)
        with pytest.raises(AlreadyExists):
            await there.tasks.load(document)
        async with open_test(Outrider()) as stranger:
            with pytest.raises(UnknownName):
                await stranger.tasks.load(document)
            assert await stranger.tasks.list() == []
            await stranger.tasks.load(document, force=True)
            assert task.id in {each.id for each in await stranger.tasks.list()}


BROKEN: dict[str, Any] = {
    "no document": lambda document: [],
    "another format": lambda document: {**document, "format": "other"},
    "a later version": lambda document: {**document, "version": 2},
    "no task": lambda document: {name: document[name] for name in document if name != "task"},
    "no id": lambda document: {**document, "task": {**document["task"], "id": "../../etc"}},
    "a state that is none": lambda document: _with_core(document, state="lost"),
    "a journal that is none": lambda document: {**document, "steps": "all"},
    "half a row": lambda document: {**document, "steps": [{"position": "x"}]},
    "a file elsewhere": lambda document: {**document, "files": [{**document["files"][0], "path": "/.tasks/x/y"}]},
    "a file that is not base64": lambda document: {**document, "files": [{**document["files"][0], "content": "!"}]},
    "a child that lives": lambda document: {**document, "children": [document]},
    "a child that is text": lambda document: {**document, "children": ["x"]},
    "half a transcript": lambda document: {
        **document,
        "child_session": {**document["session"], "id": "session_x", "transcript": [{}]},
    },
    "a session that it has not opened": lambda document: {
        **document,
        "child_session": {**document["session"], "id": "session_x", "transcript": []},
    },
    "itself among its children": lambda document: {
        **document,
        "children": [
            {**document["children"][0], "task": {**document["children"][0]["task"], "id": document["task"]["id"]}}
        ],
    },
    "a moment that never comes": lambda document: _with_core(document, started_at=1 << 60),
    "more than a number": lambda document: _with_core(document, due_at=1 << 70),
    "fewer failures than none": lambda document: _with_core(document, failures=-9),
    "an attempt yet to come": lambda document: {
        **document,
        "attempts": [{**document["attempts"][0], "attempt": 99}],
    },
    "an attempt twice": lambda document: {**document, "attempts": document["attempts"][:1] * 2},
    "attempts of what never started": lambda document: _with_core(
        {**document, "attempts": [{**document["attempts"][0], "attempt": document["task"]["core"]["attempt"]}]},
        started_at=None,
    ),
    "a cancel that nobody heeds": lambda document: _with_core(document, cancel_requested_at=1),
    "an end while it lives": lambda document: _with_core(document, finished_at=1),
    "output that overlaps": lambda document: {**document, "output": document["output"] * 2},
    "a question twice": lambda document: {**document, "requests": document["requests"] * 2},
    "a backoff that is no number": lambda document: _with_retry(document, factor=float("nan")),
    "a backoff that soon is none": lambda document: _with_retry(document, factor=1e300),
    "progress without end": lambda document: _with_live(document, progress={"current": float("inf")}),
    "less taken than nothing": lambda document: {**document, "taken": {"spent": {"tokens": -1}}},
    "more lost than taken": lambda document: {**document, "taken": {"spent": {}, "unknown": {"cost": 1}}},
    "taken that is none": lambda document: {**document, "taken": "much"},
    "a budget that is none": lambda document: _with_input(document, budget={"token": 1}),
    "a session's budget that is none": lambda document: {
        **document,
        "session": {**document["session"], "budget": {"tree": {"tokens": "9"}}},
    },
    "a command that runs elsewhere": lambda document: {
        **document,
        "steps": [*document["steps"], {**document["steps"][0], "position": "process!1", "verb": "outlives"}],
    },
}


def _with_core(document: dict[str, Any], **core: Any) -> dict[str, Any]:
    return {**document, "task": {**document["task"], "core": {**document["task"]["core"], **core}}}


def _with_retry(document: dict[str, Any], **retry: Any) -> dict[str, Any]:
    given = document["task"]["input"]
    given = {**given, "retry": {**given.get("retry", {}), **retry}}
    return {**document, "task": {**document["task"], "input": given}}


def _with_input(document: dict[str, Any], **given: Any) -> dict[str, Any]:
    return {**document, "task": {**document["task"], "input": {**document["task"]["input"], **given}}}


def _with_live(document: dict[str, Any], **live: Any) -> dict[str, Any]:
    return {**document, "task": {**document["task"], "live": {**document["task"].get("live", {}), **live}}}


async def test_a_document_that_is_not_whole_is_refused_and_nothing_is_made():
    async with two() as (here, there):
        document = await (await parked(here)).export()
        for name, breaking in BROKEN.items():
            with pytest.raises((InvalidArguments, InvalidPath, IllegalMove)) as refusal:
                await there.tasks.load(breaking(through_a_file(document)))
            assert refusal.value.code in ("invalid_arguments", "invalid_path", "illegal_move"), name
            assert await there.tasks.list() == [], name
            assert await there.sessions.list() == [], name


async def test_a_document_takes_nobody_elses_question_or_session():
    async with two() as (here, there):
        document = await (await parked(here)).export()
        victim = await parked(there)
        (asked,) = await victim.requests()
        own = document["requests"][0]["id"]
        forged = json.loads(json.dumps(document).replace(own, asked.id))
        with pytest.raises(AlreadyExists, match="question"):
            await there.tasks.load(forged)
        linked = through_a_file(document)
        linked["task"]["live"]["links"]["child_session_id"] = victim.session_id
        with pytest.raises(AlreadyExists, match="session"):
            await there.tasks.load(linked)
        assert await victim.requests() == [asked]
        assert [
            task.id for task in await there.tasks.list() if task.kind == "background_tool" and not task.is_terminal
        ] == [victim.id]


async def test_a_document_brings_no_key_of_somebody_else_along():
    options = TaskOptions(concurrency_key="door", delay=3600)
    async with two() as (here, there):
        session = await here.sessions.create(organization_id="org_a")
        task = await session.spawn("echo", text="a", options=options)
        document = await here.tasks.export(task.id)
        assert document["task"]["input"]["concurrency_key"] == key_within("door", "org_a")
        plain = {**document["task"], "id": "task_plain"}
        plain = {**plain, "input": {**plain["input"], "concurrency_key": "door"}}
        guest = there.within(Bounds("org_b"))
        for each in (document, {**document, "task": plain}):
            made = await guest.tasks.load(each, session_id="session_b")
            assert made.input.concurrency_key == key_within("door", "org_b")
        kept = await here.tasks.load({**document, "task": plain})
        assert kept.input.concurrency_key == "door"


async def test_a_turn_that_was_taken_may_move_and_the_session_that_it_comes_into_goes_on_taking_its_own():
    script("listener", lambda turn: Reply(f"You said {turn.prompt}."))
    async with two() as (here, there):
        for runtime in (here, there):
            await runtime.sessions.create(id="session_talk", agent="listener")
        turn = await (await here.sessions.get("session_talk")).send("one")
        with pytest.raises(IllegalMove, match="takes the turn of its session"):
            await turn.export()
        assert await turn.result() == "You said one."
        await there.tasks.load(through_a_file(await turn.export()))
        talk = await there.sessions.get("session_talk")
        assert await (await talk.send("two")).result() == "You said two."
        assert {each.idempotency_key for each in await talk.tasks()} == {None}


async def test_no_key_of_anybody_keeps_a_session_from_taking_its_turns():
    script("listener", lambda _: Reply("heard"))
    async with two() as (here, _):
        session = await here.sessions.create(agent="listener")
        options = TaskOptions(idempotency_key="turn after none", wake="on_terminal")
        await (await session.create("external", {}, options=options)).cancel()
        await here.run_until_idle()
        assert [each.state for each in await session.tasks(kind="turn")] == ["succeeded"]
        with pytest.raises(InvalidArguments, match="has a character in it that no key has"):
            await session.spawn(echo, text="x", options=TaskOptions(idempotency_key="\x01turn after none"))
