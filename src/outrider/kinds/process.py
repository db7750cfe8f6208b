"""The kind `process`: a command, run under a supervisor that outlives the worker.

Spec: `command` (a list) or `shell` (text for /bin/sh), and any of the other `FIELDS`. The command is started at most
once in a run; a worker that finds one under way adopts it. What a reader would get wrong: the end of a run is not the
end of the task until it is committed, so nothing of a run is deleted before; `tend` does that, for all that have ended.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import secrets
import shlex
import signal
import socket
import stat
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from heapq import nsmallest
from pathlib import Path
from typing import Any, TypeVar, get_args

from outrider.core.errors import Failure, InvalidArguments, Refused, StoreFull, Superseded
from outrider.core.events import Step
from outrider.core.ledger import OutputChunk
from outrider.core.task import Effects, TaskError, WaitUntil
from outrider.core.values import JSON, SECOND, JSONObject
from outrider.kinds.process_output import Printed, Reading, marked_progress
from outrider.kinds.process_run import TOKEN, Hold, News, Run, Spool, runs_of
from outrider.kinds.supervisor import PROTOCOL, boot_id
from outrider.runtime.attempt import STORE_IS_DOWN, Attempt, shorten
from outrider.runtime.codec import PLAIN, decode, encode, jsonable
from outrider.runtime.context import TaskContext
from outrider.runtime.journal import OUTLIVES, Position
from outrider.runtime.log import log
from outrider.runtime.registry import CheckedSpec
from outrider.runtime.services import Services

T = TypeVar("T")

KIND = "process"
FIELDS = frozenset(
    {"command", "shell", "cwd", "env", "clean_env", "stdin", "limits", "artifacts", "effects", "success", "retry"}
)
LIMITS = frozenset({"cpu", "memory", "output", "kept"})
INHERITED = frozenset(
    {
        "HOME",
        "LANG",
        "LANGUAGE",
        "LOGNAME",
        "PATH",
        "SHELL",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TZ",
        "USER",
        "VIRTUAL_ENV",
    }
)
"""What a command has from its worker's environment, with all that begins with `LC_`; the rest may be secret."""

