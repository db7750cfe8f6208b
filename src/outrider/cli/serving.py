"""`outrider serve`: the HTTP API, and a worker in the same process unless `--no-worker`.

The first SIGTERM or Ctrl-C ends it gracefully: streams end with their marker, requests under way finish, the worker
drains. The second one ends it at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
from argparse import Namespace
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from outrider.bootstrap import Outrider
from outrider.cli.apps import load_apps, names_of
from outrider.cli.database import shown, url_of, with_environment
from outrider.cli.exits import OK, UsageError
from outrider.cli.guarding import access_of
from outrider.cli.terminal import Screen
from outrider.core.errors import InvalidArguments
from outrider.runtime.collecting import leave_program_alone
from outrider.settings import ServeSettings

if TYPE_CHECKING:
    import socket

MOST_PORT = 65_535


def serve(arguments: Namespace, screen: Screen) -> int:
    """Serve until told to stop."""
    if arguments.concurrency is not None and arguments.concurrency < 1:
        raise UsageError("--concurrency is a whole number of 1 or more")
    if arguments.port is not None and not 0 <= arguments.port <= MOST_PORT:
        raise UsageError(f"--port is a whole number from 0, which takes a free one, to {MOST_PORT}")
    if arguments.socket is not None and (arguments.host is not None or arguments.port is not None):
        raise UsageError("--socket takes the place of --host and --port")
    if arguments.no_worker and (arguments.serves or arguments.concurrency is not None):
        raise UsageError("--serves and --concurrency are for the worker, and there is none with --no-worker")
    if arguments.rate is not None and arguments.rate < 1:
        raise UsageError("--rate is a whole number of 1 or more")
    app = load_apps(names_of(arguments.app))
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(app, arguments, screen))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The loop of uvloop where that is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(app: Outrider, arguments: Namespace, screen: Screen) -> int:
    try:
        from outrider.api.app import create_api
        from outrider.api.health import measured
        from outrider.api.serving import Service, bind, bind_path
        from outrider.runtime.archive import check_place, place_of
    except ImportError as error:
        raise InvalidArguments(
            f"the server needs the extra `serve`: pip install 'outrider[serve]' ({error})"
        ) from error
    settings = ServeSettings()
    settings = replace(
        settings,
        host=arguments.host or settings.host,
        port=settings.port if arguments.port is None else arguments.port,
        origins=tuple(arguments.origin),
        hosts=tuple(arguments.allow_host),
        access=access_of(arguments),
    )
    app.settings = replace(app.settings, webhooks=with_environment(app.settings.webhooks))
    is_guarded = settings.access is not None
    registry = measured()
    url = url_of(arguments)
    if arguments.socket is None:
        listener = bind(settings.host, settings.port, is_guarded=is_guarded)
    else:
        listener = bind_path(arguments.socket)
    try:
        async with app.open(
            url, worker=not arguments.no_worker, concurrency=arguments.concurrency, serves=arguments.serves
        ) as runtime:
            if place_of(runtime.services) is not None:
                check_place(runtime.services)
            if is_guarded and not await runtime.keys.list(limit=1):
                screen.note("there is no key yet; make one: outrider keys create --admin")
            service = Service(create_api(runtime, settings, registry=registry), listener, settings)
            if runtime.work is not None:
                runtime.work.add_done_callback(lambda _: service.end())
            sending = asyncio.create_task(runtime.webhooks.deliver()) if arguments.no_worker else None
            try:
                await _until_told(
                    service.run(), service.has_started(), service.end, _place(listener), url, arguments, screen
                )
                if runtime.work is not None and runtime.work.done():
                    await runtime.work  # which says why the store will never answer again
            finally:
                if sending is not None:  # what is under way comes to its end
                    sending.cancel()
                    await asyncio.wait([sending])
    finally:
        listener.close()
        if arguments.socket is not None:
            with suppress(FileNotFoundError):
                os.unlink(arguments.socket)
    screen.stamped("the server has ended")
    return OK


async def _until_told(
    serving: Coroutine[Any, Any, None],
    started: Coroutine[Any, Any, None],
    end: Callable[[], None],
    place: str,
    url: str,
    arguments: Namespace,
    screen: Screen,
) -> None:
    """Serve, and end when a signal says so."""
    job = asyncio.create_task(serving, name="outrider-server")
    announcing = asyncio.create_task(started)
    _heed_signals(end, screen)
    await asyncio.wait({job, announcing}, return_when=asyncio.FIRST_COMPLETED)
    announcing.cancel()
    if not job.done():
        leave_program_alone()
        _tell(place, url, arguments, screen)
    await job


def _heed_signals(end: Callable[[], None], screen: Screen) -> None:
    """Have the first signal end the service, and the second the process, also while a task blocks the loop."""
    loop, told = asyncio.get_running_loop(), 0

    def stop() -> None:
        screen.stamped("stopping: requests and steps in flight finish; once more to force it")
        end()

    def heed(number: int, _frame: object) -> None:
        nonlocal told
        told += 1
        if told > 1:
            os._exit(128 + number)
        loop.call_soon_threadsafe(stop)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, heed)


def _place(listener: socket.socket) -> str:
    """Where it is served, as a URL."""
    address = listener.getsockname()
    if isinstance(address, str):
        return f"unix:{address}"
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"http://{host}:{address[1]}"


def _tell(place: str, url: str, arguments: Namespace, screen: Screen) -> None:
    if screen.as_json:
        screen.data({"url": place, "pid": os.getpid(), "database": shown(url), "worker": not arguments.no_worker})
        return
    how = "without a worker" if arguments.no_worker else "with a worker"
    screen.stamped(f"serving {place} (pid {os.getpid()}) {how}, on {shown(url)}")
