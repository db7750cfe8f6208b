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


class Told(Exception):
    """An error of another process, as it was told there. Only that process can make it what it was."""

    def __init__(self, told: bytes) -> None:
        super().__init__(decode(told)["message"])
        self.told = told


def tell(error: Exception, longest: int = LONGEST) -> bytes:
    """Return an error as encoded JSON. What it holds of more than `longest` bytes is left out."""
    if isinstance(error, Told):
        return error.told
    kind = type(error)
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - somebody else's `__str__`
        message = kind.__name__
    arguments = [_plain(argument, longest) for argument in error.args]
    return encode(
        {
            "type": f"{kind.__module__}:{kind.__qualname__}",
            "message": message.encode("utf-8", "replace").decode()[:longest],
            "args": None if _NOTHING in arguments else arguments,
            "attributes": {
                name: None if (plain := _plain(value, longest)) is _NOTHING else plain
                for name, value in vars(error).items()
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


def _plain(value: object, longest: int) -> JSON:
    try:
        encoded = encode(value)
    except TypeError:
        return _NOTHING
    return decode(encoded) if len(encoded) <= longest else _NOTHING


def _find(name: str) -> type[Exception] | None:
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _as_failure(record: Mapping[str, Any]) -> Failure:
    return Failure(record["message"], retryable=True, details=jsonable({"type": record["type"]}))
