"""The app of the workers that send webhooks in the tests with real processes."""

import os

from outrider import Outrider, WorkerSettings
from outrider.settings import WebhookSettings

app = Outrider(
    WorkerSettings(
        webhooks=WebhookSettings(
            allow=("127.0.0.1",), send_timeout=float(os.environ.get("SEND_TIMEOUT", "15")), claim=1.0, takeover=0.5
        )
    )
)


@app.tool
async def add(a: int) -> int:
    return a + 1
