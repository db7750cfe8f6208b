"""A runtime within bounds: what lies outside is as if it were not there, whatever is done with its ids."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import pytest

from outrider import Outrider, Runtime, State, TaskContext, TaskOptions
from outrider.core import machine
from outrider.core.change import Heritage, InboxEntry, Page
from outrider.core.delivery import Receipt
from outrider.core.errors import AlreadyExists, Forbidden, NotFound, OutriderError
from outrider.core.events import CancelRequested, FileWrite, Step
from outrider.core.ledger import (
    Claim,
    Closed,
    Document,
    GrantSet,
    Ledger,
    LimitRemoved,
    LimitSet,
    Order,
    OutputChunk,
    Paused,
    Reopened,
    Report,
    Resumed,
    TaskFilter,
    Views,
    WorkerCard,
)
from outrider.core.meters import SESSION, TASK, TREE
from outrider.core.queue import Limit, Pause
from outrider.core.session import Grant, NewSession, Seed
from outrider.core.task import Live, Task
from outrider.core.values import evolve
from outrider.runtime.bounds import Bounds
from outrider.runtime.handles import SessionHandle
from outrider.runtime.records import EventRecord
from outrider.runtime.tasks import Order as Submission
from outrider.settings import WebhookSettings
from outrider.testing import TestRuntime, open_test

pytestmark = pytest.mark.anyio

A, B = Bounds("org_a"), Bounds("org_b")
FORBIDDEN = ("forbidden",)
HOOK = "https://hooks.example/"
COLLECTIONS = ("notes", "keys", "organizations", "audit", "audit_heads", "webhook", "task_webhook")


@dataclass(frozen=True)
class Ids:
    """What somebody else's things are called, or what nothing is called."""

    session: str
    asking: str
    ended: str
    held: str
    request: str
    receipt: str
    at: int
    key: str
    organization: str
    webhook: str
    of_task: str
    """A webhook of one task."""


NOTHING = Ids(
    "session_no", "task_no", "task_no2", "task_no3", "req_no", "task_no.1.1", 0, "key_no", "org_no", "whk_no", "whk_no2"
)


@dataclass
class Neighbours:
    """Two organizations in one store: `theirs` has something of everything, `ours` looks at it."""

    whole: TestRuntime
    ours: Runtime
    own: SessionHandle
    theirs: Ids
    stolen: dict[str, Any]
    """The document of their ended task."""

    async def state(self) -> Any:
        """All that they have."""
        views = self.whole.services.views
        session = await views.session(self.theirs.session)
        tasks = sorted(await views.list_tasks(TaskFilter(organization_id="org_b")), key=lambda task: task.id)
        rows = [[await view(task.id) for task in tasks] for view in (views.steps, views.requests, views.messages)]
        return (
            session,
            tasks,
            rows,
            await views.sessions(organization_id="org_b"),
            await views.events(self.theirs.session, limit=1000),
            await views.files(self.theirs.session),
            await views.inbox(self.theirs.session),
            await views.gates(),
            [await views.documents(each) for each in COLLECTIONS],
        )


@pytest.fixture
async def neighbours() -> AsyncIterator[Neighbours]:
    app = Outrider()

    @app.tool
    async def asks(task: TaskContext) -> None:
        task.output("a secret\n")
        await task.step("first", lambda: "secret")
        await task.post("secret")
        await task.ask("Go on?", bool)

    @app.tool
    async def ends() -> str:
        return "secret"

    async with open_test(app, store="memory", webhooks=WebhookSettings(deliver=False)) as runtime:
        there = runtime.within(B)
        session = await there.sessions.create(title="secret", labels={"of": "b"})
        asking = await session.spawn("asks", options=TaskOptions(wake="on_activity", idempotency_key="a key"))
        ended = await session.spawn("ends", options=TaskOptions(wake="on_terminal"))
        await runtime.run_until_idle()
        external = await session.create("external", {"name": "robot"})
        (held,) = await there.external.claim("robot", name="robot")
        assert (held.id, held.needs) == (external.id, None)
        await session.write_file("secret.txt", "secret")
        await there.queue.pause(session=session.id, reason="secret")
        row = (await there.inbox.receive(session.id, lease=1000))[0]
        assert row.receipt is not None
        ours = runtime.within(A)
        own = await ours.sessions.create(title="own")
        await own.spawn("ends", options=TaskOptions(id="task_own"))
        await runtime.run_until_idle()
        request = (await asking.record()).input_request
        assert request is not None
        assert await runtime.ledger.keep([Document("notes", "of b", {"a": "secret"}, "org_b")])
        await runtime.organizations.create("secret", id="org_b")
        await runtime.retention.set_policy("org_b", age=None)
        await runtime.retention.pin(session.id)
        archived = {"key": "k", "size": 1, "sha256": "0", "at": 1}
        await runtime.ledger.keep([Document("archive", session.id, archived, "org_b")])
        key = await there.keys.create("secret")
        await there.audit.record("secret", actor={})
        hook, of_task = await there.webhooks.create(HOOK), await there.webhooks.create(HOOK, task_id=asking.id)
        ids = Ids(
            *(session.id, asking.id, ended.id, held.id, request.id, row.receipt, held.attempt, key.id, "org_b"),
            *(hook.id, of_task.id),
        )
        yield Neighbours(runtime, ours, own, ids, await there.tasks.export(ended.id))


