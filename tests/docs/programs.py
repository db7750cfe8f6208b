"""Runs programs the way a reader would: as processes of their own, in an empty folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from outrider import Outrider

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PATIENCE = 60


def environment(**variables: str) -> dict[str, str]:
    """This process's environment with the project's commands on the path, and nothing that names a model or a store."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OUTRIDER_", "OPENAI_")) and name not in ("MODEL", "DEADLINE")
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    return {**kept, "PATH": path, "USER": "reader", **variables}


def run(program: Path, *arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end. It has to end with 0."""
    done = subprocess.run(
        [sys.executable, str(program), *arguments],
        cwd=folder,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, f"{program.name} {arguments} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a program said."""
    return done.stdout.splitlines()


async def dismiss_workers(folder: Path) -> None:
    """End the worker that `--background` left, which would stay for a minute."""
    async with Outrider().open(str(folder / ".outrider" / "outrider.db"), worker=False) as outrider:
        for worker in await outrider.workers():
            with suppress(ProcessLookupError):  # one that was killed stands there until somebody finds its work
                os.kill(worker.pid, signal.SIGTERM)
