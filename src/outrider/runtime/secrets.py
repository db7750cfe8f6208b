"""Secrets at rest: what is sealed in the database opens only with a key that is not in it.

Keys come from OUTRIDER_SECRET_KEYS, `ID:BASE64` with commas between them, or lie in a file beside a SQLite database
that only its owner may read. The first key seals, all of them open. A backup of the database has none of them: keep
them too, or what is sealed in it is lost.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from outrider.core.errors import InvalidArguments, SecretSealed, StoreLocked
from outrider.core.ledger import Ledger
from outrider.core.values import JSON, evolve
from outrider.runtime.options import check_name
from outrider.runtime.records import RotationRecord
from outrider.runtime.services import Services

VARIABLE = "OUTRIDER_SECRET_KEYS"
SEALED = ("webhook", "task_webhook", "secret")
"""The collections whose documents have sealed texts in them."""

_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")
_SEALED = re.compile(r"sealed:([A-Za-z0-9_-]{1,32}):([A-Za-z0-9_.-]{1,64}):([A-Za-z0-9_-]+)")
_NONCE = 12
_PAGE = 200
_OF_MEMORY: WeakKeyDictionary[Ledger, dict[str, bytes]] = WeakKeyDictionary()
"""The keys of stores in memory, which are as short-lived as they. A ledger that hands on to one names it `store`."""


class Secrets:
    """Seals and opens secrets of one store, with AES-256-GCM."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def seal(self, secret: bytes, purpose: str) -> str:
        """Return a secret as text that can be kept. It opens for the same purpose only.

        Raises InvalidArguments where there are no keys, or they are kept where others can read them.
        """
        keys = self._keys()
        return _seal(next(iter(keys)), keys, secret, purpose)

    def open_sealed(self, sealed: str, purpose: str) -> bytes:
        """Return what was sealed for a purpose. Raises SecretSealed if no key at hand opens it, or it was changed."""
        return _open(self._keys(), sealed, purpose)

    async def rotate(self) -> RotationRecord:
        """Seal everything anew with the first key; where keys are in a file, with a new one. For operators.

        A file keeps the key before, with which somebody may be sealing at this moment, until the next rotation; older
        ones are dropped. Of those in the environment the record says which are not needed. Safe to repeat where it was
        cut off. Raises SecretSealed, Forbidden, and StoreLocked while somebody else rotates the keys of the file.
        """
        services = self._services.operating("the secrets")
        path = self._path()
        if path is None:
            keys = self._keys()
            first, *others = keys
            return RotationRecord(key_id=first, sealed=await _seal_all(services, keys, first), unused=others)
        with _alone(path):
            keys = self._keys()
            before, first = next(iter(keys)), _new_id(keys)
            keys = {first: secrets.token_bytes(32), **keys}
            _write(path, keys)
            sealed = await _seal_all(services, keys, first)
            _write(path, {each: keys[each] for each in (first, before)})
        return RotationRecord(key_id=first, sealed=sealed, unused=())

    def _keys(self) -> dict[str, bytes]:
        """The keys by their ids, the one that seals first."""
        if told := os.environ.get(VARIABLE):
            return _parse(told, VARIABLE)
        path = self._path()
        if path is not None:
            return _read(path)
        ledger = self._services.whole.ledger
        if hasattr(ledger, "beside"):
            raise InvalidArguments(
                f"set {VARIABLE} to ID:BASE64, with 32 bytes of chance, the same on every machine: a database on a "
                "server keeps no keys beside itself"
            )
        return _OF_MEMORY.setdefault(getattr(ledger, "store", ledger), {"memory": secrets.token_bytes(32)})

    def _path(self) -> Path | None:
        """Where the keys of a database in a file are; None where they are elsewhere."""
        database = getattr(self._services.whole.ledger, "path", None)
        return Path(f"{database}-secrets") if isinstance(database, Path) and not os.environ.get(VARIABLE) else None


async def _seal_all(services: Services, keys: Mapping[str, bytes], first: str) -> int:
    return sum([await _seal_anew(services, collection, keys, first) for collection in SEALED])


async def _seal_anew(services: Services, collection: str, keys: Mapping[str, bytes], first: str) -> int:
    """Seal with the first key what another one has sealed in a collection; return how many texts those were."""
    count, after = 0, None
    while True:
        page = await services.views.documents(collection, after=after, limit=_PAGE)
        for document in page:
            while True:
                data, changed = _renewed(document.data, keys, first)
                if not changed or await services.ledger.keep([evolve(document, data=data)]):
                    count += changed
                    break
                again = await services.views.document(collection, id=document.id)
                if again is None:
                    break
                document = again  # as somebody else has left it
        if len(page) < _PAGE:
            return count
        after = page[-1].id


