"""The kind `background_tool`: a registered function, run with a `TaskContext`.

Spec: `{"tool": name, "arguments": {...}}`. Coroutine functions run on the worker's loop, plain ones in a thread,
and those with `isolation="process"` in a process of their own.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable
from functools import partial
from typing import Any

from outrider.core.errors import InvalidArguments
from outrider.core.values import JSONObject
from outrider.runtime.codec import jsonable
from outrider.runtime.context import SyncTaskContext, TaskContext, in_thread
from outrider.runtime.registry import CheckedSpec, Registry, Tool

KIND = "background_tool"


class BackgroundTool:
    """Runs registered tools."""

    kind = KIND

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def routes(self) -> Iterable[str]:
        """One route for each tool."""
        return [f"{KIND}:{name}" for name in self._registry.tools]

    def check(self, spec: JSONObject) -> CheckedSpec:
        """Check that the tool is known and takes these arguments."""
        name, arguments = spec.get("tool"), spec.get("arguments", {})
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise InvalidArguments("a background_tool's spec is {'tool': name, 'arguments': {...}}")
        tool = self._registry.tool(name)
        try:
            plain = _plain(arguments)
        except TypeError as error:
            raise InvalidArguments(f"{name}: {error}") from None
        tool.arguments.check(plain)
        if tool.isolation == "process":
            from outrider.runtime.isolation import check_importable

            check_importable(tool.fn)
        return CheckedSpec(
            {"tool": name, "arguments": plain},
            f"{KIND}:{name}",
            name,
            tool.retry,
            tool.timeouts,
            tool.result,
            tool.concurrency_key,
            tool.needs,
            tool.connections,
        )

    async def prepare(self) -> None:
        """Nothing has to be ready before."""

    async def run(self, task: TaskContext) -> Any:
        """Run the tool to its end."""
        tool = self._registry.tool(task.spec["tool"])
        arguments = tool.arguments.check(task.spec["arguments"])
        await task.connect(tool.connections)
        if tool.effects == "once":
            return await task.step(tool.name, partial(call_tool, task, tool, arguments), effects="once")
        return await call_tool(task, tool, arguments)


async def call_tool(task: TaskContext, tool: Tool, arguments: JSONObject) -> Any:
    """Call a tool's function in the way that suits it."""
    if tool.isolation == "process":
        from outrider.runtime.isolation import run_isolated

        return await run_isolated(task, tool, arguments)
    if tool.is_async:
        return await (tool.fn(task, **arguments) if tool.takes_context else tool.fn(**arguments))
    context = SyncTaskContext(task, asyncio.get_running_loop())
    call = partial(tool.fn, context, **arguments) if tool.takes_context else partial(tool.fn, **arguments)
    value = await in_thread(task._attempt, call)
    return await value if inspect.isawaitable(value) else value


_SCALARS = (str, int, float, bool, type(None))


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as JSON; most are already."""
    if all(type(value) in _SCALARS for value in arguments.values()):
        return arguments
    plain: dict[str, Any] = jsonable(arguments)
    return plain
