"""Which database a command means, and how it is shown."""

import pytest

from outrider.cli.database import shown
from outrider.cli.program import run


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://me:secret@one/work", "postgresql://me@one/work"),
        ("postgresql://me:se:cret@one:5432,two:5433/work?password=secret", "postgresql://me@one:5432,two:5433/work"),
        ("postgres://me:s@cret@one/work", "postgres://me@one/work"),
        ("postgresql:///work?user=me&password=secret", "postgresql:///work"),
        ("postgresql://one/work", "postgresql://one/work"),
        ("sqlite:///a:b@c.db", "sqlite:///a:b@c.db"),
        ("work.db", "work.db"),
    ],
)
def test_a_password_in_a_url_is_never_shown(url: str, expected: str):
    assert shown(url) == expected


def test_a_database_that_is_made_by_looking_at_it_is_told_on_stderr_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["tasks", "--db", "typo.db"]) == 0
    assert capsys.readouterr().err == f"made {tmp_path.resolve()}/typo.db: there was none\n"
    assert run(["tasks", "--db", "typo.db"]) == 0
    assert "made" not in capsys.readouterr().err
    assert run(["tasks", "--db", "other.db", "--json"]) == 0
    assert capsys.readouterr() == ("", "")
