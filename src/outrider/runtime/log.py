"""The log: structlog over the standard library's logger `outrider`, silent unless the program asks for it.

One line per committed transition, at level INFO. Programs configure `logging` as they always do; the command
line does it with `--log-level` and `--log-format`.
"""

from __future__ import annotations

import logging

import structlog

LOGGER = logging.getLogger("outrider")
LOGGER.addHandler(logging.NullHandler())

log = structlog.wrap_logger(
    LOGGER,
    wrapper_class=structlog.stdlib.BoundLogger,
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.format_exc_info,
        structlog.processors.KeyValueRenderer(key_order=["event", "task"]),
    ],
)
