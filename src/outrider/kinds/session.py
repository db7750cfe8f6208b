"""The kind `session`: opens a peer, a session that outlives the task, and has its agent answer a first message.

Spec: `prompt`, `agent`, and any of `title`, `seed`. The peer takes turns as any other session does. It stands below the
one that opened it, in whose tree it is counted and by whose tree's budget it is bounded, and is neither stopped nor
deleted with it. A budget of the task is the peer's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from outrider.agents.registered import RegisteredAgent
from outrider.core.errors import InvalidArguments, UnknownName
from outrider.core.meters import LIMITS
from outrider.core.session import NewSession
from outrider.core.values import JSONObject, evolve
from outrider.kinds.handing import answer_of, hand_over
from outrider.kinds.opening import check_asked, check_seed, open_session, plain_spec, prompts_of_fork, titled
from outrider.runtime.context import TaskContext
from outrider.runtime.registry import CheckedSpec, Registry

KIND = "session"
FIELDS = frozenset({"prompt", "agent", "title", "seed"})


class PeerSession:
    """Opens sessions."""

    kind = KIND

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def routes(self) -> Iterable[str]:
        """Those of the agents registered here."""
        return [f"{KIND}:{name}" for name in self._registry.agents]

    def check(self, spec: JSONObject) -> CheckedSpec:
        """Check the spec's form, and that its agent is known."""
        prompt, agent, title = check_asked(KIND, spec, FIELDS), spec.get("agent"), spec.get("title")
        check_seed(spec)
        if not isinstance(title, str | None):
            raise InvalidArguments(f"title is text, not {title!r:.100}")
        registered = self._registry.agents.get(agent) if isinstance(agent, str) else None
        if not isinstance(registered, RegisteredAgent):
            raise UnknownName.of("agent", str(agent), self._registry.agents)
        return CheckedSpec(
            plain_spec(KIND, spec),
            f"{KIND}:{agent}",
            title or titled(prompt),
            connections=tuple(registered.connections),
            detached=True,
        )

    async def prepare(self) -> None:
        """Nothing has to be ready before."""

    async def run(self, task: TaskContext) -> Any:
        """Open the session, hand the message over, and return what is answered. The session stays open."""

        def shaped(new: NewSession) -> NewSession:
            own = {name: bound for name, bound in (task.budget or {}).items() if name in (*LIMITS, "soft")}
            budget = {**({"session": own} if own else {}), **(new.budget or {})}
            return evolve(new, parent_task_id=None, title=task.spec.get("title") or new.title, budget=budget or None)

        session_id = await open_session(task, task.spec["agent"], self._registry.agents, shaped)
        words = await prompts_of_fork(task) if task.spec.get("seed") == "fork" else [task.spec["prompt"]]
        return await answer_of(task, await hand_over(task, session_id, words), follows=True)
