"""A graph of LangGraph that stops to ask: it runs as an agent, as it is, and its `interrupt` is a question of the task.

    python graph.py            asks, and ends: nothing has to run while the question waits
    python graph.py yes        answers, or `no`, in another process; the graph goes on where it was

It needs the extra `outrider[langgraph]`. It calls no model, so it runs offline; nodes that do work just the same. Kill
it at any moment and start it again: no node that was done is run again. All of it is in `graph.db`.
"""

import asyncio
import operator
import sys
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
        session = await outrider.sessions.create(id="travels")
        options = TaskOptions(name="trip", idempotency_key="to Oslo")  # the same key: the same task
        task = await session.spawn_agent('{"city": "Oslo"}', agent="trip", options=options)

        question = (await task.wait(on_question=True)).input_request
        if question is not None:
            print(question.prompt, question.details["offers"])
            if len(sys.argv) == 1:
                print("Run me again, with yes or no.")
                return
            await task.answer(sys.argv[1] == "yes", by="Kim")

        result = await task.result()
        record = await task.record()
        print(f"booked for {result['booked']}" if result["booked"] else "nothing is booked")
        print(f"{record.iterations} iterations, {record.failures} failures")


if __name__ == "__main__":
    asyncio.run(main())
