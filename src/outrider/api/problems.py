"""What goes wrong, as `application/problem+json` (RFC 9457): the one table from error codes to statuses.

Every error that leaves the API has this form, with the stable `code` of the command line and of Python: also a route
that does not exist, a body that is no JSON, and a fault of ours, whose details are in the log and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from outrider.core.errors import (
    Conflict,
    Denied,
    InvalidArguments,
    IssuerUnavailable,
    NotFound,
    Outdated,
    OutriderError,
    RateLimited,
    Refused,
    StoreError,
    StoreFull,
    TaskCanceled,
    TaskFailed,
    TooLarge,
    Unauthenticated,
    WaitTimeout,
)
from outrider.runtime.codec import encode

MEDIA_TYPE = "application/problem+json"
TYPE = "urn:outrider:problem:"
PLACES = 20
"""How many places of a request that is wrong are named."""

BY_ERROR: tuple[tuple[type[OutriderError], int], ...] = (
    (TooLarge, 413),
    (Outdated, 412),
    (NotFound, 404),
    (Conflict, 409),
    (Refused, 422),
    (Unauthenticated, 401),
    (RateLimited, 429),
    (IssuerUnavailable, 503),
    (Denied, 403),
    (TaskFailed, 409),
    (TaskCanceled, 409),
    (WaitTimeout, 409),
    (StoreFull, 507),
    (StoreError, 503),
)
"""The first that fits counts."""

RETRY_AFTER = {503: 2, 507: 60}
"""Seconds after which asking again makes sense."""

TITLES = {
    400: "The request is malformed",
    401: "Who asks is not known",
    403: "Who asks may not",
    404: "It does not exist",
    405: "The method is not allowed here",
    406: "It is not to be had in this form",
    408: "The request took too long",
    409: "It does not go with how things stand",
    412: "It has changed since",
    413: "It is too large",
    415: "The body has another form",
    416: "The range is not in the file",
    422: "The request is wrong",
    429: "Too many requests",
    431: "The headers are too large",
    500: "A fault of the server",
    503: "It cannot be done for now",
    507: "The store is full",
}
CODES = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "route_not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    408: "request_timeout",
    412: "precondition_failed",
    413: "too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    422: "invalid_arguments",
    429: "rate_limited",
    431: "headers_too_large",
    500: "internal",
    503: "unavailable",
}
"""The codes of what HTTP itself refuses; all others are those of `outrider.core.errors`."""


class Problem(BaseModel):
    """An error. `code` is stable and for programs, `detail` for people; `details` says more in a form of its own."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:outrider:problem:task_not_found",
                    "title": "It does not exist",
                    "status": 404,
                    "detail": "there is no task 'task_x'",
                    "code": "task_not_found",
                    "details": {"task": "task_x"},
                    "request_id": "0a1b2c3d-7",
                }
            ]
        }
    )

    type: str = Field(description="The code as a URI.")
    title: str = Field(description="What kind of problem it is, the same for all of one status.")
    status: int
    detail: str = Field(description="What was wrong, where, and what to do.")
    code: str = Field(description="The stable code; docs/cli.md lists those of the runtime, docs/http-api.md HTTP's.")
    details: Any = Field(description="What a program may want of it, else null.")
    request_id: str = Field(description="The id of the request, as in the header X-Request-Id and in the log.")


class Refusal(HTTPException):
    """Something that the API refuses before the façade is asked."""

    def __init__(
        self, status: int, detail: str, *, code: str | None = None, details: Any = None, headers: Any = None
    ) -> None:
        super().__init__(status, detail, headers)
        self.code = code or CODES[status]
        self.details = details


def status_of(error: OutriderError) -> int:
    """The status of an error of the façade."""
    return next((status for kind, status in BY_ERROR if isinstance(error, kind)), 500)


def problem(
    scope: Mapping[str, Any],
    status: int,
    detail: str,
    *,
    code: str | None = None,
    details: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer that tells of an error."""
    code = code or CODES.get(status, "error")
    body = {
        "type": TYPE + code,
        "title": TITLES.get(status, "It went wrong"),
        "status": status,
        "detail": detail,
        "code": code,
        "details": details,
        "request_id": scope.get("outrider.request_id", ""),
    }
    given = dict(headers or {})
    if status in RETRY_AFTER:
        given.setdefault("Retry-After", str(RETRY_AFTER[status]))
    if status == 401:
        given.setdefault("WWW-Authenticate", 'Bearer realm="outrider"')
    return Response(_encoded(body), status, given, MEDIA_TYPE)


def problem_of(scope: Mapping[str, Any], error: OutriderError) -> Response:
    """The answer that tells of an error of the façade."""
    headers = {"Retry-After": f"{max(1, ceil(error.retry_after))}"} if isinstance(error, RateLimited) else None
    return problem(scope, status_of(error), error.message, code=error.code, details=error.details, headers=headers)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer beside success, for the document: these, and what any route may.

    `routing.Route` adds what depends on its method and body.
    """
    return described(*sorted({*statuses, 400, 401, 403, 408, 413, 422, 429, 500, 503}))


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These answers, for the document."""
    return {status: {"model": Problem, "description": TITLES[status]} for status in statuses}


async def on_outrider_error(request: Request, error: Exception) -> Response:
    """Answer an error of the façade."""
    assert isinstance(error, OutriderError)
    return problem_of(request.scope, error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer what the framework or the API itself refuses."""
    assert isinstance(error, HTTPException)
    code, details = getattr(error, "code", None), getattr(error, "details", None)
    if error.status_code == 404 and code is None:
        return problem(request.scope, 404, f"there is no {request.scope['path']!r:.200} here; /v1/openapi.json has all")
    if error.status_code == 405:
        allowed = ", ".join(_methods_at(request))
        text = f"{request.method:.20} does not go here; {allowed} does"
        return problem(request.scope, 405, text, headers={"Allow": allowed})
    return problem(
        request.scope, error.status_code, str(error.detail), code=code, details=details, headers=error.headers
    )


def _methods_at(request: Request) -> list[str]:
    """What goes at the path of a request. A route that has the path knows only its own."""
    found = {
        method
        for route in request.app.routes
        if route.matches(request.scope)[0] is not Match.NONE
        for method in getattr(route, "methods", None) or ()
    }
    return sorted(found)


async def on_invalid(request: Request, error: Exception) -> Response:
    """Answer a request that does not fit its model: each place that is wrong, and why."""
    assert isinstance(error, RequestValidationError)
    errors: Sequence[Any] = error.errors()
    places = [{"at": _place(each["loc"]), "reason": each["msg"]} for each in errors[:PLACES]]
    named = "; ".join(f"{each['at']}: {each['reason']}" for each in places[:3])
    more = f"; and {len(errors) - 3} more" if len(errors) > 3 else ""
    return problem(request.scope, 422, named + more, code=InvalidArguments.code, details={"places": places})


def _place(loc: Sequence[str | int]) -> str:
    return ".".join(str(part)[:100] for part in loc)


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return encode(body)
    except (TypeError, ValueError):  # an error may quote what has no form in JSON: halves of characters, great numbers
        detail = str(body["detail"]).encode("utf-8", "backslashreplace").decode()
        return encode({**body, "detail": detail, "details": None})
