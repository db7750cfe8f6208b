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
from outrider.core.errors import (
    IllegalMove,
    InvalidArguments,
    NotFound,
    SessionBusy,
    SessionClosed,
    TaskFinished,
    WaitTimeout,
)
from outrider.core.events import Rung, Told
from outrider.core.ledger import Committed, TaskFilter, Views
from outrider.core.session import Session
from outrider.core.task import OWNED, TURN, Input, NewTask, Task
from outrider.core.values import Instant, JSONObject, evolve
from outrider.runtime.ids import new_id

if TYPE_CHECKING:
    from outrider.runtime.lifecycle import Lifecycle
    from outrider.runtime.services import Services

Steering: TypeAlias = Literal["inject", "after", "interrupt", "reject"]
"""What becomes of something said during a turn: it is told at the next iteration, after the turn, after the turn was
interrupted for it, or not at all."""

LOOK = 1000
"""How many entries of an inbox are looked at, at once."""


def check_steering(steering: object) -> None:
    """Raise InvalidArguments for what is no way to steer."""
    if steering not in get_args(Steering):
        raise InvalidArguments(f"steering is one of {', '.join(get_args(Steering))}, not {steering!r:.100}")


async def say(lifecycle: Lifecycle, session_id: str, body: JSONObject, steering: Steering) -> tuple[Task, bool]:
    """Put something that a client says into a session's inbox; return the turn that was told, or made for it, and
    whether it was taken before.

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
                return made.task, False
            continue  # somebody else made it, without this entry
        if steering == "reject":
            raise SessionBusy(f"the agent of {session_id} takes its turn: {turn.id}", details={"task_id": turn.id})
        try:
            return await lifecycle.move(turn, Told(entry.task_id, body, steering == "interrupt")), True
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


async def turn_after(services: Services, turn: Task, until: Instant | None = None) -> Task | None:
    """Wait for the turn after one, which hears what that leaves; None once that is over and leaves nothing.

    Nothing, too, where the session is closed. Raises NotFound once it is deleted, and WaitTimeout at `until`.
    """
    views, clock = services.views, services.clock
    with services.signals.listen([turn.session_id, turn.id]) as bell:
        while True:
            found = await views.task(turn.id)
            left = bool(await views.inbox(turn.session_id, limit=1))
            session = await views.session(turn.session_id)  # the last of the three: what was left has made no turn yet
            if session is None:
                raise NotFound.of("session", turn.session_id)
            if session.driver_task_id != turn.id and (after := await _made_after(views, turn)) is not None:
                return after
            is_over = found is None or found.is_terminal
            if is_over and (session.driver_task_id != turn.id or not left or session.closed_at is not None):
                return None
            if until is not None and clock.now() >= until:
                raise WaitTimeout(f"the turn after {turn.id} has not begun")
            await bell.wait(until)


async def _made_after(views: Views, turn: Task) -> Task | None:
    page = TaskFilter(session_id=turn.session_id, kind=TURN)
    while found := await views.list_tasks(page):
        for each in found:
            if each.input.idempotency_key == _key_after(turn.id):
                return each
        page = evolve(page, after=found[-1].id)
    return None


async def last_turn(lifecycle: Lifecycle, session: Session) -> Task | None:
    """The turn that a session takes or took last; None before the first, and once it is deleted."""
    return None if session.driver_task_id is None else await lifecycle.views.task(session.driver_task_id)


def next_turn(session: Session, now: Instant, agent: str | None = None) -> NewTask:
    """The turn after the one that drives the session now: of its own agent, unless another one takes it."""
    agent = agent or session.agent
    assert agent is not None
    return NewTask(
        new_id("task"),
        Input(
            session_id=session.id,
            root_session_id=session.root_session_id,
            kind=TURN,
            route=f"{TURN}:{agent}",
            spec={"agent": agent},
            created_at=now,
            organization_id=session.organization_id,
            display_name=f"turn of {agent}",
            idempotency_key=_key_after(session.driver_task_id),
            budget=session.budget,
        ),
    )


def _key_after(turn_id: str | None) -> str:
    return f"{OWNED}turn after {turn_id or 'none'}"  # which nobody else can have given to another task
