"""Random histories through the real reducer, on every store at once: all must tell the same story as the reference.

After every step the stores are compared in all that can be read from them, and the reference is held to what
must be true of any history. A failing history is printed as the program of its steps: by the quick tests as it
was found, by the long ones shrunk, which takes minutes.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import orjson
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from outrider.core.change import Change, InboxEntry
from outrider.core.delivery import Receipt, Standing
from outrider.core.errors import Conflict, NotFound, Superseded
from outrider.core.events import (
    Answered,
    Asked,
    CancelRequested,
    Claimed,
    DeadlinePassed,
    Debounced,
    Enriched,
    Event,
    Failed,
    FileWrite,
    HolderLost,
    Message,
    MessageReceived,
    Parked,
    Posted,
    Produced,
    Released,
    Reprioritized,
    Rung,
    Step,
    Stopped,
    Succeeded,
    Told,
    WatchedEnded,
)
from outrider.core.ledger import (
    Claim,
    Claims,
    Closed,
    Committed,
    Described,
    Existing,
    Ledger,
    LimitRemoved,
    LimitSet,
    OutputChunk,
    Page,
    Paused,
    Reopened,
    Report,
    Resumed,
    Stale,
    Verdict,
    WorkerCard,
)
from outrider.core.machine import apply, create, snapshot
from outrider.core.meters import (
    Amounts,
    BreakerTerms,
    Charge,
    Heard,
    Probe,
    RateLimit,
    Reserve,
    Settle,
    Slot,
    taps_of,
)
from outrider.core.queue import Limit, Pause, Scope
from outrider.core.replay import replay
from outrider.core.session import NewSession, Seed
from outrider.core.task import (
    SET_ASIDE,
    Artifact,
    Input,
    InputRequest,
    Live,
    NewTask,
    Progress,
    Retry,
    State,
    Task,
    TaskError,
    Timeouts,
    Usage,
    Wait,
    WaitForAnswer,
    WaitForMessage,
    WaitForTasks,
    WaitUntil,
)
from outrider.core.values import SECOND, Instant, difference
from tests.stores.backends import BACKENDS

SESSIONS = ("session_a", "session_b")
ROUTES = ("background_tool:a", "subagent", "turn:a")
WORKERS = ("worker_a", "worker_b", "worker_c")
KEYS = ("key_a", "key_b")
START: Instant = 1_700_000_000 * SECOND
MISSING = "task_9999"
BUDGETS: tuple[dict[str, Any], ...] = (
    {"tokens": 100, "requests": 9},
    {"tree": {"tokens": 300, "soft": 0.5}},
    {"seconds": 20, "session": {"cost": 1}, "tree": {"tokens": 300}},
)

T = TypeVar("T")
Dump = dict[tuple[str, ...], Any]
Act = Callable[[Ledger], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the stores that tell the same story."""

    name: str
    ledger: Ledger


def one_in(n: int) -> st.SearchStrategy[bool]:
    return st.integers(0, n - 1).map(lambda drawn: drawn == n - 1)


