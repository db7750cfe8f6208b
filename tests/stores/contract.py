"""What every store promises, one test a promise. A store's own test file is a subclass with a `ledger` fixture.

The tests act through the real reducer and look only through `Views`, so that they say nothing of tables.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

from outrider.core.change import AttemptEnd, Change, InboxEntry, LogEvent, Luggage, OutputRow
from outrider.core.errors import NotEnded, NotFound, StoreUnavailable
from outrider.core.events import (
    Answered,
    Asked,
    CancelRequested,
    Claimed,
    DeadlinePassed,
    Debounced,
    Event,
    Failed,
    FileWrite,
    HolderLost,
    MessageReceived,
    Parked,
    Posted,
    Produced,
    Released,
    Reprioritized,
    Rung,
    Succeeded,
    Told,
    WatchedAsked,
    WatchedEnded,
)
from outrider.core.ledger import (
    Barred,
    Beat,
    Claim,
    Closed,
    Committed,
    Described,
    Document,
    Existing,
    Fenced,
    GrantSet,
    Head,
    Ledger,
    LimitRemoved,
    LogRow,
    NoSession,
    OutputChunk,
    Page,
    Paused,
    Reopened,
    Report,
    Resumed,
    Settled,
    Shut,
    Signal,
    Stale,
    TaskFilter,
    WorkerCard,
)
from outrider.core.machine import apply, create
from outrider.core.meters import Account, Amounts, Budget, taps_of
from outrider.core.queue import AGEING, Limit, Pause
from outrider.core.replay import replay
from outrider.core.session import Grant, NewSession, Seed, Session
from outrider.core.task import (
    DEFAULT_ORGANIZATION,
    OWNED,
    TURN,
    Artifact,
    Input,
    Links,
    Live,
    NewTask,
    Phase,
    Progress,
    Retry,
    State,
    TaskError,
    Timeouts,
    Usage,
    WaitForAnswer,
    WaitForMessage,
    WaitForTasks,
    WaitUntil,
    key_within,
    phase_of,
)
from outrider.core.values import SECOND, difference, evolve
from outrider.stores.migrate import known
from tests.stores.metered import Meters
from tests.stores.scene import ROUTE, SESSION, START, WORKER, Ear, Scene, committed, data_of, receipt_for

TEXT = 'plain, "quoted", naïve, 日本語, 🦉, line\nbreak, \\ and \u2028'
JSON_VALUE: dict[str, Any] = {
    "text": TEXT,
    "empty": {},
    "list": [1, -2, 2.5, 1e300, 2**53, True, False, None, [], "x"],
    "": "no name",
}
PAUSES = (Pause("everything"), Pause("kind", "background_tool"), Pause("session", SESSION))
BROKEN = TaskError("exception", "no")
LIVE = Live(
    state_detail=TEXT,
    progress=Progress(3, 10, "files", TEXT, ("read", "write")),
    iterations=7,
    provider="someone",
    model="some-model",
    usage=Usage(4, 1000, 200, 50, 0.25),
    links=Links("session_child", "remote-1", ("volume-1", "volume-2")),
)


class Contract:
    """Gives each test a store, a session, and a scene to act in."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    async def ledger(self) -> Ledger:
        raise NotImplementedError("a store's test class gives the store")

    @pytest.fixture
    async def scene(self, ledger: Ledger) -> Scene:
        scene = Scene(ledger)
        await scene.session()
        return scene


class Sessions(Contract):
    async def test_a_new_session_is_its_own_root_and_its_creation_is_the_first_entry_of_its_log(self, scene: Scene):
        session = await scene.session("session_b", agent="assistant", title=TEXT, labels={"team": "blue"})
        assert session == await scene.views.session("session_b")
        assert (session.root_session_id, session.last_seq, session.driver_task_id) == ("session_b", 1, None)
        assert (session.agent, session.title, session.labels) == ("assistant", TEXT, {"team": "blue"})
        (row,) = await scene.log("session_b")
        assert (row.seq, row.task_id, row.type, row.at) == (1, None, "session.created", scene.now)
        assert data_of(row)["session"]["id"] == "session_b"
        assert data_of(row)["session"]["root_session_id"] == "session_b"

    async def test_a_session_of_a_delegation_tree_keeps_its_place_and_its_organization(self, scene: Scene):
        place = {"root_session_id": SESSION, "parent_session_id": SESSION, "parent_task_id": "task_1"}
        session = await scene.session("session_b", organization_id="org_b", **place)
        assert {name: getattr(session, name) for name in place} == place
        assert session.organization_id == "org_b"

    async def test_creating_a_session_again_returns_the_first_and_logs_nothing(self, scene: Scene):
        first = await scene.views.session(SESSION)
        scene.later()
        assert await scene.session(SESSION, title="another") == first
        assert len(await scene.log()) == 1

    async def test_sessions_come_newest_first_and_in_pages(self, scene: Scene):
        for name in "bcd":
            await scene.session(f"session_{name}")
        everything = [session.id for session in await scene.views.sessions()]
        assert everything == ["session_d", "session_c", "session_b", "session_a"]
        assert [session.id for session in await scene.views.sessions(limit=2)] == everything[:2]
        assert [session.id for session in await scene.views.sessions(after="session_c")] == everything[2:]

    async def test_sessions_and_ids_of_tasks_are_found_of_one_organization_and_of_one_tree(self, scene: Scene):
        await scene.session()
        for name, above in {"session_x": None, "session_xy": "session_x", "session_z": None}.items():
            await scene.session(name, organization_id="org_b", root_session_id=above)
            await scene.create(f"task_{name}", name, organization_id="org_b", root_session_id=above or name)
        await scene.create("task_of_a")
        views = scene.views
        b: dict[str, Any] = {"organization_id": "org_b"}
        tree: dict[str, Any] = {"root_session_id": "session_x"}
        assert [each.id for each in await views.sessions(**b)] == ["session_z", "session_xy", "session_x"]
        assert [each.id for each in await views.sessions(**b, limit=1, after="session_xy")] == ["session_x"]
        assert [each.id for each in await views.sessions(**tree)] == ["session_xy", "session_x"]
        assert list(await views.task_ids("task_", 10, **b)) == [f"task_session_{n}" for n in ("x", "xy", "z")]
        assert list(await views.task_ids("task_", 10, **tree)) == ["task_session_x", "task_session_xy"]
        assert list(await views.task_ids("_of_a", 1, **b)) == []

    async def test_a_session_knows_the_number_of_its_newest_entry(self, scene: Scene):
        await scene.create("task_1")
        scene.later()
        await scene.apply("task_1", CancelRequested())
        session = await scene.views.session(SESSION)
        assert session is not None
        assert session.last_seq == len(await scene.log()) == 3
        assert session.updated_at == scene.now

    async def test_what_does_not_exist_is_none_or_empty(self, scene: Scene):
        views = scene.views
        assert await views.session("no") is None
        assert await views.task("no") is None
        assert await views.request("no") is None
        assert await views.file("no", "/no") is None
        assert await views.file(SESSION, "/no") is None
        assert await views.active_at("no") is None
        assert (await views.output("no")).rows == ()
        for nothing in (
            views.tasks(["no"]),
            views.children("no"),
            views.held_by("no"),
            views.holders(),
            views.follow_ups(10),
            views.steps("no"),
            views.attempts("no"),
            views.requests("no"),
            views.messages("no"),
            views.events("no"),
            views.files("no"),
            views.transcript("no"),
            views.inbox("no"),
            views.workers(),
            views.overdue(START, 10),
            views.list_tasks(TaskFilter(session_id="no")),
        ):
            assert list(await nothing) == []


class Creation(Contract):
    async def test_a_task_comes_back_as_it_was_made_every_field_of_it(self, scene: Scene):
        change = scene.new(
            "task_1",
            not_before=scene.now + SECOND,
            spec=JSON_VALUE,
            organization_id="org_b",
            parent_task_id="task_0",
            display_name=TEXT,
            labels={"team": "blue", "naïve": TEXT},
            origin={"turn": 1, "actor": {"id": "user_1"}},
            wake_policy="on_activity",
            idempotency_key="key/1",
            priority=-3,
            concurrency_key="model:some",
            debounce_key="build",
            debounce_until=scene.now + 9 * SECOND,
            depends_on=("task_8", "task_9"),
            run_if_dependency_fails=True,
            detached=True,
            headless=True,
            on_open_children="cancel",
            retry=Retry(7, 2 * SECOND, 1.5, 60 * SECOND),
            timeouts=Timeouts(1 * SECOND, 2 * SECOND, 3 * SECOND, 4 * SECOND),
            cancel_grace=5 * SECOND,
            budget={"cost": 1.5},
            result_schema={"type": "object", "properties": {"n": {"type": "integer"}}},
            message_schema={"type": "string"},
            retry_of="task_7",
        )
        plain = Input(SESSION, SESSION, "background_tool", ROUTE, {}, scene.now)
        unfilled = {field.name for field in fields(plain)} - difference(plain, change.task.input).keys()
        assert unfilled == {"session_id", "root_session_id", "kind", "route", "created_at"}
        assert await scene.one(change) == Committed(change.task)
        assert await scene.views.task("task_1") == change.task

    async def test_a_task_may_be_held_by_the_commit_that_makes_it(self, scene: Scene):
        made = create(NewTask("task_1", scene.new("task_1").task.input), scene.now, Claimed(WORKER))
        assert await scene.one(made) == Committed(made.task)
        assert await scene.views.task("task_1") == made.task
        assert [beat.task_id for beat in await scene.views.held_by(WORKER)] == ["task_1"]
        assert await scene.views.count_by_state() == {**dict.fromkeys(State, 0), State.RUNNING: 1}
        logged = [row for row in await scene.log() if row.task_id == "task_1"]
        assert [row.type for row in logged] == ["task.created", "task.updated"]
        assert data_of(logged[0])["core"]["state"] == "queued"
        replayed = replay([(row.type, data_of(row)) for row in logged])
        assert replayed is not None
        assert replayed["core"]["worker_id"] == WORKER
        await scene.apply("task_1", Succeeded(1))
        assert (await scene.task("task_1")).state is State.SUCCEEDED

    async def test_a_creation_is_logged_with_the_whole_record(self, scene: Scene):
        task = await scene.create("task_1", spec=JSON_VALUE, labels={"a": "b"}, depends_on=("task_9",))
        row = (await scene.log())[-1]
        assert (row.seq, row.task_id, row.type, row.at) == (2, "task_1", "task.created", scene.now)
        logged = data_of(row)
        assert set(logged) == {"input", "core", "live", "outcome"}
        for name, group in logged.items():
            assert set(group) == {field.name for field in fields(getattr(task, name))}
        assert logged["input"]["spec"] == JSON_VALUE
        assert logged["input"]["depends_on"] == ["task_9"]
        assert logged["core"]["state"] == "queued"

    async def test_labels_come_back_as_they_were_given_with_a_nul_as_well(self, scene: Scene):
        labels = {"a\0b": "c\0", "\\u0000": "\\u0000", "team": "blue"}
        task = await scene.create("task_1", labels=labels)
        assert (await scene.task("task_1")) == task
        assert (await scene.task("task_1")).input.labels == labels
        for name in ("team", "\\u0000"):
            (found,) = await scene.views.list_tasks(TaskFilter(labels={name: labels[name]}))
            assert found == task

    async def test_a_task_without_its_session_is_refused_and_leaves_nothing(self, scene: Scene):
        assert await scene.one(scene.new("task_1", "session_x")) == NoSession("session_x")
        assert await scene.views.task("task_1") is None

    async def test_a_second_task_of_one_id_is_not_written_and_the_first_is_returned(self, scene: Scene):
        first = await scene.create("task_1")
        scene.later()
        assert await scene.one(scene.new("task_1", spec={"another": 1})) == Existing(first)
        assert await scene.task("task_1") == first
        assert len(await scene.log()) == 2

    async def test_an_id_taken_in_another_session_is_taken(self, scene: Scene):
        await scene.session("session_b")
        first = await scene.create("task_1")
        assert await scene.one(scene.new("task_1", "session_b")) == Existing(first)

    async def test_a_second_task_of_one_idempotency_key_is_not_written_and_the_first_is_returned(self, scene: Scene):
        first = await scene.create("task_1", idempotency_key="key")
        await scene.apply("task_1", CancelRequested())
        first = await scene.task("task_1")
        assert await scene.one(scene.new("task_2", idempotency_key="key")) == Existing(first)
        assert await scene.views.task("task_2") is None

    async def test_an_idempotency_key_belongs_to_its_session(self, scene: Scene):
        await scene.session("session_b")
        await scene.create("task_1", idempotency_key="key")
        assert isinstance(await scene.one(scene.new("task_2", "session_b", idempotency_key="key")), Committed)

    async def test_tasks_are_found_by_their_keys_in_their_session(self, scene: Scene):
        await scene.session("session_b")
        for n, (session, key) in enumerate((("session_a", "a"), ("session_a", "b"), ("session_b", "a"))):
            assert isinstance(await scene.one(scene.new(f"task_{n}", session, idempotency_key=key)), Committed)
        await scene.create("task_9")
        keyed = scene.views.keyed
        assert sorted(task.id for task in await keyed("session_a", ["a", "b", "none"])) == ["task_0", "task_1"]
        assert [*await keyed("session_b", ["b"]), *await keyed("no", ["a"]), *await keyed("session_a", [])] == []

    async def test_of_two_tasks_of_one_key_in_one_batch_the_first_is_written(self, scene: Scene):
        one = scene.new("task_1", idempotency_key="key")
        two = scene.new("task_2", idempotency_key="key")
        assert await scene.ledger.commit([one, two]) == [Committed(one.task), Existing(one.task)]
        assert [row.type for row in await scene.log()] == ["session.created", "task.created"]

    async def test_a_child_and_the_journal_row_of_its_parent_are_written_together(self, scene: Scene):
        await scene.running("task_1")
        step = scene.step("task_1", "spawn:1", value=b'"task_2"')
        child = replace(scene.new("task_2", parent_task_id="task_1"), steps=(step,))
        assert isinstance(await scene.one(child), Committed)
        assert list(await scene.views.steps("task_1")) == [step]
        assert [task.id for task in await scene.views.children("task_1")] == ["task_2"]

    async def test_a_child_of_an_attempt_that_is_over_is_not_written_nor_its_journal_row(self, scene: Scene):
        await scene.running("task_1")
        await scene.apply("task_1", HolderLost(1))
        child = replace(scene.new("task_2", parent_task_id="task_1"), steps=(scene.step("task_1", "spawn:1"),))
        assert await scene.one(child) == Fenced("task_1", 1)
        assert await scene.views.task("task_2") is None
        assert list(await scene.views.steps("task_1")) == []