def _renewed(value: JSON, keys: Mapping[str, bytes], first: str) -> tuple[Any, int]:
    """A value with all texts in it sealed by the first key, and how many were not."""
    if isinstance(value, str) and (match := _SEALED.fullmatch(value)) and match[1] != first:
        return _seal(first, keys, _open(keys, value, match[2]), match[2]), 1
    if isinstance(value, Mapping):
        parts = {name: _renewed(each, keys, first) for name, each in value.items()}
        return {name: each for name, (each, _) in parts.items()}, sum(count for _, count in parts.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        found = [_renewed(each, keys, first) for each in value]
        return [each for each, _ in found], sum(count for _, count in found)
    return value, 0


def _seal(key_id: str, keys: Mapping[str, bytes], secret: bytes, purpose: str) -> str:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    check_name("purpose", purpose, 64)
    head = f"sealed:{key_id}:{purpose}:"
    nonce = os.urandom(_NONCE)
    text = base64.urlsafe_b64encode(nonce + AESGCM(keys[key_id]).encrypt(nonce, secret, head.encode())).decode()
    sealed = head + text.rstrip("=")
    if not _SEALED.fullmatch(sealed):
        raise InvalidArguments(f"a purpose is letters, digits and _ . -, not {purpose!r:.100}")
    return sealed


def _open(keys: Mapping[str, bytes], sealed: str, purpose: str) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    match = _SEALED.fullmatch(sealed)
    if match is None or match[2] != purpose:
        raise SecretSealed(f"this is nothing that was sealed for {purpose}")
    key = keys.get(match[1])
    if key is None:
        raise SecretSealed(f"it is sealed with the key {match[1]}, which is not at hand: {', '.join(keys)}")
    try:
        raw = base64.urlsafe_b64decode(match[3] + "=" * (-len(match[3]) % 4))
        return AESGCM(key).decrypt(raw[:_NONCE], raw[_NONCE:], f"sealed:{match[1]}:{purpose}:".encode())
    except (InvalidTag, ValueError):
        raise SecretSealed(f"it was changed, or {match[1]} is another key than the one that sealed it") from None


# --- where keys are ----------------------------------------------------------------------------------


def _parse(told: str, where: str) -> dict[str, bytes]:
    keys: dict[str, bytes] = {}
    for part in told.replace("\n", ",").split(","):
        id, colon, encoded = part.strip().partition(":")
        if not part.strip():
            continue
        try:
            key = base64.b64decode(encoded.strip(), validate=True)
        except binascii.Error:
            key = b""
        if not colon or not _KEY_ID.fullmatch(id) or len(key) != 32 or id in keys:
            raise InvalidArguments(f"{where} has ID:BASE64 with 32 bytes each, every id once; not so at {id!r:.40}")
        keys[id] = key
    if not keys:
        raise InvalidArguments(f"{where} has no key in it")
    return keys


def _read(path: Path) -> dict[str, bytes]:
    """The keys of a file, which is made where there is none. Raises InvalidArguments where others may read it."""
    try:
        with path.open(encoding="ascii") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(1 << 16)
    except FileNotFoundError:
        _write(path, {_new_id(()): secrets.token_bytes(32)}, is_new=True)
        return _read(path)
    except (OSError, UnicodeError) as error:
        raise InvalidArguments(f"the keys of the secrets, {path}, cannot be read: {error}") from None
    if mode & 0o077:
        raise InvalidArguments(f"others may read {path} (mode {mode:o}), which has the keys of the secrets: chmod 600")
    return _parse(text, str(path))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let nobody else change a file of keys. Raises StoreLocked where somebody does."""
    handle = os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreLocked(f"somebody else rotates the keys in {path}; wait for that") from None
        yield
    finally:
        os.close(handle)


def _write(path: Path, keys: Mapping[str, bytes], *, is_new: bool = False) -> None:
    """Write the file of the keys, whole and durably; of two who make it, the first one's stays."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    text = "".join(f"{id}:{base64.b64encode(key).decode()}\n" for id, key in keys.items())
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if not is_new:
            os.replace(draft, path)
        else:
            with suppress(FileExistsError):
                os.link(draft, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        draft.unlink(missing_ok=True)


def _new_id(taken: Sequence[str] | Mapping[str, bytes]) -> str:
    while (id := f"k{secrets.token_hex(4)}") in taken:
        pass
    return id
