"""JSON Schema at the edges of a task: what an answer must fit, and a result."""

from __future__ import annotations

from typing import Any

from outrider.core.errors import InvalidSchema
from outrider.core.values import JSON, JSONObject


def check_schema(schema: JSONObject) -> None:
    """Raise InvalidSchema if a value is not a JSON Schema (draft 2020-12)."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise InvalidSchema(f"not a JSON Schema: {error.message} at {_place(error.absolute_path)}") from None


def mismatch(value: JSON, schema: JSONObject | None) -> str | None:
    """Return why a value does not fit a schema, None when it fits or there is no schema."""
    if schema is None:
        return None
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    error = best_match(Draft202012Validator(schema).iter_errors(value))
    return None if error is None else f"{error.message} (at {_place(error.absolute_path)})"


def _place(path: Any) -> str:
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
