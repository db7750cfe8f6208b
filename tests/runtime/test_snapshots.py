"""Snapshots: whatever others write while one is taken, it is what the log says of the place that it names."""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, cast

import pytest

from outrider import Outrider, SessionHandle, TaskOptions
from outrider.core.errors import NotFound
from outrider.core.ledger import Ledger, Views
from outrider.core.values import evolve
from outrider.runtime.bounds import Bounds
from outrider.runtime.facade import Runtime
from outrider.runtime.records import TaskRecord
from outrider.runtime.services import Services
from outrider.runtime.snapshots import SHOWN
from outrider.runtime.stream import EventReader, LogReader
from outrider.testing import TestRuntime, open_test

pytestmark = pytest.mark.anyio


class Meddled:
    """Views between whose reads somebody else writes."""

    def __init__(self, views: Views, meddle: Callable[[], Awaitable[object]]) -> None:
        self._views = views
        self._meddle = meddle

    def __getattr__(self, name: str) -> Any:
        read = getattr(self._views, name)

        async def meddled(*given: Any, **named: Any) -> Any:
            await self._meddle()
            found = await read(*given, **named)
            await self._meddle()
            return found

        return meddled


class MeddledLedger:
    """A ledger with such views."""

    def __init__(self, ledger: Ledger, meddle: Callable[[], Awaitable[object]]) -> None:
        self._ledger = ledger
        self.views = Meddled(ledger.views, meddle)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)


class Story:
    """Somebody who starts, moves and ends tasks of two sessions, a step at a time, `budget` times."""

    def __init__(self, runtime: Runtime, sessions: list[SessionHandle], budget: int) -> None:
        self._runtime = runtime
        self._sessions = sessions
        self._live: list[str] = []
        self._steps = 0
        self._budget = budget

    async def go_on(self) -> None:
        if self._steps >= self._budget:
            return
        self._steps += 1
        match self._steps % 4:
            case 0 if len(self._live) > 2:
                await self._runtime.tasks.cancel(self._live.pop(0))
            case 1 if self._live:
                await self._runtime.queue.reprioritize(self._live[-2 % len(self._live)], self._steps)
            case _:
                made = await self._sessions[self._steps % 2].create("external", {})
                self._live.append(made.id)


async def begun(runtime: Runtime, budget: int) -> tuple[list[SessionHandle], Story, Services]:
    sessions = [await runtime.sessions.create() for _ in range(2)]
    story = Story(runtime, sessions, budget + 8)
    for _ in range(8):
        await story.go_on()
    ledger = cast(Ledger, MeddledLedger(runtime.ledger, story.go_on))
    return sessions, story, evolve(runtime.services, ledger=ledger)


def live(records: dict[str, TaskRecord]) -> list[TaskRecord]:
    return sorted((each for each in records.values() if not each.is_terminal), key=lambda each: each.id, reverse=True)


@pytest.fixture
async def runtime() -> AsyncIterator[TestRuntime]:
    async with open_test(Outrider(), worker=False) as runtime:
        yield runtime


async def test_a_snapshot_of_a_session_is_the_fold_of_its_log_up_to_the_place_it_names(runtime: Runtime):
    for budget in range(9):
        sessions, _, meddled = await begun(runtime, budget)
        session_id = sessions[0].id
        taken = await Runtime(meddled).sessions.snapshot(session_id)
        events = await EventReader(runtime.services, session_id).read()
        folded = {each.task.id: each.task for each in events if each.task is not None and each.seq <= taken.after}
        assert list(taken.tasks) == live(folded)
        assert taken.session.last_seq == taken.after
        assert not taken.is_cut


async def test_a_snapshot_of_a_task_is_the_fold_of_its_log_up_to_the_place_it_names(runtime: Runtime):
    for budget in range(9):
        sessions, _, meddled = await begun(runtime, budget)
        (task, *_) = await sessions[0].tasks()
        taken = await Runtime(meddled).tasks.snapshot(task.id)
        events = await EventReader(runtime.services, sessions[0].id, task_id=task.id).read()
        assert taken.task == [each.task for each in events if each.task is not None and each.seq <= taken.after][-1]