async def outcome(made: Any) -> Any:
    """What came of a call: a value, or the code of the error."""
    try:
        if hasattr(made, "__aiter__"):
            return [each async for each in made]
        return await made if inspect.isawaitable(made) else made
    except OutriderError as error:
        return (error.code,)


Verb = Callable[[Neighbours, Ids], Any]

FACADE: dict[str, Verb] = {
    "task": lambda n, it: n.ours.task(it.ended),
    "sessions.get": lambda n, it: n.ours.sessions.get(it.session),
    "sessions.record": lambda n, it: n.ours.sessions.record(it.session),
    "sessions.list": lambda n, it: n.ours.sessions.list(),
    "sessions.grants": lambda n, it: n.ours.sessions.grants(it.session),
    "sessions.revoke": lambda n, it: n.ours.sessions.revoke(it.session, "tool"),
    "sessions.usage": lambda n, it: n.ours.sessions.usage(it.session, tree=True),
    "snapshot": lambda n, it: n.ours.snapshot(it.organization),
    "sessions.export": lambda n, it: n.ours.sessions.export(it.session),
    "sessions.snapshot": lambda n, it: n.ours.sessions.snapshot(it.session),
    "tasks.snapshot": lambda n, it: n.ours.tasks.snapshot(it.asking),
    "sessions.tree": lambda n, it: n.ours.sessions.tree(it.session),
    "sessions.send": lambda n, it: n.ours.sessions.send(it.session, "hello"),
    "sessions.turn": lambda n, it: n.ours.sessions.turn(it.session),
    "sessions.transcript": lambda n, it: n.ours.sessions.transcript(it.session, newest_first=True),
    "sessions.files": lambda n, it: n.ours.sessions.files(it.session),
    "sessions.read_file": lambda n, it: n.ours.sessions.read_file(it.session, "/secret.txt"),
    "sessions.write_file": lambda n, it: n.ours.sessions.write_file(it.session, "/a.txt", "b"),
    "sessions.delete_file": lambda n, it: n.ours.sessions.delete_file(it.session, "/secret.txt"),
    "sessions.fork": lambda n, it: n.ours.sessions.fork(it.session),
    "sessions.update": lambda n, it: n.ours.sessions.update(it.session, title="mine"),
    "sessions.close": lambda n, it: n.ours.sessions.close(it.session, tasks="cancel"),
    "sessions.reopen": lambda n, it: n.ours.sessions.reopen(it.session),
    "sessions.delete": lambda n, it: n.ours.sessions.delete(it.session, cancel=True),
    "sessions.events": lambda n, it: n.ours.sessions.events(it.session),
    "tasks.create": lambda n, it: n.ours.tasks.create(it.session, "external", {}),
    "tasks.submit": lambda n, it: n.ours.tasks.submit(it.session, [Submission("external", {})]),
    "tasks.create_many": lambda n, it: n.ours.tasks.create_many(it.session, "external", [{}, {}]),
    "tasks.get": lambda n, it: n.ours.tasks.get(it.ended),
    "tasks.find": lambda n, it: n.ours.tasks.find(it.ended[5:]),
    "tasks.record": lambda n, it: n.ours.tasks.record(it.ended),
    "tasks.list": lambda n, it: n.ours.tasks.list(session_id=it.session),
    "tasks.tree": lambda n, it: n.ours.tasks.tree(it.asking),
    "tasks.spent": lambda n, it: n.ours.tasks.spent(it.ended),
    "tasks.attempts": lambda n, it: n.ours.tasks.attempts(it.ended),
    "tasks.steps": lambda n, it: n.ours.tasks.steps(it.asking),
    "tasks.requests": lambda n, it: n.ours.tasks.requests(it.asking),
    "tasks.messages": lambda n, it: n.ours.tasks.messages(it.asking),
    "tasks.answer": lambda n, it: n.ours.tasks.answer(it.asking, True, request_id=it.request),
    "tasks.message": lambda n, it: n.ours.tasks.message(it.asking, "hello"),
    "tasks.retry": lambda n, it: n.ours.tasks.retry(it.ended),
    "tasks.fork": lambda n, it: n.ours.tasks.fork(it.ended),
    "tasks.export": lambda n, it: n.ours.tasks.export(it.ended),
    "tasks.delete": lambda n, it: n.ours.tasks.delete(it.ended),
    "tasks.prune": lambda n, it: n.ours.tasks.prune(0, session_id=it.session),
    "tasks.cancel": lambda n, it: n.ours.tasks.cancel(it.asking),
    "tasks.cancel_many": lambda n, it: n.ours.tasks.cancel_many([it.asking, it.held]),
    "tasks.wait": lambda n, it: n.ours.tasks.wait([it.ended], timeout=0),
    "tasks.result": lambda n, it: n.ours.tasks.result(it.ended, timeout=0),
    "tasks.events": lambda n, it: n.ours.tasks.events(it.ended),
    "tasks.output": lambda n, it: n.ours.tasks.output(it.asking, follow=False),
    "inbox.list": lambda n, it: n.ours.inbox.list(it.session),
    "inbox.receive": lambda n, it: n.ours.inbox.receive(it.session),
    "inbox.acknowledge": lambda n, it: n.ours.inbox.acknowledge(it.session, [it.receipt]),
    "inbox.renew": lambda n, it: n.ours.inbox.renew(it.session, [it.receipt], lease=0),
    "queue.pause": lambda n, it: n.ours.queue.pause(session=it.session),
    "queue.resume": lambda n, it: n.ours.queue.resume(session=it.session),
    "queue.pauses": lambda n, it: n.ours.queue.pauses(),
    "queue.reprioritize": lambda n, it: n.ours.queue.reprioritize(it.asking, 5),
    "doctor.explain": lambda n, it: n.ours.doctor.explain(it.asking),
    "external.claim": lambda n, it: n.ours.external.claim("robot", name="robot"),
    "external.report": lambda n, it: n.ours.external.report(it.held, it.at, output="x"),
    "external.ask": lambda n, it: n.ours.external.ask(it.held, it.at, "What?"),
    "external.give_back": lambda n, it: n.ours.external.give_back(it.held, it.at),
    "external.succeed": lambda n, it: n.ours.external.succeed(it.held, it.at),
    "external.fail": lambda n, it: n.ours.external.fail(it.held, it.at, "no"),
    "external.stopped": lambda n, it: n.ours.external.stopped(it.held, it.at),
    "retention.policy": lambda n, it: n.ours.retention.policy(it.organization),
    "retention.policies": lambda n, it: n.ours.retention.policies(),
    "retention.set_policy": lambda n, it: n.ours.retention.set_policy(it.organization, age=1.0),
    "retention.reset_policy": lambda n, it: n.ours.retention.reset_policy(it.organization),
    "retention.pin": lambda n, it: n.ours.retention.pin(it.session),
    "retention.unpin": lambda n, it: n.ours.retention.unpin(it.session),
    "retention.pins": lambda n, it: n.ours.retention.pins(organization_id=it.organization),
    "webhooks.create": lambda n, it: n.ours.webhooks.create(HOOK, task_id=it.asking),
    "webhooks.list": lambda n, it: n.ours.webhooks.list(task_id=it.asking),
    "webhooks.get": lambda n, it: n.ours.webhooks.get(it.webhook),
    "webhooks.update": lambda n, it: n.ours.webhooks.update(it.of_task, description="x"),
    "webhooks.enable": lambda n, it: n.ours.webhooks.enable(it.webhook),
    "webhooks.disable": lambda n, it: n.ours.webhooks.disable(it.webhook),
    "webhooks.delete": lambda n, it: n.ours.webhooks.delete(it.of_task),
    "webhooks.rotate_secret": lambda n, it: n.ours.webhooks.rotate_secret(it.webhook),
    "webhooks.test": lambda n, it: n.ours.webhooks.test(it.webhook),
    "webhooks.deliveries": lambda n, it: n.ours.webhooks.deliveries(it.webhook),
    "webhooks.delivery": lambda n, it: n.ours.webhooks.delivery(it.of_task, "dlv_no"),
    "webhooks.replay": lambda n, it: n.ours.webhooks.replay(it.webhook),
    "answer_links.create": lambda n, it: n.ours.answer_links.create(it.request),
    "archive.store": lambda n, it: n.ours.archive.store(it.session),
    "archive.list": lambda n, it: n.ours.archive.list(organization_id=it.organization),
    "archive.get": lambda n, it: n.ours.archive.get(it.session),
    "archive.read": lambda n, it: n.ours.archive.read(it.session),
    "archive.delete": lambda n, it: n.ours.archive.delete(it.session),
    "organizations.list": lambda n, it: n.ours.organizations.list(after=it.organization),
    "organizations.get": lambda n, it: n.ours.organizations.get(it.organization),
    "keys.create": lambda n, it: n.ours.keys.create("x", session_id=it.session),
    "keys.list": lambda n, it: n.ours.keys.list(organization_id=it.organization),
    "keys.get": lambda n, it: n.ours.keys.get(it.key),
    "keys.revoke": lambda n, it: n.ours.keys.revoke(it.key),
    "keys.rotate": lambda n, it: n.ours.keys.rotate(it.key),
    "audit.record": lambda n, it: n.ours.audit.record("x", actor={}, organization_id=it.organization),
    "audit.list": lambda n, it: n.ours.audit.list(organization_id=it.organization),
    "audit.verify": lambda n, it: n.ours.audit.verify(organization_id=it.organization),
    "audit.prune": lambda n, it: n.ours.audit.prune(0, organization_id=it.organization),
}
"""What each verb is called with; what comes of it must be the same for their ids and for those of nothing."""

