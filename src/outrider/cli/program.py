"""One run of the program: parse, do, and turn whatever went wrong into a message and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import threading
from argparse import Namespace
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from typing import cast

from outrider.cli import exits
from outrider.cli.arguments import Command, parse
from outrider.cli.terminal import Screen, cannot_write
from outrider.core.errors import OutriderError

Code = Callable[[Namespace, Screen], Awaitable[int] | int]


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Never raises, but for `--help`."""
    given = sys.argv[1:] if argv is None else list(argv)
    screen = Screen(as_json="--json" in given)
    try:
        command, arguments = parse(given)
        screen.as_json = arguments.json
        code = _perform(command, arguments, screen)
    except OutriderError as error:
        screen.error(error)
        code = exits.code_of(error)
    except KeyboardInterrupt:
        code = exits.INTERRUPTED
    except BrokenPipeError:
        code = exits.BROKEN_PIPE
    except OSError as error:  # of --help and --version, which are written by nobody else
        screen.error(cannot_write(error))
        code = exits.INTERNAL
    return _leave(code)


def _perform(command: Command, arguments: Namespace, screen: Screen) -> int:
    import asyncio
    from inspect import iscoroutinefunction

    from outrider.cli.logs import show_log

    level = "info" if arguments.verbose and arguments.log_level == "warning" else arguments.log_level
    show_log(level, arguments.log_format)
    screen.logs_json = arguments.log_format == "json"
    module, _, function = command.code.partition(":")
    code: Code = getattr(import_module(f"outrider.cli.{module}"), function)
    try:
        if iscoroutinefunction(code):
            return cast("int", asyncio.run(code(arguments, screen)))
        return cast("int", code(arguments, screen))
    except (OutriderError, BrokenPipeError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EIO:  # the terminal was closed
            screen.hang_up()
            return exits.HUNG_UP
        if arguments.verbose:
            raise
        raise OutriderError(
            f"this should not have happened: {type(error).__name__}: {error}\nwith -v there is a traceback",
            code="internal",
        ) from error


def _leave(code: int) -> int:
    """Flush, and do not wait for threads that a tool left behind and that no order reaches."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError as error:
            if stream is sys.stdout:
                code = exits.BROKEN_PIPE if isinstance(error, BrokenPipeError) else code or exits.INTERNAL
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())  # the interpreter flushes once more on its way out
    if any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
        os._exit(code)
    return code
