"""Errors that a task's code handled, kept in its journal so that a resumed task meets them again.

An error is told by its type, arguments and attributes as far as JSON holds them, and raised again from these. The
type is looked up among the modules that are loaded; nothing is imported or run for it. One that cannot be made
again comes back as a `Failure`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from outrider.core.errors import Failure
from outrider.core.values import JSON
from outrider.runtime.codec import decode, encode, jsonable

LONGEST = 2048


def tell(error: Exception) -> bytes:
    """Return an error as encoded JSON."""
    kind = type(error)
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - somebody else's `__str__`
        message = kind.__name__
    arguments = [_plain(argument) for argument in error.args]
    return encode(
        {
            "type": f"{kind.__module__}:{kind.__qualname__}",
            "message": message.encode("utf-8", "replace").decode()[:LONGEST],
            "args": None if _NOTHING in arguments else arguments,
            "attributes": {
                name: plain for name, value in vars(error).items() if (plain := _plain(value)) is not _NOTHING
            },
        }
    )


def revive(told: bytes) -> Exception:
    """Return an error that says and is what the told one was."""
    record = decode(told)
    kind = _find(record["type"])
    if kind is not None and record["args"] is not None:
        try:
            error: Exception = kind.__new__(kind, *record["args"])
            error.args = tuple(record["args"])
            vars(error).update(record["attributes"])
        except Exception:  # noqa: BLE001 - a type with ways of its own to be made
            return _as_failure(record)
        return error
    return _as_failure(record)


_NOTHING = object()


def _plain(value: object) -> JSON:
    try:
        encoded = encode(value)
    except TypeError:
        return _NOTHING
    return decode(encoded) if len(encoded) <= LONGEST else _NOTHING


def _find(name: str) -> type[Exception] | None:
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _as_failure(record: Mapping[str, Any]) -> Failure:
    return Failure(record["message"], retryable=True, details=jsonable({"type": record["type"]}))
