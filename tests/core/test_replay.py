"""The fold of the log is the record."""

import orjson
import pytest

from outrider.core.change import Change
from outrider.core.events import Answered
from outrider.core.machine import snapshot
from outrider.core.replay import fold, replay
from outrider.core.task import Task
from tests.core.stage import Stage, held, new


def entries(changes: list[Change]):
    """What the changes log, as JSON."""
    return [(event.type, orjson.loads(orjson.dumps(event.data))) for change in changes for event in change.events]


def as_json(task: Task):
    return orjson.loads(orjson.dumps(snapshot(task)))


@pytest.mark.parametrize(
    "stage",
    [
        new(depends_on=("task_x",)),
        held(),
        held().ask().tell(Answered("r1", {"go": ["on"]})),
        held().fail(partial=b"1", summary="half", chance=0).claim().succeed(summary="done"),
        held().cancel().lose(),
    ],
    ids=["blocked", "running", "answered", "succeeded", "canceled"],
)
def test_a_log_replays_to_the_record(stage: Stage):
    assert replay(entries(stage.changes)) == as_json(stage.task)


def test_progress_replaces_the_live_values_that_it_names():
    created = fold(None, "task.created", as_json(held().task))
    told = fold(created, "task.progress", {"iterations": 3, "progress": {"current": 1}})
    assert created is not None
    assert told is not None
    assert told["live"] == {**created["live"], "iterations": 3, "progress": {"current": 1}}
    assert {name: told[name] for name in ("input", "core", "outcome")} == {
        name: created[name] for name in ("input", "core", "outcome")
    }


def test_a_snapshot_stays_as_it_was_when_the_next_is_made():
    stage = held()
    created, *later = entries(stage.changes)
    before = replay([created])
    assert before is not None
    kept = {group: dict(fields) for group, fields in before.items()}
    assert fold(before, *later[-1]) != before == kept


def test_a_message_and_output_say_nothing_of_the_record():
    created = replay(entries(new().changes))
    assert fold(created, "task.message", {"message": {}}) is created
    assert fold(created, "task.output", {"from": 0, "to": 3}) is created


def test_a_log_that_was_trimmed_gives_no_record_until_a_creation():
    created, *later = entries(held().changes)
    assert replay(later) is None
    assert replay([*later, created]) is not None