class Commits(Contract):
    async def test_everything_that_a_change_carries_is_written_with_it(self, scene: Scene):
        await scene.running("task_1", wake_policy="on_terminal")
        await scene.create("task_2", depends_on=("task_1",))
        live = replace(LIVE, iterations=8)
        task = await scene.apply("task_1", Succeeded(1, b'{"n":1}', summary=TEXT, live=live))
        assert task == await scene.task("task_1")
        assert (task.state, task.live, task.outcome.summary) == (State.SUCCEEDED, live, TEXT)
        assert await scene.views.file(SESSION, "/.tasks/task_1/result.json") == b'{"n":1}'
        assert await scene.told() == [("task_1", "terminal")]
        assert await scene.pending() == [("task_2", WatchedEnded("task_1", State.SUCCEEDED))]
        (attempt,) = await scene.views.attempts("task_1")
        assert (attempt.attempt, attempt.worker_id, attempt.ending, attempt.ended_at) == (
            1,
            WORKER,
            "succeeded",
            scene.now,
        )
        last = (await scene.log())[-1]
        assert (last.type, last.task_id, last.at) == ("task.updated", "task_1", scene.now)
        assert data_of(last)["core"]["state"] == "succeeded"
        assert data_of(last)["live"]["iterations"] == 8

    async def test_a_change_that_lost_the_version_race_writes_nothing_and_returns_the_current_record(
        self, scene: Scene
    ):
        await scene.running("task_1", wake_policy="on_activity")
        await scene.create("task_2", depends_on=("task_1",))
        question = scene.request("req_1", "task_1")
        seen = await scene.task("task_1")
        events = (
            Asked(1, question, scene.step("task_1", "ask:1")),
            Posted(1, scene.message("tmsg_1", "task_1", "outbound"), scene.step("task_1", "post:1")),
            Produced(1, Artifact("a", "file", "/a"), scene.file("/a"), scene.step("task_1", "artifact:1")),
            Succeeded(1, b"1"),
        )
        late = [apply(seen, event, scene.now) for event in events]
        current = await scene.apply("task_1", MessageReceived(scene.message("tmsg_2", "task_1")))
        log = await scene.log()
        assert await scene.ledger.commit(late) == [Stale(current)] * 4
        assert await scene.task("task_1") == current
        assert await scene.log() == log
        assert await scene.pending() == []
        assert await scene.told() == []
        for nothing in (
            scene.views.steps("task_1"),
            scene.views.attempts("task_1"),
            scene.views.requests("task_1"),
            scene.views.files(SESSION),
        ):
            assert list(await nothing) == []
        assert [message.id for message in await scene.views.messages("task_1")] == ["tmsg_2"]

    async def test_a_change_to_a_task_that_is_gone_is_stale_without_a_record(self, scene: Scene):
        change = apply(scene.new("task_1").task, CancelRequested(), scene.now)
        assert await scene.one(change) == Stale(None)
        assert len(await scene.log()) == 1

    async def test_of_two_changes_decided_on_one_version_the_first_wins_in_one_batch(self, scene: Scene):
        await scene.create("task_1")
        one = await scene.decide("task_1", CancelRequested(by="one"))
        two = await scene.decide("task_1", CancelRequested(by="two"))
        assert await scene.ledger.commit([one, two]) == [Committed(one.task), Stale(one.task)]
        assert (await scene.task("task_1")).core.canceled_by == "one"

    async def test_changes_of_one_task_follow_each_other_in_one_batch(self, scene: Scene):
        made = scene.new("task_1")
        told = apply(made.task, MessageReceived(scene.message("tmsg_1", "task_1")), scene.now)
        ended = apply(told.task, CancelRequested(), scene.now)
        verdicts = await scene.ledger.commit([made, told, ended])
        assert [committed(verdict).core.version for verdict in verdicts] == [1, 2, 3]
        assert [row.type for row in await scene.log()] == [
            "session.created",
            "task.created",
            "task.updated",
            "task.message",
            "task.updated",
        ]
        assert (await scene.task("task_1")).state is State.CANCELED

    async def test_a_refused_change_does_not_disturb_its_neighbours(self, scene: Scene):
        await scene.create("task_1")
        stale = await scene.decide("task_1", CancelRequested())
        current = await scene.apply("task_1", MessageReceived(scene.message("tmsg_1", "task_1")))
        before, after = scene.new("task_2"), scene.new("task_3")
        lost = scene.new("task_4", "session_x")
        assert await scene.ledger.commit([before, stale, lost, after]) == [
            Committed(before.task),
            Stale(current),
            NoSession("session_x"),
            Committed(after.task),
        ]
        assert [row.seq for row in await scene.log()] == list(range(1, 7))

    async def test_a_commit_of_nothing_writes_nothing(self, scene: Scene):
        assert list(await scene.ledger.commit([])) == []
        assert len(await scene.log()) == 1

    async def test_a_commit_that_raises_has_written_none_of_its_changes(self, scene: Scene):
        good = scene.new("task_1")
        bad = replace(scene.new("task_2"), events=(LogEvent("task.created", {"input": object()}),))
        with pytest.raises(TypeError):
            await scene.ledger.commit([good, bad])
        assert await scene.views.tasks(["task_1", "task_2"]) == []
        assert len(await scene.log()) == 1
        await scene.create("task_1")

    async def test_each_of_many_callers_gets_its_own_verdict(self, scene: Scene):
        verdicts: dict[str, object] = {}

        async def submit(number: int) -> None:
            id = f"task_{number:03}"
            verdicts[id] = await scene.one(scene.new(id, "session_x" if number % 5 == 0 else SESSION))

        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(submit, number)
        for id, verdict in verdicts.items():
            expected = NoSession("session_x") if int(id[-3:]) % 5 == 0 else Committed(await scene.task(id))
            assert verdict == expected
        assert [row.seq for row in await scene.log()] == list(range(1, 82))

    async def test_a_change_leaves_the_live_values_it_does_not_set(self, scene: Scene):
        await scene.running("task_1")
        seen = await scene.task("task_1")
        await scene.ledger.report([Report("task_1", 1, scene.now, LIVE)])
        change = apply(seen, MessageReceived(scene.message("tmsg_1", "task_1")), scene.now)
        task = committed(await scene.one(change))
        assert task.live == LIVE
        assert task == await scene.task("task_1")

    async def test_a_change_that_does_nothing_writes_nothing_and_tells_how_the_record_stands(self, scene: Scene):
        task = await scene.create("task_1")
        change = await scene.decide("task_1", WatchedEnded("task_9", State.FAILED))
        assert change.is_noop
        assert await scene.one(change) == Committed(task)
        assert len(await scene.log()) == 2

    async def test_a_change_that_does_nothing_is_stale_like_any_other(self, scene: Scene):
        await scene.create("task_1")
        change = await scene.decide("task_1", WatchedEnded("task_9", State.FAILED))
        current = await scene.apply("task_1", MessageReceived(scene.message("tmsg_1", "task_1")))
        assert await scene.one(change) == Stale(current)

    async def test_requests_are_kept_after_they_are_closed(self, scene: Scene):
        await scene.running("task_1")
        one = scene.request(
            "req_1", "task_1", expected={"type": "boolean"}, details=JSON_VALUE, default=False, on_expiry="default"
        )
        two = scene.request("req_2", "task_1", deadline_at=scene.now + SECOND, remind_at=scene.now + 1, remind_every=2)
        await scene.apply("task_1", Asked(1, one))
        task = await scene.apply("task_1", Asked(1, two))
        assert task.core.requests == (one, two) == tuple(await scene.views.requests("task_1"))
        scene.later(1)
        await scene.apply("task_1", Answered("req_1", JSON_VALUE, by="user_1", via="cli"))
        closed, pending = await scene.views.requests("task_1")
        assert (closed.status, closed.answer, closed.answered_by, closed.closed_at) == (
            "answered",
            JSON_VALUE,
            "user_1",
            scene.now,
        )
        assert pending == two
        assert await scene.views.request("req_1") == closed
        assert await scene.views.request("req_2") == two
        assert (await scene.task("task_1")).core.requests == (two,)

    async def test_attempts_are_kept_in_order_with_how_they_ended(self, scene: Scene):
        await scene.running("task_1")
        await scene.apply("task_1", HolderLost(1))
        scene.later()
        await scene.reclaim("task_1", "worker_b")
        await scene.apply("task_1", Released(2))
        await scene.reclaim("task_1", "worker_c")
        error = TaskError("exception", TEXT, JSON_VALUE)
        await scene.apply("task_1", Failed(3, error, retryable=False))
        attempts = await scene.views.attempts("task_1")
        assert [(one.attempt, one.worker_id, one.ending) for one in attempts] == [
            (1, WORKER, "lost"),
            (2, "worker_b", "released"),
            (3, "worker_c", "failed"),
        ]
        assert attempts[0].error is not None
        assert attempts[0].error.kind == "orphaned"
        assert attempts[2].error == error
        assert (await scene.task("task_1")).outcome.error == error

    async def test_messages_come_in_the_order_they_were_written_and_after_the_last_one_seen(self, scene: Scene):
        await scene.running("task_1")
        await scene.running("task_2")
        for number, direction in enumerate(["inbound", "outbound", "inbound", "outbound"]):
            message = scene.message(f"tmsg_{number}", "task_1", direction)
            await scene.apply("task_1", MessageReceived(message) if direction == "inbound" else Posted(1, message))
        full = replace(scene.message("tmsg_9", "task_2"), parts=(JSON_VALUE,), sender=TEXT, in_reply_to="tmsg_0")
        await scene.apply("task_2", MessageReceived(full))

        async def ids(**how: Any) -> str:
            return "".join(one.id[-1] for one in await scene.views.messages("task_1", **how))

        assert await ids() == "0123"
        assert await ids(direction="inbound") == "02"
        assert await ids(after="tmsg_0") == "123"
        assert await ids(after="tmsg_0", direction="inbound") == "2"
        assert await ids(limit=2) == "01"
        assert await ids(after="tmsg_3") == ""
        assert list(await scene.views.messages("task_2")) == [full]
        logged = [data_of(row)["message"]["id"] for row in await scene.log() if row.type == "task.message"]
        assert logged == ["tmsg_0", "tmsg_1", "tmsg_2", "tmsg_3", "tmsg_9"]


Write = Callable[[Scene, int], Awaitable[bool]]


async def _reports(scene: Scene, attempt: int) -> bool:
    return (await scene.ledger.report([Report("task_1", attempt, scene.now, LIVE, {"iterations": 7})]))[0]


async def _journals(scene: Scene, attempt: int) -> bool:
    return (await scene.ledger.journal([scene.step("task_1", f"step:{attempt}", attempt)]))[0]


async def _prints(scene: Scene, attempt: int) -> bool:
    return (await scene.ledger.print([OutputChunk("task_1", attempt, "stdout", "text", scene.now, 1000)]))[0]


async def _appends(scene: Scene, attempt: int) -> bool:
    steps = (scene.step("task_1", "after", attempt),)
    return await scene.ledger.append(
        Page(SESSION, "task_1", attempt, 1, (b'{"a":1}',), LIVE, scene.now, forget="kept", steps=steps)
    )


async def _writes_a_file(scene: Scene, attempt: int) -> bool:
    return await scene.ledger.write_file(scene.file("/a"), ("task_1", attempt))


async def _commits_a_step(scene: Scene, attempt: int) -> bool:
    child = scene.new("task_2", parent_task_id="task_1")
    verdict = await scene.one(replace(child, steps=(scene.step("task_1", "spawn:1", attempt),)))
    assert verdict in (Committed(child.task), Fenced("task_1", attempt))
    return isinstance(verdict, Committed)


RUNNING_WRITES = [_reports, _journals, _prints, _appends, _writes_a_file, _commits_a_step]


async def everything_of(scene: Scene, task_id: str) -> tuple[object, ...]:
    views = scene.views
    return (
        await views.task(task_id),
        await views.active_at(task_id),
        list(await views.steps(task_id)),
        list(await views.attempts(task_id)),
        list(await views.messages(task_id)),
        await views.output(task_id),
        list(await views.files(SESSION)),
        list(await views.transcript(SESSION)),
        await scene.log(),
    )


class Fencing(Contract):
    @pytest.fixture(params=RUNNING_WRITES, ids=lambda write: write.__name__.strip("_"))
    def write(self, request: pytest.FixtureRequest) -> Write:
        chosen: Write = request.param
        return chosen

    @pytest.fixture
    async def held(self, scene: Scene) -> Scene:
        await scene.running("task_1", wake_policy="on_activity")
        await scene.ledger.journal([scene.step("task_1", "kept")])
        return scene

    async def test_the_attempt_that_holds_its_task_may_write(self, held: Scene, write: Write):
        before = await everything_of(held, "task_1")
        assert await write(held, 1) is True
        assert await everything_of(held, "task_1") != before

    async def test_an_attempt_that_was_lost_writes_nothing_though_nobody_holds_the_task(
        self, held: Scene, write: Write
    ):
        await held.apply("task_1", HolderLost(1))
        before = await everything_of(held, "task_1")
        assert await write(held, 1) is False
        assert await everything_of(held, "task_1") == before

    async def test_an_attempt_whose_task_was_claimed_again_writes_nothing(self, held: Scene, write: Write):
        await held.apply("task_1", Released(1))
        await held.reclaim("task_1", "worker_b")
        before = await everything_of(held, "task_1")
        assert await write(held, 1) is False
        assert await everything_of(held, "task_1") == before

    async def test_an_attempt_yet_to_come_writes_nothing(self, held: Scene, write: Write):
        before = await everything_of(held, "task_1")
        assert await write(held, 2) is False
        assert await everything_of(held, "task_1") == before

    async def test_the_attempt_that_ended_its_task_writes_nothing_more(self, held: Scene, write: Write):
        await held.succeed("task_1")
        before = await everything_of(held, "task_1")
        assert await write(held, 1) is False
        assert await everything_of(held, "task_1") == before

    async def test_a_change_of_an_attempt_that_is_over_is_fenced_before_it_is_stale(self, held: Scene):
        late = await held.decide("task_1", Asked(1, held.request("req_1", "task_1"), held.step("task_1", "ask:1")))
        await held.apply("task_1", HolderLost(1))
        before = await everything_of(held, "task_1")
        assert await held.one(late) == Fenced("task_1", 1)
        assert await everything_of(held, "task_1") == before

    async def test_an_attempt_of_a_parked_task_writes_nothing_more(self, held: Scene, write: Write):
        await held.park("task_1", WaitUntil(held.now + SECOND))
        before = await everything_of(held, "task_1")
        assert await write(held, 1) is False
        assert await everything_of(held, "task_1") == before


class RunningWork(Contract):
    async def test_a_batch_of_running_writes_refuses_only_those_of_attempts_that_are_over(self, scene: Scene):
        await scene.running("task_1")
        await scene.running("task_2")
        now = scene.now
        assert list(await scene.ledger.report([Report(id, n, now) for id, n in STALE_AMONG_SOUND])) == SOUND
        assert (
            list(await scene.ledger.journal([scene.step(id, f"{id}:{n}", n) for id, n in STALE_AMONG_SOUND])) == SOUND
        )
        chunks = [OutputChunk(id, n, "stdout", f"{n}", now, 1000) for id, n in STALE_AMONG_SOUND]
        assert list(await scene.ledger.print(chunks)) == SOUND
        assert [step.position for step in await scene.views.steps("task_1")] == ["task_1:1"]
        assert [row.text for row in (await scene.views.output("task_2")).rows] == ["1"]

    async def test_a_report_replaces_the_live_values_without_moving_the_version(self, scene: Scene):
        before = await scene.running("task_1")
        assert list(await scene.ledger.report([Report("task_1", 1, scene.now, LIVE)])) == [True]
        after = await scene.task("task_1")
        assert after == replace(before, live=LIVE)

    async def test_of_two_reports_in_one_batch_the_last_stays(self, scene: Scene):
        await scene.running("task_1")
        one, two = replace(LIVE, iterations=1), replace(LIVE, iterations=2)
        reports = [Report("task_1", 1, scene.now, live, {"iterations": live.iterations}) for live in (one, two)]
        assert list(await scene.ledger.report(reports)) == [True, True]
        assert (await scene.task("task_1")).live == two
        assert [data_of(row) for row in (await scene.log())[-2:]] == [{"iterations": 1}, {"iterations": 2}]

    async def test_what_a_report_tells_readers_goes_to_the_log_and_nothing_else_does(self, scene: Scene):
        await scene.running("task_1")
        scene.later()
        await scene.ledger.report([Report("task_1", 1, scene.now, LIVE, {"state_detail": TEXT, "progress": None})])
        row = (await scene.log())[-1]
        assert (row.type, row.task_id, row.at) == ("task.progress", "task_1", scene.now)
        assert data_of(row) == {"state_detail": TEXT, "progress": None}
        await scene.ledger.report([Report("task_1", 1, scene.now, LIVE), Report("task_1", 1, scene.now)])
        assert (await scene.log())[-1] == row
        assert (await scene.task("task_1")).live == LIVE

    async def test_a_sign_of_life_is_kept_and_never_goes_back(self, scene: Scene):
        await scene.running("task_1")
        assert await scene.views.active_at("task_1") is None
        for moment, newest in ((5, 5), (3, 5), (9, 9)):
            await scene.ledger.report([Report("task_1", 1, START + moment)])
            assert await scene.views.active_at("task_1") == START + newest

    async def test_a_sign_of_life_belongs_to_its_attempt(self, scene: Scene):
        await scene.running("task_1")
        await scene.ledger.report([Report("task_1", 1, scene.now)])
        await scene.apply("task_1", Released(1))
        await scene.reclaim("task_1")
        assert await scene.views.active_at("task_1") is None

    async def test_the_journal_comes_back_in_the_order_it_was_written(self, scene: Scene):
        await scene.running("task_1")
        steps = [
            scene.step("task_1", "list", value=json.dumps(JSON_VALUE).encode()),
            scene.step("task_1", "read/naïve", value=b"null"),
            scene.step("task_1", "publish", value=None, done=False),
        ]
        assert list(await scene.ledger.journal(steps)) == [True, True, True]
        assert list(await scene.views.steps("task_1")) == steps
        without = [replace(step, value=None) for step in steps]
        assert list(await scene.views.steps("task_1", values=False)) == without

    async def test_a_journal_row_replaces_the_one_of_its_position_in_its_place(self, scene: Scene):
        await scene.running("task_1")
        intent = scene.step("task_1", "publish", value=None, done=False)
        other = scene.step("task_1", "read")
        await scene.ledger.journal([intent, other])
        done = replace(intent, value=b'"done"', done=True)
        assert list(await scene.ledger.journal([done])) == [True]
        assert list(await scene.views.steps("task_1")) == [done, other]

    async def test_the_journal_survives_from_attempt_to_attempt(self, scene: Scene):
        await scene.running("task_1")
        one = scene.step("task_1", "one")
        await scene.ledger.journal([one])
        await scene.apply("task_1", HolderLost(1))
        await scene.reclaim("task_1")
        two = scene.step("task_1", "two", attempt=2)
        await scene.ledger.journal([two])
        assert list(await scene.views.steps("task_1")) == [one, two]

    async def test_journal_rows_are_neither_events_nor_transitions(self, scene: Scene):
        before = await scene.running("task_1")
        log = await scene.log()
        await scene.ledger.journal([scene.step("task_1", "one")])
        assert (await scene.task("task_1"), await scene.log()) == (before, log)

    async def test_an_iteration_is_appended_with_its_totals_and_forgets_its_journal(self, scene: Scene):
        before = await scene.running("task_1")
        for position in ("model:2:1", "model:2:1:tool", "model:20", "survey"):
            await scene.ledger.journal([scene.step("task_1", position)])
        scene.later()
        last = scene.step("task_1", "model:3")
        page = Page(
            SESSION, "task_1", 1, 2, (b'{"role":"user"}', b'["x"]'), LIVE, scene.now, forget="model:2:", steps=(last,)
        )
        assert await scene.ledger.append(page) is True
        rows = await scene.views.transcript(SESSION)
        assert [(row.number, row.task_id, row.iteration, row.message) for row in rows] == [
            (1, "task_1", 2, b'{"role":"user"}'),
            (2, "task_1", 2, b'["x"]'),
        ]
        assert [step.position for step in await scene.views.steps("task_1")] == ["model:20", "survey", "model:3"]
        assert await scene.task("task_1") == replace(before, live=LIVE)
        assert await scene.views.active_at("task_1") == scene.now
        row = (await scene.log())[-1]
        assert (row.type, row.at) == ("task.updated", scene.now)
        assert set(data_of(row)) == {"live"}
        assert set(data_of(row)["live"]) == set(difference(Live(), LIVE))

    async def test_an_iteration_without_a_prefix_forgets_nothing(self, scene: Scene):
        await scene.running("task_1")
        await scene.ledger.journal([scene.step("task_1", "one")])
        await scene.ledger.append(Page(SESSION, "task_1", 1, 1, (), Live(iterations=1), scene.now))
        assert len(await scene.views.steps("task_1")) == 1

    async def test_a_prefix_to_forget_is_taken_literally(self, scene: Scene):
        await scene.running("task_1")
        for position in ("a%b", "a_b", "axb", "A_b", "a*b"):
            await scene.ledger.journal([scene.step("task_1", position)])
        await scene.ledger.append(Page(SESSION, "task_1", 1, 1, (), LIVE, scene.now, forget="a_"))
        assert [step.position for step in await scene.views.steps("task_1")] == ["a%b", "axb", "A_b", "a*b"]

    async def test_a_transcript_is_numbered_by_session_and_read_after_the_last_entry_seen(self, scene: Scene):
        await scene.session("session_b")
        await scene.running("task_1")
        for iteration in (1, 2):
            page = Page("session_b", "task_1", 1, iteration, (b"1", b"2"), Live(iterations=iteration), scene.now)
            assert await scene.ledger.append(page)
        assert [row.number for row in await scene.views.transcript("session_b")] == [1, 2, 3, 4]
        assert [row.number for row in await scene.views.transcript("session_b", after=3)] == [4]
        assert [row.number for row in await scene.views.transcript("session_b", after=1, limit=2)] == [2, 3]
        assert list(await scene.views.transcript(SESSION)) == []


STALE_AMONG_SOUND = [("task_1", 1), ("task_1", 2), ("task_2", 1), ("task_9", 1)]
SOUND = [True, False, True, False]


