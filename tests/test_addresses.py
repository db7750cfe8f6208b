"""The address of a store means one thing, or is refused before any file is made."""

from pathlib import Path

import pytest

from outrider import Outrider
from outrider.bootstrap import open_ledger
from outrider.core.errors import InvalidArguments

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("sqlite:///work.db", "work.db"),
        ("sqlite:///sub/work.db", "sub/work.db"),
        ("sqlite:///a%20b%3Fc%23d.db", "a b?c#d.db"),
        ("work.db", "work.db"),
        ("./a?b#c:d.db", "a?b#c:d.db"),
    ],
)
async def test_an_address_opens_the_file_that_it_names(folder: Path, url: str, name: str):
    ledger = await open_ledger(url)
    await ledger.close()
    assert (folder / name).is_file()


async def test_an_absolute_path_has_four_slashes(folder: Path):
    ledger = await open_ledger(f"sqlite:///{folder}/work.db")
    await ledger.close()
    assert (folder / "work.db").is_file()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite:foo.db",
        "sqlite:/foo.db",
        "SQLite:foo.db",
        "sqlite://",
        "sqlite:///",
        "sqlite://foo.db",
        "sqlite://[",
        "sqlite:///x.db?mode=ro",
        "sqlite:///x.db?",
        "sqlite:///x.db#part",
        "sqlite:///x%00.db",
        "x\0.db",
        "sqlite:///:memory:",
        ":memory:",
        "memory:",
        "memory://x",
        "memory://?x=1",
        "file:x.db",
        "mysql://host/x",
        "://x",
    ],
)
async def test_what_is_no_address_is_refused_and_makes_no_file(folder: Path, url: str):
    with pytest.raises(InvalidArguments, match=r"names no|has more|takes nothing"):
        await open_ledger(url)
    with pytest.raises(InvalidArguments):
        async with Outrider().open(url, worker=False):
            pass
    assert list(folder.iterdir()) == []
