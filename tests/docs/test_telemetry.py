"""docs/telemetry.md names every span, attribute, instrument and field of the log, and nothing else."""

import ast
import inspect
import re
from pathlib import Path
from typing import get_args

from outrider.api import access_log
from outrider.core import events
from outrider.core.change import WakeReason
from outrider.core.task import Readiness
from outrider.runtime import log, telemetry

PAGE = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text()
SOURCE = inspect.getsource(telemetry)


def table(heading: str, nth: int = 0) -> list[list[str]]:
    """The cells of the nth table below a heading."""
    text = re.split(r"^#+ ", PAGE.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in tables[nth].splitlines()[2:]]


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([a-z_.]+)`", cell))


def said(pattern: str) -> set[str]:
    """The strings of the source that look like that."""
    found = [node.value for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.Constant)]
    return {text for text in found if isinstance(text, str) and re.fullmatch(pattern, text)}


def test_every_span_and_instrument_is_listed_and_every_listed_one_exists():
    spans = {name for row in table("Spans") for name in names(row[0]) if name.startswith("outrider.")}
    instruments = {name for row in table("Metrics") for name in names(row[0]) if name.startswith("outrider.")}
    assert instruments == set(re.findall(r'(?:create_\w+|durations|gauge)\(\s*"([a-z_.]+)"', SOURCE))
    assert spans == set(re.findall(r'start_span\(\s*"([a-z_.]+)"', SOURCE))


def test_every_attribute_is_listed_and_every_listed_one_exists():
    listed = {name for row in (*table("Spans", 1), *table("Metrics", 1)) for name in names(row[0])}
    measured = {name for row in table("Metrics") for name in names(row[2])}
    others = {name for row in (*table("Spans"), *table("Metrics")) for name in names(row[0])}
    assert measured <= listed
    conventional = {name for name in listed if name.startswith("gen_ai.")}
    assert conventional < said(r"gen_ai\.[a-z_.]+")
    assert listed - conventional == said(r"outrider\.[a-z]+\.[a-z.]+|error\.type") - (others - listed)


def test_every_ending_is_listed():
    rows = {name: row[2] for row in table("Spans", 1) for name in names(row[0])}
    endings = {*telemetry._ENDINGS.values(), "superseded"}
    assert names(rows["outrider.attempt.ending"]) == endings
    assert names(rows["outrider.step.ending"]) == {"succeeded", "failed", "left"}
    assert f"every {telemetry.COUNT_INTERVAL:g} seconds" in PAGE
    assert f"at most {telemetry.MOST_VALUES} values" in PAGE


def test_every_reason_hearer_and_readiness_is_listed():
    rows = {name: row[1] for row in table("Metrics", 1) for name in names(row[0])}
    assert names(rows["outrider.wake.reason"]) == set(get_args(WakeReason))
    assert names(rows["outrider.wake.hearer"]) == set(get_args(telemetry.Hearer))
    assert names(rows["outrider.queue.readiness"]) == set(get_args(Readiness))


def test_every_field_of_a_line_about_a_request_is_listed():
    listed = {name for row in table("Requests") for name in names(row[0])}
    source = ast.parse(inspect.getsource(access_log))
    (call,) = [node for node in ast.walk(source) if isinstance(node, ast.Call) and ast.unparse(node.func) == "log.log"]
    keys: set[object] = {word.arg for word in call.keywords if word.arg is not None}
    more = [node for node in ast.walk(source) if isinstance(node, ast.Dict) and len(node.keys) == 4]
    keys |= {key.value for node in more for key in node.keys if isinstance(key, ast.Constant)}
    assert listed == keys


def test_every_field_of_a_line_of_the_log_is_listed():
    listed = {name for row in table("The log") for name in names(row[0])}
    keys = [node for node in ast.walk(ast.parse(inspect.getsource(log.log_move))) if isinstance(node, ast.Dict)]
    assert listed == {key.value for node in keys for key in node.keys if isinstance(key, ast.Constant)}
    named = set(re.findall(r"`([A-Z][A-Za-z]+)`", table("The log")[1][1]))
    assert named - {"Created"} < {each.__name__ for each in events.EVENTS}
