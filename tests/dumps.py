"""Saving a PostgreSQL database and putting it back, with the programs that come with the server."""

import subprocess
from pathlib import Path

from tests.servers import Programs

PATIENCE = 60


def dump(programs: Programs, url: str, file: Path) -> None:
    """Save a database, while it is in use, as docs/deployment.md says."""
    _run(programs, "pg_dump", "--format=custom", f"--file={file}", url)


def restore(programs: Programs, file: Path, url: str) -> None:
    """Put what was saved into an empty database, as docs/deployment.md says."""
    _run(programs, "pg_restore", "--exit-on-error", "--single-transaction", "--no-owner", f"--dbname={url}", str(file))


def _run(programs: Programs, name: str, *arguments: str) -> None:
    done = subprocess.run(
        [programs.bin / name, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, f"{name} ended with {done.returncode}:\n{done.stderr}"
