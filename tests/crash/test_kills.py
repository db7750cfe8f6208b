"""kill -9 of real workers at every write they make: before it, within its transaction, after it.

The scenario uses every verb of the journal. Each run kills one worker at one place, lets another go on, and then
holds the database against what the steps themselves say they did.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from outrider.core.errors import RequestClosed, WaitTimeout
from outrider.runtime.facade import Runtime
from outrider.runtime.handles import SessionHandle, TaskHandle
from tests.crash.crew import Crew, Hand, address_of, new_database
from tests.crash.proof import prove
from tests.crash.voyage import app

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

AT_ONCE = 3
"""How many scenarios run side by side: they mostly wait."""

MODES = ("before", "within", "after")

RUNS = [
    ("sqlite", "after", 1),
    # Each place takes its time, and with a database of a server more: one in so many here, all of them in the soak.
    ("sqlite", "before", 2),
    ("sqlite", "within", 2),
    ("postgres", "within", 3),
    ("postgres", "after", 3),
    pytest.param("sqlite", "before", 1, marks=pytest.mark.soak),
    pytest.param("sqlite", "within", 1, marks=pytest.mark.soak),
    *(pytest.param("postgres", mode, 1, marks=pytest.mark.soak) for mode in MODES),
]

Begin: TypeAlias = Callable[[SessionHandle], Awaitable[TaskHandle]]
Proof: TypeAlias = Callable[[Runtime, SessionHandle, TaskHandle, Path], Awaitable[None]]


@pytest.mark.parametrize(("store", "mode", "stride"), RUNS)
async def test_a_worker_killed_at_any_write_loses_nothing_and_repeats_nothing(
    tmp_path: Path, store: str, mode: str, stride: int
):
    places = await _killed_everywhere(store, tmp_path, mode, set_sail, prove_voyage, stride)
    met = {place.split()[0] for place in places}
    assert met >= {"commit", "journal"}
    if stride == 1:
        assert met >= ({"write_file"} | ({"claim"} if mode == "after" else set()))
    assert len(places) >= 20 // stride


@pytest.mark.parametrize(
    ("store", "mode"),
    [
        ("sqlite", "after"),
        pytest.param("sqlite", "before", marks=pytest.mark.soak),
        pytest.param("postgres", "after", marks=pytest.mark.soak),
        pytest.param("postgres", "before", marks=pytest.mark.soak),
    ],
)
async def test_a_tool_in_its_own_process_fares_no_worse_when_its_worker_is_killed(
    tmp_path: Path, store: str, mode: str
):
    places = await _killed_everywhere(store, tmp_path, mode, _set_sail_apart, _prove_apart)
    assert len(places) >= 6


async def _killed_everywhere(
    store: str, folder: Path, mode: str, begin: Begin, proof: Proof, stride: int = 1
) -> list[str]:
    """Play a scenario with its worker killed at one write, then at a later one, until there are no more."""
    places: list[str] = []
    rounds = iter(range(1 + MODES.index(mode) % stride, 200, stride))
    async with Crew.muster() as crew:

        async def play() -> None:
            for n in rounds:
                place = await _killed_at(crew, new_database(store, folder / f"{n}.db"), n, mode, begin, proof)
                if place is None:
                    return
                places.append(place)

        await asyncio.gather(*(play() for _ in range(AT_ONCE)))
    return places


async def _killed_at(crew: Crew, database: Path, n: int, mode: str, begin: Begin, proof: Proof) -> str | None:
    """One scenario, its first worker killed at its n-th write. None if the work was over before."""
    async with runtime_on(database) as runtime:
        session = await runtime.sessions.create()
        task = await begin(session)
        first = await crew.start(database, kill=(n, mode))
        work = asyncio.create_task(answer_all(runtime, [task]))
        fate = asyncio.create_task(first.wait())
        await asyncio.wait([work, fate], return_when=asyncio.FIRST_COMPLETED)
        crew_now = first
        if fate.done():
            assert fate.result() == -signal.SIGKILL
            crew_now = await crew.start(database)
        await work
        await proof(runtime, session, task, database)
        if not fate.done() and not (database.with_suffix(".trace")).exists():
            await dismiss(first)
            await fate
            assert not await runtime.services.views.workers()
            return None
        if crew_now is first:  # it was killed while it wrote the very end
            await fate
        else:
            await dismiss(crew_now)
        return database.with_suffix(".trace").read_text()


async def _set_sail_apart(session: SessionHandle) -> TaskHandle:
    return await session.spawn("haul_apart", weight=3)


async def _prove_apart(runtime: Runtime, session: SessionHandle, task: TaskHandle, database: Path) -> None:
    await prove(runtime, session.id, database.with_suffix(".effects"))
    assert await task.result() in ("stowed 6", "stowed skipped")
    assert len(await task.messages(direction="outbound")) == 1


@asynccontextmanager
async def runtime_on(database: Path) -> AsyncIterator[Runtime]:
    async with app.open(address_of(database), worker=False) as runtime:
        yield runtime


async def set_sail(session: SessionHandle) -> TaskHandle:
    task = await session.spawn("voyage", port="Sag Harbor")
    await task.message("fair wind")
    return task


async def answer_all(runtime: Runtime, tasks: list[TaskHandle], timeout: float = 60) -> None:
    """Be the person who is asked, by these tasks and their children, until they have ended."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + timeout
    while True:
        records = [await runtime.services.views.task(task.id) for task in tasks]
        if all(record is not None and record.is_terminal for record in records):
            return
        assert loop.time() < give_up, f"stuck: {[record.core for record in records if record is not None]}"
        for asking in await runtime.tasks.list(session_id=tasks[0].session_id, limit=1000):
            if asking.input_request is None:
                continue
            position = asking.input_request.prompt
            answer: Any = {"action": "skip", "value": "skipped"} if "may or may not" in position else True
            with suppress(RequestClosed):
                await runtime.tasks.answer(asking.id, answer, request_id=asking.input_request.id, by="test")
        with suppress(WaitTimeout):
            await runtime.tasks.wait([task.id for task in tasks], timeout=0.05)


async def dismiss(hand: Hand) -> None:
    hand.signal(signal.SIGTERM)
    assert await hand.wait() == 0


async def prove_voyage(
    runtime: Runtime, session: SessionHandle, task: TaskHandle, database: Path, *, whole: bool = True
) -> None:
    """What this scenario is known to come to, and with `whole` the proof for all tasks of the session."""
    if whole:
        await prove(runtime, session.id, database.with_suffix(".effects"))
    result = await task.result()
    children = await runtime.services.views.children(task.id)
    sent = await task.messages(direction="outbound")
    record = await task.record()
    assert result["stores"] == {"water": 7}
    assert result["course"] == [1, 2, 3]
    assert result["fired"] in ("bang", "skipped")
    assert result["onward"] is True
    assert result["heard"] == ["fair wind"]
    assert result["sides"] == ["port", "starboard"]
    assert result["sailed"] == sent[0].id
    assert len(sent) == 1
    assert result["children"] == [child.id for child in sorted(children, key=lambda child: child.id)]
    assert len(children) == 2
    assert set(result["hauled"]) <= {"stowed 6", "stowed 8", "stowed skipped"}
    for child in children:
        assert len(await runtime.tasks.messages(child.id, direction="outbound")) == 1
    assert [artifact.name for artifact in record.artifacts] == ["chart"]
    assert await session.read_file(result["chart"]) == b"chart of Sag Harbor"
    assert await session.read_file("/log/voyage.txt") == b"bound for Sag Harbor"
    assert record.progress is not None
    assert record.progress.label == "home"
