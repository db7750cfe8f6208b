"""`--log-format` and OUTRIDER_LOG_FORMAT: one line an entry, which nothing that is logged can forge."""

import json
import logging
import sys

import pytest

from outrider.cli.logs import show_log
from tests.cli.harness import Cli

NASTY = "two\nlines\r\x1b[2J\u2028 {'event': 1} \ud800"


def test_json_is_one_object_a_line_with_the_fields_of_each_transition(cli: Cli):
    done = cli.ok("call", "add", "a=1", "--log-level=info", "--log-format=json")
    entries = [json.loads(line) for line in done.err.splitlines()]  # what the command itself says, too
    assert {each["logger"] for each in entries} == {"outrider", "outrider.cli"}
    moved = [each for each in entries if each["event"] == "task moved"]
    assert moved[-1]["to"] == "succeeded"
    for each in moved:
        assert {"time", "level", "logger", "event", "task", "session", "kind", "name", "by", "to"} <= set(each)
        assert each["time"].endswith("Z")


def test_all_that_a_worker_says_is_json_when_its_log_is(cli: Cli):
    cli.ok("call", "add", "a=1", "--background", "--idle-exit=0.1")
    done = cli.ok("worker", "--app", "example_app", "--idle-exit=0.1", "--log-format=json")
    events = [json.loads(line)["event"] for line in done.err.splitlines()]
    assert any("works on" in event for event in events)
    assert any("leaves" in event for event in events)
    refused = cli.run("show", "nothing", "--log-format=json")
    assert json.loads(refused.err)["level"] == "error"


def test_the_environment_sets_the_form_and_the_option_goes_before_it(cli: Cli):
    told = {"OUTRIDER_LOG_FORMAT": "json"}
    assert '"event": "task moved"' in cli.ok("call", "add", "a=1", "-v", **told).err
    assert '"event"' not in cli.ok("--log-format", "text", "call", "add", "a=1", "-v", **told).err
    refused = cli.run("tasks", OUTRIDER_LOG_FORMAT="yaml")
    assert (refused.code, "OUTRIDER_LOG_FORMAT" in refused.err) == (2, True)


def test_a_name_of_several_lines_does_not_make_another_line(cli: Cli):
    name = "a\n2030-01-01 00:00:00,000 INFO event='task moved' task='forged'"
    done = cli.ok("call", "add", "a=1", "-v", f"--name={name}", "--background", "--idle-exit=1")
    lines = [line for line in done.err.splitlines() if "event='task moved'" in line]
    assert lines
    assert not [line for line in done.err.splitlines() if line.startswith("2030")]


@pytest.fixture
def logger():
    logger = logging.getLogger("outrider")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield logger
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_value_and_no_traceback_leaves_its_line(
    form: str, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
):
    from outrider.runtime.log import log

    show_log("info", form)
    logger.info("plain %s", NASTY)
    log.warning(NASTY, task=NASTY, other={"of": NASTY})
    try:
        raise ValueError(NASTY)
    except ValueError:
        log.exception("it broke")
        logger.exception("it broke %s", "too")
    told = capsys.readouterr().err
    assert len(told.splitlines()) == told.count("\n") == 4
    assert not set(told.replace("\n", "")) & set("\r\x1b\u2028\ud800")
    if form == "json":
        plain, structured, broke, too = map(json.loads, told.splitlines())
        assert plain["event"] == f"plain {NASTY}"
        assert structured["task"] == NASTY
        assert (structured["level"], structured["logger"]) == ("warning", "outrider")
        assert "ValueError" in broke["exception"]
        assert "ValueError" in too["exception"]
    sys.stderr.flush()


def test_a_field_called_like_a_part_of_the_object_keeps_its_place_beside_it(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
):
    from outrider.runtime.log import log

    show_log("info", "json")
    log.warning("slow", level="hot", time=5, url="u")
    told = json.loads(capsys.readouterr().err)
    assert (told["level"], told["level_"], told["time_"], told["url"]) == ("warning", "hot", 5, "u")
