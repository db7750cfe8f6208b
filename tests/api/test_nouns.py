"""Sessions, inboxes, files, the queue and workers over HTTP."""

import asyncio

import pytest

from outrider import Outrider
from outrider.settings import ServeSettings
from outrider.testing import Reply, script
from tests.api.conftest import Api, opened

pytestmark = pytest.mark.anyio


async def test_a_session_is_talked_to_forked_closed_reopened_and_deleted():
    app = Outrider()
    app.agent("parrot", model="scripted:parrot")
    script("parrot", lambda _: Reply("hello"))
    async with opened(app, worker=True) as api:
        path = f"/v1/sessions/{await api.session(agent='parrot', budget={'tokens': 100_000})}"
        turn = (await api.post(f"{path}/send", json={"content": "hi"})).json()
        assert (await api.get(f"/v1/tasks/{turn['id']}/wait")).json()["state"] == "succeeded"
        assert (await api.get(f"{path}/turn")).json()["id"] == turn["id"]
        assert (await api.get(path)).json()["turn_id"] == turn["id"]
        assert (await api.get(f"{path}/usage")).json()["accounts"]
        fork = (await api.post(f"{path}/fork", json={"title": "other"})).json()
        assert (fork["forked_from"], fork["title"]) == (path.rpartition("/")[2], "other")
        assert (await api.post(f"{path}/close")).json()["status"] == "closed"
        refused = await api.post(f"{path}/send", json={"content": "hi"})
        assert (refused.status_code, refused.json()["code"]) == (409, "session_closed")
        assert (await api.post(f"{path}/reopen")).json()["status"] == "idle"
        assert (await api.get(f"{path}/grants")).json()["items"] == []
        assert (await api.post(f"{path}/grants/revoke", json={"tool": "x"})).json() == {"changed": False}
        assert len((await api.get("/v1/sessions", params={"limit": 1})).json()["items"]) == 1
        assert (await api.delete(path)).json() == {"tasks": 1}
        assert (await api.get(path)).json()["code"] == "session_not_found"
        assert (await api.get("/v1/sessions/none/turn")).status_code == 404


async def test_a_deletion_waits_for_what_it_cancels_no_longer_than_any_request_does():
    async with opened(Outrider(), settings=ServeSettings(poll=0.05)) as api, asyncio.timeout(30):
        session_id = await api.session()
        task_id = await api.task(session_id, cancel_grace=86_400)
        (held,) = (await api.post("/v1/external/claim", json={"holder": "me"})).json()["items"]
        path = f"/v1/sessions/{session_id}"
        refused = await api.delete(path, params={"cancel": True})
        assert (refused.status_code, refused.json()["code"]) == (409, "not_ended")
        assert (await api.get(f"/v1/tasks/{task_id}")).json()["cancel_requested_at"] is not None
        ended = await api.post(f"/v1/tasks/{task_id}/attempts/{held['attempt']}/fail", json={"message": "stopped"})
        assert ended.status_code == 200, ended.text
        assert (await api.delete(path, params={"cancel": True})).json() == {"tasks": 1}


async def test_an_inbox_is_received_from_renewed_and_acknowledged(api: Api):
    session_id = await api.session()
    path = f"/v1/sessions/{session_id}/inbox"
    assert (await api.post(f"{path}/receive", json={"wait": 0.01})).json()["items"] == []
    task_id = await api.task(session_id, wake="on_terminal")
    await api.post(f"/v1/tasks/{task_id}/cancel")
    assert len((await api.get(path)).json()["items"]) == 1
    (entry,) = (await api.post(f"{path}/receive", json={"wait": 5})).json()["items"]
    assert entry["task"]["state"] == "canceled"
    receipts = {"receipts": [entry["receipt"]]}
    assert (await api.post(f"{path}/renew", json={**receipts, "lease": 5})).json()["good"] == receipts["receipts"]
    assert (await api.post(f"{path}/acknowledge", json=receipts)).json()["good"] == receipts["receipts"]
    assert (await api.post(f"{path}/acknowledge", json=receipts)).json()["gone"] == receipts["receipts"]
    assert (await api.post(f"{path}/receive", json={})).json()["items"] == []


