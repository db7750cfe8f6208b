"""JSON Schema at the edges of a task: what an answer must fit, and a result.

A schema may come from anybody, a model too. It is read as it stands: what it refers to elsewhere is not fetched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from functools import cache, lru_cache
from typing import Any

import orjson

from outrider.core.errors import InvalidSchema
from outrider.core.values import JSON, JSONObject


def check_schema(schema: JSONObject) -> None:
    """Raise InvalidSchema if a value is no object that is a JSON Schema (draft 2020-12) and stands for itself."""
    if not isinstance(schema, Mapping):  # True and False are schemas, too, and no record has room for them
        raise InvalidSchema(f"a JSON Schema is an object, not {schema!r:.100}")
    text = _text_of(schema)
    if text is None:
        raise InvalidSchema(f"a JSON Schema is JSON, and this is not: {schema!r:.100}")
    _check_text(text)


@lru_cache(maxsize=512)
def _check_text(text: bytes) -> None:
    """What was found sound is not looked at again: many tasks ask the same, and a look costs a millisecond."""
    _check(orjson.loads(text))


def _check(schema: JSONObject) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise InvalidSchema(f"not a JSON Schema: {error.message} at {_place(error.absolute_path)}") from None
    problem = _outside(schema) or _missing(schema)
    if problem is not None:
        raise InvalidSchema(problem)


def can_be_nested(schema: JSONObject) -> bool:
    """Whether a schema means the same within another one that has its `$defs`: it refers to nothing but those."""
    return all(each.startswith("#/$defs/") for each in references_in(schema)) and not any(
        word in part for part in parts_of(schema) for word in ("$id", "$anchor", "$dynamicAnchor")
    )


def mismatch(value: JSON, schema: JSONObject | None) -> str | None:
    """Return why a value does not fit a schema, None when it fits or there is no schema."""
    if schema is None:
        return None
    from jsonschema.exceptions import best_match
    from referencing.exceptions import Unresolvable

    text = _text_of(schema)
    validator = _validator(schema) if text is None else _validator_of(text)
    try:
        error = best_match(validator.iter_errors(value))
    except Unresolvable as missing:
        return f"its schema refers to {missing.ref!r}, which it does not contain"
    except RecursionError:
        return "its schema refers to itself without end"
    return None if error is None else _fault(error)


def _fault(error: Any) -> str:
    """An error in words. Where a value fits no form of several: what is wrong by the only one of its type, else what
    the forms are, if that is soon said.
    """
    from jsonschema.exceptions import best_match

    while error.validator in ("anyOf", "oneOf") and error.context:
        faults: dict[int, list[Any]] = {}
        for each in error.context:
            faults.setdefault(each.relative_schema_path[0], []).append(each)
        near = [form for form in faults.values() if not any(map(_is_of_another_type, form))]
        if len(near) != 1:
            forms = [_form(each) for each in error.validator_value]
            if any(form is None for form in forms):
                break
            wanted = ", or ".join(form for form in forms if form is not None)
            return f"{error.instance!r:.100} is not what is taken: {wanted} (at {_place(error.absolute_path)})"
        error = best_match(near[0])
    return f"{error.message} (at {_place(error.absolute_path)})"


def _is_of_another_type(error: Any) -> bool:
    return error.validator == "type" and not error.relative_path


def _form(schema: JSON) -> str | None:
    """What a schema takes, in few words; None where there are none."""
    match schema:
        case {"type": "boolean"}:
            return "yes or no (true or false)"
        case {"type": "object", "required": [*required], "properties": Mapping() as fields} if required:
            others = [name for name in fields if name not in required]
            named = " and ".join(f"`{name}`" for name in required)
            more = f" and any of {', '.join(f'`{name}`' for name in others)}" if others else ""
            return f"an object with {named}{more}"
    return None


@lru_cache(maxsize=512)
def _validator_of(text: bytes) -> Any:
    return _validator(orjson.loads(text))


def _validator(schema: JSONObject) -> Any:
    from jsonschema import Draft202012Validator
    from referencing import Registry

    return Draft202012Validator(schema, registry=Registry(), format_checker=_formats())


def _text_of(schema: JSONObject) -> bytes | None:
    """A schema in one form, to know it again; None for what is no JSON."""
    try:
        return orjson.dumps(schema, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return None


def _outside(schema: JSONObject) -> str | None:
    """Why a schema cannot be used as it stands: it refers to another one."""
    for reference in references_in(schema):
        if not reference.startswith("#"):
            return f"a schema stands for itself; this one refers to {reference!r}"
    return None


def _missing(schema: JSONObject) -> str | None:
    """Why a schema cannot be used: it refers to a part of it that is not there."""
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    if any("$id" in part for part in parts_of(schema)):
        return None  # what a reference means depends on where it stands; it is found out with the first value
    resource = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver = Registry().with_resource("", resource).resolver()
    for reference in references_in(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable:
            return f"a schema stands for itself; this one refers to {reference!r}, which it does not contain"
    return None


def references_in(schema: JSON) -> Iterator[str]:
    """All that a schema refers to."""
    for part in parts_of(schema):
        for word in ("$ref", "$dynamicRef"):
            if isinstance(reference := part.get(word), str):
                yield reference


def parts_of(schema: JSON) -> Iterator[JSONObject]:
    """A schema and all schemas within it."""
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            yield part
            left.extend(inner for word, inner in part.items() if word not in _VALUES)
        elif isinstance(part, list | tuple):
            left.extend(part)


_VALUES = frozenset({"const", "default", "enum", "examples"})
"""Words of a schema whose values are data, not schemas."""


@cache
def _formats() -> Any:
    from jsonschema import FormatChecker

    checker = FormatChecker()
    for name, read in (
        ("date-time", datetime.fromisoformat),
        ("date", date.fromisoformat),
        ("time", time.fromisoformat),
    ):
        checker.checks(name, raises=ValueError)(
            lambda value, read=read: not isinstance(value, str) or read(value) is not None
        )
    return checker


def _place(path: Any) -> str:
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
