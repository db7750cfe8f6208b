"""kill -9 of workers that look after a command: it runs on, once, and not a byte of its output is lost or doubled."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from pathlib import Path

import pytest

from outrider import State, TaskOptions
from outrider.kinds.process_run import runs_of
from outrider.runtime.handles import TaskHandle
from tests.crash.crew import Crew
from tests.crash.test_kills import runtime_on
from tests.facts import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

TALKER = """
import random, sys, time
chance = random.Random(int(sys.argv[2]))
with open(sys.argv[3], "a") as starts:
    starts.write("started\\n")
for number in range(int(sys.argv[1])):
    stream = sys.stdout if number % 3 else sys.stderr
    stream.write(f"{number} " + "\\u00e9" * chance.randrange(200) + "\\n")
    stream.flush()
    if chance.random() < 0.02:
        time.sleep(chance.random() * 0.1)
sys.exit(7)
"""


async def test_a_command_outlives_its_killed_workers_and_tells_every_line_once(database: Path):
    await _talk_through_kills(database, seed=1, lines=2000, kills=5)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 22))
async def test_a_command_outlives_hundreds_of_killed_workers(database: Path, seed: int):
    await _talk_through_kills(database, seed=seed, lines=20_000, kills=15)


async def _talk_through_kills(database: Path, seed: int, lines: int, kills: int) -> None:
    chance = random.Random(seed)
    starts = database.with_suffix(".starts")
    async with Crew.muster() as crew, runtime_on(database) as runtime:
        session = await runtime.sessions.create()
        command = [sys.executable, "-c", TALKER, str(lines), str(seed), str(starts)]
        task = await session.spawn_process(command, success=[7], options=TaskOptions(max_failures=100))
        killed, reach = 0, 0.8
        while killed < kills:
            worker = await crew.start(database)
            # From before it claims to the middle of the output; what matters is that it may be any moment.
            await asyncio.sleep(chance.random() ** 2 * reach)
            worker.signal(signal.SIGKILL)
            assert await worker.wait() == -signal.SIGKILL
            if await task.attempts():
                killed += 1
            else:  # nobody has come to claim it yet
                reach *= 1.5
        worker = await crew.start(database)
        record = await task.wait(timeout=120)
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0
        assert record.state is State.SUCCEEDED, record.error
        (run,) = await task.steps()
        lost = [each.attempt for each in await task.attempts() if each.ending == "lost"]
        # A worker that was killed before it had anything to leave behind has failed; no other has.
        assert record.failures == sum(attempt < run.attempt for attempt in lost)
        assert len(lost) >= kills // 5
        assert (await task.result())["exit_code"] == 7
        assert starts.read_text() == "started\n"
        await _prove_output(task, lines, seed)
        runs, _ = runs_of(runtime.ledger)
        if list(runs.iterdir()):  # its supervisor was not gone yet: what is left is the next worker's to delete
            worker = await crew.start(database)
            await until(lambda: not list(runs.iterdir()))
            worker.signal(signal.SIGTERM)
            assert await worker.wait() == 0


async def _prove_output(task: TaskHandle, lines: int, seed: int) -> None:
    chance = random.Random(seed)
    said: dict[str, str] = {"stdout": "", "stderr": ""}
    for number in range(lines):
        said["stdout" if number % 3 else "stderr"] += f"{number} " + "é" * chance.randrange(200) + "\n"
        if chance.random() < 0.02:
            chance.random()
    told: dict[str, str] = {"stdout": "", "stderr": ""}
    lost = 0
    async for piece in task.output():
        lost += piece.lost
        if piece.stream:
            told[piece.stream] += piece.text
    assert lost + sum(len(text.encode()) for text in told.values()) == sum(len(text.encode()) for text in said.values())
    for stream, text in told.items():
        assert said[stream].endswith(text)
