"""Secrets at rest: sealed for one purpose, opened by the keys at hand, sealed anew without losing one."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest

from outrider import Outrider
from outrider.core.errors import Forbidden, InvalidArguments, SecretSealed, StoreLocked
from outrider.core.ledger import Document
from outrider.runtime.bounds import Bounds
from outrider.runtime.secrets import VARIABLE, Secrets, _alone
from outrider.testing import open_test

pytestmark = pytest.mark.anyio

app = Outrider()


def keys(*ids: str) -> str:
    return ",".join(f"{id}:{base64.b64encode(id.encode().ljust(32, b'.')).decode()}" for id in ids)


async def test_the_keys_of_a_database_in_a_file_lie_beside_it_for_its_owner_alone(tmp_path: Path):
    url = str(tmp_path / "work.db")
    async with app.open(url, worker=False) as runtime:
        sealed = runtime.secrets.seal(b"whsec", "webhook")
    beside = tmp_path / "work.db-secrets"
    assert stat.S_IMODE(beside.stat().st_mode) == 0o600
    async with app.open(url, worker=False) as runtime:
        assert runtime.secrets.open_sealed(sealed, "webhook") == b"whsec"
        assert runtime.secrets.seal(b"whsec", "webhook") != sealed
        beside.chmod(0o640)
        with pytest.raises(InvalidArguments, match="chmod 600"):
            runtime.secrets.open_sealed(sealed, "webhook")
        beside.unlink()
        with pytest.raises(SecretSealed):
            runtime.secrets.open_sealed(sealed, "webhook")


async def test_a_worker_of_a_test_opens_what_its_runtime_sealed_in_memory():
    async with open_test(app, store="memory") as runtime:
        sealed = runtime.secrets.seal(b"whsec", "webhook")
        (crew,) = runtime._crews
        assert Secrets(crew.services).open_sealed(sealed, "webhook") == b"whsec"
    async with open_test(app, store="memory", worker=False) as another:
        with pytest.raises(SecretSealed):
            another.secrets.open_sealed(sealed, "webhook")


async def test_what_was_changed_or_is_for_something_else_does_not_open():
    async with app.open("memory://", worker=False) as runtime:
        sealed = runtime.secrets.seal(b"whsec", "webhook")
        for place in range(0, len(sealed), 2):
            changed = sealed[:place] + ("A" if sealed[place] != "A" else "B") + sealed[place + 1 :]
            with pytest.raises(SecretSealed):
                runtime.secrets.open_sealed(changed, "webhook")
        for wrong in (sealed.replace(":webhook:", ":other:"), "sealed:", "", sealed[:-4]):
            with pytest.raises(SecretSealed):
                runtime.secrets.open_sealed(wrong, "other")
        with pytest.raises(InvalidArguments):
            runtime.secrets.seal(b"", "a:b")


async def test_a_rotation_seals_anew_all_that_is_kept_and_keeps_the_key_before(tmp_path: Path):
    async with app.open(str(tmp_path / "work.db"), worker=False) as runtime:
        old = [runtime.secrets.seal(f"{n}".encode(), "webhook") for n in range(3)]
        await runtime.ledger.keep(
            [Document("webhook", f"whk_{n}", {"secrets": [{"sealed": each}], "url": "u"}) for n, each in enumerate(old)]
        )
        rotated = await runtime.secrets.rotate()
        assert rotated.sealed == 3
        kept = [each.data["secrets"][0]["sealed"] for each in await runtime.services.views.documents("webhook")]
        assert all(each.startswith(f"sealed:{rotated.key_id}:webhook:") for each in kept)
        assert [runtime.secrets.open_sealed(each, "webhook") for each in kept] == [b"0", b"1", b"2"]
        assert runtime.secrets.open_sealed(old[0], "webhook") == b"0"  # who was sealing meanwhile
        assert (await runtime.secrets.rotate()).sealed == 3
        with pytest.raises(SecretSealed):
            runtime.secrets.open_sealed(old[0], "webhook")
        with _alone(tmp_path / "work.db-secrets"), pytest.raises(StoreLocked):
            await runtime.secrets.rotate()
        with pytest.raises(Forbidden):
            await runtime.within(Bounds("org_a")).secrets.rotate()


async def test_keys_of_the_environment_go_before_and_the_first_of_them_seals(monkeypatch: pytest.MonkeyPatch):
    async with app.open("memory://", worker=False) as runtime:
        monkeypatch.setenv(VARIABLE, keys("old"))
        sealed = runtime.secrets.seal(b"x", "webhook")
        await runtime.ledger.keep([Document("webhook", "whk_1", {"secret": sealed})])
        monkeypatch.setenv(VARIABLE, keys("new", "old"))
        rotated = await runtime.secrets.rotate()
        assert (rotated.key_id, rotated.sealed, list(rotated.unused)) == ("new", 1, ["old"])
        monkeypatch.setenv(VARIABLE, keys("new"))
        kept = await runtime.services.views.document("webhook", id="whk_1")
        assert kept is not None
        assert runtime.secrets.open_sealed(kept.data["secret"], "webhook") == b"x"
        with pytest.raises(SecretSealed, match="old"):
            runtime.secrets.open_sealed(sealed, "webhook")
        for wrong in ("a", "a:b", keys("a", "a"), keys("a")[:-4], "a b:" + keys("x")[2:]):
            monkeypatch.setenv(VARIABLE, wrong)
            with pytest.raises(InvalidArguments):
                runtime.secrets.seal(b"x", "webhook")


async def test_two_processes_that_make_the_keys_at_once_end_up_with_the_same(tmp_path: Path):
    url = str(tmp_path / "work.db")
    async with app.open(url, worker=False) as runtime, app.open(url, worker=False) as other:
        from outrider.runtime import secrets

        path = tmp_path / "work.db-secrets"
        secrets._write(path, {"first": os.urandom(32)}, is_new=True)
        secrets._write(path, {"second": os.urandom(32)}, is_new=True)
        sealed = runtime.secrets.seal(b"x", "webhook")
        assert sealed.startswith("sealed:first:")
        assert other.secrets.open_sealed(sealed, "webhook") == b"x"
        assert sorted(each.name for each in tmp_path.iterdir() if "secrets" in each.name) == ["work.db-secrets"]


async def test_a_database_on_a_server_wants_its_keys_told(postgres_url: str):
    async with app.open(postgres_url, worker=False) as runtime:
        with pytest.raises(InvalidArguments, match=VARIABLE):
            runtime.secrets.seal(b"x", "webhook")
