"""Tasks over HTTP, from their creation to their end, done by a program outside."""

import asyncio

import pytest

from outrider import Outrider
from tests.api.conftest import Api, opened
from tests.kinds.stage import until

pytestmark = pytest.mark.anyio


async def claimed(api: Api, **given: object) -> tuple[str, str]:
    """The path of a task that a program holds, and that of its attempt."""
    path = f"/v1/tasks/{await api.task(await api.session(), **given)}"
    (held,) = (await api.post("/v1/external/claim", json={"holder": "me"})).json()["items"]
    return path, f"{path}/attempts/{held['attempt']}"


async def test_an_outside_program_reports_asks_hears_the_answer_and_ends_its_task(api: Api):
    path, attempt = await claimed(api)
    told = await api.post(f"{attempt}/report", json={"current": 1, "total": 4, "output": "hello\n"})
    assert told.json()["progress"]["current"] == 1
    asked = await api.post(f"{attempt}/ask", json={"prompt": "How many?", "expected": {"type": "integer"}})
    assert (await api.post(f"{attempt}/give-back")).json()["state"] == "awaiting_input"

    late = await api.post(f"{attempt}/succeed", json={"result": 1})
    assert (late.status_code, late.json()["code"]) == (409, "lease_lost")
    wrong = await api.post(f"{path}/answer", json={"answer": "many"})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid_answer")
    tag = (await api.get(path)).headers["etag"]
    given = {"answer": 3, "request_id": asked.json()["id"], "by": "ada"}
    stale = await api.post(f"{path}/answer", json=given, headers={"If-Match": '"0-00000000"'})
    assert (stale.status_code, stale.json()["code"]) == (412, "outdated")
    tags = f'"other", "0-00000000", {tag}'
    assert (await api.post(f"{path}/answer", json=given, headers={"If-Match": tags})).status_code == 200
    twice = await api.post(f"{path}/answer", json=given)
    assert (twice.status_code, twice.json()["code"]) == (409, "request_closed")
    (request,) = (await api.get(f"{path}/requests")).json()["items"]
    assert (request["answer"], request["answered_by"], request["answered_via"]) == (3, "ada", "http")

    (again,) = (await api.post("/v1/external/claim", json={"holder": "me"})).json()["items"]
    attempt = f"{path}/attempts/{again['attempt']}"
    ended = await api.post(f"{attempt}/succeed", json={"result": {"pages": 3}, "summary": "done"})
    assert (ended.json()["state"], ended.json()["summary"]) == ("succeeded", "done")
    assert (await api.get(f"{path}/result")).json() == {"pages": 3}
    output = (await api.get(f"{path}/output/page")).json()
    assert ([each["text"] for each in output["items"]], output["next"], output["is_ended"]) == (["hello\n"], 6, True)
    assert (await api.get(f"{path}/output/page", params={"start": 6})).json()["items"] == []
    assert len((await api.get(f"{path}/attempts")).json()["items"]) == 2


async def test_a_failure_is_told_with_its_kind_and_can_be_retried_by_hand_alone_or_with_others(api: Api):
    path, attempt = await claimed(api, labels={"team": "a"})
    early = await api.get(f"{path}/result")
    assert (early.status_code, early.json()["code"]) == (409, "wait_timeout")
    assert (await api.post(f"{path}/retry")).json()["code"] == "illegal_move"
    await api.post(f"{attempt}/fail", json={"message": "no host", "kind": "timeout", "retryable": False})
    failed = await api.get(f"{path}/result")
    assert (failed.status_code, failed.json()["code"]) == (409, "task_failed")
    again = await api.post(f"{path}/retry")
    assert (again.status_code, again.json()["retry_of"]) == (201, path.rpartition("/")[2])
    ids = [path.rpartition("/")[2], again.json()["id"], "task_none"]
    told = (await api.post("/v1/tasks:retry", json={"ids": ids})).json()
    assert set(told["retried"]) == {ids[0]}
    assert told["left"] == {ids[1]: "illegal_move", "task_none": "task_not_found"}
    told = (await api.post("/v1/tasks:retry", json={"filter": {"labels": {"team": "a"}}})).json()
    assert (set(told["retried"]), told["left"]) == ({ids[0]}, {})
    assert (await api.post("/v1/tasks:retry", json={})).json()["code"] == "invalid_arguments"


async def test_a_cancel_names_what_it_did_and_the_program_hears_of_it(api: Api):
    path, attempt = await claimed(api)
    stale = await api.post(f"{path}/cancel", headers={"If-Match": '"9-00000000"'})
    assert (stale.status_code, stale.json()["code"]) == (412, "outdated")
    weak = await api.post(f"{path}/cancel", headers={"If-Match": "W/" + (await api.get(path)).headers["etag"]})
    assert (weak.status_code, weak.json()["code"]) == (412, "precondition_failed")
    receipt = (await api.post(f"{path}/cancel", json={"reason": "enough", "by": "ada"})).json()
    assert receipt["requested"] == [path.rpartition("/")[2]]
    assert (await api.post(f"{attempt}/report")).json()["cancel_requested_at"] is not None
    assert (await api.post(f"{attempt}/stopped")).json()["state"] == "canceled"
    assert (await api.get(f"{path}/result")).json()["code"] == "task_canceled"
    session_id = await api.session()
    ids = [await api.task(session_id) for _ in range(3)]
    told = (await api.post("/v1/tasks:cancel", json={"filter": {"session_id": session_id}})).json()
    assert sorted(told["canceled"]) == sorted(ids)
    assert (await api.delete(path)).json() == {"tasks": 1}
    assert (await api.post("/v1/tasks:prune", json={"older_than": 0})).json()["tasks"] == 3


