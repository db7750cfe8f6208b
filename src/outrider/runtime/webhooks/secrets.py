"""The secrets of endpoints in the store: the one place where they are sealed and opened again."""

from __future__ import annotations

from outrider.core.errors import InvalidArguments
from outrider.core.values import Instant, JSONObject
from outrider.runtime.secrets import Secrets
from outrider.runtime.services import Services
from outrider.runtime.webhooks.stored import Endpoint

PURPOSE = "webhook"


def kept(services: Services, key: bytes, until: Instant | None = None) -> JSONObject:
    """A secret as an endpoint's document has it; `until` when it signs, None for as long as there is no other."""
    return {"sealed": seal(services, key, PURPOSE), "until": until}


def keys_of(services: Services, endpoint: Endpoint, now: Instant) -> list[bytes]:
    """The keys that sign now, the newest first. There are two while one takes the place of the other."""
    told = [each for each in endpoint.document.data["secrets"] if each["until"] is None or each["until"] > now]
    return [open_sealed(services, each["sealed"], PURPOSE) for each in told]


def seal(services: Services, value: bytes, purpose: str) -> str:
    """A secret as it may lie in the store. Raises InvalidArguments where it cannot be sealed."""
    try:
        return Secrets(services).seal(value, purpose)
    except ImportError as error:
        raise _no_cryptography(error) from error


def open_sealed(services: Services, sealed: str, purpose: str) -> bytes:
    """What was sealed for that purpose. Raises SecretSealed, and InvalidArguments where nothing can be opened."""
    try:
        return Secrets(services).open_sealed(sealed, purpose)
    except ImportError as error:
        raise _no_cryptography(error) from error


def _no_cryptography(error: ImportError) -> InvalidArguments:
    return InvalidArguments(f"secrets of webhooks need the extra `serve`: pip install 'outrider[serve]' ({error})")
