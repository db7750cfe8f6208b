"""The kind `agent_handoff`: a registered agent, as it is registered, does what another one hands to it.

Spec: that of a `subagent`, with an `agent`; and `invite`. One that is invited does it in the session of the task: it
takes a turn there, knows all that was said, and what it says stays. One drives a session at a time, so it waits until
nobody else does; what comes in during its turn it hears, as any turn does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from outrider.agents.registered import check_goes_on
from outrider.core.errors import IllegalMove, InvalidArguments
from outrider.core.session import Session
from outrider.core.values import JSONObject
from outrider.kinds.handing import answer_of, hand_over
from outrider.kinds.subagent import FIELDS, Subagent
from outrider.runtime.context import TaskContext
from outrider.runtime.registry import CheckedSpec

KIND = "agent_handoff"
AS_REGISTERED = frozenset({"agent", "prompt", "invite"})


class AgentHandoff(Subagent):
    """Hands work to agents that were registered."""

    kind = KIND
    fields = FIELDS | {"invite"}

    def routes(self) -> Iterable[str]:
        """Those of the agents registered here."""
        return [f"{KIND}:{name}" for name in self._registry.agents]

    def check(self, spec: JSONObject) -> CheckedSpec:
        """Check the spec as that of a subagent, and that an invited agent is taken as it is registered."""
        if spec.get("agent") is None:
            raise InvalidArguments("what is handed off is handed to an agent of the app: name it")
        invite = spec.get("invite", False)
        if not isinstance(invite, bool):
            raise InvalidArguments(f"invite is True or False, not {invite!r:.100}")
        checked = super().check(spec)
        if invite and (more := set(checked.spec) - AS_REGISTERED):
            raise InvalidArguments(f"who is invited comes as it was registered; leave out {', '.join(sorted(more))}")
        return replace(checked, check_session=partial(self._check_invites, spec["agent"])) if invite else checked

    async def run(self, task: TaskContext) -> Any:
        """Run the agent in a session of its own; or have it take a turn in this one."""
        if not task.spec.get("invite"):
            return await super().run(task)
        agent, prompt = task.spec["agent"], task.spec["prompt"]
        turn_id = await hand_over(task, task.session_id, [prompt], agent=agent, budget=task.budget)
        return await answer_of(task, turn_id, follows=False)

    def _check_invites(self, agent: str, session: Session) -> None:
        """Raise IllegalMove where no turns are taken, InvalidArguments for one that could not read what was said."""
        if session.agent is None or session.parent_task_id is not None:
            raise IllegalMove(f"no turns are taken in {session.id}, so nobody can be invited to one")
        check_goes_on(self._registry.agents, agent, session.agent)
