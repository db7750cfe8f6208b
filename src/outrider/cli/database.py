"""Which database a command means, and opening it.

A command that only looks does not leave a `.outrider/` behind in every folder it is typed in: where the default
database does not exist yet, it looks into an empty one in memory. One that was named is opened, and made.
"""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from outrider.bootstrap import open_ledger
from outrider.cli.arguments import environment
from outrider.core.ledger import Ledger
from outrider.settings import DEFAULT_DATABASE

if TYPE_CHECKING:
    from outrider.runtime.facade import Runtime
    from outrider.settings import WebhookSettings


def url_of(arguments: Namespace) -> str:
    """The database's URL: `--db`, else OUTRIDER_DB, else the default below the current directory."""
    given: str | None = arguments.db or environment("OUTRIDER_DB")
    return given or DEFAULT_DATABASE


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
    ledger = await open_ledger(url if create or not _is_missing_default(url) else "memory://")
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


def _is_missing_default(url: str) -> bool:
    return url == DEFAULT_DATABASE and not os.path.exists(url)


@asynccontextmanager
async def open_runtime(arguments: Namespace, *, create: bool = False) -> AsyncIterator[Runtime]:
    """A runtime over the store, without a worker and without an app."""
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
