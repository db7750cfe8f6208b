r"""Where the command line writes: results and records to stdout, how it goes and what went wrong to stderr.

What tasks print and are called comes from anywhere. Names, labels and other single values are always escaped to one
line. Text that a task made (its output, its result, its messages) is escaped on a terminal, where only newline and
tab pass, and untouched when stdout goes elsewhere: `outrider output ID > file` gives the bytes that were printed.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

import orjson

from outrider.core.errors import OutriderError
from outrider.core.values import JSON

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

# What nobody sees and what turns the direction of writing: with it, two names that differ look alike. The joiner and
# non-joiner (U+200D, U+200C) pass, since emoji and the writing of Persian need them; of flags, those spelled in tags
# (England, Scotland, Wales) do not, for tags can spell anything.
_HIDDEN = (
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U0001d173-\U0001d17a"
    "\U000e0000-\U000e007f"
)
# C0 and C1 controls, line and paragraph separators, lone surrogates, and what is hidden.
_CONTROL = f"\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff{_HIDDEN}"
_IN_LINE = re.compile(f"[{_CONTROL}]")
_IN_CELLS = re.compile(f"(?!\t)[{_CONTROL}]")
_IN_TEXT = re.compile(f"(?![\n\t])[{_CONTROL}]")
_IN_JSON = re.compile(f"[\x7f-\x9f\u2028\u2029{_HIDDEN}]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def on_one_line(text: object) -> str:
    """A value as harmless text without line breaks."""
    return _IN_LINE.sub(_escape, str(text))


def harmless(text: str) -> str:
    """Text of several lines in which no character can steer a terminal."""
    return _IN_TEXT.sub(_escape, text.replace("\r\n", "\n"))


def json_text(value: Any, *, indent: bool = False) -> str:
    """A value as JSON in which no character can steer a terminal, and which means the same to a parser."""
    option = orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z | (orjson.OPT_INDENT_2 if indent else 0)
    return _IN_JSON.sub(_escape_in_json, orjson.dumps(value, str, option).decode())


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    number = ord(character)
    form = f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
    return _SHORT.get(character) or form


def _escape_in_json(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be").hex()  # of two, where one does not hold it
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def told(details: JSON, longest: int = 2000) -> str:
    """What comes with a question, to stand on lines of its own below it; empty if nothing does."""
    if details is None:
        return ""
    text = json_text(details, indent=True)
    if len(text) > longest:
        text = f"{text[:longest]}\n… cut here, of {len(text):,} characters; outrider show --json has all"
    return "".join(f"\n  {line}" for line in text.split("\n"))


def cannot_write(error: OSError) -> OutriderError:
    """What to say when the output has nowhere to go: the disk is full, or there is no such place."""
    return OutriderError(f"stdout cannot be written: {error.strerror}", code="output_failed")


def _nowhere() -> IO[str]:
    """In place of a stream that was closed before the program began."""
    return open(os.devnull, "w")


class Screen:
    """The two streams of one command."""

    def __init__(self, *, as_json: bool = False, out: IO[str] | None = None, err: IO[str] | None = None) -> None:
        self.as_json = as_json
        self.out = out or sys.stdout or _nowhere()
        self.err = err or sys.stderr or _nowhere()
        for stream in (self.out, self.err):
            if reconfigure := getattr(stream, "reconfigure", None):
                reconfigure(errors="backslashreplace")
        self.is_terminal = self.out.isatty()
        self.is_talking = self.err.isatty()
        """Whether a person sees stderr."""
        self.logs_json = False
        """Whether what is said on stderr is entries of a log in JSON."""

    @property
    def can_ask(self) -> bool:
        """Whether a person can be asked: sees stderr, and types into stdin."""
        return self.is_talking and sys.stdin is not None and sys.stdin.isatty()

    def record(self, record: BaseModel, **beside: Any) -> None:
        """A record as one line of JSON, with what belongs beside it."""
        self.data({**record.model_dump(mode="json"), **beside})

    def data(self, value: Any) -> None:
        """A value as one line of JSON. Escapes in it keep a terminal safe and change nothing for a parser."""
        self._write(json_text(value) + "\n")

    def line(self, text: str) -> None:
        """One line on stdout, which whatever is in the text leaves harmless and one line."""
        self._write(_IN_CELLS.sub(_escape, text) + "\n")

    def text(self, text: str) -> None:
        """What a task made, on stdout: as it is, unless a terminal shows it."""
        self._write(harmless(text) if self.is_terminal else text)

    def _write(self, text: str) -> None:
        try:
            self.out.write(text)
            self.out.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            if error.errno == errno.EIO:  # the terminal was closed
                raise
            raise cannot_write(error) from error

    def note(self, text: str) -> None:
        """One line on stderr about how it goes; not with --json, where nobody reads it."""
        if not self.as_json:
            self.aside(self._entry("info", text) if self.logs_json else harmless(text) + "\n")

    def _entry(self, level: str, text: str) -> str:
        from outrider.cli.logs import entry

        return entry(level, text) + "\n"

    def stamped(self, text: str) -> None:
        """A note with the time of the day, which an entry of a log has anyway."""
        self.note(text if self.logs_json else f"{time.strftime('%H:%M:%S')} {text}")

    def aside(self, text: str) -> None:
        """Text on stderr as it is. If nobody is there any more to read it, so be it: the work matters more."""
        with suppress(OSError):
            self.err.write(text)
            self.err.flush()

    def hint(self, text: str) -> None:
        """A line on stderr that helps a person, and only a person."""
        if self.is_talking:
            self.note(text)

    def error(self, error: OutriderError) -> None:
        """What went wrong, on stderr: for people, or as one JSON object."""
        if self.as_json:
            problem = {"code": error.code, "message": error.message, "details": error.details}
            self.aside(json_text({"error": problem}) + "\n")
        elif self.logs_json:
            self.aside(self._entry("error", error.message))
        else:
            name = "outrider:"
            if self.is_talking and not os.environ.get("NO_COLOR"):
                name = "\x1b[1;31moutrider:\x1b[0m"
            self.aside(f"{name} {harmless(error.message)}\n")

    def hang_up(self) -> None:
        """The terminal is gone: whatever is still written to it goes nowhere, and raises nothing."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream, is_gone in ((self.out, self.is_terminal), (self.err, self.is_talking)):
            if is_gone:
                os.dup2(nowhere, stream.fileno())
        os.close(nowhere)

    def console(self, *, of_errors: bool = False) -> Console:
        """A rich console on one of the streams; markup, emoji and highlighting are for authors, not for data."""
        from rich.console import Console

        return Console(file=self.err if of_errors else self.out, markup=False, emoji=False, highlight=False)
