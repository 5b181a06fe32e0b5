"""Agents, leases, offers, and what an agent says about them."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

from flowrun.v1 import agent_pb2, lease_pb2, queue_service_pb2
from penstock.domain.agent import Agent, AgentHello, Offered, Polling, Releasing
from penstock.domain.ids import AgentId, FlowRunId
from penstock.domain.lease import HeldLease, Lease, LeaseOutcome, LeaseResult
from penstock.domain.limits import (
    LEASES_PER_CALL_MAX,
    LONG_POLL_MAX,
    NAME_CHARACTERS_MAX,
    REASON_CHARACTERS_MAX,
    RELEASE_DELAY_ASKED_MAX,
    SLOTS_MAX,
)
from penstock.wire.checks import Checks, collecting
from penstock.wire.flow_runs import flow_run_to_proto
from penstock.wire.flows import flow_to_proto
from penstock.wire.times import to_duration, to_timestamp

LEASE_OUTCOME_TO_PROTO: Final[Mapping[LeaseOutcome, lease_pb2.LeaseOutcome.ValueType]] = {
    outcome: lease_pb2.LeaseOutcome.Value(f"LEASE_OUTCOME_{outcome.name}") for outcome in LeaseOutcome
}
LEASE_OUTCOME_FROM_PROTO: Final[Mapping[int, LeaseOutcome]] = {
    number: outcome for outcome, number in LEASE_OUTCOME_TO_PROTO.items()
}

_NO_TIME: Final = timedelta(0)


def hello_of(hello: queue_service_pb2.Hello) -> AgentHello:
    """Who an agent is, and what it holds."""
    with collecting(None) as checks:
        return _hello_of(checks, "", hello)


def polling_of(request: queue_service_pb2.LeaseFlowRunsRequest) -> Polling:
    """What a long poll asks for."""
    with collecting(None) as checks:
        if not request.HasField("hello"):
            checks.refuse("hello", "is required")
        run = checks.uuid("flow_run_id", request.flow_run_id, required=False)
        return Polling(
            hello=_hello_of(checks if request.HasField("hello") else Checks(), "hello.", request.hello),
            offers_max=checks.count("offers_max", request.offers_max, 0, LEASES_PER_CALL_MAX),
            wait=checks.duration("wait", request.wait, _NO_TIME, LONG_POLL_MAX),
            flow_run_id=None if run is None else FlowRunId(run),
        )


def accepting_of(request: queue_service_pb2.AcceptFlowRunsRequest) -> tuple[AgentId, tuple[Lease, ...]]:
    """Who takes which offers."""
    with collecting(None) as checks:
        agent_id = AgentId(checks.uuid("agent_id", request.agent_id))
        return agent_id, _leases_of(checks, "leases", request.leases, low=1)


def leases_of(leases: Sequence[lease_pb2.Lease]) -> tuple[Lease, ...]:
    """The leases that a call is about. A lease may be named twice; each mention is judged by itself."""
    with collecting(None) as checks:
        return _leases_of(checks, "leases", leases, low=1)


def releases_of(releases: Sequence[queue_service_pb2.Release]) -> tuple[Releasing, ...]:
    """The leases that are given back."""
    with collecting(None) as checks:
        return tuple(
            _release_of(checks, f"releases[{index}]", each)
            for index, each in enumerate(checks.several("releases", releases, LEASES_PER_CALL_MAX, low=1))
        )


def lease_to_proto(lease: Lease | HeldLease) -> lease_pb2.Lease:
    """The lease; how long it lasts is said only of one that is held."""
    if isinstance(lease, Lease):
        return lease_pb2.Lease(flow_run_id=str(lease.flow_run_id), fence=lease.fence)
    return lease_pb2.Lease(
        flow_run_id=str(lease.lease.flow_run_id),
        fence=lease.lease.fence,
        ttl=to_duration(lease.ttl),
        expire_time=to_timestamp(lease.expire_time),
    )


def lease_result_to_proto(result: LeaseResult) -> lease_pb2.LeaseResult:
    return lease_pb2.LeaseResult(
        lease=lease_to_proto(result.held or result.lease), outcome=LEASE_OUTCOME_TO_PROTO[result.outcome]
    )


def offer_to_proto(offered: Offered) -> lease_pb2.Offer:
    return lease_pb2.Offer(
        flow_run=flow_run_to_proto(offered.run),
        flow=flow_to_proto(offered.flow),
        lease=lease_to_proto(offered.held),
        trace_context=offered.trace_context,
    )


def agent_to_proto(agent: Agent) -> agent_pb2.Agent:
    return agent_pb2.Agent(
        agent_id=str(agent.agent_id),
        name=agent.name,
        labels=agent.labels,
        slots=agent.slots,
        slots_used=agent.slots_used,
        version=agent.version,
        healthy=agent.healthy,
        connect_time=to_timestamp(agent.connect_time),
        last_seen_time=to_timestamp(agent.last_seen_time),
    )


def _hello_of(checks: Checks, path: str, hello: queue_service_pb2.Hello) -> AgentHello:
    return AgentHello(
        agent_id=AgentId(checks.uuid(f"{path}agent_id", hello.agent_id)),
        name=checks.name(f"{path}name", hello.name),
        labels=checks.labels(f"{path}labels", hello.labels),
        slots=checks.count(f"{path}slots", hello.slots, 1, SLOTS_MAX),
        version=checks.text(f"{path}version", hello.version, NAME_CHARACTERS_MAX),
        held=_leases_of(checks, f"{path}held", hello.held, low=0),
    )


def _leases_of(checks: Checks, field: str, leases: Sequence[lease_pb2.Lease], *, low: int) -> tuple[Lease, ...]:
    return tuple(
        _lease_of(checks, f"{field}[{index}]", lease)
        for index, lease in enumerate(checks.several(field, leases, LEASES_PER_CALL_MAX, low=low))
    )


def _lease_of(checks: Checks, field: str, lease: lease_pb2.Lease) -> Lease:
    return Lease(
        flow_run_id=FlowRunId(checks.uuid(f"{field}.flow_run_id", lease.flow_run_id)),
        fence=checks.fence(f"{field}.fence", lease.fence),
    )


def _release_of(checks: Checks, field: str, release: queue_service_pb2.Release) -> Releasing:
    return Releasing(
        lease=_lease_of(checks, f"{field}.lease", release.lease),
        delay=checks.duration(f"{field}.delay", release.delay, _NO_TIME, RELEASE_DELAY_ASKED_MAX),
        reason=checks.text(f"{field}.reason", release.reason, REASON_CHARACTERS_MAX),
    )