class Histories(RuleBasedStateMachine):
    """One history. The first store is the reference: what it holds decides which steps make sense."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names
        self.folder = Path(tempfile.mkdtemp(prefix="histories-"))
        self.loop = asyncio.new_event_loop()
        self.sides: list[Side] = []
        self.now = START
        self.count = 0
        self.is_gated = False
        self.is_keyed = False
        self.ids: list[str] = []
        self.seen: dict[str, list[Task]] = {}
        self.before: Dump = {}
        self.enriched: set[str] = set()
        self.steps = 0

    @initialize(data=st.data())
    def open(self, data: st.DataObject) -> None:
        async def open_all() -> list[Side]:
            sides = []
            for name in self.names:
                (self.folder / name).mkdir()
                sides.append(Side(name, await BACKENDS[name](self.folder / name)))
            return sides

        self.sides = self.loop.run_until_complete(open_all())
        for id in SESSIONS:
            self.create_session(id)
        for _ in range(3):
            self.create(data, plain=True)
        self.look()

    def create_session(self, id: str) -> None:
        new = NewSession(id, self.now, root_session_id=SESSIONS[0], agent="a" if id == SESSIONS[1] else None)
        self.on_all(lambda ledger: ledger.create_session(new))

    def teardown(self) -> None:
        async def close_all() -> None:
            for side in self.sides:
                await side.ledger.close()

        try:
            if self.sides:
                self.compare(everything=True)
        finally:
            self.loop.run_until_complete(close_all())
            self.loop.close()
            shutil.rmtree(self.folder)

    # --- acting ------------------------------------------------------------------------------------------

    def ask(self, act: Callable[[Ledger], Awaitable[T]], side: Side | None = None) -> T:
        """Do it on one store, by default the reference."""

        async def asked() -> T:
            return await act((side or self.sides[0]).ledger)

        return self.loop.run_until_complete(asked())

    def on_all(self, act: Callable[[Ledger], Awaitable[T]]) -> T:
        """Do the same on every store; all must answer as the reference does."""
        answers = [self.ask(act, side) for side in self.sides]
        for side, answer in zip(self.sides, answers, strict=True):
            ours, theirs = (_comparable(each, is_gated=self.is_gated) for each in (answers[0], answer))
            if isinstance(ours, Claims) and self.is_keyed and not ours.more:
                theirs = replace(theirs, more=False)  # it did not look whether the rest may start under its key
            assert theirs == ours, f"{side.name}: {answer}, and not {answers[0]}"
        return answers[0]

    def commit(self, *changes: Change) -> Sequence[Verdict]:
        return self.on_all(lambda ledger: ledger.commit(changes))

    def find(self, id: str) -> Task | None:
        return self.ask(lambda ledger: ledger.views.task(id))

    def task(self, id: str) -> Task:
        task = self.find(id)
        assert task is not None
        return task

    def next_id(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}_{self.count:04}"

    # --- looking -----------------------------------------------------------------------------------------

    def look(self) -> None:
        """After every step: the stores agree, and what must hold of any history holds."""
        self.steps += 1
        before, after = self.before, self.compare(everything=self.steps % 10 == 0)
        self.before = after
        for id in self.ids:
            old, new = before.get(("task", id)), after["task", id]
            if old is not None and new is not None:
                self.check_move(old, new)
            elif old is not None:
                assert old.is_terminal, "a task that lived is gone"
            if new is not None and (not self.seen[id] or self.seen[id][-1].core.version != new.core.version):
                self.seen[id].append(new)
        self.check_holders(after)
        self.check_logs(after)
        self.check_wakes(after)
        self.check_accounts(after)
        self.enriched.clear()

    def compare(self, *, everything: bool) -> Dump:
        """Read the reference whole, and of the others what changed there, or everything."""
        reference = self.ask(lambda ledger: _dump(ledger, self.ids))
        touched = {key for key, value in reference.items() if self.before.get(key) != value}
        for side in self.sides[1:]:
            tasks = self.ids if everything else sorted({key[1] for key in touched if len(key) == 2} & set(self.ids))
            theirs = self.ask(_dumping(tasks), side)
            for key, value in theirs.items():
                assert value == reference[key], f"{side.name}: {key} is {value}, and not {reference[key]}"
        return reference

    def check_move(self, old: Task, new: Task) -> None:
        assert new.input == old.input
        assert new.core.version >= old.core.version
        assert new.core.attempt >= old.core.attempt
        if new.core.version == old.core.version:
            assert _timeless(new) == _timeless(old)
        if old.is_terminal:
            core = replace(new.core, version=old.core.version, updated_at=old.core.updated_at)
            assert core == old.core, "a task that has ended changed"
            assert new.live == old.live
            assert new.outcome == old.outcome or new.id in self.enriched

    def check_holders(self, dump: Dump) -> None:
        held = [beat.task_id for worker in WORKERS for beat in dump["held", worker]]
        assert len(held) == len(set(held)), "two workers hold one task"
        for id in self.ids:
            task, closed = dump["task", id], [end.attempt for end in dump["attempts", id]]
            if task is None:
                continue
            assert (id in held) == task.core.is_held
            assert closed == sorted(set(closed)), "an attempt was closed twice"
            if task.core.is_held:
                assert not task.is_terminal
                assert not closed or task.core.attempt > closed[-1]

    def check_logs(self, dump: Dump) -> None:
        for session in SESSIONS:
            log = dump["log", session]
            first, last = dump["first_seq", session], dump["session", session].last_seq
            assert [row[0] for row in log if row[0] >= first] == list(range(first, last + 1))
            assert [row[0] for row in log] == sorted({row[0] for row in log})
        rows = [row for session in SESSIONS for row in dump["log", session]]
        for id in self.ids:
            task = dump["task", id]
            if task is not None:
                told = replay([(type, data) for _, task_id, type, _, data in rows if task_id == id])
                assert _normalised(told) == _normalised(orjson.loads(orjson.dumps(snapshot(task))))

    def check_wakes(self, dump: Dump) -> None:
        """Once every follow-up is settled, nobody waits for what has ended, and nobody waits for nothing."""
        if dump["follow_ups",]:
            return
        live = {id for id in self.ids if (task := dump["task", id]) is not None and not task.is_terminal}
        for id in live:
            core = dump["task", id].core
            if core.is_held:
                continue
            waits = [wait for wait in core.waits if isinstance(wait, WaitForTasks)]
            assert set(core.dependencies) <= live, f"{id} depends on what has ended"
            assert {other for wait in waits for other in wait.task_ids} <= live, f"{id} waits for what has ended"
            assert core.due_at is not None or core.waits, f"{id} waits for nothing"

    def check_accounts(self, dump: Dump) -> None:
        """Nothing is held but by attempts that hold their task, and unknown is a part of spent."""
        held = {id for worker in WORKERS for id in (beat.task_id for beat in dump["held", worker])}
        for id in self.ids:
            account = dump["meter", f"task:{id}"]
            assert account is None or id in held or account.held == Amounts(), f"{id} holds what nobody will settle"
            assert account is None or account.unknown.tokens <= account.spent.tokens

    # --- steps: time and creation ------------------------------------------------------------------------

    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        """Then the duty of a worker: whoever is overdue gets a look at the clock."""
        self.now += data.draw(st.sampled_from([1, 1000, SECOND, 4 * SECOND, 30 * SECOND]), "span")
        if data.draw(one_in(3), "nobody looks"):
            return
        for id, _ in self.on_all(lambda ledger: _overdue(ledger, self.now)):
            self.look_at_clock(id)
        self.look()

    def look_at_clock(self, id: str) -> None:
        """As often as it takes: each look must help, and soon none is needed."""
        for _ in range(5):
            task = self.task(id)
            if (task.core.next_deadline_at or self.now + 1) > self.now:
                return
            active_at = self.ask(lambda ledger: ledger.views.active_at(id))
            change = apply(task, DeadlinePassed(active_at), self.now)
            assert not change.is_noop, "a look at the clock that helps nothing comes again at once"
            self.commit(change)
        raise AssertionError("the clock is looked at without end")

    @rule(data=st.data())
    def tasks_are_created(self, data: st.DataObject) -> None:
        for _ in range(data.draw(st.integers(1, 3), "how many")):
            if len(self.ids) < 12:
                self.create(data, plain=data.draw(st.booleans(), "plain"))
        self.look()

    @rule(data=st.data())
    def a_task_is_created_again(self, data: st.DataObject) -> None:
        id = self.some_task(data)
        self.commit(create(NewTask(id, self.some_input(data, plain=True)), self.now))
        self.look()

    def create(self, data: st.DataObject, *, plain: bool) -> None:
        id = self.next_id("task")
        moment = data.draw(st.sampled_from([None, None, self.now, self.now + 2 * SECOND]), "not before")
        claim = Claimed(data.draw(st.sampled_from(WORKERS), "worker")) if data.draw(one_in(6), "held at once") else None
        asked = NewTask(id, self.some_input(data, plain), moment)
        if moment not in (None, self.now) or asked.input.depends_on:
            claim = None
        inbox: tuple[InboxEntry, ...] = ()
        if asked.input.kind == "turn" and data.draw(st.booleans(), "something said"):
            inbox = (InboxEntry(asked.input.session_id, self.next_id("entry"), "user", {"text": "naïve"}),)
        change = create(asked, self.now, claim, inbox)
        parent = change.task.input.parent_task_id
        if parent is not None and data.draw(st.booleans(), "journaled"):
            change = replace(change, steps=(self.some_step(data, self.task(parent)),))
        self.ids.append(id)
        self.seen[id] = []
        self.commit(change)

    def some_task(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(self.ids), "task")

    def some_tasks(self, data: st.DataObject, least: int, most: int) -> list[str]:
        """Any tasks, but rather those to which something can still happen."""
        live = [id for id in self.ids if (task := self.before.get(("task", id))) is not None and not task.is_terminal]
        return data.draw(st.lists(st.sampled_from(live * 4 + self.ids), min_size=least, max_size=most), "tasks")

    def some_input(self, data: st.DataObject, plain: bool) -> Input:
        session = data.draw(st.sampled_from([*SESSIONS * 8, "session_x"]), "session")
        given: dict[str, Any] = {"route": data.draw(st.sampled_from(ROUTES), "route")}
        given["organization_id"] = "org_a" if session == SESSIONS[0] else "org_b"
        stored = [id for id in self.ids if self.before.get(("task", id)) is not None]
        is_child = data.draw(st.booleans(), "child")
        if stored and is_child:
            given["parent_task_id"] = data.draw(st.sampled_from(stored), "parent")
            given["detached"] = data.draw(one_in(3), "detached")
        if not plain:
            depends_on = data.draw(_some_of([*self.ids, MISSING], 2), "depends_on")
            spans = st.sampled_from([None, None, 3 * SECOND, 20 * SECOND])
            given |= {
                "priority": data.draw(st.integers(-1, 1), "priority"),
                "concurrency_key": data.draw(st.sampled_from([None, *KEYS]), "concurrency"),
                "debounce_key": data.draw(st.sampled_from([None, None, "build"]), "debounce"),
                "idempotency_key": data.draw(st.sampled_from([None, "key_1", "key_2"]), "key"),
                "depends_on": depends_on,
                "run_if_dependency_fails": data.draw(st.booleans(), "whatever"),
                "wake_policy": data.draw(st.sampled_from(["silent", "on_terminal", "on_activity"]), "wake"),
                "on_open_children": data.draw(st.sampled_from(["wait", "cancel", "detach"]), "children"),
                "retry": Retry(data.draw(st.integers(1, 3), "failures")),
                "timeouts": Timeouts(*(data.draw(spans, name) for name in ("queue", "run", "idle", "total"))),
                "cancel_grace": data.draw(st.sampled_from([0, 2 * SECOND]), "grace"),
                "result_schema": data.draw(st.sampled_from([None, None, {"type": "integer"}]), "schema"),
                "labels": data.draw(st.sampled_from([{}, {"team": "blue"}]), "labels"),
                "budget": data.draw(st.sampled_from([None, *BUDGETS]), "budget"),
            }
        self.is_keyed = self.is_keyed or given.get("concurrency_key") is not None
        return Input(
            session_id=session,
            root_session_id=SESSIONS[0],
            kind=given["route"].partition(":")[0],
            spec={"n": self.count, "text": "naïve 🦉"},
            created_at=self.now,
            **given,
        )

    # --- steps: transitions ------------------------------------------------------------------------------

    @rule(data=st.data())
    def a_worker_claims(self, data: st.DataObject) -> None:
        routes = data.draw(st.sampled_from([ROUTES, ROUTES[:1], ROUTES[1:]]), "routes")
        self.claim(data, data.draw(st.integers(0, 3), "limit"), routes)

    def claim(self, data: st.DataObject, limit: int = 100, routes: tuple[str, ...] = ROUTES) -> None:
        worker, now = data.draw(st.sampled_from(WORKERS), "worker"), self.now
        claim = Claim(worker, routes, limit, now)
        claims = self.on_all(lambda ledger: ledger.claim(claim, lambda task: apply(task, Claimed(worker), now)))
        self.check_limits(claims, claim)
        self.look()

    def check_limits(self, claims: Claims, claim: Claim) -> None:
        """What was just taken was admitted; and what is left on these routes could not have been, if any could."""
        gates = self.ask(lambda ledger: ledger.views.gates())
        uses = {use.key: use for use in self.ask(lambda ledger: ledger.views.uses(KEYS))}
        for task in claims.tasks:
            assert gates.pause_of(task.input.kind, task.session_id) is None
            key = task.input.concurrency_key
            capacity = None if key is None else gates.limit(key).capacity
            assert key is None or capacity is None or uses[key].held <= capacity

    @rule(data=st.data())
    def limits_and_pauses_change(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([*KEYS, "key_*"]), "key")
        scopes: list[Scope] = ["everything", "kind", "session", "session"]
        scope = data.draw(st.sampled_from(scopes), "scope")
        names = {"everything": [""], "kind": ["subagent"], "session": [*SESSIONS, "session_x"]}
        name = data.draw(st.sampled_from(names[scope]), "name")
        order: Any
        match data.draw(st.sampled_from(["set", "set", "set", "remove", "pause", "resume", "resume"]), "order"):
            case "set":
                capacity = data.draw(st.sampled_from([None, 0, 1, 2]), "capacity")
                rate = data.draw(st.sampled_from([None, None, 1, 2]), "rate")
                order = LimitSet(Limit(key, capacity, rate, data.draw(st.sampled_from([SECOND, 10 * SECOND]), "span")))
            case "remove":
                order = LimitRemoved(key)
            case "pause":
                order = Paused(Pause(scope, name, self.now))
            case _:
                order = Resumed(scope, name)
        self.is_gated = True
        self.on_all(lambda ledger: ledger.control(order))
        self.look()

    @rule(data=st.data())
    def a_session_is_closed_or_reopened(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from([*SESSIONS, "session_x"]), "session")
        closed = [Closed(session, self.now), Closed(session, self.now, when_idle=True)]
        orders: list[Closed | Reopened] = [*closed, *[Reopened(session, self.now)] * 2]
        order = data.draw(st.sampled_from(orders), "order")
        self.on_all(lambda ledger: _ordered(ledger, order))
        self.look()

    @rule(data=st.data())
    def a_session_is_described(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from([*SESSIONS, "session_x"]), "session")
        title = data.draw(st.sampled_from([None, "", "a title"]), "title")
        labels = data.draw(st.dictionaries(st.sampled_from("ab"), st.sampled_from([None, "1", "2"])), "labels")
        order = Described(session, self.now, title, labels)
        self.on_all(lambda ledger: _ordered(ledger, order))
        self.look()

    @rule(data=st.data())
    def a_session_is_forked(self, data: st.DataObject) -> None:
        """What it begins with is there, or nothing of it."""
        source = data.draw(st.sampled_from([*SESSIONS * 4, "session_x"]), "source")
        entries = data.draw(st.sampled_from([None, 0, 1, 2, 5]), "entries")
        seed = Seed(source, entries, data.draw(st.booleans(), "files"))
        new = NewSession(self.next_id("session"), self.now)
        self.on_all(lambda ledger: _forked(ledger, new, seed))
        self.look()

    @rule(data=st.data())
    def things_happen(self, data: st.DataObject) -> None:
        """One after the other; who could be running is often taken first, else histories stay short."""
        for id in self.some_tasks(data, 1, 16):
            task = self.find(id)
            if task is not None and task.core.due_at is not None and not data.draw(one_in(4), "not taken"):
                self.now = max(self.now, task.core.due_at)
                self.claim(data)
            change = self.some_change(data, id)
            if change is not None:
                self.commit(change)
                self.look()

    @rule(data=st.data())
    def late_changes_arrive(self, data: st.DataObject) -> None:
        """Decided on a record that may be old, by a holder that may be a zombie.

        Live values have no version: a holder of the current one knows those it reported itself.
        """
        for id in self.some_tasks(data, 1, 4):
            if not self.seen[id]:
                continue
            current = self.task(id)
            record = replace(data.draw(st.sampled_from(self.seen[id]), "record"), live=current.live)
            change = self.some_change(data, id, record)
            if change is None:
                continue
            (verdict,) = self.commit(change)
            if record.core.version != current.core.version:
                assert not isinstance(verdict, Committed)
                self.check_nothing_changed()
            self.look()

    @rule(data=st.data())
    def several_things_happen_at_once(self, data: st.DataObject) -> None:
        """In one batch, or from as many callers.

        Those of one task are decided all on the stored record, or each on what the one before would make of it.
        """
        latest: dict[str, Task] = {}
        changes: list[Change] = []
        in_turn = data.draw(st.booleans(), "in turn")
        for id in self.some_tasks(data, 2, 5):
            change = self.some_change(data, id, latest.get(id) if in_turn else None)
            if change is not None:
                changes.append(change)
                latest[id] = change.task
        if data.draw(st.booleans(), "many callers"):
            acts = [_committing(change) for change in changes]
            self.on_all(lambda ledger: _together(ledger, acts))
        else:
            self.commit(*changes)
        self.look()

    @rule(data=st.data())
    def a_follow_up_is_applied(self, data: st.DataObject) -> None:
        """Any of those that wait, maybe on an old record, maybe by two workers."""
        pending = self.before["follow_ups",]
        if not pending:
            return
        place = data.draw(st.integers(0, len(pending) - 1), "which")
        task_id, event = pending[place]
        record = None
        if self.find(task_id) is None:
            self.settle_first(task_id, event)
            self.look()
            return
        if data.draw(one_in(5), "on an old record"):
            record = data.draw(st.sampled_from(self.seen[task_id]), "record")
        change = apply(record or self.task(task_id), event, self.now)
        times = 2 if data.draw(one_in(2), "twice") else 1
        self.on_all(lambda ledger: _settle(ledger, place, change, times))
        self.look()

    @rule(data=st.data())
    def ended_tasks_are_pruned(self, data: st.DataObject) -> None:
        """Some of those named live and stay, some were never there."""
        named = data.draw(st.lists(st.sampled_from([*self.ids, MISSING]), min_size=1, max_size=4), "named")
        pruned = self.on_all(lambda ledger: ledger.prune(named, now=self.now))
        for id in pruned.task_ids:
            self.seen[id] = []  # a task of that id that is made later is another one
        self.look()

    @rule()
    def all_follow_ups_are_applied(self) -> None:
        for _ in range(1000):
            pending = self.ask(_follow_ups)
            if not pending:
                break
            self.settle_first(*pending[0])
        else:
            raise AssertionError("follow-ups breed follow-ups without end")
        self.look()

    def settle_first(self, task_id: str, event: Event) -> None:
        task = self.find(task_id)
        if task is None:
            self.on_all(lambda ledger: ledger.prune([task_id]))
            return
        change = apply(task, event, self.now)
        self.on_all(lambda ledger: _settle(ledger, 0, change, 1))

    def some_change(self, data: st.DataObject, id: str, record: Task | None = None) -> Change | None:
        """What an event makes of the record, by default the stored one; None if the reducer refuses it."""
        task = record or self.find(id)
        if task is None:
            return None
        event = self.some_event(data, task)
        try:
            change = apply(task, event, self.now)
        except (Superseded, Conflict):
            return None
        if isinstance(event, Enriched):
            self.enriched.add(id)
        if (ended := change.ended) is not None and data.draw(one_in(3), "with its last page"):
            change = replace(change, page=self.some_page(data, task, ended.attempt, task.live))
        return change

    def some_page(self, data: st.DataObject, task: Task, attempt: int, live: Live) -> Page:
        draw = data.draw
        forget = draw(st.sampled_from([None, "model:1", ""]), "forget")
        steps = (replace(self.some_step(data, task), attempt=attempt),) if draw(st.booleans(), "step") else ()
        session = draw(st.sampled_from(SESSIONS), "transcript")
        return Page(session, task.id, attempt, live.iterations, (b"1", b'{"a":2}'), live, self.now, forget, steps)

    def some_event(self, data: st.DataObject, task: Task) -> Event:
        core = task.core
        by_others = [
            MessageReceived,
            MessageReceived,
            Reprioritized,
            Debounced,
            CancelRequested,
            DeadlinePassed,
            HolderLost,
            WatchedEnded,
            Rung,
            Told,
        ]
        by_holder = [Asked, Asked, Posted, Produced, Parked, Parked, Parked, Released, Succeeded, Failed, Stopped]
        if core.is_held and not data.draw(one_in(4), "somebody else"):
            kinds = [*by_holder, Answered, Answered] if core.requests else by_holder
        elif task.is_terminal and core.finished_by is not None:
            kinds = [Enriched, Enriched, *by_others]
        else:
            kinds = [*by_others, *[Answered] * 4] if core.requests else by_others
        return self.make(data, data.draw(st.sampled_from(kinds), "event"), task)

    def make(self, data: st.DataObject, kind: type[Any], task: Task) -> Event:
        draw, core, now = data.draw, task.core, self.now
        attempt = core.attempt if not draw(one_in(8), "zombie") else draw(st.integers(0, 3), "attempt")
        live = self.some_live(data, task) if draw(one_in(3), "with live values") else None
        journaled, chance = draw(st.booleans(), "journaled"), draw(st.sampled_from([0.0, 0.5, 1.0]), "chance")
        match kind.__name__:
            case "Asked":
                return Asked(attempt, self.some_request(data, task), self.some_step(data, task), live)
            case "Posted":
                return Posted(attempt, self.message(task, "outbound"), self.some_step(data, task))
            case "Produced":
                name = draw(st.sampled_from(["a", "b"]), "artifact")
                file = FileWrite(task.session_id, f"/{name}", b"\x00content", "text/plain", now, task.id)
                return Produced(attempt, Artifact(name, "file", file.path), file, self.some_step(data, task))
            case "Parked":
                return Parked(attempt, self.some_waits(data, task), journaled, live)
            case "Released":
                return Released(attempt, journaled, live)
            case "Succeeded":
                result = draw(st.sampled_from([None, b"1", b'"naive"']), "result")
                mismatch = draw(st.sampled_from([None, None, "not an integer"]), "mismatch")
                children = self.ask(lambda ledger: _open_children(ledger, task.id))
                seen = draw(st.sampled_from([None, core.rung, core.rung - 1]), "seen")
                leaves = draw(st.booleans(), "leaves")
                return Succeeded(attempt, result, "done", children, mismatch, live, seen, leaves)
            case "Failed":
                error = TaskError("exception", "no", {"n": self.count})
                return Failed(attempt, error, draw(st.booleans(), "retryable"), chance, journaled, b"2", "so far", live)
            case "Stopped":
                return Stopped(attempt, chance, journaled, live)
            case "Enriched":
                return Enriched(attempt, f"summary {self.count}", (Artifact("late", "link", url="x:y"),))
            case "HolderLost":
                return HolderLost(attempt, journaled)
            case "Answered":
                ids = [request.id for request in core.requests]
                answer = draw(st.sampled_from([True, "text", {"a": [1]}]), "answer")
                return Answered(draw(st.sampled_from([*ids, "req_none"]), "request"), answer, "user", "test")
            case "Rung":
                return Rung(task.session_id)
            case "Told":
                return Told(self.next_id("entry"), {"text": "naïve"}, draw(st.booleans(), "interrupts"))
            case "MessageReceived":
                return MessageReceived(self.message(task, "inbound"))
            case "Reprioritized":
                return Reprioritized(draw(st.integers(-2, 2), "priority"))
            case "Debounced":
                return Debounced({"n": self.count}, now + draw(st.sampled_from([0, SECOND]), "put off"))
            case "CancelRequested":
                grace = draw(st.sampled_from([None, 0, SECOND]), "grace")
                return CancelRequested("user", None, draw(st.booleans(), "detached too"), grace)
            case "DeadlinePassed":
                return DeadlinePassed(draw(st.sampled_from([None, now, now - 2 * SECOND]), "active at"))
            case _:
                known = [*core.dependencies, *self.ids, MISSING]
                state = draw(st.sampled_from([State.SUCCEEDED, State.FAILED]), "state")
                return self.true_end(draw(st.sampled_from(known), "watched"), state)

    def true_end(self, id: str, state: State) -> Event:
        """Only what has ended is told to have ended; a made-up id stands in for a task that is gone."""
        task = self.find(id)
        if task is None:
            return WatchedEnded(id, State.FAILED)
        return WatchedEnded(id, task.state) if task.is_terminal else WatchedEnded("task_gone", state)

    def message(self, task: Task, direction: Any) -> Message:
        return Message(self.next_id("tmsg"), task.id, task.session_id, direction, ({"type": "text"},), self.now)

    def some_live(self, data: st.DataObject, task: Task) -> Live:
        n = data.draw(st.integers(0, 3), "live")
        progress = None if n == 0 else Progress(n, 3, "files", "naïve", ("one", "two"))
        return replace(task.live, state_detail=f"detail {n}", progress=progress, usage=Usage(n), iterations=n)

    def some_step(self, data: st.DataObject, task: Task) -> Step:
        attempt = task.core.attempt - data.draw(one_in(8), "zombie step")
        position = data.draw(st.sampled_from(["list", "model:1", "model:1:tool", "model:2"]), "position")
        value = data.draw(st.sampled_from([b"1", b'{"a":null}', None]), "value")
        self.count += 1
        return Step(task.id, position, self.count, "step", attempt, self.now, value, value is not None)

    def some_request(self, data: st.DataObject, task: Task) -> InputRequest:
        later = st.sampled_from([None, self.now + SECOND, self.now + 10 * SECOND])
        return InputRequest(
            self.next_id("req"),
            task.id,
            "question",
            "Go on?",
            position="ask:1",
            created_at=self.now,
            deadline_at=data.draw(later, "deadline"),
            on_expiry=data.draw(st.sampled_from(["default", "deny", "fail", "remind"]), "policy"),
            default={"go": "on"},
            remind_every=data.draw(st.sampled_from([None, 5 * SECOND]), "every"),
            remind_at=data.draw(later, "remind"),
        )

    def some_waits(self, data: st.DataObject, task: Task) -> tuple[Wait, ...]:
        ids = [request.id for request in task.core.requests]
        others = [id for id in (*self.ids, MISSING) if id != task.id]
        seen = [None, dict.fromkeys(others, 2)]
        wait: st.SearchStrategy[Wait] = st.one_of(
            st.sampled_from([*ids, "req_none"]).map(WaitForAnswer),
            st.sampled_from([0, SECOND, 5 * SECOND]).map(lambda span: WaitUntil(self.now + span)),
            st.builds(WaitForTasks, _some_of(others, 3), st.booleans(), seen=st.sampled_from(seen)),
            st.sampled_from([0, 1]).map(lambda n: WaitForMessage(max(task.core.messages - n, 0))),
        )
        return tuple(data.draw(st.lists(wait, max_size=2), "waits"))

    # --- steps: running work, files, inbox, workers ------------------------------------------------------

    @rule(data=st.data())
    def holders_write(self, data: st.DataObject) -> None:
        """Any write of running work, from the holder or a zombie; a zombie's changes nothing."""
        if data.draw(st.booleans(), "taken"):
            self.claim(data)
        for id in self.some_tasks(data, 1, 16):
            task = self.find(id)
            if task is None:
                continue
            attempt = task.core.attempt
            if data.draw(one_in(4), "zombie"):
                attempt = data.draw(st.integers(0, 3), "attempt")
            kept = self.on_all(self.some_write(data, task, attempt))
            is_holder = task.core.is_held and task.core.attempt == attempt
            assert kept == is_holder
            if not is_holder:
                self.check_nothing_changed()
            self.look()

    @rule(data=st.data())
    def models_are_called(self, data: st.DataObject) -> None:
        """Holders and zombies reserve and settle; providers are heard of and probed."""
        if data.draw(st.booleans(), "taken"):
            self.claim(data)
        charges = [
            charge
            for id in self.some_tasks(data, 1, 8)
            if (task := self.find(id)) is not None
            for charge in [self.some_charge(data, task)]
        ]
        self.on_all(lambda ledger: ledger.charge(charges))
        self.look()

    def some_charge(self, data: st.DataObject, task: Task) -> Charge:
        draw, now, taps = data.draw, self.now, taps_of(task)
        attempt = task.core.attempt if not draw(one_in(5), "zombie") else draw(st.integers(0, 3), "attempt")
        ordinal, tokens = draw(st.integers(1, 3), "ordinal"), draw(st.sampled_from([1, 20, 60]), "tokens")
        amounts, name = Amounts(1, tokens, 1000 * tokens, 1), draw(st.sampled_from(["model:m", "model:n"]), "model")
        match draw(st.sampled_from(["reserve", "reserve", "settle", "probe", "heard"]), "charge"):
            case "reserve":
                rate = draw(st.sampled_from([None, RateLimit(name, 3, 100)]), "rate")
                return Reserve(task.id, attempt, ordinal, amounts, now, taps, rate)
            case "settle":
                slot = draw(st.sampled_from([None, Slot(name, now - now % (2 * SECOND), 60)]), "slot")
                took = draw(st.sampled_from([None, amounts]), "took")
                return Settle(task.id, attempt, ordinal, took, now, taps, slot)
            case "probe":
                return Probe("p", now, BreakerTerms(2))
            case _:
                return Heard("p", draw(st.sampled_from([None, "500", "503"]), "failure"), now, BreakerTerms(2))

    @rule(data=st.data())
    def several_write_at_once(self, data: st.DataObject) -> None:
        acts: list[Act] = []
        for id in self.some_tasks(data, 2, 6):
            task = self.find(id)
            if task is None:
                continue
            if data.draw(one_in(3), "a change"):
                change = self.some_change(data, id)
                if change is not None and not change.live_changed:
                    acts.append(_committing(change))
            else:
                acts.append(self.some_write(data, task, task.core.attempt, with_live=False))
        self.on_all(lambda ledger: _together(ledger, acts))
        self.look()

    def some_write(self, data: st.DataObject, task: Task, attempt: int, *, with_live: bool = True) -> Act:
        """A write as a function of the store, so that each store is asked the same."""
        draw, now = data.draw, self.now
        kinds = ["journal", "print", "file"] + (["report", "append"] if with_live else [])
        kind = draw(st.sampled_from(kinds), "write")
        if kind == "report":
            live = self.some_live(data, task)
            delta = json.loads(orjson.dumps(difference(task.live, live)))
            report = Report(task.id, attempt, now, live, delta or None)
            return lambda ledger: _first(ledger.report([report]))
        if kind == "journal":
            step = replace(self.some_step(data, task), attempt=attempt)
            return lambda ledger: _first(ledger.journal([step]))
        if kind == "print":
            text = draw(st.sampled_from(["line\n", "naïve", "🦉" * 3, "x" * 40]), "text")
            chunk = OutputChunk(task.id, attempt, draw(st.sampled_from(["stdout", "log"]), "stream"), text, now, 64)
            return lambda ledger: _first(ledger.print([chunk]))
        if kind == "append":
            page = self.some_page(data, task, attempt, self.some_live(data, task))
            taken = draw(st.sampled_from([0, 0, 1, 3]), "taken")
            return lambda ledger: _append(ledger, page, taken)
        path = draw(st.sampled_from(["/a", "/b/c", f"/.tasks/{task.id}/log"]), "path")
        file = FileWrite(task.session_id, path, f"{self.count}".encode(), "text/plain", now, task.id)
        return lambda ledger: ledger.write_file(file, (task.id, attempt))

    @rule(session=st.sampled_from(SESSIONS), data=st.data())
    def something_else_happens(self, session: str, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(["/a", "/b/c", "/é"]), "path")
        worker = data.draw(st.sampled_from(WORKERS), "worker")
        acts = ["write", "delete", "receive", "acknowledge", "register", "retire"]
        match data.draw(st.sampled_from(acts), "what"):
            case "write":
                file = FileWrite(session, path, b"by hand", "text/plain", self.now)
                self.on_all(lambda ledger: ledger.write_file(file))
            case "delete":
                self.on_all(lambda ledger: ledger.delete_file(session, path))
            case "receive":
                count, now = data.draw(st.integers(1, 2), "how many"), self.now
                until = now + data.draw(st.sampled_from([0, 1, 30]), "lease") * SECOND
                self.on_all(lambda ledger: _receive(ledger, session, now, until, count))
            case "acknowledge":
                late = data.draw(st.sampled_from([0, 0, 1]), "late by")
                kept = data.draw(st.sampled_from([None, None, self.now, self.now + 10 * SECOND]), "kept until")
                self.on_all(lambda ledger: _acknowledge(ledger, session, late, kept))
            case "register":
                card = WorkerCard(worker, "host", "boot", 1, self.now, ROUTES, "1", 4)
                self.on_all(lambda ledger: ledger.register(card))
            case _:
                self.on_all(lambda ledger: ledger.retire(worker))
        self.look()

    def check_nothing_changed(self) -> None:
        dump = self.ask(lambda ledger: _dump(ledger, self.ids))
        assert {key: value for key, value in dump.items() if self.before.get(key) != value} == {}