FOR_OPERATORS: dict[str, Verb] = {
    "backup": lambda n, _: n.ours.backup("/nowhere"),
    "workers": lambda n, _: n.ours.workers(),
    "stats": lambda n, _: n.ours.stats(),
    "queue.limit": lambda n, _: n.ours.queue.limit("key", concurrency=1),
    "queue.unlimit": lambda n, _: n.ours.queue.unlimit("key"),
    "queue.limits": lambda n, _: n.ours.queue.limits(),
    "queue.keys": lambda n, _: n.ours.queue.keys(),
    "doctor.examine": lambda n, _: n.ours.doctor.examine(),
    "organizations.create": lambda n, _: n.ours.organizations.create("x"),
    "organizations.suspend": lambda n, _: n.ours.organizations.suspend("org_b"),
    "organizations.resume": lambda n, _: n.ours.organizations.resume("org_b"),
    "organizations.delete": lambda n, _: n.ours.organizations.delete("org_b"),
    "secrets.rotate": lambda n, _: n.ours.secrets.rotate(),
    "webhooks.deliver": lambda n, _: n.ours.webhooks.deliver(),
}
ELSEWHERE = {"events", "within", "ledger", "sessions.create", "tasks.give_away", "tasks.load", "tasks.retry_many"}
"""Those with tests of their own below; that of `events` is with the snapshots."""
OF_NOBODY = {"doctor.is_alive", "doctor.readiness", "secrets.seal", "secrets.open_sealed"}
OF_NOBODY |= {"answer_links.form", "answer_links.answer", "answer_links.claims"}
"""They take what somebody has in hand, and read nothing."""


