"""The lifecycle drawn from the table of moves; `docs/lifecycle.md` shows both drawings, and a test compares them.

The picture leaves out events that leave the state as it is, or it would be all loops; the table has them.
"""

from __future__ import annotations

from inspect import getdoc
from typing import Any

from outrider.core.events import EVENTS, Failed, HolderLost, Parked, Released, Stopped, Succeeded
from outrider.core.machine import TRANSITIONS
from outrider.core.task import LIVE_STATES, TERMINAL, State

_ATTEMPT_ENDS: tuple[type[Any], ...] = (Parked, Released, Succeeded, Failed, Stopped, HolderLost)
"""Drawn as one: with an order to stop standing, any of them may lead anywhere that the order says."""


def mermaid() -> str:
    """Return the moves from state to state as a mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> queued: created"]
    for state in State:
        for following in State:
            events = [event for event, nexts in TRANSITIONS[state].items() if following in nexts]
            if events and following is not state:
                lines.append(f"    {state} --> {following}: {_label(events)}")
    lines.extend(f"    {state} --> [*]" for state in State if state in TERMINAL)
    return "\n".join(lines)


def table() -> str:
    """Return what may follow each event in each state as a Markdown table."""
    live = [state for state in State if state in LIVE_STATES]
    lines = [
        f"| event | what happened | {' | '.join(live)} | ended |",
        f"| --- | --- |{' --- |' * (len(live) + 1)}",
    ]
    for event in EVENTS:
        cells = [event.__name__, _first_sentence(event), *(_following(state, event) for state in live)]
        ended = "stays" if all(event in TRANSITIONS[state] for state in TERMINAL) else "refused"
        lines.append(f"| {' | '.join([*cells, ended])} |")
    return "\n".join(lines)


def _label(events: list[type[Any]]) -> str:
    if set(_ATTEMPT_ENDS) <= set(events):
        others = (event for event in events if event not in _ATTEMPT_ENDS)
        return ", ".join(["the attempt ends", *(event.__name__ for event in others)])
    return ", ".join(event.__name__ for event in events)


def _first_sentence(event: type[Any]) -> str:
    return (getdoc(event) or "").split(".")[0] + "."


def _following(state: State, event: type[Any]) -> str:
    nexts = TRANSITIONS[state].get(event)
    return "refused" if nexts is None else ", ".join(following for following in State if following in nexts)
