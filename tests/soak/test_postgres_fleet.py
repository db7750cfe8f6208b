"""A fleet on a pair of PostgreSQL servers, with faults of every kind: how soon it is back, and what is left of an hour.

All programs reach the servers through proxies, which cut and freeze their links; some through a pooler behind those.
`SOAK_SECONDS` says how long the mixed faults go on, `SEED` repeats the choices of one run, `FLEET_RATE` is how many
tasks a second are submitted: what the machine does with ease, for then all that is due has to be done.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from outrider.cli.exits import STORE
from outrider.core.errors import StoreError
from outrider.core.task import TERMINAL
from outrider.runtime.facade import Runtime
from tests.faults.crowd import noted
from tests.faults.test_postgres_outages import cut_all
from tests.pooler import Pooler
from tests.proxy import Proxy
from tests.servers import Server, either, programs_of
from tests.soak import fleet
from tests.soak.gauges import MIB, TABLES, Vitals, risen, vitals

pytestmark = [pytest.mark.anyio, pytest.mark.soak]

ROOT = Path(__file__).parents[2]
RATE = float(os.environ.get("FLEET_RATE", "100"))
WINDOW = 3.0
"""Seconds over which a rate is taken."""
ENOUGH = 0.95
BACK = 15.0
"""Seconds after the end of a fault in which all is as before."""
GRACE = 1.5
"""Seconds for which a process that was stopped may run on before it sees that its lease is over."""
POOL = 4
"""How many connections a pooler has to the server: one for each program, as the docs ask for."""
ACTIVITY = """
select
    pid, state, wait_event_type, wait_event, now() - xact_start, now() - state_change, pg_blocking_pids(pid),
    left(query, 80)
