"""`python -m benchmarks NAME [--json]`: run one benchmark, print a table, and as the last line one JSON object.

Exits with 1 when the work of a benchmark was not done exactly once: such figures are not reported.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.harness import NAMES, Settings, as_json, as_table, measure


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit status."""
    settings, wants_json = _read(arguments)
    report = measure(settings)
    print(as_table(report), flush=True)
    if wants_json:
        print(as_json(report), flush=True)
    return 0 if report.failed is None else 1


def _read(arguments: list[str] | None) -> tuple[Settings, bool]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Outrider on this machine.")
    parser.add_argument("name", choices=NAMES, help="what to measure")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--store", choices=("sqlite", "postgres", "memory"), default="sqlite")
    parser.add_argument("--workers", type=_positive, default=1, help="worker processes; the first is the caller's own")
    parser.add_argument("--full", action="store_true", help="the long form, which may take many minutes")
    parser.add_argument("--rounds", type=_positive, default=3, help="figures are their medians")
    parser.add_argument("--tasks", type=_positive, help="how many tasks, instead of the benchmark's own number")
    parser.add_argument("--hosts", type=int, choices=(1, 2), default=1, help="recovery: where the survivor is")
    parser.add_argument("--lease", type=float, help="recovery: seconds of silence after which a worker counts as lost")
    parser.add_argument("--directory", help="where to put the stores; must be on a disk to mean anything")
    parser.add_argument("--server", metavar="URL", help="a PostgreSQL server to measure, instead of one of our own")
    told = vars(parser.parse_args(arguments))
    wants_json = bool(told.pop("json"))
    return Settings(**told), wants_json


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
