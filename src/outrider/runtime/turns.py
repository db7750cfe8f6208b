"""Who takes a session's turn: the one loop by which what comes into an inbox finds an agent that hears of it.

Turns of a session follow each other: each is made under a key that names the one before, so that there is one at a
time, however many want to make it. Whatever comes in while one lives moves its record, and an end that has not seen
that is no end; whatever comes in later rings for the next. So no entry is left that nobody will look at.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from outrider.core import machine
from outrider.core.change import InboxEntry
from outrider.core.errors import IllegalMove, InvalidArguments, NotFound, SessionBusy, SessionClosed, TaskFinished
from outrider.core.events import Rung, Told
from outrider.core.ledger import Committed
from outrider.core.session import Session
from outrider.core.task import TURN, Input, NewTask, Task
from outrider.core.values import Instant, JSONObject
from outrider.runtime.ids import new_id

if TYPE_CHECKING:
    from outrider.runtime.lifecycle import Lifecycle

Steering: TypeAlias = Literal["inject", "after", "interrupt", "reject"]
"""What becomes of something said during a turn: it is told at the next iteration, after the turn, after the turn was
interrupted for it, or not at all."""

LOOK = 1000
"""How many entries of an inbox are looked at, at once."""


def check_steering(steering: object) -> None:
    """Raise InvalidArguments for what is no way to steer."""
    if steering not in get_args(Steering):
        raise InvalidArguments(f"steering is one of {', '.join(get_args(Steering))}, not {steering!r:.100}")


async def say(lifecycle: Lifecycle, session_id: str, body: JSONObject, steering: Steering) -> Task:
    """Put something that a client says into a session's inbox; return the turn that was told, or made for it.

    Raises NotFound, SessionBusy, SessionClosed, and IllegalMove where the session has no agent.
    """
    entry = InboxEntry(session_id, new_id("entry"), "user", body)
    while True:
        session = await lifecycle.views.session(session_id)
        if session is None:
            raise NotFound.of("session", session_id)
        if session.agent is None or session.parent_task_id is not None:
            raise IllegalMove(f"{session_id} has no agent that could take a turn; create it with one")
        if session.closed_at is not None:
            raise SessionClosed.of(session_id)
        turn = await last_turn(lifecycle, session)
        if turn is None or turn.is_terminal:
            (made,) = await lifecycle.create([next_turn(session, lifecycle.now())], inbox=(entry,))
            if isinstance(made, Committed):
                return made.task
            continue  # somebody else made it, without this entry
        if steering == "reject":
            raise SessionBusy(f"the agent of {session_id} takes its turn: {turn.id}", details={"task_id": turn.id})
        try:
            return await lifecycle.move(turn, Told(entry.task_id, body, steering == "interrupt"))
        except (NotFound, TaskFinished):
            continue


async def answer_rings(lifecycle: Lifecycle, session_id: str, rings: Sequence[int]) -> None:
    """Something came into a session's inbox: have its turn look, or make one. `rings` are the follow-ups that say so.

    Where nothing is to be done they are settled all the same; those that lost a race are left, and come again. A closed
    session keeps its inbox: it rings again when it is reopened.
    """
    session = await lifecycle.views.session(session_id)
    if session is None or session.agent is None:
        await lifecycle.forget([session_id])
        return
    if session.parent_task_id is not None:  # it takes no turns: one task does all that is done in it
        turn = await lifecycle.views.task(session.parent_task_id)
        if turn is None or turn.is_terminal:
            await lifecycle.forget([session_id])
            return
    else:
        turn = await last_turn(lifecycle, session)
    if turn is not None and not turn.is_terminal:
        change = machine.apply(turn, Rung(session_id), lifecycle.now())
        await lifecycle.settle(turn, change, rings)
    elif session.closed_at is not None:
        await _settle_in_closed(lifecycle, session, turn, rings)
    elif turn is None or await lifecycle.views.inbox(session_id, limit=1):
        with suppress(SessionClosed):
            await lifecycle.create([next_turn(session, lifecycle.now())], settles=rings)
    else:
        await lifecycle.settle(turn, None, rings)


async def _settle_in_closed(lifecycle: Lifecycle, session: Session, turn: Task | None, rings: Sequence[int]) -> None:
    if turn is not None:
        await lifecycle.settle(turn, None, rings)
        return
    await lifecycle.forget([session.id])
    again = await lifecycle.views.session(session.id)
    if again is not None and again.closed_at is None:  # what it rang with as it was reopened may have gone too
        await answer_rings(lifecycle, session.id, ())


async def last_turn(lifecycle: Lifecycle, session: Session) -> Task | None:
    """The turn that a session takes or took last; None before the first, and once it is deleted."""
    return None if session.driver_task_id is None else await lifecycle.views.task(session.driver_task_id)


def next_turn(session: Session, now: Instant) -> NewTask:
    """The turn after the one that drives the session now."""
    assert session.agent is not None
    return NewTask(
        new_id("task"),
        Input(
            session_id=session.id,
            root_session_id=session.root_session_id,
            kind=TURN,
            route=f"{TURN}:{session.agent}",
            spec={"agent": session.agent},
            created_at=now,
            organization_id=session.organization_id,
            display_name=f"turn of {session.agent}",
            idempotency_key=f"turn after {session.driver_task_id or 'none'}",
            budget=session.budget,
        ),
    )
