"""The audit log: whole or not, and then since where; one chain, however many write it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from outrider import Outrider
from outrider.core.errors import InvalidArguments, NotFound, StoreError
from outrider.core.ledger import Document
from outrider.core.values import evolve
from outrider.runtime.bounds import Bounds
from outrider.runtime.trail import BATCH, ENTRIES, HEADS, Deed, Trail, hash_of, id_of
from outrider.testing import TestRuntime, open_test

pytestmark = pytest.mark.anyio

ACTOR = {"name": "ci", "via": "key"}
OWNER = "org_default"


@pytest.fixture
async def runtime() -> AsyncIterator[TestRuntime]:
    async with open_test(Outrider(), store="memory") as runtime:
        yield runtime


async def fill(runtime: TestRuntime, count: int = 5) -> None:
    for n in range(count):
        await runtime.audit.record("cancel_task", actor=ACTOR, targets={"task_id": f"task_{n}"}, request_id=f"r{n}")


async def entry(runtime: TestRuntime, number: int) -> Document:
    found = await runtime.services.views.document(ENTRIES, id=id_of(OWNER, number))
    assert found is not None
    return found


async def tamper(runtime: TestRuntime, number: int, **fields: Any) -> None:
    there = await entry(runtime, number)
    assert await runtime.ledger.keep([evolve(there, data={**there.data, **fields})])


async def test_an_entry_says_who_did_what_to_which_things_and_what_came_of_it(runtime: TestRuntime):
    await fill(runtime, 3)
    newest, *older = await runtime.audit.list(limit=2)
    assert (newest.number, newest.action, newest.actor, newest.outcome) == (3, "cancel_task", ACTOR, "ok")
    assert (newest.targets, newest.request_id, newest.previous) == ({"task_id": "task_2"}, "r2", older[0].hash)
    assert [each.number for each in await runtime.audit.list(before=2)] == [1]
    verdict = await runtime.audit.verify()
    assert (verdict.is_whole, verdict.entries, verdict.head) == (True, 3, f"3:{newest.hash}")


async def test_what_is_no_text_is_refused_and_holds_up_nobody(runtime: TestRuntime):
    wrong: dict[str, Any]
    for wrong in ({"actor": {"subject": 5}}, {"targets": {"id": None}}, {"request_id": 7}, {"outcome": b"ok"}):
        given: dict[str, Any] = {"actor": ACTOR, **wrong}
        with pytest.raises(InvalidArguments):
            await runtime.audit.record("x", **given)
    odd: Any = {"subject": 5}
    trail, deeds = runtime.services.trail, (Deed(OWNER, ACTOR, "x", "ok"), Deed(OWNER, odd, "x", "ok"))
    refused = await asyncio.wait_for(asyncio.gather(*map(trail.record, deeds), return_exceptions=True), 5)
    assert [type(each) for each in refused] == [AttributeError, AttributeError]
    assert await runtime.audit.list() == []
    await fill(runtime, 1)


async def test_a_writer_that_is_stopped_leaves_nobody_waiting(runtime: TestRuntime):
    trail = runtime.services.trail
    deeds = [Deed(name, ACTOR, "x", "ok") for name in ("org_a", "org_b")]
    waiting = asyncio.gather(*map(trail.record, deeds), return_exceptions=True)
    for _ in range(2):  # in the first they hand in, in the second the writer begins
        await asyncio.sleep(0)
    assert trail._writer is not None
    trail._writer.cancel()
    assert all(isinstance(each, StoreError) for each in await asyncio.wait_for(waiting, 5))
    await fill(runtime, 1)
    assert len(await runtime.audit.list()) == 1


async def test_ugly_words_are_kept_readable_and_short(runtime: TestRuntime):
    await runtime.audit.record("x", actor={"name": "a\0b\udc80" + "é" * 1000}, targets={"id": "\n"})
    (told,) = await runtime.audit.list()
    assert told.actor["name"].startswith("a\ufffdb?é")
    assert len(told.actor["name"]) == 500
    assert (await runtime.audit.verify()).is_whole


async def test_an_entry_that_was_altered_is_named(runtime: TestRuntime):
    await fill(runtime)
    await tamper(runtime, 3, outcome="refused")
    verdict = await runtime.audit.verify()
    assert (verdict.is_whole, verdict.broken_at, verdict.reason) == (False, 3, "it was altered")


async def test_an_entry_that_was_altered_and_hashed_anew_is_named(runtime: TestRuntime):
    await fill(runtime)
    data = {**(await entry(runtime, 3)).data, "outcome": "refused"}
    await tamper(runtime, 3, outcome="refused", hash=hash_of(OWNER, data))
    assert (await runtime.audit.verify()).broken_at == 3


async def test_an_entry_that_was_removed_is_named(runtime: TestRuntime):
    await fill(runtime)
    await runtime.ledger.keep([], [await entry(runtime, 2)])
    verdict = await runtime.audit.verify()
    assert (verdict.broken_at, verdict.reason) == (2, "it is missing")


async def test_entries_that_changed_places_are_named(runtime: TestRuntime):
    await fill(runtime)
    second, third = await entry(runtime, 2), await entry(runtime, 3)
    await runtime.ledger.keep([evolve(second, data=third.data), evolve(third, data=second.data)])
    verdict = await runtime.audit.verify()
    assert (verdict.broken_at, verdict.reason) == (2, "it is the entry 3, put in another's place")


async def test_an_end_that_was_cut_off_is_named_and_with_its_head_too_where_one_was_kept(runtime: TestRuntime):
    await fill(runtime)
    kept = (await runtime.audit.verify()).head
    await runtime.ledger.keep([], [await entry(runtime, 5)])
    verdict = await runtime.audit.verify()
    assert (verdict.broken_at, verdict.reason) == (5, "it is missing, and all after it: the end was cut off")
    head = await runtime.services.views.document(HEADS, id=OWNER)
    assert head is not None
    last = (await entry(runtime, 4)).data
    await runtime.ledger.keep([evolve(head, data={**head.data, "number": 4, "hash": last["hash"]})])
    assert (await runtime.audit.verify()).is_whole
    assert (await runtime.audit.verify(expect_head=kept)).broken_at == 5
    await fill(runtime, 2)  # and written on as if nothing had been
    assert (await runtime.audit.verify()).is_whole
    assert (await runtime.audit.verify(expect_head=kept)).broken_at == 5
    for wrong in ("", "5", "5:x", f"x:{'0' * 64}", f"{'9' * 5000}:{'0' * 64}", f"\u0665:{'0' * 64}"):
        with pytest.raises(InvalidArguments):
            await runtime.audit.verify(expect_head=wrong)


async def test_what_is_old_goes_from_the_beginning_and_the_rest_is_still_whole(runtime: TestRuntime):
    await fill(runtime, BATCH + 5)
    await runtime.advance(100)
    await fill(runtime, 3)
    assert await runtime.audit.prune(50) == BATCH + 5
    verdict = await runtime.audit.verify()
    assert (verdict.is_whole, verdict.entries, verdict.first) == (True, 3, BATCH + 6)
    await runtime.ledger.keep([], [await entry(runtime, BATCH + 6)])
    assert (await runtime.audit.verify()).broken_at == BATCH + 6
    await runtime.advance(1)
    assert await runtime.audit.prune(0) == 1  # of the last two, the last stays


async def test_a_head_that_was_pruned_is_not_taken_for_one_that_is_there(runtime: TestRuntime):
    heads = []
    for _ in range(4):
        await fill(runtime, 1)
        heads.append((await runtime.audit.verify()).head)
    await runtime.advance(1)
    assert await runtime.audit.prune(0) == 3
    for number, kept in enumerate(heads, 1):
        verdict = await runtime.audit.verify(expect_head=kept)
        assert verdict.is_whole == (number >= 3), "of those that went, the last can still be compared"
        if number < 3:
            assert verdict.broken_at == number
            assert "no longer kept" in (verdict.reason or "")
    verdict = await runtime.audit.verify(expect_head=f"3:{'0' * 64}")
    assert verdict.broken_at == 3
    assert "written anew" in (verdict.reason or "")


async def test_writers_that_know_nothing_of_each_other_make_one_chain(tmp_path: Path):
    url, app = str(tmp_path / "work.db"), Outrider()
    async with app.open(url, worker=False) as one, app.open(url, worker=False) as two:
        commits = one.ledger.counters["commits"] + two.ledger.counters["commits"]
        await asyncio.gather(
            *(each.audit.record(f"{n}", actor=ACTOR) for n in range(40) for each in (one, two)),
            one.audit.record("x", actor=ACTOR, organization_id="org_b"),
        )
        assert one.ledger.counters["commits"] + two.ledger.counters["commits"] - commits < 40
        verdict = await two.audit.verify()
        assert (verdict.is_whole, verdict.entries) == (True, 80)
        told = await one.audit.list(limit=100)
        assert sorted(each.action for each in told) == sorted(f"{n}" for n in range(40) for _ in range(2))
        assert (await one.audit.verify(organization_id="org_b")).entries == 1


async def test_an_organization_reads_its_own_log_and_no_other(runtime: TestRuntime):
    await fill(runtime)
    b = runtime.within(Bounds("org_b"))
    await b.audit.record("x", actor=ACTOR)
    assert [each.action for each in await b.audit.list()] == ["x"]
    assert (await b.audit.verify()).entries == 1
    for refused in (
        b.audit.list(organization_id=OWNER),
        b.audit.verify(organization_id=OWNER),
        b.audit.prune(0, organization_id=OWNER),
        b.audit.record("x", actor=ACTOR, organization_id=OWNER),
    ):
        with pytest.raises(NotFound):
            await refused
    operator = runtime.within(Bounds(OWNER, is_operator=True))
    assert [each.action for each in await operator.audit.list(organization_id="org_b")] == ["x"]


async def test_who_waits_for_an_entry_that_cannot_be_written_is_told(runtime: TestRuntime):
    trail = Trail(runtime.ledger, runtime.services.clock)
    await runtime.ledger.close()
    with pytest.raises(StoreError):
        await trail.record(Deed(OWNER, ACTOR, "x", "ok"))
