"""A script answers by the number of the iteration, told in Python or in JSON, and knows what it is called."""

from __future__ import annotations

import pytest

from outrider.agents import scripted
from outrider.agents.scripted import Call, Failure, Reply, Tokens, Turn
from outrider.core.errors import InvalidArguments, UnknownName


def turn(number: int, prompt: str = "Hello") -> Turn:
    return Turn(number, 1, prompt)


def test_replies_come_in_order_and_then_the_script_says_that_it_is_over():
    script = scripted.replies(Reply("one"), Reply("two"))
    assert [script(turn(number)).text for number in (1, 2, 3)] == ["one", "two", scripted.OVER]
    assert script(turn(1)).text == "one"


def test_a_loop_calls_one_tool_and_then_answers():
    script = scripted.loop(2, "look", lambda number: {"n": number}, last="seen")
    assert script(turn(2)) == Reply(calls=(Call("look", {"n": 2}),))
    assert script(turn(3)) == Reply("seen")


def test_json_tells_everything_that_python_does():
    script = scripted.from_json(
        [
            {"text": "hi", "chunks": 2, "delay": 0.5, "tokens": {"input": 1, "output": 2, "cached": 1}},
            {"calls": [{"tool": "look", "arguments": {"n": 1}, "id": "a"}, {"tool": "look"}], "repeat": 3},
            {"result": {"ok": True}, "failure": {"status": 429, "message": "slow", "attempts": 1}},
        ]
    )
    assert script(turn(1)) == Reply("hi", chunks=2, delay=0.5, tokens=Tokens(1, 2, 1))
    assert script(turn(2)) == script(turn(4)) == Reply(calls=(Call("look", {"n": 1}, "a"), Call("look", {})))
    assert script(turn(5)) == Reply(result={"ok": True}, failure=Failure(429, "slow", attempts=1))
    assert script(turn(6)).text == scripted.OVER
    assert scripted.from_json({"replies": [{"text": "hi"}]})(turn(1)) == Reply("hi")


@pytest.mark.parametrize(
    ("description", "fault"),
    [
        ("text", "this is not a script"),
        ([{"say": "hi"}], "replies.0.say"),
        ([{"calls": [{"arguments": {}}]}], "replies.0.calls.0.tool"),
        ([{"repeat": 0}], "replies.0.repeat"),
        ({"replies": None}, "replies"),
    ],
)
def test_a_wrong_description_is_refused_with_the_place_of_the_fault(description, fault):
    with pytest.raises(InvalidArguments, match=fault):
        scripted.from_json(description)


def test_a_registered_script_is_found_by_its_name_and_an_unknown_one_is_not():
    scripted.register("found", scripted.replies(Reply("found")))
    assert scripted.named("scripted:found")(turn(1)).text == "found"
    assert "Hello" in scripted.named("scripted")(turn(1)).text
    assert "scripted:found" in scripted.known()
    with pytest.raises(UnknownName) as raised:
        scripted.named("scripted:lost")
    assert raised.value.code == "unknown_model"
    assert "scripted:found" in raised.value.details["known"]