async def test_many_are_created_at_once_or_none_and_each_key_once(api: Api):
    path = f"/v1/sessions/{await api.session()}/tasks/bulk"
    order = {"kind": "external", "idempotency_key": "a"}
    made = (await api.post(path, json={"tasks": [order, {"kind": "external", "spec": {"name": "b"}}]})).json()["items"]
    assert [each["is_new"] for each in made] == [True, True]
    again = (await api.post(path, json={"tasks": [order]})).json()["items"]
    assert (again[0]["is_new"], again[0]["task"]["id"]) == (False, made[0]["task"]["id"])
    wrong = await api.post(path, json={"tasks": [{"kind": "external"}, {"kind": "nothing"}]})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "unknown_kind")
    assert len((await api.get("/v1/tasks")).json()["items"]) == 2


async def test_a_wait_is_woken_by_the_end_and_bounded_without(api: Api):
    path, attempt = await claimed(api)
    task_id = path.rpartition("/")[2]
    other = await api.task(await api.session())
    assert (await api.get(f"{path}/wait", params={"timeout": 0.01})).json()["state"] == "running"
    assert (await api.get(f"{path}/wait", params={"timeout": 61})).status_code == 422
    one = asyncio.create_task(api.get(f"{path}/wait"))
    any_of = {"task_ids": [task_id, other], "any": True}
    many = asyncio.create_task(api.post("/v1/tasks:wait", json=any_of))
    await asyncio.sleep(0)
    await api.post(f"{attempt}/succeed")
    assert (await one).json()["state"] == "succeeded"
    assert ((await many).json()["is_over"], len((await many).json()["items"])) == (True, 2)
    told = await api.post("/v1/tasks:wait", json={**any_of, "any": False, "timeout": 0})
    assert told.json()["is_over"] is False
    lost = asyncio.create_task(api.get(f"/v1/tasks/{other}/wait"))
    await asyncio.sleep(0.01)
    api.app.state.ending.set()
    assert (await lost).json()["state"] == "queued"


async def test_a_cancel_that_waits_answers_with_its_receipt_once_all_has_stopped_or_the_server_ends(api: Api):
    path, attempt = await claimed(api)
    task_id = path.rpartition("/")[2]
    stopping = asyncio.create_task(api.post(f"{path}/cancel", json={"wait": 60}))
    await until(api.runtime, lambda task: task.id == task_id and task.core.cancel_requested_at is not None)
    await api.post(f"{attempt}/stopped")
    told = (await stopping).json()
    assert (told["canceled"], told["requested"], told["states"]) == ([task_id], [], {task_id: "canceled"})
    path, _ = await claimed(api)
    task_id = path.rpartition("/")[2]
    session = f"/v1/sessions/{(await api.runtime.tasks.get(task_id)).input.session_id}"
    deleting = asyncio.create_task(api.delete(session, params={"cancel": True}))
    await until(api.runtime, lambda task: task.id == task_id and task.core.cancel_requested_at is not None)
    canceling = asyncio.create_task(api.post(f"{path}/cancel", json={"wait": 60}))
    await asyncio.sleep(0.01)
    api.app.state.ending.set()
    assert (await canceling).json()["requested"] == [task_id]
    assert ((await deleting).status_code, (await deleting).json()["code"]) == (409, "not_ended")


async def test_messages_go_both_ways_and_a_task_is_told_with_its_thread(api: Api):
    path = f"/v1/tasks/{await api.task(await api.session())}"
    first = (await api.post(f"{path}/messages", json={"content": "one"})).json()
    second = await api.post(f"{path}/messages", json={"content": {"n": 2}, "in_reply_to": first["id"]})
    assert second.status_code == 201
    listed = (await api.get(f"{path}/messages", params={"after": first["id"]})).json()["items"]
    assert [each["id"] for each in listed] == [second.json()["id"]]
    assert len((await api.get(path, params={"thread": True})).json()["thread"]) == 2
    assert "thread" not in (await api.get(path)).json()


async def test_a_task_moves_to_another_store_as_a_document(api: Api):
    path = f"/v1/tasks/{await api.task(await api.session(), spec={'name': 'here'})}"
    document = (await api.get(f"{path}/export")).json()
    async with opened(Outrider()) as there:
        made = await there.post("/v1/tasks:import", json={"document": document})
        assert (made.status_code, made.json()["spec"]) == (201, {"name": "here"})
        again = await there.post("/v1/tasks:import", json={"document": document})
        assert (again.status_code, again.json()["code"]) == (409, "already_exists")
    assert (await api.post("/v1/tasks:give-away", json={"document": document})).json()["state"] == "canceled"


async def test_what_is_asked_of_a_task_beside_its_record(api: Api):
    session_id = await api.session()
    task_id = await api.task(session_id)
    path = f"/v1/tasks/{task_id}"
    assert (await api.get("/v1/tasks:find", params={"part": task_id[-8:]})).json()["id"] == task_id
    assert (await api.get(f"{path}/explanation")).json()["because"]
    assert (await api.get(f"{path}/usage")).json()["requests"] == 0
    assert (await api.get(f"{path}/steps")).json() == {"items": [], "next": None}
    for tree in (f"{path}/tree", f"/v1/sessions/{session_id}/tree"):
        assert [each["id"] for each in (await api.get(tree)).json()["items"]] == [task_id]
    assert (await api.put(f"{path}/priority", json={"priority": 5})).json()["priority"] == 5
    assert (await api.post(f"{path}/fork")).json()["code"] == "illegal_move"
    for beside in ("attempts", "steps", "requests", "messages", "output/page", "tree", "usage", "explanation"):
        assert (await api.get(f"/v1/tasks/task_none/{beside}")).json()["code"] == "task_not_found"