class PrintedOutput(Contract):
    @pytest.fixture
    async def printing(self, scene: Scene) -> Scene:
        await scene.running("task_1")
        return scene

    async def print(self, scene: Scene, *texts: str, keep: int = 1000, stream: str = "stdout") -> None:
        chunks = [OutputChunk("task_1", 1, stream, text, scene.now, keep) for text in texts]
        assert all(await scene.ledger.print(chunks))

    async def test_what_a_task_ends_with_is_printed_with_its_end_or_not_at_all(self, printing: Scene):
        await self.print(printing, "first, ")
        last = OutputChunk("task_1", 1, "stderr", "last", printing.now, 1000)
        end = await printing.decide("task_1", Succeeded(1))
        stale = replace(last, attempt=2)
        assert await printing.one(replace(end, printed=(stale,))) == Fenced("task_1", 2)
        assert (await printing.task("task_1")).state is State.RUNNING
        assert isinstance(await printing.one(replace(end, printed=(last,))), Committed)
        output = await printing.views.output("task_1")
        assert [(row.offset, row.stream, row.text) for row in output.rows] == [
            (0, "stdout", "first, "),
            (7, "stderr", "last"),
        ]
        assert [row.type for row in await printing.log()][-3:] == ["task.output", "task.output", "task.updated"]
        assert isinstance(await printing.one(replace(end, printed=(last,))), Stale)
        assert (await printing.views.output("task_1")).next == 11

    async def test_offsets_count_the_bytes_of_all_streams(self, printing: Scene):
        await self.print(printing, "naïve", "日本")
        await self.print(printing, "🦉", stream="stderr")
        await self.print(printing, "end\n")
        output = await printing.views.output("task_1")
        assert [(row.stream, row.offset, row.text) for row in output.rows] == [
            ("stdout", 0, "naïve"),
            ("stdout", 6, "日本"),
            ("stderr", 12, "🦉"),
            ("stdout", 16, "end\n"),
        ]
        assert (output.first, output.next) == (0, 20)
        assert output.rows[0].at == printing.now

    async def test_a_reader_that_resumes_at_the_cursor_gets_every_piece_once(self, printing: Scene):
        texts = [TEXT[: n % 20 + 1] for n in range(50)]
        await self.print(printing, *texts)
        read, cursor = [], 0
        while True:
            page = await printing.views.output("task_1", start=cursor, limit=7)
            if not page.rows:
                break
            read += [row.text for row in page.rows]
            cursor = page.next
        assert read == texts
        assert cursor == sum(len(text.encode()) for text in texts)
        await self.print(printing, "more")
        page = await printing.views.output("task_1", start=cursor)
        assert [row.text for row in page.rows] == ["more"]

    async def test_a_cursor_inside_a_piece_gets_the_piece_whole(self, printing: Scene):
        await self.print(printing, "abc", "def")
        assert [row.text for row in (await printing.views.output("task_1", start=4)).rows] == ["def"]
        assert [row.text for row in (await printing.views.output("task_1", start=3)).rows] == ["def"]
        assert [row.text for row in (await printing.views.output("task_1", start=2)).rows] == ["abc", "def"]

    async def test_only_the_tail_is_kept_and_offsets_go_on(self, printing: Scene):
        for n in range(10):
            await self.print(printing, f"{n}" * 4, keep=10)
        output = await printing.views.output("task_1")
        assert [row.text for row in output.rows] == ["7777", "8888", "9999"]
        assert (output.first, output.next) == (28, 40)

    async def test_the_tail_is_cut_within_one_batch_as_between_batches(self, printing: Scene):
        await self.print(printing, *(f"{n}" * 4 for n in range(10)), keep=10)
        output = await printing.views.output("task_1")
        assert [row.text for row in output.rows] == ["7777", "8888", "9999"]
        assert (output.first, output.next) == (28, 40)

    async def test_a_reader_behind_the_tail_is_told_from_where_it_is_kept(self, printing: Scene):
        await self.print(printing, "aaaa", "bbbb", keep=4)
        output = await printing.views.output("task_1", start=0)
        assert ([row.text for row in output.rows], output.first, output.next) == (["bbbb"], 4, 8)

    async def test_output_is_kept_when_the_task_has_ended_and_goes_on_in_the_next_attempt(self, printing: Scene):
        await self.print(printing, "one")
        await printing.apply("task_1", Released(1))
        await printing.reclaim("task_1")
        await printing.ledger.print([OutputChunk("task_1", 2, "stdout", "two", printing.now, 1000)])
        await printing.succeed("task_1")
        rows = (await printing.views.output("task_1")).rows
        assert [(row.offset, row.text) for row in rows] == [(0, "one"), (3, "two")]

    async def test_the_log_tells_once_for_each_batch_how_far_a_task_has_printed(self, printing: Scene):
        await self.print(printing, "one\n", "two\n")
        both = [OutputChunk("task_1", 1, stream, "x", printing.now, 1000) for stream in ("stdout", "stderr")]
        assert list(await printing.ledger.print([*both, OutputChunk("task_1", 2, "stdout", "x", 0, 9)])) == [
            True,
            True,
            False,
        ]
        told = [row for row in await printing.log() if row.type == "task.output"]
        assert [data_of(row) for row in told] == [
            {"stream": "stdout", "from": 0, "to": 8},
            {"stream": None, "from": 8, "to": 10},
        ]
        assert {(row.task_id, row.at) for row in told} == {("task_1", printing.now)}

    async def test_a_task_that_printed_nothing_has_an_empty_output(self, printing: Scene):
        output = await printing.views.output("task_1")
        assert (output.rows, output.first, output.next) == ((), 0, 0)


class Heritages(Contract):
    async def test_a_task_may_be_made_with_a_journal_of_its_own_that_nobody_fences(self, scene: Scene):
        steps = (scene.step("task_1", "one", 0), scene.step("task_1", "two", 0, None, done=False))
        request = replace(scene.request("req_1", "task_1"), status="answered", answer=JSON_VALUE)
        change = replace(
            scene.new("task_1"),
            steps=steps,
            requests=(request,),
            messages=(scene.message("tmsg_1", "task_1"),),
            files=(scene.file("/.tasks/task_1/a"),),
        )
        committed(await scene.one(change))
        views = scene.views
        assert list(await views.steps("task_1")) == list(steps)
        assert list(await views.requests("task_1")) == [request]
        assert [message.id for message in await views.messages("task_1")] == ["tmsg_1"]
        assert await views.file(SESSION, "/.tasks/task_1/a") == b"content"

    async def test_a_task_from_elsewhere_brings_its_attempts_its_output_and_a_transcript(self, scene: Scene):
        await scene.session("session_child", parent_task_id="task_1")
        ends = tuple(
            AttemptEnd("task_1", n, WORKER, scene.now, scene.now, "lost", TaskError("x", TEXT)) for n in (1, 2)
        )
        output = (OutputRow("stdout", 10, "naïve", scene.now), OutputRow("stderr", 16, "x", scene.now))
        luggage = Luggage(ends, output, "session_child", ((1, b'{"a":1}'), (2, b"2")))
        committed(await scene.one(replace(scene.new("task_1"), luggage=luggage)))
        views = scene.views
        assert list(await views.attempts("task_1")) == list(ends)
        found = await views.output("task_1")
        assert (tuple(found.rows), found.first, found.next) == (output, 10, 17)
        rows = await views.transcript("session_child")
        assert [(row.number, row.task_id, row.iteration, row.message) for row in rows] == [
            (1, "task_1", 1, b'{"a":1}'),
            (2, "task_1", 2, b"2"),
        ]
        (task,) = (await scene.claim()).tasks
        await scene.ledger.print([OutputChunk("task_1", 1, "stdout", "more", scene.now, 1000)])
        assert [row.offset for row in (await views.output("task_1")).rows] == [10, 16, 17]
        await scene.ledger.append(Page("session_child", "task_1", task.core.attempt, 3, (b"3",), LIVE, scene.now))
        assert (await views.transcript("session_child"))[-1].number == 3

    async def test_what_a_task_from_elsewhere_has_taken_is_spent_here_too(self, scene: Scene):
        budget = {"tokens": 1000, "tree": {"tokens": 100}}
        names = ("task:task_1", f"tree:{SESSION}")
        took, lost = Amounts(2, 45, 7, 1), Amounts(1, 30, 5)
        for number, is_told in ((1, False), (2, True)):
            change = scene.new(f"task_{number}", budget=budget)
            accounts = tuple(
                Account(tap.account, tap.budget, 5, tap.tell, took, unknown=lost) for tap in taps_of(change.task)
            )
            committed(await scene.one(replace(change, luggage=Luggage(accounts=accounts))))
            assert await scene.told() == ([("task_2", "budget")] if is_told else [])
        own, tree = [(await scene.views.meters(names))[name] for name in names]
        assert own == Account(names[0], Budget(tokens=1000), 5, None, took, unknown=lost)
        shared = Account(names[1], Budget(tokens=100), 5, SESSION, took.plus(took), unknown=lost.plus(lost))
        assert tree == replace(shared, is_marked=True)

    async def test_a_task_whose_own_session_is_missing_is_not_made(self, scene: Scene):
        luggage = Luggage(child_session_id="session_none")
        verdict = await scene.one(replace(scene.new("task_1"), luggage=luggage))
        assert verdict == NoSession("session_none")
        assert await scene.views.task("task_1") is None

    async def test_where_the_task_exists_nothing_of_that_is_written(self, scene: Scene):
        await scene.create("task_1")
        change = replace(scene.new("task_1"), steps=(scene.step("task_1", "one", 0),))
        assert isinstance(await scene.one(change), Existing)
        assert list(await scene.views.steps("task_1")) == []

    async def test_rows_of_any_other_task_are_fenced_all_the_same(self, scene: Scene):
        await scene.create("task_1")
        steps = (scene.step("task_2", "one", 0), scene.step("task_1", "one", 1))
        assert await scene.one(replace(scene.new("task_2"), steps=steps)) == Fenced("task_1", 1)
        assert await scene.views.task("task_2") is None

    async def test_no_transition_brings_rows_without_a_fence(self, scene: Scene):
        await scene.create("task_1")
        change = replace(await scene.decide("task_1", CancelRequested()), steps=(scene.step("task_1", "one", 1),))
        assert await scene.one(change) == Fenced("task_1", 1)


class FollowUps(Contract):
    async def test_who_watches_a_task_hears_of_its_end_once(self, scene: Scene):
        await scene.running("task_1")
        await scene.create("task_2", depends_on=("task_1",))
        await scene.create("task_3", depends_on=("task_1",))
        await scene.succeed("task_1")
        ended = WatchedEnded("task_1", State.SUCCEEDED)
        assert await scene.pending() == [("task_2", ended), ("task_3", ended)]

    async def test_who_watches_a_task_that_has_ended_hears_at_once_how(self, scene: Scene):
        await scene.running("task_1")
        await scene.apply("task_1", Failed(1, TaskError("exception", "no"), retryable=False))
        await scene.create("task_2", depends_on=("task_1",))
        assert await scene.pending() == [("task_2", WatchedEnded("task_1", State.FAILED))]

    async def test_who_watches_a_task_that_does_not_exist_hears_that_it_failed(self, scene: Scene):
        await scene.create("task_2", depends_on=("task_9",))
        assert await scene.pending() == [("task_2", WatchedEnded("task_9", State.FAILED))]

    async def test_no_wake_is_lost_when_the_awaited_task_ends_before_the_park_is_written(self, scene: Scene):
        await scene.running("task_1")
        await scene.running("task_2")
        parked = await scene.decide("task_1", Parked(1, (WaitForTasks(("task_2",)),)))
        await scene.succeed("task_2")
        committed(await scene.one(parked))
        assert await scene.pending() == [("task_1", WatchedEnded("task_2", State.SUCCEEDED))]

    async def test_the_end_and_the_watch_meet_in_either_order_of_one_batch(self, scene: Scene):
        for end_first in (True, False):
            waiter, awaited = (f"task_{end_first}_{name}" for name in ("waiter", "awaited"))
            await scene.running(waiter)
            await scene.running(awaited)
            changes = [
                await scene.decide(awaited, Succeeded(1)),
                await scene.decide(waiter, Parked(1, (WaitForTasks((awaited,)),))),
            ]
            for verdict in await scene.ledger.commit(changes if end_first else changes[::-1]):
                committed(verdict)
            assert (waiter, WatchedEnded(awaited, State.SUCCEEDED)) in await scene.pending()

    async def test_a_task_created_and_awaited_in_one_batch_is_watched(self, scene: Scene):
        await scene.running("task_1")
        parked = await scene.decide("task_1", Parked(1, (WaitForTasks(("task_2",)),)))
        await scene.ledger.commit([scene.new("task_2", route="background_tool:task_2"), parked])
        assert await scene.pending() == []
        await scene.reclaim("task_2")
        await scene.succeed("task_2")
        assert await scene.pending() == [("task_1", WatchedEnded("task_2", State.SUCCEEDED))]

    async def test_who_watches_a_task_hears_what_it_asks_also_as_it_parks_and_watches_on(self, scene: Scene):
        await scene.running("task_1")
        await scene.running("task_2")
        seen = (await scene.task("task_2")).core.version
        parked = await scene.decide("task_1", Parked(1, (WaitForTasks(("task_2",), seen={"task_2": seen}),)))
        await scene.apply("task_2", Asked(1, scene.request("req_1", "task_2")))
        committed(await scene.one(parked))
        asked = WatchedAsked("task_2")
        assert await scene.pending() == [("task_1", asked)]
        for request in ("req_2", "req_3"):
            await scene.apply("task_2", Asked(1, scene.request(request, "task_2")))
        assert await scene.pending() == [("task_1", asked)] * 3
        await scene.apply("task_1", asked)
        await scene.reclaim("task_1")
        seen = (await scene.task("task_2")).core.version  # it asks, and that is known
        await scene.park("task_1", WaitForTasks(("task_2",), seen={"task_2": seen}))
        await scene.succeed("task_2")
        assert await scene.pending() == [*[("task_1", asked)] * 3, ("task_1", WatchedEnded("task_2", State.SUCCEEDED))]

    async def test_watching_twice_is_heard_once(self, scene: Scene):
        await scene.running("task_1")
        await scene.running("task_2")
        await scene.park("task_1", WaitForTasks(("task_2",)), WaitForMessage(0))
        await scene.apply("task_1", MessageReceived(scene.message("tmsg_1", "task_1")))
        await scene.reclaim("task_1")
        await scene.park("task_1", WaitForTasks(("task_2",)))
        await scene.succeed("task_2")
        assert await scene.pending() == [("task_1", WatchedEnded("task_2", State.SUCCEEDED))]

    async def test_news_for_children_reaches_the_live_and_linked_ones(self, scene: Scene):
        parent = {"parent_task_id": "task_1"}
        await scene.running("task_1")
        await scene.running("task_2", **parent)
        await scene.create("task_3", **parent)
        await scene.create("task_4", **parent, detached=True)
        await scene.create("task_5")
        await scene.succeed("task_2")
        await scene.apply("task_1", Failed(1, TaskError("exception", "no"), retryable=False))
        assert [task_id for task_id, _ in await scene.pending()] == ["task_3"]
        ((_, event),) = await scene.pending()
        assert isinstance(event, CancelRequested)
        assert event.by == "task:task_1"

    async def test_news_for_all_children_reaches_the_detached_ones_too(self, scene: Scene):
        await scene.running("task_1")
        await scene.create("task_2", parent_task_id="task_1")
        await scene.create("task_3", parent_task_id="task_1", detached=True)
        await scene.apply("task_1", CancelRequested(by="user_1", reason=TEXT, include_detached=True, grace=5))
        assert [task_id for task_id, _ in await scene.pending()] == ["task_2", "task_3"]
        for _, event in await scene.pending():
            assert event == CancelRequested(by="user_1", reason=TEXT, include_detached=True)

    async def test_a_child_made_earlier_in_the_batch_is_reached_one_made_later_is_not(self, scene: Scene):
        await scene.running("task_1")
        early = scene.new("task_2", parent_task_id="task_1")
        late = scene.new("task_3", parent_task_id="task_1")
        ended = await scene.decide("task_1", Failed(1, TaskError("exception", "no"), retryable=False))
        await scene.ledger.commit([early, ended, late])
        assert [task_id for task_id, _ in await scene.pending()] == ["task_2"]

    async def test_a_follow_up_goes_with_the_change_that_answers_it(self, scene: Scene):
        await scene.create("task_1", depends_on=("task_9",))
        (one,) = await scene.views.follow_ups(10)
        change = replace(await scene.decide("task_1", one.event), settles=one.id)
        task = committed(await scene.one(change))
        assert task.state is State.FAILED
        assert await scene.pending() == []

    async def test_a_follow_up_answered_twice_is_answered_once(self, scene: Scene):
        await scene.create("task_1", depends_on=("task_9",))
        (one,) = await scene.views.follow_ups(10)
        change = replace(await scene.decide("task_1", one.event), settles=one.id)
        committed(await scene.one(change))
        log = await scene.log()
        assert await scene.one(change) == Settled()
        again = await scene.decide("task_1", one.event)
        assert await scene.ledger.commit([replace(again, settles=one.id)] * 2) == [Settled(), Settled()]
        assert await scene.log() == log

    async def test_a_follow_up_that_changes_nothing_goes_all_the_same(self, scene: Scene):
        await scene.create("task_1", depends_on=("task_9",))
        (one,) = await scene.views.follow_ups(10)
        task = await scene.apply("task_1", CancelRequested())
        change = replace(await scene.decide("task_1", one.event), settles=one.id)
        assert change.is_noop
        assert await scene.one(change) == Committed(task)
        assert await scene.pending() == []
        assert await scene.one(change) == Settled()

    async def test_a_follow_up_stays_while_its_change_is_refused(self, scene: Scene):
        await scene.create("task_1", depends_on=("task_9",))
        (one,) = await scene.views.follow_ups(10)
        change = replace(await scene.decide("task_1", one.event), settles=one.id)
        current = await scene.apply("task_1", MessageReceived(scene.message("tmsg_1", "task_1")))
        assert await scene.one(change) == Stale(current)
        assert [pending.id for pending in await scene.views.follow_ups(10)] == [one.id]

    async def test_follow_ups_come_oldest_first_and_by_task(self, scene: Scene):
        for n in range(4):
            await scene.create(f"task_{n % 2}_{n}", depends_on=(f"task_x{n}",))
        ids = [one.id for one in await scene.views.follow_ups(10)]
        assert ids == sorted(ids)
        assert len(ids) == 4
        assert [one.id for one in await scene.views.follow_ups(3)] == ids[:3]
        some = await scene.views.follow_ups(10, ["task_1_3", "task_0_0", "no"])
        assert [one.task_id for one in some] == ["task_0_0", "task_1_3"]
        assert list(await scene.views.follow_ups(10, [])) == []

    async def test_a_claim_tells_whether_follow_ups_wait(self, scene: Scene):
        assert (await scene.claim()).follow_ups is False
        await scene.create("task_1", depends_on=("task_9",))
        assert (await scene.claim()).follow_ups is True


