"""What `import outrider` costs, and what it says of itself."""

import subprocess
import sys
from importlib import metadata, resources

import outrider

HEAVY = ("anyio", "asyncpg", "cyclopts", "openai", "orjson", "pydantic", "pydantic_ai", "rich", "sqlite3", "structlog")


def test_importing_outrider_loads_no_engine_and_no_driver():
    program = f"import sys, outrider; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_the_version_is_the_one_that_was_installed():
    assert metadata.version("outrider") == outrider.__version__


def test_the_package_carries_its_types():
    assert (resources.files("outrider") / "py.typed").is_file()