# --- reading a store whole -------------------------------------------------------------------------------


async def _dump(ledger: Ledger, ids: Sequence[str]) -> Dump:
    """All that can be read, but for what one store may number otherwise than another."""
    views, dump = ledger.views, Dump()
    found = {task.id: task for task in await views.tasks(ids)}
    for id in ids:
        dump["task", id] = _standing(found.get(id))
        dump["steps", id] = list(await views.steps(id))
        dump["attempts", id] = list(await views.attempts(id))
        dump["requests", id] = list(await views.requests(id))
        dump["messages", id] = list(await views.messages(id))
        dump["output", id] = await views.output(id)
        dump["active_at", id] = await views.active_at(id)
        dump["children", id] = sorted(task.id for task in await views.children(id))
    for session in SESSIONS:
        dump["session", session] = await views.session(session)
        dump["first_seq", session] = await views.first_seq(session)
        dump["log", session] = [
            (row.seq, row.task_id, row.type, row.at, orjson.loads(row.data))
            for row in await views.events(session, limit=1_000_000)
        ]
        dump["inbox", session] = [
            (
                *(row.task_id, row.reason, orjson.loads(orjson.dumps(row.body)), row.created_at),
                *(row.deliveries, row.leased_until),
            )
            for row in await views.inbox(session)
        ]
        files = list(await views.files(session))
        dump["files", session] = files
        dump["contents", session] = [await views.file(session, file.path) for file in files]
        dump["transcript", session] = list(await views.transcript(session))
    for worker in WORKERS:
        dump["held", worker] = sorted(await views.held_by(worker), key=lambda beat: beat.task_id)
    names = [*(f"{kind}:{id}" for id in SESSIONS for kind in ("session", "tree")), *(f"task:{id}" for id in ids)]
    names += ["model:m", "model:n", "provider:p"]
    meters = await views.meters(names)
    for name in names:
        dump["meter", name] = meters.get(name)
    for session in SESSIONS:
        dump["usage", session] = (await views.usage(session), await views.usage(session, tree=True))
    dump["follow_ups",] = await _follow_ups(ledger)
    dump["overdue",] = await _overdue(ledger, START + 10_000 * SECOND)
    dump["gates",] = await views.gates()
    dump["uses",] = [(use.key, use.held) for use in await views.uses(KEYS)]
    dump["counts",] = {state: count for state, count in (await views.count_by_state()).items() if count}
    dump["workers",] = sorted((worker.card for worker in await views.workers()), key=lambda card: card.id)
    return dump


