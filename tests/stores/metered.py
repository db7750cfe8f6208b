"""What every store promises of meters: part of the contract of `tests.stores.contract`."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from outrider.core.events import Claimed, Failed, HolderLost, Succeeded
from outrider.core.meters import (
    CROWDED,
    MINUTE,
    NOTHING,
    Account,
    Amounts,
    Breaker,
    BreakerTerms,
    Budget,
    ChargeVerdict,
    Exhausted,
    Granted,
    Heard,
    Lapsed,
    Later,
    Line,
    Place,
    Probe,
    Rate,
    RateLimit,
    Reserve,
    Settle,
    Slot,
    Tap,
    taps_of,
)
from outrider.core.task import Live, Task, TaskError, Usage
from outrider.core.values import SECOND
from tests.stores.scene import ROUTE, SESSION, START, Scene

TREE = {"tree": {"tokens": 1000}}
SLICE_AT = START - START % (2 * SECOND)


async def reserve(scene: Scene, task: Task, ordinal: int = 1, rate: RateLimit | None = None, **amounts: int) -> Any:
    wanted = Amounts(1, iterations=1).plus(Amounts(**amounts))
    charge = Reserve(task.id, task.core.attempt, ordinal, wanted, scene.now, taps_of(task), rate)
    return await one(scene, charge)


async def settle(scene: Scene, task: Task, ordinal: int = 1, slot: Slot | None = None, **amounts: int) -> Any:
    took = Amounts(1, iterations=1).plus(Amounts(**amounts)) if amounts else None
    return await one(scene, Settle(task.id, task.core.attempt, ordinal, took, scene.now, taps_of(task), slot))


async def one(scene: Scene, charge: Any) -> ChargeVerdict:
    (verdict,) = await scene.ledger.charge([charge])
    return verdict


async def account(scene: Scene, name: str) -> Account:
    found = (await scene.views.meters([name, "task:nobody"]))[name]
    assert isinstance(found, Account)
    return found


class Meters:
    pytestmark = pytest.mark.anyio

    async def test_a_reservation_is_held_in_all_its_accounts_and_settling_it_spends_what_it_took(self, scene: Scene):
        task = await scene.running("task_1", budget={"tokens": 500, "session": {"cost": 2}, **TREE})
        assert await reserve(scene, task, tokens=300, cost=7) == Granted()
        wanted = Amounts(1, 300, 7, 1)
        names = ["task:task_1", f"session:{SESSION}", f"tree:{SESSION}"]
        for name in names:
            assert ((await account(scene, name)).held, (await account(scene, name)).spent) == (wanted, NOTHING)
        assert (await account(scene, names[1])).budget == Budget(cost=2_000_000)
        assert await settle(scene, task, tokens=120, cost=3) == Granted()
        for name in names:
            found = await account(scene, name)
            assert (found.held, found.spent, found.unknown) == (NOTHING, Amounts(1, 120, 3, 1), NOTHING)

    async def test_a_call_that_one_account_has_not_enough_for_is_refused_by_all_and_nothing_is_taken_down(
        self, scene: Scene
    ):
        task = await scene.running("task_1", budget={"tokens": 100, **TREE})
        assert await reserve(scene, task, tokens=101) == Exhausted("task:task_1", "tokens", 100, 0, 101)
        assert not await scene.views.meters(["task:task_1", f"tree:{SESSION}"])
        await reserve(scene, task, tokens=100)
        await settle(scene, task, tokens=250)
        assert await reserve(scene, task, 2, tokens=1) == Exhausted("task:task_1", "tokens", 100, 250, 1)
        assert (await account(scene, f"tree:{SESSION}")).spent.tokens == 250

    async def test_a_call_waits_for_room_that_the_calls_of_others_hold(self, scene: Scene):
        one_task, other = [await scene.running(f"task_{n}", budget=TREE) for n in (1, 2)]
        await reserve(scene, one_task, tokens=600)
        assert await reserve(scene, other, tokens=600) == Later(f"tree:{SESSION}", scene.now + CROWDED)
        await settle(scene, one_task, tokens=300)
        assert await reserve(scene, other, tokens=600) == Granted()

    async def test_many_children_at_once_never_pass_the_ceiling_of_their_tree(self, scene: Scene):
        tasks = [await scene.running(f"task_{n:02}", budget=TREE) for n in range(64)]
        granted: list[str] = []

        async def spend(task: Task) -> None:
            for ordinal in range(1, 20):
                if isinstance(await reserve(scene, task, ordinal, tokens=30), Granted):
                    found = await account(scene, f"tree:{SESSION}")
                    assert found.held.tokens + found.spent.tokens <= 1000
                    granted.append(task.id)
                    await settle(scene, task, ordinal, tokens=20)

        async with anyio.create_task_group() as group:
            for task in tasks:
                group.start_soon(spend, task)
        found = await account(scene, f"tree:{SESSION}")
        assert (found.held, found.spent.tokens) == (NOTHING, 20 * len(granted))
        assert 33 <= len(granted) <= 50

    async def test_a_stale_attempt_reserves_and_settles_nothing(self, scene: Scene):
        task = await scene.running("task_1", budget=TREE)
        await reserve(scene, task, tokens=100)
        await scene.apply("task_1", HolderLost(1))
        again = await scene.reclaim("task_1")
        assert await reserve(scene, task, 2, tokens=1) == Lapsed()
        assert await settle(scene, task, tokens=1) == Lapsed()
        assert await settle(scene, again, tokens=1) == Lapsed()
        assert (await account(scene, f"tree:{SESSION}")).spent.tokens == 100

    @pytest.mark.parametrize("end", [HolderLost(1), Failed(1, TaskError("exception", "no")), Succeeded(1)])
    async def test_what_an_attempt_left_open_is_settled_in_full_as_unknown_by_what_ends_it(
        self, scene: Scene, end: Any
    ):
        task = await scene.running("task_1", budget={"requests": 9, **TREE})
        for ordinal in (1, 2):
            await reserve(scene, task, ordinal, tokens=100, cost=5)
        await settle(scene, task, 1, tokens=10)
        await scene.apply("task_1", end)
        for name in ("task:task_1", f"tree:{SESSION}"):
            found = await account(scene, name)
            assert (found.held, found.spent, found.unknown) == (NOTHING, Amounts(2, 110, 5, 1), Amounts(1, 100, 5, 0))

    async def test_a_reservation_that_is_asked_for_again_is_held_once(self, scene: Scene):
        task = await scene.running("task_1", budget=TREE)
        assert [await reserve(scene, task, tokens=100) for _ in range(2)] == [Granted()] * 2
        assert (await account(scene, f"tree:{SESSION}")).held.tokens == 100
        assert [await settle(scene, task, tokens=40) for _ in range(2)] == [Granted(), Lapsed()]
        assert (await account(scene, f"tree:{SESSION}")).spent.tokens == 40

    async def test_the_soft_mark_tells_the_sessions_concerned_once_and_keeps_silent_where_asked_to(self, scene: Scene):
        await scene.session("session_b", root_session_id=SESSION)
        budget = {"tokens": 100, "session": {"tokens": 100}, "tree": {"tokens": 100}}
        task = await scene.running("task_1", "session_b", budget=budget, root_session_id=SESSION)
        for ordinal, tokens in enumerate((79, 1), 1):
            assert not await scene.told()
            await reserve(scene, task, ordinal, tokens=tokens)
            await settle(scene, task, ordinal, tokens=tokens)
        for session in (SESSION, "session_b"):
            assert await scene.told(session) == [("task_1", "budget")]
        (entry,) = await scene.views.inbox(SESSION)
        spent = {"tokens": 80, "cost": 0.0, "requests": 2, "iterations": 2}
        text = f"80% or more of the budget of tree:{SESSION} is spent"
        assert entry.body == {"text": text, "account": f"tree:{SESSION}", "budget": {"tokens": 100}, "spent": spent}
        assert (await account(scene, "task:task_1")).is_marked
        await scene.hear()
        await reserve(scene, task, 4, tokens=5)
        await settle(scene, task, 4, tokens=5)
        assert not await scene.told(SESSION)

    async def test_the_end_of_a_lost_attempt_can_pass_the_soft_mark(self, scene: Scene):
        task = await scene.running("task_1", budget={"tokens": 100}, wake_policy="on_activity")
        await reserve(scene, task, tokens=90)
        assert not await scene.told()
        await scene.apply("task_1", HolderLost(1))
        assert await scene.told() == [("task_1", "budget")]

    async def test_a_wall_time_runs_from_the_first_call_and_refuses_when_it_is_over(self, scene: Scene):
        task = await scene.running("task_1", budget={"seconds": 10})
        scene.later(100 * SECOND)
        await reserve(scene, task)
        scene.later(10 * SECOND)
        assert await reserve(scene, task, 2) == Exhausted("task:task_1", "seconds", 10 * SECOND, 10 * SECOND, 0)

    async def test_a_full_rate_says_when_there_is_room_again_and_a_settled_call_gives_back_what_it_did_not_take(
        self, scene: Scene
    ):
        task = await scene.running("task_1")
        limit = RateLimit("model:m", requests=3, tokens=100)
        slot = Slot("model:m", SLICE_AT, 60)
        assert await reserve(scene, task, 1, limit, tokens=60) == Granted(slot)
        until = SLICE_AT + 2 * SECOND + MINUTE
        assert await reserve(scene, task, 2, limit, tokens=60) == Later("model:m", until)
        line = Line("line:model:m", (Place("task_1", until, 1, 60),))
        assert (await scene.views.meters(["line:model:m"]))["line:model:m"] == line
        await settle(scene, task, 1, slot, tokens=40)
        assert isinstance(await reserve(scene, task, 2, limit, tokens=60), Granted)
        assert (await scene.views.meters(["model:m"]))["model:m"] == Rate("model:m", ((SLICE_AT, 2, 100),))
        scene.now = until
        assert isinstance(await reserve(scene, task, 3, limit, tokens=500), Granted), (
            "more than all: alone in its minute"
        )
        assert await reserve(scene, task, 4, limit) == Later("model:m", until - until % (2 * SECOND) + 62 * SECOND)

    async def test_a_breaker_opens_after_failures_in_a_row_lets_one_probe_and_closes_when_that_is_answered(
        self, scene: Scene
    ):
        terms = BreakerTerms(failures=2, rest=10 * SECOND)

        async def hear(failure: str | None) -> Any:
            await one(scene, Heard("p", failure, scene.now, terms))
            return (await scene.views.meters(["provider:p"])).get("provider:p")

        async def probe() -> ChargeVerdict:
            return await one(scene, Probe("p", scene.now, terms))

        assert await hear(None) is None
        assert (await hear("500")).open_until is None
        assert await hear(None) == Breaker("provider:p")
        await hear("500")
        until = scene.now + 10 * SECOND
        assert await hear("503") == Breaker("provider:p", 2, scene.now, until, None, "503")
        assert await probe() == Later("provider:p", until)
        scene.later(10 * SECOND)
        assert [await probe(), await probe()] == [Granted(), Later("provider:p", scene.now + 10 * SECOND)]
        assert (await hear("502")).open_until == scene.now + 10 * SECOND
        scene.later(10 * SECOND)
        assert await probe() == Granted()
        assert await hear(None) == Breaker("provider:p")
        assert await probe() == Granted()

    async def test_charges_of_one_call_stand_or_fall_alone_and_in_their_order(self, scene: Scene):
        task = await scene.running("task_1", budget={"tokens": 100})
        tap = Tap("task:task_1", Budget(tokens=100))
        charges = [Reserve("task_1", 1, n, Amounts(tokens=n), START, (tap,)) for n in (60, 50, 40)]
        assert await scene.ledger.charge([*charges, Settle("task_1", 1, 60, None, START, (tap,))]) == [
            Granted(),
            Later("task:task_1", START + CROWDED),
            Granted(),
            Granted(),
        ]
        found = await account(scene, "task:task_1")
        assert (found.spent.tokens, found.held.tokens, task.id) == (60, 40, "task_1")
        assert await one(scene, Reserve("task_9", 1, 1, NOTHING, START, (tap,))) == Lapsed()

    async def test_meters_go_with_their_task_and_their_session(self, scene: Scene):
        budget = {"tokens": 100, "session": {"tokens": 100}, "tree": {"tokens": 100}}
        task = await scene.running("task_1", budget=budget)
        await reserve(scene, task, tokens=1)
        await scene.succeed("task_1")
        names = ["task:task_1", f"session:{SESSION}", f"tree:{SESSION}"]
        await scene.ledger.prune(["task_1"])
        assert sorted(await scene.views.meters(names)) == names[1:]
        await scene.ledger.prune([], [SESSION])
        assert not await scene.views.meters(names)

    async def test_a_task_held_from_its_first_moment_may_reserve_in_the_same_breath(self, scene: Scene):
        change = scene.new("task_1", claim=Claimed("worker_a"), budget={"tokens": 10})
        verdicts: list[Any] = []

        async def charge() -> None:
            verdicts.append(await reserve(scene, change.task, tokens=10))

        async with anyio.create_task_group() as group:
            group.start_soon(scene.one, change)
            group.start_soon(charge)
        assert verdicts == [Granted()]

    async def test_usage_is_summed_over_a_session_and_over_its_tree(self, scene: Scene):
        await scene.session("session_b", root_session_id=SESSION)
        assert await scene.views.usage(SESSION, tree=True) == Usage()
        for n, (session, cost) in enumerate([(SESSION, 0.5), (SESSION, None), ("session_b", 0.25)]):
            task = await scene.running(f"task_{n}", session, root_session_id=SESSION, display_name="\0")
            await scene.apply(task.id, Succeeded(1, live=Live(state_detail="\0", usage=Usage(1, 10, 2, 3, cost))))
        await scene.create("task_new", route=ROUTE)
        assert await scene.views.usage(SESSION) == Usage(2, 20, 4, 6, 0.5)
        assert await scene.views.usage("session_b") == Usage(1, 10, 2, 3, 0.25)
        assert await scene.views.usage(SESSION, tree=True) == Usage(3, 30, 6, 9, 0.75)
        assert await scene.views.usage("session_b", tree=True) == Usage()

    async def test_a_session_keeps_its_budget(self, scene: Scene):
        budget = {"tree": {"tokens": 5, "soft": 0.5}}
        session = await scene.session("session_b", budget=budget)
        assert session.budget == budget
        for found in (await scene.views.session("session_b"), (await scene.views.sessions())[0]):
            assert found == session
