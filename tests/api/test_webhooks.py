"""The routes of webhooks say what the façade says."""

import pytest

from tests.api.conftest import Api

pytestmark = pytest.mark.anyio


async def test_an_endpoint_is_made_changed_tried_and_deleted(api: Api):
    made = await api.post("/v1/webhooks", json={"url": "https://hooks.example/x", "events": ["terminal"]})
    assert made.status_code == 201
    hook = made.json()
    assert hook["secret"].startswith("whsec_")
    assert made.headers["Cache-Control"] == "no-store"
    path = f"/v1/webhooks/{hook['id']}"
    assert "secret" not in (await api.get(path)).json()
    changed = await api.patch(path, json={"events": ["message", "progress"]})
    assert changed.json()["events"] == ["message", "progress"]
    rotated = (await api.post(f"{path}/secret", json={})).json()
    assert (rotated["secrets"], rotated["secret"] != hook["secret"]) == (2, True)
    assert (await api.post(f"{path}/disable", json={"reason": "noisy"})).json()["disabled_reason"] == "noisy"
    assert (await api.post(f"{path}/replay", json={})).json()["code"] == "conflict"
    assert (await api.post(f"{path}/enable")).json()["disabled_at"] is None
    assert (await api.post(f"{path}/replay", json={})).json() == {"count": 0}
    assert (await api.get(f"{path}/deliveries?status=dead")).json() == {"items": [], "next": None}
    assert (await api.get(f"{path}/deliveries/dlv_none")).json()["code"] == "delivery_not_found"
    assert [each["id"] for each in (await api.get("/v1/webhooks")).json()["items"]] == [hook["id"]]
    assert (await api.delete(path)).status_code == 204
    assert (await api.get(path)).json()["code"] == "webhook_not_found"


async def test_a_task_has_webhooks_of_its_own(api: Api):
    session = await api.session()
    task = await api.task(session, spec={"name": "work"}, webhooks=["https://a.example/"])
    added = await api.post(f"/v1/tasks/{task}/webhooks", json={"url": "https://b.example/"})
    assert added.json()["task_id"] == task
    found = (await api.get(f"/v1/tasks/{task}/webhooks")).json()["items"]
    assert sorted(each["url"] for each in found) == ["https://a.example/", "https://b.example/"]
    assert (await api.get("/v1/webhooks")).json()["items"] == []


async def test_a_place_that_may_not_be_reached_is_a_problem(api: Api):
    refused = await api.post("/v1/webhooks", json={"url": "http://169.254.169.254/latest"})
    assert (refused.status_code, refused.json()["code"]) == (422, "address_refused")
    for body in ({"url": "https://a.example/", "events": []}, {"url": "https://a.example/", "events": ["x"]}, {}):
        assert (await api.post("/v1/webhooks", json=body)).status_code == 422
