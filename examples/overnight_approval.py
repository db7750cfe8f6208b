"""A question that waits overnight: the task parks and holds no process; another one answers in the morning.

    python overnight_approval.py evening        starts the work, which asks, and goes home
    python overnight_approval.py answer yes     answers, or `answer no`; nothing else runs meanwhile
    python overnight_approval.py morning        takes the work up again and says how it ended

All of it is in `overnight.db` in the current folder, and once done it stays done: begin again with
`rm -r overnight.db*`. If nobody answers within eight hours, or `DEADLINE` seconds, the default counts, which is no:

    DEADLINE=5 python overnight_approval.py evening
    python overnight_approval.py morning
"""

import asyncio
import os
import sys
from datetime import timedelta

from outrider import Outrider, State, TaskContext, TaskOptions

DATABASE = "sqlite:///overnight.db"
DEADLINE = timedelta(seconds=float(os.environ.get("DEADLINE", 8 * 60 * 60)))
THE_ONE = TaskOptions(idempotency_key="tonight")

app = Outrider()


@app.tool
async def migrate(task: TaskContext, table: str) -> str:
    rows = await task.step("copy", copy_rows, table)
    task.detail(f"{rows} rows are copied")
    question = f"{rows} rows of {table} are copied. Switch over?"
    if not await task.ask(question, bool, deadline=DEADLINE, default=False):
        return f"{table} stays as it was"
    return await task.step("switch", switch_over, table, effects="once")


def copy_rows(table: str) -> int:
    print(f"copying {table}")
    return 1200


def switch_over(table: str) -> str:
    print(f"switching {table} over")
    return f"{table} is switched over"


async def evening() -> None:
    async with app.open(DATABASE) as outrider:
        session = await outrider.sessions.create(id="migrations")
        task = await session.spawn(migrate, table="orders", options=THE_ONE)
        async for event in task.events():
            parked = event.task is not None and event.task.state is State.AWAITING_INPUT and not event.task.worker_id
            if event.task is not None and (parked or event.task.is_terminal):
                break
        record = await task.record()
        print(f"{record.state}, held by {record.worker_id or 'no worker'}; good night")


async def answer(word: str) -> None:
    async with app.open(DATABASE, worker=False) as outrider:
        asking = await outrider.tasks.list(states=(State.AWAITING_INPUT,))
        if not asking:
            sys.exit("nothing asks: was there an evening, and no answer yet?")
        task = await outrider.task(asking[0].id)
        record = await task.answer(word == "yes", by=os.environ.get("USER", "somebody"), via="the example")
        print(f"answered {word}; now {record.state}, {record.phase}")


async def morning() -> None:
    async with app.open(DATABASE) as outrider:
        session = await outrider.sessions.create(id="migrations")  # the one there is
        task = await session.spawn(migrate, table="orders", options=THE_ONE)  # the same key: the same task
        question = (await task.wait(on_question=True)).input_request
        if question is not None and question.deadline_at is not None:
            print(f"no answer yet; at {question.deadline_at.astimezone():%H:%M:%S} the default counts")
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
