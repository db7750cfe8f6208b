"""Frozen values and the one way to change them: a copy with some fields replaced.

`dataclasses.replace` walks the field table on every call; a transition copies several values, so
`evolve` keeps a getter per class instead. Both give the same copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Any, TypeAlias, TypeVar

JSON: TypeAlias = Any
"""What `json.loads` can return: None, bool, int, float, str, list or dict of the same."""

JSONObject: TypeAlias = Mapping[str, Any]

Instant: TypeAlias = int
"""A moment: microseconds since the Unix epoch, UTC, by the store's clock."""

Span: TypeAlias = int
"""A length of time in microseconds."""

SECOND: Span = 1_000_000

V = TypeVar("V")


def evolve(value: V, **changes: Any) -> V:
    """Return a copy of a dataclass instance with some fields replaced.

    Raises TypeError for a field that the class does not have.
    """
    kind = type(value)
    getter, places = _layout(kind)
    row = list(getter(value))
    for name, new in changes.items():
        try:
            row[places[name]] = new
        except KeyError:
            raise TypeError(f"{kind.__name__} has no field {name!r}") from None
    return kind(*row)


def difference(before: object, after: object) -> dict[str, Any]:
    """Return the fields of `after` that differ from `before`, by name. Both are of one class."""
    if before is after:
        return {}
    getter, places = _layout(type(after))
    old, new = getter(before), getter(after)
    if old == new:
        return {}
    return {
        name: new[place] for name, place in places.items() if old[place] is not new[place] and old[place] != new[place]
    }


_LAYOUTS: dict[type, tuple[attrgetter[tuple[Any, ...]], dict[str, int]]] = {}


def _layout(kind: type) -> tuple[attrgetter[tuple[Any, ...]], dict[str, int]]:
    layout = _LAYOUTS.get(kind)
    if layout is None:
        layout = _LAYOUTS[kind] = _read_layout(kind)
    return layout


def _read_layout(kind: type) -> tuple[attrgetter[tuple[Any, ...]], dict[str, int]]:
    names = [field.name for field in fields(kind)]
    if len(names) < 2:
        raise TypeError(f"{kind.__name__} needs two fields or more to be evolved")
    return attrgetter(*names), {name: place for place, name in enumerate(names)}