class ClaimOrder(Contract):
    async def test_a_task_made_after_the_moment_of_a_claim_is_left_to_the_next(self, scene: Scene):
        early = scene.now
        scene.later(5)
        await scene.create("task_1")
        scene.now = early
        claims = await scene.claim()
        assert (claims.tasks, claims.more, claims.next_due_at) == ((), False, START + 5)
        scene.later(5)
        assert await scene.claimed_ids() == ["task_1"]

    async def test_a_claim_writes_what_was_decided_for_each_task(self, scene: Scene):
        made = await scene.create("task_1")
        scene.later()
        (task,) = (await scene.claim("worker_b")).tasks
        assert task == apply(made, Claimed("worker_b"), scene.now).task == await scene.task("task_1")
        assert task.core.worker_id == "worker_b"
        last = (await scene.log())[-1]
        assert (last.type, last.at, data_of(last)["core"]["worker_id"]) == ("task.updated", scene.now, "worker_b")

    async def test_what_is_held_is_not_claimed_again(self, scene: Scene):
        await scene.create("task_1")
        assert await scene.claimed_ids() == ["task_1"]
        assert await scene.claimed_ids(worker="worker_b") == []

    async def test_only_the_routes_served_are_claimed(self, scene: Scene):
        await scene.create("task_1", route="background_tool:a")
        await scene.create("task_2", route="background_tool:b")
        await scene.create("task_3", route="subagent")
        assert await scene.claimed_ids(routes=[]) == []
        assert await scene.claimed_ids(routes=["background_tool", "background_tool:c"]) == []
        assert await scene.claimed_ids(routes=["subagent", "background_tool:a"]) == ["task_1", "task_3"]

    async def test_a_claim_takes_no_more_than_asked_and_tells_that_more_is_there(self, scene: Scene):
        for n in range(3):
            await scene.create(f"task_{n}")
        first = await scene.claim(limit=2)
        assert ([task.id for task in first.tasks], first.more) == (["task_0", "task_1"], True)
        second = await scene.claim(limit=2)
        assert ([task.id for task in second.tasks], second.more) == (["task_2"], False)
        await scene.create("task_9", route="another")
        assert (await scene.claim(limit=0)).more is False

    async def test_a_claim_for_nothing_takes_nothing_and_still_looks(self, scene: Scene):
        await scene.create("task_1")
        claims = await scene.claim(limit=0)
        assert (claims.tasks, claims.more) == ((), True)
        assert (await scene.task("task_1")).state is State.QUEUED

    async def test_work_is_not_claimed_before_its_time_and_the_time_is_told(self, scene: Scene):
        await scene.create("task_1", not_before=scene.now + 2 * SECOND)
        await scene.create("task_2", not_before=scene.now + 3 * SECOND)
        await scene.create("task_3", not_before=scene.now + 1 * SECOND, route="another")
        claims = await scene.claim()
        assert (claims.tasks, claims.next_due_at) == ((), scene.now + 2 * SECOND)
        scene.later(2 * SECOND - 1)
        assert await scene.claimed_ids() == []
        scene.later(1)
        claims = await scene.claim()
        assert ([task.id for task in claims.tasks], claims.next_due_at) == (["task_1"], scene.now + SECOND)

    async def test_what_comes_due_becomes_ready_at_a_claim_of_its_own_route(self, scene: Scene):
        await scene.create("task_1", not_before=scene.now + SECOND)
        scene.later()
        await scene.claim(routes=["another"])
        assert (await scene.task("task_1")).core.readiness == "timed"
        assert await scene.claimed_ids(limit=0) == []
        assert (await scene.task("task_1")).core.readiness == "ready"

    async def test_what_came_due_but_was_left_is_ready_and_moves_no_version(self, scene: Scene):
        await scene.create("task_1", not_before=scene.now + SECOND)
        assert (await scene.task("task_1")).core.readiness == "timed"
        scene.later()
        claims = await scene.claim(limit=0)
        assert (claims.more, claims.next_due_at) == (True, None)
        task = await scene.task("task_1")
        assert (task.core.readiness, task.core.version) == ("ready", 1)
        assert len(await scene.log()) == 2

    async def test_what_waits_for_another_is_not_claimed_until_it_may(self, scene: Scene):
        await scene.running("task_1")
        await scene.create("task_2", depends_on=("task_1",))
        scene.later(100 * SECOND)
        assert await scene.claimed_ids() == []
        await scene.succeed("task_1")
        await scene.apply("task_2", WatchedEnded("task_1", State.SUCCEEDED))
        assert await scene.claimed_ids() == ["task_2"]

    async def test_what_waits_for_nothing_with_a_time_is_not_claimed(self, scene: Scene):
        await scene.running("task_1")
        await scene.apply("task_1", Asked(1, scene.request("req_1", "task_1")))
        await scene.park("task_1", WaitForAnswer("req_1"))
        scene.later(100 * SECOND)
        claims = await scene.claim(routes=["background_tool:task_1"])
        assert (claims.tasks, claims.next_due_at) == ((), None)

    async def test_the_earliest_deadline_of_any_task_is_told(self, scene: Scene):
        assert (await scene.claim()).next_deadline_at is None
        await scene.create("task_1", timeouts=Timeouts(total=9 * SECOND), route="another")
        await scene.create("task_2", timeouts=Timeouts(queue=5 * SECOND), route="another")
        assert (await scene.claim()).next_deadline_at == scene.now + 5 * SECOND
        await scene.apply("task_2", CancelRequested())
        assert (await scene.claim()).next_deadline_at == scene.now + 9 * SECOND

    async def test_the_older_of_two_sessions_goes_first_and_a_session_queues_behind_itself(self, scene: Scene):
        await scene.session("session_b")
        for n in range(3):
            await scene.create(f"task_a{n}")
        scene.later(1)
        await scene.create("task_b0", "session_b")
        assert await scene.claimed_ids() == ["task_a0", "task_b0", "task_a1", "task_a2"]

    async def test_a_flood_created_in_one_batch_queues_behind_itself_too(self, scene: Scene):
        await scene.session("session_b")
        await scene.ledger.commit([scene.new(f"task_a{n}") for n in range(50)])
        scene.later(1)
        await scene.create("task_b0", "session_b")
        assert (await scene.claimed_ids())[:3] == ["task_a0", "task_b0", "task_a1"]

    async def test_a_session_with_thousands_waiting_for_hours_holds_up_no_other_one(self, scene: Scene):
        """What parked is no exception, and neither is what was delayed."""
        for name in "bcd":
            await scene.session(f"session_{name}")
        await scene.create("task_p", "session_b")
        await scene.create("task_q", "session_c")
        assert await scene.claimed_ids() == ["task_p", "task_q"]
        await scene.park("task_p", WaitForMessage(0))
        await scene.park("task_q", WaitUntil(scene.now + 4 * 3600 * SECOND))
        await scene.ledger.commit([scene.new(f"task_{n:04}") for n in range(1900)])
        for turn in range(3):
            scene.later(3600 * SECOND)
            assert await scene.claimed_ids(limit=20) == [f"task_{turn * 20 + n:04}" for n in range(20)]
        scene.later(3600 * SECOND)
        await scene.create("task_r", "session_d")
        await scene.apply("task_p", MessageReceived(scene.message("tmsg_1", "task_p", session_id="session_b")))
        scene.later(1)
        assert {"task_p", "task_q", "task_r"} <= set(await scene.claimed_ids(limit=20))
        await scene.create("task_s", "session_c")
        assert "task_s" in await scene.claimed_ids(limit=20), "nobody has moved the turn of the thousands"

    async def test_two_sessions_with_thousands_waiting_share_what_there_is(self, scene: Scene):
        await scene.session("session_b")
        await scene.ledger.commit([scene.new(f"task_a{n:04}") for n in range(1000)])
        assert len(await scene.claimed_ids(limit=300)) == 300
        scene.later(3600 * SECOND)
        await scene.ledger.commit([scene.new(f"task_b{n:04}", "session_b") for n in range(1000)])
        taken = [id[:6] for _ in range(4) for id in await scene.claimed_ids(limit=50)]
        assert 90 <= taken.count("task_b") <= 100

    async def test_an_organization_of_many_sessions_holds_up_no_other_one(self, scene: Scene):
        crowd = [f"session_{n}" for n in range(300)]
        async with anyio.create_task_group() as group:
            for id in crowd:
                group.start_soon(partial(scene.session, id, organization_id="org_a"))
        await scene.session("session_b", organization_id="org_b")
        ours = [scene.new(f"task_{id}_{n}", id, organization_id="org_a") for n in range(5) for id in crowd]
        await scene.ledger.commit(ours)
        await scene.claim(limit=20)
        scene.later(3600 * SECOND)
        await scene.ledger.commit([scene.new(f"task_b{n}", "session_b", organization_id="org_b") for n in range(10)])
        places = [n for n, id in enumerate(await scene.claimed_ids(limit=500)) if id.startswith("task_b")]
        assert len(places) == 10
        assert places[0] <= 40

    async def test_a_line_on_one_route_is_none_on_another(self, scene: Scene):
        """A session that is far ahead on a route that is fast has not had its turn on one that is slow."""
        await scene.session("session_b")
        await scene.ledger.commit([scene.new(f"task_{n:04}") for n in range(300)])
        await scene.claim(limit=10)
        for n in range(30):
            await scene.create(f"task_f{n}", "session_b", route="background_tool:fast")
        assert len(await scene.claimed_ids(routes=["background_tool:fast"])) == 30
        scene.later(3600 * SECOND)
        await scene.create("task_b", "session_b")
        assert "task_b" in await scene.claimed_ids(limit=20)

    async def test_one_point_of_priority_counts_like_a_wait(self, scene: Scene):
        await scene.session("session_b")
        await scene.create("task_1", priority=0)
        scene.later(AGEING - 1)
        await scene.create("task_2", "session_b", priority=1)
        scene.later(2)
        await scene.session("session_c")
        await scene.create("task_3", "session_c", priority=1)
        assert await scene.claimed_ids() == ["task_2", "task_1", "task_3"]

    async def test_of_two_tasks_with_one_place_the_older_goes_first(self, scene: Scene):
        for name in "zayb":
            await scene.session(f"session_{name}")
            await scene.create(f"task_{name}", f"session_{name}")
        assert await scene.claimed_ids() == ["task_z", "task_a", "task_y", "task_b"]

    async def test_a_delayed_task_stands_where_it_comes_due_and_holds_nobody_up(self, scene: Scene):
        await scene.create("task_1", not_before=scene.now + 5 * SECOND)
        scene.later(1)
        await scene.create("task_2")
        scene.later(6 * SECOND)
        await scene.create("task_3")
        assert await scene.claimed_ids() == ["task_2", "task_1", "task_3"]

    async def test_a_task_that_waits_for_another_holds_nobody_up(self, scene: Scene):
        await scene.session("session_b")
        await scene.running("task_0")
        for n in range(3):
            await scene.create(f"task_blocked{n}", "session_b", depends_on=("task_0",))
        await scene.create("task_1", "session_b")
        scene.later(1)
        await scene.session("session_c")
        await scene.create("task_2", "session_c")
        assert await scene.claimed_ids() == ["task_1", "task_2"]

    async def test_a_task_that_is_due_again_stands_where_it_came_due(self, scene: Scene):
        await scene.running("task_1", priority=0)
        scene.later()
        await scene.session("session_b")
        await scene.create("task_2", "session_b", route="background_tool:task_1")
        scene.later()
        await scene.apply("task_1", Released(1))
        scene.later()
        await scene.session("session_c")
        await scene.create("task_3", "session_c", route="background_tool:task_1")
        assert await scene.claimed_ids(routes=["background_tool:task_1"]) == ["task_2", "task_1", "task_3"]

    async def test_news_for_a_queued_task_does_not_move_its_place(self, scene: Scene):
        for n in range(3):
            await scene.create(f"task_{n}")
        scene.later()
        await scene.apply("task_2", MessageReceived(scene.message("tmsg_1", "task_2")))
        await scene.apply("task_0", MessageReceived(scene.message("tmsg_2", "task_0")))
        assert await scene.claimed_ids() == ["task_0", "task_1", "task_2"]

    async def test_a_claim_whose_decision_raises_takes_nothing(self, scene: Scene):
        await scene.create("task_1")
        await scene.create("task_2")
        before = [await scene.task("task_1"), await scene.task("task_2")]

        def decide(task: Any) -> Change:
            if task.id == "task_2":
                raise ZeroDivisionError
            return apply(task, Claimed(WORKER), scene.now)

        with pytest.raises(ZeroDivisionError):
            await scene.ledger.claim(Claim(WORKER, (ROUTE,), 10, scene.now), decide)
        assert [await scene.task("task_1"), await scene.task("task_2")] == before
        assert await scene.claimed_ids() == ["task_1", "task_2"]


class Limits(Contract):
    """Concurrency keys: what a limit admits, what becomes of the rest, and that nobody is forgotten."""

    async def test_no_more_tasks_of_a_key_are_held_than_its_limit_admits(self, scene: Scene):
        await scene.limit("gpu", capacity=2)
        await scene.many(5, concurrency_key="gpu")
        assert await scene.claimed_ids() == ["task_0", "task_1"]
        assert await scene.claimed_ids() == []
        await scene.succeed("task_0")
        assert await scene.claimed_ids() == ["task_2"]
        assert await scene.uses() == [("gpu", 2, 2)]

    @pytest.mark.parametrize("key", ["door", "C:\\u0000", "\\\\u0000\\", '\'; "{%s}" $1', "\U0001f6aa", " "])
    async def test_a_key_without_a_limit_admits_one_at_a_time(self, scene: Scene, key: str):
        await scene.many(2, concurrency_key=key)
        assert await scene.claimed_ids() == ["task_0"]
        await scene.succeed("task_0")
        assert await scene.claimed_ids() == ["task_1"]

    async def test_what_may_not_start_is_blocked_and_holds_up_nobody_behind_it(self, scene: Scene):
        await scene.many(3, concurrency_key="door")
        await scene.create("task_z")
        version = (await scene.task("task_2")).core.version
        assert await scene.claimed_ids(limit=2) == ["task_0", "task_z"]
        task = await scene.task("task_2")
        assert (task.core.readiness, task.core.blocked_by, task.core.version) == ("blocked", "limit", version)
        assert phase_of(task) == Phase("blocked", "limit of door")

    async def test_every_key_that_begins_alike_is_counted_for_itself(self, scene: Scene):
        await scene.limit("tenant:*", capacity=1)
        for n, key in enumerate(["tenant:a", "tenant:a", "tenant:b", "tenant:b", "tenant:c"]):
            await scene.create(f"task_{n}", concurrency_key=key)
        assert await scene.claimed_ids() == ["task_0", "task_2", "task_4"]

    async def test_a_limit_for_all_lets_each_organization_in_for_itself_and_its_own_goes_before_it(self, scene: Scene):
        for n, organization in enumerate([DEFAULT_ORGANIZATION, "org_a", "org_b"] * 4):
            await scene.create(f"task_{n:02}", concurrency_key=key_within("gpu", organization))
        assert await scene.claimed_ids() == ["task_00", "task_01", "task_02"]
        assert await scene.limit(key_within("gpu", "org_a"), capacity=3) is True
        assert await scene.claimed_ids() == ["task_04", "task_07"]
        assert await scene.limit("gpu", capacity=2) is True
        assert await scene.claimed_ids() == ["task_03", "task_05"]
        assert [use[1:] for use in await scene.uses()] == [(2, 2), (3, 1), (2, 2)]
        assert await scene.ledger.control(LimitRemoved(key_within("gpu", "org_a"))) is True
        await scene.succeed("task_01")
        assert await scene.claimed_ids() == []

    @pytest.mark.parametrize("event", [Failed(1, BROKEN), Released(1), Parked(1, ()), HolderLost(1)])
    async def test_a_place_is_free_again_however_a_hold_ends(self, scene: Scene, event: Event):
        await scene.many(2, concurrency_key="door", retry=Retry(1))
        await scene.claim()
        scene.later()
        await scene.apply("task_0", event)
        assert len(await scene.claimed_ids()) == 1

    async def test_who_gives_a_place_up_without_having_taken_it_leaves_it_to_the_next(self, scene: Scene):
        await scene.many(3, concurrency_key="door")
        await scene.claim()
        await scene.succeed("task_0")
        await scene.apply("task_1", CancelRequested())
        assert await scene.claimed_ids() == ["task_2"]

    async def test_a_place_that_nobody_serves_goes_to_who_is_served(self, scene: Scene):
        await scene.create("task_0", concurrency_key="door")
        await scene.create("task_1", concurrency_key="door", route="background_tool:other")
        await scene.create("task_2", concurrency_key="door")
        await scene.claim(routes=[ROUTE, "background_tool:other"])
        await scene.succeed("task_0")
        assert await scene.claimed_ids() == ["task_2"]

    async def test_the_blocked_start_in_the_order_of_the_queue(self, scene: Scene):
        await scene.create("task_a", concurrency_key="door")
        await scene.create("task_b", concurrency_key="door")
        await scene.create("task_c", concurrency_key="door", priority=5)
        assert await scene.claimed_ids() == ["task_c"]
        await scene.create("task_d", concurrency_key="door", priority=9)
        await scene.succeed("task_c")
        assert await scene.claimed_ids() == ["task_d"]
        await scene.apply("task_b", Reprioritized(3))
        await scene.succeed("task_d")
        assert await scene.claimed_ids() == ["task_b"]

    async def test_a_raised_limit_lets_more_in_and_a_lowered_one_waits_until_fewer_run(self, scene: Scene):
        await scene.many(6, concurrency_key="gpu")
        assert len(await scene.claimed_ids()) == 1
        assert await scene.limit("gpu", capacity=4) is True
        assert len(await scene.claimed_ids()) == 3
        assert await scene.limit("gpu", capacity=3) is True
        await scene.succeed("task_0")
        assert await scene.claimed_ids() == []
        await scene.succeed("task_1")
        assert len(await scene.claimed_ids()) == 1

    async def test_an_unlimited_key_lets_everyone_in(self, scene: Scene):
        await scene.many(4, concurrency_key="gpu")
        await scene.claim()
        await scene.limit("gpu", capacity=None)
        assert len(await scene.claimed_ids()) == 3

    async def test_a_limit_is_told_and_removed(self, scene: Scene):
        await scene.limit("gpu", capacity=4, rate=3, span=7 * SECOND)
        assert (await scene.views.gates()).limits == {"gpu": Limit("gpu", 4, 3, 7 * SECOND)}
        assert await scene.limit("gpu", capacity=4, rate=3, span=7 * SECOND) is False
        assert await scene.ledger.control(LimitRemoved("gpu")) is True
        assert await scene.ledger.control(LimitRemoved("gpu")) is False
        assert (await scene.views.gates()).limits == {}

    async def test_a_message_to_who_is_blocked_costs_it_nothing(self, scene: Scene):
        await scene.many(2, concurrency_key="door")
        await scene.claim()
        stale = await scene.task("task_1")
        await scene.succeed("task_0")
        message = MessageReceived(scene.message("tmsg_1", "task_1"))
        committed(await scene.one(apply(stale, message, scene.now)))
        assert await scene.claimed_ids() == ["task_1"]

    async def test_what_starts_with_its_creation_is_held_to_the_limit(self, scene: Scene):
        first, second = (scene.new(id, claim=Claimed(WORKER), concurrency_key="door") for id in ("task_1", "task_2"))
        assert isinstance(await scene.one(first), Committed)
        assert isinstance(await scene.one(second), Barred)
        assert await scene.views.task("task_2") is None

    async def test_many_who_may_not_start_do_not_hide_who_may(self, scene: Scene):
        changes = [scene.new(f"task_{n:05}", concurrency_key="door") for n in range(2500)]
        await scene.ledger.commit([*changes, scene.new("task_z")])
        taken: list[str] = []
        for _ in range(10):
            claims = await scene.claim(limit=3)
            taken += [task.id for task in claims.tasks]
            if not claims.more:
                break
        assert taken == ["task_00000", "task_z"]
        assert await scene.uses() == [("door", 1, 2499)]


