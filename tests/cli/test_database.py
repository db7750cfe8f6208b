"""Which database a command means, and how it is shown."""

import pytest

from outrider.cli.database import shown
from tests.cli.harness import Cli


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


def test_a_database_that_is_made_by_looking_at_it_is_told_on_stderr_alone(cli: Cli):
    assert cli.ok("tasks", "--db", "typo.db").err == f"made {cli.folder.resolve()}/typo.db: there was none\n"
    assert "made" not in cli.ok("tasks", "--db", "typo.db").err
    told = cli.ok("tasks", "--db", "other.db", "--json")
    assert (told.out, told.err) == ("", "")
