"""Several processes on one store: what holds among the callers of one loop holds among them too."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.streams.text import TextReceiveStream

from outrider.core.events import Asked, Claimed
from outrider.core.ledger import Signal
from outrider.core.meters import Account, Amounts
from tests.stores.backends import BACKENDS, SHARED
from tests.stores.scene import SESSION, Ear, Scene

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
LAP = 100
"""How many tasks two workers are told of at the same moment."""

LANES = 4
"""How many laps are under way at a time: while the workers race on one, another is laid out or looked through."""


@dataclass
class Place:
    """A store that this process has open, and where others find it."""

    store: str
    folder: Path
    scene: Scene


class Racer:
    """Another process on the same store; see `tests.stores.racer`."""

    def __init__(self, process: anyio.abc.Process) -> None:
        assert process.stdout is not None
        self.process = process
        self.said: list[Any] = []
        self._stream = TextReceiveStream(process.stdout)
        self._rest = ""

    async def hear(self, enough: Callable[[list[Any]], bool]) -> None:
        """Listen until it has said enough, or has ended."""
        while not enough(self.said):
            try:
                self._rest += await self._stream.receive()
            except anyio.EndOfStream:
                return
            *lines, self._rest = self._rest.split("\n")
            self.said += [json.loads(line) for line in lines]

    async def go(self) -> None:
        await self.say("go")

    async def say(self, line: str) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send(f"{line}\n".encode())

    async def finish(self) -> list[Any]:
        """All it said once it has ended well. It is told nothing more."""
        assert self.process.stdin is not None
        await self.process.stdin.aclose()
        await self.hear(lambda said: False)
        assert await self.process.wait() == 0
        return self.said

    async def kill(self) -> list[Any]:
        """All it said before it was killed."""
        self.process.send_signal(signal.SIGKILL)
        await self.hear(lambda said: False)
        await self.process.wait()
        return self.said


@pytest.fixture(params=SHARED)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    ledger = await BACKENDS[request.param](tmp_path)
    scene = Scene(ledger)
    await scene.session()
    yield Place(request.param, tmp_path, scene)
    await ledger.close()


@pytest.fixture
async def start(place: Place) -> AsyncIterator[Callable[..., Any]]:
    """Starts racers of one role, one for each name, all ready to go."""
    async with AsyncExitStack() as stack:

        async def start(role: str, names: Sequence[str], *arguments: str) -> list[Racer]:
            racers = []
            for name in names:
                command = [sys.executable, "-m", "tests.stores.racer", place.store, str(place.folder), role, name]
                process = await anyio.open_process([*command, *arguments], cwd=ROOT, stderr=None, env={**os.environ})
                stack.push_async_callback(process.aclose)
                racers.append(Racer(process))
            for racer in racers:
                await racer.hear(bool)
                assert racer.said.pop() == "ready"
            return racers

        yield start


@asynccontextmanager
async def track(racers: Sequence[Racer]) -> AsyncIterator[Callable[[str], Awaitable[list[list[str]]]]]:
    """Sends those who claim onto a route, all at the same moment, and says what each got; several at once if so asked.

    Once nobody is on a route any more, they go.
    """
    got: dict[str, list[list[str] | None]] = {}
    is_told = anyio.Condition()

    async def listen(number: int, racer: Racer) -> None:
        while True:
            await racer.hear(bool)
            async with is_told:
                for route, ids in racer.said:
                    got[route][number] = ids
                racer.said.clear()
                is_told.notify_all()

    async def race(route: str) -> list[list[str]]:
        got[route] = [None] * len(racers)
        for racer in racers:
            await racer.say(route)
        async with is_told:
            while None in got[route]:
                await is_told.wait()
        return [ids for ids in got.pop(route) if ids is not None]

    async with anyio.create_task_group() as group:
        for number, racer in enumerate(racers):
            await racer.go()
            group.start_soon(listen, number, racer)
        yield race
        group.cancel_scope.cancel()
    for racer in racers:
        assert not await racer.finish()


async def side_by_side(laps: int, run: Callable[[int], Awaitable[None]]) -> None:
    """Run as many laps, of which some are under way at a time; say now and then how fast."""
    numbers, begun = iter(range(laps)), time.monotonic()

    async def lane() -> None:
        for lap in numbers:
            await run(lap)
            if lap % 1000 == 999:
                print(f"{lap + 1} laps, {(lap + 1) / (time.monotonic() - begun):.0f} a second", flush=True)

    async with anyio.create_task_group() as group:
        for _ in range(LANES):
            group.start_soon(lane)


@pytest.mark.parametrize("races", [10_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
async def test_of_two_workers_that_race_for_each_task_one_gets_it(place: Place, start: Callable[..., Any], races: int):
    """Both are told of a hundred at the same moment: each of those is the next for both."""
    scene, names = place.scene, ("worker_a", "worker_b")
    got: dict[str, list[str]] = {name: [] for name in names}
    contested = 0

    async with track(await start("claim", names)) as race:

        async def run(lap: int) -> None:
            nonlocal contested
            ids, route = [f"task_{lap:05}_{n}" for n in range(LAP)], f"lap:{lap}"
            await scene.ledger.commit([scene.new(id, route=route) for id in ids])
            shares = await race(route)
            assert Counter(id for share in shares for id in share) == Counter(ids)
            contested += all(shares)
            for name, share in zip(names, shares, strict=True):
                got[name] += share

        await side_by_side(races // LAP, run)
    print(f"{contested * LAP} of {races} in laps of which both got some", flush=True)
    assert contested > races // LAP // 2, "nobody raced"
    for name in names:
        assert {beat.task_id for beat in await scene.views.held_by(name)} == set(got[name])
    assert not await scene.views.problems()


@pytest.mark.parametrize("laps", [20, pytest.param(10_000, marks=pytest.mark.soak)])
async def test_two_workers_at_a_full_limit_do_not_exceed_it_and_fill_it(
    place: Place, start: Callable[..., Any], laps: int
):
    """At the same moment both want all of ten tasks, of which three may be held; then the place of one that ended."""
    scene = place.scene
    await scene.limit("lap:*", capacity=3)

    async with track(await start("claim", ["worker_a", "worker_b"])) as race:

        async def run(lap: int) -> None:
            key = f"lap:{lap}"
            await scene.ledger.commit([scene.new(f"task_{lap}_{n}", route=key, concurrency_key=key) for n in range(10)])
            held = [id for share in await race(key) for id in share]
            assert len(set(held)) == len(held) == 3
            await scene.succeed(held[0])
            assert sum(map(len, await race(key))) == 1
            (use,) = await scene.views.uses([key])
            assert (use.held, use.waiting) == (3, 6)

        await side_by_side(laps, run)


async def test_of_answers_from_two_processes_the_first_wins_and_the_other_is_told(
    place: Place, start: Callable[..., Any]
):
    for n in range(20):
        await place.scene.running(f"task_{n}")
        await place.scene.apply(f"task_{n}", Asked(1, place.scene.request(f"req_{n}", f"task_{n}")))
    racers = await start("answer", ["user_a", "user_b"])
    for racer in racers:
        await racer.go()
    won = {name: await racer.finish() for name, racer in zip(("user_a", "user_b"), racers, strict=True)}
    assert sorted(won["user_a"] + won["user_b"]) == sorted(f"req_{n}" for n in range(20))
    for name, ids in won.items():
        for id in ids:
            request = await place.scene.views.request(id)
            assert request is not None
            assert (request.answered_by, request.answer) == (name, name)


async def test_the_calls_of_two_processes_never_pass_the_ceiling_of_their_tree(place: Place, start: Callable[..., Any]):
    scene, names, ceiling = place.scene, ("a", "b"), 2000
    ids = [f"task_{name}_{number}" for name in names for number in range(32)]
    claim = Claimed("worker_a")
    await scene.ledger.commit([scene.new(id, claim=claim, budget={"tree": {"tokens": ceiling}}) for id in ids])
    racers = await start("spend", names, str(ceiling))
    for racer in racers:
        await racer.go()
    said = [await racer.finish() for racer in racers]
    assert all(said), "nobody raced"
    seen = [pair for each in said for pair in each]
    assert max(total for total, _ in seen) <= ceiling
    account = (await scene.views.meters([f"tree:{SESSION}"]))[f"tree:{SESSION}"]
    assert isinstance(account, Account)
    assert account.held == Amounts()
    assert ceiling - 50 < account.spent.tokens == sum(took for _, took in seen) <= ceiling


async def test_tasks_created_by_two_processes_under_the_same_keys_exist_once(place: Place, start: Callable[..., Any]):
    racers = await start("create", ["a", "b"], "60")
    for racer in racers:
        await racer.go()
    one, two = [await racer.finish() for racer in racers]
    assert one == two, "both were told the same id for each key"
    log = await place.scene.log()
    assert [row.seq for row in log] == list(range(1, 62))
    assert sorted(row.task_id for row in log if row.task_id) == one


async def test_a_log_that_two_processes_write_is_gap_free_for_whoever_follows_it(
    place: Place, start: Callable[..., Any]
):
    racers = await start("flood", ["a", "b"])
    for racer in racers:
        await racer.go()
    read: list[int] = []
    wrote: set[str] = set()
    while len(read) < 300 or wrote != {"a", "b"}:  # one may have written much while the other was on its way
        rows = await place.scene.views.events(SESSION, after=read[-1] if read else 0, limit=50)
        read += [row.seq for row in rows]
        wrote |= {row.task_id.split("_")[1] for row in rows if row.task_id is not None}
    assert read == list(range(1, len(read) + 1))
    for racer in racers:
        await racer.kill()


async def test_what_a_killed_process_had_acknowledged_is_there_and_nothing_by_half(
    place: Place, start: Callable[..., Any]
):
    for name in "abc":
        (racer,) = await start("flood", [name])
        await racer.go()
        await racer.hear(lambda said: len(said) >= 200)
        said = await racer.kill()
        found = await place.scene.views.tasks(said)
        assert {task.id for task in found} == set(said)
    log = await place.scene.log()
    assert [row.seq for row in log] == list(range(1, len(log) + 1))
    logged = [row.task_id for row in log if row.type == "task.created"]
    counts = await place.scene.views.count_by_state()
    assert sum(counts.values()) == len(logged) == len(set(logged))
    assert len(await place.scene.claimed_ids(limit=10_000)) == len(logged), "each of them can be claimed"


async def test_who_listens_hears_of_what_another_process_wrote(place: Place, start: Callable[..., Any]):
    ear = Ear(place.scene.ledger)

    def concerns(heard: Signal) -> bool:
        return heard.unknown or "task_000_a" in heard.task_ids

    (racer,) = await start("create", ["a"], "1")
    ear.signals.clear()
    await racer.go()
    await ear.hears(concerns)
    assert await racer.finish() == ["task_000_a"]
