"""Tools that take more than their share."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from outrider import Outrider, SyncTaskContext, TaskContext

app = Outrider()

BREEDER = """
import os, sys
depth, width, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
def breed(depth):
    with open(os.path.join(folder, str(os.getpid())), "w"):
        pass
    born = []
    for _ in range(width if depth else 0):
        pid = os.fork()
        if pid == 0:
            breed(depth - 1)
            os._exit(0)
        born.append(pid)
    for pid in born:
        os.waitpid(pid, 0)
breed(depth)
"""


@app.tool
def bomb(task: SyncTaskContext, depth: int, width: int, folder: str) -> str:
    """Children that have children that have children."""
    subprocess.run([sys.executable, "-c", BREEDER, str(depth), str(width), folder], check=True)
    return "spent"


@app.tool
async def forks(task: TaskContext, folder: str, count: int) -> str:
    """Copies of the worker itself, as `multiprocessing` makes them."""
    born = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            (Path(folder) / str(os.getpid())).touch()
            os._exit(0)
        born.append(pid)
    for pid in born:
        await asyncio.to_thread(os.waitpid, pid, 0)
    return "spent"


@app.tool
async def shout(task: TaskContext, megabytes: int) -> int:
    """Print without a pause, in pieces of 64 KiB."""
    piece = ("x" * 1023 + "\n") * 64
    for _ in range(megabytes * 16):
        task.output(piece)
        await asyncio.sleep(0)
    return megabytes


@app.tool
def shout_from_a_thread(task: SyncTaskContext, megabytes: int) -> int:
    """The same from a thread."""
    piece = ("x" * 1023 + "\n") * 64
    for _ in range(megabytes * 16):
        task.output(piece)
    return megabytes


@app.tool
async def tick(task: TaskContext, n: int) -> int:
    """A small task among the large."""
    return await task.step("tick", int, n)
