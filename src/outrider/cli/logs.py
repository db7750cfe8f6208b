"""Where the log goes: to stderr, one harmless line an entry, as text or as JSON."""

from __future__ import annotations

import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any

from outrider.cli.terminal import on_one_line


class _ToStderr(logging.Handler):
    """Looks stderr up each time: a live display puts itself in its place while it shows."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except OSError:
            self.handleError(record)


class _AsText(logging.Formatter):
    """No character of a value can begin another line, or steer a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return on_one_line(super().format(record))


class _AsJson(logging.Formatter):
    """One object: `time`, `level`, `logger`, `event`, and the fields of the entry; one called alike gets a `_`."""

    def format(self, record: logging.LogRecord) -> str:
        import json

        fields: dict[str, Any] = dict(getattr(record, "outrider", {"event": record.getMessage()}))
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        told = _head(record.created, record.levelname.lower(), record.name)
        # In ASCII, and so harmless whatever the values hold; a lone surrogate has no form in UTF-8.
        beside = {f"{name}_" if name in told else name: each for name, each in fields.items()}
        return json.dumps({**told, **beside}, default=str)


def _head(at: float, level: str, logger: str) -> dict[str, str]:
    moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return {"time": moment.replace("+00:00", "Z"), "level": level, "logger": logger}


def entry(level: str, event: str) -> str:
    """What the command line itself says, as an entry of the log in JSON."""
    import json

    return json.dumps({**_head(time.time(), level, "outrider.cli"), "event": event})


def show_log(level: str, form: str = "text") -> None:
    """Log from this level on, as `text` or `json`."""
    handler = _ToStderr()
    handler.setFormatter(_AsJson() if form == "json" else _AsText("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("outrider")
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
    # What code of tasks raises where nobody awaits it is told by the event loop, and may quote anybody.
    loop = logging.getLogger("asyncio")
    loop.addHandler(handler)
    loop.propagate = False