async def _follow_ups(ledger: Ledger) -> list[tuple[str, Any]]:
    return [(one.task_id, one.event) for one in await ledger.views.follow_ups(10_000)]


async def _overdue(ledger: Ledger, now: Instant) -> list[tuple[str, Instant | None]]:
    overdue = await ledger.views.overdue(now, 10_000)
    deadlines = [task.core.next_deadline_at or 0 for task in overdue]
    assert deadlines == sorted(deadlines)
    return sorted((task.id, task.core.next_deadline_at) for task in overdue)


async def _open_children(ledger: Ledger, id: str) -> tuple[str, ...]:
    children = await ledger.views.children(id)
    return tuple(sorted(child.id for child in children if not child.is_terminal and not child.input.detached))


def _dumping(ids: Sequence[str]) -> Callable[[Ledger], Awaitable[Dump]]:
    return lambda ledger: _dump(ledger, ids)


# --- acting on a store -----------------------------------------------------------------------------------


def _committing(change: Change) -> Act:
    return lambda ledger: ledger.commit([change])


async def _settle(ledger: Ledger, place: int, change: Change, times: int) -> Sequence[Verdict]:
    """Answer the follow-up at that place among those that wait; its number is the store's own."""
    pending = await ledger.views.follow_ups(10_000)
    return await ledger.commit([replace(change, settles=pending[place].id)] * times)


