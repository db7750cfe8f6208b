"""An agent with tools: one it may call, one that a person must approve, and a result of a given shape.

It answers offline, from a script. Any other model does the same work with `MODEL`, say `MODEL=openai:gpt-5-mini` with
a key in OPENAI_API_KEY, or any server that speaks OpenAI's protocol with its address in OPENAI_BASE_URL.
"""

import asyncio
import os

from pydantic import BaseModel

from outrider import Outrider, TaskOptions
from outrider.agents import scripted
from outrider.agents.scripted import Call, Reply, Turn


class Outcome(BaseModel):
    """What the agent has to come back with."""

    order: str
    refunded: bool
    reply: str


app = Outrider()


@app.tool
def look_up(order: str) -> dict[str, str | int]:
    """Return what is known of an order."""
    return {"order": order, "item": "a lamp", "cents": 4900, "status": "arrived broken"}


@app.tool(effects="once", requires_approval=True)
def refund(order: str, cents: int) -> str:
    """Pay an order back."""
    print(f"paying back {cents / 100:.2f} for {order}")
    return "paid back"


def script(turn: Turn) -> Reply:
    """Play the model: each reply depends on what the tools gave back."""
    if turn.number == 1:
        return Reply("Let me look at the order. ", calls=(Call("look_up", {"order": "A-17"}),))
    (last,) = turn.results
    if last.tool == "look_up" and isinstance(last.content, dict):
        return Reply("It arrived broken. ", calls=(Call("refund", {"order": "A-17", "cents": last.content["cents"]}),))
    reply = "You have your money back." if last.ok else "We will get in touch."
    return Reply(result={"order": "A-17", "refunded": last.ok, "reply": reply})


scripted.register("support", script)
app.agent(
    "support",
    model=os.environ.get("MODEL", "scripted:support"),
    system_prompt="You answer customers of a lamp shop. Refund what arrived broken.",
    tools=["look_up", "refund"],
    max_iterations=8,
)


async def main() -> None:
    async with app.open("sqlite:///agent.db") as outrider:
        session = await outrider.sessions.create(title="support")
        options = TaskOptions(result_schema=Outcome.model_json_schema())
        task = await session.spawn_agent("My order A-17 is broken!", agent="support", options=options)

        while (record := await task.wait(on_question=True)).input_request is not None:
            print(f"{record.input_request.prompt} {record.input_request.details['arguments']}")
            await task.answer({"approved": True, "reason": "seen the picture"}, by="Kim")

        outcome = Outcome.model_validate(await task.result())
        print(f"refunded: {outcome.refunded}; {outcome.reply}")
        record = await task.record()
        print(f"{record.model}: {record.iterations} iterations, {record.usage.requests} requests")


if __name__ == "__main__":
    asyncio.run(main())
