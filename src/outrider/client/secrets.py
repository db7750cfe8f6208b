"""The secrets of a server: they are sealed anew there. None ever leaves it: nothing is sealed or opened from here."""

from __future__ import annotations

from outrider.client.connection import LONG, Connection
from outrider.runtime.records import RotationRecord


class Secrets:
    """The secrets of one store."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def rotate(self) -> RotationRecord:
        """Seal everything anew with the first key; where keys are in a file, with a new one. For operators.

        Asked once: each rotation drops the keys before the last. Raises SecretSealed, Forbidden, and StoreLocked while
        somebody else rotates the keys of the file.
        """
        return (await self._connection.ask("POST", "/v1/secrets/rotate", waits=LONG)).record(RotationRecord)