async def test_every_verb_of_the_facade_is_tried_with_ids_of_somebody_else(neighbours: Neighbours):
    nouns = {f"{name}.": type(noun) for name, noun in vars(neighbours.ours).items() if name != "services"}
    verbs = {
        begin + name
        for begin, noun in {"": Runtime, **nouns}.items()
        for name in vars(noun)
        if not name.startswith("_")
    }
    assert verbs == {*FACADE, *FOR_OPERATORS, *ELSEWHERE, *OF_NOBODY}


async def test_what_belongs_to_another_organization_is_as_absent_as_what_never_was(neighbours: Neighbours):
    n = neighbours
    before = await n.state()
    different = {}
    for name, verb in FACADE.items():
        told, nothing = [await outcome(verb(n, it)) for it in (n.theirs, NOTHING)]
        if name in ("inbox.acknowledge", "inbox.renew"):
            assert told == nothing == ("session_not_found",)
        if told != nothing or "secret" in repr(told) or n.theirs.session in repr(told):
            different[name] = told, nothing
    assert different == {}
    assert await n.state() == before


async def test_pages_of_organizations_have_each_of_them_once_whatever_their_size():
    async with open_test(Outrider()) as runtime:
        for id in ("acme", "org_a", "org_z", "zeta"):
            await runtime.organizations.create(id, id=id)
        for limit in range(1, 7):
            found, after = list[str](), None
            while page := await runtime.organizations.list(after=after, limit=limit):
                found, after = [*found, *(each.id for each in page)], page[-1].id
            assert found == ["acme", "org_a", "org_default", "org_z", "zeta"]


async def test_what_concerns_all_organizations_is_for_operators(neighbours: Neighbours):
    n = neighbours
    for name, verb in FOR_OPERATORS.items():
        assert await outcome(verb(n, NOTHING)) == FORBIDDEN, name
    for scope in ({"kind": "external"}, {"everything": True}):
        assert await outcome(n.ours.queue.pause(**scope)) == FORBIDDEN
        assert await outcome(n.ours.queue.resume(**scope)) == FORBIDDEN
    operator = n.whole.within(replace(A, is_operator=True))
    assert len(await operator.workers()) == 1
    assert (await operator.stats()).states[State.AWAITING_INPUT] == 1
    assert (await operator.queue.limit("key", concurrency=1)).key == "key"
    assert await operator.queue.pause(kind="external")
    assert await operator.doctor.examine() == await n.whole.doctor.examine()
    with pytest.raises(NotFound):
        await operator.tasks.get(n.theirs.ended)


# --- what a client makes up --------------------------------------------------------------------------


