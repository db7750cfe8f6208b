"""`exec`: a command in the foreground: its output, as it is but on a terminal, and its exit code.

What a reader would get wrong: the command is no child of this program. The terminal may go, and the command runs on;
what it prints comes by way of the store, which keeps only the end of very much of it.
"""

from __future__ import annotations

import re
import signal
from argparse import Namespace
from typing import Any

from outrider.cli import exits
from outrider.cli.apps import load_apps, names_of
from outrider.cli.arguments import IDLE_EXIT, environment
from outrider.cli.database import Opened, server_of, url_of
from outrider.cli.display import Silence
from outrider.cli.exits import UsageError
from outrider.cli.following import Follower
from outrider.cli.looking import result_of
from outrider.cli.starting import start_task
from outrider.cli.terminal import Screen, harmless
from outrider.cli.values import text_of
from outrider.cli.workers import ensure_worker
from outrider.core.errors import OutriderError
from outrider.core.task import State
from outrider.core.wording import counted
from outrider.runtime.attempt import CUT
from outrider.runtime.handles import SessionHandle, TaskHandle
from outrider.runtime.lease import locks_of
from outrider.runtime.options import TaskOptions
from outrider.runtime.records import TaskRecord

TIMED_OUT, OUR_FAULT, CANCELED = 124, 125, 130
_CUT = re.compile(re.escape(CUT).replace(re.escape("{count:,}"), r"([\d,]+)"))
"""The mark in its output where some of it was dropped before anybody could keep it."""


async def execute(arguments: Namespace, screen: Screen) -> int:
    """Run a command; in the foreground, end as it ended."""
    if arguments.background:
        return await _execute(arguments, screen)
    try:
        return await _execute(arguments, screen)
    except UsageError:
        raise
    except OutriderError as error:  # the other codes may be the command's
        screen.error(error)
        return OUR_FAULT


async def _execute(arguments: Namespace, screen: Screen) -> int:
    if not arguments.command:
        raise UsageError("which command? outrider exec [OPTIONS] -- COMMAND [ARGUMENTS]")
    names = names_of(arguments.app)
    app = load_apps(names)
    stdin = None if arguments.stdin is None else text_of(arguments.stdin)

    async def start(session: SessionHandle, options: TaskOptions) -> TaskHandle:
        return await session.spawn_process(
            arguments.command,
            cwd=arguments.cwd,
            env=_environment(arguments.env),
            clean_env=arguments.clean_env,
            stdin=stdin,
            cpu_limit=arguments.cpu,
            memory_limit=arguments.memory,
            output_limit=arguments.max_output,
            artifacts=arguments.artifact,
            effects="once" if arguments.once else "idempotent",
            options=options,
        )

    code = await start_task(arguments, screen, app, names, start, _Companion)
    if server_of(arguments) is None and not arguments.background and code in (exits.HUNG_UP, 128 + signal.SIGTERM):
        # It runs on, but only so long without somebody who looks after it.
        idle_exit = IDLE_EXIT if arguments.idle_exit is None else arguments.idle_exit
        async with app.open(url_of(arguments), worker=False) as runtime:
            if locks_of(runtime.ledger) is not None:
                await ensure_worker(runtime, "process", names, idle_exit)
    return code


def _environment(given: list[str]) -> dict[str, str] | None:
    """`NAME=VALUE`, or `NAME` for what it is here."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        here = value if equals else environment(name)
        if not name or here is None:
            raise UsageError(f"{text!r} is not set here; write NAME=VALUE" if name else f"{text!r} names no variable")
        found[name] = here
    return found or None


class _Plain(Silence):
    """Nothing but what has to be said."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def note(self, text: str) -> None:
        """A line on stderr."""
        self._screen.note(text)


class _Companion(Follower):
    """Follows a command: its output goes where it would go without us."""

    def __init__(self, runtime: Opened, task: TaskHandle, screen: Screen, after: int) -> None:
        super().__init__(runtime, task, screen, after, display=_Plain(screen))
        self._shown = self._lost = 0

    async def _follow_output(self) -> None:
        try:
            async for piece in self._task.output():
                self._show(piece)
        except BrokenPipeError:  # whoever read it has enough: what SIGPIPE would do to the command itself
            await self._cancel()
            raise

    def _show(self, piece: Any) -> None:
        screen = self._screen
        if screen.as_json:
            return
        cuts = _CUT.findall(piece.text)
        self._shown += len(_CUT.sub("", piece.text).encode())
        self._lost += piece.lost + sum(int(count.replace(",", "")) for count in cuts)
        if piece.lost:
            screen.note(f"[{counted(piece.lost, 'byte')} of output cut]")
        if piece.stream == "stderr":
            screen.aside(harmless(piece.text) if screen.is_talking else piece.text)
        elif piece.stream:
            screen.text(piece.text)

    async def _conclude(self) -> int:
        record = await self._task.record()
        result = await result_of(self._task, record)
        if self._screen.as_json:
            self._screen.record(record, result=result)
        elif record.state is State.CANCELED:
            self._screen.note(
                f"{record.id} was canceled" + (f": {record.cancel_reason}" if record.cancel_reason else "")
            )
        elif record.error is not None and not _is_plain_exit(record):
            self._screen.note(f"outrider: {record.error.message}")
        code = exit_code_of(record, result)
        if not self._lost or self._screen.as_json:
            return code
        lost = max(self._lost, _printed(record, result) - self._shown)  # what was cut may have been in what was cut
        self._screen.note(
            f"outrider: {counted(lost, 'byte')} of its output were cut, as it came faster than it could be kept; have a"
            " command with much to say write to a file"
        )
        return code if code or self._screen.is_terminal else OUR_FAULT


def exit_code_of(record: TaskRecord, result: Any) -> int:
    """What the command would have ended with in a shell; 124 after a timeout, 125 where Outrider is to blame."""
    if record.state is State.CANCELED:
        return CANCELED
    if record.state is State.SUCCEEDED:
        return int(result["exit_code"]) if isinstance(result, dict) and "exit_code" in result else exits.OK
    error = record.error
    if error is None:
        return OUR_FAULT
    details = error.details if isinstance(error.details, dict) else {}
    if error.kind == "timeout":
        return TIMED_OUT
    if error.kind in ("exit_status", "limit_exceeded", "not_started"):
        if details.get("exit_code") is not None:
            return int(details["exit_code"])
        name = str(details.get("signal"))
        if name in signal.Signals.__members__:
            return 128 + signal.Signals[name]
        return 128 + int(name.removeprefix("signal ")) if name.startswith("signal ") else OUR_FAULT
    return OUR_FAULT


def _printed(record: TaskRecord, result: Any) -> int:
    """How many bytes a command has printed in all, as far as is known."""
    told = result if record.error is None else record.error.details
    return int(told.get("output_bytes") or 0) if isinstance(told, dict) else 0


def _is_plain_exit(record: TaskRecord) -> bool:
    error = record.error
    return error is not None and error.kind == "exit_status" and "exit code" in error.message
