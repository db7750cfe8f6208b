"""Lists that go by the index show what one would find who looked at every task: so says the store that does that."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from outrider.core.events import CancelRequested, Succeeded
from outrider.core.ledger import Ledger, Report, TaskFilter
from outrider.core.search import entry_of
from outrider.core.task import Live, State
from outrider.core.values import SECOND
from outrider.runtime.indexing import take_in
from outrider.stores import finder, index
from outrider.stores import views as sql_views
from outrider.stores.memory import MemoryLedger
from outrider.stores.statements import Statements
from outrider.stores.views import SqlViews
from tests.stores.backends import BACKENDS, SHARED
from tests.stores.scene import START, Scene

pytestmark = pytest.mark.anyio

WORDS = ("Build", "builder", "bü", "Straße", "naïve", "a", "ab", "abc", "index_all", "42", "東京", "x" * 60)
SESSIONS = ("session_a", "session_b", "session_c")
LABELS: Sequence[dict[str, str]] = (
    {},
    {"team": "red"},
    {"team": "blue", "half": "low"},
    {"team": "red=x", "n": "ö" * 200},
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64, so that a few hundred tasks are several of them."""
    for module in (index, finder):
        monkeypatch.setattr(module, "SIZE", 64)
    monkeypatch.setattr(index, "FEW", 4)
    monkeypatch.setattr(finder, "EVERY", (1 << 64) - 1)
    monkeypatch.setattr(finder, "STEPS", (1, 2))
    monkeypatch.setattr(sql_views, "FEW", 30)


@pytest.fixture(params=SHARED)
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Scene, Scene]]:
    """A store with an index, and the reference."""
    ledger = await BACKENDS[request.param](tmp_path)
    yield Scene(ledger), Scene(MemoryLedger())
    await ledger.close()


@pytest.fixture
async def scene(pair: tuple[Scene, Scene]) -> Scene:
    """The store with an index alone."""
    return pair[0]


class Past:
    """Acts of chance, the same on both stores."""

    def __init__(self, pair: tuple[Scene, Scene], seed: int) -> None:
        self.scenes = pair
        self.chance = random.Random(seed)
        self.live: list[str] = []
        self.ended: list[str] = []

    async def begin(self) -> None:
        for scene in self.scenes:
            await scene.session("session_a")
            await scene.session("session_b", root_session_id="session_a")
            await scene.session("session_c")

    async def create(self, count: int) -> None:
        given = [self._new(n) for n in range(count)]
        for scene in self.scenes:
            await scene.ledger.commit([scene.new(**each) for each in given])
        self.live += [each["id"] for each in given]

    def _new(self, n: int) -> dict[str, Any]:
        pick, some = self.chance.choice, self.chance.random
        session = pick(SESSIONS)
        # Ids are mostly in the order of creation, and some are of a person's own choice.
        id = f"task_{len(self.live) + len(self.ended) + n:04}{int(some() * 1e6)}" if some() < 0.9 else f"own-{some()}"
        return {
            "id": id,
            "session_id": session,
            "root_session_id": "session_c" if session == "session_c" else "session_a",
            "route": f"background_tool:{id}",
            "kind": pick(("background_tool", "background_tool", "subagent")),
            "organization_id": pick(("org_default", "org_b")),
            "parent_task_id": pick((None, None, pick(self.ended or [None]))),
            "labels": pick(LABELS),
            "created_at": START + int(some() * 1000) * SECOND,
            "display_name": pick(WORDS),
            "spec": {"prompt": " ".join(self.chance.choices(WORDS, k=3)), "deep": [{"more": pick(WORDS)}, 7, None]},
        }

    async def move(self, count: int) -> None:
        for id in self.chance.sample(self.live, min(count, len(self.live))):
            how, word = self.chance.random(), self.chance.choice(WORDS)
            for scene in self.scenes:
                await self._move(scene, id, how, word)
            if how >= 0.3:
                self.live.remove(id)
                self.ended.append(id)

    async def _move(self, scene: Scene, id: str, how: float, word: str) -> None:
        task = await scene.task(id)
        if task.core.state is State.QUEUED and how < 0.8:
            task = await scene.reclaim(id)
        if how < 0.3:
            said = Live(state_detail=f"doing {word}")
            await scene.ledger.report([Report(id, task.core.attempt, scene.now, said, {"state_detail": word})])
        elif how < 0.6:
            await scene.apply(id, Succeeded(task.core.attempt, b"1", summary=f"did {word}"))
        else:
            await scene.apply(id, CancelRequested())

    async def prune(self, count: int) -> None:
        gone = self.chance.sample(self.ended, min(count, len(self.ended)))
        for scene in self.scenes:
            await scene.ledger.prune(gone)
        self.ended = [id for id in self.ended if id not in gone]

    def filter(self) -> TaskFilter:
        """Some conditions, one or two or three."""
        pick, some = self.chance.choice, self.chance.random
        ids = [*self.live, *self.ended, "task_no"]
        given: dict[str, Any] = {
            "session_id": pick(SESSIONS),
            "root_session_id": pick(SESSIONS),
            "parent_task_id": pick(ids),
            "organization_id": pick(("org_default", "org_b", "org_no")),
            "states": tuple(self.chance.sample(list(State), self.chance.randrange(4))),
            "kind": pick(("subagent", "background_tool", "no")),
            "labels": pick(LABELS[1:]),
            "created_after": START + int(some() * 1000) * SECOND,
            "created_before": START + int(some() * 1000) * SECOND,
            "text": self._text(ids),
        }
        names = self.chance.sample(sorted(given), self.chance.choice((1, 2, 2, 3)))
        return TaskFilter(
            **{name: given[name] for name in names},
            after=pick((None, None, pick(ids))),
            limit=pick((1, 3, 10, 1000)),
            newest_first=some() < 0.7,
        )

    def _text(self, ids: list[str]) -> str:
        some = self.chance.random()
        if some < 0.2:
            return self.chance.choice(ids).removeprefix("task_" if some < 0.1 else "")
        asked = " ".join(self.chance.choices(WORDS, k=self.chance.choice((1, 1, 2))))
        return asked[: self.chance.randrange(1, len(asked) + 1)]

    async def compare(self, count: int) -> None:
        for _ in range(count):
            filter = self.filter()
            found, wanted = [[task.id for task in await scene.views.list_tasks(filter)] for scene in self.scenes]
            assert found == wanted, filter


