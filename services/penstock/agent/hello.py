"""How an agent presents itself to the queue."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from flowrun.v1 import queue_service_pb2
from penstock.agent.leases import Held
from penstock.agent.settings import AgentSettings
from penstock.domain.limits import LEASES_PER_CALL_MAX


def hello(settings: AgentSettings, agent_id: str, held: Iterable[Held]) -> queue_service_pb2.Hello:
    """Who the agent is, and what it holds."""
    return queue_service_pb2.Hello(
        agent_id=agent_id,
        name=settings.name,
        labels=settings.label_list,
        slots=settings.slots,
        version=_version(),
        held=[each.lease.to_proto() for each in held][:LEASES_PER_CALL_MAX],
    )


def _version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return ""