async def test_files_are_uploaded_and_downloaded_whole_in_part_or_not_again(api: Api):
    path = f"/v1/sessions/{await api.session()}/files"
    content = bytes(range(256))
    put = await api.put(f"{path}/a/b c.bin", content=content, headers={"content-type": "application/x-thing"})
    assert (put.json()["path"], put.json()["size"]) == ("/a/b c.bin", 256)
    got = await api.get(f"{path}/a/b c.bin")
    assert (got.content, got.headers["content-type"]) == (content, "application/x-thing")
    assert got.headers["x-content-type-options"] == "nosniff"
    assert (await api.get(f"{path}/a/b c.bin", headers={"If-None-Match": got.headers["etag"]})).status_code == 304
    for asked, part, told in (
        ("bytes=10-19", content[10:20], "bytes 10-19/256"),
        ("bytes=250-", content[250:], "bytes 250-255/256"),
        ("bytes=-6", content[250:], "bytes 250-255/256"),
        ("bytes=0-999", content, "bytes 0-255/256"),
    ):
        found = await api.get(f"{path}/a/b c.bin", headers={"Range": asked})
        assert (found.status_code, found.content, found.headers["content-range"]) == (206, part, told)
    beyond = await api.get(f"{path}/a/b c.bin", headers={"Range": "bytes=256-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, "bytes */256")
    for ignored in ({"Range": "lines=1-2"}, {"Range": "bytes=0-1", "If-Range": '"other"'}, {"Range": "bytes=5-1"}):
        assert (await api.get(f"{path}/a/b c.bin", headers=ignored)).status_code == 200
    assert [each["path"] for each in (await api.get(path)).json()["items"]] == ["/a/b c.bin"]
    large = await api.put(f"{path}/large", content=b"x" * ((1 << 20) + 1))
    assert (large.status_code, large.json()["code"]) == (413, "too_large")
    for trick in ("%2e%2e/x", "a/%2e%2e/%2e%2e/x", "a%5cb", ".tasks/task_x/y", "a%00b", "%ff"):
        refused = await api.put(f"{path}/{trick}", content=b"")
        assert refused.status_code in (422, 404) or trick == "%ff", trick
    assert (await api.delete(f"{path}/a/b c.bin")).json() == {"changed": True}
    assert (await api.get(f"{path}/a/b c.bin")).json()["code"] == "file_not_found"


async def test_limits_and_pauses_are_set_told_and_removed(api: Api):
    limit = {"key": "model:*", "concurrency": 2, "rate": 10, "per": 60.0, "organization_id": None}
    theirs = {**limit, "concurrency": 1, "organization_id": "org_b"}
    for each in (limit, theirs):
        assert (await api.put("/v1/queue/limits", json=each)).json() == each
    assert (await api.get("/v1/queue/limits")).json()["items"] == [limit, theirs]
    for whose in ({}, {"organization_id": "org_b"}):
        removed = await api.delete("/v1/queue/limits", params={"key": "model:*", **whose})
        assert removed.json() == {"changed": True}
    assert (await api.get("/v1/queue/limits")).json()["items"] == []
    assert (await api.put("/v1/queue/pauses", json={"kind": "external", "by": "ada"})).json() == {"changed": True}
    assert (await api.get("/v1/queue/pauses")).json()["items"][0]["by"] == "ada"
    await api.task(await api.session())
    assert (await api.post("/v1/external/claim", json={"holder": "me"})).json()["items"] == []
    assert (await api.delete("/v1/queue/pauses", params={"kind": "external"})).json() == {"changed": True}
    assert len((await api.post("/v1/external/claim", json={"holder": "me"})).json()["items"]) == 1
    assert (await api.put("/v1/queue/pauses", json={})).json()["code"] == "invalid_arguments"
    assert (await api.get("/v1/queue/keys")).json()["items"] == []


async def test_workers_numbers_and_what_is_wrong_are_told(api: Api):
    await api.task(await api.session())
    assert (await api.get("/v1/workers")).json() == {"items": [], "next": None}
    assert (await api.get("/v1/stats", params={"within": 60})).json()["states"]["queued"] == 1
    assert isinstance((await api.get("/v1/doctor")).json()["items"], list)


async def test_what_is_kept_and_for_how_long_is_set_and_told(api: Api):
    assert (await api.get("/v1/retention")).json()["is_own"] is False
    told = (await api.put("/v1/retention", json={"age": 60, "count": 5, "by": "ada"})).json()
    assert (told["age"], told["count"], told["by"]) == (60, 5, "ada")
    assert len((await api.get("/v1/retention/policies")).json()["items"]) == 1
    assert (await api.delete("/v1/retention")).json() == {"changed": True}
    task_id = await api.task(await api.session())
    assert (await api.put(f"/v1/pins/{task_id}", json={"reason": "audit"})).json()["reason"] == "audit"
    assert [each["id"] for each in (await api.get("/v1/pins")).json()["items"]] == [task_id]
    assert (await api.delete(f"/v1/pins/{task_id}")).json() == {"changed": True}
    assert (await api.put("/v1/pins/task_none")).json()["code"] == "task_not_found"


async def test_a_session_of_an_id_that_is_there_is_told_from_one_that_was_made(api: Api):
    made = await api.post("/v1/sessions", json={"id": "session_daily", "title": "first"})
    again = await api.post("/v1/sessions", json={"id": "session_daily", "title": "second"})
    assert (made.status_code, "idempotent-replayed" in made.headers) == (201, False)
    assert (again.status_code, again.headers["idempotent-replayed"], again.json()["title"]) == (200, "true", "first")


async def test_a_key_that_no_two_read_alike_is_refused(api: Api):
    session = (await api.post("/v1/sessions", json={})).json()["id"]
    path, order = f"/v1/sessions/{session}/tasks", {"kind": "external", "spec": {}}
    refused = await api.post(path, json=order, headers=[(b"Idempotency-Key", "é".encode())])
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_arguments")
    assert (await api.get(path)).json()["items"] == []
