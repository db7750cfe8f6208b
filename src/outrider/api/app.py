"""The application: routers, errors, limits, and the OpenAPI document."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from outrider.api import (
    answers,
    archive,
    audit,
    external,
    files,
    inbox,
    keys,
    live,
    organizations,
    problems,
    queue,
    retention,
    sessions,
    tasks,
    webhooks,
    workers,
)
from outrider.api.access import Gate, measuring
from outrider.api.access_log import AccessLog
from outrider.api.examples import EXAMPLES
from outrider.api.health import health_routes
from outrider.api.limits import Limits
from outrider.api.recording import Recording
from outrider.api.routing import Head
from outrider.api.tracing import http_telemetry
from outrider.core.errors import OutriderError
from outrider.runtime.facade import Runtime
from outrider.settings import ServeSettings

DESCRIPTION = """Durable background tasks for AI agents: hand work off, walk away, be woken when there is news.

Errors are `application/problem+json` with a stable `code`. Lists are `{"items", "next"}`: give `next` as `after` for
the page after it. A task that is created with an `Idempotency-Key` is made once; what else can be has an `id` in its
body, and refuses that header.
"""
KEYS = """A key of Outrider, or a token of its issuer. Each operation names the scope that it needs, of which each holds
those before it: `read`, `submit`, `operate`, `admin`. What has `x-outrider-operator` is for admins of `org_default`.
"""
ROUTERS = (
    tasks.router,
    sessions.router,
    live.router,
    external.router,
    inbox.router,
    files.router,
    queue.router,
    retention.router,
    archive.router,
    workers.router,
    keys.router,
    audit.router,
    organizations.router,
    webhooks.router,
    answers.links,
    answers.router,
)
"""The busiest come first: a route is looked for in this order."""


def create_api(
    runtime: Runtime, settings: ServeSettings | None = None, *, registry: CollectorRegistry | None = None
) -> FastAPI:
    """The ASGI application that serves a runtime. It neither opens nor closes it.

    With a `registry`, which `health.measured` makes before the runtime is opened, there is `/metrics`.

    `app.state` has the `runtime`, the `settings`, and `ending`: an event that is set when the server begins to end,
    so that whoever streams or waits says so and leaves.
    """
    from outrider import __version__

    settings = settings or ServeSettings()
    app = _Api(
        title="Outrider",
        version=__version__,
        summary="Durable background tasks for AI agents",
        description=DESCRIPTION,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
        telemetry=http_telemetry(runtime.services.telemetry),
    )
    app.state.runtime = runtime
    app.state.settings = settings
    app.state.ending = asyncio.Event()
    app.state.gate = gate = Gate(runtime, settings)
    for router in ROUTERS:
        app.router.routes.extend(router.routes)  # as they are: included, each would be made anew and looked for twice
    health = health_routes(runtime, registry=registry, is_draining=app.state.ending.is_set, guard=[Depends(measuring)])
    app.router.routes.extend(health.routes)
    app.router.routes.extend(Head.of(app.router.routes))
    handlers: dict[type[Exception], Any] = {
        OutriderError: problems.on_outrider_error,
        HTTPException: problems.on_http_error,
        RequestValidationError: problems.on_invalid,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(Recording, runtime=runtime, gate=gate)
    app.add_middleware(Limits, settings=settings, gate=gate)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[
                "Created-At",
                "ETag",
                "Idempotent-Replayed",
                "RateLimit",
                "RateLimit-Policy",
                "Retry-After",
                "X-Request-Id",
            ],
        )
    app.add_middleware(AccessLog)
    return app


class _Api(FastAPI):
    """The application with its document as clients want it."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if self.openapi_schema is None:
            self.openapi_schema = _finished(super().openapi())
        return self.openapi_schema


def _finished(document: dict[str, Any]) -> dict[str, Any]:
    """Problems have their own media type, validation errors are problems too, and a bearer token may be asked for."""
    components = document.setdefault("components", {})
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer", "description": KEYS}}
    document["security"] = [{"bearer": []}, {}]
    for path in document["paths"].values():
        for operation in path.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400 and "content" in answer:
                    answer["content"] = {problems.MEDIA_TYPE: next(iter(answer["content"].values()))}
    schemas: dict[str, Any] = components["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for name, example in EXAMPLES.items():
        if name in schemas:
            schemas[name].setdefault("examples", [example])
    return document
