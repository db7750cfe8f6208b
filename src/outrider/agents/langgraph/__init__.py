"""The engine `langgraph`: any compiled graph, as it is, with the task's journal as its checkpointer.

Nothing else imports LangGraph (extra `langgraph`): `engine.load_engine` does it when asked. A superstep of the graph is
an iteration. What a node does is the graph's own business: a node that a crash cut short is run from its start again.
"""

from collections.abc import Sequence

from outrider.agents.engine import AgentBrief, AgentOutcome, AgentRun, said_plainly
from outrider.agents.langgraph.attempt import Attempt
from outrider.agents.telling import running_agent
from outrider.core.values import JSON

__all__ = ["LangGraph"]


class LangGraph:
    """Runs compiled graphs of LangGraph."""

    name = "langgraph"

    def said(self, text: str) -> Sequence[JSON]:
        """See `Engine.said`."""
        return said_plainly(text)

    async def run(self, brief: AgentBrief, run: AgentRun) -> AgentOutcome:
        """See `Engine.run`."""
        with running_agent(brief):
            return await Attempt(brief, run).drive()
