"""The engine `langgraph`: any compiled graph, as it is, with the task's journal as its checkpointer.

Nothing else imports LangGraph (extra `langgraph`): `engine.load_engine` does it when asked. A superstep of the graph is
an iteration. What a node does is the graph's own business: a node that a crash cut short is run from its start again.
"""

from outrider.agents.engine import AgentBrief, AgentOutcome, AgentRun
from outrider.agents.langgraph.attempt import Attempt

__all__ = ["LangGraph"]


class LangGraph:
    """Runs compiled graphs of LangGraph."""

    name = "langgraph"

    async def run(self, brief: AgentBrief, run: AgentRun) -> AgentOutcome:
        """See `Engine.run`."""
        return await Attempt(brief, run).drive()