class Rates(Contract):
    """How many may start in any span."""

    async def test_in_a_span_no_more_start_than_the_rate_and_the_next_is_announced(self, scene: Scene):
        await scene.limit("mail", capacity=None, rate=2, span=10 * SECOND)
        await scene.many(5, concurrency_key="mail")
        claims = await scene.claim()
        assert [task.id for task in claims.tasks] == ["task_0", "task_1"]
        moment = claims.next_due_at  # by the very claim that set the others aside: nobody need claim again before
        assert moment is not None
        assert 10 * SECOND <= moment - scene.now <= 10.2 * SECOND
        for task in claims.tasks:
            await scene.succeed(task.id)
        assert (await scene.claim()).next_due_at == moment
        scene.now = moment - 1
        assert await scene.claimed_ids() == []
        scene.now = moment
        claims = await scene.claim()
        assert [task.id for task in claims.tasks] == ["task_2", "task_3"]
        scene.now = claims.next_due_at or 0
        assert await scene.claimed_ids() == ["task_4"]
        assert (await scene.claim()).next_due_at is None

    async def test_a_start_counts_although_the_task_has_ended(self, scene: Scene):
        await scene.limit("mail", capacity=1, rate=1, span=10 * SECOND)
        await scene.create("task_1", concurrency_key="mail")
        await scene.claim()
        await scene.succeed("task_1")
        await scene.create("task_2", concurrency_key="mail")
        assert await scene.claimed_ids() == []
        (use,) = await scene.views.uses(["mail"])
        assert (use.held, use.waiting, sum(count for _, count in use.spent)) == (0, 1, 1)

    async def test_a_start_that_returned_goes_to_the_next_if_nobody_takes_it(self, scene: Scene):
        await scene.limit("mail", capacity=None, rate=1, span=SECOND)
        await scene.many(4, concurrency_key="mail")
        await scene.claim()
        scene.later(2 * SECOND)
        assert await scene.claimed_ids(limit=0) == []
        await scene.apply("task_1", CancelRequested())
        assert await scene.claimed_ids() == ["task_2"]

    async def test_a_start_counts_on_although_its_task_was_pruned(self, scene: Scene):
        await scene.limit("mail", capacity=None, rate=1, span=10 * SECOND)
        await scene.many(2, concurrency_key="mail")
        assert await scene.claimed_ids() == ["task_0"]
        await scene.succeed("task_0")
        await scene.ledger.prune(["task_0"], now=scene.now)
        scene.later(5 * SECOND)
        assert await scene.claimed_ids() == []
        scene.later(6 * SECOND)
        assert await scene.claimed_ids() == ["task_1"]
        await scene.succeed("task_1")
        scene.later(11 * SECOND)
        assert await scene.claimed_ids() == []
        await scene.ledger.prune(["task_1"], now=scene.now)
        await scene.create("task_2", concurrency_key="mail")
        await scene.create("task_3", concurrency_key="mail")
        assert await scene.claimed_ids() == ["task_2"]

    async def test_a_rate_that_is_lifted_holds_nobody_back(self, scene: Scene):
        await scene.limit("mail", capacity=None, rate=1, span=1000 * SECOND)
        await scene.many(3, concurrency_key="mail")
        await scene.claim()
        await scene.limit("mail", capacity=None)
        claims = await scene.claim()
        assert (len(claims.tasks), claims.next_due_at) == (2, None)


class Pauses(Contract):
    """What is paused is not started."""

    @pytest.mark.parametrize(
        "pause", [Pause("everything"), Pause("kind", "background_tool"), Pause("session", SESSION)]
    )
    async def test_what_is_paused_starts_when_it_is_resumed(self, scene: Scene, pause: Pause):
        await scene.many(3)
        await scene.running("task_8")
        assert await scene.ledger.control(Paused(pause)) is True
        assert await scene.ledger.control(Paused(pause)) is False
        assert await scene.claimed_ids() == []
        await scene.create("task_9")
        assert await scene.claimed_ids() == []
        assert (await scene.views.gates()).pauses() == {(pause.scope, pause.name): pause}
        await scene.succeed("task_8")
        assert await scene.ledger.control(Resumed(pause.scope, pause.name)) is True
        assert await scene.ledger.control(Resumed(pause.scope, pause.name)) is False
        assert sorted(await scene.claimed_ids()) == ["task_0", "task_1", "task_2", "task_9"]

    async def test_others_go_on(self, scene: Scene):
        await scene.session("session_b")
        await scene.create("task_1")
        await scene.create("task_2", "session_b")
        await scene.create("task_3", kind="subagent", route="subagent:x")
        await scene.ledger.control(Paused(Pause("session", SESSION)))
        await scene.ledger.control(Paused(Pause("kind", "subagent")))
        assert await scene.claimed_ids(routes=[ROUTE, "subagent:x"]) == ["task_2"]
        assert phase_of(await scene.task("task_1")) == Phase("blocked", "session paused")

    async def test_a_session_may_be_paused_before_it_exists(self, scene: Scene):
        await scene.ledger.control(Paused(Pause("session", "session_b")))
        await scene.session("session_b")
        await scene.create("task_1", "session_b")
        assert await scene.claimed_ids() == []

    async def test_nothing_starts_with_its_creation_either(self, scene: Scene):
        for pause in PAUSES:
            await scene.ledger.control(Paused(pause))
            assert isinstance(await scene.one(scene.new("task_1", claim=Claimed(WORKER))), Barred)
            await scene.ledger.control(Resumed(pause.scope, pause.name))
        assert isinstance(await scene.one(scene.new("task_1", claim=Claimed(WORKER))), Committed)

    async def test_what_is_paused_can_be_canceled_and_its_place_goes_to_others(self, scene: Scene):
        await scene.session("session_b")
        await scene.create("task_1", concurrency_key="door")
        await scene.create("task_2", "session_b", concurrency_key="door")
        await scene.create("task_3", concurrency_key="door")
        await scene.claim()
        await scene.ledger.control(Paused(Pause("session", "session_b")))
        await scene.succeed("task_1")
        taken = [*await scene.claimed_ids(), *await scene.claimed_ids()]
        assert taken == ["task_3"]
        await scene.apply("task_2", CancelRequested())
        assert (await scene.task("task_2")).state is State.CANCELED

    async def test_thousands_that_were_set_aside_all_come_back(self, scene: Scene):
        await scene.ledger.commit([scene.new(f"task_{n:05}") for n in range(2500)])
        await scene.ledger.control(Paused(Pause("session", SESSION)))
        while (await scene.claim(limit=10)).more:
            pass
        await scene.ledger.control(Resumed("session", SESSION))
        taken: list[str] = []
        for _ in range(10):
            claims = await scene.claim(limit=1000)
            taken += [task.id for task in claims.tasks]
        assert sorted(taken) == [f"task_{n:05}" for n in range(2500)]


class Closings(Contract):
    """A closed session takes nothing from outside, and what is in it goes on."""

    async def test_a_closed_session_takes_no_new_task_and_no_word_until_it_is_reopened(self, scene: Scene):
        turn = await scene.running("task_1", kind=TURN)
        assert await scene.ledger.control(Closed(SESSION, scene.later())) is True
        session = await scene.views.session(SESSION)
        assert session is not None
        assert (session.closed_at, session.updated_at) == (scene.now, scene.now)
        assert [each.closed_at for each in await scene.views.sessions()] == [scene.now]
        before = await scene.log()
        assert (before[-1].type, data_of(before[-1])) == ("session.closed", {"session": {"closed_at": scene.now}})
        word = apply(turn, Told("entry_1", {"text": "hello"}), scene.now)
        for change in (scene.new("task_2"), scene.new("task_3", claim=Claimed(WORKER)), word):
            assert await scene.one(change) == Shut(SESSION)
        assert await scene.ledger.control(Closed(SESSION, scene.later())) is False
        assert (await scene.log(), await scene.views.inbox(SESSION)) == (before, [])

        assert await scene.ledger.control(Reopened(SESSION, scene.later())) is True
        assert await scene.ledger.control(Reopened(SESSION, scene.now)) is False
        assert [row.type for row in (await scene.log())[len(before) :]] == ["session.reopened"]
        for change in (scene.new("task_2"), word):
            assert isinstance(await scene.one(change), Committed)

    async def test_what_is_in_a_closed_session_goes_on_and_makes_tasks_of_its_own(self, scene: Scene):
        await scene.running("task_1", wake_policy="on_terminal")
        await scene.create("task_2", idempotency_key="once")
        await scene.ledger.control(Closed(SESSION, scene.now))
        assert isinstance(await scene.one(scene.new("task_3", parent_task_id="task_1")), Committed)
        assert isinstance(await scene.one(scene.new("task_4", idempotency_key="once")), Existing)
        assert sorted(await scene.claimed_ids()) == ["task_2", "task_3"]
        await scene.succeed("task_1")
        assert [entry.task_id for entry in await scene.views.inbox(SESSION)] == ["task_1"]

    async def test_a_session_that_may_close_only_when_idle_stays_open_while_a_linked_task_lives(self, scene: Scene):
        await scene.create("task_1", detached=True)
        await scene.running("task_2")
        await scene.session("session_b")
        await scene.create("task_3", "session_b")
        before = await scene.log()
        with pytest.raises(NotEnded) as refused:
            await scene.ledger.control(Closed(SESSION, scene.now, when_idle=True))
        assert refused.value.details == {"live": ["task_2"]}
        assert await scene.log() == before
        await scene.succeed("task_2")
        assert await scene.ledger.control(Closed(SESSION, scene.now, when_idle=True)) is True

    async def test_a_session_is_rung_as_it_is_reopened_if_it_has_something_to_hear(self, scene: Scene):
        await scene.session("session_b", agent="assistant")
        for word in (False, True):
            if word:
                await scene.running("task_1", "session_b", wake_policy="on_terminal")
            await scene.ledger.control(Closed("session_b", scene.now))
            if word:
                await scene.succeed("task_1")
                await scene.ledger.prune(["session_b"])
            await scene.ledger.control(Reopened("session_b", scene.now))
            rung = [each.event for each in await scene.views.follow_ups(10)]
            assert rung == ([Rung("session_b")] if word else [])

    async def test_what_does_not_exist_is_neither_closed_nor_reopened(self, scene: Scene):
        for order in (Closed("no", scene.now), Reopened("no", scene.now)):
            with pytest.raises(NotFound):
                await scene.ledger.control(order)


class Descriptions(Contract):
    """A session may get another title and other labels."""

    async def test_what_is_named_changes_and_the_rest_stays(self, scene: Scene):
        await scene.ledger.create_session(NewSession("session_b", scene.now, title="old", labels={"a": "1", "b": "2"}))
        at = scene.later()
        assert await scene.ledger.control(Described("session_b", at, labels={"b": None, "c": "3"})) is True
        session = await scene.views.session("session_b")
        assert session is not None
        assert (session.title, session.labels, session.updated_at) == ("old", {"a": "1", "c": "3"}, at)
        assert await scene.ledger.control(Described("session_b", scene.later(), title="")) is True
        session = await scene.views.session("session_b")
        assert session is not None
        assert (session.title, session.labels) == (None, {"a": "1", "c": "3"})
        told = [(row.type, data_of(row)) for row in await scene.log("session_b")]
        assert told[1:] == [
            ("session.updated", {"session": {"labels": {"a": "1", "c": "3"}}}),
            ("session.updated", {"session": {"title": None}}),
        ]

    async def test_what_is_so_already_is_no_change(self, scene: Scene):
        await scene.ledger.create_session(NewSession("session_b", scene.now, title="old", labels={"a": "1"}))
        before = await scene.log("session_b")
        for order in (
            Described("session_b", scene.later()),
            Described("session_b", scene.now, title="old", labels={"a": "1", "b": None}),
        ):
            assert await scene.ledger.control(order) is False
        assert await scene.log("session_b") == before
        with pytest.raises(NotFound):
            await scene.ledger.control(Described("no", scene.now, title="new"))


class Seeds(Contract):
    """A session may begin with copies of what another one has."""

    async def said(self, scene: Scene) -> None:
        """Three entries of two tasks in the session, and files of it and of a task."""
        for n in (1, 2):
            task = await scene.running(f"task_{n}")
            messages = tuple(json.dumps([n, each]).encode() for each in range(3 - n))
            assert await scene.ledger.append(Page(SESSION, task.id, 1, n, messages, LIVE, scene.now))
        for path in ("/notes/a.txt", "/.tasks/task_1/result.json"):
            await scene.ledger.write_file(FileWrite(SESSION, path, path.encode(), "text/plain", scene.now, "task_1"))

    async def test_a_fork_has_so_many_entries_of_the_transcript_and_goes_on_alone(self, scene: Scene):
        await self.said(scene)
        seed, new = Seed(SESSION, 2, files=True), NewSession("session_b", scene.later(), agent="assistant")
        session = await scene.ledger.create_session(new, seed)
        assert session == await scene.views.session("session_b")
        assert (session.forked_from, session.root_session_id, session.last_seq) == (SESSION, "session_b", 1)
        (row,) = await scene.log("session_b")
        assert data_of(row)["seed"] == {"session_id": SESSION, "entries": 2, "files": True}
        whole = await scene.views.transcript(SESSION)
        assert [row.message for row in whole] == [b"[1, 0]", b"[1, 1]", b"[2, 0]"]
        assert await scene.views.transcript("session_b") == whole[:2]
        assert [(file.path, file.size) for file in await scene.views.files("session_b")] == [("/notes/a.txt", 12)]
        assert await scene.views.file("session_b", "/notes/a.txt") == b"/notes/a.txt"

        await scene.ledger.write_file(FileWrite("session_b", "/notes/a.txt", b"other", "text/plain", scene.now))
        await scene.running("task_3", "session_b")
        assert await scene.ledger.append(Page("session_b", "task_3", 1, 1, (b"[3]",), LIVE, scene.now))
        assert [(row.number, row.task_id) for row in await scene.views.transcript("session_b", after=1)] == [
            (2, "task_1"),
            (3, "task_3"),
        ]
        assert await scene.views.transcript(SESSION) == whole
        assert await scene.views.file(SESSION, "/notes/a.txt") == b"/notes/a.txt"
        assert await scene.ledger.create_session(new, seed) == await scene.views.session("session_b")
        assert len(await scene.views.transcript("session_b")) == 3

    async def test_a_session_may_begin_with_files_alone_and_is_no_fork_then(self, scene: Scene):
        await self.said(scene)
        session = await scene.ledger.create_session(NewSession("session_b", scene.now), Seed(SESSION, files=True))
        assert (session.forked_from, await scene.views.transcript("session_b")) == (None, [])
        assert [file.path for file in await scene.views.files("session_b")] == ["/notes/a.txt"]

    async def test_a_seed_that_is_not_there_makes_no_session(self, scene: Scene):
        await self.said(scene)
        for seed in (Seed("no", 0), Seed(SESSION, 4), Seed("no", files=True)):
            with pytest.raises(NotFound):
                await scene.ledger.create_session(NewSession("session_b", scene.now), seed)
            assert await scene.views.session("session_b") is None
        assert isinstance(await scene.session("session_b"), Session)

    async def test_the_newest_entry_is_found_of_all_of_a_task_and_of_an_iteration(self, scene: Scene):
        assert await scene.views.last_entry(SESSION) == 0
        await self.said(scene)
        last = scene.views.last_entry
        assert await last(SESSION) == 3
        assert [await last(SESSION, task_id=f"task_{n}") for n in (1, 2, 3)] == [2, 3, 0]
        assert [await last(SESSION, task_id="task_2", iteration=n) for n in (1, 2, 3)] == [0, 3, 3]
        assert await last("no") == 0


class Grants(Contract):
    """What was said of tools in sessions: the newest word stands."""

    async def test_the_newest_word_on_a_tool_stands_and_goes_with_its_session(self, scene: Scene):
        await scene.session("session_b")
        said = Grant("session_b", "pay", True, scene.now, "ada", "cli", "task_1")
        assert await scene.ledger.control(GrantSet(said)) is True
        assert await scene.ledger.control(GrantSet(said)) is False
        assert await scene.views.grants(["session_b", SESSION]) == [said]
        unsaid = Grant("session_b", "pay", False, scene.now + 1)
        assert await scene.ledger.control(GrantSet(unsaid)) is True
        assert await scene.ledger.control(GrantSet(said)) is False
        assert await scene.views.grants(["session_b"]) == [unsaid]
        await scene.ledger.prune([], ["session_b"])
        assert await scene.views.grants(["session_b"]) == []


class Documents(Contract):
    """Small records beside the tasks, written on condition of what their writer knew."""

    async def test_a_document_is_kept_as_it_was_written_and_its_version_counts_that(self, scene: Scene):
        data = {"name": TEXT, "nested": JSON_VALUE, "none": None}
        new = Document("hook", "hook_1", data, "org_b", "by-name", scene.now)
        assert await scene.ledger.keep([new])
        there = await scene.views.document("hook", id="hook_1")
        assert there == evolve(new, version=1) == await scene.views.document("hook", key="by-name")
        assert there is not None
        assert await scene.ledger.keep([evolve(there, data={}, key=None, due_at=None)])
        assert await scene.views.document("hook", id="hook_1") == Document("hook", "hook_1", {}, "org_b", version=2)
        assert await scene.views.document("hook", key="by-name") is None
        assert await scene.views.document("other", id="hook_1") is None

    async def test_of_two_who_knew_the_same_one_writes_and_the_other_changes_nothing(self, scene: Scene):
        first = Document("hook", "hook_1", {"n": 1})
        written: list[bool] = [False] * 5

        async def write(n: int) -> None:
            written[n] = await scene.ledger.keep([evolve(first, data={"n": n})])

        async with anyio.create_task_group() as group:
            for n in range(5):
                group.start_soon(write, n)
        assert sorted(written) == [False] * 4 + [True]
        there = await scene.views.document("hook", id="hook_1")
        assert there is not None
        assert there.data == {"n": written.index(True)}
        beside = Document("cursor", "one", {})
        assert not await scene.ledger.keep([beside, first])
        assert not await scene.ledger.keep([beside], [first])
        assert not await scene.ledger.keep([beside, beside])
        assert await scene.views.document("cursor", id="one") is None
        assert await scene.ledger.keep([beside], [there])
        assert await scene.views.document("hook", id="hook_1") is None

    async def test_no_two_documents_of_a_collection_have_one_key(self, scene: Scene):
        one, two = Document("key", "key_1", {}, key="hash"), Document("key", "key_2", {}, key="hash")
        assert not await scene.ledger.keep([one, two])
        assert await scene.ledger.keep([one, evolve(two, collection="other")])
        assert not await scene.ledger.keep([two])
        assert await scene.ledger.keep([two], [evolve(one, version=1)])
        assert await scene.ledger.keep([evolve(one, key="new"), evolve(two, key="newer", version=1)])
        swapped = [evolve(one, key="newer", version=1), evolve(two, key="new", version=2)]
        assert await scene.ledger.keep(swapped)
        assert await scene.views.document("key", key="new") == evolve(two, key="new", version=3)

    async def test_a_collection_is_read_in_pages_by_organization_by_prefix_and_by_what_is_due(self, scene: Scene):
        made = [Document("hook", f"{n % 2}:{n}", {}, f"org_{n % 3}", due_at=9 - n if n < 5 else None) for n in range(8)]
        assert await scene.ledger.keep([*made, Document("other", "0:9", {}, due_at=1)])
        documents = partial(scene.views.documents, "hook")

        async def ids(**wanted: Any) -> list[str]:
            return [each.id for each in await documents(**wanted)]

        every = sorted(each.id for each in made)
        assert await ids() == every
        assert await ids(newest_first=True) == every[::-1]
        assert await ids(limit=3) == every[:3]
        assert await ids(limit=3, after=every[2]) == every[3:6]
        assert await ids(limit=2, after=every[2], newest_first=True) == [every[1], every[0]]
        assert await ids(below="1:") == ["1:1", "1:3", "1:5", "1:7"]
        assert await ids(organization_id="org_1") == ["0:4", "1:1", "1:7"]
        assert await ids(due_by=7) == ["0:4", "1:3", "0:2"]
        assert await ids(due_by=7, limit=1, organization_id="org_2") == ["0:2"]
        assert await scene.views.due_at("hook") == 5
        assert await scene.views.due_at("none") is None