async def _receive(ledger: Ledger, session: str, now: Instant, until: Instant, count: int) -> list[Any]:
    """Receive entries, but for their numbers: those are the store's own."""
    rows = await ledger.receive(session, now, until, count)
    left = await ledger.views.receivable_at(session, now) if await ledger.views.session(session) else None
    return [left is not None and left <= now, *((row.task_id, row.deliveries, row.leased_until) for row in rows)]


async def _acknowledge(ledger: Ledger, session: str, late: int, until: Instant | None) -> Sequence[Standing]:
    """Acknowledge all that were received, each with the receipt of that many deliveries ago."""
    rows = await ledger.views.inbox(session)
    receipts = [Receipt(row.task_id, row.seq, row.deliveries - late) for row in rows if row.deliveries > late]
    return await ledger.acknowledge(session, [*receipts, Receipt("task_x", 1, 1)], until)


async def _ordered(ledger: Ledger, order: Closed | Reopened | Described) -> Any:
    """What became of an order, or why it was refused."""
    try:
        return await ledger.control(order)
    except (Conflict, NotFound) as error:
        return error.code, error.details


async def _forked(ledger: Ledger, new: NewSession, seed: Seed) -> Any:
    """A session as it begins, with all in it, or why it was refused."""
    views = ledger.views
    try:
        session = await ledger.create_session(new, seed)
    except NotFound as error:
        return error.code, await views.session(new.id)
    files = list(await views.files(new.id))
    contents = [await views.file(new.id, file.path) for file in files]
    return session, list(await views.transcript(new.id)), await views.last_entry(new.id), files, contents


