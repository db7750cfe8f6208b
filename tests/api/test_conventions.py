"""What holds for all routes: problems, idempotency, tags, pages, ugly input."""

import pytest

from tests.api.conftest import Api

pytestmark = pytest.mark.anyio


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
