"""What a live task is doing, derived from its record alone."""

from typing import get_args, get_type_hints

import pytest

from outrider.core.task import Phase, Timeouts, WaitForAnswer, WaitForMessage, WaitForTasks, WaitUntil, phase_of
from outrider.core.values import SECOND, evolve
from tests.core.stage import OTHER, START, Stage, held, new

LATER = START + 999 * SECOND

PHASES: list[tuple[Stage, Phase | None]] = [
    (new(), Phase("ready")),
    (new(LATER), Phase("delayed")),
    (held().fail(), Phase("backing_off", "failure 1")),
    (held().fail(chance=0), Phase("ready")),
    (new(depends_on=(OTHER,)), Phase("blocked", "dependency")),
    (held(), Phase("executing")),
    (held().cancel(), Phase("executing", "stopping: cancel")),
    (held(timeouts=Timeouts(run=1)).later().look(), Phase("executing", "stopping: timeout")),
    (held().lose(), Phase("resuming")),
    (held().ask().park(WaitForAnswer("r1")).answer(), Phase("resuming")),
    (held().park(WaitUntil(LATER)), Phase("sleeping")),
    (held().park(WaitForMessage(0)), Phase("waiting", "message")),
    (held().park(WaitForTasks((OTHER,)), WaitUntil(LATER)), Phase("waiting", "tasks")),
    (held().park(WaitForMessage(0), WaitForTasks((OTHER,)), WaitForMessage(3)), Phase("waiting", "message, tasks")),
    (held().succeed(open_children=(OTHER,)), Phase("waiting", "children")),
    (held().ask(), None),
    (held().ask().park(WaitForAnswer("r1")), None),
    (held().succeed(), None),
    (held().fail(retryable=False), None),
    (new().cancel(), None),
]


@pytest.mark.parametrize(("stage", "phase"), PHASES, ids=lambda value: str(getattr(value, "name", "")))
def test_the_phase_says_what_a_task_is_doing(stage: Stage, phase: Phase | None):
    assert stage.phase == phase


def test_a_full_limit_blocks_a_task_whether_it_ran_before_or_not():
    for stage, name in ((new(concurrency_key="gpu"), "blocked"), (held(concurrency_key="gpu").lose(), "waiting")):
        core = evolve(stage.task.core, readiness="blocked", blocked_by="limit")
        phase = Phase(name, "limit of gpu")  # type: ignore[arg-type]  # a name
        assert phase_of(evolve(stage.task, core=core)) == phase


def test_what_is_paused_is_said_of_a_task_that_would_start_and_of_no_other():
    assert phase_of(new().task, paused="kind") == Phase("blocked", "kind paused")
    assert phase_of(held().lose().task, paused="session") == Phase("waiting", "session paused")
    core = evolve(new().task.core, readiness="blocked", blocked_by="paused")
    assert phase_of(evolve(new().task, core=core)) == Phase("blocked", "session paused")
    for stage in (held(), new(not_before=START + SECOND), new(depends_on=(OTHER,)), held().ask()):
        assert phase_of(stage.task, paused="everything") == stage.phase


def test_every_phase_is_reached():
    assert {phase.name for _, phase in PHASES if phase} == set(get_args(get_type_hints(Phase)["name"]))
