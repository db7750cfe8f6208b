"""Rounds, medians, raw limits and the report: everything that is the same for all benchmarks.

Each round runs in a process of its own, so that neither memory nor caches nor a stuck thread of one reaches the next;
the raw limits of the machine are measured here, before each of them. A benchmark is a module with `KEYS`, `tasks` and
`run`. It raises `Lost` when its work was not done exactly once, and then the program fails, however fast it was.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import platform
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, cast

import outrider
from benchmarks import bare_postgres, raw

Store: TypeAlias = Literal["sqlite", "postgres", "memory"]
Figures: TypeAlias = Mapping[str, float | None]
"""What a round measured, by key; None where the setting has no such figure."""

NAMES = (
    *(
        "tasks",
        "steps",
        "recovery",
        "output",
        "history",
        "agent",
        "turns",
        "wake",
        "fanout",
        "parked",
        "queue",
        "neighbours",
        "sse",
        "http",
        "list",
    ),
    *("costs", "writer"),
)


class Lost(Exception):
    """The benchmark's work was not done exactly once; its figures mean nothing."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a benchmark is run."""

    name: str
    store: Store = "sqlite"
    workers: int = 1
    full: bool = False
    rounds: int = 3
    tasks: int | None = None
    hosts: int = 1
    lease: float | None = None
    """After how many seconds of silence a worker counts as lost; None for the default."""
    directory: str | None = None
    """Where the stores are put; a disk, or the figures are those of memory. None for the temporary directory."""
    server: str | None = None
    """The address of a PostgreSQL server; None for one of our own, the newest at hand, in the temporary directory."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one round works. `shared` outlives the round; everything is deleted after the last."""

    settings: Settings
    number: int
    """The round's number, from 0: pairs alternate with it."""
    path: Path
    shared: Path
    tasks: int

    def url(self, name: str = "outrider") -> str:
        """The address of a store of this round; a new one, the first time it is opened."""
        match self.settings.store:
            case "sqlite":
                return sqlite_url(self.path / f"{name}.db")
            case "memory":
                return "memory://"
            case "postgres":
                return self._database(f"{self.path.name}_{name}")

    def shared_url(self, name: str) -> str:
        """The address of a store that outlives the round."""
        if self.settings.store == "postgres":
            return self._database(f"shared_{name}")
        return sqlite_url(self.shared / f"{name}.db")

    def _database(self, name: str) -> str:
        assert self.settings.server is not None
        return bare_postgres.create(self.settings.server, f"bench_{os.getppid()}_{name}".replace("-", "_"))


class Benchmark(Protocol):
    """What a benchmark's module offers."""

    KEYS: tuple[str, ...]

    def tasks(self, settings: Settings) -> int:
        """How many tasks there are when `--tasks` does not say."""
        ...

    def run(self, place: Place) -> Coroutine[None, None, Figures]:
        """Do the work once, check it, and return a figure for each key."""
        ...


@dataclass(frozen=True, slots=True)
class Report:
    """What all rounds found. `failed` says why there is nothing to report, when there is not."""

    settings: Mapping[str, object]
    keys: tuple[str, ...]
    rounds: Sequence[Figures] = ()
    limits: Sequence[Figures] = ()
    failed: str | None = None
    machine: Mapping[str, object] = field(default_factory=dict)

    def medians(self) -> dict[str, float | None]:
        """The median of each key and of each raw limit."""
        of_rounds = {key: _median(self.rounds, key) for key in self.keys}
        return of_rounds | {key: _median(self.limits, key) for key in raw.KEYS}


def sqlite_url(path: Path) -> str:
    """The address of a SQLite file."""
    return f"sqlite:///{path}"


def find(name: str) -> Benchmark:
    """The benchmark of that name."""
    return cast(Benchmark, importlib.import_module(f"benchmarks.{name}"))


def measure(settings: Settings) -> Report:
    """Run all rounds with the raw limits between them. Takes seconds to a minute, more with `full`."""
    if settings.store == "postgres" and settings.server is None:
        with bare_postgres.server() as url:
            return _measure(replace(settings, server=url))
    return _measure(settings)


def _measure(settings: Settings) -> Report:
    benchmark = find(settings.name)
    tasks = settings.tasks or benchmark.tasks(settings)
    described = _describe(settings, tasks)
    rounds: list[Figures] = []
    limits: list[Figures] = []
    root = Path(tempfile.mkdtemp(prefix="outrider-benchmark-", dir=settings.directory))
    try:
        for number in range(settings.rounds):
            limits.append(raw.limits(settings.store, root / f"raw-{number}", tasks, settings.server))
            os.sync()  # else the disk is still busy with what that wrote while the round is timed
            rounds.append(_round_in_a_process(settings, number, tasks, root))
    except Lost as lost:
        return Report(described, benchmark.KEYS, rounds, limits, str(lost), _machine())
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return Report(described, benchmark.KEYS, rounds, limits, None, _machine())