async def _append(ledger: Ledger, page: Page, count: int) -> bool:
    """Append a page that takes the oldest entries of the inbox; their numbers are the store's own."""
    rows = (await ledger.views.inbox(page.session_id))[:count]
    return await ledger.append(replace(page, takes=tuple((row.task_id, row.seq) for row in rows)))


async def _together(ledger: Ledger, acts: Iterable[Act]) -> list[Any]:
    """As from many callers; their order is that in which they called."""
    return list(await asyncio.gather(*(act(ledger) for act in acts)))


async def _first(answers: Awaitable[Sequence[bool]]) -> bool:
    (answer,) = await answers
    return answer


def _some_of(ids: Sequence[str], most: int) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(ids), max_size=most, unique=True).map(tuple)


def _comparable(answer: Any, *, is_gated: bool) -> Any:
    """Any sequence as a list. A verdict may show a timed task whose moment has come as either.

    What limits and pauses set aside one store may have let in again before another does, as long as neither starts it:
    so whether more may be ready, and when to look, may differ once there are any.
    """
    if isinstance(answer, list | tuple):
        return [_comparable(one, is_gated=is_gated) for one in answer]
    if isinstance(answer, Claims) and is_gated:
        return replace(answer, more=False, next_due_at=None)
    if isinstance(answer, Committed):
        task = the_standing(answer.task)
        if task.core.readiness == "timed":
            task = replace(task, core=replace(task.core, readiness="ready"))
        return Committed(task)
    if isinstance(answer, Existing):
        return Existing(the_standing(answer.task))
    return Stale(_standing(answer.current)) if isinstance(answer, Stale) else answer


