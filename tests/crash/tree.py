"""Agents that start agents, tools and commands, ask and fail: trees to be cut at any place.

What each does is drawn from the words that it is told, so that one that is taken up again does the same.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from typing import Any

import outrider.agents.pydantic_ai  # noqa: F401 - once, for all workers that are forked
from outrider import Outrider, WorkerSettings
from outrider.agents import scripted
from outrider.agents.scripted import Call, Failure, Reply, Turn
from outrider.settings import DelegationLimits

app = Outrider(
    WorkerSettings(
        park_grace=0.02,
        recovery_interval=0.05,
        model_tries=2,
        model_backoff=0.01,
        question_deadline=1.0,
        delegation=DelegationLimits(depth=2, live=60, total=1000),
    )
)
MARK = "of-a-tree-of-tests"
"""In the command line of every command: none may be left."""
QUESTION = re.compile(r'task="(task_\w+)" reason="question"[^>]*request_id=\'(\w+)\'')


@app.tool(max_failures=2, backoff=0.01, backoff_max=0.02)
async def toil(word: str, fails: bool) -> str:
    """Do something, or fail at it."""
    if fails:
        raise RuntimeError(f"{word} burst")
    return word


def settings_of(given: Mapping[str, Any]) -> WorkerSettings:
    return app.settings


def _chief(turn: Turn) -> Reply:
    if turn.number == 1 and (answers := tuple(_answers(turn))):
        return Reply(calls=answers)
    if turn.number == 1 and (told := re.search(r"^go .*$", turn.prompt, re.MULTILINE)):
        return Reply(calls=tuple(Call("spawn_agent", _lead(f"{told[0]} {n}")) for n in range(2)))
    return Reply("So be it.")


def _lead(word: str) -> dict[str, Any]:
    return {"instructions": word, "agent": "lead"}


def _lead_script(turn: Turn) -> Reply:
    if answers := tuple(_answers(turn)):
        asked = {call.arguments["in_reply_to"] for call in answers if isinstance(call.arguments, dict)}
        if turn.results and turn.results[-1].tool == "message_task":
            return Reply("answered")
        return Reply(calls=answers) if asked else Reply("nothing")
    if "<task_wake" in turn.prompt:
        return Reply("heard")
    chance = _chance(turn.prompt)
    match turn.number:
        case 1:
            return Reply(calls=tuple(_works(chance, turn.prompt)))
        case 2 if chance.random() < 0.3:
            started = [each.content["task_id"] for each in turn.results if isinstance(each.content, dict)]
            return (
                Reply(calls=(Call("wait_task", {"task_ids": started, "timeout": 0.5}),)) if started else Reply("none")
            )
        case _:
            return Reply("walked away")


def _works(chance: random.Random, word: str) -> Iterator[Call]:
    for nth in range(chance.randint(1, 3)):
        match chance.randrange(4):
            case 0:
                yield Call("spawn_background", {"tool": "toil", "arguments": {"word": word, "fails": nth == 1}})
            case 1:
                rest = chance.choice(["0.05", "0.2", "30"])
                yield Call("spawn_background", {"command": ["sh", "-c", f"sleep {rest}; echo {MARK}", MARK, word]})
            case _:
                yield Call("spawn_agent", {"instructions": f"{word}.{nth}", "agent": "hand"})


def _hand(turn: Turn) -> Reply:
    chance = _chance(turn.prompt)
    fate = chance.randrange(6)
    match turn.number:
        case 1:
            return Reply(calls=(Call("toil", {"word": turn.prompt, "fails": fate == 0}),))
        case 2 if fate == 1:
            return Reply(failure=Failure(400, "no such thing"))
        case 2 if fate in (2, 3):
            return Reply(calls=(Call("ask_parent", {"question": "How?", "expected": {"type": "string"}}),))
        case 2 if fate == 4:
            return Reply(calls=(Call("report_result", {"result": turn.prompt}),))
        case _:
            return Reply("done")


def _guest(turn: Turn) -> Reply:
    return Reply("so") if turn.number == 2 else Reply(calls=(Call("toil", {"word": turn.prompt, "fails": False}),))


def _chance(word: str) -> random.Random:
    """The same for the same words in any run: what stands after a # names the run."""
    return random.Random(re.sub(r"#\w+", "", word))


def _answers(turn: Turn) -> Iterator[Call]:
    for task_id, request_id in QUESTION.findall(turn.prompt):
        yield Call("message_task", {"task_id": task_id, "in_reply_to": request_id, "message": "so"})


scripted.register("tree-chief", _chief)
scripted.register("tree-lead", _lead_script)
scripted.register("tree-hand", _hand)
scripted.register("tree-guest", _guest)
app.agent("chief", model="scripted:tree-chief", delegates=True)
app.agent("lead", model="scripted:tree-lead", delegates=True)
app.agent("hand", model="scripted:tree-hand", tools=["toil"])
for _name in ("guest", "other guest"):
    app.agent(_name, model="scripted:tree-guest", tools=["toil"])
