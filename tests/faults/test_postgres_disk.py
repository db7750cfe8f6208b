"""The disk of the PostgreSQL server runs full: callers are told, nothing is half written, and work goes on after it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from outrider.core.errors import StoreFull
from outrider.stores.postgres import PostgresLedger
from tests.servers import Server
from tests.stores.scene import Scene

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SMALL = 40 << 20
"""Bytes. An empty database takes 8 MB of them."""

BALLAST = 16 << 20


@pytest.fixture
def small_disk(own_postgres: Server) -> Iterator[Path]:
    """A disk that the server reaches and that is soon full."""
    folder = own_postgres.folder / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL},mode=0777", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        # A disk cannot be filled without one of its own: any other is everybody's.
        pytest.skip("only root can mount a small disk, where a container lets it")
    try:
        space = folder / "space"
        space.mkdir()
        owner = own_postgres.data.stat()
        os.chown(space, owner.st_uid, owner.st_gid)
        yield folder
    finally:
        own_postgres.stop("immediate")
        subprocess.run(["umount", str(folder)], check=True)


async def test_on_a_full_disk_callers_are_told_and_what_was_acknowledged_stays(own_postgres: Server, small_disk: Path):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(BALLAST))
    with closing(psycopg.connect(own_postgres.url(), autocommit=True)) as connection:
        connection.execute(f"create tablespace small location '{small_disk / 'space'}'".encode())
        connection.execute("create database work template template0 tablespace small strategy file_copy")
    ledger = await PostgresLedger.open(own_postgres.url("work"))
    scene = Scene(ledger)
    await scene.session()
    made = await _fill(scene)
    with pytest.raises(StoreFull):
        await _create(scene, made)
    await _prove(scene, made)

    ballast.unlink()
    await _create(scene, made)
    await _prove(scene, made + 1)
    await ledger.close()


async def _fill(scene: Scene) -> int:
    """Create tasks until there is no space; how many there are."""
    for number in range(1000):
        try:
            await _create(scene, number)
        except StoreFull:
            return number
    raise AssertionError("the disk is never full")


async def _create(scene: Scene, number: int) -> None:
    await scene.create(f"task_{number:04}", spec={"bulk": os.urandom(100_000).hex()})


async def _prove(scene: Scene, made: int) -> None:
    assert sorted(await scene.views.task_ids("", 10_000)) == [f"task_{n:04}" for n in range(made)]
    assert [row.seq for row in await scene.log()] == list(range(1, made + 2))
    assert not await scene.views.problems()
