"""The labels that workers state and tasks need: the words for where a task may run, beyond what it is.

They are not the `labels` of a task, which say what it is about and send it nowhere. A task needs one at most: whoever
needs two things at once gives the pair a name, and states it where both are there.
"""

from __future__ import annotations

import re

from outrider.core.errors import InvalidArguments

LABEL = "label:"
"""What a worker states that begins so is a label, and no route."""

NO_LABEL = "none"
"""What a worker states that runs tasks which need no label, beside those which need one of its own."""

MOST_LABEL = 63
_LABEL = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._/=-]{{0,{MOST_LABEL - 1}}}")


def check_label(what: str, label: object) -> None:
    """Raise InvalidArguments for what no worker can state: a label is one word, and not the one for having none."""
    if not isinstance(label, str) or not _LABEL.fullmatch(label) or label == NO_LABEL:
        raise InvalidArguments(
            f"{what}: a label is 1 to {MOST_LABEL} letters, digits and . _ / = - that begin with a letter or digit, "
            f"and not {NO_LABEL!r}, not {label!r:.100}"
        )
