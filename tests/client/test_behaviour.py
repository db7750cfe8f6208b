"""What the façade promises, kept by a `Runtime` and by a `Client` alike: every test runs on both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any, cast

import pytest

from outrider import Outrider, State, TaskCanceled, TaskFailed, TaskOptions, WaitTimeout, WorkerSettings
from outrider.agents.engine import said_in
from outrider.client import connection
from outrider.core.errors import (
    AddressRefused,
    AlreadyExists,
    Conflict,
    IdempotencyConflict,
    IllegalMove,
    InUse,
    InvalidAnswer,
    InvalidArguments,
    InvalidLink,
    InvalidPath,
    LeaseLost,
    LinkExpired,
    NotEnded,
    NotFound,
    Outdated,
    OutriderError,
    RequestClosed,
    SessionClosed,
    TaskFinished,
    TooLarge,
    UnknownName,
)
from outrider.core.ledger import TaskFilter
from outrider.runtime.tasks import Order
from outrider.runtime.webhooks.duty import Webhooking
from tests.client.stage import WAYS, Way, by, opened
from tests.facts import until
from tests.webhooks.receivers import LOOPBACK, receiving, status

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("way", WAYS)]


@pytest.fixture
async def outrider(way: Way) -> AsyncIterator[Any]:
    async with opened(way) as found:
        yield found


@pytest.fixture
async def idle(way: Way) -> AsyncIterator[Any]:
    """Without a worker: what is created stays queued."""
    async with opened(way, worker=False) as found:
        yield found


# --- sessions --------------------------------------------------------------------------------------------


async def test_a_session_has_what_it_was_created_with_and_is_created_once(idle: Any):
    made = await idle.sessions.create(title="Ünïcode", labels={"a": "1"}, budget={"tokens": 9})
    record = await made.record()
    assert (record.title, record.labels, record.status) == ("Ünïcode", {"a": "1"}, "idle")
    assert record.budget["session"] == {"tokens": 9}
    named = await idle.sessions.create(id="session_mine")
    assert (await idle.sessions.create(id="session_mine")).id == named.id == "session_mine"
    assert [each.id for each in await idle.sessions.list(limit=1)] == [named.id]
    assert [each.id for each in await idle.sessions.list(after=named.id)] == [made.id]
    assert (await (await idle.sessions.get(made.id)).record()) == record


async def test_a_session_or_task_that_is_not_there_is_not_found(idle: Any):
    for noun, ask in (
        ("session", idle.sessions.get("session_none")),
        ("session", idle.sessions.delete("session_none")),
        ("task", idle.tasks.get("task_none")),
        ("task", idle.task("task_none")),
        ("task", idle.tasks.cancel("task_none")),
        ("task", idle.tasks.result("task_none")),
        ("task", idle.tasks.answer("task_none", 1)),
        ("task", idle.tasks.record("no id of ours/at all?")),
        ("task", anext(idle.tasks.events("task_none"))),
    ):
        with pytest.raises(NotFound) as told:
            await ask
        assert told.value.code == f"{noun}_not_found"


async def test_ugly_arguments_are_refused_and_change_nothing(idle: Any):
    session = await idle.sessions.create()
    surrogate = "\ud800"
    for ask in (
        idle.sessions.create(title=surrogate),
        idle.sessions.create(id="no id/at all"),
        idle.sessions.create(budget={"colour": 1}),
        idle.tasks.get(None),
        idle.tasks.get(7),
        idle.tasks.list(colour="red"),
        idle.tasks.list(limit=0),
        idle.tasks.list(states=["dead"]),
        idle.tasks.wait("task_x"),
        idle.tasks.cancel_many(),
        idle.tasks.cancel_many(["task_x"], filter=TaskFilter()),
        idle.tasks.messages("task_x", direction="sideways"),
        idle.tasks.prune(-1),
        idle.tasks.prune(1, states=["queued"]),
        session.create("external", {}, options=None),
        session.create("external", {}, options=TaskOptions(priority=10**9)),
        session.create("external", {}, options=TaskOptions(delay=-1)),
        session.create("external", {}, options=TaskOptions(wake=cast("Any", "loudly"))),
        session.create("external", {"x": float("nan")}),
        session.create("external", {"x": object()}),
        session.spawn_process(command="ls"),
        session.close(tasks="kill"),
        idle.queue.limit("k", concurrency=-1),
        idle.queue.pause(),
        idle.stats(0),
    ):
        with pytest.raises(InvalidArguments):
            await ask
    assert await session.tasks() == []


async def test_a_session_gets_another_title_and_other_labels_and_keeps_what_is_not_named(idle: Any):
    session = await idle.sessions.create(title="old", labels={"a": "1", "b": "2"})
    record = await session.update(labels={"b": None, "c": 3})
    assert (record.title, record.labels) == ("old", {"a": "1", "c": "3"})
    record = await idle.sessions.update(session.id, title="new")
    assert (record.title, record.labels) == ("new", {"a": "1", "c": "3"})
    assert (await session.update(title="")).title is None
    for wrong in ({"title": 3}, {"labels": ["a"]}, {"labels": {3: "a"}}):
        with pytest.raises(InvalidArguments):
            await session.update(**wrong)
    with pytest.raises(TooLarge):
        await session.update(labels={"a": "x" * (1 << 20)})
    with pytest.raises(NotFound):
        await idle.sessions.update("session_none", title="new")
    assert (await session.record()).labels == {"a": "1", "c": "3"}


async def test_a_closed_session_takes_nothing_until_it_is_reopened(idle: Any):
    session = await idle.sessions.create()
    task = await session.create("external", {})
    with pytest.raises(NotEnded):
        await session.close(tasks="refuse")
    assert (await session.close()).status == "closed"
    with pytest.raises(SessionClosed):
        await session.create("external", {})
    assert (await session.reopen()).status == "idle"
    assert (await session.close(tasks="cancel")).closed_at is not None
    assert (await task.record()).state == "canceled"


async def test_a_session_is_deleted_whole_and_not_while_a_task_lives(idle: Any):
    session = await idle.sessions.create()
    await session.create("external", {})
    with pytest.raises(NotEnded):
        await session.delete()
    assert await session.delete(cancel=True) == 1
    with pytest.raises(NotFound):
        await session.record()


async def test_a_session_forks_with_its_files(idle: Any):
    session = await idle.sessions.create(title="one")
    await session.write_file("notes.txt", "kept")
    fork = await session.fork(title="two")
    assert (await fork.record()).forked_from == session.id
    assert await fork.read_file("/notes.txt") == b"kept"


async def test_a_session_is_exported_to_its_end(idle: Any):
    session = await idle.sessions.create(title="kept")
    await session.create("external", {})
    records = [record async for record in session.export()]
    assert [record["record"] for record in records].count("task") == 1
    assert (records[0]["record"], records[-1]["record"]) == ("export", "end")
    with pytest.raises(NotFound):
        await anext(idle.sessions.export("session_none"))


async def test_usage_grants_and_the_tree_of_a_session_are_told(idle: Any):
    session = await idle.sessions.create(budget={"tokens": 100})
    task = await session.create("external", {})
    assert [each.name for each in (await session.usage()).accounts] == [f"session:{session.id}"]
    assert (await session.usage(tree=True)).requests == 0
    assert (await task.spent()).requests == 0
    assert [each.id for each in await idle.sessions.tree(session.id)] == [task.id]
    assert [each.id for each in await idle.tasks.tree(task.id)] == [task.id]
    assert await session.grants() == []
    assert await session.revoke("add", by="me") is False


# --- creating and looking --------------------------------------------------------------------------------


async def test_a_tool_is_called_and_its_result_comes_back(outrider: Any):
    session = await outrider.sessions.create()
    task = await session.spawn("add", {"a": 3}, b=4)
    assert await task.result(timeout=20) == 7
    record = await task.record()
    assert (record.state, record.kind, record.display_name) == ("succeeded", "background_tool", "add")
    assert record == await outrider.tasks.record(task.id)
    assert [each.ending for each in await task.attempts()] == ["succeeded"]


async def test_options_are_kept_as_they_were_given(idle: Any):
    session = await idle.sessions.create()
    first = await session.create("external", {})
    task = await session.create(
        "external",
        {"name": "crane", "nested": {"ünï": [1, 2.5, None, True]}},
        options=TaskOptions(
            name="Lift it",
            labels={"site": "3"},
            origin={"actor": "me"},
            wake="on_activity",
            priority=7,
            concurrency_key="crane",
            depends_on=(first.id,),
            max_failures=5,
            backoff=timedelta(seconds=1.5),
            run_timeout=60,
            idle_timeout=timedelta(minutes=1),
            result_schema={"type": "integer"},
            budget={"tokens": 5},
            detached=True,
        ),
    )
    record = await task.record()
    assert record.spec == {"name": "crane", "nested": {"ünï": [1, 2.5, None, True]}}
    assert (record.display_name, record.labels, record.wake_policy) == ("Lift it", {"site": "3"}, "on_activity")
    assert (record.priority, record.concurrency_key, record.depends_on) == (7, "crane", (first.id,))
    assert (record.retry.max_failures, record.retry.initial) == (5, 1.5)
    assert (record.timeouts.run, record.timeouts.idle, record.timeouts.total) == (60, 60, None)
    assert (record.detached, record.result_schema, record.origin["actor"]) == (True, {"type": "integer"}, "me")
    assert (record.idempotency_key, record.phase) == (None, "blocked")


async def test_what_is_unknown_or_does_not_fit_is_refused_by_name(idle: Any):
    session = await idle.sessions.create()
    for code, ask in (
        ("unknown_tool", session.spawn("subtract")),
        ("unknown_kind", session.create("dance", {})),
        ("invalid_arguments", session.spawn("add", a="three")),
        ("invalid_arguments", session.spawn("add")),
        ("task_not_found", session.create("external", {}, options=TaskOptions(depends_on=("task_none",)))),
        ("invalid_schema", session.create("external", {}, options=TaskOptions(result_schema={"type": 7}))),
        ("illegal_move", session.create("turn", {})),
    ):
        with pytest.raises(OutriderError) as told:
            await ask
        assert told.value.code == code
    with pytest.raises(UnknownName) as refused:
        await session.spawn("subtract")
    assert "add" in refused.value.details["known"]
    assert await session.tasks() == []


async def test_creating_twice_under_one_key_makes_one_task(idle: Any):
    session = await idle.sessions.create()
    once = TaskOptions(idempotency_key="once")
    first = await session.create("external", {"n": 1}, options=once)
    assert (await session.create("external", {"n": 1}, options=once)).id == first.id
    with pytest.raises(IdempotencyConflict) as told:
        await session.create("external", {"n": 2}, options=once)
    assert told.value.details == {"task_id": first.id}
    mine = await session.create("external", {}, options=TaskOptions(id="task_mine"))
    assert mine.id == (await session.create("external", {}, options=TaskOptions(id="task_mine"))).id == "task_mine"
    made = await idle.tasks.submit(session.id, [Order("external", {"n": 1}, once), Order("external", {"n": 3})])
    assert [each.is_new for each in made] == [False, True]
    assert len(await session.tasks()) == 3


async def test_many_are_created_at_once_and_listed_page_by_page(idle: Any, monkeypatch: pytest.MonkeyPatch):
    from outrider.client import tasks

    monkeypatch.setattr(tasks, "PAGE", 3)
    session = await idle.sessions.create()
    made = await session.spawn_many("add", [{"a": n} for n in range(8)], options=TaskOptions(labels={"of": "eight"}))
    found = await session.tasks(limit=7)
    assert [each.id for each in found] == [each.id for each in reversed(made)][:7]
    assert [each.id for each in await session.tasks(limit=7, after=found[-1].id)] == [made[0].id]
    assert [each.id for each in await session.tasks(newest_first=False, limit=2)] == [made[0].id, made[1].id]
    receipt = await idle.tasks.cancel_many([each.id for each in made])
    assert set(receipt.canceled) == {each.id for each in made}
    assert len(await idle.tasks.wait([each.id for each in made])) == 8


async def test_lists_are_narrowed_by_each_filter(idle: Any):
    one, two = await idle.sessions.create(), await idle.sessions.create()
    marked = await one.create("external", {}, options=TaskOptions(labels={"a b": "ü=&?", "c": "d"}))
    tool = await one.spawn("add", a=1)
    other = await two.create("external", {})
    await other.cancel()

    async def ids(**filter: Any) -> set[str]:
        return {each.id for each in await idle.tasks.list(**filter)}

    assert await ids(session_id=one.id) == {marked.id, tool.id}
    assert await ids(labels={"a b": "ü=&?", "c": "d"}) == {marked.id}
    assert await ids(kind="background_tool") == {tool.id}
    assert await ids(states=["canceled", State.FAILED]) == {other.id}
    assert await ids(root_session_id=two.id, states=[State.QUEUED]) == set()
    assert await idle.tasks.list(TaskFilter(kind="external", limit=1)) == [await other.record()]


async def test_a_task_is_found_by_a_part_of_its_id(idle: Any):
    session = await idle.sessions.create()
    made = [await session.create("external", {}, options=TaskOptions(id=f"task_{n}_part")) for n in range(2)]
    assert (await idle.tasks.find("0_part")).id == made[0].id
    with pytest.raises(InvalidArguments) as told:
        await idle.tasks.find("_part")
    assert len(told.value.details["matches"]) == 2
    with pytest.raises(NotFound):
        await idle.tasks.find("nothing of the kind")


# --- ends ------------------------------------------------------------------------------------------------


async def test_a_failure_is_raised_with_its_kind_to_who_waits(outrider: Any):
    session = await outrider.sessions.create()
    task = await session.spawn("fail", message="no luck", options=TaskOptions(max_failures=1))
    with pytest.raises(TaskFailed, match="no luck") as told:
        await task.result(timeout=20)
    assert told.value.kind == "exception"
    assert told.value.details == (await task.record()).error.details
    with pytest.raises(TaskFinished):
        await task.message("too late")


async def test_who_waits_is_told_when_the_time_is_over_and_the_task_goes_on(outrider: Any):
    session = await outrider.sessions.create()
    task = await session.spawn("wait_for_ever")
    with pytest.raises(WaitTimeout) as told:
        await task.result(timeout=0.3)
    assert told.value.details == {"open": [task.id]}
    assert not (await task.record()).is_terminal


async def test_waiting_for_any_ends_with_the_first_and_for_all_with_the_last(outrider: Any):
    session = await outrider.sessions.create()
    slow, quick = await session.spawn("wait_for_ever"), await session.spawn("add", a=1)
    found = await outrider.tasks.wait([slow.id, quick.id], any=True, timeout=20)
    assert [(each.id, each.is_terminal) for each in found] == [(slow.id, False), (quick.id, True)]
    waiting = asyncio.create_task(outrider.tasks.wait([slow.id, quick.id], timeout=20))
    await slow.cancel(reason="enough")
    assert [each.state for each in await waiting] == ["canceled", "succeeded"]
    with pytest.raises(TaskCanceled, match="enough"):
        await slow.result()
    assert await outrider.tasks.wait([]) == []


async def test_a_cancel_names_the_whole_tree_and_says_where_each_ended(outrider: Any):
    session = await outrider.sessions.create()
    task = await session.spawn("parent")
    await until(lambda: _live(outrider, 2))
    child = next(each.id for each in await session.tasks() if each.id != task.id)
    receipt = await task.cancel(reason="enough", by="me", wait=20)
    assert receipt.task_id == task.id
    assert set(receipt.canceled) == {task.id, child}
    assert (receipt.requested, receipt.states) == ((), {task.id: "canceled", child: "canceled"})
    again = await task.cancel()
    assert (again.requested, again.states) == ((), receipt.states)
    assert (await task.record()).cancel_reason == "enough"


async def _live(outrider: Any, count: int) -> bool:
    return len(await outrider.tasks.list(states=[State.RUNNING])) == count


async def test_many_are_canceled_by_a_filter(idle: Any):
    session = await idle.sessions.create()
    marked = await session.create("external", {}, options=TaskOptions(labels={"a": "b"}))
    spared = await session.create("external", {})
    receipt = await idle.tasks.cancel_many(filter=TaskFilter(labels={"a": "b"}), reason="swept")
    assert (receipt.canceled, receipt.requested, receipt.left) == ((marked.id,), (), ())
    assert (await spared.record()).state == "queued"


async def test_what_has_moved_on_is_not_canceled_on_condition(idle: Any):
    session = await idle.sessions.create()
    task = await session.create("external", {})
    version = (await task.record()).version
    await task.message("news")
    with pytest.raises(Outdated):
        await idle.tasks.cancel(task.id, if_version=version)
    await idle.tasks.cancel(task.id, if_version=version + 1)


async def test_what_has_ended_is_done_again_as_a_new_task(outrider: Any):
    session = await outrider.sessions.create()
    task = await session.spawn("wait_for_ever")
    with pytest.raises(IllegalMove):
        await task.retry()
    await task.cancel(wait=20)
    again = await task.retry(id="task_again")
    assert (await task.retry(id="task_again")).id == again.id == "task_again"
    assert (await again.record()).retry_of == task.id
    other = await session.spawn("add", a=1)
    await other.result(timeout=20)
    with pytest.raises(IdempotencyConflict):
        await other.retry(id="task_again")
    receipt = await outrider.tasks.retry_many([task.id, "task_none"])
    assert (list(receipt.retried), receipt.left) == ([task.id], {"task_none": "task_not_found"})


async def test_a_fork_goes_on_from_a_step(outrider: Any):
    session = await outrider.sessions.create()
    task = await session.spawn("in_steps", fails=True, options=TaskOptions(max_failures=1))
    await task.wait(timeout=20)
    assert [each.position for each in await task.steps()] == ["first"]
    fork = await task.fork(arguments={"fails": False}, id="task_fork")
    assert await fork.result(timeout=20) == "one two"
    assert (await task.fork(arguments={"fails": False}, id="task_fork")).id == fork.id
    with pytest.raises(UnknownName):
        await task.fork(from_step="third")


async def test_a_task_is_exported_given_away_and_loaded_elsewhere(way: Way, idle: Any):
    session = await idle.sessions.create()
    task = await session.create("external", {"n": 1})
    document = await task.export(events=True)
    with pytest.raises(AlreadyExists):
        await idle.tasks.load(document)
    assert (await idle.tasks.give_away(document)).state == "canceled"
    with pytest.raises(Conflict):
        await idle.tasks.give_away({**document, "task": {**document["task"], "id": "task_none"}})
    async with opened(way, worker=False) as elsewhere:
        loaded = await elsewhere.tasks.load(document)
        assert (loaded.id, loaded.state) == (task.id, "queued")
        assert (await elsewhere.tasks.record(task.id)).spec == {"n": 1}


async def test_what_has_ended_is_deleted_or_pruned_and_what_lives_is_not(idle: Any):
    session = await idle.sessions.create()
    task, other = await session.create("external", {}), await session.create("external", {})
    with pytest.raises(NotEnded) as told:
        await task.delete()
    assert told.value.details == {"live": [task.id]}
    await task.cancel()
    await other.cancel()
    assert await task.delete() == 1
    await asyncio.sleep(0.001)
    assert (await idle.tasks.prune(0, dry_run=True)).tasks == 1
    assert (await idle.tasks.prune(timedelta(0), session_id=session.id, states=["canceled"])).tasks == 1
    assert await session.tasks() == []


# --- following -------------------------------------------------------------------------------------------


async def test_a_tasks_events_come_once_each_in_order_to_its_end(outrider: Any):
    session = await outrider.sessions.create()
    task = await session.spawn("chatter")
    events = [event async for event in task.events()]
    assert [event.seq for event in events] == sorted({event.seq for event in events})
    assert (events[0].type, events[0].task.state) == ("task.created", "queued")
    assert events[-1].task == (await task.record()).model_copy(
        update={"heartbeat_at": None, "checkpoint": None, "phase": None, "phase_reason": None}
    )
    later = [event async for event in task.events(after=events[1].seq)]
    assert later == events[2:]


async def test_a_sessions_events_go_on_until_it_is_deleted(outrider: Any):
    session = await outrider.sessions.create()
    seen: list[str] = []

    async def follow() -> None:
        async for event in session.events():
            seen.append(event.type)  # noqa: PERF401 - it is looked at meanwhile

    following = asyncio.create_task(follow())
    task = await session.spawn("add", a=1)
    await task.result(timeout=20)
    await until(lambda: seen.count("task.updated") >= 2)
    await session.delete()
    with pytest.raises(NotFound):
        await asyncio.wait_for(following, 20)


async def test_events_go_on_where_a_snapshot_ends(idle: Any):
    session = await idle.sessions.create()
    task = await session.create("external", {})
    of_task, of_session = await idle.tasks.snapshot(task.id), await idle.sessions.snapshot(session.id)
    of_all = await idle.snapshot()
    assert (of_task.task.id, [each.id for each in of_session.tasks]) == (task.id, [task.id])
    assert [each.id for each in of_all.tasks] == [task.id]
    await task.cancel()
    async with aclosing(task.events(after=of_task.after)) as events:
        assert (await anext(events)).task.state == "canceled"
    async with aclosing(session.events(after=of_session.after)) as events:
        assert (await anext(events)).task.state == "canceled"
    async with aclosing(idle.events(after=of_all.after)) as events:
        position, event = await anext(events)
    assert position > of_all.after
    assert (event.session_id, event.task.state) == (session.id, "canceled")


async def test_all_that_happens_from_now_on_is_told_in_one_stream(idle: Any):
    await (await idle.sessions.create()).create("external", {})
    seen: list[str] = []

    async def follow() -> None:
        async for _, event in idle.events():
            seen.append(event.session_id)

    following = asyncio.create_task(follow())
    sessions: list[str] = []

    async def told() -> bool:
        session = await idle.sessions.create()
        await session.create("external", {})
        sessions.append(session.id)
        return bool(seen)

    await until(told)
    following.cancel()
    assert set(seen) <= set(sessions)


async def test_output_is_followed_from_any_byte_to_the_end(outrider: Any):
    session = await outrider.sessions.create()
    task = await session.spawn("chatter", lines=3)
    pieces = [piece async for piece in task.output()]
    text = "".join(piece.text for piece in pieces)
    assert text == "".join(f"line {n} – ünïcode\n" for n in range(3))
    start = len("line 0 – ünïcode\n".encode())
    assert "".join([piece.text async for piece in task.output(start=start)]).startswith("line 1")
    again = [piece async for piece in outrider.tasks.output(task.id, start=start, follow=False)]
    assert again[-1].next == pieces[-1].next == len(text.encode())
    assert [piece async for piece in outrider.tasks.output(task.id, start=pieces[-1].next, follow=False)] == []


# --- questions and messages ------------------------------------------------------------------------------


async def test_the_first_answer_counts_and_each_other_is_told_why_not(outrider: Any):
    session = await outrider.sessions.create()
    task = await session.spawn("consult")
    asking = await task.wait(on_question=True, timeout=20)
    request = asking.input_request
    assert (asking.state, request.prompt, request.status) == ("awaiting_input", "Which?", "pending")
    with pytest.raises(InvalidAnswer) as told:
        await task.answer(7)
    assert told.value.details == {"expected": {"type": "string"}}
    with pytest.raises(NotFound):
        await task.answer("this", request_id="req_none")
    await task.answer("this", request_id=request.id, by="me", via="test")
    with pytest.raises(RequestClosed) as closed:
        await task.answer("this", request_id=request.id, by="me")
    assert closed.value.details == {"status": "answered", "answered_by": "me"}
    assert await task.result(timeout=20) == "this"
    (asked,) = await task.requests()
    assert (asked.answer, asked.answered_by, asked.answered_via) == ("this", "me", "test")
    with pytest.raises(RequestClosed):
        await task.answer("that")


async def test_a_message_reaches_its_task_and_stands_in_the_thread(outrider: Any):
    session = await outrider.sessions.create()
    task = await session.spawn("listen")
    sent = await task.message("hello", sender="me")
    assert await task.result(timeout=20) == ["hello"]
    assert list(await task.messages(direction="inbound")) == [sent]
    assert list(await task.messages(after=sent.id)) == []
    assert (sent.text, sent.sender, sent.task_id) == ("hello", "me", task.id)


async def test_a_message_with_a_key_is_sent_once(idle: Any):
    session = await idle.sessions.create()
    task, other = await session.create("external", {}), await session.create("external", {})
    sent = await asyncio.gather(*(task.message({"n": 1}, idempotency_key="k 1") for _ in range(4)))
    assert len({each.id for each in sent}) == 1
    with pytest.raises(IdempotencyConflict):
        await task.message({"n": 2}, idempotency_key="k 1")
    assert (await other.message({"n": 1}, idempotency_key="k 1")).id != sent[0].id
    assert [each.id for each in await task.messages()] == [sent[0].id]


# --- turns, agents, commands -----------------------------------------------------------------------------


async def test_an_agent_hears_what_is_said_and_its_turn_has_the_answer(outrider: Any):
    session = await outrider.sessions.create(agent="echo")
    assert await session.turn() is None
    turn = await session.send("hello", sender="me")
    assert await turn.result(timeout=20) == "You said hello."
    assert (await session.turn()).id == turn.id
    assert (await session.record()).turn_id == turn.id
    with pytest.raises(InvalidArguments):
        await session.send("  ")
    with pytest.raises(IllegalMove):
        await (await outrider.sessions.create()).send("is anybody there?")


async def test_a_transcript_is_read_page_by_page_from_either_end(outrider: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "PAGE", 2)
    session = await outrider.sessions.create(agent="echo")
    assert await session.transcript(newest_first=True) == []
    turns = []
    for word in ("one", "two", "three"):
        turns.append(await session.send(word))
        await turns[-1].wait(timeout=20)
    whole = await session.transcript()
    assert [each.number for each in whole] == [*range(1, len(whole) + 1)]
    assert [*dict.fromkeys(each.task_id for each in whole)] == [turn.id for turn in turns]
    assert [said_in(each.message) for each in whole if said_in(each.message)] == ["one", "two", "three"]
    back = await session.transcript(newest_first=True)
    assert back == whole[::-1]
    for ask, all_of_it in (({}, whole), ({"newest_first": True}, back)):
        assert await session.transcript(limit=3, **ask) == all_of_it[:3]
        assert await session.transcript(after=all_of_it[2].number, **ask) == all_of_it[3:]
        assert await session.transcript(after=all_of_it[-1].number, **ask) == []
    for wrong in ({"after": -1}, {"limit": 0}, {"newest_first": "yes"}):
        with pytest.raises(InvalidArguments):
            await session.transcript(**wrong)
    with pytest.raises(NotFound):
        await outrider.sessions.transcript("session_none")


async def test_the_turn_that_hears_what_was_said_after_another_is_told(outrider: Any):
    session = await outrider.sessions.create(agent="echo")
    first = await session.send("one")
    said = await session.send("two", steering="after")
    hears = await said.heard_by(timeout=20)
    assert (await hears.result(timeout=20)).endswith("two.")  # the first turn may hear both
    assert (await first.heard_by()).id == first.id


async def test_an_agent_and_a_command_run_in_the_background(outrider: Any):
    session = await outrider.sessions.create()
    agent = await session.spawn_agent("hello", model="scripted:client-echo")
    command = await session.spawn_process(["printf", "%s", "from afar"])
    assert await agent.result(timeout=20) == "You said hello."
    assert (await command.result(timeout=20))["tail"] == "from afar"
    assert (await agent.record()).links.child_session_id is not None


# --- files -----------------------------------------------------------------------------------------------


async def test_files_are_written_read_listed_and_deleted_whatever_they_are_called(idle: Any):
    session = await idle.sessions.create()
    assert await session.write_file("a b/ü?#%41&.txt", "text – ünïcode") == "/a b/ü?#%41&.txt"
    await session.write_file("/data", b"\0\xff\n", "application/x-thing")
    assert await session.read_file("/a b/ü?#%41&.txt") == "text – ünïcode".encode()
    assert await session.read_file("data") == b"\0\xff\n"
    assert [(each.path, each.media_type, each.size) for each in await session.files("/a b/")] == [
        ("/a b/ü?#%41&.txt", "text/plain", 18)
    ]
    assert [each.media_type for each in await session.files("/data")] == ["application/x-thing"]
    assert [each.path for each in await session.files(limit=1)] == ["/a b/ü?#%41&.txt"]
    assert [each.path for each in await session.files(after="/a b/ü?#%41&.txt")] == ["/data"]
    assert [await session.delete_file("data"), await session.delete_file("data")] == [True, False]
    with pytest.raises(NotFound) as told:
        await session.read_file("data")
    assert told.value.code == "file_not_found"
    for path in ("", "../up", "a//b", "/.tasks/task_x/result.json", "\n"):
        with pytest.raises(InvalidPath):
            await session.write_file(path, "no")
    assert await session.write_file("%2e%2e/%2E", "a name like any other") == "/%2e%2e/%2E"
    assert "/%2e%2e/%2E" in [each.path for each in await session.files()]
    for id in ("..", "%2e%2e", ""):  # which leads to no other route
        with pytest.raises(NotFound):
            await idle.sessions.delete(id)
        with pytest.raises(NotFound):
            await idle.tasks.record(id)


async def test_the_result_of_a_task_is_a_file_too(outrider: Any):
    session = await outrider.sessions.create()
    task = await session.spawn("add", a=1)
    await task.result(timeout=20)
    assert await session.read_file((await task.record()).result_path) == b"3"


# --- inbox, queue, programs ------------------------------------------------------------------------------


async def test_an_outside_agent_receives_and_acknowledges(outrider: Any):
    session = await outrider.sessions.create()
    receiving = asyncio.create_task(session.inbox.receive(wait=20, lease=30))
    await session.spawn("add", a=1, options=TaskOptions(wake="on_terminal"))
    (entry,) = await receiving
    assert (entry.reason, entry.task.state) == ("terminal", "succeeded")
    assert [each.receipt for each in await session.inbox.list()] == [None]
    assert await session.inbox.receive(wait=0.3) == []
    assert (await session.inbox.renew([entry.receipt], lease=60)).good == (entry.receipt,)
    assert (await session.inbox.acknowledge([entry.receipt])).good == (entry.receipt,)
    assert (await outrider.inbox.acknowledge(session.id, [entry.receipt])).gone == (entry.receipt,)
    with pytest.raises(InvalidArguments):
        await session.inbox.acknowledge(["no receipt"])
    with pytest.raises(NotFound):
        await outrider.inbox.list("session_none")


async def test_limits_pauses_and_priorities_are_set_and_told(idle: Any):
    limit = await idle.queue.limit("crane *", concurrency=2, rate=10, per=timedelta(minutes=1))
    assert (limit.concurrency, limit.rate, limit.per) == (2, 10, 60)
    assert await idle.queue.limits() == [limit]
    theirs = await idle.queue.limit("crane *", concurrency=1, organization_id="org_b")
    assert await idle.queue.limits() == [limit, theirs]
    assert [await idle.queue.unlimit("crane *"), await idle.queue.unlimit("crane *")] == [True, False]
    assert await idle.queue.unlimit("crane *", organization_id="org_b")
    session = await idle.sessions.create()
    task = await session.create("external", {}, options=TaskOptions(concurrency_key="crane"))
    assert [await idle.queue.pause(session=session.id, by="me", reason="why") for _ in range(2)] == [True, False]
    (pause,) = await idle.queue.pauses()
    assert (pause.scope, pause.name, pause.by, pause.reason) == ("session", session.id, "me", "why")
    assert [await idle.queue.resume(session=session.id) for _ in range(2)] == [True, False]
    assert [each.key for each in await idle.queue.keys()] in ([], ["crane"])
    assert (await idle.queue.reprioritize(task.id, 9)).priority == 9
    assert (await task.record()).priority == 9


async def test_a_program_elsewhere_claims_reports_asks_and_ends(idle: Any):
    session = await idle.sessions.create()
    task = await session.create("external", {"name": "crane"}, options=TaskOptions(idle_timeout=60))
    assert await idle.external.claim("me", name="digger") == []
    (held,) = await idle.external.claim("me", name="crane", limit=5)
    attempt = held.attempt
    told = await idle.external.report(task.id, attempt, current=1, total=2, unit="loads", output="up\n")
    assert (told.progress.current, told.worker_id) == (1, "external:me")
    request = await idle.external.ask(task.id, attempt, "Where to?", expected={"type": "string"})
    await task.answer("left")
    assert [(each.id, each.answer) for each in await task.requests()] == [(request.id, "left")]
    assert (await idle.external.give_back(task.id, attempt)).worker_id is None
    with pytest.raises(LeaseLost):
        await idle.external.report(task.id, attempt)
    (held,) = await idle.external.claim("you", name="crane")
    await idle.external.succeed(task.id, held.attempt, {"ends": "well"}, summary="done")
    assert await task.result() == {"ends": "well"}
    other = await session.create("external", {}, options=TaskOptions(max_failures=1))
    (held,) = await idle.external.claim("me")
    ended = await idle.external.fail(other.id, held.attempt, "broke", kind="crane", retryable=False)
    assert (ended.state, ended.error.kind) == ("failed", "crane")
    third = await session.create("external", {}, options=TaskOptions(idle_timeout=60))
    (held,) = await idle.external.claim("me")
    await third.cancel()
    assert (await idle.external.stopped(third.id, held.attempt)).state == "canceled"


async def test_workers_numbers_and_findings_are_told(outrider: Any):
    session = await outrider.sessions.create()
    task = await session.spawn("wait_for_ever")
    await until(lambda: _live(outrider, 1))
    (worker,) = await outrider.workers()
    assert worker.held == 1
    assert (await outrider.stats(timedelta(minutes=5))).states[State.RUNNING] == 1
    assert (await outrider.doctor.explain(task.id)).task_id == task.id
    assert all(each.level in ("problem", "note") for each in await outrider.doctor.examine())


# --- who may, who did, who is told -----------------------------------------------------------------------


async def test_a_key_is_made_listed_rotated_and_revoked(idle: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "PAGE", 2)
    session = await idle.sessions.create()
    made = await idle.keys.create("ci", scopes={"submit", "read"}, expires=timedelta(days=1), by="me")
    assert (made.name, made.scopes, made.created_by, made.is_active) == ("ci", ["read", "submit"], "me", True)
    assert made.expires_at - made.created_at == timedelta(days=1)
    assert made.token.startswith("ork_")
    assert made.token not in f"{made!r} {made}"  # a record that is logged says no more than one that is listed
    others = [await idle.keys.create(f"{number}", session_id=session.id) for number in range(4)]
    assert [each.id for each in await idle.keys.list(limit=4)] == [made.id, *(each.id for each in others[:3])]
    assert [each.id for each in await idle.keys.list(after=others[0].id)] == [each.id for each in others[1:]]
    assert (await idle.keys.list(organization_id="org_none"), others[0].session_id) == ([], session.id)
    rotated = await idle.keys.rotate(made.id, overlap=60)
    assert rotated.token != made.token
    assert (await idle.keys.get(made.id)).overlaps_until is not None
    assert (await idle.keys.revoke(made.id)).is_active is False
    with pytest.raises(Conflict):
        await idle.keys.rotate(made.id)
    for code, ask in (
        ("key_not_found", idle.keys.get("key_none")),
        ("key_not_found", idle.keys.revoke("no id/at all")),
        ("session_not_found", idle.keys.create("x", session_id="session_none")),
        ("organization_not_found", idle.keys.create("x", organization_id="org_none")),
        ("invalid_arguments", idle.keys.create("x", scopes="read")),
        ("invalid_arguments", idle.keys.create("x", scopes=())),
        ("invalid_arguments", idle.keys.create("x", expires=0)),
        ("invalid_arguments", idle.keys.create("")),
        ("invalid_arguments", idle.keys.create(None)),
        ("invalid_arguments", idle.keys.rotate(made.id, overlap=-1)),
        ("invalid_arguments", idle.keys.list(limit=0)),
        ("invalid_arguments", idle.keys.get(None)),
    ):
        with pytest.raises(OutriderError) as told:
            await ask
        assert told.value.code == code
    assert len(await idle.keys.list()) == 5


async def test_an_organization_is_made_suspended_resumed_and_deleted(idle: Any):
    made = await idle.organizations.create("Ünïcode", id="org_a")
    assert await idle.organizations.get("org_a") == made
    other = await idle.organizations.create("B")
    assert [each.id for each in await idle.organizations.list(limit=2)] == [other.id, "org_a"]
    assert [each.id for each in await idle.organizations.list(after="org_a")] == ["org_default"]
    with pytest.raises(AlreadyExists):
        await idle.organizations.create("Ünïcode", id="org_a")
    assert (await idle.organizations.suspend("org_a")).suspended_at is not None
    assert await idle.organizations.resume("org_a") == made
    assert (await idle.keys.create("theirs", organization_id="org_a")).organization_id == "org_a"
    assert await idle.organizations.delete("org_a") is None
    assert await idle.keys.list() == []
    for ask in (idle.organizations.delete("org_a"), idle.organizations.get("org_none")):
        with pytest.raises(NotFound):
            await ask
    with pytest.raises(AlreadyExists):  # its id is not given again
        await idle.organizations.create("A", id="org_a")
    for id in ("no id/at all", 7):
        with pytest.raises(InvalidArguments):
            await idle.organizations.create("A", id=id)


async def test_an_organization_with_sessions_stays_and_so_does_that_of_its_operators(way: Way):
    async with Outrider().open("memory://", worker=False) as runtime, by(way, runtime) as outrider:
        await runtime.organizations.create("A", id="org_a")
        await runtime.sessions.create(organization_id="org_a")
        with pytest.raises(InUse):
            await outrider.organizations.delete("org_a")
        assert (await outrider.organizations.get("org_a")).suspended_at is None
        for ask in (outrider.organizations.delete("org_default"), outrider.organizations.suspend("org_default")):
            with pytest.raises(InvalidArguments):
                await ask


async def test_an_audit_log_is_read_verified_and_pruned(way: Way, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "PAGE", 2)
    async with Outrider().open("memory://", worker=False) as runtime, by(way, runtime) as outrider:
        await runtime.organizations.create("A", id="org_a")
        for number in range(6):
            await runtime.audit.record(f"deed_{number}", actor={"name": "ada"}, organization_id="org_a")
        assert await outrider.audit.list() == []
        told = await outrider.audit.list(organization_id="org_a", limit=5)
        assert [(each.number, each.action) for each in told] == [(n, f"deed_{n - 1}") for n in range(6, 1, -1)]
        assert [each.number for each in await outrider.audit.list(organization_id="org_a", before=2)] == [1]
        verdict = await outrider.audit.verify(organization_id="org_a", expect_head=f"6:{told[0].hash}")
        assert (verdict.is_whole, verdict.entries, verdict.head) == (True, 6, f"6:{told[0].hash}")
        assert (await outrider.audit.verify(organization_id="org_a", expect_head=f"5:{'0' * 64}")).broken_at == 5
        with pytest.raises(InvalidArguments):
            await outrider.audit.verify(expect_head="no head")
        with pytest.raises(InvalidArguments):
            await outrider.audit.prune(-1)
        assert await outrider.audit.prune(timedelta(days=1), organization_id="org_a") == 0
        assert await outrider.audit.prune(0, organization_id="org_a") == 5
        assert (await outrider.audit.verify(organization_id="org_a")).first == 6


async def test_secrets_are_sealed_anew(idle: Any):
    await idle.webhooks.create("https://hooks.example/x")
    assert (await idle.secrets.rotate()).sealed in (0, 1)  # in memory there is one key, which stays


async def test_an_endpoint_is_made_changed_disabled_and_deleted(idle: Any):
    task = await (await idle.sessions.create()).create("external", {})
    made = await idle.webhooks.create("https://hooks.example/x", events={"message", "terminal"}, description="x")
    assert (made.events, made.description, made.task_id) == (("terminal", "message"), "x", None)
    assert made.secret.startswith("whsec_")
    assert made.secret not in f"{made!r} {made}"
    own = await idle.webhooks.create("https://hooks.example/", task_id=task.id, secret=made.secret)
    assert (own.events, own.secret, own.task_id) == (("terminal", "awaiting_input"), made.secret, task.id)
    assert [each.id for each in await idle.webhooks.list()] == [made.id]
    assert [each.id for each in await idle.webhooks.list(task_id=task.id)] == [own.id]
    assert await idle.webhooks.list(task_id=task.id, after=own.id) == []
    changed = await idle.webhooks.update(made.id, events=["progress"], description="")
    assert (changed.url, changed.events, changed.description) == (made.url, ("progress",), "")
    assert (await idle.webhooks.disable(made.id, reason="noisy")).disabled_reason == "noisy"
    with pytest.raises(Conflict):
        await idle.webhooks.replay(made.id)
    assert (await idle.webhooks.enable(made.id)).disabled_at is None
    rotated = await idle.webhooks.rotate_secret(made.id, overlap=60)
    assert (rotated.secrets, rotated.secret != made.secret) == (2, True)
    assert await idle.webhooks.update(made.id) == await idle.webhooks.get(made.id)
    assert [await idle.webhooks.replay(made.id), await idle.webhooks.replay(made.id, [])] == [0, 0]
    for kind, ask in (
        (AddressRefused, idle.webhooks.create("http://127.0.0.1:5/")),
        (AddressRefused, idle.webhooks.update(made.id, url="http://localhost/")),
        (InvalidArguments, idle.webhooks.create("no url")),
        (InvalidArguments, idle.webhooks.create(None)),
        (InvalidArguments, idle.webhooks.create(made.url, events=[])),
        (InvalidArguments, idle.webhooks.create(made.url, events="terminal")),
        (InvalidArguments, idle.webhooks.create(made.url, secret="hush")),
        (InvalidArguments, idle.webhooks.rotate_secret(made.id, overlap=timedelta(days=31))),
        (InvalidArguments, idle.webhooks.deliveries(made.id, status="lost")),
        (NotFound, idle.webhooks.create(made.url, task_id="task_none")),
        (NotFound, idle.webhooks.list(task_id="task_none")),
        (NotFound, idle.webhooks.get("whk_none")),
        (NotFound, idle.webhooks.test("whk_none")),
        (NotFound, idle.webhooks.delivery(made.id, "dlv_none")),
        (NotFound, idle.webhooks.replay(made.id, ["dlv_none"])),
    ):
        with pytest.raises(kind) as told:
            await ask
        assert "hush" not in str(told.value)
    assert await idle.webhooks.delete(made.id) is None
    with pytest.raises(NotFound):
        await idle.webhooks.delete(made.id)


async def test_what_was_sent_is_told_sent_again_and_tried(way: Way):
    app = Outrider(WorkerSettings(webhooks=LOOPBACK))
    async with app.open("memory://", worker=False) as runtime, by(way, runtime) as outrider, receiving() as receiver:
        hook = await outrider.webhooks.create(receiver.url, events=["terminal"])
        session = await outrider.sessions.create()
        for _ in range(2):
            await (await session.create("external", {})).cancel()
        duty = Webhooking(runtime.services)
        await duty.once()
        last, first = await outrider.webhooks.deliveries(hook.id)
        assert sorted(receiver.ids) == [first.id, last.id]
        assert [each.id for each in await outrider.webhooks.deliveries(hook.id, after=last.id, limit=1)] == [first.id]
        assert await outrider.webhooks.deliveries(hook.id, status="dead") == []
        assert await outrider.webhooks.delivery(hook.id, first.id) == first
        assert (first.status, first.tries[0].status, first.payload["data"]["task"]["state"]) == (
            "delivered", 200, "canceled",
        )  # fmt: skip
        assert await outrider.webhooks.replay(hook.id, [first.id]) == 1
        await duty.once()
        await duty.leave()
        assert receiver.ids[2:] == [first.id]
        receiver.answers = [status(503)]
        assert (await outrider.webhooks.test(hook.id)).status == 503
        assert receiver.requests[-1].verify(hook.secret)["type"] == "webhook.ping"


async def test_a_link_answers_one_question_once(idle: Any):
    task = await (await idle.sessions.create()).create("external", {}, options=TaskOptions(idle_timeout=60))
    (held,) = await idle.external.claim("me")
    request = await idle.external.ask(task.id, held.attempt, "How many?", expected={"type": "integer"})
    link = await idle.answer_links.create(request.id, expires=timedelta(hours=1), by="ada")
    assert (link.request_id, link.task_id, link.url) == (request.id, task.id, None)
    token = link.path.removeprefix("/answer/")
    form = await idle.answer_links.form(token)
    assert (form.request.prompt, form.choices, form.typing) == ("How many?", (), "number")
    narrow = (await idle.answer_links.create(request.id, choices=(1, 2))).path.removeprefix("/answer/")
    assert [each.answer for each in (await idle.answer_links.form(narrow)).choices] == [1, 2]
    spent = (await idle.answer_links.create(request.id, expires=0)).path.removeprefix("/answer/")
    for kind, ask in (
        (LinkExpired, idle.answer_links.form(spent)),
        (LinkExpired, idle.answer_links.answer(spent, typed="1")),
        (InvalidLink, idle.answer_links.form("e30.e30")),
        (InvalidLink, idle.answer_links.form(f"{token}x")),
        (InvalidLink, idle.answer_links.form(None)),
        (InvalidLink, idle.answer_links.answer("\ud800", typed="1")),
        (InvalidAnswer, idle.answer_links.answer(token, typed="many")),
        (InvalidAnswer, idle.answer_links.answer(token)),
        (InvalidAnswer, idle.answer_links.answer(narrow, choice=2)),
        (InvalidAnswer, idle.answer_links.answer(narrow, typed="1")),
        (InvalidAnswer, idle.answer_links.create(request.id, choices=["many"])),
        (InvalidArguments, idle.answer_links.create(request.id, choices=[])),
        (InvalidArguments, idle.answer_links.create(request.id, choices="12")),
        (InvalidArguments, idle.answer_links.create(request.id, expires=timedelta(days=31))),
        (NotFound, idle.answer_links.create("req_none")),
    ):
        with pytest.raises(kind):
            await ask
    assert (await idle.answer_links.answer(narrow, choice=1)).id == task.id
    (asked,) = await task.requests()
    assert (asked.answer, asked.answered_by, asked.answered_via) == (2, None, "link")
    with pytest.raises(RequestClosed):
        await idle.answer_links.answer(token, typed="3")
    assert (await idle.answer_links.form(token)).request.status == "answered"
    with pytest.raises(RequestClosed):
        await idle.answer_links.create(request.id)
