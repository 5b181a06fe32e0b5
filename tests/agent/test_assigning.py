"""From an offer to what a supervisor is told."""

from pathlib import Path

import pytest

from flowrun.v1 import flow_pb2, flow_run_pb2, lease_pb2
from penstock.agent.assigning import by_run_config, in_own_surroundings
from penstock.agent.leases import LeaseCount
from penstock.agent.settings import AgentSettings

CONFIG = flow_run_pb2.RunConfig(
    environment={"COLOUR": "blue"}, working_directory="/srv", image="example/image", resources={"cpu": "1"}
)
OFFER = lease_pb2.Offer(
    flow_run=flow_run_pb2.FlowRun(name="quiet-river", flow_name="river", attempt=2, run_config=CONFIG),
    flow=flow_pb2.Flow(entry_point=flow_pb2.EntryPoint(python="river.py:river")),
)
LEASE = LeaseCount("run", 3, 60.0, 100.0)


@pytest.fixture
def settings(tmp_path: Path) -> AgentSettings:
    return AgentSettings(address="127.0.0.1:1", data_dir=tmp_path)


def test_an_agent_follows_the_run_config_as_far_as_it_can(settings: AgentSettings) -> None:
    """Environment and directory are taken; what a process of this machine cannot do is a warning."""
    assignment = by_run_config(settings, "agent")(OFFER, LEASE)

    assert ("run", 3, 2, "quiet-river", "river.py:river") == (
        assignment.flow_run_id,
        assignment.fence,
        assignment.attempt,
        assignment.flow_run_name,
        assignment.entry_point,
    )
    assert ({"COLOUR": "blue"}, "/srv") == (assignment.environment, assignment.working_directory)
    assert [
        "The process launcher does not use the run config's image; it is ignored.",
        "The process launcher does not use the run config's resources; it is ignored.",
    ] == assignment.warnings


def test_without_an_agent_only_the_environment_counts(settings: AgentSettings) -> None:
    """Whoever executes a run themselves owns its surroundings, so nothing is warned of."""
    assignment = in_own_surroundings(settings, "agent")(OFFER, LEASE)

    assert ({"COLOUR": "blue"}, "", ()) == (
        assignment.environment,
        assignment.working_directory,
        tuple(assignment.warnings),
    )
