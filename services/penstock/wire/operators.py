"""What operators are shown of the queue."""

from flowrun.v1 import operator_service_pb2 as pb
from penstock.domain.obstacles import Agentless, AgentsBusy, NoAgent, NotDue, Obstacle
from penstock.wire.leases import agent_to_proto
from penstock.wire.pages import fitting
from penstock.wire.times import to_timestamp


def obstacle_to_proto(obstacle: Obstacle) -> pb.Obstacle:
    """The reason; of very many busy agents only as many as a message can carry."""
    match obstacle:
        case NotDue(due_time):
            return pb.Obstacle(due_time=to_timestamp(due_time))
        case NoAgent(labels, nearest, missing):
            agent = None if nearest is None else agent_to_proto(nearest)
            return pb.Obstacle(no_agent=pb.NoAgent(labels=labels, nearest=agent, missing=missing))
        case AgentsBusy(agents):
            return pb.Obstacle(agents_busy=pb.AgentsBusy(agents=fitting(list(map(agent_to_proto, agents)))))
        case Agentless():
            return pb.Obstacle(agentless=pb.Agentless())