class Places(Contract):
    """Another place in the queue for what waits."""

    async def test_another_priority_is_another_place_and_keeps_what_was_waited(self, scene: Scene):
        await scene.create("task_1")
        scene.later(AGEING)
        await scene.create("task_2", priority=2)
        assert (await scene.apply("task_1", Reprioritized(2))).priority == 2
        assert (await scene.task("task_1")).input.priority == 0
        await scene.create("task_3", priority=9)
        await scene.apply("task_3", Reprioritized(-1))
        assert await scene.claimed_ids() == ["task_1", "task_2", "task_3"]

    async def test_a_priority_given_later_counts_when_the_task_is_due_again(self, scene: Scene):
        await scene.running("task_1", concurrency_key=None)
        await scene.apply("task_1", Reprioritized(5))
        await scene.apply("task_1", Released(1))
        route = "background_tool:task_1"
        await scene.create("task_2", route=route, priority=4)
        assert await scene.claimed_ids(routes=[route]) == ["task_1", "task_2"]

    async def test_a_debounced_task_stands_for_those_that_follow_until_it_starts(self, scene: Scene):
        await scene.create("task_1", debounce_key="build", not_before=scene.now + 5 * SECOND)
        verdict = await scene.one(scene.new("task_2", debounce_key="build"))
        assert isinstance(verdict, Existing)
        assert verdict.task.id == "task_1"
        moved = await scene.apply("task_1", Debounced({"path": "new"}, scene.now + 9 * SECOND))
        assert (moved.spec, moved.core.due_at) == ({"path": "new"}, scene.now + 9 * SECOND)
        assert (await scene.task("task_1")).spec == {"path": "new"}
        scene.later(9 * SECOND)
        assert await scene.claimed_ids() == ["task_1"]
        assert isinstance(await scene.one(scene.new("task_3", debounce_key="build")), Committed)
        assert isinstance(await scene.one(scene.new("task_4", debounce_key="other")), Committed)

    async def test_a_canceled_debounced_task_stands_for_nobody(self, scene: Scene):
        await scene.create("task_1", debounce_key="build")
        await scene.apply("task_1", CancelRequested())
        assert isinstance(await scene.one(scene.new("task_2", debounce_key="build")), Committed)

    async def test_of_two_debounced_at_once_one_is_made(self, scene: Scene):
        verdicts = await scene.ledger.commit([scene.new(f"task_{n}", debounce_key="build") for n in range(2)])
        assert [type(verdict) for verdict in verdicts] == [Committed, Existing]


