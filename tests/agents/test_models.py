"""Where a model's name, address and settings are read from, and which of them wins."""

from __future__ import annotations

import sys
from subprocess import run

import pytest

from outrider.agents.engine import load_engine
from outrider.agents.models import ModelChoice, choose
from outrider.core.errors import InvalidArguments, UnknownName

URL = "http://127.0.0.1:1/v1"


def test_a_name_is_the_engines_own_unless_an_address_says_otherwise():
    plain = choose("anthropic:claude", {"temperature": 0}, environ={"OPENAI_BASE_URL": URL})
    assert plain == ModelChoice("anthropic:claude", settings={"temperature": 0})
    assert plain.compatible_name is None
    assert choose("openai:gpt", environ={}).compatible_name is None


@pytest.mark.parametrize(
    ("model", "settings", "environ", "name"),
    [
        ("openai:tiny", {}, {"OPENAI_BASE_URL": URL}, "tiny"),
        ("openai-chat:tiny", {"base_url": URL}, {}, "tiny"),
        ({"model": "tiny", "base_url": URL}, {}, {}, "tiny"),
        ({"model": "hf.co/org/tiny:Q4", "base_url": URL}, {"base_url": "http://elsewhere"}, {}, "hf.co/org/tiny:Q4"),
    ],
)
def test_an_address_means_an_openai_compatible_server(model, settings, environ, name):
    choice = choose(model, settings, environ=environ)
    assert (choice.base_url, choice.compatible_name) == (URL, name)
    assert choice.settings == {}


def test_a_script_is_scripted_whatever_the_address():
    choice = choose({"model": "scripted", "script": [{"text": "hi"}], "base_url": URL})
    assert choice.is_scripted
    assert choice.compatible_name is None
    assert choice.script == [{"text": "hi"}]


@pytest.mark.parametrize(
    "model", ["", {}, {"model": 3}, {"model": "x", "base_url": 3}, {"model": "x", "key_variable": 1}]
)
def test_what_names_no_model_is_refused(model):
    with pytest.raises(InvalidArguments):
        choose(model)


def test_an_unknown_engine_is_refused_with_the_names_that_are_known():
    with pytest.raises(UnknownName, match="pydantic-ai") as raised:
        load_engine("nope")
    assert raised.value.code == "unknown_engine"


def test_the_seam_the_scripts_and_the_choice_of_a_model_import_no_engine():
    code = (
        "import sys, outrider.agents.engine, outrider.agents.models, outrider.agents.scripted;"
        "sys.exit(any(name.partition('.')[0] in ('pydantic_ai', 'openai') for name in sys.modules))"
    )
    assert run([sys.executable, "-c", code], check=False).returncode == 0
