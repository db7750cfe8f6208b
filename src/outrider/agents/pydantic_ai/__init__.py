"""The default engine: agents run by pydantic-ai, made durable through its `durable_exec` backend.

Nothing else imports pydantic-ai, which takes about two seconds: `engine.load_engine` does it when asked. One run of
an agent is one `Attempt`; the task's journal gets in through `Durability`, which is added to the run, so that any
`pydantic_ai.Agent` stays as it is.
"""

from collections.abc import Sequence

import pydantic_ai
from pydantic_ai.durable_exec import replay_scope

from outrider.agents.engine import AgentBrief, AgentOutcome, AgentRun
from outrider.agents.models import ModelChoice
from outrider.agents.pydantic_ai.attempt import Attempt, RuntimeFault, said, ungrouped
from outrider.agents.pydantic_ai.durability import attempting
from outrider.agents.pydantic_ai.serving import check_model
from outrider.core.values import JSON

__all__ = ["PydanticAI"]

# Its greeting on a terminal belongs to programs that call it by themselves.
pydantic_ai.BANNER_ENABLED = False


class PydanticAI:
    """Runs agents with pydantic-ai: plain ones of a prompt and tools, and any `pydantic_ai.Agent` as it is."""

    name = "pydantic-ai"

    def check_model(self, choice: ModelChoice) -> None:
        """See `Choosy.check_model`."""
        check_model(choice)

    def said(self, text: str) -> Sequence[JSON]:
        """See `Engine.said`."""
        return said(text)

    async def run(self, brief: AgentBrief, run: AgentRun) -> AgentOutcome:
        """See `Engine.run`."""
        attempt = Attempt(brief, run)
        try:
            with attempting(attempt), replay_scope():  # what the engine's spans and metrics tell of, they tell once
                return await attempt.drive()
        except BaseException as error:
            plain = ungrouped(error)
            told = attempt.explain(plain)
            if told is error:
                raise
            raise told from (plain if told is not plain and not isinstance(plain, RuntimeFault) else None)
