"""The kind `turn`: a session's agent takes its turn, in the session itself.

What is in the inbox is taken by the transaction that appends it to the transcript, before the model hears of it: so it
is told once, whatever dies in between. The turn is over when the agent has answered and nothing more is there; what
came in unseen keeps the record from ending, see `runtime.turns`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from outrider.agents.delegation import STARTED
from outrider.agents.engine import DEFAULT_ENGINE, AgentOutcome, Engine
from outrider.core.errors import InvalidArguments
from outrider.core.ledger import InboxRow, Page
from outrider.core.task import TURN, Usage
from outrider.core.values import JSON, JSONObject
from outrider.kinds.subagent import OPEN, OUTCOME, AgentTranscript, Subagent
from outrider.kinds.wakes import WAKE, unmarked
from outrider.runtime.codec import decode, encode
from outrider.runtime.context import TaskContext
from outrider.runtime.registry import CheckedSpec
from outrider.runtime.turns import LOOK

KIND = TURN
HEARD = "heard!"
"""The journal row that says what the agent was told last, and how often it has been told something by then."""

BETWEEN = "\n\n"


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
            outcome = await self._drive(task, engine, ears, prompt=ears.prompt, asked=True)
            await ears.keep(outcome)
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
        self._taken: list[InboxRow] = []
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
        if not rows:
            return False
        self._times += 1
        self.prompt = prompt_of(rows)
        now = self._task.services.clock.now()
        if not self._counts_on:
            self.done, self.used = self._task.live.iterations, self._task.live.usage
        heard = encode([self._times, self.prompt, self.done, self.used])
        page = Page(
            session_id=self._session_id,
            task_id=self._task.id,
            attempt=self._task.attempt,
            iteration=self._task.live.iterations,
            messages=tuple(encode(message) for message in self._engine.said(self.prompt)),
            live=self._task.live,
            at=now,
            forget=OPEN,
            steps=(self._row(HEARD, "heard", now, heard),),
            takes=tuple((row.task_id, row.seq) for row in rows),
        )
        await self._write(page)
        return True

    async def hear_of_children(self) -> bool:
        """Wait until there is something to tell the agent of what it has started; False once none of that lives."""
        task = self._task
        while task.journal.at(STARTED) is not None:
            live = await task.open_children()  # before the look: what ends after it may have news
            if await self.hear():
                return True
            if not live:
                return False
            await task.watch(live, self._session_id)
        return False

    async def news(self) -> str | None:
        """Return what came in since, to be told with the next request; it is taken with the iteration that says it."""
        rows = await self._look(first=False)
        self._taken.extend(rows)
        return prompt_of(rows) if rows else None

    def restart(self) -> None:
        """What was said in a request that came to nothing is said again."""
        self._taken = []

    def takes(self) -> tuple[tuple[str, int], ...]:
        """What the iteration about to be appended tells of, once."""
        taken, self._taken = self._taken, []
        return tuple((row.task_id, row.seq) for row in taken)

    async def _look(self, *, first: bool) -> Sequence[InboxRow]:
        seen = self._task.rung
        rows = await self._task.services.views.inbox(self._session_id, limit=LOOK)
        left = [row for row in rows if not first and row.body.get("steering") == "after"]
        self._task.looked(seen, leaves=bool(left))
        taken = {(row.task_id, row.seq) for row in self._taken}
        wanted = [row for row in rows if row not in left and (row.task_id, row.seq) not in taken]
        # What is too much for one prompt is left where it is: it is looked for again when this has been answered.
        room = self._task.services.settings.limits.message
        sizes = accumulate(len(told(row)) + len(BETWEEN) for row in wanted)
        return [row for nth, (row, size) in enumerate(zip(wanted, sizes, strict=True)) if not nth or size <= room]

    async def keep(self, outcome: AgentOutcome) -> None:
        """Have it known that the agent has answered; of most engines the last page has said so."""
        if self.finished() is None or self._answered() != self._times:
            await self._task.write_own(OUTCOME, "outcome", encode(self.outcome_row(outcome.to_json())))

    def _answered(self) -> int:
        """How often the agent had been told something when it answered last."""
        row = self._task.journal.at(OUTCOME)
        return 0 if row is None else decode(row.value or b"{}").get("times", 0)

    def outcome_row(self, outcome: dict[str, JSON]) -> dict[str, JSON]:
        """An outcome is an answer to what had been told by then."""
        return {**outcome, "times": self._times}


def prompt_of(rows: Iterable[InboxRow]) -> str:
    """What entries of an inbox say to an agent, together."""
    return BETWEEN.join(map(told, rows))


def told(row: InboxRow) -> str:
    """What an entry of an inbox says to an agent. Who speaks for a task is marked, and nobody else can use the mark."""
    if row.reason == "user":
        return BETWEEN.join(_part(part) for part in row.body["parts"])
    facts = "".join(f" {name}={value!r}" for name, value in row.body.items() if value is not None and name in _FACTS)
    said = [row.body[name] for name in ("summary", "prompt", "text") if row.body.get(name)]
    error = row.body.get("error")
    if error:
        said.append(f"{error['kind']}: {error['message']}")
    inner = "\n".join(unmarked(str(each)) for each in said)
    return f'<{WAKE} task="{row.task_id}" reason="{row.reason}"{facts}>{inner}</{WAKE}>'


_FACTS = ("state", "request_id", "message_id", "kind")


def _part(part: JSONObject) -> str:
    match part.get("type"):
        case "text":
            return unmarked(str(part.get("text", "")))
        case _:
            return unmarked(encode(part).decode())
