"""Mixed work for as long as one likes, with kills, stops, drains and backups: nothing is lost, repeated, or left.

Two workers of the command line, two programs that submit, and one that answers, on one database whose ended tasks are
deleted after seconds. One worker is only ever stopped, never killed: what it leaks adds up. The other has no such
luck, and at times is a crew. Work goes in phases; after each all comes to rest, is checked, and is measured.

`SOAK_SECONDS` says how long, `SEED` repeats the choices of one run; which moment they meet is up to the machine.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from outrider import Runtime
from outrider.core.task import LIVE_STATES
from tests.soak import app as soak_app
from tests.soak.gauges import (
    MIB,
    Vitals,
    children_of,
    descriptors_of,
    processes_of,
    risen,
    rows,
    size_of,
    slope,
    vitals,
)
from tests.soak.proof import Book, Follower, check_backup

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
SETTLED = 0.3
"""The part of a run after which memory is expected to grow no more."""
RETENTION = 30.0
"""Seconds that ended tasks are kept: longer than anything here takes, on a busy machine too."""
MOST_GROWTH = 24 * MIB
MOST_DESCRIPTORS, MOST_THREADS = 6, 4
"""How much higher each of these may be at the end of a run than when it had settled."""
MOST_WAL = 96 * MIB
LONG_STOP = soak_app.LEASE.lost + 2.0
"""Seconds after which a stopped worker has lost its work."""


@pytest.mark.slow
async def test_mixed_work_with_kills_leaves_nothing_behind(tmp_path: Path):
    await Soak(tmp_path, seed=int(os.environ.get("SEED", "7")), is_short=True).run(seconds=2.0, phase=2.0)


@pytest.mark.soak
async def test_mixed_work_with_kills_leaks_nothing_for_as_long_as_it_goes_on(tmp_path: Path):
    seed = int(os.environ.get("SEED", random.randrange(10**6)))
    await Soak(tmp_path, seed).run(seconds=float(os.environ.get("SOAK_SECONDS", "300")), phase=45.0)


@dataclass
class Part:
    """One of the processes: a worker, a crew, or a client."""

    name: str
    process: asyncio.subprocess.Process
    news: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    readers: list[asyncio.Task[None]] = field(default_factory=list)
    is_stopped: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def pids(self) -> list[int]:
        """Its own, and those of the workers of a crew."""
        if not self.name.startswith("crew"):
            return [self.pid]
        mine = children_of([self.pid])
        return [self.pid, *(pid for pid in mine if "outrider.cli" in _command(pid))]

    def signal(self, number: signal.Signals, pids: list[int] | None = None) -> None:
        for pid in pids or [self.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured when everything was at rest."""

    at: float
    vitals: dict[str, Vitals]
    rows: int
    database: int
    wal: int


Troubles: TypeAlias = "dict[Callable[[Soak], Awaitable[None]], float]"
"""What may befall the workers, and how often."""


