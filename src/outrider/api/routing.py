"""How a route is made: strict JSON in, problems out, and an operation id that reads well in a generated client.

FastAPI declares a route and describes it. What it does for each request was measured at half of the work of a create:
the plain routes, which most are, are called by `_Plan`: the same declared parts, found once and not each time.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from inspect import iscoroutinefunction
from typing import Any, TypeAlias, cast, get_args
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter
from fastapi._compat import ModelField
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import request_params_to_args
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.routing import Route as PlainRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from outrider.api import wire
from outrider.api.access import SCOPE_OF
from outrider.api.problems import Refusal, described, responses
from outrider.api.wire import Request

IDEMPOTENCY_KEY = "idempotency-key"
_Ask: TypeAlias = Callable[[StarletteRequest], Awaitable[Any]]


class Route(APIRoute):
    """A route whose body is read strictly, and that is asked for by its own path alone."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        # Starlette's pattern ends with `$`, which a line break at the end of a path passes.
        self.path_regex = re.compile(self.path_regex.pattern.removesuffix("$") + r"\Z")
        scopes = [SCOPE_OF[each.call] for each in self.dependant.dependencies if each.call in SCOPE_OF]
        if scopes:  # the roles of the scheme, as OpenAPI 3.1 has them; nobody need have a key where nobody is asked
            self.openapi_extra = {"security": [{"bearer": scopes}, {}], **(self.openapi_extra or {})}
        found = self.response_fields.get(500)
        if found is not None:  # as all routes of a noun have it, which say beside it what else they answer
            for status, applies in ((415, self.body_field is not None), (507, self.methods != {"GET"})):
                if applies:
                    self.responses |= described(status)
                    self.response_fields[status] = found
        plan = _Plan.of(self)
        if plan is not None:
            self.app = plan

    def get_route_handler(self) -> Callable[[StarletteRequest], Coroutine[Any, Any, Response]]:
        """The handler of a route that is not plain, for a request of ours."""
        handle = super().get_route_handler()
        takes_body = self.body_field is not None

        async def strictly(request: StarletteRequest) -> Response:
            if takes_body:
                _check_is_json(request)
            return await handle(Request(request.scope, request.receive))

        return strictly


class Head(PlainRoute):
    """What is answered to HEAD where there is a GET route: the same without the body (RFC 9110, 9.3.2).

    A route of its own, so that no document and no other request has to do with it.
    """

    def __init__(self, route: APIRoute) -> None:
        super().__init__(route.path, route.endpoint, methods=["HEAD"], name=route.name, include_in_schema=False)
        self.path_regex = route.path_regex
        self.app = _headless(route)

    @classmethod
    def of(cls, routes: Iterable[BaseRoute]) -> list[Head]:
        """One for each of these routes that answers to GET, and not to HEAD by itself."""
        found = [each for each in routes if isinstance(each, APIRoute)]
        return [cls(each) for each in found if {*(each.methods or ())} & {"GET", "HEAD"} == {"GET"}]


def _headless(route: APIRoute) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] != "http.response.start":
                raise _HeadSent  # the rest is not made: it may be long, or never end
            await send(message)
            await send({"type": "http.response.body", "body": b""})

        scope["route"] = route
        with suppress(_HeadSent, ClientDisconnect):
            await route.app(scope, receive, sending)

    return answer


class _HeadSent(OSError):
    """Ends a response as a client does that is gone, which is what all of them look out for."""


