"""The kind `turn`: a session's agent takes its turn, in the session itself.

What is in the inbox is taken by the transaction that appends it to the transcript, before the model hears of it: so it
is told once, whatever dies in between. The turn is over when the agent has answered and nothing more is there; what
came in unseen keeps the record from ending, see `runtime.turns`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from outrider.agents.approval import OPEN
from outrider.agents.delegation import STARTED
from outrider.agents.engine import DEFAULT_ENGINE, AgentOutcome, Engine
from outrider.core.errors import InvalidArguments
from outrider.core.ledger import InboxRow
from outrider.core.task import TURN, Usage
from outrider.core.values import JSON, JSONObject
from outrider.kinds.subagent import OUTCOME, AgentTranscript, Subagent, entries_of
from outrider.runtime.codec import decode, encode
from outrider.runtime.context import TaskContext
from outrider.runtime.registry import CheckedSpec

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
        ears = Ears(task, task.session_id, engine)
        answer = None
        while await ears.hear():
            if answer is not None:  # the result is the last answer; those before it are in the output alone
                ears.repeat(answer)
            outcome = await self._drive(task, engine, ears, prompt=ears.prompt, asked=True)
            ears.keep(outcome)
            answer = await self._answer(task, outcome)
        if answer is None and (finished := ears.finished()) is not None:
            answer = await self._answer(task, finished)
        return answer


class Ears(AgentTranscript):
    """A session's transcript and inbox, while its agent takes a turn or, in a subagent's, does what it was asked."""

    def __init__(self, task: TaskContext, session_id: str, engine: Engine) -> None:
        super().__init__(task, session_id)
        self._engine = engine
        # Iterations are counted for what a turn is told, and for all that a subagent does. Engines that run their agent
        # from its start for each thing that it is told count from there.
        self._counts_on = session_id != task.session_id and engine.name == DEFAULT_ENGINE
        row = task.journal.at(HEARD)
        times, prompt, done, used = (0, "", 0, {}) if row is None else decode(row.value or b"[]")
        self._times: int = times
        self.done, self.used = done, Usage(**used)
        self.prompt: str = prompt
        """What the agent was told last."""
        self._said = ""

    async def hear(self) -> bool:
        """Take what is in the inbox into the transcript; whether the agent has something to answer.

        What is to come after a turn is taken by the first look of the next. While it has not answered, as after a
        crash or a park, an iteration may be open; what came in since is then told where that ends.
        """
        if self._times > self._answered():
            return True
        rows = await self._look(first=self._times == 0)
        words, now = await self.words(rows), self._task.services.clock.now()
        if words is None:
            if rows:  # which the agent knows
                await self._task.append(self._page(self._task.live, now, (), takes=entries_of(rows)))
            return False
        await self._task.append_last()  # it was not the end
        self._times += 1
        self.prompt = words
        if not self._counts_on:
            self.done, self.used = self._task.live.iterations, self._task.live.usage
        heard = encode([self._times, self.prompt, self.done, self.used])
        page = self._page(
            self._task.live,
            now,
            (self._row(HEARD, "heard", now, heard), *self.heard_rows(now)),
            messages=tuple(encode(message) for message in self._engine.said(self.prompt)),
            forget=OPEN,
            takes=entries_of(rows),
        )
        await self._task.append(page)
        self.tell_heard(rows, now)
        return True

    def output(self, text: str) -> None:
        """Show a piece of what the agent says."""
        self._said = (self._said + text)[-self._task.services.settings.limits.result :]
        super().output(text)

    async def hear_of_children(self) -> bool:
        """Wait until there is something to tell the agent of what it has started; False once none of that lives.

        Or once that is not to be waited for.
        """
        task = self._task
        while task.journal.at(STARTED) is not None and task.waits_for_children:
            live = await task.open_children()  # before the look: what ends after it may have news
            if await self.hear():
                return True
            if not live:
                return False
            await task.append_last()
            await task.watch(live, self._session_id, self.messages_heard)
        return False

    def repeat(self, answer: JSON) -> None:
        """Show an answer that was not shown as it was given."""
        text = answer if isinstance(answer, str) else encode(answer).decode()
        if not self._said.rstrip().endswith(text.strip()):
            super().output(f"{text}\n")
        self._said = ""

    async def look(self) -> Sequence[InboxRow]:
        """Return what came in since that is not for a later turn."""
        return await self._look(first=False)

    async def _look(self, *, first: bool) -> Sequence[InboxRow]:
        seen = self._task.rung
        rows = await self.untaken()
        left = [row for row in rows if not first and row.body.get("steering") == "after"]
        self._task.looked(seen, leaves=bool(left))
        return self.fitting([row for row in rows if row not in left])

    def finished(self) -> AgentOutcome | None:
        """How the agent has answered what it was told last, if it has."""
        return super().finished() if self._answered() == self._times else None

    def _answered(self) -> int:
        """How often the agent had been told something when it answered last."""
        row = self._task.journal.at(OUTCOME)
        return 0 if row is None else decode(row.value or b"{}").get("times", 0)

    def outcome_row(self, outcome: dict[str, JSON]) -> dict[str, JSON]:
        """An outcome is an answer to what had been told by then."""
        return {**outcome, "times": self._times}
