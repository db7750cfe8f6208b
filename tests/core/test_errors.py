"""The error tree: the drawing in its docstring is the tree, and codes stay as they are."""

import inspect
import re

import pytest

from outrider.core import errors
from outrider.core.errors import NotFound, OutriderError, Parked, Superseded, TaskFailed, TooLarge, UnknownName

CLASSES = [
    one
    for _, one in inspect.getmembers(errors, inspect.isclass)
    if issubclass(one, OutriderError) and one.__module__ == errors.__name__
]

# Programs compare with these: one may be added, none may change.
CODES = """
    address_refused already_exists cannot_fork conflict connection_required copy_differs delivery_not_found denied
    error failure file_not_found forbidden idempotency_conflict illegal_move in_use invalid_answer invalid_arguments
    invalid_link invalid_path invalid_schema issuer_unavailable key_not_found lease_lost limit_reached link_expired
    not_ended not_found organization_not_found outdated rate_limited refused request_closed request_not_found
    secret_sealed server_differs server_error server_failed server_foreign server_unreachable
    session_busy session_closed session_not_found store_closed store_corrupt store_error store_failed
    store_foreign store_full store_locked store_newer store_read_only store_unavailable task_canceled task_failed
    task_finished task_not_found too_large unauthenticated unknown_agent unknown_connection unknown_engine
    unknown_kind unknown_model unknown_name unknown_step unknown_tool wait_timeout webhook_not_found worker_not_found
"""


def drawn() -> dict[str, tuple[str, list[str]]]:
    """The drawing: the parent and the codes of each class."""
    tree: dict[str, tuple[str, list[str]]] = {}
    path = {0: "OutriderError"}
    last = ""
    for line in (errors.__doc__ or "").splitlines():
        row = re.match(r"    ([│├└─ ]+)([A-Z]\w+) *(.*)", line)
        more = re.match(r"    │ {20,}([a-z_, ]+)$", line)
        if row:
            depth = len(row[1]) // 4
            path[depth] = last = row[2]
            codes = re.fullmatch(r"[a-z_]+(, [a-z_]+)*,?", row[3].split(":")[0])
            tree[last] = (path[depth - 1], re.findall(r"[a-z_]+", codes[0]) if codes else [])
        elif more:
            tree[last][1].extend(re.findall(r"[a-z_]+", more[1]))
    return tree


def test_the_drawing_shows_every_error_under_its_parent():
    assert {name: parent for name, (parent, _) in drawn().items()} == {
        one.__name__: one.__bases__[0].__name__ for one in CLASSES if one is not OutriderError
    }


@pytest.mark.parametrize("name", drawn())
def test_the_drawing_names_the_codes_of_each_leaf(name: str):
    one, (_, codes) = getattr(errors, name), drawn()[name]
    if one.__subclasses__():
        assert codes == []
    elif one in (NotFound, UnknownName):
        noun = (lambda code: code.removesuffix("_not_found")) if one is NotFound else lambda code: code[8:]
        assert [_made(one, noun(code)).code for code in codes] == codes
    else:
        assert one.code == codes[0]


def test_codes_are_stable():
    known = {one.code for one in CLASSES} | {code for _, codes in drawn().values() for code in codes}
    assert known == set(CODES.split())


def test_no_two_errors_share_a_code():
    codes = [one.code for one in CLASSES] + [code for _, codes in drawn().values() for code in codes[1:]]
    assert len(codes) == len(set(codes))


def test_an_error_speaks_to_people_and_to_programs():
    error = UnknownName.of("tool", "indx", ["survey", "index"])
    assert (str(error), error.message) == ("unknown tool 'indx'; known: index, survey",) * 2
    assert (error.code, error.details) == ("unknown_tool", {"tool": "indx", "known": ["index", "survey"]})
    assert UnknownName.of("tool", "x", []).message == "unknown tool 'x'; known: none"
    assert NotFound.of("task", "task_x").message == "there is no task 'task_x'"
    assert (
        TooLarge.of("the spec", 300_000, 262_144).message
        == "the spec has 300,000 bytes, more than the limit of 262,144"
    )
    assert TaskFailed("no", kind="timeout").kind == "timeout"


def test_a_code_of_one_error_does_not_leak_into_its_class():
    NotFound.of("task", "task_x")
    assert NotFound.code == "not_found"


def test_control_flow_is_no_exception():
    for one in (Superseded, Parked):
        assert not issubclass(one, Exception)
        assert one.__doc__


def _made(one: type[NotFound] | type[UnknownName], noun: str) -> OutriderError:
    return NotFound.of(noun, "x") if one is NotFound else UnknownName.of(noun, "x", ())
