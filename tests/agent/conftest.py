"""What the agent's tests share: services on a socket, and the environment of the processes they start."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.agent.small_services import SmallServices

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def services() -> AsyncIterator[SmallServices]:
    """Services without any run."""
    async with SmallServices() as small:
        yield small


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes find the sources, and nothing of the tester's own settings."""
    for name in [name for name in os.environ if name.startswith(("PENSTOCK_", "OTEL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "services"), str(ROOT / "gen" / "python")]))
    monkeypatch.setenv("PYTHONWARNINGS", "")
