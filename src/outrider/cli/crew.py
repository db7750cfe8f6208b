"""`outrider worker --processes N`: several workers on one database, each a process with a core of its own.

This process runs no task. It starts the workers, starts one again that died, passes on the order to stop, and leaves
when the last has. Should it be killed itself, the workers notice, drain and leave.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from argparse import Namespace

from outrider.cli.exits import OK, STORE
from outrider.cli.terminal import Screen

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
"""Seconds before a worker that died is started again: doubled each time, as long as it does not live that long."""


class Crew:
    """Several worker processes and who looks after them."""

    def __init__(self, arguments: Namespace, screen: Screen) -> None:
        self._count: int = arguments.processes
        self._screen = screen
        self._stopping = asyncio.Event()
        self._processes: set[asyncio.subprocess.Process] = set()
        self._orders = 0
        self._code = OK

    async def run(self) -> int:
        """Keep the workers going until told to stop, or until all have left by themselves."""
        reading, writing = os.pipe()
        self._heed_signals()
        try:
            await asyncio.gather(*(self._keep(reading) for _ in range(self._count)))
        finally:
            os.close(writing)
            os.close(reading)
        return self._code

    async def _keep(self, crew: int) -> None:
        """Start one worker, and another when it has died."""
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            began = time.monotonic()
            process = await self._start(crew)
            self._processes.add(process)
            if self._stopping.is_set():  # the order came while it was being started
                process.terminate()
            code = await process.wait()
            self._processes.discard(process)
            if code == STORE:
                self._code = STORE
                self._tell_all(signal.SIGTERM)
            if code in (OK, STORE) or self._stopping.is_set():
                return
            pause = FIRST_PAUSE if time.monotonic() - began > LONGEST_PAUSE else pause
            self._note(f"worker process {process.pid} ended with {code}; starting another in {pause:g} s")
            with_order = asyncio.create_task(self._stopping.wait())
            await asyncio.wait({with_order}, timeout=pause)
            with_order.cancel()
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _start(self, crew: int) -> asyncio.subprocess.Process:
        """A worker in a process group of its own: Ctrl-C reaches only this process, which passes it on once."""
        arguments = [each for each in sys.argv[1:] if not each.startswith("--starting=")]
        command = [sys.executable, "-m", "outrider.cli", *arguments, "--processes=1", f"--crew={crew}"]
        return await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, pass_fds=(crew,), process_group=0
        )

    def _heed_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        self._orders += 1
        if self._orders > 1:
            self._code = 128 + number
        self._note("stopping all workers" if self._orders == 1 else "forcing all workers")
        self._tell_all(signal.SIGTERM)

    def _tell_all(self, number: signal.Signals) -> None:
        self._stopping.set()
        for process in tuple(self._processes):
            if process.returncode is None:
                process.send_signal(number)

    def _note(self, text: str) -> None:
        self._screen.stamped(text)
