"""Turns of a session's agent: text said, a scripted answer heard; one session, then 64, then a hundred turns in one.

Only Outrider's own cost is left: the model answers at once. `turn100_ratio` compares the turns around the hundredth of
one session with those around its fifth, so it shows what a long transcript costs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from statistics import median

from benchmarks import work
from benchmarks.harness import Figures, Place, Settings, check, percentile
from outrider import Runtime, SessionHandle
from outrider.agents import scripted
from outrider.agents.scripted import Reply

KEYS = ("turn_p50_ms", "turns_per_s", "turn100_ratio", "commits_per_turn", "statements_per_turn")

SESSIONS = 64
WARM_UP = 5
ROUND = 10
"""How many turns around the fifth and the hundredth are compared."""

SPEAKER = "speaker"
scripted.register(SPEAKER, lambda turn: Reply(f"You said: {turn.prompt}"))
work.app.agent(SPEAKER, model=f"scripted:{SPEAKER}")


def tasks(settings: Settings) -> int:
    """How many turns are taken by 64 sessions together."""
    return 6400 if settings.full else 640


async def run(place: Place) -> Figures:
    """Measure one at a time, many at once, and a long session."""
    async with work.app.open(place.url()) as outrider:
        await _talk(await _session(outrider), WARM_UP)  # the engine is imported by then
        singles = await _talk(await _session(outrider), 50)
        before = dict(outrider.ledger.counters)
        crowd = await _crowd(outrider, place.tasks)
        counted = _counted(before, outrider.ledger.counters, place.tasks)
        spans = await _talk(await _session(outrider), 100 + ROUND // 2)
    return {
        "turn_p50_ms": percentile(singles, 0.5),
        "turns_per_s": crowd,
        "turn100_ratio": median(spans[-ROUND:]) / median(spans[:ROUND]),
        "commits_per_turn": counted["commits"],
        "statements_per_turn": counted["statements"],
    }


def _counted(before: Mapping[str, int], after: Mapping[str, int], count: int) -> dict[str, float]:
    return {name: (after[name] - before[name]) / count for name in before}


async def _session(outrider: Runtime) -> SessionHandle:
    return await outrider.sessions.create(agent=SPEAKER)


async def _talk(session: SessionHandle, times: int) -> list[float]:
    """Say something so many times, each when the last was answered; how long each took, in milliseconds."""
    spans = []
    for number in range(times):
        started = time.perf_counter()
        answer = await (await session.send(f"number {number}")).result()
        spans.append((time.perf_counter() - started) * 1000)
        check(answer == f"You said: number {number}", f"turn {number} answered {answer!r}")
    return spans


async def _crowd(outrider: Runtime, count: int) -> float:
    sessions = [await _session(outrider) for _ in range(SESSIONS)]
    started = time.perf_counter()
    await asyncio.gather(*(_talk(session, count // SESSIONS) for session in sessions))
    spent = time.perf_counter() - started
    for session in sessions:
        turns = await session.tasks(limit=1000)
        check(len(turns) == count // SESSIONS, f"{session.id} took {len(turns)} turns")
    return count // SESSIONS * SESSIONS / spent
