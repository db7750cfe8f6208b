"""JSON in and out: what a tool returns and a step journals, with the types of its annotation.

`encode` takes plain values, dataclasses and pydantic models. `Shape` is the other half: it reads back what was
written as the type that was declared, so that a resumed task gets the same kind of value as the first time.
No pickle anywhere.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

import orjson

from outrider.core.errors import InvalidArguments, TooLarge
from outrider.core.values import JSON

_PLAIN = (None, type(None), Any, object, inspect.Parameter.empty, JSON)
TOO_WIDE = "a whole number in it has more than 64 bits, which readers of JSON would round; make it a text"
_WITHOUT_NAN = frozenset({str, int, bool, type(None)})
_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z


def encode(value: object) -> bytes:
    """Return a value as JSON. Raises TypeError for what has no form in JSON, NaN and infinities included."""
    try:
        encoded = orjson.dumps(value, _default, _OPTIONS)
    except TypeError as error:
        why = TOO_WIDE if "64-bit" in str(error) else error
        raise TypeError(f"{type(value).__name__} cannot be written as JSON: {why}") from None
    if b"null" in encoded and _has_nan(value):  # orjson writes NaN and infinities as null
        raise TypeError(f"{type(value).__name__} cannot be written as JSON: it has a NaN or an infinity in it")
    return encoded


def check_size(what: str, value: object, limit: int) -> bytes:
    """Return a value as JSON. Raises InvalidArguments if it has no such form, TooLarge if it is too long."""
    try:
        encoded = encode(value)
    except TypeError as error:
        raise InvalidArguments(f"{what} is not JSON: {error}") from None
    if len(encoded) > limit:
        raise TooLarge.of(what, len(encoded), limit)
    return encoded


def decode(encoded: bytes) -> JSON:
    """Return what `encode` wrote, as plain JSON values."""
    return orjson.loads(encoded)


def jsonable(value: object) -> JSON:
    """Return a value as plain JSON values."""
    return decode(encode(value))


def ordered(value: object) -> bytes:
    """Return a value as JSON with its names in order: the same bytes for the same JSON, and for no other."""
    return orjson.dumps(jsonable(value), option=orjson.OPT_SORT_KEYS)


def _default(value: object) -> object:
    dump = getattr(value, "model_dump", None)
    if dump is not None and not isinstance(value, type):
        return dump(mode="json")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, bytes):
        raise TypeError("bytes have no form in JSON; write them to a file of the session")
    from decimal import Decimal
    from pathlib import PurePath

    if isinstance(value, PurePath | Decimal):
        return str(value)
    raise TypeError(f"type {type(value).__name__} has no form in JSON")


def _has_nan(value: object) -> bool:
    """Whether a value that could be encoded has a NaN or an infinity anywhere in it."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return _is_nan_among(value.values()) or _is_nan_among(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return _is_nan_among(value)
    if isinstance(value, str | int | None):
        return False
    if is_dataclass(value) and not isinstance(value, type):
        return any(_has_nan(getattr(value, each.name)) for each in fields(value))
    dump = getattr(value, "model_dump", None)
    return dump is not None and not isinstance(value, type) and _has_nan(dump())


def _is_nan_among(values: Iterable[object]) -> bool:
    # Most values of most JSON are of these types, and need no call each.
    return any(_has_nan(each) for each in values if type(each) not in _WITHOUT_NAN)


class Shape:
    """The declared type of a value, to read JSON back as. Without a declaration, JSON as it is."""

    __slots__ = ("_adapter", "_annotation", "_schema")

    def __init__(self, annotation: Any = None) -> None:
        self._annotation = annotation
        self._adapter: Any = None
        self._schema: dict[str, JSON] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether any JSON will do."""
        return self._annotation in _PLAIN

    def is_as_read(self, value: object) -> bool:
        """Whether a value is what `read` would make of it, so that it need not be read."""
        if value is None or type(value) in (str, int, bool):
            return self.is_plain or self._annotation is type(value)
        return False

    def read(self, encoded: bytes) -> Any:
        """Return encoded JSON as the declared type. Raises ValueError with the reason when it does not fit."""
        value = orjson.loads(encoded)
        return value if self.is_plain else self._load().validate_python(value)

    def schema(self) -> dict[str, JSON]:
        """Return the JSON Schema of the declared type. It is not for changing: who asks again gets the same."""
        if self._schema is None:
            self._schema = {} if self.is_plain else typing.cast("dict[str, JSON]", self._load().json_schema())
        return self._schema

    def _load(self) -> Any:
        if self._adapter is None:
            from pydantic import TypeAdapter

            self._adapter = TypeAdapter(self._annotation)
        return self._adapter


PLAIN = Shape()


def shape_for(annotation: Any) -> Shape:
    """Return the shape of a type; the same one each time, for working out what a type takes costs a millisecond."""
    try:
        return _shape_for(annotation)
    except TypeError:  # not hashable
        return Shape(annotation)


@lru_cache(maxsize=512)
def _shape_for(annotation: Any) -> Shape:
    return Shape(annotation)


def shape_of(fn: Callable[..., object]) -> Shape:
    """Return the shape of what a function returns, by its annotation."""
    try:
        return _shape_of(fn)
    except TypeError:  # not hashable
        return PLAIN


@lru_cache(maxsize=4096)
def _shape_of(fn: Callable[..., object]) -> Shape:
    try:
        annotation = typing.get_type_hints(fn, include_extras=True).get("return")
    except Exception:  # noqa: BLE001 - a hint that cannot be resolved is no hint; the value stays plain JSON
        return PLAIN
    return Shape(annotation)
