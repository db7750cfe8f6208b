"""Which database or server a command means, and opening it. Either has the same verbs: see `outrider.client`.

A command that only looks does not leave a `.outrider/` behind in every folder it is typed in: where the default
database does not exist yet, it looks into an empty one in memory. One that was named is opened, and made; where the
command would make none by default, that is said, since the name may be a slip of the pen.
"""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

from outrider.bootstrap import open_ledger, path_of
from outrider.cli.arguments import environment
from outrider.cli.exits import UsageError
from outrider.cli.terminal import Screen, on_one_line
from outrider.core.errors import InvalidArguments
from outrider.core.ledger import Ledger
from outrider.settings import DEFAULT_DATABASE

if TYPE_CHECKING:
    from outrider.client import Client
    from outrider.runtime.facade import Runtime
    from outrider.settings import WebhookSettings

Opened: TypeAlias = "Runtime | Client"
"""What a command works with, here or elsewhere."""

MOST_OF_A_KEY = 4096
PATIENCE = 15.0
"""Seconds for which a person waits for a server that does not answer."""


def url_of(arguments: Namespace) -> str:
    """The database's URL: `--db`, else OUTRIDER_DB, else the default below the current directory."""
    given: str | None = arguments.db or environment("OUTRIDER_DB")
    return given or DEFAULT_DATABASE


def server_of(arguments: Namespace) -> str | None:
    """The server that is meant: `--server`, else OUTRIDER_SERVER unless `--db` names a database."""
    given: str | None = arguments.server
    return given or (None if arguments.db else environment("OUTRIDER_SERVER"))


def place_of(arguments: Namespace) -> str:
    """Where a command looks, for a line on a screen."""
    return server_of(arguments) or shown(url_of(arguments))


def with_environment(settings: WebhookSettings) -> WebhookSettings:
    """The settings of webhooks with what the environment says: where they may go, and where the server is reached."""
    allowed, public = environment("OUTRIDER_WEBHOOK_ALLOW"), environment("OUTRIDER_PUBLIC_URL")
    if allowed:
        names = tuple(each.strip() for each in allowed.split(",") if each.strip())
        settings = replace(settings, allow=(*settings.allow, *names))
    return replace(settings, public_url=public) if public else settings


@asynccontextmanager
async def open_store(arguments: Namespace, *, create: bool = False) -> AsyncIterator[Ledger]:
    """The store, to look into; with `create` the default one is made where it is missing."""
    url = url_of(arguments)
    missing = None if create else _missing_file(url)
    ledger = await open_ledger(url if create or not _is_missing_default(url) else "memory://")
    if missing is not None:
        screen = Screen(as_json=arguments.json)
        screen.logs_json = arguments.log_format == "json"
        screen.note(on_one_line(f"made {missing}: there was none"))
    try:
        yield ledger
    finally:
        await ledger.close()


def shown(url: str) -> str:
    """A database's URL for a log or a screen: of one on a server without its password and options."""
    scheme, mark, rest = url.partition("://")
    if scheme not in ("postgresql", "postgres"):
        return url
    place = re.split(r"[?#]", rest)[0]
    who, at, where = place.rpartition("@")
    return f"{scheme}{mark}{who.partition(':')[0]}{at}{where}"


def _missing_file(url: str) -> Path | None:
    """The file of a SQLite database that is not there yet; None for any other."""
    try:
        path = path_of(url)
    except InvalidArguments:  # it is in memory, on a server, or nowhere, which opening it says better
        return None
    return None if _is_missing_default(url) or os.path.exists(path) else path


def _is_missing_default(url: str) -> bool:
    return url == DEFAULT_DATABASE and not os.path.exists(url)


@asynccontextmanager
async def open_runtime(arguments: Namespace, *, create: bool = False) -> AsyncIterator[Opened]:
    """The server that is meant, else a runtime over the store, without a worker and without an app."""
    if (server := server_of(arguments)) is not None:
        async with client_of(server, arguments) as client:
            yield client
        return
    async with open_here(arguments, create=create) as runtime:
        yield runtime


def is_here(opened: Opened) -> TypeGuard[Runtime]:
    """Whether a command works with the database itself, and not with a server."""
    return hasattr(opened, "ledger")


def client_of(server: str, arguments: Namespace) -> Client:
    """A client of a server, with the key of `--key-file` or OUTRIDER_KEY."""
    from outrider.client import Client
    from outrider.settings import ClientSettings

    # Who waits for a server sees that, and stderr has one object where it is read by a program.
    settings = ClientSettings(patience=PATIENCE, log_trouble=False)
    return Client(server, key=_key_of(arguments), settings=settings)


def _key_of(arguments: Namespace) -> str | None:
    if arguments.key_file is None:
        return environment("OUTRIDER_KEY")
    try:
        with open(arguments.key_file, encoding="ascii") as file:
            return file.read(MOST_OF_A_KEY).strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"--key-file {arguments.key_file!r} cannot be read: {error}") from error


@asynccontextmanager
async def open_here(arguments: Namespace, *, create: bool = False) -> AsyncIterator[Runtime]:
    """A runtime over the store, whatever server there is."""
    from outrider.runtime.clock import SystemClock
    from outrider.runtime.facade import Runtime
    from outrider.runtime.registry import Registry
    from outrider.runtime.services import Services
    from outrider.settings import WebhookSettings, WorkerSettings

    async with open_store(arguments, create=create) as ledger:
        settings = WorkerSettings(webhooks=with_environment(WebhookSettings()))
        services = Services.over(ledger, SystemClock(ledger), Registry(), settings)
        try:
            yield Runtime(services)
        finally:
            services.signals.close()
