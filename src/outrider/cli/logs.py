"""Where the log goes: to stderr, one harmless line an entry."""

from __future__ import annotations

import logging
import sys

from outrider.cli.terminal import harmless


class _ToStderr(logging.Handler):
    """Looks stderr up each time: a live display puts itself in its place while it shows."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(harmless(self.format(record)) + "\n")
            sys.stderr.flush()
        except OSError:
            self.handleError(record)


def show_log(level: str) -> None:
    """Log from this level on."""
    handler = _ToStderr()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("outrider")
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
