"""What holds for all routes: problems, idempotency, tags, pages, ugly input."""

import json
import re

import httpx2
import pytest
from prometheus_client import CollectorRegistry

from outrider import Outrider
from outrider.api import create_api
from outrider.api.problems import BY_ERROR
from outrider.core import errors
from outrider.settings import AccessSettings, ServeSettings
from tests.api.conftest import Api, opened

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}


async def test_every_error_is_a_problem_with_a_stable_code(api: Api):
    session_id = await api.session()
    for method, path, given, status, code in (
        ("GET", "/v1/tasks/task_none", {}, 404, "task_not_found"),
        ("GET", "/v1/nothing", {}, 404, "route_not_found"),
        ("PUT", "/v1/tasks", {}, 405, "method_not_allowed"),
        ("GET", "/v1/tasks?colour=red", {}, 422, "invalid_arguments"),
        ("POST", "/v1/sessions", {"json": {"titel": "x"}}, 422, "invalid_arguments"),
        ("POST", "/v1/sessions", {"content": b"{}", "headers": {"content-type": "text/plain"}}, 415, None),
        ("POST", f"/v1/sessions/{session_id}/tasks", {"json": {"kind": "none"}}, 422, "unknown_kind"),
    ):
        told = await api.request(method, path, **given)
        assert (told.status_code, told.headers["content-type"]) == (status, "application/problem+json"), told.text
        problem = told.json()
        assert set(problem) == {"type", "title", "status", "detail", "code", "details", "request_id"}
        assert problem["status"] == status
        assert code is None or problem["code"] == code
        assert problem["request_id"] == told.headers["x-request-id"]


async def test_a_key_that_is_twice_in_one_object_is_refused_and_nothing_else_is(api: Api):
    path = f"/v1/sessions/{await api.session()}/tasks"
    for spec, named in {
        b'{"a":1,"a":1}': "'a'",
        b'{"b":[{"x:y":":", "x:y":2}]}': "'x:y'",
        b'{"c":1,"d":"\\u003a","\\u0063":2}': "'c'",  # the same however it is written
        b'{"n":%d,"e":{"e":1,"e":2}}' % (1 << 70): "'e'",
        b'{"' + b"k" * 9000 + b'":1,"' + b"k" * 9000 + b'":2}': "'kkk",
    }.items():
        told = await api.post(path, content=b'{"kind":"external","spec":' + spec + b"}", headers=JSON)
        assert (told.status_code, told.json()["code"], named in told.json()["detail"]) == (400, "invalid_json", True)
    for spec in (
        b'{"a":{"a":{"a" : "a:a"}}, "b":"\\":\\"", ":":":"}',
        b'{"\\u003a":"\\u003A","b":[{"c":1},{"c":1}]}',
    ):
        made = await api.post(path, content=b'{"kind":"external","spec":' + spec + b"}", headers=JSON)
        assert (made.status_code, made.json()["spec"]) == (201, json.loads(spec))


