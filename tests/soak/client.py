"""A program that uses Outrider all day: `python -m tests.soak.client ROLE DATABASE SEED CLAIMS`.

As `submitter` it keeps a few lanes of deeds going, each of which submits something, waits for it and checks what came
of it; as `person` it answers whatever is asked by anybody, and does the external tasks. Orders come on stdin: `rest`
lets the deeds under way end and no other begin, `go` goes on, the end of stdin ends it. It says on stdout, as JSON a
line, when it rests. What it was told that steps returned goes into the file of claims, to be held against the book.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from outrider import Runtime, SessionHandle, State, TaskFailed, TaskHandle, TaskOptions
from outrider.core.errors import LeaseLost, NotFound, RequestClosed, TaskFinished
from tests.soak.app import ONCE, app

LANES = 5
PATIENCE = 150.0
"""Seconds after which a deed is stuck."""
SKIPPED = -1
"""The answer of the person who is asked whether a `once` step has happened."""

Steps: TypeAlias = Mapping[str, int]


class Submitter:
    """Submits, waits and checks."""

    def __init__(self, runtime: Runtime, home: SessionHandle, chance: random.Random, claims: Path) -> None:
        self._runtime = runtime
        self._home = home
        self._camp = home
        self._chance = chance
        self._claims = claims
        self._may_go = asyncio.Event()
        self._busy = 0
        self.done: Counter[str] = Counter()

    async def run(self) -> None:
        """Keep the lanes going; returns never, and raises what a deed found to be wrong."""
        self._camp = await self._runtime.sessions.create()
        async with asyncio.TaskGroup() as lanes:
            for lane in range(LANES):
                lanes.create_task(self._lane(lane))

    async def _lane(self, lane: int) -> None:
        chance = random.Random(self._chance.random())
        while True:
            await self._may_go.wait()
            deed = chance.choices(DEEDS, WEIGHTS)[0]
            self._busy += 1
            try:
                async with asyncio.timeout(PATIENCE):
                    await deed(self, chance)
            except BaseException as error:
                error.add_note(f"in the deed {deed.__name__} of lane {lane}")
                raise
            finally:
                self._busy -= 1
            self.done[deed.__name__.strip("_")] += 1
            await asyncio.sleep(chance.uniform(0.0, 0.2))

    def go(self) -> None:
        self._may_go.set()

    async def rest(self) -> None:
        """Begin nothing more, and delete what the sessions hold that no task does."""
        self._may_go.clear()
        while self._busy:  # noqa: ASYNC110 - several lanes end by themselves, and this runs once a phase
            await asyncio.sleep(0.02)
        old, self._camp = self._camp, await self._runtime.sessions.create()
        await old.delete(cancel=True)
        heard = await self._home.inbox.receive(limit=1000)
        await self._home.inbox.acknowledge([entry.receipt or "" for entry in heard])

    # --- what the deeds need -------------------------------------------------------------------------

    def _somewhere(self, chance: random.Random) -> SessionHandle:
        return chance.choice((self._home, self._camp))

    def _claim(self, task: TaskHandle | str, steps: Steps) -> None:
        with self._claims.open("a") as file:
            file.write(json.dumps({"task": task if isinstance(task, str) else task.id, "steps": steps}) + "\n")

    async def _noop(self, chance: random.Random) -> None:
        n = chance.randrange(1000)
        task = await self._somewhere(chance).spawn("noop", n=n)
        assert await task.result() == n

    async def _noops(self, chance: random.Random) -> None:
        tasks = await self._somewhere(chance).spawn_many("noop", [{"n": n} for n in range(30)])
        assert [await task.result() for task in tasks] == list(range(30))

    async def _march(self, chance: random.Random) -> None:
        task = await self._somewhere(chance).spawn("march", steps=chance.randrange(1, 9))
        self._claim(task, await task.result())

    async def _trudge(self, chance: random.Random) -> None:
        task = await self._somewhere(chance).spawn("trudge", steps=chance.randrange(1, 9))
        self._claim(task, await task.result())

    async def _march_apart(self, chance: random.Random) -> None:
        task = await self._somewhere(chance).spawn("march_apart", steps=chance.randrange(1, 9))
        self._claim(task, await task.result())

    async def _inquire(self, chance: random.Random) -> None:
        task = await self._somewhere(chance).spawn("inquire", times=chance.randrange(1, 4))
        self._claim(task, await task.result())
        assert {request.answered_by for request in await task.requests()} == {"person"}

    async def _found(self, chance: random.Random) -> None:
        task = await self._home.spawn("found", children=chance.randrange(1, 4))
        for each, steps in (await task.result()).items():
            self._claim(each, steps)

    async def _salute(self, chance: random.Random) -> None:
        task = await self._somewhere(chance).spawn("salute")
        self._claim(task, {ONCE: await task.result()})

    async def _moor(self, chance: random.Random) -> None:
        keys = {"berth": 6, f"tandem:{chance.randrange(3)}": 4, f"alone {chance.randrange(3)}": 3}
        key = chance.choice(list(keys))
        places = TaskOptions(concurrency_key=key)
        tasks = await self._home.spawn_many("moor", [{"seconds": 0.05}] * keys[key], options=places)
        for task in tasks:
            self._claim(task, await task.result())

    async def _mail(self, chance: random.Random) -> None:
        tasks = await self._home.spawn_many("noop", [{"n": 1}] * 6, options=TaskOptions(concurrency_key="mail"))
        assert [await task.result() for task in tasks] == [1] * 6

    async def _post(self, chance: random.Random) -> None:
        """A key of its own, under a rate that holds for all such keys: nobody uses it again."""
        places = TaskOptions(concurrency_key=f"post:{chance.getrandbits(64):x}")
        tasks = await self._home.spawn_many("noop", [{"n": 1}] * 3, options=places)
        assert [await task.result() for task in tasks] == [1] * 3

    async def _write_up(self, chance: random.Random) -> None:
        size, session = chance.randrange(1, 50_000), self._somewhere(chance)
        task = await session.spawn("write_up", size=size)
        assert await session.read_file(await task.result()) == b"y" * size
        path = f"/papers/{task.id}.txt"
        assert await session.read_file(path) == b"x" * size
        assert await session.delete_file(path)

    async def _converse(self, chance: random.Random) -> None:
        task = await self._somewhere(chance).spawn("converse")
        words = [f"word {n}" for n in range(chance.randrange(1, 5))] + ["bye"]
        for word in words:
            await task.message(word, sender="submitter")
            await asyncio.sleep(chance.uniform(0.0, 0.1))
        assert await task.result() == words
        replies = await task.messages(direction="outbound")
        assert [reply.text for reply in replies] == [f"heard {word}" for word in words]

    async def _cancel(self, chance: random.Random) -> None:
        tool = chance.choice(("drift", "drift", "drift_in_a_thread", "drift_apart"))
        arguments = {"child": True} if tool == "drift" and chance.random() < 0.5 else {}
        task = await self._somewhere(chance).spawn(tool, arguments)
        await asyncio.sleep(chance.uniform(0.0, 1.0))
        receipt = await task.cancel(reason="enough", wait=chance.choice((None, 5.0)))
        for each in [task.id, *receipt.canceled, *receipt.requested]:
            (ended,) = await self._runtime.tasks.wait([each])
            assert ended.state is State.CANCELED, ended.core

    async def _cancel_many(self, chance: random.Random) -> None:
        options = TaskOptions(labels={"batch": str(chance.random())}, delay=chance.choice((0.0, 30.0)))
        tasks = await self._somewhere(chance).spawn_many("noop", [{"n": n} for n in range(20)], options=options)
        await self._runtime.tasks.cancel_many([task.id for task in tasks], reason="enough")
        await self._runtime.tasks.wait([task.id for task in tasks])

    async def _time_out(self, chance: random.Random) -> None:
        tool = chance.choice(("drift", "drift_in_a_thread"))
        task = await self._somewhere(chance).spawn(tool, options=TaskOptions(run_timeout=0.5, max_failures=1))
        assert await _failure(task) in ("timeout", "orphaned")  # the latter where its worker was killed first

    async def _stumble(self, chance: random.Random) -> None:
        times = chance.randrange(1, 4)
        task = await self._somewhere(chance).spawn("stumble", times=times)
        assert await task.result() > times

    async def _retry_and_fork(self, chance: random.Random) -> None:
        task = await self._somewhere(chance).spawn("leak")
        assert await _failure(task) == "exception"
        again = await task.retry()
        assert await _failure(again) == "exception"
        fork = await task.fork(from_step="second", arguments={"mended": True})
        steps = await fork.result()
        self._claim(fork, {"second": steps["second"]})
        self._claim(task, {"first": steps["first"]})

    async def _dock(self, chance: random.Random) -> None:
        fails, name = chance.random() < 0.5, f"dock-{chance.getrandbits(64):x}"
        task = await self._home.spawn("dock", name=name, fails=fails)
        await task.wait()
        self._claim("resource", {f"released {name}": 0})

    async def _command(self, chance: random.Random) -> None:
        script = 'printf "a\\n::progress 1/2 half\\nb\\n"; exit 3'
        task = await self._process(chance, script, success=[3])
        assert (await task.result())["exit_code"] == 3

    async def _long_command(self, chance: random.Random) -> None:
        lines = chance.randrange(5, 40)
        task = await self._process(chance, f"for n in $(seq {lines}); do echo line $n; sleep 0.05; done")
        printed = [piece async for piece in task.output()]
        assert not any(piece.lost for piece in printed)
        assert "".join(piece.text for piece in printed) == "".join(f"line {n}\n" for n in range(1, lines + 1))
        assert (await task.result())["exit_code"] == 0

    async def _canceled_command(self, chance: random.Random) -> None:
        task = await self._process(chance, "while true; do echo still here; sleep 0.2; done")
        await asyncio.sleep(chance.uniform(0.0, 1.0))
        await task.cancel()
        assert (await task.wait()).state is State.CANCELED

    async def _leaving_command(self, chance: random.Random) -> None:
        task = await self._process(chance, "setsid sleep 600 & sleep 600 & echo left")
        assert (await task.result())["exit_code"] == 0

    async def _process(self, chance: random.Random, script: str, **given: Any) -> TaskHandle:
        options = TaskOptions(max_failures=1000, backoff=0.05, backoff_max=0.5)
        return await self._somewhere(chance).spawn_process(["sh", "-c", script], options=options, **given)

    async def _agent(self, chance: random.Random) -> None:
        agent = chance.choice(("tally", "tally_if_allowed"))
        task = await self._home.spawn_agent("Add it up.", agent=agent, options=TaskOptions(max_failures=1000))
        assert await task.result() == "tallied"
        assert (await task.record()).iterations == 3

    async def _external(self, chance: random.Random) -> None:
        options = TaskOptions(idle_timeout=1.5, max_failures=1000, backoff=0.05, backoff_max=0.5)
        task = await self._somewhere(chance).create("external", {"name": "soak", "n": 7}, options=options)
        assert await task.result() == 7

    async def _delay(self, chance: random.Random) -> None:
        options = TaskOptions(delay=chance.uniform(0.1, 1.0), priority=chance.randrange(-5, 5))
        task = await self._somewhere(chance).spawn("noop", n=1, options=options)
        later = await self._home.spawn("noop", n=2, options=TaskOptions(depends_on=(task.id,)))
        assert await later.result() == 2
        record = await task.record()
        assert record.started_at is not None
        assert record.started_at >= record.created_at

    async def _debounce(self, chance: random.Random) -> None:
        options = TaskOptions(debounce_key=f"key {chance.random()}", delay=0.4, debounce_max=5.0)
        tasks = [await self._home.spawn("noop", n=n, options=options) for n in range(4)]
        results = {task.id: await task.result() for task in tasks}
        assert results[tasks[-1].id] == 3, results  # each of those before may have started before the next was made

    async def _move(self, chance: random.Random) -> None:
        task = await self._home.spawn("march", steps=1, options=TaskOptions(delay=3600.0))
        await task.message("hello")
        document = await task.export(events=True)
        await self._runtime.tasks.give_away(document)
        async with app.open("memory://", worker=False) as elsewhere:
            moved = await elsewhere.tasks.load(document)
            assert (moved.id, moved.state) == (task.id, State.QUEUED)
        assert (await task.record()).state is State.CANCELED

    async def _pause(self, chance: random.Random) -> None:
        session = await self._runtime.sessions.create()
        await self._runtime.queue.pause(session=session.id, reason="a test")
        task = await session.spawn("noop", n=5)
        await asyncio.sleep(chance.uniform(0.0, 0.5))
        assert (await task.record()).state is State.QUEUED
        await self._runtime.queue.resume(session=session.id)
        assert await task.result() == 5
        await session.delete()

    async def _follow(self, chance: random.Random) -> None:
        task = await self._somewhere(chance).spawn("march", steps=4)
        seqs, states = [], []
        async for event in task.events():
            seqs.append(event.seq)
            if event.task is not None:
                states.append(event.task.state)
        assert seqs == sorted(set(seqs))
        assert states[0] is State.QUEUED
        assert states[-1] is State.SUCCEEDED
        self._claim(task, await task.result())

    async def _wake(self, chance: random.Random) -> None:
        session = await self._runtime.sessions.create()
        task = await session.spawn("noop", n=5, options=TaskOptions(wake="on_terminal", idempotency_key="one"))
        again = await session.spawn("noop", n=5, options=TaskOptions(wake="on_terminal", idempotency_key="one"))
        assert again.id == task.id
        await task.result()
        (entry,) = await session.inbox.receive(wait=60)
        assert entry.task_id == task.id
        assert len((await session.inbox.acknowledge([entry.receipt or ""])).good) == 1
        assert not await session.inbox.list()
        await session.delete()


class Person:
    """Answers questions, and does the external tasks."""

    def __init__(self, runtime: Runtime, chance: random.Random) -> None:
        self._runtime = runtime
        self._chance = chance
        self.done: Counter[str] = Counter()

    async def run(self) -> None:
        while True:
            for task in await self._runtime.tasks.list(states=(State.AWAITING_INPUT,), limit=200):
                for request in task.input_requests:
                    await self._answer(task.id, request)
            for task in await self._runtime.external.claim("person", name="soak", limit=5):
                if self._chance.random() > 0.15:  # else it was never heard of again
                    await self._do(task)
            await asyncio.sleep(0.1)

    def go(self) -> None:
        """It never rests: whoever waits for an answer is at work."""

    async def rest(self) -> None:
        """See `go`."""

    async def _answer(self, task_id: str, request: Any) -> None:
        if "may or may not" in request.prompt:
            answer: Any = {"action": "skip", "value": SKIPPED}
        else:
            answer = {"approved": True} if request.kind == "approval" else True
        with suppress(RequestClosed, TaskFinished, NotFound):
            await self._runtime.tasks.answer(task_id, answer, request_id=request.id, by="person")
            self.done["answer"] += 1

    async def _do(self, task: Any) -> None:
        with suppress(LeaseLost, NotFound):
            await self._runtime.external.report(task.id, task.attempt, current=1, total=2, output="half of it\n")
            await self._runtime.external.succeed(task.id, task.attempt, task.spec["n"])
            self.done["external"] += 1


async def _failure(task: TaskHandle) -> str:
    try:
        result = await task.result()
    except TaskFailed as error:
        return str(error.kind)
    raise AssertionError(f"{task} was to fail, and came to {result}")


Deed: TypeAlias = Callable[[Submitter, random.Random], Awaitable[None]]

_SHARES: dict[Deed, float] = {
    Submitter._noop: 4,
    Submitter._noops: 1,
    Submitter._march: 3,
    Submitter._trudge: 2,
    Submitter._march_apart: 0.7,
    Submitter._inquire: 2,
    Submitter._found: 1.5,
    Submitter._salute: 2,
    Submitter._moor: 1.5,
    Submitter._mail: 0.7,
    Submitter._post: 1,
    Submitter._write_up: 1.5,
    Submitter._converse: 1.5,
    Submitter._cancel: 2,
    Submitter._cancel_many: 0.7,
    Submitter._time_out: 1,
    Submitter._stumble: 1,
    Submitter._retry_and_fork: 1,
    Submitter._dock: 1.5,
    Submitter._command: 1,
    Submitter._long_command: 1,
    Submitter._canceled_command: 0.7,
    Submitter._leaving_command: 0.7,
    Submitter._agent: 1.5,
    Submitter._external: 1.5,
    Submitter._delay: 1.5,
    Submitter._debounce: 1,
    Submitter._move: 0.7,
    Submitter._pause: 1,
    Submitter._follow: 1,
    Submitter._wake: 1,
}
DEEDS, WEIGHTS = list(_SHARES), list(_SHARES.values())


def say(**news: Any) -> None:
    print(json.dumps(news), flush=True)


async def main() -> None:
    role, database, seed, claims = sys.argv[1:]
    chance = random.Random(f"{role} {seed}")
    orders: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def hear() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(orders.put_nowait, line.strip())
        loop.call_soon_threadsafe(orders.put_nowait, "end")

    async with app.open(database, worker=False) as runtime:
        home = await runtime.sessions.create(id=f"session_home_{role}_{seed}") if role == "submitter" else None
        at_work = Submitter(runtime, home, chance, Path(claims)) if home else Person(runtime, chance)
        job = asyncio.create_task(at_work.run())
        threading.Thread(target=hear, daemon=True).start()
        say(ready=True)
        while True:
            order = asyncio.create_task(orders.get())
            await asyncio.wait({job, order}, return_when=asyncio.FIRST_COMPLETED)
            if job.done():
                await job
            match order.result():
                case "go":
                    at_work.go()
                case "rest":
                    resting = asyncio.create_task(at_work.rest())
                    await asyncio.wait({job, resting}, return_when=asyncio.FIRST_COMPLETED)
                    if job.done():
                        await job
                    await resting
                    say(rested=at_work.done)
                case _:
                    break
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except BaseException:  # noqa: BLE001 - what was wrong is for whoever started this
        say(failed=traceback.format_exc())
        sys.exit(1)
