"""Tools that run in processes of their own, well behaved and otherwise."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from outrider import Failure, Outrider, SyncTaskContext, TaskContext, TaskOptions, WorkerSettings
from outrider.core.errors import NotFound
from outrider.settings import LeaseTimes

app = Outrider(replace(WorkerSettings(), park_grace=0.05, recovery_interval=0.05, lease=LeaseTimes()))
isolated = app.tool(isolation="process")


class Order(BaseModel):
    name: str
    price: Decimal
    day: date


@dataclass
class Receipt:
    total: Decimal
    pid: int


def note(path: str, text: str) -> str:
    """Leave a line in a file, whoever kills this process next."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)
    return text


@isolated
def buy(orders: list[Order], tax: float = 1.0) -> Receipt:
    assert all(isinstance(order.day, date) for order in orders)
    return Receipt(Decimal(str(tax)) * sum(order.price for order in orders), os.getpid())


@isolated
async def every_verb(task: TaskContext, path: str) -> dict[str, Any]:
    note(path, f"attempt {task.attempt}")
    task.progress(1, 2, unit="legs", label="half")
    task.detail("on the way")
    task.output("spoken\n", stream="voice")
    print("printed", flush=True)
    print("complained", file=sys.stderr, flush=True)
    task.heartbeat()
    task.log.warning("logged")
    first = await task.step("first", note, path, "first")
    second = await task.step("second", later, path, "second")
    posted = await task.post({"leg": 1}, name="post")
    await task.files.write("/notes/a.txt", "text")
    await task.files.write("/notes/b.bin", b"\xff\x00")
    listed = [file.path for file in await task.files.list("/notes/", limit=1)]
    listed += [file.path for file in await task.files.list("/notes/", after=listed[0])]
    try:
        await task.files.read("/notes/none")
        missing = False
    except NotFound:
        missing = True
    kept = await task.artifact("chart", b"\x00chart")
    child = await task.spawn("double", number=21, options=TaskOptions(name="the double", labels={"a": "b"}))
    (ended,) = await task.wait_for([child])
    number = await task.ask("How many?", int)
    heard = await task.messages()
    await task.sleep(0.01)
    left, right = await asyncio.gather(
        task.step("left", later, path, "left"), task.step("right", later, path, "right", effects="once")
    )
    task.progress(2, 2, unit="legs", label="whole")
    return {
        "steps": [first, second, left, right],
        "posted": posted.id,
        "files": [listed, await task.files.read_text("/notes/a.txt"), (await task.files.read("/notes/b.bin")).hex()],
        "missing": missing,
        "kept": kept.size,
        "child": [ended.state, ended.display_name, await child.result()],
        "number": number,
        "heard": [message.parts[0]["text"] for message in heard],
        "record": task.record().display_name,
        "self": [task.id, task.session_id, task.spec["tool"]],
    }


async def later(path: str, text: str) -> str:
    await asyncio.sleep(0.01)
    return note(path, text)


@isolated
def every_verb_plainly(task: SyncTaskContext, path: str) -> dict[str, Any]:
    note(path, f"attempt {task.attempt}")
    task.progress(1)
    first = task.step("first", note, path, "first")
    task.post("posted")
    task.files.write("/notes/c.txt", "text")
    child = task.spawn(double, {"number": 4})
    (ended,) = task.wait_for([child])
    number = task.ask("How many?", int, name="many")
    heard = task.messages()
    task.sleep(0.01)
    kept = task.artifact("chart", "chart")
    return {
        "first": first,
        "child": [ended.state, child.result()],
        "text": task.files.read_text("/notes/c.txt"),
        "number": number,
        "heard": len(heard),
        "kept": kept.name,
    }


@app.tool
def double(number: int) -> int:
    return 2 * number


@isolated
def fail(kind: str) -> Any:
    match kind:
        case "error":
            raise ValueError("not like that")
        case "failure":
            raise Failure("no seats left", kind="sold_out", retryable=False, details={"row": 3})
        case "not json":
            return object()
        case "exit":
            os._exit(3)
        case "sys.exit":
            sys.exit(4)
        case "segfault":
            ctypes.string_at(0)
        case "kill":
            print("last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    return None


@isolated
def spin(path: str) -> None:
    """Compute for ever, deaf to everything polite."""
    note(path, str(os.getpid()))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        pass


@isolated
def stuck(path: str) -> None:
    """Hang in C code that never lets go of the interpreter."""
    note(path, str(os.getpid()))
    ctypes.PyDLL(None).sleep(3600)


@isolated
def heed(task: SyncTaskContext, path: str) -> str:
    """Look up now and then, and clean up when told to stop."""
    note(path, str(os.getpid()))
    while not task.cancel_requested:
        time.sleep(0.01)
    return note(path, "cleaned up")


@isolated
async def await_stop(path: str) -> None:
    note(path, str(os.getpid()))
    try:
        await asyncio.sleep(3600)
    finally:
        note(path, "cleaned up")


@isolated
def tidy(path: str) -> None:
    """Deaf to the stop, but not to TERM."""
    note(path, str(os.getpid()))
    try:
        while True:
            time.sleep(0.01)
    finally:
        note(path, "cleaned up")


@isolated
def breed(path: str) -> None:
    """Leave a grandchild behind, and hang."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    note(path, f"{child.pid}")
    note(path, str(os.getpid()))
    time.sleep(3600)


@isolated
def breed_and_return(path: str) -> str:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    return note(path, f"{child.pid}")


@isolated
async def ask_long(task: TaskContext, path: str) -> str:
    note(path, str(os.getpid()))
    name = await task.ask("Whose?", str)
    return f"it is {name}'s"


@isolated
async def wait_beside_work(task: TaskContext, path: str) -> list[Any]:
    """A step under way keeps its task from parking."""
    return list(await asyncio.gather(task.step("work", work, path, effects="once"), task.ask("Go?", bool)))


async def work(path: str) -> str:
    await asyncio.sleep(0.5)
    return note(path, "worked")


@isolated
async def branch(task: TaskContext, path: str) -> list[str]:
    """The second branch comes to its step first, and on resume the first has its own in the journal."""

    async def slow() -> str:
        await asyncio.sleep(0.2 if task.attempt > 1 else 0)
        return str(await task.step("slow", note, path, "slow"))

    async def quick() -> str:
        await asyncio.sleep(0 if task.attempt > 1 else 0.2)
        if task.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return str(await task.step("quick", note, path, "quick"))

    return list(await asyncio.gather(slow(), quick()))


@isolated
def flood(lines: int) -> str:
    for n in range(lines):
        print(f"line {n} {'x' * 90}")
    return "done"


@isolated
def leave_early(task: SyncTaskContext) -> None:
    """End while somebody else still holds the pipes."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(5)"], start_new_session=True)


async def ready(path: Path) -> int:
    """The number of the process that noted it last."""
    while not path.exists() or not path.read_text().strip():  # noqa: ASYNC110 - another process writes it
        await asyncio.sleep(0.01)
    return int(path.read_text().split()[-1])


@isolated
async def traced(task: TaskContext, path: str) -> None:
    await task.step("good", note, path, "good")
    with suppress(ZeroDivisionError):
        await task.step("bad", lambda: 1 // 0)
