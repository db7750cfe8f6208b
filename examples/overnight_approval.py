"""An agent's tool that a person must approve, overnight: the task parks and holds no process until the morning.

    python overnight_approval.py evening        starts the agent, which asks before it switches over, and goes home
    python overnight_approval.py answer yes     answers, or `answer no`; nothing else runs meanwhile
    python overnight_approval.py morning        takes the work up again and says how it ended

All of it is in `overnight.db` in the current folder, and once done it stays done: begin again with
`rm -r overnight.db*`. If nobody answers within eight hours, or `DEADLINE` seconds, the call is denied, and the agent is
told so:

    DEADLINE=5 python overnight_approval.py evening
    python overnight_approval.py morning

The agent answers offline, from a script. `MODEL=openai:gpt-5-mini` with a key in OPENAI_API_KEY asks a real model.
"""

import asyncio
import os
import sys
from datetime import timedelta

from outrider import Outrider, State, TaskOptions, WorkerSettings
from outrider.agents import scripted
from outrider.agents.scripted import Call, Reply, Turn

DATABASE = "sqlite:///overnight.db"
DEADLINE = timedelta(seconds=float(os.environ.get("DEADLINE", 8 * 60 * 60)))
THE_ONE = TaskOptions(idempotency_key="tonight")

app = Outrider(WorkerSettings(approval_deadline=DEADLINE.total_seconds()))


@app.tool
def copy_rows(table: str) -> int:
    """Copy the rows of a table to the new database, and return how many there are."""
    print(f"copying {table}")
    return 1200


@app.tool(effects="once", requires_approval=True)
def switch_over(table: str, rows: int) -> str:
    """Have everybody use the copy of a table."""
    print(f"switching {table} over, {rows} rows")
    return f"{table} is switched over"


def script(turn: Turn) -> Reply:
    """Play the model: copy, then switch over, then say what became of it."""
    if not turn.results:
        return Reply("I copy the table first.", calls=(Call("copy_rows", {"table": "orders"}),))
    (last,) = turn.results
    if last.tool == "copy_rows":
        return Reply("That is done.", calls=(Call("switch_over", {"table": "orders", "rows": last.content}),))
    return Reply("orders is switched over" if last.ok else "orders stays as it was")


scripted.register("migrator", script)
app.agent(
    "migrator",
    model=os.environ.get("MODEL", "scripted:migrator"),
    system_prompt="You migrate tables: copy one, then switch over. If you may not switch over, leave it as it is.",
    tools=["copy_rows", "switch_over"],
)


async def evening() -> None:
    async with app.open(DATABASE) as outrider:
        session = await outrider.sessions.create(id="migrations")
        task = await session.spawn_agent("Migrate the table orders.", agent="migrator", options=THE_ONE)
        async for event in task.events():
            parked = event.task is not None and event.task.state is State.AWAITING_INPUT and not event.task.worker_id
            if event.task is not None and (parked or event.task.is_terminal):
                break
        record = await task.record()
        print(f"{record.state}, held by {record.worker_id or 'no worker'}; good night")


async def answer(word: str) -> None:
    async with app.open(DATABASE, worker=False) as outrider:
        asking = await outrider.tasks.list(states=(State.AWAITING_INPUT,))
        if not asking or asking[0].input_request is None:
            sys.exit("nothing asks: was there an evening, and no answer yet?")
        question = asking[0].input_request
        print(question.prompt, question.details["arguments"])
        task = await outrider.task(asking[0].id)
        record = await task.answer(word == "yes", by=os.environ.get("USER", "somebody"), via="the example")
        print(f"answered {word}; now {record.state}, {record.phase}")


async def morning() -> None:
    async with app.open(DATABASE) as outrider:
        session = await outrider.sessions.create(id="migrations")  # the one there is
        task = await session.spawn_agent("Migrate the table orders.", agent="migrator", options=THE_ONE)  # the same
        question = (await task.wait(on_question=True)).input_request
        if question is not None and question.deadline_at is not None:
            print(f"no answer yet; at {question.deadline_at.astimezone():%H:%M:%S} it counts as a no")
        print(await task.result())
        record = await task.record()
        print(f"{record.state} in attempt {record.attempt}, {record.failures} failures")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["evening"]:
            asyncio.run(evening())
        case ["answer", ("yes" | "no") as word]:
            asyncio.run(answer(word))
        case ["morning"]:
            asyncio.run(morning())
        case _:
            sys.exit(__doc__)
