"""`outrider demo`: see `outrider.demo`, which does the showing, on a loop of its own."""

from __future__ import annotations

from argparse import Namespace

from outrider.cli.terminal import Screen


def demo(arguments: Namespace, screen: Screen) -> int:
    """Show what Outrider does on real files."""
    from outrider.demo.show import run

    return run(arguments.path, arguments.model, as_json=screen.as_json)
