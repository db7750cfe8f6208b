"""How a task in the foreground is shown on stderr: live on a terminal, a line for each change elsewhere.

With --json there is no display: whoever reads that wants the record, not the way to it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from outrider.cli.glance import STYLES, Glance, age_text, progress_text
from outrider.cli.terminal import Screen, harmless, on_one_line

if TYPE_CHECKING:
    from rich.console import RenderableType


class Display(Protocol):
    """What a task is shown on."""

    def show(self, glance: Glance) -> None:
        """The task stands so now."""
        ...

    def print(self, text: str) -> None:
        """The task has printed this."""
        ...

    def note(self, text: str) -> None:
        """Say something beside the task's own words."""
        ...

    def pause(self) -> None:
        """Leave the terminal to a question."""
        ...

    def resume(self) -> None:
        """Take it back."""
        ...

    def close(self) -> None:
        """The end: leave nothing live behind."""
        ...


def display_for(screen: Screen) -> Display:
    """The display that suits the screen."""
    if screen.as_json and not screen.can_ask:
        return Silence()
    return LiveDisplay(screen) if screen.is_talking else Lines(screen)


class Silence:
    """Shows nothing."""

    def show(self, glance: Glance) -> None:
        """Nothing."""

    def print(self, text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def pause(self) -> None:
        """Nothing."""

    def resume(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Lines(Silence):
    """A line for each change of state, question, progress or detail, and output as it comes."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._last = ""
        self._mid_line = False

    def show(self, glance: Glance) -> None:
        """A line, if it says something new."""
        news = "" if glance.state.is_terminal else glance.news
        said = "  ".join(filter(None, [glance.name, glance.standing, news]))
        if said != self._last:
            self._last = said
            self._begin_line()
            self._screen.stamped(said)

    def print(self, text: str) -> None:
        """The text as it is."""
        self._screen.aside(text)
        self._mid_line = not text.endswith("\n")

    def note(self, text: str) -> None:
        """A line of its own."""
        self._begin_line()
        self._screen.note(text)

    def close(self) -> None:
        """End the last line."""
        self._begin_line()

    def _begin_line(self) -> None:
        if self._mid_line:
            self._screen.aside("\n")
            self._mid_line = False


class LiveDisplay:
    """One live line below what the task prints. An unfinished line of output is part of what is live."""

    def __init__(self, screen: Screen) -> None:
        from rich.live import Live

        self._screen = screen
        self._console = screen.console(of_errors=True)
        self._glance: Glance | None = None
        self._tail = ""
        self._began = time.monotonic()
        self._live = Live(
            get_renderable=self._render,
            console=self._console,
            refresh_per_second=20,
            transient=True,
            redirect_stdout=False,
        )
        self._live.start()

    def show(self, glance: Glance) -> None:
        """Keep it; the next refresh shows it."""
        self._glance = glance

    def print(self, text: str) -> None:
        """Finished lines go above, the unfinished one is shown live."""
        from rich.text import Text

        lines = (self._tail + harmless(text)).split("\n")
        self._tail = lines.pop()
        if lines:
            self._console.print(Text("\n".join(lines)), soft_wrap=True)

    def note(self, text: str) -> None:
        """A line above."""
        from rich.text import Text

        self._end_line()
        self._console.print(Text(harmless(text), "yellow"), soft_wrap=True)

    def pause(self) -> None:
        """Stop refreshing."""
        self._end_line()
        self._live.stop()

    def resume(self) -> None:
        """Refresh again."""
        self._live.start()

    def close(self) -> None:
        """Take the live line away."""
        self._end_line()
        self._live.stop()

    def _end_line(self) -> None:
        from rich.text import Text

        if self._tail:
            tail, self._tail = self._tail, ""
            self._console.print(Text(tail), soft_wrap=True)

    def _render(self) -> RenderableType:
        from rich.console import Group

        status = status_line(self._glance, time.monotonic() - self._began)
        if not self._tail:
            return status
        from rich.text import Text

        return Group(Text(self._tail[-4 * self._console.width :]), status)


def status_line(glance: Glance | None, seconds: float) -> RenderableType:
    """A spinner, the name, the state, a bar, and the news."""
    from rich.progress_bar import ProgressBar
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 1))
    if glance is None:
        return row
    waits = not glance.state.is_terminal
    cells: list[RenderableType] = [
        Spinner("dots") if waits and glance.phase == "" else Text("·", "dim"),
        Text(glance.name, "bold"),
        Text(glance.standing, STYLES[glance.state]),
    ]
    progress = glance.progress
    if progress is not None and progress.total:
        cells.append(ProgressBar(total=progress.total, completed=min(progress.current, progress.total), width=24))
        cells.append(Text(on_one_line(progress_text(progress))))
    news = Text(glance.news, no_wrap=True, overflow="ellipsis")
    if glance.news and not (progress is not None and progress.total):
        cells.append(news)
    cells.append(Text(age_text(round(seconds * 1e6)), "dim"))
    for cell in cells:
        row.add_column(no_wrap=cell is not news, overflow="ellipsis")  # so that only the news gives way
    row.add_row(*cells)
    return row