POSITION = "process!"
"""Before the number of a run, its place in the journal."""
AWAY = "process_away!"
TAIL = 4096
"""Bytes of the output's end that the result tells."""
PATIENCE = 0.5
"""The longest time, in seconds, between two looks at a run, whether there is news of it or not."""
PASSED_ON = 5.0
"""Seconds until a task that another worker has to take up is looked at again."""
TO_TERM = 0.8
"""The part of the time to stop that the command has between TERM and KILL."""
TENDED = 1.0
"""Seconds between two looks at what is left of runs."""
ABANDONED_GRACE = 5.0
"""Seconds between TERM and KILL for a command whose task has ended without it."""
MOST_ARTIFACTS = 100
SHUTDOWN = (signal.SIGTERM, signal.SIGKILL, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class _Lost:
    """How a run ended is not known, or was not its own end: `effects` decides what follows."""

    why: str


@dataclass(frozen=True, slots=True)
class _Skipped:
    """A person said to go on with this value instead."""

    value: JSON


@dataclass(frozen=True, slots=True)
class _Current:
    """The run that counts, and its row in the journal."""

    run: Run
    row: Step


class Process:
    """Runs commands."""

    kind = KIND

    def __init__(self, host: str | None = None) -> None:
        self._host = host or socket.gethostname()
        self._followed: set[Path] = set()
        self._kept: dict[Path, Hold] = {}
        self._tended_at = 0.0

    def routes(self) -> Iterable[str]:
        """One: any worker may run any command."""
        return [KIND]

    def check(self, spec: JSONObject) -> CheckedSpec:
        """Check the spec's form, and settle where the command runs: a relative `cwd` is one of this process."""
        given = _checked(spec)
        argv = given.get("command")
        name = shlex.join(argv) if argv is not None else given["shell"].strip()
        return CheckedSpec(given, KIND, shorten(name.splitlines()[0] if name.strip() else KIND, 60))

    async def prepare(self) -> None:
        """Nothing has to be ready before."""

    async def run(self, task: TaskContext) -> Any:
        """Run the command to its end, or take up the run that is under way."""
        current = await self._current(task)
        while not isinstance(current, _Skipped):
            ended = await self._follow(task, current.run)
            if not isinstance(ended, _Lost):
                return _result(task, ended)
            if task.spec["effects"] != "once":
                raise Failure(ended.why, kind="interrupted", retryable=True)
            current = await self._again(task, current.row, ended.why)
        return current.value

    async def tend(self, services: Services, *, at_once: bool = False) -> None:
        """Look after the runs of this machine that no attempt here follows.

        Of a task that has ended, end what still lives and delete what is left. Of one that waits for its turn, behind
        a pause or a full worker, keep the run adopted: that limit is for commands that no worker is there for.
        """
        if not at_once and time.monotonic() - self._tended_at < TENDED:
            return
        self._tended_at = 0.0 if at_once else time.monotonic()
        folder, _ = runs_of(services.ledger)
        try:
            found = [folder / name for name in os.listdir(folder)]
        except OSError:
            found = []
        left = {path: _task_of(path) for path in found if path not in self._followed}
        tasks = {task.id: task for task in await services.views.tasks(list(set(left.values())))} if left else {}
        waiting = set()
        for path, task_id in left.items():
            task = tasks.get(task_id)
            if path in self._followed:
                continue
            if task is None or task.is_terminal:
                with suppress(OSError):  # it cannot be told whether its supervisor lives: the next look may
                    await asyncio.to_thread(_clear, path, task is not None)
            elif not task.core.is_held:
                waiting.add(path)
        self._keep(folder, set() if at_once else waiting)

    def _keep(self, folder: Path, waiting: set[Path]) -> None:
        """Hold these runs of a folder, and no others of it."""
        for path in {path for path in self._kept if path.parent == folder} - waiting:
            self._kept.pop(path).close()
        for path in waiting - self._kept.keys():
            run = Run(path)
            if run.host() == self._host:
                with suppress(OSError):  # it is just being made, or deleted
                    self._kept[path] = Hold(run)

    # --- which run counts ----------------------------------------------------------------------------

    async def _current(self, task: TaskContext) -> _Current | _Skipped:
        row = _newest(task)
        if row is None:
            return await self._begin(task, 1)
        if row.done:
            return _Skipped(decode(row.value or b"null"))
        noted = decode(row.value or b"{}")
        if noted["host"] != self._host:
            await self._await_host(task, row, noted["host"])
            return await self._again(task, row, f"it ran on {noted['host']}, which has not come back")
        run = Run(self._folder(task) / noted["folder"], noted["token"])
        if (owner := await asyncio.to_thread(run.fetch, Path(noted["beside"]))) is not None:
            return await self._again(task, row, f"it belongs to the database {owner}, of which this is a copy")
        failed = await _failure_since(task, row)
        is_untouched = run.exists and not run.has_started
        if failed is not None and not is_untouched and failed.kind != "exception":  # a fault of ours: the run stands
            if failed.kind == "interrupted" or task.spec["retry"]:
                return await self._again(task, row, "the attempt before it failed")
            raise Failure(failed.message, kind=failed.kind, details=failed.details)
        if task.journal.at(AWAY) is not None:
            await task.outlive(AWAY, encode(None))
        return _Current(run, row)

    async def _begin(self, task: TaskContext, number: int) -> _Current:
        """Make a run: its folder first, then its row. A run with a row and no folder is one that somebody deleted."""
        token = secrets.token_hex(16)
        folder = self._folder(task) / f"{task.id}.{number}.{token[:8]}"
        run = Run(folder, token)
        settings = task.services.settings
        _, outlives = runs_of(task.services.ledger)
        timeout = task._attempt.record.input.timeouts.run
        limits = task.spec.get("limits", {})
        spec = {
            "task": task.id,
            "host": self._host,
            "argv": task.spec["command"] if "command" in task.spec else ["/bin/sh", "-c", task.spec["shell"]],
            "env": _environment(task, token),
            "cwd": task.spec["cwd"],
            "stdin": "stdin" in task.spec,
            "limits": limits,
            "kept": limits.get("kept", settings.limits.process_output),
            "adopt": settings.process_adopt_limit if outlives else 0.0,
            "wall": None if timeout is None else timeout / SECOND,
            "linger": settings.process_linger,
        }
        await asyncio.to_thread(run.prepare, spec, task.spec.get("stdin"))
        noted = {"host": self._host, "folder": folder.name, "token": token, "beside": str(folder.parent)}
        row = await task.outlive(f"{POSITION}{number}", encode(noted))
        return _Current(run, row)

    async def _again(self, task: TaskContext, row: Step, why: str) -> _Current | _Skipped:
        """Begin the next run, unless that is for a person to decide who decides otherwise."""
        if task.spec["effects"] == "once":
            position = Position(row.position, row.verb, row.ordinal, row)
            what = f"it is not known what the command has done: {why}; it must not be done twice"
            with task.busy():
                skipped = await task._resolve_doubt(position, row, PLAIN, what)
            if skipped is not None:
                return _Skipped(decode(skipped))
        return await self._begin(task, int(row.position.removeprefix(POSITION)) + 1)

    async def _await_host(self, task: TaskContext, row: Step, host: str) -> None:
        """Leave the task to the workers of its host, until its supervisor must have ended the command."""
        clock, limit = task.services.clock, task.services.settings.process_adopt_limit
        away = task.journal.at(AWAY)
        noted = None if away is None else decode(away.value or b"null")
        if noted is None or noted["run"] != row.position:
            noted = {"run": row.position, "since": clock.now()}
            await task.outlive(AWAY, encode(noted))
        until = noted["since"] + round((limit + 60.0) * SECOND)
        while clock.now() < until:
            task.detail(f"its command runs on {host}, and only a worker there can go on with it")
            await _pass_on(task)

    def _folder(self, task: TaskContext) -> Path:
        return runs_of(task.services.ledger)[0]

    # --- following it --------------------------------------------------------------------------------

    async def _follow(self, task: TaskContext, run: Run) -> JSONObject | _Lost:
        """Adopt a run, started if it was not yet, and follow it to its end. Leaves it alone when the attempt has to."""
        self._followed.add(run.folder)
        try:
            while run.exists and run.protocol() != PROTOCOL:
                task.detail("its command was started by another version of Outrider, and only that can go on with it")
                await _pass_on(task)
            try:
                watch = _Watch(task, run)
                try:
                    return await watch.follow()
                finally:
                    watch.close()
            except FileNotFoundError:
                if run.exists:
                    raise
            while await asyncio.to_thread(run.end_leftovers) > 0:  # noqa: ASYNC110 - other processes ring no bell
                await asyncio.sleep(0.05)
            return _Lost("the folder of its run is gone")
        finally:
            self._followed.discard(run.folder)


class _Watch:
    """One attempt's hold of a run: passes its output on and its orders in."""

    def __init__(self, task: TaskContext, run: Run) -> None:
        self._task = task
        self._attempt: Attempt = task._attempt
        self._run = run
        self._news = News(run)  # before it is started, so that it is never without somebody who has adopted it
        self._was_told = False
        self._was_cancelled = False
        self._artifacts: set[str] = set()

    async def follow(self) -> JSONObject | _Lost:
        ended = await self._see_through(self._live())
        if ended is None:
            with self._task.busy():  # raises what an attempt that has to leave is to raise
                pass
            raise asyncio.CancelledError
        if isinstance(ended, _Lost):
            return ended
        await self._see_through(self._collect())
        if ended["reason"] == "order" and self._attempt.is_told_to_stop:
            raise asyncio.CancelledError
        return ended if (lost := _lost_by(ended)) is None else lost

    def close(self) -> None:
        self._news.close()

    async def _see_through(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it apart from the code of the attempt, which is cancelled when there is news for it."""
        job = asyncio.get_running_loop().create_task(work, context=Context())
        while not job.done():
            try:
                await asyncio.wait([job])
            except asyncio.CancelledError:
                self._was_cancelled = True
                self._news.ring()
        return job.result()

    @property
    def _has_to_leave(self) -> bool:
        attempt = self._attempt
        if attempt.is_over:
            return True
        return not attempt.is_told_to_stop and (attempt.is_draining or self._was_cancelled)

    async def _live(self) -> JSONObject | _Lost | None:
        """See to it that it runs, and pass on what it prints until it has ended; None if it was left alone."""
        run = self._run
        if not run.has_started and not run.is_supervised:
            if self._has_to_leave or self._attempt.is_told_to_stop:
                return None
            await asyncio.to_thread(run.start)
        reading, spool = await self._resume()
        at_once = self._task.services.settings.limits.output_tail // 2  # what is kept is the tail and up to a row
        while not self._has_to_leave:
            self._heed_stop()
            ended = run.ended()  # before the output is read: what there is then is all
            pieces = spool.read(at_once)
            if pieces:
                size = await self._print(reading, reading.take(pieces))
                if size < at_once // 2:
                    await asyncio.sleep(self._task.services.settings.output_interval)
            elif ended is not None:
                await self._print(reading, reading.finish())
                return {**ended, "tail": spool.tail(TAIL).decode(errors="replace")}
            elif run.is_supervised:
                await self._news.wait(PATIENCE)
            elif run.ended() is None:
                return await self._bury()
        return None

    def _heed_stop(self) -> None:
        """Pass the order to stop on. The supervisor sends KILL before the grace of the task is over."""
        if not self._attempt.is_told_to_stop or self._was_told:
            return
        stopping = self._attempt.record.core.stopping
        force_at = 0 if stopping is None else stopping.force_at
        left = max(0.1, (force_at - self._task.services.clock.now()) / SECOND)
        self._was_told = self._run.order_end(left * TO_TERM)

    async def _bury(self) -> _Lost | None:
        """Its supervisor is gone without a word. Nothing of the command may live when this returns that it is lost."""
        started = self._run.started() or {}
        if started.get("boot") != boot_id():
            return _Lost("the machine was started anew while it ran")
        while (count := await asyncio.to_thread(self._run.end_leftovers)) > 0:
            log.warning("processes without a supervisor were killed", task=self._task.id, count=count)
            if self._has_to_leave:
                return None
            await asyncio.sleep(0.05)
        return _Lost("its supervisor was killed")

    # --- what it prints ------------------------------------------------------------------------------

    async def _resume(self) -> tuple[Reading, Spool]:
        """Go on exactly where the stored output ends, whoever wrote it."""
        view = self._task.services.views.output
        stored = (await self._store(partial(view, self._task.id, start=_BEYOND, limit=1))).next
        reading = Reading.after(stored, self._run.reading())
        await self._store(partial(self._note, [reading.state()]))
        return reading, Spool(self._run, reading.place)

    async def _print(self, reading: Reading, printed: Printed) -> int:
        """Store output. Noted before: how far it was read if this is stored, and how far if it is not."""
        if printed.after == printed.before:
            return 0
        await self._store(partial(self._note, [printed.before, printed.after]))
        for verb, rest in printed.marks:
            await self._act_on(verb, rest)
        at, keep = self._task.services.clock.now(), self._task.services.settings.limits.output_tail
        chunks = [
            OutputChunk(self._task.id, self._attempt.number, stream, text, at, keep) for stream, text in printed.texts
        ]
        if chunks:
            if not all(await self._store(partial(self._task.services.ledger.print, chunks))):
                self._attempt.supersede()
                return 0
            self._attempt.touch()
        return printed.size

    async def _note(self, states: list[dict[str, Any]]) -> None:
        try:
            self._run.note_reading(self._attempt.number, states)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StoreFull(f"the disk of {self._run.folder} is full") from error

    async def _store(self, verb: Callable[[], Awaitable[T]]) -> T:
        """Use the store; while it does not answer, try again, for as long as the attempt may."""
        while True:
            try:
                with self._task.storing():
                    return await verb()
            except STORE_IS_DOWN as error:
                if self._has_to_leave:
                    raise
                log.error("what a command prints is not stored yet; trying again", reason=str(error))
                await asyncio.sleep(PATIENCE)

    async def _act_on(self, verb: str, rest: str) -> None:
        with suppress(Superseded):  # seen to by who looks next
            if verb == "detail":
                self._task.detail(rest)
            elif verb == "progress" and (told := marked_progress(rest)) is not None:
                self._task.progress(told[0], told[1], label=told[2])
            elif verb == "artifact":
                cwd = Path(self._task.spec["cwd"])
                await self._leave([(rest, path)] if (path := _within(cwd, rest, self._database)) is not None else [])

    # --- what it leaves ------------------------------------------------------------------------------

    async def _collect(self) -> None:
        found = await asyncio.to_thread(
            _matches, Path(self._task.spec["cwd"]), self._task.spec.get("artifacts", []), self._database
        )
        with suppress(Superseded):
            await self._leave(found)

    @property
    def _database(self) -> Path | None:
        return getattr(self._task.services.ledger, "path", None)

    async def _leave(self, files: list[tuple[str, Path]]) -> None:
        limit = self._task.services.settings.limits.file
        for name, path in files:
            if name not in self._artifacts and len(self._artifacts) >= MOST_ARTIFACTS:
                self._task.log.warning("more artifacts than are kept", most=MOST_ARTIFACTS, artifact=name)
                return
            self._artifacts.add(name)
            try:
                content, size = await asyncio.to_thread(_content, path, limit)
                url = path.as_uri() if content is None else None
                await self._store(partial(self._task.produce, name, content, url=url, size=size))
            except (OSError, Refused) as error:
                self._task.log.warning("an artifact cannot be kept", artifact=name, reason=str(error))


# --- the spec --------------------------------------------------------------------------------------------

_BEYOND = 1 << 60
"""An offset that no output reaches."""


def _checked(spec: JSONObject) -> dict[str, Any]:
    """The spec in full. Raises InvalidArguments."""
    unknown = set(spec) - FIELDS
    if unknown:
        names = ", ".join(sorted(map(str, unknown)))
        raise InvalidArguments(f"a process's spec has no {names}; it has {', '.join(sorted(FIELDS))}")
    given = {name: value for name, value in spec.items() if value is not None}
    if ("command" in given) == ("shell" in given):
        raise InvalidArguments("a process's spec has either a command, which is a list, or a shell, which is text")
    if "command" in given:
        argv = given["command"]
        if isinstance(argv, str) or not isinstance(argv, list | tuple) or not argv:
            raise InvalidArguments("command is a list of texts, the program first; for a line of shell, give `shell`")
        given["command"] = [_text(f"command[{place}]", each) for place, each in enumerate(argv)]
        if not given["command"][0]:
            raise InvalidArguments("the command has no name")
    else:
        _text("shell", given["shell"])
    given["cwd"] = _absolute(_text("cwd", given.get("cwd", os.curdir)))
    if "env" in given:
        given["env"] = _checked_environment(given["env"])
    if "stdin" in given:
        _text("stdin", given["stdin"], nul=True)
    if "limits" in given:
        given["limits"] = _checked_limits(given["limits"])
    if "artifacts" in given:
        patterns = given["artifacts"]
        if not isinstance(patterns, list | tuple):
            raise InvalidArguments("artifacts is a list of patterns such as 'out/**/*.csv'")
        given["artifacts"] = [_text("a pattern of artifacts", each) for each in patterns]
    given.setdefault("effects", "idempotent")
    if given["effects"] not in get_args(Effects):
        raise InvalidArguments(f"effects is one of {', '.join(get_args(Effects))}, not {given['effects']!r:.100}")
    success = given.setdefault("success", [0])
    if not isinstance(success, list | tuple) or not success or not all(_is_code(each) for each in success):
        raise InvalidArguments("success is a list of exit codes, each from 0 to 255")
    given["success"] = list(success)
    for name in ("clean_env", "retry"):
        if not isinstance(given.setdefault(name, False), bool):
            raise InvalidArguments(f"{name} is true or false")
    plain: dict[str, Any] = jsonable(given)
    return plain


def _absolute(path: str) -> str:
    if not path:
        raise InvalidArguments("cwd is empty; leave it out for the current directory")
    try:
        return _text("cwd", os.path.abspath(path))
    except OSError as error:
        raise InvalidArguments(f"cwd is not given in full, and the current directory is gone: {error}") from None


def _text(what: str, value: object, *, nul: bool = False) -> str:
    if not isinstance(value, str):
        raise InvalidArguments(f"{what} is text, not {type(value).__name__}")
    if "\0" in value and not nul:
        raise InvalidArguments(f"{what} has a NUL character in it, which no command can be given")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArguments(f"{what} is no Unicode text: {value!r:.100}") from None
    return value


def _checked_environment(given: object) -> dict[str, str]:
    if not isinstance(given, Mapping):
        raise InvalidArguments("env is an object of texts")
    for name, value in given.items():
        _text("a name in env", name)
        if not name or "=" in name:
            raise InvalidArguments(f"{name!r:.100} cannot name an environment variable")
        _text(f"env[{name!r:.100}]", value)
    return dict(given)


def _checked_limits(given: object) -> dict[str, Any]:
    if not isinstance(given, Mapping) or set(given) - LIMITS:
        raise InvalidArguments(f"limits is an object of any of {', '.join(sorted(LIMITS))}")
    limits = {name: value for name, value in given.items() if value is not None}
    for name, value in limits.items():
        kinds: Any = int | float if name == "cpu" else int
        if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < 1 << 50:
            what = "a number of seconds" if name == "cpu" else "a whole number of bytes"
            raise InvalidArguments(f"limits.{name} is {what} above 0 and below 2**50, not {value!r:.100}")
    return limits


def _is_code(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _environment(task: TaskContext, token: str) -> dict[str, str]:
    """What the command finds in its environment. The token is always there: its processes are known by it."""
    inherited = {} if task.spec["clean_env"] else {k: v for k, v in os.environ.items() if _is_inherited(k)}
    own = {"OUTRIDER_TASK": task.id, "OUTRIDER_SESSION": task.session_id, TOKEN: token}
    return {**inherited, **task.spec.get("env", {}), **own}


def _is_inherited(name: str) -> bool:
    return name in INHERITED or name.startswith("LC_")


# --- the runs of a task ----------------------------------------------------------------------------------


def _newest(task: TaskContext) -> Step | None:
    rows = [row for row in task.journal.of(OUTLIVES) if row.position.startswith(POSITION)]
    return max(rows, key=lambda row: int(row.position.removeprefix(POSITION)), default=None)


async def _failure_since(task: TaskContext, row: Step) -> TaskError | None:
    """With what the newest attempt has failed that had this run, if any has."""
    ended = await task.services.views.attempts(task.id)
    return next(
        (each.error for each in reversed(ended) if each.attempt >= row.attempt and each.ending == "failed"), None
    )


async def _pass_on(task: TaskContext) -> None:
    """Give the task back for a while: whoever can go on with it may claim it."""
    clock = task.services.clock
    until = clock.now() + round(PASSED_ON * SECOND)

    async def look() -> bool | None:
        return True if clock.now() >= until else None

    with task.busy():
        await task._attempt.wait(WaitUntil(until), look)


def _task_of(path: Path) -> str:
    return path.name.rsplit(".", 2)[0]


def _clear(path: Path, is_known: bool) -> None:
    """End and delete a run whose task has ended, a step at a time. One of no task here ends at its adopt limit."""
    run = Run(path)
    if run.is_supervised:
        if is_known:
            run.order_end(ABANDONED_GRACE)
        return
    if run.ended() is None and (started := run.started()) is not None and started.get("boot") == boot_id():
        run.end_leftovers()
    run.remove()


# --- its end ---------------------------------------------------------------------------------------------


def _lost_by(ended: JSONObject) -> _Lost | None:
    """Whether what ended the command had nothing to do with it."""
    if ended["reason"] == "unadopted":
        return _Lost("no worker came to look after the command, and its supervisor ended it at the adopt limit")
    if ended["reason"] == "order":
        return _Lost("it was told to stop, and the worker that had told it was lost")
    if ended["reason"] is None and ended["boot"] != boot_id() and ended["signal"] in SHUTDOWN:
        return _Lost("it was ended as the machine was shut down")
    return None


def _result(task: TaskContext, ended: JSONObject) -> JSONObject:
    """What a command that did well came to. Raises Failure for any other."""
    told = {
        "exit_code": ended["code"],
        "signal": None if ended["signal"] is None else _signal_name(ended["signal"]),
        "duration": ended["duration"],
        "cpu_time": ended["cpu"],
        "max_rss": ended["max_rss"],
        "output_bytes": ended["output"],
        "tail": ended["tail"],
    }
    retryable = task.spec["retry"] and task.spec["effects"] != "once"
    if ended["problem"] is not None:
        raise _not_started(task, ended["problem"])
    if (limit := _limit_hit(task, ended)) is not None:
        name, given = limit
        unit = "seconds of CPU time" if name == "cpu" else "bytes"
        message = f"the command went over its {name} limit of {given:,} {unit} and was ended"
        raise Failure(message, kind="limit_exceeded", details={"limit": name, **told})
    if ended["reason"] == "wall":
        seconds = (task._attempt.record.input.timeouts.run or 0) / SECOND
        message = f"the run timeout of {seconds:g} s passed"
        details = {"timeout": "run", "seconds": seconds, **told}
        raise Failure(message, kind="timeout", retryable=retryable, details=details)
    if ended["signal"] is None and ended["code"] in task.spec["success"]:
        return told
    message = f"the command ended with exit code {ended['code']}"
    if ended["signal"] is not None:
        message = f"the command was ended by {told['signal']}, which was not sent by Outrider"
        if ended["signal"] == signal.SIGKILL:
            message += "; the system does that when memory runs out"
    last = next((line.strip() for line in reversed(ended["tail"].splitlines()) if line.strip()), "")
    raise Failure(
        f"{message}: {shorten(last, 300)}" if last else message, kind="exit_status", retryable=retryable, details=told
    )


def _not_started(task: TaskContext, problem: JSONObject) -> Failure:
    """Why the command could not be started. It goes with the exit code that a shell would tell."""
    number, stage, what = problem["errno"], problem["stage"], problem["what"]
    name = task.spec["command"][0] if "command" in task.spec else "/bin/sh"
    code = 126
    if stage == "cwd":
        message = f"the command cannot run in {task.spec['cwd']!r}: {what}"
    elif stage == "command" and number == errno.ENOENT:
        message, code = f"there is no command {name!r}, or no interpreter for it", 127
    elif stage == "command" and number == errno.EACCES:
        message = f"the command {name!r} is not executable, or its folder cannot be entered"
    else:
        message = f"the command {name!r} cannot be started ({stage}): {what}"
    return Failure(message, kind="not_started", details={"stage": stage, "errno": number, "exit_code": code})


def _limit_hit(task: TaskContext, ended: JSONObject) -> tuple[str, float] | None:
    limits = task.spec.get("limits", {})
    if ended["reason"] in ("memory", "output"):
        return ended["reason"], limits[ended["reason"]]
    cpu = limits.get("cpu")
    if cpu is None or ended["reason"] is not None:
        return None
    was_told = ended["signal"] == signal.SIGXCPU or ended["code"] == 128 + signal.SIGXCPU
    was_killed = ended["signal"] == signal.SIGKILL and ended["cpu"] >= cpu
    return ("cpu", cpu) if was_told or was_killed else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# --- files that it leaves --------------------------------------------------------------------------------


def _matches(cwd: Path, patterns: Iterable[str], database: Path | None) -> list[tuple[str, Path]]:
    """The files that fit, by name as seen from the folder of the command; each once."""
    found: dict[str, Path] = {}
    for pattern in patterns:
        fitting = ((name, path) for name in _named(cwd, pattern) if (path := _within(cwd, name, database)) is not None)
        found.update(nsmallest(MOST_ARTIFACTS + 1, fitting))  # a tree may have millions
    return list(found.items())


def _named(cwd: Path, pattern: str) -> Iterator[str]:
    """What a pattern names below the folder of the command; of one that leads out of it nothing is looked at.

    `**` enters no folder by way of a link: two links to the folder that they are in make more paths than can be walked.
    """
    parts = os.path.relpath(cwd / pattern, cwd).split(os.sep)
    if parts[0] in (os.curdir, os.pardir):
        return
    # Nowhere but alone does `**` mean any folders, and alone at the end it means what is in them too.
    parts = [part if part == "**" else re.sub(r"\*+", "*", part) for part in parts]
    if parts[-1] == "**":
        parts.append("*")
    # Of a name too long for any file, and of folders a thousand deep: what is found until then is found.
    with suppress(OSError, RecursionError):
        for path in cwd.glob(os.sep.join(parts)):
            if os.path.isfile(path):
                yield str(path.relative_to(cwd))


def _within(cwd: Path, name: str, database: Path | None) -> Path | None:
    """The file of that name. One outside of the folder of the command is none: a line or a link may be forged.

    Nor is one of the database: whoever closes a file lets go of all locks that the process has on it, SQLite's too.
    """
    try:
        path, folder = (cwd / name).resolve(), cwd.resolve()
        if not path.is_relative_to(folder) or not path.is_file():
            return None
        return None if database is not None and _is_of_database(path, database) else path
    except (OSError, ValueError, RuntimeError):
        return None


def _is_of_database(path: Path, database: Path) -> bool:
    own = str(database.resolve())
    if str(path) == own or str(path).startswith(f"{own}-"):
        return True
    files = (Path(f"{own}{suffix}") for suffix in ("", "-wal", "-shm"))
    return any(file.exists() and os.path.samefile(path, file) for file in files)


def _content(path: Path, limit: int) -> tuple[bytes | None, int]:
    """The content of a file and its size; None for one too large to keep. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "it is no plain file")
        content = file.read(limit + 1)
    return (None, about.st_size) if len(content) > limit else (content, len(content))
