"""The filters of `TaskFilter`, as parameters of a query and as the body of a request: made from its fields.

A field that is added there is a parameter here by itself. Some have another form in a query: `state` may be repeated,
and so may `label`, which is `NAME=VALUE`; moments are in the form of RFC 3339.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from dataclasses import Field as DataclassField
from datetime import datetime
from typing import Annotated, Any

from fastapi import Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, create_model

from outrider.api.paging import PAGE
from outrider.core.errors import InvalidArguments
from outrider.core.ledger import TaskFilter
from outrider.core.task import State
from outrider.runtime.clock import instant

NAMES = {"states": "state", "labels": "label"}
"""What a field is called in a query, where several are given one by one."""

DESCRIPTIONS = {
    "session_id": "Tasks of this session.",
    "root_session_id": "Tasks of the delegation tree below this session.",
    "parent_task_id": "Children of this task.",
    "organization_id": "Tasks of this organization.",
    "states": "Tasks in this state; may be repeated.",
    "kind": "Tasks of this kind.",
    "labels": "Tasks with this label, NAME=VALUE; may be repeated, and all count.",
    "after": "The cursor `next` of the page before.",
    "limit": "How many items the page may have.",
    "newest_first": "Newest first, or oldest first.",
}
LONGEST = 512


def _parameter(field: DataclassField[Any]) -> tuple[Any, Any]:
    """The type and the default of a field's parameter."""
    told = DESCRIPTIONS.get(field.name, "")
    match field.name:
        case "states":
            return list[State], Field(default=[], description=told)
        case "labels":
            return list[str], Field(default=[], description=told)
        case "limit":
            return int, Field(default=100, ge=1, le=PAGE, description=told)
    kind: Any = str
    for written, meant in (("bool", bool), ("Instant", AwareDatetime), ("int", int), ("float", float)):
        if written in str(field.type):
            kind = meant
            break
    default = None if field.default is MISSING else field.default
    longest = LONGEST if kind is str else None
    return (kind | None if default is None else kind), Field(default=default, description=told, max_length=longest)


_PARAMETERS: dict[str, Any] = {NAMES.get(field.name, field.name): _parameter(field) for field in fields(TaskFilter)}
TaskQuery: Any = create_model("TaskQuery", __config__=ConfigDict(extra="forbid"), **_PARAMETERS)
"""The parameters of a list of tasks."""

Filtering = Annotated[TaskQuery, Query()]


def filter_of(query: BaseModel, **given: Any) -> TaskFilter:
    """The filter that a query asks for, with what is `given`. Raises InvalidArguments."""
    asked: dict[str, Any] = {}
    for field in fields(TaskFilter):
        name = NAMES.get(field.name, field.name)
        value = getattr(query, name)
        if name not in query.model_fields_set or value is None:
            continue
        if field.name == "states":
            value = tuple(value)
        elif field.name == "labels":
            value = labels_of(value)
        elif isinstance(value, datetime):
            value = instant(value)
        asked[field.name] = value
    for name, value in given.items():
        if asked.setdefault(name, value) != value:
            raise InvalidArguments(f"{name} is said twice, and not the same")
    return TaskFilter(**asked)


def labels_of(given: list[str]) -> Mapping[str, str]:
    """The labels of `NAME=VALUE`s. Raises InvalidArguments."""
    labels: dict[str, str] = {}
    for each in given:
        name, mark, value = each.partition("=")
        if not mark or not name:
            raise InvalidArguments(f"a label is NAME=VALUE, not {each!r:.100}")
        if labels.setdefault(name, value) != value:
            raise InvalidArguments(f"no task has two values of the label {name!r:.100}")
    return labels
