"""Keys and organizations: made once, seen once, and good for as long and as far as they say."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from outrider import Outrider, Runtime
from outrider.core.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    InUse,
    InvalidArguments,
    NotFound,
    OutriderError,
    RateLimited,
    Unauthenticated,
)
from outrider.core.ledger import Document
from outrider.core.session import NewSession, Seed, Session
from outrider.core.task import DEFAULT_ORGANIZATION
from outrider.core.values import evolve
from outrider.runtime.access import Access, Caller, Rates
from outrider.runtime.bounds import Bounds
from outrider.runtime.keys import key_id_of
from outrider.runtime.webhooks.stored import STATUSES
from outrider.settings import AccessSettings
from outrider.testing import TestRuntime, open_test

pytestmark = pytest.mark.anyio


@pytest.fixture
async def runtime() -> AsyncIterator[TestRuntime]:
    async with open_test(Outrider(), store="memory") as runtime:
        yield runtime


def access_of(runtime: Runtime, **settings: Any) -> Access:
    return Access(runtime.services, AccessSettings(**settings))


async def refused(access: Access, token: str | None, address: str = "192.0.2.1") -> str:
    with pytest.raises(OutriderError) as caught:
        await access.admit(token if token is None else f"Bearer {token}", address)
    return caught.value.code


async def test_a_token_is_shown_once_and_only_its_hash_is_kept(runtime: TestRuntime):
    made = await runtime.keys.create("ci", scopes=["submit", "read"])
    assert re.fullmatch(r"ork_[0-9a-f]{32}_[0-9A-Za-z]{49}", made.token)
    assert key_id_of(made.token) == made.id
    assert not hasattr(await runtime.keys.get(made.id), "token")
    kept = await runtime.services.views.document("keys", id=made.id)
    assert kept is not None
    assert made.token[37:80] not in repr(kept)
    caller = await access_of(runtime).admit(f"bearer {made.token} ", "192.0.2.1")
    assert (caller.organization_id, caller.name, caller.key_id, caller.via) == (
        DEFAULT_ORGANIZATION,
        "ci",
        made.id,
        "key",
    )
    caller.check("read")
    caller.check("submit")
    with pytest.raises(Forbidden):
        caller.check("operate")
    assert not caller.bounds.is_operator


async def test_a_token_that_was_changed_anywhere_is_refused(runtime: TestRuntime):
    made, access = await runtime.keys.create("ci"), access_of(runtime, failures=1000)
    for place in range(0, len(made.token), 3):
        changed = "0" if made.token[place] != "0" else "1"
        assert await refused(access, made.token[:place] + changed + made.token[place + 1 :]) == "unauthenticated"
    for wrong in (None, "", made.token[:-1], made.token + "0", "ork_", "\udc80", "x" * 100_000):
        assert await refused(access, wrong) == "unauthenticated"
    with pytest.raises(Unauthenticated):
        await access.admit(f"Basic {made.token}", "192.0.2.1")


async def test_a_revoked_key_is_refused_in_every_process_within_the_time_of_the_cache(runtime: TestRuntime):
    made = await runtime.keys.create("ci")
    here, elsewhere = access_of(runtime), access_of(runtime)
    await elsewhere.admit(f"Bearer {made.token}", "a")
    assert not (await runtime.keys.revoke(made.id)).is_active
    assert await refused(here, made.token) == "unauthenticated"
    await runtime.advance(2.1)
    assert await refused(elsewhere, made.token) == "unauthenticated"
    with pytest.raises(Conflict):
        await runtime.keys.rotate(made.id)
    assert (await runtime.keys.revoke(made.id)).revoked_at == (await runtime.keys.get(made.id)).revoked_at


async def test_the_token_before_a_rotation_is_good_for_the_overlap_and_no_longer(runtime: TestRuntime):
    first = await runtime.keys.create("ci", scopes=["admin"])
    second = await runtime.keys.rotate(first.id, overlap=60)
    assert second.id == first.id
    assert second.token != first.token
    for token in (first.token, second.token):
        assert (await access_of(runtime).admit(f"Bearer {token}", "a")).key_id == first.id
    third = await runtime.keys.rotate(first.id, overlap=60)
    assert await refused(access_of(runtime), first.token) == "unauthenticated"
    await runtime.advance(61)
    assert await refused(access_of(runtime), second.token) == "unauthenticated"
    assert (await access_of(runtime).admit(f"Bearer {third.token}", "a")).via == "key"
    fourth = await runtime.keys.rotate(first.id, overlap=0)
    assert await refused(access_of(runtime), third.token) == "unauthenticated"
    assert (await access_of(runtime).admit(f"Bearer {fourth.token}", "a")).via == "key"


async def test_a_key_expires_on_time_also_where_it_is_remembered(runtime: TestRuntime):
    made, access = await runtime.keys.create("ci", expires=1), access_of(runtime)
    assert (await access.admit(f"Bearer {made.token}", "a")).via == "key"
    await runtime.advance(1)
    assert await refused(access, made.token) == "unauthenticated"


async def test_use_is_written_down_now_and_again_and_not_with_each_request(runtime: TestRuntime):
    made, access = await runtime.keys.create("ci"), access_of(runtime)
    before = runtime.ledger.counters["commits"]
    for _ in range(10):
        await access.admit(f"Bearer {made.token}", "a")
    assert runtime.ledger.counters["commits"] - before <= 1
    first = (await runtime.keys.get(made.id)).used_at
    assert first is not None
    await runtime.advance(301)
    await access.admit(f"Bearer {made.token}", "a")
    assert (await runtime.keys.get(made.id)).used_at != first


async def test_a_key_of_a_session_is_bound_to_the_root_of_a_tree(runtime: TestRuntime):
    session = await runtime.sessions.create()
    below = NewSession("session_below", runtime.services.clock.now(), root_session_id=session.id)
    await runtime.ledger.create_session(below)
    made = await runtime.keys.create("one", scopes=["admin"], session_id=session.id)
    caller = await access_of(runtime).admit(f"Bearer {made.token}", "a")
    assert caller.bounds == Bounds(DEFAULT_ORGANIZATION, session.id)
    with pytest.raises(InvalidArguments):
        await runtime.keys.create("two", session_id="session_below")
    with pytest.raises(NotFound):
        await runtime.keys.create("two", session_id="session_no")
    bound = runtime.within(caller.bounds)
    with pytest.raises(Forbidden):
        await bound.keys.create("more")
    assert await bound.keys.list() == []


async def test_a_key_of_a_session_is_refused_from_the_moment_at_which_its_id_is_given_again(runtime: TestRuntime):
    await runtime.sessions.create(id="chat-1")
    bound = await runtime.keys.create("one", scopes=["admin"], session_id="chat-1")
    free = await runtime.keys.create("all")
    access = access_of(runtime, key_cache=60)
    await access.admit(f"Bearer {bound.token}", "a")
    await runtime.advance(1)
    await runtime.sessions.delete("chat-1")
    await access.admit(f"Bearer {bound.token}", "a")  # to nothing
    await runtime.sessions.create(id="chat-1")
    assert await refused(access, bound.token) == "unauthenticated"
    with pytest.raises(Unauthenticated):
        await access.check_still(f"Bearer {bound.token}")
    await access.admit(f"Bearer {free.token}", "a")


async def test_an_organization_manages_its_own_keys_and_sees_no_others(runtime: TestRuntime):
    b = await runtime.organizations.create("Company B")
    operators = await runtime.keys.create("root", scopes=["admin"])
    theirs = await runtime.keys.create("admin of b", scopes=["admin"], organization_id=b.id)
    caller = await access_of(runtime).admit(f"Bearer {theirs.token}", "a")
    assert caller.bounds == Bounds(b.id)
    there = runtime.within(caller.bounds)
    own = await there.keys.create("own")
    assert own.organization_id == b.id
    assert [each.id for each in await there.keys.list()] == [theirs.id, own.id]
    assert await there.keys.list(organization_id=DEFAULT_ORGANIZATION) == []
    for verb in (there.keys.get, there.keys.revoke, there.keys.rotate):
        with pytest.raises(NotFound):
            await verb(operators.id)
    with pytest.raises(NotFound):
        await there.keys.create("x", organization_id=DEFAULT_ORGANIZATION)
    assert [each.id for each in await there.organizations.list()] == [b.id]
    with pytest.raises(NotFound):
        await there.organizations.get(DEFAULT_ORGANIZATION)
    for forbidden in (there.organizations.create("c"), there.organizations.suspend(b.id)):
        with pytest.raises(Forbidden):
            await forbidden
    with pytest.raises(Forbidden):
        await there.organizations.delete(b.id)
    operator = runtime.within((await access_of(runtime).admit(f"Bearer {operators.token}", "a")).bounds)
    assert [each.id for each in await operator.organizations.list()] == [b.id, DEFAULT_ORGANIZATION]
    assert {each.id for each in await operator.keys.list()} == {operators.id, theirs.id, own.id}


async def test_nobody_is_admitted_to_a_suspended_organization_nor_to_one_that_is_gone(runtime: TestRuntime):
    b = await runtime.organizations.create("B", id="org_b")
    with pytest.raises(AlreadyExists):
        await runtime.organizations.create("another", id="org_b")
    made, access = await runtime.keys.create("key", organization_id=b.id), access_of(runtime)
    await access.admit(f"Bearer {made.token}", "a")
    assert (await runtime.organizations.suspend(b.id)).suspended_at is not None
    await runtime.advance(2.1)
    assert await refused(access, made.token) == "forbidden"
    await runtime.organizations.resume(b.id)
    await runtime.advance(2.1)
    await access.admit(f"Bearer {made.token}", "a")
    session = await runtime.sessions.create(organization_id=b.id)
    with pytest.raises(InUse):
        await runtime.organizations.delete(b.id)
    await session.delete()
    await runtime.organizations.delete(b.id)
    await runtime.advance(2.1)
    assert await refused(access, made.token) == "unauthenticated"
    with pytest.raises(NotFound):
        await runtime.keys.create("key", organization_id=b.id)
    for verb in (runtime.organizations.suspend, runtime.organizations.delete):
        with pytest.raises(InvalidArguments):
            await verb(DEFAULT_ORGANIZATION)


async def test_nothing_of_a_deleted_organization_is_left_but_its_audit_log_and_nobody_gets_its_id(runtime: TestRuntime):
    await runtime.organizations.create("other", id="org_c")
    b = await runtime.organizations.create("B", id="org_b")
    there, now = Document("webhook", "whk_1", {}, b.id), runtime.clock.now()
    archived = {"key": "k", "size": 1, "sha256": "", "at": now, "by": None}
    await runtime.keys.create("key", organization_id=b.id)
    await runtime.retention.set_policy(b.id, age=60.0)
    await runtime.queue.limit("door", concurrency=2)
    await runtime.queue.limit("door", concurrency=3, organization_id=b.id)
    await runtime.audit.record("x", actor={"name": "a"}, organization_id=b.id)
    session = await runtime.sessions.create(organization_id=b.id)
    with pytest.raises(InUse):
        await runtime.organizations.delete(b.id)
    assert (await runtime.organizations.get(b.id)).suspended_at is None
    await session.delete()
    await runtime.ledger.keep(
        [
            there,
            Document("task_webhook", "task_1!whk_2", {}, b.id, key="whk_2"),
            *(Document("webhook_lane", f"whk_{n}", {"failures": 0}, b.id, due_at=now) for n in (1, 2)),
            *(Document(f"webhook_{status}:whk_1", f"dlv_{n}", {}, b.id) for status in STATUSES for n in range(101)),
            Document("archive", "session_gone", archived, b.id),
            Document("pin", "task_gone", {"by": None, "reason": None, "at": now}, b.id),
            evolve(there, id="whk_3", organization_id="org_c"),
        ]
    )
    await runtime.organizations.delete(b.id)
    views = runtime.services.views
    kept = ("keys", "webhook", "task_webhook", "webhook_lane", "retention", "archive", "pin")
    for collection in (*kept, *(f"webhook_{status}:whk_1" for status in STATUSES)):
        assert list(await views.documents(collection, organization_id=b.id)) == [], collection
    assert await views.document("webhook", id="whk_3") is not None
    assert [each.organization_id for each in await runtime.queue.limits()] == [None]
    assert len(await runtime.audit.list(organization_id=b.id)) == 1
    with pytest.raises(AlreadyExists):
        await runtime.organizations.create("somebody else", id=b.id)
    with pytest.raises(NotFound):
        await runtime.organizations.delete(b.id)


async def test_a_session_that_is_made_while_its_organization_goes_does_not_outlive_it(
    runtime: TestRuntime, monkeypatch: pytest.MonkeyPatch
):
    b = await runtime.organizations.create("B", id="org_b")
    there, ledger = runtime.within(Bounds(b.id)), runtime.ledger
    assert (await there.sessions.create(id="session_first")).id == "session_first"
    await runtime.organizations.suspend(b.id)
    with pytest.raises(Forbidden):  # admitted before, and too late
        await there.sessions.create(id="session_first")
    await (await runtime.sessions.get("session_first")).delete()
    await runtime.organizations.resume(b.id)

    write, made = ledger.create_session, list[Session]()

    async def when_nothing_was_found(new: NewSession, seed: Seed | None = None) -> Session:
        made.append(await write(new, seed))
        with pytest.raises(InUse):  # written before the deletion looks, and found
            await runtime.organizations.delete(b.id)
        await runtime.organizations.suspend(b.id)
        return made[-1]

    monkeypatch.setattr(ledger, "create_session", when_nothing_was_found)
    with pytest.raises(Forbidden):
        await there.sessions.create(id="session_second")
    monkeypatch.setattr(ledger, "create_session", write)
    assert await runtime.services.views.session("session_second") is None

    async def after_the_deletion(new: NewSession, seed: Seed | None = None) -> Session:
        await runtime.organizations.delete(b.id)
        return await write(new, seed)

    monkeypatch.setattr(ledger, "create_session", after_the_deletion)
    with pytest.raises(NotFound):
        await there.sessions.create(id="session_third")
    assert await runtime.services.views.sessions(organization_id=b.id) == []


async def test_an_organization_stays_into_which_a_session_came_while_it_was_deleted(
    runtime: TestRuntime, monkeypatch: pytest.MonkeyPatch
):
    """Only who is bound to no organization can still make one."""
    b = await runtime.organizations.create("B", id="org_b")
    drop = runtime.ledger.keep

    async def meanwhile(documents: Sequence[Document], dropped: Sequence[Document] = ()) -> bool:
        if dropped and dropped[0].collection == "keys":
            await runtime.sessions.create(id="session_late", organization_id=b.id)
        return await drop(documents, dropped)

    await runtime.keys.create("key", organization_id=b.id)
    monkeypatch.setattr(runtime.ledger, "keep", meanwhile)
    with pytest.raises(InUse):
        await runtime.organizations.delete(b.id)
    assert (await runtime.organizations.get(b.id)).suspended_at is not None
    await (await runtime.sessions.get("session_late")).delete()
    await runtime.organizations.delete(b.id)
    with pytest.raises(NotFound):
        await runtime.organizations.get(b.id)


async def test_what_makes_no_key_is_refused_and_changes_nothing(runtime: TestRuntime):
    wrong: dict[str, Any]
    for wrong in ({"scopes": []}, {"scopes": ["root"]}, {"scopes": "admin"}, {"expires": 0}, {"name": ""}):
        given: dict[str, Any] = {"name": "x", **wrong}
        with pytest.raises(InvalidArguments):
            await runtime.keys.create(**given)
    assert await runtime.keys.list() == []


# --- how often ---------------------------------------------------------------------------------------


async def test_who_asks_too_often_is_told_when_to_come_again(runtime: TestRuntime):
    access = access_of(runtime, rate=2, burst=3)
    ours, other = Caller(name="a", key_id="key_a"), Caller(name="b", key_id="key_b")
    assert [access.count(ours).left for _ in range(3)] == [2, 1, 0]
    with pytest.raises(RateLimited) as caught:
        access.count(ours)
    assert caught.value.retry_after == pytest.approx(0.5)
    access.count(other)
    await runtime.advance(0.5)
    assert access.count(ours).left == 0


async def test_guessing_is_slowed_from_an_address_and_shuts_nobody_out_there(runtime: TestRuntime):
    made, access = await runtime.keys.create("ci"), access_of(runtime, failures=3)
    for _ in range(3):
        assert await refused(access, "ork_wrong", "2001:db8::1") == "unauthenticated"
    assert await refused(access, "ork_wrong", "2001:db8::ffff") == "rate_limited"
    assert (await access.admit(f"Bearer {made.token}", "2001:db8::1")).via == "key"
    assert await refused(access, "ork_wrong", "192.0.2.7") == "unauthenticated"
    await runtime.advance(21)
    assert await refused(access, "ork_wrong", "2001:db8::1") == "unauthenticated"


def test_a_crowd_of_names_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("outrider.runtime.access.MOST", 10)
    rates = Rates(1, 1)
    for n in range(100):
        rates.take(f"{n}", n)
    assert len(rates._buckets) == 10
