"""Each engine keeps the contract of engines."""

import pytest

from outrider.agents.engine import ENGINES
from tests.agents.casts import CASTS
from tests.agents.engine_contract import EngineContract

pytestmark = pytest.mark.anyio


class TestPydanticAI(EngineContract):
    engine = "pydantic-ai"


class TestFunction(EngineContract):
    engine = "function"


class TestLangGraph(EngineContract):
    engine = "langgraph"


def test_every_engine_keeps_the_contract():
    assert set(CASTS) == set(ENGINES) == {each.engine for each in EngineContract.__subclasses__()}
