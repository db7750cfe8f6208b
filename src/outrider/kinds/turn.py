"""The kind `turn`: a session's agent takes its turn, in the session itself.

What is in the inbox is taken by the transaction that appends it to the transcript, before the model hears of it: so it
is told once, whatever dies in between. The turn is over when the agent has answered and nothing more is there; what
came in unseen keeps the record from ending, see `runtime.turns`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from outrider.agents.approval import OPEN
from outrider.agents.engine import AgentOutcome, Engine
from outrider.core.errors import InvalidArguments
from outrider.core.events import Step
from outrider.core.ledger import InboxRow, Page
from outrider.core.task import TURN, Usage
from outrider.core.values import JSON, JSONObject
from outrider.kinds.hearing import told
from outrider.kinds.subagent import OUTCOME, AgentTranscript, Subagent
from outrider.runtime.codec import decode, encode
from outrider.runtime.context import TaskContext
from outrider.runtime.registry import CheckedSpec
from outrider.runtime.turns import LOOK

KIND = TURN
HEARD = "heard!"
"""The journal row that says what the agent was told last, and how often it has been told something by then."""


class Turn(Subagent):
    """Takes turns: an agent that goes on where the session's transcript ends."""

    kind = KIND

    def routes(self) -> Iterable[str]:
        """Those of the agents registered here."""
        return [f"{KIND}:{name}" for name in self._registry.agents]

    def check(self, spec: JSONObject) -> CheckedSpec:
        """Check that the spec names an agent, and nothing else."""
        agent = self._agent(spec)
        if agent is None or set(spec) != {"agent"}:
            raise InvalidArguments("a turn's spec names the session's agent, and nothing else")
        return CheckedSpec(dict(spec), f"{KIND}:{agent.name}", f"turn of {agent.name}")

    async def run(self, task: TaskContext) -> Any:
        """Answer until there is nothing more to be told."""
        agent = self._agent(task.spec)
        assert agent is not None
        engine = await self._engine(agent.engine)
        ears = _Ears(task, engine)
        answer = None
        while await ears.hear():
            outcome = await self._drive(task, engine, ears, prompt=ears.prompt, asked=True)
            await ears.keep(outcome)
            answer = await self._answer(task, outcome)
        if answer is None and (finished := ears.finished()) is not None:
            answer = await self._answer(task, finished)
        return answer


class _Ears(AgentTranscript):
    """The session's transcript and inbox during a turn."""

    def __init__(self, task: TaskContext, engine: Engine) -> None:
        super().__init__(task, task.session_id)
        self._engine = engine
        row = task.journal.at(HEARD)
        times, prompt, done, used = (0, "", 0, {}) if row is None else decode(row.value or b"[]")
        self._times: int = times
        self.done, self.used = done, Usage(**used)
        self.prompt: str = prompt
        """What the agent was told last."""

    async def hear(self) -> bool:
        """Take what is in the inbox into the transcript; whether the agent has something to answer.

        What is to come after a turn is taken by the first look of the next. While it has not answered, as after a
        crash or a park, an iteration may be open; what came in since is then told where that ends.
        """
        if self._times > self._answered():
            return True
        rows = await self._look(first=self._times == 0)
        known = [row for row in rows if self.is_known(row)]
        rows = [row for row in rows if row not in known]
        if not rows:
            if known:
                await self._write(self._page((), known, ()))
            return False
        self._times += 1
        self.prompt = "\n\n".join(map(told, rows))
        now = self._task.services.clock.now()
        self.done, self.used = self._task.live.iterations, self._task.live.usage
        heard = encode([self._times, self.prompt, self.done, self.used])
        said = tuple(encode(message) for message in self._engine.said(self.prompt))
        await self._write(self._page(said, [*rows, *known], (self._row(HEARD, "heard", now, heard),), forget=OPEN))
        return True

    def _page(
        self, messages: tuple[bytes, ...], rows: Sequence[InboxRow], steps: tuple[Step, ...], forget: str | None = None
    ) -> Page:
        return Page(
            session_id=self._session_id,
            task_id=self._task.id,
            attempt=self._task.attempt,
            iteration=self._task.live.iterations,
            messages=messages,
            live=self._task.live,
            at=self._task.services.clock.now(),
            forget=forget,
            steps=steps,
            takes=tuple((row.task_id, row.seq) for row in rows),
        )

    async def look(self) -> Sequence[InboxRow]:
        """Return what came in since that is not for a later turn."""
        return await self._look(first=False)

    async def _look(self, *, first: bool) -> Sequence[InboxRow]:
        seen = self._task.rung
        rows = await self._task.services.views.inbox(self._session_id, limit=LOOK)
        left = [row for row in rows if not first and row.body.get("steering") == "after"]
        self._task.looked(seen, leaves=bool(left))
        taken = {(row.task_id, row.seq) for row in self._taken}
        return [row for row in rows if row not in left and (row.task_id, row.seq) not in taken]

    async def keep(self, outcome: AgentOutcome) -> None:
        """Have it known that the agent has answered; of most engines the last page has said so."""
        if self._answered() != self._times:
            await self._task.write_own(OUTCOME, "outcome", encode(self.outcome_row(outcome.to_json())))

    def _answered(self) -> int:
        """How often the agent had been told something when it answered last."""
        row = self._task.journal.at(OUTCOME)
        return 0 if row is None else decode(row.value or b"{}").get("times", 0)

    def outcome_row(self, outcome: dict[str, JSON]) -> dict[str, JSON]:
        """An outcome is an answer to what had been told by then."""
        return {**outcome, "times": self._times}
