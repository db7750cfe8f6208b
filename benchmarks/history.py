"""Whether the past slows the present: the crowd of `tasks` on an empty store, and on one full of finished tasks.

The past is written through the seam, each task with the events, attempt and result of its whole life: only its
lifecycle is put into one Change. It is written once and on the disk before anything is timed, and all rounds add to it.
In a round the two take turns, because the machine's speed drifts by more than what is looked for here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice

from benchmarks import work
from benchmarks.harness import Figures, Place, Settings, check
from benchmarks.tasks import check_crowd, run_crowd
from outrider.core import machine
from outrider.core.change import Change
from outrider.core.events import Claimed, Succeeded
from outrider.core.ledger import Committed, Ledger
from outrider.core.session import NewSession
from outrider.core.task import Input, NewTask, State
from outrider.core.values import SECOND, Instant, evolve

KEYS = ("tasks_per_s_empty", "tasks_per_s_full", "ratio")

PAST = 200_000
PAST_SESSIONS = 1_000
BATCH = 500
TURNS = 4
"""Crowds on each of the two in a round."""
LONG_AGO: Instant = 1_700_000_000 * SECOND


def tasks(settings: Settings) -> int:
    """All crowds of a round on one of the two, not the past."""
    return 40_000 if settings.full else 8_000


async def run(place: Place) -> Figures:
    """Run crowds on both stores in turns: empty, full, full, empty, and so on."""
    past = await _past_of(place)
    spent_on_empty = spent_on_full = 0.0
    each = place.tasks // TURNS
    for turn in range(TURNS):
        for on_full in (False, True) if (place.number + turn) % 2 == 0 else (True, False):
            if on_full:
                spent_on_full += await _crowd(past, each)
            else:
                spent_on_empty += await _crowd(place.url(f"empty-{turn}"), each)
    return {
        "tasks_per_s_empty": each * TURNS / spent_on_empty,
        "tasks_per_s_full": each * TURNS / spent_on_full,
        "ratio": spent_on_empty / spent_on_full,
    }


async def _crowd(url: str, count: int) -> float:
    """Seconds that the crowd took."""
    async with work.app.open(url) as outrider:
        crowd = await run_crowd(outrider, count)
        await check_crowd(outrider, crowd)
    return count / crowd.tasks_per_s


async def _past_of(place: Place) -> str:
    """The address of the store with the past, which the first round writes."""
    check(place.settings.store != "memory", "a store in memory has no past that a later opening could find")
    url = place.shared_url("full")
    written = place.shared / "full.written"
    if not written.exists():
        async with work.app.open(url, worker=False) as outrider:
            await write_past(outrider.ledger, PAST)
            counts = await outrider.ledger.views.count_by_state()
        check(counts[State.SUCCEEDED] == PAST, f"the full store holds only {counts}")
        os.sync()
        written.touch()
    return url


async def write_past(ledger: Ledger, count: int) -> None:
    """Write `count` tasks that have ended, over 1,000 sessions, oldest first."""
    for number in range(PAST_SESSIONS):
        await ledger.create_session(NewSession(_past_session(number), LONG_AGO))
    past, written = _past(count), 0
    while changes := list(islice(past, BATCH)):
        verdicts = await ledger.commit(changes)
        check(all(isinstance(verdict, Committed) for verdict in verdicts), "the past could not be written")
        written += len(verdicts)
    check(written == count, f"{written} of {count} tasks of the past were written")


def _past(count: int) -> Iterator[Change]:
    for number in range(count):
        session_id = _past_session(number % PAST_SESSIONS)
        at = LONG_AGO + number * 1000
        new = NewTask(
            id=f"task_{number:032x}",
            input=Input(
                session_id=session_id,
                root_session_id=session_id,
                kind="background_tool",
                route="background_tool:echo",
                spec={"tool": "echo", "arguments": {"value": number}},
                created_at=at,
                display_name="echo",
            ),
        )
        yield _whole_life(new, at)


def _whole_life(new: NewTask, at: Instant) -> Change:
    """The creation, claim and success of a task as one Change."""
    created = machine.create(new, at)
    claimed = machine.apply(created.task, Claimed("worker_of_the_past"), at + 100)
    ended = machine.apply(claimed.task, Succeeded(claimed.task.core.attempt, b"0"), at + 200)
    events = (*created.events, *claimed.events, *ended.events)
    return evolve(ended, before=None, events=events, live_changed=True)


def _past_session(number: int) -> str:
    return f"sess_{number:032x}"
