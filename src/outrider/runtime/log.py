"""The log: structlog over the standard library's logger `outrider`, silent unless the program asks for it.

One line per committed transition, at level INFO. Programs configure `logging` as they always do; the command
line does it with `--log-level`. structlog is imported by the first line: a command that logs nothing starts
25 ms sooner.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

LOGGER = logging.getLogger("outrider")
LOGGER.addHandler(logging.NullHandler())


class _FirstUse:
    """Stands for the logger until somebody logs."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_logger(), name)


log = cast("BoundLogger", _FirstUse())


@cache
def _logger() -> BoundLogger:
    import structlog

    logger: BoundLogger = structlog.wrap_logger(
        LOGGER,
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event", "task"]),
        ],
    )
    return logger
