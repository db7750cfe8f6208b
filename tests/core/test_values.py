"""A copy with some fields replaced, and what differs between two values."""

import dataclasses
import pickle

import pytest

from outrider.core.session import NewSession
from outrider.core.task import Core, Live, Outcome, State, Task, TaskError, Timeouts, Usage
from outrider.core.values import difference, evolve, quick
from tests.core.stage import START, held, new

VALUES = [new().task, new().task.input, held().task.core, Live(iterations=3), Outcome("done"), NewSession("s", START)]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_evolve_gives_the_copy_that_replace_gives(value):
    name = dataclasses.fields(value)[1].name
    assert evolve(value) == dataclasses.replace(value)
    assert evolve(value, **{name: "new"}) == dataclasses.replace(value, **{name: "new"})


def test_a_copy_is_of_the_very_class_and_as_frozen():
    copy = evolve(Core(), attempt=2)
    assert type(copy) is Core
    assert hash(copy) == hash(Core(attempt=2))
    assert pickle.loads(pickle.dumps(copy)) == copy
    with pytest.raises(dataclasses.FrozenInstanceError):
        copy.attempt = 3  # type: ignore[misc]  # which is the point


def test_quick_values_are_made_as_others_are():
    @dataclasses.dataclass(frozen=True, slots=True)
    class Plain:
        name: str
        size: int = 3
        labels: dict[str, str] = dataclasses.field(default_factory=dict)

    @quick
    @dataclasses.dataclass(frozen=True, slots=True)
    class Quick:
        name: str
        size: int = 3
        labels: dict[str, str] = dataclasses.field(default_factory=dict)

    for given in (("a",), ("a", 4), ("a", 4, {"b": "c"})):
        assert dataclasses.astuple(Quick(*given)) == dataclasses.astuple(Plain(*given))
    assert Quick(name="a", labels={"b": "c"}) == dataclasses.replace(Quick("a"), labels={"b": "c"})
    assert Quick("a").labels is not Quick("a").labels
    assert type(Quick("a")) is Quick
    with pytest.raises(dataclasses.FrozenInstanceError):
        Quick("a").size = 5  # type: ignore[misc]  # that it cannot be assigned is the point
    for wrong in ({}, {"name": "a", "sise": 3}):
        with pytest.raises(TypeError, match=r"__init__\(\)"):
            Quick(**wrong)  # type: ignore[arg-type]  # arguments that do not fit are the point


def test_evolve_leaves_the_original_as_it_was():
    before = Core()
    evolve(before, attempt=2, state=State.RUNNING)
    assert before == Core()


def test_evolve_refuses_a_field_that_does_not_exist():
    with pytest.raises(TypeError, match="Core has no field 'atempt'"):
        evolve(Core(), atempt=2)


def test_difference_names_what_changed_and_gives_the_new_value():
    assert difference(Core(), Core(attempt=2, worker_id="w")) == {"attempt": 2, "worker_id": "w"}
    assert difference(Live(), Live(usage=Usage(requests=1))) == {"usage": Usage(requests=1)}
    assert difference(Outcome("a"), Outcome(error=TaskError("exception", "no"))) == {
        "summary": None,
        "error": TaskError("exception", "no"),
    }


def test_equal_values_do_not_differ():
    assert difference(Core(), Core()) == {}
    assert difference(Timeouts(run=1), Timeouts(run=1)) == {}


def test_evolving_by_the_difference_gives_the_other():
    before, after = new().task.core, held().fail().task.core
    assert evolve(before, **difference(before, after)) == after
    assert evolve(Task("a", new().task.input, before), core=after).core is after
