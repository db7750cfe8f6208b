"""Worker processes for crash tests, many and cheap: one program imports everything and forks a worker per order.

Run as `python -m tests.crash.crew`, it reads orders on stdin, a JSON object a line, and says on stdout who started
and who ended. It forks before it has any thread or loop, so each worker is a fresh process in all that matters;
only the import of some 0.4 s is saved. `Crew` is the other end, in the test.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).parents[2]


# --- in both -----------------------------------------------------------------------------------------


def address_of(database: Path) -> str:
    """Where a store is: in that file, or in the database that stands for it (see `new_database`)."""
    note = _folder(database) / "postgres"
    return note.read_text() if note.exists() else str(database)


def _folder(database: Path) -> Path:
    return database.with_suffix(".server")


# --- in the test -------------------------------------------------------------------------------------


def stand_for(database: Path, address: str) -> Path:
    """Have a path stand for the database at an address."""
    _folder(database).mkdir()
    (_folder(database) / "postgres").write_text(address)
    return database


def new_database(store: str, database: Path) -> Path:
    """Where a new store is to be. All that lies beside it is named after that path, whichever store it is."""
    if store == "postgres":
        from tests.stores.backends import postgres_url  # which no worker has to import

        postgres_url(_folder(database))
    return database


@dataclass
class Hand:
    """One worker process."""

    pid: int
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    status: int | None = None
    """The exit code, or minus the signal that ended it."""

    def signal(self, number: signal.Signals) -> None:
        if self.status is None:
            os.kill(self.pid, number)

    async def wait(self) -> int:
        await asyncio.wait_for(self.ended.wait(), 60)
        assert self.status is not None
        return self.status


class Crew:
    """Starts worker processes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._hands: dict[int, Hand] = {}
        self._started: asyncio.Queue[Hand] = asyncio.Queue()
        self._turn = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def muster(cls, prefix: Sequence[str] = (), app: str = "tests.crash.voyage") -> AsyncIterator[Crew]:
        """A crew that is there until the end of the block; `prefix` is what its command begins with.

        `app` is the module whose `app` its workers serve.
        """
        process = await asyncio.create_subprocess_exec(
            *prefix,
            sys.executable,
            "-m",
            "tests.crash.crew",
            app,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        crew = cls(process)
        reading = asyncio.create_task(crew._read())
        try:
            yield crew
        finally:
            for hand in crew._hands.values():
                if hand.status is None:
                    hand.signal(signal.SIGKILL)
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()
            await reading

    async def start(self, database: Path, *, log: Path | None = None, **order: Any) -> Hand:
        """Start a worker on a database. `order`: `kill` (n, mode), `settings`, `host`, `address`.

        With `speaks`, a prefix, and `acks`, a file, it is no worker, but talks to an agent; see `talk`.
        """
        async with self._turn:
            order |= {"database": str(database), "log": str(log or database.with_suffix(".log"))}
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            await self._process.stdin.drain()
            return await asyncio.wait_for(self._started.get(), 30)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            news = json.loads(line)
            if "started" in news:
                hand = self._hands[news["started"]] = Hand(news["started"])
                self._started.put_nowait(hand)
            else:
                hand = self._hands[news["ended"]]
                hand.status = news["status"]
                hand.ended.set()


# --- in the worker -----------------------------------------------------------------------------------

WRITES = ("commit", "journal", "write_file", "claim")


class Failpoint:
    """A ledger that kills its process at its n-th write: before it, within its transaction, or after it.

    What the runtime cannot know it is not told: `after` kills between the commit and its acknowledgement. Two are
    another thing: `stop` stops it within the transaction, and `term` sends SIGTERM while each claim is under way.
    Claims count when they took something, and only after that.
    """

    def __init__(self, ledger: Any, n: int, mode: str, trace: Path) -> None:
        self._ledger = ledger
        self._n = n
        self._mode = mode
        self._trace = trace
        self._count = 0
        self._is_armed = False
        if mode in ("within", "stop"):
            self._arm_writer(ledger._writer)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._ledger, name)
        return self._guarded(name, value) if name in WRITES else value

    def _guarded(self, name: str, verb: Any) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            if name == "claim":
                if self._mode == "term":
                    os.kill(os.getpid(), signal.SIGTERM)
                result = await verb(*args, **kwargs)
                if result.tasks and self._mode == "after" and self._is_here("claim"):
                    die()
                return result
            here = self._is_here(f"{name} {_what(args[0])}")
            if here and self._mode == "before":
                die()
            self._is_armed = self._is_armed or here
            result = await verb(*args, **kwargs)
            if here and self._mode == "after":
                die()
            return result

        return call

    def _is_here(self, what: str) -> bool:
        self._count += 1
        if self._count != self._n:
            return False
        self._trace.write_text(what)
        return True

    def _arm_writer(self, writer: Any) -> None:
        module: Any = import_module(type(writer).__module__)
        work = module.work

        def fatal(batch: Any, operations: Any) -> Any:
            done = work(batch, operations)
            if self._is_armed and self._mode == "within":
                die()
            elif self._is_armed and not any(each.is_late for each in operations):  # a claim may have written nothing
                self._is_armed = False
                os.kill(os.getpid(), signal.SIGSTOP)
                time.sleep(0.2)  # it may be another thread that stops first
            return done

        module.work = fatal


