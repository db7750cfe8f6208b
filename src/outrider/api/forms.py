"""What the bodies of requests are made of: strict, so that what is misspelt or of another type is refused, not guessed.

A body says nothing twice and leaves nothing unsaid: a field that is not known is an error with its name.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, Strict

Whole = Annotated[int, Strict()]
Flag = Annotated[bool, Strict()]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Seconds = Annotated[Number, Field(ge=0, description="Seconds.")]
Labels = dict[str, str]
Object = dict[str, Any]
Anything = Any
"""Any JSON."""


def _as_text(value: Any) -> Any:
    if isinstance(value, str | datetime):
        return value
    raise ValueError("a moment is text, such as 2030-01-31T12:00:00Z")


Moment = Annotated[AwareDatetime, BeforeValidator(_as_text, json_schema_input_type=datetime)]


class Form(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Deleted(Form):
    """What was deleted."""

    tasks: int = Field(description="How many tasks went.")


class Changed(Form):
    """Whether anything was changed; false where it was so already."""

    changed: bool
