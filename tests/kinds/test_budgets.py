"""Budgets of agents, and what keeps them going: rates, retries, fallbacks, breakers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from outrider import Outrider, Runtime, SessionHandle, State, TaskFailed, TaskOptions, WorkerSettings
from outrider.agents import scripted
from outrider.agents.scripted import Call, Failure, Reply, Script, Tokens, Turn, replies
from outrider.core.errors import InvalidArguments
from outrider.core.meters import Account, Breaker, Line
from outrider.testing import open_test

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
QUICK = WorkerSettings(park_grace=0.02, model_backoff=0.01, model_answer_tokens=100)
LOOK = Reply("Looking.", calls=(Call("look", {}),), tokens=Tokens(100, 10))
DONE = Reply("done", tokens=Tokens(100, 10))


def told(name: str, *sequence: Reply) -> str:
    scripted.register(name, replies(*sequence))
    return f"scripted:{name}"


def script(name: str, script: Script) -> str:
    scripted.register(name, script)
    return f"scripted:{name}"


@pytest.fixture
def app() -> Outrider:
    app = Outrider(QUICK)

    @app.tool
    async def look() -> str:
        """Look."""
        return "nothing"

    return app


@asynccontextmanager
async def at_work(app: Outrider) -> AsyncIterator[tuple[Runtime, SessionHandle]]:
    async with app.open("memory://") as outrider:
        yield outrider, await outrider.sessions.create()


async def fails(task: Any) -> TaskFailed:
    with pytest.raises(TaskFailed) as failure:
        await task.result(timeout=30)
    return failure.value


async def account(outrider: Runtime, name: str) -> Account:
    found = (await outrider.ledger.views.meters([name]))[name]
    assert isinstance(found, Account)
    return found


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        ({"tokens": 400}, "tokens"),
        ({"requests": 2}, "requests"),
        ({"iterations": 2}, "iterations"),
        ({"cost": 0.000_4}, "cost"),
    ],
)
async def test_an_agent_whose_budget_is_spent_ends_failed_with_what_it_has_so_far(app, budget, limit):
    model = told(f"spends {limit}", *[LOOK] * 5)
    app.model(model, input_price=1, output_price=1)
    async with at_work(app) as (_, session):
        options = TaskOptions(budget=budget, wake="on_terminal")
        task = await session.spawn_agent("Go.", model=model, tools=["look"], options=options)
        assert (await fails(task)).kind == "budget_exceeded"
        record = await task.record()
        details = record.error.details if record.error is not None else {}
        assert (details["account"], details["limit"]) == (f"task:{task.id}", limit)
        assert (record.iterations, record.summary, record.attempt) == (2, "Looking.", 1)
        assert record.error is not None
        assert record.error.message.startswith(f"the budget of task:{task.id} has ")
        assert record.budget == budget
        spent = await task.spent()
        assert (spent.requests, spent.input_tokens, round(spent.cost or 0, 9)) == (2, 200, 0.000_22)
        assert spent.accounts[0].spent == {"tokens": 220, "cost": 0.000_22, "requests": 2, "iterations": 2}
        assert not any(spent.accounts[0].reserved.values())


async def test_an_agent_whose_wall_time_is_over_is_refused_its_next_call_and_keeps_what_it_has(app):
    @app.tool(requires_approval=True)
    async def pay() -> str:
        """Pay."""
        return "paid"

    asking = Reply("Asking.", calls=(Call("pay", {}),), tokens=Tokens(100, 10))
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        options = TaskOptions(budget={"seconds": 60})
        task = await session.spawn_agent("Go.", model=told("patient", asking, DONE), tools=["pay"], options=options)
        await runtime.run_until_idle()
        await runtime.advance(timedelta(seconds=60))
        await task.answer(True)
        failure = await fails(task)
        assert (failure.kind, failure.details["limit"]) == ("budget_exceeded", "seconds")
        record = await task.record()
        assert (record.summary, record.usage.requests) == ("Asking.", 1)


async def test_the_turns_of_a_session_spend_what_it_and_its_tree_may(app):
    app.agent("talker", model=told("talker", DONE))
    async with app.open("memory://") as outrider:
        session = await outrider.sessions.create(agent="talker", budget={"requests": 3}, tree_budget={"tokens": 10_000})
        for _ in range(2):
            assert await (await session.send("Well?")).result(timeout=30) == "done"
        assert (await fails(await session.send("Well?"))).kind == "budget_exceeded"
        (own,) = (await session.usage()).accounts
        (tree,) = (await session.usage(tree=True)).accounts
        assert (own.spent["requests"], tree.spent["tokens"]) == (3, 330)


async def test_the_children_of_a_tree_never_pass_its_ceiling_together(app):
    model = told("child", LOOK, DONE)
    async with app.open("memory://") as outrider:
        session = await outrider.sessions.create(tree_budget={"tokens": 10_000})
        tasks = [await session.spawn_agent("Go.", model=model, tools=["look"]) for _ in range(64)]
        records = [await task.wait(timeout=60) for task in tasks]
        errors = {record.error.kind for record in records if record.error is not None}
        assert errors == {"budget_exceeded"}
        usage = await session.usage(tree=True)
        (tree,) = usage.accounts
        assert tree.spent["tokens"] == usage.input_tokens + usage.output_tokens
        assert 9_000 < tree.spent["tokens"] <= 10_000
        assert tree.is_marked
        assert (await session.record()).budget == {"tree": {"tokens": 10_000}}
        assert (await outrider.sessions.usage(session.id)).accounts == []


async def test_a_child_session_spends_from_the_tree_of_its_root(app):
    async with app.open("memory://") as outrider:
        session = await outrider.sessions.create(budget={"tokens": 999}, tree_budget={"tokens": 5000})
        task = await session.spawn_agent("Go.", model=told("one", DONE))
        await task.result(timeout=30)
        child = await outrider.sessions.get((await task.record()).links.child_session_id or "")
        below = await child.spawn_agent("Go.", model="scripted:one")
        await below.result(timeout=30)
        assert (await account(outrider, f"tree:{session.id}")).spent.tokens == 220
        assert (await account(outrider, f"session:{session.id}")).spent.tokens == 110


async def test_the_soft_mark_wakes_the_session_once_while_the_agent_goes_on(app):
    model = told("soft", *[LOOK] * 6, DONE)
    async with at_work(app) as (_, session):
        options = TaskOptions(budget={"tokens": 2000, "soft": 0.1}, wake="on_activity")
        task = await session.spawn_agent("Go.", model=model, tools=["look"], options=options)
        seen: list[str] = []
        async for event in task.events():
            entries = await session.inbox.receive()
            seen += [entry.reason for entry in entries]
            await session.inbox.acknowledge([entry.receipt or "" for entry in entries])
            if event.task is not None and event.task.state is State.SUCCEEDED:
                break
        seen += [entry.reason for entry in await session.inbox.list()]
        assert [reason for reason in seen if reason == "budget"] == ["budget"]


@pytest.mark.parametrize(("said", "counted"), [(-(10**6), 0), (10**30, 10**12)])
async def test_a_provider_that_counts_what_cannot_be_gives_no_budget_back_and_fails_no_call(app, said, counted):
    model = told(f"garbled {counted}", Reply("Done.", tokens=Tokens(said, said)))
    async with at_work(app) as (_, session):
        task = await session.spawn_agent("Go.", model=model, options=TaskOptions(budget={"tokens": 5000}))
        assert await task.result(timeout=10) == "Done."
        spent = await task.spent()
        assert (spent.input_tokens, spent.accounts[0].spent["tokens"]) == (counted, 2 * counted)


async def test_an_agent_without_a_budget_charges_nothing(app):
    async with open_test(app) as runtime:
        (crew,) = runtime._crews

        async def charge(charges: Any) -> None:
            raise AssertionError("nothing is to be charged")

        crew.probe.__dict__["charge"] = charge
        task = await (await runtime.sessions.create()).spawn_agent(
            "Go.", model=told("free", LOOK, DONE), tools=["look"]
        )
        await runtime.run_until_idle()
        assert await task.result() == "done"


async def test_a_journaled_call_is_not_reserved_again_by_the_attempt_that_resumes_it(app):
    model = told("resumed", LOOK, DONE)
    begun: list[int] = []

    @app.tool
    async def linger() -> str:
        """Wait for the crash, once."""
        begun.append(1)
        if len(begun) == 1:
            await asyncio.Event().wait()
        return "ok"

    model = told("resumed", Reply(calls=(Call("linger", {}),), tokens=Tokens(100, 10)), DONE)
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn_agent(
            "Go.", model=model, tools=["linger"], options=TaskOptions(budget={"requests": 2})
        )
        await runtime.until(lambda: bool(begun))
        await runtime.crash()
        await runtime.run_until_idle()
        assert await task.result() == "done"
        found = await account(runtime, f"task:{task.id}")
        assert (found.spent.requests, found.unknown.requests) == (2, 0)


KILLED = """
import asyncio, sys
from tests.kinds.test_budgets import slow_app
from outrider import TaskOptions

