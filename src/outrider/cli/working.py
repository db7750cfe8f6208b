"""`outrider worker`: one worker in the foreground of this process, for as long as it is wanted.

It leaves by itself only when no task that it serves is left alive, parked ones included: nobody else would be there
when the answer comes. A process in which threads ignored every order to stop, or whose loop was blocked for too
long, starts over in place (same pid) rather than go on with them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from outrider.bootstrap import Outrider, open_ledger
from outrider.cli.apps import load_apps, names_of
from outrider.cli.database import shown, url_of, with_environment
from outrider.cli.exits import OK, STORE, UsageError
from outrider.cli.terminal import Screen
from outrider.cli.workers import served
from outrider.core.errors import StoreError
from outrider.core.ledger import Ledger, TaskFilter
from outrider.core.task import LIVE_STATES
from outrider.runtime.clock import SystemClock
from outrider.runtime.collecting import leave_program_alone
from outrider.runtime.lease import locks_of
from outrider.runtime.services import Services
from outrider.runtime.worker import Worker

MOST_PROCESSES = 256
TICK = 0.5
"""Seconds between two looks at whether to leave or to start over."""
AGAIN = 2.0
"""Seconds between two tries to reach a database that is away."""
PAGE = 500


async def worker(arguments: Namespace, screen: Screen) -> int:
    """Run tasks until told to stop; the first SIGTERM or Ctrl-C drains, the second one forces."""
    if arguments.concurrency is not None and arguments.concurrency < 1:
        raise UsageError("--concurrency is a whole number of 1 or more")
    if not 1 <= arguments.processes <= MOST_PROCESSES:
        raise UsageError(f"--processes is a whole number from 1 to {MOST_PROCESSES}")
    app = load_apps(names_of(arguments.app))
    if arguments.serves:
        app.registry.serve(arguments.serves)
    if arguments.processes > 1:
        from outrider.cli.crew import Crew

        return await Crew(arguments, screen).run()
    if arguments.concurrency is not None:
        app.settings = replace(app.settings, concurrency=arguments.concurrency)
    app.settings = replace(app.settings, webhooks=with_environment(app.settings.webhooks))
    url = url_of(arguments)
    ledger = await _open(url, arguments.again, screen)
    try:
        return await _Shift(app, ledger, screen, arguments, url).run()
    finally:
        await ledger.close()


async def _open(url: str, again: bool, screen: Screen) -> Ledger:
    """Open the database. A worker that starts over waits for one that is away: it worked there a moment ago."""
    while True:
        try:
            return await open_ledger(url)
        except StoreError as error:
            if not again or error.is_final:
                raise
            screen.stamped(f"{error.message}; trying again")
            await asyncio.sleep(AGAIN)


class _Shift:
    """The life of the process: workers one after another, mostly one."""

    def __init__(self, app: Outrider, ledger: Ledger, screen: Screen, arguments: Namespace, url: str) -> None:
        self._services = Services.over(ledger, SystemClock(ledger), app.registry, app.settings)
        self._ledger = ledger
        self._screen = screen
        self._idle_exit: float | None = arguments.idle_exit
        self._starting: int | None = arguments.starting
        self._crew: int | None = arguments.crew
        self._shown = shown(url)
        self._file = _identity(ledger)
        self._orphans: list[int] = arguments.bury
        """Children from before this process started over. Nobody else waits for them: they would stay as zombies."""
        self._stops = 0
        self._has_worked: bool = arguments.again

    async def run(self) -> int:
        """Work until told to stop, or until there has been nothing to do for long enough."""
        stopped = self._heed_signals()
        while True:
            worker = Worker(self._services, locks=locks_of(self._ledger), on_end=self._on_end)
            job = asyncio.create_task(worker.run(), name="outrider-worker")
            try:
                await self._registered(worker, job)
            except StoreError as error:
                job.cancel()
                await asyncio.wait([job])
                if error.is_final or not self._has_worked or _identity(self._ledger) != self._file:
                    raise
                self._note(f"{error.message}; trying again")
                with suppress(TimeoutError):
                    await asyncio.wait_for(stopped.wait(), AGAIN)
                    break
                continue
            if not job.done():
                self._has_worked = True
                leave_program_alone()
                self._tell(worker)
            reason = await self._until_enough(worker, job, stopped)
            if reason == "gone":  # nothing can be handed over any more
                self._note(f"{worker.id} leaves: the database is no longer there")
                os._exit(STORE)
            job.cancel()
            (ended,) = await asyncio.gather(job, return_exceptions=True)
            if reason == "lost" and isinstance(ended, StoreError) and not ended.is_final:
                self._note(f"{ended.message}; trying again")
                await asyncio.sleep(AGAIN)
                continue
            if isinstance(ended, Exception):
                raise ended
            if reason == "stopped":
                self._note(f"{worker.id} has drained")
                break
            if reason == "abandoned":
                self._note(f"{worker.id} starts over, to be rid of threads that do not stop")
                _start_over()
            # Signed off: who now finds no worker starts one. What was created before that must be looked for here.
            if reason == "idle" and not await self._is_needed():
                self._note(f"{worker.id} leaves: nothing left to do")
                break
        self._services.signals.close()
        return OK

    def _heed_signals(self) -> asyncio.Event:
        """The event of having been told to stop. The handlers are the process's and not the loop's, which a task may
        be blocking: then the second signal has to be heard all the same.
        """
        stopped, loop = asyncio.Event(), asyncio.get_running_loop()

        def stop() -> None:
            stopped.set()
            self._note("stopping: steps in flight finish, the rest is handed over; once more to force it")

        def heed(number: int, _frame: object) -> None:
            self._stops += 1
            if self._stops > 1:
                os._exit(128 + number)
            loop.call_soon_threadsafe(stop)

        if self._crew is not None:  # whoever started this and others is gone when its end of the pipe is

            def on_end() -> None:
                loop.remove_reader(self._crew or 0)
                stop()

            loop.add_reader(self._crew, on_end)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, heed)
        return stopped

    def _on_end(self, code: int) -> None:
        """The worker cannot go on in this process. Called from its lease's thread."""
        if self._stops:
            os._exit(code)
        _start_over()

    def _tell(self, worker: Worker) -> None:
        routes = self._services.registry.routes()
        if self._screen.as_json:
            self._screen.data({"worker": worker.id, "pid": os.getpid(), "database": self._shown, "routes": routes})
        else:
            self._note(f"{worker.id} (pid {os.getpid()}) works on {self._shown}; serves {served(routes)}")

    def _note(self, text: str) -> None:
        self._screen.stamped(text)

    async def _registered(self, worker: Worker, job: asyncio.Task[None]) -> None:
        """Wait until everybody can see that this worker lives; then let go of the lock of the start."""
        while not job.done():
            if any(each.card.id == worker.id for each in await self._ledger.views.workers()):
                break
            await asyncio.sleep(0.01)
        if job.done() and not job.cancelled() and isinstance(error := job.exception(), StoreError):
            raise error
        if self._starting is not None:
            with suppress(OSError):
                os.close(self._starting)
            self._starting = None

    async def _until_enough(self, worker: Worker, job: asyncio.Task[None], stopped: asyncio.Event) -> str:
        """Wait for a reason to end this worker: `stopped`, `abandoned`, `idle`, `gone`, or `lost` if it ended."""
        idle_since = time.monotonic()
        waiting = asyncio.ensure_future(stopped.wait())
        try:
            while True:
                await asyncio.wait({job, waiting}, timeout=TICK, return_when=asyncio.FIRST_COMPLETED)
                self._orphans = [pid for pid in self._orphans if not _is_buried(pid)]
                if stopped.is_set():
                    return "stopped"
                if job.done():
                    return "lost"
                if _identity(self._ledger) != self._file:
                    return "gone"
                if not worker.is_idle:
                    idle_since = time.monotonic()
                elif worker.abandoned:
                    return "abandoned"
                elif self._idle_exit is not None and time.monotonic() - idle_since >= self._idle_exit:
                    if not await self._is_needed():
                        return "idle"
                    idle_since = time.monotonic()
        finally:
            waiting.cancel()

    async def _is_needed(self) -> bool:
        """Whether a task lives that this worker would run, now or when its time or answer comes."""
        routes = set(self._services.registry.routes())
        after: str | None = None
        while True:
            wanted = TaskFilter(states=tuple(LIVE_STATES), after=after, limit=PAGE)
            try:
                found = await self._ledger.views.list_tasks(wanted)
            except StoreError:
                return True  # not known; the next look will tell
            if any(task.input.route in routes for task in found):
                return True
            if len(found) < PAGE:
                return False
            after = found[-1].id


def _identity(ledger: Ledger) -> tuple[int, int] | None:
    """Which file the database is; None when it is gone, or in memory."""
    path = getattr(ledger, "path", None)
    try:
        found = os.stat(path) if path is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino)


def _children() -> Iterator[int]:
    """The children of this process, on a system that tells."""
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        with suppress(OSError, ValueError, IndexError), open(f"/proc/{int(name)}/stat") as file:
            if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                yield int(name)


def _is_buried(child: int) -> bool:
    """Whether nothing is left of a child, not even a zombie."""
    try:
        return os.waitpid(child, os.WNOHANG)[0] == child
    except ChildProcessError:
        return True


def _start_over() -> None:
    """Become a fresh process with the same arguments. Locks are let go of by it, so the tasks held are recovered."""
    arguments = [each for each in sys.argv[1:] if not each.startswith(("--starting", "--bury", "--again"))]
    arguments.append("--again")
    with suppress(OSError):
        arguments += [f"--bury={pid}" for pid in _children()]
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "outrider.cli", *arguments])
