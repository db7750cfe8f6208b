"""The receiver in docs/webhooks.md verifies what Outrider sends, and takes it once."""

import re
import threading
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import pytest

from outrider import Outrider, WorkerSettings
from outrider.runtime.clock import SystemClock
from outrider.runtime.webhooks.duty import Webhooking
from outrider.runtime.webhooks.hooks import DEFAULT_EVENTS
from outrider.runtime.webhooks.stored import EVENTS
from outrider.testing import open_test
from tests.webhooks.receivers import LOOPBACK

PAGE = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()


@pytest.mark.anyio
async def test_the_receiver_of_the_page_takes_a_webhook_once_and_the_ping_of_a_test(capsys: pytest.CaptureFixture[str]):
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    program: dict[str, Any] = {"__name__": "receiver"}
    exec(compile(source, "webhooks.md", "exec"), program)
    program["Receiver"].log_message = lambda *_: None
    app = Outrider(WorkerSettings())

    @app.tool
    async def add(a: int) -> int:
        return a + 1

    with HTTPServer(("127.0.0.1", 0), program["Receiver"]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        async with open_test(app, webhooks=LOOPBACK, clock=SystemClock()) as runtime:
            url = f"http://127.0.0.1:{server.server_port}/"
            hook = await runtime.webhooks.create(url, secret=program["SECRET"])
            forged = await runtime.webhooks.create(url)
            session = await runtime.sessions.create()
            await session.spawn("add", a=1)
            await runtime.run_until_idle()
            duty = Webhooking(runtime.services)
            await duty.once()
            (sent,) = await runtime.webhooks.deliveries(hook.id)
            pinged = await runtime.webhooks.test(hook.id)
            await runtime.webhooks.replay(hook.id, [sent.id])
            await duty.once()
            await duty.leave()
            (refused,) = await runtime.webhooks.deliveries(forged.id)
        server.shutdown()
        thread.join()
    assert capsys.readouterr().out == "task.terminal succeeded\npinged\n"
    assert (sent.status, pinged.status, refused.tries[0].status) == ("delivered", 204, 401)


def test_every_event_is_on_the_page():
    assert re.findall(r"^\| `(\w+)` \| `task\.(\w+)`", PAGE, re.MULTILINE) == [(each, each) for each in EVENTS]
    assert f"it is {' and '.join(f'`{each}`' for each in DEFAULT_EVENTS)}" in PAGE
