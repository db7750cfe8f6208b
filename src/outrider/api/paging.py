"""Pages: `{"items": [...], "next": cursor or null}`. A cursor is given back as it came, as the parameter it is for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel, Field

T = TypeVar("T")

PAGE = 1000
"""How many items a page has at most."""


class Page(BaseModel, Generic[T]):
    """A page of a list. `next` is the cursor of the page after it, null where this one is not full."""

    items: list[T]
    next: str | None = Field(default=None, description="Give it as `after` for the next page, which may be empty.")


Limit = Annotated[int, Query(ge=1, le=PAGE, description="How many items the page may have.")]
After = Annotated[str | None, Query(description="The cursor `next` of the page before.", max_length=512)]


def cursor_of(items: Sequence[T], limit: int, id_of: str = "id") -> str | None:
    """The cursor after a page: the id of its last item, None for a page that is not full."""
    return str(getattr(items[-1], id_of)) if len(items) == limit else None
