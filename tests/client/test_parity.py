"""`Client` has the nouns and verbs of a `Runtime`, with the same arguments; what differs is named here, with why."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from outrider import Client, Runtime
from outrider.client import (
    answer_links,
    archive,
    audit,
    doctor,
    external,
    handles,
    inbox,
    keys,
    organizations,
    problems,
    queue,
    retention,
    secrets,
    sessions,
    tasks,
    webhooks,
)
from outrider.core import errors
from outrider.core.errors import OutriderError
from outrider.runtime import answer_links as answer_links_there
from outrider.runtime import archive as archive_there
from outrider.runtime import audit as audit_there
from outrider.runtime import doctor as doctor_there
from outrider.runtime import external as external_there
from outrider.runtime import handles as handles_there
from outrider.runtime import inbox as inbox_there
from outrider.runtime import keys as keys_there
from outrider.runtime import organizations as organizations_there
from outrider.runtime import queue as queue_there
from outrider.runtime import retention as retention_there
from outrider.runtime import secrets as secrets_there
from outrider.runtime import sessions as sessions_there
from outrider.runtime import tasks as tasks_there
from outrider.runtime.webhooks import endpoints as webhooks_there

NOUNS: list[tuple[type[Any], type[Any]]] = [
    (Runtime, Client),
    (sessions_there.Sessions, sessions.Sessions),
    (tasks_there.Tasks, tasks.Tasks),
    (inbox_there.Inbox, inbox.Inbox),
    (inbox_there.SessionInbox, inbox.SessionInbox),
    (queue_there.Queue, queue.Queue),
    (doctor_there.Doctor, doctor.Doctor),
    (external_there.ExternalTasks, external.ExternalTasks),
    (retention_there.RetentionPolicies, retention.RetentionPolicies),
    (archive_there.Archive, archive.Archive),
    (webhooks_there.Webhooks, webhooks.Webhooks),
    (answer_links_there.AnswerLinks, answer_links.AnswerLinks),
    (organizations_there.Organizations, organizations.Organizations),
    (keys_there.Keys, keys.Keys),
    (audit_there.Audit, audit.Audit),
    (secrets_there.Secrets, secrets.Secrets),
    (handles_there.SessionHandle, handles.SessionHandle),
    (handles_there.TaskHandle, handles.TaskHandle),
]

ABSENT = {
    "Runtime.backup": "it writes a file on the machine of the database",
    "Runtime.ledger": "there is no store underneath",
    "Runtime.within": "the key says how far it reaches",
    "Runtime.work": "there is no worker inside",
    "Audit.record": "a server records what it is asked by itself; nobody else says what is in its log",
    "AnswerLinks.claims": "the server records by it who answered; what a link is about `form` tells",
    "Secrets.open_sealed": "no secret leaves the machine of the server",
    "Secrets.seal": "what is sealed there is opened there",
    "Webhooks.deliver": "every server and worker does it by itself",
    "Doctor.readiness": "it is for who runs the server; the route /ready tells it",
    "Doctor.is_alive": "it looks at the locks of the machine",
}
MORE = {
    "Client.close": "a client is closed; a runtime is by who opened it",
    "Client.url": "it says where the server is",
}
OF_ALL = {"Queue", "Organizations", "Keys", "Audit"}
"""Nouns that name an organization: an operator's key has those of all."""
WITHOUT = {
    "organization_id": "the key says of which organization",
    "parent_task_id": "only the code of a running task says whose child another one is",
}
OTHERWISE = {
    r"\bSession \| str\b": "SessionRecord | str",
    r"\bTask\b": "TaskRecord",
}
"""What is told of inside is a core value there, and its public record here."""


def public(kind: type[Any]) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def nouns_of(made: object) -> set[str]:
    return {name for name in vars(made) if not name.startswith("_") and name != "services"}


def parameters(verb: Any, *, is_there: bool, of_all: bool = False) -> list[tuple[str, Any, Any, str]]:
    found = []
    for each in inspect.signature(verb).parameters.values():
        if is_there and each.name in WITHOUT and not (of_all and each.name == "organization_id"):
            continue
        found.append((each.name, each.kind, each.default, _told(each.annotation, is_there)))
    return found


def _told(annotation: Any, is_there: bool) -> str:
    told = re.sub(r"\bbuiltins\.", "", str(annotation))
    for theirs, ours in OTHERWISE.items() if is_there else ():
        told = re.sub(theirs, ours, told)
    return told


@pytest.mark.parametrize(("there", "here"), NOUNS, ids=lambda kind: kind.__name__)
def test_a_client_has_each_verb_with_the_same_arguments(there: type[Any], here: type[Any]):
    absent = {name for name in public(there) if f"{there.__name__}.{name}" in ABSENT}
    more = {name for name in public(here) if f"{here.__name__}.{name}" in MORE}
    assert public(there) - absent == public(here) - more
    for name in sorted(public(there) - absent):
        theirs, ours = getattr(there, name), getattr(here, name)
        if not callable(theirs):
            continue
        of_all = there.__name__ in OF_ALL
        assert parameters(theirs, is_there=True, of_all=of_all) == parameters(ours, is_there=False), name
        returns = inspect.signature(theirs).return_annotation, inspect.signature(ours).return_annotation
        assert _told(returns[0], True) == _told(returns[1], False), name
        assert inspect.iscoroutinefunction(theirs) == inspect.iscoroutinefunction(ours), name


def test_a_client_has_each_noun():
    client = Client("http://127.0.0.1:1")
    absent = {name.partition(".")[2] for name in ABSENT if name.startswith("Runtime.")}
    assert nouns_of(Runtime.__new__(Runtime)) == set()
    there = set(re.findall(r"self\.([a-z_]+) = ", inspect.getsource(Runtime.__init__))) - {"services", "work"}
    assert there - absent == nouns_of(client)


def test_every_code_of_the_tree_becomes_its_class_again():
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, OutriderError):
            found = problems.class_of(kind.code)
            assert found is kind, name
            error = problems.made(found, "told", {"retry_after": 3}, kind.code)
            assert (type(error), error.code, error.message, str(error)) == (kind, kind.code, "told", "told")
    for code, kind in (
        ("session_not_found", errors.NotFound),
        ("unknown_tool", errors.UnknownName),
        ("store_closed", errors.StoreUnavailable),
    ):
        assert problems.class_of(code) is kind


def test_a_code_of_a_newer_server_becomes_the_class_of_its_status_and_keeps_its_code():
    for status, kind in (
        (404, errors.NotFound),
        (409, errors.Conflict),
        (422, errors.Refused),
        (500, errors.ServerFailed),
    ):
        error = problems.error_of(
            status, "application/problem+json", b'{"code": "brand_new", "detail": "x"}', "http://h", "GET /v1/x"
        )
        assert (type(error), error.code) == (kind, "brand_new")
