"""What an agent is told of what came in: the words for an entry of its inbox, and for a message.

Who speaks for a task is marked, and nobody else can use the mark: where it stands in a text of somebody else's, it is
broken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from outrider.core.ledger import InboxRow
from outrider.core.values import JSONObject
from outrider.runtime.codec import encode

WAKE = "task_wake"
BETWEEN = "\n\n"

_FACTS = ("state", "request_id", "message_id", "kind")


def told(row: InboxRow) -> str:
    """What an entry of an inbox says to an agent."""
    if row.reason == "user":
        return said(row.body["parts"])
    facts = "".join(f" {name}={value!r}" for name, value in row.body.items() if value is not None and name in _FACTS)
    words = [row.body[name] for name in ("summary", "prompt", "text") if row.body.get(name)]
    error = row.body.get("error")
    if error:
        words.append(f"{error['kind']}: {error['message']}")
    inner = "\n".join([*(unmarked(str(each)) for each in words), *map(_part, row.body.get("parts", ()))])
    return f'<{WAKE} task="{row.task_id}" reason="{row.reason}"{facts}>{inner}</{WAKE}>'


def said(parts: Iterable[JSONObject]) -> str:
    """What the parts of a message say to an agent."""
    return BETWEEN.join(_part(part) for part in parts)


def _part(part: JSONObject) -> str:
    match part.get("type"):
        case "text":
            return unmarked(str(part.get("text", "")))
        case _:
            return unmarked(encode(part).decode())


def unmarked(text: str) -> str:
    """A text that cannot be taken for a wake, not by a reader either who does not look at each letter.

    Nor together with a text before it that ends where a mark would begin.
    """
    return _MARK.sub("\\1\u200b\\2", text)


_MARK = re.compile(rf"((?:<|\A)[\s/]*)({WAKE})", re.IGNORECASE)