async def test_a_snapshot_of_an_organization_is_the_fold_of_the_log_up_to_the_place_it_names(runtime: Runtime):
    other = await runtime.sessions.create(organization_id="org_b")
    await other.create("external", {})
    for budget in range(9):
        _, _, meddled = await begun(runtime, budget)
        taken = await Runtime(meddled).snapshot("org_default")
        events = await LogReader(runtime.services, "org_default").read(10_000)
        folded = {each.task.id: each.task for at, each in events if each.task is not None and at <= taken.after}
        assert list(taken.tasks) == live(folded)[:SHOWN]
        assert taken.is_cut == (len(live(folded)) > SHOWN)
    (only,) = (await runtime.snapshot("org_b")).tasks
    assert only.session_id == other.id


async def test_of_more_live_tasks_than_a_snapshot_shows_it_has_the_newest_and_says_so(runtime: Runtime):
    session = await runtime.sessions.create()
    made = [(await session.create("external", {})).id for _ in range(SHOWN + 1)]
    taken = await runtime.sessions.snapshot(session.id)
    assert taken.is_cut
    assert [each.id for each in taken.tasks] == made[:0:-1]


async def test_who_follows_all_sessions_gets_each_event_once_with_its_position(runtime: Runtime):
    session = await runtime.sessions.create()
    await session.create("external", {})
    followed = runtime.within(Bounds("org_default")).events(after=0)
    first = [await anext(followed) for _ in range(2)]
    assert [event.type for _, event in first] == ["session.created", "task.created"]
    await (await runtime.sessions.create(organization_id="org_b")).create("external", {})
    task = await session.create("external", {})
    position, event = await anext(followed)
    assert event.task_id == task.id
    assert position == await runtime.services.views.position()
    await followed.aclose()  # type: ignore[attr-defined]  # it is a generator


async def told(records: AsyncIterator[Any]) -> list[Any]:
    found: list[Any] = []
    with suppress(NotFound):
        async for each in records:
            found += [each]
    return found


READ: dict[str, Callable[[Runtime], Awaitable[Any]]] = {
    "snapshot of a session": lambda runtime: runtime.sessions.snapshot("shared"),
    "snapshot of a task": lambda runtime: runtime.tasks.snapshot("mine"),
    "events of a session": lambda runtime: told(runtime.sessions.events("shared")),
    "events of a task": lambda runtime: told(runtime.tasks.events("mine")),
    "output of a task": lambda runtime: told(runtime.tasks.output("mine")),
}


@pytest.mark.parametrize("read", READ)
async def test_what_is_read_of_an_id_is_of_one_life_of_it_however_soon_it_is_given_again(
    runtime: TestRuntime, read: str
):
    async def make(organization_id: str) -> None:
        within = runtime.within(Bounds(organization_id))
        session = await within.sessions.create(id="shared", title=organization_id)
        await session.create("external", {"of": organization_id}, options=TaskOptions(id="mine"))
        (task,) = await within.external.claim("x")
        await within.external.report(task.id, task.attempt, output=f"{organization_id} printed this")
        runtime.clock.advance(1)

    async def delete() -> None:
        (task,) = await runtime.tasks.list(session_id="shared")
        await runtime.tasks.cancel(task.id)
        await runtime.external.stopped(task.id, task.attempt)
        await runtime.sessions.delete("shared")

    for at in range(1, 6):  # calls after the first read, which found acme's
        await make("acme")
        calls = itertools.count()

        async def give_again(at: int = at, calls: Iterator[int] = calls) -> None:
            call = next(calls)
            if call in (at, at + 4):
                await delete()
            if call == at:
                await make("zeta")

        ledger = cast(Ledger, MeddledLedger(runtime.ledger, give_again))
        found = ""
        with suppress(NotFound):
            found = repr(await READ[read](Runtime(evolve(runtime.services, ledger=ledger))))
        assert "zeta" not in found, at
        if await runtime.services.views.session("shared") is not None:
            await delete()
