"""The app whose agent the tests of `chat` and `send` talk with: a function, so that no engine need be imported."""

import asyncio
from pathlib import Path

from outrider import Failure, Outrider, TaskContext, WorkerSettings
from outrider.agents.function import AgentContext

app = Outrider(WorkerSettings(park_grace=0.02))


@app.tool
async def build(task: TaskContext, target: str) -> str:
    """Build something, while the file `hold` is there."""
    task.progress(1, total=2, unit="parts", label=target)
    await gone("hold")
    return f"{target} is built"


async def clerk(ctx: AgentContext) -> str:
    """Do what the first word says; say back anything else."""
    word, _, rest = ctx.prompt.partition(" ")
    match word:
        case "build":
            await ctx.call("spawn_background", {"tool": "build", "arguments": {"target": rest}})
            return "It is begun."
        case "choose":
            return f"You chose {await ctx.ask('Which colour?', {'enum': ['red', 'green']})}."
        case "slowly":
            ctx.output("First\nand ")
            Path("begun").touch()
            await gone("hold")
            ctx.output("last.\n")
            return "First\nand last."
        case "nasty":
            print("printed by its code\x1b[2J")
            ctx.output("\x1b]0;owned\x07\x1b[2Jwiped\n")
            return "\x1b[31mred"
        case "fail":
            raise Failure("this is meant to be", kind="on_purpose")
        case _:
            return f"You said: {ctx.prompt}"


async def gone(name: str) -> None:
    while Path(name).exists():  # noqa: ASYNC110 - the file is another process's to remove
        await asyncio.sleep(0.01)


app.agent("clerk", clerk, delegates=True)
