"""How soon a session's agent hears that a background task has ended: from the end of its code to the next model call.

First with an agent that is idle, which takes a turn for it; then with one in the middle of a turn. What a transcript
that grows adds to a turn is another benchmark's (`turns`): a session is woken fifty times here, and no more.
"""

from __future__ import annotations

import asyncio
import time

from benchmarks import work
from benchmarks.harness import Figures, Place, Settings, check, percentile
from outrider import Runtime, SessionHandle, TaskOptions
from outrider.agents import scripted
from outrider.agents.scripted import Call, Reply, Turn
from outrider.runtime.codec import decode

KEYS = ("idle_p50_ms", "idle_p99_ms", "active_p50_ms")

WAKING = TaskOptions(wake="on_terminal")
OF_A_SESSION = 50
LISTENER, WAITER = "listener", "waiter"

asked: list[int] = []
"""When the model was asked, in nanoseconds."""
waits = asyncio.Semaphore(0)
gate = asyncio.Semaphore(0)


def listen(_: Turn) -> Reply:
    asked.append(time.monotonic_ns())
    return Reply("heard")


def wait(turn: Turn) -> Reply:
    asked.append(time.monotonic_ns())
    return Reply(calls=(Call("linger", {}),)) if turn.number <= int(turn.prompt) else Reply("done")


@work.app.tool
async def linger() -> None:
    """Wait until somebody opens the gate."""
    waits.release()
    await gate.acquire()


scripted.register(LISTENER, listen)
scripted.register(WAITER, wait)
work.app.agent(LISTENER, model=f"scripted:{LISTENER}")
work.app.agent(WAITER, model=f"scripted:{WAITER}", tools=["linger"], max_iterations=100_000)


def tasks(settings: Settings) -> int:
    """How many wakes of each kind."""
    return 1000 if settings.full else 200


async def run(place: Place) -> Figures:
    """Measure one wake at a time."""
    async with work.app.open(place.url()) as outrider:
        await _idle(outrider, 5)  # the engine is imported by then
        idle = await _idle(outrider, place.tasks)
        active = await _active(outrider, place.tasks)
    return {
        "idle_p50_ms": percentile(idle, 0.5),
        "idle_p99_ms": percentile(idle, 0.99),
        "active_p50_ms": percentile(active, 0.5),
    }


async def _idle(outrider: Runtime, count: int) -> list[float]:
    spans: list[float] = []
    while (left := count - len(spans)) > 0:
        spans += await _idle_session(outrider, min(left, OF_A_SESSION))
    return spans


async def _idle_session(outrider: Runtime, count: int) -> list[float]:
    session, spans = await outrider.sessions.create(agent=LISTENER), []
    for _ in range(count):
        spans.append(await _wake(session))
        turn = await session.turn()
        assert turn is not None
        await turn.wait()
    await _check(outrider, session, wakes=count, turns=count)
    return spans


async def _active(outrider: Runtime, count: int) -> list[float]:
    """Of a turn that waits in a tool call while a task ends, and is let go on."""
    session, spans = await outrider.sessions.create(agent=WAITER), []
    turn = await session.send(str(count))
    for _ in range(count):
        await waits.acquire()
        spans.append(await _wake(session, gate))
    await turn.wait()
    await _check(outrider, session, wakes=count, turns=1)
    return spans


async def _wake(session: SessionHandle, gate: asyncio.Semaphore | None = None) -> float:
    """Milliseconds from the only line of a task to the next request of the session's agent."""
    asked.clear()
    ended: int = await (await session.spawn("now", options=WAKING)).result()
    if gate is not None:
        gate.release()

    async def is_asked() -> bool:
        return bool(asked)

    await work.until(is_asked, "the wake", every=0.001)
    return (asked[0] - ended) / 1e6


async def _check(outrider: Runtime, session: SessionHandle, *, wakes: int, turns: int) -> None:
    rows = await outrider.services.views.transcript(session.id)
    told = sum(str(decode(row.message)).count("<task_wake") for row in rows)
    check(told == wakes, f"{wakes} wakes were told {told} times")
    check(not await session.inbox.list(), "something is left in the inbox")
    taken = sum(task.kind == "turn" for task in await session.tasks(limit=10_000))
    check(taken == turns, f"{taken} turns were taken, and not {turns}")
