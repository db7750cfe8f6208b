"""An agent that an app registered by name: how it is run where a task's spec is silent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from outrider.agents.engine import DEFAULT_ENGINE, ONE_FORM
from outrider.core.errors import InvalidArguments
from outrider.core.values import JSON, JSONObject


@dataclass(frozen=True, slots=True)
class RegisteredAgent:
    """`agent` is an object of the engine's own making; without one the engine makes a plain agent of the rest."""

    name: str
    engine: str = DEFAULT_ENGINE
    agent: object | None = None
    deps: object | None = None
    model: str | JSONObject | Sequence[str | JSONObject] | None = None
    model_settings: Mapping[str, JSON] = field(default_factory=dict)
    system_prompt: str | None = None
    tools: Sequence[str] = ()
    max_iterations: int | None = None
    require_approval: bool | Sequence[str] = False
    delegates: bool = False
    """Whether it is given the tools by which an agent hands work off."""
    connections: Sequence[str] = ()
    """Those that have to be there before it starts."""


def check_goes_on(agents: Mapping[str, object], one: str | None, other: str | None) -> None:
    """Raise InvalidArguments unless an agent of a name goes on from what the other said; None is a plain one."""
    if one == other:
        return
    for name in (one, other):
        agent = RegisteredAgent("") if name is None else agents.get(name)
        if not isinstance(agent, RegisteredAgent):
            raise InvalidArguments(f"{name!r} is not known here, and {one!r} cannot go on from what nobody can read")
        if agent.engine not in ONE_FORM:
            raise InvalidArguments(
                f"{one!r} cannot go on from what {other!r} said: {name!r} is of the engine {agent.engine}, of "
                "whose agents each has a form of its own; start it fresh"
            )
