"""Which tasks a list shows: what a filter admits, and the terms by which an index finds a task without looking at it.

Both say the same of the same task, so a store may use either. A text is found by its words, whatever stands between
them: letters and digits of one run, in any case and width; each ideograph and kana is a word of its own.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

from outrider.core.ledger import IndexEntry, TaskFilter
from outrider.core.task import State, Task
from outrider.core.values import JSON

WORD = 40
"""By how many of its first characters a word counts."""

SEARCHED = 32_768
"""How many characters of a spec are searched, counted over its texts in their order."""

STEM = 3
"""How long the beginnings of words are that have terms of their own."""

_LONGEST = 120
"""How long a term may be, in characters; a longer one is told from others by its hash."""

_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORDS = re.compile(rf"[{_ALONE}]|[^\W_{_ALONE}]+")


@dataclass(frozen=True, slots=True)
class AnyOf:
    """A task is wanted that has one of these terms, or one that begins with `prefix`."""

    terms: tuple[str, ...]
    prefix: str | None = None


def words(text: str) -> Sequence[str]:
    """The words of a text, in their order."""
    return _short_words(text) if len(text) <= _SHORT else _words(text)


def _words(text: str) -> list[str]:
    plain = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return [word[:WORD] for word in _WORDS.findall(plain)]


_SHORT = 40
_short_words = lru_cache(10_000)(_words)
"""Names, kinds and labels are the same again and again."""


def passes(task: Task, filter: TaskFilter) -> bool:
    """Whether a filter admits a task, as a page after `filter.after` would show it."""
    given, labels = task.input, task.input.labels
    beyond = filter.after is None or (task.id < filter.after if filter.newest_first else task.id > filter.after)
    return (
        beyond
        and filter.session_id in (None, given.session_id)
        and filter.root_session_id in (None, given.root_session_id)
        and filter.parent_task_id in (None, given.parent_task_id)
        and filter.organization_id in (None, given.organization_id)
        and filter.kind in (None, given.kind)
        and (filter.states is None or task.state in filter.states)
        and (filter.created_after is None or given.created_at >= filter.created_after)
        and (filter.created_before is None or given.created_at < filter.created_before)
        and all(labels.get(name) == value for name, value in filter.labels.items())
        and (filter.text is None or says(task, filter.text))
    )


def says(task: Task, text: str) -> bool:
    """Whether a text is the id of a task, or the task has all its words; of the last, two characters or more suffice.

    Those are the words of its name, labels, spec, summary, error message and state detail.
    """
    if task.id in ids_in(text):
        return True
    wanted = words(text)
    if not wanted:
        return True
    own = {*_words_of(_lasting(task)), *_words_of(_passing(task))}
    *whole, last = wanted
    if not own.issuperset(whole):
        return False
    return last in own or (len(last) > 1 and any(word.startswith(last) for word in own))


def ids_in(text: str) -> tuple[str, str]:
    """The ids that a text may be."""
    return text.strip(), f"task_{text.strip()}"


# --- terms ---------------------------------------------------------------------------------------------


def state_term(state: str) -> str:
    """The term of the tasks in a state."""
    return f"s{state}"


STATE_TERMS = frozenset(map(state_term, State))


def entry_of(task: Task) -> IndexEntry:
    """A task's terms, as it stands."""
    given = task.input
    lasting = {_term("k", given.kind), _term("o", given.organization_id), _term("n", given.session_id)}
    if given.root_session_id != given.session_id:
        lasting.add(_term("r", given.root_session_id))
    if given.parent_task_id is not None:
        lasting.add(_term("p", given.parent_task_id))
    lasting.update(_label_term(name, value) for name, value in given.labels.items())
    lasting |= _word_terms(_words_of(_lasting(task)))
    passing = _word_terms(_words_of(_passing(task))) - lasting
    return IndexEntry(task.id, given.created_at, state_term(task.state), frozenset(lasting), frozenset(passing))


def wanted_terms(filter: TaskFilter) -> list[AnyOf]:
    """The terms of the tasks that a filter admits: something of each. `created_*` and `after` have none."""
    wanted = []
    if filter.states is not None and not set(State).issubset(filter.states):
        wanted.append(AnyOf(tuple(dict.fromkeys(map(state_term, filter.states)))))
    if filter.session_id is not None:
        wanted.append(AnyOf((_term("n", filter.session_id),)))
    if filter.root_session_id is not None:
        wanted.append(AnyOf((_term("n", filter.root_session_id), _term("r", filter.root_session_id))))
    if filter.parent_task_id is not None:
        wanted.append(AnyOf((_term("p", filter.parent_task_id),)))
    if filter.organization_id is not None:
        wanted.append(AnyOf((_term("o", filter.organization_id),)))
    if filter.kind is not None:
        wanted.append(AnyOf((_term("k", filter.kind),)))
    wanted += [AnyOf((_label_term(name, value),)) for name, value in filter.labels.items()]
    if filter.text is not None and (asked := words(filter.text)):
        *whole, last = asked
        wanted += [AnyOf((f"w{word}",)) for word in dict.fromkeys(whole)]
        wanted.append(_beginning(last))
    return wanted


def _beginning(word: str) -> AnyOf:
    if len(word) == 1:
        return AnyOf((f"w{word}",))
    if len(word) < STEM:
        return AnyOf((f"w{word}",), prefix=f"x{word}")
    return AnyOf((f"x{word}",)) if len(word) == STEM else AnyOf((), prefix=f"w{word}")


def _word_terms(found: Set[str]) -> set[str]:
    terms = {f"w{word}" for word in found}
    terms.update([f"x{word[:STEM]}" for word in found if len(word) >= STEM])
    return terms


def _label_term(name: str, value: str) -> str:
    return _term("l", f"{len(name)}:{name}={value}")


def _term(sort: str, value: str) -> str:
    if len(value) >= _LONGEST:
        return f"{sort}#{hashlib.sha256(value.encode()).hexdigest()}"
    return sort + value.replace("\0", "\ufdd0")  # which no text of PostgreSQL may hold


# --- what is said of a task ----------------------------------------------------------------------------


def _words_of(texts: Iterable[str]) -> set[str]:
    return set(chain.from_iterable(map(words, texts)))


def _lasting(task: Task) -> Iterator[str]:
    given = task.input
    yield given.display_name
    for label in given.labels.items():
        yield from label
    yield from _first(_texts_in(given.spec))


def _passing(task: Task) -> Iterator[str]:
    if task.core.spec is not None:
        yield from _first(_texts_in(task.core.spec))
    outcome = task.outcome
    for text in (task.live.state_detail, outcome.summary, None if outcome.error is None else outcome.error.message):
        if text is not None:
            yield text


def _first(texts: Iterable[str]) -> Iterator[str]:
    left = SEARCHED
    for text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def _texts_in(value: JSON) -> Iterator[str]:
    """The texts of a document, not its names, in their order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts_in(each)
