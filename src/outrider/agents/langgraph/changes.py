"""Whether today's graph has what its checkpoint says comes next: LangGraph passes over what it does not know.

A node that is to run is told by a channel of its own, one of the joins that it waits for, or a `Send`. A graph is
checked before anybody is asked anything, a subgraph when it is entered: which graph that is only LangGraph knows.
"""

from __future__ import annotations

from collections.abc import Collection, Container
from contextlib import suppress
from typing import Any

from langgraph.types import Command, Send

from outrider.agents.engine import AgentFailed
from outrider.agents.langgraph.checkpoints import Saver

TO = "branch:to:"
JOIN = "join:"
TASKS = "__pregel_tasks"
PULLED = "~__pregel_pull, "
"""How the path of a task begins that is no `Send`; its node follows."""
RESUMING = "__pregel_resuming"


def check(saver: Saver, ns: str, nodes: Collection[str], channels: Container[str]) -> None:
    """Raise AgentFailed (kind `interrupted`) where the graph of a namespace does not have what comes next there."""
    lacked = _lacked(saver, ns, nodes, channels)
    if lacked is None:
        return
    within = "/".join(part.split(":")[0] for part in ns.split("|") if not part.isdigit())
    of = f" of subgraph {within!r}" if within else ""
    met = "nodes " + ", ".join(repr(name) for name in sorted(nodes) if name != "__start__")
    raise AgentFailed(
        f"the graph has changed since this task began: {lacked}{of} comes next by its checkpoint, the graph has {met}; "
        "run it with the graph it began with, or retry it as a new task",
        kind="interrupted",
        details={"journaled": f"{lacked}{of}", "met": met},
    )


def _lacked(saver: Saver, ns: str, nodes: Container[str], channels: Container[str]) -> str | None:
    for path in saver.begun(ns):
        name = path.removeprefix(PULLED)
        if path != name and name not in nodes:
            return f"node {name!r}"
    for channel, value in saver.pending(ns, lambda name: name.startswith((TO, JOIN)) or name == TASKS):
        if channel == TASKS:
            for each in value if isinstance(value, list | tuple) else (value,):
                if isinstance(each, Send) and each.node not in nodes:
                    return f"node {each.node!r}"
        elif channel not in channels:
            if channel.startswith(TO):
                return f"node {channel.removeprefix(TO)!r}"
            if value[0] if isinstance(value, tuple) else value:  # a join of which nobody has come yet waits for nothing
                before, _, name = channel.removeprefix(JOIN).rpartition(":")
                return f"node {name!r} after {' and '.join(map(repr, before.split('+')))}"
    return None


with suppress(ImportError, AttributeError):  # another version may have it elsewhere: then no subgraph is checked
    from langgraph.pregel._loop import AsyncPregelLoop

    _first = AsyncPregelLoop._first

    def _check_and_first(loop: AsyncPregelLoop, **keys: Any) -> Any:
        configurable = loop.config.get("configurable", {})
        goes_on = configurable.get(RESUMING, loop.input is None or isinstance(loop.input, Command))
        if goes_on and isinstance(loop.checkpointer, Saver):
            try:
                check(loop.checkpointer, configurable.get("checkpoint_ns", ""), loop.nodes.keys(), loop.specs)
            except AgentFailed as error:
                loop.checkpointer.fail(error)  # the node around it may handle what is raised here
                raise
        return _first(loop, **keys)

    # No public place lies between finding a subgraph's checkpoint and going on from it. A method is replaced
    # (method-assign) by a function of looser keywords (assignment); with any saver but ours it does what it did.
    AsyncPregelLoop._first = _check_and_first  # type: ignore[method-assign, assignment]  # no public place, see above
