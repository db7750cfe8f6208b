"""`MODULE:APP`: finding the app whose tools are meant. Modules are looked for in the current directory first."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import TypeVar

from outrider.bootstrap import Outrider
from outrider.cli.arguments import environment
from outrider.core.errors import InvalidArguments

T = TypeVar("T")


def names_of(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """The apps that were named, else those of OUTRIDER_APP."""
    named = [given] if isinstance(given, str) else list(given or ())
    named = named or (environment("OUTRIDER_APP") or "").split(",")
    return tuple(dict.fromkeys(name.strip() for name in named if name.strip()))


def load_apps(names: Sequence[str]) -> Outrider:
    """One app with the tools, agents and kinds of all of these, and the settings of the first; an empty one for none.

    Raises InvalidArguments when one cannot be found or two of them use a name for different things.
    """
    apps = [load_app(name) for name in names]
    if len(apps) == 1:
        return apps[0]
    together = Outrider(
        apps[0].settings if apps else None,
        processes=all("process" in app.registry.executors for app in apps),
        version=", ".join(dict.fromkeys(app.registry.version for app in apps if app.registry.version)),
    )
    built_in = {*together.registry.executors, "process"}
    for name, app in zip(names, apps, strict=True):
        mine, theirs = together.registry, app.registry
        _take(name, "tool", mine.tools, theirs.tools)
        _take(name, "agent", mine.agents, theirs.agents)
        _take(
            name,
            "kind",
            mine.executors,
            {kind: executor for kind, executor in theirs.executors.items() if kind not in built_in},
        )
    return together


def load_app(name: str) -> Outrider:
    """The app that `MODULE:APP` names, or makes, where APP is a function. APP is `app` when left out."""
    module_name, _, attribute = name.partition(":")
    attribute = attribute or "app"
    try:
        here = os.getcwd()
    except FileNotFoundError:
        raise InvalidArguments("the current directory was deleted; go to one that exists") from None
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: object = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _broken(module_name, error) from error
        path = module_name.endswith(".py") or "/" in module_name
        advice = "; write MODULE:APP, not a path" if path else f"; it is looked for in {here} and on PYTHONPATH"
        raise InvalidArguments(f"there is no module {error.name!r}{advice}", details={"app": name}) from error
    except Exception as error:
        raise _broken(module_name, error) from error
    others = [other for other, value in vars(found).items() if isinstance(value, Outrider)]
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if callable(found) and not isinstance(found, Outrider):
        try:
            found = found()
        except Exception as error:
            raise _broken(f"{module_name}:{attribute}", error) from error
    if not isinstance(found, Outrider):
        advice = f"; it has {', '.join(f'{module_name}:{other}' for other in others)}" if others else ""
        what = f"{attribute!r} of the module {module_name!r} is no Outrider()" + advice
        raise InvalidArguments(what, details={"app": name})
    return found


def _broken(module: str, error: Exception) -> InvalidArguments:
    frames = traceback.extract_tb(error.__traceback__)
    place = next((frame for frame in reversed(frames) if not frame.filename.startswith("<frozen")), None)
    where = f" ({place.filename}:{place.lineno})" if place else ""
    return InvalidArguments(f"{module!r} cannot be used: {type(error).__name__}: {error}{where}")


def _take(name: str, noun: str, mine: dict[str, T], theirs: dict[str, T]) -> None:
    for key, value in theirs.items():
        if mine.setdefault(key, value) is not value:
            raise InvalidArguments(f"{name} has a {noun} named {key!r}, and so has another app of this worker")
