"""Processes that use one PostgreSQL database together while a test does harm to it, and note what they were told.

`python -m tests.faults.crowd ADDRESS FOLDER NAME ROLE SESSION` goes on until SIGTERM. What was acknowledged stands in
the file `acks`, a line each; in `marks` stands when the code of each task ran, by the clock of the machine that never
jumps: so that code that ran twice at once is seen, whatever the database says of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path

import psycopg

from outrider import Outrider, TaskContext, TaskOptions, WorkerSettings
from outrider.core.errors import OutriderError, StoreError, WaitTimeout
from outrider.core.ledger import TaskFilter
from outrider.core.task import TERMINAL, State
from outrider.runtime.facade import Runtime
from outrider.runtime.handles import SessionHandle
from tests.facts import until

ROOT = Path(__file__).parents[2]
CALLERS = 6
SETTINGS = WorkerSettings(park_grace=0.02, recovery_interval=0.1, drain_timeout=10.0, retention=None)


class Notes:
    """Lines that several processes add to one file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, *words: object) -> None:
        os.write(self._file, ("\t".join(map(str, words)) + "\n").encode())


def noted(path: Path) -> list[list[str]]:
    """The lines of a file of notes."""
    return [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []


def app_in(folder: Path) -> Outrider:
    """The app, whose tasks note in the folder when they run."""
    app = Outrider(SETTINGS)
    marks = Notes(folder / "marks")

    @app.tool(max_failures=1000)
    async def dig(task: TaskContext, seconds: float) -> str:
        """Be seen to run for a while."""
        marks.add(task.id, task.attempt, time.monotonic_ns())
        try:
            await task.step("dig", asyncio.sleep, seconds)
        finally:
            marks.add(task.id, task.attempt, time.monotonic_ns())
        return "dug"

    @app.tool(max_failures=1000)
    async def family(task: TaskContext, children: int) -> str:
        """Have children that somebody may cancel with it."""
        born = [await task.spawn("dig", seconds=0.02, position=f"child {n}") for n in range(children)]
        await task.wait_for(born)
        return "grown"

    return app


# --- what a process does ---------------------------------------------------------------------------------------------


@dataclass
class Life:
    """One process on the database."""

    runtime: Runtime
    session: SessionHandle
    name: str
    acks: Notes
    stop: asyncio.Event

    async def work(self) -> None:
        """Create tasks, some to be run by whoever comes first, and wait for their ends."""
        await asyncio.gather(*(self._call(number) for number in range(CALLERS)))

    async def _call(self, number: int) -> None:
        for turn in count():
            if self.stop.is_set():
                return
            key = f"{self.name}-{number}-{turn}"
            options = TaskOptions(idempotency_key=key, delay=0.001 if number % 2 else None)
            try:
                task = await self.session.spawn("dig", seconds=0.005, options=options)
            except StoreError as error:
                self.acks.add("refused", key, error.code)
                continue
            self.acks.add("made", key, task.id)
            with suppress(StoreError, WaitTimeout):  # the answer is lost; the task is not
                await task.result(timeout=20)
                self.acks.add("ended", key, task.id)

    async def storm(self) -> None:
        """Do all at once what could get in each other's way; whatever else than a refusal comes of it is noted."""
        chance = random.Random(self.name)
        await asyncio.gather(*(self._blow(random.Random(chance.random())) for _ in range(CALLERS)))

    async def _blow(self, chance: random.Random) -> None:
        while not self.stop.is_set():
            try:
                await self._meddle(chance)
            except StoreError as error:
                self.acks.add("failed", error.code, error)
            except OutriderError:
                self.acks.add("refused late")  # it has ended meanwhile, or is gone
            else:
                self.acks.add("done")

    async def _meddle(self, chance: random.Random) -> None:
        session, queue, key = self.session, self.runtime.queue, f"key {chance.randrange(3)}"
        match chance.randrange(8):
            case 0:
                await session.spawn("family", children=3)
            case 1 | 2:
                options = TaskOptions(concurrency_key=key, max_failures=1000, priority=chance.randrange(3))
                await session.spawn_many("dig", [{"seconds": 0.002}] * chance.randrange(1, 8), options=options)
            case 3:
                for task_id in await self._some(chance):
                    await self.runtime.tasks.cancel(task_id)
            case 4:
                await queue.limit(key, concurrency=chance.randrange(1, 4))
            case 5:
                await self.runtime.services.ledger.prune(await self._ended(chance))
            case 6:
                for task_id in await self._some(chance):
                    await self.runtime.tasks.message(task_id, "how far?")
            case 7:
                for task_id in await self._some(chance):
                    await queue.reprioritize(task_id, chance.randrange(-5, 5))

    async def _some(self, chance: random.Random) -> list[str]:
        found = await self.runtime.tasks.list(
            TaskFilter(session_id=self.session.id, states=(State.QUEUED, State.RUNNING), limit=100)
        )
        return [record.id for record in chance.sample(found, min(3, len(found)))]

    async def _ended(self, chance: random.Random) -> list[str]:
        found = await self.runtime.tasks.list(
            TaskFilter(session_id=self.session.id, states=tuple(TERMINAL), limit=100, newest_first=False)
        )
        free = [record.id for record in found if record.parent_task_id is None]  # others may be waited for
        return chance.sample(free, min(20, len(free)))


async def main(address: str, folder: Path, name: str, role: str, session_id: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with app_in(folder).open(address) as runtime:
        life = Life(runtime, await runtime.sessions.get(session_id), name, Notes(folder / "acks"), stop)
        life.acks.add("came", name)
        roles: Mapping[str, Callable[[], Awaitable[None]]] = {"work": life.work, "storm": life.storm}
        await roles[role]()


# --- in the test -----------------------------------------------------------------------------------------------------


@dataclass
class Crowd:
    """Some processes, and what they were told by now."""

    address: str
    folder: Path
    session_id: str

    def told(self, word: str) -> list[list[str]]:
        """What was noted under a word."""
        return [rest for first, *rest in noted(self.folder / "acks") if first == word]

    async def goes_on(self, word: str = "ended", by: int = 30, timeout: float = 60) -> None:
        """Wait until more was noted than there is."""
        wanted, give_up = len(self.told(word)) + by, time.monotonic() + timeout
        while True:
            begun = time.monotonic()
            if (found := len(self.told(word))) >= wanted:
                return
            assert begun < give_up, f"they do not go on: {found} of {wanted} {word}"
            await asyncio.sleep(max(0.02, 10 * (time.monotonic() - begun)))  # the machine is theirs


@asynccontextmanager
async def crowd(address: str, folder: Path, role: str, size: int = 2) -> AsyncIterator[Crowd]:
    """Processes of one role on one session of a new database, from `async with` to its end; then they go in peace."""
    async with app_in(folder).open(address, worker=False) as runtime:
        session = await runtime.sessions.create()
    there = Crowd(address, folder, session.id)
    before, processes = len(there.told("came")), []
    try:
        for number in range(size):
            with (folder / "log").open("ab") as log:
                command = [sys.executable, "-m", "tests.faults.crowd", address, str(folder), f"p{number}", role]
                processes.append(
                    await asyncio.create_subprocess_exec(*command, session.id, cwd=ROOT, stdout=log, stderr=log)
                )
        # Who has yet to connect could not do so any more, were the server to go away now.
        await until(lambda: len(there.told("came")) == before + size, within=60)
        yield there
        for process in processes:
            process.send_signal(signal.SIGTERM)
        statuses = [await asyncio.wait_for(process.wait(), 60) for process in processes]
        assert statuses == [0] * size, (folder / "log").read_text()[-5000:]
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def prove(there: Crowd) -> None:
    """Let what is left be done, and see that nothing is lost, stuck, told otherwise than it is, or ran twice."""
    async with app_in(there.folder).open(there.address) as runtime:
        views = runtime.services.views
        before, give_up = None, 0.0
        while True:
            counts = await views.count_by_state()
            if not sum(counts[state] for state in counts.keys() - TERMINAL) and not await views.follow_ups(1):
                break
            if counts != before:  # it may be much that is left
                before, give_up = counts, time.monotonic() + 60
            assert time.monotonic() < give_up, f"stuck: {counts}, {await runtime.tasks.list(limit=3)}"
            await asyncio.sleep(0.05)
        assert not await views.problems()
        await _prove_log(runtime, there.session_id)
        made = {task_id for _, task_id in there.told("made")}
        found = {task.id for part in _parts(sorted(made)) for task in await views.tasks(part)}
        assert made == found, f"lost: {made - found}"
        keys = {key for key, _ in there.told("refused")} & _keys_in(there.address)
        assert not keys, f"refused, and yet there: {keys}"
        for task_id in made:
            endings = [attempt.ending for attempt in await views.attempts(task_id)]
            assert endings.count("succeeded") == 1
            assert set(endings) <= {"succeeded", "lost", "released"}, endings
    prove_marks(there.folder)


def _keys_in(address: str) -> set[str]:
    with psycopg.connect(address) as connection:
        return {key for (key,) in connection.execute("select idempotency_key from tasks")}


async def _prove_log(runtime: Runtime, session_id: str) -> None:
    views, seq, ends = runtime.services.views, await runtime.services.views.first_seq(session_id) - 1, set[str]()
    while rows := await views.events(session_id, after=seq, limit=10_000):
        for row in rows:
            assert row.seq == seq + 1, f"the log has a gap after {seq}"
            seq = row.seq
            if row.task_id is not None and row.type == "task.updated" and b'"finished_at":' in row.data:
                assert row.task_id not in ends, "it ended more than once"
                ends.add(row.task_id)


def prove_marks(folder: Path) -> dict[str, list[tuple[int, int, int]]]:
    """No code of two attempts at a task ran at the same time. Returns when each was seen to run."""
    spans: defaultdict[str, dict[int, list[int]]] = defaultdict(dict)
    for task_id, attempt, at in noted(folder / "marks"):
        spans[task_id].setdefault(int(attempt), []).append(int(at))
    runs = {
        task_id: sorted((attempt, min(times), max(times)) for attempt, times in by_attempt.items())
        for task_id, by_attempt in spans.items()
    }
    for task_id, attempts in runs.items():
        for (one, _, end), (other, begin, _) in pairwise(attempts):
            assert end <= begin, f"{task_id} ran twice at once: attempt {one} until {end}, {other} from {begin}"
    return runs


def _parts(ids: list[str], size: int = 500) -> list[list[str]]:
    return [ids[place : place + size] for place in range(0, len(ids), size)]


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(process)d %(asctime)s %(message)s")
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
