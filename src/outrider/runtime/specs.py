"""The specs of agents and commands, of what a caller says. Pure: a handle over HTTP makes the same of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from outrider.core.task import Effects
from outrider.core.values import JSONObject
from outrider.runtime.options import TaskOptions, check_lists, is_whole


def agent_spec(
    prompt: str,
    *,
    model: str | JSONObject | Sequence[str | JSONObject] | None,
    system_prompt: str | None,
    agent: str | None,
    tools: Sequence[str],
    max_iterations: int | None,
    require_approval: bool | Sequence[str],
    seed: Literal["fresh", "fork", "files"],
) -> dict[str, Any]:
    """What a task of kind `subagent` takes; what was left at its default is left out."""
    check_lists(tools=tools)
    given = {
        "prompt": prompt,
        "model": model,
        "system_prompt": system_prompt,
        "agent": agent,
        "tools": list(tools),
        "max_iterations": max_iterations,
        "require_approval": list(require_approval) if isinstance(require_approval, tuple) else require_approval,
        "seed": None if seed == "fresh" else seed,
    }
    return {name: value for name, value in given.items() if not (value is None or value is False or value == [])}


def process_spec(
    command: Sequence[str] | None,
    *,
    shell: str | None,
    cwd: str | os.PathLike[str] | None,
    env: Mapping[str, str] | None,
    clean_env: bool,
    stdin: str | None,
    cpu_limit: float | None,
    memory_limit: int | None,
    output_limit: int | None,
    keep_output: int | None,
    artifacts: Sequence[str],
    effects: Effects,
    success: Sequence[int],
    retry: bool | None,
    options: TaskOptions,
) -> dict[str, Any]:
    """What a task of kind `process` takes. A command that may fail more than once is run again."""
    if command is not None:
        check_lists(command=command)
    check_lists(artifacts=artifacts, success=success)
    limits = {"cpu": cpu_limit, "memory": memory_limit, "output": output_limit, "kept": keep_output}
    failures: Any = getattr(options, "max_failures", None)  # what is no TaskOptions is refused when it is used
    given = {
        "command": None if command is None else list(command),
        "shell": shell,
        "cwd": os.fspath(cwd) if isinstance(cwd, os.PathLike) else cwd,
        "env": env,
        "clean_env": clean_env,
        "stdin": stdin,
        "limits": {name: limit for name, limit in limits.items() if limit is not None} or None,
        "artifacts": list(artifacts) or None,
        "effects": effects,
        "success": list(success),
        "retry": (is_whole(failures) and failures > 1) if retry is None else retry,
    }
    return {name: value for name, value in given.items() if value is not None}
