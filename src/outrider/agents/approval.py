"""Approvals: a person's decision on one call of a tool, bound to that tool and its exact arguments.

What one would get wrong: a decision is looked at again each time the code comes to its call, in every attempt. It holds
for what it was asked for, and for a while; a call that has begun and is journaled is past asking.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from outrider.agents.engine import Approval
from outrider.core.ledger import GrantSet
from outrider.core.session import Grant
from outrider.core.task import InputRequest
from outrider.core.values import JSONObject
from outrider.runtime.clock import span
from outrider.runtime.codec import decode, encode
from outrider.runtime.context import TaskContext

OPEN = "agent!"
"""Prefix of the journal rows of an agent's open iteration."""

NOBODY = "nobody is there to approve it"
LATE = "nobody answered in time"


@dataclass(frozen=True, slots=True)
class Approvals:
    """The decisions on the tool calls of one attempt, of an agent in the session of that id."""

    task: TaskContext
    session_id: str

    async def decide(
        self,
        tool: str,
        arguments: JSONObject,
        call_id: str,
        *,
        is_own: bool,
        key: str | None = None,
        parameters: JSONObject | None = None,
        within: TaskContext | None = None,
    ) -> Approval:
        """Return the decision on a call, asking and parking if there is none that holds. No person, no approval.

        `key` is that of the call's step, its id unless given. A tool that is the agent's own, and none of the app,
        may have the name of another agent's. `parameters` is the JSON Schema that arguments in place of these have to
        fit, if one is known. `within` is the context of an operation that is under way, in whose place the question
        counts as a wait.
        """
        task, exact = within or self.task, decode(encode(arguments))
        has_run, asked = self._has_run(call_id if key is None else key), 0
        while True:
            asked += 1
            position = _position(call_id) + (f"#{asked}" if asked > 1 else "")
            if task.journal.at(position) is None and (has_run or await self._is_granted(tool, is_own=is_own)):
                return Approval(True)
            details = {"tool": tool, "arguments": exact, "call_id": call_id} | ({"own": True} if is_own else {})
            prompt = f"The agent wants to call {tool}. Approve?"
            request = await task.ask_for_approval(position, prompt, details, parameters)
            if request is None:
                return Approval(False, NOBODY)
            if has_run:
                return _decision(request)
            if self._holds(request, tool, exact):
                await self._grant(request, self._name(tool, is_own=is_own))
                return _decision(request)

    def was_asked(self, call_id: str) -> bool:
        """Whether somebody was asked about that very call in the open iteration."""
        return self.task.journal.at(_position(call_id)) is not None

    async def _is_granted(self, tool: str, *, is_own: bool) -> bool:
        """Whether somebody said that it needs no more approval: in the agent's session, or in the first of its tree."""
        name, sessions = self._name(tool, is_own=is_own), {self.session_id, self.task.record().root_session_id}
        grants = await self.task.services.views.grants(sorted(sessions))
        return any(grant.tool == name and grant.is_allowed for grant in grants)

    async def _grant(self, request: InputRequest, name: str) -> None:
        """Keep what a person said of all further calls. Said again after a crash, it is as old as it was."""
        answer, at = request.answer, request.closed_at
        if at is None or not isinstance(answer, Mapping) or not (answer["approved"] and answer.get("always")):
            return
        grant = Grant(self.session_id, name, True, at, request.answered_by, request.answered_via, self.task.id)
        await self.task.services.ledger.control(GrantSet(grant))

    def _name(self, tool: str, *, is_own: bool) -> str:
        return f"{self.task.spec.get('agent', '')}:{tool}" if is_own else tool

    def _has_run(self, key: str) -> bool:
        """Whether the step of a call is journaled: done, or begun where it runs once.

        By its whole key: a provider chooses the ids of calls, and may choose one that another key ends with.
        """
        row = self.task.journal.at(OPEN + key)
        return row is not None and row.verb == "step"

    def _holds(self, request: InputRequest, tool: str, arguments: JSONObject) -> bool:
        """Whether a decision is about this call, and, if it allows it, no older than decisions may be."""
        details = request.details if isinstance(request.details, Mapping) else {}
        if details.get("tool") != tool or details.get("arguments") != arguments:
            return False
        if not _decision(request).granted:
            return True
        services = self.task.services
        return services.clock.now() - (request.closed_at or 0) <= span(services.settings.approval_valid)


def _position(call_id: str) -> str:
    """Where the question about a call is journaled: apart from what the tool itself names, which has no `!`."""
    return f"{OPEN}{call_id}!approve!"


def _decision(request: InputRequest) -> Approval:
    answer = request.answer
    if request.answered_by == "policy":
        return Approval(False, LATE)
    if isinstance(answer, Mapping):
        return Approval(answer["approved"] is True, answer.get("reason"), answer.get("arguments"))
    return Approval(answer is True, None if answer is True else "it was not approved")