class _Plan:
    """What a plain route needs of a request: dependencies that take the request, parameters, one body."""

    def __init__(self, route: APIRoute, dependant: Dependant) -> None:
        assert dependant.call is not None
        self._call: Callable[..., Awaitable[Response]] = dependant.call
        self._asks = [(each.name, cast(_Ask, each.call)) for each in dependant.dependencies]
        self._request_name = dependant.request_param_name
        self._path = [(field.name, field.name) for field in dependant.path_params if _is_text(field)]
        self._headers = [(field.name, field.alias.lower()) for field in dependant.header_params if _is_text(field)]
        self._checked_headers = [field for field in dependant.header_params if not _is_text(field)]
        others = (
            ("path_params", [field for field in dependant.path_params if not _is_text(field)]),
            ("query_params", dependant.query_params),
        )
        self._parameters = [(where, fields) for where, fields in others if fields]
        self._known = frozenset(name for field in dependant.query_params for name in _names_of(field))
        is_once = any(field.alias.lower() == IDEMPOTENCY_KEY for field in dependant.header_params)
        self._instead = None if is_once or "POST" not in (route.methods or ()) else _instead_of_key(route)
        self._body = route.body_field
        self._body_name = dependant.body_params[0].name if dependant.body_params else ""

    @classmethod
    def of(cls, route: APIRoute) -> _Plan | None:
        """The plan of a route; None for one that is not plain: what streams, or asks for more."""
        dependant = route.dependant
        is_plain = (
            iscoroutinefunction(dependant.call)
            and not (dependant.cookie_params or dependant.response_param_name or dependant.background_tasks_param_name)
            and len(dependant.body_params) <= 1
            and all(_is_plain(each) for each in dependant.dependencies)
        )
        return cls(route, dependant) if is_plain else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        request = Request(scope, receive)
        values: dict[str, Any] = {}
        errors: list[Any] = []
        for name, ask in self._asks:
            found = await ask(request)
            if name is not None:
                values[name] = found
        _check_is_unicode(scope)
        if scope["query_string"]:
            errors += [self._unknown(name) for name in request.query_params if name not in self._known]
        if self._instead is not None and IDEMPOTENCY_KEY in request.headers:
            raise Refusal(422, f"the header Idempotency-Key does not count here: {self._instead}")
        if self._request_name is not None:
            values[self._request_name] = request
        for name, key in self._path:
            values[name] = request.path_params[key]
        for name, key in self._headers:
            values[name] = request.headers.get(key)
        for field in self._checked_headers:
            if field.alias.lower() in request.headers or field.field_info.is_required():
                read, wrong = request_params_to_args([field], request.headers)
                values.update(read)
                errors += wrong
            else:
                values[field.name] = field.get_default()
        for where, fields in self._parameters:
            read, wrong = request_params_to_args(fields, getattr(request, where))
            values.update(read)
            errors += wrong
        if self._body is not None:
            errors += await self._read_body(self._body, request, values)
        if errors:
            raise RequestValidationError(errors)
        response = await self._call(**values)
        await response(scope, receive, send)

    def _unknown(self, name: str) -> dict[str, Any]:
        there = f"there are {', '.join(sorted(self._known))}" if self._known else "there are none"
        return {
            "loc": ("query", name),
            "msg": f"this is no parameter of this route; {there}",
            "type": "extra_forbidden",
        }

    async def _read_body(self, field: ModelField, request: Request, values: dict[str, Any]) -> Sequence[Any]:
        errors: Sequence[Any] = ()
        if await request.body():
            _check_is_json(request)
            values[self._body_name], errors = field.validate(await request.json(), {}, loc=("body",))
        elif field.field_info.is_required():
            raise Refusal(422, "the request has no body, and needs one")
        else:
            values[self._body_name] = field.get_default()
        return errors


def _is_text(field: ModelField) -> bool:
    """Whether any text will do for a parameter, and for one that may be left out None."""
    info = field.field_info
    return not info.metadata and (info.annotation is str or (info.annotation == (str | None) and info.default is None))


def _names_of(field: ModelField) -> Iterable[str]:
    """What is said in a query for a parameter, which may be a model of several."""
    several = getattr(field.field_info.annotation, "model_fields", None)
    return (field.alias,) if several is None else several


def _instead_of_key(route: APIRoute) -> str:
    """What to do where the header is not for: what is made gets an id, if the body has a place for it."""
    body = None if route.body_field is None else route.body_field.field_info.annotation
    for form in (body, *get_args(body)):
        fields = getattr(form, "model_fields", {})
        if "id" in fields:
            return "give an `id` in the body in its place, and ask again with the same one"
        several = [each for info in fields.values() for each in get_args(info.annotation)]
        if any("idempotency_key" in getattr(each, "model_fields", ()) for each in several):
            return "give each in the body an `idempotency_key` or an `id` in its place"
    return "leave it out, and look at what was done before you ask for it again"


def _is_plain(dependant: Dependant) -> bool:
    """Whether a dependency is a function of the request, and of nothing else."""
    return (
        iscoroutinefunction(dependant.call)
        and dependant.request_param_name is not None
        and not dependant.dependencies
        and not (dependant.path_params or dependant.query_params or dependant.header_params or dependant.body_params)
    )


def _check_is_unicode(scope: Scope) -> None:
    """Raise Refusal for an address whose bytes are no text: read all the same, different ones would be one."""
    for what, raw in (("path", scope.get("raw_path") or b""), ("query", scope["query_string"])):
        if b"%" in raw:
            try:
                unquote_to_bytes(raw).decode()
            except UnicodeDecodeError as error:
                raise Refusal(400, f"the {what} is no UTF-8 once its percent signs are decoded: {error}") from None


def _check_is_json(request: StarletteRequest) -> None:
    """Raise Refusal for a body that says that it is no JSON."""
    kind = request.headers.get("content-type")
    if kind is None or kind == wire.JSON_TYPE:
        return
    plain = kind.partition(";")[0].strip().lower()
    if plain != wire.JSON_TYPE and not (plain.startswith("application/") and plain.endswith("+json")):
        raise Refusal(415, f"the body is JSON, of the type application/json, and not {kind:.100}")


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
