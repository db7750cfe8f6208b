"""A lead agent that has others do the research: in the background, within a budget, woken by each as it ends.

The lead starts a researcher for each topic and walks away; its turn is over. Each researcher that ends wakes it for
another turn, and after the last it hands in a report. What all of them spend comes out of one budget, that of the tree;
each researcher has a share, and the one with too much to read runs into it: it fails, and what it had found is kept.

It answers offline, from scripts, the same each time. `MODEL=openai:gpt-5-mini` with a key in OPENAI_API_KEY has a real
model do the work: the line `MODEL = ...` is all that knows of the difference.
"""

import asyncio
import os

from outrider import Outrider, SessionHandle, TaskContext
from outrider.agents import scripted
from outrider.agents.scripted import Call, Reply, Turn

MODEL = os.environ.get("MODEL")  # None: the scripts below

PAGES = {
    "prices": ["Electricity costs 1.10 a kilowatt hour.", "Gas costs 0.90, and rises."],
    "ovens": ["An electric oven costs 90,000.", "It lasts 15 years."],
    "rules": [f"Rule {number}: no flames in {place}." for number, place in enumerate(("cellars", "attics", "halls"), 1)]
    + [f"Appendix {number}." for number in range(1, 40)],
}

app = Outrider()


@app.tool
def read_page(topic: str, page: int) -> str:
    """Return a page on a topic: prices, ovens or rules. The first has number 1; there is none after the last."""
    pages = PAGES.get(topic, [])
    return pages[page - 1] if 0 < page <= len(pages) else "There is no such page."


@app.tool
async def hand_in(task: TaskContext, report: str) -> str:
    """Hand in the report, once all researchers have ended."""
    await task.artifact("report.md", report, path="/report.md")
    return "handed in"


def lead(turn: Turn) -> Reply:
    """Play the lead: start three, look at them whenever one has ended, hand in when all have."""
    last = turn.results[-1] if turn.results else None
    if "<task_wake" in turn.heard:
        return Reply(calls=(Call("list_tasks", {"kind": "subagent"}),))
    if last is None:
        each = {"agent": "researcher", "budget": {"requests": 4}}
        return Reply(
            calls=tuple(Call("spawn_agent", {**each, "name": it, "instructions": f"Find out: {it}."}) for it in PAGES)
        )
    if last.tool == "list_tasks":
        live = sum(row["state"] in ("queued", "running") for row in last.content)
        if live or any(result.tool == "hand_in" for result in turn.earlier()):
            return Reply(f"{live} are still at work." if live else "The report is handed in already.")
        found = sorted(f"- {row['name']} ({row['state']}): {row.get('summary', '')}" for row in last.content)
        return Reply(calls=(Call("hand_in", {"report": "\n".join(["# Ovens for the bakery", *found])}),))
    return Reply("The report is handed in." if last.tool == "hand_in" else "Three are at work. I will hear of them.")


def researcher(turn: Turn) -> Reply:
    """Play a researcher: read page after page, and say what is known so far."""
    (topic,) = (topic for topic in PAGES if topic in turn.prompt)
    found = " ".join(str(result.content) for result in turn.earlier())
    if turn.number > len(PAGES[topic]):
        return Reply(found)
    return Reply(found, calls=(Call("read_page", {"topic": topic, "page": turn.number}),))


scripted.register("lead", lead)
scripted.register("researcher", researcher)
app.agent(
    "lead",
    model=MODEL or "scripted:lead",
    system_prompt="You lead three researchers: for prices, ovens and rules. Start each in the background, as the agent "
    "`researcher` with a budget of 4 requests, and end your turn. You are told when one has ended. When all have, hand "
    "in a report of what they found, also of one that failed.",
    tools=["hand_in"],
    delegates=True,
)
app.agent(
    "researcher",
    model=MODEL or "scripted:researcher",
    system_prompt="You read page after page on a topic. With each call, say what you know so far.",
    tools=["read_page"],
)


async def report_of(session: SessionHandle) -> str:
    """Watch the session until the turn is over in which the report was handed in."""
    async for event in session.events():
        record = event.task
        if record is None or not record.is_terminal:
            continue
        if record.kind == "subagent":
            print(f"{record.display_name}: {record.error.kind if record.error else record.state}")
        elif record.kind == "turn" and await session.files("/report.md"):
            break
    return (await session.read_file("/report.md")).decode()


async def main() -> None:
    async with app.open("sqlite:///research.db") as outrider:
        session = await outrider.sessions.create(agent="lead", tree_budget={"tokens": 200_000, "requests": 60})
        await session.send("Shall the bakery buy electric ovens?")
        print(await report_of(session))

        print("\nlead")
        for record in sorted(await session.tasks(kind="subagent"), key=lambda record: record.display_name):
            used = record.usage
            tokens = used.input_tokens + used.output_tokens
            print(f"  {record.display_name}: {record.state}, {used.requests} requests, {tokens} tokens")
        (tree,) = (await session.usage(tree=True)).accounts
        spent = (f"{tree.spent[name]:.0f} of {bound:.0f} {name}" for name, bound in tree.budget.items())
        print(f"spent by all together: {', '.join(spent)}")


if __name__ == "__main__":
    asyncio.run(main())
