"""The app whose tools the tests of the command line call."""

import asyncio
import os
import signal
import time
from pathlib import Path

from outrider import Failure, Outrider, SyncTaskContext, TaskContext

app = Outrider()


@app.tool
def add(a: int, b: int = 0) -> int:
    return a + b


@app.tool
def echo(text: str) -> str:
    return text


@app.tool
def boxed(text: str) -> dict[str, str]:
    return {"text": text}


@app.tool
async def count(task: TaskContext, upto: int, pause: float = 0.0) -> dict[str, int]:
    for n in range(1, upto + 1):
        task.progress(n, total=upto, unit="lines", label=f"line {n}")
        task.output(f"line {n}\n")
        await asyncio.sleep(pause)
    return {"counted": upto}


@app.tool
async def confirm(task: TaskContext, prompt: str = "Go on?") -> str:
    return "yes" if await task.ask(prompt, bool) else "no"


@app.tool
async def name_it(task: TaskContext) -> str:
    return "called " + await task.ask("Which name?", str)


@app.tool
def fail(reason: str) -> None:
    raise Failure(reason, kind="on_purpose")


@app.tool
async def forever(task: TaskContext) -> None:
    task.detail("waiting for ever")
    await asyncio.sleep(3600)


@app.tool
async def nasty(task: TaskContext) -> str:
    task.detail("\x1b]0;owned\x07detail")
    task.output("\x1b[2Jwiped\ttab\n")
    return "\x1b[31mred\nsecond line"


@app.tool
async def echo_messages(task: TaskContext) -> str:
    (message,) = await task.messages()
    return f"heard {message.text}"


@app.tool
async def steps(task: TaskContext, notes: str, upto: int, hold: str) -> int:
    """Note each step as it is done; between the steps wait until `hold` is gone."""

    def note(n: int) -> int:
        with Path(notes).open("a") as file:
            file.write(f"{n} {os.getpid()}\n")
        return n

    done = 0
    for n in range(upto):
        done += await task.step(f"step {n}", note, n)
        while n == upto // 2 and Path(hold).exists():  # noqa: ASYNC110 - the file is another process's to remove
            await asyncio.sleep(0.01)
    return done


@app.tool
def stubborn(task: SyncTaskContext, pids: str) -> None:
    """Note the process, then ignore every order to stop."""
    with Path(pids).open("a") as file:
        file.write(f"{os.getpid()}\n")
    while True:
        time.sleep(0.05)


@app.tool
async def hold_up(task: TaskContext, pids: str) -> None:
    """Note the process, then hold up its event loop."""
    with Path(pids).open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(3600)


@app.tool
async def hangs_up(task: TaskContext) -> str:
    os.kill(os.getpid(), signal.SIGHUP)
    await asyncio.sleep(0.2)
    return "still here"
