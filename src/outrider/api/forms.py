"""What the bodies of requests are made of: strict, so that what is misspelt or of another type is refused, not guessed.

A body says nothing twice and leaves nothing unsaid: a field that is not known is an error with its name.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, Strict

NAME = 512
PLAIN = r"^[A-Za-z0-9][A-Za-z0-9_.:@+-]{0,127}$"

Whole = Annotated[int, Strict()]
Flag = Annotated[bool, Strict()]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Seconds = Annotated[Number, Field(ge=0, description="Seconds.")]
Count = Annotated[Whole, Field(ge=0, le=(1 << 63) - 1)]
Amount = Annotated[Number, Field(ge=0, le=1e12)]
Labels = dict[str, str]
Object = dict[str, Any]
Id = Annotated[str, Field(pattern=PLAIN)]
"""An id that a caller chooses."""
Name = Annotated[str, Field(min_length=1, max_length=NAME)]
Anything = Any
"""Any JSON."""


def _as_text(value: Any) -> Any:
    """A moment as RFC 3339 writes it: pydantic takes a number too, also in quotes, for seconds since 1970."""
    if isinstance(value, datetime) or (isinstance(value, str) and _DATED.match(value)):
        return value
    raise ValueError("a moment is text, such as 2030-01-31T12:00:00Z")


_DATED = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]")


Moment = Annotated[AwareDatetime, BeforeValidator(_as_text, json_schema_input_type=datetime)]


class Form(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Budget(Form):
    """What may be spent at most: one of these, or more."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    tokens: Count | None = None
    cost: Amount | None = Field(default=None, description="Dollars.")
    requests: Count | None = None
    iterations: Count | None = None
    seconds: Amount | None = Field(default=None, description="From the first model call on.")
    soft: Annotated[Number, Field(gt=0, le=1)] | None = Field(
        default=None, description="The share after which its session is told; never the only one."
    )


class Deleted(Form):
    """What was deleted."""

    tasks: int = Field(description="How many tasks went.")


class Changed(Form):
    """Whether anything was changed; false where it was so already."""

    changed: bool
