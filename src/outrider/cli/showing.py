"""`outrider demo`: see `outrider.demo`, which does the showing, on a loop of its own."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from outrider.cli.exits import UsageError
from outrider.cli.terminal import Screen, on_one_line


def demo(arguments: Namespace, screen: Screen) -> int:
    """Show what Outrider does on real files."""
    if arguments.db is not None:
        raise UsageError("demo uses a database of its own; leave out --db")
    if not Path(arguments.path).is_dir():
        raise UsageError(f"{arguments.path!r} is not a folder")
    try:
        str(Path(arguments.path).resolve()).encode()
    except UnicodeEncodeError:
        raise UsageError(f"the path {arguments.path!r} is not UTF-8, so no journal can name what is in it") from None
    from outrider.demo.show import run

    return run(arguments.path, arguments.model, as_json=screen.as_json, clean=on_one_line)
