"""The command line, `outrider`: the same verbs as the façade, on a database of this machine.

Only `program` is imported to start with, and each command imports what it needs: `outrider tasks` has to be there
within 0.3 s, and half of that is Python, asyncio and the store.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code (see `exits`)."""
    from outrider.cli.program import run

    return run(argv)