def play(settings: Settings, number: int, tasks: int, root: Path) -> Figures:
    """Play one round in this process. Raises Lost."""
    benchmark = find(settings.name)
    path, shared = root / f"round-{number}", root / "shared"
    path.mkdir(parents=True)
    shared.mkdir(exist_ok=True)
    try:
        figures = asyncio.run(benchmark.run(Place(settings, number, path, shared, tasks)))
    finally:
        shutil.rmtree(path, ignore_errors=True)
    missing = set(benchmark.KEYS) ^ set(figures)
    if missing:
        raise Lost(f"figures and keys disagree about {', '.join(sorted(missing))}")
    return figures


def check(holds: bool, otherwise: str) -> None:
    """Raise Lost, saying what was found `otherwise`, unless the condition holds."""
    if not holds:
        raise Lost(otherwise)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all values do not exceed: 0.5 for the median, 0.99 for the slow ones."""
    ranked = sorted(values)
    check(bool(ranked), "nothing was measured")
    return ranked[min(len(ranked) - 1, int(len(ranked) * share))]


def resident_mb() -> float:
    """The memory that this process holds now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def as_json(report: Report) -> str:
    """The report as one line: the keys and raw limits flat, beside the settings and every round."""
    body: dict[str, object] = {"benchmark": report.settings["benchmark"], "ok": report.failed is None}
    if report.failed is None:
        body |= {key: _short(value) for key, value in report.medians().items()}
    else:
        body["failed"] = report.failed
    body["settings"] = dict(report.settings)
    body["machine"] = dict(report.machine)
    body["rounds"] = [
        {key: _short(value) for key, value in {**limits, **figures}.items()}
        for figures, limits in zip(report.rounds, report.limits, strict=False)
    ]
    return json.dumps(body)


def as_table(report: Report) -> str:
    """The report for people: median, least and most of each key, then the raw limits of the same minutes."""
    lines = [", ".join(f"{name} {value}" for name, value in report.settings.items() if value is not None), ""]
    lines.append(f"{'':28}{'median':>12}{'least':>12}{'most':>12}")
    lines += [_row(key, report.rounds) for key in report.keys]
    lines.append("")
    lines += [_row(key, report.limits) for key in raw.KEYS]
    for key, limit in RATIOS.items():
        if key in report.keys and report.failed is None:
            lines.append(_ratio(report.medians(), key, limit))
    if report.failed is not None:
        lines += ["", f"FAILED: {report.failed}"]
    return "\n".join(lines)


RATIOS = {
    "enqueue_per_s": "raw_commits_per_s",
    "tasks_per_s": "raw_tasks_per_s",
    "tasks_per_s_empty": "raw_tasks_per_s",
    "step_p50_ms": "raw_fsync_p50_ms",
    "steps_per_s": "raw_commits_per_s",
}
"""Which limit a figure is read against."""


def _round_in_a_process(settings: Settings, number: int, tasks: int, root: Path) -> Figures:
    order = {"settings": asdict(settings), "number": number, "tasks": tasks, "root": str(root)}
    # A session of its own, so that what a stuck round leaves behind ends with it.
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.round", json.dumps(order)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    patience = 3600 if settings.full else 300
    try:
        printed, _ = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        raise Lost(f"round {number} had not ended after {patience} s") from None
    finally:
        _end(process)
    try:
        said = json.loads(printed.splitlines()[-1])
    except (IndexError, ValueError):
        raise Lost(f"round {number} ended with exit status {process.returncode} and no figures") from None
    if "failed" in said:
        raise Lost(f"round {number}: {said['failed']}")
    return cast(Figures, said["figures"])


def _end(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def _describe(settings: Settings, tasks: int) -> Mapping[str, object]:
    return {
        "benchmark": settings.name,
        "store": settings.store,
        "workers": settings.workers,
        "hosts": settings.hosts,
        "lease": settings.lease,
        "tasks": tasks,
        "full": settings.full,
        "rounds": settings.rounds,
    }


def _machine() -> Mapping[str, object]:
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "outrider": outrider.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _values(rounds: Sequence[Figures], key: str) -> list[float]:
    return [value for value in (figures.get(key) for figures in rounds) if value is not None]


def _median(rounds: Sequence[Figures], key: str) -> float | None:
    values = _values(rounds, key)
    return statistics.median(values) if values else None


def _short(value: float | None) -> float | None:
    """Four significant digits, counts as they are: more would be noise."""
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.4g}")


def _row(key: str, rounds: Sequence[Figures]) -> str:
    values = _values(rounds, key)
    if not values:
        return f"{key:28}{'-':>12}{'-':>12}{'-':>12}"
    return f"{key:28}" + "".join(
        f"{_plain(value):>12}" for value in (statistics.median(values), min(values), max(values))
    )


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _ratio(medians: Mapping[str, float | None], key: str, limit: str) -> str:
    value, bound = medians[key], medians[limit]
    share = "-" if value is None or not bound else f"{value / bound:.3f}"
    return f"{key + ' / ' + limit:52}{share:>12}"
