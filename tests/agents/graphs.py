"""The cast of LangGraph: a graph for each part."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import interrupt

from tests.agents.casts import TOKENS, World

Node = Callable[[Any], Awaitable[dict[str, Any]]]
TEXT = {"type": "string"}


class State(MessagesState, total=False):
    three: int
    four: int
    sent: str
    city: str
    day: str
    given: Any


class NoSuchThing(Exception):
    """As the clients of providers raise it."""

    status_code = 400


def said(text: str) -> dict[str, Any]:
    usage = {"input_tokens": TOKENS.input, "output_tokens": TOKENS.output, "total_tokens": TOKENS.input + TOKENS.output}
    return {"messages": [AIMessage(text, usage_metadata=usage)]}


def chain(*stages: tuple[Node, ...]) -> Any:
    """A graph of stages one after the other; the nodes of a stage run side by side."""
    builder: Any = StateGraph(State)
    before: list[str] = [START]
    for stage in stages:
        for node in stage:
            builder.add_node(node.__name__, node)
            for each in before:
                builder.add_edge(each, node.__name__)
        before = [node.__name__ for node in stage]
    for each in before:
        builder.add_edge(each, END)
    return builder.compile()


def of(world: World) -> dict[str, Any]:
    def model(number: int, text: str | Callable[[Any], str]) -> Node:
        async def node(state: Any) -> dict[str, Any]:
            world.tell(f"model {number}")
            return said(text if isinstance(text, str) else text(state))

        node.__name__ = f"model_{number}"
        return node

    async def add_3(_: Any) -> dict[str, Any]:
        return {"three": await world.add(3, 4)}

    async def add_4(_: Any) -> dict[str, Any]:
        return {"four": await world.add(4, 5)}

    async def send(_: Any) -> dict[str, Any]:
        return {"sent": await world.send("hello")}

    async def ask_city(_: Any) -> dict[str, Any]:
        return {"city": interrupt("Which city?", response_schema=TEXT)}

    async def ask_day(_: Any) -> dict[str, Any]:
        return {"day": interrupt({"question": "Which day?", "expected": TEXT})}

    async def give(state: Any) -> dict[str, Any]:
        return {"given": json.loads(state["messages"][0].text)}

    async def wait_for_the_gate(_: Any) -> dict[str, Any]:
        await world.wait_for_the_gate()
        return {}

    async def wait(_: Any) -> dict[str, Any]:
        await world.wait_for_ever()
        return {}

    async def burst(_: Any) -> dict[str, Any]:
        return said(await world.burst())

    async def meet_an_error(_: Any) -> dict[str, Any]:
        raise NoSuchThing("no such thing")

    endless: Any = StateGraph(State)
    endless.add_node("model", model(1, "Still at it."))
    endless.add_edge(START, "model")
    endless.add_edge("model", "model")
    return {
        "worker": chain(
            (model(1, "Adding."),),
            (add_3, add_4),
            (model(2, "Sending."),),
            (send,),
            (model(3, lambda state: f"{state['three']}, {state['four']} and {state['sent']}"),),
        ),
        "listener": chain(
            (model(1, "Hm."),),
            (wait_for_the_gate,),
            (model(2, lambda state: f"I heard {state['messages'][-1].text}"),),
        ),
        "asker": chain((model(1, "Hm."),), (ask_city,), (model(2, lambda state: str(state["city"])),)),
        "pair": chain(
            (model(1, "Hm."),), (ask_city, ask_day), (model(2, lambda state: f"{state['city']} and {state['day']}"),)
        ),
        "endless": endless.compile(),
        "giver": chain((give,)),
        "stuck": chain((wait,)),
        "fragile": chain((model(1, "Careful."),), (burst,)),
        "broken": chain((model(1, "So far."),), (meet_an_error,)),
    }