async def main():
    async with slow_app().open(sys.argv[1]) as outrider:
        session = await outrider.sessions.create(id="session_a", tree_budget={"tokens": 20_000})
        await session.spawn_agent("Go.", model="scripted:slow", options=TaskOptions(id="task_slow"))
        await asyncio.Event().wait()

asyncio.run(main())
"""


def slow_app() -> Outrider:
    def slow(turn: Turn) -> Reply:
        if turn.attempt == 1:
            print("asked", flush=True)
            return Reply("late", delay=3600)
        return DONE

    scripted.register("slow", slow)
    return Outrider()


@pytest.mark.slow
async def test_a_worker_killed_between_reserving_and_settling_leaves_a_call_that_counts_in_full_as_unknown(tmp_path):
    url = f"sqlite:///{tmp_path}/work.db"
    victim = subprocess.Popen([sys.executable, "-c", KILLED, url], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert victim.stdout is not None
        assert await asyncio.to_thread(victim.stdout.readline) == b"asked\n"
        async with slow_app().open(url) as outrider:
            held = (await account(outrider, "tree:session_a")).held
            assert (held.requests, held.tokens > 4096) == (1, True)
            victim.kill()
            task = await outrider.task("task_slow")
            assert await task.result(timeout=60) == "done"
            found = await account(outrider, "tree:session_a")
            assert (found.held.tokens, found.unknown.tokens, found.spent.tokens) == (0, held.tokens, held.tokens + 110)
            assert (await task.record()).attempt == 2
    finally:
        victim.kill()
        victim.communicate()


async def test_a_full_rate_makes_an_agent_park_and_go_on_and_never_fail(app):
    model = told("rated", *[LOOK] * 3, DONE)
    app.model(model, requests_per_minute=2)
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        tasks = [await session.spawn_agent("Go.", model=model, tools=["look"]) for _ in range(2)]
        await runtime.run_until_idle()
        usage = await session.usage()
        assert usage.requests == 2
        records = [await task.record() for task in tasks]
        assert {record.state for record in records} == {State.RUNNING}
        assert {record.phase for record in records} == {"sleeping"}
        for done in (4, 6, 8):
            await runtime.advance(timedelta(seconds=63))
            assert (await session.usage()).requests == done
        assert [await task.result() for task in tasks] == ["done", "done"]
        assert {(await task.record()).failures for task in tasks} == {0}


async def test_only_who_has_no_other_model_stands_in_line_for_one_that_is_at_its_rate(app):
    rated, other = told("at its rate", *[DONE] * 3), told("other", DONE)
    app.model(rated, requests_per_minute=1)
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        for model in (rated, [rated, other], rated):
            await session.spawn_agent("Go.", model=model)
            await runtime.run_until_idle()
        tasks = {task.id: task for task in await runtime.tasks.list()}
        (waiting,) = (id for id, task in tasks.items() if not task.is_terminal)
        (line,) = (await runtime.ledger.views.meters([f"line:model:{rated}"])).values()
        assert isinstance(line, Line)
        assert [place.task_id for place in line.places] == [waiting]
        await runtime.advance(timedelta(seconds=63))
        assert (await (await runtime.task(waiting)).record()).state == State.SUCCEEDED


async def test_a_call_whose_provider_fails_is_made_again_and_asks_no_attempt_of_the_task(app):
    asked: list[int] = []

    def flaky(turn: Turn) -> Reply:
        asked.append(turn.number)
        return Reply(failure=Failure(503)) if len(asked) < 3 else DONE

    async with at_work(app) as (_, session):
        task = await session.spawn_agent("Go.", model=script("flaky", flaky), options=TaskOptions(max_failures=1))
        assert await task.result(timeout=30) == "done"
        assert len(asked) == 3


async def test_tries_are_counted_across_parking_and_then_the_attempt_fails(app):
    asked: list[int] = []

    def broken(turn: Turn) -> Reply:
        asked.append(turn.number)
        return Reply(failure=Failure(503))

    app.settings = WorkerSettings(park_grace=0, model_backoff=20, model_tries=3, breaker_failures=100)
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn_agent("Go.", model=script("broken", broken), options=TaskOptions(max_failures=1))
        await runtime.run_until_idle()
        for _ in range(3):
            await runtime.advance(timedelta(minutes=1))
        record = await task.record()
        assert (record.state, len(asked), record.failures) == (State.FAILED, 3, 1)


async def test_where_one_model_fails_the_next_of_its_chain_is_asked(app):
    broken = script("first", lambda turn: Reply(failure=Failure(401)))
    good = told("second", DONE)
    app.agent("chained", model=[broken, good])
    async with at_work(app) as (_, session):
        task = await session.spawn_agent("Go.", agent="chained")
        assert await task.result(timeout=30) == "done"
        assert (await task.record()).model == good
        task = await session.spawn_agent("Go.", model=[broken, broken])
        assert (await fails(task)).kind == "exception"


async def test_a_provider_that_failed_too_often_is_not_asked_by_anybody_until_it_has_rested(app):
    asked: list[int] = []
    works: list[bool] = []

    def provider(turn: Turn) -> Reply:
        asked.append(turn.number)
        return DONE if works else Reply(failure=Failure(500, "out of order"))

    app.settings = WorkerSettings(park_grace=0, model_backoff=0, model_tries=9, breaker_failures=2, breaker_rest=30)
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        model = script("provider", provider)
        first = await session.spawn_agent("Go.", model=model)
        await runtime.run_until_idle()
        breaker = (await runtime.ledger.views.meters(["provider:scripted"]))["provider:scripted"]
        assert isinstance(breaker, Breaker)
        assert (breaker.failures, len(asked)) == (2, 2)
        assert "out of order" in breaker.reason
        second = await session.spawn_agent("Go.", model=model)
        await runtime.run_until_idle()
        assert len(asked) == 2, "nobody asks while it rests"
        works.append(True)
        await runtime.advance(timedelta(seconds=31))
        await runtime.advance(timedelta(seconds=31))
        assert [await task.result() for task in (first, second)] == ["done", "done"]
        assert len(asked) == 4
        breaker = (await runtime.ledger.views.meters(["provider:scripted"]))["provider:scripted"]
        assert breaker == Breaker("provider:scripted")


async def test_a_provider_that_answers_the_probe_is_asked_again_by_all_though_it_refuses_what_it_was_asked(app):
    said = [Reply(failure=Failure(500)), Reply(failure=Failure(400, "not like this")), DONE]
    app.settings = WorkerSettings(park_grace=0, model_backoff=0, model_tries=9, breaker_failures=1, breaker_rest=30)
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn_agent("Go.", model=script("refusing", lambda turn: said.pop(0)))
        await runtime.run_until_idle()
        await runtime.advance(timedelta(seconds=31))
        assert (await task.record()).state is State.FAILED
        other = await session.spawn_agent("Go.", model=script("refusing", lambda turn: said.pop(0)))
        await runtime.run_until_idle()
        assert (await other.record()).state is State.SUCCEEDED


async def test_who_may_try_a_broken_provider_and_has_no_budget_for_it_leaves_that_to_another(app):
    said = [Reply(failure=Failure(500)), DONE]
    app.settings = WorkerSettings(park_grace=0, model_backoff=0, model_tries=9, breaker_failures=1, breaker_rest=30)
    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        first = await session.spawn_agent("Go.", model=script("broke", lambda turn: said.pop(0)))
        await runtime.run_until_idle()
        await runtime.advance(timedelta(seconds=29))
        options = TaskOptions(budget={"tokens": 1}, delay=timedelta(seconds=1), priority=9)
        poor = await session.spawn_agent("Go.", model="scripted:broke", options=options)
        await runtime.advance(timedelta(seconds=1.001))
        assert (await fails(poor)).kind == "budget_exceeded"
        await runtime.advance(timedelta(seconds=1))
        assert (await first.record()).state is State.SUCCEEDED


@pytest.mark.parametrize(
    "budget",
    [
        {},
        {"soft": 0.5},
        {"token": 1},
        {"tokens": -1},
        {"tokens": 1.5},
        {"tokens": True},
        {"cost": "1"},
        {"cost": float("nan")},
        {"tokens": 1, "soft": 0},
        {"tokens": 1, "soft": 2},
        [("tokens", 1)],
    ],
)
async def test_a_budget_that_bounds_nothing_or_makes_no_sense_is_refused(app, budget):
    async with at_work(app) as (outrider, session):
        with pytest.raises(InvalidArguments):
            await session.spawn_agent("Go.", model=told("never", DONE), options=TaskOptions(budget=budget))
        with pytest.raises(InvalidArguments):
            await outrider.sessions.create(budget=budget)


async def test_a_bound_on_the_cost_of_a_model_without_a_price_fails_closed(app):
    async with at_work(app) as (_, session):
        model = told("unpriced", DONE)
        task = await session.spawn_agent("Go.", model=model, options=TaskOptions(budget={"cost": 5}))
        failure = await fails(task)
        assert (failure.kind, (await task.record()).usage.requests) == ("rejected", 0)
        assert "app.model" in str(failure)


async def test_the_soft_mark_of_a_session_has_its_agent_take_a_turn(app):
    heard: list[str] = []

    def manager(turn: Turn) -> Reply:
        heard.append(turn.prompt)
        return Reply("noted", tokens=Tokens(1, 1))

    app.agent("manager", model=script("manager", manager))
    async with open_test(app) as runtime:
        session = await runtime.sessions.create(agent="manager", tree_budget={"tokens": 1000, "soft": 0.2})
        await session.spawn_agent("Go.", model=told("worker", LOOK, DONE), tools=["look"])
        await runtime.run_until_idle()
        (wake,) = heard
        assert 'reason="budget"' in wake
        assert (await session.usage()).requests == 3
