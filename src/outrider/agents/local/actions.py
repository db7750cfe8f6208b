"""What a small model may do in one turn, as a JSON Schema that its server holds it to, and what it did, read back.

The server knows no tools, so an action is one JSON object: `{"call": TOOL, "arguments": {…}}`, `{"answer": RESULT}`
where a result of a given shape is wanted, or `{"say": TEXT}`. Texts and lists get a bound where the schema has none:
a small model finds no end by itself, and an action that was cut is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic_core import from_json

from outrider.core.values import JSON, JSONObject

TEXT_BOUND = 600
"""Characters."""
LIST_BOUND = 8

CALL = "call"
ARGUMENTS = "arguments"
ANSWER = "answer"
SAY = "say"


@dataclass(frozen=True, slots=True)
class Offer:
    """A tool as the model is told of it."""

    name: str
    description: str
    parameters: JSONObject

    @property
    def takes_arguments(self) -> bool:
        """Whether one call of it may differ from another."""
        return (
            bool(self.parameters.get("properties")) or self.parameters.get("additionalProperties", False) is not False
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """What the model may do in this turn: call one of these tools, give a result of this shape, say something."""

    tools: tuple[Offer, ...] = ()
    answer: JSONObject | None = None
    say: bool = True
    is_plain: bool = False
    """Whether its text is taken as it is: for a conversation in which there never is anything but words."""


@dataclass(frozen=True, slots=True)
class Said:
    """Text, perhaps cut."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """A call; `arguments` is the model's own text where it was cut, which fits no schema."""

    tool: str
    arguments: dict[str, JSON] | str


@dataclass(frozen=True, slots=True)
class Answered:
    """A result; text where it was cut."""

    result: JSON


Action: TypeAlias = Said | Called | Answered


def schema_of(choice: Choice, *, loose: bool = False, bound: int = TEXT_BOUND) -> JSONObject | None:
    """Return the schema of an action, None for a plain choice.

    `loose` leaves the shape of arguments and result open, for a schema that the server cannot follow; `bound` is the
    most that a text may be long.
    """
    if choice.is_plain:
        return None
    shared: dict[str, Any] = {}
    branches: list[JSONObject] = []
    for nth, tool in enumerate(choice.tools):
        arguments: JSONObject = {"type": "object"} if loose else _bounded(tool.parameters, f"tool{nth}.", shared, bound)
        branches.append(_object({CALL: {"const": tool.name}, ARGUMENTS: arguments}))
    if choice.answer is not None:
        branches.append(_object({ANSWER: {} if loose else _bounded(choice.answer, "answer.", shared, bound)}))
    if choice.say:
        branches.append(_object({SAY: {"type": "string", "minLength": 1, "maxLength": bound}}))
    schema: dict[str, Any] = dict(branches[0]) if len(branches) == 1 else {"anyOf": branches}
    return {**schema, "$defs": shared} if shared else schema


def read(text: str, choice: Choice) -> Action:
    """Return the action that a model's text is."""
    if choice.is_plain:
        return Said(text.strip())
    partial = _partial(text)
    is_whole = _is_whole(text)
    name = partial.get(CALL)
    if isinstance(name, str) and any(tool.name == name for tool in choice.tools):
        arguments = partial.get(ARGUMENTS)
        return Called(name, arguments if is_whole and isinstance(arguments, dict) else text)
    if ANSWER in partial:
        return Answered(partial[ANSWER] if is_whole else text)
    said = partial.get(SAY)
    return Said(said.strip() if isinstance(said, str) else text.strip())


def said_so_far(text: str, choice: Choice) -> str:
    """Return what an unfinished action says, as far as it is there."""
    if choice.is_plain:
        return text
    said = _partial(text).get(SAY)
    return said if isinstance(said, str) else ""


def told(action: Action) -> str:
    """Return an action as the model wrote it, for its own history."""
    match action:
        case Said(text):
            return _json({SAY: text})
        case Called(tool, arguments):
            return _json({CALL: tool, ARGUMENTS: arguments})
        case Answered(result):
            return _json({ANSWER: result})


def rules(choice: Choice) -> str:
    """Return what the model is told of its choice."""
    if choice.is_plain:
        return ""
    lines = ["Reply with one JSON object, one action at a time."]
    if choice.tools:
        lines.append('To use a tool: {"call": NAME, "arguments": {...}}. The tools:')
        lines += [f"- {_signature(tool)}: {' '.join(tool.description.split())}" for tool in choice.tools]
    if choice.answer is not None:
        lines.append(f'To give the result, in this shape: {{"answer": {_json(choice.answer)}}}')
    if choice.say:
        lines.append('To answer in words: {"say": TEXT}')
    return "\n".join(lines)


def _object(properties: Mapping[str, JSON]) -> JSONObject:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _bounded(schema: JSON, prefix: str, shared: dict[str, Any], bound: int) -> Any:
    """Copy a schema, with its definitions moved to `shared`, and a bound on every text and list that has none."""
    if isinstance(schema, list):
        return [_bounded(each, prefix, shared, bound) for each in schema]
    if not isinstance(schema, dict):
        return schema
    copied: dict[str, Any] = {}
    for key, value in schema.items():
        match key:
            case "$defs":
                for name, definition in value.items():
                    shared[prefix + name] = _bounded(definition, prefix, shared, bound)
            case "$ref" if isinstance(value, str):
                copied[key] = value.replace("#/$defs/", f"#/$defs/{prefix}", 1)
            case "properties":
                copied[key] = {name: _bounded(each, prefix, shared, bound) for name, each in value.items()}
            case "const" | "enum" | "default" | "examples":
                copied[key] = value
            case _:
                copied[key] = _bounded(value, prefix, shared, bound)
    kind = schema.get("type")
    if kind == "string" and not schema.keys() & {"enum", "const"}:
        _bind(copied, "minLength", "maxLength", bound)
    elif kind == "array":
        _bind(copied, "minItems", "maxItems", LIST_BOUND)
    elif kind == "object" and "properties" in schema:
        copied.setdefault("additionalProperties", False)
    return copied


def _bind(schema: dict[str, Any], least: str, most: str, bound: int) -> None:
    """Bound a length. The server never comes back from a schema whose least is above its most."""
    lower, upper = schema.get(least, 0), min(schema.get(most, bound), bound)
    if lower > upper:
        del schema[least]  # the tool says so, or whoever checks the result
    schema[most] = upper


def _signature(tool: Offer) -> str:
    properties: Mapping[str, JSON] = tool.parameters.get("properties", {})
    needed: Sequence[str] = tool.parameters.get("required", ())
    return f"{tool.name}({', '.join(_parameter(name, each, name in needed) for name, each in properties.items())})"


def _parameter(name: str, schema: JSON, needed: bool) -> str:
    kind = schema.get("type") if isinstance(schema, dict) else None
    simple = isinstance(kind, str) and kind not in ("object", "array") and "enum" not in schema
    return f"{name}{'' if needed else '?'}: {kind if simple else _json(schema)}"


def _partial(text: str) -> dict[str, Any]:
    try:
        found = from_json(text, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_whole(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _json(value: JSON) -> str:
    return json.dumps(value, ensure_ascii=False)