class Logs(Contract):
    async def test_a_reader_that_resumes_gets_every_later_entry_exactly_once(self, scene: Scene):
        await scene.running("task_1")
        for n in range(20):
            await scene.apply("task_1", MessageReceived(scene.message(f"tmsg_{n}", "task_1")))
        log = await scene.log()
        assert [row.seq for row in log] == list(range(1, len(log) + 1))
        for start in (0, 1, len(log) // 2, len(log) - 1, len(log), len(log) + 5):
            assert list(await scene.views.events(SESSION, after=start)) == log[start:]
        read: list[Any] = []
        while page := await scene.views.events(SESSION, after=read[-1].seq if read else 0, limit=7):
            read += page
        assert read == log

    async def test_the_log_of_all_sessions_is_read_in_pages_by_organization_and_none_comes_twice(self, scene: Scene):
        await scene.ledger.create_session(NewSession("session_b", scene.now, organization_id="org_b"))
        for n in range(6):
            await scene.create(f"task_{n}", session_id=SESSION if n % 2 else "session_b")
        whole = await scene.views.log(after=0)
        assert [row.position for row in whole.rows] == sorted(row.position for row in whole.rows)
        own = {row.position for id in (SESSION, "session_b") for row in await scene.views.events(id)}
        assert {row.position for row in whole.rows} == own
        assert [row for row in whole.rows if row.session_id == SESSION] == list(await scene.log())
        found: list[LogRow] = []
        after, page = 0, await scene.views.log(after=0, limit=2, organization_id="org_b")
        while page.next > after:
            found, after = [*found, *page.rows], page.next
            page = await scene.views.log(after=after, limit=2, organization_id="org_b")
        assert found == [row for row in whole.rows if row.session_id == "session_b"]
        assert len(found) == 4
        assert after == whole.next == await scene.views.position()

    async def test_where_logs_end_is_told_of_many_sessions_at_once(self, scene: Scene):
        await scene.ledger.create_session(NewSession("session_b", scene.now))
        await scene.create("task_1")
        await scene.create("task_2", session_id="session_b")
        found = await scene.views.heads([SESSION, "session_b", "session_c"])
        last = {id: (await scene.views.events(id))[-1] for id in (SESSION, "session_b")}
        assert found == {id: Head(row.seq, row.position, "org_default", id) for id, row in last.items()}
        await scene.apply("task_2", CancelRequested())
        await scene.ledger.prune(["task_2"])
        assert await scene.views.heads(["session_b"]) == {"session_b": Head(3, 0, "org_default", "session_b")}

    async def test_the_log_of_one_task_is_the_sessions_log_without_the_others(self, scene: Scene):
        await scene.create("task_1")
        await scene.create("task_2")
        await scene.apply("task_1", CancelRequested())
        log = await scene.log()
        assert [row.seq for row in await scene.views.events(SESSION, task_id="task_1")] == [2, 4]
        assert list(await scene.views.events(SESSION, task_id="task_1", after=2)) == [log[3]]
        assert list(await scene.views.events(SESSION, task_id="task_1", limit=1)) == [log[1]]
        assert list(await scene.views.events(SESSION, task_id="no")) == []

    async def test_sessions_number_their_logs_apart_and_positions_order_the_whole_database(self, scene: Scene):
        await scene.session("session_b")
        for n in range(4):
            await scene.create(f"task_{n}", SESSION if n % 2 else "session_b")
        one, two = await scene.log(), await scene.log("session_b")
        assert [row.seq for row in one] == [row.seq for row in two] == [1, 2, 3]
        assert {row.session_id for row in one} == {SESSION}
        positions = [row.position for row in (one[0], two[0], two[1], one[1], two[2], one[2])]
        assert positions == sorted(set(positions))

    async def test_news_of_all_sessions_come_once_each_after_the_last_position_seen(self, scene: Scene):
        begin = await scene.views.position()
        assert list(await scene.views.news(after=begin)) == []
        await scene.session("session_b")
        for n in range(4):
            await scene.create(f"task_{n}", SESSION if n % 2 else "session_b")
        rows = [*(await scene.log())[1:], *(await scene.log("session_b"))]
        log = sorted((row.position, row.session_id, row.seq, row.task_id) for row in rows)
        assert await scene.views.position() == log[-1][0]
        read: list[tuple[int, str, int, str | None]] = []
        while page := await scene.views.news(after=read[-1][0] if read else begin, limit=2):
            read += [(each.position, each.session_id, each.seq, each.task_id) for each in page]
        assert read == log

    async def test_the_log_stays_gap_free_while_many_write_to_it(self, scene: Scene):
        await scene.session("session_b")
        await scene.running("task_run")

        async def work(number: int) -> None:
            session = SESSION if number % 2 else "session_b"
            await scene.create(f"task_{number:02}", session)
            await scene.ledger.report([Report("task_run", 1, scene.now, None, {"iterations": number})])
            await scene.apply(f"task_{number:02}", CancelRequested())

        async with anyio.create_task_group() as group:
            for number in range(40):
                group.start_soon(work, number)
        for session in (SESSION, "session_b"):
            log = await scene.log(session)
            assert [row.seq for row in log] == list(range(1, len(log) + 1))
            assert [row.position for row in log] == sorted(row.position for row in log)
        assert len(await scene.log()) == 1 + 2 + 40 + 40
        assert len(await scene.log("session_b")) == 1 + 40

    async def test_without_a_log_the_position_is_zero(self, ledger: Ledger):
        assert await ledger.views.position() == 0
        assert list(await ledger.views.news(after=0)) == []

    async def test_an_untrimmed_log_starts_at_one(self, scene: Scene):
        assert await scene.views.first_seq(SESSION) == 1

    async def test_the_log_of_a_task_replays_to_its_record(self, scene: Scene):
        live = replace(LIVE, iterations=1)
        await scene.running("task_1", spec=JSON_VALUE, wake_policy="on_activity")
        await scene.apply("task_1", Asked(1, scene.request("req_1", "task_1", details=JSON_VALUE), live=live))
        await scene.apply("task_1", Answered("req_1", TEXT))
        await scene.ledger.report([Report("task_1", 1, scene.now, LIVE, {"iterations": LIVE.iterations})])
        page = Page(SESSION, "task_1", 1, 1, (), replace(LIVE, iterations=9), scene.now)
        await scene.ledger.append(page)
        await scene.apply("task_1", Succeeded(1, b"1", summary=TEXT, live=replace(LIVE, iterations=9)))
        log = await scene.views.events(SESSION, task_id="task_1")
        replayed = replay([(row.type, data_of(row)) for row in log])
        task = await scene.task("task_1")
        again = scene.new("task_2")  # encoded by the same store, so that both sides are its JSON
        created = replace(
            again, events=(LogEvent("task.created", {name: getattr(task, name) for name in (replayed or {})}),)
        )
        await scene.one(created)
        assert replayed == data_of((await scene.log())[-1])


class Turns(Contract):
    """What a session's agent is to hear of rings for it, and is taken by the page that tells it."""

    async def listener(self, scene: Scene, id: str = "session_b", **fields: Any) -> None:
        await scene.session(id, agent="assistant", **fields)

    def turn(self, scene: Scene, id: str, after: str = "none", **fields: Any) -> Change:
        key = f"{OWNED}turn after {after}"
        return scene.new(id, "session_b", kind="turn", route="turn:assistant", idempotency_key=key, **fields)

    async def test_what_comes_into_the_inbox_rings_for_a_session_with_an_agent(self, scene: Scene):
        await self.listener(scene)
        await scene.running("task_1", "session_b", wake_policy="on_terminal")
        await scene.succeed("task_1")
        assert await scene.pending() == [("session_b", Rung("session_b"))]
        assert await scene.told("session_b") == [("task_1", "terminal")]

    async def test_nothing_rings_where_no_agent_is(self, scene: Scene):
        await self.listener(scene, "session_child", parent_task_id="task_0", parent_session_id=SESSION)
        for id, session in (("task_1", SESSION), ("task_2", "session_child")):
            await scene.running(id, session, wake_policy="on_terminal")
            await scene.succeed(id)
            assert await scene.told(session) == [(id, "terminal")]
        assert await scene.pending() == [("session_child", Rung("session_child"))]

    async def test_a_turn_drives_its_session_from_its_creation_on_and_is_followed_by_one(self, scene: Scene):
        await self.listener(scene)
        for id, before in (("turn_1", "none"), ("turn_2", "turn_1")):
            await scene.one(self.turn(scene, id, before))
            session = await scene.views.session("session_b")
            assert session is not None
            assert session.driver_task_id == id
        verdict = await scene.one(self.turn(scene, "turn_x", "turn_1"))
        assert isinstance(verdict, Existing)
        assert verdict.task.id == "turn_2"
        session = await scene.views.session("session_b")
        assert session is not None
        assert session.driver_task_id == "turn_2"

    async def test_what_is_said_comes_with_the_turn_that_is_made_for_it_or_not_at_all(self, scene: Scene):
        await self.listener(scene)
        entry = InboxEntry("session_b", "entry_1", "user", {"text": TEXT})
        first = replace(self.turn(scene, "turn_1"), inbox=(entry,))
        other = replace(self.turn(scene, "turn_x"), inbox=(replace(entry, task_id="entry_2"),))
        await scene.ledger.commit([first, other])
        (row,) = await scene.views.inbox("session_b")
        assert (row.task_id, row.reason, row.body) == ("entry_1", "user", {"text": TEXT})
        assert await scene.pending() == []

    async def test_a_ring_is_settled_with_the_turn_that_answers_it_and_by_nobody_else(self, scene: Scene):
        await self.listener(scene)
        for id in ("task_1", "task_2"):
            await scene.running(id, "session_b", wake_policy="on_terminal")
            await scene.succeed(id)
        first, second = [one.id for one in await scene.views.follow_ups(10)]
        made = self.turn(scene, "turn_1")
        answers = [Change(made.task, before=1, is_noop=True, settles=id) for id in (first, second)]
        verdicts = await scene.ledger.commit([made, *answers])
        assert [type(verdict) for verdict in verdicts] == [Committed] * 3
        assert await scene.pending() == []
        assert isinstance(await scene.one(answers[0]), Settled)

    async def test_a_page_takes_what_it_tells_but_not_what_was_written_anew_since(self, scene: Scene):
        await self.listener(scene)
        for id in ("task_1", "task_2"):
            await scene.running(id, "session_b", wake_policy="on_activity")
            await scene.apply(id, Posted(1, scene.message(f"tmsg_{id}", id, "outbound")))
        await scene.one(self.turn(scene, "turn_1", claim=Claimed(WORKER)))
        takes = tuple((row.task_id, row.seq) for row in await scene.views.inbox("session_b"))
        await scene.succeed("task_2")
        page = Page("session_b", "turn_1", 1, 0, (b'"heard"',), LIVE, scene.now, takes=takes)
        assert not await scene.ledger.append(replace(page, attempt=2))
        assert len(await scene.views.inbox("session_b")) == 2
        assert await scene.ledger.append(page)
        assert await scene.told("session_b") == [("task_2", "terminal")]
        assert [row.message for row in await scene.views.transcript("session_b")] == [b'"heard"']

    async def test_an_end_brings_its_last_page_along_or_neither_is_written(self, scene: Scene):
        await self.listener(scene)
        await scene.running("task_1", "session_b", wake_policy="on_terminal")
        await scene.succeed("task_1")
        await scene.one(self.turn(scene, "turn_1", claim=Claimed(WORKER)))
        for position in ("open:1", "kept"):
            await scene.ledger.journal([scene.step("turn_1", position)])
        (entry,) = await scene.views.inbox("session_b")
        page = Page(
            "session_b",
            "turn_1",
            1,
            3,
            (b'"said"',),
            LIVE,
            scene.now,
            forget="open:",
            steps=(scene.step("turn_1", "outcome"),),
            takes=((entry.task_id, entry.seq),),
        )
        end = replace(await scene.decide("turn_1", Succeeded(1, live=LIVE)), page=page)
        gone = replace(page, session_id="session_none")
        assert await scene.one(replace(end, page=gone)) == Fenced("turn_1", 1)
        assert await scene.one(replace(end, page=replace(page, attempt=2))) == Fenced("turn_1", 2)
        await scene.apply("turn_1", Told("entry_1", {"text": TEXT}, False))
        assert isinstance(await scene.one(end), Stale)
        assert list(await scene.views.transcript("session_b")) == []

        end = replace(await scene.decide("turn_1", Succeeded(1, live=LIVE)), page=page)
        assert isinstance(await scene.one(end), Committed)
        (row,) = await scene.views.transcript("session_b")
        assert (row.task_id, row.iteration, row.message) == ("turn_1", 3, b'"said"')
        assert [step.position for step in await scene.views.steps("turn_1")] == ["kept", "outcome"]
        assert await scene.told("session_b") == [("entry_1", "user")]
        assert (await scene.task("turn_1")).live == LIVE


class Inboxes(Contract):
    async def post(self, scene: Scene, task_id: str, number: int) -> None:
        await scene.apply(task_id, Posted(1, scene.message(f"tmsg_{task_id}_{number}", task_id, "outbound")))

    async def posted(self, scene: Scene, count: int) -> None:
        """Tasks from `task_0` on that have each said something."""
        for n in range(count):
            await scene.running(f"task_{n}", wake_policy="on_activity")
            await self.post(scene, f"task_{n}", 1)

    async def test_entries_of_one_task_coalesce_and_the_newest_takes_a_new_place(self, scene: Scene):
        for name in ("task_1", "task_2"):
            await scene.running(name, wake_policy="on_activity")
        await self.post(scene, "task_1", 1)
        await self.post(scene, "task_2", 1)
        first, second = await scene.views.inbox(SESSION)
        assert [row.task_id for row in (first, second)] == ["task_1", "task_2"]
        assert first.seq < second.seq
        scene.later()
        await scene.succeed("task_1")
        rows = await scene.views.inbox(SESSION)
        assert [(row.task_id, row.reason) for row in rows] == [("task_2", "message"), ("task_1", "terminal")]
        assert rows[0] == second
        assert rows[1].seq > second.seq
        assert rows[1].created_at == scene.now
        assert rows[1].session_id == SESSION
        assert rows[1].body["state"] == "succeeded"

    async def test_entries_of_one_batch_coalesce_too(self, scene: Scene):
        await scene.running("task_1", wake_policy="on_activity")
        one = await scene.decide("task_1", Posted(1, scene.message("tmsg_1", "task_1", "outbound")))
        two = apply(one.task, Succeeded(1), scene.now)
        await scene.ledger.commit([one, two])
        assert await scene.told() == [("task_1", "terminal")]

    async def test_what_is_received_is_nobody_elses_until_its_lease_is_over_and_then_comes_again(self, scene: Scene):
        await self.posted(scene, 3)
        before = await scene.views.inbox(SESSION)
        first, second = await scene.receive(10, limit=2)
        assert [first, second] == [
            replace(row, deliveries=1, leased_until=scene.now + 10 * SECOND) for row in before[:2]
        ]
        assert [row.task_id for row in await scene.receive(30)] == ["task_2"]
        assert await scene.receive() == []
        assert await scene.views.receivable_at(SESSION, scene.now) == first.leased_until
        scene.later(10 * SECOND)
        assert (await scene.views.receivable_at(SESSION, scene.now) or 0) <= scene.now
        again = await scene.receive()
        assert [(row.seq, row.deliveries) for row in again] == [(first.seq, 2), (second.seq, 2)]
        assert [row.deliveries for row in await scene.views.inbox(SESSION)] == [2, 2, 1]
        assert await scene.receive(session_id="session_x") == []

    async def test_what_was_acknowledged_is_gone_and_a_second_time_does_nothing(self, scene: Scene):
        await self.posted(scene, 2)
        receipts = [receipt_for(row) for row in await scene.receive()]
        assert await scene.ledger.acknowledge("session_x", receipts) == ["gone", "gone"]
        assert await scene.ledger.acknowledge(SESSION, receipts[:1]) == ["good"]
        assert await scene.ledger.acknowledge(SESSION, receipts) == ["gone", "good"]
        assert await scene.told() == []
        assert await scene.views.receivable_at(SESSION, scene.now) is None
        await self.post(scene, "task_0", 2)
        assert await scene.ledger.acknowledge(SESSION, receipts) == ["replaced", "gone"]
        assert await scene.hear() == [("task_0", "message")]

    async def test_a_lease_that_is_over_does_no_harm_until_somebody_else_has_it(self, scene: Scene):
        await self.posted(scene, 2)
        late = [receipt_for(row) for row in await scene.receive(1)]
        scene.later(SECOND)
        (other,) = await scene.receive(limit=1)
        assert await scene.ledger.acknowledge(SESSION, late) == ["stale", "good"]
        assert await scene.ledger.acknowledge(SESSION, late, scene.now + 99 * SECOND) == ["stale", "gone"]
        assert list(await scene.views.inbox(SESSION)) == [other]
        assert await scene.ledger.acknowledge(SESSION, [receipt_for(other)]) == ["good"]

    async def test_news_that_come_after_what_was_received_are_for_anybody_and_outlive_its_receipt(self, scene: Scene):
        await self.posted(scene, 1)
        (old,) = await scene.receive()
        await scene.succeed("task_0")
        (new,) = await scene.receive()
        assert (new.reason, new.deliveries) == ("terminal", 1)
        assert new.seq > old.seq
        assert await scene.ledger.acknowledge(SESSION, [receipt_for(old)]) == ["replaced"]
        assert await scene.ledger.acknowledge(SESSION, [receipt_for(old)], scene.now) == ["replaced"]
        assert list(await scene.views.inbox(SESSION)) == [new]
        assert await scene.ledger.acknowledge(SESSION, [receipt_for(old), receipt_for(new)]) == ["replaced", "good"]

    async def test_a_lease_can_be_made_longer_and_given_back_which_others_are_told(self, scene: Scene):
        await self.posted(scene, 1)
        (row,) = await scene.receive(1)
        assert await scene.ledger.acknowledge(SESSION, [receipt_for(row)], scene.now + 5 * SECOND) == ["good"]
        scene.later(4 * SECOND)
        assert await scene.receive() == []
        ear = Ear(scene.ledger)
        assert await scene.ledger.acknowledge(SESSION, [receipt_for(row)], scene.now) == ["good"]
        await ear.hears(lambda signal: SESSION in signal.session_ids)
        (again,) = await scene.receive()
        assert again.deliveries == 2

    async def test_when_something_can_be_received_is_not_to_be_known_of_no_session(self, scene: Scene):
        assert await scene.views.receivable_at(SESSION, scene.now) is None
        with pytest.raises(NotFound):
            await scene.views.receivable_at("session_x", scene.now)

    async def test_a_page_of_the_inbox_is_its_oldest_entries(self, scene: Scene):
        await self.posted(scene, 5)
        assert [row.task_id for row in await scene.views.inbox(SESSION, limit=2)] == ["task_0", "task_1"]

    async def test_an_entry_of_a_commit_that_was_refused_is_not_there(self, scene: Scene):
        await scene.running("task_1", wake_policy="on_activity")
        late = await scene.decide("task_1", Succeeded(1))
        await scene.apply("task_1", MessageReceived(scene.message("tmsg_1", "task_1")))
        await scene.one(late)
        assert await scene.told() == []


class Files(Contract):
    async def test_a_file_comes_back_byte_by_byte_and_a_second_replaces_it(self, scene: Scene):
        content = bytes(range(256)) * 10
        assert await scene.ledger.write_file(scene.file("/a/naïve.bin", content)) is True
        assert await scene.views.file(SESSION, "/a/naïve.bin") == content
        scene.later()
        second = replace(scene.file("/a/naïve.bin", b""), media_type="text/markdown", task_id="task_1")
        assert await scene.ledger.write_file(second) is True
        assert await scene.views.file(SESSION, "/a/naïve.bin") == b""
        (info,) = await scene.views.files(SESSION)
        assert (info.path, info.size, info.media_type, info.created_at, info.task_id, info.session_id) == (
            "/a/naïve.bin",
            0,
            "text/markdown",
            scene.now,
            "task_1",
            SESSION,
        )

    async def test_files_belong_to_their_session(self, scene: Scene):
        await scene.session("session_b")
        await scene.ledger.write_file(scene.file("/a", b"one"))
        await scene.ledger.write_file(scene.file("/a", b"two", "session_b"))
        assert await scene.views.file(SESSION, "/a") == b"one"
        assert await scene.ledger.delete_file("session_b", "/a") is True
        assert await scene.views.file(SESSION, "/a") == b"one"

    async def test_a_file_of_no_session_is_refused(self, scene: Scene):
        with pytest.raises(NotFound) as caught:
            await scene.ledger.write_file(scene.file("/a", b"", "session_x"))
        assert caught.value.code == "session_not_found"

    async def test_a_deleted_file_is_gone_and_cannot_be_deleted_twice(self, scene: Scene):
        await scene.ledger.write_file(scene.file("/a"))
        assert await scene.ledger.delete_file(SESSION, "/a") is True
        assert await scene.views.file(SESSION, "/a") is None
        assert list(await scene.views.files(SESSION)) == []
        assert await scene.ledger.delete_file(SESSION, "/a") is False
        assert await scene.ledger.delete_file("session_x", "/a") is False

    async def test_files_are_listed_in_the_order_of_their_paths_below_a_literal_prefix(self, scene: Scene):
        await scene.running("task_1")
        await scene.succeed("task_1", b"1")
        for path in ("/b", "/a_b/1", "/axb/1", "/a_b/0", "/A_b/1", "/a%/1", "/é", "/.hidden"):
            await scene.ledger.write_file(scene.file(path))

        async def paths(**how: Any) -> list[str]:
            return [info.path for info in await scene.views.files(SESSION, **how)]

        everything = await paths()
        assert everything == sorted(everything)
        assert len(everything) == 9
        assert await paths(prefix="/a_") == ["/a_b/0", "/a_b/1"]
        assert await paths(prefix="/a%") == ["/a%/1"]
        assert await paths(prefix="/.tasks/") == ["/.tasks/task_1/result.json"]
        assert await paths(prefix="/.") == ["/.hidden", "/.tasks/task_1/result.json"]
        assert await paths(limit=2) == everything[:2]
        assert await paths(prefix="/no") == []

    async def test_pages_of_files_have_each_of_them_once_in_the_order_of_their_paths(self, scene: Scene):
        for id in ("task", "task-b", "task_c"):  # whose folders are in another order than they are
            await scene.running(id)
            await scene.succeed(id, b"1")
        for path in ("/-", "/.task", "/.tasks.txt", "/.tasksafter", "/a/1", "/a/2", "/é", "/\U0001f600", "/\uffff"):
            await scene.ledger.write_file(scene.file(path))

        async def paths(**how: Any) -> list[str]:
            return [info.path for info in await scene.views.files(SESSION, **how)]

        for prefix in ("/", "/.t", "/.tasks/", "/.tasks/task", "/.tasks/task/", "/a/", "/z"):
            everything = await paths(prefix=prefix)
            assert everything == sorted(everything)
            for after in ("", "/.tasks", "/.tasks/", "/.tasks/tasj", "/.tasks/task-b/z", "/z", *await paths()):
                assert await paths(prefix=prefix, after=after) == [path for path in everything if path > after]
        assert await paths(after="/.tasks/task-b/result.json", limit=2) == [
            "/.tasks/task/result.json",
            "/.tasks/task_c/result.json",
        ]

    async def test_a_small_file_appears_with_the_artifact_that_names_it(self, scene: Scene):
        await scene.running("task_1")
        artifact = Artifact("report", "file", "/report.md", None, "text/markdown", 7)
        task = await scene.apply("task_1", Produced(1, artifact, scene.file("/report.md")))
        assert task.outcome.artifacts == (artifact,)
        assert await scene.views.file(SESSION, "/report.md") == b"content"


class Queries(Contract):
    @pytest.fixture
    async def crowd(self, scene: Scene) -> Scene:
        """Six tasks, every other one in a session of a tree below the first."""
        await scene.session("session_b", root_session_id=SESSION)
        for n in range(6):
            scene.later()
            await scene.create(
                f"task_{n}",
                SESSION if n % 2 == 0 else "session_b",
                root_session_id=SESSION,
                kind="subagent" if n < 2 else "background_tool",
                organization_id="org_b" if n == 5 else "org_default",
                parent_task_id="task_0" if n in (1, 2) else None,
                labels={"n": str(n), "half": "low" if n < 3 else "high"},
            )
        await scene.apply("task_3", CancelRequested())
        return scene

    @pytest.mark.parametrize(
        ("wanted", "ids"),
        [
            ({}, "543210"),
            ({"session_id": SESSION}, "420"),
            ({"session_id": "session_b"}, "531"),
            ({"root_session_id": SESSION}, "543210"),
            ({"root_session_id": "session_b"}, ""),
            ({"parent_task_id": "task_0"}, "21"),
            ({"organization_id": "org_b"}, "5"),
            ({"kind": "subagent"}, "10"),
            ({"states": (State.CANCELED,)}, "3"),
            ({"states": (State.QUEUED, State.CANCELED), "session_id": "session_b"}, "531"),
            ({"states": ()}, ""),
            ({"labels": {"half": "low"}}, "210"),
            ({"labels": {"half": "low", "n": "1"}}, "1"),
            ({"labels": {"half": "lo"}}, ""),
            ({"labels": {"other": "low"}}, ""),
            ({"after": "task_2"}, "10"),
            ({"after": "task_2", "newest_first": False}, "345"),
            ({"created_after": START + 5 * SECOND}, "54"),
            ({"created_before": START + 3 * SECOND, "kind": "subagent"}, "10"),
            ({"text": "low"}, "210"),
            ({"text": "high pa", "session_id": "session_b"}, ""),
            ({"text": "task_4"}, "4"),
            ({"limit": 2}, "54"),
            ({"limit": 2, "newest_first": False}, "01"),
            ({"session_id": SESSION, "labels": {"half": "low"}, "after": "task_2", "kind": "subagent"}, "0"),
        ],
        ids=str,
    )
    async def test_a_page_of_tasks_is_in_the_order_of_ids_and_holds_only_what_was_asked_for(
        self, crowd: Scene, wanted: dict[str, Any], ids: str
    ):
        page = await crowd.views.list_tasks(TaskFilter(**wanted))
        assert "".join(task.id[-1] for task in page) == ids
        for task in page:
            assert task == await crowd.task(task.id)

    async def test_pages_together_hold_every_task_once(self, crowd: Scene):
        read: list[str] = []
        while page := await crowd.views.list_tasks(TaskFilter(after=read[-1] if read else None, limit=4)):
            read += [task.id for task in page]
        assert read == [f"task_{n}" for n in (5, 4, 3, 2, 1, 0)]

    async def test_tasks_are_found_by_their_ids(self, crowd: Scene):
        found = await crowd.views.tasks(["task_4", "no", "task_1", "task_4"])
        assert sorted(task.id for task in found) == ["task_1", "task_4"]
        assert list(await crowd.views.tasks([])) == []

    @pytest.mark.parametrize(
        ("part", "ids"),
        [("task_4", "4"), ("_3", "3"), ("ask_3", "3"), ("task_", "012345"), ("ask_", ""), ("TASK", ""), ("%", "")],
    )
    async def test_ids_of_tasks_are_found_by_their_beginning_or_end(self, crowd: Scene, part: str, ids: str):
        found = await crowd.views.task_ids(part, 10)
        assert list(found) == [f"task_{n}" for n in ids]
        assert list(await crowd.views.task_ids(part, 2)) == [f"task_{n}" for n in ids[:2]]

    async def test_children_are_found_by_their_parent_ended_ones_too(self, crowd: Scene):
        await crowd.apply("task_1", CancelRequested())
        assert sorted(task.id for task in await crowd.views.children("task_0")) == ["task_1", "task_2"]
        assert list(await crowd.views.children("task_5")) == []

    async def test_tasks_are_counted_by_state(self, crowd: Scene):
        await crowd.claim(limit=2)
        counts = await crowd.views.count_by_state()
        assert {state: counts.get(state, 0) for state in State} == {
            State.QUEUED: 3,
            State.RUNNING: 2,
            State.AWAITING_INPUT: 0,
            State.SUCCEEDED: 0,
            State.FAILED: 0,
            State.CANCELED: 1,
        }

    async def test_what_a_worker_holds_is_told_with_version_and_attempt(self, scene: Scene):
        await scene.running("task_1")
        await scene.running("task_2")
        await scene.apply("task_1", HolderLost(1))
        await scene.reclaim("task_1", "worker_b")
        (other,) = await scene.views.held_by(WORKER)
        assert other == Beat("task_2", 1, 2)
        assert list(await scene.views.held_by("worker_b")) == [Beat("task_1", 2, 4)]
        assert await scene.views.holders() == {WORKER: 1, "worker_b": 1}
        await scene.apply("task_2", MessageReceived(scene.message("tmsg_1", "task_2")))
        assert list(await scene.views.held_by(WORKER)) == [Beat("task_2", 1, 3)]
        await scene.succeed("task_2")
        assert list(await scene.views.held_by(WORKER)) == []
        assert await scene.views.holders() == {"worker_b": 1}

    async def test_who_stands_before_a_ready_task_on_its_route_is_counted(self, scene: Scene):
        await scene.many(3)
        await scene.create("task_9", priority=5)
        await scene.create("task_8", route="another", priority=9)
        assert [await scene.views.ahead(id) for id in ("task_9", "task_0", "task_2", "task_8")] == [0, 1, 3, 0]
        await scene.claim(limit=1)
        assert [await scene.views.ahead(id) for id in ("task_9", "task_0", "task_none")] == [None, 0, None]

    async def test_what_waits_and_what_ended_is_told_in_numbers(self, scene: Scene):
        await scene.create("task_0", kind="subagent", route="subagent", not_before=scene.now + SECOND)
        for id in ("task_1", "task_2", "task_3"):
            await scene.create(id, concurrency_key="door", retry=Retry(1))
        scene.later(2 * SECOND)
        await scene.claim(routes=[ROUTE])
        scene.later(3 * SECOND)
        await scene.succeed("task_1")
        scene.later(SECOND)
        await scene.claim(routes=[ROUTE])
        await scene.apply("task_2", Failed(1, BROKEN))
        told = await scene.views.statistics(scene.now - SECOND)
        assert told.states == await scene.views.count_by_state()
        assert [(each.kind, each.state, each.error_kind, each.count) for each in told.ended] == [
            ("background_tool", State.FAILED, "exception", 1),
            ("background_tool", State.SUCCEEDED, None, 1),
        ]
        failed, succeeded = told.ended
        assert (failed.waited, failed.ran) == (6 * SECOND, 0)
        assert (succeeded.waited, succeeded.waited_most, succeeded.ran_most) == (2 * SECOND, 2 * SECOND, 3 * SECOND)
        assert sorted((each.route, each.count, each.oldest_due_at) for each in told.waiting) == [
            (ROUTE, 1, START),
            ("subagent", 1, START + SECOND),
        ]
        assert (await scene.views.statistics(scene.now)).ended == (failed,)

    async def test_a_sound_store_has_no_problems(self, scene: Scene):
        await scene.running("task_1")
        await scene.succeed("task_1")
        assert list(await scene.views.problems()) == []

    async def test_a_store_says_which_migration_is_its_newest_and_can_be_written_by_nobody_in_particular(
        self, scene: Scene
    ):
        newest = {known(dialect)[-1].number for dialect in ("sqlite", "postgres")}
        assert await scene.views.schema() in {0, *newest}
        assert await anyio.to_thread.run_sync(scene.ledger.renew, "", 5.0) is False

    async def test_overdue_tasks_come_earliest_first(self, scene: Scene):
        for n, seconds in enumerate((3, 1, 2, 9)):
            await scene.create(f"task_{n}", timeouts=Timeouts(total=seconds * SECOND))
        await scene.create("task_5")
        start = scene.now
        assert list(await scene.views.overdue(start, 10)) == []
        assert [task.id for task in await scene.views.overdue(start + 3 * SECOND, 10)] == ["task_1", "task_2", "task_0"]
        assert [task.id for task in await scene.views.overdue(start + 3 * SECOND, 2)] == ["task_1", "task_2"]
        scene.later(3 * SECOND)
        await scene.apply("task_1", DeadlinePassed())
        assert [task.id for task in await scene.views.overdue(scene.now, 10)] == ["task_2", "task_0"]


class Workers(Contract):
    card = WorkerCard("worker_b", "host", "boot", 4711, START, ("background_tool:a", "subagent"), "1.0", 16)

    async def test_a_registered_worker_is_known_as_it_presented_itself(self, scene: Scene):
        await scene.ledger.register(self.card)
        (worker,) = await scene.views.workers()
        assert worker.card == self.card

    async def test_a_beat_grows_with_every_renewal(self, scene: Scene):
        await scene.ledger.register(self.card)
        beats = [await self.beat(scene)]
        for _ in range(3):
            assert await anyio.to_thread.run_sync(scene.ledger.renew, "worker_b", 5.0) is True
            beats.append(await self.beat(scene))
        assert beats == sorted(set(beats))

    async def test_a_beat_is_renewed_from_a_thread_while_the_loop_is_busy(self, scene: Scene):
        await scene.ledger.register(self.card)
        before = await self.beat(scene)
        kept: list[bool] = []
        thread = threading.Thread(target=lambda: kept.append(scene.ledger.renew("worker_b", 5.0)))
        thread.start()
        thread.join(10)  # holds up the loop, as a tool might
        assert kept == [True]
        assert await self.beat(scene) > before

    async def test_a_worker_that_was_retired_is_unknown_and_cannot_renew(self, scene: Scene):
        await scene.ledger.register(self.card)
        await scene.ledger.retire("worker_b")
        assert list(await scene.views.workers()) == []
        assert await anyio.to_thread.run_sync(scene.ledger.renew, "worker_b", 5.0) is False
        await scene.ledger.retire("worker_b")

    async def test_a_worker_that_registers_again_is_one_worker_with_its_new_card(self, scene: Scene):
        await scene.ledger.register(self.card)
        card = replace(self.card, pid=1, routes=())
        await scene.ledger.register(card)
        (worker,) = await scene.views.workers()
        assert worker.card == card

    async def beat(self, scene: Scene) -> int:
        (worker,) = await scene.views.workers()
        return worker.beat


class Signals(Contract):
    async def test_who_listens_hears_whom_a_commit_concerns_and_that_work_is_ready(self, scene: Scene):
        ear = Ear(scene.ledger)
        await scene.create("task_1")
        await ear.hears(
            lambda one: "task_1" in one.task_ids and "task_1" in one.moved and SESSION in one.session_ids and one.ready
        )

    async def test_work_that_will_be_due_later_is_told_too(self, scene: Scene):
        ear = Ear(scene.ledger)
        await scene.create("task_1", not_before=scene.now + SECOND)
        await ear.hears(lambda one: "task_1" in one.moved and one.ready)

    async def test_a_holder_hears_that_its_task_moved(self, scene: Scene):
        await scene.running("task_1")
        ear = Ear(scene.ledger)
        await scene.apply("task_1", CancelRequested())
        await ear.hears(lambda one: "task_1" in one.moved)

    async def test_a_deadline_is_told_with_the_move_that_sets_it(self, scene: Scene):
        ear = Ear(scene.ledger)
        await scene.create("task_1", timeouts=Timeouts(total=9 * SECOND))
        await scene.create("task_2")
        heard = await ear.hears(lambda one: "task_1" in one.moved)
        assert heard.deadline_at == scene.now + 9 * SECOND
        assert (await ear.hears(lambda one: "task_2" in one.moved and "task_1" not in one.moved)).deadline_at is None

    async def test_follow_ups_are_told(self, scene: Scene):
        ear = Ear(scene.ledger)
        await scene.create("task_1", depends_on=("task_9",))
        await ear.hears(lambda one: one.follow_ups)

    async def test_running_writes_are_told_without_a_move(self, scene: Scene):
        await scene.running("task_1")
        for write in (_reports, _prints, _appends, _journals):
            ear = Ear(scene.ledger)
            assert await write(scene, 1)
            heard = await ear.hears(lambda one: "task_1" in one.task_ids)
            assert "task_1" not in heard.moved
            ear.stop()

    async def test_who_follows_a_session_hears_of_its_progress(self, scene: Scene):
        await scene.running("task_1")
        ear = Ear(scene.ledger)
        await _reports(scene, 1)
        await ear.hears(lambda one: SESSION in one.session_ids)

    async def test_a_write_that_was_refused_is_not_told(self, scene: Scene):
        await scene.running("task_1")
        await scene.succeed("task_1")
        ear = Ear(scene.ledger)
        for write in (_reports, _prints, _journals):
            assert not await write(scene, 1)
        await scene.create("task_2")
        await ear.hears(lambda one: "task_2" in one.task_ids)
        assert not any("task_1" in one.task_ids for one in ear.signals)

    async def test_who_stopped_listening_hears_nothing(self, scene: Scene):
        stopped, ear = Ear(scene.ledger), Ear(scene.ledger)
        stopped.stop()
        stopped.stop()
        await scene.create("task_1")
        await ear.hears(lambda one: "task_1" in one.task_ids)
        assert stopped.signals == []

    async def test_listeners_are_called_on_the_loop(self, scene: Scene):
        heard: list[tuple[int, Signal]] = []
        scene.ledger.listen(lambda signal: heard.append((threading.get_ident(), signal)))
        ear = Ear(scene.ledger)
        await scene.create("task_1")
        await ear.hears(lambda one: "task_1" in one.task_ids)
        assert {thread for thread, _ in heard} == {threading.get_ident()}


class Lifetimes(Contract):
    async def test_commits_are_counted(self, scene: Scene):
        before = scene.ledger.counters["commits"]
        await scene.create("task_1")
        assert scene.ledger.counters["commits"] > before
        assert "statements" in scene.ledger.counters

    async def test_a_closed_store_says_so(self, scene: Scene):
        await scene.create("task_1")
        change = await scene.decide("task_1", CancelRequested())
        await scene.ledger.close()
        for call in (
            lambda: scene.ledger.commit([change]),
            lambda: scene.ledger.create_session(NewSession("session_b", scene.now)),
            lambda: scene.claim(),
            lambda: scene.ledger.journal([scene.step("task_1", "one")]),
            lambda: scene.views.task("task_1"),
        ):
            with pytest.raises(StoreUnavailable):
                await call()
        with pytest.raises(StoreUnavailable):
            await anyio.to_thread.run_sync(scene.ledger.renew, "worker_b", 1.0)

    async def test_closing_twice_is_harmless(self, scene: Scene):
        await scene.ledger.close()
        await scene.ledger.close()


class Pruning(Contract):
    async def full(self, scene: Scene, id: str, session_id: str = SESSION) -> None:
        """An ended task with something in every place where a task can leave something."""
        route = f"background_tool:{id}"
        await scene.create(id, session_id, route=route, wake_policy="on_terminal", idempotency_key=f"key of {id}")
        await scene.reclaim(id)
        await scene.ledger.journal([scene.step(id, "one")])
        await scene.ledger.print([OutputChunk(id, 1, "stdout", "line", scene.now, 1000)])
        await scene.apply(id, Posted(1, scene.message(f"tmsg_{id}", id, "outbound", session_id)))
        await scene.ledger.write_file(scene.file(f"/.tasks/{id}/log", session_id=session_id))
        await scene.apply(id, Asked(1, scene.request(f"req_{id}", id)))
        await scene.succeed(id, b"1")

    async def test_an_ended_task_goes_whole_and_nothing_of_it_is_left(self, scene: Scene):
        await self.full(scene, "task_1")
        await scene.ledger.write_file(scene.file("/kept"))
        pruned = await scene.ledger.prune(["task_1"])
        assert (list(pruned.task_ids), list(pruned.session_ids), list(pruned.rest)) == (["task_1"], [], [])
        views = scene.views
        assert await views.task("task_1") is None
        assert await views.request("req_task_1") is None
        assert (await views.output("task_1")).rows == ()
        for nothing in (
            views.steps("task_1"),
            views.attempts("task_1"),
            views.requests("task_1"),
            views.messages("task_1"),
            views.events(SESSION, task_id="task_1"),
            views.inbox(SESSION),
            views.list_tasks(TaskFilter()),
            views.task_ids("task_1", 10),
        ):
            assert list(await nothing) == []
        assert [file.path for file in await views.files(SESSION)] == ["/kept"]
        assert await views.file(SESSION, "/.tasks/task_1/result.json") is None
        assert [row.type for row in await scene.log()] == ["session.created"]
        assert sum((await views.count_by_state()).values()) == 0
        assert await views.session(SESSION) is not None

    async def test_what_lives_or_never_was_is_left_out_silently(self, scene: Scene):
        await scene.create("task_queued")
        await scene.running("task_held")
        await self.full(scene, "task_1")
        pruned = await scene.ledger.prune(["task_queued", "task_held", "task_none", "task_1", "task_1"])
        assert list(pruned.task_ids) == ["task_1"]
        assert (await scene.succeed("task_held")).state is State.SUCCEEDED
        assert await scene.claimed_ids() == ["task_queued"]

    async def test_its_neighbours_keep_all_that_is_theirs(self, scene: Scene):
        await self.full(scene, "task_1")
        await self.full(scene, "task_2")
        before = await scene.task("task_2")
        await scene.ledger.prune(["task_1"])
        views = scene.views
        assert await scene.task("task_2") == before
        assert len(await views.steps("task_2")) == len(await views.attempts("task_2")) == 1
        assert len(await views.requests("task_2")) == len(await views.messages("task_2")) == 1
        assert len((await views.output("task_2")).rows) == 1
        assert await scene.told() == [("task_2", "terminal")]
        assert [file.path for file in await views.files(SESSION)] == [
            "/.tasks/task_2/log",
            "/.tasks/task_2/result.json",
        ]

    async def test_the_log_keeps_its_numbers_and_says_from_where_it_is_whole(self, scene: Scene):
        await scene.create("task_1")
        await scene.create("task_2")
        await scene.apply("task_1", CancelRequested())
        await scene.create("task_3")
        await scene.ledger.prune(["task_1"])
        assert [row.seq for row in await scene.log()] == [1, 3, 5]
        assert await scene.views.first_seq(SESSION) == 5
        await scene.create("task_4")
        assert [row.seq for row in await scene.log()] == [1, 3, 5, 6]
        await scene.apply("task_2", CancelRequested())
        await scene.ledger.prune(["task_2"])
        assert [row.seq for row in await scene.log()] == [1, 5, 6]
        assert await scene.views.first_seq(SESSION) == 8

    async def test_positions_are_not_given_again(self, scene: Scene):
        await scene.create("task_1")
        await scene.apply("task_1", CancelRequested())
        position = await scene.views.position()
        await scene.ledger.prune(["task_1"])
        assert await scene.views.position() <= position
        await scene.create("task_2")
        (news,) = await scene.views.news(after=position)
        assert news.task_id == "task_2"

    async def test_the_horizon_never_falls_and_parts_what_was_told_from_what_comes(self, scene: Scene):
        await scene.create("task_1")
        await scene.apply("task_1", CancelRequested())
        told = await scene.views.position()
        assert told <= await scene.views.horizon()
        await scene.ledger.prune(["task_1"], [SESSION])
        horizon = await scene.views.horizon()
        assert horizon >= told
        await scene.session("session_b")
        assert await scene.views.position() > horizon

    async def test_its_id_and_its_idempotency_key_are_free_again(self, scene: Scene):
        await self.full(scene, "task_1")
        await scene.ledger.prune(["task_1"])
        again = await scene.create("task_1", idempotency_key="key of task_1", route="background_tool:again")
        assert (await scene.reclaim("task_1")).core.attempt == again.core.attempt == 1
        assert list(await scene.views.steps("task_1")) == []

    async def test_a_change_of_a_task_that_is_gone_is_told_so(self, scene: Scene):
        await scene.running("task_1")
        change = await scene.decide("task_1", Succeeded(1, b"1"))
        await scene.apply("task_1", Succeeded(1))
        await scene.ledger.prune(["task_1"])
        assert await scene.one(change) == Stale(None)
        assert list(await scene.ledger.journal([scene.step("task_1", "one")])) == [False]

    async def test_who_waits_for_a_task_that_is_gone_is_told_that_it_failed(self, scene: Scene):
        await self.full(scene, "task_1")
        await scene.ledger.prune(["task_1"])
        await scene.running("task_2")
        await scene.park("task_2", WaitForTasks(("task_1",)))
        assert await scene.pending() == [("task_2", WatchedEnded("task_1", State.FAILED))]

    async def test_news_of_its_end_still_reaches_who_waited(self, scene: Scene):
        await scene.running("task_1")
        await scene.create("task_2", depends_on=("task_1",))
        await scene.succeed("task_1")
        await scene.ledger.prune(["task_1"])
        assert await scene.pending() == [("task_2", WatchedEnded("task_1", State.SUCCEEDED))]

    async def test_follow_ups_for_a_task_go_with_it_and_later_ones_when_it_is_named_again(self, scene: Scene):
        await scene.running("task_a")
        await scene.running("task_b")
        await scene.running("task_1")
        await scene.park("task_1", WaitForTasks(("task_a", "task_b")))
        await scene.succeed("task_a")
        await scene.apply("task_1", CancelRequested())
        await scene.ledger.prune(["task_1"])
        assert await scene.pending() == []
        await scene.succeed("task_b")  # the watch has outlived its watcher
        assert await scene.pending() == [("task_1", WatchedEnded("task_b", State.SUCCEEDED))]
        await scene.ledger.prune(["task_1"])
        assert await scene.pending() == []

    async def test_follow_ups_for_what_lives_stay(self, scene: Scene):
        await scene.running("task_1")
        await scene.create("task_2", depends_on=("task_1",))
        await scene.succeed("task_1")
        await scene.ledger.prune(["task_2"])
        assert len(await scene.pending()) == 1

    async def test_children_outlive_their_parent(self, scene: Scene):
        await scene.running("task_1")
        await scene.create("task_2", parent_task_id="task_1")
        await scene.succeed("task_1")
        await scene.ledger.prune(["task_1"])
        assert [child.id for child in await scene.views.children("task_1")] == ["task_2"]
        await scene.apply("task_2", CancelRequested())
        await scene.ledger.prune(["task_2"])
        assert list(await scene.views.children("task_1")) == []

    @pytest.mark.parametrize("order", [["task_1", "task_2"], ["task_2", "task_1"]])
    async def test_the_session_that_a_task_opened_goes_with_the_last_of_them(self, scene: Scene, order: list[str]):
        await scene.running("task_1")
        await scene.session("session_child", parent_session_id=SESSION, parent_task_id="task_1")
        assert [each.id for each in await scene.views.child_sessions(["task_1", "no"])] == ["session_child"]
        await scene.ledger.append(Page("session_child", "task_1", 1, 1, (b"1",), LIVE, scene.now))
        await self.full(scene, "task_2", "session_child")
        await scene.succeed("task_1")
        first, last = order
        assert list((await scene.ledger.prune([first])).session_ids) == []
        assert await scene.views.session("session_child") is not None
        pruned = await scene.ledger.prune([last])
        assert list(pruned.session_ids) == ["session_child"]
        assert await scene.views.session("session_child") is None
        assert list(await scene.views.transcript("session_child")) == []
        assert list(await scene.views.events("session_child")) == []

    async def test_a_session_that_is_named_goes_whole_once_it_has_no_task_left(self, scene: Scene):
        await scene.session("session_b")
        await scene.create("task_1", "session_b")
        await scene.ledger.write_file(scene.file("/a", session_id="session_b"))
        pruned = await scene.ledger.prune([], ["session_b", "session_none"])
        assert list(pruned.session_ids) == []
        await scene.apply("task_1", CancelRequested())
        pruned = await scene.ledger.prune(["task_1"], ["session_b"])
        assert list(pruned.session_ids) == ["session_b"]
        assert await scene.views.session("session_b") is None
        assert list(await scene.views.files("session_b")) == []
        assert [each.id for each in await scene.views.sessions()] == [SESSION]
        assert isinstance(await scene.one(scene.new("task_2", "session_b")), NoSession)
        again = await scene.session("session_b")
        assert again.last_seq == 1
        assert await scene.views.first_seq("session_b") == 1

    async def test_a_session_with_another_file_than_those_named_stays(self, scene: Scene):
        for id in ("session_b", "session_c"):
            await scene.session(id)
            await scene.ledger.write_file(scene.file("/a", session_id=id))
        ((info,), at) = (await scene.views.files("session_b"), scene.later())
        await scene.ledger.write_file(scene.file("/a", session_id="session_c"))
        marks = {(info.path, info.size, info.created_at)}
        assert list((await scene.ledger.prune([], ["session_b", "session_c"], files=())).session_ids) == []
        pruned = await scene.ledger.prune([], ["session_b", "session_c"], files=marks)
        assert (list(pruned.session_ids), at > info.created_at) == (["session_b"], True)
        assert len(await scene.views.files("session_c")) == 1

    async def test_who_ended_before_a_moment_is_listed_the_longest_ended_first(self, scene: Scene):
        await scene.session("session_b", organization_id="org_b")
        for id in ("task_3", "task_1", "task_2"):
            await scene.create(id)
            scene.later()
            await scene.apply(id, CancelRequested())
        await scene.create("task_b", "session_b", organization_id="org_b", kind="other")
        await scene.apply("task_b", CancelRequested())
        await scene.create("task_live")
        views, later = scene.views, scene.later()
        assert list(await views.ended(later, 10)) == ["task_3", "task_1", "task_2", "task_b"]
        assert list(await views.ended(later, 2)) == ["task_3", "task_1"]
        assert list(await views.ended(START + 2 * SECOND, 10)) == ["task_3"]
        assert list(await views.ended(later, 10, states=(State.FAILED,))) == []
        assert list(await views.ended(later, 10, session_id=SESSION, states=(State.CANCELED,))) == [
            "task_3",
            "task_1",
            "task_2",
        ]
        assert list(await views.ended(later, 10, organization_id="org_b")) == ["task_b"]
        assert list(await views.ended(later, 10, kind="other")) == ["task_b"]
        assert list(await views.ended(later, 10, but_of=("org_b", "org_none"))) == ["task_3", "task_1", "task_2"]
        assert list(await views.ended(later, 10, since=START + 2 * SECOND)) == ["task_1", "task_2", "task_b"]
        assert [await views.newest_ended("org_b", place) for place in (0, 1)] == [START + 3 * SECOND, None]
        own = (await scene.task("task_1")).input.organization_id
        assert [await views.newest_ended(own, place) for place in (0, 2)] == [START + 3 * SECOND, START + SECOND]

    async def test_what_is_pinned_alone_or_with_its_session_or_tree_is_not_listed_to_be_deleted(self, scene: Scene):
        await scene.session("session_b", root_session_id=SESSION, parent_session_id=SESSION)
        await scene.session("session_c")
        for id, session in (("task_1", SESSION), ("task_2", "session_b"), ("task_3", "session_c")):
            root = SESSION if session == "session_b" else session
            await scene.create(id, session, root_session_id=root)
            await scene.apply(id, CancelRequested())

        async def listed(*pinned: str) -> list[str]:
            pins = [Document("pin", id, {}) for id in pinned]
            assert await scene.ledger.keep(pins)
            found = list(await scene.views.ended(scene.now + 1, 10))
            assert await scene.ledger.keep([], [replace(pin, version=1) for pin in pins])
            return found

        assert await listed() == ["task_1", "task_2", "task_3"]
        assert await listed("task_1") == ["task_2", "task_3"]
        assert await listed(SESSION) == ["task_3"]
        assert await listed("session_b", "session_c") == ["task_1"]

    async def test_who_waits_for_a_task_is_woken_to_see_it_gone(self, scene: Scene):
        await scene.create("task_1")
        await scene.apply("task_1", CancelRequested())
        ear = Ear(scene.ledger)
        await scene.ledger.prune(["task_1"])
        signal = await ear.hears(lambda signal: "task_1" in signal.task_ids)
        assert SESSION in signal.session_ids

    async def test_hundreds_go_at_once_among_others_that_write(self, scene: Scene):
        ids = [f"task_{number:04}" for number in range(300)]
        await scene.ledger.commit([scene.new(id) for id in ids])
        await scene.ledger.commit([await scene.decide(id, CancelRequested()) for id in ids[:200]])

        async def prune() -> None:
            left = tuple(ids)
            while left:
                left = (await scene.ledger.prune(left)).rest

        async with anyio.create_task_group() as group:
            group.start_soon(prune)
            for number in range(20):
                group.start_soon(scene.create, f"task_new_{number}")
        left = await scene.views.list_tasks(TaskFilter(limit=1000))
        assert len(left) == 120
        assert (await scene.views.count_by_state())[State.CANCELED] == 0


class StoreContract(
    Heritages,
    Pruning,
    Sessions,
    Creation,
    Commits,
    Fencing,
    RunningWork,
    PrintedOutput,
    FollowUps,
    ClaimOrder,
    Limits,
    Rates,
    Pauses,
    Closings,
    Descriptions,
    Seeds,
    Grants,
    Documents,
    Meters,
    Turns,
    Places,
    Logs,
    Inboxes,
    Files,
    Queries,
    Workers,
    Signals,
    Lifetimes,
):
    """All of it."""