async def test_a_session_is_made_in_the_organization_of_the_bounds_and_in_no_other(neighbours: Neighbours):
    n = neighbours
    assert (await n.own.record()).organization_id == "org_a"
    assert await outcome(n.ours.sessions.create(organization_id="org_b")) == ("organization_not_found",)
    assert (await (await n.ours.sessions.create(organization_id="org_a")).record()).organization_id == "org_a"
    before = await n.state()
    with pytest.raises(AlreadyExists):
        await n.ours.sessions.create(id=n.theirs.session)
    assert await n.state() == before


async def test_ids_that_somebody_else_has_are_taken_and_say_nothing(neighbours: Neighbours):
    n = neighbours
    before = await n.state()
    with pytest.raises(AlreadyExists) as caught:
        await n.own.create("external", {}, options=TaskOptions(id=n.theirs.ended))
    assert "secret" not in str(caught.value)
    assert await n.state() == before


@pytest.mark.parametrize("field", ["depends_on", "retry_of", "parent_task_id"])
async def test_a_task_hangs_on_none_of_another_organization(neighbours: Neighbours, field: str):
    n = neighbours
    before = await n.state()
    parent = n.theirs.asking if field == "parent_task_id" else None
    given: dict[str, Any] = {} if parent else {field: (n.theirs.asking,) if field == "depends_on" else n.theirs.asking}
    made = n.ours.tasks.create(n.own.id, "external", {}, TaskOptions(**given), parent_task_id=parent)
    assert await outcome(made) == ("task_not_found",)
    assert await n.state() == before


async def test_a_record_of_a_session_in_hand_opens_none(neighbours: Neighbours):
    n = neighbours
    session = await n.whole.services.views.session(n.theirs.session)
    assert session is not None
    posed = evolve(session, organization_id="org_a")
    before = await n.state()
    for stolen in (session, posed):
        assert await outcome(n.ours.tasks.create(stolen, "external", {})) == ("session_not_found",)
        handle = SessionHandle(n.ours.services, stolen)
        assert await outcome(handle.write_file("a", "b")) == ("session_not_found",)
        assert await outcome(handle.read_file("secret.txt")) == ("file_not_found",)
        assert await outcome(handle.files()) == []
        assert await outcome(handle.delete_file("secret.txt")) is False
        assert await outcome(handle.send("hello")) == ("session_not_found",)
        assert await outcome(handle.turn()) == ("session_not_found",)
        assert await outcome(handle.tasks()) == []
    assert await n.state() == before


async def test_a_document_ends_and_replaces_nothing_of_somebody_else(neighbours: Neighbours):
    n = neighbours
    before = await n.state()
    views = n.whole.services.views
    asking = await views.task(n.theirs.asking)
    assert asking is not None
    live = await outcome(n.whole.within(B).tasks.export(asking.id))
    for posed in (live, _posing(live, n.own.id)):
        assert await outcome(n.ours.tasks.give_away(posed)) == ("task_not_found",)
        assert await outcome(n.ours.tasks.load(posed, force=True)) == ("already_exists",)
    # A task of its own that speaks of their question, their session, their task.
    fresh = _renamed(n.stolen, "task_mine")
    forged: list[dict[str, Any]] = [
        {**fresh, "requests": [{**live["requests"][0], "task_id": "task_mine"}]},
        _posing(_with_input(fresh, parent_task_id=n.theirs.asking), n.own.id),
        {**fresh, "session": {**fresh["session"], "id": n.theirs.session}},
    ]
    for document, code in zip(forged, ("already_exists", "task_not_found", "already_exists"), strict=True):
        assert await outcome(n.ours.tasks.load(document, session_id=None, force=True)) == (code,)
    assert await n.state() == before
    loaded = await n.ours.tasks.load(fresh, session_id="session_copy")
    assert loaded.input.organization_id == "org_a"
    assert (await n.ours.sessions.record("session_copy")).organization_id == "org_a"


async def test_of_many_to_retry_those_of_somebody_else_are_left(neighbours: Neighbours):
    n = neighbours
    receipt = await n.ours.tasks.retry_many([n.theirs.ended, "task_no"])
    assert (receipt.retried, set(receipt.left.values())) == ({}, {"task_not_found"})


async def test_who_follows_all_that_happens_is_told_of_its_own_alone(neighbours: Neighbours):
    n = neighbours
    await n.whole.within(B).tasks.message(n.theirs.asking, "hello")
    child = await n.own.create("external", {})
    told = n.ours.events(after=0)
    seen = [event async for _, event in _until(told, child.id)]
    assert {event.session_id for event in seen} == {n.own.id}
    assert {"task_own", child.id} <= {event.task_id for event in seen}


async def _until(told: AsyncIterator[tuple[int, EventRecord]], task_id: str) -> AsyncIterator[tuple[int, EventRecord]]:
    async for each in told:
        yield each
        if each[1].task_id == task_id:
            return


