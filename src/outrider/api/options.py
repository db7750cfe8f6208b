"""How a task is to be treated, as the body of a request says it: the fields of `TaskOptions`, one for one."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated

from pydantic import Field

from outrider.api.forms import Budget, Flag, Form, Id, Labels, Moment, Name, Object, Seconds, Whole
from outrider.core.task import ChildPolicy, WakePolicy
from outrider.runtime.options import DEFAULT_OPTIONS, MOST_FAILURES, MOST_PRIORITY, TaskOptions

Priority = Annotated[Whole, Field(ge=-MOST_PRIORITY, le=MOST_PRIORITY, description="Higher goes first.")]


class OptionsForm(Form):
    """How a task is to be treated, apart from what it does."""

    id: Id | None = Field(default=None, description="An id of your own; the same one gives the same task.")
    idempotency_key: Name | None = Field(
        default=None, description="The same key in a session gives the same task; also the header Idempotency-Key."
    )
    name: str | None = Field(default=None, description="What it is called in lists.")
    labels: Labels = Field(default_factory=dict)
    origin: Object = Field(default_factory=dict, description="Where it comes from: copied to later events.")
    wake: WakePolicy = Field(default="silent", description="When its session is told.")
    priority: Priority = 0
    concurrency_key: Name | None = Field(default=None, description="The limit under which it runs.")
    needs: str | None = Field(default=None, description="Only a worker that states this label runs it.")
    debounce_key: Name | None = Field(default=None, description="Until it starts, the next with this key replaces it.")
    debounce_max: Seconds | None = Field(default=None, description="And puts it off no further than this, in seconds.")
    delay: Seconds | None = Field(default=None, description="Not before so many seconds have passed.")
    start_at: Moment | None = Field(default=None, description="Not before this moment.")
    depends_on: tuple[str, ...] = Field(default=(), description="Not before these tasks have succeeded.")
    run_if_dependency_fails: Flag = False
    max_failures: Annotated[Whole, Field(ge=1, le=MOST_FAILURES)] | None = None
    backoff: Seconds | None = Field(default=None, description="Seconds before the second attempt, at most.")
    backoff_max: Seconds | None = Field(default=None, description="Seconds before any, at most.")
    queue_timeout: Seconds | None = Field(default=None, description="Seconds from due to the first start.")
    run_timeout: Seconds | None = Field(default=None, description="Seconds over one attempt.")
    idle_timeout: Seconds | None = Field(default=None, description="Seconds since the last sign of life.")
    total_timeout: Seconds | None = Field(default=None, description="Seconds from creation to the end.")
    cancel_grace: Seconds | None = Field(default=None, description="Seconds to stop in, once it is canceled.")
    detached: Flag = False
    on_open_children: ChildPolicy = "wait"
    headless: Flag = Field(default=False, description="Nobody is there to be asked.")
    result_schema: Object | None = Field(default=None, description="A JSON Schema that its result has to fit.")
    message_schema: Object | None = Field(default=None, description="A JSON Schema that messages to it have to fit.")
    retry_of: str | None = Field(default=None, description="The task that this one does again.")
    budget: Budget | None = Field(default=None, description="What an agent's model calls may take.")
    webhooks: list[str | Object] = Field(
        default=[],
        description="Who is told of this task alone: URLs, or objects with url, events, secret, description.",
        max_length=10,
    )

    def options(self, **given: object) -> TaskOptions:
        """The options, with what is `given` in place of what the form says."""
        said = {name: getattr(self, name) for name in self.model_fields_set & _NAMES}
        said.update(given)
        if isinstance(said.get("budget"), Budget):
            said["budget"] = said["budget"].model_dump(exclude_none=True)
        return TaskOptions(**said) if said else DEFAULT_OPTIONS


_NAMES = frozenset(field.name for field in fields(TaskOptions))
