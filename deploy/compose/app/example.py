"""Twenty books, written by whichever workers there are, and who wrote them.

The workers import `app` from here, and run its tools; run as a program, this hands the work out and waits for it.
"""

import asyncio
import os
from collections import Counter

from outrider import Outrider, TaskContext

app = Outrider()


@app.tool
async def write_book(task: TaskContext, chapters: int) -> int:
    words = 0
    for number in range(1, chapters + 1):
        words += await task.step(f"chapter {number}", write_chapter, number)
        task.progress(number, chapters, unit="chapters")
    return words


async def write_chapter(number: int) -> int:
    await asyncio.sleep(0.2)
    return 100 * number


async def main() -> None:
    async with app.open(os.environ["OUTRIDER_DB"], worker=False) as outrider:
        session = await outrider.sessions.create()
        tasks = [await session.spawn(write_book, chapters=5) for _ in range(20)]
        words = sum([await task.result() for task in tasks])
        writers = Counter([(await task.attempts())[-1].worker_id for task in tasks])
    print(f"{words} words in {len(tasks)} books")
    for worker, books in writers.items():
        print(f"{worker}: {books} books")


if __name__ == "__main__":
    asyncio.run(main())
