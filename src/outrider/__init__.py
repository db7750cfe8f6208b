"""Outrider: durable background tasks for AI agents.

Importing this package loads neither pydantic nor an agent engine nor a database driver; each comes with the module
that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outrider.bootstrap import Outrider as Outrider
    from outrider.client import Client as Client
    from outrider.core.errors import Failure as Failure
    from outrider.core.errors import OutriderError as OutriderError
    from outrider.core.errors import TaskCanceled as TaskCanceled
    from outrider.core.errors import TaskFailed as TaskFailed
    from outrider.core.errors import WaitTimeout as WaitTimeout
    from outrider.core.task import State as State
    from outrider.runtime.context import SyncTaskContext as SyncTaskContext
    from outrider.runtime.context import TaskContext as TaskContext
    from outrider.runtime.facade import Runtime as Runtime
    from outrider.runtime.handles import SessionHandle as SessionHandle
    from outrider.runtime.handles import TaskHandle as TaskHandle
    from outrider.runtime.options import TaskOptions as TaskOptions
    from outrider.runtime.records import TaskRecord as TaskRecord
    from outrider.settings import WorkerSettings as WorkerSettings

__version__ = "0.1.0"

_HOMES = {
    "Client": "outrider.client",
    "Failure": "outrider.core.errors",
    "Outrider": "outrider.bootstrap",
    "OutriderError": "outrider.core.errors",
    "Runtime": "outrider.runtime.facade",
    "SessionHandle": "outrider.runtime.handles",
    "State": "outrider.core.task",
    "SyncTaskContext": "outrider.runtime.context",
    "TaskCanceled": "outrider.core.errors",
    "TaskContext": "outrider.runtime.context",
    "TaskFailed": "outrider.core.errors",
    "TaskHandle": "outrider.runtime.handles",
    "TaskOptions": "outrider.runtime.options",
    "TaskRecord": "outrider.runtime.records",
    "WaitTimeout": "outrider.core.errors",
    "WorkerSettings": "outrider.settings",
}

__all__ = [*_HOMES]  # noqa: PLE0604 - the names are the keys, so that there is one list


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'outrider' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value
