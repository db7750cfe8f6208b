"""JSON as the API takes and gives it: read strictly, once, and written as bytes that nothing looks at again.

Strict: UTF-8, no NaN, no halves of characters, no numbers that a reader would round, no key twice in one object, and no
more than 200 levels deep.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import orjson
from pydantic import BaseModel
from pydantic_core import from_json
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response, StreamingResponse

from outrider.api.problems import Refusal
from outrider.core.task import Task
from outrider.runtime.around import Around
from outrider.runtime.fields import task_fields

JSON_TYPE = "application/json"
REPLAYED = {"Idempotent-Replayed": "true"}
"""Says of an answer that what was to be made was there already."""
LINES = "application/x-ndjson"
EXPORT: dict[str, Any] = {
    "description": "One JSON object a line; the last is of the `end`.",
    "content": {LINES: {"schema": {"type": "string"}}},
}
"""The answer that `lines` is, as the OpenAPI document has it."""
_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS


class Request(StarletteRequest):
    """A request whose body is read strictly."""

    async def json(self) -> Any:
        """The body. Raises Refusal for what is no JSON."""
        if not hasattr(self, "_json"):
            body = await self.body()
            try:
                read = from_json(body, allow_inf_nan=False, cache_strings="keys")
            except ValueError as error:
                raise Refusal(400, f"the body is no JSON: {error}", code="invalid_json") from None
            _check_keys(body, read)
            self._json = read
        return self._json


def _check_keys(body: bytes, read: Any) -> None:
    """Raise Refusal for a key that is twice in one object: readers differ in which of them counts.

    What was read has lost one of them, and is written with fewer colons. That is found in a quarter of the time that
    it took to read; only where it says something is the body read again, in Python, to find out what.
    """
    try:
        is_less = body.count(b":") > orjson.dumps(read).count(b":")
    except TypeError:  # a number that is too great for it
        is_less = True
    if is_less or b"\\u003" in body:  # an escaped colon would make up for one that is missing
        json.loads(body, object_pairs_hook=_once, parse_int=str, parse_float=str)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise Refusal(400, f"the body has the key {twice!r:.100} twice in one object", code="invalid_json")
    return found


def answer(content: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer of encoded JSON."""
    return Response(content, status, headers, JSON_TYPE)


def plain(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer of plain values."""
    return answer(orjson.dumps(value, option=_OPTIONS), status, headers)


def record(found: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer of a public record."""
    return answer(encoded(found), status, headers)


def encoded(found: BaseModel) -> bytes:
    """A public record as JSON."""
    return found.__pydantic_serializer__.to_json(found)


def encoded_task(task: Task, around: Around | None = None) -> bytes:
    """The record of a task, without what is derived of its journal: what `TaskRecord.of` says, without making one."""
    return orjson.dumps({**task_fields(task, around=around), "checkpoint": None}, option=_OPTIONS)


async def lines(records: AsyncIterator[Any]) -> Response:
    """An answer of plain values, each a line of its own. What raises before the first raises here."""
    first = await anext(records)

    async def told() -> AsyncIterator[bytes]:
        yield orjson.dumps(first, option=_OPTIONS | orjson.OPT_APPEND_NEWLINE)
        async for record in records:
            yield orjson.dumps(record, option=_OPTIONS | orjson.OPT_APPEND_NEWLINE)

    return StreamingResponse(told(), media_type=LINES)


def page(items: Iterable[BaseModel], next: str | int | None = None) -> Response:
    """A page of records, and the cursor of the one after it; None where there is none."""
    return answer(b'{"items":[' + b",".join(map(encoded, items)) + b'],"next":' + orjson.dumps(next) + b"}")
