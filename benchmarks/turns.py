"""Turns of a session's agent: text said, a scripted answer heard; one session, then 64, then a hundred turns in one.

The model answers at once, so what is left is Outrider's cost and the engine's. To tell the two apart the same turns are
taken by a function as an agent (`function_…`), which has no engine to speak of, and by the default engine alone, with
nothing kept (`engine_…`). `turn100_ratio` compares the turns around the hundredth of one session with those around its
fifth, so it shows what a long transcript costs. With `--workers` other processes take turns too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from statistics import median

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from benchmarks import work
from benchmarks.harness import Figures, Place, Settings, check, percentile
from outrider import Runtime, SessionHandle
from outrider.agents import scripted
from outrider.agents.function import AgentContext
from outrider.agents.scripted import Reply

KEYS = (
    "turn_p50_ms",
    "turns_per_s",
    "turn100_ratio",
    "commits_per_turn",
    "statements_per_turn",
    "function_turn_p50_ms",
    "function_turns_per_s",
    "engine_turn_p50_ms",
    "engine_turns_per_s",
)

SESSIONS = 64
SINGLES = 50
WARM_UP = 5
ROUND = 10
"""How many turns around the fifth and the hundredth are compared."""

SPEAKER, FUNCTION = "speaker", "speaking function"


async def speak(ctx: AgentContext) -> str:
    """Answer as the model does: in a step, which closes an iteration."""

    async def ask() -> str:
        return f"You said: {ctx.prompt}"

    text = await ctx.step("model", ask)
    await ctx.append({"text": text}, text=text)
    return text


scripted.register(SPEAKER, lambda turn: Reply(f"You said: {turn.prompt}"))
work.app.agent(SPEAKER, model=f"scripted:{SPEAKER}")
work.app.agent(FUNCTION, agent=speak)


def tasks(settings: Settings) -> int:
    """How many turns are taken by 64 sessions together."""
    return 6400 if settings.full else 640


async def run(place: Place) -> Figures:
    """Measure one at a time, many at once, and a long session; then without an engine, and the engine alone."""
    url, is_alone = place.url(), place.settings.workers == 1
    work.share(place.settings.workers)
    async with work.app.open(url) as outrider, work.helpers(url, place.settings.workers - 1, serving="turns"):
        await _talk(await _session(outrider, SPEAKER), WARM_UP)  # the engine is imported by then
        singles = await _talk(await _session(outrider, SPEAKER), SINGLES)
        before = dict(outrider.ledger.counters)
        crowd = await _crowd(outrider, SPEAKER, place.tasks)
        counted = _counted(before, outrider.ledger.counters, place.tasks) if is_alone else {}
        spans = await _talk(await _session(outrider, SPEAKER), 100 + ROUND // 2)
        functions = await _talk(await _session(outrider, FUNCTION), SINGLES)
        function_crowd = await _crowd(outrider, FUNCTION, place.tasks)
    bare, bare_crowd = await _engine_alone(place.tasks)
    return {
        "turn_p50_ms": percentile(singles, 0.5),
        "turns_per_s": crowd,
        "turn100_ratio": median(spans[-ROUND:]) / median(spans[:ROUND]),
        "commits_per_turn": counted.get("commits"),
        "statements_per_turn": counted.get("statements"),
        "function_turn_p50_ms": percentile(functions, 0.5),
        "function_turns_per_s": function_crowd,
        "engine_turn_p50_ms": percentile(bare, 0.5),
        "engine_turns_per_s": bare_crowd,
    }


async def _engine_alone(count: int) -> tuple[list[float], float]:
    """What the engine takes for the same turns by itself: the spans of one at a time, and how many a second."""

    async def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        return ModelResponse([TextPart(f"You said: {len(messages)}")])

    agent = Agent(FunctionModel(answer))
    alone = await _timed(SINGLES, lambda: agent.run("a number"))
    started = time.perf_counter()
    await asyncio.gather(*(_timed(count // SESSIONS, lambda: agent.run("a number")) for _ in range(SESSIONS)))
    return alone, count // SESSIONS * SESSIONS / (time.perf_counter() - started)


async def _timed(times: int, call: Callable[[], Awaitable[object]]) -> list[float]:
    spans = []
    for _ in range(times):
        started = time.perf_counter()
        await call()
        spans.append((time.perf_counter() - started) * 1000)
    return spans


def _counted(before: Mapping[str, int], after: Mapping[str, int], count: int) -> dict[str, float]:
    return {name: (after[name] - before[name]) / count for name in before}


async def _session(outrider: Runtime, agent: str) -> SessionHandle:
    return await outrider.sessions.create(agent=agent)


async def _talk(session: SessionHandle, times: int) -> list[float]:
    """Say something so many times, each when the last was answered; how long each took, in milliseconds."""
    spans = []
    for number in range(times):
        started = time.perf_counter()
        answer = await (await session.send(f"number {number}")).result()
        spans.append((time.perf_counter() - started) * 1000)
        check(answer == f"You said: number {number}", f"turn {number} answered {answer!r}")
    return spans


async def _crowd(outrider: Runtime, agent: str, count: int) -> float:
    sessions = [await _session(outrider, agent) for _ in range(SESSIONS)]
    started = time.perf_counter()
    await asyncio.gather(*(_talk(session, count // SESSIONS) for session in sessions))
    spent = time.perf_counter() - started
    for session in sessions:
        turns = await session.tasks(limit=1000)
        check(len(turns) == count // SESSIONS, f"{session.id} took {len(turns)} turns")
    return count // SESSIONS * SESSIONS / spent
