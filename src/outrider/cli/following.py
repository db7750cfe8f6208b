"""A task in the foreground: show how it goes, ask what it asks, and end as it ended.

The result goes to stdout and everything else to stderr, so that `outrider call … > file` keeps the result alone.
The first Ctrl-C cancels the task and waits for that; the second leaves it where it is.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from contextlib import suppress
from typing import Any

from outrider.cli import exits
from outrider.cli.asking import Prompt
from outrider.cli.database import Opened
from outrider.cli.display import Display, display_for
from outrider.cli.glance import Glance, short
from outrider.cli.looking import print_result, result_of
from outrider.cli.terminal import Screen, told
from outrider.core.errors import OutriderError
from outrider.core.task import State
from outrider.core.wording import counted
from outrider.runtime.handles import TaskHandle
from outrider.runtime.records import InputRequestRecord, TaskRecord


class Follower:
    """Follows one task to its end. `after` is a number of its session's log from before it was made."""

    def __init__(
        self, runtime: Opened, task: TaskHandle, screen: Screen, after: int, display: Display | None = None
    ) -> None:
        self._runtime = runtime
        self._task = task
        self._screen = screen
        self._after = after
        self._display: Display = display or display_for(screen)
        self._printed = ""
        self._asked: set[str] = set()
        self._interrupts = 0
        self._jobs: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Follow to the end; return the exit code."""
        ended_by: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._heed_signals(ended_by)
        following = asyncio.ensure_future(self._follow())
        try:
            first: list[asyncio.Future[Any]] = [following, ended_by]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                return ended_by.result()
            following.result()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._screen.hang_up()  # noticed by writing before the signal came
            return exits.HUNG_UP
        finally:
            following.cancel()
            for job in self._jobs:
                job.cancel()
            await asyncio.gather(following, *self._jobs, return_exceptions=True)
            self._display.close()
        return await self._conclude()

    async def _follow(self) -> None:
        output = asyncio.create_task(self._follow_output())
        try:
            await self._look()
            async for _ in self._runtime.tasks.events(self._task.id, after=self._after):
                await self._look()
            await output
        finally:
            output.cancel()

    async def _follow_output(self) -> None:
        async for piece in self._task.output():
            self._printed = (self._printed + piece.text)[-65536:]
            if piece.lost:
                self._display.note(f"[{counted(piece.lost, 'byte')} of output cut]")
            self._display.print(piece.text)

    async def _look(self) -> None:
        task = await self._task.record()
        self._display.show(Glance.of(task))
        for request in task.input_requests:
            if request.id not in self._asked:
                self._asked.add(request.id)
                self._ask(task, request)

    def _ask(self, task: TaskRecord, request: InputRequestRecord) -> None:
        if self._screen.can_ask:
            prompt = Prompt(self._runtime, request, self._screen, self._display)
            self._start(prompt.run())
        else:
            self._display.note(
                f"{Glance.of(task).name} asks: {request.prompt}{told(request.details)}\n"
                f"answer with: outrider answer {short(task.id)} VALUE"
            )

    def _start(self, coroutine: Any) -> None:
        job = asyncio.ensure_future(coroutine)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    # --- being interrupted ---------------------------------------------------------------------------

    def _heed_signals(self, ended_by: asyncio.Future[int]) -> None:
        loop = asyncio.get_running_loop()

        def leave(number: int) -> None:
            if number == signal.SIGHUP:
                self._screen.hang_up()
            if not ended_by.done():
                self._display.note(f"{self._task.id} is left as it is; a worker goes on with it")
                ended_by.set_result(128 + number)

        def interrupt() -> None:
            self._interrupts += 1
            if self._interrupts == 1:
                self._display.note("canceling; Ctrl-C again leaves it to end by itself")
                self._start(self._cancel())
            else:
                self._display.close()
                self._screen.note(f"{self._task.id} was told to stop")
                os._exit(exits.INTERRUPTED)

        loop.add_signal_handler(signal.SIGINT, interrupt)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, leave, int(number))

    async def _cancel(self) -> None:
        from outrider.cli.starting import user_name

        with suppress(OutriderError):  # it may have ended meanwhile, and then its end is what counts
            await self._task.cancel(by=user_name(), reason="interrupted")

    # --- the end -------------------------------------------------------------------------------------

    async def _conclude(self) -> int:
        record = await self._task.record()
        result = await result_of(self._task, record)
        if self._screen.as_json:
            self._screen.record(record, result=result)
            return exits.code_of_state(record.state)
        match record.state:
            case State.SUCCEEDED:
                print_result(self._screen, result, self._printed)
            case State.CANCELED:
                reason = f": {record.cancel_reason}" if record.cancel_reason else ""
                self._screen.note(f"{record.id} was canceled{reason}")
            case _:
                error = record.error
                told = f"{error.kind}: {error.message}" if error else str(record.state)
                self._screen.note(f"{record.id} failed: {told}")
        return exits.code_of_state(record.state)
