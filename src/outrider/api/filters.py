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
from pydantic import BaseModel, Field, create_model

from outrider.api.forms import Flag, Form, Moment, Whole
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
    "created_after": "Tasks made at this moment or after it.",
    "created_before": "Tasks made before this moment.",
    "text": "Tasks that have all these words; of the last one the beginning will do.",
    "after": "The cursor `next` of the page before.",
    "limit": "How many items the page may have.",
    "newest_first": "Newest first, or oldest first.",
}
LONGEST = 512


def _parameter(field: DataclassField[Any], *, in_query: bool) -> tuple[Any, Any]:
    """The type and the default of a field's parameter."""
    told = DESCRIPTIONS.get(field.name, "")
    match field.name:
        case "states":
            return list[State], Field(default_factory=list, description=told)
        case "labels":
            kind: Any = list[str] if in_query else dict[str, str]
            return kind, Field(default_factory=kind, description=told)
        case "limit":
            whole = int if in_query else Whole
            return whole, Field(default=100, ge=1, le=PAGE, description=told)
    kind = str
    for written, meant in (("bool", bool if in_query else Flag), ("Instant", Moment), ("int", int), ("float", float)):
        if written in str(field.type):
            kind = meant
            break
    default = None if field.default is MISSING else field.default
    longest = LONGEST if kind is str else None
    return (kind | None if default is None else kind), Field(default=default, description=told, max_length=longest)


def _named(field: DataclassField[Any]) -> str:
    return NAMES.get(field.name, field.name)


_QUERY: dict[str, Any] = {_named(field): _parameter(field, in_query=True) for field in fields(TaskFilter)}
_FORM: dict[str, Any] = {field.name: _parameter(field, in_query=False) for field in fields(TaskFilter)}
TaskQuery: Any = create_model("TaskQuery", **_QUERY)
"""The parameters of a list of tasks."""

FilterForm: Any = create_model("FilterForm", __base__=Form, __doc__="Which tasks are meant.", **_FORM)
"""The same in the body of a request."""

Filtering = Annotated[TaskQuery, Query()]


def filter_of(asked: BaseModel, **given: Any) -> TaskFilter:
    """The filter that a query or a form asks for, with what is `given`. Raises InvalidArguments."""
    said: dict[str, Any] = {}
    for field in fields(TaskFilter):
        name = field.name if isinstance(asked, FilterForm) else _named(field)
        value = getattr(asked, name)
        if name not in asked.model_fields_set or value is None:
            continue
        if field.name == "states":
            value = tuple(value)
        elif isinstance(value, list):
            value = labels_of(value)
        elif isinstance(value, datetime):
            value = instant(value)
        said[field.name] = value
    for name, value in given.items():
        if said.setdefault(name, value) != value:
            raise InvalidArguments(f"{name} is said twice, and not the same")
    return TaskFilter(**said)


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
