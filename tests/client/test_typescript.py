"""The client for JavaScript and TypeScript: what is committed is what the API's document makes, and node can use it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.client.stage import app_of_tests, served

pytestmark = pytest.mark.anyio
PLACE = Path(__file__).parents[2] / "clients" / "typescript"
NODE = shutil.which("node")

needs_node = pytest.mark.skipif(NODE is None, reason="there is no node on this machine to run the client with")


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate", PLACE / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def run(script: str, *arguments: str) -> Any:
    """What a script says that drives the client."""
    node = await asyncio.create_subprocess_exec(
        "node", str(Path(__file__).with_name(script)), str(PLACE / "src" / "outrider.js"), *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(node.communicate(), 60)
    assert node.returncode == 0, err.decode()
    return json.loads(out)


async def test_what_is_committed_is_what_the_document_makes():
    made = generator()
    files = made.generate(await made.document())
    for name, text in files.items():
        assert (PLACE / "src" / name).read_text() == text, f"run {PLACE.name}/generate.py: {name} is another by now"


async def test_what_is_said_to_be_harmless_or_to_have_an_id_is_there():
    made = generator()
    document = await made.document()
    operations = {each["operationId"] for methods in document["paths"].values() for each in methods.values()}
    assert {*made.MADE, *made.KEYED, *made.HARMLESS} <= operations


@needs_node
async def test_node_creates_follows_answers_and_is_told_what_is_wrong():
    async with app_of_tests().open("memory://") as runtime, served(runtime) as url:
        told = await run("drive.mjs", url)
        (task,) = await runtime.tasks.list()
        (asked,) = await runtime.tasks.requests(task.id)
    assert told["types"][0] == "task.created"
    assert told["types"].count("task.created") == 1
    assert (told["result"], asked.answered_by) == ("yes – ünïcode", "node")
    assert told["file"] == "text"
    assert told["problem"] == {
        "kind": True, "status": 404, "code": "task_not_found", "details": {"task": "task_none"},
    }  # fmt: skip
    assert told["away"] == {"kind": True, "code": "server_unreachable"}
    assert told["first"] == "snapshot"
    assert told["listed"] == [task.id]


@needs_node
async def test_node_goes_on_after_a_cut_stops_when_it_is_told_and_begins_no_pause_that_is_too_long():
    assert await run("cuts.mjs") == {
        "events": [7], "quiet": 2,
        "given": [7, "not_found"],
        "aborted": "AbortError",
        "ended": "server_unreachable", "again": True,
        "busy": "store_locked", "tries": 1, "waited": False,
    }  # fmt: skip


@needs_node
async def test_node_asks_again_for_an_answer_that_was_cut_off_and_tells_of_what_no_server_of_outrider_answers():
    assert await run("answers.mjs") == {  # what came of it, and how often it was asked
        "half": [[7], 2], "part": ["[7]", 2], "unsafe": ["server_unreachable", 1],
        "page": ["server_foreign", 1], "stream": ["server_foreign", 1], "file": ["text", 1],
        "broken": ["server_foreign", 1], "refusal": ["server_foreign", 1],
    }  # fmt: skip


@needs_node
async def test_node_sends_nothing_for_an_id_or_a_path_that_would_ask_for_another_route():
    files = "/v1/sessions/mine/files"
    assert await run("paths.mjs") == {
        "ids": ["invalid_arguments"],
        "paths": ["invalid_path"],
        "refused": 0,
        "sent": [
            f"{files}/a/..b", f"{files}/...", f"{files}/%252f", f"{files}/a%5C..%5Cb", f"{files}/a/%2525",
            "/v1/tasks/..%2Fx",
        ],
    }  # fmt: skip
