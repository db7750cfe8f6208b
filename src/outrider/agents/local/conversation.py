"""A conversation in the form that the server of the `local` model takes, cut so that it fits its context.

What was cut is marked, so that neither the model nor who reads its transcript takes a part for the whole.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

Role: TypeAlias = Literal["system", "user", "assistant"]

LEAST = 160
"""Characters that are left of what is cut."""
PER_LINE = 8
"""Tokens that the server's template adds to each line."""


@dataclass(frozen=True, slots=True)
class Line:
    """One message; `spare` is for what may be cut first: the results of tools."""

    role: Role
    text: str
    spare: bool = False


def as_messages(lines: Sequence[Line]) -> list[dict[str, str]]:
    """Return the lines as the server takes them, with neighbours of one role in one message."""
    messages: list[dict[str, str]] = []
    for line in lines:
        if messages and messages[-1]["role"] == line.role:
            messages[-1]["content"] += f"\n\n{line.text}"
        else:
            messages.append({"role": line.role, "content": line.text})
    return messages


async def fit(lines: Sequence[Line], tokens: int, count: Callable[[str], Awaitable[int]]) -> list[Line]:
    """Return the lines, cut so that they fit into `tokens`.

    First results of tools are cut, the longest first; then the middle of the conversation is dropped, the oldest
    first; then whatever is longest is cut. The first line, the second and the last stay.
    """
    fitting = list(lines)
    dropped = 0
    while await count(_whole(fitting)) + PER_LINE * len(fitting) > tokens:
        spare = [nth for nth, line in enumerate(fitting) if line.spare and len(line.text) > 2 * LEAST]
        if not spare and len(fitting) > 4:
            dropped += 1
            del fitting[2:4]
            continue
        longest = max(spare or range(len(fitting)), key=lambda nth: len(fitting[nth].text))
        if len(fitting[longest].text) <= LEAST:
            break
        fitting[longest] = replace(fitting[longest], text=_cut(fitting[longest].text))
    if dropped:
        fitting.insert(2, Line("user", "[earlier turns were left out]"))
    return fitting


def _cut(text: str) -> str:
    """Return about half of a text, with a mark where the rest was."""
    body, _, _ = text.partition(MARK)
    kept = max(LEAST // 2, len(body) // 2)
    return f"{body[:kept].rstrip()}{MARK}]"


MARK = "\n[… the rest was left out"


def _whole(lines: Sequence[Line]) -> str:
    return "\n".join(line.text for line in lines)
