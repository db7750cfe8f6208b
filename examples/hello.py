"""A tool with steps and a question. Kill it at any moment and start it again: it goes on where it was."""

import asyncio
import sys
import time

from outrider import Outrider, TaskContext, TaskOptions

app = Outrider()


@app.tool
async def write_book(task: TaskContext, chapters: int) -> str:
    words = 0
    for number in range(1, chapters + 1):
        words += await task.step(f"chapter {number}", write_chapter, number)
        task.progress(number, chapters, unit="chapters")
    if not await task.ask(f"{words} words in {chapters} chapters. Publish?", bool):
        return "kept in a drawer"
    return await task.step("publish", publish, words, effects="once")


def write_chapter(number: int) -> int:
    print(f"writing chapter {number}", flush=True)
    time.sleep(1)
    return 100 * number


def publish(words: int) -> str:
    return f"published {words} words"


async def main() -> None:
    async with app.open("sqlite:///hello.db") as outrider:  # a worker runs inside
        session = await outrider.sessions.create(id="hello")
        task = await session.spawn(write_book, chapters=5, options=TaskOptions(idempotency_key="the book"))
        record = await task.wait(on_question=True)
        if record.input_request is not None:
            if len(sys.argv) == 1:
                print(record.input_request.prompt, "Run me again, with yes or no.")
                return
            await task.answer(sys.argv[1] == "yes")
        print(await task.result())


if __name__ == "__main__":
    asyncio.run(main())
