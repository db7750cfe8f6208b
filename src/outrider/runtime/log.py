"""The log: structlog over the standard library's logger `outrider`, silent unless the program asks for it.

One line per committed transition, at level INFO. Programs configure `logging` as they always do; the command
line does it with `--log-level`. Each record has its fields as a mapping too, in `record.outrider`, for handlers that
write JSON. structlog is imported by the first line: a command that logs nothing starts 25 ms sooner.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

    from outrider.core.events import Event
    from outrider.core.task import Task

LOGGER = logging.getLogger("outrider")
LOGGER.addHandler(logging.NullHandler())


class _FirstUse:
    """Stands for the logger until somebody logs."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_logger(), name)


log = cast("BoundLogger", _FirstUse())


def log_move(before: Task | None, after: Task, event: Event | None) -> None:
    """Log a transition that was committed; neither `before` nor `event` where the task was made."""
    if not LOGGER.isEnabledFor(logging.INFO):
        return
    from outrider.runtime.telemetry import trace_id

    given, core = after.input, after.core
    fields: dict[str, Any] = {
        "task": after.id,
        "session": given.session_id,
        "organization": given.organization_id,
        "kind": given.kind,
        "name": given.display_name,
        "by": "Created" if event is None else type(event).__name__,
        "from": None if before is None else str(before.state),
        "to": str(core.state),
        "attempt": core.attempt,
        "version": core.version,
    }
    worker = core.worker_id or (None if before is None else before.core.worker_id)
    error = getattr(event, "error", None) or (after.outcome.error if after.is_terminal else None)
    more = {
        "worker": worker,
        "error": None if error is None else error.kind,
        "reason": getattr(event, "reason", None) if error is None else error.message,
        "trace": trace_id(after),
    }
    log.info("task moved", **fields, **{name: value for name, value in more.items() if value is not None})


@cache
def _logger() -> BoundLogger:
    import structlog

    logger: BoundLogger = structlog.wrap_logger(
        LOGGER,
        wrapper_class=_lenient(structlog.stdlib.BoundLogger),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.format_exc_info,
            _rendered,
        ],
    )
    return logger


def _lenient(kind: type[BoundLogger]) -> type[BoundLogger]:
    """A logger whose fields may be called anything: `event`, which structlog calls the text, is then `event_`."""

    def taking(name: str) -> Callable[..., Any]:
        tell = getattr(kind, name)

        @wraps(tell)
        def told(self: BoundLogger, /, *given: Any, **fields: Any) -> Any:
            if given:
                fields = {f"{each}_" if each in _TAKEN else each: value for each, value in fields.items()}
            return tell(self, *given, **fields)

        return told

    return type("Logger", (kind,), {name: taking(name) for name in _LEVELS})


_LEVELS = ("debug", "info", "warning", "warn", "error", "critical", "fatal", "exception")
_TAKEN = ("event", "method_name", "self")
"""What structlog's own parameters are called."""


def _rendered(_: object, __: str, fields: MutableMapping[str, Any]) -> tuple[tuple[str], dict[str, Any]]:
    """The text of a line, with its fields beside it. In the text each value is quoted, so none can pass for another."""
    text = " ".join(f"{name}={fields[name]!r}" for name in ("event", *(each for each in fields if each != "event")))
    return (text,), {"extra": {"outrider": dict(fields)}}
