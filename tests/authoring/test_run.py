"""What code may know about the run it is in."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock import current_flow_run, get_logger
from penstock.authoring.run import NotInFlowRun


@pytest.fixture(autouse=True)
def _asked_afresh() -> Iterator[None]:
    """A process is in one run for its life; a test process is in one per test."""
    current_flow_run.cache_clear()
    yield
    current_flow_run.cache_clear()


def test_a_run_is_known_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a script that is itself a command flow."""
    for name, content in (("parameters", {"a": 2**70}), ("context", {"b": 1})):
        (tmp_path / name).write_text(json.dumps(content))
        monkeypatch.setenv(f"PENSTOCK_{name.upper()}_FILE", str(tmp_path / name))
    for name, value in (("ID", "run"), ("NAME", "quiet-river")):
        monkeypatch.setenv(f"PENSTOCK_FLOW_RUN_{name}", value)
    monkeypatch.setenv("PENSTOCK_FENCE", "3")
    monkeypatch.setenv("PENSTOCK_ATTEMPT", "2")
    monkeypatch.setenv("PENSTOCK_FLOW_NAME", "example")

    run = current_flow_run()

    assert (run.id, run.fence, run.attempt, run.name, run.flow_name) == ("run", 3, 2, "quiet-river", "example")
    assert (run.parameters, run.context) == ({"a": 2**70}, {"b": 1})
    assert get_logger().name == "example"


def test_code_that_is_called_directly_is_in_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for the run is refused clearly; the logger still works."""
    monkeypatch.delenv("PENSTOCK_FLOW_RUN_ID", raising=False)

    with pytest.raises(NotInFlowRun, match="not executed by a flow run"):
        current_flow_run()
    assert get_logger().name == "penstock.flow"
