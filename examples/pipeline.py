"""Many tasks that depend on one another: children, a wait for all of them, a task that starts after another.

Counts the words of Python's own documentation strings, a child task for each module. `publish` depends on `count`:
it starts when that has succeeded, and reads its result. Run it twice: the second time finds all done.
"""

import asyncio
import importlib
import inspect
import json
import re
from collections import Counter

from outrider import Outrider, TaskContext, TaskOptions

MODULES = ["argparse", "asyncio", "collections", "dataclasses", "functools", "pathlib", "statistics", "textwrap"]

app = Outrider()


@app.tool
async def count(task: TaskContext, modules: list[str]) -> dict[str, int]:
    children = [await task.spawn(count_module, module=name, options=TaskOptions(name=name)) for name in modules]
    waiting = [child.id for child in children]
    while waiting:  # if that takes long the task parks: it holds no worker while its children run
        ended = [record for record in await task.wait_for(waiting, any=True) if record.is_terminal]
        waiting = [child for child in waiting if child not in {record.id for record in ended}]
        task.progress(len(children) - len(waiting), len(children), unit="modules")
        task.output("".join(f"{record.display_name} is counted\n" for record in ended))
    total: Counter[str] = Counter()
    for child in children:
        total.update(await child.result())
    return dict(total.most_common(10))


@app.tool
def count_module(module: str) -> dict[str, int]:
    """Count the longer words. A plain function: it runs in a thread, and needs no `TaskContext` if it says nothing."""
    found = importlib.import_module(module)
    texts = [inspect.getdoc(value) or "" for value in vars(found).values()]
    return Counter(word for text in texts for word in re.findall(r"[a-z]{6,}", text.lower()))


@app.tool(effects="once")
async def publish(task: TaskContext, source: str) -> int:
    words = json.loads(await task.files.read(f"/.tasks/{source}/result.json"))
    table = "\n".join(f"{number:6} {word}" for word, number in words.items())
    await task.artifact("words.txt", table, path="/words.txt")
    return len(words)


async def main() -> None:
    async with app.open("sqlite:///pipeline.db") as outrider:
        session = await outrider.sessions.create(id="words")
        counted = await session.spawn(count, modules=MODULES, options=TaskOptions(idempotency_key="count"))
        after = TaskOptions(idempotency_key="publish", depends_on=(counted.id,))
        published = await session.spawn(publish, source=counted.id, options=after)
        async for piece in counted.output():
            print(piece.text, end="")
        print(f"{await published.result()} words:")
        print((await session.read_file("/words.txt")).decode())
        for record in reversed(await session.tasks()):
            print(f"{record.display_name:14} {record.state:10} attempt {record.attempt}")


if __name__ == "__main__":
    asyncio.run(main())
