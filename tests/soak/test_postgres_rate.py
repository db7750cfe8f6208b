"""A server at full rate whose ended tasks are deleted as fast as new ones come: nothing grows, nothing slows down.

The server is as it comes: its autovacuum has to keep up by itself. `SOAK_SECONDS` says how long.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest

from tests.servers import Server
from tests.soak import rate
from tests.soak.gauges import MIB, TABLES, Vitals, risen, vitals

pytestmark = [pytest.mark.anyio, pytest.mark.soak]

ROOT = Path(__file__).parents[2]
RETENTION = 60.0
OLDEST_AGE = 1.5 * RETENTION + 15.0
"""Seconds that an ended task may still be there: who deletes takes more of the time the later it is, and all of it
where that is half as long again."""
SAMPLE = 10.0
SETTLED = 0.2
"""The part of the time after which tables and memory are expected to grow no more; of a minute or so, all of it."""
DEARER = 1.25
"""How many more blocks a task may touch in the last third than in the first: seconds would tell of the machine."""
OLDEST = "select min(finished_at) from tasks where finished_at is not null"
TOUCHED = "select blks_hit + blks_read from pg_stat_database where datname = current_database()"


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured at one moment. `oldest` is the age in seconds of the oldest ended task that is still there,
    `touched` how many blocks the server has looked at so far.
    """

    at: float
    ended: int
    bytes: int
    live: int
    dead: int
    touched: int
    oldest: float
    worker: Vitals


async def test_at_full_rate_tables_stay_as_small_and_the_work_as_fast_as_they_were(
    tmp_path: Path, own_postgres: Server, monkeypatch: pytest.MonkeyPatch
):
    seconds = float(os.environ.get("SOAK_SECONDS", "300"))
    monkeypatch.setenv(rate.RETENTION, str(RETENTION))
    url = own_postgres.create_database("work")
    async with rate.app.open(url, worker=False) as runtime:
        workers = [
            await _start(tmp_path, "worker", "-m", "outrider.cli", "worker", "--app", "tests.soak.rate", "--db", url)
            for _ in range(2)
        ]
        crowd = await _start(tmp_path, "crowd", "-m", "tests.soak.rate", url)
        try:
            samples = await _watch(own_postgres, tmp_path / "crowd.out", workers[0].pid, seconds)
            for process in (crowd, *workers):
                assert process.returncode is None
                process.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(process.wait(), 60) == 0
        except BaseException:
            for log in sorted(tmp_path.glob("*.err")):
                print(f"--- the end of {log.name}", *log.read_text(errors="replace").splitlines()[-25:], sep="\n")
            raise
        finally:
            for process in (crowd, *workers):
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        assert not await runtime.services.views.problems()
    _judge([sample for sample in samples if sample.at >= RETENTION + SETTLED * (seconds - RETENTION)])


async def _start(folder: Path, name: str, *command: str) -> asyncio.subprocess.Process:
    with (folder / f"{name}.out").open("ab") as out, (folder / f"{name}.err").open("ab") as err:
        return await asyncio.create_subprocess_exec(sys.executable, *command, cwd=ROOT, stdout=out, stderr=err)


async def _watch(server: Server, told: Path, worker: int, seconds: float) -> list[Sample]:
    samples: list[Sample] = []
    begun = time.monotonic()
    while (at := time.monotonic() - begun) < seconds:
        sample = await _measure(server, told, worker, at)
        if samples:
            done = (sample.ended - samples[-1].ended) / (sample.at - samples[-1].at)
            each = _blocks(samples[-1], sample)
            print(
                f"{at:7.1f} s: {sample.ended} tasks, {done:.0f}/s, {each:.0f} blocks each;"
                f" {sample.live} rows and {sample.dead} dead in"
                f" {sample.bytes / MIB:.0f} MiB; the oldest ended {sample.oldest:.0f} s ago;"
                f" a worker {sample.worker.rss / MIB:.1f} MiB",
                flush=True,
            )
        samples.append(sample)
        await asyncio.sleep(SAMPLE)
    return samples


async def _measure(server: Server, told: Path, worker: int, at: float) -> Sample:
    ((size, indexes, live, dead),) = await asyncio.to_thread(server.ask, TABLES, "work")
    ended = 0
    with suppress(FileNotFoundError, IndexError):
        ended = int(told.read_text().split()[-1])
    ((touched,),) = await asyncio.to_thread(server.ask, TOUCHED, "work")
    ((oldest,),) = await asyncio.to_thread(server.ask, OLDEST, "work")
    found = vitals(worker)
    assert found is not None, "a worker is gone"
    return Sample(
        at, ended, size + indexes, live, dead, touched, 0.0 if oldest is None else time.time() - oldest / 1e6, found
    )


def _blocks(first: Sample, last: Sample) -> float:
    """How many blocks were touched for each task that ended in between."""
    return (last.touched - first.touched) / max(1, last.ended - first.ended)


def _judge(samples: Sequence[Sample]) -> None:
    assert max(sample.oldest for sample in samples) <= OLDEST_AGE
    blocks = [_blocks(first, last) for first, last in pairwise(samples)]
    third = max(1, len(blocks) // 3)
    assert median(blocks[-third:]) <= DEARER * median(blocks[:third]), blocks
    assert risen([sample.bytes for sample in samples]) <= 0.3 * median(sample.bytes for sample in samples)
    assert risen([sample.worker.rss for sample in samples]) <= 24 * MIB
