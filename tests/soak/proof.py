"""What must hold all the time, told by the log as it grows; and what must hold whenever everything has come to rest.

`Follower` reads the log of all sessions from outside, in the order of commit, and so knows at each moment who holds
what. A database at rest is looked at in a backup: in the real one what has ended is being deleted meanwhile.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

from outrider.bootstrap import open_ledger
from tests.faults.proof import check_integrity, check_whole
from tests.soak.app import BERTHS, MAIL, ONCE, PER, TANDEM

MICROSECONDS = 1_000_000

_NEWS = """
select e.position, s.id, s.first_seq, e.seq, t.id, t.concurrency_key, t.route, e.type, e.data
from events e join sessions s on s.number = e.session left join tasks t on t.number = e.task
where e.position > ? order by e.position limit 5000
"""


class Follower:
    """Reads all that is written, and checks that no limit is exceeded, no entry missing, no end told twice."""

    def __init__(self, database: Path) -> None:
        self._connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30, check_same_thread=False)
        self._position = 0
        self._seqs: dict[str, int] = {}
        self._held: defaultdict[str, set[str]] = defaultdict(set)
        self._starts: list[int] = []
        self._ended: set[str] = set()
        self.most_held: Counter[str] = Counter()
        self.entries = 0
        self.ends: Counter[str] = Counter()

    def close(self) -> None:
        self._connection.close()

    def read(self) -> None:
        """Read to the end, as of now."""
        while page := self._connection.execute(_NEWS, (self._position,)).fetchall():
            for row in page:
                self._take(*row)
            self._position = page[-1][0]

    def _take(
        self,
        _position: int,
        session: str,
        first_seq: int,
        seq: int,
        task: str | None,
        key: str | None,
        route: str | None,
        kind: str,
        data: str,
    ) -> None:
        self.entries += 1
        before = self._seqs.get(session, 0)
        assert seq > before, f"entry {seq} of {session} came after {before}"
        assert seq == before + 1 or seq <= first_seq, f"entries of {session} are missing: {before + 1} to {seq - 1}"
        self._seqs[session] = seq
        if task is None or kind != "task.updated":
            return
        core: dict[str, Any] = json.loads(data).get("core", {})
        if core.get("finished_at") is not None:
            assert task not in self._ended, f"{task} ended twice"
            self._ended.add(task)
            self.ends[f"{(route or '').partition(':')[0]} {core['state']}"] += 1
        if key is not None and "worker_id" in core:
            self._hold(key, task, core)

    def _hold(self, key: str, task: str, core: dict[str, Any]) -> None:
        held = self._held[key]
        if core["worker_id"] is None:
            held.discard(task)
            return
        held.add(task)
        name, _, _ = key.partition(":")
        self.most_held[name] = max(self.most_held[name], len(held))
        if key == "mail":
            self._starts = sorted([*self._starts, core["attempt_started_at"]])[-10 * MAIL :]
            near = [at for at in self._starts if core["attempt_started_at"] - PER * MICROSECONDS < at]
            assert len([at for at in near if at <= core["attempt_started_at"]]) <= MAIL, f"too many starts: {near}"
            return
        if name == "post":
            return
        most = BERTHS if key == "berth" else TANDEM if name == "tandem" else 1
        assert len(held) <= most, f"{key} admits {most}, and these are held: {held}"


class Book:
    """The file in which steps say that they ran, held against what the journal told those who waited."""

    def __init__(self, book: Path, claims: list[Path]) -> None:
        self._book = book
        self._claims = claims
        self._read: Counter[Path] = Counter()
        self.lines = self.repeated = 0

    def check(self) -> None:
        """Check what was written since the last time; all the tasks of it have ended."""
        told: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        by_name: Counter[str] = Counter()
        for line in self._news(self._book):
            task, name, attempt = line.split("\t")
            told[task, name].append(int(attempt))
            by_name[name] += 1
            self.lines += 1
        for (task, name), attempts in told.items():
            assert len(set(attempts)) == len(attempts), f"{name} of {task} ran twice in one attempt: {attempts}"
            self.repeated += len(attempts) - 1
            if name == ONCE:
                assert len(attempts) == 1, f"{name} of {task} is once, and ran in {attempts}"
        for path in self._claims:
            for line in self._news(path):
                claim = json.loads(line)
                for name, attempt in claim["steps"].items():
                    if claim["task"] == "resource":
                        assert by_name[name], f"{name} is not in the book"
                    elif attempt > 0:
                        attempts = told[claim["task"], name]
                        where = f"{name} of {claim['task']} counts as of {attempt}, and ran in {attempts}"
                        assert attempt in attempts, where
                        assert max(attempts) <= attempt, where

    def _news(self, path: Path) -> list[str]:
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(self._read[path])
            content = file.read()
        self._read[path] += len(content)
        return content.decode().splitlines()


async def check_backup(backup: Path) -> int:
    """A saved database at rest is sound and agrees with itself, and nothing in it lives; how many tasks it has."""
    check_integrity(backup)
    ledger = await open_ledger(str(backup))
    try:
        await check_whole(ledger.views)
        assert not await ledger.views.follow_ups(10), "follow-ups were not applied"
    finally:
        await ledger.close()
    with closing(sqlite3.connect(backup)) as connection:
        living = connection.execute("select id, state from tasks where finished_at is null").fetchall()
        assert not living, f"these never ended: {living}"
        counted = dict(connection.execute("select state, tasks from counts where tasks"))
        there = dict(connection.execute("select state, count(*) from tasks group by state"))
        assert counted == there, f"counted {counted}, there are {there}"
        for table, (one, many) in _BELONG.items():
            lost = connection.execute(f"select count(*) from {table} where {one} not in ({many})").fetchone()[0]
            assert not lost, f"{lost} rows of {table} belong to nothing"
        return sum(there.values())


_TASKS, _SESSIONS = "select number from tasks", "select number from sessions"
_BELONG = {
    "tasks": ("session", _SESSIONS),
    "inputs": ("task", _TASKS),
    "steps": ("task", _TASKS),
    "attempts": ("task", _TASKS),
    "requests": ("task", _TASKS),
    "messages": ("task", _TASKS),
    "outputs": ("task", _TASKS),
    "output": ("task", _TASKS),
    "events": ("session", _SESSIONS),
    "transcript": ("session", _SESSIONS),
    "inbox": ("session", _SESSIONS),
    "watches": ("awaited", "select id from tasks where finished_at is null"),
    "files": ("folder", f"{_TASKS} union all select -number from sessions"),
}
