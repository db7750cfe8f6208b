"""What a filter admits, and the terms that say the same."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.core.ledger import TaskFilter
from outrider.core.search import SEARCHED, WORD, AnyOf, entry_of, passes, says, wanted_terms, words
from outrider.core.task import Core, Input, Live, Outcome, State, Task, TaskError
from outrider.core.values import evolve


def task(id: str = "task_1", spec: object = None, **given: object) -> Task:
    known = {"session_id": "s", "root_session_id": "s", "kind": "tool", "route": "tool", "created_at": 5, **given}
    return Task(id, Input(spec={"prompt": spec}, **known), Core())  # type: ignore[arg-type]  # fields of Input


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Build the INDEX_all, now!", ["build", "the", "index", "all", "now"]),
        ("STRASSE straße", ["strasse", "strasse"]),
        ("ｆｕｌｌ １２", ["full", "12"]),
        ("cafe\u0301 caf\u00e9", ["caf\u00e9", "caf\u00e9"]),
        ("東京タワー v2", ["東", "京", "タ", "ワ", "ー", "v2"]),
        ("한국어 문서", ["한국어", "문서"]),
        ("a\0b", ["a", "b"]),
        ("x" * 100, ["x" * WORD]),
        ("--- _ !", []),
    ],
)
def test_a_text_is_its_words(text: str, found: list[str]):
    assert list(words(text)) == found


@pytest.mark.parametrize(
    ("text", "is_said"),
    [
        ("quarterly report", True),
        ("REPORT, quarterly", True),
        ("report quart", True),
        ("quart report", False),  # only of the last word the beginning will do
        ("report q", False),  # and of that two characters
        ("quarterly invoice", False),
        ("eport", False),
        ("prompt", False),  # the name of a field
        ("tools done", True),
        ("broke", True),
        ("team", True),
        ("7", False),  # no text
        ("task_1", True),
        (" 1 ", True),
    ],
)
def test_a_task_says_what_stands_in_its_texts(text: str, is_said: bool):
    said = task(spec=["Quarterly", {"deep": "report"}, 7], labels={"team": "red"}, display_name="Tools")
    ended = evolve(said, live=Live(state_detail="done"), outcome=Outcome(error=TaskError("exception", "it broke")))
    assert says(ended, text) is is_said


def test_a_long_spec_is_searched_up_to_a_bound():
    long = task(spec=["x " * (SEARCHED // 2 - 3), "last gone"])
    assert says(long, "last")
    assert not says(long, "gone")


def test_what_was_put_in_the_place_of_a_spec_is_found_beside_it():
    debounced = evolve(task(spec="first"), core=Core(spec={"prompt": "second"}))
    assert says(debounced, "first")
    assert says(debounced, "second")


SOME = st.sampled_from(["ab", "abc", "abcd", "abcde", "b", "東", "ö" * 50, "A b", "", "c-ab"])
TEXTS = st.lists(SOME, min_size=1, max_size=3).map(" ".join)
NAMES = st.text(string.ascii_letters + "=:#\0", max_size=150)


@settings(max_examples=150)
@given(TEXTS, TEXTS, st.none() | TEXTS, NAMES, NAMES, st.sampled_from(State), st.booleans())
def test_a_task_has_the_terms_of_just_those_filters_that_it_passes(
    said: str, detail: str, asked: str | None, name: str, value: str, state: State, is_label: bool
):
    one = task(spec=said, labels={name: value}, kind=value)
    one = evolve(one, core=Core(state=State.QUEUED), live=Live(state_detail=detail))
    filter = TaskFilter(
        states=(state, State.RUNNING), text=asked, labels={name: value if is_label else f"{value}="}, kind=value
    )
    entry = entry_of(one)
    own = {entry.state, *entry.lasting, *entry.passing}

    def has(wanted: AnyOf) -> bool:
        begun = wanted.prefix is not None and any(term.startswith(wanted.prefix) for term in own)
        return begun or not own.isdisjoint(wanted.terms)

    assert all(map(has, wanted_terms(filter))) == passes(one, filter)