def _standing(task: Task | None) -> Task | None:
    """A task that was set aside stands in the queue all the same."""
    return None if task is None else the_standing(task)


def the_standing(task: Task) -> Task:
    if task.core.blocked_by not in SET_ASIDE:
        return task
    return replace(task, core=replace(task.core, readiness="ready", blocked_by=None))


def _timeless(task: Task) -> Task:
    """The record without what is not versioned: live values, and whether its moment has come."""
    return replace(task, live=Live(), core=replace(task.core, readiness=None, blocked_by=None))


def _normalised(record: Any) -> Any:
    """Of a timed task the log does not say that it became ready."""
    core = record["core"]
    if core["blocked_by"] in SET_ASIDE or core["readiness"] in ("timed", "ready"):
        core = {**core, "readiness": "timed or ready", "blocked_by": None}
    return {**record, "core": core}


# --- the tests -------------------------------------------------------------------------------------------


def _run(history: Callable[[], Histories], settings: settings) -> None:
    run_state_machine_as_test(cast(type[Histories], history), settings=settings)  # any factory will do


QUICK = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
LONG = settings(QUICK, max_examples=400, stateful_step_count=100, phases=list(Phase))


@pytest.mark.slow
def test_random_histories_keep_the_invariants_on_the_reference():
    _run(lambda: Histories(["memory"]), settings=settings(QUICK, max_examples=20))  # the other stores bring theirs


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "memory"])
def test_random_histories_go_the_same_way_on_every_store(name: str):
    # A history on a server takes four times as long as in a file, and both share what judges and decides.
    _run(lambda: Histories(["memory", name]), settings=settings(QUICK, max_examples=10 if name == "postgres" else 20))


@pytest.mark.soak
@pytest.mark.parametrize("names", [["memory"], *(["memory", name] for name in BACKENDS if name != "memory")], ids=str)
def test_very_many_random_histories_go_the_same_way_on_every_store(names: list[str]):
    _run(lambda: Histories(names), settings=LONG)
