"""What a small model may do in a turn, how it is read back, and how a conversation is cut to its context."""

import json
from typing import Any

import jsonschema
import pytest

from outrider.agents.local.actions import Answered, Called, Choice, Offer, Said, read, rules, said_so_far, schema_of
from outrider.agents.local.conversation import MARK, Line, as_messages, fit

WEATHER = Offer(
    "weather", "Says.", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
)
CHOICE = Choice((WEATHER,))


def accepts(choice: Choice, action: Any, *, loose: bool = False) -> bool:
    schema = schema_of(choice, loose=loose)
    assert schema is not None
    return jsonschema.Draft202012Validator(dict(schema)).is_valid(action)


@pytest.mark.parametrize(
    ("action", "allowed"),
    [
        ({"call": "weather", "arguments": {"city": "Oslo"}}, True),
        ({"say": "Rain."}, True),
        ({"say": ""}, False),
        ({"call": "other", "arguments": {"city": "Oslo"}}, False),
        ({"call": "weather", "arguments": {}}, False),
        ({"call": "weather", "arguments": {"city": "Oslo", "more": 1}}, False),
        ({"call": "weather", "arguments": {"city": "O" * 601}}, False),
        ({"say": "Rain.", "call": "weather"}, False),
        ({"answer": 1}, False),
    ],
    ids=str,
)
def test_an_action_is_one_call_of_a_known_tool_or_words_of_a_bounded_length(action: Any, allowed: bool):
    assert accepts(CHOICE, action) is allowed


def test_definitions_of_two_tools_are_kept_apart():
    def tool(name: str, kind: str) -> Offer:
        return Offer(
            name,
            "",
            {"$defs": {"It": {"type": kind}}, "type": "object", "properties": {"it": {"$ref": "#/$defs/It"}}},
        )

    choice = Choice(
        (tool("one", "string"), tool("two", "integer")), {"$defs": {"It": {"type": "null"}}, "$ref": "#/$defs/It"}
    )
    assert accepts(choice, {"call": "one", "arguments": {"it": "x"}})
    assert accepts(choice, {"call": "two", "arguments": {"it": 1}})
    assert accepts(choice, {"answer": None})
    assert not accepts(choice, {"call": "one", "arguments": {"it": 1}})
    assert not accepts(choice, {"answer": "x"})


def test_a_tighter_bound_is_kept_a_looser_one_is_not_and_a_property_of_any_name_is_a_property():
    names = {
        "type": {"type": "string", "maxLength": 5},
        "enum": {"type": "array", "items": {"type": "integer"}},
        "const": {"type": "string", "maxLength": 100_000},
        "odd": {"type": "string", "minLength": 10, "maxLength": 5},
    }
    choice = Choice((Offer("odd", "", {"type": "object", "properties": names}),), say=False)
    for arguments, allowed in (
        ({"type": "x" * 5, "enum": [1] * 8, "const": "x" * 600, "odd": "x" * 5}, True),
        ({"type": "x" * 6}, False),
        ({"enum": [1] * 9}, False),
        ({"const": "x" * 601}, False),
    ):
        assert accepts(choice, {"call": "odd", "arguments": arguments}) is allowed


def test_a_loose_schema_holds_to_the_action_and_not_to_its_arguments():
    assert accepts(CHOICE, {"call": "weather", "arguments": {"other": 1}}, loose=True)
    assert not accepts(CHOICE, {"call": "other", "arguments": {}}, loose=True)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ('{"call": "weather", "arguments": {"city": "Oslo"}}', Called("weather", {"city": "Oslo"})),
        ('{"call": "weather", "arguments": {"ci', Called("weather", '{"call": "weather", "arguments": {"ci')),
        ('{"say": " Rain. "}', Said("Rain.")),
        ('{"say": "Rain in Os', Said("Rain in Os")),
        ('{"answer": {"umbrella": true}}', Answered({"umbrella": True})),
        ('{"answer": {"umbrella": tr', Answered('{"answer": {"umbrella": tr')),
        ("no JSON at all", Said("no JSON at all")),
        ("[1]", Said("[1]")),
    ],
)
def test_an_action_is_read_back_and_one_that_was_cut_fits_no_schema(text: str, action: object):
    assert read(text, Choice((WEATHER,), {"type": "object"})) == action


def test_words_are_heard_before_the_action_is_whole_and_a_plain_text_is_what_it_is():
    pieces = ['{"say', '": "Ra', "in.", '"}']
    heard = [said_so_far("".join(pieces[:nth]), CHOICE) for nth in range(1, 5)]
    assert heard == ["", "Ra", "Rain.", "Rain."]
    assert said_so_far('{"call": "weather"', CHOICE) == ""
    assert read('{"say": 1}', Choice(is_plain=True)) == Said('{"say": 1}')


def test_the_model_is_told_of_each_tool_with_its_arguments():
    told = rules(Choice((WEATHER,), {"type": "boolean"}))
    assert "weather(city: string): Says." in told
    assert '{"answer": {"type": "boolean"}}' in told
    assert rules(Choice(is_plain=True)) == ""


async def count(text: str) -> int:
    return len(text) // 4


@pytest.mark.anyio
async def test_what_fits_is_left_alone():
    lines = [Line("system", "s"), Line("user", "u"), Line("user", "result", spare=True)]
    assert await fit(lines, 100, count) == lines


@pytest.mark.anyio
async def test_the_longest_result_is_cut_first_and_says_so():
    long, short = Line("user", "long " * 2000, spare=True), Line("user", "short " * 40, spare=True)
    lines = [Line("system", "s"), Line("user", "u"), Line("assistant", "{}"), long, Line("assistant", "{}"), short]
    fitting = await fit(lines, 400, count)
    assert [line for nth, line in enumerate(fitting) if nth != 3] == [line for line in lines if line is not long]
    assert fitting[3].text.startswith("long long")
    assert fitting[3].text.count(MARK) == 1
    assert await count("\n".join(line.text for line in fitting)) <= 400


@pytest.mark.anyio
async def test_of_many_turns_the_oldest_go_and_the_prompt_and_the_last_stay():
    turns = [Line("assistant" if nth % 2 else "user", f"turn {nth} " * 20) for nth in range(200)]
    lines = [Line("system", "s"), Line("user", "the prompt"), *turns, Line("user", "the last")]
    fitting = await fit(lines, 500, count)
    assert [fitting[0].text, fitting[1].text, fitting[-1].text] == ["s", "the prompt", "the last"]
    assert "left out" in fitting[2].text
    assert fitting[-2].text.startswith("turn 199 ")


@pytest.mark.anyio
async def test_a_prompt_that_is_too_long_for_any_context_is_cut_and_not_refused():
    fitting = await fit([Line("system", "s"), Line("user", "word " * 50_000)], 300, count)
    assert await count(fitting[1].text) <= 300
    assert fitting[1].text.endswith(f"{MARK}]")


def test_neighbours_of_one_role_are_one_message():
    lines = [Line("system", "s"), Line("user", "u"), Line("user", "v"), Line("assistant", "a")]
    assert as_messages(lines) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u\n\nv"},
        {"role": "assistant", "content": "a"},
    ]
    assert json.dumps(as_messages(lines))
