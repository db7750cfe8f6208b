"""The files of deploy/ as their tests read them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"
CONTAINERFILE: Final = DEPLOY / "Containerfile"
COMPOSE: Final = DEPLOY / "compose" / "compose.yaml"
KUBERNETES: Final = DEPLOY / "kubernetes"
UNIT: Final = DEPLOY / "systemd" / "outrider-worker.service"
ENVIRONMENT: Final = DEPLOY / "systemd" / "worker.env"


class _Strict(yaml.SafeLoader):
    """Takes no key twice, of which YAML's own loader silently keeps the last."""


def _mapping(loader: _Strict, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    twice = {key for key in keys if keys.count(key) > 1}
    assert not twice, f"{twice} twice{node.start_mark}"
    loader.flatten_mapping(node)
    return dict(loader.construct_pairs(node, deep=True))


_Strict.add_constructor("tag:yaml.org,2002:map", _mapping)


def documents(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    return list(yaml.load_all(path.read_text(), _Strict))


def compose() -> dict[str, Any]:
    """The compose file."""
    (found,) = documents(COMPOSE)
    return found


def manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every Kubernetes object, with the file that it is in."""
    for path in sorted(KUBERNETES.glob("*.yaml")):
        for document in documents(path):
            yield path.name, document


def manifest(kind: str) -> dict[str, Any]:
    """The only object of a kind."""
    (found,) = [document for _, document in manifests() if document["kind"] == kind]
    return found


def instructions(path: Path = CONTAINERFILE) -> list[tuple[str, str]]:
    """The instructions of a container file with their arguments, continued lines joined."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for line in lines if line.strip() for name, _, rest in [line.strip().partition(" ")]]


def unit(path: Path = UNIT) -> dict[str, dict[str, list[str]]]:
    """The settings of a unit by section; each may be given several times."""
    sections: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in path.read_text().splitlines():
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = header[1]
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            sections.setdefault(section, {}).setdefault(name, []).append(value)
    return sections


def variables(path: Path = ENVIRONMENT) -> dict[str, str]:
    """An environment file."""
    lines = [line.partition("=") for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {name.strip(): value.strip() for name, _, value in lines}


def outrider_commands(words: list[str]) -> Iterator[list[str]]:
    """The arguments of each `outrider` in a command; a shell's script is looked into."""
    if words[0] == "CMD-SHELL":
        words = ["sh", "-c", words[1].replace("$$", "$")]
    if words[:2] == ["sh", "-c"]:
        for part in re.split(r"\||&&|;", words[2]):
            yield from outrider_commands(shlex.split(part))
        return
    names = [Path(word).name for word in words]
    if "outrider" in names:
        yield words[names.index("outrider") + 1 :]


def seconds(text: str | int) -> float:
    """A length of time of the compose file or a unit."""
    found = re.fullmatch(r"(\d+)(s|min|m)?", str(text))
    assert found, text
    return int(found[1]) * (1 if found[2] in (None, "s") else 60)


def at(document: Mapping[str, Any], path: str) -> Any:
    """What stands at a path of names and numbers; None where nothing does."""
    found: Any = document
    for name in path.split("."):
        try:
            found = found[int(name)] if isinstance(found, list) else found.get(name)
        except (IndexError, AttributeError):
            return None
    return found