class Soak:
    """One run."""

    def __init__(self, folder: Path, seed: int, *, is_short: bool = False) -> None:
        """A short one has its troubles in quick succession, and deletes by hand what it did."""
        self._seed = seed
        self._is_short = is_short
        self._pace = 0.6 if is_short else 5.0
        self._troubles = QUICK if is_short else TROUBLES
        self._chance = random.Random(seed)
        self._folder = folder
        self._database = folder / "work.db"
        self._temporary = folder / "tmp"
        self._temporary.mkdir()
        self._token = f"SOAK_TOKEN_{os.getpid()}_{self._chance.getrandbits(64):x}"
        self._environment = {
            **os.environ,
            self._token: "1",
            soak_app.BOOK: str(folder / "book"),
            soak_app.RETENTION: str(RETENTION),
            "TMPDIR": str(self._temporary),
        }
        claims = [folder / f"claims.{number}" for number in range(2)]
        self._book = Book(folder / "book", claims)
        self._claims = claims
        self._parts: dict[str, Part] = {}
        self._done: Counter[str] = Counter()
        self._deeds: dict[str, dict[str, int]] = {}
        self._samples: list[Sample] = []
        self._most: Counter[str] = Counter()
        self._last: deque[str] = deque(maxlen=40)
        self._began = time.monotonic()
        self._has_settled_start = 0.0

    async def run(self, seconds: float, phase: float) -> None:
        """Work and rest in turns until the time is over, then leave in order; print what was measured."""
        print(f"\nSEED={self._seed}")
        try:
            async with self._opened() as runtime:
                self._runtime = runtime
                try:
                    await self._go_through(seconds, phase)
                except BaseException:
                    await self._tell_of_the_living()
                    raise
            self._judge(seconds)
        except BaseException:
            print(f"SEED={self._seed}; last: ", *self._last, sep="\n  ")
            for log in sorted(self._folder.glob("*.log")):
                print(f"--- the end of {log.name}", *log.read_text(errors="replace").splitlines()[-15:], sep="\n")
            raise
        finally:
            await self._kill_all()
        print(self._report())

    async def _go_through(self, seconds: float, phase: float) -> None:
        await self._begin()
        until = time.monotonic() + seconds
        while True:
            await self._work(min(phase, max(1.0, until - time.monotonic())))
            await self._rest()
            if time.monotonic() >= until:
                break
        await self._end()

    async def _tell_of_the_living(self) -> None:
        """Print what has not ended, why, and how it came to that."""
        views = self._runtime.services.views
        for task in await self._runtime.tasks.list(states=tuple(LIVE_STATES), limit=10):
            told = await self._runtime.doctor.explain(task.id)
            print(f"--- {task.id} {task.display_name}: {told.phase}", *told.because, sep="\n")
            print(*await views.attempts(task.id), *await views.steps(task.id), sep="\n")
            print(*await views.events(task.session_id, task_id=task.id), sep="\n")

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Runtime]:
        async with soak_app.app.open(str(self._database), worker=False) as runtime:
            await runtime.queue.limit("berth", concurrency=soak_app.BERTHS)
            await runtime.queue.limit("tandem:*", concurrency=soak_app.TANDEM)
            await runtime.queue.limit("mail", rate=soak_app.MAIL, per=soak_app.PER)
            await runtime.queue.limit("post:*", rate=2, per=0.3)
            self._follower = Follower(self._database)
            try:
                yield runtime
            finally:
                self._follower.close()

    # --- the parts -----------------------------------------------------------------------------------

    async def _begin(self) -> None:
        await self._start_worker("steady")
        await self._start_worker("doomed")
        for number, claims in enumerate(self._claims):
            await self._start_client(f"submitter {number}", "submitter", str(self._chance.randrange(10**6)), claims)
        await self._start_client("person", "person", str(self._seed), self._claims[0])

    async def _start_worker(self, name: str, *more: str) -> None:
        arguments = ["worker", "--db", str(self._database), "--app", "tests.soak.app", *more]
        self._parts[name] = await self._start(name, "outrider.cli", *arguments)

    async def _start_client(self, name: str, *arguments: str | Path) -> None:
        role, seed, claims = arguments
        part = await self._start(name, "tests.soak.client", role, self._database, seed, claims)
        self._parts[name] = part
        part.readers.append(asyncio.create_task(self._listen(part)))

    async def _start(self, name: str, module: str, *arguments: str | Path) -> Part:
        with (self._folder / f"{name.replace(' ', '-')}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module, *map(str, arguments)),
                cwd=ROOT,
                env=self._environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE if "client" in module else log,
                stderr=log,
            )
        return Part(name, process)

    async def _listen(self, part: Part) -> None:
        assert part.process.stdout is not None
        async for line in part.process.stdout:
            part.news.put_nowait(json.loads(line))
        part.news.put_nowait({"failed": "it ended"})

    @property
    def _clients(self) -> list[Part]:
        return [part for part in self._parts.values() if part.readers]

    async def _tell(self, part: Part, order: str) -> None:
        assert part.process.stdin is not None
        part.process.stdin.write(f"{order}\n".encode())
        with suppress(ConnectionError):  # what it has to say of that is heard
            await part.process.stdin.drain()

    async def _hear(self, part: Part, what: str) -> Any:
        while True:
            news = await asyncio.wait_for(part.news.get(), 200)
            assert "failed" not in news, f"{part.name}: {news['failed']}"
            if what in news:
                return news[what]

    # --- work and its troubles -----------------------------------------------------------------------

    async def _work(self, seconds: float) -> None:
        for part in self._clients:
            await self._tell(part, "go")
        until = time.monotonic() + seconds
        watching = asyncio.create_task(self._watch())
        try:
            while (left := until - time.monotonic()) > 0:
                await asyncio.sleep(min(left, self._chance.uniform(0.3, self._pace)))
                for ended in [part for part in self._clients if part.process.returncode is not None]:
                    await self._hear(ended, "anything")  # which says what was wrong
                if watching.done():
                    break
                if time.monotonic() < until:
                    (trouble,) = self._chance.choices(list(self._troubles), list(self._troubles.values()))
                    name = trouble.__name__.strip("_")
                    self._last.append(f"{time.monotonic() - self._began:.1f} s: {name}")
                    await trouble(self)
                    self._done[name] += 1
        finally:
            watching.cancel()
            (found,) = await asyncio.gather(watching, return_exceptions=True)
        if isinstance(found, Exception):
            raise found

    async def _watch(self) -> None:
        """Follow the log, and note the most of everything."""
        while True:
            for _ in range(10):
                await asyncio.to_thread(self._follower.read)
                await asyncio.sleep(0.2)
            await asyncio.to_thread(self._note)

    def _note(self) -> None:
        ours = processes_of(self._token, self._folder)
        self._most["processes"] = max(self._most["processes"], len(ours))
        self._most["database"] = max(self._most["database"], size_of(self._database))
        self._most["wal"] = max(self._most["wal"], size_of(Path(f"{self._database}-wal")))
        for part in list(self._parts.values()):
            now = vitals(part.pid)
            if now is not None:
                self._most[f"{part.name} rss"] = max(self._most[f"{part.name} rss"], now.rss)
                self._most[f"{part.name} fds"] = max(self._most[f"{part.name} fds"], now.descriptors)

    @property
    def _victim(self) -> Part:
        return next(part for name, part in self._parts.items() if name in ("doomed", "crew"))

    async def _kill(self) -> None:
        """All of the worker or crew at once."""
        victim = self._victim
        victim.signal(signal.SIGKILL, victim.pids)
        await self._replace(victim, -signal.SIGKILL)

    async def _kill_one(self) -> None:
        """A worker of the crew, which starts another; or who looks after them, and they leave by themselves."""
        victim = self._victim
        pid = self._chance.choice(victim.pids)
        victim.signal(signal.SIGKILL, [pid])
        if pid == victim.pid:
            await self._replace(victim, -signal.SIGKILL)

    async def _drain(self) -> None:
        victim = self._victim
        give_up = time.monotonic() + 60
        while not {worker.pid for worker in await self._runtime.workers()} & set(victim.pids):
            assert time.monotonic() < give_up, f"the {victim.name} did not come to work"
            await asyncio.sleep(0.05)
        victim.signal(signal.SIGTERM)
        await self._replace(victim, 0)

    async def _replace(self, victim: Part, code: int) -> None:
        del self._parts[victim.name]
        if self._chance.random() < 0.3:
            await self._start_worker("crew", "--processes", "2")
        else:
            await self._start_worker("doomed")
        ended = await asyncio.wait_for(victim.process.wait(), 60)
        assert ended == code, f"{victim.name} ended with {ended}, not {code}"

    async def _stop_the_steady(self) -> None:
        await self._stop([self._parts["steady"].pid], self._chance.uniform(0.1, 1.5))

    async def _stop_the_steady_for_long(self) -> None:
        await self._stop([self._parts["steady"].pid], LONG_STOP)

    async def _stop_the_other_for_long(self) -> None:
        await self._stop(self._victim.pids, LONG_STOP)

    async def _stop_all(self) -> None:
        await self._stop([self._parts["steady"].pid, *self._victim.pids], self._chance.uniform(0.1, LONG_STOP))

    async def _stop(self, pids: list[int], seconds: float) -> None:
        """Not with the lock of the database in hand: everybody else would be told, rightly, that it is locked."""
        self._victim.signal(signal.SIGSTOP, pids)
        try:
            while not (await self._have_stopped(pids) and await self._is_free()):
                self._victim.signal(signal.SIGCONT, pids)
                await asyncio.sleep(0.05)
                self._victim.signal(signal.SIGSTOP, pids)
            await asyncio.sleep(seconds)
        finally:
            self._victim.signal(signal.SIGCONT, pids)

    async def _have_stopped(self, pids: list[int]) -> bool:
        """Whether their threads stand still, which takes a moment: until then one may still take the lock."""
        for _ in range(100):
            if all(state == "T" for pid in pids for state in _states_of_threads(pid)):
                return True
            await asyncio.sleep(0.005)
        return False

    async def _is_free(self) -> bool:
        """Whether nobody keeps the lock of the database for longer than others have it."""
        with Path(f"{self._database}-lock").open() as lock:
            for _ in range(100):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    await asyncio.sleep(0.005)
                else:
                    return True
        return False

    async def _back_up(self) -> None:
        target = self._folder / "live.db"
        saving = await self._command("backup", str(target), "--force")
        assert await asyncio.wait_for(saving.wait(), 60) == 0

    async def _kill_a_backup(self) -> None:
        """In the middle of it, if it can be caught there."""
        saving = await self._command("backup", str(self._folder / "live.db"), "--force")
        give_up = time.monotonic() + 10
        while saving.returncode is None and time.monotonic() < give_up:
            if list(self._folder.glob(".live.db.*.part")):
                break
            await asyncio.sleep(0.002)
        with suppress(ProcessLookupError):
            saving.kill()
        await saving.wait()

    async def _call(self) -> None:
        """A passer-by with a terminal, killed or not."""
        calling = await self._command("call", "noop", "n=5", "--app", "tests.soak.app")
        if self._chance.random() < 0.5:
            await asyncio.sleep(self._chance.uniform(0.2, 1.0))
            with suppress(ProcessLookupError):
                calling.kill()
            await calling.wait()
        else:
            assert await asyncio.wait_for(calling.wait(), 60) == 0

    async def _command(self, *arguments: str) -> asyncio.subprocess.Process:
        with (self._folder / "commands.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "outrider.cli", *arguments, "--db", str(self._database)),
                cwd=ROOT,
                env=self._environment,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
            )

    async def _pause(self) -> None:
        scope: dict[str, Any] = self._chance.choice(({"everything": True}, {"kind": "background_tool"}))
        await self._runtime.queue.pause(**scope)
        await asyncio.sleep(self._chance.uniform(0.1, 0.8))
        await self._runtime.queue.resume(**scope)

    # --- rest ----------------------------------------------------------------------------------------

    async def _rest(self) -> None:
        for part in self._clients:
            await self._tell(part, "rest")
        for part in self._clients:
            self._deeds[part.name] = await self._hear(part, "rested")
        await self._until(self._nothing_lives, "tasks live")
        await self._until(self._nothing_is_left, "something is left")
        await asyncio.to_thread(self._follower.read)
        backup = self._folder / "rest.db"
        await self._runtime.backup(backup, replace=True)
        tasks = await check_backup(backup)
        for file in self._folder.glob("rest.db*"):
            file.unlink()
        self._book.check()
        sample = await asyncio.to_thread(self._measure)
        self._samples.append(sample)
        steady = sample.vitals["steady"]
        print(
            f"{sample.at:7.1f} s: {sum(self._follower.ends.values())} tasks ended, {tasks} of them kept;"
            f" {sample.rows} rows, {sample.database / MIB:.1f} MiB; the steady worker {steady.rss / MIB:.1f} MiB,"
            f" {steady.descriptors} descriptors, {steady.threads} threads",
            flush=True,
        )

    async def _nothing_lives(self) -> str:
        counts = await self._runtime.services.views.count_by_state()
        living = {state: counts.get(state, 0) for state in LIVE_STATES if counts.get(state, 0)}
        if living:
            left = await self._runtime.tasks.list(states=tuple(LIVE_STATES), limit=5)
            return f"{living}: {[(each.id, each.display_name, each.phase, each.phase_reason) for each in left]}"
        return ""

    async def _nothing_is_left(self) -> str:
        """No process, lock, folder or file but those of the parts; and what is old has been deleted."""
        mine = {pid for part in self._parts.values() for pid in part.pids}
        ours = await asyncio.to_thread(processes_of, self._token, self._folder)
        strangers = {pid: command for pid, command in ours.items() if pid not in mine}
        dead = {pid: each for pid, each in children_of([*mine, os.getpid()]).items() if each[1] == "Z"}
        workers = await self._runtime.workers()
        locks = {path.stem for path in Path(f"{self._database}-workers").iterdir()}
        runs = list(_entries(Path(f"{self._database}-processes")))
        temporary = list(_entries(self._temporary))
        ended = await self._runtime.services.views.ended(
            self._runtime.services.clock.now() - round((RETENTION + 5.0) * 1_000_000), 10
        )
        problems = {
            "processes of nobody": strangers,
            "zombies": dead,
            "workers that do not live": [each.id for each in workers if not each.is_alive],
            "locks of nobody": locks ^ {each.id for each in workers},
            "folders of runs": runs,
            "temporary files": temporary,
            "tasks that should have been deleted": ended,
            "pauses": await self._runtime.queue.pauses(),
        }
        return "; ".join(f"{what}: {found}" for what, found in problems.items() if found)

    async def _until(self, fault: Callable[[], Awaitable[str]], what: str) -> None:
        give_up = time.monotonic() + 30 + RETENTION
        while found := await fault():
            assert time.monotonic() < give_up, f"{what}: {found}"
            await asyncio.sleep(0.1)

    def _measure(self) -> Sample:
        found = {part.name: vitals(part.pid) for part in list(self._parts.values())}
        return Sample(
            time.monotonic() - self._began,
            {name: each for name, each in found.items() if each is not None},
            sum(rows(self._database).values()),
            size_of(self._database),
            size_of(Path(f"{self._database}-wal")),
        )

    # --- the end -------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """All that ended is deleted, and everybody leaves without a trace."""
        if self._is_short:
            await self._runtime.tasks.prune(0)
        await self._until(self._all_is_deleted, "tasks are not deleted")
        self._open_at_the_end = descriptors_of(self._parts["steady"].pid)
        left = rows(self._database)
        homes = left["sessions"]
        # Of each submitter its home, and the camp of a phase that never came; and the one of the command line.
        assert homes <= 2 * len(self._claims) + 1, left
        assert left["events"] <= 20 * homes, left
        for table in _EMPTY:
            assert not left[table], f"{table}: {left}"
        assert self._is_short or not left["rates"], left  # a start is remembered for some seconds
        for part in self._clients:
            assert part.process.stdin is not None
            part.process.stdin.close()
            assert await asyncio.wait_for(part.process.wait(), 30) == 0
        for part in (self._parts["steady"], self._victim):
            part.signal(signal.SIGTERM)
            assert await asyncio.wait_for(part.process.wait(), 30) == 0
        self._parts.clear()
        await self._until(self._nothing_is_left, "something is left")
        await self._back_up()  # and takes away what killed ones have left
        left_files = sorted(path.name for path in _entries(self._folder) if path.name not in _KEPT)
        left_files = [name for name in left_files if not name.endswith(".log")]
        assert not left_files, left_files

    async def _all_is_deleted(self) -> str:
        counts = await self._runtime.services.views.count_by_state()
        return f"{counts}" if sum(counts.values()) else ""

    async def _kill_all(self) -> None:
        for pid in processes_of(self._token, self._folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for part in list(self._parts.values()):
            await part.process.wait()
            await asyncio.gather(*part.readers)

    def _judge(self, seconds: float) -> None:
        """Nothing grew after the run had settled. A short one only shows that there is nothing left."""
        settled = [sample for sample in self._samples if sample.at >= SETTLED * seconds]
        for name in ("steady", "submitter 0", "submitter 1", "person") if len(settled) >= 3 else ():
            told = f"{name}: {[sample.vitals[name] for sample in self._samples]}\n{self._open_at_the_end}"
            assert risen([sample.vitals[name].rss for sample in settled]) <= MOST_GROWTH, told
            assert risen([sample.vitals[name].descriptors for sample in settled]) <= MOST_DESCRIPTORS, told
            assert risen([sample.vitals[name].threads for sample in settled]) <= MOST_THREADS, told
        if len(settled) >= 3:
            assert risen([sample.rows for sample in settled]) <= 0.5 * max(sample.rows for sample in settled)
            assert risen([sample.database for sample in settled]) <= 16 * MIB
        assert self._most["wal"] <= MOST_WAL

    def _report(self) -> str:
        first, last = self._samples[0], self._samples[-1]
        log = (self._folder / "steady.log").read_text(errors="replace")
        again, lost = log.count("starts over"), log.count("counts as lost")
        most = {name: f"{value / MIB:.1f} MiB" if value > 10_000 else value for name, value in self._most.items()}
        lines = [
            f"SEED={self._seed}, {time.monotonic() - self._began:.0f} s",
            f"tasks ended: {sum(self._follower.ends.values())} {dict(sorted(self._follower.ends.items()))}",
            f"deeds: {dict(sum((Counter(each) for each in self._deeds.values()), Counter()))}",
            f"troubles: {sum(self._done.values())} {dict(self._done)}",
            f"log entries: {self._follower.entries}; steps: {self._book.lines}, of them again: {self._book.repeated}",
            f"the steady worker started over {again} times, and lost its work {lost} times",
            f"most held: {dict(self._follower.most_held)}",
            f"most: {most}",
        ]
        for name in ("steady", "submitter 0", "submitter 1", "person"):
            points = [(sample.at, sample.vitals[name].rss) for sample in self._samples]
            settled = points[int(len(points) * SETTLED) :]
            rss = [f"{value / MIB:.1f}" for _, value in points]
            lines.append(
                f"{name}: MiB {' '.join(rss)}; settled slope {slope(settled) / MIB:+.1f} MiB an hour;"
                f" descriptors {first.vitals[name].descriptors} -> {last.vitals[name].descriptors},"
                f" threads {first.vitals[name].threads} -> {last.vitals[name].threads}"
            )
        lines.append(f"rows: {[sample.rows for sample in self._samples]}")
        lines.append(f"database: {[round(sample.database / MIB, 1) for sample in self._samples]} MiB")
        lines.append(f"wal: {[round(sample.wal / MIB, 1) for sample in self._samples]} MiB")
        return "\n".join(lines)


QUICK: Troubles = {
    Soak._kill: 6,
    Soak._kill_one: 3,
    Soak._drain: 4,
    Soak._stop_the_steady: 2,
    Soak._back_up: 1,
    Soak._kill_a_backup: 1,
    Soak._call: 2,
    Soak._pause: 2,
}
TROUBLES: Troubles = {
    **QUICK,
    Soak._stop_the_steady_for_long: 1,
    Soak._stop_the_other_for_long: 1,
    Soak._stop_all: 0.5,
}

_EMPTY = (
    *("tasks", "inputs", "follow_ups", "watches", "steps", "attempts", "requests", "messages", "files"),
    *("outputs", "output", "transcript", "inbox", "pauses"),
)
_KEPT = (
    *("work.db", "work.db-lock", "work.db-shm", "work.db-wal", "work.db-workers", "work.db-processes"),
    *("tmp", "book", "claims.0", "claims.1", "live.db"),
)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.exists() else []


def _states_of_threads(pid: int) -> list[str]:
    """Of those that live: T for one that stands still."""
    states = []
    for thread in _entries(Path(f"/proc/{pid}/task")):
        with suppress(FileNotFoundError, ProcessLookupError):
            states.append((thread / "stat").read_text().rpartition(")")[2].split()[0])
    return states


def _command(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return ""
