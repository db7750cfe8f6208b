"""How a route is made: strict JSON in, problems out, and an operation id that reads well in a generated client."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response

from outrider.api import wire
from outrider.api.problems import Refusal, responses
from outrider.api.wire import Request


class Route(APIRoute):
    """A route whose body is read strictly."""

    def get_route_handler(self) -> Callable[[StarletteRequest], Coroutine[Any, Any, Response]]:
        """The handler, for a request of ours."""
        handle = super().get_route_handler()
        takes_body = self.body_field is not None

        async def strictly(request: StarletteRequest) -> Response:
            if takes_body and (kind := request.headers.get("content-type")) is not None and not _is_json(kind):
                raise Refusal(415, f"the body is JSON, of the type application/json, and not {kind:.100}")
            return await handle(Request(request.scope, request.receive))

        return strictly


def _is_json(media_type: str) -> bool:
    kind = media_type.partition(";")[0].strip().lower()
    return kind == wire.JSON_TYPE or (kind.startswith("application/") and kind.endswith("+json"))


def operation_id(route: APIRoute) -> str:
    """The name of a route's function: short, unique, and good for the method of a client."""
    return route.name


def noun(tag: str) -> APIRouter:
    """A router for the routes of one noun."""
    return APIRouter(
        prefix="/v1",
        tags=[tag],
        route_class=Route,
        responses=responses(),
        generate_unique_id_function=operation_id,
    )
