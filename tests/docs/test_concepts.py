"""The example of docs/concepts.md does what it shows."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "concepts.md"


@pytest.mark.anyio
async def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module = ModuleType("outrider_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    exec(compile(source, PAGE.name, "exec"), module.__dict__)
    await module.main()
    assert capsys.readouterr().out.endswith("{'published': True}\n")