async def test_a_program_claims_the_tasks_of_its_own_organization_alone(neighbours: Neighbours):
    n = neighbours
    await n.own.create("external", {"name": "robot"})
    default = await (await n.whole.sessions.create()).create("external", {"name": "robot"})
    (mine,) = await n.ours.external.claim("robot", name="robot", limit=10)
    assert (mine.organization_id, mine.session_id) == ("org_a", n.own.id)
    assert [each.id for each in await n.whole.external.claim("robot", name="robot", limit=10)] == [default.id]
    assert await n.whole.within(B).external.claim("robot", name="robot", limit=10) == []


# --- one session -------------------------------------------------------------------------------------


async def test_who_is_bound_to_a_session_reaches_its_tree_and_nothing_beside_it(neighbours: Neighbours):
    n = neighbours
    ledger = n.whole.services.ledger
    below = NewSession("session_below", n.whole.services.clock.now(), "org_a", n.own.id, n.own.id, "task_own")
    await ledger.create_session(below)
    bound = n.whole.within(Bounds("org_a", n.own.id))
    assert {each.id for each in await bound.sessions.list()} == {n.own.id, "session_below"}
    child = await bound.tasks.create("session_below", "external", {})
    assert {each.id for each in await bound.tasks.list()} == {"task_own", child.id}
    beside = await n.ours.sessions.create()
    other = await beside.create("external", {})
    assert await outcome(bound.tasks.record(other.id)) == ("task_not_found",)
    assert await outcome(bound.tasks.find(other.id[-6:])) == ("task_not_found",)
    assert await outcome(bound.tasks.create(beside.id, "external", {})) == ("session_not_found",)
    assert await bound.tasks.list(session_id=beside.id) == []
    assert await bound.tasks.list(root_session_id=beside.id) == []
    assert await outcome(bound.sessions.create()) == FORBIDDEN
    assert await outcome(bound.sessions.fork(n.own.id)) == FORBIDDEN
    assert (await bound.sessions.create(id=n.own.id)).id == n.own.id
    assert await outcome(bound.external.claim("robot")) == FORBIDDEN
    await n.whole.advance(1)
    assert (await bound.tasks.prune(0)).tasks == 1
    assert await outcome(n.ours.tasks.get("task_own")) == ("task_not_found",)


async def test_bounds_are_only_ever_narrowed(neighbours: Neighbours):
    n = neighbours
    bound = n.ours.within(Bounds("org_a", n.own.id))
    for runtime, further in (
        (n.ours, B),
        (n.ours, replace(A, is_operator=True)),
        (bound, A),
        (bound, Bounds("org_a", "session_other")),
    ):
        with pytest.raises(Forbidden):
            runtime.within(further)


# --- the seam ----------------------------------------------------------------------------------------


def ledger_verbs(n: Neighbours, it: Ids, stored: Task) -> dict[str, Callable[[], Any]]:
    ledger, now = n.ours.services.ledger, n.whole.services.clock.now()
    numbers = count()
    step = Step(it.asking, "p", next(numbers), "step", 1, now, b"1")

    def refuse(task: Task) -> Any:
        raise AssertionError(f"{task.id} was claimed")

    return {
        "views": lambda: None,
        "counters": lambda: None,
        "listen": lambda: None,
        "create_session": lambda: ledger.create_session(
            NewSession("session_new", now, "org_a"), Seed(it.session, 0, files=True)
        ),
        "commit": lambda: ledger.commit([machine.apply(stored, CancelRequested(), now)]),
        "claim": lambda: ledger.claim(Claim("w", ("background_tool:ends",), 1, now), refuse),
        "control": lambda: ledger.control(Closed(it.session, now)),
        "report": lambda: ledger.report([Report(it.held, it.at, now, Live(), {})]),
        "journal": lambda: ledger.journal([step]),
        "append": lambda: ledger.append(Page(it.session, it.held, it.at, 1, (b"{}",), Live(), now)),
        "print": lambda: ledger.print([OutputChunk(it.held, it.at, "stdout", "x", now, 100)]),
        "write_file": lambda: ledger.write_file(FileWrite(it.session, "/a", b"", "text/plain", now)),
        "delete_file": lambda: ledger.delete_file(it.session, "/secret.txt"),
        "charge": lambda: ledger.charge([]),
        "index": lambda: ledger.index([], 0, 0),
        "register": lambda: ledger.register(WorkerCard("w", "h", "b", 1, now)),
        "renew": lambda: ledger.renew("w", 1.0),
        "retire": lambda: ledger.retire("w"),
        "receive": lambda: ledger.receive(it.session, now, now + 1, 10),
        "acknowledge": lambda: ledger.acknowledge(it.session, [Receipt("t", 1, 1)]),
        "prune": lambda: ledger.prune([it.ended], [it.session], now=now),
        "keep": lambda: ledger.keep([Document("notes", "x", {}, it.organization)]),
        "close": lambda: ledger.close(),
    }


