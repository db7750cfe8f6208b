"""A disk that fails: the store stops for good and says so, the worker ends, and nothing acknowledged is lost.

The shim makes the n-th write or sync of a real worker fail, for many n. Each database is then opened by a process that
knows nothing of it; and since a kernel may forget what a failed sync should have saved, each also loses its power.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from outrider.cli.exits import STORE
from outrider.stores.sqlite import SqliteLedger
from tests.crash.test_signals import until
from tests.crash.voyage import EFFECTS, app, effects_in
from tests.faults import shim
from tests.faults.disk import SURVIVALS, Disk, read_notes
from tests.faults.proof import Loss, acks_in, check_acknowledged, check_integrity, check_whole
from tests.faults.shim import DATABASE, READ, SYNC, TRUNCATE, WAL, WRITE
from tests.faults.subject import ACKS
from tests.faults.subject import DATABASE as PATH

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

OFTEN = "pragma wal_autocheckpoint = 30"


def sweep(folder: Path, **order: Any) -> tuple[list[dict[str, Any]], shim.Shim]:
    """Run the rounds of an order under the shim; what each came to."""
    root, scratch = folder / "root", folder / "scratch"
    root.mkdir()
    scratch.mkdir()
    watched = shim.Shim(root, scratch)
    command = [sys.executable, "-m", "tests.faults.sweep", str(root), str(scratch), json.dumps(order)]
    environment = os.environ | watched.environment
    done = subprocess.run(command, cwd=shim.ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()], watched


async def prove_sound(path: Path, acks: list[Any]) -> None:
    ledger = await SqliteLedger.open(path)
    try:
        check_integrity(path)
        await check_whole(ledger.views)
        await check_acknowledged(ledger.views, acks)
    finally:
        await ledger.close()


async def prove_rounds(memory: Path, told: list[dict[str, Any]], watched: shim.Shim) -> None:
    """Each database as it was left, and as it is when the power went with the process."""
    chance = random.Random(int(os.environ.get("SEED", "1")))
    disk = Disk()
    for call in read_notes(watched.notes):
        disk.perform(call, chance)
    for nth, survival in enumerate(SURVIVALS):
        image = memory / str(nth)
        image.mkdir()
        disk.image(image, chance, survival)
        for each in told:
            name = str(each["n"])
            await prove_sound(image / name / PATH, acks_in(disk.content(f"{name}/{ACKS}")))
    for each in told:
        folder = watched.root / str(each["n"])
        await prove_sound(folder / PATH, acks_in((folder / ACKS).read_bytes()))


SWEEPS = {
    "sync of the WAL": {"kinds": SYNC, "files": WAL},
    "write to the WAL": {"kinds": WRITE, "files": WAL},
    "half a write to the WAL": {"kinds": WRITE, "files": WAL, "is_torn": True},
}


@pytest.mark.parametrize("what", ["sync of the WAL", pytest.param("half a write to the WAL", marks=pytest.mark.soak)])
async def test_after_a_failed_write_or_sync_the_worker_stops_and_nothing_acknowledged_is_lost(
    memory: Path, tmp_path: Path, what: str
):
    rounds = [0, 10, 20, 27] if what == "sync of the WAL" else list(range(1, 100, 33))
    told, watched = sweep(tmp_path, rounds=rounds, error=errno.EIO, voyages=3, **SWEEPS[what])
    check_stopped(told)
    await prove_rounds(memory, told, watched)


@pytest.mark.soak
@pytest.mark.parametrize("what", SWEEPS)
async def test_any_write_or_sync_may_fail(memory: Path, tmp_path: Path, what: str):
    told, watched = sweep(tmp_path, rounds=list(range(50)), error=errno.EIO, voyages=3, **SWEEPS[what])
    check_stopped(told)
    await prove_rounds(memory, told, watched)


@pytest.mark.soak
async def test_a_read_that_fails_is_final_too(memory: Path, tmp_path: Path):
    """SQLite takes what it could not read of the WAL for damage."""
    told, watched = sweep(tmp_path, rounds=[0, 2, 4], error=errno.EIO, kinds=READ, files=DATABASE | WAL)
    for each in told:
        assert each["worker"] == each["later"], each
        assert each["worker"] in ("store_failed", "store_corrupt")
    await prove_rounds(memory, told, watched)


@pytest.mark.parametrize("kinds", [SYNC, pytest.param(WRITE | TRUNCATE, marks=pytest.mark.soak)])
async def test_a_copy_of_the_wal_that_fails_loses_nothing(memory: Path, tmp_path: Path, kinds: int):
    """SQLite keeps quiet about it at a commit, and copies all of it again at the next."""
    told, watched = sweep(
        tmp_path, rounds=[0, 1], error=errno.EIO, kinds=kinds, files=DATABASE, pragmas=[OFTEN], is_final=False
    )
    assert [each["failed"] for each in told] == [1, 1]
    await prove_rounds(memory, told, watched)


@pytest.mark.soak
@pytest.mark.parametrize("how", [{"lull": 1}, {"wal_is_too_long": 100_000}], ids=["at rest", "grown too long"])
async def test_a_store_at_rest_finds_out_that_its_wal_cannot_be_copied(
    memory: Path, tmp_path: Path, how: dict[str, int]
):
    told, watched = sweep(tmp_path, rounds=[0], error=errno.EIO, kinds=SYNC, files=DATABASE, times=-1, voyages=3, **how)
    check_stopped(told)
    await prove_rounds(memory, told, watched)


@pytest.mark.parametrize("is_marked", [True, pytest.param(False, marks=pytest.mark.soak)])
async def test_the_next_to_open_writes_anew_what_a_failed_sync_may_have_lost(
    memory: Path, tmp_path: Path, is_marked: bool
):
    """The kernel shows it to the next process as if it were on the disk. Without the mark this fails, as it should."""
    order = {"rounds": [20], "kinds": SYNC, "files": WAL, "error": errno.EIO, "dies": True}
    (told,), watched = sweep(tmp_path, **order)
    assert told["worker"] == "store_failed"
    root = watched.root / "20"
    lock = root / f"{PATH}-lock"
    assert lock.stat().st_size
    if not is_marked:
        os.truncate(lock, 0)
    command = [sys.executable, "-m", "tests.faults.subject", str(root), json.dumps({"is_cut": True})]
    subprocess.run(command, cwd=shim.ROOT, env=os.environ | watched.environment, check=True, timeout=120)
    assert not lock.stat().st_size
    calls, losses = read_notes(watched.notes), 0
    for nth in range(10):
        chance = random.Random(nth)
        disk = Disk()
        for call in calls:
            disk.perform(call, chance)
        image = memory / str(nth)
        image.mkdir()
        disk.image(image, chance, SURVIVALS[nth % len(SURVIVALS)])
        try:
            await prove_sound(image / "20" / PATH, acks_in(disk.content(f"20/{ACKS}")))
        except Loss:
            losses += 1
    assert (losses == 0) == is_marked


@pytest.mark.soak
async def test_a_full_disk_is_waited_for(memory: Path, tmp_path: Path):
    told, watched = sweep(
        tmp_path, rounds=[10, 40], error=errno.ENOSPC, kinds=WRITE, files=WAL, times=3, is_final=False, is_patient=True
    )
    assert [(each["caller"], each["failed"]) for each in told] == [(None, 3)] * 2
    await prove_rounds(memory, told, watched)


@pytest.mark.parametrize("error", [errno.EIO, pytest.param(errno.ENOSPC, marks=pytest.mark.soak)])
async def test_the_worker_of_the_command_line_ends_with_a_clear_word_unless_the_disk_is_only_full(
    tmp_path: Path, error: int, monkeypatch: pytest.MonkeyPatch
):
    root, scratch = tmp_path / "root", tmp_path / "scratch"
    root.mkdir()
    scratch.mkdir()
    watched = shim.Shim(root, scratch)
    outrider = [sys.executable, "-m", "outrider.cli"]
    there = {
        "OUTRIDER_DB": str(root / "work.db"),
        "OUTRIDER_APP": "tests.crash.voyage:app",
        EFFECTS: str(tmp_path / "e"),
    }
    environment = os.environ | watched.environment | there
    monkeypatch.setenv(EFFECTS, there[EFFECTS])
    async with app.open(there["OUTRIDER_DB"], worker=False) as runtime:
        task = await (await runtime.sessions.create()).spawn("hold", seconds=1)
        with subprocess.Popen(
            [*outrider, "worker"], cwd=shim.ROOT, env=environment, stderr=subprocess.PIPE, text=True
        ) as worker:
            try:
                assert worker.stderr is not None
                assert "works on" in worker.stderr.readline()
                await until(lambda: bool(effects_in(tmp_path / "e")))
                watched.fail(SYNC if error == errno.EIO else WRITE, WAL, times=-1, error=error)
                if error == errno.EIO:
                    assert await asyncio.to_thread(worker.wait, 20) == STORE
                    said = worker.stderr.read()
                    assert "outrider: the disk failed under the database" in said
                    assert "Traceback" not in said
                else:
                    assert "no space is left" in await asyncio.to_thread(worker.stderr.readline)
                    watched.heal()
                    assert await task.result(timeout=20) == "held"
            finally:
                worker.terminate()
    if error == errno.EIO:
        async with app.open(there["OUTRIDER_DB"]) as runtime:
            again = await runtime.task(task.id)
            assert await again.result(timeout=20) == "held"
            assert [attempt.ending for attempt in await again.attempts()] == ["released", "succeeded"]
            assert (await again.record()).failures == 0


def check_stopped(told: list[dict[str, Any]]) -> None:
    """Whoever met the failure was told so, by the same code, and so is whoever comes later."""
    met = [each for each in told if each["failed"]]
    assert len(met) >= 0.7 * len(told), f"few met a failure: {told}"
    for each in met:
        assert each["worker"] == each["later"] == "store_failed", each
        assert each["caller"] in ("store_failed", None), each
