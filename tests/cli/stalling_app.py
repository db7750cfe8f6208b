"""An app whose workers lose patience with a blocked event loop soon."""

import os
import subprocess
import time
from pathlib import Path

from outrider import Outrider, TaskContext, WorkerSettings

app = Outrider(WorkerSettings(stall_named=0.3, stall_limit=1.0))


@app.tool
def go_on() -> int:
    return os.getpid()


@app.tool
async def block(task: TaskContext, pids: str) -> None:
    with Path(pids).open("a") as file:
        file.write(f"{os.getpid()}\n")
    for seconds in ("0.1", "3"):  # one ends before the worker starts over, one after
        subprocess.Popen(["sleep", seconds])
    time.sleep(3600)
