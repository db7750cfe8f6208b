"""The kind `external`: a task that somebody else's program does. Ours keeps the record and runs nothing.

Spec: any object; its `name` says whom it is for, so that a program claims only its own. See `runtime.external`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from outrider.core.errors import InvalidArguments
from outrider.core.task import EXTERNAL, Timeouts
from outrider.core.values import JSONObject
from outrider.runtime.clock import span
from outrider.runtime.codec import jsonable
from outrider.runtime.context import TaskContext
from outrider.runtime.external import route_of
from outrider.runtime.registry import CheckedSpec
from outrider.settings import EXTERNAL_LEASE

KIND = EXTERNAL


class External:
    """Takes such tasks in, and serves none."""

    kind = KIND

    def routes(self) -> Iterable[str]:
        """None: no worker runs them."""
        return ()

    def check(self, spec: JSONObject) -> CheckedSpec:
        """Check that the spec is JSON, and its name one."""
        name = spec.get("name")
        try:
            plain = jsonable(dict(spec))
        except TypeError as error:
            raise InvalidArguments(f"an external task's spec is JSON: {error}") from None
        return CheckedSpec(plain, route_of(name), str(name or KIND), timeouts=Timeouts(idle=span(EXTERNAL_LEASE)))

    async def prepare(self) -> None:
        """Nothing has to be ready before."""

    async def run(self, task: TaskContext) -> Any:
        """Never called."""
        raise AssertionError("no worker claims an external task")
