"""What happens is told to whom it concerns, once, signed, and again until it was taken."""

import asyncio
import base64
from typing import Any

import orjson
import pytest

from outrider import TaskOptions
from outrider.core.errors import AddressRefused, Conflict, InvalidArguments, NotFound, SessionClosed
from outrider.core.ledger import Document
from outrider.core.values import evolve
from outrider.runtime.bounds import Bounds
from outrider.runtime.clock import SystemClock
from outrider.runtime.webhooks import stored
from outrider.runtime.webhooks.duty import Webhooking
from outrider.runtime.webhooks.following import Follower
from outrider.runtime.webhooks.news import news_in, payload_of
from outrider.runtime.webhooks.sweeping import sweep
from tests.webhooks.conftest import Open
from tests.webhooks.receivers import hang, receiving, status

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("store", ["memory", "sqlite", "postgres"])
async def test_the_end_of_a_task_is_told_once_and_signed(
    opened: Open, store: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OUTRIDER_SECRET_KEYS", "test:" + base64.b64encode(bytes(32)).decode())
    where = request.getfixturevalue("postgres_url") if store == "postgres" else store
    async with receiving() as receiver, opened(where, SystemClock()) as (runtime, duty):
        hook = await runtime.webhooks.create(receiver.url, events=["terminal"])
        session = await runtime.sessions.create()
        task = await session.spawn("add", a=1)
        assert await task.result() == 2
        await duty.once()
        await duty.once()
        (came,) = receiver.requests
        told = came.verify(hook.secret)
        assert (told["type"], told["data"]["task"]["id"], told["data"]["task"]["state"]) == (
            "task.terminal",
            task.id,
            "succeeded",
        )
        (sent,) = await runtime.webhooks.deliveries(hook.id)
        assert (sent.id, sent.status, sent.tried, sent.tries[0].status) == (came.id, "delivered", 1, 200)
        assert came.head == "POST /hook HTTP/1.1"
        assert came.headers["host"] == f"127.0.0.1:{receiver.port}"


async def test_each_kind_of_event_says_what_it_brought(opened: Open):
    async with receiving() as receiver, opened() as (runtime, duty):
        await runtime.webhooks.create(receiver.url, events=["awaiting_input", "message", "terminal"])
        session = await runtime.sessions.create()
        asking = await session.spawn("ask")
        talking = await session.spawn("talk")
        await runtime.run_until_idle()
        await duty.once()
        told = {each.told["type"]: each.told["data"] for each in receiver.requests}
        (request,) = told["task.awaiting_input"]["requests"]
        assert (request["prompt"], request["status"], request["task_id"]) == ("May I, 0?", "pending", asking.id)
        assert told["task.message"]["message"]["parts"] == [{"type": "text", "text": "word 0"}]
        assert told["task.terminal"]["task"]["id"] == talking.id
        assert "links" not in told["task.awaiting_input"]


async def test_a_question_is_told_when_it_is_asked_and_not_when_another_is_answered(opened: Open, app):
    @app.tool
    async def two(task) -> list[bool]:
        return list(await asyncio.gather(task.ask("one?", bool, name="one"), task.ask("two?", bool, name="two")))

    async with receiving() as receiver, opened() as (runtime, duty):
        await runtime.webhooks.create(receiver.url, events=["awaiting_input"])
        session = await runtime.sessions.create()
        task = await session.spawn("two")
        await runtime.run_until_idle()
        (first, second) = (await task.record()).input_requests
        await task.answer(True, request_id=first.id)
        await runtime.run_until_idle()
        await duty.once()
        asked = [[each["prompt"] for each in request.told["data"]["requests"]] for request in receiver.requests]
        assert sorted(asked) == [["one?"], ["two?"]]
        await task.answer(True, request_id=second.id)
        await runtime.run_until_idle()
        await duty.once()
        assert len(receiver.requests) == 2


async def test_an_endpoint_hears_of_its_organization_or_task_alone(opened: Open):
    async with receiving() as own, receiving() as other, receiving() as one, opened() as (runtime, duty):
        await runtime.webhooks.create(own.url)
        await runtime.webhooks.create(other.url, organization_id="org_other")
        session = await runtime.sessions.create()
        theirs = await runtime.sessions.create(organization_id="org_other")
        first = await session.spawn(
            "add", a=1, options=TaskOptions(webhooks=[{"url": one.url, "events": ["terminal"]}])
        )
        second = await session.spawn("add", a=2)
        third = await theirs.spawn("add", a=3)
        await runtime.run_until_idle()
        await duty.once()
        heard = [sorted(each.told["data"]["task"]["id"] for each in who.requests) for who in (own, other, one)]
        assert heard == [[first.id, second.id], [third.id], [first.id]]
        (hook,) = await runtime.webhooks.list(task_id=first.id)
        assert (hook.task_id, hook.url) == (first.id, one.url)
        assert [each.url for each in await runtime.webhooks.list(organization_id="org_other")] == [other.url]


async def test_a_task_that_is_there_already_gets_no_webhooks_of_the_one_it_stands_for(opened: Open):
    async with opened() as (runtime, _):
        session = await runtime.sessions.create()
        options = TaskOptions(idempotency_key="k", webhooks=["http://127.0.0.1:1/"])
        made = await session.spawn("add", a=1, options=options)
        again = await session.spawn("add", a=1, options=options)
        assert again.id == made.id
        assert len(await runtime.services.views.documents(stored.TASK_ENDPOINT)) == 1
        await runtime.run_until_idle()
        repeated = await runtime.tasks.retry(made.id)
        assert [each.url for each in await runtime.webhooks.list(task_id=repeated.id)] == ["http://127.0.0.1:1/"]


async def test_whoever_names_a_task_that_is_not_his_hears_nothing_of_it(opened: Open):
    async with receiving() as receiver, opened() as (runtime, duty):
        ours, theirs = (runtime.within(Bounds(name)) for name in ("org_a", "org_b"))
        session, other, victims = [await each.sessions.create() for each in (ours, ours, theirs)]
        hooks = [{"url": receiver.url, "events": ["terminal"]}]
        own = await session.spawn("add", a=1)
        await runtime.run_until_idle()
        await ours.webhooks.create(receiver.url, task_id=own.id)
        for owner in (victims, other):
            secret = await owner.spawn("add", a=2)
            for attempt in (
                session.spawn("add", a=1, options=TaskOptions(id=secret.id, webhooks=hooks)),
                ours.tasks.retry(own.id, id=secret.id),
                ours.tasks.fork(own.id, id=secret.id),
            ):
                with pytest.raises(Conflict):
                    await attempt
        # What was named before it was made, too.
        (mine,) = await runtime.services.views.documents(stored.TASK_ENDPOINT)
        early = evolve(mine, id=f"early{stored.MARK}whk_early", key="whk_early", version=0)
        await runtime.ledger.keep([early, stored.lane_for(early)])
        await victims.spawn("add", a=3, options=TaskOptions(id="early"))
        await runtime.run_until_idle()
        await duty.once()
        assert receiver.requests == []
        left = {
            each.id.partition(stored.MARK)[0] for each in await runtime.services.views.documents(stored.TASK_ENDPOINT)
        }
        assert left == {own.id, "early"}


async def test_a_task_that_was_not_made_leaves_no_webhooks(opened: Open):
    async with opened() as (runtime, _):
        session = await runtime.sessions.create()
        old = await session.spawn("add", a=1, options=TaskOptions(webhooks=["http://127.0.0.1:1/"]))
        await runtime.run_until_idle()
        for _ in range(2):
            await runtime.tasks.retry(old.id, id="again")
            await runtime.tasks.fork(old.id, id="forked")
        assert [len(await runtime.webhooks.list(task_id=each)) for each in ("again", "forked")] == [1, 1]
        await runtime.run_until_idle()
        await session.close()
        for attempt in (
            session.spawn("add", a=1, options=TaskOptions(webhooks=["http://127.0.0.1:1/"])),
            runtime.tasks.retry(old.id),
            runtime.tasks.fork(old.id),
        ):
            with pytest.raises(SessionClosed):
                await attempt
        assert len(await runtime.services.views.documents(stored.TASK_ENDPOINT)) == 3
        assert len(await runtime.services.views.documents(stored.LANE)) == 3


async def test_the_log_has_the_host_of_an_endpoint_and_nothing_more_of_its_url(
    opened: Open, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    async with receiving(status(200), status(410)) as receiver, opened() as (runtime, duty):
        hook = await runtime.webhooks.create(f"{receiver.url}/s3cret?token=s3cret")
        session = await runtime.sessions.create()
        for _ in range(2):
            await session.spawn("add", a=1)
            await runtime.run_until_idle()
            await duty.once()
    told = [line for line in caplog.messages if hook.id in line]
    assert [what in " ".join(told) for what in ("delivered", "given up", "disabled", "127.0.0.1")] == [True] * 4
    assert "s3cret" not in caplog.text


async def test_endpoints_of_a_task_go_with_it(opened: Open):
    async with opened() as (runtime, duty):
        session = await runtime.sessions.create()
        kept = await session.spawn("add", a=1, options=TaskOptions(webhooks=["http://127.0.0.1:1/"]))
        gone = await session.spawn("add", a=1, options=TaskOptions(webhooks=["http://127.0.0.1:1/"]))
        await runtime.run_until_idle()
        await duty.once()
        await runtime.tasks.delete(gone.id)
        assert await sweep(runtime.services, runtime.clock.now() + 1) == 1
        (left,) = await runtime.services.views.documents(stored.TASK_ENDPOINT)
        assert left.id.startswith(kept.id)
        assert {each.id for each in await runtime.services.views.documents(stored.LANE)} == {stored.Endpoint(left).id}


async def test_endpoints_of_a_task_go_with_a_session_that_is_erased(opened: Open):
    async with opened() as (runtime, duty):
        session, other = [await runtime.sessions.create() for _ in range(2)]
        for each in (session, other):
            await each.spawn("add", a=1, options=TaskOptions(webhooks=["http://127.0.0.1:1/"]))
        await runtime.run_until_idle()
        await duty.once()
        runtime.clock.advance(1)
        await session.delete()
        (left,) = await runtime.services.views.documents(stored.TASK_ENDPOINT)
        assert left.id.startswith((await other.tasks())[0].id)
        assert {each.id for each in await runtime.services.views.documents(stored.LANE)} == {stored.Endpoint(left).id}


async def test_nothing_that_was_told_of_a_task_outlives_it_or_its_time(opened: Open):
    async with receiving() as receiver, receiving(status(500)) as bad, opened() as (runtime, duty):
        good, failing = [await runtime.webhooks.create(each.url, events=["terminal"]) for each in (receiver, bad)]
        session, doomed = [await runtime.sessions.create() for _ in range(2)]
        kept, pruned = [await session.spawn("add", a=1) for _ in range(2)]
        await doomed.spawn("add", a=1)
        await runtime.run_until_idle()
        await duty.once()
        await runtime.ledger.prune([pruned.id])  # as what is too old goes
        await doomed.delete()
        for hook, told in ((good, {kept.id}), (failing, {kept.id, pruned.id})):  # before anybody swept
            assert {each.task_id for each in await runtime.webhooks.deliveries(hook.id)} == told

        async def left(hook_id: str) -> set[str | None]:
            await sweep(runtime.services, runtime.clock.now())
            return {each.task_id for each in await runtime.webhooks.deliveries(hook_id)}

        assert await left(good.id) == {kept.id}
        assert await left(failing.id) == {kept.id, pruned.id}  # it is still to be told
        runtime.clock.advance(29 * 86_400)
        assert await left(good.id) == {kept.id}
        runtime.clock.advance(2 * 86_400)
        assert await left(good.id) == set()
        assert await runtime.services.views.documents(stored.ERASED) == []


async def test_what_fails_is_sent_again_with_the_same_id_later_and_later_and_then_laid_by(opened: Open):
    answers = [status(500, b"no\0"), status(503, retry_after="600"), hang, status(500)]
    async with receiving(*answers) as receiver, opened(send_timeout=0.2) as (runtime, duty):
        hook = await runtime.webhooks.create(receiver.url)
        session = await runtime.sessions.create()
        await session.spawn("add", a=1)
        await runtime.run_until_idle()
        waits = []
        while True:
            await duty.once()
            (sent,) = await runtime.webhooks.deliveries(hook.id)
            if sent.next_try_at is None:
                break
            waits.append((sent.next_try_at - runtime.clock.time).total_seconds())
            runtime.clock.advance(waits[-1])
        assert 2.5 <= waits[0] <= 5
        assert waits[1] == 600
        assert 10 <= waits[2] <= 20
        assert max(waits) <= 3600
        assert sent.status == "dead"
        assert sent.tries[-1].error == "it answered 500"
        assert len(set(receiver.ids)) == 1
        assert 25 < len(receiver.ids) < 80
        assert len(sent.tries) == 10
        receiver.answers = [status(204)]
        assert await runtime.webhooks.replay(hook.id) == 1
        await duty.once()
        assert len(set(receiver.ids)) == 1
        (sent,) = await runtime.webhooks.deliveries(hook.id)
        assert sent.status == "delivered"
        assert await runtime.webhooks.replay(hook.id) == 0
        assert await runtime.webhooks.replay(hook.id, [sent.id]) == 1


async def test_an_endpoint_that_fails_for_long_or_is_gone_is_disabled_and_told_of(opened: Open):
    async with receiving(status(500)) as bad, receiving(status(410)) as gone, opened(retry_for=30 * 86_400) as it:
        runtime, duty = it
        hooks = [await runtime.webhooks.create(each.url) for each in (bad, gone)]
        session = await runtime.sessions.create()
        await session.spawn("add", a=1)
        await runtime.run_until_idle()
        await duty.once()
        assert (await runtime.webhooks.get(hooks[1].id)).disabled_reason == "it answered 410: it is gone for good"
        found = await runtime.webhooks.get(hooks[0].id)
        while found.disabled_at is None:
            runtime.clock.advance(3600)
            await duty.once()
            found = await runtime.webhooks.get(hooks[0].id)
        assert found.failing_since is not None
        assert (found.disabled_at - found.failing_since).total_seconds() >= 2 * 86_400
        assert "nothing but failures" in (found.disabled_reason or "")
        told = [finding for finding in await runtime.doctor.examine() if finding.about == "webhooks"]
        assert len(told) == 2
        before = len(bad.requests)
        await session.spawn("add", a=1)
        await runtime.run_until_idle()
        await duty.once()
        assert len(bad.requests) == before
        with pytest.raises(Conflict, match="enable it first"):
            await runtime.webhooks.replay(hooks[0].id)
        bad.answers = [status(200)]
        await runtime.webhooks.enable(hooks[0].id)
        await session.spawn("add", a=1)
        await runtime.run_until_idle()
        runtime.clock.advance(3600)
        await duty.once()
        assert len(bad.requests) == before + 2  # what waited, and what happened after


async def test_progress_is_told_once_a_second_at_most_and_its_last_word_always(opened: Open):
    async with receiving() as receiver, opened() as (runtime, duty):
        await runtime.webhooks.create(receiver.url, events=["progress"])
        session = await runtime.sessions.create()
        task = await session.spawn("talk", times=20)
        await runtime.run_until_idle()
        await duty.once()
        assert len(receiver.requests) == 1
        runtime.clock.advance(1)
        await duty.once()
        assert [each.told["data"]["task"]["id"] for each in receiver.requests] == [task.id, task.id]
        assert receiver.requests[-1].told["data"]["task"]["progress"]["current"] == 19
        runtime.clock.advance(5)
        await duty.once()
        assert len(receiver.requests) == 2


async def test_whoever_follows_makes_each_delivery_once(opened: Open):
    async with receiving() as receiver, opened() as (runtime, _):
        hook = await runtime.webhooks.create(receiver.url)
        session = await runtime.sessions.create()
        await session.spawn_many("add", [{"a": each} for each in range(50)]) if hasattr(session, "spawn_many") else [
            await session.spawn("add", a=each) for each in range(50)
        ]
        await runtime.run_until_idle()
        duties = [Webhooking(runtime.services) for _ in range(4)]
        await asyncio.gather(*(Follower(runtime.services).catch_up() for _ in range(8)))
        for _ in range(30):
            await asyncio.gather(*(each.once() for each in duties))
        assert len(receiver.ids) == len(set(receiver.ids)) == 50
        assert await runtime.services.views.documents(stored.pending(hook.id)) == []
        for each in duties:
            await each.leave()


async def test_one_slow_endpoint_holds_up_no_other(opened: Open):
    async with receiving(hang) as slow, receiving() as fast, opened() as (runtime, duty):
        await runtime.webhooks.create(slow.url)
        await runtime.webhooks.create(fast.url)
        session = await runtime.sessions.create()
        for each in range(20):
            await session.spawn("add", a=each)
        await runtime.run_until_idle()
        driving = asyncio.create_task(duty.once())
        await slow.until(4)
        for _ in range(4):
            await duty.start()
            await fast.until(4)
        while len(fast.requests) < 20:
            await duty.start()
            await asyncio.sleep(0.005)
        assert slow.connections == 4  # as many as are sent to one at once
        slow.released.set()
        await driving


async def test_receivers_of_one_organization_that_hang_hold_up_none_of_another(opened: Open):
    async with receiving(hang) as bad, receiving() as good, opened(endpoints_at_once=4, at_once=1) as (runtime, duty):
        for _ in range(6):
            await runtime.webhooks.create(bad.url, events=["terminal"], organization_id="org_a")
        await runtime.webhooks.create(good.url, events=["terminal"], organization_id="org_b")
        first, second = [await runtime.sessions.create(organization_id=name) for name in ("org_a", "org_b")]
        await first.spawn("add", a=1)
        await runtime.run_until_idle()
        await duty.start()
        await bad.until(1)
        runtime.clock.advance(1)
        await second.spawn("add", a=1)
        await runtime.run_until_idle()
        for _ in range(3):  # a page is full of those of the first, which go behind
            runtime.clock.advance(1)
            await duty.start()
        await good.until(1)
        assert len(bad.requests) == 1  # a quarter of four
        bad.released.set()


async def test_an_endpoint_that_takes_nothing_rests_longer_and_longer_whatever_comes_in(opened: Open):
    async with receiving(status(500)) as bad, opened(at_once=1) as (runtime, duty):
        duty._lanes._chance = lambda: 0.0
        hook = await runtime.webhooks.create(bad.url, events=["terminal"])
        session = await runtime.sessions.create()
        rests = []
        for _ in range(9):
            await session.spawn("add", a=1)
            await runtime.run_until_idle()
            before = len(bad.requests)
            await duty.once()
            await duty.once()
            assert len(bad.requests) == before + 1
            (lane,) = await runtime.services.views.documents(stored.LANE)
            assert lane.due_at is not None
            rests.append((lane.due_at - runtime.clock.now()) / 1e6)
            runtime.clock.advance(rests[-1])
        assert rests == [2.5, 5, 10, 20, 40, 80, 160, 300, 300]
        bad.answers = [status(200)]
        before = len(bad.requests)
        await duty.once()
        assert len(bad.requests) > before
        assert all(each.status == "delivered" for each in (await runtime.webhooks.deliveries(hook.id))[-5:])


async def test_a_secret_that_is_replaced_signs_on_beside_the_new_one_for_a_while(opened: Open):
    async with receiving() as receiver, opened(clock=SystemClock()) as (runtime, _):
        hook = await runtime.webhooks.create(receiver.url)
        assert (await runtime.webhooks.test(hook.id)).error is None
        rotated = await runtime.webhooks.rotate_secret(hook.id)
        assert rotated.secret != hook.secret
        assert (await runtime.webhooks.test(hook.id)).status == 200
        for secret in (hook.secret, rotated.secret):
            assert receiver.requests[-1].verify(secret)["type"] == "webhook.ping"
        last = await runtime.webhooks.rotate_secret(hook.id, overlap=0)
        assert last.secrets == 1
        await runtime.webhooks.test(hook.id)
        assert receiver.requests[-1].verify(last.secret)
        with pytest.raises(Exception, match="No matching signature"):
            receiver.requests[-1].verify(rotated.secret)


async def test_a_secret_lies_in_the_store_sealed_and_is_sealed_anew_with_the_others(opened: Open):
    async with receiving() as receiver, opened("sqlite", SystemClock()) as (runtime, _):
        hook = await runtime.webhooks.create(receiver.url)
        (before,) = await runtime.services.views.documents(stored.ENDPOINT)
        assert hook.secret.removeprefix("whsec_") not in str(before.data)
        assert (await runtime.secrets.rotate()).sealed == 1
        (after,) = await runtime.services.views.documents(stored.ENDPOINT)
        assert after.data["secrets"] != before.data["secrets"]
        await runtime.webhooks.test(hook.id)
        assert receiver.requests[-1].verify(hook.secret)["type"] == "webhook.ping"


async def test_what_is_too_large_is_cut_with_a_mark(opened: Open, app):
    async with receiving() as receiver, opened() as (runtime, duty):
        await runtime.webhooks.create(receiver.url)
        session = await runtime.sessions.create(id="s")
        options = TaskOptions(name="n" * 2000, labels={"label": "l" * 50_000})
        task = await session.spawn("ask", options=options)
        await runtime.run_until_idle()
        await duty.once()
        (came,) = receiver.requests
        assert came.told.get("truncated") is None
        rows = (await runtime.services.views.log(after=0)).rows
        (news,) = [each for each in await news_in(runtime.services.views, rows) if each.event == "awaiting_input"]
        text = payload_of(news, await runtime.tasks.get(task.id), 2500)
        assert len(text) <= 2500
        told = orjson.loads(text)
        assert "task.labels" in told["truncated"]
        assert told["data"]["task"]["display_name"] == "n" * 500 + "…"
        assert told["data"]["task"]["id"] == task.id


async def test_a_store_without_webhooks_pays_for_none(opened: Open):
    async with opened() as (runtime, duty):
        session = await runtime.sessions.create()
        await session.spawn("add", a=1)
        await runtime.run_until_idle()
        before = dict(runtime.ledger.counters)
        await duty.once()
        assert dict(runtime.ledger.counters) == before
        assert await runtime.services.views.document(stored.CURSOR, id=stored.FOLLOWER) is None


async def test_an_organization_sees_and_changes_its_own_endpoints_only(opened: Open):
    async with receiving() as receiver, opened() as (runtime, duty):
        ours, theirs = (runtime.within(Bounds(name)) for name in ("org_a", "org_b"))
        hook = await ours.webhooks.create(receiver.url, events=["terminal"])
        session = await ours.sessions.create()
        await session.spawn("add", a=1, options=TaskOptions(webhooks=[receiver.url]))
        await runtime.run_until_idle()
        await duty.once()
        assert len(receiver.requests) == 2
        assert [each.id for each in await ours.webhooks.list()] == [hook.id]
        assert await theirs.webhooks.list() == []
        (delivery,) = await ours.webhooks.deliveries(hook.id)
        for verb in ("get", "enable", "disable", "delete", "test", "rotate_secret", "deliveries", "replay", "update"):
            with pytest.raises(NotFound):
                await getattr(theirs.webhooks, verb)(hook.id)
        with pytest.raises(NotFound):
            await theirs.webhooks.create(receiver.url, organization_id="org_a")
        await ours.webhooks.disable(hook.id)
        await ours.webhooks.enable(hook.id)
        assert await ours.webhooks.replay(hook.id, [delivery.id]) == 1


async def test_what_happened_before_an_endpoint_was_made_is_not_told_to_it(opened: Open):
    async with receiving() as receiver, opened() as (runtime, duty):
        session = await runtime.sessions.create()
        await session.spawn("add", a=1)
        await runtime.run_until_idle()
        first = await runtime.webhooks.create(receiver.url)
        await runtime.webhooks.delete(first.id)
        await session.spawn("add", a=1)
        await runtime.run_until_idle()
        await runtime.webhooks.create(receiver.url)
        task = await session.spawn("add", a=1)
        await runtime.run_until_idle()
        await duty.once()
        assert [each.told["data"]["task"]["id"] for each in receiver.requests] == [task.id]
        with pytest.raises(NotFound):
            await runtime.webhooks.get(first.id)


async def test_history_is_bounded_and_read_in_pages(opened: Open):
    async with receiving() as receiver, opened(history=5) as (runtime, duty):
        hook = await runtime.webhooks.create(receiver.url)
        session = await runtime.sessions.create()
        for each in range(60):
            await session.spawn("add", a=each)
        await runtime.run_until_idle()
        while len(receiver.requests) < 60:
            await duty.once()
        await duty.once()
        kept = await runtime.webhooks.deliveries(hook.id)
        assert 5 <= len(kept) <= 5 + 20 + 4
        page = await runtime.webhooks.deliveries(hook.id, limit=3)
        rest = await runtime.webhooks.deliveries(hook.id, after=page[-1].id)
        assert [each.id for each in [*page, *rest]] == [each.id for each in kept]
        await runtime.webhooks.delete(hook.id)
        for status_ in stored.STATUSES:
            assert await runtime.services.views.documents(stored.deliveries_of(hook.id, status_)) == []


async def test_ugly_input_is_refused_and_changes_nothing(opened: Open):
    async with opened() as (runtime, _):
        hooks = runtime.webhooks
        for wrong in (
            {"url": "ftp://example.com/"},
            {"url": 5},
            {"url": "https://example.com/", "events": []},
            {"url": "https://example.com/", "events": ["ends"]},
            {"url": "https://example.com/", "events": "terminal"},
            {"url": "https://example.com/", "secret": "whsec_short"},
            {"url": "https://example.com/", "secret": "x" * 40},
        ):
            with pytest.raises(InvalidArguments):
                await hooks.create(**wrong)
        with pytest.raises(AddressRefused):
            await hooks.create("http://10.0.0.1/")
        with pytest.raises(NotFound):
            await hooks.create("https://example.com/", task_id="task_none")
        session = await runtime.sessions.create()
        wrongs: list[Any] = ["https://example.com/", [5], [{"to": "x"}], ["https://example.com/"] * 11]
        for given in wrongs:
            with pytest.raises(InvalidArguments):
                await session.spawn("add", a=1, options=TaskOptions(webhooks=given))
        assert await runtime.tasks.list() == []
        for collection in (stored.ENDPOINT, stored.TASK_ENDPOINT, stored.LANE):
            assert await runtime.services.views.documents(collection) == []


async def test_many_endpoints_of_tasks_are_found_in_few_reads(opened: Open):
    async with opened() as (runtime, _):
        ids = ["t", "t-1", "t.2", "t1", "ta"]
        documents = [
            Document(stored.TASK_ENDPOINT, f"{id}{stored.MARK}whk_{id}{number:03}", {"since": 0}, key=f"{id}/{number}")
            for id in ids
            for number in range(60)
        ]
        await runtime.ledger.keep(documents)
        found = await stored.endpoints_of_tasks(runtime.services.views, ["t", "t-1", "ta", "tz"])
        counts = {id: sum(each.task_id == id for each in found) for id in ids}
        assert (counts["t"], counts["t-1"], counts["ta"]) == (60, 60, 60)
