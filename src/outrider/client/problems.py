"""What a server answers when it refuses, as the same exceptions that a `Runtime` raises: one table, made of the tree.

A code that this version does not know becomes the class that its status stands for, and keeps its code.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import orjson

from outrider.core import errors
from outrider.core.errors import (
    Conflict,
    NotFound,
    OutriderError,
    Refused,
    ServerDiffers,
    ServerFailed,
    ServerForeign,
    ServerUnreachable,
    StoreUnavailable,
    UnknownName,
)

MEDIA_TYPE = "application/problem+json"

_BESIDE: dict[str, type[OutriderError]] = {
    "store_closed": StoreUnavailable,
    "route_not_found": ServerDiffers,
    "method_not_allowed": ServerDiffers,
    "not_acceptable": ServerDiffers,
    "unsupported_media_type": ServerDiffers,
    "internal": ServerFailed,
    "unavailable": ServerUnreachable,
}
"""Codes that are no class's own: the second of a leaf, and those of HTTP itself."""

_BY_STATUS: dict[int, type[OutriderError]] = {404: NotFound, 409: Conflict, 412: Conflict}


def error_of(status: int, media_type: str, body: bytes, place: str, asked: str) -> OutriderError:
    """The error that an answer tells of. `place` is where the server is, `asked` the method and the path."""
    told = _problem(media_type, body)
    if told is None:
        if status in (502, 503, 504):
            return ServerUnreachable(f"what stands before the server at {place} answered {status}: the server is away")
        return ServerForeign(
            f"{place} answered {status} to {asked}, and not as a server of Outrider does: is the address right?"
        )
    code, message = str(told["code"]), str(told.get("detail") or told.get("title") or "")
    kind = class_of(code, status)
    if kind is ServerDiffers:
        return ServerDiffers(f"the server at {place} does not know {asked}: it is of another version ({message})")
    if kind is ServerFailed and told.get("request_id"):
        message = f"{message} (request {told['request_id']}, in the log of {place})"
    return made(kind, message, told.get("details"), code)


def class_of(code: str, status: int = 500) -> type[OutriderError]:
    """The class of a code; of one that is not known, that of its status."""
    known = table().get(code) or _BESIDE.get(code)
    if known is not None:
        return known
    if code.endswith("_not_found"):
        return NotFound
    if code.startswith("unknown_"):
        return UnknownName
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status >= 500:
        return ServerFailed
    return OutriderError if status in (401, 403, 429) else Refused


@cache
def table() -> dict[str, type[OutriderError]]:
    """Each code of the tree, and its class."""
    found: dict[str, type[OutriderError]] = {}
    for each in vars(errors).values():
        if isinstance(each, type) and issubclass(each, OutriderError):
            found[each.code] = each
    return found


def made(kind: type[OutriderError], message: str, details: Any, code: str) -> OutriderError:
    """An error of a class, also of one whose constructor wants more: what that is, is in the details if anywhere."""
    error = kind.__new__(kind, message)
    OutriderError.__init__(error, message, details=details, code=None if code == kind.code else code)
    said = details if isinstance(details, dict) else {}
    for name, default in (("kind", "exception"), ("retryable", False), ("retry_after", 0.0)):
        if name in kind.__init__.__code__.co_varnames:
            setattr(error, name, said.get(name, default))
    return error


def _problem(media_type: str, body: bytes) -> dict[str, Any] | None:
    if media_type.partition(";")[0].strip().lower() != MEDIA_TYPE:
        return None
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return told if isinstance(told, dict) and "code" in told else None