REFUSED_TO_ALL = {"journal", "append", "charge", "index", "register", "renew", "retire", "close", "claim"}


async def test_every_verb_of_the_ledger_has_been_decided_on(neighbours: Neighbours):
    n = neighbours
    stored = await n.whole.services.views.task(n.theirs.asking)
    assert stored is not None
    before = await n.state()
    of_theirs, of_nothing = ledger_verbs(n, n.theirs, stored), ledger_verbs(n, NOTHING, evolve(stored, id="task_no"))
    assert of_theirs.keys() == {name for name in vars(Ledger) if not name.startswith("_")}
    for name, verb in of_theirs.items():
        try:
            told = await outcome(verb())
        except Forbidden:  # the one that is called from a thread
            told = FORBIDDEN
        if name in REFUSED_TO_ALL:
            assert told == FORBIDDEN, name
        else:
            assert told == await outcome(of_nothing[name]()), name
    ledger = n.ours.services.ledger
    order: Order
    for order in (LimitSet(Limit("k")), LimitRemoved("k"), Paused(Pause("kind", "turn")), Resumed("everything")):
        assert await outcome(ledger.control(order)) == FORBIDDEN
    for order in (
        Paused(Pause("session", n.theirs.session)),
        Resumed("session", n.theirs.session),
        Reopened(n.theirs.session, 1),
        GrantSet(Grant(n.theirs.session, "tool", True, 1)),
    ):
        assert await outcome(ledger.control(order)) == ("session_not_found",)
    assert await n.state() == before


async def test_a_listener_hears_that_something_was_written_and_not_what(neighbours: Neighbours):
    n = neighbours
    heard: list[Any] = []
    stop = n.ours.services.ledger.listen(heard.append)
    await n.whole.within(B).tasks.message(n.theirs.asking, "hello")
    stop()
    assert heard
    assert all(each.unknown and not (each.task_ids or each.session_ids or each.moved) for each in heard)


def view_verbs(n: Neighbours, it: Ids) -> dict[str, Callable[[Views], Awaitable[Any]]]:
    now = n.whole.services.clock.now()
    return {
        "task": lambda v: v.task(it.ended),
        "tasks": lambda v: v.tasks([it.ended, it.asking]),
        "task_ids": lambda v: v.task_ids(it.ended, 5),
        "list_tasks": lambda v: v.list_tasks(TaskFilter(organization_id="org_b")),
        "keyed": lambda v: v.keyed(it.session, ["a key"]),
        "children": lambda v: v.children(it.asking),
        "active_at": lambda v: v.active_at(it.held),
        "session": lambda v: v.session(it.session),
        "sessions": lambda v: v.sessions(organization_id="org_b"),
        "steps": lambda v: v.steps(it.asking),
        "attempts": lambda v: v.attempts(it.ended),
        "requests": lambda v: v.requests(it.asking),
        "request": lambda v: v.request(it.request),
        "messages": lambda v: v.messages(it.asking),
        "events": lambda v: v.events(it.session),
        "heads": lambda v: v.heads([it.session]),
        "first_seq": lambda v: v.first_seq(it.session),
        "output": lambda v: v.output(it.asking),
        "file": lambda v: v.file(it.session, "/secret.txt"),
        "files": lambda v: v.files(it.session),
        "transcript": lambda v: v.transcript(it.session),
        "last_entry": lambda v: v.last_entry(it.session),
        "inbox": lambda v: v.inbox(it.session),
        "receivable_at": lambda v: v.receivable_at(it.session, now),
        "ended": lambda v: v.ended(now + 1, 10, session_id=it.session),
        "child_sessions": lambda v: v.child_sessions([it.ended]),
        "grants": lambda v: v.grants([it.session]),
        "meters": lambda v: v.meters([TASK + it.ended, SESSION + it.session, TREE + it.session, "model:x"]),
        "usage": lambda v: v.usage(it.session),
        "ahead": lambda v: v.ahead(it.asking),
        "document": lambda v: v.document("notes", id="of b" if it is n.theirs else "of nobody"),
        "documents": lambda v: v.documents("notes"),
        "log": lambda v: _rows(v, it),
    }


async def _rows(views: Views, it: Ids) -> list[str]:
    """Whose log is read, as far as it is that session's."""
    page = await views.log(after=0)
    assert page.next > 0
    return [row.session_id for row in page.rows if row.session_id == it.session]


SHARED = {"holders", "position", "horizon", "workers", "gates", "schema"}
"""Facts of the cluster from which the records of one's own tasks are made, and cursors."""

