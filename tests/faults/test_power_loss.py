"""Power loss at any moment: the files as they may be afterwards are sound, and hold all that was acknowledged.

A worker's calls on its files are noted by the shim while it works, with each acknowledgement between them. The notes
are cut at hundreds of places; of each the files are built as a disk may have them (`disk`), opened by the real store,
held against what had been acknowledged by then, and worked on. `SEED` in the environment repeats a run.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from outrider.core.errors import StoreError
from outrider.core.task import State
from outrider.stores.sqlite import SqliteLedger
from tests.crash import voyage
from tests.crash.proof import prove
from tests.crash.test_kills import answer_all
from tests.faults import shim
from tests.faults.disk import SURVIVALS, Call, Disk, Survival, cuts, read_notes, replays
from tests.faults.proof import Loss, acks_in, check_acknowledged, check_integrity, check_whole
from tests.faults.subject import ACKS, DATABASE, EFFECTS
from tests.stores.scene import Scene

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

OFTEN = "pragma wal_autocheckpoint = 60"
"""So that the WAL is copied and begun anew many times in a short trace."""


@dataclass
class Trace:
    """What a program has done, and the seed for what the disk makes of it."""

    calls: list[Call]
    chance: random.Random


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return record(tmp_path_factory.mktemp("trace"), rounds=2, voyages=2, pragmas=[OFTEN])


def record(folder: Path, **order: Any) -> Trace:
    """Let the subject work to its end, and note it."""
    seed = int(os.environ.get("SEED", "0")) or random.randrange(1, 10**6)
    print(f"SEED={seed}")
    root, scratch = folder / "root", folder / "scratch"
    root.mkdir()
    scratch.mkdir()
    watched = shim.Shim(root, scratch)
    command = [sys.executable, "-m", "tests.faults.subject", str(root), json.dumps(order)]
    subprocess.run(command, cwd=shim.ROOT, env=os.environ | watched.environment, check=True, timeout=120)
    trace = Trace(read_notes(watched.notes), random.Random(seed))
    check_notes(trace.calls, root)
    return trace


def check_notes(calls: list[Call], root: Path) -> None:
    """The notes lack nothing: played back to their end, they give the very files that are there."""
    disk, chance = Disk(), random.Random(0)
    for call in calls:
        disk.perform(call, chance)
    names = {name for name in disk.names() if not name.endswith(("-shm", ".lock"))}
    assert {ACKS, DATABASE} <= names
    for name in names:
        assert disk.content(name) == (root / name).read_bytes(), f"a write to {name} was not noted"


async def test_what_was_acknowledged_survives_a_loss_of_power_at_any_write(memory: Path, trace: Trace):
    met = Counter(call.what for call in trace.calls)
    begun_anew = [call for call in trace.calls if call.name.endswith("-wal") and call.what == "W" and call.at == 0]
    assert len(begun_anew) > 3, "the WAL was never begun anew"
    assert met["U"], "nothing was ever closed"
    await prove_images(memory, trace, 60, work_on_every=15)


async def test_a_database_whose_making_was_cut_off_anywhere_is_made_by_the_next_who_opens_it(
    memory: Path, tmp_path: Path
):
    await prove_images(memory, record(tmp_path, rounds=0), 40, work_on_every=100)


async def test_with_synchronous_normal_acknowledged_work_is_lost_and_the_proof_sees_it(memory: Path, tmp_path: Path):
    trace = record(tmp_path, rounds=1, voyages=2, pragmas=[OFTEN, "pragma synchronous = normal"])
    lost = 0
    for nth, (cut, disk) in enumerate(replays(trace.calls, cuts(trace.calls, 24, trace.chance), trace.chance)):
        try:
            await prove_image(build(memory, trace, disk, SURVIVALS[nth % len(SURVIVALS)]), acks_at(disk))
        except Loss:
            lost += 1
        except BaseException as error:
            error.add_note(f"image {nth}, after {cut} calls")
            raise
    assert lost >= 3


async def test_on_a_disk_that_only_says_that_it_has_synced_the_proof_fails(memory: Path, trace: Trace):
    disk, failures = Disk(lies=True), 0
    for n, call in enumerate(trace.calls):
        disk.perform(call, trace.chance)
        if n % (len(trace.calls) // 10) == 0 and call.name != ".":
            try:
                await prove_image(build(memory, trace, disk, "sectors"), acks_at(disk))
            except (AssertionError, StoreError, sqlite3.Error):
                failures += 1
    assert failures >= 5


@pytest.mark.soak
async def test_a_thousand_losses_of_power(memory: Path, tmp_path: Path):
    orders: list[dict[str, Any]] = [
        {"rounds": 3, "voyages": 3, "pragmas": [OFTEN]},
        {"rounds": 6, "voyages": 8, "lull": 0.6},
        {"rounds": 2, "voyages": 10, "pragmas": ["pragma wal_autocheckpoint = 300"]},
    ]
    for number, order in enumerate(orders):
        folder = tmp_path / str(number)
        folder.mkdir()
        await prove_images(memory, record(folder, **order), 500, work_on_every=20)


async def prove_images(memory: Path, trace: Trace, number: int, *, work_on_every: int) -> None:
    kept: Counter[str] = Counter()
    for nth, (cut, disk) in enumerate(replays(trace.calls, cuts(trace.calls, number, trace.chance), trace.chance)):
        survival = SURVIVALS[nth % len(SURVIVALS)]
        kept[survival] += 1
        try:
            image = build(memory, trace, disk, survival)
            await prove_image(image, acks_at(disk))
            if nth % work_on_every == work_on_every - 1:
                await work_on(image)
        except BaseException as error:
            error.add_note(f"image {nth}, {survival}, after {cut} of {len(trace.calls)} calls")
            raise
    assert kept.keys() == set(SURVIVALS)


def acks_at(disk: Disk) -> list[Any]:
    """What had been acknowledged."""
    return acks_in(disk.content(ACKS)) if ACKS in disk.names() else []


def build(memory: Path, trace: Trace, disk: Disk, survival: Survival) -> Path:
    """The files after the loss. What the steps did outside is not undone by it."""
    image = memory / "image"
    shutil.rmtree(image, ignore_errors=True)
    image.mkdir()
    disk.image(image, trace.chance, survival)
    (image / EFFECTS).write_bytes(disk.content(EFFECTS) if EFFECTS in disk.names() else b"")
    return image


async def prove_image(image: Path, acks: list[Any]) -> None:
    """Open it, hold it against what was acknowledged, and see that it can be written."""
    path = image / DATABASE
    ledger = await SqliteLedger.open(path)
    try:
        check_integrity(path)
        await check_whole(ledger.views)
        await check_acknowledged(ledger.views, acks)
        scene = Scene(ledger, now=2_000_000_000_000_000)
        await scene.session("session_afterwards")
        task = await scene.running("task_afterwards", "session_afterwards")
        assert (await scene.succeed(task.id, b"1")).state is State.SUCCEEDED
        await check_whole(ledger.views)
    finally:
        await ledger.close()


async def work_on(image: Path) -> None:
    """Let a worker finish what was under way, and hold that against what the steps did before and after."""
    os.environ[voyage.EFFECTS] = str(image / EFFECTS)
    async with voyage.app.open(str(image / DATABASE)) as runtime:
        for session in await runtime.sessions.list():
            handles = [await runtime.task(task.id) for task in await runtime.tasks.list(session_id=session.id)]
            for handle in handles:
                if (await handle.record()).display_name == "voyage" and not await handle.messages(direction="inbound"):
                    await handle.message("fair wind")  # its sender lost power before
            if handles and session.id != "session_afterwards":
                await answer_all(runtime, handles)
                mine = {handle.id for handle in await runtime.tasks.list(session_id=session.id)}
                lines = (image / EFFECTS).read_text().splitlines(keepends=True)
                effects = image / f"{EFFECTS}-{session.id}"
                effects.write_text("".join(line for line in lines if line.split("\t")[0] in mine))
                await prove(runtime, session.id, effects)
