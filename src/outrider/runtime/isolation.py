"""A tool in a process of its own: what it does to itself, it does to nobody else."""

from __future__ import annotations

from typing import Any

from outrider.core.values import JSONObject
from outrider.runtime.context import TaskContext
from outrider.runtime.registry import Tool


async def run_isolated(task: TaskContext, tool: Tool, arguments: JSONObject) -> Any:
    """Run a tool in a process of its own."""
    raise NotImplementedError
