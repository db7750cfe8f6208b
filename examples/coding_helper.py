"""An agent that mends a program: it runs the tests in the background, is woken with the failure, and edits the file.

The project is made in the folder `project`, with a test that fails. The tests are a task of the kind `process`, and the
agent's turn ends while they run; how they ended wakes it for the next. Kill this program at any moment (`kill -9`) and
start it again: the tests run on without it, and the edit that was made is not made again. Only a kill in the middle of
the edit itself repeats it, which does no harm: the tool writes the whole file.

It answers offline, from a script. `MODEL=openai:gpt-5-mini` with a key in OPENAI_API_KEY has a real model mend it.
A real model may run any command as you: have it do so in a container, or give the agent `require_approval=True`.
"""

import asyncio
import os
import re
import sys
from pathlib import Path

from outrider import Outrider
from outrider.agents import scripted
from outrider.agents.engine import ToolError
from outrider.agents.scripted import Call, Reply, Turn

PROJECT = Path("project")
TESTS = [sys.executable, "-m", "unittest", "discover", "--start-directory", str(PROJECT)]
FILES = {
    "prices.py": "def median(prices):\n    return sorted(prices)[len(prices) // 2]\n",
    "test_prices.py": """\
import time
import unittest

from prices import median


class MedianTest(unittest.TestCase):
    def setUp(self):
        time.sleep(0.5)  # a suite takes its time

    def test_of_three(self):
        self.assertEqual(median([3, 1, 2]), 2)

    def test_of_four(self):
        self.assertEqual(median([4, 1, 3, 2]), 2.5)
""",
}

app = Outrider()


@app.tool
def read_file(name: str) -> str:
    """Return a file of the project."""
    return inside(name).read_text()


@app.tool  # effects="idempotent", as is the default: to write the same file twice is the same
def write_file(name: str, content: str) -> str:
    """Replace a file of the project."""
    print(f"writing {name}", flush=True)
    inside(name).write_text(content)
    return f"{name} is written"


def inside(name: str) -> Path:
    """Where a file of the project is. The model is told when it looks for one elsewhere."""
    path = (PROJECT / name).resolve()
    if not path.is_relative_to(PROJECT.resolve()) or not path.parent.is_dir():
        raise ToolError(f"{name} is not in the project")
    return path


def script(turn: Turn) -> Reply:
    """Play the model: run the tests; if they failed, look why, read, write, and run them again."""
    if (wake := re.search(r'<task_wake task="(\w+)".* state=\'(\w+)\'', turn.heard)) is not None:
        if wake[2] == "succeeded":
            return Reply("The tests pass now.")
        return Reply("They failed; let me see.", calls=(Call("get_task", {"task_id": wake[1]}),))
    match turn.results[0].tool if turn.results else None:
        case "get_task":
            return Reply("The median of four is wrong.", calls=(Call("read_file", {"name": "prices.py"}),))
        case "read_file":
            mended = "from statistics import median\n\n__all__ = ['median']\n"
            return Reply(calls=(Call("write_file", {"name": "prices.py", "content": mended}),))
        case "spawn_background":
            return Reply("The tests are running.")
        case _:  # it was asked, or the file is written
            return Reply(calls=(Call("spawn_background", {"command": TESTS, "title": "tests"}),))


scripted.register("coder", script)
app.agent(
    "coder",
    model=os.environ.get("MODEL", "scripted:coder"),
    system_prompt=f"Mend a project so that its tests pass. Run {TESTS} in the background and end your turn; you are "
    "told how they ended. If they failed, look at the output, mend the program, not its tests, and run them again.",
    tools=["read_file", "write_file"],
    delegates=True,
)


def set_up() -> None:
    """Make the project, unless it is there."""
    PROJECT.mkdir(exist_ok=True)
    for name, content in FILES.items():
        if not (PROJECT / name).exists():
            (PROJECT / name).write_text(content)


async def main() -> None:
    async with app.open("sqlite:///coding.db") as outrider:
        session = await outrider.sessions.create(id="coding", agent="coder")
        if await session.turn() is None:  # else it was asked before it was killed
            await session.send("Make the tests pass.")
        passed = False
        async for event in session.events():  # from the first on, also of what was before a kill
            record = event.task
            if record is None or event.type != "task.updated":
                continue
            if record.kind == "process":
                passed = record.state == "succeeded"
                print(f"{record.display_name}: {record.state}", flush=True)
            elif record.is_terminal:
                print(f"coder: {record.summary}", flush=True)
                if passed:
                    break


if __name__ == "__main__":
    set_up()
    asyncio.run(main())
    print((PROJECT / "prices.py").read_text(), end="")
