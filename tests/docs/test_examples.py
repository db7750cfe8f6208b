"""The examples do what their docstrings say: run as real processes, one of them killed, and read by what they print."""

import asyncio
import re
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.agents.test_openai_compatible import Provider
from tests.docs.programs import EXAMPLES, PATIENCE, environment, lines, run

pytestmark = pytest.mark.slow


def test_hello_goes_on_where_it_was_killed_and_is_done_once(tmp_path: Path):
    program = EXAMPLES / "hello.py"
    first = subprocess.Popen(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    before = [first.stdout.readline().strip() for _ in range(2)]
    first.kill()
    first.communicate(timeout=PATIENCE)
    assert before == ["writing chapter 1", "writing chapter 2"]

    # Chapter 2 was cut; chapter 1 was journaled before it began.
    second = lines(run(program, folder=tmp_path))
    assert second == [
        *(f"writing chapter {number}" for number in (2, 3, 4, 5)),
        "1500 words in 5 chapters. Publish? Run me again, with yes or no.",
    ]
    assert lines(run(program, "yes", folder=tmp_path)) == ["published 1500 words"]
    assert lines(run(program, folder=tmp_path)) == ["published 1500 words"]


def test_an_approval_waits_overnight_without_a_worker_and_is_answered_from_another_process(tmp_path: Path):
    program = EXAMPLES / "overnight_approval.py"
    evening = lines(run(program, "evening", folder=tmp_path))
    assert evening == ["copying orders", "awaiting_input, held by no worker; good night"]
    assert lines(run(program, "answer", "yes", folder=tmp_path)) == [
        "The agent wants to call switch_over. Approve? {'table': 'orders', 'rows': 1200}",
        "answered yes; now running, resuming",
    ]
    morning = lines(run(program, "morning", folder=tmp_path))
    assert morning == [
        "switching orders over, 1200 rows",
        "orders is switched over",
        "succeeded in attempt 2, 0 failures",
    ]


def test_a_call_that_nobody_approves_is_not_made(tmp_path: Path):
    program = EXAMPLES / "overnight_approval.py"
    run(program, "evening", folder=tmp_path, DEADLINE="2")
    *until, result, end = lines(run(program, "morning", folder=tmp_path))
    assert all(line.startswith("no answer yet; at ") for line in until)
    assert result == "orders stays as it was"
    assert end.startswith("succeeded in attempt")


def test_an_answer_that_nothing_asks_for_is_refused_in_a_sentence(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "overnight_approval.py"), "answer", "no"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "nothing asks: was there an evening, and no answer yet?\n"


def test_the_pipeline_counts_in_children_publishes_after_and_finds_all_done_the_second_time(tmp_path: Path):
    program = EXAMPLES / "pipeline.py"
    first = lines(run(program, folder=tmp_path))
    counted = {line.split()[0] for line in first if line.endswith("is counted")}
    assert len(counted) == 8
    assert "10 words:" in first
    tasks = [line.split() for line in first if "attempt" in line]
    assert {task[0] for task in tasks} == counted | {"count", "publish"}
    assert {task[1] for task in tasks} == {"succeeded"}
    second = lines(run(program, folder=tmp_path))
    assert [line for line in second if "attempt" in line] == [line for line in first if "attempt" in line]


def test_the_agent_asks_before_it_refunds_and_answers_in_the_shape_that_was_asked_for(tmp_path: Path):
    said = lines(run(EXAMPLES / "agent.py", folder=tmp_path))
    assert said == [
        "The agent wants to call refund. Approve? {'order': 'A-17', 'cents': 4900}",
        "paying back 49.00 for A-17",
        "refunded: True; You have your money back.",
        "scripted:support: 3 iterations, 3 requests",
    ]


def test_a_killed_worker_is_followed_by_one_that_repeats_no_finished_step(tmp_path: Path):
    said = lines(run(EXAMPLES / "survive_a_kill.py", folder=tmp_path))
    assert "the result is 55" in said
    assert [line for line in said if line.startswith("attempt ")] == ["attempt 1: lost", "attempt 2: succeeded"]
    ran = [tuple(map(int, line.split(" in attempt "))) for line in said if " in attempt " in line]
    assert [attempt for _, attempt in ran] == sorted(attempt for _, attempt in ran)
    times = Counter(number for number, _ in ran)
    assert sorted(times) == list(range(1, 11))
    assert all(times[number] == 1 for number in range(1, 5)), "step 4 and those before it were finished"
    assert sum(times.values()) <= 11, "at most the step in flight is done again"


@pytest.mark.anyio
async def test_the_agent_does_the_same_with_any_server_that_speaks_openais_protocol(tmp_path: Path):
    call = {"tools": [("look_up", {"order": "A-17"})]}
    pay = {"tools": [("refund", {"order": "A-17", "cents": 4900})]}
    answer = {"tools": [("final_result", {"order": "A-17", "refunded": True, "reply": "All paid."})]}
    async with Provider([call, pay, answer]).serving() as provider:
        program = await asyncio.create_subprocess_exec(
            sys.executable,
            str(EXAMPLES / "agent.py"),
            cwd=tmp_path,
            env=environment(MODEL="openai:tiny", OPENAI_BASE_URL=provider.url),
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await asyncio.wait_for(program.communicate(), PATIENCE)
    assert said.decode().splitlines()[1:] == [
        "paying back 49.00 for A-17",
        "refunded: True; All paid.",
        "tiny-1: 3 iterations, 3 requests",
    ]


@pytest.mark.parametrize("program", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_says_what_it_shows_and_is_tested_here(program: Path):
    assert program.read_text().startswith('"""')
    assert f'EXAMPLES / "{program.name}"' in Path(__file__).read_text()


def test_a_graph_asks_and_goes_on_with_the_answer_in_another_process(tmp_path: Path):
    program = EXAMPLES / "graph.py"
    question = "130 a night in Oslo. Book it? [150, 130, 140]"
    assert lines(run(program, folder=tmp_path)) == [
        *(f"asking the {name} in Oslo" for name in ("Anchor", "Bell", "Crown")),
        question,
        "Run me again, with yes or no.",
    ]
    done = ["booked for 130", "2 iterations, 0 failures"]
    assert lines(run(program, "yes", folder=tmp_path)) == [question, *done]
    assert lines(run(program, folder=tmp_path)) == done


def test_researchers_wake_their_lead_and_one_ends_at_its_budget_with_what_it_found(tmp_path: Path):
    said = lines(run(EXAMPLES / "research.py", folder=tmp_path))
    assert sorted(said[:3]) == ["ovens: succeeded", "prices: succeeded", "rules: budget_exceeded"]
    *report, spent = said[3:]
    assert report == [
        "# Ovens for the bakery",
        "- ovens (succeeded): An electric oven costs 90,000. It lasts 15 years.",
        "- prices (succeeded): Electricity costs 1.10 a kilowatt hour. Gas costs 0.90, and rises.",
        "- rules (failed): Rule 1: no flames in cellars. Rule 2: no flames in attics. Rule 3: no flames in halls.",
        "",
        "lead",
        "  ovens: succeeded, 3 requests, 56 tokens",
        "  prices: succeeded, 3 requests, 67 tokens",
        "  rules: failed, 4 requests, 106 tokens",
    ]
    requests = re.fullmatch(r"spent by all together: \d+ of 200000 tokens, (\d+) of 60 requests", spent)
    assert requests is not None
    assert int(requests[1]) > 10, "the lead's own are among them"


def test_the_coding_helper_is_killed_while_the_tests_run_and_edits_once(tmp_path: Path):
    program = EXAMPLES / "coding_helper.py"
    first = subprocess.Popen(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    before: list[str] = []
    while "writing prices.py" not in before or before[-1] != "tests: running":
        before.append(first.stdout.readline().strip())
        assert before[-1], before
    first.kill()
    first.communicate(timeout=PATIENCE)
    assert "tests: failed" in before

    after = lines(run(program, folder=tmp_path))
    assert "writing prices.py" not in after
    assert "tests: succeeded" in after
    assert after[-4:] == ["coder: The tests pass now.", "from statistics import median", "", "__all__ = ['median']"]


@pytest.mark.skipif(find_spec("agents") is None, reason="the package openai-agents is not installed")
def test_an_agent_of_the_openai_sdk_runs_in_the_background(tmp_path: Path):
    assert lines(run(EXAMPLES / "openai_agents.py", folder=tmp_path)) == [
        "measuring in Oslo",
        "It is 7 degrees in Oslo: take a coat.",
        "2 iterations, 2 requests",
    ]
