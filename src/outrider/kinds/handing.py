"""Handing something over to a session, whose agent, or one that is invited, takes a turn for it.

The turn is made in one transaction with what it is to hear and the journal row that names it: it is told once, whoever
is killed. It is a child of the task that hands over, so it is stopped with that, and it ends by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outrider.agents.engine import AgentFailed
from outrider.core.change import InboxEntry
from outrider.core.errors import Failure
from outrider.core.task import NewTask, State, Task
from outrider.core.values import JSONObject, evolve
from outrider.runtime.codec import decode
from outrider.runtime.context import TaskContext
from outrider.runtime.ids import new_id
from outrider.runtime.turns import last_turn, next_turn, turn_after

TURN_OF_IT = "turn!"
"""The journal row that names the turn."""
INTERRUPTED = "interrupted"


async def hand_over(
    task: TaskContext,
    session_id: str,
    words: Sequence[str],
    *,
    agent: str | None = None,
    budget: JSONObject | None = None,
) -> str:
    """Have the session hear these words, in a turn of its own agent or of that `agent`; return the turn's id.

    It waits, parked, until nobody takes a turn there: one drives a session at a time. Raises Failure where the session
    is closed or gone.
    """
    services = task.services
    while (row := task.journal.at(TURN_OF_IT)) is None:
        session = await services.views.session(session_id)
        if session is None or session.closed_at is not None:
            raise Failure(
                f"{session_id} is {'gone' if session is None else 'closed'}, and hears nothing", kind="rejected"
            )
        turn = await last_turn(services.lifecycle, session)
        if turn is not None and not turn.is_terminal:
            await task.end_of(turn.id)
            continue
        new = next_turn(session, services.clock.now(), agent)
        given = evolve(
            new.input,
            parent_task_id=task.id,
            origin={"task_id": task.id},
            budget=budget or session.budget,
            result_schema=task.result_schema,
        )
        parts = [{"type": "text", "text": text} for text in words]
        body = {"parts": parts, "steering": "inject", "sender": task.id}
        # None where somebody was faster: that turn is waited for.
        await task.start(NewTask(new.id, given), TURN_OF_IT, InboxEntry(session_id, new_id("entry"), "user", body))
    turn_id: str = decode(row.value or b"{}")["task_id"]
    return turn_id


async def answer_of(task: TaskContext, turn_id: str, *, follows: bool) -> Any:
    """Wait, parked, for what the turn comes to, or with `follows` the one for which it was interrupted, and so on.

    Raises AgentFailed as the turn failed, and Failure where it was canceled or deleted.
    """
    while True:
        turn = await task.end_of(turn_id)
        if turn is None:
            raise Failure(f"its turn {turn_id} was deleted", kind=INTERRUPTED)
        if turn.state is State.SUCCEEDED:
            return await _result_of(task, turn)
        if turn.core.cancel_reason != INTERRUPTED or not follows:
            break
        after = await turn_after(task.services, turn)
        if after is None:
            break
        turn_id = after.id
    error = turn.outcome.error
    if error is None:
        raise Failure(
            f"its turn {turn.id} was canceled: {turn.core.cancel_reason or 'without a reason'}", kind=INTERRUPTED
        )
    partial = await _result_of(task, turn)
    raise AgentFailed(
        f"its turn {turn.id} failed: {error.message}",
        kind=error.kind,
        details=error.details,
        partial=partial if isinstance(partial, str) else "",
    )


async def _result_of(task: TaskContext, turn: Task) -> Any:
    path = turn.outcome.result_path
    content = None if path is None else await task.services.views.file(turn.session_id, path)
    return None if content is None else decode(content)