def _what(written: Any) -> str:
    first = written[0] if isinstance(written, list | tuple) else written
    task = getattr(first, "task", None)
    if task is not None:
        return f"{task.core.state}"
    return str(getattr(first, "verb", ""))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def _serve(order: dict[str, Any]) -> None:
    from outrider.bootstrap import open_ledger
    from outrider.runtime.clock import SystemClock
    from outrider.runtime.lease import locks_of
    from outrider.runtime.services import Services
    from outrider.runtime.worker import keep_working

    module: Any = import_module(sys.argv[1])
    if "speaks" in order:
        await module.speak(address_of(Path(order["database"])), order["speaks"], Path(order["acks"]))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    database = Path(order["database"])
    os.environ["EFFECTS"] = str(database.with_suffix(".effects"))
    ledger = await open_ledger(order.get("address") or address_of(database))
    if "kill" in order:
        n, mode = order["kill"]
        ledger = cast(Any, Failpoint(ledger, n, mode, database.with_suffix(".trace")))
    services = Services.over(ledger, SystemClock(), module.app.registry, module.settings_of(order.get("settings", {})))
    job = asyncio.create_task(keep_working(services, locks=locks_of(ledger), host=order.get("host")))
    await stop.wait()
    job.cancel()
    await asyncio.gather(job, return_exceptions=True)
    services.signals.close()
    await ledger.close()


def _be_a_worker(order: dict[str, Any]) -> None:
    null, log = os.open(os.devnull, os.O_RDONLY), os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import logging

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(process)d %(asctime)s %(message)s")
    asyncio.run(_serve(order))


# --- between them ------------------------------------------------------------------------------------


def main() -> None:
    for name in (
        "outrider.runtime.worker",
        "outrider.stores.sqlite",
        "outrider.stores.postgres",
        "outrider.runtime.handles",
        sys.argv[1],
    ):
        import_module(name)  # once, for all that are forked

    awake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # a worker takes it once it can
    rest = b""
    while True:
        readable, _, _ = select.select([0, awake], [], [])
        if awake in readable:
            os.read(awake, 4096)
            _reap()
        if 0 in readable:
            read = os.read(0, 65536)
            if not read:
                return
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                _fork(json.loads(line), awake, waker)


def _fork(order: dict[str, Any], awake: int, waker: int) -> None:
    pid = os.fork()
    if pid:
        _say({"started": pid})
        return
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(awake)
        os.close(waker)
        _be_a_worker(order)
        os._exit(0)
    except BaseException:  # noqa: BLE001 - nothing may return into the loop of the parent
        traceback.print_exc()
        os._exit(99)


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _say({"ended": pid, "status": os.waitstatus_to_exitcode(status)})


def _say(news: dict[str, Any]) -> None:
    os.write(1, json.dumps(news).encode() + b"\n")


if __name__ == "__main__":
    main()
