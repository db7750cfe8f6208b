"""Follows many event streams at once, over raw sockets, as cheaply as it can: `python -m benchmarks.listener PORT`.

Reads the paths to follow, says when all streams have begun, reads to which id each path must come, and says what was
lost or came twice, and the lags in milliseconds of the last event of each piece that came. All of it lines of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from functools import partial

ID, AT = b"\nid: ", b'"at":"'

LOOK = 0.02
"""Seconds between two looks at how far all have come."""
LOOKS = 750


class Follower(asyncio.Protocol):
    """One stream. Ids are the numbers of a log, so what came is counted against them."""

    def __init__(self, path: str, lags: list[float]) -> None:
        self._path = path
        self._lags = lags
        self._rest = b""
        self.begun = asyncio.get_running_loop().create_future()
        self.closed = False
        self.first = self.last = -1
        self.count = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(f"GET {self._path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        """Count what came, and time its last event."""
        data = self._rest + data
        end = data.rfind(b"\n\n") + 2
        whole, self._rest = data[:end] if end > 1 else b"", data[end:] if end > 1 else data
        place = whole.rfind(ID)
        if place < 0:
            return
        number = int(whole[place + len(ID) : whole.index(b"\n", place + 1)])
        if self.first < 0:
            self.first = self.last = number
            self.begun.set_result(None)
            return
        self.count += whole.count(ID)
        self.last = number
        at = whole.find(AT, place) + len(AT)
        moment = datetime.fromisoformat(whole[at : whole.index(b'"', at)].decode()).timestamp()
        self._lags.append((time.time() - moment) * 1000)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that it ended."""
        self.closed = True


def _itself(follower: Follower) -> Follower:
    """What a connection is made with: a protocol that is there already."""
    return follower


async def follow(port: int, paths: list[str]) -> dict[str, object]:
    """Follow the paths until each has come to where the line says."""
    loop = asyncio.get_running_loop()
    lags: list[float] = []
    followers: list[tuple[str, Follower]] = []
    for start in range(0, len(paths), 50):
        some = [Follower(path, lags) for path in paths[start : start + 50]]
        for each in some:
            await loop.create_connection(partial(_itself, each), "127.0.0.1", port)
        await asyncio.gather(*(each.begun for each in some))
        followers += zip(paths[start : start + 50], some, strict=True)
    print(json.dumps({"begun": len(followers)}), flush=True)
    wanted: Mapping[str, int] = json.loads(await asyncio.to_thread(sys.stdin.readline))
    for _ in range(LOOKS):
        if all(each.last >= wanted[path] for path, each in followers):
            break
        await asyncio.sleep(LOOK)  # to be told of it would cost what is timed
    lost = sum(max(0, wanted[path] - each.first - each.count) for path, each in followers)
    doubled = sum(max(0, each.count - (each.last - each.first)) for _, each in followers)
    return {"lost": lost, "doubled": doubled, "cut": sum(each.closed for _, each in followers), "lags": lags}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(follow(int(sys.argv[1]), json.loads(sys.stdin.readline())))))