async def test_head_is_answered_as_get_without_the_body(api: Api):
    session_id = await api.session()
    await api.put(f"/v1/sessions/{session_id}/files/a.txt", content=b"text")
    for path in (
        "/v1/tasks?limit=5",
        f"/v1/sessions/{session_id}",
        f"/v1/sessions/{session_id}/files/a.txt",
        f"/v1/sessions/{session_id}/export",
        f"/v1/sessions/{session_id}/tree",
    ):
        got, told = await api.get(path), await api.head(path)
        assert (told.status_code, told.content) == (200, b"")
        assert {**told.headers, "x-request-id": ""} == {**got.headers, "x-request-id": ""}
    stream = await api.head(f"/v1/sessions/{session_id}/events")  # which is over with its head
    assert (stream.status_code, stream.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    assert (await api.head("/v1/tasks/task_none")).status_code == 404
    other = await api.head("/v1/tasks:wait")
    assert (other.status_code, other.headers["allow"]) == (405, "POST")
    assert (await api.put("/v1/tasks")).headers["allow"] == "GET, HEAD"


async def test_head_of_metrics_and_of_an_answer_page_is_answered_and_changes_nothing(api: Api):
    task = await api.task(await api.session())
    attempt = (await api.runtime.external.claim("h"))[0].attempt
    asked = await api.runtime.external.ask(task, attempt, "Go?", expected={"type": "boolean"})
    page = (await api.runtime.answer_links.create(asked.id)).path
    got, told = await api.get(page), await api.head(page)
    assert (told.status_code, told.content) == (200, b"")
    assert {**told.headers, "x-request-id": ""} == {**got.headers, "x-request-id": ""}
    assert (await api.head("/answer/e30.e30")).status_code == 404
    assert (await api.runtime.tasks.requests(task))[0].status == "pending"
    app = create_api(api.runtime, registry=CollectorRegistry())
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://outrider") as client:
        metrics = await client.head("/metrics")
        assert (metrics.status_code, metrics.content) == (200, b"")
    guarded = ServeSettings(access=AccessSettings())
    app = create_api(api.runtime, guarded, registry=CollectorRegistry())
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://outrider") as client:
        assert (await client.head("/metrics")).status_code == 401


async def test_probes_may_ask_with_head_and_who_asks_otherwise_is_told_how(api: Api):
    for path in ("/health", "/ready"):
        assert (await api.head(path)).status_code == (await api.get(path)).status_code
        other = await api.put(path)
        assert (other.status_code, other.headers["allow"]) == (405, "GET, HEAD")


async def test_a_create_that_is_repeated_with_its_key_answers_with_the_stored_task(api: Api):
    path = f"/v1/sessions/{await api.session()}/tasks"
    key = {"Idempotency-Key": "once"}
    first = await api.post(path, json={"kind": "external"}, headers=key)
    again = await api.post(path, json={"kind": "external"}, headers=key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    assert again.json() == first.json()
    other = await api.post(path, json={"kind": "external", "priority": 5}, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")


async def test_a_key_where_none_counts_is_refused_with_what_to_use_instead_and_nothing_is_made(api: Api):
    session_id = await api.session()
    task_id = await api.task(session_id)
    for path, body, named in (
        ("/v1/sessions", {}, "`id` in the body"),
        (f"/v1/sessions/{session_id}/fork", {}, "`id` in the body"),
        (f"/v1/tasks/{task_id}/retry", {}, "`id` in the body"),
        (f"/v1/sessions/{session_id}/tasks/bulk", {"tasks": [{"kind": "external"}]}, "`idempotency_key` or an `id`"),
        (f"/v1/sessions/{session_id}/send", {"content": "x"}, "leave it out"),
        ("/v1/keys", {"name": "x"}, "leave it out"),
        ("/v1/tasks:wait", {"task_ids": [task_id]}, "leave it out"),
    ):
        told = await api.post(path, json=body, headers={"idempotency-KEY": "k"})
        assert (told.status_code, told.json()["code"]) == (422, "invalid_arguments"), path
        assert named in told.json()["detail"]
    assert [each.id for each in await api.runtime.sessions.list()] == [session_id]
    assert [each.id for each in await api.runtime.tasks.list()] == [task_id]


async def test_every_route_refuses_a_parameter_that_it_does_not_have_by_its_name(api: Api):
    asked = 0
    for path, methods in api.app.openapi()["paths"].items():
        for method in methods:
            told = await api.request(method, re.sub(r"\{.*?\}", "1", path) + "?bogus=1&a%C3%BC=", json={})
            assert told.status_code == 422, (method, path, told.text)
            assert {"query.bogus", "query.aü"} <= {each["at"] for each in told.json()["details"]["places"]}
            asked += 1
    assert asked > 100
    told = await api.get("/v1/sessions?label=a=b")
    assert told.json()["detail"] == "query.label: this is no parameter of this route; there are after, limit"
    assert (await api.get("/v1/caller?")).status_code == 200


async def test_an_address_whose_bytes_are_no_text_is_refused_and_names_no_file(api: Api):
    session_id = await api.session()
    files = f"/v1/sessions/{session_id}/files"
    for path in (f"{files}/z%ff", f"{files}/z%C3/%A9", f"{files}/z?a=%fe", "/v1/tasks/%80", "/v1/tasks?text=%c3"):
        for method in ("PUT", "GET", "HEAD") if files in path else ("GET", "HEAD"):
            told = await api.request(method, path, content=b"x" if method == "PUT" else None)
            assert told.status_code == 400, (method, path, told.text)
            assert method == "HEAD" or (told.json()["code"], "UTF-8" in told.json()["detail"]) == ("bad_request", True)
    assert (await api.put(f"{files}/z%C3%A9%25ff", content=b"x")).json()["path"] == "/zé%ff"
    assert len(await (await api.runtime.sessions.get(session_id)).files()) == 1


async def test_a_path_with_a_line_break_is_refused_as_one_and_is_no_other_file(api: Api):
    session_id = await api.session()
    files = f"/v1/sessions/{session_id}/files"
    assert (await api.put(f"{files}/a", content=b"x")).status_code == 200
    for path in ("a%0A", "%0A", "a%0Ab", "a%0D%0Ab", "a%0A/b", "a%09"):
        for method in ("PUT", "GET", "DELETE"):
            told = await api.request(method, f"{files}/{path}", content=b"y" if method == "PUT" else None)
            assert (told.status_code, told.json()["code"]) == (422, "invalid_path"), (method, path)
    assert (await api.get(f"{files}/a")).content == b"x"


async def test_a_record_that_has_not_changed_is_not_sent_again(api: Api):
    path = f"/v1/tasks/{await api.task(await api.session())}"
    tag = (await api.get(path)).headers["etag"]
    assert (await api.get(path, headers={"If-None-Match": tag})).status_code == 304
    await api.runtime.queue.reprioritize(path.rpartition("/")[2], 7)
    assert (await api.get(path, headers={"If-None-Match": tag})).json()["priority"] == 7


async def test_a_list_is_read_page_by_page_to_its_end(api: Api):
    session_id = await api.session()
    made = [await api.task(session_id, labels={"n": str(n)}) for n in range(5)]
    found, after = [], None
    while True:
        page = (
            await api.get(f"/v1/sessions/{session_id}/tasks", params={"limit": 2} | after if after else {"limit": 2})
        ).json()
        found += [each["id"] for each in page["items"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert found == made[::-1]
    only = await api.get("/v1/tasks", params={"label": "n=3", "state": ["queued", "running"]})
    assert [each["id"] for each in only.json()["items"]] == [made[3]]


async def test_a_span_of_creation_has_its_first_moment_and_not_its_last(api: Api):
    session_id = await api.session()
    for _ in range(3):
        await api.task(session_id)
    made = [each["created_at"] for each in (await api.get("/v1/tasks")).json()["items"]]
    for name, found in (
        ("created_after", [each for each in made if each >= made[1]]),
        ("created_before", [each for each in made if each < made[1]]),
    ):
        told = (await api.get("/v1/tasks", params={name: made[1]})).json()["items"]
        assert [each["created_at"] for each in told] == found, name
    described = {
        each["name"]: each.get("description") for each in api.app.openapi()["paths"]["/v1/tasks"]["get"]["parameters"]
    }
    assert described["created_after"] == "Tasks made at this moment or after it."


async def test_ugly_bodies_and_names_are_refused_with_a_reason_and_never_a_fault(api: Api):
    session_id = await api.session()
    path = f"/v1/sessions/{session_id}/tasks"
    bodies = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"kind":"external","spec":{"a":NaN}}',
        b'{"kind":"external","spec":{"a":1e400}}',
        b'{"kind":"external","spec":{"a":%d}}' % (1 << 70),
        b'{"kind":"external","name":"\\ud800"}',
        b'{"kind":"external","labels":{"a":1}}',
        b'{"kind":"external","priority":"1"}',
        b'{"kind":"external","headless":"yes"}',
        b'{"kind":"external","start_at":5}',
        b'{"kind":"external","start_at":"5"}',
        b'{"kind":"external","start_at":"0.5"}',
        b'{"kind":"external","start_at":"2030-01-01T00:00:00"}',
        b'{"kind":"external","delay":-1}',
        b'{"kind":"external","delay":1e300}',
        b'{"kind":"external","spec":' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"kind":"external","spec":' + b'{"a":' * 190 + b"1" + b"}" * 191,
    ]
    for body in bodies:
        told = await api.post(path, content=body, headers=JSON)
        assert told.status_code in (400, 422) or body == bodies[-1], (body[:80], told.text)
        assert told.status_code < 500, (body[:80], told.text)
    for name in ("%00", "%ff", "%ed%a0%80", "..%2f..", "a%0d%0ab", "x" * 4000):
        for told in (await api.get(f"/v1/tasks/{name}"), await api.get(f"/v1/tasks?kind={name}&session_id={name}")):
            assert told.status_code in (200, 400, 404, 422), (name, told.text)


async def test_a_fault_of_ours_is_a_problem_without_its_stack_and_in_the_log(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(type(api.runtime.sessions), "list", broken)
    told = await api.get("/v1/sessions", headers={"X-Request-Id": "mine-1"})
    assert (told.status_code, told.json()["code"], told.json()["request_id"]) == (500, "internal", "mine-1")
    assert "secret" not in told.text
    assert "a secret of the inside" in caplog.text


async def test_each_error_of_the_facade_has_a_status_and_one_that_passes_says_when_to_ask_again(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    for error, status, after in (
        (errors.StoreUnavailable("away"), 503, "2"),
        (errors.StoreFull("full"), 507, "60"),
        (errors.RateLimited("slower", retry_after=3.2), 429, "4"),
        (errors.Unauthenticated("who?"), 401, None),
        (errors.Forbidden("no"), 403, None),
    ):

        async def broken(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(type(api.runtime.sessions), "list", broken)
        told = await api.get("/v1/sessions")
        assert (told.status_code, told.json()["code"], told.headers.get("retry-after")) == (status, error.code, after)


def leaves(kind: type[errors.OutriderError]) -> list[type[errors.OutriderError]]:
    below = [leaf for child in kind.__subclasses__() for leaf in leaves(child)]
    return below or [kind]


def test_no_error_of_the_facade_is_a_fault_of_ours():
    faults = {leaf.__name__ for leaf in leaves(errors.OutriderError) if leaf.__module__ == errors.__name__}
    told = {
        leaf.__name__ for leaf in leaves(errors.OutriderError) if any(issubclass(leaf, kind) for kind, _ in BY_ERROR)
    }
    own = {"Failure", "ServerDiffers", "ServerFailed", "ServerForeign", "ServerUnreachable"}
    assert faults - told == own, "these are raised by the code of tasks, and by clients, alone"


async def test_pages_of_other_origins_may_use_it_only_where_they_were_named():
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    async with opened(Outrider()) as closed:
        assert (await closed.options("/v1/tasks", headers=asked)).status_code == 405
    async with opened(Outrider(), settings=ServeSettings(origins=("https://app.example",))) as open:
        told = await open.options("/v1/tasks", headers=asked)
        assert told.headers["access-control-allow-origin"] == "https://app.example"
        assert (
            "access-control-allow-origin"
            not in (await open.options("/v1/tasks", headers={**asked, "Origin": "https://b"})).headers
        )


async def test_a_server_says_that_it_lives_and_is_not_ready_once_it_ends(api: Api):
    assert (await api.get("/health")).json() == {"status": "alive"}
    assert (await api.get("/ready")).status_code == 200
    api.app.state.ending.set()
    assert (await api.get("/ready")).status_code == 503


async def test_a_path_with_a_line_break_at_its_end_is_another_than_that_of_a_route(api: Api):
    for path in ("/v1/tasks%0A", "/v1/sessions%0A"):
        for method in ("GET", "HEAD"):
            assert (await api.request(method, path)).status_code == 404, (method, path)


async def test_a_list_of_files_says_where_it_goes_on(api: Api):
    session_id = await api.session()
    paths = sorted([*(f"/many/{number}" for number in range(5)), "/" + "é" * 512])  # the longest that there is
    for path in paths:
        assert (await api.put(f"/v1/sessions/{session_id}/files{path}", content=b"x")).status_code == 200
    for limit in (1, 2, 3, 6, 7):
        found, asked = list[str](), {"limit": limit}
        while True:
            page = (await api.get(f"/v1/sessions/{session_id}/files", params=asked)).json()
            found += [each["path"] for each in page["items"]]
            if page["next"] is None:
                break
            asked = {"limit": limit, "after": page["next"]}
        assert found == paths


async def test_of_many_tasks_none_is_made_where_a_key_or_id_of_one_stands_for_another(api: Api):
    session = await api.session()
    path = f"/v1/sessions/{session}/tasks"
    await api.task(session, idempotency_key="k", id="mine")
    plain, other = {"kind": "external"}, {"kind": "external", "spec": {"v": 2}}
    for orders in (
        [{**other, "idempotency_key": "k"}],
        [{**other, "id": "mine"}],
        [{**plain, "idempotency_key": "new"}, {**other, "idempotency_key": "new"}],
        [{**plain, "id": "new"}, {**other, "id": "new"}],
    ):
        answer = await api.post(f"{path}/bulk", json={"tasks": [plain, *orders, plain]})
        assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_conflict"), orders
        assert len((await api.get(path)).json()["items"]) == 1
    same = {**plain, "idempotency_key": "k", "id": "mine"}
    made = await api.post(f"{path}/bulk", json={"tasks": [plain, same, same]})
    assert [each["is_new"] for each in made.json()["items"]] == [True, False, False]


async def test_a_key_stands_for_json_in_which_true_and_one_are_two_and_the_order_of_names_is_none(api: Api):
    session = await api.session()
    task = await api.task(session, spec={"n": 1, "m": [0]})
    for path, body in (
        (f"/v1/sessions/{session}/tasks", lambda n, m: {"kind": "external", "spec": {"n": n, "m": m}}),
        (f"/v1/tasks/{task}/messages", lambda n, m: {"content": {"n": n, "m": m}}),
    ):
        key = {"Idempotency-Key": "once"}
        assert (await api.post(path, json=body(1, [0]), headers=key)).status_code == 201
        text = json.dumps(body(1, [0]), sort_keys=True)[:-1] + " }"
        again = await api.post(path, content=text, headers={**key, "Content-Type": "application/json"})
        assert again.is_success
        for n, m in ((True, [0]), (1.0, [0]), (1, [False])):
            other = await api.post(path, json=body(n, m), headers=key)
            assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict"), (path, n, m)
