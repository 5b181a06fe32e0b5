"""Why a run is not running, as far as the database knows."""

from dataclasses import dataclass
from datetime import timedelta

from penstock.domain.flow_run import FlowRun
from penstock.domain.ids import FlowRunId, TenantId
from penstock.domain.lease import waits
from penstock.domain.obstacles import Obstacle, Situation, obstacles
from penstock.storage import agents, flow_runs, queue
from penstock.storage.database import Transaction


@dataclass(frozen=True, slots=True)
class Explanation:
    """A run, and every reason why it is not running; none when it runs, is final, or is being handed out."""

    run: FlowRun
    obstacles: tuple[Obstacle, ...]


def explain_flow_run(
    tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId, *, proven_within: timedelta
) -> Explanation:
    """Judge the run by the conditions of the take, and the agents that proved to live within that time."""
    run = flow_runs.get(tx, tenant, flow_run_id)
    standing = queue.standing_of(tx, tenant, flow_run_id)
    if standing is None or not waits(standing.entry, now=tx.now):
        return Explanation(run, ())
    situation = Situation(
        due=standing.due,
        due_time=standing.entry.due_time,
        labels=standing.lane.key.labels,
        agents=agents.connected(tx, tenant, proven_within=proven_within),
    )
    return Explanation(run, obstacles(situation))
