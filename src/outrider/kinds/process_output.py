"""From what a command prints to what its task has printed: bytes to text, lines to progress, and where it stands.

A state is all that is needed to go on after it: the offset in the task's output, the place in the spool, and what
was read and not printed yet. Text is a function of the spool alone, so a state that fits the stored output is exact.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from outrider.kinds.process_run import Piece, Place
from outrider.runtime.attempt import CUT
from outrider.runtime.log import log

State: TypeAlias = dict[str, Any]

STREAMS = {1: "stdout", 2: "stderr"}
LONGEST_MARK = 4096
"""Characters of a line that may be a mark."""
_MARK = re.compile(r"::(progress|detail|artifact) (.+)")
_PROGRESS = re.compile(r"(\d+(?:\.\d+)?)(%|/(\d+(?:\.\d+)?))?(?:\s+(.*))?")


@dataclass(frozen=True, slots=True)
class Printed:
    """Some output: the texts by stream, the marks in it, and the states before and after."""

    before: State
    after: State
    texts: Sequence[tuple[str, str]] = ()
    marks: Sequence[tuple[str, str]] = ()
    size: int = 0
    """Bytes of the texts."""


class Reading:
    """Where somebody stands who reads a run's output and prints it into its task."""

    def __init__(self, state: State) -> None:
        self._offset: int = state["offset"]
        self.place = Place(state["frames"], state["bytes"])
        self._decoders = {number: codecs.getincrementaldecoder("utf-8")("replace") for number in STREAMS}
        for number, rest in state["rest"].items():
            self._decoders[int(number)].setstate((bytes.fromhex(rest), 0))
        self._lines: dict[int, str | None] = {int(number): line for number, line in state["lines"].items()}

    @classmethod
    def after(cls, stored: int, noted: Sequence[tuple[int, Sequence[State]]]) -> Reading:
        """Where the task's output of `stored` bytes ends. `noted` is what attempts left, the newest first.

        The newest that left something began at what was stored then, and nobody else has printed since.
        """
        states = [state for _, states in noted for state in states]
        for state in states:
            if state["offset"] == stored:
                return cls(state)
        begun: State = {"offset": 0, "frames": 0, "bytes": 0, "rest": {}, "lines": {1: "", 2: ""}}
        if states:
            log.warning("some output of a command may come twice", stored=stored, noted=states[0]["offset"])
        nearest = max((each for each in states if each["offset"] < stored), key=_offset, default=begun)
        return cls({**nearest, "offset": stored})

    def state(self) -> State:
        """All that is needed to go on from here."""
        rest = {number: decoder.getstate()[0].hex() for number, decoder in self._decoders.items()}
        return {
            "offset": self._offset,
            "frames": self.place.frames,
            "bytes": self.place.bytes,
            "rest": rest,
            "lines": dict(self._lines),
        }

    def take(self, pieces: Sequence[Piece]) -> Printed:
        """Go on over some pieces of the spool."""
        return self._over([(piece.stream, piece.text, piece.lost) for piece in pieces], pieces[-1].after, is_end=False)

    def finish(self) -> Printed:
        """The command has ended, and all pieces were taken: what is left of characters and lines counts."""
        return self._over([(number, b"", 0) for number in STREAMS], self.place, is_end=True)

    def _over(self, pieces: Sequence[tuple[int, bytes, int]], place: Place, *, is_end: bool) -> Printed:
        before = self.state()
        texts: list[tuple[str, list[str]]] = []
        marks: list[tuple[str, str]] = []
        for number, raw, lost in pieces:
            text = self._decoders[number].decode(raw, is_end)
            if lost:
                text = CUT.format(count=lost) + text
            marks.extend(self._marks(number, text + "\n" if is_end else text))
            if not text:
                continue
            if not texts or texts[-1][0] != STREAMS[number]:
                texts.append((STREAMS[number], []))
            texts[-1][1].append(text)
        joined = [(stream, "".join(parts)) for stream, parts in texts]
        size = sum(len(text.encode()) for _, text in joined)
        self._offset += size
        self.place = place
        return Printed(before, self.state(), joined, marks, size)

    def _marks(self, number: int, text: str) -> list[tuple[str, str]]:
        """The marks in whole lines. Of an unfinished line only the beginning of what may be one is kept."""
        found = []
        *whole, rest = text.split("\n")
        begun = self._lines[number]
        for line in whole:
            begun = "" if begun is None else begun + line
            if begun.startswith("::") and (match := _MARK.fullmatch(begun.rstrip("\r"))):
                found.append((match[1], match[2].strip()))
            begun = ""
        if begun is not None:
            begun += rest
            if not begun.startswith("::"[: len(begun)]) or len(begun) > LONGEST_MARK:
                begun = None
        self._lines[number] = begun
        return found


def _offset(state: State) -> int:
    return int(state["offset"])


def marked_progress(text: str) -> tuple[float, float | None, str | None] | None:
    """What `3/10 label`, `40% label` or `3 label` says: current, total, label. None for anything else."""
    match = _PROGRESS.fullmatch(text)
    if match is None:
        return None
    current = float(match[1])
    total = 100.0 if match[2] == "%" else None if match[3] is None else float(match[3])
    if not math.isfinite(current) or (total is not None and not math.isfinite(total)):
        return None
    return current, total, match[4] or None
