"""Which model a task names, before any engine is asked: a string, or a string with an address and settings.

`PROVIDER:NAME` is the engine's own naming. A base URL, from the choice or from OPENAI_BASE_URL, means a server that
speaks OpenAI's chat completions. Keys are never in a choice: only the name of the variable that holds one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from outrider.core.errors import InvalidArguments
from outrider.core.values import JSON, JSONObject

BASE_URL_VARIABLE = "OPENAI_BASE_URL"
KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model, where it is served, and what it is asked with.

    `script` is the description of a scripted model (`scripted.from_json`); `settings` are the engine's.
    """

    name: str
    base_url: str | None = None
    key_variable: str = KEY_VARIABLE
    script: JSON = None
    settings: Mapping[str, JSON] = field(default_factory=dict)

    @property
    def provider(self) -> str | None:
        """What stands before the first colon."""
        provider, colon, _ = self.name.partition(":")
        return provider if colon else None

    @property
    def is_scripted(self) -> bool:
        """Whether a script answers, and no model."""
        return self.name == "scripted" or self.provider == "scripted"

    @property
    def is_local(self) -> bool:
        """Whether the small model of this machine answers, which Outrider serves itself."""
        return self.base_url is None and (self.name == "local" or self.provider == "local")

    @property
    def compatible_name(self) -> str | None:
        """The name to ask an OpenAI-compatible server for, or None when the engine finds the provider itself."""
        if self.base_url is None or self.is_scripted:
            return None
        if self.provider in ("openai", "openai-chat"):
            return self.name.partition(":")[2]
        return self.name


def chain(model: str | JSONObject | Sequence[str | JSONObject] | None) -> tuple[str | JSONObject, ...]:
    """The models that a spec names, the one to be asked first first. Raises InvalidArguments for an empty list."""
    if model is None:
        return ()
    if isinstance(model, str | Mapping) or not isinstance(model, Sequence):
        return (model,)
    if not model:
        raise InvalidArguments("model is a model, or a list with one at least")
    return tuple(model)


def choose(
    model: str | JSONObject, settings: JSONObject | None = None, *, environ: Mapping[str, str] | None = None
) -> ModelChoice:
    """Read a model out of a task's spec.

    `model` is a name, or an object of `model` and any of `base_url`, `key_variable` and `script`, beside settings of
    the engine; the same keys are read from `settings`, where they weigh less. Raises InvalidArguments.
    """
    merged: dict[str, JSON] = dict(settings or {})
    name: JSON = None
    if isinstance(model, str):
        name = model
    elif isinstance(model, Mapping):
        merged.update(model)
        name = merged.pop("model", None)
    if not isinstance(name, str) or not name:
        raise InvalidArguments(f"a model is a name, or an object with a name under 'model', not {model!r:.100}")
    base_url = merged.pop("base_url", None)
    if base_url is None and name.partition(":")[0] in ("openai", "openai-chat"):
        base_url = (os.environ if environ is None else environ).get(BASE_URL_VARIABLE) or None
    key_variable = merged.pop("key_variable", KEY_VARIABLE)
    if base_url == "" or not isinstance(base_url, str | None) or not isinstance(key_variable, str):
        raise InvalidArguments("base_url and key_variable are strings", details={"model": name})
    return ModelChoice(name, base_url, key_variable, merged.pop("script", None), merged)
