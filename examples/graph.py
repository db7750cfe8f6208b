"""A graph of LangGraph that stops to ask: it runs as an agent, as it is, and waits for the answer without a worker.

It needs the extra `outrider[langgraph]`. It calls no model, so it runs offline; nodes that do work just the same. Kill
it while it asks and start it again: it goes on where it was, and no node that was done is run again.
"""

import asyncio
import operator
from typing import Annotated

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send, interrupt
from typing_extensions import TypedDict

from outrider import Outrider, TaskOptions


class Trip(TypedDict, total=False):
    city: str
    offers: Annotated[list[int], operator.add]
    booked: int | None


class Asked(TypedDict):
    hotel: str
    city: str


def ask_hotels(state: Trip) -> list[Send]:
    """Ask three hotels side by side."""
    return [Send("hotel", {"hotel": name, "city": state["city"]}) for name in ("Anchor", "Bell", "Crown")]


async def hotel(state: Asked) -> Trip:
    print(f"asking the {state['hotel']} in {state['city']}")
    return {"offers": [90 + 10 * len(state["hotel"])]}


def approve(state: Trip) -> Trip:
    """Stop the graph until somebody has answered."""
    best = min(state["offers"])
    question = {"question": f"{best} a night in {state['city']}. Book it?", "offers": state["offers"]}
    return {"booked": best if interrupt(question, response_schema={"type": "boolean"}) else None}


builder = StateGraph(Trip)
builder.add_node(hotel)
builder.add_node(approve)
builder.add_conditional_edges(START, ask_hotels, ["hotel"])
builder.add_edge("hotel", "approve")
builder.add_edge("approve", END)

app = Outrider()
app.agent("trip", builder.compile())


async def main() -> None:
    async with app.open("sqlite:///graph.db") as outrider:
        session = await outrider.sessions.create(title="a trip")
        task = await session.spawn_agent('{"city": "Oslo"}', agent="trip", options=TaskOptions(name="trip"))

        record = await task.wait(on_question=True)
        assert record.input_request is not None
        print(record.input_request.prompt, record.input_request.details["offers"])
        await task.answer(True, by="Kim")

        result = await task.result()
        record = await task.record()
        print(f"booked for {result['booked']}, in {record.iterations} iterations")


if __name__ == "__main__":
    asyncio.run(main())