async def take_all_in(ledger: Ledger) -> None:
    while await take_in(ledger):
        pass


@pytest.mark.parametrize("seed", range(2))
async def test_a_list_shows_the_same_however_far_the_index_has_come(pair: tuple[Scene, Scene], seed: int):
    past = Past(pair, seed)
    await past.begin()
    ledger = pair[0].ledger
    for _ in range(3):
        await past.create(70)
        await past.move(20)
        await past.compare(12)
        await take_all_in(ledger)
        await past.compare(12)
        await past.prune(10)
        await past.move(10)
        await past.compare(12)
    await take_all_in(ledger)
    await past.compare(40)


async def ids(scene: Scene, **given: Any) -> list[str]:
    return [task.id for task in await scene.views.list_tasks(TaskFilter(**given))]


async def terms(scene: Scene) -> set[str]:
    """All that the index has of the first tasks."""
    views = scene.views
    assert isinstance(views, SqlViews)
    numbers = await views._later(lambda read: read.array("blocks"))
    return {row[1] for block in numbers for row in await views._later(_terms_of(block[0]))}


def _terms_of(block: int) -> Callable[[Statements], list[Any]]:
    return lambda read: read.array("terms_of_block", block)


async def test_of_two_that_take_the_same_in_the_second_is_refused_and_changes_nothing(scene: Scene):
    await scene.session()
    await scene.create("task_1", spec={"prompt": "first"})
    lacks = await scene.views.unindexed(100)
    late = [entry_of(task) for task in lacks.tasks]
    await take_all_in(scene.ledger)
    await scene.apply("task_1", CancelRequested())
    await take_all_in(scene.ledger)
    assert await scene.ledger.index(late, lacks.after, lacks.upto) is False
    assert (await scene.views.unindexed(1)).tasks == ()
    assert await ids(scene, states=(State.QUEUED,)) == []
    assert await ids(scene, text="first", states=(State.CANCELED,)) == ["task_1"]


async def test_a_task_that_moves_while_it_is_taken_in_is_listed_as_it_stands(scene: Scene):
    await scene.session()
    await scene.many(3)
    lacks = await scene.views.unindexed(100)
    await scene.apply("task_1", CancelRequested())
    await scene.create("task_3")
    assert await scene.ledger.index([entry_of(task) for task in lacks.tasks], lacks.after, lacks.upto)
    assert await ids(scene, states=(State.QUEUED,)) == ["task_3", "task_2", "task_0"]
    assert await ids(scene, states=(State.CANCELED,)) == ["task_1"]


async def test_what_is_deleted_leaves_the_index_and_its_words_too(scene: Scene):
    await scene.session()
    for n in range(80):
        await scene.create(f"task_{n:02}", spec={"prompt": f"secret{n} shared"})
    await take_all_in(scene.ledger)
    for n in (3, *range(66, 80)):
        await scene.apply(f"task_{n:02}", CancelRequested())
    await take_all_in(scene.ledger)
    before = await terms(scene)
    assert {"wsecret3", "wsecret70", "wshared", "scanceled"} <= before
    await scene.ledger.prune([f"task_{n:02}" for n in (3, *range(66, 80))])
    assert await ids(scene, text="secret3") == [f"task_{n}" for n in range(39, 29, -1)]
    await take_all_in(scene.ledger)
    left = await terms(scene)
    assert left == {
        term for term in before if term not in {"scanceled", "wsecret3", *(f"wsecret{n}" for n in range(66, 80))}
    }
    assert await ids(scene, text="shared", limit=1000) == [f"task_{n:02}" for n in range(65, -1, -1) if n != 3]


async def test_a_list_is_right_where_the_index_lacks_too_much_to_be_used(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    await scene.session()
    await scene.create("task_0", spec={"prompt": "one"})
    await take_all_in(scene.ledger)
    monkeypatch.setattr(finder, "BEHIND", 5)
    monkeypatch.setattr(finder, "LOOKED_AT", 3)
    for n in range(1, 9):
        await scene.create(f"task_{n}", spec={"prompt": "one" if n % 4 == 0 else "other"})
    assert await ids(scene, text="one") == ["task_8", "task_4", "task_0"]
    assert await ids(scene, text="one", after="task_8", limit=1) == ["task_4"]
    assert await ids(scene, states=(State.QUEUED,), text="one", newest_first=False) == ["task_0", "task_4", "task_8"]


async def test_what_a_task_says_no_more_and_the_states_it_has_left_find_it_no_more(scene: Scene):
    await scene.session()
    await scene.running("task_1")
    for detail in ("reading", "writing"):
        await take_all_in(scene.ledger)
        said = Live(state_detail=detail)
        assert await scene.ledger.report([Report("task_1", 1, scene.now, said, {"state_detail": detail})]) == [True]
    await take_all_in(scene.ledger)
    assert (await ids(scene, text="reading"), await ids(scene, text="writing")) == ([], ["task_1"])
    assert {term for term in await terms(scene) if term[0] == "s" or term.endswith("ing")} == {"srunning", "wwriting"}