REFUSED: dict[str, Callable[[Views], Awaitable[Any]]] = {
    "held_by": lambda v: v.held_by("worker"),
    "overdue": lambda v: v.overdue(0, 1),
    "follow_ups": lambda v: v.follow_ups(1),
    "news": lambda v: v.news(after=0),
    "count_by_state": lambda v: v.count_by_state(),
    "statistics": lambda v: v.statistics(0),
    "problems": lambda v: v.problems(),
    "uses": lambda v: v.uses(),
    "due_at": lambda v: v.due_at("notes"),
    "unindexed": lambda v: v.unindexed(1),
    "newest_ended": lambda v: v.newest_ended("org_a", 0),
}


async def test_every_view_has_been_decided_on(neighbours: Neighbours):
    n = neighbours
    views = n.ours.services.views
    of_theirs, of_nothing = view_verbs(n, n.theirs), view_verbs(n, NOTHING)
    assert {*of_theirs, *SHARED, *REFUSED} == {name for name in vars(Views) if not name.startswith("_")}
    for name, view in of_theirs.items():
        found, absent = await outcome(view(views)), await outcome(of_nothing[name](views))
        assert found == absent, name
        assert "secret" not in repr(found), name
    for name, view in REFUSED.items():
        assert await outcome(view(views)) == FORBIDDEN, name


async def test_a_change_that_writes_anywhere_else_is_refused_whole(neighbours: Neighbours):
    n = neighbours
    ledger, now = n.ours.services.ledger, n.whole.services.clock.now()
    before = await n.state()
    own = await n.ours.tasks.get("task_own")
    new = evolve(machine.fork(_new(own, "task_forged"), Heritage(), now), watches=())
    forged = [
        evolve(new, watches=(n.theirs.asking,)),
        evolve(new, inbox=(InboxEntry(n.theirs.session, "entry_x", "user", {}),)),
        evolve(new, files=(FileWrite(n.theirs.session, "/a", b"", "text/plain", now),)),
        evolve(new, steps=(Step(n.theirs.held, "p", 1, "step", n.theirs.at, now, b"1"),)),
        evolve(new, task=evolve(new.task, input=evolve(new.task.input, organization_id="org_b"))),
        evolve(new, task=evolve(new.task, input=evolve(new.task.input, route="external @org_b"))),
        evolve(new, page=Page(n.theirs.session, n.theirs.held, n.theirs.at, 1, (b"{}",), Live(), now)),
    ]
    for change in forged:
        assert (await outcome(ledger.commit([change])))[0].endswith("_not_found"), change
    assert await outcome(n.ours.tasks.get("task_forged")) == ("task_not_found",)
    assert await n.state() == before
    await ledger.commit([new])
    assert (await n.ours.tasks.get("task_forged")).input.organization_id == "org_a"


def _new(old: Task, id: str) -> Any:
    from outrider.core.task import NewTask

    return NewTask(id, evolve(old.input, idempotency_key=None))


def _renamed(document: dict[str, Any], id: str) -> dict[str, Any]:
    files = [{**each, "path": each["path"].replace(document["task"]["id"], id)} for each in document["files"]]
    return {**document, "task": {**document["task"], "id": id}, "files": files}


def _with_input(document: dict[str, Any], **fields: Any) -> dict[str, Any]:
    task = document["task"]
    return {**document, "task": {**task, "input": {**task["input"], **fields}}}


def _posing(document: dict[str, Any], session_id: str) -> dict[str, Any]:
    """The document with its task said to be of somebody else's session."""
    place = {"session_id": session_id, "root_session_id": session_id, "organization_id": "org_a"}
    return _with_input({**document, "session": {**document["session"], "id": session_id}}, **place)


async def test_documents_are_of_their_organization_and_of_no_session(neighbours: Neighbours):
    n = neighbours
    ledger, views = n.ours.services.ledger, n.ours.services.views
    before = await n.state()
    mine = Document("notes", "of a", {"n": 1}, "org_a", key="name")
    assert await ledger.keep([mine])
    assert (await views.document("notes", key="name")) == replace(mine, version=1)
    assert [each.id for each in await views.documents("notes")] == ["of a"]
    assert list(await views.documents("notes", organization_id="org_b")) == []
    assert await outcome(ledger.keep([Document("notes", "of b", {}, "org_a", version=1)])) == ("already_exists",)
    for owner in ("org_b", ""):
        assert await outcome(ledger.keep([Document("notes", "x", {}, owner)])) == ("organization_not_found",)
    bound = n.ours.within(Bounds("org_a", n.own.id)).services
    assert await bound.views.document("notes", id="of a") is None
    assert list(await bound.views.documents("notes")) == []
    assert await outcome(bound.ledger.keep([mine])) == FORBIDDEN
    assert {row.session_id for row in (await bound.views.log(after=0)).rows} == {n.own.id}
    assert (await views.log(after=0, organization_id="org_b")).rows == ()
    assert await ledger.keep([], [replace(mine, version=1)])
    assert await n.state() == before