from pg_stat_activity
where datname = 'work'
order by xact_start
"""
RETENTION = 20.0
HARM, CALM = 60.0, 75.0
"""Seconds of faults, and of none: a server that was killed has forgotten what there is to vacuum, and by default one
looks for that once a minute."""
MOST_GROWTH, MOST_BLOAT = 24 * MIB, 16 * MIB
"""How much the memory of a worker, and the tables, may grow once they have settled. Their indexes do grow here: which
of their pages are free is forgotten by a server that is killed, every few seconds, before they are used again.
"""


@dataclass
class Follower:
    """Reads the log of the one session as it grows: ended tasks are deleted, and their entries with them."""

    runtime: Runtime
    session_id: str
    seq: int = 0
    created: set[str] = field(default_factory=set)
    ends: dict[str, str] = field(default_factory=dict)

    async def read(self) -> None:
        """Read to the end as of now, or as far as the server lets us."""
        views = self.runtime.services.views
        with suppress(StoreError):
            while rows := await views.events(self.session_id, after=self.seq, limit=2000):
                whole_from = await views.first_seq(self.session_id)
                for row in rows:
                    assert row.seq == self.seq + 1 or row.seq <= whole_from, f"the log has a gap after {self.seq}"
                    self.seq = row.seq
                    if row.task_id is None:
                        continue
                    if row.type == "task.created":
                        self.created.add(row.task_id)
                    elif row.type == "task.updated" and b'"finished_at":' in row.data:
                        assert row.task_id not in self.ends, f"{row.task_id} ended twice"
                        self.ends[row.task_id] = json.loads(row.data)["core"]["state"]


@dataclass
class Sample:
    at: float
    steady: Vitals
    bytes: int
    indexes: int
    live: int
    dead: int


Fault: TypeAlias = "Callable[[Fleet], Awaitable[None]]"


class Fleet:
    """The pair of servers, their proxies, the workers, and who submits."""

    def __init__(
        self, folder: Path, pair: list[Server], proxies: list[Proxy], chance: random.Random, pooler: Pooler | None
    ) -> None:
        self.folder = folder
        self.leader, self.standby = pair
        self.proxies = proxies
        self.chance = chance
        self.pooler = pooler
        """Before the leader, and behind the one proxy that there is then."""
        self.workers: list[asyncio.subprocess.Process] = []
        self.woken: defaultdict[int, list[int]] = defaultdict(list)
        """When each process that was stopped was let go on, in nanoseconds."""
        self.near = either((each.port for each in pair), "work")
        if pooler is None:
            self.far = either((each.port for each in proxies), "work") + "&connect_timeout=3"
        else:
            self.far = pooler.url(self.leader.url("work"), port=proxies[0].port) + "&connect_timeout=3"
        self.session_id = ""
        self.samples: list[Sample] = []
        self.done: Counter[str] = Counter()
        self._submitter: asyncio.subprocess.Process | None = None
        self._read = 0
        self._rest = b""
        self._open: set[tuple[str, str]] = set()
        self._ended: set[str] = set()
        self._ends: list[float] = []
        self._begun = 0.0

    # --- the parts -----------------------------------------------------------------------------------

    async def start_worker(self) -> None:
        self.workers.append(await self._start("worker", "outrider.cli", "worker", "--app", "tests.soak.fleet"))

    async def start_submitter(self, mix: str) -> None:
        self._submitter = await self._start(
            "submitter", "tests.soak.fleet", self.far, self.session_id, str(RATE), mix, stdin=asyncio.subprocess.PIPE
        )

    async def _start(self, name: str, module: str, *arguments: str, **more: Any) -> asyncio.subprocess.Process:
        with (self.folder / f"{name}.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module, *arguments),
                cwd=ROOT,
                env={**os.environ, fleet.FOLDER: str(self.folder), "OUTRIDER_DB": self.far},
                stdout=log,
                stderr=log,
                **more,
            )

    async def rest(self, runtime: Runtime) -> int:
        """Submit no more, and let all that was submitted come to its end. How many tasks that were."""
        assert self._submitter is not None
        self._submitter.send_signal(signal.SIGTERM)
        views, give_up = runtime.services.views, time.monotonic() + 120
        while True:
            stopped = [int(made) for word, made, *_ in noted(self.folder / "acks") if word == "stopped"]
            counts = await views.count_by_state()
            if stopped and not sum(counts[state] for state in counts.keys() - TERMINAL) | len(
                await views.follow_ups(1)
            ):
                break
            assert time.monotonic() < give_up, f"stuck: {counts}, {await runtime.tasks.list(limit=3)}"
            await asyncio.sleep(0.1)
        assert self._submitter.stdin is not None
        self._submitter.stdin.close()
        assert await asyncio.wait_for(self._submitter.wait(), 60) == 0
        return stopped[0]

    async def fill_up(self) -> None:
        """Replace each worker that ended because the database was away when it started, as a service manager does."""
        for worker in [each for each in self.workers if each.returncode is not None]:
            assert worker is not self.workers[0]
            assert worker.returncode == STORE, f"a worker ended with {worker.returncode}"
            self.workers.remove(worker)
            await self.start_worker()

    async def dismiss(self) -> None:
        """Let all workers go in peace."""
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)
        assert {await asyncio.wait_for(worker.wait(), 60) for worker in self.workers} == {0}

    async def kill_all(self) -> None:
        for process in (*self.workers, self._submitter):
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()

    # --- how fast they are ---------------------------------------------------------------------------

    def ends(self) -> list[float]:
        """When the code of each `dig` that was submitted came to its end for the first time, in order."""
        path = self.folder / "marks"
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._read)
                news = file.read()
            self._read += len(news)
            *lines, self._rest = (self._rest + news).split(b"\n")
            for line in lines:
                task, attempt, at, _ = line.decode().split("\t")
                if (task, attempt) not in self._open:
                    self._open.add((task, attempt))
                elif task not in self._ended:
                    self._ended.add(task)
                    self._ends.append(int(at) / 1e9)
            self._ends.sort()
        return self._ends

    def backlog(self, at: float) -> float:
        """How many tasks were due to be submitted by then and had not come to their end."""
        while not self._begun:
            self._begun = next((float(at) for word, at, *_ in noted(self.folder / "acks") if word == "began"), 0.0)
        return (at - self._begun) * RATE - bisect_right(self._ends, at)

    def rate(self, begin: float) -> float:
        """Ends a second in the window that begins then."""
        return (bisect_left(self._ends, begin + WINDOW) - bisect_left(self._ends, begin)) / WINDOW

    async def is_steady(self) -> tuple[float, float]:
        """Wait until what is due is done for a while. Returns the rate, and the most that was under way."""
        give_up = time.monotonic() + 120
        while True:
            await asyncio.sleep(0.5)
            self.ends()
            now = time.monotonic()
            places = [now - WINDOW + step / 4 for step in range(int(WINDOW * 4))]
            most = max(map(self.backlog, places))
            if most < RATE and self.rate(now - WINDOW) >= ENOUGH * RATE:
                return self.rate(now - WINDOW), most
            assert time.monotonic() < give_up, f"{RATE} tasks a second are more than this machine does: {most} wait"

    async def goes_on(self, by: int = 20) -> None:
        """Wait until more tasks have ended than now."""
        wanted, give_up = len(self.ends()) + by, time.monotonic() + 60
        while len(self.ends()) < wanted:
            if time.monotonic() > give_up:
                await self._tell_where_all_stands()
                pytest.fail("they do not go on")
            await asyncio.sleep(0.05)

    async def _tell_where_all_stands(self) -> None:
        """Print what the server and the pooler are at, and have all processes write it to their logs."""
        print(*await asyncio.to_thread(self.leader.ask, ACTIVITY, "work"), sep="\n")
        if self.pooler is not None:
            for what in ("pools", "servers", "clients"):
                print(*await asyncio.to_thread(self.pooler.ask, f"show {what}"), sep="\n")
        for process in (*self.workers, self._submitter):
            if process is not None and process.returncode is None:
                process.send_signal(signal.SIGUSR1)
        await asyncio.sleep(1)

    async def back(self, over: float, before: tuple[float, float]) -> tuple[float, float]:
        """Seconds from then until nothing was left to catch up on and the rate was as before; and the rate then."""
        rate, most = before
        begin = over
        while True:
            await asyncio.sleep(max(0.0, begin + WINDOW - time.monotonic()))
            self.ends()
            if self.backlog(begin) <= most + RATE / 50 and self.rate(begin) >= ENOUGH * min(rate, RATE):
                return begin - over, self.rate(begin)
            assert begin - over < 60, f"not as before after a minute: {self.rate(begin):.0f} a second"
            begin += 0.1

    # --- harm ----------------------------------------------------------------------------------------

    async def restart(self) -> None:
        await asyncio.to_thread(self.leader.restart, self.chance.choice(["fast", "immediate"]))

    async def kill_server(self) -> None:
        await asyncio.to_thread(self.leader.kill)
        await asyncio.to_thread(self.leader.start)

    async def kill_connections(self) -> None:
        await asyncio.to_thread(cut_all, self.leader)

    async def cut(self) -> None:
        await self._without_link(lambda proxy: proxy.cut(), self.chance.uniform(3, 9))

    async def drop(self) -> None:
        for proxy in self.proxies:
            await asyncio.to_thread(proxy.drop)

    async def half_open(self) -> None:
        """Longer than a lease: what is asked arrives, and no answer comes back."""
        await self._without_link(lambda proxy: proxy.freeze("to_client"), 12)

    async def silent(self) -> None:
        await self._without_link(lambda proxy: proxy.freeze(), self.chance.uniform(1, 12))

    async def slow(self) -> None:
        await self._without_link(lambda proxy: proxy.slow(delay=0.01, rate=1_000_000), 5)

    async def _without_link(self, harm: Callable[[Proxy], None], seconds: float) -> None:
        for proxy in self.proxies:
            await asyncio.to_thread(harm, proxy)
        await asyncio.sleep(seconds)
        for proxy in self.proxies:
            await asyncio.to_thread(proxy.heal)

    async def kill_worker(self) -> None:
        await self._replace(signal.SIGKILL)

    async def drain_worker(self) -> None:
        await self._replace(signal.SIGTERM)

    async def _replace(self, number: signal.Signals) -> None:
        """Never the first, whose memory is looked at."""
        victim = self.workers.pop(self.chance.randrange(1, len(self.workers)))
        victim.send_signal(number)
        await self.start_worker()
        status = await asyncio.wait_for(victim.wait(), 60)
        # One that is still on its way up knows no SIGTERM yet.
        assert status in (0, -number), f"a worker that was told to go ended with {status}"

    async def stop_worker(self) -> None:
        await self._stop([self.chance.choice(self.workers)], 12)

    async def stop_all_workers(self) -> None:
        await self._stop(self.workers, self.chance.uniform(0.5, 12))

    async def _stop(self, workers: list[asyncio.subprocess.Process], seconds: float) -> None:
        for worker in workers:
            worker.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            for worker in workers:
                self.woken[worker.pid].append(time.monotonic_ns())
                worker.send_signal(signal.SIGCONT)

    async def fail_over(self) -> None:
        await asyncio.to_thread(self.leader.kill)
        await asyncio.to_thread(self.standby.promote)
        self.leader, self.standby = self.standby, self.leader
        if self.pooler is not None:
            self.pooler.server = self.leader.url()
            await self.restart_pooler()

    async def restart_pooler(self) -> None:
        if self.pooler is not None:
            await asyncio.to_thread(self.pooler.restart)

    async def rejoin(self) -> None:
        """Where the standby is a leader that died, make it a standby."""
        if not self.standby.is_running:
            await asyncio.to_thread(self.standby.follow, self.leader)

    # --- what must hold ------------------------------------------------------------------------------

    async def measure(self) -> None:
        steady = vitals(self.workers[0].pid)
        assert steady is not None, "the steady worker is gone"
        ((size, indexes, live, dead),) = await asyncio.to_thread(self.leader.ask, TABLES, "work")
        self.samples.append(Sample(time.monotonic(), steady, size, indexes, live, dead))
        print(
            f"{time.monotonic() - self._begun:7.0f} s: {len(self.ends())} ended, {live} rows and {dead} dead ones,"
            f" tables of {size / MIB:.1f} and indexes of {indexes / MIB:.1f} MiB;"
            f" the steady worker {steady.rss / MIB:.1f} MiB,"
            f" {steady.descriptors} descriptors, {steady.threads} threads",
            flush=True,
        )

    def prove(self, follower: Follower, made: int) -> None:
        """What was acknowledged is there and has ended well, once; nothing ran twice at once, or again in vain."""
        acks = noted(self.folder / "acks")
        ids = {ack[2] for ack in acks if ack[0] == "made"}
        assert len(ids) == made, "a task was made twice, or not at all"
        assert ids <= follower.created, f"lost: {len(ids - follower.created)}"
        assert follower.created == follower.ends.keys(), "stuck"
        assert set(follower.ends.values()) == {"succeeded"}, Counter(follower.ends.values())
        self._prove_runs()
        self._prove_book()

    def _prove_runs(self) -> None:
        runs: defaultdict[str, dict[int, list[tuple[int, int]]]] = defaultdict(dict)
        for task, attempt, at, pid in noted(self.folder / "marks"):
            runs[task].setdefault(int(attempt), []).append((int(at), int(pid)))
        for task, attempts in runs.items():
            for (one, before), (other, after) in pairwise(sorted(attempts.items())):
                begin = min(after)[0]
                late = [(at, pid) for at, pid in before if at > begin and not self._is_just_awake(at, pid)]
                assert not late, f"{task} ran twice at once: attempt {one} at {late}, {other} from {begin}"

    def _is_just_awake(self, at: int, pid: int) -> bool:
        return any(woken <= at <= woken + GRACE * 1e9 for woken in self.woken[pid])

    def _prove_book(self) -> None:
        book: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for task, name, attempt in noted(self.folder / "book"):
            book[task, name].append(int(attempt))
        for (task, name), attempts in book.items():
            assert len(set(attempts)) == len(attempts), f"{name} of {task} ran twice in one attempt: {attempts}"
            assert name != fleet.ONCE or len(attempts) == 1, f"{task}: once, and yet {attempts}"
        for task, done in noted(self.folder / "claims"):
            for name, attempt in json.loads(done).items():
                if attempt != fleet.SKIPPED:
                    ran = book[task, name]
                    assert max(ran) == attempt, f"{name} of {task} counts as of {attempt}, and ran in {ran}"
        print(f"{sum(map(len, book.values()))} effects, {sum(len(each) - 1 for each in book.values())} of them again")


@asynccontextmanager
async def at_work(
    folder: Path, mix: str, *, workers: int, seed: int, version: str, is_pooled: bool = False
) -> AsyncIterator[tuple[Fleet, Runtime]]:
    """A fleet under way, and a runtime that reaches the servers directly."""
    print(f"\nSEED={seed}")
    async with AsyncExitStack() as stack:
        pair = [stack.enter_context(Server(programs_of(version))) for _ in range(2)]
        pair[1].follow(pair[0])
        pair[0].create_database("work")
        pooler = stack.enter_context(Pooler(pair[0].url(), pool_size=POOL)) if is_pooled else None
        ports = [pooler.port] if pooler is not None else [each.port for each in pair]
        proxies = [stack.enter_context(Proxy(port)) for port in ports]
        on = Fleet(folder, pair, proxies, random.Random(seed), pooler)
        runtime = await stack.enter_async_context(fleet.app.open(on.near, worker=False))
        await runtime.queue.limit("cart *", concurrency=4)
        on.session_id = (await runtime.sessions.create()).id
        stack.push_async_callback(on.kill_all)
        try:
            for _ in range(workers):
                await on.start_worker()
            await on.start_submitter(mix)
            yield on, runtime
        except BaseException:
            print(f"SEED={seed}; {on.done}")
            for log in sorted(folder.glob("*.log")):
                print(f"--- the end of {log.name}", *log.read_text(errors="replace").splitlines()[-500:], sep="\n")
            raise


FAULTS: Mapping[str, Fault] = {
    "the server restarts": Fleet.restart,
    "the server is killed": Fleet.kill_server,
    "all connections are killed": Fleet.kill_connections,
    "the links are cut, and healed": Fleet.cut,
    "the links are half open, longer than a lease": Fleet.half_open,
    "a worker is killed, and replaced": Fleet.kill_worker,
    "a worker is stopped, longer than a lease": Fleet.stop_worker,
    "the standby takes over": Fleet.fail_over,
}


async def test_after_each_fault_the_work_is_back_within_fifteen_seconds(tmp_path: Path, postgres_version: str):
    seed, rounds = int(os.environ.get("SEED", random.randrange(10**6))), int(os.environ.get("FLEET_ROUNDS", "3"))
    took: defaultdict[str, list[float]] = defaultdict(list)
    async with at_work(tmp_path, "steady", workers=3, seed=seed, version=postgres_version) as (on, runtime):
        follower = Follower(runtime, on.session_id)
        for name in [*FAULTS] * rounds:
            await on.rejoin()
            before = await on.is_steady()
            begun = time.monotonic()
            await FAULTS[name](on)
            over = time.monotonic()
            seconds, rate = await on.back(over, before)
            took[name].append(seconds)
            print(
                f"{name}: {over - begun:.1f} s of it, then {seconds:.1f} s;"
                f" {before[0]:.0f} a second before, {rate:.0f} after",
                flush=True,
            )
            await follower.read()
        made = await on.rest(runtime)
        await follower.read()
        on.prove(follower, made)
        await on.dismiss()
    for name, each in took.items():
        print(f"{name}: back after {', '.join(f'{seconds:.1f}' for seconds in each)} s")
    assert max(map(max, took.values())) <= BACK


TROUBLES: Mapping[Fault, float] = {
    Fleet.restart: 2,
    Fleet.kill_server: 2,
    Fleet.kill_connections: 2,
    Fleet.cut: 2,
    Fleet.drop: 2,
    Fleet.half_open: 1,
    Fleet.silent: 2,
    Fleet.slow: 1,
    Fleet.kill_worker: 5,
    Fleet.drain_worker: 3,
    Fleet.stop_worker: 1,
    Fleet.stop_all_workers: 1,
    Fleet.fail_over: 2,
}

TROUBLES_OF_A_POOLER: Mapping[Fault, float] = {Fleet.restart_pooler: 4}


@pytest.mark.parametrize("is_pooled", [False, True], ids=["direct", "pooled"])
async def test_mixed_faults_lose_nothing_and_leave_nothing_for_as_long_as_they_go_on(
    tmp_path: Path, postgres_version: str, monkeypatch: pytest.MonkeyPatch, is_pooled: bool
):
    seed, seconds = int(os.environ.get("SEED", random.randrange(10**6))), float(os.environ.get("SOAK_SECONDS", "300"))
    monkeypatch.setenv(fleet.RETENTION, str(RETENTION))
    async with at_work(tmp_path, "mixed", workers=3, seed=seed, version=postgres_version, is_pooled=is_pooled) as (
        on,
        runtime,
    ):
        follower = Follower(runtime, on.session_id)
        await on.is_steady()
        end = time.monotonic() + seconds
        reading = asyncio.create_task(_keep_reading(follower))
        while time.monotonic() < end and not reading.done():
            await _harm(on, min(end, time.monotonic() + HARM))
            await on.is_steady()
            await asyncio.sleep(CALM)
            await on.fill_up()
            await on.measure()
        made = await on.rest(runtime)
        reading.cancel()
        (found,) = await asyncio.gather(reading, return_exceptions=True)
        if isinstance(found, Exception):
            raise found
        await follower.read()
        on.prove(follower, made)
        assert not await runtime.services.views.problems()
        await _all_is_deleted(runtime)
        await on.measure()
        await on.dismiss()
    settled = on.samples[len(on.samples) // 3 : -1]
    print(
        f"SEED={seed}: {len(follower.ends)} tasks, {follower.seq} entries of the log,"
        f" {sum(on.done.values())} faults: {dict(on.done)}"
    )
    refused = sum(ack[0] == "refused" for ack in noted(tmp_path / "acks"))
    print(f"{refused} verbs were told that the database is away")
    if len(settled) >= 3:
        assert risen([each.steady.rss for each in settled]) <= MOST_GROWTH
        assert risen([each.bytes for each in settled]) <= MOST_BLOAT
        assert risen([each.steady.descriptors for each in settled]) <= 6


async def _harm(on: Fleet, until: float) -> None:
    troubles = {**TROUBLES, **(TROUBLES_OF_A_POOLER if on.pooler is not None else {})}
    while time.monotonic() < until:
        (trouble,) = on.chance.choices([*troubles], [*troubles.values()])
        await on.rejoin()
        await on.fill_up()
        await trouble(on)
        on.done[trouble.__name__] += 1
        await on.goes_on()
        await asyncio.sleep(on.chance.uniform(0.5, 6))
    await on.rejoin()
    await on.fill_up()


async def _keep_reading(follower: Follower) -> None:
    while True:
        await follower.read()
        await asyncio.sleep(0.2)


async def _all_is_deleted(runtime: Runtime) -> None:
    give_up = time.monotonic() + RETENTION + 60
    while counts := {state: count for state, count in (await runtime.services.views.count_by_state()).items() if count}:
        assert time.monotonic() < give_up, f"not deleted: {counts}"
        await asyncio.sleep(0.5)
